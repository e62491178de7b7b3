//! An indexed dataset, opened for reading.
//!
//! Both files are mapped, so opening costs one pass over the index and reading an id costs a load.
//! What is checked at opening: the header, that the arrays fill `.idx` exactly, that lengths,
//! offsets and document boundaries are consistent, and that `.bin` has exactly the size they imply.
//! After that no index into the maps can be out of bounds.

use std::ops::Range;
use std::sync::OnceLock;
use std::time::Duration;

use xxhash_rust::xxh3::Xxh3;

use super::header::Dtype;
use super::index::Index;
use super::map::{Map, Tokens};
use super::prefix::Prefix;
use super::publish;
use super::source::DocumentSource;
use crate::error::{Error, Result};
use crate::vfs::{Disk, Vfs};

/// Attempts to open while a writer is replacing the files, and the wait between them.
const OPEN_ATTEMPTS: usize = 100;
const OPEN_WAIT: Duration = Duration::from_millis(10);

/// The fingerprint looks at this many blocks of `.bin`, evenly spaced.
const FINGERPRINT_BLOCKS: usize = 64;
const FINGERPRINT_BLOCK_BYTES: usize = 4096;

/// A published dataset. Views of its ids borrow from it; whoever needs them longer keeps an `Arc`.
#[derive(Debug)]
pub struct IndexedDataset {
    prefix: Prefix,
    index: Index,
    bin: Map,
    fingerprint: OnceLock<u64>,
}

impl IndexedDataset {
    /// Opens `<prefix>.bin` and `<prefix>.idx` and checks them.
    pub fn open(prefix: &Prefix) -> Result<Self> {
        Self::open_on(&Disk, prefix)
    }

    /// [`Self::open`] on a given file system.
    ///
    /// A pair whose replacement was cut short by a crash is first put back as it was before. A pair
    /// that is being replaced right now is waited for.
    pub fn open_on(vfs: &dyn Vfs, prefix: &Prefix) -> Result<Self> {
        for _ in 0..OPEN_ATTEMPTS {
            if !vfs.exists(&prefix.idx())? && vfs.exists(&prefix.old_idx())? {
                match vfs.lock(&prefix.lock()) {
                    Ok(_lock) => publish::recover(vfs, prefix)?,
                    Err(Error::Locked { .. }) => std::thread::sleep(OPEN_WAIT),
                    Err(error) => return Err(error),
                }
                continue;
            }
            let idx = vfs.open(&prefix.idx())?;
            let bin = vfs.open(&prefix.bin())?;
            // Between the two a writer may have published: then they do not belong together.
            if idx.is_in_place()? && bin.is_in_place()? {
                let index = Index::open(&idx)?;
                let bin_bytes = bin.num_bytes()?;
                if bin_bytes != index.bin_bytes() {
                    return Err(Error::corrupt(
                        bin.path(),
                        bin_size_mismatch(&index, bin_bytes),
                    ));
                }
                return Ok(Self {
                    prefix: prefix.clone(),
                    index,
                    bin: Map::new(&bin)?,
                    fingerprint: OnceLock::new(),
                });
            }
        }
        Err(Error::Locked {
            path: prefix.lock(),
        })
    }

    /// Where it is.
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// Number type of the ids.
    pub fn dtype(&self) -> Dtype {
        self.index.dtype()
    }

    /// Whether the file carries a mode for each sequence. A file without sequences does not tell.
    pub fn has_modes(&self) -> bool {
        self.index.modes().is_some()
    }

    /// How many ids there are in all.
    pub fn num_tokens(&self) -> u64 {
        self.index.num_tokens()
    }

    /// All ids of the file.
    pub fn tokens(&self) -> Result<Tokens<'_>> {
        self.view(0..self.bin.bytes().len())
    }

    /// The ids of one sequence.
    pub fn sequence(&self, sequence: u64) -> Result<Tokens<'_>> {
        self.view(self.index.byte_range(sequence)?)
    }

    /// Where a sequence lies among all ids.
    pub fn token_range(&self, sequence: u64) -> Result<Range<usize>> {
        let bytes = self.index.byte_range(sequence)?;
        let item_bytes = self.dtype().item_bytes();
        Ok(bytes.start / item_bytes..bytes.end / item_bytes)
    }

    /// Lengths of all sequences.
    pub fn sequence_lengths(&self) -> impl ExactSizeIterator<Item = u32> {
        self.index.lengths()
    }

    /// First sequence of each document, then the number of sequences.
    pub fn document_indices(&self) -> impl ExactSizeIterator<Item = u64> {
        self.index.document_indices()
    }

    /// Mode bytes of all sequences, if the file has them.
    pub fn sequence_modes(&self) -> Option<&[u8]> {
        self.index.modes()
    }

    /// The document that holds a sequence.
    pub fn document_of(&self, sequence: u64) -> u64 {
        self.index.document_of(sequence)
    }

    fn view(&self, bytes: Range<usize>) -> Result<Tokens<'_>> {
        let view = self.bin.bytes().get(bytes);
        let view = view.and_then(|bytes| Tokens::view(bytes, self.dtype()));
        // The maps start on a page and offsets are whole ids, so this is never reached.
        view.ok_or_else(|| Error::corrupt(&self.prefix.bin(), "ids are not aligned"))
    }

    fn compute_fingerprint(&self) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(self.index.bytes());
        let bin = self.bin.bytes();
        let step = bin.len() / FINGERPRINT_BLOCKS;
        if step <= FINGERPRINT_BLOCK_BYTES {
            hash.update(bin);
        } else {
            for start in (0..bin.len()).step_by(step) {
                let end = bin.len().min(start + FINGERPRINT_BLOCK_BYTES);
                hash.update(bin.get(start..end).unwrap_or_default());
            }
        }
        hash.digest()
    }
}

impl DocumentSource for IndexedDataset {
    fn num_documents(&self) -> u64 {
        self.index.num_documents()
    }

    fn num_sequences(&self) -> u64 {
        self.index.num_sequences()
    }

    fn document_sequences(&self, document: u64) -> Result<Range<u64>> {
        self.index.document_sequences(document)
    }

    fn sequence_length(&self, sequence: u64) -> Result<u32> {
        self.index.length(sequence)
    }

    fn mode(&self, sequence: u64) -> Result<u8> {
        self.index.mode(sequence)
    }

    fn read_into(&self, sequence: u64, out: &mut Vec<i64>) -> Result<()> {
        match self.sequence(sequence)? {
            Tokens::U8(ids) => out.extend(ids.iter().map(|&id| i64::from(id))),
            Tokens::I8(ids) => out.extend(ids.iter().map(|&id| i64::from(id))),
            Tokens::I16(ids) => out.extend(ids.iter().map(|&id| i64::from(id))),
            Tokens::I32(ids) => out.extend(ids.iter().map(|&id| i64::from(id))),
            Tokens::I64(ids) => out.extend_from_slice(ids),
            Tokens::U16(ids) => out.extend(ids.iter().map(|&id| i64::from(id))),
            Tokens::F32(_) | Tokens::F64(_) => {
                return Err(Error::argument(format!(
                    "{} holds {} values, not token ids",
                    self.prefix.path().display(),
                    self.dtype().name()
                )));
            }
        }
        Ok(())
    }

    /// Hash of the whole index and of 64 blocks of 4 KiB of `.bin` (all of it when it is small).
    fn fingerprint(&self) -> u64 {
        *self.fingerprint.get_or_init(|| self.compute_fingerprint())
    }
}

fn bin_size_mismatch(index: &Index, bin_bytes: u64) -> String {
    let hint = if index.dtype() == Dtype::F32 && bin_bytes == index.bin_bytes().saturating_mul(2) {
        "; dtype code 7 is float32 here and in megatron-core, but float64 in NeMo"
    } else if bin_bytes < index.bin_bytes() {
        "; it is cut short"
    } else {
        "; it belongs to another .idx"
    };
    format!(
        "it has {bin_bytes} bytes, but its .idx announces {} ids of {}, which are {} bytes{hint}",
        index.num_tokens(),
        index.dtype().name(),
        index.bin_bytes()
    )
}
