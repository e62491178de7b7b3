//! The order in which megatron-core's `GPTDataset` (0.16) reads a dataset, index for index.
//!
//! Its "documents" are the sequences of the indexed dataset. All epochs of them are shuffled into one
//! row (document index); the row's ids are cut into samples that share `extra` ids with their
//! neighbour (sample index: where each begins); and the samples are shuffled (shuffle index). A last
//! epoch that is needed for few samples is shuffled on its own, in both. One `RandomState(seed)` serves
//! the document index first and the shuffle index after it.
//!
//! Samples cut through documents, so data whose segments must stay whole cannot be read this way.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::indexed::DocumentSource;
use crate::objective::is_atomic;
use crate::random::Mt19937;

/// The last epoch is shuffled on its own if it gives fewer than this share of an epoch's samples.
const FINAL_EPOCH_SHARE: f64 = 0.80;
/// From here on megatron-core counts samples in 64 bits, and `NumPy` shuffles with other draws.
const MAX_SAMPLES: u64 = u32::MAX as u64 - 1;

/// What megatron-core takes from its configuration.
#[derive(Debug, Clone, Copy)]
pub struct MegatronConfig {
    /// Ids that the model sees of a sample.
    pub sequence_length: u32,
    /// Samples wanted: epochs are added until there are as many. `None` for one epoch.
    pub num_samples: Option<u64>,
    /// Seed of the shuffles.
    pub seed: u32,
    /// Whether a sample has one id more, for the label of its last one.
    pub extra_token: bool,
    /// Whether ids that do not fill a last sample are left out; megatron-core can keep them in its
    /// validation split.
    pub drop_last: bool,
}

/// The three indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MegatronIndices {
    /// Sequence at each place of the shuffled row, epochs times sequences.
    pub document_index: Vec<i32>,
    /// Where sample i begins: place in the document index at 2i, offset in its sequence at 2i + 1.
    /// One pair more than samples.
    pub sample_index: Vec<i32>,
    /// The samples in the order they are read.
    pub shuffle_index: Vec<u32>,
    /// How many times the sequences stand in the document index.
    pub num_epochs: u64,
    /// Whether the last epoch is shuffled on its own.
    pub separate_final_epoch: bool,
}

/// How the ids of all epochs are divided into samples.
#[derive(Debug, Clone, Copy)]
struct Plan {
    num_epochs: u64,
    num_tokens: u64,
    num_samples: u64,
    /// Samples before a last epoch that is shuffled on its own.
    separated_at: Option<u64>,
}

impl MegatronIndices {
    /// The indices over sequences of the given lengths, numbered from `first` on.
    ///
    /// [`Error::InvalidArgument`] where there is nothing to read, or more than the 32 bits of the
    /// indices can count.
    pub fn new(lengths: &[u32], first: u32, config: &MegatronConfig) -> Result<Self> {
        let plan = Plan::new(lengths, first, config)?;
        let mut generator = Mt19937::new(config.seed);
        let document_index = document_index(lengths.len(), first, &plan, &mut generator);
        let sample_index = sample_index(lengths, first, &document_index, config, &plan)?;
        let mut shuffle_index: Vec<u32> = (0u32..)
            .zip(0..plan.num_samples)
            .map(|(sample, _)| sample)
            .collect();
        let num_samples = shuffle_index.len();
        let num_before = plan.separated_at.unwrap_or(plan.num_samples);
        let num_before = usize::try_from(num_before).unwrap_or(usize::MAX);
        let (before, last) = shuffle_index.split_at_mut(num_before.min(num_samples));
        generator.shuffle(before);
        generator.shuffle(last);
        Ok(Self {
            document_index,
            sample_index,
            shuffle_index,
            num_epochs: plan.num_epochs,
            separate_final_epoch: plan.separated_at.is_some(),
        })
    }
}

impl Plan {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "megatron-core computes in the same floats and truncates them; all are positive"
    )]
    fn new(lengths: &[u32], first: u32, config: &MegatronConfig) -> Result<Self> {
        let too_many = || {
            Error::argument(format!(
                "{} samples of {} over {} sequences are more than megatron-core's 32-bit indices \
                 count; use fewer, or the default order",
                config.num_samples.unwrap_or(0),
                config.sequence_length,
                lengths.len()
            ))
        };
        if config.sequence_length == 0 {
            return Err(Error::argument("a sample has at least 1 id"));
        }
        let epoch_tokens: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
        if epoch_tokens == 0 {
            return Err(Error::argument("there are no ids to make samples of"));
        }
        let length = u64::from(config.sequence_length);
        let extra = u64::from(config.extra_token);
        let wanted = config.num_samples.unwrap_or(0).checked_mul(length);
        let wanted = wanted.and_then(|ids| ids.checked_add(extra));
        let num_epochs = match config.num_samples {
            None => 1,
            Some(_) => wanted.ok_or_else(too_many)?.div_ceil(epoch_tokens).max(1),
        };
        let num_tokens = num_epochs.checked_mul(epoch_tokens).ok_or_else(too_many)?;
        let num_places = num_epochs.checked_mul(lengths.len() as u64);
        let past_end = u64::from(first) + lengths.len() as u64;
        let num_samples = if config.drop_last {
            (num_tokens - extra) / length
        } else {
            // In single precision, as megatron-core does it.
            ((num_tokens - extra) as f32 / config.sequence_length as f32).ceil() as u64
        };
        let limit = i32::MAX as u64;
        if num_places.is_none_or(|places| places > limit)
            || past_end > limit
            || num_samples >= MAX_SAMPLES
        {
            return Err(too_many());
        }
        let mut separated_at = None;
        if num_epochs > 1 {
            let before = (num_tokens - epoch_tokens - extra) / length;
            let per_epoch = (epoch_tokens - extra) / length;
            let from_last = config.num_samples.unwrap_or(0).saturating_sub(before);
            if from_last < (FINAL_EPOCH_SHARE * per_epoch as f64) as u64 {
                separated_at = Some(before);
            }
        }
        Ok(Self {
            num_epochs,
            num_tokens,
            num_samples,
            separated_at,
        })
    }
}

fn document_index(
    num_sequences: usize,
    first: u32,
    plan: &Plan,
    generator: &mut Mt19937,
) -> Vec<i32> {
    // The plan has made sure that sequence numbers fit.
    let sequences = || (first.cast_signed()..).take(num_sequences);
    let mut index: Vec<i32> = (0..plan.num_epochs).flat_map(|_| sequences()).collect();
    let num_last = match plan.separated_at {
        Some(_) => num_sequences,
        None => 0,
    };
    let num_before = index.len() - num_last;
    let (before, last) = index.split_at_mut(num_before);
    generator.shuffle(before);
    generator.shuffle(last);
    index
}

/// Sample i begins in the sequence that holds the last id of the sample before, which both share where
/// there is an extra id; otherwise right behind that id, be it the end of its sequence.
fn sample_index(
    lengths: &[u32],
    first: u32,
    document_index: &[i32],
    config: &MegatronConfig,
    plan: &Plan,
) -> Result<Vec<i32>> {
    let extra = u64::from(config.extra_token);
    let length_at = |sequence: i32| {
        let at = sequence.cast_unsigned().checked_sub(first);
        at.and_then(|at| lengths.get(at as usize)).copied()
    };
    let mut rows = vec![0, 0];
    rows.reserve(usize::try_from(2 * plan.num_samples).unwrap_or(0));
    let mut places = (0i32..).zip(document_index);
    let (mut place, mut start, mut end) = (0, 0u64, 0u64);
    let mut length = 0;
    for sample in 1..=plan.num_samples {
        let begins = sample * u64::from(config.sequence_length);
        let shared = (begins + extra - 1).min(plan.num_tokens - 1);
        while end <= shared {
            let Some((next, sequence)) = places.next() else {
                break;
            };
            length = length_at(*sequence).unwrap_or(0);
            (place, start, end) = (next, end, end + u64::from(length));
        }
        if begins + extra <= plan.num_tokens {
            let offset = i32::try_from(begins - start).unwrap_or(i32::MAX);
            rows.extend([place, offset]);
            continue;
        }
        // Past the last id: megatron-core stays at the end of the row.
        for (next, sequence) in places.by_ref() {
            length = length_at(*sequence).unwrap_or(0);
            place = next;
        }
        let Some(offset) = length.checked_sub(u32::from(config.extra_token)) else {
            return Err(Error::argument(
                "the shuffled order ends with an empty sequence, for which megatron-core has no \
                 last partial sample; drop it, or take another seed",
            ));
        };
        rows.extend([place, offset.cast_signed()]);
    }
    Ok(rows)
}

/// A sample's place in the shuffled row of sequences: (place, offset in its sequence) of its first id, and
/// of the first id of the sample behind it.
pub type SampleBounds = [(i32, i32); 2];

/// Writes samples as `GPTDataset` gives them, `sequence_length` each: ids, the ids that follow, and 1 where
/// there is one. Where a sample is short the rest is 0. `num_extra` ids behind a sample belong to it too.
/// `sequence_of` says which sequence of the source a number of the document index stands for.
pub fn read_samples(
    source: &dyn DocumentSource,
    sequence_of: impl Fn(u64) -> Result<u64>,
    document_index: &[i32],
    samples: impl IntoIterator<Item = SampleBounds>,
    num_extra: u32,
    rows: SampleRows<'_>,
) -> Result<()> {
    let SampleRows {
        length,
        tokens,
        labels,
        loss_mask,
    } = rows;
    let mut ids = vec![0; length + num_extra as usize];
    let rows = tokens
        .chunks_exact_mut(length)
        .zip(labels.chunks_exact_mut(length))
        .zip(loss_mask.chunks_exact_mut(length));
    for (bounds, ((tokens, labels), loss_mask)) in samples.into_iter().zip(rows) {
        let num_ids = read_sample(
            source,
            &sequence_of,
            document_index,
            bounds,
            num_extra,
            &mut ids,
        )?;
        let ids = ids.get(..num_ids).unwrap_or_default();
        write_padded(tokens, ids, 0);
        let following = ids.get(1..).unwrap_or_default();
        write_padded(labels, following, 0);
        let (has_label, has_none) = loss_mask.split_at_mut(following.len().min(length));
        has_label.fill(1.0);
        has_none.fill(0.0);
    }
    Ok(())
}

/// Where [`read_samples`] writes: arrays of as many rows as there are samples, `length` each.
#[derive(Debug)]
pub struct SampleRows<'a> {
    /// Ids that the model sees of a sample, at least 1.
    pub length: usize,
    /// Ids.
    pub tokens: &'a mut [i64],
    /// The id that follows each.
    pub labels: &'a mut [i64],
    /// 1 where there is one.
    pub loss_mask: &'a mut [f32],
}

/// Copies the first values that fit, and fills what is left.
fn write_padded(row: &mut [i64], values: &[i64], padding: i64) {
    let num_values = values.len().min(row.len());
    let (written, rest) = row.split_at_mut(num_values);
    written.copy_from_slice(values.get(..num_values).unwrap_or_default());
    rest.fill(padding);
}

/// Copies the ids of a sample to the beginning of `out`; returns how many there are.
fn read_sample(
    source: &dyn DocumentSource,
    sequence_of: &impl Fn(u64) -> Result<u64>,
    document_index: &[i32],
    bounds: SampleBounds,
    num_extra: u32,
    out: &mut [i64],
) -> Result<usize> {
    let malformed = || Error::argument(format!("no sample of this dataset lies at {bounds:?}"));
    let [(first, first_offset), (last, last_offset)] = bounds;
    let mut num_ids = 0;
    for place in first..=last {
        let sequence = usize::try_from(place)
            .ok()
            .and_then(|place| document_index.get(place))
            .and_then(|sequence| u64::try_from(*sequence).ok());
        let sequence = sequence_of(sequence.ok_or_else(malformed)?)?;
        let length = source.sequence_length(sequence)?;
        let start = if place == first { first_offset } else { 0 };
        let start = u32::try_from(start).map_err(|_negative| malformed())?;
        let end = if place == last {
            let end = u32::try_from(last_offset).map_err(|_negative| malformed())?;
            end.saturating_add(num_extra).min(length)
        } else {
            length
        };
        let next = num_ids + end.saturating_sub(start) as usize;
        let run = out.get_mut(num_ids..next).ok_or_else(malformed)?;
        source.read_into(sequence..sequence + 1, start.into(), run)?;
        num_ids = next;
    }
    Ok(num_ids)
}

/// Refuses data with segments that a sample must not cut, and names the first.
pub fn require_divisible(source: &dyn DocumentSource, sequences: Range<u64>) -> Result<()> {
    for sequence in sequences {
        let mode = source.mode(sequence)?;
        if is_atomic(mode) {
            return Err(Error::argument(format!(
                "sequence {sequence} (mode {mode}) is an image or a video, which megatron-core's order \
                 would cut wherever a sample ends; use the loader's own order, which keeps it whole"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(sequence_length: u32, num_samples: Option<u64>) -> MegatronConfig {
        MegatronConfig {
            sequence_length,
            num_samples,
            seed: 1_234,
            extra_token: true,
            drop_last: true,
        }
    }

    #[test]
    fn neighbouring_samples_share_one_id() {
        // 12 ids, samples of 4 + 1: [0, 5), [4, 9); a third would need 13 ids.
        let indices = MegatronIndices::new(&[12], 0, &config(4, None)).unwrap();
        assert_eq!(indices.sample_index, [0, 0, 0, 4, 0, 8]);
        assert_eq!(indices.document_index, [0]);
        assert_eq!(indices.shuffle_index.len(), 2);
    }

    #[test]
    fn a_last_partial_sample_is_kept_on_request() {
        let config = MegatronConfig {
            drop_last: false,
            ..config(4, None)
        };
        let indices = MegatronIndices::new(&[12], 0, &config).unwrap();
        assert_eq!(indices.sample_index, [0, 0, 0, 4, 0, 8, 0, 11]);
    }

    #[test]
    fn without_an_extra_id_a_sample_may_begin_at_the_end_of_a_sequence() {
        let config = MegatronConfig {
            extra_token: false,
            ..config(4, None)
        };
        let indices = MegatronIndices::new(&[4, 4], 7, &config).unwrap();
        assert_eq!(indices.sample_index, [0, 0, 0, 4, 1, 4]);
        let mut document_index = indices.document_index;
        document_index.sort_unstable();
        assert_eq!(document_index, [7, 8]);
    }

    #[test]
    fn a_short_last_epoch_is_shuffled_on_its_own() {
        let lengths = vec![10; 100]; // 99 samples of 10 an epoch
        let separate = MegatronIndices::new(&lengths, 0, &config(10, Some(120))).unwrap();
        assert!(separate.separate_final_epoch);
        let mut last = separate.document_index[100..].to_vec();
        last.sort_unstable();
        assert!(last.into_iter().eq(0..100));
        assert!(
            separate.shuffle_index[..99]
                .iter()
                .all(|sample| *sample < 99)
        );
        let together = MegatronIndices::new(&lengths, 0, &config(10, Some(198))).unwrap();
        assert!(!together.separate_final_epoch);
        assert_eq!(together.num_epochs, 2);
    }

    #[test]
    fn what_cannot_be_indexed_is_refused() {
        for (lengths, config, text) in [
            (vec![], config(4, None), "no ids"),
            (vec![0, 0], config(4, Some(9)), "no ids"),
            (vec![5], config(0, None), "at least 1"),
            (vec![5], config(4, Some(u64::MAX)), "32-bit"),
            (vec![1; 9], config(1, Some(1 << 31)), "32-bit"),
        ] {
            let error = MegatronIndices::new(&lengths, 0, &config).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    /// megatron-core's loop: sequence after sequence, until a sample is full.
    fn walked(
        lengths: &[u32],
        document_index: &[i32],
        length: i64,
        extra: i64,
        num: usize,
    ) -> Vec<i32> {
        let (mut place, mut offset) = (0usize, 0i64);
        let mut rows = vec![0, 0];
        for _ in 0..num {
            let mut remaining = length + extra;
            while remaining != 0 {
                let available =
                    i64::from(lengths[usize::try_from(document_index[place]).unwrap()]) - offset;
                remaining -= available;
                if remaining <= 0 {
                    offset += remaining + available - extra;
                    remaining = 0;
                } else {
                    place += 1;
                    offset = 0;
                }
            }
            rows.extend([
                i32::try_from(place).unwrap(),
                i32::try_from(offset).unwrap(),
            ]);
        }
        rows
    }

    proptest! {
        #[test]
        fn the_sample_index_is_that_of_walking_through_the_sequences(
            mut lengths in prop::collection::vec(0u32..30, 1..40),
            sequence_length in 1u32..50,
            num_samples in prop::option::of(1u64..200),
            extra_token: bool,
            seed: u32,
        ) {
            lengths.push(1);
            let config = MegatronConfig { sequence_length, num_samples, seed, extra_token, drop_last: true };
            let indices = MegatronIndices::new(&lengths, 0, &config).unwrap();
            let num = indices.shuffle_index.len();
            prop_assert!(num as u64 >= num_samples.unwrap_or(0));
            prop_assert_eq!(
                &indices.sample_index,
                &walked(&lengths, &indices.document_index, sequence_length.into(), extra_token.into(), num)
            );
        }
    }
}
