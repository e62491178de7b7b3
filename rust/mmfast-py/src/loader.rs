//! The document stream for Python: opens datasets, prefetches, and hands each batch over as arrays
//! that own their memory.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mmfast_core::Result;
use mmfast_core::indexed::{IndexedDataset, Prefix};
use mmfast_core::pack::Overlong;
use mmfast_core::stream::{
    Batch, Cursor, Poll, Prefetcher, State, Stream, StreamConfig, StreamSource,
};
use numpy::{Element, IntoPyArray, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::gil::run_detached;
use crate::objective::Objective;

/// How long a wait for a batch lasts before Ctrl-C is looked for.
const SIGNAL_CHECK: Duration = Duration::from_millis(100);

/// Version, seed, window, bin and fingerprint.
type StateFields = (u64, u64, u64, u64, String);

/// One rank's view of a document stream.
#[pyclass(frozen, module = "mmfast._mmfast")]
pub(crate) struct BatchLoader {
    stream: Arc<Stream>,
    /// Locked only while the GIL is released.
    prefetcher: Mutex<Prefetcher>,
}

impl BatchLoader {
    fn with_prefetcher<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Prefetcher) -> Result<T> + Send,
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
}

#[pymethods]
impl BatchLoader {
    #[new]
    #[pyo3(signature = (prefixes, weights, max_epochs, objective, *, seed, window_documents, bin_tokens,
        max_document_tokens, global_batch_bins, overlong, rank, world_size, pad_id, vocabulary_size, prefetch_batches))]
    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of one configuration, passed by keyword"
    )]
    fn new(
        py: Python<'_>,
        prefixes: Vec<PathBuf>,
        weights: Vec<f64>,
        max_epochs: Vec<Option<u64>>,
        objective: &Objective,
        seed: u64,
        window_documents: u64,
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
        let stream = run_detached(py, || {
            let config = StreamConfig {
                seed,
                window_documents,
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
            for ((prefix, weight), max_epochs) in prefixes.into_iter().zip(weights).zip(max_epochs)
            {
                sources.push(StreamSource {
                    name: prefix.display().to_string(),
                    documents: Arc::new(IndexedDataset::open(&Prefix::new(prefix)?)?),
                    weight,
                    max_epochs,
                });
            }
            Stream::new(config, sources, objective.core.clone()).map(Arc::new)
        })?;
        Ok(Self {
            prefetcher: Mutex::new(Prefetcher::new(Arc::clone(&stream), prefetch_batches)),
            stream,
        })
    }

    fn next_batch<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        loop {
            match self.with_prefetcher(py, |prefetcher| prefetcher.poll(SIGNAL_CHECK))? {
                Poll::Batch(batch) => return batch_dict(py, *batch).map(Some),
                Poll::End => return Ok(None),
                Poll::Pending => py.check_signals()?,
            }
        }
    }

    fn state(&self, py: Python<'_>) -> PyResult<StateFields> {
        self.with_prefetcher(py, |prefetcher| {
            let state = self.stream.state_at(prefetcher.delivered());
            let Cursor { window, bin } = state.cursor;
            Ok((state.version, state.seed, window, bin, state.fingerprint))
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
            let cursor = self.stream.cursor_of(&state)?;
            prefetcher.seek(cursor);
            Ok(())
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

/// A batch's arrays, [B, L] each, and numbers by name.
fn batch_dict(py: Python<'_>, batch: Batch) -> PyResult<Bound<'_, PyDict>> {
    let shape = [batch.num_rows, batch.row_tokens];
    let fields = PyDict::new(py);
    let set = |name: &str, value: Bound<'_, PyAny>| fields.set_item(name, value);
    set("input_ids", rows(py, batch.input_ids, shape)?)?;
    set("labels", rows(py, batch.labels, shape)?)?;
    set("position_ids", rows(py, batch.position_ids, shape)?)?;
    set("document_ids", rows(py, batch.document_ids, shape)?)?;
    set("modality_ids", rows(py, batch.modality_ids, shape)?)?;
    set("loss_weights", rows(py, batch.loss_weights, shape)?)?;
    set("cu_seqlens", batch.cu_seqlens.into_pyarray(py).into_any())?;
    fields.set_item("max_seqlen", batch.max_seqlen)?;
    fields.set_item("weight_sum", batch.weight_sum)?;
    fields.set_item("num_tokens", batch.num_tokens)?;
    fields.set_item("num_documents", batch.num_documents)?;
    let counts = PyDict::new(py);
    counts.set_item("documents", batch.counts.documents)?;
    counts.set_item("truncated", batch.counts.truncated)?;
    counts.set_item("split", batch.counts.split)?;
    counts.set_item("dropped", batch.counts.dropped)?;
    counts.set_item("empty", batch.counts.empty)?;
    fields.set_item("counts", counts)?;
    Ok(fields)
}

fn rows<T: Element>(
    py: Python<'_>,
    values: Vec<T>,
    shape: [usize; 2],
) -> PyResult<Bound<'_, PyAny>> {
    Ok(values.into_pyarray(py).reshape(shape)?.into_any())
}
