//! Whatever I/O call fails, and whether the process survives it or dies there, the dataset is the
//! old one or the new one.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::Path;
use std::sync::Arc;

use mmfast_core::indexed::{
    DatasetWriter, Dtype, IndexedDataset, Prefix, Tokens, Verify, merge_on,
};
use mmfast_core::vfs::faults::{Fault, FaultyDisk};
use mmfast_core::vfs::{Disk, Vfs};
use mmfast_core::{Error, Result};

/// More calls than any of the jobs below makes.
const MANY_CALLS: u64 = 200;

/// As many ids in both, so that either index fits either `.bin`, but cut differently, so that a
/// mixed pair shows.
const OLD: [&[i64]; 2] = [&[1, 2], &[3]];
const NEW: [&[i64]; 2] = [&[7], &[8, 9]];

fn write(vfs: Arc<dyn Vfs>, at: &Prefix, sequences: &[&[i64]]) -> Result<()> {
    let mut writer = DatasetWriter::create_on(vfs, at, Dtype::I32, true)?;
    for ids in sequences {
        writer.add_sequence(Tokens::I64(ids), 1)?;
        writer.end_document();
    }
    writer.finish()?;
    Ok(())
}

fn sequences(at: &Prefix) -> Result<Vec<Vec<i64>>> {
    // Opening puts back what a crash left half done; only then does it show whether there is a sidecar.
    IndexedDataset::open(at)?;
    let level = if at.sidecar().exists() {
        Verify::Full
    } else {
        Verify::Index
    };
    let dataset = IndexedDataset::open_on(&Disk, at, level)?;
    let read = |sequence| dataset.ids(sequence..sequence + 1);
    (0..dataset.num_sequences()).map(read).collect()
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Runs `job` with the n-th call failing, for n = 1, 2, … until it gets through, and hands what it
/// left behind to `check`. Returns how many calls there were to fail.
fn fail_everywhere(
    fault: Fault,
    prepare: impl Fn(&Prefix),
    job: impl Fn(Arc<dyn Vfs>, &Prefix) -> Result<()>,
    check: impl Fn(&Prefix, bool, u64),
) -> u64 {
    for n in 1..MANY_CALLS {
        let folder = tempfile::tempdir().unwrap();
        let at = Prefix::new(folder.path().join("a")).unwrap();
        prepare(&at);
        let disk = Arc::new(FaultyDisk::new(fault, n));
        let done = job(Arc::<FaultyDisk>::clone(&disk), &at);
        assert_eq!(done.is_err(), disk.has_fired(), "call {n}: {done:?}");
        check(&at, done.is_ok(), n);
        if done.is_ok() {
            return n - 1;
        }
    }
    panic!("the job never got through");
}

#[test]
fn a_failed_rewrite_leaves_the_old_or_the_new_dataset() {
    for fault in [Fault::Once, Fault::Crash] {
        let num_calls = fail_everywhere(
            fault,
            |at| write(Arc::new(Disk), at, &OLD).unwrap(),
            |vfs, at| write(vfs, at, &NEW),
            |at, is_done, n| {
                let found =
                    sequences(at).unwrap_or_else(|error| panic!("{fault:?} at {n}: {error}"));
                assert!(at.sidecar().exists(), "{fault:?} at {n}");
                if is_done {
                    assert_eq!(found, NEW);
                    assert_eq!(
                        files(at.path().parent().unwrap()),
                        ["a.bin", "a.idx", "a.mmf"]
                    );
                } else {
                    assert!(found == OLD || found == NEW, "{fault:?} at {n}: {found:?}");
                }
                // Whatever is left lying about, the next writer succeeds and tidies up.
                write(Arc::new(Disk), at, &[&[5]]).unwrap();
                assert_eq!(sequences(at).unwrap(), [[5]]);
                assert_eq!(
                    files(at.path().parent().unwrap()),
                    ["a.bin", "a.idx", "a.mmf"]
                );
            },
        );
        assert!(num_calls > 15, "only {num_calls} calls were tried");
    }
}

#[test]
fn a_failed_rewrite_of_a_pair_without_sidecar_never_lends_it_another_ones() {
    for fault in [Fault::Once, Fault::Crash] {
        fail_everywhere(
            fault,
            |at| {
                write(Arc::new(Disk), at, &OLD).unwrap();
                Disk.remove(&at.sidecar()).unwrap();
            },
            |vfs, at| write(vfs, at, &NEW),
            |at, is_done, n| {
                let found =
                    sequences(at).unwrap_or_else(|error| panic!("{fault:?} at {n}: {error}"));
                let expected: [&[i64]; 2] = if at.sidecar().exists() { NEW } else { OLD };
                assert_eq!(found, expected, "{fault:?} at {n}");
                assert!(!is_done || found == NEW);
            },
        );
    }
}

#[test]
fn a_failed_first_write_leaves_nothing_or_the_dataset() {
    for fault in [Fault::Once, Fault::Crash] {
        fail_everywhere(
            fault,
            |_| (),
            |vfs, at| write(vfs, at, &NEW),
            |at, is_done, n| match sequences(at) {
                Ok(found) => assert_eq!(found, NEW, "{fault:?} at {n}"),
                Err(Error::Io { .. }) => assert!(!is_done && !at.idx().exists()),
                Err(error) => panic!("{fault:?} at {n}: {error}"),
            },
        );
    }
}

#[test]
fn a_failed_merge_into_one_of_its_parts_leaves_the_old_or_the_new_dataset() {
    let other = |at: &Prefix| Prefix::new(at.path().with_file_name("b")).unwrap();
    for fault in [Fault::Once, Fault::Crash] {
        fail_everywhere(
            fault,
            |at| {
                write(Arc::new(Disk), at, &OLD).unwrap();
                write(Arc::new(Disk), &other(at), &NEW).unwrap();
            },
            |vfs, at| merge_on(vfs, at, &[at.clone(), other(at)]).map(|_| ()),
            |at, is_done, n| {
                let found =
                    sequences(at).unwrap_or_else(|error| panic!("{fault:?} at {n}: {error}"));
                let merged = [OLD, NEW].concat();
                assert!(found == merged || (!is_done && found == OLD), "{found:?}");
                assert_eq!(sequences(&other(at)).unwrap(), NEW);
            },
        );
    }
}

#[test]
fn a_crash_while_a_crash_is_being_repaired_is_repaired_too() {
    for n in 1..MANY_CALLS {
        let folder = tempfile::tempdir().unwrap();
        let at = Prefix::new(folder.path().join("a")).unwrap();
        write(Arc::new(Disk), &at, &OLD).unwrap();
        let first = write(Arc::new(FaultyDisk::new(Fault::Crash, n)), &at, &NEW);
        for m in 1..MANY_CALLS {
            let repairing = FaultyDisk::new(Fault::Crash, m);
            if IndexedDataset::open_on(&repairing, &at, Verify::Index).is_ok() {
                break;
            }
            assert!(repairing.has_fired());
        }
        let found = sequences(&at).unwrap();
        assert!(found == OLD || found == NEW, "{n}: {found:?}");
        assert!(at.sidecar().exists(), "{n}");
        if first.is_ok() {
            return;
        }
    }
    panic!("the job never got through");
}

#[test]
fn a_writer_whose_write_failed_takes_nothing_more() {
    let folder = tempfile::tempdir().unwrap();
    let at = Prefix::new(folder.path().join("a")).unwrap();
    // Calls: lock, two looks for leftovers, create, then the write of more than a buffer.
    let disk = Arc::new(FaultyDisk::new(Fault::Once, 5));
    let mut writer =
        DatasetWriter::create_on(Arc::<FaultyDisk>::clone(&disk), &at, Dtype::I64, false).unwrap();
    let large = vec![1; 1 << 20];
    let failed = writer.add_sequence(Tokens::I64(&large), 0);
    assert!(matches!(failed, Err(Error::Io { .. })), "{failed:?}");
    let again = writer.add_sequence(Tokens::I64(&[1]), 0).unwrap_err();
    assert!(again.to_string().contains("write it again"), "{again}");
    let finished = writer.finish().unwrap_err();
    assert!(
        finished.to_string().contains("write it again"),
        "{finished}"
    );
    assert!(files(folder.path()).is_empty());
}
