//! Datasets that are read as one: what is known of each, and the few that are held open.
//!
//! Memory is O(shards). A shard that is closed to make room is opened again when it is asked for; what
//! was handed out of it lives on. It must still be the file that was checked when the view was opened.

use std::collections::HashMap;
use std::ops::{Deref, Range};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use xxhash_rust::xxh3::Xxh3;

use super::access::{Access, AccessChoice};
use super::header::Dtype;
use super::prefix::Prefix;
use super::reader::IndexedDataset;
use super::source::{DocumentSource, out_of_range};
use super::verify::Verify;
use crate::error::{Error, Result};
use crate::vfs::{Disk, Vfs};

/// Threads that open datasets; over a network most of the time is waiting.
const OPENING_THREADS: usize = 16;

/// How datasets of a view are opened.
#[derive(Debug, Clone, Copy)]
pub struct ViewOptions {
    /// What is checked of each.
    pub verify: Verify,
    /// How each is reached.
    pub access: Access,
    /// Most datasets held open at once, at least 1; each has two maps, or one open file. Arrays that
    /// were handed out, and threads that open one just now, keep further ones open.
    pub max_open: usize,
}

impl ViewOptions {
    /// Below what systems allow a process by default: 1,024 open files. A parallel file system has been
    /// seen to refuse maps after about 590 (Megatron-Bridge issue 3968).
    pub const DEFAULT_MAX_OPEN: usize = 256;
}

impl Default for ViewOptions {
    fn default() -> Self {
        Self {
            verify: Verify::default(),
            access: Access::default(),
            max_open: Self::DEFAULT_MAX_OPEN,
        }
    }
}

/// What is known of a shard without having it open.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) prefix: Prefix,
    pub(super) num_tokens: u64,
    num_documents: u64,
    num_sequences: u64,
    dtype: Dtype,
    has_modes: bool,
    vocabulary_fingerprint: Option<String>,
    /// From the sidecar: of all its content.
    content_fingerprint: Option<u128>,
    /// The very file: a shard that is opened again must have it.
    identity: (u64, u64),
    findings: Vec<String>,
    access: AccessChoice,
}

impl Shard {
    fn of(dataset: &IndexedDataset) -> Self {
        let sidecar = dataset.sidecar();
        Self {
            prefix: dataset.prefix().clone(),
            num_tokens: dataset.num_tokens(),
            num_documents: dataset.num_documents(),
            num_sequences: dataset.num_sequences(),
            dtype: dataset.dtype(),
            has_modes: dataset.has_modes(),
            vocabulary_fingerprint: sidecar.and_then(|s| s.notes.vocabulary_fingerprint.clone()),
            content_fingerprint: sidecar.map(|sidecar| sidecar.fingerprint),
            identity: dataset.identity(),
            findings: dataset.findings(),
            access: dataset.access().clone(),
        }
    }

    fn name(&self) -> String {
        self.prefix.path().display().to_string()
    }
}

/// A shard that stays open at least as long as this.
pub(super) enum Held<'a> {
    Always(&'a Arc<IndexedDataset>),
    Fetched(Arc<IndexedDataset>),
}

impl Deref for Held<'_> {
    type Target = Arc<IndexedDataset>;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Always(dataset) => dataset,
            Self::Fetched(dataset) => dataset,
        }
    }
}

#[derive(Debug)]
enum OpenShards {
    /// There is room for all.
    All(Vec<Arc<IndexedDataset>>),
    /// Those that were asked for last.
    Recent(Mutex<Recent>),
}

/// Datasets that are read as one.
#[derive(Debug)]
pub(super) struct Shards {
    vfs: Arc<dyn Vfs>,
    options: ViewOptions,
    entries: Vec<Shard>,
    /// Documents before each shard, then all of them; likewise sequences.
    first_documents: Vec<u64>,
    first_sequences: Vec<u64>,
    dtype: Dtype,
    has_modes: bool,
    open: OpenShards,
    fingerprint: OnceLock<u64>,
}

impl Shards {
    /// Opens and checks each, on a few threads, and that they go together.
    pub(super) fn open(
        vfs: Arc<dyn Vfs>,
        prefixes: &[Prefix],
        options: ViewOptions,
    ) -> Result<Self> {
        if options.max_open == 0 {
            return Err(Error::argument(
                "at least one dataset must be held open, found 0",
            ));
        }
        let holds_all = prefixes.len() <= options.max_open;
        let open = |prefix: &Prefix| {
            let dataset = IndexedDataset::open_with(&vfs, prefix, options.verify, options.access)?;
            Ok((Shard::of(&dataset), holds_all.then(|| Arc::new(dataset))))
        };
        let opened = match prefixes {
            [] => return Err(Error::argument("there is no dataset to open")),
            [one] => vec![open(one)?],
            several => in_threads(several, open)?,
        };
        let (entries, datasets): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
        require_one_vocabulary(&entries)?;
        let open = if holds_all {
            OpenShards::All(datasets.into_iter().flatten().collect())
        } else {
            OpenShards::Recent(Mutex::default())
        };
        Self::over(vfs, options, entries, open)
    }

    /// One dataset that is open already.
    pub(super) fn of(dataset: Arc<IndexedDataset>) -> Result<Self> {
        let entries = vec![Shard::of(&dataset)];
        let open = OpenShards::All(vec![dataset]);
        Self::over(Arc::new(Disk), ViewOptions::default(), entries, open)
    }

    fn over(
        vfs: Arc<dyn Vfs>,
        options: ViewOptions,
        entries: Vec<Shard>,
        open: OpenShards,
    ) -> Result<Self> {
        Ok(Self {
            dtype: common_dtype(&entries)?,
            has_modes: common_modes(&entries)?,
            first_documents: sums(entries.iter().map(|shard| shard.num_documents)),
            first_sequences: sums(entries.iter().map(|shard| shard.num_sequences)),
            vfs,
            options,
            entries,
            open,
            fingerprint: OnceLock::new(),
        })
    }

    pub(super) fn shards(&self) -> &[Shard] {
        &self.entries
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub(super) fn has_modes(&self) -> bool {
        self.has_modes
    }

    pub(super) fn num_documents(&self) -> u64 {
        self.first_documents.last().copied().unwrap_or(0)
    }

    pub(super) fn num_sequences(&self) -> u64 {
        self.first_sequences.last().copied().unwrap_or(0)
    }

    /// What is not as megatron-core writes it, with the shard's name before each sentence.
    pub(super) fn findings(&self) -> Vec<String> {
        let each = self.entries.iter().flat_map(|shard| {
            let name = shard.name();
            let named = shard
                .findings
                .iter()
                .map(move |text| format!("{name}: {text}"));
            named.collect::<Vec<_>>()
        });
        each.collect()
    }

    /// How the shards are reached: each way that occurs, with the number of shards that it is used for.
    pub(super) fn access(&self) -> Vec<(AccessChoice, usize)> {
        let mut ways: Vec<(AccessChoice, usize)> = Vec::new();
        for shard in &self.entries {
            match ways.iter_mut().find(|(way, _)| *way == shard.access) {
                Some((_, num_shards)) => *num_shards += 1,
                None => ways.push((shard.access.clone(), 1)),
            }
        }
        ways
    }

    /// The shard that holds a document, and its number there.
    pub(super) fn locate_document(&self, document: u64) -> Result<(usize, u64)> {
        let found = locate(&self.first_documents, document);
        found.ok_or_else(|| out_of_range("document", document, self.num_documents()))
    }

    /// The shard that holds a sequence, and its number there.
    pub(super) fn locate_sequence(&self, sequence: u64) -> Result<(usize, u64)> {
        let found = locate(&self.first_sequences, sequence);
        found.ok_or_else(|| out_of_range("sequence", sequence, self.num_sequences()))
    }

    /// Sequences before a shard.
    pub(super) fn first_sequence(&self, shard: usize) -> u64 {
        self.first_sequences.get(shard).copied().unwrap_or(0)
    }

    /// The sequences of a shard, counted over all.
    pub(super) fn sequences_of(&self, shard: usize) -> Range<u64> {
        self.first_sequence(shard)..self.first_sequence(shard + 1)
    }

    /// A shard, opened again if it had to make room.
    pub(super) fn get(&self, shard: usize) -> Result<Held<'_>> {
        match &self.open {
            OpenShards::All(datasets) => match datasets.get(shard) {
                Some(dataset) => Ok(Held::Always(dataset)),
                None => Err(out_of_range("shard", shard as u64, datasets.len() as u64)),
            },
            OpenShards::Recent(recent) => {
                let lock = || recent.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(dataset) = lock().find(shard) {
                    return Ok(Held::Fetched(dataset));
                }
                // Not under the lock: others read on meanwhile.
                let dataset = Arc::new(self.reopen(shard)?);
                let evicted = lock().keep(shard, Arc::clone(&dataset), self.options.max_open);
                drop(evicted);
                Ok(Held::Fetched(dataset))
            }
        }
    }

    /// A shard that is always open.
    pub(super) fn always_open(&self, shard: usize) -> Option<&IndexedDataset> {
        match &self.open {
            OpenShards::All(datasets) => datasets.get(shard).map(|dataset| &**dataset),
            OpenShards::Recent(_) => None,
        }
    }

    fn reopen(&self, shard: usize) -> Result<IndexedDataset> {
        let known = self.entries.get(shard);
        let known =
            known.ok_or_else(|| out_of_range("shard", shard as u64, self.entries.len() as u64))?;
        // It has been checked before; only blocks are checked whenever they are read.
        let level = match self.options.verify {
            Verify::Lazy => Verify::Lazy,
            _ => Verify::None,
        };
        let access = self.options.access;
        let dataset = IndexedDataset::open_with(&self.vfs, &known.prefix, level, access)?;
        if dataset.identity() != known.identity || dataset.num_tokens() != known.num_tokens {
            return Err(Error::corrupt(
                &known.prefix.idx(),
                "it was replaced after this view was opened; open the view again",
            ));
        }
        Ok(dataset)
    }

    /// Equal for equal datasets in the same order, as far as can be told without reading every id.
    pub(super) fn fingerprint(&self) -> u64 {
        *self.fingerprint.get_or_init(|| {
            let mut hash = Xxh3::new();
            for (number, shard) in self.entries.iter().enumerate() {
                if let Some(content) = shard.content_fingerprint {
                    hash.update(&content.to_le_bytes());
                    continue;
                }
                // A shard that cannot be opened any more gives an error as soon as it is read.
                let found = self.get(number).map_or(0, |dataset| dataset.fingerprint());
                hash.update(&found.to_le_bytes());
            }
            hash.digest()
        })
    }
}

/// The shards that were asked for last, at most as many as there is room for.
#[derive(Debug, Default)]
struct Recent {
    by_shard: HashMap<usize, (u64, Arc<IndexedDataset>)>,
    /// Rises with each use.
    clock: u64,
}

impl Recent {
    fn find(&mut self, shard: usize) -> Option<Arc<IndexedDataset>> {
        self.clock += 1;
        let (last_used, dataset) = self.by_shard.get_mut(&shard)?;
        *last_used = self.clock;
        Some(Arc::clone(dataset))
    }

    /// Takes a shard up; gives back what had to go for it, to be closed outside of the lock.
    fn keep(
        &mut self,
        shard: usize,
        dataset: Arc<IndexedDataset>,
        room: usize,
    ) -> Option<Arc<IndexedDataset>> {
        self.clock += 1;
        let replaced = self.by_shard.insert(shard, (self.clock, dataset));
        if self.by_shard.len() <= room {
            return replaced.map(|(_, dataset)| dataset);
        }
        // A look at a few hundred numbers takes far less time than opening took.
        let oldest = self
            .by_shard
            .iter()
            .min_by_key(|(_, (last_used, _))| *last_used);
        let oldest = oldest.map(|(&shard, _)| shard)?;
        self.by_shard.remove(&oldest).map(|(_, dataset)| dataset)
    }
}

/// Does the same with each, in order, on a few threads of its own: a pool that all of the process shares
/// would not be there any more in a forked one.
fn in_threads<T: Send>(
    prefixes: &[Prefix],
    work: impl Fn(&Prefix) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let part = prefixes.len().div_ceil(OPENING_THREADS).max(1);
    let done = std::thread::scope(|scope| {
        let threads: Vec<_> = prefixes
            .chunks(part)
            .map(|part| scope.spawn(|| part.iter().map(&work).collect::<Result<Vec<_>>>()))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>>>()
    });
    Ok(done?.into_iter().flatten().collect())
}

/// Sums of the numbers before each, then of all.
fn sums(numbers: impl Iterator<Item = u64>) -> Vec<u64> {
    let ends = numbers.scan(0_u64, |end, number| {
        *end = end.saturating_add(number);
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

/// The part that an index falls into, and its place there.
fn locate(starts: &[u64], index: u64) -> Option<(usize, u64)> {
    let part = starts
        .partition_point(|&start| start <= index)
        .checked_sub(1)?;
    let end = starts.get(part + 1)?;
    (index < *end).then_some(())?;
    Some((part, index - starts.get(part)?))
}

/// The narrowest dtype that holds the ids of all.
fn common_dtype(shards: &[Shard]) -> Result<Dtype> {
    const BY_WIDTH: [Dtype; 6] = [
        Dtype::U8,
        Dtype::I8,
        Dtype::U16,
        Dtype::I16,
        Dtype::I32,
        Dtype::I64,
    ];
    let Some((first, others)) = shards.split_first() else {
        return Ok(Dtype::I32);
    };
    let mut common = first.dtype;
    for other in others {
        if other.dtype == common {
            continue;
        }
        let ranges = common.id_range().zip(other.dtype.id_range());
        let wider = ranges.and_then(|(a, b)| {
            let holds = |dtype: &Dtype| {
                let range = dtype.id_range();
                range.is_some_and(|range| {
                    [&a, &b]
                        .iter()
                        .all(|r| range.contains(r.start()) && range.contains(r.end()))
                })
            };
            BY_WIDTH.into_iter().find(holds)
        });
        common = wider.ok_or_else(|| {
            Error::argument(format!(
                "{} holds {} and {} holds {}: values and ids are not read as one dataset",
                first.name(),
                first.dtype.name(),
                other.name(),
                other.dtype.name()
            ))
        })?;
    }
    Ok(common)
}

/// Whether all have modes, or none has; shards without sequences go with both.
fn common_modes(shards: &[Shard]) -> Result<bool> {
    let mut with_sequences = shards.iter().filter(|shard| shard.num_sequences > 0);
    let Some(first) = with_sequences.next() else {
        return Ok(false);
    };
    match with_sequences.find(|other| other.has_modes != first.has_modes) {
        None => Ok(first.has_modes),
        Some(other) => {
            let (with, without) = if first.has_modes {
                (first, other)
            } else {
                (other, first)
            };
            Err(Error::argument(format!(
                "{} has modes and {} has none: its images, if there are any, would pass for text; \
                 read them as two sources, or write the second with modes",
                with.name(),
                without.name()
            )))
        }
    }
}

/// [`Error::VocabularyMismatch`] if two are known to be of different vocabularies.
fn require_one_vocabulary(shards: &[Shard]) -> Result<()> {
    let mut known = shards
        .iter()
        .filter_map(|shard| Some((shard, shard.vocabulary_fingerprint.as_ref()?)));
    let Some((first, ours)) = known.next() else {
        return Ok(());
    };
    match known.find(|(_, theirs)| *theirs != ours) {
        None => Ok(()),
        Some((other, theirs)) => Err(Error::VocabularyMismatch(format!(
            "{} was written with the vocabulary {theirs}, {} with {ours}: their ids do not mean the \
             same; prepare them with one vocabulary",
            other.name(),
            first.name()
        ))),
    }
}

/// Where files lie, for those who only need names.
pub(super) fn paths(shards: &[Shard]) -> Vec<PathBuf> {
    shards
        .iter()
        .map(|shard| shard.prefix.path().to_path_buf())
        .collect()
}
