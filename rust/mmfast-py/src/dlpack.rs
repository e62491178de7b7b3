//! Memory of torch's CPU tensors, by the C exchange API of DLPack (dlpack.h, version 1.3): one call instead of a
//! Python attribute for each thing to know.

use std::ffi::{CStr, c_int, c_void};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use pyo3::{ffi, intern};

const API_NAME: &CStr = c"dlpack_exchange_api";
const MAJOR_VERSION: u32 = 1;
const ON_CPU: i32 = 1;

/// A type of numbers: DLPack's code of its kind, and bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NumberType {
    code: u8,
    bits: u8,
}

impl NumberType {
    pub(crate) const INT32: Self = Self { code: 0, bits: 32 };
    pub(crate) const INT64: Self = Self { code: 0, bits: 64 };
    pub(crate) const FLOAT16: Self = Self { code: 2, bits: 16 };
    pub(crate) const FLOAT32: Self = Self { code: 2, bits: 32 };
    pub(crate) const BFLOAT16: Self = Self { code: 4, bits: 16 };
    pub(crate) const BOOL: Self = Self { code: 6, bits: 8 };

    /// As messages call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::INT32 => "int32",
            Self::INT64 => "int64",
            Self::FLOAT16 => "float16",
            Self::FLOAT32 => "float32",
            Self::BFLOAT16 => "bfloat16",
            Self::BOOL => "bool",
            _ => "another type",
        }
    }
}

/// `DLTensor`
#[repr(C)]
struct DlTensor {
    data: *const u8,
    device_type: i32,
    device_id: i32,
    num_dimensions: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

type ViewFn = unsafe extern "C" fn(*mut ffi::PyObject, *mut DlTensor) -> c_int;

/// `DLPackExchangeAPI` up to the last function that is called.
#[repr(C)]
struct ExchangeApi {
    major: u32,
    minor: u32,
    previous: *const c_void,
    allocate: *const c_void,
    owned_from_object: *const c_void,
    owned_to_object: *const c_void,
    view: Option<ViewFn>,
}

/// A tensor in the CPU's memory.
pub(crate) struct View<'a> {
    pub(crate) number_type: NumberType,
    first: *const u8,
    shape: &'a [i64],
    strides: &'a [i64],
    tensor: PhantomData<&'a ()>,
}

impl<'a> View<'a> {
    /// `None` for what is no `torch.Tensor`, is of a subclass, which may hold anything or nothing, or has its
    /// numbers elsewhere or not as they are (conjugated, say).
    pub(crate) fn of(tensor: &'a Bound<'_, PyAny>) -> Option<Self> {
        let view = view_fn(tensor)?;
        let mut seen = MaybeUninit::<DlTensor>::zeroed();
        #[expect(unsafe_code, reason = "a function of torch's")]
        // SAFETY: the function was found on this very type, whose object this is, the GIL is held, and all
        // fields are filled if 0 is returned; zeros are valid too.
        let (code, seen) = unsafe {
            let code = view(tensor.as_ptr(), seen.as_mut_ptr());
            (code, seen.assume_init())
        };
        if code != 0 {
            drop(PyErr::take(tensor.py()));
            return None;
        }
        if (seen.device_type, seen.lanes) != (ON_CPU, 1) {
            return None;
        }
        let num_dimensions = usize::try_from(seen.num_dimensions).ok()?;
        let counts = |first: *const i64| {
            if num_dimensions == 0 {
                return &[][..];
            }
            #[expect(unsafe_code, reason = "C gives a pointer and a count")]
            // SAFETY: one entry for each dimension, while the tensor lives.
            unsafe {
                std::slice::from_raw_parts(first, num_dimensions)
            }
        };
        Some(Self {
            number_type: NumberType {
                code: seen.code,
                bits: seen.bits,
            },
            first: seen
                .data
                .wrapping_add(usize::try_from(seen.byte_offset).ok()?),
            shape: counts(seen.shape),
            strides: counts(seen.strides),
            tensor: PhantomData,
        })
    }

    /// All numbers, if they lie side by side in order.
    ///
    /// # Safety
    /// They are of type `T`. Until the slice has gone nobody resizes the tensor or writes to it.
    #[expect(unsafe_code, reason = "the caller knows the type")]
    pub(crate) unsafe fn contiguous<T>(&self) -> Option<&'a [T]> {
        let mut len = 1;
        for (size, stride) in self.shape.iter().zip(self.strides).rev() {
            if *size != 1 && *stride != len {
                return None;
            }
            len *= size;
        }
        // SAFETY: so many numbers are there.
        unsafe { self.slice(0, len) }
    }

    /// A copy of all numbers in their order, however they lie.
    ///
    /// # Safety
    /// As [`Self::contiguous`], until the copy is made.
    #[expect(unsafe_code, reason = "the caller knows the type")]
    pub(crate) unsafe fn copied<T: Copy>(&self) -> Option<Vec<T>> {
        // SAFETY: as here.
        if let Some(numbers) = unsafe { self.contiguous::<T>() } {
            return Some(numbers.to_vec());
        }
        let place_of = |index: i64| {
            let dimensions = self.shape.iter().zip(self.strides).rev();
            let (place, _) = dimensions.fold((0, index), |(place, rest), (size, stride)| {
                (place + rest % size * stride, rest / size)
            });
            place
        };
        (0..self.shape.iter().product())
            // SAFETY: the place is one of the tensor's.
            .map(|index| unsafe { self.slice(place_of(index), 1) }?.first().copied())
            .collect()
    }

    /// Rows of a tensor of two dimensions, at any distance, if those of a row lie side by side.
    ///
    /// # Safety
    /// As [`Self::contiguous`].
    #[expect(unsafe_code, reason = "the caller knows the type")]
    pub(crate) unsafe fn rows<T>(&self) -> Option<Vec<&'a [T]>> {
        let (&[num_rows, len], &[distance, step]) = (self.shape, self.strides) else {
            return None;
        };
        if step != 1 && len > 1 {
            return None;
        }
        (0..num_rows)
            // SAFETY: the row is part of the tensor.
            .map(|row| unsafe { self.slice(row * distance, len) })
            .collect()
    }

    /// # Safety
    /// As [`Self::contiguous`], for `len` numbers from `start` on.
    #[expect(unsafe_code, reason = "the caller knows the type")]
    unsafe fn slice<T>(&self, start: i64, len: i64) -> Option<&'a [T]> {
        let len = usize::try_from(len).ok()?;
        if len == 0 {
            return Some(&[]);
        }
        let first = self.first.cast::<T>();
        let first = first.wrapping_offset(isize::try_from(start).ok()?);
        let is_there = !self.first.is_null() && first.is_aligned();
        // SAFETY: as the caller promises; memory that torch was given need not be aligned.
        is_there.then(|| unsafe { std::slice::from_raw_parts(first, len) })
    }
}

/// The function that sees this object, if it is exactly a `torch.Tensor`.
fn view_fn(object: &Bound<'_, PyAny>) -> Option<ViewFn> {
    static TENSOR: PyOnceLock<(Py<PyType>, Option<ViewFn>)> = PyOnceLock::new();
    let py = object.py();
    let (tensor, view) = match TENSOR.get(py) {
        Some(known) => known,
        // So torch is there, and need not be imported for the arrays of others.
        None if object.hasattr(intern!(py, "data_ptr")).ok()? => TENSOR
            .get_or_try_init(py, || {
                let tensor = py.import("torch")?.getattr("Tensor")?;
                let tensor = tensor.cast_into::<PyType>()?;
                let view = found_on(&tensor);
                Ok::<_, PyErr>((tensor.unbind(), view))
            })
            .ok()?,
        None => return None,
    };
    view.filter(|_| object.get_type().is(tensor))
}

fn found_on(tensor: &Bound<'_, PyType>) -> Option<ViewFn> {
    let capsule = tensor.getattr("__dlpack_c_exchange_api__").ok()?;
    #[expect(unsafe_code, reason = "a capsule holds a pointer")]
    // SAFETY: the name says what is pointed to, for the life of the process, and the fields read are those of
    // every version with this major number.
    unsafe {
        let api = ffi::PyCapsule_GetPointer(capsule.as_ptr(), API_NAME.as_ptr());
        let Some(api) = api.cast::<ExchangeApi>().as_ref() else {
            drop(PyErr::take(tensor.py()));
            return None;
        };
        api.view.filter(|_| api.major == MAJOR_VERSION)
    }
}
