//! What a document stream asks of its data, whatever holds it.

use std::ops::Range;

use crate::error::{Error, Result};

/// Documents made of sequences; every sequence is a run of token ids of one modality.
///
/// Documents are counted from 0. A sequence is known by a number: those of one document are consecutive,
/// and no two documents share one. A document may have no sequence and a sequence no ids. All methods are
/// cheap (no scan) and may be called from any number of threads.
///
/// An index past the end is [`crate::Error::IndexOutOfRange`], never a panic.
pub trait DocumentSource: Send + Sync {
    /// How many documents there are.
    fn num_documents(&self) -> u64;

    /// The sequences of a document, as a range of their numbers (possibly empty).
    fn document_sequences(&self, document: u64) -> Result<Range<u64>>;

    /// Length of a sequence in ids.
    fn sequence_length(&self, sequence: u64) -> Result<u32>;

    /// The mode byte of a sequence: bits 0-4 modality (0 text, 1 image, 2 video, 3 audio), bit 6
    /// (0x40) "no loss". 0 where the data has no modes.
    fn mode(&self, sequence: u64) -> Result<u8>;

    /// What the placeholder ids of a sequence stand for, if the data says so.
    fn media(&self, _sequence: u64) -> Result<Option<String>> {
        Ok(None)
    }

    /// Fills `out` with ids, widened to 64 bits: of the given sequences one after the other, `skip` ids
    /// are passed over and the next `out.len()` are copied.
    ///
    /// [`crate::Error::InvalidArgument`] if the sequences hold fewer; after an error `out` holds anything.
    fn read_into(&self, sequences: Range<u64>, skip: u64, out: &mut [i64]) -> Result<()>;

    /// Says that ids will be read soon: the first `num_ids` after `skip` of a range of sequences. A hint that
    /// costs next to nothing; whatever is wrong with it shows when they are read.
    fn will_read(&self, sequences: Range<u64>, skip: u64, num_ids: usize) {
        let _ = (sequences, skip, num_ids);
    }

    /// A number that two sources share only if they hold the same ids in the same documents, as far
    /// as can be told without reading every id. Part of a saved stream state.
    fn fingerprint(&self) -> u64;
}

/// The error for a read past the ids of some sequences.
pub(super) fn too_few_ids(sequences: &Range<u64>, held: u64, skip: u64, wanted: usize) -> Error {
    Error::argument(format!(
        "sequences {}..{} hold {held} ids; {wanted} from the {skip}-th on were asked for",
        sequences.start, sequences.end
    ))
}

/// The error for an index past the end.
pub(super) fn out_of_range(what: &'static str, index: u64, len: u64) -> Error {
    let index = i64::try_from(index).unwrap_or(i64::MAX);
    Error::IndexOutOfRange { what, index, len }
}
