//! What a power cut leaves behind: a disk that remembers which changes were made durable, and every
//! state in which the others may be found.
//!
//! The job runs once, on a [`RecordingDisk`] over a real folder. [`Recording::visit`] then cuts the
//! power after each change and builds what the folder may hold (after the method of ALICE, Pillai et
//! al., OSDI 2014, and `CrashMonkey`, Mohan et al., OSDI 2018). Of what was not synced,
//!
//! - each new, renamed or removed name may or may not have got to the disk: a rename as a whole, but
//!   two of them in any order;
//! - each 4 KiB block of each write may be there, or be missing (zeros, or what was there before), or
//!   be torn;
//! - a file has its size after any of the changes since it was last synced.
//!
//! A synced file keeps its content whatever its name, a synced folder its names whatever the content.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{Disk, File, Lock, Vfs};
use crate::error::{Error, Result};
use crate::random::{self, halves, philox4x32};

/// What gets to the disk as one piece, unless it is torn.
const BLOCK_BYTES: usize = 4096;
/// A torn block ends at a multiple of this.
const SECTOR_BYTES: usize = 512;

type FileId = usize;

/// One change of the folder, or a word of the job about it.
#[derive(Debug, Clone)]
enum Change {
    Create {
        path: PathBuf,
        file: FileId,
    },
    Resize {
        file: FileId,
        num_bytes: u64,
    },
    Write {
        file: FileId,
        offset: u64,
        bytes: Vec<u8>,
    },
    Sync {
        file: FileId,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    SyncFolder,
    Acknowledge {
        count: u64,
    },
}

/// A disk that keeps a record of the changes made through it. Syncing is recorded, not done.
#[derive(Debug)]
pub struct RecordingDisk {
    record: Mutex<Record>,
}

#[derive(Debug)]
struct Record {
    initial: Vec<(PathBuf, Vec<u8>)>,
    changes: Vec<Change>,
    /// By the number that the operating system gives a file while it exists.
    files: HashMap<u64, FileId>,
    num_files: usize,
}

impl RecordingDisk {
    /// Begins a record over what a folder holds now, all of it durable. The folder must be flat.
    pub fn over(folder: &Path) -> Result<Self> {
        let inspect = |error| Error::io("inspect", folder, error);
        let mut record = Record {
            initial: Vec::new(),
            changes: Vec::new(),
            files: HashMap::new(),
            num_files: 0,
        };
        for entry in std::fs::read_dir(folder).map_err(inspect)? {
            let path = entry.map_err(inspect)?.path();
            let bytes = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
            let file = Disk.open(&path)?;
            record.files.insert(number(&file)?, record.num_files);
            record.num_files += 1;
            record.initial.push((path, bytes));
        }
        Ok(Self {
            record: Mutex::new(record),
        })
    }

    /// Notes that the job has told its caller that `count` things are durable.
    pub fn acknowledge(&self, count: u64) {
        self.note(Change::Acknowledge { count });
    }

    /// What has been recorded so far.
    pub fn recording(&self) -> Recording {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut start = Folder::default();
        for (file, (path, bytes)) in record.initial.iter().enumerate() {
            start.names.insert(path.clone(), file);
            start.files.push(Content {
                durable: bytes.clone(),
                pending: Vec::new(),
            });
        }
        Recording {
            start,
            changes: record.changes.clone(),
        }
    }

    fn note(&self, change: Change) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.changes.push(change);
    }

    fn file_id(&self, file: &File) -> Result<FileId> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let known = record.files.get(&number(file)?).copied();
        known.ok_or_else(|| {
            Error::io(
                "record",
                file.path(),
                io::Error::other("it was not made through this disk"),
            )
        })
    }
}

impl Vfs for RecordingDisk {
    fn open(&self, path: &Path) -> Result<File> {
        Disk.open(path)
    }

    fn create(&self, path: &Path) -> Result<File> {
        let existed = Disk.exists(path)?;
        let file = Disk.create(path)?;
        if existed {
            let emptied = self.file_id(&file)?;
            self.note(Change::Resize {
                file: emptied,
                num_bytes: 0,
            });
        } else {
            let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            let made = record.num_files;
            record.num_files += 1;
            record.files.insert(number(&file)?, made);
            record.changes.push(Change::Create {
                path: path.to_path_buf(),
                file: made,
            });
        }
        Ok(file)
    }

    fn reopen(&self, path: &Path, num_bytes: u64) -> Result<File> {
        let file = Disk.reopen(path, num_bytes)?;
        self.note(Change::Resize {
            file: self.file_id(&file)?,
            num_bytes,
        });
        Ok(file)
    }

    fn read_at(&self, file: &File, offset: u64, out: &mut [u8]) -> Result<()> {
        Disk.read_at(file, offset, out)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> Result<()> {
        let offset = cursor(file)?;
        Disk.write(file, bytes)?;
        self.note(Change::Write {
            file: self.file_id(file)?,
            offset,
            bytes: bytes.to_vec(),
        });
        Ok(())
    }

    fn reserve(&self, file: &mut File, num_bytes: u64) -> Result<()> {
        Disk.reserve(file, num_bytes)
    }

    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> Result<()> {
        Disk.write_at(file, offset, bytes)?;
        self.note(Change::Write {
            file: self.file_id(file)?,
            offset,
            bytes: bytes.to_vec(),
        });
        Ok(())
    }

    fn append(&self, target: &mut File, source: &mut File, num_bytes: u64) -> Result<()> {
        let (offset, from) = (cursor(target)?, cursor(source)?);
        Disk.append(target, source, num_bytes)?;
        let mut bytes = vec![0; usize::try_from(num_bytes).unwrap_or(usize::MAX)];
        Disk.read_at(source, from, &mut bytes)?;
        self.note(Change::Write {
            file: self.file_id(target)?,
            offset,
            bytes,
        });
        Ok(())
    }

    fn sync(&self, file: &File) -> Result<()> {
        self.note(Change::Sync {
            file: self.file_id(file)?,
        });
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        Disk.rename(from, to)?;
        self.note(Change::Rename {
            from: from.to_path_buf(),
            to: to.to_path_buf(),
        });
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        Disk.remove(path)?;
        self.note(Change::Remove {
            path: path.to_path_buf(),
        });
        Ok(())
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        Disk.exists(path)
    }

    fn sync_folder_of(&self, _path: &Path) -> Result<()> {
        self.note(Change::SyncFolder);
        Ok(())
    }

    fn lock(&self, path: &Path) -> Result<Lock> {
        Disk.lock(path)
    }
}

/// The operating system's number of an open file.
fn number(file: &File) -> Result<u64> {
    let metadata = file.handle().metadata();
    let metadata = metadata.map_err(|error| Error::io("inspect", file.path(), error))?;
    Ok(metadata.ino())
}

fn cursor(file: &File) -> Result<u64> {
    let position = file.handle().stream_position();
    position.map_err(|error| Error::io("inspect", file.path(), error))
}

/// A job's changes, and what was there before.
#[derive(Debug, Clone)]
pub struct Recording {
    start: Folder,
    changes: Vec<Change>,
}

/// What a folder holds after the power was cut.
#[derive(Debug, Clone)]
pub struct Remains {
    /// Number of changes that had been asked for.
    pub num_changes: usize,
    /// The last count that had been acknowledged; 0 if none was.
    pub acknowledged: u64,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Remains {
    /// Empties a folder and puts these files there.
    pub fn write_to(&self, folder: &Path) -> Result<()> {
        let inspect = |error| Error::io("inspect", folder, error);
        for entry in std::fs::read_dir(folder).map_err(inspect)? {
            Disk.remove(&entry.map_err(inspect)?.path())?;
        }
        for (path, bytes) in &self.files {
            let path = folder.join(path.file_name().unwrap_or_default());
            let mut file = Disk.create(&path)?;
            Disk.write(&mut file, bytes)?;
        }
        Ok(())
    }
}

impl Recording {
    /// How many changes were made.
    pub fn num_changes(&self) -> usize {
        self.changes.len()
    }

    /// The same changes, as if files had never been synced.
    #[must_use]
    pub fn without_file_syncs(mut self) -> Self {
        self.changes
            .retain(|change| !matches!(change, Change::Sync { .. }));
        self
    }

    /// The same changes, as if the folder had never been synced.
    #[must_use]
    pub fn without_folder_syncs(mut self) -> Self {
        self.changes
            .retain(|change| !matches!(change, Change::SyncFolder));
        self
    }

    /// Cuts the power before the first change, after it, after the second, … and hands every state
    /// that may be found then to `visit`, no state twice. Where more than `limit` combinations are
    /// possible at one point, these are nothing kept, all kept, and others drawn at random. Returns
    /// how many there were.
    pub fn visit(&self, limit: usize, seed: u32, mut visit: impl FnMut(&Remains)) -> u64 {
        let mut folder = self.start.clone();
        let mut acknowledged = 0;
        let mut seen = HashSet::new();
        let mut num_draws = 0;
        for num_changes in 0..=self.changes.len() {
            if let Some(change) = num_changes
                .checked_sub(1)
                .and_then(|last| self.changes.get(last))
            {
                folder.apply(change);
                if let Change::Acknowledge { count } = change {
                    acknowledged = *count;
                }
            }
            let options = folder.options();
            for choice in choices(&options, limit, seed, &mut num_draws) {
                let files = folder.remains(&choice);
                let mut hasher = DefaultHasher::new();
                (acknowledged, &files).hash(&mut hasher);
                if seen.insert(hasher.finish()) {
                    visit(&Remains {
                        num_changes,
                        acknowledged,
                        files,
                    });
                }
            }
        }
        seen.len() as u64
    }
}

/// A folder as the job sees it, with what of it is durable.
#[derive(Debug, Clone, Default)]
struct Folder {
    /// The durable names.
    names: BTreeMap<PathBuf, FileId>,
    /// Changes of names since the folder was synced.
    pending: Vec<NameChange>,
    files: Vec<Content>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Add(PathBuf, FileId),
    Move(PathBuf, PathBuf, FileId),
    Remove(PathBuf),
}

#[derive(Debug, Clone, Default)]
struct Content {
    durable: Vec<u8>,
    pending: Vec<ContentChange>,
}

#[derive(Debug, Clone)]
enum ContentChange {
    Resize(usize),
    Write(usize, Vec<u8>),
}

/// Outcomes of a block that was written and not synced.
const NUM_BLOCK_OUTCOMES: usize = 3;

impl Folder {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Create { path, file } => {
                self.files.resize_with(file + 1, Content::default);
                self.pending.push(NameChange::Add(path.clone(), *file));
            }
            Change::Rename { from, to } => {
                if let Some(file) = self.live_names().get(from) {
                    let moved = NameChange::Move(from.clone(), to.clone(), *file);
                    self.pending.push(moved);
                }
            }
            Change::Remove { path } => {
                if self.live_names().contains_key(path) {
                    self.pending.push(NameChange::Remove(path.clone()));
                }
            }
            Change::SyncFolder => {
                self.names = self.live_names();
                self.pending.clear();
            }
            Change::Resize { file, num_bytes } => {
                if let Some(content) = self.files.get_mut(*file) {
                    let len = usize::try_from(*num_bytes).unwrap_or(usize::MAX);
                    content.pending.push(ContentChange::Resize(len));
                }
            }
            Change::Write {
                file,
                offset,
                bytes,
            } => {
                if let Some(content) = self.files.get_mut(*file) {
                    let offset = usize::try_from(*offset).unwrap_or(usize::MAX);
                    let write = ContentChange::Write(offset, bytes.clone());
                    content.pending.push(write);
                }
            }
            Change::Sync { file } => {
                if let Some(content) = self.files.get_mut(*file) {
                    content.durable = content.remains(&mut std::iter::repeat(usize::MAX));
                    content.pending.clear();
                }
            }
            Change::Acknowledge { .. } => {}
        }
    }

    fn live_names(&self) -> BTreeMap<PathBuf, FileId> {
        self.names_after(&mut std::iter::repeat(usize::MAX))
    }

    fn names_after(&self, choice: &mut impl Iterator<Item = usize>) -> BTreeMap<PathBuf, FileId> {
        let mut names = self.names.clone();
        for change in &self.pending {
            if choice.next() == Some(0) {
                continue;
            }
            match change {
                NameChange::Add(path, file) => {
                    names.insert(path.clone(), *file);
                }
                NameChange::Move(from, to, file) => {
                    names.remove(from);
                    names.insert(to.clone(), *file);
                }
                NameChange::Remove(path) => {
                    names.remove(path);
                }
            }
        }
        names
    }

    /// Number of outcomes of everything that is open. Outcome 0 is that it is lost, the last one that
    /// it is kept.
    fn options(&self) -> Vec<usize> {
        let names = self.pending.iter().map(|_| 2);
        names
            .chain(self.files.iter().flat_map(Content::options))
            .collect()
    }

    fn remains(&self, choice: &[usize]) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut choice = choice.iter().copied();
        let names = self.names_after(&mut choice);
        let contents: Vec<_> = self
            .files
            .iter()
            .map(|content| content.remains(&mut choice))
            .collect();
        names
            .into_iter()
            .filter_map(|(path, file)| Some((path, contents.get(file)?.clone())))
            .collect()
    }
}

impl Content {
    fn options(&self) -> impl Iterator<Item = usize> {
        let size = (!self.pending.is_empty()).then_some(self.pending.len() + 1);
        let blocks = self.pending.iter().flat_map(|change| match change {
            ContentChange::Resize(_) => 0..0,
            ContentChange::Write(offset, bytes) => 0..num_blocks(*offset, bytes.len()),
        });
        size.into_iter().chain(blocks.map(|_| NUM_BLOCK_OUTCOMES))
    }

    /// The content where the outcomes are those of `choice`, in the order of [`Self::options`].
    fn remains(&self, choice: &mut impl Iterator<Item = usize>) -> Vec<u8> {
        if self.pending.is_empty() {
            return self.durable.clone();
        }
        let mut bytes = self.durable.clone();
        let num_sized = choice.next().unwrap_or(0);
        let mut len = bytes.len();
        for (i, change) in self.pending.iter().enumerate() {
            let is_sized = i < num_sized;
            match change {
                ContentChange::Resize(new_len) if is_sized => {
                    bytes.truncate(*new_len);
                    len = *new_len;
                }
                ContentChange::Resize(_) => {}
                ContentChange::Write(offset, written) => {
                    let end = offset + written.len();
                    bytes.resize(bytes.len().max(end), 0);
                    len = if is_sized { len.max(end) } else { len };
                    write_blocks(&mut bytes, *offset, written, choice);
                }
            }
        }
        bytes.resize(len, 0);
        bytes
    }
}

/// Block boundaries are those of the file.
fn num_blocks(offset: usize, len: usize) -> usize {
    match len {
        0 => 0,
        _ => (offset + len - 1) / BLOCK_BYTES - offset / BLOCK_BYTES + 1,
    }
}

fn write_blocks(
    bytes: &mut [u8],
    offset: usize,
    written: &[u8],
    choice: &mut impl Iterator<Item = usize>,
) {
    let mut at = offset;
    let mut rest = written;
    while !rest.is_empty() {
        let room = BLOCK_BYTES - at % BLOCK_BYTES;
        let (block, behind) = rest.split_at(room.min(rest.len()));
        let kept = match choice.next() {
            Some(0) => 0,
            // The sectors of the first half.
            Some(1) => {
                let boundary = (at + block.len() / 2) / SECTOR_BYTES * SECTOR_BYTES;
                boundary.saturating_sub(at)
            }
            _ => block.len(),
        };
        if let (Some(target), Some(source)) = (bytes.get_mut(at..at + kept), block.get(..kept)) {
            target.copy_from_slice(source);
        }
        at += block.len();
        rest = behind;
    }
}

/// All combinations of outcomes, or a sample of them.
fn choices(options: &[usize], limit: usize, seed: u32, num_draws: &mut u64) -> Vec<Vec<usize>> {
    let product = options.iter().try_fold(1_usize, |product, &n| {
        product.checked_mul(n).filter(|&product| product <= limit)
    });
    if let Some(product) = product {
        let combination = |mut number: usize| {
            let digits = options.iter().map(|&n| {
                let digit = number % n;
                number /= n;
                digit
            });
            digits.collect()
        };
        return (0..product).map(combination).collect();
    }
    let mut chosen = vec![
        vec![0; options.len()],
        options.iter().map(|n| n - 1).collect(),
    ];
    let draws = limit.saturating_sub(chosen.len());
    chosen.extend((0..draws).map(|_| {
        let drawn = options.iter().map(|&n| below(seed, num_draws, n));
        drawn.collect()
    }));
    chosen
}

/// A draw below `n`; `state` counts the draws.
fn below(seed: u32, num_draws: &mut u64, n: usize) -> usize {
    let (low, high) = halves(*num_draws);
    *num_draws += 1;
    let [a, b, ..] = philox4x32([low, high, 0, 0], [seed, 0]);
    let uniform = u64::from(a) << 32 | u64::from(b);
    usize::try_from(random::below(n as u64, uniform)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(job: impl Fn(&RecordingDisk, &Path)) -> Vec<BTreeMap<String, Vec<u8>>> {
        let folder = tempfile::tempdir().unwrap();
        let mut file = Disk.create(&folder.path().join("old")).unwrap();
        Disk.write(&mut file, b"old").unwrap();
        let disk = RecordingDisk::over(folder.path()).unwrap();
        job(&disk, folder.path());
        let mut found = Vec::new();
        disk.recording().visit(1000, 0, |remains| {
            let named = remains.files.iter().map(|(path, bytes)| {
                let name = path.file_name().unwrap().to_str().unwrap().to_string();
                (name, bytes.clone())
            });
            found.push(named.collect());
        });
        found
    }

    fn named(files: &[(&str, &[u8])]) -> BTreeMap<String, Vec<u8>> {
        let files = files
            .iter()
            .map(|(name, bytes)| ((*name).to_string(), bytes.to_vec()));
        files.collect()
    }

    #[test]
    fn without_syncs_name_size_and_content_are_kept_or_lost_each_by_itself() {
        let found = states(|disk, folder| {
            let mut file = disk.create(&folder.join("new")).unwrap();
            disk.write(&mut file, b"abc").unwrap();
        });
        for expected in [
            named(&[("old", b"old")]),
            named(&[("old", b"old"), ("new", b"")]),
            named(&[("old", b"old"), ("new", &[0; 3])]),
            named(&[("old", b"old"), ("new", b"abc")]),
        ] {
            assert!(found.contains(&expected), "{expected:?}");
        }
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn what_was_synced_is_kept() {
        let found = states(|disk, folder| {
            let mut file = disk.create(&folder.join("new")).unwrap();
            disk.write(&mut file, b"abc").unwrap();
            disk.sync(&file).unwrap();
            disk.sync_folder_of(&folder.join("new")).unwrap();
            disk.rename(&folder.join("new"), &folder.join("old"))
                .unwrap();
        });
        let last: Vec<_> = found.iter().rev().take(2).cloned().collect();
        assert!(last.contains(&named(&[("old", b"old"), ("new", b"abc")])));
        assert!(last.contains(&named(&[("old", b"abc")])));
    }

    #[test]
    fn a_rename_before_the_sync_may_show_a_file_without_its_content() {
        let found = states(|disk, folder| {
            let mut file = disk.create(&folder.join("new")).unwrap();
            disk.write(&mut file, b"abc").unwrap();
            disk.rename(&folder.join("new"), &folder.join("old"))
                .unwrap();
            disk.sync_folder_of(&folder.join("old")).unwrap();
        });
        assert!(found.contains(&named(&[("old", b"")])));
        assert!(found.contains(&named(&[("old", &[0; 3])])));
    }

    #[test]
    fn blocks_of_one_write_are_lost_kept_or_torn_apart() {
        let found = states(|disk, folder| {
            let mut file = disk.create(&folder.join("new")).unwrap();
            disk.sync_folder_of(&folder.join("new")).unwrap();
            disk.write(&mut file, &[1; 2 * BLOCK_BYTES]).unwrap();
        });
        let block = |kept: usize| [vec![1; kept], vec![0; BLOCK_BYTES - kept]].concat();
        for (first, second) in [(0, BLOCK_BYTES), (BLOCK_BYTES / 2, 0), (BLOCK_BYTES, 0)] {
            let content = [block(first), block(second)].concat();
            assert!(found.contains(&named(&[("old", b"old"), ("new", &content)])));
        }
        // Without the name; with the name and no bytes; with two blocks of three outcomes.
        assert_eq!(found.len(), 1 + 1 + 9);
    }

    #[test]
    fn an_emptied_file_may_still_be_full_and_a_removed_one_still_there() {
        let found = states(|disk, folder| {
            disk.create(&folder.join("old")).unwrap();
            disk.remove(&folder.join("old")).unwrap();
        });
        for expected in [
            named(&[("old", b"old")]),
            named(&[("old", b"")]),
            named(&[]),
        ] {
            assert!(found.contains(&expected), "{expected:?}");
        }
    }
}
