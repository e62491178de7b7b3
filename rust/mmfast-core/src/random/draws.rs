//! Uniform 64-bit numbers turned into the draws a stream needs, by integer comparison only.
//!
//! A probability or rate is converted from floating point once, exactly (a multiplication by a power
//! of two); everything after that is integer arithmetic.

use crate::error::{Error, Result};

/// A uniform integer below `limit`, from a uniform 64-bit number by multiply-high (Lemire 2019);
/// the bias is below `limit / 2^64`. 0 when `limit` is 0.
pub fn below(limit: u64, uniform: u64) -> u64 {
    ((u128::from(uniform) * u128::from(limit)) >> 64) as u64
}

/// A probability as a threshold in units of 2^-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chance {
    threshold: u128,
}

impl Chance {
    /// A probability in [0, 1]; `what` names it in the error.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the probability was checked to be in [0, 1], so the threshold is in [0, 2^64]"
    )]
    pub fn new(what: &str, probability: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&probability) {
            return Err(Error::argument(format!(
                "{what} is a probability in [0, 1], found {probability}"
            )));
        }
        Ok(Self {
            threshold: (probability * 2f64.powi(64)) as u128,
        })
    }

    /// Whether the event happens for a uniform 64-bit number: never at 0, always at 1.
    pub fn happens(self, uniform: u64) -> bool {
        u128::from(uniform) < self.threshold
    }

    /// Whether the event can happen at all.
    pub fn is_possible(self) -> bool {
        self.threshold > 0
    }
}

/// A Poisson distribution as cumulative thresholds in units of 2^-64.
///
/// The weights `rate^k / k!` are summed as integers in units of 2^-36 and divided by their sum, so no
/// exponential is ever taken and the table is the same on every machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoissonTable {
    /// Entry k is `2^64 · P(X <= k)`; ends where that rounds to 2^64.
    thresholds: Vec<u64>,
}

impl PoissonTable {
    /// Largest rate for which the table's integers fit.
    pub const MAX_RATE: f64 = 16.0;

    /// The table of a rate in [0, 16]; `what` names it in the error.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the rate was checked to be in [0, 16]"
    )]
    pub fn new(what: &str, rate: f64) -> Result<Self> {
        if !(0.0..=Self::MAX_RATE).contains(&rate) {
            return Err(Error::argument(format!(
                "{what} is a rate in [0, {}], found {rate}",
                Self::MAX_RATE
            )));
        }
        let rate = (rate * 2f64.powi(32)) as u128;
        let mut weights = Vec::new();
        let mut weight = 1u128 << 36;
        while weight > 0 {
            weights.push(weight);
            weight = ((weight * rate) >> 32) / weights.len() as u128;
        }
        let total: u128 = weights.iter().sum();
        let mut sum = 0;
        let thresholds = weights
            .iter()
            .map_while(|weight| {
                sum += weight;
                u64::try_from((sum << 64) / total).ok()
            })
            .collect();
        Ok(Self { thresholds })
    }

    /// The Poisson number for a uniform 64-bit number.
    pub fn sample(&self, uniform: u64) -> u32 {
        let count = self.thresholds.partition_point(|t| *t <= uniform);
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "the counts are far below 2^52")]
mod tests {
    use super::*;

    #[test]
    fn bounded_draws_cover_their_range_evenly() {
        assert_eq!(below(10, 0), 0);
        assert_eq!(below(10, u64::MAX), 9);
        assert_eq!(below(10, 1 << 63), 5);
        assert_eq!(below(0, u64::MAX), 0);
        assert_eq!(below(u64::MAX, u64::MAX), u64::MAX - 1);
    }

    #[test]
    fn chances_at_the_ends_never_and_always_happen() {
        assert!(!Chance::new("p", 0.0).unwrap().happens(0));
        assert!(Chance::new("p", 1.0).unwrap().happens(u64::MAX));
        let half = Chance::new("p", 0.5).unwrap();
        assert!(half.happens((1 << 63) - 1) && !half.happens(1 << 63));
        for bad in [-0.1, 1.1, f64::NAN] {
            assert!(Chance::new("p", bad).is_err());
        }
    }

    #[test]
    fn poisson_thresholds_are_the_cumulative_distribution() {
        for rate in [0.1, 1.0, 2.5, 16.0] {
            let table = PoissonTable::new("rate", rate).unwrap();
            let mut probability = f64::exp(-rate);
            let mut cumulative = 0.0;
            for (k, threshold) in table.thresholds.iter().enumerate() {
                cumulative += probability;
                probability *= rate / (k + 1) as f64;
                let found = *threshold as f64 / 2f64.powi(64);
                assert!(
                    (found - cumulative).abs() < 1e-9,
                    "{rate} {k}: {found} {cumulative}"
                );
            }
        }
    }

    #[test]
    fn poisson_of_rate_zero_is_zero_and_bad_rates_are_refused() {
        let table = PoissonTable::new("rate", 0.0).unwrap();
        assert_eq!(table.sample(0), 0);
        assert_eq!(table.sample(u64::MAX), 0);
        for bad in [-1.0, 16.1, f64::NAN] {
            assert!(PoissonTable::new("rate", bad).is_err());
        }
    }
}
