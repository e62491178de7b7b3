//! What a dataset in the making holds besides its ids: lengths, modes and document ends, which stay
//! in memory (13 bytes a sequence at most, and the texts of media references) and become `.idx` and
//! `.media`. Whatever is to be added is checked
//! here first.

use std::ops::Range;

use super::header::{Dtype, Header};
use super::map::Tokens;
use super::media::{MEDIA_BIT, References, check_text};
use super::reader::IndexedDataset;
use crate::error::{Error, Result};

/// Counts of a dataset, or of a part of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Number of documents.
    pub num_documents: u64,
    /// Number of sequences.
    pub num_sequences: u64,
    /// Number of ids.
    pub num_tokens: u64,
}

/// Sequences and documents added so far. The last sequences may belong to a document that is still
/// open.
#[derive(Debug)]
pub(super) struct Contents {
    dtype: Dtype,
    has_modes: bool,
    lengths: Vec<u32>,
    modes: Vec<u8>,
    /// Index of the first sequence after each document.
    document_ends: Vec<u64>,
    references: References,
    num_tokens: u64,
    /// Ids before the document that is open now.
    tokens_in_documents: u64,
}

impl Contents {
    pub(super) fn new(dtype: Dtype, has_modes: bool) -> Self {
        Self {
            dtype,
            has_modes,
            lengths: Vec::new(),
            modes: Vec::new(),
            document_ends: Vec::new(),
            references: References::default(),
            num_tokens: 0,
            tokens_in_documents: 0,
        }
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub(super) fn has_modes(&self) -> bool {
        self.has_modes
    }

    pub(super) fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// One a sequence, or none at all.
    pub(super) fn modes(&self) -> &[u8] {
        &self.modes
    }

    pub(super) fn document_ends(&self) -> &[u64] {
        &self.document_ends
    }

    /// Media references of all sequences added so far.
    pub(super) fn references(&self) -> &References {
        &self.references
    }

    /// All that was added; documents are those that have ended.
    pub(super) fn written(&self) -> Written {
        Written {
            num_documents: self.document_ends.len() as u64,
            num_sequences: self.lengths.len() as u64,
            num_tokens: self.num_tokens,
        }
    }

    /// The documents that have ended, without the one that is open.
    pub(super) fn whole(&self) -> Written {
        Written {
            num_documents: self.document_ends.len() as u64,
            num_sequences: self.document_ends.last().copied().unwrap_or(0),
            num_tokens: self.tokens_in_documents,
        }
    }

    /// The header of the `.idx` that this becomes.
    pub(super) fn header(&self) -> Header {
        let written = self.written();
        Header {
            dtype: self.dtype,
            num_sequences: written.num_sequences,
            num_document_indices: written.num_documents + 1,
        }
    }

    /// Adds sequences to the open document. They have been checked.
    pub(super) fn push_sequences(&mut self, lengths: &[u32], modes: Option<&[u8]>) {
        self.lengths.extend_from_slice(lengths);
        self.num_tokens += lengths.iter().map(|&length| u64::from(length)).sum::<u64>();
        if self.has_modes {
            match modes {
                Some(modes) => self.modes.extend_from_slice(modes),
                None => self.modes.resize(self.lengths.len(), 0),
            }
        }
    }

    /// Adds the media references of the next sequences, by their place among these. They have been
    /// checked.
    pub(super) fn push_references<'a>(&mut self, references: impl Iterator<Item = (u64, &'a str)>) {
        let first = self.lengths.len() as u64;
        for (sequence, text) in references {
            self.references.push(first + sequence, text);
        }
    }

    /// Adds references as a journal holds them; `None` if they are not those of these sequences.
    pub(super) fn extend_references(
        &mut self,
        encoded: &[u8],
        sequences: Range<u64>,
    ) -> Option<()> {
        self.references.extend_from_encoded(encoded, &sequences)
    }

    /// Ends the open document with the last sequence.
    pub(super) fn end_document(&mut self) {
        self.document_ends.push(self.lengths.len() as u64);
        self.tokens_in_documents = self.num_tokens;
    }

    /// Adds sequences that make up documents of these many each. They have been checked.
    pub(super) fn push_documents(
        &mut self,
        lengths: &[u32],
        sequences_per_document: &[u64],
        modes: Option<&[u8]>,
    ) {
        let mut end = self.lengths.len() as u64;
        self.push_sequences(lengths, modes);
        for num_sequences in sequences_per_document {
            end += num_sequences;
            self.document_ends.push(end);
        }
        if !sequences_per_document.is_empty() {
            self.tokens_in_documents = self.num_tokens;
        }
    }

    /// Adds all documents of a dataset that is alike.
    pub(super) fn push_dataset(&mut self, dataset: &IndexedDataset) {
        self.push_references(dataset.references());
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
        self.tokens_in_documents = self.num_tokens;
    }

    /// [`Error::InvalidArgument`] while sequences belong to no document.
    pub(super) fn require_whole_documents(&self) -> Result<()> {
        if self.whole().num_sequences == self.lengths.len() as u64 {
            return Ok(());
        }
        Err(Error::argument(
            "the last sequences belong to no document yet; call end_document() first",
        ))
    }

    /// Refuses a whole call if anything in it is wrong.
    pub(super) fn check(
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
        // The ranges are as long as a power of two, so that the bits above tell. This vectorises on
        // any processor, which minimum and maximum do not, nor a search with early exit.
        let outside = !range.end().abs_diff(*range.start());
        let offset = |id: i64| id.wrapping_sub(*range.start()).cast_unsigned();
        if ids.iter().fold(0, |bits, &id| bits | offset(id)) & outside == 0 {
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
        let mut before = self.num_tokens - self.tokens_in_documents;
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
}

/// Length of a sequence as the format stores it.
pub(super) fn sequence_length(len: usize) -> Result<u32> {
    match i32::try_from(len) {
        Ok(length) => Ok(length.unsigned_abs()),
        Err(_) => Err(too_long(len as u64)),
    }
}

fn too_long(length: u64) -> Error {
    Error::argument(format!(
        "a sequence of {length} ids is longer than the format's {}",
        i32::MAX
    ))
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

/// Refuses references, by the place of their sequence among these, unless all can be held.
pub(super) fn check_references(modes: &[u8], references: &[(u64, &str)]) -> Result<()> {
    let mut next = 0;
    for (sequence, text) in references {
        check_text(text)?;
        let mode = usize::try_from(*sequence).ok().and_then(|at| modes.get(at));
        if *sequence < next || mode.is_none_or(|mode| mode & MEDIA_BIT == 0) {
            return Err(Error::argument(format!(
                "media references come in the order of their sequences, each with {MEDIA_BIT:#x} in its \
                 mode; that of sequence {sequence} does not"
            )));
        }
        next = sequence + 1;
    }
    Ok(())
}
