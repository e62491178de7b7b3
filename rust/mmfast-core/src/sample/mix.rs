//! Mixing a row's streams into keys: u + sum of w (c - u), each operation rounded on its own, or the contrast
//! c - u.
//!
//! A stream of weight 0 is not looked at; one of weight exactly 1, alone, is taken as it is. An id that
//! is NaN or -inf in a stream that is looked at does not exist.

use super::logits::{ABSENT, Format, flush, key_of};

/// What a row's logits are made of.
pub(super) struct Streams<'a, F: Format> {
    mixing: Mixing<'a, F>,
    num_ids: usize,
}

enum Mixing<'a, F: Format> {
    /// One stream as it is.
    Copy(&'a [F::Bits]),
    /// An unconditional stream and weighted others.
    Sum {
        base: &'a [F::Bits],
        weighted: Vec<(f32, &'a [F::Bits])>,
    },
    /// What one stream has over another.
    Contrast {
        expert: &'a [F::Bits],
        amateur: &'a [F::Bits],
    },
}

impl<'a, F: Format> Streams<'a, F> {
    /// Chooses what has to be read; all streams have one length.
    pub(super) fn new(
        conditions: impl Iterator<Item = (f32, &'a [F::Bits])>,
        base: Option<&'a [F::Bits]>,
    ) -> Self {
        let Some(base) = base else {
            let alone = conditions.map(|(_, stream)| stream).next().unwrap_or(&[]);
            return Self {
                num_ids: alone.len(),
                mixing: Mixing::Copy(alone),
            };
        };
        let weighted: Vec<_> = conditions.filter(|(weight, _)| *weight != 0.0).collect();
        let mixing = match *weighted {
            [(1.0, stream)] => Mixing::Copy(stream),
            _ => Mixing::Sum { base, weighted },
        };
        Self {
            num_ids: base.len(),
            mixing,
        }
    }

    /// The contrast of two streams of one length.
    pub(super) fn contrast(expert: &'a [F::Bits], amateur: &'a [F::Bits]) -> Self {
        Self {
            num_ids: expert.len(),
            mixing: Mixing::Contrast { expert, amateur },
        }
    }

    /// Keys of the contrast's first stream, for the ids that have a key already.
    #[inline(always)]
    pub(super) fn expert(&self, start: usize, keys: &[u32], experts: &mut [u32]) {
        if let Mixing::Contrast { expert, .. } = &self.mixing {
            let present = keys.iter().zip(part(expert, start, keys.len()));
            for (found, (key, bits)) in experts.iter_mut().zip(present) {
                let expert = key_of(flush(F::widen(*bits)));
                *found = if *key == ABSENT { ABSENT } else { expert };
            }
        }
    }

    /// Ids of a row.
    pub(super) fn num_ids(&self) -> usize {
        self.num_ids
    }

    /// Keys of the ids from `start` on, as many as `keys` holds.
    #[inline(always)]
    pub(super) fn mix(&self, start: usize, keys: &mut [u32]) {
        let len = keys.len();
        let part = |stream| part(stream, start, len);
        match &self.mixing {
            Mixing::Copy(stream) => {
                for (key, bits) in keys.iter_mut().zip(part(stream)) {
                    *key = key_of(flush(F::widen(*bits)));
                }
            }
            Mixing::Sum { base, weighted } => match weighted.as_slice() {
                [(weight, stream)] => mix_two::<F>(part(base), *weight, part(stream), keys),
                _ => mix_many::<F>(part(base), weighted, start, keys),
            },
            Mixing::Contrast { expert, amateur } => {
                let streams = part(expert).iter().zip(part(amateur));
                for (key, (c, u)) in keys.iter_mut().zip(streams) {
                    let (c, u) = (flush(F::widen(*c)), flush(F::widen(*u)));
                    let both = c > f32::NEG_INFINITY && u > f32::NEG_INFINITY;
                    *key = if both { key_of(flush(c - u)) } else { ABSENT };
                }
            }
        }
    }
}

/// One stream against the unconditional one.
///
/// With a weight in (0, 2^20] two things need no look at each id. A stream that rules an id out makes the sum
/// NaN or -inf by itself. And a sum of at least 2^-70 is the same without flushing on the way: a subnormal
/// difference or product is lost in what the sum then must hold, and so is a subnormal logit, in the difference
/// if the other logit is at least 2^-95, else the sum would be below 2^-72.
#[inline(always)]
fn mix_two<F: Format>(base: &[F::Bits], weight: f32, stream: &[F::Bits], keys: &mut [u32]) {
    /// Bits of 2^-70.
    const FAR: u32 = (127 - 70) << 23;
    if weight > 0.0 && weight <= 1_048_576.0 {
        let mut nearest = u32::MAX;
        for (key, (u, c)) in keys.iter_mut().zip(base.iter().zip(stream)) {
            let (u, c) = (F::widen(*u), F::widen(*c));
            let sum = u + weight * (c - u);
            nearest = nearest.min(sum.abs().to_bits());
            *key = key_of(sum);
        }
        if nearest >= FAR {
            return;
        }
    }
    for (key, (u, c)) in keys.iter_mut().zip(base.iter().zip(stream)) {
        let u = flush(F::widen(*u));
        *key = key_of(added::<F>(u, u, weight, *c));
    }
}

/// The general case: sums stay in `keys`, as bits of floats, until all streams are added.
#[inline(always)]
fn mix_many<F: Format>(
    base: &[F::Bits],
    weighted: &[(f32, &[F::Bits])],
    start: usize,
    keys: &mut [u32],
) {
    for (sum, u) in keys.iter_mut().zip(base) {
        *sum = flush(F::widen(*u)).to_bits();
    }
    for (weight, stream) in weighted {
        let streams = base.iter().zip(part(stream, start, keys.len()));
        for (sum, (u, c)) in keys.iter_mut().zip(streams) {
            let u = flush(F::widen(*u));
            *sum = added::<F>(f32::from_bits(*sum), u, *weight, *c).to_bits();
        }
    }
    for key in keys {
        *key = key_of(f32::from_bits(*key));
    }
}

/// sum + w (c - u); NaN, which nothing added later removes, where c or u rules the id out.
#[inline(always)]
fn added<F: Format>(sum: f32, u: f32, weight: f32, c: F::Bits) -> f32 {
    let c = flush(F::widen(c));
    let sum = flush(sum + flush(weight * flush(c - u)));
    if c > f32::NEG_INFINITY && u > f32::NEG_INFINITY {
        sum
    } else {
        f32::NAN
    }
}

fn part<T>(stream: &[T], start: usize, len: usize) -> &[T] {
    stream.get(start..start + len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::logits::F32;
    use super::*;
    use proptest::prelude::*;

    /// Logits of every magnitude, many of them so small that flushing could matter.
    fn logits() -> impl Strategy<Value = f32> {
        let near = |low: u32, high: u32| (low..high, any::<bool>());
        let tiny = near(0, 0x0100_0000);
        let small = near(0x0100_0000, 0x2000_0000);
        let usual = near(0x3000_0000, 0x4200_0000);
        let rare = near(0x7F00_0000, 0x7F80_0010);
        prop_oneof![tiny, small, usual, rare]
            .prop_map(|(bits, negative)| f32::from_bits(bits | u32::from(negative) << 31))
    }

    fn weights() -> impl Strategy<Value = f32> {
        let rare = prop_oneof![Just(f32::MIN_POSITIVE), Just(1_048_576.0), Just(1e30)];
        prop_oneof![4 => -8.0_f32..8.0, 2 => 1e-6_f32..1e6, 1 => rare]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn sums_far_from_zero_need_no_flushing(
            u in logits(), c in logits(), weight in weights(), is_close in any::<bool>(), steps in 0_u32..4,
        ) {
            // Neighbours, whose difference is small.
            let c = if is_close { f32::from_bits(u.to_bits().wrapping_add(steps)) } else { c };
            let mut keys = [1];
            mix_two::<F32>(&[u], weight, &[c], &mut keys);
            let flushed = flush(u);
            let expected = key_of(added::<F32>(flushed, flushed, weight, c));
            prop_assert_eq!(keys[0], expected, "{} {} {}", u, c, weight);
        }
    }
}
