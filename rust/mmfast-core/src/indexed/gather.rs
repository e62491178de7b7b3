//! Many sequences or documents in one call: their ids back to back.
//!
//! Planning looks up where each lies, so that the copies after it need no checks of their own and run
//! as long runs of memory.

use std::ops::Range;

use super::map::Item;
use super::reader::IndexedDataset;
use super::shards::Held;
use super::view::DatasetView;
use crate::error::{Error, Result};

/// Ids of one dataset of a view.
#[derive(Debug, Clone)]
struct Run {
    shard: usize,
    tokens: Range<usize>,
}

/// Where the ids to copy lie, and where each run of them goes.
#[derive(Debug, Clone)]
pub struct Gather {
    runs: Vec<Run>,
    /// Run i becomes `offsets[i]..offsets[i + 1]`.
    offsets: Vec<i64>,
}

impl Gather {
    /// The given sequences, in the given order, counted as [`DatasetView::nth_sequence`] does.
    pub fn sequences(
        view: &DatasetView,
        sequences: impl ExactSizeIterator<Item = Result<u64>>,
    ) -> Result<Self> {
        Self::new(view, sequences, |nth| {
            let (shard, sequence) = view.locate_sequence(view.nth_sequence(nth)?)?;
            Ok((shard, sequence..sequence + 1))
        })
    }

    /// All ids of the given documents, in the given order.
    pub fn documents(
        view: &DatasetView,
        documents: impl ExactSizeIterator<Item = Result<u64>>,
    ) -> Result<Self> {
        Self::new(view, documents, |document| view.locate_sequences(document))
    }

    fn new(
        view: &DatasetView,
        indices: impl ExactSizeIterator<Item = Result<u64>>,
        locate: impl Fn(u64) -> Result<(usize, Range<u64>)>,
    ) -> Result<Self> {
        let mut open = OneOpen::of(view);
        let mut runs = Vec::with_capacity(indices.len());
        let mut offsets = Vec::with_capacity(indices.len() + 1);
        let mut end = 0i64;
        offsets.push(end);
        for index in indices {
            let (shard, sequences) = locate(index?)?;
            let tokens = open.shard(shard)?.tokens_of(&sequences)?;
            let next = i64::try_from(tokens.len())
                .ok()
                .and_then(|n| end.checked_add(n));
            end = next.ok_or_else(|| Error::argument("more than 2^63 ids are asked for"))?;
            offsets.push(end);
            runs.push(Run { shard, tokens });
        }
        Ok(Self { runs, offsets })
    }

    /// How many ids there are in all.
    pub fn num_tokens(&self) -> usize {
        self.runs.iter().map(|run| run.tokens.len()).sum()
    }

    /// Where each run begins among the copied ids, then their number.
    pub fn offsets(&self) -> &[i64] {
        &self.offsets
    }

    /// The ids in memory of their own, in a number type that holds them; `view` is the one that the
    /// copy was planned for.
    pub fn collect<T: Item>(&self, view: &DatasetView) -> Result<Vec<T>> {
        let mut out = Vec::new();
        let num_tokens = self.num_tokens();
        out.try_reserve_exact(num_tokens).map_err(|error| {
            Error::argument(format!("cannot hold {num_tokens} ids at once: {error}"))
        })?;
        let mut open = OneOpen::of(view);
        for (Run { shard, tokens }, next) in self.runs_and_next() {
            let dataset = open.shard(*shard)?;
            will_copy(dataset, *shard, next);
            if let Some(ids) = dataset.slice(tokens)? {
                out.extend_from_slice(ids);
                continue;
            }
            let before = out.len();
            out.resize(before + tokens.len(), T::default());
            dataset.read(tokens.start, out.get_mut(before..).unwrap_or_default())?;
        }
        Ok(out)
    }

    /// Copies the ids to the beginning of `out`; returns how many there are.
    ///
    /// [`Error::InvalidArgument`] if they do not fit; nothing is written then.
    pub fn copy_to<T: Item>(&self, view: &DatasetView, out: &mut [T]) -> Result<usize> {
        let (num_tokens, room) = (self.num_tokens(), out.len());
        let mut rest = out.get_mut(..num_tokens).ok_or_else(|| {
            Error::argument(format!("{num_tokens} ids do not fit an array of {room}"))
        })?;
        let mut open = OneOpen::of(view);
        for (Run { shard, tokens }, next) in self.runs_and_next() {
            let (here, behind) = rest.split_at_mut(tokens.len());
            let dataset = open.shard(*shard)?;
            will_copy(dataset, *shard, next);
            dataset.read(tokens.start, here)?;
            rest = behind;
        }
        Ok(num_tokens)
    }

    fn runs_and_next(&self) -> impl Iterator<Item = (&Run, Option<&Run>)> {
        let next = self.runs.iter().skip(1).map(Some);
        self.runs.iter().zip(next.chain(std::iter::once(None)))
    }
}

/// Brings the beginning of the next run into the caches while this one is copied.
fn will_copy(dataset: &IndexedDataset, shard: usize, next: Option<&Run>) {
    if let Some(next) = next.filter(|next| next.shard == shard) {
        dataset.will_copy(&next.tokens);
    }
}

/// The dataset that was asked for last, so that neighbours are not looked up one by one.
struct OneOpen<'a> {
    view: &'a DatasetView,
    held: Option<(usize, Held<'a>)>,
}

impl<'a> OneOpen<'a> {
    fn of(view: &'a DatasetView) -> Self {
        Self { view, held: None }
    }

    fn shard(&mut self, shard: usize) -> Result<&Held<'a>> {
        if self.held.as_ref().is_none_or(|(held, _)| *held != shard) {
            self.held = None;
        }
        match &mut self.held {
            Some((_, dataset)) => Ok(dataset),
            empty => Ok(&empty.insert((shard, self.view.shard(shard)?)).1),
        }
    }
}
