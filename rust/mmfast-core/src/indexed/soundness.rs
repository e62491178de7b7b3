//! Whether the arrays of an `.idx` are consistent, and which known departures from megatron-core's
//! format they show.
//!
//! A sound index is told by passes without a branch, which the compiler turns into vector code: the
//! differences of neighbouring entries say it all. Only when such a pass fails are the entries looked
//! at one by one, for a variant that can be read all the same or for the first entry that is wrong.
//!
//! The variants are those of NeMo's older writer (`NVIDIA/NeMo`,
//! `nemo/collections/nlp/data/language_modeling/megatron/indexed_dataset.py`):
//!
//! - its dtype code 7 is float64, where megatron-core's is float32;
//! - its `merge_file_` appends sequences but no document boundaries (NeMo issue 9821);
//! - its pointers were summed in 32 bits and wrap past 2 GiB (Megatron-LM issue 1672).

use super::header::Dtype;

/// Bits of a pointer that survive a sum in 32 bits.
const KEPT_BITS: u32 = 32;

/// What the arrays of an index say, once they are known to be consistent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Reading {
    /// Sum of all lengths.
    pub(super) num_tokens: u64,
    /// The dtype, if it is not the one that the code in the header means to megatron-core.
    pub(super) dtype: Option<Dtype>,
    /// Sequences past the last document boundary; each is a document of its own.
    pub(super) num_loose: u64,
    /// Where pointers wrapped: a pointer lacks 2^32 for each entry that is not above its sequence.
    pub(super) wraps: Vec<u64>,
}

impl Reading {
    /// What is not as megatron-core writes it, in sentences.
    pub(super) fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        if let Some(dtype) = self.dtype {
            findings.push(format!(
                "its sequences lie {} bytes an item apart, so dtype code 7 means {} here, as NeMo writes \
                 it; megatron-core would read float32",
                dtype.item_bytes(),
                dtype.name()
            ));
        }
        if self.num_loose > 0 {
            findings.push(format!(
                "{} sequences lie past the last document boundary, as NeMo's merge_file_ leaves them; \
                 each is read as a document of its own",
                self.num_loose
            ));
        }
        if !self.wraps.is_empty() {
            findings.push(format!(
                "pointers wrapped {} times at 32 bits, as in older NeMo writers; they are derived from \
                 the lengths, which agree with the size of .bin",
                self.wraps.len()
            ));
        }
        findings
    }
}

/// Number of ids, if no length is negative and each sequence begins where the one before ends.
pub(super) fn contiguous_tokens(
    lengths: &[[u8; 4]],
    pointers: &[[u8; 8]],
    item_bytes: usize,
) -> Option<u64> {
    let (Some((first, after_first)), Some(last), Some(last_length)) =
        (pointers.split_first(), pointers.last(), lengths.last())
    else {
        return Some(0);
    };
    let shift = item_bytes.trailing_zeros();
    let mut gaps = i64::from_le_bytes(*first);
    let mut signs = i64::from(i32::from_le_bytes(*last_length));
    for ((length, here), next) in lengths.iter().zip(pointers).zip(after_first) {
        let length = i64::from(i32::from_le_bytes(*length));
        let [here, next] = [*here, *next].map(i64::from_le_bytes);
        gaps |= next.wrapping_sub(here) ^ (length << shift);
        // A sum past 2^63 shows in the sign of a pointer.
        signs |= length | next;
    }
    let before_last = u64::from_le_bytes(*last) >> shift;
    let num_tokens = before_last + u64::from(u32::from_le_bytes(*last_length));
    (gaps == 0 && signs >= 0).then_some(num_tokens)
}

/// Whether boundaries begin at 0, never go back and end within the sequences; what they leave over.
pub(super) fn loose_sequences(boundaries: &[[u8; 8]], num_sequences: u64) -> Option<u64> {
    let (first, after_first) = boundaries.split_first()?;
    let last = u64::from_le_bytes(*boundaries.last()?);
    let mut steps = 0;
    for (here, next) in boundaries.iter().zip(after_first) {
        let [here, next] = [*here, *next].map(i64::from_le_bytes);
        // Both are positive if all steps are, so their difference does not wrap.
        steps |= next.wrapping_sub(here) | next;
    }
    let is_sound = i64::from_le_bytes(*first) == 0 && steps >= 0;
    num_sequences.checked_sub(last).filter(|_| is_sound)
}

/// Number of ids and where the pointers wrapped, if they are those of a sum in 32 bits.
///
/// Only a sum that wrapped is accepted: every pointer must be the right one cut to 32 bits.
pub(super) fn wrapped_tokens(
    lengths: &[[u8; 4]],
    pointers: &[[u8; 8]],
    item_bytes: usize,
) -> Option<(u64, Vec<u64>)> {
    let mut expected = 0_u64;
    let mut num_tokens = 0_u64;
    let mut wraps = Vec::new();
    for (sequence, (length, pointer)) in (0..).zip(lengths.iter().zip(pointers)) {
        let pointer = i64::from_le_bytes(*pointer);
        let kept = i32::try_from(pointer).ok()?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the bits that a wrapped sum keeps"
        )]
        let low = expected as u32;
        if kept.cast_unsigned() != low {
            return None;
        }
        let high = usize::try_from(expected >> KEPT_BITS).ok()?;
        wraps.resize(high, sequence);
        let length = u64::try_from(i32::from_le_bytes(*length)).ok()?;
        num_tokens = num_tokens.checked_add(length)?;
        expected = expected.checked_add(length.checked_mul(item_bytes as u64)?)?;
    }
    Some((num_tokens, wraps))
}

/// The pointer of a sequence, given its low bits and where the pointers wrapped.
pub(super) fn unwrapped(raw: u64, sequence: u64, wraps: &[u64]) -> u64 {
    if wraps.is_empty() {
        return raw;
    }
    let high = wraps.partition_point(|&wrap| wrap <= sequence) as u64;
    (high << KEPT_BITS) | (raw & u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw4(values: &[i32]) -> Vec<[u8; 4]> {
        values.iter().map(|value| value.to_le_bytes()).collect()
    }

    fn raw8(values: &[i64]) -> Vec<[u8; 8]> {
        values.iter().map(|value| value.to_le_bytes()).collect()
    }

    /// Pointers of these lengths, entry by entry.
    fn pointers(lengths: &[i32], item_bytes: i64) -> Vec<i64> {
        let mut end = 0;
        let mut starts = Vec::new();
        for &length in lengths {
            starts.push(end);
            end += i64::from(length) * item_bytes;
        }
        starts
    }

    #[test]
    fn one_wrong_entry_anywhere_is_noticed() {
        let lengths = [3, 0, 5, 1, 0, 7, 2, 2, 2, 9, 4];
        for item_bytes in [1_usize, 2, 4, 8] {
            let starts = pointers(&lengths, i64::try_from(item_bytes).unwrap());
            let sound = contiguous_tokens(&raw4(&lengths), &raw8(&starts), item_bytes);
            assert_eq!(sound, Some(35));
            for at in 0..lengths.len() {
                for wrong in [1, -1, 1 << 40, i64::MIN] {
                    let mut starts = starts.clone();
                    starts[at] ^= wrong;
                    let found = contiguous_tokens(&raw4(&lengths), &raw8(&starts), item_bytes);
                    assert_eq!(found, None, "{at} {wrong}");
                }
                let mut lengths = lengths;
                lengths[at] = -1 - lengths[at];
                let found = contiguous_tokens(&raw4(&lengths), &raw8(&starts), item_bytes);
                assert_eq!(found, None, "{at}");
            }
        }
        assert_eq!(contiguous_tokens(&[], &[], 4), Some(0));
        assert_eq!(contiguous_tokens(&raw4(&[7]), &raw8(&[0]), 4), Some(7));
        assert_eq!(contiguous_tokens(&raw4(&[7]), &raw8(&[4]), 4), None);
        assert_eq!(contiguous_tokens(&raw4(&[-7]), &raw8(&[0]), 4), None);
    }

    #[test]
    fn boundaries_may_stop_short_but_never_go_back_or_past_the_end() {
        let loose = |boundaries: &[i64]| loose_sequences(&raw8(boundaries), 5);
        assert_eq!(loose(&[0, 2, 2, 5]), Some(0));
        assert_eq!(loose(&[0, 2, 3]), Some(2));
        assert_eq!(loose(&[0]), Some(5));
        for wrong in [
            &[][..],
            &[1, 5],
            &[0, 3, 2, 5],
            &[0, 6],
            &[0, -1, 5],
            &[0, i64::MIN, 5],
            &[0, i64::MAX, 5],
            &[0, 5, i64::MIN],
        ] {
            assert_eq!(loose(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn pointers_that_wrapped_at_32_bits_are_put_right() {
        // 3 GiB a sequence: the sum passes 2^32 at the second, third and fifth.
        let lengths = [3 << 28; 6];
        let right = pointers(&lengths, 4);
        let low_bits = |pointer: i64| u32::try_from(pointer & i64::from(u32::MAX)).unwrap();
        let wrapped: Vec<i64> = right
            .iter()
            .map(|&pointer| i64::from(low_bits(pointer).cast_signed()))
            .collect();
        assert!(wrapped.iter().any(|&pointer| pointer < 0));
        let (num_tokens, wraps) = wrapped_tokens(&raw4(&lengths), &raw8(&wrapped), 4).unwrap();
        assert_eq!(num_tokens, 6 * (3 << 28));
        for (sequence, (&raw, &expected)) in (0..).zip(wrapped.iter().zip(&right)) {
            let found = unwrapped(raw.cast_unsigned(), sequence, &wraps);
            assert_eq!(found, expected.cast_unsigned(), "{sequence}");
        }
        for at in 0..wrapped.len() {
            let mut wrong = wrapped.clone();
            wrong[at] ^= 4;
            assert_eq!(wrapped_tokens(&raw4(&lengths), &raw8(&wrong), 4), None);
        }
        assert_eq!(wrapped_tokens(&raw4(&lengths), &raw8(&right), 4), None);
    }
}
