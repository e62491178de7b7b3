//! The input is an `.idx`; its `.bin` has the size that it announces, as far as that is reasonable.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mmfast_core::indexed::{Dtype, HEADER_BYTES, IndexedDataset, Prefix, Verify};
use mmfast_core::vfs::Disk;
use mmfast_fuzz::{overwrite, prefix, read_everything, resize};

const MOST_BIN_BYTES: u64 = 1 << 16;

static AT: LazyLock<Prefix> = LazyLock::new(prefix);

fuzz_target!(|bytes: &[u8]| {
    let at = &*AT;
    overwrite(&at.idx(), bytes);
    resize(&at.bin(), announced(bytes).unwrap_or(0).min(MOST_BIN_BYTES));
    for level in [Verify::None, Verify::Index] {
        if let Ok(dataset) = IndexedDataset::open_on(&Disk, at, level) {
            let read = read_everything(&dataset);
            assert!(level == Verify::None || read.is_ok(), "{read:?}");
        }
    }
});

/// The size of `.bin` by the lengths in an index.
fn announced(bytes: &[u8]) -> Option<u64> {
    let dtype = Dtype::from_code(*bytes.get(17)?)?;
    let num_sequences = u64::from_le_bytes(*bytes.get(18..)?.first_chunk()?);
    let lengths = bytes.get(HEADER_BYTES..)?.as_chunks::<4>().0;
    let lengths = lengths.get(..usize::try_from(num_sequences).ok()?)?;
    let num_ids: u64 = lengths
        .iter()
        .map(|&raw| u64::from(u32::from_le_bytes(raw)))
        .sum();
    Some(num_ids * dtype.item_bytes() as u64)
}
