//! A batch of rows, shared out over threads, on the widest instructions that the processor has.
//!
//! Neither changes a result. Threads are started for the call and end with it, so a fork finds none.

use std::sync::{Mutex, PoisonError};

use super::logits::Format;
use super::mix::Streams;
use super::row::{RowDraw, RowParameters, Scratch};
use super::weight::MAX_IDS;
use super::widest::draw_widest;
use crate::error::{Error, Result};
use crate::random::philox4x32;

/// Ids below which a thread is not worth its start.
const IDS_PER_THREAD: usize = 1 << 16;
/// Scratch memories that are kept between calls.
const MAX_SPARE: usize = 64;

/// Parameters of B rows, derived as `mmfast.sampling.SamplingParams` says. Slices have B entries.
#[derive(Debug, Clone, Copy)]
pub struct Parameters<'a> {
    /// Weight of each conditional stream, stream after stream: S B entries.
    pub guidance: &'a [f32],
    /// log2(e) / temperature.
    pub bits_per_logit: &'a [f32],
    /// Rows that take the largest logit.
    pub greedy: &'a [bool],
    /// 0 is off.
    pub top_k: &'a [i64],
    /// floor(p 2^31); 2^31 is off.
    pub top_p: &'a [i64],
    /// floor(p 2^31); 0 is off.
    pub min_p: &'a [i64],
    /// 64-bit seeds.
    pub seeds: &'a [i64],
    /// Index of the draw in its request.
    pub steps: &'a [i64],
    /// Whether top-k keeps all ids that equal the k-th.
    pub keep_ties: bool,
    /// Whether min-p comes before top-k and top-p.
    pub min_p_first: bool,
}

/// Draws one id a row.
///
/// `conditions` has the rows of each conditional stream, stream after stream (S B of them), `base` those
/// of the unconditional stream, all of one length; `masks` has one mask for each row, or one for all, of
/// that length. `num_threads` is at least 1.
///
/// [`Error::InvalidArgument`] if lengths or counts contradict each other, or for more than 2^19 - 1 ids.
pub fn draw<F: Format>(
    conditions: &[&[F::Bits]],
    base: Option<&[&[F::Bits]]>,
    masks: Option<&[&[bool]]>,
    parameters: &Parameters<'_>,
    num_threads: usize,
) -> Result<Vec<RowDraw>> {
    let batch = Batch::<F> {
        conditions,
        base,
        masks,
        parameters,
    };
    let num_ids = batch.check()?;
    let mut drawn = vec![RowDraw::default(); parameters.greedy.len()];
    let num_threads = num_threads
        .min(drawn.len())
        .min((drawn.len() * num_ids).div_ceil(IDS_PER_THREAD))
        .max(1);
    let rows_per_thread = drawn.len().div_ceil(num_threads).max(1);
    std::thread::scope(|scope| {
        let mut parts = drawn.chunks_mut(rows_per_thread).enumerate();
        let own = parts.next();
        for (number, part) in parts {
            let batch = &batch;
            scope.spawn(move || batch.draw_rows(number * rows_per_thread, part));
        }
        if let Some((_, part)) = own {
            batch.draw_rows(0, part);
        }
    });
    Ok(drawn)
}

struct Batch<'a, F: Format> {
    conditions: &'a [&'a [F::Bits]],
    base: Option<&'a [&'a [F::Bits]]>,
    masks: Option<&'a [&'a [bool]]>,
    parameters: &'a Parameters<'a>,
}

impl<F: Format> Batch<'_, F> {
    /// The number of ids a row, once everything is known to fit.
    fn check(&self) -> Result<usize> {
        let Parameters {
            guidance,
            bits_per_logit,
            greedy,
            top_k,
            top_p,
            min_p,
            seeds,
            steps,
            ..
        } = self.parameters;
        let num_rows = greedy.len();
        let per_row = [
            top_k.len(),
            top_p.len(),
            min_p.len(),
            seeds.len(),
            steps.len(),
        ];
        let is_consistent = per_row.iter().all(|len| *len == num_rows)
            && bits_per_logit.len() == num_rows
            && guidance.len() == self.conditions.len()
            && (num_rows == 0 || guidance.len() % num_rows == 0)
            && self.base.is_none_or(|base| base.len() == num_rows)
            && self
                .masks
                .is_none_or(|masks| masks.len() == num_rows || masks.len() == 1);
        if !is_consistent || (num_rows > 0 && self.conditions.is_empty()) {
            return Err(Error::argument(format!(
                "{num_rows} rows need as many entries of every parameter, found {per_row:?} and \
                 {} weights for {} streams' rows",
                guidance.len(),
                self.conditions.len()
            )));
        }
        let num_ids = self.conditions.first().map_or(0, |row| row.len());
        let mut lengths = self
            .conditions
            .iter()
            .chain(self.base.into_iter().flatten());
        let masks_fit = self
            .masks
            .is_none_or(|masks| masks.iter().all(|mask| mask.len() == num_ids));
        if !lengths.all(|row| row.len() == num_ids) || !masks_fit {
            return Err(Error::argument("rows of logits or masks differ in length"));
        }
        if num_ids > MAX_IDS {
            return Err(Error::argument(format!(
                "{num_ids} ids are allowed, more than {MAX_IDS}: give the range that this step may emit"
            )));
        }
        Ok(num_ids)
    }

    fn draw_rows(&self, first_row: usize, drawn: &mut [RowDraw]) {
        let mut scratch = spare_scratch();
        for (row, drawn) in (first_row..).zip(drawn) {
            let (Some(parameters), streams) = (self.row_parameters(row), self.streams(row)) else {
                continue;
            };
            let mask = self
                .masks
                .and_then(|masks| masks.get(row).or(masks.first()))
                .copied();
            *drawn = draw_widest(&streams, mask, parameters, &mut scratch);
        }
        put_back(scratch);
    }

    fn streams(&self, row: usize) -> Streams<'_, F> {
        let num_rows = self.parameters.greedy.len();
        let rows = self.conditions.iter().zip(self.parameters.guidance);
        let conditions = rows.skip(row).step_by(num_rows.max(1));
        let base = self.base.and_then(|base| base.get(row)).copied();
        Streams::new(conditions.map(|(stream, weight)| (*weight, *stream)), base)
    }

    fn row_parameters(&self, row: usize) -> Option<RowParameters> {
        let parameters = self.parameters;
        let [seed_low, seed_high] = words(*parameters.seeds.get(row)?);
        let [step_low, step_high] = words(*parameters.steps.get(row)?);
        let [low, high, ..] = philox4x32([0, step_low, step_high, 0], [seed_low, seed_high]);
        Some(RowParameters {
            bits_per_logit: *parameters.bits_per_logit.get(row)?,
            greedy: *parameters.greedy.get(row)?,
            top_k: usize::try_from(*parameters.top_k.get(row)?).unwrap_or(0),
            top_p: parameters.top_p.get(row)?.unsigned_abs(),
            min_p: parameters.min_p.get(row)?.unsigned_abs(),
            keep_ties: parameters.keep_ties,
            min_p_first: parameters.min_p_first,
            random: u64::from(high) << 32 | u64::from(low),
        })
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the bits are wanted"
)]
fn words(value: i64) -> [u32; 2] {
    let bits = value as u64;
    [bits as u32, (bits >> 32) as u32]
}

/// Memories of calls that have ended. A lock that cannot be had at once, as after a fork in the middle of
/// another thread's call, is done without.
static SPARE: Mutex<Vec<Scratch>> = Mutex::new(Vec::new());

fn spare_scratch() -> Scratch {
    SPARE
        .try_lock()
        .ok()
        .and_then(|mut spare| spare.pop())
        .unwrap_or_default()
}

fn put_back(scratch: Scratch) {
    if let Ok(mut spare) = SPARE.try_lock().or_else(|error| match error {
        std::sync::TryLockError::Poisoned(poisoned) => Ok(PoisonError::into_inner(poisoned)),
        std::sync::TryLockError::WouldBlock => Err(()),
    }) && spare.len() < MAX_SPARE
    {
        spare.push(scratch);
    }
}
