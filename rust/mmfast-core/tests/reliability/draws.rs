//! Random numbers of a test: a function of a seed and of the number of what is tried, so that any
//! single attempt can be made again.

use mmfast_core::random::{below, philox4x32};

/// The draws of one attempt.
pub(crate) struct Draws {
    key: [u32; 2],
    attempt: u64,
    next: u32,
}

impl Draws {
    pub(crate) fn new(seed: u32, attempt: u64) -> Self {
        Self {
            key: [seed, 0],
            attempt,
            next: 0,
        }
    }

    pub(crate) fn next(&mut self) -> u64 {
        let [low, high] = [self.attempt, self.attempt >> 32].map(|half| half as u32);
        let [a, b, ..] = philox4x32([low, high, self.next, 0], self.key);
        self.next += 1;
        u64::from(a) << 32 | u64::from(b)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        below(n as u64, self.next()) as usize
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
