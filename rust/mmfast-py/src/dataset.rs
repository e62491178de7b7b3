//! Published datasets for Python: a reader whose arrays point into the mapped file.

use std::path::PathBuf;
use std::sync::Arc;

use mmfast_core::indexed::{self, DocumentSource, IndexedDataset, Prefix, Tokens, Verify};
use mmfast_core::vfs::Disk;
use mmfast_core::{Error, Result};
use numpy::ndarray::ArrayView1;
use numpy::{Element, IntoPyArray, PyArray1, PyArrayMethods, PyUntypedArray};
use pyo3::prelude::*;
use pyo3::types::PySlice;

use crate::error::to_py;
use crate::gil::run_detached;

/// A sidecar: fingerprint, writer, vocabulary's fingerprint, provenance as JSON, number of blocks.
type SidecarFacts = (u128, String, Option<String>, String, usize);
/// A damaged block: number, its bytes, its documents, all of it in words.
type Damage = (u64, (u64, u64), (u64, u64), String);

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
