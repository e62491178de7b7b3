//! Many sequences or documents in one call: their ids back to back.
//!
//! Planning looks up where each lies, so that the copies after it need no checks of their own and run
//! as long runs of memory.

use std::ops::Range;

use super::reader::IndexedDataset;
use super::source::DocumentSource;
use crate::error::{Error, Result};

/// Where the ids to copy lie, and where each run of them goes.
#[derive(Debug, Clone)]
pub struct Gather {
    ranges: Vec<Range<usize>>,
    /// Run i becomes `offsets[i]..offsets[i + 1]`.
    offsets: Vec<i64>,
}

impl Gather {
    /// The given sequences, in the given order.
    pub fn sequences(
        dataset: &IndexedDataset,
        sequences: impl ExactSizeIterator<Item = Result<u64>>,
    ) -> Result<Self> {
        Self::new(sequences, |sequence| {
            dataset.touch(dataset.token_range(sequence)?)
        })
    }

    /// All ids of the given documents, in the given order.
    pub fn documents(
        dataset: &IndexedDataset,
        documents: impl ExactSizeIterator<Item = Result<u64>>,
    ) -> Result<Self> {
        Self::new(documents, |document| {
            let sequences = dataset.document_sequences(document)?;
            if sequences.is_empty() {
                return Ok(0..0);
            }
            // Sequences follow one another without a gap; opening has checked it.
            let first = dataset.token_range(sequences.start)?;
            let last = dataset.token_range(sequences.end - 1)?;
            dataset.touch(first.start..last.end)
        })
    }

    fn new(
        indices: impl ExactSizeIterator<Item = Result<u64>>,
        range_of: impl Fn(u64) -> Result<Range<usize>>,
    ) -> Result<Self> {
        let mut ranges = Vec::with_capacity(indices.len());
        let mut offsets = Vec::with_capacity(indices.len() + 1);
        let mut end = 0i64;
        offsets.push(end);
        for index in indices {
            let range = range_of(index?)?;
            let next = i64::try_from(range.len())
                .ok()
                .and_then(|n| end.checked_add(n));
            end = next.ok_or_else(|| Error::argument("more than 2^63 ids are asked for"))?;
            offsets.push(end);
            ranges.push(range);
        }
        Ok(Self { ranges, offsets })
    }

    /// How many ids there are in all.
    pub fn num_tokens(&self) -> usize {
        self.ranges.iter().map(Range::len).sum()
    }

    /// Where each run begins among the copied ids, then their number.
    pub fn offsets(&self) -> &[i64] {
        &self.offsets
    }

    /// The ids in memory of their own; `ids` are those of the whole dataset.
    pub fn collect<T: Copy>(&self, ids: &[T]) -> Result<Vec<T>> {
        let mut out = Vec::new();
        let num_tokens = self.num_tokens();
        out.try_reserve_exact(num_tokens).map_err(|error| {
            Error::argument(format!("cannot hold {num_tokens} ids at once: {error}"))
        })?;
        for range in &self.ranges {
            out.extend_from_slice(run(ids, range)?);
        }
        Ok(out)
    }

    /// Copies the ids to the beginning of `out`; returns how many there are.
    ///
    /// [`Error::InvalidArgument`] if they do not fit; nothing is written then.
    pub fn copy_to<T: Copy>(&self, ids: &[T], out: &mut [T]) -> Result<usize> {
        let (num_tokens, room) = (self.num_tokens(), out.len());
        let mut rest = out.get_mut(..num_tokens).ok_or_else(|| {
            Error::argument(format!("{num_tokens} ids do not fit an array of {room}"))
        })?;
        for range in &self.ranges {
            let source = run(ids, range)?;
            let (here, behind) = rest.split_at_mut(source.len());
            here.copy_from_slice(source);
            rest = behind;
        }
        Ok(num_tokens)
    }
}

fn run<'a, T>(ids: &'a [T], range: &Range<usize>) -> Result<&'a [T]> {
    let found = ids.get(range.clone());
    found.ok_or_else(|| Error::argument("the ids are not those of the dataset"))
}
