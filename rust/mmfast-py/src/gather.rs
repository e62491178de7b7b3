//! Batched reads for Python: one call, one array, no GIL while ids are copied.

use mmfast_core::Error;
use mmfast_core::indexed::{DocumentSource, Gather, Tokens};
use numpy::{Element, IntoPyArray, PyArray1, PyArrayMethods, PyUntypedArray};
use pyo3::prelude::*;

use crate::dataset::{DatasetReader, resolve};
use crate::error::to_py;
use crate::gil::run_detached;

/// Copies sequences, or documents, into one array; returns it and where each begins in it.
///
/// With `out` the ids go to its beginning, and it is what comes back.
#[pyfunction]
#[pyo3(signature = (reader, indices, *, documents=false, out=None))]
pub(crate) fn gather<'py>(
    py: Python<'py>,
    reader: &DatasetReader,
    indices: &Bound<'py, PyArray1<i64>>,
    documents: bool,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<(Bound<'py, PyUntypedArray>, Bound<'py, PyArray1<i64>>)> {
    let indices = indices.try_readonly()?;
    let indices = indices.as_slice()?;
    let dataset = &reader.dataset;
    let plan = run_detached(py, || {
        if documents {
            let len = dataset.num_documents();
            let found = indices.iter().map(|&i| resolve("document", i, len));
            Gather::documents(dataset, found)
        } else {
            let len = dataset.num_sequences();
            let found = indices.iter().map(|&i| resolve("sequence", i, len));
            Gather::sequences(dataset, found)
        }
    })?;
    let ids = match dataset.untouched_tokens().map_err(to_py)? {
        Tokens::U8(ids) => copy(py, &plan, ids, out),
        Tokens::I8(ids) => copy(py, &plan, ids, out),
        Tokens::I16(ids) => copy(py, &plan, ids, out),
        Tokens::I32(ids) => copy(py, &plan, ids, out),
        Tokens::I64(ids) => copy(py, &plan, ids, out),
        Tokens::F64(ids) => copy(py, &plan, ids, out),
        Tokens::F32(ids) => copy(py, &plan, ids, out),
        Tokens::U16(ids) => copy(py, &plan, ids, out),
    }?;
    Ok((ids, PyArray1::from_slice(py, plan.offsets())))
}

fn copy<'py, T: Element + Copy + Send + Sync>(
    py: Python<'py>,
    plan: &Gather,
    ids: &[T],
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let Some(out) = out else {
        let copied = run_detached(py, || plan.collect(ids))?;
        return Ok(copied.into_pyarray(py).as_untyped().clone());
    };
    let unfit = || {
        to_py(Error::InvalidArgument(format!(
            "out must be a writable, contiguous array of {} in one dimension",
            numpy::dtype::<T>(py)
                .str()
                .map_or_else(|_| String::new(), |name| name.to_string())
        )))
    };
    let array = out.cast::<PyArray1<T>>().map_err(|_other| unfit())?;
    let mut writable = array.try_readwrite().map_err(|_locked| unfit())?;
    let room = writable.as_slice_mut().map_err(|_strided| unfit())?;
    run_detached(py, || plan.copy_to(ids, room))?;
    Ok(array.as_untyped().clone())
}
