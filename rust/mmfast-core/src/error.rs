//! The one error type of the core: a variant per cause, each with the data needed to explain it.

use std::path::{Path, PathBuf};

/// Result of every fallible function in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, where, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation on a file.
    #[error("cannot {operation} {path:?}: {source}")]
    Io {
        /// The verb that failed, e.g. `open`.
        operation: &'static str,
        /// The file it failed on.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },
    /// A file's content contradicts its format.
    #[error("{path:?} is corrupt: {detail}")]
    Corrupt {
        /// The file that was read.
        path: PathBuf,
        /// Position, found and expected value.
        detail: String,
    },
    /// A file is of a format or version that this build does not read.
    #[error("{path:?}: unsupported format: {detail}")]
    UnsupportedFormat {
        /// The file that was read.
        path: PathBuf,
        /// Found and supported values, and what to do.
        detail: String,
    },
    /// Another writer is at work on the same files.
    #[error("{path:?} is held by another writer; wait for it to end, or choose another output")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A token id does not fit the dataset's dtype.
    #[error(
        "token {token} at position {position} of document {document} does not fit {dtype}; choose a wider dtype"
    )]
    TokenOutOfRange {
        /// The offending id.
        token: i64,
        /// Document number, counted from 0.
        document: u64,
        /// Position inside the document.
        position: u64,
        /// The dtype's name.
        dtype: &'static str,
    },
    /// An index is past the end.
    #[error("{what} index {index} is out of range for {len}")]
    IndexOutOfRange {
        /// What is indexed, e.g. `sequence`.
        what: &'static str,
        /// The index asked for.
        index: i64,
        /// How many there are.
        len: u64,
    },
    /// An argument cannot be used.
    #[error("{0}")]
    InvalidArgument(String),
    /// Data and model do not share a vocabulary.
    #[error("{0}")]
    VocabularyMismatch(String),
    /// A saved state belongs to another stream.
    #[error("the saved data state does not fit this stream: {0}")]
    StateMismatch(String),
}

impl Error {
    /// Wraps an operating-system error with the operation and path it belongs to.
    pub fn io(operation: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            operation,
            path: path.to_path_buf(),
            source,
        }
    }

    /// A file whose content contradicts its format.
    pub fn corrupt(path: &Path, detail: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.to_path_buf(),
            detail: detail.into(),
        }
    }

    /// An argument that cannot be used.
    pub fn argument(detail: impl Into<String>) -> Self {
        Self::InvalidArgument(detail.into())
    }
}
