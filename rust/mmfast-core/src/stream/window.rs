//! The plan of a window: which documents, how long after the objective, in which bins.

use crate::error::Result;
use crate::objective::Sequence;
use crate::order::Permutation;
use crate::pack::{Bins, best_fit_decreasing};
use crate::random::{DocumentKey, Purpose};
use crate::stream::Stream;
use crate::stream::packing::Packing;
use crate::stream::planner::Planner;

/// Documents or groups that are looked up together.
const RUN_UNITS: u32 = 1_024;

/// A document, or the part of one, that goes into a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item {
    /// Which document and part it is, and the key of its random draws.
    pub(crate) key: DocumentKey,
    /// First id of the part in the document.
    pub(crate) start: u64,
    /// Ids of the part before the objective.
    pub(crate) length: u32,
    /// Tokens that it has after the objective at most.
    pub(crate) planned: u32,
}

/// What became of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PlanCounts {
    /// Documents drawn, whatever became of them.
    pub documents: u64,
    /// Documents of which the end was cut off.
    pub truncated: u64,
    /// Documents that became several.
    pub split: u64,
    /// Documents left out because they, an image in them or their group are too long.
    pub dropped: u64,
    /// Documents without ids.
    pub empty: u64,
    /// Groups that do not fit a row, whatever became of them.
    pub overlong_groups: u64,
}

impl PlanCounts {
    /// Adds the counts of another window.
    pub fn add(&mut self, other: &Self) {
        self.documents += other.documents;
        self.truncated += other.truncated;
        self.split += other.split;
        self.dropped += other.dropped;
        self.empty += other.empty;
        self.overlong_groups += other.overlong_groups;
    }
}

/// The bins of a window in the order in which they are used.
pub struct WindowPlan {
    items: Vec<Item>,
    /// Where each block of items that stay together begins, then their number; `None` if each is a block.
    blocks: Option<Vec<u32>>,
    /// Blocks by bin.
    bins: Bins,
    /// `None` if bins are used as they come.
    order: Option<Permutation>,
    counts: PlanCounts,
}

impl WindowPlan {
    /// Number of bins.
    pub fn num_bins(&self) -> u64 {
        self.bins.len() as u64
    }

    /// What became of the window's documents.
    pub fn counts(&self) -> &PlanCounts {
        &self.counts
    }

    /// Items of the bin that comes `position`-th.
    pub(crate) fn bin(&self, position: u64) -> impl Iterator<Item = &Item> {
        let bin = self.order.map_or(position, |order| order.index(position));
        let blocks = self.bins.bin(usize::try_from(bin).unwrap_or(usize::MAX));
        blocks.iter().flat_map(|block| self.block(*block as usize))
    }

    fn block(&self, block: usize) -> &[Item] {
        let range = match &self.blocks {
            None => block..block + 1,
            Some(starts) => {
                let bounds = starts.get(block).zip(starts.get(block + 1));
                bounds.map_or(0..0, |(start, end)| *start as usize..*end as usize)
            }
        };
        self.items.get(range).unwrap_or_default()
    }
}

impl Stream {
    /// Plans a window; `None` if the stream ends before it.
    pub fn plan(&self, window: u64) -> Result<Option<WindowPlan>> {
        let Some(first) = window.checked_mul(self.config.window_units()) else {
            return Ok(None);
        };
        let mut planner = Planner::new(self);
        let mut order = self.order.walk();
        let mut units = Vec::new();
        let mut rest = self.config.window_units();
        let mut position = first;
        while rest > 0 {
            let count = u32::try_from(rest).unwrap_or(u32::MAX).min(RUN_UNITS);
            units.clear();
            order.locate(position, count, &mut units);
            planner.add_units(&units)?;
            if (units.len() as u64) < u64::from(count) {
                break;
            }
            rest -= u64::from(count);
            position = position.saturating_add(count.into());
        }
        if planner.counts.documents == 0 {
            return Ok(None);
        }
        let Planner {
            items,
            blocks,
            lengths,
            breaks,
            counts,
            ..
        } = planner;
        let num_blocks = u32::try_from(lengths.len()).unwrap_or(u32::MAX);
        let bins = match self.config.packing {
            Packing::BestFit => best_fit_decreasing(&lengths, self.config.bin_tokens)?,
            Packing::Concat => Bins::consecutive(breaks, num_blocks),
            Packing::None => Bins::consecutive(1..num_blocks, num_blocks),
        };
        let order = match self.config.packing {
            Packing::None => None,
            _ => Some(Permutation::new(
                self.config.seed,
                Purpose::BinOrder,
                [window, 0],
                bins.len() as u64,
            )),
        };
        Ok(Some(WindowPlan {
            items,
            blocks,
            bins,
            order,
            counts,
        }))
    }
}

/// The part `start..start + length` of sequences, counted in ids.
pub(crate) fn part_of(sequences: &[Sequence], start: u64, length: u64) -> Vec<Sequence> {
    let end = start + length;
    let mut offset = 0;
    let mut part = Vec::with_capacity(sequences.len());
    for sequence in sequences {
        let next = offset + u64::from(sequence.length);
        let kept = next.min(end).saturating_sub(offset.max(start));
        if kept > 0 {
            part.push(Sequence {
                length: u32::try_from(kept).unwrap_or(sequence.length),
                mode: sequence.mode,
            });
        }
        offset = next;
    }
    part
}
