//! The one room that touches files, behind a trait so that tests can make any operation fail.
//!
//! Every call is one step that a crash or a full disk may interrupt. The format code is written
//! against [`Vfs`]; [`Disk`] is the real thing, [`faults::FaultyDisk`] fails at the n-th call, and
//! [`power`] knows what a power cut leaves of what was not synced.

mod disk;
pub mod faults;
mod mounts;
pub mod power;

use std::fmt::Debug;
use std::path::{Path, PathBuf};

pub use disk::{Disk, File, Lock};
pub use mounts::{file_system_kind, is_network_kind};

use crate::error::Result;

/// File operations the data plane needs. Each names its path in the error it returns.
pub trait Vfs: Debug + Send + Sync {
    /// Opens an existing file for reading.
    fn open(&self, path: &Path) -> Result<File>;

    /// Opens a file for writing from its start; an existing one is emptied.
    fn create(&self, path: &Path) -> Result<File>;

    /// Opens an existing file to write on after its first `num_bytes`; what follows them is cut off.
    /// A shorter file is an error.
    fn reopen(&self, path: &Path, num_bytes: u64) -> Result<File>;

    /// Reads exactly `out.len()` bytes from `offset`; a short file is an error.
    fn read_at(&self, file: &File, offset: u64, out: &mut [u8]) -> Result<()>;

    /// Writes all bytes at the file's cursor.
    fn write(&self, file: &mut File, bytes: &[u8]) -> Result<()>;

    /// Makes room on the disk for the next bytes at the cursor, where the file system can; size and
    /// content stay. Writes that fill it spare the file system a search for each of its blocks, and a full
    /// disk is known before the first of them.
    fn reserve(&self, file: &mut File, num_bytes: u64) -> Result<()>;

    /// Writes all bytes at `offset`; the cursor stays.
    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Copies exactly `num_bytes` from the source's cursor to the target's cursor, inside the kernel
    /// where it can (`copy_file_range` on Linux). A source that ends early is an error.
    fn append(&self, target: &mut File, source: &mut File, num_bytes: u64) -> Result<()>;

    /// Returns once content and size of the file are durable.
    fn sync(&self, file: &File) -> Result<()>;

    /// Renames within one file system, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;

    /// Removes a file; one that is not there is fine.
    fn remove(&self, path: &Path) -> Result<()>;

    /// Whether something exists under this path.
    fn exists(&self, path: &Path) -> Result<bool>;

    /// Returns once all creations, renames and removals in the folder of `path` are durable.
    fn sync_folder_of(&self, path: &Path) -> Result<()>;

    /// Takes the exclusive advisory lock `path`, created if needed, or fails with
    /// [`crate::Error::Locked`] at once. Dropping the lock releases it and removes its file.
    fn lock(&self, path: &Path) -> Result<Lock>;
}

/// Folder that holds `path`, for operations on the folder itself.
fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}
