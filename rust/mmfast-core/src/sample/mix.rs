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
            let present = keys.iter().zip(part(expert, start));
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
        match &self.mixing {
            Mixing::Copy(stream) => {
                for (key, bits) in keys.iter_mut().zip(part(stream, start)) {
                    *key = key_of(flush(F::widen(*bits)));
                }
            }
            Mixing::Sum { base, weighted } => {
                let base = part(base, start);
                match weighted.as_slice() {
                    [(weight, stream)] => {
                        let streams = base.iter().zip(part(stream, start));
                        for (key, (u, c)) in keys.iter_mut().zip(streams) {
                            let u = flush(F::widen(*u));
                            *key = key_of(added::<F>(u, u, *weight, *c));
                        }
                    }
                    _ => mix_many::<F>(base, weighted, start, keys),
                }
            }
            Mixing::Contrast { expert, amateur } => {
                let streams = part(expert, start).iter().zip(part(amateur, start));
                for (key, (c, u)) in keys.iter_mut().zip(streams) {
                    let (c, u) = (flush(F::widen(*c)), flush(F::widen(*u)));
                    let both = c > f32::NEG_INFINITY && u > f32::NEG_INFINITY;
                    *key = if both { key_of(flush(c - u)) } else { ABSENT };
                }
            }
        }
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
        let streams = base.iter().zip(part(stream, start));
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

fn part<T>(stream: &[T], start: usize) -> &[T] {
    stream.get(start..).unwrap_or_default()
}
