//! `<prefix>.media`: what the placeholder ids of some sequences stand for.
//!
//! Continuous inputs, such as the features of a vision tower, have no ids. A sequence of them has the bit
//! [`MEDIA_BIT`] in its mode, its ids are placeholders, and a text here says what belongs in their place: a
//! path and region, or an index into a feature store (`mmfast.data.MediaReference` is the usual form). A
//! dataset without such sequences has no such file. All little-endian:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `MMFMEDI\0` |
//! | 8 | 4 | version, u32, 1 |
//! | 12 | 4 | 0 |
//! | 16 | 16 | XXH3-128 of the `.idx` that it belongs to |
//! | 32 | 8 | references M, u64 |
//! | 40 | 8 | bytes of texts N, u64 |
//! | 48 | 16·M | of each reference, by rising sequence: sequence, u64; end of its text, u64 |
//! | 48 + 16·M | N | texts in UTF-8, back to back |
//! | 48 + 16·M + N | 8 | XXH3-64 of everything before |

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::append::{AppendFile, Digest};
use super::header::load_u64;
use super::map::Map;
use crate::error::{Error, Result};
use crate::vfs::Vfs;

/// Bit of a mode that says: placeholders for what a media reference names.
pub const MEDIA_BIT: u8 = 0x20;
/// Longest text of a reference.
pub const MAX_REFERENCE_BYTES: usize = 1 << 16;

const MAGIC: [u8; 8] = *b"MMFMEDI\0";
const VERSION: u32 = 1;
const FIXED_BYTES: usize = 48;
const ENTRY_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 8;

/// References of a dataset in the making, by rising sequence.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct References {
    /// Sequence and end of its text.
    entries: Vec<(u64, usize)>,
    texts: String,
}

impl References {
    /// Adds the reference of a sequence behind all others.
    pub(super) fn push(&mut self, sequence: u64, text: &str) {
        self.texts.push_str(text);
        self.entries.push((sequence, self.texts.len()));
    }

    /// Sequences and texts from the `first`-th reference on.
    pub(super) fn iter_from(&self, first: usize) -> impl Iterator<Item = (u64, &str)> {
        let start = first
            .checked_sub(1)
            .and_then(|before| self.entries.get(before));
        let mut start = start.map_or(0, |(_, end)| *end);
        let entries = self.entries.get(first..).unwrap_or_default();
        entries.iter().map(move |&(sequence, end)| {
            let text = self.texts.get(start..end).unwrap_or_default();
            start = end;
            (sequence, text)
        })
    }

    /// The references of some sequences in the form that journals hold: of each the sequence, u64; the
    /// bytes of its text, u32; the text.
    pub(super) fn encode(&self, sequences: &Range<u64>) -> Vec<u8> {
        let first = self
            .entries
            .partition_point(|(owner, _)| *owner < sequences.start);
        let mut bytes = Vec::new();
        for (sequence, text) in self.iter_from(first) {
            if sequence >= sequences.end {
                break;
            }
            bytes.extend(sequence.to_le_bytes());
            // No text is longer than 64 KiB.
            bytes.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    }

    /// Adds what [`Self::encode`] gave for these sequences; `None` if it cannot be that.
    pub(super) fn extend_from_encoded(
        &mut self,
        mut bytes: &[u8],
        sequences: &Range<u64>,
    ) -> Option<()> {
        let mut next = sequences.start;
        while !bytes.is_empty() {
            let (sequence, rest) = bytes.split_first_chunk()?;
            let (num_bytes, rest) = rest.split_first_chunk()?;
            let sequence = u64::from_le_bytes(*sequence);
            let num_bytes = usize::try_from(u32::from_le_bytes(*num_bytes)).ok()?;
            let (text, rest) = rest.split_at_checked(num_bytes)?;
            let text = std::str::from_utf8(text).ok()?;
            if !(next..sequences.end).contains(&sequence) || check_text(text).is_err() {
                return None;
            }
            self.push(sequence, text);
            next = sequence + 1;
            bytes = rest;
        }
        Some(())
    }
}

/// Refuses a text that the format does not hold.
pub(super) fn check_text(text: &str) -> Result<()> {
    if text.is_empty() || text.len() > MAX_REFERENCE_BYTES {
        return Err(Error::argument(format!(
            "a media reference has 1 to {MAX_REFERENCE_BYTES} bytes, found {}",
            text.len()
        )));
    }
    Ok(())
}

/// Writes the file and makes it durable. `references` gives them anew at each call; they are gone over
/// twice, so that none has to be held.
pub(super) fn write_media<'a, I: Iterator<Item = (u64, &'a str)>>(
    vfs: &Arc<dyn Vfs>,
    path: &Path,
    idx_hash: u128,
    references: impl Fn() -> I,
) -> Result<()> {
    let (count, text_bytes) = references().fold((0_u64, 0_u64), |(count, bytes), (_, text)| {
        (count + 1, bytes + text.len() as u64)
    });
    let mut file = AppendFile::create(Arc::clone(vfs), path, Checksum::default())?;
    file.push(|buffer| {
        buffer.extend(MAGIC);
        buffer.extend(VERSION.to_le_bytes());
        buffer.extend([0; 4]);
        buffer.extend(idx_hash.to_le_bytes());
        buffer.extend(count.to_le_bytes());
        buffer.extend(text_bytes.to_le_bytes());
    })?;
    let mut end = 0_u64;
    for (sequence, text) in references() {
        end += text.len() as u64;
        file.push(|buffer| {
            buffer.extend(sequence.to_le_bytes());
            buffer.extend(end.to_le_bytes());
        })?;
    }
    for (_, text) in references() {
        file.push_bytes(text.as_bytes())?;
    }
    let checksum = file.digest().0.digest();
    file.push_bytes(&checksum.to_le_bytes())?;
    file.finish()?;
    Ok(())
}

#[derive(Default)]
struct Checksum(Xxh3);

impl Digest for Checksum {
    fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

/// The references of a published dataset.
#[derive(Debug)]
pub(super) struct Media {
    path: PathBuf,
    map: Map,
    num_references: usize,
}

impl Media {
    /// Checks a file. `idx_hash` is that of the `.idx` beside it, `None` if that is not to be compared, and
    /// `num_sequences` what that holds.
    pub(super) fn parse(
        path: &Path,
        map: Map,
        idx_hash: Option<u128>,
        num_sequences: u64,
    ) -> Result<Self> {
        let damaged = |detail: &str| Error::corrupt(path, detail);
        let content = map.bytes().split_last_chunk::<CHECKSUM_BYTES>();
        let Some((content, checksum)) = content.filter(|(content, _)| content.len() >= FIXED_BYTES)
        else {
            return Err(damaged(
                "it is too short for media references, it is cut short",
            ));
        };
        if !content.starts_with(&MAGIC) {
            return Err(damaged(
                "it does not begin with the magic of media references",
            ));
        }
        if xxh3_64(content) != u64::from_le_bytes(*checksum) {
            return Err(damaged("its own checksum does not match, it is damaged"));
        }
        let inconsistent = || damaged("its fields contradict each other");
        let field = |at: usize| load_u64(content, at).ok_or_else(inconsistent);
        let version = field(8)?;
        if version != u64::from(VERSION) {
            return Err(Error::UnsupportedFormat {
                path: path.to_path_buf(),
                detail: format!("version {version}; this build reads version {VERSION}"),
            });
        }
        let owner = u128::from(field(16)?) | u128::from(field(24)?) << 64;
        if idx_hash.is_some_and(|hash| hash != owner) {
            return Err(damaged(
                "it does not belong to the .idx beside it, which was written anew or is damaged; if \
                 another program wrote that, remove the .media",
            ));
        }
        let tail = content.get(FIXED_BYTES..).unwrap_or_default();
        let num_references = usize::try_from(field(32)?).ok();
        let parts = num_references
            .and_then(|count| count.checked_mul(ENTRY_BYTES))
            .and_then(|entry_bytes| tail.split_at_checked(entry_bytes));
        let (entries, texts) = parts.ok_or_else(inconsistent)?;
        let texts = std::str::from_utf8(texts).map_err(|_position| inconsistent())?;
        if field(40)? != texts.len() as u64 {
            return Err(inconsistent());
        }
        let (mut next_sequence, mut end) = (0, 0);
        for entry in entries.as_chunks::<ENTRY_BYTES>().0 {
            let (sequence, text_end) = parsed(entry);
            let is_sound = (next_sequence..num_sequences).contains(&sequence)
                && text_end > end
                && usize::try_from(text_end).is_ok_and(|end| texts.is_char_boundary(end));
            if !is_sound {
                return Err(inconsistent());
            }
            (next_sequence, end) = (sequence + 1, text_end);
        }
        if end != texts.len() as u64 {
            return Err(inconsistent());
        }
        Ok(Self {
            path: path.to_path_buf(),
            num_references: num_references.unwrap_or_default(),
            map,
        })
    }

    /// The file's content.
    pub(super) fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }

    fn entries(&self) -> &[[u8; ENTRY_BYTES]] {
        let end = FIXED_BYTES + self.num_references * ENTRY_BYTES;
        let entries = self.map.bytes().get(FIXED_BYTES..end);
        entries.unwrap_or_default().as_chunks().0
    }

    /// All sequences that have a reference, with it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &str)> {
        (0..self.num_references).filter_map(|at| {
            let (sequence, _) = parsed(self.entries().get(at)?);
            Some((sequence, self.text(at)?))
        })
    }

    /// The reference of a sequence, if it has one.
    pub(super) fn get(&self, sequence: u64) -> Result<Option<&str>> {
        let found = self
            .entries()
            .binary_search_by_key(&sequence, |entry| parsed(entry).0);
        let Ok(at) = found else {
            return Ok(None);
        };
        // What was checked at opening holds as long as nobody writes to the file.
        let text = self
            .text(at)
            .ok_or_else(|| Error::corrupt(&self.path, "it has changed since it was opened"))?;
        Ok(Some(text))
    }

    fn text(&self, at: usize) -> Option<&str> {
        let texts = self
            .map
            .bytes()
            .get(FIXED_BYTES + self.num_references * ENTRY_BYTES..)?;
        let end = |at: usize| usize::try_from(parsed(self.entries().get(at)?).1).ok();
        let start = at.checked_sub(1).map_or(Some(0), end)?;
        std::str::from_utf8(texts.get(start..end(at)?)?).ok()
    }
}

/// Sequence and end of its text.
fn parsed(entry: &[u8; ENTRY_BYTES]) -> (u64, u64) {
    let [sequence, end] = [entry.first_chunk(), entry.last_chunk()];
    let [sequence, end] = [sequence, end].map(|half| half.copied().unwrap_or_default());
    (u64::from_le_bytes(sequence), u64::from_le_bytes(end))
}

#[cfg(test)]
mod tests {
    use super::super::testing::SplitMix;
    use super::*;
    use crate::vfs::Disk;

    fn references() -> References {
        let mut references = References::default();
        for (sequence, text) in [(1, "a.jpg"), (4, "büro.mp4#t=3"), (9, "{\"index\": 17}")] {
            references.push(sequence, text);
        }
        references
    }

    fn written(references: &References) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.media");
        let vfs: Arc<dyn Vfs> = Arc::new(Disk);
        write_media(&vfs, &path, 7, || references.iter_from(0)).unwrap();
        let file = Disk.open(&path).unwrap();
        let mut bytes = vec![0; usize::try_from(file.num_bytes().unwrap()).unwrap()];
        Disk.read_at(&file, 0, &mut bytes).unwrap();
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Media> {
        Media::parse(Path::new("x.media"), Map::of_bytes(bytes), Some(7), 10)
    }

    #[test]
    fn what_is_written_is_found_by_sequence() {
        let references = references();
        let media = parse(&written(&references)).unwrap();
        assert!(media.iter().eq(references.iter_from(0)));
        assert_eq!(media.get(4).unwrap(), Some("büro.mp4#t=3"));
        assert_eq!(media.get(5).unwrap(), None);
        assert_eq!(media.num_references, 3);
        assert!(references.iter_from(2).eq([(9, "{\"index\": 17}")]));
    }

    #[test]
    fn a_journal_takes_references_up_where_it_left_off() {
        let references = references();
        let mut again = References::default();
        for sequences in [0..4, 4..5, 5..10] {
            let bytes = references.encode(&sequences);
            again.extend_from_encoded(&bytes, &sequences).unwrap();
        }
        assert_eq!(again, references);
        let bytes = references.encode(&(0..10));
        assert!(again.extend_from_encoded(&bytes, &(5..10)).is_none());
        assert!(
            again
                .extend_from_encoded(&bytes[..bytes.len() - 1], &(0..10))
                .is_none()
        );
    }

    #[test]
    fn references_of_another_index_are_refused() {
        let bytes = written(&references());
        let error =
            Media::parse(Path::new("x.media"), Map::of_bytes(&bytes), Some(8), 10).unwrap_err();
        assert!(error.to_string().contains("does not belong"), "{error}");
        assert!(Media::parse(Path::new("x.media"), Map::of_bytes(&bytes), Some(7), 9).is_err());
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_refused() {
        let whole = written(&references());
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            assert!(parse(&bytes).is_err(), "byte {at}");
            assert!(at == 0 || parse(&whole[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn mutations_with_a_right_checksum_are_refused_or_consistent() {
        let whole = written(&references());
        let mut random = SplitMix(3);
        for _ in 0..50_000 {
            let mut bytes = whole[..whole.len() - CHECKSUM_BYTES].to_vec();
            for _ in 0..=random.below(2) {
                let at = 12 + random.below(bytes.len() - 12);
                bytes[at] = u8::try_from(random.below(256)).unwrap();
            }
            bytes.extend(xxh3_64(&bytes).to_le_bytes());
            if let Ok(media) = parse(&bytes) {
                assert_eq!(media.iter().count(), media.num_references);
                for (sequence, text) in media.iter() {
                    assert_eq!(media.get(sequence).unwrap(), Some(text));
                }
            }
        }
    }

    #[test]
    fn a_reference_is_neither_empty_nor_endless() {
        assert!(check_text("x").is_ok());
        assert!(check_text("").is_err());
        assert!(check_text(&"x".repeat(MAX_REFERENCE_BYTES + 1)).is_err());
    }
}
