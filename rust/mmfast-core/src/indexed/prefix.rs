//! Names of the files of a dataset, all beside each other: `<prefix>.bin`, `<prefix>.idx`, the
//! optional sidecar `<prefix>.mmf`, and what a writer keeps there while it works.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A dataset's path without `.bin` or `.idx`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(PathBuf);

impl Prefix {
    /// Checks that a path can be a prefix: it names something, and is not itself one of the files.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let Some(name) = path.file_name() else {
            return Err(Error::argument(format!(
                "{} cannot be a dataset's prefix: it has no file name",
                path.display()
            )));
        };
        let extension = Path::new(name).extension();
        if extension.is_some_and(|extension| {
            ["bin", "idx", "mmf", "media"]
                .iter()
                .any(|e| extension == *e)
        }) {
            return Err(Error::argument(format!(
                "{} is a file of a dataset; give its prefix, the path without .bin or .idx",
                path.display()
            )));
        }
        Ok(Self(path))
    }

    /// The prefix itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Token ids.
    pub fn bin(&self) -> PathBuf {
        self.with(".bin")
    }

    /// Index of the token ids; the dataset exists if and only if this file does.
    pub fn idx(&self) -> PathBuf {
        self.with(".idx")
    }

    /// Checksums and provenance of the two; may be absent.
    pub fn sidecar(&self) -> PathBuf {
        self.with(".mmf")
    }

    /// What placeholder ids stand for; absent if there are none.
    pub fn media(&self) -> PathBuf {
        self.with(".media")
    }

    /// Media references in the making.
    pub fn new_media(&self) -> PathBuf {
        self.with(".media.tmp")
    }

    /// Token ids in the making.
    pub fn new_bin(&self) -> PathBuf {
        self.with(".bin.tmp")
    }

    /// Index in the making.
    pub fn new_idx(&self) -> PathBuf {
        self.with(".idx.tmp")
    }

    /// Sidecar in the making.
    pub fn new_sidecar(&self) -> PathBuf {
        self.with(".mmf.tmp")
    }

    /// Index of a complete dataset that is taking its place: once this is there, it is published.
    pub fn ready_idx(&self) -> PathBuf {
        self.with(".idx.ready")
    }

    /// What has been acknowledged of token ids in the making.
    pub fn journal(&self) -> PathBuf {
        self.with(".journal")
    }

    /// Journal in the making.
    pub fn new_journal(&self) -> PathBuf {
        self.with(".journal.tmp")
    }

    /// Lock of the one writer.
    pub fn lock(&self) -> PathBuf {
        self.with(".lock")
    }

    fn with(&self, suffix: &str) -> PathBuf {
        let mut name = self.0.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_appended_even_to_dotted_names() {
        let prefix = Prefix::new("/data/train.v1").unwrap();
        assert_eq!(prefix.bin(), Path::new("/data/train.v1.bin"));
        assert_eq!(prefix.idx(), Path::new("/data/train.v1.idx"));
    }

    #[test]
    fn a_file_name_instead_of_a_prefix_is_refused() {
        for bad in ["/data/train.bin", "train.idx", "train.mmf", "/", ""] {
            assert!(
                matches!(Prefix::new(bad), Err(Error::InvalidArgument(_))),
                "{bad}"
            );
        }
    }
}
