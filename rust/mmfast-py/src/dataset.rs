//! Indexed datasets for Python: a writer, a reader whose arrays point into the mapped file, merge.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use mmfast_core::indexed::{
    self, DatasetWriter as CoreWriter, DocumentSource, Dtype, IndexedDataset, Notes, Prefix,
    Tokens, Verify,
};
use mmfast_core::vfs::Disk;
use mmfast_core::{Error, Result};
use numpy::ndarray::ArrayView1;
use numpy::{
    Element, IntoPyArray, PyArray1, PyArrayMethods, PyReadonlyArray1, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::PySlice;

use crate::error::to_py;
use crate::gil::run_detached;

/// Documents, sequences and ids.
type Counts = (u64, u64, u64);
/// A sidecar: fingerprint, writer, vocabulary's fingerprint, provenance as JSON, number of blocks.
type SidecarFacts = (u128, String, Option<String>, String, usize);
/// A damaged block: number, its bytes, its documents, all of it in words.
type Damage = (u64, (u64, u64), (u64, u64), String);

/// A dataset in the making.
#[pyclass(frozen, module = "mmfast._mmfast")]
pub(crate) struct DatasetWriter {
    /// `None` once finished or aborted. Locked only while the GIL is released.
    writer: Mutex<Option<CoreWriter>>,
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
    #[pyo3(signature = (prefix, dtype, multimodal, *, vocabulary_fingerprint=None, provenance=None))]
    fn new(
        py: Python<'_>,
        prefix: PathBuf,
        dtype: &str,
        multimodal: bool,
        vocabulary_fingerprint: Option<String>,
        provenance: Option<&str>,
    ) -> PyResult<Self> {
        let writer = run_detached(py, || {
            let notes = Notes::new(vocabulary_fingerprint, provenance)?;
            let dtype = Dtype::from_name(dtype)?;
            let mut writer = CoreWriter::create(&Prefix::new(prefix)?, dtype, multimodal)?;
            writer.set_notes(notes);
            Ok(writer)
        })?;
        Ok(Self {
            writer: Mutex::new(Some(writer)),
        })
    }

    fn add_sequence(&self, py: Python<'_>, ids: &Bound<'_, PyAny>, mode: u8) -> PyResult<()> {
        with_tokens(ids, |tokens| {
            self.with_writer(py, |writer| writer.add_sequence(tokens, mode))
        })
    }

    fn end_document(&self, py: Python<'_>) -> PyResult<()> {
        self.with_writer(py, |writer| {
            writer.end_document();
            Ok(())
        })
    }

    fn add_documents(
        &self,
        py: Python<'_>,
        ids: &Bound<'_, PyAny>,
        lengths: &Bound<'_, PyArray1<i64>>,
        sequences_per_document: &Bound<'_, PyArray1<i64>>,
        modes: Option<&Bound<'_, PyArray1<u8>>>,
    ) -> PyResult<()> {
        let lengths = lengths.try_readonly()?;
        let counts = sequences_per_document.try_readonly()?;
        let modes = modes.map(PyArrayMethods::try_readonly).transpose()?;
        let (lengths, counts) = (lengths.as_slice()?, counts.as_slice()?);
        let modes = modes.as_ref().map(|modes| modes.as_slice()).transpose()?;
        with_tokens(ids, |tokens| {
            self.with_writer(py, |writer| {
                let lengths = each_fits(lengths, "sequence length")?;
                let counts = each_fits(counts, "number of sequences in a document")?;
                writer.add_documents(tokens, &lengths, &counts, modes)
            })
        })
    }

    fn add_dataset(&self, py: Python<'_>, prefix: PathBuf) -> PyResult<()> {
        self.with_writer(py, |writer| {
            writer.add_dataset(&IndexedDataset::open(&Prefix::new(prefix)?)?)
        })
    }

    fn finish(&self, py: Python<'_>) -> PyResult<Counts> {
        // A writer that cannot be finished yet stays open.
        self.with_writer(py, |writer| writer.require_whole_documents())?;
        let written = run_detached(py, || self.take().ok_or_else(closed)?.finish())?;
        Ok((
            written.num_documents,
            written.num_sequences,
            written.num_tokens,
        ))
    }

    fn abort(&self, py: Python<'_>) -> PyResult<()> {
        run_detached(py, || {
            drop(self.take());
            Ok(())
        })
    }

    fn counts(&self, py: Python<'_>) -> PyResult<Counts> {
        let written = self.with_writer(py, |writer| Ok(writer.written()))?;
        Ok((
            written.num_documents,
            written.num_sequences,
            written.num_tokens,
        ))
    }
}

/// Keeps a mapping alive for as long as an array points into it: the base of every such array.
#[pyclass(frozen, module = "mmfast._mmfast")]
struct Mapping {
    dataset: Arc<IndexedDataset>,
}

/// A published dataset.
#[pyclass(frozen, module = "mmfast._mmfast")]
pub(crate) struct DatasetReader {
    pub(crate) dataset: Arc<IndexedDataset>,
    /// All ids, read-only. Sequences are slices of it.
    tokens: Py<PyUntypedArray>,
}

#[pymethods]
impl DatasetReader {
    #[new]
    fn new(py: Python<'_>, prefix: PathBuf, verify: &str) -> PyResult<Self> {
        let dataset = run_detached(py, || {
            IndexedDataset::open_on(&Disk, &Prefix::new(prefix)?, Verify::from_name(verify)?)
        })?;
        let dataset = Arc::new(dataset);
        let tokens = array_over(py, &dataset)?.unbind();
        Ok(Self { dataset, tokens })
    }

    #[getter]
    fn num_documents(&self) -> u64 {
        self.dataset.num_documents()
    }

    #[getter]
    fn num_sequences(&self) -> u64 {
        self.dataset.num_sequences()
    }

    #[getter]
    fn num_tokens(&self) -> u64 {
        self.dataset.num_tokens()
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.dataset.dtype().name()
    }

    #[getter]
    fn multimodal(&self) -> bool {
        self.dataset.has_modes()
    }

    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyUntypedArray>> {
        run_detached(py, || self.dataset.tokens().map(|_| ()))?;
        Ok(self.tokens.bind(py).clone())
    }

    #[getter]
    fn sidecar(&self) -> Option<SidecarFacts> {
        let sidecar = self.dataset.sidecar()?;
        let notes = &sidecar.notes;
        Some((
            sidecar.fingerprint,
            notes.writer.clone(),
            notes.vocabulary_fingerprint.clone(),
            notes.provenance_json(),
            sidecar.num_blocks(),
        ))
    }

    fn verify(&self, py: Python<'_>, level: &str) -> PyResult<()> {
        run_detached(py, || self.dataset.verify(Verify::from_name(level)?))
    }

    fn damaged_blocks(&self, py: Python<'_>, start: usize, stop: usize) -> PyResult<Vec<Damage>> {
        let damaged = run_detached(py, || self.dataset.damaged_blocks(start..stop))?;
        let in_words = damaged.into_iter().map(|damage| {
            let text = damage.to_string();
            let (bytes, documents) = (damage.bytes, damage.documents);
            let documents = (documents.start, documents.end);
            (damage.block, (bytes.start, bytes.end), documents, text)
        });
        Ok(in_words.collect())
    }

    fn fingerprint(&self, py: Python<'_>) -> PyResult<u64> {
        run_detached(py, || Ok(self.dataset.fingerprint()))
    }

    #[pyo3(signature = (index, offset=0, length=None))]
    fn sequence<'py>(
        &self,
        py: Python<'py>,
        index: i64,
        offset: i64,
        length: Option<i64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let sequence = resolve("sequence", index, self.dataset.num_sequences()).map_err(to_py)?;
        let whole = self.dataset.token_range(sequence);
        let whole = whole
            .and_then(|tokens| self.dataset.touch(tokens))
            .map_err(to_py)?;
        let start = part(offset, whole.len(), "offset").map_err(to_py)?;
        let rest = whole.len() - start;
        let length = length.map_or(Ok(rest), |length| part(length, rest, "length"));
        let start = whole.start + start;
        let end = start + length.map_err(to_py)?;
        let slice = PySlice::new(py, signed(start)?, signed(end)?, 1);
        self.tokens.bind(py).as_any().get_item(slice)
    }

    fn mode(&self, index: i64) -> PyResult<u8> {
        resolve("sequence", index, self.dataset.num_sequences())
            .and_then(|sequence| self.dataset.mode(sequence))
            .map_err(to_py)
    }

    fn document(&self, index: i64) -> PyResult<(u64, u64)> {
        resolve("document", index, self.dataset.num_documents())
            .and_then(|document| self.dataset.document_sequences(document))
            .map(|sequences| (sequences.start, sequences.end))
            .map_err(to_py)
    }

    fn sequence_lengths<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let lengths: Vec<i32> = run_detached(py, || {
            // Validated at opening: lengths are not negative as i32.
            let lengths = self.dataset.sequence_lengths();
            Ok(lengths.map(u32::cast_signed).collect())
        })?;
        Ok(lengths.into_pyarray(py))
    }

    fn document_indices<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let indices: Vec<i64> = run_detached(py, || {
            let indices = self.dataset.document_indices();
            Ok(indices.map(u64::cast_signed).collect())
        })?;
        Ok(indices.into_pyarray(py))
    }

    fn sequence_modes<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyArray1<u8>>> {
        let modes = self.dataset.sequence_modes()?;
        Some(PyArray1::from_slice(py, modes))
    }

    /// Reads the ids of sequences `start..stop`; returns their range, and sequences and ids counted by
    /// modality.
    #[pyo3(signature = (start, stop, allowed=None))]
    #[expect(clippy::type_complexity, reason = "mirrors the stub's tuple")]
    fn scan(
        &self,
        py: Python<'_>,
        start: u64,
        stop: u64,
        allowed: Option<(i64, i64)>,
    ) -> PyResult<(Option<(i64, i64)>, Vec<u64>, Vec<u64>)> {
        let allowed = allowed.map(|(low, high)| low..high);
        let found = run_detached(py, || {
            indexed::scan(&self.dataset, start..stop, allowed.as_ref())
        })?;
        Ok((
            found.id_range,
            found.sequences_by_modality.to_vec(),
            found.tokens_by_modality.to_vec(),
        ))
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
    Ok((
        written.num_documents,
        written.num_sequences,
        written.num_tokens,
    ))
}

fn closed() -> Error {
    Error::InvalidArgument("the dataset is already finished or aborted".into())
}

/// Runs `work` on the ids of a one-dimensional, contiguous array of any dtype of the format.
fn with_tokens<R>(
    array: &Bound<'_, PyAny>,
    work: impl FnOnce(Tokens<'_>) -> PyResult<R>,
) -> PyResult<R> {
    macro_rules! try_dtypes {
        ($($variant:ident),*) => {
            $(if let Ok(array) = array.extract::<PyReadonlyArray1<'_, _>>() {
                return work(Tokens::$variant(array.as_slice()?));
            })*
        };
    }
    try_dtypes!(I32, I64, U16, U8, I8, I16, F32, F64);
    let dtype = array.cast::<PyUntypedArray>()?.dtype();
    Err(to_py(Error::InvalidArgument(format!(
        "an array of {dtype} in one dimension is expected to hold int8, int16, int32, int64, \
         uint8, uint16, float32 or float64"
    ))))
}

/// A read-only array over all ids of a dataset, in place.
fn array_over<'py>(
    py: Python<'py>,
    dataset: &Arc<IndexedDataset>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    fn over<'py, T: Element>(ids: &[T], owner: Bound<'py, Mapping>) -> Bound<'py, PyUntypedArray> {
        #[expect(
            unsafe_code,
            reason = "ids are handed to NumPy where they lie in the file"
        )]
        // SAFETY: `ids` point into the mapping that `owner` holds an `Arc` of; NumPy keeps `owner`
        // as the array's base for as long as it, or a slice of it, lives. Writing is ruled out next.
        let array =
            unsafe { PyArray1::borrow_from_array(&ArrayView1::from(ids), owner.into_any()) };
        array.readwrite().make_nonwriteable();
        array.as_untyped().clone()
    }
    let owner = Bound::new(
        py,
        Mapping {
            dataset: Arc::clone(dataset),
        },
    )?;
    let mapped = Arc::clone(&owner.get().dataset);
    Ok(match mapped.untouched_tokens().map_err(to_py)? {
        Tokens::U8(ids) => over(ids, owner),
        Tokens::I8(ids) => over(ids, owner),
        Tokens::I16(ids) => over(ids, owner),
        Tokens::I32(ids) => over(ids, owner),
        Tokens::I64(ids) => over(ids, owner),
        Tokens::F64(ids) => over(ids, owner),
        Tokens::F32(ids) => over(ids, owner),
        Tokens::U16(ids) => over(ids, owner),
    })
}

/// A Python index, which may count from the end.
pub(crate) fn resolve(what: &'static str, index: i64, len: u64) -> Result<u64> {
    let found = match u64::try_from(index) {
        Ok(index) => Some(index),
        Err(_) => len.checked_sub(index.unsigned_abs()),
    };
    found
        .filter(|&found| found < len)
        .ok_or(Error::IndexOutOfRange { what, index, len })
}

/// An offset or length inside a sequence.
fn part(value: i64, available: usize, what: &'static str) -> Result<usize> {
    let found = usize::try_from(value).ok();
    found
        .filter(|&found| found <= available)
        .ok_or(Error::IndexOutOfRange {
            what,
            index: value,
            len: available as u64,
        })
}

fn signed(value: usize) -> PyResult<isize> {
    Ok(isize::try_from(value)?)
}

/// Counts from Python as unsigned numbers.
fn each_fits<T: TryFrom<i64>>(values: &[i64], what: &str) -> Result<Vec<T>> {
    let fits = |&value: &i64| {
        T::try_from(value)
            .map_err(|_unfit| Error::InvalidArgument(format!("{value} cannot be a {what}")))
    };
    values.iter().map(fits).collect()
}
