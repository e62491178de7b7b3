//! CRC-32C sums of a `.bin`, block by block, made while the bytes pass by.
//!
//! A block is at most [`BLOCK_BYTES`] long. A dataset that was written in one go has blocks of exactly
//! that size and a shorter last one. A merge puts the blocks of its parts one after the other, so it
//! never reads ids to sum them; where two neighbours fit into one block they become one, by the
//! algebra of CRCs: `crc(a‖b)` follows from `crc(a)`, `crc(b)` and the length of `b`. Two neighbours
//! therefore always exceed one block together, and n bytes have at most `2·n / BLOCK_BYTES + 1` blocks
//! however many parts they came from.

use super::append::Digest;
use super::crc32c;

/// Most bytes that one sum covers.
pub const BLOCK_BYTES: u32 = 1 << 20;

/// A run of bytes and its CRC-32C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) num_bytes: u32,
    pub(super) crc: u32,
}

/// The blocks up to some byte of a file, remembered while the file goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) num_blocks: usize,
    /// The last of them as it was: it may grow, those before it may not.
    last: Option<Block>,
}

/// The blocks of a file, from its first byte to its last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct BlockSums {
    blocks: Vec<Block>,
}

impl BlockSums {
    /// The sums of bytes at hand.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut sums = Self::default();
        sums.update(bytes);
        sums
    }

    /// Appends a block behind the others.
    pub(super) fn push(&mut self, block: Block) {
        if let Some(last) = self.blocks.last_mut()
            && last.num_bytes + block.num_bytes <= BLOCK_BYTES
        {
            last.crc = crc32c::combine(last.crc, block.crc, block.num_bytes as usize);
            last.num_bytes += block.num_bytes;
        } else {
            self.blocks.push(block);
        }
    }

    /// Appends the sums of the bytes that follow.
    pub(super) fn extend(&mut self, other: &Self) {
        other.blocks.iter().for_each(|&block| self.push(block));
    }

    /// Where the file ends now.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            num_blocks: self.blocks.len(),
            last: self.blocks.last().copied(),
        }
    }

    /// The blocks from the `first` on, as they were at `mark`.
    pub(super) fn between(&self, first: usize, mark: Mark) -> impl Iterator<Item = Block> {
        let num_whole = mark.num_blocks.saturating_sub(1);
        let whole = self.blocks.get(first..num_whole).unwrap_or_default();
        whole.iter().copied().chain(mark.last)
    }

    /// Puts blocks in place of those from the `first` on, as they are.
    pub(super) fn replace_from(&mut self, first: usize, blocks: impl Iterator<Item = Block>) {
        self.blocks.truncate(first);
        self.blocks.extend(blocks);
    }

    pub(super) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Size of the file.
    pub(super) fn num_bytes(&self) -> u64 {
        let sizes = self.blocks.iter().map(|block| u64::from(block.num_bytes));
        sizes.sum()
    }

    /// CRC-32C of the whole file: the same however it is cut into blocks.
    pub(super) fn total_crc(&self) -> u32 {
        self.blocks.iter().fold(0, |crc, block| {
            crc32c::combine(crc, block.crc, block.num_bytes as usize)
        })
    }
}

impl Digest for BlockSums {
    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self
                .blocks
                .last()
                .is_none_or(|last| last.num_bytes >= BLOCK_BYTES)
            {
                self.blocks.push(Block {
                    num_bytes: 0,
                    crc: 0,
                });
            }
            let Some(last) = self.blocks.last_mut() else {
                return;
            };
            let room = (BLOCK_BYTES - last.num_bytes) as usize;
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            last.crc = crc32c::append(last.crc, now);
            // At most the room that is left in a block.
            last.num_bytes += u32::try_from(now.len()).unwrap_or(BLOCK_BYTES);
            bytes = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..251_u8).cycle().step_by(31).take(len).collect()
    }

    #[test]
    fn the_sums_are_crc_32c_of_blocks_of_one_mebibyte() {
        // The check value of CRC-32C (Castagnoli), as in RFC 3720 and the CRC catalogues.
        assert_eq!(BlockSums::of(b"123456789").total_crc(), 0xe306_9283);
        let whole = bytes((2 << 20) + 5);
        let sums = BlockSums::of(&whole);
        let sizes: Vec<_> = sums.blocks().iter().map(|block| block.num_bytes).collect();
        assert_eq!(sizes, [1 << 20, 1 << 20, 5]);
        for (block, part) in sums.blocks().iter().zip(whole.chunks(1 << 20)) {
            assert_eq!(block.crc, crc32c::of(part));
        }
    }

    #[test]
    fn the_pieces_in_which_bytes_arrive_do_not_matter() {
        let whole = bytes((1 << 20) + 70_000);
        let mut pieces = BlockSums::default();
        for piece in whole.chunks(33_333) {
            pieces.update(piece);
        }
        assert_eq!(pieces, BlockSums::of(&whole));
    }

    #[test]
    fn sums_of_parts_make_the_sums_of_the_whole_and_stay_few() {
        let whole = bytes((3 << 20) + 17);
        for part_bytes in [1_000, 600_000, 1 << 20, (1 << 20) + 1] {
            let mut sums = BlockSums::default();
            for part in whole.chunks(part_bytes) {
                sums.extend(&BlockSums::of(part));
            }
            assert_eq!(sums.total_crc(), crc32c::of(&whole));
            assert!(sums.blocks().len() <= 7, "{}", sums.blocks().len());
            let mut start = 0;
            for block in sums.blocks() {
                let end = start + block.num_bytes as usize;
                assert_eq!(block.crc, crc32c::of(&whole[start..end]));
                start = end;
            }
            assert_eq!(start, whole.len());
        }
        let mut continued = BlockSums::of(&whole[..10]);
        continued.update(&whole[10..]);
        assert_eq!(continued, BlockSums::of(&whole));
    }

    #[test]
    fn a_mark_remembers_the_blocks_as_they_were() {
        let whole = bytes((4 << 20) + 17);
        for (first_bytes, second_bytes) in [(0, 5), (10, 20), (1 << 20, 1), (700_000, 3 << 20)] {
            let mut sums = BlockSums::of(&whole[..first_bytes]);
            let mut restored = sums.clone();
            let first = sums.mark().num_blocks.saturating_sub(1);
            sums.update(&whole[first_bytes..][..second_bytes]);
            let mark = sums.mark();
            let expected = sums.clone();
            sums.update(&whole[first_bytes + second_bytes..]);
            restored.replace_from(first, sums.between(first, mark));
            assert_eq!(restored, expected, "{first_bytes} {second_bytes}");
        }
    }
}
