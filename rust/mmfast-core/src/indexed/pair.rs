//! What makes the ids in a `.bin` a dataset: the `.idx`, the sidecar and the media references beside it,
//! written once the ids are complete.

use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::append::{AppendFile, Digest};
use super::blocks::BlockSums;
use super::contents::{Contents, Written};
use super::header::Header;
use super::media::write_media;
use super::publish::Staging;
use super::sidecar::{Notes, PairFacts, Sidecar};
use crate::error::Result;
use crate::vfs::Vfs;

/// Entries of an index that are digested at once.
const CHUNK_ITEMS: usize = 1 << 14;

/// Facts of an `.idx` that is complete.
pub(super) struct WrittenIndex {
    num_bytes: u64,
    /// XXH3-128 of the file.
    hash: u128,
}

/// Writes a complete `.idx` and makes it durable. Pointers are derived from the lengths.
pub(super) fn write_index(
    vfs: &Arc<dyn Vfs>,
    path: &Path,
    contents: &Contents,
) -> Result<WrittenIndex> {
    let header = contents.header();
    let item_bytes = header.dtype.item_bytes() as u64;
    let lengths = || contents.lengths().iter().copied();
    let pointers = lengths().scan(0_u64, |end, length| {
        let pointer = *end;
        *end += u64::from(length) * item_bytes;
        Some(pointer)
    });
    let document_indices = std::iter::once(0).chain(contents.document_ends().iter().copied());

    let mut file = AppendFile::create(Arc::clone(vfs), path, SizeAndHash::default())?;
    file.push(|buffer| buffer.extend(header.encode()))?;
    push_items(&mut file, lengths().map(u32::to_le_bytes))?;
    push_items(&mut file, pointers.map(u64::to_le_bytes))?;
    push_items(&mut file, document_indices.map(u64::to_le_bytes))?;
    file.push_bytes(contents.modes())?;
    Ok(file.finish()?.finish())
}

/// Writes the media references of a pair whose files are complete, if there are any, and makes them durable.
pub(super) fn write_references<'a, I: Iterator<Item = (u64, &'a str)>>(
    staging: &Staging,
    index: &WrittenIndex,
    references: impl Fn() -> I,
) -> Result<()> {
    if references().next().is_none() {
        // One that a killed writer left must not be published with these files.
        return staging.vfs().remove(&staging.prefix().new_media());
    }
    let path = staging.prefix().new_media();
    write_media(staging.vfs(), &path, index.hash, references)
}

/// Writes the sidecar of a pair whose files are complete and makes it durable.
pub(super) fn write_sidecar(
    staging: &Staging,
    header: &Header,
    written: Written,
    index: &WrittenIndex,
    sums: BlockSums,
    notes: Notes,
) -> Result<()> {
    let facts = PairFacts {
        dtype: header.dtype,
        num_sequences: header.num_sequences,
        num_document_indices: header.num_document_indices,
        num_tokens: written.num_tokens,
        bin_bytes: sums.num_bytes(),
        idx_bytes: index.num_bytes,
        idx_hash: index.hash,
    };
    let vfs = staging.vfs();
    let mut file = vfs.create(&staging.prefix().new_sidecar())?;
    vfs.write(&mut file, &Sidecar::new(facts, sums, notes).encode())?;
    vfs.sync(&file)
}

fn push_items<D: Digest, const N: usize>(
    file: &mut AppendFile<D>,
    items: impl Iterator<Item = [u8; N]>,
) -> Result<()> {
    let mut items = items.peekable();
    while items.peek().is_some() {
        file.push(|buffer| {
            for item in items.by_ref().take(CHUNK_ITEMS) {
                buffer.extend_from_slice(&item);
            }
        })?;
    }
    Ok(())
}

/// Makes the facts of an index from its bytes.
#[derive(Default)]
pub(super) struct SizeAndHash {
    num_bytes: u64,
    hash: Xxh3,
}

impl SizeAndHash {
    pub(super) fn finish(self) -> WrittenIndex {
        WrittenIndex {
            num_bytes: self.num_bytes,
            hash: self.hash.digest128(),
        }
    }
}

impl Digest for SizeAndHash {
    fn update(&mut self, bytes: &[u8]) {
        self.num_bytes += bytes.len() as u64;
        self.hash.update(bytes);
    }
}
