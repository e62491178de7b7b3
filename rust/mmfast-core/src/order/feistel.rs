//! A pseudo-random permutation of `0..len`, evaluated one index at a time in O(1) memory.
//!
//! Six balanced Feistel rounds permute the next power of four; an image outside `0..len` is permuted
//! again until it falls inside (cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite
//! Domains", 2002), fewer than four steps on average except for tiny lengths.

use crate::random::{Generator, Purpose};

/// Part of every stream fingerprint; raise it whenever an index would map elsewhere.
pub const ALGORITHM_VERSION: u64 = 1;

const ROUNDS: usize = 6;
/// Halves are at least this wide: rounds on fewer bits have too few functions to choose from, and a
/// walk through 256 numbers costs next to nothing.
const MIN_HALF_BITS: u32 = 4;

/// A keyed bijection of `0..len`.
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    round_keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of a seed, purpose and two further numbers, e.g. source and source epoch.
    ///
    /// Both numbers must be below 2^48; what lies above is ignored.
    pub fn new(seed: u64, purpose: Purpose, stream: [u64; 2], len: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let generator = Generator::new(seed, purpose);
        let (a_low, a_high) = crate::random::halves(stream[0]);
        let (b_low, b_high) = crate::random::halves(stream[1]);
        let high = (a_high & 0xFFFF) | (b_high << 16);
        let pair = |draw| generator.pair([draw, a_low, b_low, high]);
        let ((k0, k1), (k2, k3), (k4, k5)) = (pair(0), pair(1), pair(2));
        Self {
            len,
            half_bits: bits.div_ceil(2).max(MIN_HALF_BITS),
            round_keys: [k0, k1, k2, k3, k4, k5],
        }
    }

    /// Size of the permuted range.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the range is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where `index` goes. An index outside the range has no image and is returned as it is.
    pub fn index(&self, index: u64) -> u64 {
        if index >= self.len {
            return index;
        }
        let mut image = self.encrypt(index);
        while image >= self.len {
            image = self.encrypt(image);
        }
        image
    }

    /// Whether a number is inside the permuted range, so that walking ends there.
    pub(crate) fn contains(&self, image: u64) -> bool {
        image < self.len
    }

    /// One step of a walk.
    pub(crate) fn encrypt(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.round_keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        (left << self.half_bits) | right
    }
}

/// The 64-bit finaliser of `MurmurHash3` (Appleby, public domain).
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    value = (value ^ (value >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    value ^ (value >> 33)
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "the counts are far below 2^52")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn permutation(seed: u64, len: u64) -> Permutation {
        Permutation::new(seed, Purpose::DocumentOrder, [3, 5], len)
    }

    #[test]
    fn small_ranges_are_permuted_bijectively() {
        for len in 1..=5_000 {
            let permutation = permutation(len, len);
            let mut seen = vec![false; usize::try_from(len).unwrap()];
            for index in 0..len {
                let image = usize::try_from(permutation.index(index)).unwrap();
                assert!(
                    !std::mem::replace(&mut seen[image], true),
                    "{len}: {image} twice"
                );
            }
        }
    }

    #[test]
    fn spots_of_a_range_of_2_to_the_40_stay_inside_and_differ() {
        for len in [1u64 << 40, (1 << 40) - 12_345, (1 << 38) + 1] {
            let permutation = permutation(9, len);
            let mut images: Vec<u64> = (0..20_000)
                .map(|i| permutation.index(i * (len / 20_000)))
                .collect();
            assert!(images.iter().all(|image| *image < len));
            images.sort_unstable();
            images.dedup();
            assert_eq!(images.len(), 20_000);
        }
    }

    #[test]
    fn the_whole_64_bit_range_is_supported() {
        let permutation = permutation(1, u64::MAX);
        assert_ne!(permutation.index(0), permutation.index(1));
        assert!(permutation.index(u64::MAX - 1) < u64::MAX);
    }

    /// Neighbours must not stay neighbours: counts how often index i + 1 lands behind index i, in
    /// standard deviations from what a random permutation gives (n/2, variance (n + 1)/12).
    #[test]
    fn rises_between_neighbours_are_as_in_a_random_permutation() {
        let len = 100_003u64;
        for seed in 0..20 {
            let permutation = permutation(seed, len);
            let rises = (0..len - 1)
                .filter(|i| permutation.index(*i) < permutation.index(*i + 1))
                .count();
            let z = (rises as f64 - (len - 1) as f64 / 2.0) / ((len + 1) as f64 / 12.0).sqrt();
            assert!(z.abs() < 4.0, "seed {seed}: {z}");
        }
    }

    /// Every permutation of three numbers is about equally likely over seeds.
    #[test]
    fn orders_of_a_tiny_range_are_equally_likely() {
        let mut counts = std::collections::HashMap::new();
        for seed in 0..6_000 {
            let p = permutation(seed, 3);
            *counts
                .entry([p.index(0), p.index(1), p.index(2)])
                .or_insert(0u32) += 1;
        }
        let chi_square: f64 = counts
            .values()
            .map(|count| (f64::from(*count) - 1_000.0).powi(2) / 1_000.0)
            .sum();
        assert_eq!(counts.len(), 6);
        assert!(chi_square < 20.5, "p < 0.001: {chi_square}"); // 5 degrees of freedom
    }

    proptest! {
        #[test]
        fn images_stay_inside(seed: u64, len in 1..u64::MAX, index: u64) {
            prop_assert!(permutation(seed, len).index(index % len) < len);
        }
    }
}
