//! `<prefix>.journal`: what has been acknowledged of a dataset in the making, so that a writer that
//! was killed can go on.
//!
//! Ids grow in `<prefix>.bin.tmp`. A record is appended here once all ids that it speaks of are
//! durable there, and the documents in it are acknowledged once the record is durable itself. So the
//! last whole record says where both files are good, and what follows in either is cut off. Records
//! hold the checksums of the ids, so that none are read again. All little-endian:
//!
//! | bytes | header |
//! |---|---|
//! | 8 | magic `MMFJRNL\0` |
//! | 4 | version, u32, 1 |
//! | 1 | dtype code, as in `.idx` |
//! | 1 | 1 if sequences have modes, else 0 |
//! | 2 | 0 |
//! | 8 | N, u64 |
//! | N | a JSON object: `prefix`, its file name; `vocabulary_fingerprint`, a string or null |
//! | 8 | XXH3-64 of the header before |
//!
//! | bytes | each record: what was added since the one before |
//! |---|---|
//! | 8 | bytes of the record after this field and before its checksum, u64 |
//! | 8, 8, 8 | documents, sequences and ids in all, u64 |
//! | 8, 8, 8 | blocks B, bytes of notes N and bytes of media references R in this record, u64 |
//! | 4·S | lengths of the new sequences, u32 |
//! | S or 0 | their modes |
//! | 8·D | ends of the new documents, u64: sequences up to and with each |
//! | R | references of the new sequences: of each the sequence, u64; the bytes of its text, u32; the text |
//! | 8·B | blocks as in the sidecar; the first takes the place of the last one known |
//! | N | notes of datasets that were appended: a JSON object, or nothing |
//! | 8 | XXH3-64 of the record before, its seed the checksum before that |
//! | 16 | seal: magic `ENDOFREC`; XXH3-64 of that, its seed the offset of the seal |
//!
//! A crash may leave any part of a record that was not acknowledged. The seal tells that from damage:
//! it is written once the record is durable, so wherever one is found behind bytes that are no
//! record, acknowledged documents are at stake, and the journal is refused.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::blocks::{BlockSums, Mark};
use super::contents::{Contents, Written};
use super::header::Dtype;
use super::joined::JoinedNotes;
use super::prefix::Prefix;
use crate::error::{Error, Result};
use crate::vfs::{File, Vfs};

pub(super) const JOURNAL_MAGIC: [u8; 8] = *b"MMFJRNL\0";
pub(super) const JOURNAL_VERSION: u32 = 1;
/// Bytes of the header before its JSON.
pub(super) const FIXED_BYTES: usize = 24;
/// Fields of a record before its arrays.
pub(super) const NUM_FIELDS: usize = 6;
pub(super) const SEAL_MAGIC: [u8; 8] = *b"ENDOFREC";
pub(super) const SEAL_BYTES: usize = 16;

/// What a journal is begun for; one that was begun for something else is not gone on with.
#[derive(Debug)]
pub(super) struct Purpose<'a> {
    pub(super) prefix: &'a Prefix,
    pub(super) dtype: Dtype,
    pub(super) has_modes: bool,
    pub(super) vocabulary_fingerprint: Option<&'a str>,
}

/// A journal that is open for records.
#[derive(Debug)]
pub(super) struct Journal {
    vfs: Arc<dyn Vfs>,
    file: File,
    num_bytes: u64,
    /// Checksum of the last record, or of the header.
    last_checksum: u64,
    recorded: Recorded,
    is_broken: bool,
}

/// How much of everything the records hold.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Recorded {
    pub(super) written: Written,
    pub(super) num_blocks: usize,
    pub(super) num_merged: usize,
}

impl Journal {
    /// Begins a journal. It appears under its name when it is whole, so one with a bad header is
    /// damaged.
    pub(super) fn create(vfs: Arc<dyn Vfs>, purpose: &Purpose<'_>) -> Result<Self> {
        let header = purpose.encode();
        let (temporary, path) = (purpose.prefix.new_journal(), purpose.prefix.journal());
        let mut file = vfs.create(&temporary)?;
        vfs.write(&mut file, &header)?;
        vfs.sync(&file)?;
        vfs.rename(&temporary, &path)?;
        let (num_bytes, checksum) = (header.len() as u64, trailing_u64(&header));
        Self::reopen(vfs, &path, num_bytes, checksum, Recorded::default())
    }

    /// Opens a journal to go on after its first `num_bytes`, which are durable when this returns.
    pub(super) fn reopen(
        vfs: Arc<dyn Vfs>,
        path: &Path,
        num_bytes: u64,
        last_checksum: u64,
        recorded: Recorded,
    ) -> Result<Self> {
        let file = vfs.reopen(path, num_bytes)?;
        // The process that wrote them may have been killed before it came to these.
        vfs.sync(&file)?;
        vfs.sync_folder_of(path)?;
        Ok(Self {
            vfs,
            file,
            num_bytes,
            last_checksum,
            recorded,
            is_broken: false,
        })
    }

    /// What is acknowledged.
    pub(super) fn durable(&self) -> Written {
        self.recorded.written
    }

    /// Acknowledges all whole documents. Their ids are durable, and `mark` is where they end.
    pub(super) fn record(
        &mut self,
        contents: &Contents,
        sums: &BlockSums,
        mark: Mark,
        joined: &JoinedNotes,
    ) -> Result<Written> {
        if self.is_broken {
            return Err(Error::argument(format!(
                "an earlier write to {} failed; open a new writer that resumes from it",
                self.file.path().display()
            )));
        }
        let next = Recorded {
            written: contents.whole(),
            num_blocks: mark.num_blocks,
            num_merged: joined.num_merged(),
        };
        if next.written == self.recorded.written {
            return Ok(next.written);
        }
        let record = self.encode(contents, sums, mark, joined, next);
        self.is_broken = true;
        self.vfs.write(&mut self.file, &record)?;
        self.vfs.sync(&self.file)?;
        self.num_bytes += record.len() as u64;
        self.last_checksum = trailing_u64(&record);
        self.recorded = next;
        self.seal()?;
        self.is_broken = false;
        Ok(next.written)
    }

    /// Says that the record before is acknowledged.
    pub(super) fn seal(&mut self) -> Result<()> {
        self.vfs.write(&mut self.file, &seal_at(self.num_bytes))?;
        self.num_bytes += SEAL_BYTES as u64;
        Ok(())
    }

    fn encode(
        &self,
        contents: &Contents,
        sums: &BlockSums,
        mark: Mark,
        joined: &JoinedNotes,
        next: Recorded,
    ) -> Vec<u8> {
        let before = self.recorded;
        let first_block = before.num_blocks.saturating_sub(1);
        let blocks = sums.between(first_block, mark);
        let notes = joined.encode_after(before.num_merged);
        let new = |counts: fn(&Written) -> u64| {
            // What is in memory is counted by usize.
            let [from, to] = [before.written, next.written]
                .map(|written| usize::try_from(counts(&written)).unwrap_or(usize::MAX));
            from..to
        };
        let sequences = new(|written| written.num_sequences);
        let numbers = before.written.num_sequences..next.written.num_sequences;
        let references = contents.references().encode(&numbers);
        let documents = new(|written| written.num_documents);
        let lengths = contents.lengths().get(sequences.clone());
        let modes = contents.modes().get(sequences);
        let ends = contents.document_ends().get(documents);

        let mut record = vec![0; 8];
        for field in [
            next.written.num_documents,
            next.written.num_sequences,
            next.written.num_tokens,
            (mark.num_blocks - first_block) as u64,
            notes.len() as u64,
            references.len() as u64,
        ] {
            record.extend(field.to_le_bytes());
        }
        for length in lengths.unwrap_or_default() {
            record.extend_from_slice(&length.to_le_bytes());
        }
        record.extend_from_slice(modes.unwrap_or_default());
        for end in ends.unwrap_or_default() {
            record.extend_from_slice(&end.to_le_bytes());
        }
        record.extend(references);
        for block in blocks {
            record.extend_from_slice(&block.num_bytes.to_le_bytes());
            record.extend_from_slice(&block.crc.to_le_bytes());
        }
        record.extend(notes);
        let num_bytes = record.len() as u64 - 8;
        if let Some(field) = record.first_chunk_mut() {
            *field = num_bytes.to_le_bytes();
        }
        record.extend(xxh3_64_with_seed(&record, self.last_checksum).to_le_bytes());
        record
    }
}

impl Purpose<'_> {
    /// Name of the dataset.
    pub(super) fn name(&self) -> String {
        let name = self.prefix.path().file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    fn encode(&self) -> Vec<u8> {
        let notes = json!({
            "prefix": self.name(),
            "vocabulary_fingerprint": self.vocabulary_fingerprint,
        });
        let notes = notes.to_string();
        let mut bytes = JOURNAL_MAGIC.to_vec();
        bytes.extend(JOURNAL_VERSION.to_le_bytes());
        bytes.extend([self.dtype.code(), u8::from(self.has_modes), 0, 0]);
        bytes.extend((notes.len() as u64).to_le_bytes());
        bytes.extend(notes.into_bytes());
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        bytes
    }
}

/// The seal at an offset.
pub(super) fn seal_at(offset: u64) -> [u8; SEAL_BYTES] {
    let mut seal = [0; SEAL_BYTES];
    let (magic, checksum) = seal.split_at_mut(SEAL_MAGIC.len());
    magic.copy_from_slice(&SEAL_MAGIC);
    checksum.copy_from_slice(&xxh3_64_with_seed(&SEAL_MAGIC, offset).to_le_bytes());
    seal
}

/// The last eight bytes as a number.
pub(super) fn trailing_u64(bytes: &[u8]) -> u64 {
    bytes.last_chunk().map_or(0, |&raw| u64::from_le_bytes(raw))
}
