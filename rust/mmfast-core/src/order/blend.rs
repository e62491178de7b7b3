//! How several sources share one stream: exactly by weight in every period, in O(1) per position.
//!
//! A period has `PERIOD_SLOTS` slots. Each source gets its share of them by largest remainder, and a
//! permutation scatters them. Position `i` lies in period `i / slots` and slot `i % slots`, so how
//! often its source was asked before is one multiplication and one table look-up.

use crate::error::{Error, Result};
use crate::order::feistel::Permutation;
use crate::random::{DocumentKey, Purpose};

/// Slots of a period when there are several sources; one source alone needs one slot.
const PERIOD_SLOTS: u64 = 65_536;

/// What a source brings to a blend.
#[derive(Debug, Clone)]
pub struct Share {
    /// Documents of the source.
    pub num_documents: u64,
    /// Its part of the stream's documents, in proportion to the other weights.
    pub weight: f64,
    /// How often it may be gone through; `None` for no limit.
    pub max_epochs: Option<u64>,
}

/// Where a finite stream ends, and because of which source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DryPoint {
    /// Index of the source that has nothing left.
    pub source: u64,
    /// Number of documents the stream has before that.
    pub num_documents: u64,
}

/// The shares of all sources, laid out over a period.
#[derive(Debug, Clone)]
pub struct Blend {
    /// Source of each slot, and how many earlier slots of the period are of the same source.
    slots: Vec<(u64, u64)>,
    sources: Vec<BlendSource>,
    dry: Option<DryPoint>,
}

#[derive(Debug, Clone, Copy)]
struct BlendSource {
    num_slots: u64,
    num_documents: u64,
}

impl Blend {
    /// Lays out the shares; an error names the source that cannot take part.
    pub fn new(seed: u64, shares: &[Share]) -> Result<Self> {
        let num_sources = shares.len() as u64;
        if num_sources == 0 || num_sources > DocumentKey::MAX_SOURCES {
            return Err(Error::argument(format!(
                "a stream has between 1 and {} sources, found {num_sources}",
                DocumentKey::MAX_SOURCES
            )));
        }
        for (source, share) in shares.iter().enumerate() {
            let problem = if share.num_documents == 0 {
                "has no documents".to_string()
            } else if share.num_documents > DocumentKey::MAX_DOCUMENTS {
                format!("has {} documents, more than 2^40", share.num_documents)
            } else if !(share.weight.is_finite() && share.weight > 0.0) {
                format!("has weight {}, which is not positive", share.weight)
            } else if share.max_epochs == Some(0) {
                "may be read for 0 epochs; leave it out instead".to_string()
            } else {
                continue;
            };
            return Err(Error::argument(format!("source {source} {problem}")));
        }
        let num_slots = if shares.len() == 1 { 1 } else { PERIOD_SLOTS };
        let slots_of_source = largest_remainder(shares, num_slots)?;
        let scatter = Permutation::new(seed, Purpose::BlendOrder, [0, 0], num_slots);
        let mut owners: Vec<(u64, u64)> = Vec::new();
        let mut slot = 0;
        for (source, count) in (0u64..).zip(&slots_of_source) {
            for _ in 0..*count {
                owners.push((scatter.index(slot), source));
                slot += 1;
            }
        }
        owners.sort_unstable();
        let mut asked = vec![0u64; shares.len()];
        let mut slots = Vec::with_capacity(owners.len());
        for (_, source) in owners {
            if let Some(count) = asked.get_mut(usize::try_from(source).unwrap_or(usize::MAX)) {
                slots.push((source, *count));
                *count += 1;
            }
        }
        let sources = shares
            .iter()
            .zip(&slots_of_source)
            .map(|(share, num_slots)| BlendSource {
                num_slots: *num_slots,
                num_documents: share.num_documents,
            })
            .collect();
        let mut blend = Self {
            slots,
            sources,
            dry: None,
        };
        blend.dry = (0u64..)
            .zip(shares)
            .filter_map(|(source, share)| {
                let limit = share.num_documents.checked_mul(share.max_epochs?)?;
                Some(DryPoint {
                    source,
                    num_documents: blend.position_of(source, limit)?,
                })
            })
            .min_by_key(|dry| dry.num_documents);
        Ok(blend)
    }

    /// Where the stream ends; `None` if it never does.
    pub fn dry_point(&self) -> Option<DryPoint> {
        self.dry
    }

    /// Slots that a source has in a period, and all slots of a period.
    pub fn slots_of(&self, source: u64) -> (u64, u64) {
        let own = usize::try_from(source)
            .ok()
            .and_then(|source| self.sources.get(source));
        (own.map_or(0, |s| s.num_slots), self.slots.len() as u64)
    }

    /// Source of a position, how often that source was asked before, and its number of documents;
    /// `None` past the end of a finite stream.
    pub(crate) fn locate(&self, position: u64) -> Option<(u64, u64, u64)> {
        if self.dry.is_some_and(|dry| position >= dry.num_documents) {
            return None;
        }
        let num_slots = self.slots.len() as u64;
        let slot = usize::try_from(position % num_slots).ok()?;
        let (source, earlier) = *self.slots.get(slot)?;
        let own = self.sources.get(usize::try_from(source).ok()?)?;
        let asked = (position / num_slots) * own.num_slots + earlier;
        Some((source, asked, own.num_documents))
    }

    /// Position at which a source is asked for the `asked`-th time, counted from 0; `None` if that is
    /// past 2^64.
    fn position_of(&self, source: u64, asked: u64) -> Option<u64> {
        let num_slots = self.sources.get(usize::try_from(source).ok()?)?.num_slots;
        let wanted = (source, asked % num_slots);
        let slot = self.slots.iter().position(|slot| *slot == wanted)? as u64;
        (asked / num_slots)
            .checked_mul(self.slots.len() as u64)?
            .checked_add(slot)
    }
}

/// Gives out `num_slots` slots in proportion to the weights, exactly, ties to the earlier source.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of the positive total is in (0, 2^48]"
)]
fn largest_remainder(shares: &[Share], num_slots: u64) -> Result<Vec<u64>> {
    let total_weight: f64 = shares.iter().map(|share| share.weight).sum();
    let weights: Vec<u64> = shares
        .iter()
        .map(|share| (share.weight / total_weight * 2f64.powi(48)) as u64)
        .collect();
    let total: u64 = weights.iter().sum();
    let quota = |weight: u64| u128::from(weight) * u128::from(num_slots);
    let mut slots: Vec<u64> = weights
        .iter()
        .map(|weight| (quota(*weight) / u128::from(total.max(1))) as u64)
        .collect();
    let mut by_remainder: Vec<usize> = (0..shares.len()).collect();
    by_remainder.sort_by_key(|source| {
        let weight = weights.get(*source).copied().unwrap_or(0);
        std::cmp::Reverse(quota(weight) % u128::from(total.max(1)))
    });
    let left = num_slots - slots.iter().sum::<u64>();
    for source in by_remainder.into_iter().take(left as usize) {
        if let Some(count) = slots.get_mut(source) {
            *count += 1;
        }
    }
    match slots.iter().position(|count| *count == 0) {
        None => Ok(slots),
        Some(source) => Err(Error::argument(format!(
            "source {source} has a share below 1 in {num_slots} documents and would never be read; \
             raise its weight or leave it out"
        ))),
    }
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "the counts are far below 2^52")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share(num_documents: u64, weight: f64, max_epochs: Option<u64>) -> Share {
        Share {
            num_documents,
            weight,
            max_epochs,
        }
    }

    #[test]
    fn a_period_holds_exactly_the_slots_that_the_weights_ask_for() {
        let blend = Blend::new(
            3,
            &[
                share(10, 1.0, None),
                share(10, 2.0, None),
                share(10, 5.0, None),
            ],
        )
        .unwrap();
        let mut counts = [0u64; 3];
        for position in 0..PERIOD_SLOTS {
            counts[usize::try_from(blend.locate(position).unwrap().0).unwrap()] += 1;
        }
        assert_eq!(counts, [8_192, 16_384, 40_960]);
    }

    #[test]
    fn a_source_is_asked_for_each_of_its_numbers_once_and_in_order() {
        let blend = Blend::new(1, &[share(7, 0.3, None), share(9, 0.7, None)]).unwrap();
        let mut next = [0u64; 2];
        for position in 0..3 * PERIOD_SLOTS {
            let (source, asked, _) = blend.locate(position).unwrap();
            let next = &mut next[usize::try_from(source).unwrap()];
            assert_eq!(asked, *next);
            *next += 1;
        }
    }

    #[test]
    fn sources_are_mixed_finely() {
        let blend = Blend::new(5, &[share(9, 1.0, None), share(9, 1.0, None)]).unwrap();
        let first: u64 = (0..1_000).map(|i| blend.locate(i).unwrap().0).sum();
        assert!((430..570).contains(&first), "{first}"); // 4.4 standard deviations
    }

    #[test]
    fn a_source_that_runs_dry_ends_the_stream_at_a_stated_document() {
        let blend = Blend::new(1, &[share(5, 1.0, Some(2)), share(1_000, 3.0, None)]).unwrap();
        let dry = blend.dry_point().unwrap();
        assert_eq!(dry.source, 0);
        assert!(blend.locate(dry.num_documents).is_none());
        let asked = (0..dry.num_documents)
            .filter(|i| blend.locate(*i).unwrap().0 == 0)
            .count();
        assert_eq!(asked, 10);
        let alone = Blend::new(1, &[share(5, 1.0, Some(2))]).unwrap();
        assert_eq!(alone.dry_point().unwrap().num_documents, 10);
        assert!(
            Blend::new(1, &[share(5, 1.0, None)])
                .unwrap()
                .dry_point()
                .is_none()
        );
    }

    #[test]
    fn unusable_sources_are_named() {
        for (bad, text) in [
            (share(0, 1.0, None), "no documents"),
            (share(1, 0.0, None), "weight 0"),
            (share(1, f64::NAN, None), "weight NaN"),
            (share(1, 1.0, Some(0)), "0 epochs"),
            (share(1, 1e-9, None), "never be read"),
        ] {
            let error = Blend::new(0, &[share(5, 1.0, None), bad]).unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains("source 1") && error.contains(text),
                "{error}"
            );
        }
        assert!(Blend::new(0, &[]).is_err());
    }

    proptest! {
        #[test]
        fn shares_are_within_one_slot_of_the_weights(weights in prop::collection::vec(0.01f64..10.0, 2..20)) {
            let shares: Vec<Share> = weights.iter().map(|w| share(1, *w, None)).collect();
            let slots = largest_remainder(&shares, PERIOD_SLOTS).unwrap();
            prop_assert_eq!(slots.iter().sum::<u64>(), PERIOD_SLOTS);
            let total: f64 = weights.iter().sum();
            for (count, weight) in slots.iter().zip(&weights) {
                let exact = weight / total * PERIOD_SLOTS as f64;
                prop_assert!((*count as f64 - exact).abs() < 1.001, "{} {}", count, exact);
            }
        }
    }
}
