//! What the data plane promises to survive: failing calls, power cuts, damaged files. Each test is a
//! row of `docs/reliability.md`; `make reliability` runs it at length.
#![expect(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may stop at the first surprise"
)]

mod allocations;
mod corruption;
mod draws;
mod faults;
mod figures;
mod jobs;
mod mutations;
mod power;

/// What long tests spread over.
const NUM_THREADS: usize = 2;

/// A folder for a test, in memory where the system has a place for that: no test here needs a disk
/// that is really durable.
fn folder() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// Runs a job in each thread, given its number; returns the sum of what they return.
fn in_threads(job: impl Fn(usize) -> u64 + Sync) -> u64 {
    std::thread::scope(|scope| {
        let job = &job;
        let start = |thread| scope.spawn(move || job(thread));
        let threads: Vec<_> = (0..NUM_THREADS).map(start).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    })
}
