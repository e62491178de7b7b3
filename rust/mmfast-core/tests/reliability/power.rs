//! Whenever the power is cut, and whatever of the unsynced data has got to the disk by then, the
//! dataset is the old one or the new one.

use std::sync::Arc;

use mmfast_core::indexed::Prefix;
use mmfast_core::vfs::Vfs;
use mmfast_core::vfs::faults::{Fault, FaultyDisk};
use mmfast_core::vfs::power::{Recording, RecordingDisk, Remains};

use crate::jobs::{self, Job};
use crate::{figures, folder};

const SEED: u32 = 20;
/// Of so many repairs one is cut short as well, everywhere.
const REPAIRS_PER_CUT_REPAIR: u64 = 16;
/// Ids stand so often in the data that files have several blocks of 4 KiB.
const SEVERAL_BLOCKS: usize = 1500;

/// Runs a job on a disk whose record is then cut at every point, and the same with some of the
/// repairs; `limit` is for [`Recording::visit`]. The job meets a fault at the given call as well. Returns
/// how many states were checked, and whether there was such a call.
fn cut_everywhere(job: &Job, limit: u64, fault: Fault, call: u64) -> (u64, bool) {
    let before = folder();
    let at = Prefix::new(before.path().join("a")).unwrap();
    (job.prepare)(&at);
    let disk = Arc::new(RecordingDisk::over(before.path()).unwrap());
    let faulty = Arc::new(FaultyDisk::over(
        Arc::<RecordingDisk>::clone(&disk),
        fault,
        call,
    ));
    let vfs: Arc<dyn Vfs> = Arc::<FaultyDisk>::clone(&faulty);
    let done = (job.run)(vfs, &at, &|count| disk.acknowledge(count));
    assert!(faulty.has_fired() || done.is_ok(), "{}: {done:?}", job.name);

    let limit = usize::try_from(limit).unwrap();
    let mut num_states = 0;
    let mut num_repair_states = 0;
    let (after, later) = (folder(), folder());
    disk.recording().visit(limit, SEED, |remains| {
        let repair = require_sound(job, after.path(), remains, remains.acknowledged);
        num_states += 1;
        if num_states % REPAIRS_PER_CUT_REPAIR == 0 {
            num_repair_states += repair.recording().visit(limit / 4, SEED, |half_repaired| {
                require_sound(job, later.path(), half_repaired, remains.acknowledged);
            });
        }
    });
    (num_states + num_repair_states, faulty.has_fired())
}

/// Checks what a power cut left; returns the disk on which it was repaired.
fn require_sound(
    job: &Job,
    folder: &std::path::Path,
    remains: &Remains,
    promised: u64,
) -> Arc<RecordingDisk> {
    remains.write_to(folder).unwrap();
    let at = Prefix::new(folder.join("a")).unwrap();
    let disk = Arc::new(RecordingDisk::over(folder).unwrap());
    if let Err(wrong) = (job.check)(Arc::<RecordingDisk>::clone(&disk), &at, promised) {
        panic!("{}, {remains:?}: {wrong}", job.name);
    }
    disk
}

#[test]
fn whenever_the_power_is_cut_the_old_or_the_new_dataset_is_there() {
    let mut num_states = 0;
    let limit = figures::scaled(32, 256);
    for repeat in [1, SEVERAL_BLOCKS] {
        for job in jobs::all(repeat) {
            num_states += cut_everywhere(&job, limit, Fault::Error, u64::MAX).0;
        }
    }
    assert!(num_states > 300, "{num_states}");
    let result = "0 mixtures, 0 losses";
    figures::report(num_states, "states after a power cut", Some(SEED), result);
}

#[test]
fn a_power_cut_after_a_failed_write_leaves_the_old_or_the_new_dataset() {
    let mut num_states = 0;
    let step = usize::try_from(figures::scaled(9, 1)).unwrap();
    for job in jobs::all(1) {
        for call in (1..).step_by(step) {
            let (found, has_fired) = cut_everywhere(&job, 32, Fault::ShortWrite, call);
            num_states += found;
            if !has_fired {
                break;
            }
        }
    }
    let result = "0 mixtures, 0 losses";
    figures::report(num_states, "states after a power cut", Some(SEED), result);
}

/// Shows that the states do tell: what the writer relies on cannot be left out.
#[test]
fn a_power_cut_on_a_disk_that_does_not_sync_is_noticed() {
    for job in jobs::all(1) {
        for forget in [
            Recording::without_file_syncs as fn(Recording) -> Recording,
            Recording::without_folder_syncs,
        ] {
            let (before, after) = (folder(), folder());
            let at = Prefix::new(before.path().join("a")).unwrap();
            (job.prepare)(&at);
            let disk = Arc::new(RecordingDisk::over(before.path()).unwrap());
            let vfs: Arc<dyn Vfs> = Arc::<RecordingDisk>::clone(&disk);
            (job.run)(vfs, &at, &|count| disk.acknowledge(count)).unwrap();
            let mut num_wrong = 0;
            forget(disk.recording()).visit(64, SEED, |remains| {
                remains.write_to(after.path()).unwrap();
                let at = Prefix::new(after.path().join("a")).unwrap();
                let disk = Arc::new(RecordingDisk::over(after.path()).unwrap());
                num_wrong += u64::from((job.check)(disk, &at, remains.acknowledged).is_err());
            });
            assert!(num_wrong > 0, "{}", job.name);
        }
    }
}
