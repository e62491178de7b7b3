//! Best-fit-decreasing bin packing in O(N + L) for N items and capacity L.
//!
//! Items are taken longest first (counting sort, equal lengths in their given order); each goes into
//! the open bin with the least space that still holds it, the one that has waited longest among equal
//! spaces. The rule is that of "Fewer Truncations Improve Language Modeling" (arXiv 2404.10830); a
//! bitmap of spaces replaces its segment tree.

use crate::error::{Error, Result};
use crate::pack::spaces::SpaceSet;

/// Items by bin; the items of a bin stand longest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bins {
    /// Bin b holds `items[offsets[b]..offsets[b + 1]]`.
    offsets: Vec<usize>,
    items: Vec<usize>,
}

impl Bins {
    /// Number of bins.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is no bin.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where each bin begins among the items, then their number; and the items of all bins in turn.
    pub fn into_parts(self) -> (Vec<usize>, Vec<usize>) {
        (self.offsets, self.items)
    }

    /// Items of a bin; empty past the last bin.
    pub fn bin(&self, index: usize) -> &[usize] {
        let bounds = self.offsets.get(index).zip(self.offsets.get(index + 1));
        bounds
            .and_then(|(start, end)| self.items.get(*start..*end))
            .unwrap_or_default()
    }
}

/// Packs items of the given lengths into bins of `capacity`; every item is in exactly one bin.
///
/// An item longer than the capacity is an [`Error::InvalidArgument`] that names it. The result depends
/// on nothing but the arguments.
#[expect(
    clippy::indexing_slicing,
    reason = "every index is an item number, a bin number or a length that was checked against the capacity"
)]
pub fn best_fit_decreasing(lengths: &[u32], capacity: u32) -> Result<Bins> {
    if let Some(item) = lengths.iter().position(|length| *length > capacity) {
        return Err(Error::argument(format!(
            "item {item} of length {} does not fit a bin of {capacity}",
            lengths[item]
        )));
    }
    let capacity = capacity as usize;
    let mut spaces = SpaceSet::new(capacity);
    // A queue of bins for each amount of free space, linked through `next`.
    let mut queues: Vec<Option<(usize, usize)>> = vec![None; capacity + 1];
    let mut next: Vec<usize> = Vec::new();
    let mut bin_of_item = vec![0; lengths.len()];
    let order = longest_first(lengths, capacity);
    for item in &order {
        let length = lengths[*item] as usize;
        let (bin, space) = match spaces.successor(length) {
            None => {
                next.push(usize::MAX);
                (next.len() - 1, capacity)
            }
            Some(space) => {
                let (first, last) = queues[space].unwrap_or_default();
                if first == last {
                    queues[space] = None;
                    spaces.remove(space);
                } else {
                    queues[space] = Some((next[first], last));
                }
                (first, space)
            }
        };
        bin_of_item[*item] = bin;
        let left = space - length;
        if let Some((first, last)) = queues[left] {
            next[last] = bin;
            queues[left] = Some((first, bin));
        } else {
            queues[left] = Some((bin, bin));
            spaces.insert(left);
        }
    }
    Ok(grouped(&order, &bin_of_item, next.len()))
}

/// Item numbers by falling length, equal lengths in their given order.
#[expect(
    clippy::indexing_slicing,
    reason = "lengths are at most the capacity, starts count all items"
)]
fn longest_first(lengths: &[u32], capacity: usize) -> Vec<usize> {
    let mut starts = vec![0usize; capacity + 2];
    for length in lengths {
        starts[capacity - *length as usize + 1] += 1;
    }
    for index in 1..starts.len() {
        starts[index] += starts[index - 1];
    }
    let mut order = vec![0; lengths.len()];
    for (item, length) in lengths.iter().enumerate() {
        let start = &mut starts[capacity - *length as usize];
        order[*start] = item;
        *start += 1;
    }
    order
}

/// Turns a bin number per item into items per bin, keeping `order` inside a bin.
#[expect(
    clippy::indexing_slicing,
    reason = "bin numbers are below num_bins, starts count all items"
)]
fn grouped(order: &[usize], bin_of_item: &[usize], num_bins: usize) -> Bins {
    let mut offsets = vec![0usize; num_bins + 1];
    for bin in bin_of_item {
        offsets[*bin + 1] += 1;
    }
    for index in 1..offsets.len() {
        offsets[index] += offsets[index - 1];
    }
    let mut starts = offsets.clone();
    let mut items = vec![0; order.len()];
    for item in order {
        let start = &mut starts[bin_of_item[*item]];
        items[*start] = *item;
        *start += 1;
    }
    Bins { offsets, items }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::below;
    use proptest::prelude::*;

    /// The same rule by looking at every open bin.
    fn reference(lengths: &[u32], capacity: u32) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|item| std::cmp::Reverse(lengths[*item]));
        // (space left, when it got that space, items)
        let mut bins: Vec<(u32, usize, Vec<usize>)> = Vec::new();
        for (time, item) in order.into_iter().enumerate() {
            let length = lengths[item];
            let best = bins
                .iter_mut()
                .filter(|(space, _, _)| *space >= length)
                .min_by_key(|(space, since, _)| (*space, *since));
            match best {
                Some((space, since, items)) => {
                    *space -= length;
                    *since = time;
                    items.push(item);
                }
                None => bins.push((capacity - length, time, vec![item])),
            }
        }
        bins.into_iter().map(|(_, _, items)| items).collect()
    }

    #[test]
    fn a_known_instance_is_packed_as_by_hand() {
        // 7 opens a bin and is joined by 3; 6 by 4; 5 by 5.
        let bins = best_fit_decreasing(&[3, 5, 7, 4, 5, 6], 10).unwrap();
        let found: Vec<&[usize]> = (0..bins.len()).map(|b| bins.bin(b)).collect();
        assert_eq!(found, [[2, 0], [5, 3], [1, 4]]);
        assert!(bins.bin(3).is_empty());
    }

    #[test]
    fn an_item_longer_than_a_bin_is_named() {
        let error = best_fit_decreasing(&[1, 11], 10).unwrap_err().to_string();
        assert!(error.contains("item 1 of length 11"), "{error}");
    }

    #[test]
    fn no_items_need_no_bins() {
        assert!(best_fit_decreasing(&[], 10).unwrap().is_empty());
    }

    #[test]
    fn image_captions_fill_short_rows_as_well_as_the_reference() {
        // 1,024 image ids with captions of 12 to 60 ids: three fit 4,096 and leave a fifth of it.
        let lengths: Vec<u32> = (0..2_000).map(|i| 1_024 + 12 + (i * 37) % 49).collect();
        let bins = best_fit_decreasing(&lengths, 4_096).unwrap();
        assert_eq!(bins.len(), reference(&lengths, 4_096).len());
    }

    proptest! {
        #[test]
        fn packing_equals_the_reference_bin_for_bin(
            capacity in 1u32..5_000,
            draws in prop::collection::vec(any::<u64>(), 0..300),
        ) {
            let lengths: Vec<u32> = draws
                .iter()
                .map(|draw| u32::try_from(below(u64::from(capacity) + 1, *draw)).unwrap())
                .collect();
            let bins = best_fit_decreasing(&lengths, capacity).unwrap();
            let found: Vec<Vec<usize>> = (0..bins.len()).map(|b| bins.bin(b).to_vec()).collect();
            prop_assert_eq!(&found, &reference(&lengths, capacity));
            let mut items: Vec<usize> = found.concat();
            items.sort_unstable();
            prop_assert!(items.into_iter().eq(0..lengths.len()));
            for bin in &found {
                prop_assert!(bin.iter().map(|item| lengths[*item]).sum::<u32>() <= capacity);
            }
        }
    }
}
