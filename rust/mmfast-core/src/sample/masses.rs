//! Masses of tiles of entries, and the entry at which a running mass passes a target.

use super::select::Entry;
use super::weight::Scale;

/// Entries of a tile.
pub(super) const TILE: usize = 1024;

/// Appends the mass of each tile of the entries that rank no lower than `bound`; returns how many do.
#[inline(always)]
pub(super) fn weigh<E: Entry>(
    entries: &[E],
    bound: E,
    scale: Scale,
    masses: &mut Vec<u64>,
) -> usize {
    let mut num_kept = 0;
    for tile in entries.chunks(TILE) {
        let mut mass = 0;
        let mut count = 0_u32;
        for entry in tile {
            mass += scale.weight_from(*entry, bound);
            count += u32::from(*entry >= bound);
        }
        masses.push(mass);
        num_kept += count as usize;
    }
    num_kept
}

/// Turns masses into those up to and including each tile; returns the whole mass.
pub(super) fn accumulate(masses: &mut [u64]) -> u64 {
    let mut total = 0;
    for mass in masses {
        total += *mass;
        *mass = total;
    }
    total
}

/// The first entry at which the running mass is above `target`, and its place.
///
/// `up_to` is what [`accumulate`] made of the tiles' masses; the target is below the last of them.
pub(super) fn locate<E: Entry>(
    entries: &[E],
    bound: E,
    scale: Scale,
    up_to: &[u64],
    target: u64,
) -> Option<(usize, E)> {
    let tile = up_to.partition_point(|mass| *mass <= target);
    let mut before = match tile.checked_sub(1) {
        Some(previous) => *up_to.get(previous)?,
        None => 0,
    };
    let first = tile * TILE;
    let entries = entries.get(first..)?.iter().take(TILE);
    for (place, entry) in entries.enumerate() {
        before += scale.weight_from(*entry, bound);
        if before > target {
            return Some((first + place, *entry));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::logits::key_of;

    #[test]
    fn a_target_leads_to_the_entry_that_passes_it() {
        let scale = Scale {
            top: 0.0,
            bits_per_logit: 1.0,
        };
        // Two tiles and a part; every third entry is too small to count.
        let logits = (0..2_500_u16).map(|i| if i % 3 == 0 { -9.0 } else { -f32::from(i % 5) });
        let keys: Vec<u32> = logits.map(key_of).collect();
        let bound = key_of(-8.0);
        let mut masses = Vec::new();
        let num_kept = weigh(&keys, bound, scale, &mut masses);
        assert_eq!(num_kept, keys.iter().filter(|key| **key >= bound).count());
        let mass = accumulate(&mut masses);
        let mut before = 0;
        for (place, key) in keys.iter().enumerate() {
            let weight = scale.weight_from(*key, bound);
            if weight > 0 {
                for target in [before, before + weight - 1] {
                    let found = locate(&keys, bound, scale, &masses, target);
                    assert_eq!(found, Some((place, *key)));
                }
            }
            before += weight;
        }
        assert_eq!(before, mass);
    }
}
