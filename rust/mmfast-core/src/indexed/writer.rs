//! Writes an indexed dataset, byte for byte as megatron-core's builder would.
//!
//! Ids go to a temporary `.bin` as they come; lengths, boundaries and modes stay in memory (13 bytes
//! a sequence at most) and become `.idx` at the end. Nothing is visible under the dataset's name
//! before [`DatasetWriter::finish`]; dropping the writer instead leaves what was there before.

use std::sync::Arc;

use super::append::{AppendFile, WrittenIndex, write_index};
use super::blocks::BlockSums;
use super::header::{Dtype, Header};
use super::map::Tokens;
use super::prefix::Prefix;
use super::publish::Staging;
use super::reader::IndexedDataset;
use super::sidecar::{JoinedNotes, Notes, PairFacts, Sidecar};
use crate::error::{Error, Result};
use crate::vfs::{Disk, Vfs};

/// Ids encoded before the buffer may be written out.
const CHUNK_TOKENS: usize = 1 << 18;

/// What a finished dataset holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Number of documents.
    pub num_documents: u64,
    /// Number of sequences.
    pub num_sequences: u64,
    /// Number of ids.
    pub num_tokens: u64,
}

/// A dataset in the making.
///
/// Every call that adds something either adds all of it or, on a bad argument, nothing.
#[derive(Debug)]
pub struct DatasetWriter {
    bin: AppendFile<BlockSums>,
    dtype: Dtype,
    has_modes: bool,
    lengths: Vec<u32>,
    modes: Vec<u8>,
    /// Index of the first sequence after each document.
    document_ends: Vec<u64>,
    num_tokens: u64,
    /// Ids before the document that is open now.
    tokens_before_document: u64,
    notes: Notes,
    joined: JoinedNotes,
    staging: Staging,
}

impl DatasetWriter {
    /// Begins a dataset at `prefix`, in place of one that may be there.
    ///
    /// [`Error::Locked`] if another writer is at work on it.
    pub fn create(prefix: &Prefix, dtype: Dtype, has_modes: bool) -> Result<Self> {
        Self::create_on(Arc::new(Disk), prefix, dtype, has_modes)
    }

    /// [`Self::create`] on a given file system.
    pub fn create_on(
        vfs: Arc<dyn Vfs>,
        prefix: &Prefix,
        dtype: Dtype,
        has_modes: bool,
    ) -> Result<Self> {
        let staging = Staging::begin(vfs, prefix)?;
        let bin = AppendFile::create(
            Arc::clone(staging.vfs()),
            &prefix.new_bin(),
            BlockSums::default(),
        )?;
        Ok(Self {
            bin,
            dtype,
            has_modes,
            lengths: Vec::new(),
            modes: Vec::new(),
            document_ends: Vec::new(),
            num_tokens: 0,
            tokens_before_document: 0,
            notes: Notes::default(),
            joined: JoinedNotes::default(),
            staging,
        })
    }

    /// What the sidecar will say of the data beyond its bytes.
    pub fn set_notes(&mut self, notes: Notes) {
        self.notes = notes;
    }

    /// Number type of the ids.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Whether each sequence carries a mode.
    pub fn has_modes(&self) -> bool {
        self.has_modes
    }

    /// Where the dataset will be.
    pub fn prefix(&self) -> &Prefix {
        self.staging.prefix()
    }

    /// What has been added so far; documents are those that have ended.
    pub fn written(&self) -> Written {
        Written {
            num_documents: self.document_ends.len() as u64,
            num_sequences: self.lengths.len() as u64,
            num_tokens: self.num_tokens,
        }
    }

    /// Adds one sequence to the open document.
    ///
    /// Ids are of the dataset's dtype, or `int64` in range of it; [`Error::TokenOutOfRange`] else.
    pub fn add_sequence(&mut self, tokens: Tokens<'_>, mode: u8) -> Result<()> {
        let length = sequence_length(tokens.len())?;
        self.check(tokens, &[length], &[1], (mode != 0).then_some(&[mode]))?;
        self.append(tokens)?;
        self.push_sequences(&[length], Some(&[mode]));
        Ok(())
    }

    /// Ends the open document, which may be empty.
    pub fn end_document(&mut self) {
        self.document_ends.push(self.lengths.len() as u64);
        self.tokens_before_document = self.num_tokens;
    }

    /// Adds documents at once: `tokens` are those of all their sequences back to back, `lengths` the
    /// sequences' lengths, `sequences_per_document` the number of sequences in each document. Missing
    /// `modes` are 0. Sequences added before without an end belong to the first of the documents.
    pub fn add_documents(
        &mut self,
        tokens: Tokens<'_>,
        lengths: &[u32],
        sequences_per_document: &[u64],
        modes: Option<&[u8]>,
    ) -> Result<()> {
        self.check(tokens, lengths, sequences_per_document, modes)?;
        self.append(tokens)?;
        let mut end = self.lengths.len() as u64;
        self.push_sequences(lengths, modes);
        for num_sequences in sequences_per_document {
            end += num_sequences;
            self.document_ends.push(end);
        }
        if !sequences_per_document.is_empty() {
            self.tokens_before_document = self.num_tokens;
        }
        Ok(())
    }

    /// Adds all documents of a published dataset, copying its ids inside the kernel.
    ///
    /// [`Error::InvalidArgument`] if its dtype or its having modes differs from this dataset's, and
    /// [`Error::VocabularyMismatch`] if it names another vocabulary than those added before.
    pub fn add_dataset(&mut self, dataset: &IndexedDataset) -> Result<()> {
        self.require_whole_documents()?;
        require_alike(dataset, self.dtype, self.has_modes)?;
        self.joined.add(dataset)?;
        self.bin
            .push_file(&dataset.prefix().bin(), &*dataset.block_sums()?)?;
        let sequences_before = self.lengths.len() as u64;
        self.lengths.extend(dataset.sequence_lengths());
        if self.has_modes {
            self.modes
                .extend_from_slice(dataset.sequence_modes().unwrap_or_default());
        }
        let ends = dataset.document_indices().skip(1);
        self.document_ends
            .extend(ends.map(|end| end + sequences_before));
        self.num_tokens += dataset.num_tokens();
        self.tokens_before_document = self.num_tokens;
        Ok(())
    }

    /// [`Error::InvalidArgument`] while sequences belong to no document, which [`Self::finish`]
    /// would refuse too, but only after taking the writer.
    pub fn require_whole_documents(&self) -> Result<()> {
        if self.document_ends.last().copied().unwrap_or(0) == self.lengths.len() as u64 {
            return Ok(());
        }
        Err(Error::argument(
            "the last sequences belong to no document yet; call end_document() first",
        ))
    }

    /// Makes everything durable and publishes it under the prefix.
    pub fn finish(mut self) -> Result<Written> {
        self.require_whole_documents()?;
        let written = self.written();
        let sums = self.bin.finish()?;
        let header = Header {
            dtype: self.dtype,
            num_sequences: written.num_sequences,
            num_document_indices: written.num_documents + 1,
        };
        let index = write_index(
            self.staging.vfs(),
            &self.staging.prefix().new_idx(),
            &header,
            || self.lengths.iter().copied(),
            std::iter::once(0).chain(self.document_ends.iter().copied()),
            self.modes.iter().copied(),
        )?;
        self.joined.finish(&mut self.notes);
        write_sidecar(&self.staging, &header, written, &index, sums, self.notes)?;
        self.staging.publish()?;
        Ok(written)
    }

    /// Refuses a whole call if anything in it is wrong.
    fn check(
        &self,
        tokens: Tokens<'_>,
        lengths: &[u32],
        sequences_per_document: &[u64],
        modes: Option<&[u8]>,
    ) -> Result<()> {
        let num_sequences = lengths.len() as u64;
        if let Some(length) = lengths
            .iter()
            .find(|&&length| i32::try_from(length).is_err())
        {
            return Err(too_long(u64::from(*length)));
        }
        let expected: u64 = lengths.iter().map(|&length| u64::from(length)).sum();
        if tokens.len() as u64 != expected {
            return Err(Error::argument(format!(
                "there are {} ids, but the lengths add up to {expected}",
                tokens.len()
            )));
        }
        let in_documents = sequences_per_document
            .iter()
            .try_fold(0_u64, |sum, &n| sum.checked_add(n));
        if in_documents != Some(num_sequences) {
            return Err(Error::argument(format!(
                "there are {num_sequences} sequences, but the documents' counts do not add up to that"
            )));
        }
        if let Some(modes) = modes {
            if modes.len() as u64 != num_sequences {
                return Err(Error::argument(format!(
                    "there are {num_sequences} sequences, but {} modes",
                    modes.len()
                )));
            }
            if !self.has_modes && modes.iter().any(|&mode| mode != 0) {
                return Err(Error::argument(
                    "this dataset has no modes; create it with multimodal=True",
                ));
            }
        }
        self.check_ids(tokens, lengths, sequences_per_document)
    }

    fn check_ids(
        &self,
        tokens: Tokens<'_>,
        lengths: &[u32],
        sequences_per_document: &[u64],
    ) -> Result<()> {
        if tokens.dtype() == self.dtype {
            return Ok(());
        }
        let (Tokens::I64(ids), Some(range)) = (tokens, self.dtype.id_range()) else {
            return Err(Error::argument(format!(
                "{} values do not go into a dataset of {}",
                tokens.dtype().name(),
                self.dtype.name()
            )));
        };
        // Minimum and maximum vectorise, a search with early exit does not.
        let smallest = ids.iter().copied().min().unwrap_or(0);
        let largest = ids.iter().copied().max().unwrap_or(0);
        if range.contains(&smallest) && range.contains(&largest) {
            return Ok(());
        }
        let at = ids.iter().position(|id| !range.contains(id)).unwrap_or(0);
        let (document, position) = self.locate(at as u64, lengths, sequences_per_document);
        Err(Error::TokenOutOfRange {
            token: ids.get(at).copied().unwrap_or(0),
            document,
            position,
            dtype: self.dtype.name(),
        })
    }

    /// Document, and position in it, of the id at `at` in a call's ids.
    fn locate(&self, at: u64, lengths: &[u32], sequences_per_document: &[u64]) -> (u64, u64) {
        let mut document = self.document_ends.len() as u64;
        let mut lengths = lengths.iter().map(|&length| u64::from(length));
        let mut first = 0;
        let mut before = self.num_tokens - self.tokens_before_document;
        for &num_sequences in sequences_per_document {
            let num_sequences = usize::try_from(num_sequences).unwrap_or(usize::MAX);
            let end = first + lengths.by_ref().take(num_sequences).sum::<u64>();
            if at < end {
                break;
            }
            (first, before) = (end, 0);
            document += 1;
        }
        (document, before + at - first)
    }

    fn append(&mut self, tokens: Tokens<'_>) -> Result<()> {
        let dtype = self.dtype;
        if tokens.dtype() == dtype {
            self.bin.push_bytes(tokens.bytes())?;
        } else if let Tokens::I64(ids) = tokens {
            for chunk in ids.chunks(CHUNK_TOKENS) {
                self.bin.push(|buffer| match dtype.item_bytes() {
                    1 => extend_with_low_bytes::<1>(buffer, chunk),
                    2 => extend_with_low_bytes::<2>(buffer, chunk),
                    _ => extend_with_low_bytes::<4>(buffer, chunk),
                })?;
            }
        }
        self.num_tokens += tokens.len() as u64;
        Ok(())
    }

    fn push_sequences(&mut self, lengths: &[u32], modes: Option<&[u8]>) {
        self.lengths.extend_from_slice(lengths);
        if self.has_modes {
            match modes {
                Some(modes) => self.modes.extend_from_slice(modes),
                None => self.modes.resize(self.lengths.len(), 0),
            }
        }
    }
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

/// [`Error::InvalidArgument`] unless a dataset can be appended to one of this dtype and kind.
pub(super) fn require_alike(dataset: &IndexedDataset, dtype: Dtype, has_modes: bool) -> Result<()> {
    let path = dataset.prefix().path().display();
    if dataset.dtype() != dtype {
        return Err(Error::argument(format!(
            "{path} holds {}, which cannot be appended to {}",
            dataset.dtype().name(),
            dtype.name()
        )));
    }
    if dataset.num_sequences() > 0 && dataset.has_modes() != has_modes {
        let (theirs, ours) = if has_modes {
            ("no modes", "a multimodal dataset")
        } else {
            ("modes", "a dataset without")
        };
        return Err(Error::argument(format!(
            "{path} has {theirs} and cannot be appended to {ours}"
        )));
    }
    Ok(())
}

fn too_long(length: u64) -> Error {
    Error::argument(format!(
        "a sequence of {length} ids is longer than the format's {}",
        i32::MAX
    ))
}

fn sequence_length(len: usize) -> Result<u32> {
    match i32::try_from(len) {
        Ok(length) => Ok(length.unsigned_abs()),
        Err(_) => Err(too_long(len as u64)),
    }
}

/// Appends the low bytes of ids that have been found to fit them. With the room made first, this
/// compiles to wide moves.
fn extend_with_low_bytes<const N: usize>(buffer: &mut Vec<u8>, ids: &[i64]) {
    let start = buffer.len();
    buffer.resize(start + ids.len() * N, 0);
    let (_, room) = buffer.split_at_mut(start);
    for (slot, id) in room.as_chunks_mut::<N>().0.iter_mut().zip(ids) {
        *slot = id.to_le_bytes().first_chunk().copied().unwrap_or([0; N]);
    }
}
