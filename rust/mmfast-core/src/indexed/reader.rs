//! An indexed dataset, opened for reading.
//!
//! Both files are mapped, so opening costs one pass over the index and reading an id costs a load; with
//! [`Access::Pread`] nothing of `.bin` is mapped, and ids are read into the caller's memory.
//! What is checked at opening: the header, that the arrays fill `.idx` exactly, that lengths,
//! offsets and document boundaries are consistent, that `.bin` has exactly the size they imply, and
//! that the sidecar, if there is one, belongs to the two. After that no index into the maps can be out
//! of bounds. [`Verify`] asks for less, or for checksums of the ids as well.

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::access::{Access, AccessChoice, Bin};
use super::append::Digest;
use super::blocks::{BLOCK_BYTES, BlockSums};
use super::header::Dtype;
use super::index::Index;
use super::map::{Item, Map, Tokens, plain_bytes_mut, widen_bytes};
use super::media::Media;
use super::prefix::Prefix;
use super::publish;
use super::sidecar::Sidecar;
use super::source::{DocumentSource, out_of_range, too_few_ids};
use super::verify::{self, Checksums, DamagedBlock, Touched, Verify};
use crate::error::{Error, Result};
use crate::vfs::{Disk, File, Vfs};

/// Attempts to open while a writer is replacing the files, and the wait between them.
const OPEN_ATTEMPTS: usize = 100;
const OPEN_WAIT: Duration = Duration::from_millis(10);

/// The fingerprint looks at this many blocks of `.bin`, evenly spaced.
const FINGERPRINT_BLOCKS: u64 = 64;
const FINGERPRINT_BLOCK_BYTES: u64 = 4096;

/// Bytes of a run that is copied next that are asked for while the one before is copied. After these the
/// processor has found out by itself that it is read in order.
const AHEAD_BYTES: usize = 1024;

/// A published dataset. Views of its ids borrow from it; whoever needs them longer keeps an `Arc`.
#[derive(Debug)]
pub struct IndexedDataset {
    prefix: Prefix,
    index: Index,
    bin: Bin,
    access: AccessChoice,
    /// Device and number of the `.idx`.
    identity: (u64, u64),
    sidecar: Option<(Sidecar, Checksums)>,
    media: Option<Media>,
    /// Present if blocks are to be checked when they are first read.
    touched: Option<Touched>,
    fingerprint: OnceLock<u64>,
}

impl IndexedDataset {
    /// Opens `<prefix>.bin` and `<prefix>.idx` and checks them.
    pub fn open(prefix: &Prefix) -> Result<Self> {
        Self::open_on(&Disk, prefix, Verify::default())
    }

    /// [`Self::open`] on a given file system, with a given level of verification; both files are mapped.
    ///
    /// [`Error::InvalidArgument`] if checksums are asked for and there is no sidecar. A pair whose
    /// publication was cut short by a crash is first put in place. A pair that is being replaced
    /// right now is waited for.
    pub fn open_on(vfs: &dyn Vfs, prefix: &Prefix, level: Verify) -> Result<Self> {
        let files = Files::open(vfs, prefix, level)?;
        let access = Access::Mmap.choose(&files.others.bin)?;
        let contents = Contents {
            index: Map::new(&files.idx)?,
            bin: Bin::Mapped(Map::new(&files.others.bin)?),
            sidecar: files.others.sidecar.as_ref().map(Map::new).transpose()?,
            media: files.others.media.as_ref().map(Map::new).transpose()?,
            access,
            identity: files.idx.identity()?,
        };
        Self::over(prefix, contents, level)
    }

    /// [`Self::open_on`], with a choice of how the files are reached.
    pub fn open_with(
        vfs: &Arc<dyn Vfs>,
        prefix: &Prefix,
        level: Verify,
        access: Access,
    ) -> Result<Self> {
        let files = Files::open(&**vfs, prefix, level)?;
        let access = access.choose(&files.others.bin)?;
        let content = |file: &File| {
            if access.is_mapped {
                Map::new(file)
            } else {
                Map::read(&**vfs, file)
            }
        };
        let index = content(&files.idx)?;
        let sidecar = files.others.sidecar.as_ref().map(content).transpose()?;
        let media = files.others.media.as_ref().map(content).transpose()?;
        let identity = files.idx.identity()?;
        let bin = if access.is_mapped {
            Bin::Mapped(Map::new(&files.others.bin)?)
        } else {
            Bin::Read {
                num_bytes: files.others.bin.num_bytes()?,
                file: files.others.bin,
                vfs: Arc::clone(vfs),
            }
        };
        let contents = Contents {
            index,
            bin,
            sidecar,
            media,
            access,
            identity,
        };
        Self::over(prefix, contents, level)
    }

    fn over(prefix: &Prefix, contents: Contents, level: Verify) -> Result<Self> {
        let bin_bytes = contents.bin.num_bytes();
        let open = match level {
            Verify::None => Index::open_unchecked,
            _ => Index::open,
        };
        let index = open(&prefix.idx(), contents.index, bin_bytes)?;
        if bin_bytes != index.bin_bytes() {
            return Err(Error::corrupt(
                &prefix.bin(),
                bin_size_mismatch(&index, bin_bytes),
            ));
        }
        let sidecar = match contents.sidecar {
            Some(content) => {
                let path = prefix.sidecar();
                let sidecar = Sidecar::parse(&path, content.bytes())?;
                sidecar.require_belongs(&path, &index)?;
                let checksums = Checksums::new(&sidecar.sums);
                Some((sidecar, checksums))
            }
            None => None,
        };
        let media = match contents.media {
            Some(content) if index.has_media() => {
                let hash = (level != Verify::None).then(|| xxh3_128(index.bytes()));
                Some(Media::parse(
                    &prefix.media(),
                    content,
                    hash,
                    index.num_sequences(),
                )?)
            }
            _ => None,
        };
        let mut dataset = Self {
            prefix: prefix.clone(),
            index,
            bin: contents.bin,
            access: contents.access,
            identity: contents.identity,
            sidecar,
            media,
            touched: None,
            fingerprint: OnceLock::new(),
        };
        if level.needs_checksums() {
            let num_blocks = dataset.require_checksums()?.num_blocks();
            match level {
                Verify::Full => dataset.require_sound_blocks()?,
                _ => dataset.touched = Some(Touched::new(num_blocks)),
            }
        }
        Ok(dataset)
    }

    /// Checks again what [`Verify`] checks at opening, now; lazily means all.
    pub fn verify(&self, level: Verify) -> Result<()> {
        if level == Verify::None {
            return Ok(());
        }
        self.index.require_sound()?;
        if let Some(sidecar) = self.sidecar() {
            sidecar.require_belongs(&self.prefix.sidecar(), &self.index)?;
        }
        if level.needs_checksums() {
            self.require_checksums()?;
            self.require_sound_blocks()?;
        }
        Ok(())
    }

    /// Compares blocks with their checksums, all that have one if the range is longer.
    pub fn damaged_blocks(&self, blocks: Range<usize>) -> Result<Vec<DamagedBlock>> {
        let checksums = self.require_checksums()?;
        let blocks = blocks.start..blocks.end.min(checksums.num_blocks());
        let mut buffer = Vec::new();
        let mut damaged = Vec::new();
        for block in blocks {
            damaged.extend(checksums.check(block, &self.bin, &self.index, &mut buffer)?);
        }
        Ok(damaged)
    }

    /// The sidecar, if there is one and [`Verify::None`] did not ask to ignore it.
    pub fn sidecar(&self) -> Option<&Sidecar> {
        Some(&self.sidecar.as_ref()?.0)
    }

    /// The sums of `.bin`: those of the sidecar, or else computed from what is there.
    pub(super) fn block_sums(&self) -> Result<Cow<'_, BlockSums>> {
        if let Some(sidecar) = self.sidecar() {
            return Ok(Cow::Borrowed(&sidecar.sums));
        }
        if let Some(bytes) = self.bin.mapped() {
            return Ok(Cow::Owned(BlockSums::of(bytes)));
        }
        let (mut sums, mut buffer) = (BlockSums::default(), Vec::new());
        let num_bytes = self.bin.num_bytes();
        for start in (0..num_bytes).step_by(BLOCK_BYTES as usize) {
            let rest = usize::try_from(num_bytes - start).unwrap_or(usize::MAX);
            let piece = rest.min(BLOCK_BYTES as usize);
            sums.update(self.bin.bytes(start, piece, &mut buffer)?);
        }
        Ok(Cow::Owned(sums))
    }

    fn require_checksums(&self) -> Result<&Checksums> {
        let checksums = self.sidecar.as_ref().map(|(_, checksums)| checksums);
        checksums.ok_or_else(|| {
            Error::argument(format!(
                "{} is not there, so there are no checksums to compare; verify the index only, or \
                 write a sidecar by merging the dataset into itself",
                self.prefix.sidecar().display()
            ))
        })
    }

    fn require_sound_blocks(&self) -> Result<()> {
        verify::require_none(&self.prefix.bin(), &self.damaged_blocks(0..usize::MAX)?)
    }

    /// Where it is.
    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// Number type of the ids.
    pub fn dtype(&self) -> Dtype {
        self.index.dtype()
    }

    /// Whether the file carries a mode for each sequence. A file without sequences does not tell.
    pub fn has_modes(&self) -> bool {
        self.index.modes().is_some()
    }

    /// All sequences that have a media reference, with it.
    pub fn references(&self) -> impl Iterator<Item = (u64, &str)> {
        self.media.iter().flat_map(Media::iter)
    }

    /// What is not as megatron-core writes it but was understood, in sentences.
    pub fn findings(&self) -> Vec<String> {
        self.index.findings()
    }

    /// Device and number of the `.idx`: those of no other file while this one is there.
    pub(super) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// How many sequences there are, over all documents.
    pub fn num_sequences(&self) -> u64 {
        self.index.num_sequences()
    }

    /// How many ids there are in all.
    pub fn num_tokens(&self) -> u64 {
        self.index.num_tokens()
    }

    /// How the files are reached, and why so.
    pub fn access(&self) -> &AccessChoice {
        &self.access
    }

    /// All ids of the file, in place. [`Error::InvalidArgument`] if it is not mapped.
    pub fn tokens(&self) -> Result<Tokens<'_>> {
        self.view(0..self.bin.num_bytes())
    }

    /// All ids of the file, in place, whatever the level of verification. Who takes parts of them calls
    /// [`Self::touch`] first.
    pub fn untouched_tokens(&self) -> Result<Tokens<'_>> {
        self.view_untouched(&(0..self.bin.num_bytes()))
    }

    /// Gives back a range of ids as soon as they may be read: with [`Verify::Lazy`], once the blocks
    /// that hold them have been checked.
    pub fn touch(&self, tokens: Range<usize>) -> Result<Range<usize>> {
        self.touch_bytes(&self.bytes_of(&tokens))?;
        Ok(tokens)
    }

    /// Copies ids to `out`, from the `first` of the file on, in a number type that holds them: the
    /// dataset's own or, for ids, a wider one.
    pub fn read<T: Item>(&self, first: usize, out: &mut [T]) -> Result<()> {
        let bytes = self.bytes_of(&(first..first.saturating_add(out.len())));
        self.touch_bytes(&bytes)?;
        if T::DTYPE == self.dtype() {
            return self.bin.read(bytes.start, plain_bytes_mut(out));
        }
        let mut ids = vec![0; out.len()];
        self.read_widened(&bytes, &mut ids)?;
        for (item, id) in out.iter_mut().zip(ids) {
            *item = T::from_id(id).ok_or_else(|| {
                Error::argument(format!(
                    "{} holds ids of {}, which are not read as {}",
                    self.prefix.path().display(),
                    self.dtype().name(),
                    T::DTYPE.name()
                ))
            })?;
        }
        Ok(())
    }

    /// Says that ids will be copied soon; see [`DocumentSource::will_read`].
    pub(super) fn will_copy(&self, tokens: &Range<usize>) {
        let item_bytes = self.dtype().item_bytes();
        let [start, end] = [tokens.start, tokens.end].map(|token| token.saturating_mul(item_bytes));
        self.bin
            .prefetch(start..end.min(start.saturating_add(AHEAD_BYTES)));
    }

    /// The bytes of a range of ids; a range past the end stays one.
    fn bytes_of(&self, tokens: &Range<usize>) -> Range<u64> {
        let item_bytes = self.dtype().item_bytes() as u64;
        let [start, end] =
            [tokens.start, tokens.end].map(|at| (at as u64).saturating_mul(item_bytes));
        start..end
    }

    /// Ids at some bytes of `.bin`, which may be read; `out` has room for exactly these.
    fn read_widened(&self, bytes: &Range<u64>, out: &mut [i64]) -> Result<()> {
        let widened = if self.bin.mapped().is_some() {
            self.view_untouched(bytes)?.widen_into(out)
        } else {
            let num_bytes = usize::try_from(bytes.end - bytes.start).unwrap_or(usize::MAX);
            let mut buffer = Vec::new();
            let content = self.bin.bytes(bytes.start, num_bytes, &mut buffer)?;
            widen_bytes(content, self.dtype(), out)
        };
        widened.ok_or_else(|| {
            Error::argument(format!(
                "{} holds {} values, not token ids",
                self.prefix.path().display(),
                self.dtype().name()
            ))
        })
    }

    /// All ids of some sequences, widened to 64 bits.
    pub fn ids(&self, sequences: Range<u64>) -> Result<Vec<i64>> {
        let bytes = self.byte_range(&sequences)?;
        let num_tokens = (bytes.end - bytes.start) / self.dtype().item_bytes() as u64;
        let mut ids = vec![0; usize::try_from(num_tokens).unwrap_or(usize::MAX)];
        self.read_into(sequences, 0, &mut ids)?;
        Ok(ids)
    }

    /// The ids of one sequence, in place. [`Error::InvalidArgument`] if the file is not mapped.
    pub fn sequence(&self, sequence: u64) -> Result<Tokens<'_>> {
        self.view(self.index.byte_range(sequence)?)
    }

    /// Where some sequences lie in `.bin`: one run, because each follows the one before without a gap.
    fn byte_range(&self, sequences: &Range<u64>) -> Result<Range<u64>> {
        if sequences.is_empty() {
            return Ok(0..0);
        }
        let first = self.index.byte_range(sequences.start)?;
        if sequences.end - sequences.start == 1 {
            return Ok(first);
        }
        let last = self.index.byte_range(sequences.end - 1)?;
        // Always in this order in an index that was checked.
        Ok(first.start..last.end.max(first.start))
    }

    /// Where consecutive sequences lie among all ids.
    pub(super) fn tokens_of(&self, sequences: &Range<u64>) -> Result<Range<usize>> {
        let bytes = self.byte_range(sequences)?;
        let item_bytes = self.dtype().item_bytes() as u64;
        // They lie inside the file, whose size fits.
        let [start, end] = [bytes.start, bytes.end]
            .map(|at| usize::try_from(at / item_bytes).unwrap_or(usize::MAX));
        Ok(start..end)
    }

    /// Lengths of consecutive sequences; those that there are not are left out.
    pub(super) fn lengths_of(&self, sequences: &Range<u64>) -> impl Iterator<Item = u32> {
        let [first, num] = [
            sequences.start,
            sequences.end.saturating_sub(sequences.start),
        ]
        .map(|number| usize::try_from(number).unwrap_or(usize::MAX));
        self.index.lengths().skip(first).take(num)
    }

    /// Mode bytes of consecutive sequences; empty if there are none.
    pub(super) fn modes_of(&self, sequences: &Range<u64>) -> &[u8] {
        let ends = usize::try_from(sequences.start)
            .ok()
            .zip(usize::try_from(sequences.end).ok());
        let modes = ends.and_then(|(start, end)| self.index.modes()?.get(start..end));
        modes.unwrap_or_default()
    }

    /// A range of ids, in place and in their own number type; `None` if they have to be copied.
    pub fn slice<T: Item>(&self, tokens: &Range<usize>) -> Result<Option<&[T]>> {
        if self.bin.mapped().is_none() || T::DTYPE != self.dtype() {
            return Ok(None);
        }
        Ok(T::of(self.view(self.bytes_of(tokens))?))
    }

    /// Where a sequence lies among all ids.
    pub fn token_range(&self, sequence: u64) -> Result<Range<usize>> {
        let end = sequence.checked_add(1);
        let end = end.ok_or_else(|| out_of_range("sequence", sequence, self.num_sequences()))?;
        self.tokens_of(&(sequence..end))
    }

    /// Lengths of all sequences.
    pub fn sequence_lengths(&self) -> impl ExactSizeIterator<Item = u32> {
        self.index.lengths()
    }

    /// First sequence of each document, then the number of sequences.
    pub fn document_indices(&self) -> impl ExactSizeIterator<Item = u64> {
        self.index.document_indices()
    }

    /// Mode bytes of all sequences, if the file has them.
    pub fn sequence_modes(&self) -> Option<&[u8]> {
        self.index.modes()
    }

    /// The document that holds a sequence.
    pub fn document_of(&self, sequence: u64) -> u64 {
        self.index.document_of(sequence)
    }

    fn touch_bytes(&self, bytes: &Range<u64>) -> Result<()> {
        let (Some(touched), Some((_, checksums))) = (&self.touched, &self.sidecar) else {
            return Ok(());
        };
        touched.require_sound(bytes, checksums, &self.bin, &self.index, &self.prefix)
    }

    fn view(&self, bytes: Range<u64>) -> Result<Tokens<'_>> {
        self.touch_bytes(&bytes)?;
        self.view_untouched(&bytes)
    }

    fn view_untouched(&self, bytes: &Range<u64>) -> Result<Tokens<'_>> {
        let content = self.bin.mapped().ok_or_else(|| {
            Error::argument(format!(
                "{} is reached by {}, so its ids have no place in memory; copy them, or open it with \
                 access mmap",
                self.prefix.path().display(),
                self.access
            ))
        })?;
        let start = usize::try_from(bytes.start).ok();
        let view = start
            .zip(usize::try_from(bytes.end).ok())
            .and_then(|(start, end)| content.get(start..end));
        let view = view.and_then(|bytes| Tokens::view(bytes, self.dtype()));
        // The maps start on a page and offsets are whole ids, so this is never reached.
        view.ok_or_else(|| Error::corrupt(&self.prefix.bin(), "ids are not aligned"))
    }

    fn compute_fingerprint(&self) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(self.index.bytes());
        hash.update(self.media.as_ref().map_or(&[], Media::bytes));
        let num_bytes = self.bin.num_bytes();
        let step = num_bytes / FINGERPRINT_BLOCKS;
        let (step, block_bytes) = if step <= FINGERPRINT_BLOCK_BYTES {
            (num_bytes.max(1), num_bytes)
        } else {
            (step, FINGERPRINT_BLOCK_BYTES)
        };
        let mut buffer = Vec::new();
        for start in (0..num_bytes).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
            let piece = usize::try_from(block_bytes.min(num_bytes - start)).unwrap_or(0);
            // A block that cannot be read counts as empty; whoever reads its ids gets the error.
            hash.update(
                self.bin
                    .bytes(start, piece, &mut buffer)
                    .unwrap_or_default(),
            );
        }
        hash.digest()
    }
}

impl DocumentSource for IndexedDataset {
    fn num_documents(&self) -> u64 {
        self.index.num_documents()
    }

    fn document_sequences(&self, document: u64) -> Result<Range<u64>> {
        self.index.document_sequences(document)
    }

    fn sequence_length(&self, sequence: u64) -> Result<u32> {
        self.index.length(sequence)
    }

    fn mode(&self, sequence: u64) -> Result<u8> {
        self.index.mode(sequence)
    }

    fn media(&self, sequence: u64) -> Result<Option<String>> {
        match &self.media {
            Some(media) => Ok(media.get(sequence)?.map(str::to_string)),
            None => Ok(None),
        }
    }

    fn read_into(&self, sequences: Range<u64>, skip: u64, out: &mut [i64]) -> Result<()> {
        let run = self.byte_range(&sequences)?;
        let item_bytes = self.dtype().item_bytes() as u64;
        let start = skip.checked_mul(item_bytes);
        let start = start.and_then(|bytes| run.start.checked_add(bytes));
        let end = start.and_then(|start| start.checked_add(out.len() as u64 * item_bytes));
        let bytes = start.zip(end).filter(|(_, end)| *end <= run.end);
        let (start, end) = bytes.ok_or_else(|| {
            let held = (run.end - run.start) / item_bytes;
            too_few_ids(&sequences, held, skip, out.len())
        })?;
        self.touch_bytes(&(start..end))?;
        self.read_widened(&(start..end), out)
    }

    fn will_read(&self, sequences: Range<u64>, skip: u64, num_ids: usize) {
        let Ok(first) = self.index.byte_range(sequences.start) else {
            return;
        };
        let item_bytes = self.dtype().item_bytes();
        let start = usize::try_from(
            first
                .start
                .saturating_add(skip.saturating_mul(item_bytes as u64)),
        );
        let start = start.unwrap_or(usize::MAX);
        let end = start.saturating_add(num_ids.saturating_mul(item_bytes));
        self.bin.prefetch(start..end);
    }

    /// Hash of the whole index, of the media references and of 64 blocks of 4 KiB of `.bin` (all of it when it is small).
    fn fingerprint(&self) -> u64 {
        *self.fingerprint.get_or_init(|| self.compute_fingerprint())
    }
}

/// What the files of a dataset hold, mapped or read.
struct Contents {
    index: Map,
    bin: Bin,
    sidecar: Option<Map>,
    media: Option<Map>,
    access: AccessChoice,
    identity: (u64, u64),
}

/// The files of one published dataset.
struct Files {
    idx: File,
    others: Others,
}

/// Those beside the `.idx`.
struct Others {
    bin: File,
    sidecar: Option<File>,
    media: Option<File>,
}

impl Files {
    /// Opens files that belong together, whatever a writer is doing meanwhile.
    fn open(vfs: &dyn Vfs, prefix: &Prefix, level: Verify) -> Result<Self> {
        for _ in 0..OPEN_ATTEMPTS {
            if vfs.exists(&prefix.ready_idx())? {
                match vfs.lock(&prefix.lock()) {
                    Ok(_lock) => publish::complete(vfs, prefix)?,
                    Err(Error::Locked { .. }) => std::thread::sleep(OPEN_WAIT),
                    Err(error) => return Err(error),
                }
                continue;
            }
            let idx = vfs.open(&prefix.idx())?;
            let others = Self::open_others(vfs, prefix, level);
            // A writer takes the `.idx` away first and brings it last: while it is in place, the
            // others are those that belong to it, and if one is missing, it is missing.
            if idx.is_in_place()? {
                return Ok(Self {
                    idx,
                    others: others?,
                });
            }
        }
        Err(Error::Locked {
            path: prefix.lock(),
        })
    }

    /// Opens `.bin` and, if they are there, the sidecar, unless it is not asked for, and the references.
    fn open_others(vfs: &dyn Vfs, prefix: &Prefix, level: Verify) -> Result<Others> {
        let optional = |path: PathBuf, is_wanted: bool| {
            let is_there = is_wanted && vfs.exists(&path)?;
            is_there.then(|| vfs.open(&path)).transpose()
        };
        Ok(Others {
            bin: vfs.open(&prefix.bin())?,
            sidecar: optional(prefix.sidecar(), level != Verify::None)?,
            media: optional(prefix.media(), true)?,
        })
    }
}

fn bin_size_mismatch(index: &Index, bin_bytes: u64) -> String {
    let hint = if bin_bytes < index.bin_bytes() {
        "; it is cut short"
    } else {
        "; it belongs to another .idx"
    };
    format!(
        "it has {bin_bytes} bytes, but its .idx announces {} ids of {}, which are {} bytes{hint}",
        index.num_tokens(),
        index.dtype().name(),
        index.bin_bytes()
    )
}
