//! One dataset made of several, or of a part of one: nothing is copied, and nothing is written.
//!
//! A view is a row of documents. Document k of a view is found in closed form: through its steps (each
//! cuts a range out of the row before it, or out of a shuffled order of that row), then by a binary
//! search over the shards. Slices and splits of views of billions of documents are therefore a few
//! numbers.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use xxhash_rust::xxh3::Xxh3;

use super::access::AccessChoice;
use super::header::Dtype;
use super::map::Item;
use super::prefix::Prefix;
use super::reader::IndexedDataset;
use super::shards::{self, Held, Shards, ViewOptions};
use super::source::{DocumentSource, out_of_range};
use crate::error::{Error, Result};
use crate::order::Permutation;
use crate::random::Purpose;
use crate::vfs::{Disk, Vfs};

/// A range of the documents that the step before leaves, in their order or a shuffled one.
#[derive(Debug, Clone, Copy)]
struct Step {
    start: u64,
    /// The seed, and what it does to the whole row before the range is cut out.
    shuffle: Option<(u64, Permutation)>,
}

/// Documents of one or several datasets, as a [`DocumentSource`].
///
/// The number of a sequence is the one it has among all sequences of the datasets, whatever the view
/// leaves of them: [`Self::nth_sequence`] gives those of the view.
#[derive(Debug, Clone)]
pub struct DatasetView {
    shards: Arc<Shards>,
    steps: Vec<Step>,
    num_documents: u64,
    /// Sequences before each document of a shuffled view, then all of them; made when first needed.
    sequences_before: Arc<OnceLock<Vec<u64>>>,
}

impl DatasetView {
    /// All documents of some datasets, one after the other.
    ///
    /// Their ids may be of different dtypes, not their vocabularies; and either all have modes or none.
    pub fn open(prefixes: &[Prefix], options: ViewOptions) -> Result<Self> {
        Self::open_on(Arc::new(Disk), prefixes, options)
    }

    /// [`Self::open`] on a given file system.
    pub fn open_on(vfs: Arc<dyn Vfs>, prefixes: &[Prefix], options: ViewOptions) -> Result<Self> {
        Ok(Self::over(Shards::open(vfs, prefixes, options)?))
    }

    /// All documents of one dataset that is open already.
    pub fn of(dataset: Arc<IndexedDataset>) -> Result<Self> {
        Ok(Self::over(Shards::of(dataset)?))
    }

    fn over(shards: Shards) -> Self {
        Self {
            num_documents: shards.num_documents(),
            shards: Arc::new(shards),
            steps: Vec::new(),
            sequences_before: Arc::default(),
        }
    }

    /// Some of the documents, in the same order.
    pub fn slice(&self, documents: Range<u64>) -> Result<Self> {
        if documents.start > documents.end || documents.end > self.num_documents {
            return Err(Error::argument(format!(
                "documents {}..{} are not a range of {}",
                documents.start, documents.end, self.num_documents
            )));
        }
        let mut steps = self.steps.clone();
        match steps.last_mut() {
            Some(step) => step.start += documents.start,
            None => steps.push(Step {
                start: documents.start,
                shuffle: None,
            }),
        }
        Ok(Self {
            num_documents: documents.end - documents.start,
            steps,
            shards: Arc::clone(&self.shards),
            sequences_before: Arc::default(),
        })
    }

    /// The same documents in an order that depends on `seed` and their number alone.
    #[must_use]
    pub fn shuffled(&self, seed: u64) -> Self {
        let order = Permutation::new(seed, Purpose::Split, [0, 0], self.num_documents);
        let mut steps = self.steps.clone();
        steps.push(Step {
            start: 0,
            shuffle: Some((seed, order)),
        });
        Self {
            steps,
            num_documents: self.num_documents,
            shards: Arc::clone(&self.shards),
            sequences_before: Arc::default(),
        }
    }

    /// The dataset itself, if this is the whole of one that stays open.
    pub fn whole_dataset(&self) -> Option<Arc<IndexedDataset>> {
        if !self.steps.is_empty() || self.shards.shards().len() != 1 {
            return None;
        }
        match self.shards.get(0) {
            Ok(Held::Always(dataset)) => Some(Arc::clone(dataset)),
            _ => None,
        }
    }

    /// Where the datasets are, in their order.
    pub fn prefixes(&self) -> Vec<PathBuf> {
        shards::paths(self.shards.shards())
    }

    /// A dataset of the view, opened again if it was closed meanwhile.
    pub fn dataset(&self, shard: usize) -> Result<Arc<IndexedDataset>> {
        Ok(Arc::clone(&*self.shards.get(shard)?))
    }

    /// Number type that holds the ids of all datasets.
    pub fn dtype(&self) -> Dtype {
        self.shards.dtype()
    }

    /// Whether sequences carry modes.
    pub fn has_modes(&self) -> bool {
        self.shards.has_modes()
    }

    /// What of the datasets is not as megatron-core writes it but was understood, in sentences.
    pub fn findings(&self) -> Vec<String> {
        self.shards.findings()
    }

    /// How the datasets are reached: each way that occurs, with the number of datasets it is used for.
    pub fn access(&self) -> Vec<(AccessChoice, usize)> {
        self.shards.access()
    }

    /// How many sequences there are. In a shuffled view all documents are counted the first time.
    pub fn num_sequences(&self) -> Result<u64> {
        match self.contiguous_sequences()? {
            Some(sequences) => Ok(sequences.end - sequences.start),
            None => Ok(self.sequences_before()?.last().copied().unwrap_or(0)),
        }
    }

    /// How many ids there are.
    pub fn num_tokens(&self) -> Result<u64> {
        let mut num_tokens = 0;
        self.each_run(|shard, dataset, run| {
            num_tokens += match dataset {
                None => self
                    .shards
                    .shards()
                    .get(shard)
                    .map_or(0, |shard| shard.num_tokens),
                Some(dataset) => dataset.tokens_of(&run)?.len() as u64,
            };
            Ok(())
        })?;
        Ok(num_tokens)
    }

    /// The number of the n-th sequence of the view.
    pub fn nth_sequence(&self, nth: u64) -> Result<u64> {
        if let Some(sequences) = self.contiguous_sequences()? {
            let found = sequences.start.checked_add(nth);
            let found = found.filter(|found| sequences.contains(found));
            let num_sequences = sequences.end - sequences.start;
            return found.ok_or_else(|| out_of_range("sequence", nth, num_sequences));
        }
        let before = self.sequences_before()?;
        // Of documents that begin there, the last; those before it are empty.
        let document = before
            .partition_point(|&before| before <= nth)
            .saturating_sub(1);
        match (before.get(document), before.last()) {
            (Some(&first), Some(&num_sequences)) if nth < num_sequences => {
                Ok(self.document_sequences(document as u64)?.start + (nth - first))
            }
            (_, num_sequences) => Err(out_of_range(
                "sequence",
                nth,
                num_sequences.copied().unwrap_or(0),
            )),
        }
    }

    /// Runs of consecutive sequences of one dataset that make up some sequences of the view, counted as
    /// [`Self::nth_sequence`] does.
    pub fn runs(&self, nth: Range<u64>) -> Result<Vec<(Arc<IndexedDataset>, Range<u64>)>> {
        let mut runs: Vec<(usize, Range<u64>)> = Vec::new();
        for nth in nth {
            let (shard, sequence) = self.shards.locate_sequence(self.nth_sequence(nth)?)?;
            match runs.last_mut() {
                Some((last, run)) if *last == shard && run.end == sequence => run.end += 1,
                _ => runs.push((shard, sequence..sequence + 1)),
            }
        }
        let open = |(shard, run)| Ok((self.dataset(shard)?, run));
        runs.into_iter().map(open).collect()
    }

    /// The dataset that holds a sequence, and the sequence's number there.
    pub fn locate(&self, sequence: u64) -> Result<(Arc<IndexedDataset>, u64)> {
        let (shard, local) = self.shards.locate_sequence(sequence)?;
        Ok((Arc::clone(&*self.shards.get(shard)?), local))
    }

    /// Lengths of all sequences, in the order of the view.
    pub fn sequence_lengths(&self) -> Result<Vec<u32>> {
        let mut lengths = Vec::new();
        self.each_opened_run(|dataset, run| {
            lengths.extend(dataset.lengths_of(&run));
            Ok(())
        })?;
        Ok(lengths)
    }

    /// Mode bytes of all sequences in the order of the view, if they have them.
    pub fn sequence_modes(&self) -> Result<Option<Vec<u8>>> {
        if !self.has_modes() {
            return Ok(None);
        }
        let mut modes = Vec::new();
        self.each_opened_run(|dataset, run| {
            modes.extend_from_slice(dataset.modes_of(&run));
            Ok(())
        })?;
        Ok(Some(modes))
    }

    /// Sequences of the view before each of its documents, then all of them.
    pub fn document_indices(&self) -> Result<Vec<u64>> {
        let mut indices = Vec::with_capacity(usize::try_from(self.num_documents).unwrap_or(0) + 1);
        let mut end = 0;
        indices.push(end);
        for document in 0..self.num_documents {
            let sequences = self.document_sequences(document)?;
            end += sequences.end - sequences.start;
            indices.push(end);
        }
        Ok(indices)
    }

    /// Place of a document among those of all datasets.
    fn resolve(&self, document: u64) -> Result<u64> {
        if document >= self.num_documents {
            return Err(out_of_range("document", document, self.num_documents));
        }
        let through = |at: u64, step: &Step| match &step.shuffle {
            Some((_, order)) => order.index(at + step.start),
            None => at + step.start,
        };
        Ok(self.steps.iter().rev().fold(document, through))
    }

    fn is_shuffled(&self) -> bool {
        self.steps.iter().any(|step| step.shuffle.is_some())
    }

    /// All sequences of the view, if they are consecutive.
    fn contiguous_sequences(&self) -> Result<Option<Range<u64>>> {
        if self.is_shuffled() {
            return Ok(None);
        }
        if self.steps.is_empty() {
            return Ok(Some(0..self.shards.num_sequences()));
        }
        let Some(last) = self.num_documents.checked_sub(1) else {
            return Ok(Some(0..0));
        };
        let (first, last) = (self.document_sequences(0)?, self.document_sequences(last)?);
        Ok(Some(first.start..last.end))
    }

    fn sequences_before(&self) -> Result<&[u64]> {
        if let Some(before) = self.sequences_before.get() {
            return Ok(before);
        }
        let before = self.document_indices()?;
        Ok(self.sequences_before.get_or_init(|| before))
    }

    /// Runs of consecutive sequences of one dataset, in the order of the view. A dataset that is taken
    /// as a whole is given by its number only.
    fn each_run(
        &self,
        mut work: impl FnMut(usize, Option<&Arc<IndexedDataset>>, Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let Some(sequences) = self.contiguous_sequences()? else {
            for document in 0..self.num_documents {
                let (shard, local) = self.shards.locate_document(self.resolve(document)?)?;
                let dataset = self.shards.get(shard)?;
                let run = dataset.document_sequences(local)?;
                work(shard, Some(&*dataset), run)?;
            }
            return Ok(());
        };
        for shard in 0..self.shards.shards().len() {
            let whole = self.shards.sequences_of(shard);
            let start = sequences.start.clamp(whole.start, whole.end);
            let end = sequences.end.clamp(whole.start, whole.end);
            if start == end {
                continue;
            }
            let run = start - whole.start..end - whole.start;
            if (start, end) == (whole.start, whole.end) {
                work(shard, None, run)?;
            } else {
                work(shard, Some(&*self.shards.get(shard)?), run)?;
            }
        }
        Ok(())
    }

    fn each_opened_run(
        &self,
        mut work: impl FnMut(&IndexedDataset, Range<u64>) -> Result<()>,
    ) -> Result<()> {
        self.each_run(|shard, dataset, run| {
            if let Some(dataset) = dataset {
                return work(dataset, run);
            }
            let dataset = self.shards.get(shard)?;
            work(&dataset, run)
        })
    }

    /// The shard of a document, and its sequences there.
    pub(super) fn locate_sequences(&self, document: u64) -> Result<(usize, Range<u64>)> {
        let (shard, local) = self.shards.locate_document(self.resolve(document)?)?;
        Ok((shard, self.shards.get(shard)?.document_sequences(local)?))
    }

    /// The shard of a sequence, and its number there.
    pub(super) fn locate_sequence(&self, sequence: u64) -> Result<(usize, u64)> {
        self.shards.locate_sequence(sequence)
    }

    /// A shard, held open.
    pub(super) fn shard(&self, shard: usize) -> Result<Held<'_>> {
        self.shards.get(shard)
    }

    /// The ids of a sequence from an offset on, in a number type that holds them.
    pub fn read<T: Item>(&self, sequence: u64, offset: usize, out: &mut [T]) -> Result<()> {
        let (shard, local) = self.shards.locate_sequence(sequence)?;
        let dataset = self.shards.get(shard)?;
        let tokens = dataset.token_range(local)?;
        if offset
            .checked_add(out.len())
            .is_none_or(|end| end > tokens.len())
        {
            return Err(super::source::too_few_ids(
                &(sequence..sequence + 1),
                tokens.len() as u64,
                offset as u64,
                out.len(),
            ));
        }
        dataset.read(tokens.start + offset, out)
    }
}

impl DocumentSource for DatasetView {
    fn num_documents(&self) -> u64 {
        self.num_documents
    }

    fn document_sequences(&self, document: u64) -> Result<Range<u64>> {
        let (shard, local) = self.locate_sequences(document)?;
        let before = self.shards.first_sequence(shard);
        Ok(before + local.start..before + local.end)
    }

    fn sequence_length(&self, sequence: u64) -> Result<u32> {
        let (shard, local) = self.shards.locate_sequence(sequence)?;
        self.shards.get(shard)?.sequence_length(local)
    }

    fn mode(&self, sequence: u64) -> Result<u8> {
        let (shard, local) = self.shards.locate_sequence(sequence)?;
        self.shards.get(shard)?.mode(local)
    }

    fn media(&self, sequence: u64) -> Result<Option<String>> {
        let (shard, local) = self.shards.locate_sequence(sequence)?;
        self.shards.get(shard)?.media(local)
    }

    fn read_into(&self, sequences: Range<u64>, skip: u64, out: &mut [i64]) -> Result<()> {
        if sequences.is_empty() {
            return self.shards.get(0)?.read_into(0..0, skip, out);
        }
        let (shard, first) = self.shards.locate_sequence(sequences.start)?;
        // The sequences of one document lie in one shard; a run that leaves it is past its end there.
        let run = first..first + (sequences.end - sequences.start);
        self.shards.get(shard)?.read_into(run, skip, out)
    }

    fn will_read(&self, sequences: Range<u64>, skip: u64, num_ids: usize) {
        let Ok((shard, first)) = self.shards.locate_sequence(sequences.start) else {
            return;
        };
        let run = first..first + sequences.end.saturating_sub(sequences.start);
        // A shard that would have to be opened is not worth a hint.
        if let Some(dataset) = self.shards.always_open(shard) {
            dataset.will_read(run, skip, num_ids);
        }
    }

    fn fingerprint(&self) -> u64 {
        if let Some(dataset) = self.whole_dataset() {
            return dataset.fingerprint();
        }
        let whole = self.shards.fingerprint();
        if self.steps.is_empty() {
            return whole;
        }
        let mut hash = Xxh3::new();
        hash.update(&whole.to_le_bytes());
        hash.update(&self.num_documents.to_le_bytes());
        for step in &self.steps {
            hash.update(&step.start.to_le_bytes());
            if let Some((seed, order)) = &step.shuffle {
                hash.update(&seed.to_le_bytes());
                hash.update(&order.len().to_le_bytes());
            }
        }
        hash.digest()
    }
}
