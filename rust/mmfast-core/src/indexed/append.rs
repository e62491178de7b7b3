//! Files that grow at the end: bytes are gathered and written in large pieces, and digested on the
//! way while they are in the cache.

use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::blocks::BlockSums;
use super::header::Header;
use crate::error::{Error, Result};
use crate::vfs::{File, Vfs};

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 4 << 20;
/// Bytes digested and then written at once: small enough to stay in the cache between the two.
const PIECE_BYTES: usize = 1 << 18;

/// Something computed over all bytes of a file as they are written.
pub(super) trait Digest {
    /// Takes the next bytes.
    fn update(&mut self, bytes: &[u8]);
}

/// A file in the making. After a failed write its content is unknown, so nothing more is taken.
#[derive(Debug)]
pub(super) struct AppendFile<D> {
    vfs: Arc<dyn Vfs>,
    file: File,
    buffer: Vec<u8>,
    digest: D,
    is_broken: bool,
}

impl<D: Digest> AppendFile<D> {
    pub(super) fn create(vfs: Arc<dyn Vfs>, path: &Path, digest: D) -> Result<Self> {
        let file = vfs.create(path)?;
        Ok(Self {
            vfs,
            file,
            buffer: Vec::new(),
            digest,
            is_broken: false,
        })
    }

    /// Lets `fill` append to the buffer, then writes the buffer out once it is large.
    pub(super) fn push(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        self.require_sound()?;
        fill(&mut self.buffer);
        if self.buffer.len() >= BUFFER_BYTES {
            self.write_out()?;
        }
        Ok(())
    }

    /// Appends bytes; a large piece is written from where it is.
    pub(super) fn push_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() < BUFFER_BYTES {
            return self.push(|buffer| buffer.extend_from_slice(bytes));
        }
        self.write_out()?;
        self.write(bytes)
    }

    /// Writes what is gathered and returns the digest of everything once all is durable.
    pub(super) fn finish(mut self) -> Result<D> {
        self.write_out()?;
        self.vfs.sync(&self.file)?;
        Ok(self.digest)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.digest.update(piece);
            let written = self.vfs.write(&mut self.file, piece);
            self.is_broken = written.is_err();
            written?;
        }
        Ok(())
    }

    fn write_out(&mut self) -> Result<()> {
        self.require_sound()?;
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let written = self.write(&buffer);
        buffer.clear();
        self.buffer = buffer;
        written
    }

    fn require_sound(&self) -> Result<()> {
        if self.is_broken {
            return Err(Error::argument(format!(
                "an earlier write to {} failed, so the dataset cannot be completed; abandon this \
                 writer and write it again",
                self.file.path().display()
            )));
        }
        Ok(())
    }
}

impl AppendFile<BlockSums> {
    /// Appends a whole file without reading it, given its sums.
    pub(super) fn push_file(&mut self, path: &Path, sums: &BlockSums) -> Result<()> {
        self.write_out()?;
        let mut source = self.vfs.open(path)?;
        let num_bytes = sums.num_bytes();
        let copied = self.vfs.append(&mut self.file, &mut source, num_bytes);
        self.is_broken = copied.is_err();
        self.digest.extend(sums);
        copied
    }
}

/// What [`write_index`] wrote.
pub(super) struct WrittenIndex {
    pub(super) num_bytes: u64,
    /// XXH3-128 of the file.
    pub(super) hash: u128,
}

/// Writes a complete `.idx` and makes it durable. Pointers are derived from the lengths, so no array
/// is ever held in memory here.
///
/// `document_indices` is the whole array: 0 first, the number of sequences last.
pub(super) fn write_index<L: Iterator<Item = u32>>(
    vfs: &Arc<dyn Vfs>,
    path: &Path,
    header: &Header,
    lengths: impl Fn() -> L,
    document_indices: impl Iterator<Item = u64>,
    modes: impl Iterator<Item = u8>,
) -> Result<WrittenIndex> {
    let digest = SizeAndHash::default();
    let mut file = AppendFile::create(Arc::clone(vfs), path, digest)?;
    let item_bytes = header.dtype.item_bytes() as u64;
    file.push(|buffer| buffer.extend(header.encode()))?;
    for length in lengths() {
        file.push(|buffer| buffer.extend(length.to_le_bytes()))?;
    }
    let mut pointer = 0_u64;
    for length in lengths() {
        file.push(|buffer| buffer.extend(pointer.to_le_bytes()))?;
        pointer += u64::from(length) * item_bytes;
    }
    for boundary in document_indices {
        file.push(|buffer| buffer.extend(boundary.to_le_bytes()))?;
    }
    for mode in modes {
        file.push(|buffer| buffer.push(mode))?;
    }
    let SizeAndHash { num_bytes, hash } = file.finish()?;
    Ok(WrittenIndex {
        num_bytes,
        hash: hash.digest128(),
    })
}

#[derive(Default)]
struct SizeAndHash {
    num_bytes: u64,
    hash: Xxh3,
}

impl Digest for SizeAndHash {
    fn update(&mut self, bytes: &[u8]) {
        self.num_bytes += bytes.len() as u64;
        self.hash.update(bytes);
    }
}
