//! A set of small integers with "smallest member that is at least x" in a few word operations.

/// Bits of a word in each level.
const WORD: usize = 64;

/// A bitmap of `0..=max` under a tree of summary words, 64 children each.
#[derive(Debug)]
pub(crate) struct SpaceSet {
    /// Level 0 has a bit per member, level k + 1 a bit per non-zero word of level k.
    levels: Vec<Vec<u64>>,
}

impl SpaceSet {
    /// An empty set of numbers up to `max`.
    pub(crate) fn new(max: usize) -> Self {
        let mut levels = Vec::new();
        let mut words = max / WORD + 1;
        levels.push(vec![0; words]);
        while words > 1 {
            words = words.div_ceil(WORD);
            levels.push(vec![0; words]);
        }
        Self { levels }
    }

    /// Puts a number in; one past the maximum is ignored.
    pub(crate) fn insert(&mut self, value: usize) {
        let mut index = value;
        for level in &mut self.levels {
            let Some(word) = level.get_mut(index / WORD) else {
                return;
            };
            *word |= 1 << (index % WORD);
            index /= WORD;
        }
    }

    /// Takes a number out.
    pub(crate) fn remove(&mut self, value: usize) {
        let mut index = value;
        for level in &mut self.levels {
            let Some(word) = level.get_mut(index / WORD) else {
                return;
            };
            *word &= !(1 << (index % WORD));
            if *word != 0 {
                return;
            }
            index /= WORD;
        }
    }

    /// The smallest member that is at least `value`.
    pub(crate) fn successor(&self, value: usize) -> Option<usize> {
        let mut index = value;
        // Up, until a word has a member at or behind the index; then down along lowest bits.
        for (height, level) in self.levels.iter().enumerate() {
            let word = *level.get(index / WORD)? & (u64::MAX << (index % WORD));
            if word != 0 {
                let mut found = index / WORD * WORD + word.trailing_zeros() as usize;
                for lower in self.levels.iter().take(height).rev() {
                    found = found * WORD + lower.get(found)?.trailing_zeros() as usize;
                }
                return Some(found);
            }
            index = index / WORD + 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn successor_agrees_with_an_ordered_set(
            max in 1usize..300_000,
            operations in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..200),
        ) {
            let mut spaces = SpaceSet::new(max);
            let mut reference = BTreeSet::new();
            for (insert, index) in operations {
                let value = index.index(max + 1);
                if insert {
                    spaces.insert(value);
                    reference.insert(value);
                } else {
                    spaces.remove(value);
                    reference.remove(&value);
                }
                for probe in [value, value.saturating_sub(1), (value + 1).min(max), 0, max] {
                    prop_assert_eq!(spaces.successor(probe), reference.range(probe..).next().copied());
                }
            }
        }
    }
}
