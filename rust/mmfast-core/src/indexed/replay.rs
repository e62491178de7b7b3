//! Reads a journal (see [`super::journal`]) back: its header, whole records in order, and what may
//! follow them. Nothing is allocated before it is known to lie within the file.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map as JsonMap, Value};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::blocks::{BLOCK_BYTES, Block, BlockSums};
use super::contents::Contents;
use super::header::{Dtype, load_u64};
use super::joined::JoinedNotes;
use super::journal::{
    FIXED_BYTES, JOURNAL_MAGIC, JOURNAL_VERSION, Journal, NUM_FIELDS, Purpose, Recorded,
    SEAL_BYTES, SEAL_MAGIC, seal_at, trailing_u64,
};
use crate::error::{Error, Result};
use crate::vfs::{File, Vfs};

/// What a journal gives back.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) journal: Journal,
    pub(super) contents: Contents,
    pub(super) sums: BlockSums,
    pub(super) joined: JoinedNotes,
}

/// Reads a journal up to its last whole record and opens it to go on from there; `None` if there is
/// none. The documents that it gives back are durable, once their ids are.
pub(super) fn recover(vfs: Arc<dyn Vfs>, purpose: &Purpose<'_>) -> Result<Option<Recovered>> {
    let path = purpose.prefix.journal();
    if !vfs.exists(&path)? {
        return Ok(None);
    }
    let mut replay = Replay::begin(&*vfs, &path, purpose)?;
    while replay.next_record(&*vfs)? {}
    replay.require_torn_tail(&*vfs)?;
    let recorded = Recorded {
        written: replay.contents.whole(),
        num_blocks: replay.sums.blocks().len(),
        num_merged: replay.joined.num_merged(),
    };
    let mut journal = Journal::reopen(vfs, &path, replay.at, replay.last_checksum, recorded)?;
    if replay.has_records && !replay.is_sealed {
        journal.seal()?;
    }
    Ok(Some(Recovered {
        journal,
        contents: replay.contents,
        sums: replay.sums,
        joined: replay.joined,
    }))
}

/// A journal while it is read.
struct Replay {
    file: File,
    file_bytes: u64,
    /// Where the next record would begin.
    at: u64,
    last_checksum: u64,
    has_records: bool,
    /// Whether the last record is followed by its seal.
    is_sealed: bool,
    contents: Contents,
    sums: BlockSums,
    joined: JoinedNotes,
}

impl Replay {
    fn begin(vfs: &dyn Vfs, path: &Path, purpose: &Purpose<'_>) -> Result<Self> {
        let file = vfs.open(path)?;
        let file_bytes = file.num_bytes()?;
        let mut replay = Self {
            file,
            file_bytes,
            at: 0,
            last_checksum: 0,
            has_records: false,
            is_sealed: false,
            contents: Contents::new(purpose.dtype, purpose.has_modes),
            sums: BlockSums::default(),
            joined: JoinedNotes::default(),
        };
        let fixed = replay.read(vfs, 0, FIXED_BYTES as u64)?;
        let fixed = fixed.ok_or_else(|| damaged(path, "it is too short for a header"))?;
        if !fixed.starts_with(&JOURNAL_MAGIC) {
            return Err(damaged(
                path,
                "it does not begin with the magic of a journal",
            ));
        }
        let num_bytes = load_u64(&fixed, 16).and_then(|n| n.checked_add(FIXED_BYTES as u64 + 8));
        let header = match num_bytes {
            Some(num_bytes) => replay.read(vfs, 0, num_bytes)?,
            None => None,
        };
        let header = header.ok_or_else(|| damaged(path, "its header is cut short"))?;
        let checksum = trailing_u64(&header);
        let content = header.get(..header.len() - 8).unwrap_or_default();
        if xxh3_64(content) != checksum {
            return Err(damaged(path, "the checksum of its header does not match"));
        }
        let version = header.get(8..).and_then(<[u8]>::first_chunk);
        let version = u32::from_le_bytes(version.copied().unwrap_or_default());
        if version != JOURNAL_VERSION {
            return Err(Error::UnsupportedFormat {
                path: path.to_path_buf(),
                detail: format!(
                    "version {version}; this build goes on with version {JOURNAL_VERSION}"
                ),
            });
        }
        purpose.require_same(path, &header)?;
        replay.at = header.len() as u64;
        replay.last_checksum = checksum;
        Ok(replay)
    }

    /// The bytes at an offset; `None` if the file ends before they do.
    fn read(&self, vfs: &dyn Vfs, at: u64, num_bytes: u64) -> Result<Option<Vec<u8>>> {
        let end = at.checked_add(num_bytes);
        let fits = end.is_some_and(|end| end <= self.file_bytes);
        let Some(num_bytes) = usize::try_from(num_bytes).ok().filter(|_| fits) else {
            return Ok(None);
        };
        let mut bytes = vec![0; num_bytes];
        vfs.read_at(&self.file, at, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Takes up the record at hand, if a whole one is.
    fn next_record(&mut self, vfs: &dyn Vfs) -> Result<bool> {
        let Some(num_bytes) = self.read(vfs, self.at, 8)? else {
            return Ok(false);
        };
        let Some(num_bytes) = trailing_u64(&num_bytes).checked_add(16) else {
            return Ok(false);
        };
        let Some(record) = self.read(vfs, self.at, num_bytes)? else {
            return Ok(false);
        };
        let checksum = trailing_u64(&record);
        let content = record.get(..record.len() - 8).unwrap_or_default();
        if xxh3_64_with_seed(content, self.last_checksum) != checksum {
            return Ok(false);
        }
        if self.take_up(content.get(8..).unwrap_or_default()).is_none() {
            let at = self.at;
            let detail = format!("the record at byte {at} contradicts those before it");
            return Err(damaged(self.file.path(), &detail));
        }
        self.at += num_bytes;
        self.last_checksum = checksum;
        self.has_records = true;
        let seal = self.read(vfs, self.at, SEAL_BYTES as u64)?;
        self.is_sealed = seal.is_some_and(|seal| seal == seal_at(self.at));
        if self.is_sealed {
            self.at += SEAL_BYTES as u64;
        }
        Ok(true)
    }

    /// Adds what a record holds; `None` if it cannot be.
    fn take_up(&mut self, record: &[u8]) -> Option<()> {
        let (fields, mut rest) = record.split_at_checked(8 * NUM_FIELDS)?;
        let field = |at: usize| load_u64(fields, 8 * at);
        let (documents, sequences, tokens) = (field(0)?, field(1)?, field(2)?);
        let (blocks, notes, references) = (field(3)?, field(4)?, field(5)?);
        let before = self.contents.whole();
        let mut take = |items: u64, item_bytes: usize| {
            let num_bytes = usize::try_from(items).ok()?.checked_mul(item_bytes)?;
            let (taken, after) = rest.split_at_checked(num_bytes)?;
            rest = after;
            Some(taken)
        };
        let new_sequences = sequences.checked_sub(before.num_sequences)?;
        let lengths = take(new_sequences, 4)?.as_chunks().0;
        let num_modes = if self.contents.has_modes() {
            new_sequences
        } else {
            0
        };
        let modes = take(num_modes, 1)?;
        let new_documents = documents.checked_sub(before.num_documents)?;
        let ends = take(new_documents, 8)?.as_chunks().0;
        let references = take(references, 1)?;
        let new_blocks = take(blocks, 8)?.as_chunks::<8>().0;
        let notes = take(notes, 1)?;
        if !rest.is_empty() {
            return None;
        }

        let lengths: Vec<u32> = lengths.iter().map(|&raw| u32::from_le_bytes(raw)).collect();
        let mut end = before.num_sequences;
        let mut counts = Vec::with_capacity(ends.len());
        for &raw in ends {
            let next = u64::from_le_bytes(raw);
            counts.push(next.checked_sub(end)?);
            end = next;
        }
        if end != sequences || lengths.iter().any(|&length| i32::try_from(length).is_err()) {
            return None;
        }
        self.contents
            .extend_references(references, before.num_sequences..sequences)?;
        self.contents.push_documents(&lengths, &counts, Some(modes));

        let parse = |entry: &[u8; 8]| {
            let [num_bytes, crc] = [entry.first_chunk()?, entry.last_chunk()?];
            let [num_bytes, crc] = [num_bytes, crc].map(|&half| u32::from_le_bytes(half));
            (1..=BLOCK_BYTES)
                .contains(&num_bytes)
                .then_some(Block { num_bytes, crc })
        };
        let new_blocks = new_blocks.iter().map(parse).collect::<Option<Vec<_>>>()?;
        let first_block = self.sums.blocks().len().saturating_sub(1);
        self.sums.replace_from(first_block, new_blocks.into_iter());
        self.joined.extend_from_encoded(notes)?;

        let whole = self.contents.whole();
        let item_bytes = self.contents.dtype().item_bytes() as u64;
        let is_sound = whole.num_tokens == tokens
            && tokens.checked_mul(item_bytes) == Some(self.sums.num_bytes());
        is_sound.then_some(())
    }

    /// [`Error::Corrupt`] if a record is among what follows those that were taken up.
    fn require_torn_tail(&self, vfs: &dyn Vfs) -> Result<()> {
        let tail = self.read(vfs, self.at, self.file_bytes - self.at)?;
        let tail = tail.unwrap_or_default();
        let is_seal = |&(at, found): &(usize, &[u8])| {
            found.starts_with(&SEAL_MAGIC) && found == seal_at(self.at + at as u64)
        };
        match tail.windows(SEAL_BYTES).enumerate().find(is_seal) {
            None => Ok(()),
            Some((at, _)) => {
                let detail = format!(
                    "the bytes {} to {} are no record, but documents were acknowledged in them",
                    self.at,
                    self.at + at as u64
                );
                Err(damaged(self.file.path(), &detail))
            }
        }
    }
}

impl Purpose<'_> {
    /// Refuses a header that is sound but not of this purpose.
    fn require_same(&self, path: &Path, header: &[u8]) -> Result<()> {
        let text = header.get(FIXED_BYTES..header.len() - 8);
        let notes =
            text.and_then(|text| serde_json::from_slice::<JsonMap<String, Value>>(text).ok());
        let fields = notes
            .as_ref()
            .and_then(|notes| Some((notes.get("prefix")?, notes.get("vocabulary_fingerprint")?)));
        let dtype = header.get(12).and_then(|&code| Dtype::from_code(code));
        let has_modes = header.get(13).is_some_and(|&modes| modes != 0);
        let Some(((name, vocabulary), dtype)) = fields.zip(dtype) else {
            return Err(damaged(path, "its header cannot be read"));
        };
        let kind = |dtype: Dtype, has_modes| {
            let modes = if has_modes { "with" } else { "without" };
            format!("{} {modes} modes", dtype.name())
        };
        let (found, wanted) = (kind(dtype, has_modes), kind(self.dtype, self.has_modes));
        let advice = "resume with what it was begun with, or begin anew without resuming";
        if found != wanted {
            return Err(Error::argument(format!(
                "{} was begun for {found}, not for {wanted}; {advice}",
                path.display()
            )));
        }
        if name.as_str() != Some(&self.name()) {
            return Err(Error::argument(format!(
                "{} was begun for the prefix {name}, not for {:?}; {advice}",
                path.display(),
                self.name()
            )));
        }
        if vocabulary.as_str() != self.vocabulary_fingerprint {
            let wanted = self.vocabulary_fingerprint.map_or(Value::Null, Value::from);
            return Err(Error::VocabularyMismatch(format!(
                "{} was begun with the vocabulary {vocabulary}, not with {wanted}; {advice}",
                path.display()
            )));
        }
        Ok(())
    }
}

fn damaged(path: &Path, detail: &str) -> Error {
    Error::corrupt(
        path,
        format!(
            "{detail}; bring back a copy of it and of the .bin.tmp beside it, or begin anew without \
             resuming"
        ),
    )
}
