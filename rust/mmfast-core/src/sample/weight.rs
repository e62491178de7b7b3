//! Fixed-point probabilities: integer weights, their shares and their logarithm.
//!
//! A weight is 2^(44 - x) as an integer, where x >= 0 is how far a logit lies below the row's largest, in
//! bits. It never falls as the logit rises, so a bound on weights is a bound on keys.

use super::logits::{SMALLEST, flush, logit_of};
use super::select::Entry;

/// Fractional bits of an exponent and of a logarithm.
pub(super) const EXPONENT_BITS: u32 = 26;
/// The largest weight is 2^44.
pub(super) const WEIGHT_BITS: u32 = 44;
/// A probability p is held as floor(p 2^31).
pub(super) const PROBABILITY_BITS: u32 = 31;
/// With more ids than this their weights could sum to 2^63 or more.
pub(super) const MAX_IDS: usize = (1 << 19) - 1;

const MAX_EXPONENT: f32 = 63.0;
/// 2^26
const EXPONENT_STEPS: f32 = 67_108_864.0;
const POLYNOMIAL: [u64; 5] = [
    5_480_344,
    41_148_708,
    238_334_497,
    1_031_756_634,
    2_977_044_036,
];
const POLYNOMIAL_START: u64 = 469_888;
const LOW_HALF: u64 = 0xFFFF_FFFF;
const MANTISSA_BITS: u32 = 31;

/// A row's temperature, as what turns keys into weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    /// The row's largest logit.
    pub(super) top: f32,
    /// log2(e) / temperature.
    pub(super) bits_per_logit: f32,
}

impl Scale {
    /// How far a logit lies below the largest: floor(x 2^26) of x bits; 63 bits or more, NaN included,
    /// count as 63.
    #[inline(always)]
    pub(super) fn exponent(self, key: u32) -> u32 {
        let gap = flush(flush(self.top - logit_of(key)) * self.bits_per_logit);
        let capped = if gap < MAX_EXPONENT {
            gap
        } else {
            MAX_EXPONENT
        };
        let positive = if capped > 0.0 { capped } else { 0.0 };
        // A cast that saturates is not a wide instruction.
        #[expect(
            unsafe_code,
            reason = "a cast that loops over ids can be made wide with"
        )]
        // SAFETY: between 0 and 63, and no NaN, by the two lines above; 63 * 2^26 fits.
        unsafe {
            (positive * EXPONENT_STEPS).to_int_unchecked()
        }
    }

    /// The weight of a key that is not absent.
    #[inline(always)]
    pub(super) fn weight(self, key: u32) -> u64 {
        weight_of_exponent(self.exponent(key))
    }

    /// The weight of an entry that ranks no lower than `bound`, else 0.
    #[inline(always)]
    pub(super) fn weight_from<E: Entry>(self, entry: E, bound: E) -> u64 {
        // What is absent has a weight too, of a logit that is NaN; the bound is above it.
        let weight = self.weight(entry.key());
        if entry >= bound { weight } else { 0 }
    }

    /// The smallest key, up to that of the largest logit, whose weight is at least `bound`.
    pub(super) fn smallest_key(self, bound: u64, largest_key: u32) -> u32 {
        let (mut low, mut high) = (SMALLEST, largest_key.max(SMALLEST));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.weight(middle) >= bound {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }
}

/// floor-like 2^(44 - q / 2^26): exactly 2^44 at 0, never rising, 0 for large q. The fraction's power of
/// two is a degree-6 polynomial in Horner form of which each step keeps the high half of a product.
///
/// All of it in 64-bit words whose upper halves are 0, as wide multipliers take them.
#[inline(always)]
fn weight_of_exponent(q: u32) -> u64 {
    let fraction = u64::from(q << (32 - EXPONENT_BITS));
    let mut acc = POLYNOMIAL_START;
    for coefficient in POLYNOMIAL {
        acc = coefficient.wrapping_sub(high_half(acc, fraction)) & LOW_HALF;
    }
    let mantissa = (1_u64 << 32) - high_half(acc, fraction);
    (mantissa << (WEIGHT_BITS - 32)) >> (q >> EXPONENT_BITS)
}

#[inline(always)]
fn high_half(a: u64, b: u64) -> u64 {
    (a * b) >> 32
}

/// Mass that ids are kept for: an id stays while the mass before it is below this.
///
/// ceil(mass p / 2^31), at least 1, or for `exclusive` floor(mass p / 2^31) + 1.
#[expect(
    clippy::cast_possible_truncation,
    reason = "p is at most 2^31, so the result is at most the mass and 1"
)]
pub(super) fn nucleus_mass(mass: u64, p: u64, exclusive: bool) -> u64 {
    let product = u128::from(mass) * u128::from(p);
    let share = (product >> PROBABILITY_BITS) as u64;
    let has_rest = product & ((1 << PROBABILITY_BITS) - 1) != 0;
    (share + u64::from(exclusive || has_rest)).max(1)
}

/// Upper half of a product: a uniform 64-bit number scaled to [0, mass).
pub(super) fn scaled(random: u64, mass: u64) -> u64 {
    ((u128::from(random) * u128::from(mass)) >> 64) as u64
}

/// log2 of a mass >= 1 with 26 fractional bits, by squaring its leading 31 bits; error below 2^-25.
pub(super) fn log2_fixed(mass: u64) -> i64 {
    let whole = mass.max(1).ilog2();
    let top = MANTISSA_BITS - 1;
    let mut mantissa = if whole <= top {
        mass.max(1) << (top - whole)
    } else {
        mass >> (whole - top)
    };
    let mut result = i64::from(whole);
    for _ in 0..EXPONENT_BITS {
        let square = mantissa * mantissa;
        let bit = square >> (2 * MANTISSA_BITS - 1);
        mantissa = square >> (u64::from(top) + bit);
        result = (result << 1) | i64::from(bit == 1);
    }
    result
}

/// log2 of a weight's share of a mass, with 26 fractional bits.
pub(super) fn log2_share(exponent: u32, mass: u64) -> i64 {
    (i64::from(WEIGHT_BITS) << EXPONENT_BITS) - i64::from(exponent) - log2_fixed(mass)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_powers_of_two_that_never_rise() {
        assert_eq!(weight_of_exponent(0), 1 << 44);
        assert_eq!(weight_of_exponent(1 << 26), 1 << 43);
        assert_eq!(weight_of_exponent(63 << 26), 0);
        let mut before = 1 << 44;
        for q in (0..63 << 26).step_by(9_973) {
            let weight = weight_of_exponent(q);
            assert!(weight <= before, "q {q}");
            before = weight;
            let exact = 2f64.powf(44.0 - f64::from(q) / f64::from(1 << 26));
            #[expect(clippy::cast_precision_loss, reason = "weights have at most 45 bits")]
            let error = (weight as f64 - exact).abs();
            // The polynomial's relative error, and the bits that are cut off below 1.
            assert!(error <= exact * 4e-9 + 1.0, "q {q}: {error}");
        }
    }

    #[test]
    fn logarithms_of_powers_are_exact_and_others_close() {
        for power in 0..63 {
            assert_eq!(log2_fixed(1 << power), power << 26);
        }
        for mass in [3_u64, 1_000_003, (1 << 62) - 1, 6_789_012_345_678] {
            #[expect(clippy::cast_precision_loss, reason = "compared within 2^-25")]
            let error = log2_fixed(mass) as f64 / f64::from(1 << 26) - (mass as f64).log2();
            assert!(error.abs() < 2f64.powi(-25), "{mass}: {error}");
        }
    }

    #[test]
    fn a_bound_on_weights_is_a_bound_on_keys() {
        let scale = Scale {
            top: 2.5,
            bits_per_logit: 1.7,
        };
        let largest = super::super::logits::key_of(2.5);
        for bound in [1, 1_000, 1 << 30, (1 << 44) - 5, 1 << 44] {
            let key = scale.smallest_key(bound, largest);
            assert!(scale.weight(key) >= bound);
            assert!(scale.weight(key - 1) < bound);
        }
    }

    #[test]
    fn the_nucleus_of_a_probability_is_rounded_up_and_never_empty() {
        assert_eq!(nucleus_mass(1_000, 0, false), 1);
        assert_eq!(nucleus_mass(1_000, 1 << 30, false), 500);
        assert_eq!(nucleus_mass(1_001, 1 << 30, false), 501);
        assert_eq!(nucleus_mass((1 << 63) - 1, 1 << 31, false), (1 << 63) - 1);
        assert_eq!(nucleus_mass(1_000, 0, true), 1);
        assert_eq!(nucleus_mass(1_000, 1 << 30, true), 501);
        assert_eq!(nucleus_mass(1_001, 1 << 30, true), 501);
    }
}
