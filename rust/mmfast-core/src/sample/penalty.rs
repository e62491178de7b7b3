//! The repetition penalty on keys: logits of seen ids times the penalty below 0, divided by it above.

use super::logits::{ABSENT, flush, key_of, logit_of};
use super::support::{Bits, WORD_BITS};

/// What is done to the logits of a row before its temperature.
#[derive(Debug, Clone, Copy)]
pub(super) struct Penalty<'a> {
    /// Ids that are penalised.
    pub(super) seen: Bits<'a>,
    /// Above 0.
    pub(super) factor: f32,
    /// Added to every logit first.
    pub(super) offset: f32,
}

impl Penalty<'_> {
    /// Changes keys that begin at the row's id `start`; returns whether one that was there became -inf.
    #[inline(always)]
    pub(super) fn apply(self, start: usize, keys: &mut [u32]) -> bool {
        let mut excluded = false;
        for (place, keys) in keys.chunks_mut(WORD_BITS).enumerate() {
            let word = self.seen.word_at(start + place * WORD_BITS);
            if word == 0 && self.offset == 0.0 {
                continue;
            }
            for (bit, key) in keys.iter_mut().enumerate() {
                let logit = flush(logit_of(*key) + self.offset);
                let factor = if word >> bit & 1 == 1 {
                    self.factor
                } else {
                    1.0
                };
                // A factor of 1 changes nothing.
                let scaled = if logit < 0.0 {
                    logit * factor
                } else {
                    logit / factor
                };
                let was_there = *key != ABSENT;
                *key = if was_there {
                    key_of(flush(scaled))
                } else {
                    ABSENT
                };
                excluded |= was_there & (*key == ABSENT);
            }
        }
        excluded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seen_logits_move_away_from_preference() {
        let words = [0b1101_u32];
        let penalty = Penalty {
            seen: Bits::new(&words, 0),
            factor: 3.0,
            offset: 0.0,
        };
        let mut keys = [6.0, 6.0, -2.0, f32::MIN].map(key_of);
        assert!(penalty.apply(0, &mut keys));
        assert_eq!(keys, [2.0, 6.0, -6.0, f32::NEG_INFINITY].map(key_of));
        let mut keys = [ABSENT, key_of(6.0)];
        let offset = Penalty {
            offset: -7.0,
            ..penalty
        };
        assert!(!offset.apply(0, &mut keys));
        assert_eq!(keys, [ABSENT, key_of(-1.0)]);
    }
}
