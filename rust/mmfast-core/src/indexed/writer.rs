//! Writes an indexed dataset, byte for byte as megatron-core's builder would.
//!
//! Ids go to a temporary `.bin` as they come; everything else stays in memory (see
//! [`super::contents`]) until the end. Nothing is visible under the dataset's name before
//! [`DatasetWriter::finish`]; dropping the writer instead leaves what was there before.
//!
//! A writer that resumes keeps a journal (see [`super::journal`]): what it acknowledged survives
//! the end of the process, however it comes, and the next writer that resumes goes on from there.

use std::sync::Arc;

use super::append::AppendFile;
use super::blocks::{BlockSums, Mark};
use super::contents::{Contents, Written, check_references, require_alike, sequence_length};
use super::header::Dtype;
use super::joined::JoinedNotes;
use super::journal::{Journal, Purpose};
use super::map::Tokens;
use super::pair::{write_index, write_references, write_sidecar};
use super::prefix::Prefix;
use super::publish::Staging;
use super::reader::IndexedDataset;
use super::replay::recover;
use super::sidecar::Notes;
use crate::error::{Error, Result};
use crate::vfs::{Disk, Vfs};

/// Ids encoded before the buffer may be written out.
const CHUNK_TOKENS: usize = 1 << 16;
/// Bytes of ids after which a journaled writer acknowledges what it has.
const RECORD_BYTES: u64 = 64 << 20;

/// A dataset in the making.
///
/// Every call that adds something either adds all of it or, on a bad argument, nothing.
#[derive(Debug)]
pub struct DatasetWriter {
    bin: AppendFile<BlockSums>,
    contents: Contents,
    /// Where the ids of whole documents end.
    documents_end: Mark,
    notes: Notes,
    joined: JoinedNotes,
    journal: Option<Journal>,
    staging: Staging,
}

impl DatasetWriter {
    /// Begins a dataset at `prefix`, in place of one that may be there. A journal of an earlier
    /// writer is discarded.
    ///
    /// [`Error::Locked`] if another writer is at work on it.
    pub fn create(prefix: &Prefix, dtype: Dtype, has_modes: bool) -> Result<Self> {
        Self::create_on(Arc::new(Disk), prefix, dtype, has_modes)
    }

    /// [`Self::create`] on a given file system.
    pub fn create_on(
        vfs: Arc<dyn Vfs>,
        prefix: &Prefix,
        dtype: Dtype,
        has_modes: bool,
    ) -> Result<Self> {
        let staging = Staging::begin(vfs, prefix)?;
        let bin = new_bin(&staging)?;
        let contents = Contents::new(dtype, has_modes);
        Ok(Self::over(staging, bin, contents, JoinedNotes::default()))
    }

    /// Goes on with a dataset that an earlier writer left unfinished, or begins one, with a journal:
    /// what [`Self::flush`] has acknowledged outlives the process, whatever ends it. The producer
    /// goes on after the documents that [`Self::written`] counts.
    ///
    /// A finished dataset has no journal, so this then begins anew and in the end replaces it.
    ///
    /// [`Error::Locked`] if another writer is at work on it, [`Error::InvalidArgument`] if the
    /// journal was begun for another dtype or kind, [`Error::VocabularyMismatch`] if for another
    /// vocabulary, [`Error::Corrupt`] if acknowledged documents have been lost.
    pub fn resume(prefix: &Prefix, dtype: Dtype, has_modes: bool, notes: Notes) -> Result<Self> {
        Self::resume_on(Arc::new(Disk), prefix, dtype, has_modes, notes)
    }

    /// [`Self::resume`] on a given file system.
    pub fn resume_on(
        vfs: Arc<dyn Vfs>,
        prefix: &Prefix,
        dtype: Dtype,
        has_modes: bool,
        notes: Notes,
    ) -> Result<Self> {
        let staging = Staging::begin_journaled(Arc::clone(&vfs), prefix)?;
        let purpose = Purpose {
            prefix,
            dtype,
            has_modes,
            vocabulary_fingerprint: notes.vocabulary_fingerprint.as_deref(),
        };
        let (journal, bin, contents, joined);
        if let Some(found) = recover(Arc::clone(&vfs), &purpose)? {
            (journal, contents, joined) = (found.journal, found.contents, found.joined);
            bin = recover_bin(&staging, found.sums)?;
        } else {
            bin = new_bin(&staging)?;
            journal = Journal::create(vfs, &purpose)?;
            (contents, joined) = (Contents::new(dtype, has_modes), JoinedNotes::default());
        }
        let mut writer = Self::over(staging, bin, contents, joined);
        writer.journal = Some(journal);
        writer.notes = notes;
        Ok(writer)
    }

    fn over(
        staging: Staging,
        bin: AppendFile<BlockSums>,
        contents: Contents,
        joined: JoinedNotes,
    ) -> Self {
        Self {
            documents_end: bin.digest().mark(),
            bin,
            contents,
            notes: Notes::default(),
            joined,
            journal: None,
            staging,
        }
    }

    /// What the sidecar will say of the data beyond its bytes.
    pub fn set_notes(&mut self, notes: Notes) {
        self.notes = notes;
    }

    /// Number type of the ids.
    pub fn dtype(&self) -> Dtype {
        self.contents.dtype()
    }

    /// Whether each sequence carries a mode.
    pub fn has_modes(&self) -> bool {
        self.contents.has_modes()
    }

    /// Where the dataset will be.
    pub fn prefix(&self) -> &Prefix {
        self.staging.prefix()
    }

    /// What has been added so far, by this writer and those that it resumed from; documents are
    /// those that have ended.
    pub fn written(&self) -> Written {
        self.contents.written()
    }

    /// What is acknowledged: the next writer that resumes finds at least this. Nothing without a
    /// journal.
    pub fn durable(&self) -> Written {
        let durable = self.journal.as_ref().map(Journal::durable);
        durable.unwrap_or_default()
    }

    /// Adds one sequence to the open document.
    ///
    /// Ids are of the dataset's dtype, or `int64` in range of it; [`Error::TokenOutOfRange`] else.
    pub fn add_sequence(&mut self, tokens: Tokens<'_>, mode: u8) -> Result<()> {
        self.add_referring_sequence(tokens, mode, None)
    }

    /// The same with a media reference, which needs [`super::MEDIA_BIT`] in the mode.
    pub fn add_referring_sequence(
        &mut self,
        tokens: Tokens<'_>,
        mode: u8,
        reference: Option<&str>,
    ) -> Result<()> {
        let length = sequence_length(tokens.len())?;
        self.contents
            .check(tokens, &[length], &[1], Some(&[mode]))?;
        let reference = reference.map(|text| (0, text));
        check_references(&[mode], reference.as_slice())?;
        self.append(tokens)?;
        self.contents.push_references(reference.into_iter());
        self.contents.push_sequences(&[length], Some(&[mode]));
        Ok(())
    }

    /// Ends the open document, which may be empty.
    pub fn end_document(&mut self) {
        self.contents.end_document();
        self.documents_end = self.bin.digest().mark();
    }

    /// Adds documents at once: `tokens` are those of all their sequences back to back, `lengths` the
    /// sequences' lengths, `sequences_per_document` the number of sequences in each document. Missing
    /// `modes` are 0. Sequences added before without an end belong to the first of the documents.
    pub fn add_documents(
        &mut self,
        tokens: Tokens<'_>,
        lengths: &[u32],
        sequences_per_document: &[u64],
        modes: Option<&[u8]>,
    ) -> Result<()> {
        self.add_referring_documents(tokens, lengths, sequences_per_document, modes, &[])
    }

    /// The same with media references: each with the place of its sequence among those of this call,
    /// which needs [`super::MEDIA_BIT`] in its mode.
    pub fn add_referring_documents(
        &mut self,
        tokens: Tokens<'_>,
        lengths: &[u32],
        sequences_per_document: &[u64],
        modes: Option<&[u8]>,
        references: &[(u64, &str)],
    ) -> Result<()> {
        self.contents
            .check(tokens, lengths, sequences_per_document, modes)?;
        check_references(modes.unwrap_or_default(), references)?;
        if sequences_per_document.is_empty() {
            return Ok(());
        }
        self.append(tokens)?;
        self.contents.push_references(references.iter().copied());
        self.contents
            .push_documents(lengths, sequences_per_document, modes);
        self.documents_end = self.bin.digest().mark();
        Ok(())
    }

    /// Adds all documents of a published dataset, copying its ids inside the kernel.
    ///
    /// [`Error::InvalidArgument`] if its dtype or its having modes differs from this dataset's, and
    /// [`Error::VocabularyMismatch`] if it names another vocabulary than those added before.
    pub fn add_dataset(&mut self, dataset: &IndexedDataset) -> Result<()> {
        self.contents.require_whole_documents()?;
        require_alike(dataset, self.dtype(), self.has_modes())?;
        self.record_if_due()?;
        self.joined.add(dataset)?;
        self.bin
            .push_file(&dataset.prefix().bin(), &*dataset.block_sums()?)?;
        self.contents.push_dataset(dataset);
        self.documents_end = self.bin.digest().mark();
        Ok(())
    }

    /// Acknowledges all documents that have ended, and counts them: they are durable. A writer that
    /// resumes does so by itself now and then, before it takes more after 64 MiB of ids.
    ///
    /// [`Error::InvalidArgument`] without a journal.
    pub fn flush(&mut self) -> Result<Written> {
        let Some(journal) = &mut self.journal else {
            return Err(Error::argument(
                "only a writer with a journal can make documents durable before it has finished; \
                 create it with resume=True",
            ));
        };
        if self.contents.whole() == journal.durable() {
            return Ok(journal.durable());
        }
        self.bin.sync()?;
        let sums = self.bin.digest();
        journal.record(&self.contents, sums, self.documents_end, &self.joined)
    }

    /// [`Error::InvalidArgument`] while sequences belong to no document, which [`Self::finish`]
    /// would refuse too, but only after taking the writer.
    pub fn require_whole_documents(&self) -> Result<()> {
        self.contents.require_whole_documents()
    }

    /// Makes everything durable and publishes it under the prefix. The journal goes.
    pub fn finish(mut self) -> Result<Written> {
        self.require_whole_documents()?;
        if self.journal.is_some() {
            // What fails from here on, for want of space perhaps, can be taken up again.
            self.flush()?;
        }
        let written = self.written();
        let header = self.contents.header();
        let sums = self.bin.finish()?;
        let path = self.staging.prefix().new_idx();
        let index = write_index(self.staging.vfs(), &path, &self.contents)?;
        let references = self.contents.references();
        write_references(&self.staging, &index, || references.iter_from(0))?;
        self.joined.finish(&mut self.notes);
        write_sidecar(&self.staging, &header, written, &index, sums, self.notes)?;
        self.staging.publish()?;
        Ok(written)
    }

    /// Gives up, and discards what the journal has acknowledged. Merely dropping a writer keeps that.
    pub fn discard(self) -> Result<()> {
        self.staging.discard()
    }

    fn record_if_due(&mut self) -> Result<()> {
        let Some(journal) = &self.journal else {
            return Ok(());
        };
        let num_tokens = self.contents.whole().num_tokens - journal.durable().num_tokens;
        if num_tokens * self.dtype().item_bytes() as u64 >= RECORD_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn append(&mut self, tokens: Tokens<'_>) -> Result<()> {
        self.record_if_due()?;
        let dtype = self.dtype();
        if tokens.dtype() == dtype {
            self.bin.push_bytes(tokens.bytes())?;
        } else if let Tokens::I64(ids) = tokens {
            for chunk in ids.chunks(CHUNK_TOKENS) {
                self.bin.push(|buffer| match dtype.item_bytes() {
                    1 => extend_with_low_bytes::<1>(buffer, chunk),
                    2 => extend_with_low_bytes::<2>(buffer, chunk),
                    _ => extend_with_low_bytes::<4>(buffer, chunk),
                })?;
            }
        }
        Ok(())
    }
}

fn new_bin(staging: &Staging) -> Result<AppendFile<BlockSums>> {
    let vfs = Arc::clone(staging.vfs());
    AppendFile::create(vfs, &staging.prefix().new_bin(), BlockSums::default())
}

/// Opens the ids that a journal vouches for, without what a killed writer had put behind them.
fn recover_bin(staging: &Staging, sums: BlockSums) -> Result<AppendFile<BlockSums>> {
    let (vfs, path) = (staging.vfs(), staging.prefix().new_bin());
    let num_bytes = sums.num_bytes();
    if !vfs.exists(&path)? {
        if num_bytes == 0 {
            return new_bin(staging);
        }
        return Err(Error::corrupt(
            &path,
            format!(
                "it is not there, but {} acknowledges {num_bytes} bytes in it; bring it back, or \
                 begin anew without resuming",
                staging.prefix().journal().display()
            ),
        ));
    }
    let file = vfs.reopen(&path, num_bytes)?;
    vfs.sync(&file)?;
    Ok(AppendFile::over(Arc::clone(vfs), file, sums))
}

/// Appends the low bytes of ids that have been found to fit them. With the room made first, this
/// compiles to wide moves.
fn extend_with_low_bytes<const N: usize>(buffer: &mut Vec<u8>, ids: &[i64]) {
    let start = buffer.len();
    buffer.resize(start + ids.len() * N, 0);
    let (_, room) = buffer.split_at_mut(start);
    for (slot, id) in room.as_chunks_mut::<N>().0.iter_mut().zip(ids) {
        *slot = id.to_le_bytes().first_chunk().copied().unwrap_or([0; N]);
    }
}
