//! The input is a journal, its checksums made to fit as far as its sizes make sense.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mmfast_core::indexed::{DatasetWriter, Dtype, Notes, Prefix};
use mmfast_fuzz::{overwrite, prefix, resize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

const BIN_BYTES: u64 = 1 << 16;

static AT: LazyLock<Prefix> = LazyLock::new(prefix);

fuzz_target!(|content: &[u8]| {
    let at = &*AT;
    let mut bytes = content.to_vec();
    fit(&mut bytes);
    overwrite(&at.journal(), &bytes);
    resize(&at.new_bin(), BIN_BYTES);
    if let Ok(writer) = DatasetWriter::resume(at, Dtype::U16, true, Notes::default()) {
        assert!(writer.written().num_tokens * 2 <= BIN_BYTES);
    }
});

/// Computes the checksums of the header and of the records anew.
fn fit(bytes: &mut [u8]) {
    let number = |bytes: &[u8], at: usize| {
        let field = bytes.get(at..)?.first_chunk()?;
        usize::try_from(u64::from_le_bytes(*field)).ok()
    };
    let (mut begin, mut seed) = (0, 0);
    let mut end = number(bytes, 16).and_then(|notes| notes.checked_add(24));
    while let Some(content_end) = end.filter(|&end| end < usize::MAX - 8 && end + 8 <= bytes.len())
    {
        seed = xxh3_64_with_seed(&bytes[begin..content_end], seed);
        bytes[content_end..content_end + 8].copy_from_slice(&seed.to_le_bytes());
        begin = content_end + 8;
        if bytes[begin..].starts_with(b"ENDOFREC") && begin + 16 <= bytes.len() {
            let seal = xxh3_64_with_seed(b"ENDOFREC", begin as u64);
            bytes[begin + 8..begin + 16].copy_from_slice(&seal.to_le_bytes());
            begin += 16;
        }
        end = number(bytes, begin).and_then(|len| len.checked_add(begin + 8));
    }
}
