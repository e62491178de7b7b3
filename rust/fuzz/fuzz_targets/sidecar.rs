//! The input is a sidecar without its checksum, which is made to fit, so that the fields are reached.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mmfast_core::indexed::{Dtype, IndexedDataset, Prefix, Verify};
use mmfast_core::vfs::Disk;
use mmfast_fuzz::{overwrite, prefix, read_everything, write};
use xxhash_rust::xxh3::xxh3_64;

static AT: LazyLock<Prefix> = LazyLock::new(|| {
    let at = prefix();
    write(&at, Dtype::U16, true);
    at
});

fuzz_target!(|content: &[u8]| {
    let at = &*AT;
    let mut bytes = content.to_vec();
    bytes.extend(xxh3_64(content).to_le_bytes());
    overwrite(&at.sidecar(), &bytes);
    if let Ok(dataset) = IndexedDataset::open_on(&Disk, at, Verify::Lazy) {
        // Sums that were changed are damage of the ids, as far as can be known.
        read_everything(&dataset).ok();
    }
});
