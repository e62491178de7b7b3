//! Best-fit-decreasing bin packing in O(N + L) for N items and capacity L.
//!
//! Items are taken longest first (counting sort, equal lengths in their given order); each goes into
//! the open bin with the least space that still holds it, the one that has waited longest among equal
//! spaces. The rule is that of "Fewer Truncations Improve Language Modeling" (arXiv 2404.10830); a
//! bitmap of spaces replaces its segment tree, and items of one length that find the same queue of
//! bins take it in one walk, as many to a bin as it holds.

use crate::error::{Error, Result};
use crate::pack::spaces::SpaceSet;

/// Items by bin; the items of a bin stand longest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bins {
    /// Bin b holds `items[offsets[b]..offsets[b + 1]]`.
    offsets: Vec<u32>,
    items: Vec<u32>,
}

impl Bins {
    /// Items as they come; a new bin begins with each item of `breaks`, which rise.
    pub fn consecutive(breaks: impl IntoIterator<Item = u32>, num_items: u32) -> Self {
        let mut offsets = vec![0];
        offsets.extend(breaks.into_iter().filter(|start| *start < num_items));
        if num_items > 0 {
            offsets.push(num_items);
        }
        Self {
            offsets,
            items: (0..num_items).collect(),
        }
    }

    /// Number of bins.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is no bin.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where each bin begins among the items, then their number; and the items of all bins in turn.
    pub fn into_parts(self) -> (Vec<u32>, Vec<u32>) {
        (self.offsets, self.items)
    }

    /// Items of a bin; empty past the last bin.
    pub fn bin(&self, index: usize) -> &[u32] {
        let bounds = self.offsets.get(index).zip(self.offsets.get(index + 1));
        bounds
            .and_then(|(start, end)| self.items.get(*start as usize..*end as usize))
            .unwrap_or_default()
    }
}

/// No bin, at the end of a queue or in place of one.
const NONE: u32 = u32::MAX;

/// Packs items of the given lengths into bins of `capacity`; every item is in exactly one bin.
///
/// An item longer than the capacity is an [`Error::InvalidArgument`] that names it, and so are 2^32 - 1
/// items or more. The result depends on nothing but the arguments.
pub fn best_fit_decreasing(lengths: &[u32], capacity: u32) -> Result<Bins> {
    // A pass without an early exit is vectorised; the offender is looked for only if there is one.
    let longest = lengths.iter().copied().max().unwrap_or(0);
    if longest > capacity
        && let Some((item, length)) = lengths.iter().enumerate().find(|(_, l)| **l > capacity)
    {
        return Err(Error::argument(format!(
            "item {item} of length {length} does not fit a bin of {capacity}"
        )));
    }
    if lengths.len() >= NONE as usize {
        return Err(Error::argument(format!(
            "{} items are more than can be packed at once, 2^32 - 2",
            lengths.len()
        )));
    }
    let capacity = capacity as usize;
    let (order, counts) = longest_first(lengths, capacity);
    let mut open = OpenBins::new(capacity, lengths.len());
    for (length, count) in counts.into_iter().enumerate().rev() {
        let mut rest = count;
        while rest > 0 {
            rest -= open.place(length, rest);
        }
    }
    Ok(grouped(&order, &open.bin_of_rank, &open.bins))
}

/// Bins in queues by the space they have left, a bin that has waited longer before one that has less.
#[derive(Debug)]
struct OpenBins {
    capacity: usize,
    /// Spaces whose queue is not empty.
    spaces: SpaceSet,
    queues: Vec<Queue>,
    bins: Vec<Bin>,
    /// The bin of each item, in the order in which items are placed.
    bin_of_rank: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Bin {
    num_items: u32,
    /// The bin behind it in its queue, whose last bin has any number here.
    next: u32,
}

/// First and last bin of a queue, linked through [`Bin::next`]; [`NONE`] if it is empty.
#[derive(Debug, Clone, Copy)]
struct Queue {
    first: u32,
    last: u32,
}

const EMPTY: Queue = Queue {
    first: NONE,
    last: NONE,
};

#[expect(
    clippy::indexing_slicing,
    reason = "every index is a bin that was opened or a space up to the capacity"
)]
impl OpenBins {
    fn new(capacity: usize, num_items: usize) -> Self {
        Self {
            capacity,
            spaces: SpaceSet::new(capacity),
            queues: vec![EMPTY; capacity + 1],
            bins: Vec::new(),
            bin_of_rank: Vec::with_capacity(num_items),
        }
    }

    /// Places one or more of `count` items of one length by the rule; returns how many.
    ///
    /// A bin that takes an item and still holds another then has the least space of those that do. So
    /// it takes items until none fits, then the bin behind it in its queue does, and so on; as the spaces
    /// of all that were filled are equal, that part of the queue moves as it is.
    fn place(&mut self, length: usize, count: u32) -> u32 {
        if length == 0 {
            return self.place_empty();
        }
        let Some(space) = self.spaces.successor(length) else {
            self.open(length, count);
            return count;
        };
        let each = held(space, length);
        let queue = self.queues[space];
        let (mut rest, mut waiting, mut filled) = (count, Some(queue.first), EMPTY);
        while let Some(bin) = waiting.filter(|_| rest >= each) {
            self.fill(bin, each);
            rest -= each;
            filled = Queue {
                first: queue.first,
                last: bin,
            };
            waiting = self.behind(bin, queue);
        }
        self.append(space - each as usize * length, filled);
        if let Some(bin) = waiting.filter(|_| rest > 0) {
            // The items end inside of this bin.
            waiting = self.behind(bin, queue);
            self.fill(bin, rest);
            self.append(space - rest as usize * length, Queue::of(bin));
            rest = 0;
        }
        self.queues[space] = waiting.map_or(EMPTY, |first| Queue { first, ..queue });
        self.spaces.remove_if(space, waiting.is_none());
        count - rest
    }

    /// Places one item of length 0: the space of its bin stays, but it goes to the end of the queue.
    fn place_empty(&mut self) -> u32 {
        let Some(space) = self.spaces.successor(0) else {
            self.open(0, 1);
            return 1;
        };
        let queue = self.queues[space];
        self.fill(queue.first, 1);
        if let Some(first) = self.behind(queue.first, queue) {
            self.queues[space] = Queue { first, ..queue };
            self.append(space, Queue::of(queue.first));
        }
        1
    }

    /// Opens the bins that `count` items of one length need.
    fn open(&mut self, length: usize, count: u32) {
        let each = held(self.capacity, length);
        let mut rest = count;
        while rest > 0 {
            // There are fewer bins than items, whose number fits.
            let bin = u32::try_from(self.bins.len()).unwrap_or(NONE);
            let num_items = each.min(rest);
            self.bins.push(Bin {
                num_items: 0,
                next: NONE,
            });
            self.fill(bin, num_items);
            self.append(self.capacity - num_items as usize * length, Queue::of(bin));
            rest -= num_items;
        }
    }

    /// Puts the next items into a bin.
    fn fill(&mut self, bin: u32, num_items: u32) {
        self.bins[bin as usize].num_items += num_items;
        if num_items == 1 {
            self.bin_of_rank.push(bin);
        } else {
            let end = self.bin_of_rank.len() + num_items as usize;
            self.bin_of_rank.resize(end, bin);
        }
    }

    fn behind(&self, bin: u32, queue: Queue) -> Option<u32> {
        (bin != queue.last).then(|| self.bins[bin as usize].next)
    }

    /// Puts a piece of a queue, perhaps an empty one, at the end of another.
    fn append(&mut self, space: usize, piece: Queue) {
        if piece.first == NONE {
            return;
        }
        let queue = self.queues[space];
        let first = if queue.first == NONE {
            self.spaces.insert(space);
            piece.first
        } else {
            self.bins[queue.last as usize].next = piece.first;
            queue.first
        };
        self.queues[space] = Queue {
            first,
            last: piece.last,
        };
    }
}

impl Queue {
    fn of(bin: u32) -> Self {
        Self {
            first: bin,
            last: bin,
        }
    }
}

/// How many items of a length a space holds; one if the length is 0.
fn held(space: usize, length: usize) -> u32 {
    if space - length < length {
        return 1;
    }
    u32::try_from(space.checked_div(length).unwrap_or(1)).unwrap_or(NONE)
}

/// Item numbers by falling length, equal lengths in their given order; and how many have each length.
#[expect(
    clippy::indexing_slicing,
    reason = "lengths are at most the capacity, starts count all items"
)]
fn longest_first(lengths: &[u32], capacity: usize) -> (Vec<u32>, Vec<u32>) {
    let mut counts = vec![0u32; capacity + 1];
    for length in lengths {
        counts[*length as usize] += 1;
    }
    let mut starts = vec![0u32; capacity + 1];
    let mut start = 0;
    for length in (0..=capacity).rev() {
        starts[length] = start;
        start += counts[length];
    }
    let mut order = vec![0; lengths.len()];
    for (item, length) in (0u32..).zip(lengths) {
        let start = &mut starts[*length as usize];
        order[*start as usize] = item;
        *start += 1;
    }
    (order, counts)
}

/// Turns a bin number per item into items per bin, keeping `order` inside a bin.
#[expect(
    clippy::indexing_slicing,
    reason = "bin numbers are those of bins, starts count all items"
)]
fn grouped(order: &[u32], bin_of_rank: &[u32], bins: &[Bin]) -> Bins {
    let mut offsets = Vec::with_capacity(bins.len() + 1);
    let mut end = 0;
    offsets.push(end);
    for bin in bins {
        end += bin.num_items;
        offsets.push(end);
    }
    let mut starts = offsets.clone();
    let mut items = vec![0; order.len()];
    for (item, bin) in order.iter().zip(bin_of_rank) {
        let start = &mut starts[*bin as usize];
        items[*start as usize] = *item;
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
    fn reference(lengths: &[u32], capacity: u32) -> Vec<Vec<u32>> {
        let mut order: Vec<u32> = (0..).take(lengths.len()).collect();
        order.sort_by_key(|item| std::cmp::Reverse(lengths[*item as usize]));
        // (space left, when it got that space, items)
        let mut bins: Vec<(u32, usize, Vec<u32>)> = Vec::new();
        for (time, item) in order.into_iter().enumerate() {
            let length = lengths[item as usize];
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
        let found: Vec<&[u32]> = (0..bins.len()).map(|b| bins.bin(b)).collect();
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
            // Few lengths make long runs of equal ones, many make short.
            capacity in prop_oneof![1u32..40, 1u32..5_000],
            draws in prop::collection::vec(any::<u64>(), 0..300),
        ) {
            let lengths: Vec<u32> = draws
                .iter()
                .map(|draw| u32::try_from(below(u64::from(capacity) + 1, *draw)).unwrap())
                .collect();
            let bins = best_fit_decreasing(&lengths, capacity).unwrap();
            let found: Vec<Vec<u32>> = (0..bins.len()).map(|b| bins.bin(b).to_vec()).collect();
            prop_assert_eq!(&found, &reference(&lengths, capacity));
            let mut items: Vec<u32> = found.concat();
            items.sort_unstable();
            prop_assert!(items.into_iter().eq((0..).take(lengths.len())));
            for bin in &found {
                prop_assert!(bin.iter().map(|item| lengths[*item as usize]).sum::<u32>() <= capacity);
            }
        }
    }
}
