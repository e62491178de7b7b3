//! Joins datasets into one, in the order given, without loading them: the result is byte for byte
//! what megatron-core's `add_index` calls in that order give.
//!
//! One part is open at a time, so any number of them goes with few files and maps. Each is opened
//! twice: first to check them all and to see how large the result will be, then to copy it. Memory is
//! a few hundred bytes a part, 8 bytes a block of ids, and the texts of media references.
//!
//! Checksums are those of the parts, not computed anew, so damage that was in a part is found in the
//! result. Only a part without a sidecar is read for it.

use std::sync::Arc;

use super::append::AppendFile;
use super::blocks::BlockSums;
use super::contents::{Written, require_alike};
use super::header::{Dtype, Header};
use super::joined::JoinedNotes;
use super::joined_index::JoinedIndex;
use super::media::References;
use super::pair::{write_references, write_sidecar};
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
    let plan = Plan::of(&*vfs, parts)?;
    let staging = Staging::begin(vfs, output)?;
    let vfs = staging.vfs();
    let mut bin = AppendFile::create(Arc::clone(vfs), &output.new_bin(), BlockSums::default())?;
    let mut index = JoinedIndex::create(Arc::clone(vfs), &output.new_idx(), &plan.header)?;
    let mut references = References::default();
    let mut num_sequences = 0;
    for (part, expected) in parts.iter().zip(&plan.parts) {
        let part = IndexedDataset::open_on(&**vfs, part, Verify::Index)?;
        if counts(&part) != *expected {
            return Err(Error::corrupt(
                &part.prefix().idx(),
                "it was replaced while it was merged; nothing has been published, merge again",
            ));
        }
        bin.push_file(&part.prefix().bin(), &*part.block_sums()?)?;
        index.push(&part)?;
        for (sequence, text) in part.references() {
            references.push(num_sequences + sequence, text);
        }
        num_sequences += part.num_sequences();
    }
    let sums = bin.finish()?;
    let index = index.finish()?;
    write_references(&staging, &index, || references.iter_from(0))?;
    let mut notes = Notes::default();
    plan.joined.finish(&mut notes);
    write_sidecar(&staging, &plan.header, plan.written, &index, sums, notes)?;
    staging.publish()?;
    Ok(plan.written)
}

/// What the result will be.
struct Plan {
    header: Header,
    written: Written,
    parts: Vec<Written>,
    joined: JoinedNotes,
}

impl Plan {
    /// Checks that the parts are sound and go together.
    fn of(vfs: &dyn Vfs, parts: &[Prefix]) -> Result<Self> {
        let mut kind: Option<(Dtype, Option<bool>)> = None;
        let mut joined = JoinedNotes::default();
        let mut written = Written::default();
        let mut counted = Vec::with_capacity(parts.len());
        for part in parts {
            let part = IndexedDataset::open_on(vfs, part, Verify::Index)?;
            let (dtype, has_modes) = kind.unwrap_or((part.dtype(), None));
            // A part without sequences does not tell whether it has modes.
            let tells = (part.num_sequences() > 0).then(|| part.has_modes());
            let has_modes = has_modes.or(tells);
            require_alike(&part, dtype, has_modes.unwrap_or(false))?;
            kind = Some((dtype, has_modes));
            joined.add(&part)?;
            let count = counts(&part);
            written.num_documents += count.num_documents;
            written.num_sequences += count.num_sequences;
            written.num_tokens += count.num_tokens;
            counted.push(count);
        }
        let Some((dtype, _)) = kind else {
            return Err(Error::argument("there is nothing to merge"));
        };
        Ok(Self {
            header: Header {
                dtype,
                num_sequences: written.num_sequences,
                num_document_indices: written.num_documents + 1,
            },
            written,
            parts: counted,
            joined,
        })
    }
}

fn counts(part: &IndexedDataset) -> Written {
    Written {
        num_documents: part.num_documents(),
        num_sequences: part.num_sequences(),
        num_tokens: part.num_tokens(),
    }
}
