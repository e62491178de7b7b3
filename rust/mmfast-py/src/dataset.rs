//! Published datasets for Python: a reader whose arrays point into the mapped file.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use mmfast_core::indexed::{
    self, Access, DatasetView, DocumentSource, IndexedDataset, Item, Prefix, Scan, Verify,
    ViewOptions,
};
use mmfast_core::{Error, Result};
use numpy::ndarray::ArrayView1;
use numpy::{Element, IntoPyArray, PyArray1, PyArrayMethods, PyUntypedArray};
use pyo3::prelude::*;
use pyo3::types::PySlice;

use crate::error::to_py;
use crate::gil::run_detached;

/// Evaluates an expression with the number type of a dtype by name.
macro_rules! match_dtype {
    ($dtype:expr, $id:ident => $work:expr) => {
        match_dtype!(@each $dtype, $id => $work;
            U8 u8, I8 i8, I16 i16, I32 i32, I64 i64, F64 f64, F32 f32, U16 u16)
    };
    (@each $dtype:expr, $id:ident => $work:expr; $($variant:ident $type:ty),*) => {
        match $dtype {
            $(mmfast_core::indexed::Dtype::$variant => {
                type $id = $type;
                $work
            })*
        }
    };
}
pub(crate) use match_dtype;

/// A sidecar: fingerprint, writer, vocabulary's fingerprint, provenance as JSON, number of blocks.
type SidecarFacts = (u128, String, Option<String>, String, usize);
/// A damaged block: number, its bytes, its documents, all of it in words.
type Damage = (u64, (u64, u64), (u64, u64), String);

/// Ids, mode, and what the ids stand for if they are placeholders.
type SegmentFields<'py> = (Bound<'py, PyUntypedArray>, u8, Option<String>);

/// Keeps a mapping alive for as long as an array points into it: the base of every such array.
#[pyclass(frozen, module = "mmfast._mmfast")]
struct Mapping {
    dataset: Arc<IndexedDataset>,
}

/// A published dataset, several of them, or a part of these.
#[pyclass(frozen, module = "mmfast._mmfast")]
pub(crate) struct DatasetReader {
    pub(crate) view: DatasetView,
    /// One dataset as a whole, if it is mapped, and all its ids, read-only. Sequences are slices of them.
    whole: Option<(Arc<IndexedDataset>, Py<PyUntypedArray>)>,
}

impl DatasetReader {
    fn over(py: Python<'_>, view: DatasetView) -> PyResult<Self> {
        let mapped = view
            .whole_dataset()
            .filter(|dataset| dataset.access().is_mapped);
        let whole = mapped.map(|dataset| {
            let tokens = 0..usize::try_from(dataset.num_tokens()).unwrap_or(usize::MAX);
            let all = array_over(py, &dataset, tokens)?.unbind();
            Ok::<_, PyErr>((dataset, all))
        });
        Ok(Self {
            whole: whole.transpose()?,
            view,
        })
    }

    /// What the loader streams over, and what errors call it.
    pub(crate) fn source(&self) -> (Arc<dyn DocumentSource>, String) {
        let documents: Arc<dyn DocumentSource> = match self.view.whole_dataset() {
            Some(dataset) => dataset,
            None => Arc::new(self.view.clone()),
        };
        let prefixes = self.view.prefixes();
        let name = match prefixes.split_first() {
            Some((first, [])) => first.display().to_string(),
            Some((first, others)) => format!("{} and {} more", first.display(), others.len()),
            None => String::new(),
        };
        (documents, name)
    }

    /// A sequence of the view, counted from 0 or from its end.
    fn nth_sequence(&self, index: i64) -> Result<u64> {
        let num_sequences = self.view.num_sequences()?;
        self.view
            .nth_sequence(resolve("sequence", index, num_sequences)?)
    }

    /// A run of a dataset's ids as an array: in place if that can be, else copied.
    fn array<'py>(
        &self,
        py: Python<'py>,
        dataset: &Arc<IndexedDataset>,
        tokens: Range<usize>,
    ) -> PyResult<Bound<'py, PyUntypedArray>> {
        let dtype = self.view.dtype();
        if dataset.access().is_mapped && dataset.dtype() == dtype {
            run_detached(py, || dataset.touch(tokens.clone()))?;
            return array_over(py, dataset, tokens);
        }
        match_dtype!(dtype, Id => {
            let ids = run_detached(py, || {
                let mut ids = vec![Id::default(); tokens.len()];
                dataset.read(tokens.start, &mut ids)?;
                Ok(ids)
            })?;
            let array = ids.into_pyarray(py);
            // As those in place are: a program must not depend on how its files are reached.
            array.readwrite().make_nonwriteable();
            Ok(array.as_untyped().clone())
        })
    }
}

#[pymethods]
impl DatasetReader {
    #[new]
    #[pyo3(signature = (prefixes, *, verify, access, max_open))]
    fn new(
        py: Python<'_>,
        prefixes: Vec<PathBuf>,
        verify: &str,
        access: &str,
        max_open: usize,
    ) -> PyResult<Self> {
        let view = run_detached(py, || {
            let prefixes = prefixes.into_iter().map(Prefix::new);
            let options = ViewOptions {
                verify: Verify::from_name(verify)?,
                access: Access::from_name(access)?,
                max_open,
            };
            DatasetView::open(&prefixes.collect::<Result<Vec<_>>>()?, options)
        })?;
        Self::over(py, view)
    }

    /// The documents `start..stop`.
    fn slice(&self, py: Python<'_>, start: u64, stop: u64) -> PyResult<Self> {
        Self::over(py, self.view.slice(start..stop).map_err(to_py)?)
    }

    /// The same documents in an order that depends on `seed` and their number.
    fn shuffled(&self, py: Python<'_>, seed: u64) -> PyResult<Self> {
        Self::over(py, self.view.shuffled(seed))
    }

    #[getter]
    fn num_documents(&self) -> u64 {
        self.view.num_documents()
    }

    #[getter]
    fn num_sequences(&self, py: Python<'_>) -> PyResult<u64> {
        run_detached(py, || self.view.num_sequences())
    }

    #[getter]
    fn num_tokens(&self, py: Python<'_>) -> PyResult<u64> {
        run_detached(py, || self.view.num_tokens())
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.view.dtype().name()
    }

    #[getter]
    fn multimodal(&self) -> bool {
        self.view.has_modes()
    }

    /// How the datasets are reached and why, each way with the number of datasets.
    #[getter]
    fn access(&self) -> Vec<(String, usize)> {
        let ways = self.view.access().into_iter();
        ways.map(|(way, num_datasets)| (way.to_string(), num_datasets))
            .collect()
    }

    #[getter]
    fn findings(&self) -> Vec<String> {
        self.view.findings()
    }

    /// All ids, where they lie; None if this is not one mapped dataset as a whole.
    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyUntypedArray>>> {
        let Some((dataset, tokens)) = &self.whole else {
            return Ok(None);
        };
        run_detached(py, || dataset.tokens().map(|_| ()))?;
        Ok(Some(tokens.bind(py).clone()))
    }

    /// Of the only dataset.
    #[getter]
    fn sidecar(&self) -> Option<SidecarFacts> {
        let dataset = self.view.whole_dataset()?;
        let sidecar = dataset.sidecar()?;
        let notes = &sidecar.notes;
        Some((
            sidecar.fingerprint,
            notes.writer.clone(),
            notes.vocabulary_fingerprint.clone(),
            notes.provenance_json(),
            sidecar.num_blocks(),
        ))
    }

    /// Checks the only dataset.
    fn verify(&self, py: Python<'_>, level: &str) -> PyResult<()> {
        run_detached(py, || {
            self.view.dataset(0)?.verify(Verify::from_name(level)?)
        })
    }

    /// Of the only dataset.
    fn damaged_blocks(&self, py: Python<'_>, start: usize, stop: usize) -> PyResult<Vec<Damage>> {
        let damaged = run_detached(py, || self.view.dataset(0)?.damaged_blocks(start..stop))?;
        let in_words = damaged.into_iter().map(|damage| {
            let text = damage.to_string();
            let (bytes, documents) = (damage.bytes, damage.documents);
            let documents = (documents.start, documents.end);
            (damage.block, (bytes.start, bytes.end), documents, text)
        });
        Ok(in_words.collect())
    }

    fn fingerprint(&self, py: Python<'_>) -> PyResult<u64> {
        run_detached(py, || Ok(self.view.fingerprint()))
    }

    #[pyo3(signature = (index, offset=0, length=None))]
    fn sequence<'py>(
        &self,
        py: Python<'py>,
        index: i64,
        offset: i64,
        length: Option<i64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let Some((dataset, all)) = &self.whole else {
            let located = self.nth_sequence(index);
            let located = located.and_then(|sequence| self.view.locate(sequence));
            let (dataset, sequence) = located.map_err(to_py)?;
            let whole = dataset.token_range(sequence);
            let tokens = whole.and_then(|whole| part_of(whole, offset, length));
            let array = self.array(py, &dataset, tokens.map_err(to_py)?)?;
            return Ok(array.into_any());
        };
        let tokens = resolve("sequence", index, dataset.num_sequences())
            .and_then(|sequence| dataset.token_range(sequence))
            .and_then(|whole| part_of(whole, offset, length))
            .and_then(|tokens| dataset.touch(tokens))
            .map_err(to_py)?;
        let slice = PySlice::new(py, signed(tokens.start)?, signed(tokens.end)?, 1);
        all.bind(py).as_any().get_item(slice)
    }

    fn mode(&self, index: i64) -> PyResult<u8> {
        self.nth_sequence(index)
            .and_then(|sequence| self.view.mode(sequence))
            .map_err(to_py)
    }

    /// Ids and mode of each sequence of a document.
    fn document<'py>(&self, py: Python<'py>, index: i64) -> PyResult<Vec<SegmentFields<'py>>> {
        let sequences = resolve("document", index, self.view.num_documents())
            .and_then(|document| self.view.document_sequences(document))
            .map_err(to_py)?;
        let segment = |sequence| {
            let (dataset, local) = self.view.locate(sequence).map_err(to_py)?;
            let tokens = dataset.token_range(local).map_err(to_py)?;
            let mode = dataset.mode(local).map_err(to_py)?;
            let media = dataset.media(local).map_err(to_py)?;
            Ok((self.array(py, &dataset, tokens)?, mode, media))
        };
        sequences.map(segment).collect()
    }

    fn sequence_lengths<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let lengths: Vec<i32> = run_detached(py, || {
            // Validated at opening: lengths are not negative as i32.
            let lengths = self.view.sequence_lengths()?;
            Ok(lengths.into_iter().map(u32::cast_signed).collect())
        })?;
        Ok(lengths.into_pyarray(py))
    }

    fn document_indices<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let indices: Vec<i64> = run_detached(py, || {
            let indices = self.view.document_indices()?;
            Ok(indices.into_iter().map(u64::cast_signed).collect())
        })?;
        Ok(indices.into_pyarray(py))
    }

    fn sequence_modes<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyArray1<u8>>>> {
        let modes = run_detached(py, || self.view.sequence_modes())?;
        Ok(modes.map(|modes| modes.into_pyarray(py)))
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
            let mut found = Scan::default();
            for (dataset, run) in self.view.runs(start..stop)? {
                found.add(&indexed::scan(&dataset, run, allowed.as_ref())?);
            }
            Ok(found)
        })?;
        Ok((
            found.id_range,
            found.sequences_by_modality.to_vec(),
            found.tokens_by_modality.to_vec(),
        ))
    }
}

/// A read-only array over some ids of a mapped dataset, in place.
fn array_over<'py>(
    py: Python<'py>,
    dataset: &Arc<IndexedDataset>,
    tokens: Range<usize>,
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
    let outside = || to_py(Error::argument("ids outside of the dataset are asked for"));
    match_dtype!(mapped.dtype(), Id => {
        let all = Id::of(mapped.untouched_tokens().map_err(to_py)?).ok_or_else(outside)?;
        Ok(over(all.get(tokens).ok_or_else(outside)?, owner))
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

/// Part of a sequence, given where the whole of it lies.
fn part_of(whole: Range<usize>, offset: i64, length: Option<i64>) -> Result<Range<usize>> {
    let start = part(offset, whole.len(), "offset")?;
    let rest = whole.len() - start;
    let length = length.map_or(Ok(rest), |length| part(length, rest, "length"))?;
    let start = whole.start + start;
    Ok(start..start + length)
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
