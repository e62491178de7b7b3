//! A batch of rows, shared out over threads.
//!
//! Their number changes no result.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use super::load::RowInputs;
use super::logits::Format;
use super::mix::Streams;
use super::parallel::{Team, Threads};
use super::penalty::Penalty;
use super::row::{Draw, Row, RowParameters, RowTeam, Scratch, draw_row};
use super::support::{Bits, Support};
use super::weight::MAX_IDS;
use crate::error::{Error, Result};

/// Ids below which a thread is not worth its start.
const IDS_PER_THREAD: usize = 1 << 16;

/// Parameters of B rows, derived as `mmfast.sampling.SamplingParams` says. Slices have B entries.
#[derive(Debug, Clone, Copy)]
pub struct Parameters<'a> {
    /// Weight of each conditional stream, stream after stream: S B entries.
    pub guidance: &'a [f32],
    /// log2(e) / temperature.
    pub bits_per_logit: &'a [f32],
    /// The same of the filters' temperature.
    pub filter_bits_per_logit: &'a [f32],
    /// Rows that take the largest logit.
    pub greedy: &'a [bool],
    /// 0 is off.
    pub top_k: &'a [i64],
    /// floor(p 2^31); 2^31 is off.
    pub top_p: &'a [i64],
    /// floor(p 2^31); 0 is off.
    pub min_p: &'a [i64],
    /// 0 is off.
    pub contrastive_k: &'a [i64],
    /// ln(alpha).
    pub contrastive_log_alpha: &'a [f32],
    /// Above 0.
    pub repetition_penalty: &'a [f32],
    /// Bits `RULE_*`.
    pub rules: &'a [i64],
    /// 64-bit seeds.
    pub seeds: &'a [i64],
    /// Index of the step in its request.
    pub steps: &'a [i64],
    /// Number of the first draw; all 0 if there are none.
    pub positions: Option<&'a [i64]>,
    /// Added to a row's logits before its penalty; all 0 if there are none.
    pub offsets: Option<&'a [f32]>,
}

/// Rows of bits, one for each row or one for all.
#[derive(Debug, Clone, Copy)]
pub struct Bitmaps<'a> {
    /// Bit i % 32 of word i / 32 is id i.
    pub rows: &'a [&'a [u32]],
    /// The id that the logits begin with.
    pub first_id: usize,
}

/// Which ids exist.
#[derive(Debug, Clone, Copy)]
pub enum Masks<'a> {
    /// All.
    All,
    /// Half-open ranges, low and high of row after row: 2 B entries.
    Ranges(&'a [i64]),
    /// Masks as long as the rows, 0 for what does not exist; one for each row or one for all.
    Marked(&'a [&'a [u8]]),
    /// The same in bits.
    Bits(Bitmaps<'a>),
}

/// Logits of B rows and S conditional streams.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a, B> {
    /// Rows of each conditional stream, stream after stream: S B rows of one length.
    pub conditions: &'a [&'a [B]],
    /// Rows of the unconditional stream.
    pub base: Option<&'a [&'a [B]]>,
    /// Which ids exist.
    pub masks: Masks<'a>,
    /// Ids that a penalty applies to; without them there is none.
    pub history: Option<Bitmaps<'a>>,
}

/// What was drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drawn {
    /// Row after row, as many draws of each as were asked for.
    pub draws: Vec<Draw>,
    /// One for each row.
    pub rows: Vec<Row>,
}

/// Draws `num_draws` ids a row.
///
/// [`Error::InvalidArgument`] if lengths or counts contradict each other, for rows without ids or with more
/// than 2^19 - 1, and for ranges that are empty or leave the row.
pub fn draw<F: Format>(
    inputs: &Inputs<'_, F::Bits>,
    parameters: &Parameters<'_>,
    num_draws: usize,
    num_threads: usize,
) -> Result<Drawn> {
    let batch = Batch::<F> { inputs, parameters };
    let num_ids = batch.check()?;
    let num_rows = parameters.greedy.len();
    let mut drawn = Drawn {
        draws: vec![Draw::default(); num_rows * num_draws],
        rows: vec![Row::default(); num_rows],
    };
    if num_rows == 0 || num_draws == 0 {
        return Ok(drawn);
    }
    let num_threads = num_threads.clamp(1, (num_rows * num_ids).div_ceil(IDS_PER_THREAD).max(1));
    let mut threads = Threads::take(num_threads);
    let draws = drawn.draws.chunks_mut(num_draws);
    let jobs = drawn.rows.iter_mut().zip(draws);
    let jobs: Vec<_> = jobs.map(|job| Mutex::new(Some(job))).collect();
    let draw_row = |number: usize, team: &RowTeam| {
        // Each is taken once.
        let job = jobs.get(number).map(Mutex::lock);
        let job = job.and_then(|job| job.unwrap_or_else(PoisonError::into_inner).take());
        if let Some((row, draws)) = job {
            batch.draw_row(number, team, row, draws);
        }
    };
    // As many rows as keep all threads busy are drawn by one each; of the others, each has its share of the threads.
    let num_threads = threads.len();
    let num_rest = num_rows % num_threads;
    let num_whole = num_rows - num_rest;
    let team_size = num_threads / num_rest.max(1);
    let teams: Vec<_> = (0..num_rest).map(|_| Team::new(team_size - 1)).collect();
    threads.run(&|thread| {
        // First the rows that this thread has in every call, whose memory it knows; then what others left.
        let first = thread * num_whole / num_threads;
        for number in (first..num_whole).chain(0..first) {
            draw_row(number, &Team::new(0));
        }
        let (place, member) = (thread / team_size, thread % team_size);
        if let Some(team) = teams.get(place) {
            let number = num_whole + place;
            match member.checked_sub(1) {
                None => team.lead(|| draw_row(number, team)),
                Some(follower) => batch.follow(number, team, follower),
            }
        }
    });
    Ok(drawn)
}

struct Batch<'a, F: Format> {
    inputs: &'a Inputs<'a, F::Bits>,
    parameters: &'a Parameters<'a>,
}

impl<'a, F: Format> Batch<'a, F> {
    /// Draws from one row, as the leader of a team.
    fn draw_row(&self, number: usize, team: &RowTeam, row: &mut Row, draws: &mut [Draw]) {
        if let Some((inputs, parameters, low)) = self.row(number) {
            let mut scratch = SCRATCH.take();
            *row = draw_row(&inputs, &parameters, team, &mut scratch, draws);
            SCRATCH.set(scratch);
            for draw in draws {
                draw.token += low;
            }
        }
    }

    /// Does a follower's share of it.
    fn follow(&self, number: usize, team: &RowTeam, follower: usize) {
        if let Some((inputs, ..)) = self.row(number) {
            team.follow(follower, |part, job| part.work(&inputs, job));
        }
    }

    /// The number of ids a row, once everything is known to fit.
    fn check(&self) -> Result<usize> {
        let (parameters, inputs) = (self.parameters, self.inputs);
        let num_rows = parameters.greedy.len();
        let integers = [
            parameters.top_k,
            parameters.top_p,
            parameters.min_p,
            parameters.contrastive_k,
            parameters.rules,
            parameters.seeds,
            parameters.steps,
            parameters.positions.unwrap_or(parameters.steps),
        ];
        let floats = [
            parameters.bits_per_logit,
            parameters.filter_bits_per_logit,
            parameters.contrastive_log_alpha,
            parameters.repetition_penalty,
            parameters.offsets.unwrap_or(parameters.bits_per_logit),
        ];
        let is_per_row = |len: usize| len == num_rows;
        let fits_rows = |len: usize| len == num_rows || len == 1;
        let masks_fit_rows = match inputs.masks {
            Masks::All => true,
            Masks::Ranges(ranges) => ranges.len() == 2 * num_rows,
            Masks::Marked(masks) => fits_rows(masks.len()),
            Masks::Bits(bits) => fits_rows(bits.rows.len()),
        };
        let is_consistent = integers.iter().all(|values| is_per_row(values.len()))
            && floats.iter().all(|values| is_per_row(values.len()))
            && parameters.guidance.len() == inputs.conditions.len()
            && (num_rows == 0 || parameters.guidance.len() % num_rows == 0)
            && inputs.base.is_none_or(|base| is_per_row(base.len()))
            && inputs
                .history
                .is_none_or(|history| fits_rows(history.rows.len()))
            && masks_fit_rows;
        if !is_consistent || (num_rows > 0 && inputs.conditions.is_empty()) {
            return Err(Error::argument(format!(
                "{num_rows} rows need as many entries of every parameter, found {:?} and {} weights for {} \
                 streams' rows",
                integers.map(<[i64]>::len),
                parameters.guidance.len(),
                inputs.conditions.len()
            )));
        }
        if inputs.base.is_none() && parameters.contrastive_k.iter().any(|k| *k > 0) {
            return Err(Error::argument("a contrast needs the unconditional rows"));
        }
        let num_ids = inputs.conditions.first().map_or(0, |row| row.len());
        let mut lengths = inputs
            .conditions
            .iter()
            .chain(inputs.base.into_iter().flatten());
        let masks_fit = match inputs.masks {
            Masks::Marked(masks) => masks.iter().all(|mask| mask.len() == num_ids),
            Masks::All | Masks::Ranges(_) | Masks::Bits(_) => true,
        };
        if !lengths.all(|row| row.len() == num_ids) || !masks_fit {
            return Err(Error::argument("rows of logits or masks differ in length"));
        }
        if num_ids > MAX_IDS || (num_ids == 0 && num_rows > 0) {
            return Err(Error::argument(format!(
                "{num_ids} ids are allowed, none or more than {MAX_IDS}: give the range that this step may emit"
            )));
        }
        if !(0..num_rows).all(|row| self.range(row).is_some()) {
            return Err(Error::argument(format!(
                "a range of ids is empty or outside 0..{num_ids}"
            )));
        }
        Ok(num_ids)
    }

    /// Ids of a row that exist, as columns; `None` if there are none.
    fn range(&self, row: usize) -> Option<(usize, usize)> {
        let num_ids = self.inputs.conditions.first()?.len();
        let Masks::Ranges(ranges) = self.inputs.masks else {
            return Some((0, num_ids));
        };
        let low = usize::try_from(*ranges.get(2 * row)?).ok()?;
        let high = usize::try_from(*ranges.get(2 * row + 1)?).ok()?;
        (low < high && high <= num_ids).then_some((low, high))
    }

    /// What one row is drawn from, its parameters, and the column that its first id has.
    fn row(&self, row: usize) -> Option<(RowInputs<'a, F>, RowParameters, u32)> {
        let (low, high) = self.range(row)?;
        let parameters = self.row_parameters(row)?;
        let masks = self.inputs.masks;
        let support = match masks {
            Masks::All | Masks::Ranges(_) => Support::All,
            Masks::Marked(masks) => Support::Mask(of_row(masks, row)?),
            Masks::Bits(bitmaps) => Support::Bits(bits_of(bitmaps, row, low)?),
        };
        let penalty = match self.inputs.history {
            None => None,
            Some(history) => Some(Penalty {
                seen: bits_of(history, row, low)?,
                factor: *self.parameters.repetition_penalty.get(row)?,
                offset: match self.parameters.offsets {
                    Some(offsets) => *offsets.get(row)?,
                    None => 0.0,
                },
            }),
        };
        let inputs = RowInputs {
            streams: self.streams(row, (low, high), parameters.contrastive_k > 0)?,
            support,
            penalty: penalty.filter(|penalty| (penalty.factor, penalty.offset) != (1.0, 0.0)),
        };
        Some((inputs, parameters, u32::try_from(low).ok()?))
    }

    fn streams(
        &self,
        row: usize,
        (low, high): (usize, usize),
        is_contrast: bool,
    ) -> Option<Streams<'a, F>> {
        let num_rows = self.parameters.greedy.len();
        let base = match self.inputs.base {
            Some(base) => Some(base.get(row)?.get(low..high)?),
            None => None,
        };
        let conditions = self.inputs.conditions;
        if let (true, Some(amateur)) = (is_contrast, base) {
            let expert = conditions.get(row)?.get(low..high)?;
            return Some(Streams::contrast(expert, amateur));
        }
        let rows = conditions.iter().zip(self.parameters.guidance);
        let rows = rows.skip(row).step_by(num_rows.max(1));
        let weighted =
            rows.map(|(stream, weight)| (*weight, stream.get(low..high).unwrap_or_default()));
        Some(Streams::new(weighted, base))
    }

    fn row_parameters(&self, row: usize) -> Option<RowParameters> {
        let parameters = self.parameters;
        let position = match parameters.positions {
            Some(positions) => words(*positions.get(row)?)[0],
            None => 0,
        };
        Some(RowParameters {
            bits_per_logit: *parameters.bits_per_logit.get(row)?,
            filter_bits_per_logit: *parameters.filter_bits_per_logit.get(row)?,
            greedy: *parameters.greedy.get(row)?,
            top_k: count(*parameters.top_k.get(row)?),
            top_p: parameters.top_p.get(row)?.unsigned_abs(),
            min_p: parameters.min_p.get(row)?.unsigned_abs(),
            contrastive_k: count(*parameters.contrastive_k.get(row)?),
            contrastive_log_alpha: *parameters.contrastive_log_alpha.get(row)?,
            rules: *parameters.rules.get(row)?,
            seed: words(*parameters.seeds.get(row)?),
            step: words(*parameters.steps.get(row)?),
            position,
        })
    }
}

/// A row's own entry, or the one for all.
fn of_row<T: Copy>(rows: &[T], row: usize) -> Option<T> {
    rows.get(row).or(rows.first()).copied()
}

fn bits_of(bitmaps: Bitmaps<'_>, row: usize, low: usize) -> Option<Bits<'_>> {
    Some(Bits::new(
        of_row(bitmaps.rows, row)?,
        bitmaps.first_id + low,
    ))
}

fn count(value: i64) -> usize {
    usize::try_from(value).unwrap_or(0)
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

thread_local! {
    /// Memory that is used again from row to row.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::F32;

    #[test]
    fn whatever_the_number_of_threads_rows_give_the_same_draws() {
        const NUM_ROWS: usize = 5;
        let num_ids = IDS_PER_THREAD + 77;
        let noise = |id: usize| (id * 2_654_435_761) % 1_000_003;
        #[expect(clippy::cast_precision_loss, reason = "noise")]
        let logit = |id: usize| noise(id) as f32 / 1e5;
        let logits: Vec<f32> = (0..2 * NUM_ROWS * num_ids).map(logit).collect();
        let rows: Vec<_> = logits.chunks(num_ids).collect();
        let (conditions, base) = rows.split_at(NUM_ROWS);
        let inputs = Inputs {
            conditions,
            base: Some(base),
            masks: Masks::All,
            history: None,
        };
        let share = 1 << 31;
        let parameters = Parameters {
            guidance: &[3.0; NUM_ROWS],
            bits_per_logit: &[1.4; NUM_ROWS],
            filter_bits_per_logit: &[1.4; NUM_ROWS],
            greedy: &[false; NUM_ROWS],
            top_k: &[500, 0, 0, 500, 7],
            top_p: &[share / 10 * 9, share / 2, share, share, share],
            min_p: &[0, 0, 0, 9, 0],
            contrastive_k: &[0, 0, 0, 60, 0],
            contrastive_log_alpha: &[-2.0; NUM_ROWS],
            repetition_penalty: &[1.0; NUM_ROWS],
            rules: &[0; NUM_ROWS],
            seeds: &[1, 2, 3, 4, 5],
            steps: &[7; NUM_ROWS],
            positions: None,
            offsets: None,
        };
        let alone = draw::<F32>(&inputs, &parameters, 2, 1).unwrap();
        for num_threads in 2..9 {
            let together = draw::<F32>(&inputs, &parameters, 2, num_threads).unwrap();
            assert_eq!(together, alone, "{num_threads} threads");
        }
    }
}
