//! Files that grow at the end: bytes are digested while they are in the cache, gathered, and written
//! in large pieces.

use std::path::Path;
use std::sync::Arc;

use super::blocks::BlockSums;
use crate::error::{Error, Result};
use crate::vfs::{File, Vfs};

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;
/// Bytes digested and then written at once: small enough to stay in the cache between the two.
const PIECE_BYTES: usize = 1 << 19;

/// Something computed over all bytes of a file on their way to it.
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
        Ok(Self::over(vfs, file, digest))
    }

    /// Goes on at the cursor of a file whose content so far has this digest.
    pub(super) fn over(vfs: Arc<dyn Vfs>, file: File, digest: D) -> Self {
        Self {
            vfs,
            file,
            buffer: Vec::new(),
            digest,
            is_broken: false,
        }
    }

    /// The digest of all bytes pushed so far.
    pub(super) fn digest(&self) -> &D {
        &self.digest
    }

    /// Lets `fill` append to the buffer, then writes the buffer out once it is large.
    pub(super) fn push(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        self.require_sound()?;
        let start = self.buffer.len();
        fill(&mut self.buffer);
        self.digest
            .update(self.buffer.get(start..).unwrap_or_default());
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
        self.attempt(|vfs, file| vfs.reserve(file, bytes.len() as u64))?;
        for piece in bytes.chunks(PIECE_BYTES) {
            self.digest.update(piece);
            self.attempt(|vfs, file| vfs.write(file, piece))?;
        }
        Ok(())
    }

    /// Returns once everything pushed so far is durable.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.write_out()?;
        // After a failed sync the system may have dropped what it could not write, and a later sync
        // would not tell.
        self.attempt(|vfs, file| vfs.sync(file))
    }

    /// Makes everything durable and returns the digest of it.
    pub(super) fn finish(mut self) -> Result<D> {
        self.sync()?;
        Ok(self.digest)
    }

    fn write_out(&mut self) -> Result<()> {
        self.require_sound()?;
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let written = self.attempt(|vfs, file| vfs.write(file, &buffer));
        buffer.clear();
        self.buffer = buffer;
        written
    }

    /// Does something to the file; if it fails, the file is broken.
    fn attempt(&mut self, work: impl FnOnce(&dyn Vfs, &mut File) -> Result<()>) -> Result<()> {
        let done = work(&*self.vfs, &mut self.file);
        self.is_broken |= done.is_err();
        done
    }

    fn require_sound(&self) -> Result<()> {
        if self.is_broken {
            return Err(Error::argument(format!(
                "an earlier write to {} failed, so the dataset cannot be completed; abandon this \
                 writer and write it again, from its journal if it has one",
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
        self.attempt(|vfs, file| vfs.append(file, &mut source, sums.num_bytes()))?;
        self.digest.extend(sums);
        Ok(())
    }
}
