//! Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy as
//! 1, 2, 3" (SC 2011), and the layout of its keys and counters.
//!
//! A key is made from (seed, purpose). A document's counter is
//! `[draw, document bits 0-31, document bits 32-39 | source << 8 | piece << 20, source epoch]`.

use crate::error::{Error, Result};

const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// One block of Philox4x32-10: 128 random bits for a 128-bit counter and a 64-bit key.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let (high0, low0) = multiply(MULTIPLIERS[0], c0);
        let (high1, low1) = multiply(MULTIPLIERS[1], c2);
        (c0, c1, c2, c3) = (high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// High and low half of a 32 by 32 bit product.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the halves of a 64-bit product are what is wanted"
)]
fn multiply(a: u64, b: u32) -> (u32, u32) {
    let product = a * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

/// What a random draw is for; each purpose has its own key, so no two ever share a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Order of a source's documents in one of its epochs.
    DocumentOrder = 1,
    /// Order of the blend's slots.
    BlendOrder = 2,
    /// Order of a window's bins.
    BinOrder = 3,
    /// Number and place of the spans that CM3 moves.
    Spans = 4,
    /// Image ids replaced in the input.
    ImageNoise = 5,
    /// Which documents go into which part of a dataset that is split.
    Split = 6,
    /// Captions that are left out.
    CaptionDropout = 7,
}

/// All draws of one purpose under one seed.
#[derive(Debug, Clone, Copy)]
pub struct Generator {
    key: [u32; 2],
}

impl Generator {
    /// The generator of a (seed, purpose).
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        let (low, high) = halves(seed);
        let [k0, k1, _, _] = philox4x32([low, high, purpose as u32, 0], [0, 0]);
        Self { key: [k0, k1] }
    }

    /// Two uniform 64-bit numbers for a counter.
    pub fn pair(&self, counter: [u32; 4]) -> (u64, u64) {
        let [w0, w1, w2, w3] = philox4x32(counter, self.key);
        (joined(w0, w1), joined(w2, w3))
    }

    /// The draws that belong to one document.
    pub fn document(&self, key: DocumentKey) -> DocumentDraws {
        let (low, high) = halves(key.document);
        let packed = high | (u32::from(key.source) << 8) | (u32::from(key.piece) << 20);
        DocumentDraws {
            generator: *self,
            counter: [0, low, packed, key.epoch],
        }
    }
}

/// Which document a draw is about. Build with [`DocumentKey::new`], which checks the ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DocumentKey {
    source: u16,
    epoch: u32,
    document: u64,
    piece: u16,
}

impl DocumentKey {
    /// Sources a stream may have.
    pub const MAX_SOURCES: u64 = 1 << 12;
    /// Documents a source may have.
    pub const MAX_DOCUMENTS: u64 = 1 << 40;
    /// Pieces into which one document may be split.
    pub const MAX_PIECES: u64 = 1 << 12;

    /// A document of a source in one of the source's epochs; `piece` numbers the parts of a document
    /// that was split and is 0 for a whole one.
    pub fn new(source: u64, epoch: u64, document: u64, piece: u64) -> Result<Self> {
        if document >= Self::MAX_DOCUMENTS {
            return Err(Error::argument(format!(
                "document {document} is past the 2^40 documents that one source may have"
            )));
        }
        let too_large = |what: &str, value: u64, limit: u64| {
            Error::argument(format!(
                "{what} {value} of document {document} is not below {limit}"
            ))
        };
        let narrow = |what: &str, value: u64, limit: u64| {
            u16::try_from(value)
                .ok()
                .filter(|_| value < limit)
                .ok_or_else(|| too_large(what, value, limit))
        };
        Ok(Self {
            source: narrow("source", source, Self::MAX_SOURCES)?,
            epoch: u32::try_from(epoch)
                .ok()
                .ok_or_else(|| too_large("source epoch", epoch, 1 << 32))?,
            document,
            piece: narrow("piece", piece, Self::MAX_PIECES)?,
        })
    }

    /// The same for another piece of the document.
    pub(crate) fn with_piece(self, piece: u64) -> Result<Self> {
        Self::new(self.source.into(), self.epoch.into(), self.document, piece)
    }

    /// Index of the source.
    pub(crate) fn source(&self) -> u64 {
        self.source.into()
    }

    /// Document number in the source.
    pub(crate) fn document(&self) -> u64 {
        self.document
    }
}

/// Numbered draws of one document for one purpose.
#[derive(Debug, Clone, Copy)]
pub struct DocumentDraws {
    generator: Generator,
    counter: [u32; 4],
}

impl DocumentDraws {
    /// The two uniform 64-bit numbers of a draw.
    pub fn pair(&self, draw: u32) -> (u64, u64) {
        let [_, low, packed, epoch] = self.counter;
        self.generator.pair([draw, low, packed, epoch])
    }
}

/// Low and high 32 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the two halves of the number are what is wanted"
)]
pub(crate) fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

fn joined(low: u32, high: u32) -> u64 {
    u64::from(low) | (u64::from(high) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The three known answers published with the Random123 library (`kat_vectors`).
    #[test]
    fn philox_gives_the_published_known_answers() {
        let answers = [
            (
                [0; 4],
                [0; 2],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [u32::MAX; 4],
                [u32::MAX; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in answers {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn every_part_of_a_document_key_changes_the_draw() {
        let key = |s, e, d, p| DocumentKey::new(s, e, d, p).unwrap();
        let keys = [
            key(0, 0, 0, 0),
            key(1, 0, 0, 0),
            key(0, 1, 0, 0),
            key(0, 0, 1, 0),
            key(0, 0, 1 << 32, 0),
            key(0, 0, 0, 1),
        ];
        let mut seen = std::collections::HashSet::new();
        for seed in [0, 1, 1 << 40] {
            for purpose in [Purpose::Spans, Purpose::ImageNoise] {
                for key in keys {
                    for draw in 0..3 {
                        let pair = Generator::new(seed, purpose).document(key).pair(draw);
                        assert!(seen.insert(pair), "{seed} {purpose:?} {key:?} {draw}");
                    }
                }
            }
        }
    }

    #[test]
    fn keys_out_of_range_are_refused_with_the_document() {
        for (source, epoch, document, piece) in [
            (1 << 12, 0, 0, 0),
            (0, 1 << 32, 0, 0),
            (0, 0, 1 << 40, 0),
            (0, 0, 0, 1 << 12),
        ] {
            let error = DocumentKey::new(source, epoch, document, piece).unwrap_err();
            assert!(error.to_string().contains("document"), "{error}");
        }
        DocumentKey::new((1 << 12) - 1, (1 << 32) - 1, (1 << 40) - 1, (1 << 12) - 1).unwrap();
    }
}
