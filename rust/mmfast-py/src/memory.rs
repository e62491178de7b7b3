//! Memory of batches between Rust and Python: ours seen by `NumPy`, and the caller's filled by us.

use std::sync::Arc;

use mmfast_core::stream::{ArrayPool, BatchArrays, BatchMemory, OwnedArrays};
use numpy::ndarray::ArrayView2;
use numpy::{Element, PyArray2, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Where a batch is filled.
pub(crate) enum Memory {
    /// Arrays of ours.
    Pooled(Pooled),
    /// Arrays of the caller.
    Lent(Lent),
}

impl BatchMemory for Memory {
    fn arrays(&mut self) -> BatchArrays<'_> {
        match self {
            Self::Pooled(pooled) => pooled.arrays.arrays(),
            Self::Lent(lent) => lent.arrays(),
        }
    }
}

/// Arrays that go back to their pool when nobody uses them any more.
pub(crate) struct Pooled {
    arrays: OwnedArrays,
    pool: Arc<ArrayPool>,
}

impl Pooled {
    pub(crate) fn take(pool: &Arc<ArrayPool>, size: usize) -> Self {
        Self {
            arrays: pool.take(size),
            pool: Arc::clone(pool),
        }
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let arrays = std::mem::replace(&mut self.arrays, OwnedArrays::new(0));
        self.pool.give_back(arrays);
    }
}

/// Owns the memory of a batch's `NumPy` arrays: the base of all of them.
#[pyclass(frozen, module = "mmfast._mmfast")]
struct BatchBuffers {
    pooled: Pooled,
}

/// Puts the arrays of a batch into `fields`, [rows, tokens] each, without a copy.
pub(crate) fn set_arrays(
    fields: &Bound<'_, PyDict>,
    pooled: Pooled,
    shape: [usize; 2],
) -> PyResult<()> {
    fn over<'py, T: Element>(
        values: &[T],
        shape: [usize; 2],
        owner: &Bound<'py, BatchBuffers>,
    ) -> PyResult<Bound<'py, PyArray2<T>>> {
        let view = ArrayView2::from_shape(shape, values)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        #[expect(
            unsafe_code,
            reason = "arrays of a batch are handed to NumPy where they lie"
        )]
        // SAFETY: `values` lie in vectors of `owner`, which NumPy keeps as the array's base for as long as
        // the array, or a view of it, lives; until it is dropped nobody else reads, writes or moves them.
        Ok(unsafe { PyArray2::borrow_from_array(&view, owner.clone().into_any()) })
    }
    let owner = Bound::new(fields.py(), BatchBuffers { pooled })?;
    let arrays = &owner.get().pooled.arrays;
    fields.set_item("input_ids", over(&arrays.input_ids, shape, &owner)?)?;
    fields.set_item("labels", over(&arrays.labels, shape, &owner)?)?;
    fields.set_item("position_ids", over(&arrays.position_ids, shape, &owner)?)?;
    fields.set_item("document_ids", over(&arrays.document_ids, shape, &owner)?)?;
    fields.set_item("modality_ids", over(&arrays.modality_ids, shape, &owner)?)?;
    fields.set_item("loss_weights", over(&arrays.loss_weights, shape, &owner)?)
}

/// Arrays of the caller, who leaves them alone until they come back with a batch.
pub(crate) struct Lent {
    /// Keeps the arrays alive, and is what comes back.
    owner: Py<PyAny>,
    input_ids: Run<i64>,
    labels: Run<i64>,
    position_ids: Run<i32>,
    document_ids: Run<i32>,
    modality_ids: Run<u8>,
    loss_weights: Run<f32>,
}

impl Lent {
    /// Checks arrays of the names of a batch's fields: dtype, shape, contiguous, writable.
    pub(crate) fn new(
        owner: Py<PyAny>,
        arrays: &Bound<'_, PyDict>,
        shape: [usize; 2],
    ) -> PyResult<Self> {
        Ok(Self {
            owner,
            input_ids: Run::over(arrays, "input_ids", shape)?,
            labels: Run::over(arrays, "labels", shape)?,
            position_ids: Run::over(arrays, "position_ids", shape)?,
            document_ids: Run::over(arrays, "document_ids", shape)?,
            modality_ids: Run::over(arrays, "modality_ids", shape)?,
            loss_weights: Run::over(arrays, "loss_weights", shape)?,
        })
    }

    pub(crate) fn into_owner(self) -> Py<PyAny> {
        self.owner
    }

    pub(crate) fn arrays(&mut self) -> BatchArrays<'_> {
        BatchArrays {
            input_ids: self.input_ids.slice(),
            labels: self.labels.slice(),
            position_ids: self.position_ids.slice(),
            document_ids: self.document_ids.slice(),
            modality_ids: self.modality_ids.slice(),
            loss_weights: self.loss_weights.slice(),
        }
    }
}

/// Where an array of the caller lies. Arrays of one [`Lent`] do not overlap.
struct Run<T> {
    start: *mut T,
    len: usize,
    /// Keeps the memory alive.
    _array: Py<PyAny>,
}

#[expect(unsafe_code, reason = "batches are filled by another thread")]
// SAFETY: a `Run` is the only way in which Rust reaches the memory, and it moves as a whole; the caller
// leaves the memory alone while it is lent.
unsafe impl<T: Send> Send for Run<T> {}

impl<T: Element> Run<T> {
    fn over(arrays: &Bound<'_, PyDict>, name: &str, shape: [usize; 2]) -> PyResult<Self> {
        let py = arrays.py();
        let unfit = |found: String| {
            let dtype = numpy::dtype::<T>(py);
            PyValueError::new_err(format!(
                "{name} must be a writable, contiguous array of {dtype} with the shape {shape:?}, \
                 found {found}"
            ))
        };
        let value = arrays.get_item(name)?;
        let value = value.ok_or_else(|| unfit("none".to_string()))?;
        let array = value.cast::<PyArray2<T>>().map_err(|_other| {
            unfit(format!(
                "{} of {}",
                of(&value, "shape"),
                of(&value, "dtype")
            ))
        })?;
        if array.shape() != shape {
            return Err(unfit(format!("{:?}", array.shape())));
        }
        let is_writable = array.try_readwrite().is_ok();
        if !array.is_c_contiguous() || !is_writable {
            return Err(unfit("one that is not".to_string()));
        }
        Ok(Self {
            start: array.data(),
            len: array.len(),
            _array: value.unbind(),
        })
    }

    fn slice(&mut self) -> &mut [T] {
        #[expect(unsafe_code, reason = "the caller's memory is filled in place")]
        // SAFETY: `start` and `len` are those of a contiguous, aligned, writable array of `T`, checked in
        // `over` and kept alive by `_array`; `&mut self` makes this the only reference, see `Send`.
        unsafe {
            std::slice::from_raw_parts_mut(self.start, self.len)
        }
    }
}

fn of(value: &Bound<'_, PyAny>, attribute: &str) -> String {
    value
        .getattr(attribute)
        .map_or_else(|_| value.get_type().to_string(), |found| found.to_string())
}
