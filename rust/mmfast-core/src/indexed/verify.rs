//! How far a dataset is checked against its index and its checksums, and when.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::access::Bin;
use super::blocks::BlockSums;
use super::crc32c;
use super::index::Index;
use super::prefix::Prefix;
use crate::error::{Error, Result};

/// What is checked when a dataset is opened.
///
/// Sizes are checked always: after opening, no read leaves the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Verify {
    /// Header and sizes only, in constant time. A sidecar is not looked at.
    None,
    /// Every entry of the index, and that the sidecar, if there is one, belongs to it.
    #[default]
    Index,
    /// The same, and each block of ids against its checksum when it is first read.
    Lazy,
    /// The same, and all blocks at once.
    Full,
}

impl Verify {
    /// The level of a name; the error lists those there are.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "none" => Ok(Self::None),
            "index" => Ok(Self::Index),
            "lazy" => Ok(Self::Lazy),
            "full" => Ok(Self::Full),
            _ => Err(Error::argument(format!(
                "there is no level of verification {name:?}; there are none, index, lazy and full"
            ))),
        }
    }

    /// Whether checksums of blocks are compared.
    pub(super) fn needs_checksums(self) -> bool {
        self >= Self::Lazy
    }
}

/// A block of `.bin` whose content is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedBlock {
    /// Its number, from 0.
    pub block: u64,
    /// Where it lies in `.bin`.
    pub bytes: Range<u64>,
    /// The documents that have ids in it.
    pub documents: Range<u64>,
    expected_crc: u32,
    found_crc: u32,
}

impl fmt::Display for DamagedBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.documents.end.saturating_sub(1);
        write!(
            f,
            "block {} (bytes {}..{}) has the CRC-32C {:08x}, not {:08x}; ",
            self.block, self.bytes.start, self.bytes.end, self.found_crc, self.expected_crc
        )?;
        if self.documents.start == last {
            write!(f, "it holds ids of document {last}")
        } else {
            write!(
                f,
                "it holds ids of documents {} to {last}",
                self.documents.start
            )
        }
    }
}

/// The sums of a `.bin`, ready to be looked up by position.
#[derive(Debug)]
pub(super) struct Checksums {
    /// Where each block ends.
    ends: Vec<u64>,
    crcs: Vec<u32>,
}

impl Checksums {
    pub(super) fn new(sums: &BlockSums) -> Self {
        let ends = sums.blocks().iter().scan(0, |end, block| {
            *end += u64::from(block.num_bytes);
            Some(*end)
        });
        Self {
            ends: ends.collect(),
            crcs: sums.blocks().iter().map(|block| block.crc).collect(),
        }
    }

    pub(super) fn num_blocks(&self) -> usize {
        self.ends.len()
    }

    /// The blocks that hold these bytes.
    fn blocks_at(&self, bytes: &Range<u64>) -> Range<usize> {
        if bytes.is_empty() {
            return 0..0;
        }
        let first = self.ends.partition_point(|&end| end <= bytes.start);
        let after = self.ends.partition_point(|&end| end < bytes.end);
        first..(after + 1).min(self.num_blocks())
    }

    /// Compares a block with its sum; `buffer` is for blocks that have to be read.
    pub(super) fn check(
        &self,
        block: usize,
        bin: &Bin,
        index: &Index,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<DamagedBlock>> {
        let (Some(&end), Some(&expected_crc)) = (self.ends.get(block), self.crcs.get(block)) else {
            return Ok(None);
        };
        let start = block
            .checked_sub(1)
            .and_then(|before| self.ends.get(before));
        let bytes = start.copied().unwrap_or(0)..end;
        // A block is at most 1 MiB.
        let num_bytes = usize::try_from(bytes.end - bytes.start).unwrap_or(0);
        let found_crc = crc32c::of(bin.bytes(bytes.start, num_bytes, buffer)?);
        Ok((found_crc != expected_crc).then(|| DamagedBlock {
            block: block as u64,
            documents: index.documents_at(&bytes),
            bytes,
            expected_crc,
            found_crc,
        }))
    }
}

/// Which blocks have been found sound since the dataset was opened.
#[derive(Debug)]
pub(super) struct Touched {
    is_sound: Vec<AtomicBool>,
    num_unchecked: AtomicUsize,
}

impl Touched {
    pub(super) fn new(num_blocks: usize) -> Self {
        Self {
            is_sound: (0..num_blocks).map(|_| AtomicBool::new(false)).collect(),
            num_unchecked: AtomicUsize::new(num_blocks),
        }
    }

    /// Checks the blocks that hold these bytes, unless they were found sound before. Several threads
    /// may check a block at once; a damaged block is an error each time it is read.
    pub(super) fn require_sound(
        &self,
        bytes: &Range<u64>,
        checksums: &Checksums,
        bin: &Bin,
        index: &Index,
        prefix: &Prefix,
    ) -> Result<()> {
        if self.num_unchecked.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let mut buffer = Vec::new();
        for block in checksums.blocks_at(bytes) {
            let Some(is_sound) = self.is_sound.get(block) else {
                continue;
            };
            // The flag guards no other memory, the map is read-only: relaxed order is enough.
            if is_sound.load(Ordering::Relaxed) {
                continue;
            }
            if let Some(damaged) = checksums.check(block, bin, index, &mut buffer)? {
                return Err(Error::corrupt(&prefix.bin(), damaged.to_string()));
            }
            if !is_sound.swap(true, Ordering::Relaxed) {
                self.num_unchecked.fetch_sub(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// The error for blocks that are damaged: the first in full, the others by number.
pub(super) fn require_none(path: &Path, damaged: &[DamagedBlock]) -> Result<()> {
    let Some((first, others)) = damaged.split_first() else {
        return Ok(());
    };
    let mut text = first.to_string();
    if !others.is_empty() {
        let numbers: Vec<_> = others
            .iter()
            .take(10)
            .map(|d| d.block.to_string())
            .collect();
        let more = if others.len() > 10 { ", …" } else { "" };
        let (count, numbers) = (others.len(), numbers.join(", "));
        text = format!("{text}; {count} more blocks are damaged: {numbers}{more}");
    }
    Err(Error::corrupt(path, text))
}
