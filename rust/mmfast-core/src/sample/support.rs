//! Sets of a row's ids as bits: those that may come, and those that it has seen.

use super::logits::ABSENT;

/// Ids of one word.
pub(super) const WORD_BITS: usize = 32;

/// Bits of ids, of which the row's first is bit `first`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bits<'a> {
    words: &'a [u32],
    first: usize,
}

impl<'a> Bits<'a> {
    /// Words that hold the bits from `first` on.
    pub(super) fn new(words: &'a [u32], first: usize) -> Self {
        Self { words, first }
    }

    /// The bits of the 32 ids from `id` on, the lowest first; 0 for what the words do not hold.
    #[inline(always)]
    pub(super) fn word_at(self, id: usize) -> u32 {
        let (word, shift) = ((self.first + id) / WORD_BITS, (self.first + id) % WORD_BITS);
        let at = |word: usize| self.words.get(word).copied().unwrap_or(0);
        match shift {
            0 => at(word),
            _ => at(word) >> shift | at(word + 1) << (WORD_BITS - shift),
        }
    }
}

/// Which of a row's ids exist.
#[derive(Debug, Clone, Copy)]
pub(super) enum Support<'a> {
    /// All.
    All,
    /// Those that are marked by another number than 0.
    Mask(&'a [u8]),
    /// Those that are marked, in bits.
    Bits(Bits<'a>),
}

impl Support<'_> {
    /// Takes ids out that do not exist, of keys that begin at the row's id `start`; returns whether one that
    /// exists was absent already.
    #[inline(always)]
    pub(super) fn restrict(self, start: usize, keys: &mut [u32]) -> bool {
        match self {
            Self::All => keys
                .iter()
                .fold(false, |excluded, key| excluded | (*key == ABSENT)),
            Self::Mask(mask) => {
                let mask = mask.get(start..).unwrap_or_default();
                let allowed = mask.iter().map(|mark| *mark != 0);
                let allowed = allowed.chain(std::iter::repeat(false));
                restrict_each(keys, allowed)
            }
            Self::Bits(bits) => {
                let mut excluded = false;
                for (place, keys) in keys.chunks_mut(WORD_BITS).enumerate() {
                    let word = bits.word_at(start + place * WORD_BITS);
                    let allowed = (0..WORD_BITS).map(|bit| word >> bit & 1 == 1);
                    excluded |= restrict_each(keys, allowed);
                }
                excluded
            }
        }
    }

    /// The lowest id that exists, 0 if there is none.
    pub(super) fn lowest(self, num_ids: usize) -> usize {
        match self {
            Self::All => 0,
            Self::Mask(mask) => mask.iter().position(|mark| *mark != 0).unwrap_or(0),
            Self::Bits(bits) => (0..num_ids)
                .step_by(WORD_BITS)
                .map(|id| (id, bits.word_at(id)))
                .find(|(_, word)| *word != 0)
                .map(|(id, word)| id + word.trailing_zeros() as usize)
                .filter(|id| *id < num_ids)
                .unwrap_or(0),
        }
    }
}

#[inline(always)]
fn restrict_each(keys: &mut [u32], allowed: impl Iterator<Item = bool>) -> bool {
    keys.iter_mut()
        .zip(allowed)
        .fold(false, |excluded, (key, allowed)| {
            let is_excluded = allowed & (*key == ABSENT);
            *key = if allowed { *key } else { ABSENT };
            excluded | is_excluded
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bits_and_masks_restrict_alike(
            words in prop::collection::vec(any::<u32>(), 1..8), first in 0_usize..64, num_ids in 1_usize..200,
            start in 0_usize..100,
        ) {
            let bits = Bits::new(&words, first);
            let marked = |id: usize| {
                words.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
            };
            let mask = (0..start + num_ids).map(|id| u8::from(marked(first + id)));
            let mask: Vec<u8> = mask.collect();
            let keys: Vec<u32> = (0..num_ids).map(|id| u32::try_from(id % 3).unwrap()).collect();
            let (mut by_bits, mut by_mask) = (keys.clone(), keys);
            let excluded = Support::Bits(bits).restrict(start, &mut by_bits);
            prop_assert_eq!(excluded, Support::Mask(&mask).restrict(start, &mut by_mask));
            prop_assert_eq!(by_bits, by_mask);
            let len = mask.len();
            prop_assert_eq!(Support::Bits(bits).lowest(len), Support::Mask(&mask).lowest(len));
        }
    }
}
