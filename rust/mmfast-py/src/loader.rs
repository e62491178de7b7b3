//! The document stream for Python: opens datasets, prefetches, and hands each batch over as arrays
//! that own their memory, or in memory of the caller's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mmfast_core::Result;
use mmfast_core::pack::{CutAt, Overlong};
use mmfast_core::stream::{
    ArrayPool, Batch, BatchFacts, BatchMemory, Cursor, Groups, Packing, Poll, Prefetcher, State,
    Stream, StreamConfig, StreamSource,
};
use numpy::{IntoPyArray, PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::dataset::DatasetReader;
use crate::gil::run_detached;
use crate::memory::{Lent, Memory, Pooled, set_arrays};
use crate::objective::Objective;

/// How long a wait for a batch lasts before Ctrl-C is looked for.
const SIGNAL_CHECK: Duration = Duration::from_millis(100);

/// Version, seed, window, bin and fingerprint.
type StateFields = (u64, u64, u64, u64, String);

/// Sets of arrays that are kept beyond those that are made ahead: the batch in use and the one before.
const NUM_SPARE_ARRAYS: usize = 2;

/// One rank's view of a document stream.
#[pyclass(frozen, module = "mmfast._mmfast")]
pub(crate) struct BatchLoader {
    stream: Arc<Stream>,
    pool: Arc<ArrayPool>,
    is_prefetching: bool,
    /// Locked only while the GIL is released.
    prefetcher: Mutex<Prefetcher<Memory>>,
}

impl BatchLoader {
    fn with_prefetcher<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Prefetcher<Memory>) -> Result<T> + Send,
    ) -> PyResult<T> {
        run_detached(py, || {
            work(
                &mut self
                    .prefetcher
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner),
            )
        })
    }

    fn shape(&self) -> [usize; 2] {
        let config = self.stream.config();
        [config.rows() as usize, config.bin_tokens as usize]
    }

    /// The next batch, in lent memory or else in ours.
    fn next(&self, py: Python<'_>) -> PyResult<Option<Box<Batch<Memory>>>> {
        let [rows, tokens] = self.shape();
        loop {
            let poll = self.with_prefetcher(py, |prefetcher| {
                for _ in 0..prefetcher.num_wanted() {
                    prefetcher.lend(Memory::Pooled(Pooled::take(&self.pool, rows * tokens)));
                }
                prefetcher.poll(SIGNAL_CHECK)
            })?;
            match poll {
                Poll::Batch(batch) => return Ok(Some(batch)),
                Poll::End => return Ok(None),
                Poll::Pending => py.check_signals()?,
            }
        }
    }

    fn state_fields(&self, cursor: Cursor) -> StateFields {
        let state = self.stream.state_at(cursor);
        let Cursor { window, bin } = cursor;
        (state.version, state.seed, window, bin, state.fingerprint)
    }
}

#[pymethods]
impl BatchLoader {
    #[new]
    #[pyo3(signature = (readers, weights, max_epochs, groups, objective, *, seed, window_documents, packing,
        cut_at, bin_tokens, max_document_tokens, global_batch_bins, overlong, rank, world_size, pad_id,
        vocabulary_size, prefetch_batches))]
    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of one configuration, passed by keyword"
    )]
    fn new(
        py: Python<'_>,
        readers: Vec<PyRef<'_, DatasetReader>>,
        weights: Vec<f64>,
        max_epochs: Vec<Option<u64>>,
        groups: Vec<Option<Bound<'_, PyAny>>>,
        objective: &Objective,
        seed: u64,
        window_documents: u64,
        packing: &str,
        cut_at: &str,
        bin_tokens: u32,
        max_document_tokens: Option<u32>,
        global_batch_bins: u32,
        overlong: &str,
        rank: u32,
        world_size: u32,
        pad_id: i64,
        vocabulary_size: Option<i64>,
        prefetch_batches: usize,
    ) -> PyResult<Self> {
        let groups: PyResult<Vec<Groups>> = groups.into_iter().map(groups_from).collect();
        let groups = groups?;
        let documents: Vec<_> = readers.into_iter().map(|reader| reader.source()).collect();
        let stream = run_detached(py, || {
            let config = StreamConfig {
                seed,
                window_documents,
                packing: Packing::from_name(packing)?,
                cut_at: CutAt::from_name(cut_at)?,
                bin_tokens,
                max_document_tokens,
                global_batch_bins,
                overlong: Overlong::from_name(overlong)?,
                rank,
                world_size,
                pad_id,
                vocabulary_size,
            };
            let mut sources = Vec::new();
            let settings = weights.into_iter().zip(max_epochs).zip(groups);
            for ((documents, name), ((weight, max_epochs), groups)) in
                documents.into_iter().zip(settings)
            {
                sources.push(StreamSource {
                    name,
                    documents,
                    groups,
                    weight,
                    max_epochs,
                });
            }
            Stream::new(config, sources, objective.core.clone()).map(Arc::new)
        })?;
        Ok(Self {
            pool: ArrayPool::new(prefetch_batches + NUM_SPARE_ARRAYS),
            is_prefetching: prefetch_batches > 0,
            prefetcher: Mutex::new(Prefetcher::new(Arc::clone(&stream), prefetch_batches)),
            stream,
        })
    }

    fn next_batch<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(batch) = self.next(py)? else {
            return Ok(None);
        };
        let Batch { memory, facts } = *batch;
        let shape = [facts.num_rows, facts.row_tokens];
        let fields = self.facts(py, facts)?;
        match memory {
            Memory::Pooled(pooled) => set_arrays(&fields, pooled, shape)?,
            Memory::Lent(lent) => fields.set_item("lent", lent.into_owner())?,
        }
        Ok(Some(fields))
    }

    /// Fills the caller's arrays; the facts of the batch, `None` at the end.
    fn next_into<'py>(
        &self,
        py: Python<'py>,
        arrays: &Bound<'py, PyDict>,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let mut lent = Lent::new(py.None(), arrays, self.shape())?;
        if !self.is_prefetching {
            self.with_prefetcher(py, |prefetcher| {
                prefetcher.lend(Memory::Lent(lent));
                Ok(())
            })?;
            let batch = self.next(py)?;
            return batch.map(|batch| self.facts(py, batch.facts)).transpose();
        }
        let Some(batch) = self.next(py)? else {
            return Ok(None);
        };
        let Batch { mut memory, facts } = *batch;
        run_detached(py, || lent.arrays().copy_from(&memory.arrays()))?;
        self.facts(py, facts).map(Some)
    }

    /// How many sets of arrays may be lent now.
    fn num_wanted(&self, py: Python<'_>) -> PyResult<usize> {
        self.with_prefetcher(py, |prefetcher| Ok(prefetcher.num_wanted()))
    }

    /// Lends arrays for a batch to come, with which `owner` comes back under the name `lent`.
    fn lend(
        &self,
        py: Python<'_>,
        owner: Bound<'_, PyAny>,
        arrays: &Bound<'_, PyDict>,
    ) -> PyResult<()> {
        let lent = Lent::new(owner.unbind(), arrays, self.shape())?;
        self.with_prefetcher(py, |prefetcher| {
            prefetcher.lend(Memory::Lent(lent));
            Ok(())
        })
    }

    /// From now on delivers batch number `turn` of each `num_turns`.
    fn take_turns(&self, py: Python<'_>, turn: u32, num_turns: u32) -> PyResult<()> {
        self.with_prefetcher(py, |prefetcher| prefetcher.take_turns(turn, num_turns))
    }

    fn state(&self, py: Python<'_>) -> PyResult<StateFields> {
        self.with_prefetcher(py, |prefetcher| {
            Ok(self.state_fields(prefetcher.delivered()))
        })
    }

    fn load_state(
        &self,
        py: Python<'_>,
        version: u64,
        seed: u64,
        window: u64,
        bin_index: u64,
        fingerprint: String,
    ) -> PyResult<()> {
        self.with_prefetcher(py, |prefetcher| {
            let state = State {
                version,
                seed,
                cursor: Cursor {
                    window,
                    bin: bin_index,
                },
                fingerprint,
            };
            prefetcher.resume(&state)
        })
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        self.with_prefetcher(py, |prefetcher| {
            prefetcher.stop();
            Ok(())
        })
    }

    #[getter]
    fn dry_point(&self) -> Option<(u64, String)> {
        let (dry, source) = self.stream.dry_point()?;
        Some((dry.num_documents, source.to_string()))
    }

    #[getter]
    fn num_source_documents(&self) -> u64 {
        self.stream.num_source_documents()
    }

    #[getter]
    fn fingerprint(&self) -> &str {
        self.stream.fingerprint()
    }
}

impl BatchLoader {
    /// Everything about a batch but its arrays, by name.
    fn facts<'py>(&self, py: Python<'py>, facts: BatchFacts) -> PyResult<Bound<'py, PyDict>> {
        let fields = PyDict::new(py);
        fields.set_item("cu_seqlens", facts.cu_seqlens.into_pyarray(py))?;
        fields.set_item("max_seqlen", facts.max_seqlen)?;
        fields.set_item("weight_sum", facts.weight_sum)?;
        fields.set_item("num_tokens", facts.num_tokens)?;
        fields.set_item("num_documents", facts.num_documents)?;
        let media = facts.media.into_iter();
        let media = media.map(|(row, at)| (row, at.start, at.num_ids, at.reference));
        fields.set_item("media", media.collect::<Vec<_>>())?;
        fields.set_item("state", self.state_fields(facts.cursor))?;
        let counts = PyDict::new(py);
        counts.set_item("documents", facts.counts.documents)?;
        counts.set_item("truncated", facts.counts.truncated)?;
        counts.set_item("split", facts.counts.split)?;
        counts.set_item("dropped", facts.counts.dropped)?;
        counts.set_item("empty", facts.counts.empty)?;
        counts.set_item("overlong_groups", facts.counts.overlong_groups)?;
        fields.set_item("counts", counts)?;
        Ok(fields)
    }
}

/// Groups as a source has them: none, a size, or boundaries.
fn groups_from(groups: Option<Bound<'_, PyAny>>) -> PyResult<Groups> {
    let Some(groups) = groups else {
        return Ok(Groups::Single);
    };
    match groups.cast::<PyArray1<u64>>() {
        Ok(starts) => Ok(Groups::At(starts.try_readonly()?.as_slice()?.into())),
        Err(_) => Ok(Groups::OfSize(groups.extract()?)),
    }
}
