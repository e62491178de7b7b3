//! An indexed dataset, opened for reading.
//!
//! Both files are mapped, so opening costs one pass over the index and reading an id costs a load.
//! What is checked at opening: the header, that the arrays fill `.idx` exactly, that lengths,
//! offsets and document boundaries are consistent, that `.bin` has exactly the size they imply, and
//! that the sidecar, if there is one, belongs to the two. After that no index into the maps can be out
//! of bounds. [`Verify`] asks for less, or for checksums of the ids as well.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::OnceLock;
use std::time::Duration;

use xxhash_rust::xxh3::Xxh3;

use super::blocks::BlockSums;
use super::header::Dtype;
use super::index::Index;
use super::map::{Map, Tokens};
use super::prefix::Prefix;
use super::publish;
use super::sidecar::Sidecar;
use super::source::{DocumentSource, too_few_ids};
use super::verify::{self, Checksums, DamagedBlock, Touched, Verify};
use crate::error::{Error, Result};
use crate::vfs::{Disk, File, Vfs};

/// Attempts to open while a writer is replacing the files, and the wait between them.
const OPEN_ATTEMPTS: usize = 100;
const OPEN_WAIT: Duration = Duration::from_millis(10);

/// The fingerprint looks at this many blocks of `.bin`, evenly spaced.
const FINGERPRINT_BLOCKS: usize = 64;
const FINGERPRINT_BLOCK_BYTES: usize = 4096;

/// A published dataset. Views of its ids borrow from it; whoever needs them longer keeps an `Arc`.
#[derive(Debug)]
pub struct IndexedDataset {
    prefix: Prefix,
    index: Index,
    bin: Map,
    sidecar: Option<(Sidecar, Checksums)>,
    /// Present if blocks are to be checked when they are first read.
    touched: Option<Touched>,
    fingerprint: OnceLock<u64>,
}

impl IndexedDataset {
    /// Opens `<prefix>.bin` and `<prefix>.idx` and checks them.
    pub fn open(prefix: &Prefix) -> Result<Self> {
        Self::open_on(&Disk, prefix, Verify::default())
    }

    /// [`Self::open`] on a given file system, with a given level of verification.
    ///
    /// [`Error::InvalidArgument`] if checksums are asked for and there is no sidecar. A pair whose
    /// publication was cut short by a crash is first put in place. A pair that is being replaced
    /// right now is waited for.
    pub fn open_on(vfs: &dyn Vfs, prefix: &Prefix, level: Verify) -> Result<Self> {
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
            let others = open_others(vfs, prefix, level);
            // A writer takes the `.idx` away first and brings it last: while it is in place, the
            // others are those that belong to it, and if one is missing, it is missing.
            if idx.is_in_place()? {
                let (bin, sidecar) = others?;
                return Self::over(prefix, &idx, &bin, sidecar.as_ref(), level);
            }
        }
        Err(Error::Locked {
            path: prefix.lock(),
        })
    }

    fn over(
        prefix: &Prefix,
        idx: &File,
        bin: &File,
        sidecar: Option<&File>,
        level: Verify,
    ) -> Result<Self> {
        let index = match level {
            Verify::None => Index::open_unchecked(idx)?,
            _ => Index::open(idx)?,
        };
        let bin_bytes = bin.num_bytes()?;
        if bin_bytes != index.bin_bytes() {
            return Err(Error::corrupt(
                bin.path(),
                bin_size_mismatch(&index, bin_bytes),
            ));
        }
        let sidecar = match sidecar {
            Some(file) => {
                let sidecar = Sidecar::parse(file.path(), Map::new(file)?.bytes())?;
                sidecar.require_belongs(file.path(), &index)?;
                let checksums = Checksums::new(&sidecar.sums);
                Some((sidecar, checksums))
            }
            None => None,
        };
        let mut dataset = Self {
            prefix: prefix.clone(),
            index,
            bin: Map::new(bin)?,
            sidecar,
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
        let check = |block| checksums.check(block, self.bin.bytes(), &self.index);
        Ok(blocks.filter_map(check).collect())
    }

    /// The sidecar, if there is one and [`Verify::None`] did not ask to ignore it.
    pub fn sidecar(&self) -> Option<&Sidecar> {
        Some(&self.sidecar.as_ref()?.0)
    }

    /// The sums of `.bin`: those of the sidecar, or else computed from what is there.
    pub(super) fn block_sums(&self) -> Cow<'_, BlockSums> {
        match self.sidecar() {
            Some(sidecar) => Cow::Borrowed(&sidecar.sums),
            None => Cow::Owned(BlockSums::of(self.bin.bytes())),
        }
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

    /// How many ids there are in all.
    pub fn num_tokens(&self) -> u64 {
        self.index.num_tokens()
    }

    /// All ids of the file.
    pub fn tokens(&self) -> Result<Tokens<'_>> {
        self.view(0..self.bin.bytes().len() as u64)
    }

    /// All ids of the file, whatever the level of verification. Who takes parts of them calls
    /// [`Self::touch`] first.
    pub fn untouched_tokens(&self) -> Result<Tokens<'_>> {
        self.view_untouched(&(0..self.bin.bytes().len() as u64))
    }

    /// Gives back a range of ids as soon as they may be read: with [`Verify::Lazy`], once the blocks
    /// that hold them have been checked.
    pub fn touch(&self, tokens: Range<usize>) -> Result<Range<usize>> {
        let item_bytes = self.dtype().item_bytes() as u64;
        let [start, end] =
            [tokens.start, tokens.end].map(|at| (at as u64).saturating_mul(item_bytes));
        self.touch_bytes(&(start..end))?;
        Ok(tokens)
    }

    /// All ids of some sequences, widened to 64 bits.
    pub fn ids(&self, sequences: Range<u64>) -> Result<Vec<i64>> {
        let bytes = self.byte_range(&sequences)?;
        let num_tokens = (bytes.end - bytes.start) / self.dtype().item_bytes() as u64;
        let mut ids = vec![0; usize::try_from(num_tokens).unwrap_or(usize::MAX)];
        self.read_into(sequences, 0, &mut ids)?;
        Ok(ids)
    }

    /// The ids of one sequence.
    pub fn sequence(&self, sequence: u64) -> Result<Tokens<'_>> {
        self.view(self.index.byte_range(sequence)?)
    }

    /// Where some sequences lie in `.bin`: one run, because each follows the one before without a gap.
    fn byte_range(&self, sequences: &Range<u64>) -> Result<Range<u64>> {
        if sequences.is_empty() {
            return Ok(0..0);
        }
        let first = self.index.byte_range(sequences.start)?;
        let last = self.index.byte_range(sequences.end - 1)?;
        // Always in this order in an index that was checked.
        Ok(first.start..last.end.max(first.start))
    }

    /// Where a sequence lies among all ids.
    pub fn token_range(&self, sequence: u64) -> Result<Range<usize>> {
        let bytes = self.index.byte_range(sequence)?;
        let item_bytes = self.dtype().item_bytes() as u64;
        // They lie inside the map, so they fit.
        let [start, end] = [bytes.start, bytes.end]
            .map(|at| usize::try_from(at / item_bytes).unwrap_or(usize::MAX));
        Ok(start..end)
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
        touched.require_sound(
            bytes,
            checksums,
            self.bin.bytes(),
            &self.index,
            &self.prefix,
        )
    }

    fn view(&self, bytes: Range<u64>) -> Result<Tokens<'_>> {
        self.touch_bytes(&bytes)?;
        self.view_untouched(&bytes)
    }

    fn view_untouched(&self, bytes: &Range<u64>) -> Result<Tokens<'_>> {
        let start = usize::try_from(bytes.start).ok();
        let view = start
            .zip(usize::try_from(bytes.end).ok())
            .and_then(|(start, end)| self.bin.bytes().get(start..end));
        let view = view.and_then(|bytes| Tokens::view(bytes, self.dtype()));
        // The maps start on a page and offsets are whole ids, so this is never reached.
        view.ok_or_else(|| Error::corrupt(&self.prefix.bin(), "ids are not aligned"))
    }

    fn compute_fingerprint(&self) -> u64 {
        let mut hash = Xxh3::new();
        hash.update(self.index.bytes());
        let bin = self.bin.bytes();
        let step = bin.len() / FINGERPRINT_BLOCKS;
        if step <= FINGERPRINT_BLOCK_BYTES {
            hash.update(bin);
        } else {
            for start in (0..bin.len()).step_by(step) {
                let end = bin.len().min(start + FINGERPRINT_BLOCK_BYTES);
                hash.update(bin.get(start..end).unwrap_or_default());
            }
        }
        hash.digest()
    }
}

impl DocumentSource for IndexedDataset {
    fn num_documents(&self) -> u64 {
        self.index.num_documents()
    }

    fn num_sequences(&self) -> u64 {
        self.index.num_sequences()
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
        self.view(start..end)?.widen_into(out).ok_or_else(|| {
            Error::argument(format!(
                "{} holds {} values, not token ids",
                self.prefix.path().display(),
                self.dtype().name()
            ))
        })
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

    /// Hash of the whole index and of 64 blocks of 4 KiB of `.bin` (all of it when it is small).
    fn fingerprint(&self) -> u64 {
        *self.fingerprint.get_or_init(|| self.compute_fingerprint())
    }
}

/// Opens `.bin` and, unless it is not asked for, the sidecar if there is one.
fn open_others(vfs: &dyn Vfs, prefix: &Prefix, level: Verify) -> Result<(File, Option<File>)> {
    let bin = vfs.open(&prefix.bin())?;
    let has_sidecar = level != Verify::None && vfs.exists(&prefix.sidecar())?;
    let sidecar = has_sidecar.then(|| vfs.open(&prefix.sidecar()));
    Ok((bin, sidecar.transpose()?))
}

fn bin_size_mismatch(index: &Index, bin_bytes: u64) -> String {
    let hint = if index.dtype() == Dtype::F32 && bin_bytes == index.bin_bytes().saturating_mul(2) {
        "; dtype code 7 is float32 here and in megatron-core, but float64 in NeMo"
    } else if bin_bytes < index.bin_bytes() {
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
