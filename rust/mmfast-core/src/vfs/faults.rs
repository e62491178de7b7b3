//! A disk that fails on purpose: the n-th call errs, once or (as after a crash) for good.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Disk, File, Lock, Vfs};
use crate::error::{Error, Result};

/// What happens after the failing call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Only that call fails, as with a passing I/O error; the program gets to clean up.
    Once,
    /// Every later call fails too, as if the process had been killed at that point.
    Crash,
}

/// [`Disk`] whose n-th call, counted from 1, fails. A failing write leaves half its bytes behind, a
/// failing append likewise.
#[derive(Debug)]
pub struct FaultyDisk {
    fault: Fault,
    fail_at: u64,
    num_calls: AtomicU64,
}

impl FaultyDisk {
    /// Fails at call `fail_at` (counted from 1).
    pub fn new(fault: Fault, fail_at: u64) -> Self {
        Self {
            fault,
            fail_at,
            num_calls: AtomicU64::new(0),
        }
    }

    /// Whether the failing call has been reached.
    pub fn has_fired(&self) -> bool {
        self.num_calls.load(Ordering::SeqCst) >= self.fail_at
    }

    fn fires_now(&self) -> bool {
        self.num_calls.load(Ordering::SeqCst) == self.fail_at
    }

    fn call(&self, path: &Path) -> Result<()> {
        let call = self.num_calls.fetch_add(1, Ordering::SeqCst) + 1;
        let fails = match self.fault {
            Fault::Once => call == self.fail_at,
            Fault::Crash => call >= self.fail_at,
        };
        if fails {
            let source = io::Error::other("injected fault");
            return Err(Error::io("(faulty disk)", path, source));
        }
        Ok(())
    }
}

impl Vfs for FaultyDisk {
    fn open(&self, path: &Path) -> Result<File> {
        self.call(path)?;
        Disk.open(path)
    }

    fn create(&self, path: &Path) -> Result<File> {
        self.call(path)?;
        Disk.create(path)
    }

    fn reopen(&self, path: &Path, num_bytes: u64) -> Result<File> {
        self.call(path)?;
        Disk.reopen(path, num_bytes)
    }

    fn read_at(&self, file: &File, offset: u64, out: &mut [u8]) -> Result<()> {
        self.call(file.path())?;
        Disk.read_at(file, offset, out)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> Result<()> {
        if let Err(error) = self.call(file.path()) {
            if self.fires_now() {
                let (half, _) = bytes.split_at(bytes.len() / 2);
                Disk.write(file, half)?;
            }
            return Err(error);
        }
        Disk.write(file, bytes)
    }

    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> Result<()> {
        self.call(file.path())?;
        Disk.write_at(file, offset, bytes)
    }

    fn append(&self, target: &mut File, source: &mut File, num_bytes: u64) -> Result<()> {
        if let Err(error) = self.call(target.path()) {
            if self.fires_now() {
                Disk.append(target, source, num_bytes / 2)?;
            }
            return Err(error);
        }
        Disk.append(target, source, num_bytes)
    }

    fn sync(&self, file: &File) -> Result<()> {
        self.call(file.path())?;
        Disk.sync(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.call(from)?;
        Disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.call(path)?;
        Disk.remove(path)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.call(path)?;
        Disk.exists(path)
    }

    fn sync_folder_of(&self, path: &Path) -> Result<()> {
        self.call(path)?;
        Disk.sync_folder_of(path)
    }

    fn lock(&self, path: &Path) -> Result<Lock> {
        self.call(path)?;
        Disk.lock(path)
    }
}
