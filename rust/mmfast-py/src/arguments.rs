//! What the writer is given: arrays, tensors and lists, taken as they are where they need no
//! conversion. Those that do are converted in Python first.

use mmfast_core::indexed::{Dtype, Tokens};
use mmfast_core::{Error, Result};
use numpy::{
    PyArrayDescrMethods, PyReadonlyArray1, PyReadonlyArrayDyn, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList};
use pyo3::{ffi, intern};

use crate::dlpack::{NumberType, View};
use crate::error::to_py;

/// Ids that the core can take.
pub(crate) enum Ids<'py> {
    Array(Bound<'py, PyUntypedArray>, Dtype),
    /// Of a list, or copied.
    Int64(Vec<i64>),
    Int32(Vec<i32>),
}

impl<'py> Ids<'py> {
    /// A one-dimensional, contiguous array of any dtype of the format.
    pub(crate) fn of_array(array: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = array.cast::<PyUntypedArray>()?;
        let dtype = format_dtype(array).ok_or_else(|| {
            to_py(Error::InvalidArgument(format!(
                "an array of {} is expected to hold int8, int16, int32, int64, uint8, uint16, \
                 float32 or float64",
                array.dtype()
            )))
        })?;
        Ok(Self::Array(array.clone(), dtype))
    }

    /// An array or tensor of the dataset's dtype or of int64, or a list of ints; `None` if it is
    /// something else, or not in one piece.
    pub(crate) fn plain(ids: &Bound<'py, PyAny>, dataset: Dtype) -> PyResult<Option<Self>> {
        let holds_ids = dataset.id_range().is_some();
        if let Ok(list) = ids.cast_exact::<PyList>() {
            return Ok(plain_ints(list).filter(|_| holds_ids).map(Self::Int64));
        }
        let viewed;
        let array = if let Ok(array) = ids.cast::<PyUntypedArray>() {
            array
        } else {
            if let Some(copied) = short_tensor(ids, dataset) {
                return Ok(Some(copied));
            }
            // A tensor on the CPU shows its memory as an array; one elsewhere says what to do.
            let Some(view) = ids.getattr_opt(intern!(ids.py(), "numpy"))? else {
                return Ok(None);
            };
            viewed = view.call0()?;
            match viewed.cast::<PyUntypedArray>() {
                Ok(array) => array,
                Err(_) => return Ok(None),
            }
        };
        let dtype = format_dtype(array)
            .filter(|&dtype| dtype == dataset || (dtype == Dtype::I64 && holds_ids));
        let is_plain = array.is_c_contiguous() && array.is_aligned();
        let dtype = dtype.filter(|_| is_plain);
        Ok(dtype.map(|dtype| Self::Array(array.clone(), dtype)))
    }

    /// Runs `work` on the ids where they are.
    pub(crate) fn with<R>(&self, work: impl FnOnce(Tokens<'_>) -> PyResult<R>) -> PyResult<R> {
        macro_rules! view {
            ($variant:ident, $array:ident) => {{
                let array = $array.extract::<PyReadonlyArrayDyn<'_, _>>()?;
                work(Tokens::$variant(array.as_slice()?))
            }};
        }
        match self {
            Self::Int64(ids) => work(Tokens::I64(ids)),
            Self::Int32(ids) => work(Tokens::I32(ids)),
            Self::Array(array, dtype) => match dtype {
                Dtype::U8 => view!(U8, array),
                Dtype::I8 => view!(I8, array),
                Dtype::I16 => view!(I16, array),
                Dtype::I32 => view!(I32, array),
                Dtype::I64 => view!(I64, array),
                Dtype::F64 => view!(F64, array),
                Dtype::F32 => view!(F32, array),
                Dtype::U16 => view!(U16, array),
            },
        }
    }
}

/// Ids up to which a tensor is copied: less than it takes to make an array of it.
const SHORT: usize = 1 << 14;

/// The ids of a short int32 or int64 tensor in the CPU's memory that the dataset takes; `None` for
/// anything else, which may still be taken as an array.
///
/// They are copied at once, while the GIL keeps other threads from resizing the tensor.
#[expect(unsafe_code, reason = "a tensor says where its ids are by a pointer")]
fn short_tensor(ids: &Bound<'_, PyAny>, dataset: Dtype) -> Option<Ids<'static>> {
    dataset.id_range()?;
    let view = View::of(ids)?;
    // SAFETY: of these types. Nobody else runs Python code until they are copied, so nobody resizes the tensor
    // or writes to it.
    unsafe {
        match view.number_type {
            NumberType::INT64 => {
                let ids = view.contiguous::<i64>()?;
                (ids.len() <= SHORT).then(|| Ids::Int64(ids.to_vec()))
            }
            NumberType::INT32 if dataset == Dtype::I32 => {
                let ids = view.contiguous::<i32>()?;
                (ids.len() <= SHORT).then(|| Ids::Int32(ids.to_vec()))
            }
            _ => None,
        }
    }
}

/// A list of ints, or an array of int64; `None` if it is something else.
pub(crate) fn plain_counts(values: &Bound<'_, PyAny>) -> Option<Vec<i64>> {
    if let Ok(list) = values.cast_exact::<PyList>() {
        return plain_ints(list);
    }
    let array = values.extract::<PyReadonlyArray1<'_, i64>>().ok()?;
    Some(array.as_slice().ok()?.to_vec())
}

/// A list of mode bytes; `None` if it is something else.
pub(crate) fn plain_modes(values: &Bound<'_, PyAny>) -> Option<Vec<u8>> {
    let modes = plain_ints(values.cast_exact::<PyList>().ok()?)?;
    modes
        .into_iter()
        .map(|mode| u8::try_from(mode).ok())
        .collect()
}

/// An int that is no `bool`, in 64 bits.
pub(crate) fn plain_int(value: &Bound<'_, PyAny>) -> Option<i64> {
    value.cast_exact::<PyInt>().ok()?.extract().ok()
}

/// As [`plain_int`] of each item, in a quarter of the time: no reference is taken to an item.
#[expect(unsafe_code, reason = "PyO3 counts a reference to every item")]
fn plain_ints(list: &Bound<'_, PyList>) -> Option<Vec<i64>> {
    let mut ints = Vec::with_capacity(list.len());
    for index in 0..ffi::Py_ssize_t::try_from(list.len()).ok()? {
        let mut overflow = 0;
        // SAFETY: the GIL is held and nothing here runs Python code, as an exact int converts itself;
        // so the list stays as it is and keeps its items alive. Past its end it gives a null.
        let value = unsafe {
            let item = ffi::PyList_GetItem(list.as_ptr(), index);
            if item.is_null() || ffi::PyLong_CheckExact(item) == 0 {
                return None;
            }
            ffi::PyLong_AsLongLongAndOverflow(item, &raw mut overflow)
        };
        if overflow != 0 {
            return None;
        }
        ints.push(value);
    }
    Some(ints)
}

/// The format's dtype for an array, if it has one.
fn format_dtype(array: &Bound<'_, PyUntypedArray>) -> Option<Dtype> {
    let dtype = array.dtype();
    if dtype.is_native_byteorder() == Some(false) {
        return None;
    }
    match (dtype.kind(), dtype.itemsize()) {
        (b'u', 1) => Some(Dtype::U8),
        (b'i', 1) => Some(Dtype::I8),
        (b'i', 2) => Some(Dtype::I16),
        (b'i', 4) => Some(Dtype::I32),
        (b'i', 8) => Some(Dtype::I64),
        (b'f', 8) => Some(Dtype::F64),
        (b'f', 4) => Some(Dtype::F32),
        (b'u', 2) => Some(Dtype::U16),
        _ => None,
    }
}

/// Counts from Python as unsigned numbers.
pub(crate) fn each_fits<T: TryFrom<i64>>(values: &[i64], what: &str) -> Result<Vec<T>> {
    let fits = |&value: &i64| {
        T::try_from(value)
            .map_err(|_unfit| Error::InvalidArgument(format!("{value} cannot be a {what}")))
    };
    values.iter().map(fits).collect()
}
