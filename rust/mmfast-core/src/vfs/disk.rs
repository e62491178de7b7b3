//! The real file system.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the module that all file access goes through"
)]

use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Vfs, folder_of};
use crate::error::{Error, Result};

/// Attempts to take a lock whose file is being removed by the holder that just released it.
const LOCK_ATTEMPTS: usize = 100;

/// An open file that remembers its path for error messages.
#[derive(Debug)]
pub struct File {
    inner: fs::File,
    path: PathBuf,
}

impl File {
    /// The path it was opened under.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes at this moment.
    pub fn num_bytes(&self) -> Result<u64> {
        let metadata = self.inner.metadata();
        Ok(metadata
            .map_err(|e| Error::io("inspect", &self.path, e))?
            .len())
    }

    /// Whether its path still leads to this very file (and not to one renamed over it).
    pub fn is_in_place(&self) -> Result<bool> {
        same_file(&self.inner, &self.path).map_err(|e| Error::io("inspect", &self.path, e))
    }

    /// Device and number of the file: those of no other file while this one is there.
    pub(crate) fn identity(&self) -> Result<(u64, u64)> {
        let metadata = self.inner.metadata();
        let metadata = metadata.map_err(|e| Error::io("inspect", &self.path, e))?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// Major and minor number of the device that it lies on.
    pub(super) fn device(&self) -> Result<(u64, u64)> {
        let metadata = self.inner.metadata();
        let device = metadata
            .map_err(|e| Error::io("inspect", &self.path, e))?
            .dev();
        // As Linux packs them (makedev(3)).
        let major = ((device >> 8) & 0xfff) | ((device >> 32) & !0xfff);
        let minor = (device & 0xff) | ((device >> 12) & !0xff);
        Ok((major, minor))
    }

    /// The operating system's handle, for mapping.
    pub(crate) fn handle(&self) -> &fs::File {
        &self.inner
    }
}

/// An exclusive advisory lock; released, and its file removed, when dropped.
#[derive(Debug)]
pub struct Lock {
    file: fs::File,
    path: PathBuf,
    process: u32,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A forked child inherits the handle but not the right to give the lock up.
        if self.process == std::process::id() {
            // Removed while still held, so that nobody can lock a file that is about to vanish.
            // Failure leaves an unlocked empty file, which the next holder takes over.
            fs::remove_file(&self.path).ok();
            self.file.unlock().ok();
        }
    }
}

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk;

impl Vfs for Disk {
    fn open(&self, path: &Path) -> Result<File> {
        let inner = fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
        let metadata = inner
            .metadata()
            .map_err(|e| Error::io("inspect", path, e))?;
        if metadata.is_dir() {
            let source = io::Error::from(io::ErrorKind::IsADirectory);
            return Err(Error::io("open", path, source));
        }
        Ok(File {
            inner,
            path: path.to_path_buf(),
        })
    }

    fn create(&self, path: &Path) -> Result<File> {
        let inner = fs::File::create(path).map_err(|e| Error::io("create", path, e))?;
        Ok(File {
            inner,
            path: path.to_path_buf(),
        })
    }

    fn reopen(&self, path: &Path, num_bytes: u64) -> Result<File> {
        let opened = fs::OpenOptions::new().write(true).open(path);
        let mut inner = opened.map_err(|e| Error::io("open", path, e))?;
        let found = inner.metadata();
        let found = found.map_err(|e| Error::io("inspect", path, e))?.len();
        if found < num_bytes {
            return Err(Error::corrupt(
                path,
                format!("it has {found} bytes, but {num_bytes} were written to it"),
            ));
        }
        let cut = inner.set_len(num_bytes);
        cut.and_then(|()| inner.seek(SeekFrom::End(0)))
            .map_err(|e| Error::io("cut", path, e))?;
        Ok(File {
            inner,
            path: path.to_path_buf(),
        })
    }

    fn read_at(&self, file: &File, offset: u64, out: &mut [u8]) -> Result<()> {
        let read = file.inner.read_exact_at(out, offset);
        read.map_err(|e| Error::io("read", &file.path, e))
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> Result<()> {
        let written = file.inner.write_all(bytes);
        written.map_err(|e| Error::io("write", &file.path, e))
    }

    fn reserve(&self, file: &mut File, num_bytes: u64) -> Result<()> {
        let offset = file.inner.stream_position();
        let offset = offset.map_err(|e| Error::io("inspect", &file.path, e))?;
        reserve(&file.inner, offset, num_bytes).map_err(|e| Error::io("write", &file.path, e))
    }

    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = file.inner.write_all_at(bytes, offset);
        written.map_err(|e| Error::io("write", &file.path, e))
    }

    fn append(&self, target: &mut File, source: &mut File, num_bytes: u64) -> Result<()> {
        let mut limited = Read::take(&mut source.inner, num_bytes);
        let copied = io::copy(&mut limited, &mut target.inner);
        let copied = copied.map_err(|e| Error::io("append to", &target.path, e))?;
        if copied < num_bytes {
            return Err(Error::corrupt(
                &source.path,
                format!("it ended after {copied} of {num_bytes} bytes while it was copied"),
            ));
        }
        Ok(())
    }

    fn sync(&self, file: &File) -> Result<()> {
        let synced = file.inner.sync_all();
        synced.map_err(|e| Error::io("flush", &file.path, e))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(|e| Error::io("rename", from, e))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", path, error))
            }
            _ => Ok(()),
        }
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        path.try_exists().map_err(|e| Error::io("inspect", path, e))
    }

    fn sync_folder_of(&self, path: &Path) -> Result<()> {
        let folder = folder_of(path);
        let synced = fs::File::open(&folder).and_then(|handle| handle.sync_all());
        synced.map_err(|e| Error::io("flush folder", &folder, e))
    }

    fn lock(&self, path: &Path) -> Result<Lock> {
        for _ in 0..LOCK_ATTEMPTS {
            let file = fs::File::create(path).map_err(|e| Error::io("create", path, e))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => {
                    return Err(Error::Locked {
                        path: path.to_path_buf(),
                    });
                }
                Err(fs::TryLockError::Error(error)) => return Err(Error::io("lock", path, error)),
            }
            // The previous holder may have removed the file between our open and our lock.
            if same_file(&file, path).map_err(|e| Error::io("inspect", path, e))? {
                return Ok(Lock {
                    file,
                    path: path.to_path_buf(),
                    process: std::process::id(),
                });
            }
        }
        Err(Error::Locked {
            path: path.to_path_buf(),
        })
    }
}

#[cfg(target_os = "linux")]
fn reserve(file: &fs::File, offset: u64, num_bytes: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    match fallocate(file, FallocateFlags::KEEP_SIZE, offset, num_bytes) {
        // File systems that cannot; a limit on the size of files stops the writes themselves.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::FBIG | Errno::INTR) => Ok(()),
        done => Ok(done?),
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(_file: &fs::File, _offset: u64, _num_bytes: u64) -> io::Result<()> {
    Ok(())
}

/// Whether `path` leads to the file that `handle` has open.
fn same_file(handle: &fs::File, path: &Path) -> io::Result<bool> {
    let opened = handle.metadata()?;
    match fs::metadata(path) {
        Ok(found) => Ok((opened.dev(), opened.ino()) == (found.dev(), found.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_bytes_are_read_back_at_any_offset() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut file = Disk.create(&path).unwrap();
        Disk.write(&mut file, b"hello world").unwrap();
        Disk.write_at(&file, 6, b"W").unwrap();
        Disk.sync(&file).unwrap();
        let opened = Disk.open(&path).unwrap();
        let mut out = [0; 5];
        Disk.read_at(&opened, 6, &mut out).unwrap();
        assert_eq!(&out, b"World");
        assert!(matches!(
            Disk.read_at(&opened, 7, &mut out),
            Err(Error::Io { .. })
        ));
    }

    #[test]
    fn reserved_room_changes_neither_size_nor_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut file = Disk.create(&path).unwrap();
        Disk.write(&mut file, b"abc").unwrap();
        Disk.reserve(&mut file, 1 << 20).unwrap();
        assert_eq!(file.num_bytes().unwrap(), 3);
        Disk.write(&mut file, b"def").unwrap();
        let mut out = [0; 6];
        Disk.read_at(&Disk.open(&path).unwrap(), 0, &mut out)
            .unwrap();
        assert_eq!(&out, b"abcdef");
        // More than any disk holds is either refused at once or not tried.
        let refused = Disk.reserve(&mut file, 1 << 60);
        assert!(
            matches!(refused, Ok(()) | Err(Error::Io { .. })),
            "{refused:?}"
        );
        assert_eq!(file.num_bytes().unwrap(), 6);
    }

    #[test]
    fn append_copies_the_asked_bytes_and_reports_a_short_source() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let mut source = Disk.create(&a).unwrap();
        Disk.write(&mut source, b"0123456789").unwrap();
        let mut target = Disk.create(&b).unwrap();
        Disk.write(&mut target, b"x").unwrap();
        Disk.append(&mut target, &mut Disk.open(&a).unwrap(), 4)
            .unwrap();
        Disk.write(&mut target, b"y").unwrap();
        let mut out = [0; 6];
        Disk.read_at(&Disk.open(&b).unwrap(), 0, &mut out).unwrap();
        assert_eq!(&out, b"x0123y");
        let short = Disk.append(&mut target, &mut Disk.open(&a).unwrap(), 11);
        assert!(matches!(short, Err(Error::Corrupt { .. })), "{short:?}");
    }

    #[test]
    fn a_reopened_file_goes_on_after_the_bytes_that_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        Disk.write(&mut Disk.create(&path).unwrap(), b"0123456789")
            .unwrap();
        let mut file = Disk.reopen(&path, 4).unwrap();
        Disk.write(&mut file, b"x").unwrap();
        assert_eq!(file.num_bytes().unwrap(), 5);
        let mut out = [0; 5];
        Disk.read_at(&Disk.open(&path).unwrap(), 0, &mut out)
            .unwrap();
        assert_eq!(&out, b"0123x");
        let short = Disk.reopen(&path, 6);
        assert!(matches!(short, Err(Error::Corrupt { .. })), "{short:?}");
        assert_eq!(file.num_bytes().unwrap(), 5);
    }

    #[test]
    fn a_lock_excludes_a_second_holder_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lock");
        let first = Disk.lock(&path).unwrap();
        assert!(matches!(Disk.lock(&path), Err(Error::Locked { .. })));
        drop(first);
        assert!(!Disk.exists(&path).unwrap());
        drop(Disk.lock(&path).unwrap());
    }

    #[test]
    fn a_file_renamed_over_is_no_longer_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let first = Disk.create(&a).unwrap();
        Disk.create(&b).unwrap();
        assert!(first.is_in_place().unwrap());
        Disk.rename(&b, &a).unwrap();
        assert!(!first.is_in_place().unwrap());
    }
}
