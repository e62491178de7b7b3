//! Cuts by rank: the k largest entries, and the shortest run of largest ones whose mass reaches a bound.
//!
//! Ranking is by key descending, then id ascending; a [`Ranked`] number holds both. Both cuts first spread
//! the entries over buckets that are in the order of the ranks, and look only into the one with the edge.

use super::weight::Scale;

/// Buckets of a cut.
const NUM_BUCKETS: usize = 1 << BUCKET_BITS;
const BUCKET_BITS: u32 = 10;
/// Entries below which a plain selection is quicker than buckets.
const FEW: usize = 64;
/// Entries looked at together.
const CHUNK: usize = 16;
/// Keys passed over together where none is large enough.
const SPAN: usize = 64;

/// What is ranked and weighed: a key, alone or with its id. Larger ranks higher.
pub(super) trait Entry: Copy + Ord + Send + Sync {
    /// The key.
    fn key(self) -> u32;
}

impl Entry for u32 {
    #[inline(always)]
    fn key(self) -> u32 {
        self
    }
}

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
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    pub(super) fn id(self) -> u32 {
        !(self.0 as u32)
    }
}

impl Entry for Ranked {
    #[inline(always)]
    fn key(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Appends the keys that are at least `bound`, in the order of their ids, of which the first is `first_id`.
#[inline(always)]
pub(super) fn collect(keys: &[u32], first_id: usize, bound: u32, found: &mut Vec<Ranked>) {
    // There are at most 2^19 - 1 keys.
    let first_id = u32::try_from(first_id).unwrap_or(u32::MAX);
    let (spans, rest) = keys.as_chunks::<SPAN>();
    for (id, span) in (first_id..).step_by(SPAN).zip(spans) {
        // Without an early exit this is a few wide instructions.
        if span.iter().fold(false, |any, key| any | (*key >= bound)) {
            collect_span(span, id, bound, found);
        }
    }
    let first_id = first_id.saturating_add(u32::try_from(spans.len() * SPAN).unwrap_or(u32::MAX));
    for (id, key) in (first_id..).zip(rest) {
        if *key >= bound {
            found.push(Ranked::new(*key, id));
        }
    }
}

#[inline(always)]
fn collect_span(span: &[u32; SPAN], id: u32, bound: u32, found: &mut Vec<Ranked>) {
    // A byte for each key, then a bit: shifting or-ed bits together is not made wide.
    let mut bytes = [0_u8; SPAN];
    for (byte, key) in bytes.iter_mut().zip(span) {
        *byte = u8::from(*key >= bound);
    }
    let mut marked = 0_u64;
    for (place, bytes) in bytes.as_chunks::<8>().0.iter().enumerate() {
        // The product's top byte has the lowest bit of each byte.
        let bits = u64::from_le_bytes(*bytes).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        marked |= bits << (8 * place);
    }
    let mut ranked = [Ranked(0); SPAN];
    let mut num_ranked = 0;
    while marked != 0 {
        let place = marked.trailing_zeros();
        marked &= marked - 1;
        if let (Some(key), Some(next)) = (span.get(place as usize), ranked.get_mut(num_ranked)) {
            *next = Ranked::new(*key, id + place);
        }
        num_ranked += 1;
    }
    found.extend_from_slice(ranked.get(..num_ranked).unwrap_or_default());
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
        let size = (num_ids / k.saturating_mul(3).max(1))
            .next_power_of_two()
            .min(64);
        // Whole spans, so that loops over groups are wide to their end.
        let num_groups = num_ids.div_ceil(size).next_multiple_of(SPAN);
        (k > 0 && size >= 4 && num_groups >= k).then_some(Self { num_groups })
    }
}

/// Raises each group's maximum by keys that begin at a group's first; returns the lowest of the keys.
#[inline(always)]
pub(super) fn raise(maxima: &mut [u32], keys: &[u32]) -> u32 {
    let mut lowest = u32::MAX;
    for (maximum, key) in maxima.iter_mut().zip(keys) {
        *maximum = (*maximum).max(*key);
        lowest = lowest.min(*key);
    }
    lowest
}

/// Memory of cuts, used again from row to row.
#[derive(Debug, Default)]
pub(super) struct Buckets(Vec<u64>);

impl Buckets {
    fn cleared(&mut self) -> &mut [u64] {
        self.0.clear();
        self.0.resize(NUM_BUCKETS, 0);
        &mut self.0
    }
}

/// Shift that brings numbers up to `largest` into buckets.
#[inline(always)]
fn shift_for(largest: u32) -> u32 {
    (u32::BITS - largest.leading_zeros()).saturating_sub(BUCKET_BITS)
}

/// The k-th highest-ranked entry, `None` if there are fewer or it has the key 0; `edge` is memory.
#[inline(always)]
pub(super) fn kth_highest<E: Entry>(
    entries: &[E],
    k: usize,
    buckets: &mut Buckets,
    edge: &mut Vec<E>,
) -> Option<E> {
    let (mut smallest, mut largest) = (u32::MAX, 0);
    for entry in entries {
        let key = entry.key();
        largest = largest.max(key);
        // What is absent would stretch the range.
        smallest = smallest.min(key.wrapping_sub(1));
    }
    let smallest = smallest.wrapping_add(1);
    edge.clear();
    let mut place = k.checked_sub(1)?;
    if entries.len() <= FEW || smallest > largest {
        edge.extend_from_slice(entries);
    } else {
        let shift = shift_for(largest - smallest);
        let bucket = |entry: &E| (((largest - entry.key()) >> shift) as usize).min(NUM_BUCKETS - 1);
        let counts = buckets.cleared();
        for entry in entries {
            if let Some(count) = counts.get_mut(bucket(entry)) {
                *count += 1;
            }
        }
        let mut before = 0;
        let crossing = counts.iter().position(|count| {
            let reached = before + count > place as u64;
            before += if reached { 0 } else { *count };
            reached
        })?;
        place -= usize::try_from(before).unwrap_or(0);
        extend_if(edge, entries, |entry| bucket(&entry) == crossing);
    }
    if place >= edge.len() {
        return None;
    }
    let kth = *edge.select_nth_unstable_by(place, |a, b| b.cmp(a)).1;
    (kth.key() > 0).then_some(kth)
}

/// The lowest-ranked of the entries, from `bound` on, that are needed for their weights to reach `needed`: all
/// are kept before which the weights sum to less. `weights` are those of the entries by `scale`, 0 for those
/// that rank below `bound`; `edge` is memory.
#[inline(always)]
pub(super) fn last_of_nucleus(
    (entries, weights): (&[Ranked], &[u64]),
    bound: Ranked,
    scale: Scale,
    needed: u64,
    buckets: &mut Buckets,
    edge: &mut Vec<Ranked>,
) -> Ranked {
    let shift = shift_for(scale.exponent(bound.key()));
    // What ranks below the bound weighs nothing, in whatever bucket.
    let bucket = |entry: Ranked| (scale.exponent(entry.key()) >> shift) as usize % NUM_BUCKETS;
    let masses = buckets.cleared();
    let (chunks, rest) = entries.as_chunks::<CHUNK>();
    let (weight_chunks, rest_weights) = weights.as_chunks::<CHUNK>();
    let mut add = |place: usize, weight: u64| {
        if let Some(mass) = masses.get_mut(place) {
            *mass += weight;
        }
    };
    for (chunk, weights) in chunks.iter().zip(weight_chunks) {
        // Places are wide instructions, the sums are not.
        let mut places = [0; CHUNK];
        for (place, entry) in places.iter_mut().zip(chunk) {
            *place = bucket(*entry);
        }
        places
            .iter()
            .zip(weights)
            .for_each(|(place, weight)| add(*place, *weight));
    }
    let rest = rest.iter().zip(rest_weights);
    rest.for_each(|(entry, weight)| add(bucket(*entry), *weight));
    let mut before = 0;
    let crossing = masses.iter().position(|mass| {
        let reached = before + mass >= needed;
        before += if reached { 0 } else { *mass };
        reached
    });
    let Some(crossing) = crossing else {
        return bound;
    };
    edge.clear();
    extend_if(edge, entries, |entry| {
        (bucket(entry) == crossing) & (entry >= bound)
    });
    edge.sort_unstable_by(|a, b| b.cmp(a));
    let mut last = bound;
    for entry in edge.iter() {
        if before >= needed {
            break;
        }
        last = *entry;
        before += scale.weight(entry.key());
    }
    last
}

/// Appends the entries that are wanted, of which there are few.
#[inline(always)]
fn extend_if<E: Entry>(found: &mut Vec<E>, entries: &[E], is_wanted: impl Fn(E) -> bool) {
    let (chunks, rest) = entries.as_chunks::<CHUNK>();
    for chunk in chunks {
        let mut wanted = [false; CHUNK];
        for (wanted, entry) in wanted.iter_mut().zip(chunk) {
            *wanted = is_wanted(*entry);
        }
        if wanted.iter().fold(false, |any, wanted| any | wanted) {
            let chunk = chunk.iter().zip(wanted).filter(|(_, wanted)| *wanted);
            found.extend(chunk.map(|(entry, _)| *entry));
        }
    }
    found.extend(rest.iter().copied().filter(|entry| is_wanted(*entry)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::logits::{key_of, logit_of};
    use proptest::prelude::*;

    const SCALE: Scale = Scale {
        top: 3.0,
        bits_per_logit: 1.5,
    };

    fn ranked(keys: &[u32]) -> Vec<Ranked> {
        (0_u32..)
            .zip(keys)
            .map(|(id, key)| Ranked::new(*key, id))
            .collect()
    }

    /// Keys of few or of many logits up to 3.
    fn some_keys(len: usize) -> impl Strategy<Value = Vec<u32>> {
        let logit = prop_oneof![-4_i16..=0, -3_000_i16..=0];
        prop::collection::vec(
            logit.prop_map(|step| key_of(3.0 + f32::from(step) / 100.0)),
            1..len,
        )
    }

    proptest! {
        #[test]
        fn collecting_finds_what_a_filter_finds(
            keys in prop::collection::vec(0_u32..20, 0..200), bound in 0_u32..21, first_id in 0_usize..50,
        ) {
            let mut found = Vec::new();
            collect(&keys, first_id, bound, &mut found);
            let ids = u32::try_from(first_id).unwrap()..;
            let expected: Vec<_> = ids.zip(&keys).filter(|(_, key)| **key >= bound).collect();
            prop_assert_eq!(found.len(), expected.len());
            for (ranked, (id, key)) in found.iter().zip(expected) {
                prop_assert_eq!((ranked.id(), ranked.key()), (id, *key));
            }
        }

        #[test]
        fn the_kth_is_that_of_a_sort(keys in some_keys(300), absent in 0_usize..20, k in 1_usize..320) {
            let mut keys = keys;
            keys.iter_mut().step_by(7).take(absent).for_each(|key| *key = 0);
            let entries = ranked(&keys);
            let mut sorted = entries.clone();
            sorted.sort_by_key(|entry| std::cmp::Reverse(*entry));
            let expected = sorted.get(k - 1).copied().filter(|entry| entry.key() > 0);
            let mut buckets = Buckets::default();
            prop_assert_eq!(kth_highest(&entries, k, &mut buckets, &mut Vec::new()), expected);
            let found = kth_highest(&keys, k, &mut buckets, &mut Vec::new());
            prop_assert_eq!(found, expected.map(Entry::key));
        }

        #[test]
        fn the_nucleus_is_that_of_a_sort(
            keys in some_keys(300), share in 0.0_f64..1.1, from in 0.0_f64..1.0,
        ) {
            let entries = ranked(&keys);
            let mut sorted = entries.clone();
            sorted.sort_by_key(|entry| std::cmp::Reverse(*entry));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
                reason = "a place in the list, and a share of a mass")]
            let (bound, needed) = {
                let bound = sorted[((sorted.len() - 1) as f64 * from) as usize];
                let mass: u64 = sorted.iter().map(|entry| SCALE.weight_from(*entry, bound)).sum();
                (bound, ((mass as f64 * share) as u64).max(1))
            };
            let (mut before, mut last) = (0, bound);
            for entry in sorted.iter().take_while(|entry| **entry >= bound) {
                if before < needed {
                    last = *entry;
                }
                before += SCALE.weight(entry.key());
            }
            let weights: Vec<_> =
                entries.iter().map(|entry| SCALE.weight_from(*entry, bound)).collect();
            let found = last_of_nucleus(
                (&entries, &weights), bound, SCALE, needed, &mut Buckets::default(), &mut Vec::new(),
            );
            prop_assert_eq!(found, last, "logit {}", logit_of(last.key()));
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
                let bound = kth_highest(&maxima, k, &mut Buckets::default(), &mut Vec::new());
                let mut sorted = keys.clone();
                sorted.sort_unstable_by_key(|key| std::cmp::Reverse(*key));
                prop_assert!(bound.unwrap_or(0) <= sorted[k - 1]);
            }
        }
    }
}
