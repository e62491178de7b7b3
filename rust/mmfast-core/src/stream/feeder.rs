//! Walks the bins of a stream and fills one global batch after the other.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::stream::batch::{Batch, Scratch};
use crate::stream::window::{PlanCounts, WindowPlan};
use crate::stream::{Cursor, Stream};

/// Where a feeder gets its plans: called with window numbers that rise by one.
pub(crate) type PlanSource = Box<dyn FnMut(u64) -> Result<Option<Arc<WindowPlan>>> + Send>;

/// A stream at a position.
pub struct Feeder {
    stream: Arc<Stream>,
    plans: PlanSource,
    current: Option<Arc<WindowPlan>>,
    cursor: Cursor,
    counts: PlanCounts,
    scratch: Scratch,
}

impl Feeder {
    /// A feeder that plans each window when it gets there.
    pub fn new(stream: &Arc<Stream>, cursor: Cursor) -> Self {
        let planner = Arc::clone(stream);
        let plans = move |window| Ok(planner.plan(window)?.map(Arc::new));
        Self::with_plans(stream, cursor, Box::new(plans))
    }

    /// A feeder whose plans come from elsewhere, e.g. another thread.
    pub(crate) fn with_plans(stream: &Arc<Stream>, cursor: Cursor, plans: PlanSource) -> Self {
        Self {
            stream: Arc::clone(stream),
            plans,
            current: None,
            cursor,
            counts: PlanCounts::default(),
            scratch: Scratch::default(),
        }
    }

    /// This rank's part of the next global batch; `None` at the end of a finite stream. The last batch
    /// may have rows of nothing but padding.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        let stream = Arc::clone(&self.stream);
        let config = &stream.config;
        let mut batch: Option<Batch> = None;
        for number in 0..config.global_batch_bins {
            let Some((plan, bin)) = self.next_bin()? else {
                break;
            };
            let batch = batch.get_or_insert_with(|| {
                let rows = config.rows() as usize;
                Batch::empty(rows, config.bin_tokens as usize, config.pad_id)
            });
            if number % config.world_size == config.rank {
                let row = (number / config.world_size) as usize;
                stream.fill_row(batch, row, &plan, bin, &mut self.scratch)?;
            }
        }
        Ok(batch.map(|mut batch| {
            batch.end_with_padding();
            batch.cursor = self.cursor;
            batch.counts = self.counts;
            batch
        }))
    }

    /// The next bin over all ranks; `None` at the end of a finite stream.
    fn next_bin(&mut self) -> Result<Option<(Arc<WindowPlan>, u64)>> {
        let mut barren_documents = 0;
        loop {
            let (plan, entered) = match self.current.take() {
                Some(plan) => (Some(plan), false),
                None => ((self.plans)(self.cursor.window)?, true),
            };
            let Some(plan) = plan else {
                return Ok(None);
            };
            if entered {
                self.counts.add(plan.counts());
            }
            if self.cursor.bin < plan.num_bins() {
                let bin = self.cursor.bin;
                self.cursor.bin += 1;
                self.current = Some(Arc::clone(&plan));
                return Ok(Some((plan, bin)));
            }
            if self.cursor.bin > plan.num_bins() {
                return Err(Error::StateMismatch(format!(
                    "it stands at bin {} of window {}, which has {}",
                    self.cursor.bin,
                    self.cursor.window,
                    plan.num_bins()
                )));
            }
            if plan.num_bins() == 0 {
                barren_documents += plan.counts().documents;
                if barren_documents > 2 * self.stream.num_source_documents() {
                    return Err(Error::argument(format!(
                        "none of {barren_documents} documents fits {}, or set overlong to split",
                        self.stream.config.document_limit()
                    )));
                }
            }
            self.cursor = Cursor {
                window: self.cursor.window + 1,
                bin: 0,
            };
        }
    }
}
