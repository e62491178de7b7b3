//! CRC-32C (Castagnoli), as iSCSI (RFC 3720) and ext4 have it: of bytes, of bytes that come in pieces, and
//! of two runs of bytes from their sums.
//!
//! The carry-less multiplications of `crc-fast` sum at about the speed at which memory is read.

use crc_fast::CrcAlgorithm::Crc32Iscsi;
use crc_fast::{Digest, checksum_combine, crc32_iscsi};

/// The sum of bytes at hand.
pub(super) fn of(bytes: &[u8]) -> u32 {
    crc32_iscsi(bytes)
}

/// The sum of all bytes from that of the first and the bytes that follow them; 0 is the sum of none.
pub(super) fn append(first: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(Crc32Iscsi, u64::from(!first));
    digest.update(bytes);
    low_half(digest.finalize())
}

/// The sum of all bytes from that of the first, and that of the `num_bytes` that follow them.
pub(super) fn combine(first: u32, following: u32, num_bytes: usize) -> u32 {
    let [first, following] = [first, following].map(u64::from);
    low_half(checksum_combine(
        Crc32Iscsi,
        first,
        following,
        num_bytes as u64,
    ))
}

#[expect(clippy::cast_possible_truncation, reason = "sums have 32 bits")]
fn low_half(sum: u64) -> u32 {
    sum as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A bit at a time, by the reflected polynomial.
    fn reference(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
            })
        })
    }

    #[test]
    fn the_check_value_is_that_of_the_catalogues() {
        assert_eq!(of(b"123456789"), 0xe306_9283);
        assert_eq!((of(b""), append(0, b""), combine(5, 0, 0)), (0, 0, 5));
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_definition_however_the_bytes_come(
            seed in any::<u64>(), len in 0_usize..5_000, cut in any::<prop::sample::Index>(),
        ) {
            let bytes: Vec<u8> = (0..len as u64)
                .map(|at| (seed.wrapping_mul(2 * at + 1) >> 32).to_le_bytes()[0])
                .collect();
            let (first, following) = bytes.split_at(cut.index(len + 1));
            let whole = reference(&bytes);
            prop_assert_eq!(of(&bytes), whole);
            prop_assert_eq!(append(of(first), following), whole);
            prop_assert_eq!(combine(of(first), of(following), following.len()), whole);
        }
    }
}
