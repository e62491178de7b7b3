//! Image ids replaced in the input, never in the target, so that a model learns to go on from its own
//! mistakes.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::random::{Chance, DocumentDraws, below};

/// With a given probability an image id is replaced by a random id of its code range.
///
/// The draw belongs to the id's position in the original document, so it does not depend on where CM3
/// moves the id.
#[derive(Debug, Clone)]
pub struct ImageNoise {
    chance: Chance,
    code_ranges: Vec<Range<i64>>,
}

impl ImageNoise {
    /// Noise of a probability; `None` for probability 0.
    pub fn new(probability: f64, code_ranges: Vec<Range<i64>>) -> Result<Option<Self>> {
        let chance = Chance::new("image_noise_prob", probability)?;
        if !chance.is_possible() {
            return Ok(None);
        }
        if code_ranges.is_empty() {
            return Err(Error::argument(
                "image_noise_prob needs a vocabulary with code ranges, and this one has none",
            ));
        }
        Ok(Some(Self {
            chance,
            code_ranges,
        }))
    }

    /// Text for a fingerprint.
    pub(crate) fn description(&self) -> String {
        format!("image noise {:?} {:?}", self.chance, self.code_ranges)
    }

    /// The input id for the image id at `position`; ids outside the code ranges stay.
    pub(crate) fn input_id(&self, draws: &DocumentDraws, position: usize, id: i64) -> i64 {
        let Some(range) = self.code_ranges.iter().find(|range| range.contains(&id)) else {
            return id;
        };
        let (replace, code) = draws.pair(u32::try_from(position).unwrap_or(u32::MAX));
        if !self.chance.happens(replace) {
            return id;
        }
        let size = range.end.abs_diff(range.start);
        range.start + i64::try_from(below(size, code)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{DocumentKey, Generator, Purpose};

    #[test]
    fn noise_hits_the_stated_share_of_image_ids_and_stays_in_range() {
        let noise = ImageNoise::new(0.25, vec![100..164, 200..300])
            .unwrap()
            .unwrap();
        let key = DocumentKey::new(0, 0, 0, 0).unwrap();
        let draws = Generator::new(1, Purpose::ImageNoise).document(key);
        let mut changed = 0;
        for position in 0..40_000 {
            let id = 100 + i64::try_from(position % 64).unwrap();
            let input = noise.input_id(&draws, position, id);
            assert!((100..164).contains(&input));
            changed += i32::from(input != id);
            assert_eq!(noise.input_id(&draws, position, 5), 5, "not a code");
        }
        // A replacement equals the original once in 64; 0.0043 is two standard deviations.
        let share = f64::from(changed) / 40_000.0;
        assert!((share - 0.25 * 63.0 / 64.0).abs() < 0.0086, "{share}");
    }

    #[test]
    fn no_noise_needs_no_code_ranges() {
        assert!(ImageNoise::new(0.0, Vec::new()).unwrap().is_none());
        assert!(ImageNoise::new(0.1, Vec::new()).is_err());
        assert!(ImageNoise::new(1.5, vec![0..4, 5..6]).is_err());
    }
}
