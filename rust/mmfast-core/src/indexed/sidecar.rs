//! `<prefix>.mmf`: checksums of a pair, and where its data came from.
//!
//! The sidecar is optional. Without it a pair is a plain Megatron dataset. With it every byte of
//! `.bin` and `.idx` is covered: `.idx` by one hash, `.bin` by a CRC-32C for each block
//! (see [`super::blocks`]). All little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `MMFSIDE\0` |
//! | 8 | 4 | version, u32, 1 |
//! | 12 | 1 | dtype code, as in `.idx` |
//! | 13 | 3 | 0 |
//! | 16 | 8 | sequences, u64 |
//! | 24 | 8 | document indices (documents + 1), u64 |
//! | 32 | 8 | ids, u64 |
//! | 40 | 8 | bytes of `.bin`, u64 |
//! | 48 | 8 | bytes of `.idx`, u64 |
//! | 56 | 16 | XXH3-128 of `.idx` |
//! | 72 | 16 | fingerprint of the dataset |
//! | 88 | 8 | blocks B, u64 |
//! | 96 | 8 | bytes of the notes N, u64 |
//! | 104 | 8·B | of each block: bytes, u32; CRC-32C, u32 |
//! | 104 + 8·B | N | notes: a JSON object in UTF-8 |
//! | 104 + 8·B + N | 8 | XXH3-64 of everything before |
//!
//! The fingerprint is XXH3-128 over the hash of `.idx`, the size of `.bin` and the CRC-32C of all of
//! it: equal for equal files, whether they were written in one go or merged.
//!
//! The notes hold `writer` (name and version of the program), `vocabulary_fingerprint` (or null) and
//! `provenance` (an object of the producer's own; a merge lists its parts under `merged`).

use std::path::Path;

use serde_json::{Map as JsonMap, Value, json};
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

use super::blocks::{BLOCK_BYTES, Block, BlockSums};
use super::header::{Dtype, load_u64};
use super::index::Index;
use crate::error::{Error, Result};

const SIDECAR_MAGIC: [u8; 8] = *b"MMFSIDE\0";
const SIDECAR_VERSION: u32 = 1;
const FIXED_BYTES: usize = 104;
const CHECKSUM_BYTES: usize = 8;

/// What a sidecar says about the pair beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PairFacts {
    pub(super) dtype: Dtype,
    pub(super) num_sequences: u64,
    pub(super) num_document_indices: u64,
    pub(super) num_tokens: u64,
    pub(super) bin_bytes: u64,
    pub(super) idx_bytes: u64,
    pub(super) idx_hash: u128,
}

/// What is known of the data beyond its bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Notes {
    /// Program that wrote the dataset, and its version.
    pub writer: String,
    /// Fingerprint of the vocabulary that the ids belong to, if it was told.
    pub vocabulary_fingerprint: Option<String>,
    /// What the producer told about the data: a JSON object.
    pub provenance: JsonMap<String, Value>,
}

impl Default for Notes {
    fn default() -> Self {
        Self {
            writer: concat!("mmfast ", env!("CARGO_PKG_VERSION")).to_string(),
            vocabulary_fingerprint: None,
            provenance: JsonMap::new(),
        }
    }
}

impl Notes {
    /// Notes of a producer; `provenance` is the text of a JSON object.
    pub fn new(vocabulary_fingerprint: Option<String>, provenance: Option<&str>) -> Result<Self> {
        let provenance = match provenance.map(serde_json::from_str::<Value>) {
            None => JsonMap::new(),
            Some(Ok(Value::Object(object))) => object,
            Some(Ok(_)) => return Err(Error::argument("provenance must be a JSON object")),
            Some(Err(error)) => {
                return Err(Error::argument(format!("provenance is not JSON: {error}")));
            }
        };
        Ok(Self {
            vocabulary_fingerprint,
            provenance,
            ..Self::default()
        })
    }

    /// The provenance as JSON text.
    pub fn provenance_json(&self) -> String {
        Value::Object(self.provenance.clone()).to_string()
    }

    fn encode(&self) -> Vec<u8> {
        let notes = json!({
            "writer": self.writer,
            "vocabulary_fingerprint": self.vocabulary_fingerprint,
            "provenance": self.provenance,
        });
        notes.to_string().into_bytes()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut notes = serde_json::from_slice::<JsonMap<String, Value>>(bytes).ok()?;
        Some(Self {
            writer: notes.get("writer")?.as_str()?.to_string(),
            vocabulary_fingerprint: match notes.get("vocabulary_fingerprint")? {
                Value::Null => None,
                fingerprint => Some(fingerprint.as_str()?.to_string()),
            },
            provenance: match notes.remove("provenance")? {
                Value::Object(object) => object,
                _ => return None,
            },
        })
    }
}

/// A sidecar in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Sidecar {
    pub(super) facts: PairFacts,
    pub(super) sums: BlockSums,
    /// Fingerprint of the dataset: equal for equal `.bin` and `.idx`.
    pub fingerprint: u128,
    /// What is known of the data beyond its bytes.
    pub notes: Notes,
}

impl Sidecar {
    pub(super) fn new(facts: PairFacts, sums: BlockSums, notes: Notes) -> Self {
        let mut hash = Xxh3::new();
        hash.update(&facts.idx_hash.to_le_bytes());
        hash.update(&facts.bin_bytes.to_le_bytes());
        hash.update(&sums.total_crc().to_le_bytes());
        Self {
            facts,
            sums,
            fingerprint: hash.digest128(),
            notes,
        }
    }

    /// How many blocks of `.bin` have a sum of their own.
    pub fn num_blocks(&self) -> usize {
        self.sums.blocks().len()
    }

    /// The file's bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let facts = &self.facts;
        let notes = self.notes.encode();
        let mut bytes = SIDECAR_MAGIC.to_vec();
        bytes.extend(SIDECAR_VERSION.to_le_bytes());
        bytes.extend([facts.dtype.code(), 0, 0, 0]);
        for field in [
            facts.num_sequences,
            facts.num_document_indices,
            facts.num_tokens,
            facts.bin_bytes,
            facts.idx_bytes,
        ] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(facts.idx_hash.to_le_bytes());
        bytes.extend(self.fingerprint.to_le_bytes());
        bytes.extend((self.num_blocks() as u64).to_le_bytes());
        bytes.extend((notes.len() as u64).to_le_bytes());
        for block in self.sums.blocks() {
            bytes.extend(block.num_bytes.to_le_bytes());
            bytes.extend(block.crc.to_le_bytes());
        }
        bytes.extend(notes);
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        bytes
    }

    /// Reads a sidecar. Nothing is allocated before it is known to lie within `bytes`.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let damaged = |detail: &str| {
            Error::corrupt(
                path,
                format!(
                    "{detail}; the .bin and .idx beside it may be sound: without the .mmf they are \
                     a dataset without checksums"
                ),
            )
        };
        let content = bytes.split_last_chunk::<CHECKSUM_BYTES>();
        let Some((content, checksum)) = content.filter(|(content, _)| content.len() >= FIXED_BYTES)
        else {
            let len = bytes.len();
            return Err(damaged(&format!(
                "{len} bytes are too few for a sidecar, it is cut short"
            )));
        };
        if !content.starts_with(&SIDECAR_MAGIC) {
            return Err(damaged("it does not begin with the magic of a sidecar"));
        }
        // The checksum comes first: a damaged version is damage, not another version. Its place and
        // kind are therefore promised to later versions.
        if xxh3_64(content) != u64::from_le_bytes(*checksum) {
            return Err(damaged("its own checksum does not match, it is damaged"));
        }
        let inconsistent = || damaged("its fields contradict each other");
        let field = |at: usize| load_u64(content, at).ok_or_else(inconsistent);
        let [version, dtype] = halves(field(8)?.to_le_bytes());
        if version != SIDECAR_VERSION {
            return Err(Error::UnsupportedFormat {
                path: path.to_path_buf(),
                detail: format!("version {version}; this build reads version {SIDECAR_VERSION}"),
            });
        }
        let dtype = u8::try_from(dtype).ok().and_then(Dtype::from_code);
        let facts = PairFacts {
            dtype: dtype.ok_or_else(inconsistent)?,
            num_sequences: field(16)?,
            num_document_indices: field(24)?,
            num_tokens: field(32)?,
            bin_bytes: field(40)?,
            idx_bytes: field(48)?,
            idx_hash: load_u128(content, 56).ok_or_else(inconsistent)?,
        };
        let tail = content.get(FIXED_BYTES..).unwrap_or_default();
        let table = usize::try_from(field(88)?)
            .ok()
            .and_then(|num_blocks| tail.split_at_checked(num_blocks.checked_mul(8)?));
        let (table, notes) = table.ok_or_else(inconsistent)?;
        if field(96)? != notes.len() as u64 {
            return Err(inconsistent());
        }
        let mut sums = BlockSums::default();
        let mut covered = 0_u64;
        for entry in table.as_chunks::<8>().0 {
            let [num_bytes, crc] = halves(*entry);
            if num_bytes == 0 || num_bytes > BLOCK_BYTES {
                return Err(inconsistent());
            }
            covered += u64::from(num_bytes);
            sums.push(Block { num_bytes, crc });
        }
        if covered != facts.bin_bytes {
            return Err(inconsistent());
        }
        Ok(Self {
            fingerprint: load_u128(content, 72).ok_or_else(inconsistent)?,
            notes: Notes::parse(notes).ok_or_else(|| damaged("its notes cannot be read"))?,
            facts,
            sums,
        })
    }

    /// [`Error::Corrupt`] unless this sidecar was written for this pair. Hashes the whole index.
    pub(super) fn require_belongs(&self, path: &Path, index: &Index) -> Result<()> {
        let found = PairFacts::of(index);
        let (expected, found) = (&self.facts, &found);
        if expected == found {
            return Ok(());
        }
        let detail = if expected.num_sequences == found.num_sequences
            && expected.num_tokens == found.num_tokens
            && expected.dtype == found.dtype
        {
            "it has another index hash: the .idx is damaged or was written anew".to_string()
        } else {
            format!(
                "it was made for {} sequences and {} ids of {}, found {} and {} of {}",
                expected.num_sequences,
                expected.num_tokens,
                expected.dtype.name(),
                found.num_sequences,
                found.num_tokens,
                found.dtype.name()
            )
        };
        Err(Error::corrupt(
            path,
            format!(
                "it does not belong to the .bin and .idx beside it: {detail}; if another program \
                 wrote these, remove the .mmf"
            ),
        ))
    }
}

impl PairFacts {
    fn of(index: &Index) -> Self {
        Self {
            dtype: index.dtype(),
            num_sequences: index.num_sequences(),
            num_document_indices: index.num_documents() + 1,
            num_tokens: index.num_tokens(),
            bin_bytes: index.bin_bytes(),
            idx_bytes: index.bytes().len() as u64,
            idx_hash: xxh3_128(index.bytes()),
        }
    }
}

fn load_u128(bytes: &[u8], at: usize) -> Option<u128> {
    let field = bytes.get(at..)?.first_chunk::<16>()?;
    Some(u128::from_le_bytes(*field))
}

fn halves(entry: [u8; 8]) -> [u32; 2] {
    let [low, high] = [entry.first_chunk(), entry.last_chunk()];
    [low, high].map(|half| u32::from_le_bytes(half.copied().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::super::testing::SplitMix;
    use super::*;

    const NUM_MUTATIONS: u64 = 240_000;

    fn sidecar() -> Sidecar {
        let facts = PairFacts {
            dtype: Dtype::U16,
            num_sequences: 3,
            num_document_indices: 2,
            num_tokens: 1 << 20,
            bin_bytes: 2 << 20,
            idx_bytes: 86,
            idx_hash: 7,
        };
        let notes = Notes::new(Some("abc".into()), Some(r#"{"from": ["here"], "n": 3}"#)).unwrap();
        Sidecar::new(facts, BlockSums::of(&vec![5; 2 << 20]), notes)
    }

    #[test]
    fn what_is_encoded_is_parsed() {
        let written = sidecar();
        let read = Sidecar::parse(Path::new("a.mmf"), &written.encode()).unwrap();
        assert_eq!(read, written);
        assert_eq!(read.num_blocks(), 2);
        assert_eq!(read.notes.provenance_json(), r#"{"from":["here"],"n":3}"#);
    }

    #[test]
    fn every_changed_byte_and_every_other_length_is_refused() {
        let whole = sidecar().encode();
        let path = Path::new("a.mmf");
        for at in 0..whole.len() {
            for change in [1, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                let found = Sidecar::parse(path, &bytes);
                assert!(
                    matches!(found, Err(Error::Corrupt { .. })),
                    "{at}: {found:?}"
                );
            }
        }
        for len in (0..whole.len()).chain([whole.len() + 1, whole.len() + 8]) {
            let mut bytes = whole.clone();
            bytes.resize(len, 0);
            let found = Sidecar::parse(path, &bytes);
            assert!(
                matches!(found, Err(Error::Corrupt { .. })),
                "{len}: {found:?}"
            );
        }
    }

    /// With the checksum made to fit, so that mutations reach the fields behind it.
    #[test]
    fn a_mutated_sidecar_is_refused_or_consistent() {
        let whole = sidecar().encode();
        let path = Path::new("a.mmf");
        let content_bytes = whole.len() - CHECKSUM_BYTES;
        let mut random = SplitMix(2);
        let (mut num_refused, mut num_accepted) = (0, 0);
        for _ in 0..NUM_MUTATIONS {
            let mut bytes = whole[..content_bytes].to_vec();
            for _ in 0..=random.below(3) {
                let here = random.below(content_bytes);
                match random.below(3) {
                    0 => bytes[here] ^= 1 << random.below(8),
                    1 => bytes[here] = u8::try_from(random.below(256)).unwrap(),
                    _ => {
                        let end = content_bytes.min(here + 1 + random.below(8));
                        bytes[here..end].fill([0, 1, 0x7f, 0x80, 0xff][random.below(5)]);
                    }
                }
            }
            if random.below(8) == 0 {
                bytes.truncate(random.below(content_bytes));
            }
            bytes.extend(xxh3_64(&bytes).to_le_bytes());
            match Sidecar::parse(path, &bytes) {
                Ok(read) => {
                    assert_eq!(read.sums.num_bytes(), read.facts.bin_bytes);
                    assert!(read.num_blocks() * 8 < bytes.len());
                    num_accepted += 1;
                }
                Err(Error::Corrupt { .. } | Error::UnsupportedFormat { .. }) => num_refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(
            num_refused > NUM_MUTATIONS / 4,
            "{num_refused} were refused"
        );
        assert!(
            num_accepted > NUM_MUTATIONS / 20,
            "{num_accepted} were accepted"
        );
    }

    #[test]
    fn another_version_is_not_called_damage() {
        let mut bytes = sidecar().encode();
        bytes.truncate(bytes.len() - CHECKSUM_BYTES);
        bytes[8] = 2;
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        let error = Sidecar::parse(Path::new("a.mmf"), &bytes).unwrap_err();
        assert!(error.to_string().contains("version 2"), "{error}");
    }
}
