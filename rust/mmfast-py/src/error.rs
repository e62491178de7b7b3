//! Maps the core's errors to the Python class a user would expect to catch.

use mmfast_core::Error;
use pyo3::exceptions::{PyIndexError, PyOSError, PyValueError};
use pyo3::prelude::*;

/// Turns a core error into a Python exception; classes of our own come from `mmfast.errors`.
pub(crate) fn to_py(error: Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Io {
            operation,
            source,
            path,
        } => match source.raw_os_error() {
            // OSError(errno, message, filename) becomes FileNotFoundError, PermissionError, …; Python
            // shows all three, so the message does not repeat the path.
            Some(code) => PyOSError::new_err((
                code,
                format!("cannot {operation}: {source}"),
                path.display().to_string(),
            )),
            None => PyOSError::new_err(text),
        },
        Error::Corrupt { .. } => house_error("CorruptDataError", text),
        Error::UnsupportedFormat { .. } => house_error("FormatVersionError", text),
        Error::VocabularyMismatch(_) => house_error("VocabularyMismatchError", text),
        Error::Locked { .. } => house_error("UsageError", text),
        Error::StateMismatch(_) => house_error("StateMismatchError", text),
        Error::IndexOutOfRange { .. } => PyIndexError::new_err(text),
        Error::TokenOutOfRange { .. } | Error::InvalidArgument(_) => PyValueError::new_err(text),
    }
}

/// An instance of a class in `mmfast.errors`.
pub(crate) fn house_error(class: &str, text: String) -> PyErr {
    Python::attach(|py| {
        let instance = py
            .import("mmfast.errors")
            .and_then(|module| module.getattr(class))
            .and_then(|class| class.call1((text,)));
        match instance {
            Ok(instance) => PyErr::from_value(instance),
            Err(error) => error,
        }
    })
}
