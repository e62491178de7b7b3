//! Whatever happens to the bytes of a dataset, it is found when all is verified, and its place named.

use std::fs::{File, OpenOptions};
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mmfast_core::Error;
use mmfast_core::indexed::{DatasetWriter, Dtype, IndexedDataset, Prefix, Tokens, Verify};
use mmfast_core::vfs::Disk;
use tempfile::TempDir;

use crate::{NUM_THREADS, figures, folder, in_threads};

const BIN_BYTES: usize = 64 << 10;
const NUM_DOCUMENTS: usize = 256;
/// Of so many positions in `.bin` one is tried by opening the pair anew.
const POSITIONS_PER_OPENING: usize = 64;
/// Most bytes that are put behind a file.
const MOST_EXTRA_BYTES: usize = 1000;

/// A pair whose `.bin` has 64 KiB, with its sidecar, in a folder of its own.
struct Pair {
    _folder: TempDir,
    at: Prefix,
}

impl Pair {
    fn write() -> Self {
        let folder = folder();
        let at = Prefix::new(folder.path().join("a")).unwrap();
        let ids: Vec<_> = (70_000..).take(BIN_BYTES / 4).collect();
        let mut writer = DatasetWriter::create(&at, Dtype::I32, true).unwrap();
        let length = u32::try_from(ids.len() / NUM_DOCUMENTS).unwrap();
        let (lengths, counts) = ([length; NUM_DOCUMENTS], [1; NUM_DOCUMENTS]);
        let added = writer.add_documents(Tokens::I64(&ids), &lengths, &counts, None);
        added.unwrap();
        writer.finish().unwrap();
        Self {
            _folder: folder,
            at,
        }
    }

    fn paths(&self) -> [PathBuf; 3] {
        [self.at.bin(), self.at.idx(), self.at.sidecar()]
    }

    fn open(&self) -> Result<IndexedDataset, Error> {
        IndexedDataset::open_on(&Disk, &self.at, Verify::Full)
    }

    /// The pair is refused for damage, and it is said where: in which file, and in `.bin` the block,
    /// its bytes and the documents hit.
    fn require_found(&self, path: &Path, what: &str) {
        let file = path.display();
        let Err(error) = self.open() else {
            panic!("{file}: {what} is not found")
        };
        let text = error.to_string();
        let is_refusal = matches!(
            error,
            Error::Corrupt { .. } | Error::UnsupportedFormat { .. }
        );
        let names = |path: PathBuf| text.contains(&*path.to_string_lossy());
        // A changed length may show as a `.bin` of the wrong size, anything else in `.idx` as a
        // sidecar that does not belong to it: both texts speak of the `.idx`.
        let is_named =
            names(path.to_path_buf()) || (path == self.at.idx() && text.contains(".idx"));
        assert!(is_refusal && is_named, "{file}, {what}: {text}");
        if path == self.at.bin() && !text.contains("but its .idx announces") {
            let place = format!("block 0 (bytes 0..{BIN_BYTES})");
            assert!(text.contains(&place), "{what}: {text}");
            assert!(text.contains("documents 0 to 255"), "{what}: {text}");
        }
    }
}

/// Gives each thread a pair of its own and its share of the numbers.
fn shared(job: impl Fn(&Pair, &dyn Fn(usize) -> bool) -> u64 + Sync) -> u64 {
    in_threads(|thread| job(&Pair::write(), &|number| number % NUM_THREADS == thread))
}

fn open_for_writing(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

/// What a byte is changed by: by anything in the long run, else by one of three, by turns.
fn changes(position: usize) -> RangeInclusive<u8> {
    if figures::is_long() {
        return 1..=0xff;
    }
    let change = [1, 0x80, 0xff][position / NUM_THREADS % 3];
    change..=change
}

/// Changes the bytes at some positions of a file, one at a time, and back.
fn change_each(path: &Path, is_mine: impl Fn(usize) -> bool, look: impl Fn(&str)) -> u64 {
    let whole = std::fs::read(path).unwrap();
    let file = open_for_writing(path);
    let mut num_changes = 0;
    for position in (0..whole.len()).filter(|&position| is_mine(position)) {
        let byte = whole[position];
        for change in changes(position) {
            let changed = file.write_all_at(&[byte ^ change], position as u64);
            changed.unwrap();
            look(&format!("byte {position} ^ {change:#x}"));
            num_changes += 1;
        }
        file.write_all_at(&[byte], position as u64).unwrap();
    }
    num_changes
}

#[test]
fn every_changed_byte_of_a_pair_of_64_kib_is_found_with_its_place() {
    let num_changes = shared(|pair, is_mine| {
        let mut num_changes = 0;
        // Opening takes longest. So where it cannot matter, the blocks of a dataset that is open are
        // compared with their sums, as `Verify::Full` does: the map shows what is in the file.
        let is_opened = |position: usize| position.is_multiple_of(POSITIONS_PER_OPENING);
        let dataset = IndexedDataset::open(&pair.at).unwrap();
        let is_compared = |position| is_mine(position) && !is_opened(position);
        num_changes += change_each(&pair.at.bin(), is_compared, |what| {
            let damaged = dataset.damaged_blocks(0..usize::MAX).unwrap();
            let [found] = &damaged[..] else {
                panic!("{what}: {damaged:?}")
            };
            assert_eq!(
                (&found.block, &found.bytes, &found.documents),
                (&0, &(0..BIN_BYTES as u64), &(0..NUM_DOCUMENTS as u64)),
                "{what}"
            );
        });
        drop(dataset);
        for path in pair.paths() {
            let is_tried = |at| is_mine(at) && (path != pair.at.bin() || is_opened(at));
            let look = |what: &str| pair.require_found(&path, what);
            num_changes += change_each(&path, is_tried, look);
        }
        pair.open().unwrap();
        num_changes
    });
    assert!(num_changes > BIN_BYTES as u64, "{num_changes}");
    let result = "100 % found, each with its place";
    figures::report(num_changes, "changed bytes", None, result);
}

#[test]
fn every_other_length_of_a_file_of_a_pair_of_64_kib_is_found() {
    let step = usize::try_from(figures::scaled(5, 1)).unwrap();
    let num_lengths = shared(|pair, is_mine| {
        let mut num_lengths = 0;
        for path in pair.paths() {
            let whole = std::fs::read(&path).unwrap();
            let file = open_for_writing(&path);
            for len in (0..whole.len())
                .rev()
                .filter(|&len| is_mine(len / step) && len % step == 0)
            {
                // Nothing is mapped between two attempts to open it.
                file.set_len(len as u64).unwrap();
                pair.require_found(&path, &format!("the length {len} of {}", whole.len()));
                num_lengths += 1;
            }
            file.write_all_at(&whole, 0).unwrap();
            for num_extra in (1..=MOST_EXTRA_BYTES).filter(|&n| is_mine(n)) {
                // Bytes that the file itself might go on with.
                let extra: Vec<_> = whole.iter().cycle().take(num_extra).copied().collect();
                file.write_all_at(&extra, whole.len() as u64).unwrap();
                file.set_len((whole.len() + num_extra) as u64).unwrap();
                pair.require_found(&path, &format!("{num_extra} bytes more"));
                num_lengths += 1;
            }
            file.set_len(whole.len() as u64).unwrap();
        }
        pair.open().unwrap();
        num_lengths
    });
    figures::report(num_lengths, "other lengths", None, "100 % refused");
}
