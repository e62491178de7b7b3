//! Walks the bins of a stream and fills one global batch after the other.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::stream::arrays::BatchMemory;
use crate::stream::batch::BatchFacts;
use crate::stream::row::Rows;
use crate::stream::window::{PlanCounts, WindowPlan};
use crate::stream::{Cursor, Stream};

/// Where a feeder gets its plans: called with window numbers that rise by one.
pub(crate) type PlanSource = Box<dyn FnMut(u64) -> Result<Option<Arc<WindowPlan>>> + Send>;

/// Bins of one window.
type Run = (Arc<WindowPlan>, Range<u64>);

/// Global batches to pass over: before the next one, and after each that is delivered. Processes that
/// take turns deliver all batches between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Skips {
    pub(crate) next: u32,
    pub(crate) after_each: u32,
}

/// A stream at a position.
pub struct Feeder {
    stream: Arc<Stream>,
    plans: PlanSource,
    current: Option<Arc<WindowPlan>>,
    cursor: Cursor,
    counts: PlanCounts,
    rows: Rows,
    skips: Skips,
}

impl Feeder {
    /// A feeder that plans each window when it gets there.
    pub fn new(stream: &Arc<Stream>, cursor: Cursor) -> Self {
        Self::starting_with(stream, cursor, None, Skips::default())
    }

    /// The same where the plan of the first window is known already.
    pub(crate) fn starting_with(
        stream: &Arc<Stream>,
        cursor: Cursor,
        mut first: Option<Arc<WindowPlan>>,
        skips: Skips,
    ) -> Self {
        let planner = Arc::clone(stream);
        let plans = move |window| match first.take() {
            Some(plan) => Ok(Some(plan)),
            None => Ok(planner.plan(window)?.map(Arc::new)),
        };
        Self::with_plans(stream, cursor, Box::new(plans), skips)
    }

    /// A feeder whose plans come from elsewhere, e.g. another thread.
    pub(crate) fn with_plans(
        stream: &Arc<Stream>,
        cursor: Cursor,
        plans: PlanSource,
        skips: Skips,
    ) -> Self {
        Self {
            stream: Arc::clone(stream),
            plans,
            current: None,
            cursor,
            counts: PlanCounts::default(),
            rows: Rows::default(),
            skips,
        }
    }

    /// Fills memory with this rank's part of the next global batch; `None` at the end of a finite stream.
    /// The last batch may have rows of nothing but padding.
    pub fn next_batch(&mut self, memory: &mut impl BatchMemory) -> Result<Option<BatchFacts>> {
        let stream = Arc::clone(&self.stream);
        let config = &stream.config;
        for _ in 0..std::mem::take(&mut self.skips.next) {
            if self.take_bins(config.global_batch_bins)?.is_empty() {
                return Ok(None);
            }
        }
        let runs = self.take_bins(config.global_batch_bins)?;
        if runs.is_empty() {
            return Ok(None);
        }
        let (num_rows, row_tokens) = (config.rows() as usize, config.bin_tokens as usize);
        let arrays = memory.arrays();
        arrays.require_size(num_rows * row_tokens)?;
        let mut facts = BatchFacts::new(num_rows, row_tokens);
        let bins = runs
            .iter()
            .flat_map(|(plan, bins)| bins.clone().map(move |bin| (plan, bin)))
            .skip(config.rank as usize)
            .step_by(config.world_size as usize);
        let items = bins.map(|(plan, bin)| plan.bin(bin));
        self.rows.look_up(&stream, items)?;
        for (row, arrays) in arrays.rows(row_tokens).enumerate() {
            let filled = self.rows.fill(&stream, row, arrays)?;
            facts.add_row(row, filled);
        }
        facts.cursor = self.cursor;
        facts.counts = self.counts;
        self.skips.next = self.skips.after_each;
        Ok(Some(facts))
    }

    /// The next bins over all ranks, fewer or none at the end of a finite stream.
    fn take_bins(&mut self, count: u32) -> Result<Vec<Run>> {
        let mut wanted = u64::from(count);
        let mut barren_documents = 0;
        let mut runs = Vec::new();
        while wanted > 0 {
            let (plan, entered) = match self.current.take() {
                Some(plan) => (Some(plan), false),
                None => ((self.plans)(self.cursor.window)?, true),
            };
            let Some(plan) = plan else {
                break;
            };
            if entered {
                self.counts.add(plan.counts());
            }
            let Cursor { window, bin } = self.cursor;
            if bin > plan.num_bins() {
                return Err(past_end(self.cursor, plan.num_bins()));
            }
            let taken = wanted.min(plan.num_bins() - bin);
            if taken > 0 {
                runs.push((Arc::clone(&plan), bin..bin + taken));
                wanted -= taken;
                barren_documents = 0;
            } else if plan.num_bins() == 0 {
                barren_documents += plan.counts().documents;
                if barren_documents > 2 * self.stream.num_source_documents() {
                    return Err(Error::argument(format!(
                        "none of {barren_documents} documents fits {}, or set overlong to split",
                        self.stream.config.document_limit()
                    )));
                }
            }
            if wanted > 0 {
                self.cursor = Cursor {
                    window: window + 1,
                    bin: 0,
                };
            } else {
                self.cursor.bin += taken;
                self.current = Some(plan);
            }
        }
        Ok(runs)
    }
}

/// The error for a position behind the bins of its window.
pub(crate) fn past_end(cursor: Cursor, num_bins: u64) -> Error {
    Error::StateMismatch(format!(
        "it stands at bin {} of window {}, which has {num_bins}",
        cursor.bin, cursor.window
    ))
}
