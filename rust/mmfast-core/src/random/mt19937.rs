//! The Mersenne Twister as `numpy.random.RandomState` uses it: seeding by one 32-bit number, bounded
//! draws by masked rejection, and the in-place shuffle on top of them.
//!
//! Matsumoto and Nishimura, "Mersenne Twister", ACM TOMACS 8 (1998). Only for orders that must agree
//! with other software; everything of our own draws from Philox.

const WORDS: usize = 624;
const MIDDLE: usize = 397;

/// MT19937: 624 words of state, period 2^19937 - 1.
#[derive(Debug, Clone)]
pub struct Mt19937 {
    state: [u32; WORDS],
    next: usize,
}

impl Mt19937 {
    /// The generator that `RandomState(seed)` starts with.
    pub fn new(seed: u32) -> Self {
        let mut state = [0; WORDS];
        let mut word = seed;
        for (position, slot) in (1u32..).zip(&mut state) {
            *slot = word;
            word = (word ^ (word >> 30))
                .wrapping_mul(1_812_433_253)
                .wrapping_add(position);
        }
        Self { state, next: WORDS }
    }

    /// The next 32 bits.
    pub fn draw(&mut self) -> u32 {
        if self.next == WORDS {
            self.refill();
        }
        let mut word = self.state.get(self.next).copied().unwrap_or_default();
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9D2C_5680;
        word ^= (word << 15) & 0xEFC6_0000;
        word ^ (word >> 18)
    }

    /// A number in `0..=max`: draws are masked to the bits of `max` until one is not above it.
    pub fn at_most(&mut self, max: u32) -> u32 {
        if max == 0 {
            return 0;
        }
        let mask = u32::MAX >> max.leading_zeros();
        loop {
            let value = self.draw() & mask;
            if value <= max {
                return value;
            }
        }
    }

    /// `RandomState.shuffle` of a one-dimensional array: from the last place down, each place swaps
    /// with one at or before it. Holds for fewer than 2^32 items; `NumPy` draws 64 bits beyond.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.at_most(u32::try_from(last).unwrap_or(u32::MAX));
            items.swap(last, other as usize);
        }
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "every index is reduced below the number of words"
    )]
    fn refill(&mut self) {
        for i in 0..WORDS {
            let joined =
                (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7FFF_FFFF);
            let twist = if joined & 1 == 1 { 0x9908_B0DF } else { 0 };
            self.state[i] = self.state[(i + MIDDLE) % WORDS] ^ (joined >> 1) ^ twist;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ten_thousandth_draw_is_the_one_that_the_cpp_standard_requires() {
        let mut generator = Mt19937::new(5_489);
        assert_eq!(generator.draw(), 3_499_211_612);
        let last = (1..10_000).map(|_| generator.draw()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn a_shuffle_is_that_of_numpy() {
        // numpy.random.RandomState(0).shuffle(numpy.arange(10))
        let mut items: Vec<u8> = (0..10).collect();
        Mt19937::new(0).shuffle(&mut items);
        assert_eq!(items, [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]);
    }

    #[test]
    fn a_bounded_draw_reaches_both_ends() {
        let mut generator = Mt19937::new(1);
        let mut seen = [0; 6];
        for _ in 0..600 {
            seen[generator.at_most(5) as usize] += 1;
        }
        assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
        assert_eq!(generator.at_most(0), 0);
    }
}
