//! The `.idx` of a merge, written part by part: its four arrays grow side by side, each towards the
//! place where the next one begins.

use std::path::Path;
use std::sync::Arc;

use super::append::Digest;
use super::header::{HEADER_BYTES, Header};
use super::pair::{SizeAndHash, WrittenIndex};
use super::reader::IndexedDataset;
use crate::error::{Error, Result};
use crate::vfs::{File, Vfs};

/// Bytes of an array gathered before they are written, and bytes read at once for the hash.
const PIECE_BYTES: usize = 1 << 18;

/// An index in the making, of a size that is known.
pub(super) struct JoinedIndex {
    vfs: Arc<dyn Vfs>,
    file: File,
    item_bytes: u64,
    num_sequences: u64,
    /// Where the next sequence begins in `.bin`.
    pointer: u64,
    lengths: Array,
    pointers: Array,
    document_indices: Array,
    modes: Array,
}

/// One array: what is gathered of it, and where that goes.
struct Array {
    buffer: Vec<u8>,
    at: u64,
}

impl JoinedIndex {
    /// Begins the index that a header announces.
    pub(super) fn create(vfs: Arc<dyn Vfs>, path: &Path, header: &Header) -> Result<Self> {
        let mut file = vfs.create(path)?;
        vfs.write(&mut file, &header.encode())?;
        let pointers = HEADER_BYTES as u64 + 4 * header.num_sequences;
        let document_indices = pointers + 8 * header.num_sequences;
        let modes = document_indices + 8 * header.num_document_indices;
        let mut index = Self {
            vfs,
            file,
            item_bytes: header.dtype.item_bytes() as u64,
            num_sequences: 0,
            pointer: 0,
            lengths: Array::at(HEADER_BYTES as u64),
            pointers: Array::at(pointers),
            document_indices: Array::at(document_indices),
            modes: Array::at(modes),
        };
        index.document_indices.buffer.extend(0_u64.to_le_bytes());
        Ok(index)
    }

    /// Appends the sequences and documents of a part.
    pub(super) fn push(&mut self, part: &IndexedDataset) -> Result<()> {
        let (vfs, file) = (&*self.vfs, &self.file);
        for length in part.sequence_lengths() {
            self.lengths.push(vfs, file, &length.to_le_bytes())?;
            self.pointers.push(vfs, file, &self.pointer.to_le_bytes())?;
            self.pointer += u64::from(length) * self.item_bytes;
        }
        for end in part.document_indices().skip(1) {
            let end = end + self.num_sequences;
            self.document_indices.push(vfs, file, &end.to_le_bytes())?;
        }
        for modes in part
            .sequence_modes()
            .unwrap_or_default()
            .chunks(PIECE_BYTES)
        {
            self.modes.push(vfs, file, modes)?;
        }
        self.num_sequences += part.num_sequences();
        Ok(())
    }

    /// Makes the index durable, and reads it once for its hash.
    pub(super) fn finish(mut self) -> Result<WrittenIndex> {
        let arrays = [
            &mut self.lengths,
            &mut self.pointers,
            &mut self.document_indices,
            &mut self.modes,
        ];
        for array in arrays {
            array.write_out(&*self.vfs, &self.file)?;
        }
        self.vfs.sync(&self.file)?;
        let file = self.vfs.open(self.file.path())?;
        let num_bytes = file.num_bytes()?;
        if num_bytes != self.modes.at {
            return Err(Error::corrupt(
                file.path(),
                format!(
                    "it has {num_bytes} bytes, but {} were written",
                    self.modes.at
                ),
            ));
        }
        let mut digest = SizeAndHash::default();
        let mut piece = vec![0; PIECE_BYTES];
        for at in (0..num_bytes).step_by(PIECE_BYTES) {
            let rest = usize::try_from(num_bytes - at).unwrap_or(usize::MAX);
            let (piece, _) = piece.split_at_mut(rest.min(PIECE_BYTES));
            self.vfs.read_at(&file, at, piece)?;
            digest.update(piece);
        }
        Ok(digest.finish())
    }
}

impl Array {
    fn at(at: u64) -> Self {
        Self {
            buffer: Vec::new(),
            at,
        }
    }

    fn push(&mut self, vfs: &dyn Vfs, file: &File, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() < PIECE_BYTES {
            return Ok(());
        }
        self.write_out(vfs, file)
    }

    fn write_out(&mut self, vfs: &dyn Vfs, file: &File) -> Result<()> {
        if !self.buffer.is_empty() {
            vfs.write_at(file, self.at, &self.buffer)?;
            self.at += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }
}
