//! How the ids of a dataset are reached: through a map, or by reads into memory of the caller's.
//!
//! A map costs nothing until a page is touched and shares pages with every other process. Over a
//! network each touched page is a round trip, a file that shrinks ends the process (SIGBUS), and some
//! servers allow few maps. There, reads are better: one call for a run of ids, and a short file is an
//! error.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::map::Map;
use crate::error::{Error, Result};
use crate::vfs::{File, Vfs, file_system_kind, is_network_kind};

/// How files are to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// [`Access::Pread`] on network file systems, else [`Access::Mmap`].
    #[default]
    Auto,
    /// Both files are mapped.
    Mmap,
    /// `.idx` is read into memory as a whole, ids are read when they are asked for.
    Pread,
}

impl Access {
    /// The access of a name; the error lists those there are.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "mmap" => Ok(Self::Mmap),
            "pread" => Ok(Self::Pread),
            _ => Err(Error::argument(format!(
                "there is no access {name:?}; there are auto, mmap and pread"
            ))),
        }
    }

    /// Decides for a file.
    pub(super) fn choose(self, file: &File) -> Result<AccessChoice> {
        let (is_mapped, reason) = match self {
            Self::Mmap => (true, "asked for".to_string()),
            Self::Pread => (false, "asked for".to_string()),
            Self::Auto => match file_system_kind(file)? {
                Some(kind) if is_network_kind(&kind) => {
                    (false, format!("{kind} may be reached over a network"))
                }
                Some(kind) => (true, format!("{kind} is local")),
                None => (true, "the disk is local".to_string()),
            },
        };
        Ok(AccessChoice { is_mapped, reason })
    }
}

/// How a dataset is reached, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessChoice {
    /// Whether it is mapped; else it is read.
    pub is_mapped: bool,
    /// Why, in a few words.
    pub reason: String,
}

impl fmt::Display for AccessChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.is_mapped { "mmap" } else { "pread" };
        write!(f, "{name} ({})", self.reason)
    }
}

/// The bytes of an open `.bin`.
#[derive(Debug)]
pub(super) enum Bin {
    /// In the address space.
    Mapped(Map),
    /// In a file that stays open.
    Read {
        /// Where reads go through.
        vfs: Arc<dyn Vfs>,
        /// The file.
        file: File,
        /// Its size when it was opened.
        num_bytes: u64,
    },
}

impl Bin {
    /// All of it, if it is mapped.
    pub(super) fn mapped(&self) -> Option<&[u8]> {
        match self {
            Self::Mapped(map) => Some(map.bytes()),
            Self::Read { .. } => None,
        }
    }

    /// Says that bytes are read soon. Only a map can do something about it.
    pub(super) fn prefetch(&self, range: Range<usize>) {
        if let Self::Mapped(map) = self {
            map.prefetch(range);
        }
    }

    pub(super) fn num_bytes(&self) -> u64 {
        match self {
            Self::Mapped(map) => map.bytes().len() as u64,
            Self::Read { num_bytes, .. } => *num_bytes,
        }
    }

    /// Fills `out` with the bytes from `start` on.
    pub(super) fn read(&self, start: u64, out: &mut [u8]) -> Result<()> {
        match self {
            Self::Mapped(map) => {
                let from = usize::try_from(start).ok();
                let found = from.and_then(|from| map.bytes().get(from..)?.get(..out.len()));
                out.copy_from_slice(found.ok_or_else(|| {
                    Error::argument(format!("bytes from {start} on lie outside of .bin"))
                })?);
                Ok(())
            }
            Self::Read { vfs, file, .. } => {
                vfs.read_at(file, start, out).map_err(|error| match error {
                    Error::Io { source, path, .. }
                        if source.kind() == std::io::ErrorKind::UnexpectedEof =>
                    {
                        let end = start + out.len() as u64;
                        Error::corrupt(
                            &path,
                            format!(
                                "it ends before byte {end}: it was cut short after it was opened"
                            ),
                        )
                    }
                    error => error,
                })
            }
        }
    }

    /// The bytes of a range: in place, or read into `buffer`.
    pub(super) fn bytes<'a>(
        &'a self,
        start: u64,
        num_bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8]> {
        if let Some(bytes) = self.mapped() {
            let from = usize::try_from(start).unwrap_or(usize::MAX);
            let found = bytes.get(from..).and_then(|rest| rest.get(..num_bytes));
            return found.ok_or_else(|| {
                Error::argument(format!("bytes from {start} on lie outside of .bin"))
            });
        }
        buffer.resize(num_bytes, 0);
        self.read(start, buffer)?;
        Ok(buffer)
    }
}
