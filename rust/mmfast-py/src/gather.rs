//! Batched reads for Python: one call, one array, no GIL while ids are copied.

use mmfast_core::Error;
use mmfast_core::indexed::{DatasetView, DocumentSource, Gather, Item};
use numpy::{Element, IntoPyArray, PyArray1, PyArrayMethods, PyUntypedArray};
use pyo3::prelude::*;

use crate::arguments::plain_counts;
use crate::dataset::{DatasetReader, match_dtype, resolve};
use crate::error::to_py;
use crate::gil::run_detached;

/// The ids, and where each run of them begins.
type Gathered<'py> = (Bound<'py, PyUntypedArray>, Bound<'py, PyArray1<i64>>);

/// Copies sequences, or documents, into one array; returns it and where each begins in it.
///
/// With `out` the ids go to its beginning, and it is what comes back. Indices are an array of int64 or a
/// list of ints; for others nothing is done, and the answer is `None`.
#[pyfunction]
#[pyo3(signature = (reader, indices, *, documents=false, out=None))]
pub(crate) fn gather<'py>(
    py: Python<'py>,
    reader: &DatasetReader,
    indices: &Bound<'py, PyAny>,
    documents: bool,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Option<Gathered<'py>>> {
    let Some(indices) = plain_counts(indices) else {
        return Ok(None);
    };
    let view = &reader.view;
    let plan = run_detached(py, || {
        if documents {
            let len = view.num_documents();
            let found = indices.iter().map(|&i| resolve("document", i, len));
            Gather::documents(view, found)
        } else {
            let len = view.num_sequences()?;
            let found = indices.iter().map(|&i| resolve("sequence", i, len));
            Gather::sequences(view, found)
        }
    })?;
    let ids = match_dtype!(view.dtype(), Id => copy::<Id>(py, &plan, view, out))?;
    Ok(Some((ids, PyArray1::from_slice(py, plan.offsets()))))
}

fn copy<'py, T: Element + Item>(
    py: Python<'py>,
    plan: &Gather,
    view: &DatasetView,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let Some(out) = out else {
        let copied = run_detached(py, || plan.collect::<T>(view))?;
        return Ok(copied.into_pyarray(py).as_untyped().clone());
    };
    let unfit = || {
        to_py(Error::InvalidArgument(format!(
            "out must be a writable, contiguous array of {} in one dimension",
            T::DTYPE.name()
        )))
    };
    let array = out.cast::<PyArray1<T>>().map_err(|_other| unfit())?;
    let mut writable = array.try_readwrite().map_err(|_locked| unfit())?;
    let room = writable.as_slice_mut().map_err(|_strided| unfit())?;
    run_detached(py, || plan.copy_to(view, room))?;
    Ok(array.as_untyped().clone())
}
