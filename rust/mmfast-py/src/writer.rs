//! Writers of indexed datasets for Python: one that takes documents, and merge.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use mmfast_core::indexed::{
    self, DatasetWriter as CoreWriter, Dtype, IndexedDataset, Notes, Prefix, Written,
};
use mmfast_core::{Error, Result};
use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;

use crate::arguments::{Ids, each_fits, plain_counts, plain_int, plain_modes};
use crate::error::to_py;
use crate::gil::run_detached;

/// Documents, sequences and ids.
type Counts = (u64, u64, u64);

/// A dataset in the making.
#[pyclass(frozen, module = "mmfast._mmfast")]
pub(crate) struct DatasetWriter {
    /// `None` once finished or aborted. Locked only while the GIL is released.
    writer: Mutex<Option<CoreWriter>>,
    dtype: Dtype,
}

impl DatasetWriter {
    /// Runs `work` on the open writer without the GIL.
    fn with_writer<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut CoreWriter) -> Result<T> + Send,
    ) -> PyResult<T> {
        run_detached(py, || {
            let mut guard = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            work(guard.as_mut().ok_or_else(closed)?)
        })
    }

    fn take(&self) -> Option<CoreWriter> {
        let mut guard = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        guard.take()
    }
}

#[pymethods]
impl DatasetWriter {
    #[new]
    #[pyo3(signature = (prefix, dtype, multimodal, *, resume=false, vocabulary_fingerprint=None, provenance=None))]
    fn new(
        py: Python<'_>,
        prefix: PathBuf,
        dtype: &str,
        multimodal: bool,
        resume: bool,
        vocabulary_fingerprint: Option<String>,
        provenance: Option<&str>,
    ) -> PyResult<Self> {
        let dtype = Dtype::from_name(dtype).map_err(to_py)?;
        let writer = run_detached(py, || {
            let notes = Notes::new(vocabulary_fingerprint, provenance)?;
            let prefix = Prefix::new(prefix)?;
            if resume {
                return CoreWriter::resume(&prefix, dtype, multimodal, notes);
            }
            let mut writer = CoreWriter::create(&prefix, dtype, multimodal)?;
            writer.set_notes(notes);
            Ok(writer)
        })?;
        Ok(Self {
            writer: Mutex::new(Some(writer)),
            dtype,
        })
    }

    fn add_sequence(&self, py: Python<'_>, ids: &Bound<'_, PyAny>, mode: u8) -> PyResult<()> {
        Ids::of_array(ids)?
            .with(|tokens| self.with_writer(py, |writer| writer.add_sequence(tokens, mode)))
    }

    /// [`Self::add_sequence`] for arguments that need no conversion; for others nothing is done, and
    /// the answer is false.
    fn add_plain_sequence(
        &self,
        py: Python<'_>,
        ids: &Bound<'_, PyAny>,
        mode: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let mode = plain_int(mode).and_then(|mode| u8::try_from(mode).ok());
        let Some((ids, mode)) = Ids::plain(ids, self.dtype)?.zip(mode) else {
            return Ok(false);
        };
        ids.with(|tokens| self.with_writer(py, |writer| writer.add_sequence(tokens, mode)))?;
        Ok(true)
    }

    fn add_referring_sequence(
        &self,
        py: Python<'_>,
        ids: &Bound<'_, PyAny>,
        mode: u8,
        reference: &str,
    ) -> PyResult<()> {
        Ids::of_array(ids)?.with(|tokens| {
            self.with_writer(py, |writer| {
                writer.add_referring_sequence(tokens, mode, Some(reference))
            })
        })
    }

    fn end_document(&self, py: Python<'_>) -> PyResult<()> {
        self.with_writer(py, |writer| {
            writer.end_document();
            Ok(())
        })
    }

    #[expect(clippy::needless_pass_by_value, reason = "as Python passes it")]
    fn add_documents(
        &self,
        py: Python<'_>,
        ids: &Bound<'_, PyAny>,
        lengths: &Bound<'_, PyArray1<i64>>,
        sequences_per_document: &Bound<'_, PyArray1<i64>>,
        modes: Option<&Bound<'_, PyArray1<u8>>>,
        references: Vec<(u64, String)>,
    ) -> PyResult<()> {
        let lengths = lengths.try_readonly()?;
        let counts = sequences_per_document.try_readonly()?;
        let modes = modes.map(PyArrayMethods::try_readonly).transpose()?;
        let (lengths, counts) = (lengths.as_slice()?, counts.as_slice()?);
        let modes = modes.as_ref().map(|modes| modes.as_slice()).transpose()?;
        let references: Vec<_> = references
            .iter()
            .map(|(at, text)| (*at, text.as_str()))
            .collect();
        Ids::of_array(ids)?.with(|tokens| {
            self.with_writer(py, |writer| {
                let lengths = each_fits(lengths, "sequence length")?;
                let counts = each_fits(counts, "number of sequences in a document")?;
                writer.add_referring_documents(tokens, &lengths, &counts, modes, &references)
            })
        })
    }

    /// Adds one document if its arguments need no conversion; for others nothing is done, and the
    /// answer is false.
    #[pyo3(signature = (ids, lengths, modes=None))]
    fn add_plain_document(
        &self,
        py: Python<'_>,
        ids: &Bound<'_, PyAny>,
        lengths: &Bound<'_, PyAny>,
        modes: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let plain = Ids::plain(ids, self.dtype)?.zip(plain_counts(lengths));
        let (Some((ids, lengths)), modes) = (plain, modes.map(plain_modes)) else {
            return Ok(false);
        };
        if modes == Some(None) {
            return Ok(false);
        }
        let modes = modes.flatten();
        ids.with(|tokens| {
            self.with_writer(py, |writer| {
                let lengths: Vec<_> = each_fits(&lengths, "sequence length")?;
                let count = lengths.len() as u64;
                writer.add_documents(tokens, &lengths, &[count], modes.as_deref())
            })
        })?;
        Ok(true)
    }

    fn add_dataset(&self, py: Python<'_>, prefix: PathBuf) -> PyResult<()> {
        self.with_writer(py, |writer| {
            writer.add_dataset(&IndexedDataset::open(&Prefix::new(prefix)?)?)
        })
    }

    fn flush(&self, py: Python<'_>) -> PyResult<Counts> {
        Ok(counts_of(self.with_writer(py, CoreWriter::flush)?))
    }

    fn finish(&self, py: Python<'_>) -> PyResult<Counts> {
        // A writer that cannot be finished yet stays open.
        self.with_writer(py, |writer| writer.require_whole_documents())?;
        let written = run_detached(py, || self.take().ok_or_else(closed)?.finish())?;
        Ok(counts_of(written))
    }

    fn abort(&self, py: Python<'_>) -> PyResult<()> {
        run_detached(py, || {
            drop(self.take());
            Ok(())
        })
    }

    fn discard(&self, py: Python<'_>) -> PyResult<()> {
        run_detached(py, || self.take().map_or(Ok(()), CoreWriter::discard))
    }

    fn durable(&self, py: Python<'_>) -> PyResult<Counts> {
        let durable = self.with_writer(py, |writer| Ok(writer.durable()))?;
        Ok(counts_of(durable))
    }

    fn is_open(&self, py: Python<'_>) -> PyResult<bool> {
        run_detached(py, || {
            let guard = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(guard.is_some())
        })
    }

    fn counts(&self, py: Python<'_>) -> PyResult<Counts> {
        let written = self.with_writer(py, |writer| Ok(writer.written()))?;
        Ok(counts_of(written))
    }
}

/// Merges datasets in the given order; returns documents, sequences and ids written.
#[pyfunction]
pub(crate) fn merge_datasets(
    py: Python<'_>,
    output: PathBuf,
    prefixes: Vec<PathBuf>,
) -> PyResult<Counts> {
    let written = run_detached(py, || {
        let output = Prefix::new(output)?;
        let parts = prefixes.into_iter().map(Prefix::new);
        indexed::merge(&output, &parts.collect::<Result<Vec<_>>>()?)
    })?;
    Ok(counts_of(written))
}

fn counts_of(written: Written) -> Counts {
    (
        written.num_documents,
        written.num_sequences,
        written.num_tokens,
    )
}

fn closed() -> Error {
    Error::InvalidArgument("the dataset is already finished or aborted".into())
}
