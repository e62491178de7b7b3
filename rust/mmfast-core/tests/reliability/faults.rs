//! Whatever I/O call fails, however it fails, and whether the process survives it or dies there, the
//! dataset is the old one or the new one.

use std::cell::Cell;
use std::sync::Arc;

use mmfast_core::Error;
use mmfast_core::indexed::{DatasetWriter, Dtype, Prefix, Tokens};
use mmfast_core::vfs::faults::{Fault, FaultyDisk};
use mmfast_core::vfs::{Disk, Vfs};

use crate::jobs::{self, Job, file_names};
use crate::{figures, folder};

/// More calls than any of the jobs makes.
const MANY_CALLS: u64 = 500;

/// Runs a job with the n-th call failing, for n = 1, 2, … until none is left to fail, and checks what
/// each run left behind; `check` may look at it first. Returns how often a call failed.
fn fail_everywhere(job: &Job, fault: Fault, check: impl Fn(&Prefix)) -> u64 {
    for n in 1..MANY_CALLS {
        let folder = folder();
        let at = Prefix::new(folder.path().join("a")).unwrap();
        (job.prepare)(&at);
        let disk = Arc::new(FaultyDisk::new(fault, n));
        let promised = Cell::new(0);
        let vfs: Arc<dyn Vfs> = Arc::<FaultyDisk>::clone(&disk);
        let done = (job.run)(vfs, &at, &|count| promised.set(count));
        assert!(disk.has_fired() || done.is_ok(), "{}: {done:?}", job.name);
        check(&at);
        if let Err(wrong) = (job.check)(Arc::new(Disk), &at, promised.get()) {
            panic!("{}, {fault:?} at call {n}: {wrong}", job.name);
        }
        if !disk.has_fired() {
            return n - 1;
        }
        // Whatever is left lying about, the next writer succeeds and tidies up.
        jobs::write(Arc::new(Disk), &at, &vec![vec![5]]).unwrap();
        assert_eq!(jobs::read(&Disk, &at).unwrap(), [[5]]);
        let names = file_names(folder.path());
        let of_this: Vec<_> = names.iter().filter(|name| name.starts_with("a.")).collect();
        assert_eq!(of_this, ["a.bin", "a.idx", "a.mmf"], "{fault:?} at {n}");
    }
    panic!("{} never got through", job.name);
}

#[test]
fn whatever_call_fails_the_old_or_the_new_dataset_is_there() {
    let mut num_faults = 0;
    for job in jobs::all(1) {
        for fault in Fault::ALL {
            let num_calls = fail_everywhere(&job, fault, |_| ());
            assert!(num_calls > 10, "{}, {fault:?}: {num_calls}", job.name);
            num_faults += num_calls;
        }
    }
    figures::report(num_faults, "faults", None, "0 mixtures, 0 losses");
}

#[test]
fn a_crash_while_a_crash_is_being_repaired_is_repaired_too() {
    let mut num_crashes = 0;
    for job in jobs::all(1) {
        num_crashes += fail_everywhere(&job, Fault::Crash, |at| {
            for m in 1..MANY_CALLS {
                let repairing = Arc::new(FaultyDisk::new(Fault::Crash, m));
                let found = (job.check)(Arc::<FaultyDisk>::clone(&repairing), at, 0);
                if !repairing.has_fired() {
                    found.unwrap();
                    return;
                }
            }
            panic!("the repair never got through");
        });
    }
    figures::report(
        num_crashes,
        "crashes, each repair crashed at every call",
        None,
        "0 mixtures, 0 losses",
    );
}

#[test]
fn a_writer_whose_write_failed_takes_nothing_more() {
    let folder = folder();
    let at = Prefix::new(folder.path().join("a")).unwrap();
    // Calls: lock, two looks for leftovers, create, then the write of more than a buffer.
    let disk: Arc<dyn Vfs> = Arc::new(FaultyDisk::new(Fault::ShortWrite, 5));
    let mut writer = DatasetWriter::create_on(disk, &at, Dtype::I64, false).unwrap();
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
    assert!(file_names(folder.path()).is_empty());
}
