//! Files that grow at the end: bytes are gathered and written in large pieces.

use std::path::Path;
use std::sync::Arc;

use super::header::Header;
use crate::error::{Error, Result};
use crate::vfs::{File, Vfs};

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 4 << 20;

/// A file in the making. After a failed write its content is unknown, so nothing more is taken.
#[derive(Debug)]
pub(super) struct AppendFile {
    vfs: Arc<dyn Vfs>,
    file: File,
    buffer: Vec<u8>,
    is_broken: bool,
}

impl AppendFile {
    pub(super) fn create(vfs: Arc<dyn Vfs>, path: &Path) -> Result<Self> {
        let file = vfs.create(path)?;
        Ok(Self {
            vfs,
            file,
            buffer: Vec::new(),
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
        let written = self.vfs.write(&mut self.file, bytes);
        self.is_broken = written.is_err();
        written
    }

    /// Appends the first `num_bytes` bytes of another file without reading them into memory.
    pub(super) fn push_file(&mut self, path: &Path, num_bytes: u64) -> Result<()> {
        self.write_out()?;
        let mut source = self.vfs.open(path)?;
        let copied = self.vfs.append(&mut self.file, &mut source, num_bytes);
        self.is_broken = copied.is_err();
        copied
    }

    /// Writes what is gathered and returns once all is durable.
    pub(super) fn finish(mut self) -> Result<()> {
        self.write_out()?;
        self.vfs.sync(&self.file)
    }

    fn write_out(&mut self) -> Result<()> {
        self.require_sound()?;
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = self.vfs.write(&mut self.file, &self.buffer);
        self.is_broken = written.is_err();
        self.buffer.clear();
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
) -> Result<()> {
    let mut file = AppendFile::create(Arc::clone(vfs), path)?;
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
    file.finish()
}
