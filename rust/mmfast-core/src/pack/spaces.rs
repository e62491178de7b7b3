//! A set of small integers with "smallest member that is at least x" in a few word operations.

/// Bits of a word in each level.
const WORD: usize = 64;

/// A bitmap of `0..=max` under a tree of summary words, 64 children each.
#[derive(Debug)]
pub(crate) struct SpaceSet {
    /// A bit per member.
    members: Vec<u64>,
    /// Level 0 has a bit per non-zero word of `members`, level k + 1 a bit per non-zero word of level k.
    levels: Vec<Vec<u64>>,
}

impl SpaceSet {
    /// An empty set of numbers up to `max`.
    pub(crate) fn new(max: usize) -> Self {
        let mut words = max / WORD + 1;
        let members = vec![0; words];
        let mut levels = Vec::new();
        while words > 1 {
            words = words.div_ceil(WORD);
            levels.push(vec![0; words]);
        }
        Self { members, levels }
    }

    /// Puts a number in; one past the maximum is ignored.
    #[inline]
    pub(crate) fn insert(&mut self, value: usize) {
        let Some(word) = self.members.get_mut(value / WORD) else {
            return;
        };
        let was_zero = *word == 0;
        *word |= 1 << (value % WORD);
        if was_zero {
            self.insert_above(value / WORD);
        }
    }

    fn insert_above(&mut self, mut index: usize) {
        for level in &mut self.levels {
            let Some(word) = level.get_mut(index / WORD) else {
                return;
            };
            *word |= 1 << (index % WORD);
            index /= WORD;
        }
    }

    /// Takes a number out if `is_gone`, which is as good as random and so no branch.
    #[inline]
    pub(crate) fn remove_if(&mut self, value: usize, is_gone: bool) {
        let Some(word) = self.members.get_mut(value / WORD) else {
            return;
        };
        *word &= !(u64::from(is_gone) << (value % WORD));
        if *word == 0 {
            self.remove_above(value / WORD);
        }
    }

    fn remove_above(&mut self, mut index: usize) {
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
    #[inline]
    pub(crate) fn successor(&self, value: usize) -> Option<usize> {
        let here = value / WORD;
        let word = *self.members.get(here)? & (u64::MAX << (value % WORD));
        if word == 0 {
            return self.successor_above(here + 1);
        }
        Some(here * WORD + word.trailing_zeros() as usize)
    }

    /// The smallest member of `members[index..]`.
    fn successor_above(&self, mut index: usize) -> Option<usize> {
        // Up, until a word has a member at or behind the index; then down along lowest bits.
        for (height, level) in self.levels.iter().enumerate() {
            let word = *level.get(index / WORD)? & (u64::MAX << (index % WORD));
            if word != 0 {
                let mut found = index / WORD * WORD + word.trailing_zeros() as usize;
                for lower in self.levels.iter().take(height).rev() {
                    found = found * WORD + lower.get(found)?.trailing_zeros() as usize;
                }
                return Some(found * WORD + self.members.get(found)?.trailing_zeros() as usize);
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
                    spaces.remove_if(value, false);
                    prop_assert_eq!(spaces.successor(value), reference.range(value..).next().copied());
                    spaces.remove_if(value, true);
                    reference.remove(&value);
                }
                for probe in [value, value.saturating_sub(1), (value + 1).min(max), 0, max] {
                    prop_assert_eq!(spaces.successor(probe), reference.range(probe..).next().copied());
                }
            }
        }
    }
}
