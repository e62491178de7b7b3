//! Cuts by rank: the k largest keys, and the shortest run of largest keys whose mass reaches a bound.
//!
//! Ranking is by key descending, then id ascending; a [`Ranked`] number holds both.

/// An id and its key in one number that is larger for what ranks higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ranked(u64);

impl Ranked {
    /// What ranks below every id with this key, so that `>=` keeps them all.
    pub(super) fn lowest_of(key: u32) -> Self {
        Self(u64::from(key) << 32)
    }

    #[inline(always)]
    fn new(key: u32, id: u32) -> Self {
        Self(u64::from(key) << 32 | u64::from(!id))
    }

    #[inline(always)]
    pub(super) fn key(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    pub(super) fn id(self) -> u32 {
        !(self.0 as u32)
    }
}

/// Keys that are looked at together before any of them is looked at alone.
const CHUNK: usize = 16;

/// Appends the keys that are at least `bound`, in the order of their ids.
#[inline(always)]
pub(super) fn collect(keys: &[u32], bound: u32, found: &mut Vec<Ranked>) {
    let chunks = keys.as_chunks::<CHUNK>();
    for (first_id, chunk) in (0_u32..).step_by(CHUNK).zip(chunks.0) {
        // Without an early exit this is a few wide instructions.
        if chunk.iter().fold(false, |any, key| any | (*key >= bound)) {
            collect_few(chunk, first_id, bound, found);
        }
    }
    // There are at most 2^19 - 1 keys.
    let first_id = u32::try_from(keys.len() - chunks.1.len()).unwrap_or(u32::MAX);
    collect_few(chunks.1, first_id, bound, found);
}

#[inline(always)]
fn collect_few(keys: &[u32], first_id: u32, bound: u32, found: &mut Vec<Ranked>) {
    for (id, key) in (first_id..).zip(keys) {
        if *key >= bound {
            found.push(Ranked::new(*key, id));
        }
    }
}

/// How the keys of a row are grouped for a bound on the k-th largest: key `i` is in group
/// `i % num_groups`.
///
/// Strided groups stay small supersets where large logits are neighbours, as in real vocabularies;
/// contiguous ones do not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Groups {
    pub(super) num_groups: usize,
}

impl Groups {
    /// Groups for the k largest of `num_ids`; `None` where a bound would not spare much.
    pub(super) fn new(num_ids: usize, k: usize) -> Option<Self> {
        let size = (num_ids / (3 * k)).next_power_of_two().min(64);
        let num_groups = num_ids.div_ceil(size);
        (size >= 4 && num_groups >= k).then_some(Self { num_groups })
    }
}

/// Raises each group's maximum by keys that begin at a group's first.
#[inline(always)]
pub(super) fn raise(maxima: &mut [u32], keys: &[u32]) {
    for (maximum, key) in maxima.iter_mut().zip(keys) {
        *maximum = (*maximum).max(*key);
    }
}

/// The k-th largest of some numbers, which are put out of order; the smallest if there are fewer.
pub(super) fn kth_largest(numbers: &mut [u32], k: usize) -> u32 {
    let place = k.min(numbers.len()).saturating_sub(1);
    if numbers.is_empty() {
        return 0;
    }
    *numbers.select_nth_unstable_by(place, |a, b| b.cmp(a)).1
}

/// The k-th of candidates by rank, which are put out of order; the last if there are fewer.
pub(super) fn kth_ranked(candidates: &mut [Ranked], k: usize) -> Option<Ranked> {
    let place = k.min(candidates.len()).checked_sub(1)?;
    Some(*candidates.select_nth_unstable_by(place, |a, b| b.cmp(a)).1)
}

/// The last of the highest-ranked candidates that are needed for their weights to reach `needed`: all are
/// kept before which the weights sum to less. Candidates are put out of order.
pub(super) fn last_of_nucleus(
    mut candidates: &mut [(Ranked, u64)],
    mut needed: u64,
) -> Option<Ranked> {
    while candidates.len() > 1 {
        let middle = candidates.len() / 2;
        candidates.select_nth_unstable_by(middle - 1, |a, b| b.0.cmp(&a.0));
        let (upper, lower) = candidates.split_at_mut(middle);
        let mass: u64 = upper.iter().map(|(_, weight)| weight).sum();
        if mass >= needed {
            candidates = upper;
        } else {
            needed -= mass;
            candidates = lower;
        }
    }
    candidates.first().map(|(ranked, _)| *ranked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn collecting_finds_what_a_filter_finds(
            keys in prop::collection::vec(0_u32..20, 0..200), bound in 0_u32..21,
        ) {
            let mut found = Vec::new();
            collect(&keys, bound, &mut found);
            let expected: Vec<_> = (0_u32..).zip(&keys).filter(|(_, key)| **key >= bound).collect();
            prop_assert_eq!(found.len(), expected.len());
            for (ranked, (id, key)) in found.iter().zip(expected) {
                prop_assert_eq!((ranked.id(), ranked.key()), (id, *key));
            }
        }

        #[test]
        fn the_nucleus_is_that_of_a_sort(
            weights in prop::collection::vec(0_u64..50, 1..120), needed in 1_u64..2_000,
        ) {
            // Equal keys have equal weights; the rest of the rank is the id.
            let mut ranked: Vec<_> = (0_u32..)
                .zip(&weights)
                .map(|(id, weight)| (Ranked::new(u32::try_from(*weight).unwrap(), id), *weight))
                .collect();
            let total: u64 = weights.iter().sum();
            let needed = needed.min(total.max(1));
            let mut sorted = ranked.clone();
            sorted.sort_by_key(|candidate| std::cmp::Reverse(candidate.0));
            let mut before = 0;
            let mut last = sorted[0].0;
            for (candidate, weight) in &sorted {
                if before < needed {
                    last = *candidate;
                }
                before += weight;
            }
            prop_assert_eq!(last_of_nucleus(&mut ranked, needed), Some(last));
        }

        #[test]
        fn the_bound_of_groups_spares_none_of_the_largest(
            seed in any::<u64>(), num_ids in 200_usize..3_000, k in 1_usize..40,
        ) {
            let mut state = seed;
            let keys: Vec<u32> = (0..num_ids)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    u32::try_from(state >> 40).unwrap()
                })
                .collect();
            if let Some(Groups { num_groups }) = Groups::new(num_ids, k) {
                let mut maxima = vec![0; num_groups];
                for part in keys.chunks(num_groups) {
                    raise(&mut maxima, part);
                }
                let bound = kth_largest(&mut maxima, k);
                let mut sorted = keys.clone();
                sorted.sort_unstable_by_key(|key| std::cmp::Reverse(*key));
                prop_assert!(bound <= sorted[k - 1]);
            }
        }
    }
}
