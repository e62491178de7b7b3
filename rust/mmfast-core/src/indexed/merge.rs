//! Joins datasets into one, in the order given, without loading them: the result is byte for byte
//! what megatron-core's `add_index` calls in that order give. Memory is a few hundred bytes a part and
//! 16 bytes a block of ids.
//!
//! Checksums are those of the parts, not computed anew, so damage that was in a part is found in the
//! result. Only a part without a sidecar is read for it.

use std::sync::Arc;

use super::append::AppendFile;
use super::blocks::BlockSums;
use super::contents::{Written, require_alike};
use super::header::Header;
use super::joined::JoinedNotes;
use super::pair::{write_index, write_references, write_sidecar};
use super::prefix::Prefix;
use super::publish::Staging;
use super::reader::IndexedDataset;
use super::sidecar::Notes;
use super::source::DocumentSource;
use super::verify::Verify;
use crate::error::{Error, Result};
use crate::vfs::{Disk, Vfs};

/// Merges `parts` into `output`, which may be one of them. All must have one dtype, and either all
/// have modes or none; parts without sequences go with both.
pub fn merge(output: &Prefix, parts: &[Prefix]) -> Result<Written> {
    merge_on(Arc::new(Disk), output, parts)
}

/// [`merge`] on a given file system.
pub fn merge_on(vfs: Arc<dyn Vfs>, output: &Prefix, parts: &[Prefix]) -> Result<Written> {
    let parts = parts
        .iter()
        .map(|part| IndexedDataset::open_on(&*vfs, part, Verify::Index))
        .collect::<Result<Vec<_>>>()?;
    let Some(first) = parts.first() else {
        return Err(Error::argument("there is nothing to merge"));
    };
    let dtype = first.dtype();
    let has_modes = parts
        .iter()
        .find(|part| part.num_sequences() > 0)
        .is_some_and(IndexedDataset::has_modes);
    let mut joined = JoinedNotes::default();
    for part in &parts {
        require_alike(part, dtype, has_modes)?;
        joined.add(part)?;
    }

    let staging = Staging::begin(vfs, output)?;
    let mut bin = AppendFile::create(
        Arc::clone(staging.vfs()),
        &output.new_bin(),
        BlockSums::default(),
    )?;
    for part in &parts {
        bin.push_file(&part.prefix().bin(), &*part.block_sums()?)?;
    }
    let sums = bin.finish()?;

    let written = Written {
        num_documents: parts.iter().map(DocumentSource::num_documents).sum(),
        num_sequences: parts.iter().map(IndexedDataset::num_sequences).sum(),
        num_tokens: parts.iter().map(IndexedDataset::num_tokens).sum(),
    };
    let header = Header {
        dtype,
        num_sequences: written.num_sequences,
        num_document_indices: written.num_documents + 1,
    };
    let document_ends = parts.iter().scan(0, |sequences_before, part| {
        let before = *sequences_before;
        *sequences_before += part.num_sequences();
        Some(part.document_indices().skip(1).map(move |end| end + before))
    });
    let index = write_index(
        staging.vfs(),
        &output.new_idx(),
        &header,
        || parts.iter().flat_map(IndexedDataset::sequence_lengths),
        std::iter::once(0).chain(document_ends.flatten()),
        parts
            .iter()
            .flat_map(|part| part.sequence_modes().unwrap_or_default())
            .copied(),
    )?;
    write_references(&staging, &index, || {
        let starts = parts.iter().scan(0, |start, part| {
            let before = *start;
            *start += part.num_sequences();
            Some(before)
        });
        starts.zip(&parts).flat_map(|(before, part)| {
            let references = part.references();
            references.map(move |(sequence, text)| (before + sequence, text))
        })
    })?;
    let mut notes = Notes::default();
    joined.finish(&mut notes);
    write_sidecar(&staging, &header, written, &index, sums, notes)?;
    staging.publish()?;
    Ok(written)
}
