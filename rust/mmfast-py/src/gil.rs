//! One way out of the GIL: detach, run, turn a panic into a Python exception, map the error.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::marker::Ungil;
use pyo3::prelude::*;

use crate::error::{house_error, to_py};

/// Runs `work` without the GIL; a panic becomes `mmfast.errors.InternalError`, never an abort.
pub(crate) fn run_detached<T, F>(py: Python<'_>, work: F) -> PyResult<T>
where
    T: Send + Ungil,
    F: FnOnce() -> mmfast_core::Result<T> + Send + Ungil,
{
    match py.detach(|| catch_unwind(AssertUnwindSafe(work))) {
        Ok(result) => result.map_err(to_py),
        Err(panic) => {
            let detail = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                .unwrap_or_else(|| "unknown panic".to_string());
            Err(house_error(
                "InternalError",
                format!("internal error, please report it: {detail}"),
            ))
        }
    }
}
