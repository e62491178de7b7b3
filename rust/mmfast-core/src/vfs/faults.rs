//! A disk that fails on purpose: the n-th call errs, and what follows depends on the kind of fault.
//! What a power cut leaves of unsynced data is the business of [`super::power`].

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Disk, File, Lock, Vfs};
use crate::error::{Error, Result};

/// How the failing call fails, and what happens to later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Only that call fails, and has done nothing, as with a passing I/O error.
    Error,
    /// Only that call fails, but if it writes, half of its bytes are written.
    ShortWrite,
    /// From that call on nothing can be created or grow, as on a full disk: half of the first write
    /// finds room. Reading, syncing, renaming and removing go on.
    Full,
    /// From that call on every call fails, as if the process had been killed in the middle of it.
    Crash,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Error, Self::ShortWrite, Self::Full, Self::Crash];
}

/// A disk whose n-th call, counted from 1, fails.
#[derive(Debug)]
pub struct FaultyDisk {
    inner: Arc<dyn Vfs>,
    fault: Fault,
    fail_at: u64,
    num_calls: AtomicU64,
    has_fired: AtomicBool,
}

/// What becomes of a call.
enum Fate {
    Passes,
    /// It fails without effect.
    Fails(Error),
    /// It fails after half of its effect.
    FailsHalfway(Error),
}

impl FaultyDisk {
    /// The real disk, failing at call `fail_at` (counted from 1).
    pub fn new(fault: Fault, fail_at: u64) -> Self {
        Self::over(Arc::new(Disk), fault, fail_at)
    }

    /// [`Self::new`] over another disk.
    pub fn over(inner: Arc<dyn Vfs>, fault: Fault, fail_at: u64) -> Self {
        Self {
            inner,
            fault,
            fail_at,
            num_calls: AtomicU64::new(0),
            has_fired: AtomicBool::new(false),
        }
    }

    /// Whether a call has failed.
    pub fn has_fired(&self) -> bool {
        self.has_fired.load(Ordering::SeqCst)
    }

    fn fate(&self, path: &Path, needs_room: bool) -> Fate {
        let call = self.num_calls.fetch_add(1, Ordering::SeqCst) + 1;
        let fails = match self.fault {
            Fault::Error | Fault::ShortWrite => call == self.fail_at,
            Fault::Full => call >= self.fail_at && needs_room,
            Fault::Crash => call >= self.fail_at,
        };
        if !fails {
            return Fate::Passes;
        }
        let is_first = !self.has_fired.swap(true, Ordering::SeqCst);
        let source = match self.fault {
            Fault::Full => io::Error::from(io::ErrorKind::StorageFull),
            _ => io::Error::other("injected fault"),
        };
        let error = Error::io("(faulty disk)", path, source);
        match self.fault {
            Fault::ShortWrite | Fault::Full | Fault::Crash if is_first => Fate::FailsHalfway(error),
            _ => Fate::Fails(error),
        }
    }

    /// A call that needs no room on the disk.
    fn call(&self, path: &Path) -> Result<()> {
        match self.fate(path, false) {
            Fate::Passes => Ok(()),
            Fate::Fails(error) | Fate::FailsHalfway(error) => Err(error),
        }
    }

    /// A call that makes a file, or makes it grow by up to `num_bytes`: `go` is told by how many.
    fn grow(
        &self,
        path: &Path,
        num_bytes: usize,
        go: impl FnOnce(usize) -> Result<()>,
    ) -> Result<()> {
        match self.fate(path, true) {
            Fate::Passes => go(num_bytes),
            Fate::Fails(error) => Err(error),
            Fate::FailsHalfway(error) => {
                go(num_bytes / 2)?;
                Err(error)
            }
        }
    }
}

impl Vfs for FaultyDisk {
    fn open(&self, path: &Path) -> Result<File> {
        self.call(path)?;
        self.inner.open(path)
    }

    fn create(&self, path: &Path) -> Result<File> {
        match self.fate(path, true) {
            Fate::Passes => self.inner.create(path),
            Fate::Fails(error) | Fate::FailsHalfway(error) => Err(error),
        }
    }

    fn reopen(&self, path: &Path, num_bytes: u64) -> Result<File> {
        self.call(path)?;
        self.inner.reopen(path, num_bytes)
    }

    fn read_at(&self, file: &File, offset: u64, out: &mut [u8]) -> Result<()> {
        self.call(file.path())?;
        self.inner.read_at(file, offset, out)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> Result<()> {
        let path = file.path().to_path_buf();
        self.grow(&path, bytes.len(), |num_bytes| {
            self.inner.write(file, first(bytes, num_bytes))
        })
    }

    fn reserve(&self, file: &mut File, num_bytes: u64) -> Result<()> {
        let path = file.path().to_path_buf();
        self.grow(&path, 0, |_| self.inner.reserve(file, num_bytes))
    }

    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> Result<()> {
        self.grow(file.path(), bytes.len(), |num_bytes| {
            self.inner.write_at(file, offset, first(bytes, num_bytes))
        })
    }

    fn append(&self, target: &mut File, source: &mut File, num_bytes: u64) -> Result<()> {
        let path = target.path().to_path_buf();
        let len = usize::try_from(num_bytes).unwrap_or(usize::MAX);
        self.grow(&path, len, |num_bytes| {
            self.inner.append(target, source, num_bytes as u64)
        })
    }

    fn sync(&self, file: &File) -> Result<()> {
        self.call(file.path())?;
        self.inner.sync(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.call(from)?;
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.call(path)?;
        self.inner.remove(path)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.call(path)?;
        self.inner.exists(path)
    }

    fn sync_folder_of(&self, path: &Path) -> Result<()> {
        self.call(path)?;
        self.inner.sync_folder_of(path)
    }

    fn lock(&self, path: &Path) -> Result<Lock> {
        self.call(path)?;
        self.inner.lock(path)
    }
}

fn first(bytes: &[u8], num_bytes: usize) -> &[u8] {
    bytes.get(..num_bytes).unwrap_or(bytes)
}
