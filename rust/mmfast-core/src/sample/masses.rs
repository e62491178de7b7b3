//! Weights of entries and masses of their tiles, and the entry at which a running mass passes a target.

use super::select::Ranked;
use super::weight::Scale;

/// Entries of a tile.
pub(super) const TILE: usize = 1024;
/// Weights that are summed at once to find one of them.
const FEW: usize = 64;

/// Appends the mass of each tile of the keys that are at least `bound`; returns how many are.
#[inline(always)]
pub(super) fn weigh(keys: &[u32], bound: u32, scale: Scale, masses: &mut Vec<u64>) -> usize {
    let mut num_kept = 0;
    for tile in keys.chunks(TILE) {
        let mut mass = 0;
        let mut count = 0_u32;
        for key in tile {
            mass += scale.weight_from(*key, bound);
            count += u32::from(*key >= bound);
        }
        masses.push(mass);
        num_kept += count as usize;
    }
    num_kept
}

/// The weights of entries, 0 for those that rank below `bound`; returns their sum.
#[inline(always)]
pub(super) fn weigh_each(
    entries: &[Ranked],
    bound: Ranked,
    scale: Scale,
    weights: &mut Vec<u64>,
) -> u64 {
    weights.clear();
    weights.resize(entries.len(), 0);
    let mut mass = 0;
    for (weight, entry) in weights.iter_mut().zip(entries) {
        *weight = scale.weight_from(*entry, bound);
        mass += *weight;
    }
    mass
}

/// Turns weights to 0 of entries that rank below `bound`; returns the sum of the others and their number.
#[inline(always)]
pub(super) fn cut_weights(entries: &[Ranked], bound: Ranked, weights: &mut [u64]) -> (u64, usize) {
    let (mut mass, mut count) = (0, 0);
    for (weight, entry) in weights.iter_mut().zip(entries) {
        let is_kept = *entry >= bound;
        *weight = if is_kept { *weight } else { 0 };
        mass += *weight;
        count += u64::from(is_kept);
    }
    (mass, usize::try_from(count).unwrap_or(0))
}

/// The first place at which the running sum of weights is above `target`.
#[inline(always)]
pub(super) fn place_of(weights: &[u64], target: u64) -> Option<usize> {
    let mut rest = target;
    let chunks = weights.chunks(FEW);
    let chunk = chunks.clone().position(|weights| {
        let mass = weights.iter().sum();
        let is_here = rest < mass;
        rest -= if is_here { 0 } else { mass };
        is_here
    })?;
    let place = weights.iter().skip(chunk * FEW).position(|weight| {
        let is_here = rest < *weight;
        rest -= if is_here { 0 } else { *weight };
        is_here
    })?;
    Some(chunk * FEW + place)
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

/// The first key at which the running mass is above `target`, and its place.
///
/// `up_to` is what [`accumulate`] made of the tiles' masses; the target is below the last of them.
pub(super) fn locate(
    keys: &[u32],
    bound: u32,
    scale: Scale,
    up_to: &[u64],
    target: u64,
) -> Option<(usize, u32)> {
    let tile = up_to.partition_point(|mass| *mass <= target);
    let mut before = match tile.checked_sub(1) {
        Some(previous) => *up_to.get(previous)?,
        None => 0,
    };
    let first = tile * TILE;
    let keys = keys.get(first..)?.iter().take(TILE);
    for (place, key) in keys.enumerate() {
        before += scale.weight_from(*key, bound);
        if before > target {
            return Some((first + place, *key));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::logits::key_of;
    use crate::sample::select::Entry;

    #[test]
    fn a_target_leads_to_the_weight_that_passes_it() {
        let mut weights: Vec<u64> = (0..300).map(|i| i * i % 7).collect();
        let kept: Vec<_> = (0..300).map(|i| Ranked::lowest_of(i % 5)).collect();
        let (mass, count) = cut_weights(&kept, Ranked::lowest_of(2), &mut weights);
        assert_eq!((mass, count), (weights.iter().sum(), 180));
        assert_eq!(place_of(&weights, mass), None);
        let mut target = 0;
        for (place, weight) in weights.iter().enumerate() {
            assert!(kept[place].key() >= 2 || *weight == 0);
            for _ in 0..*weight {
                assert_eq!(place_of(&weights, target), Some(place));
                target += 1;
            }
        }
    }

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
