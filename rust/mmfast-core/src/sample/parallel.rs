//! Threads that wait for the next call, and teams of them that work on the parts of one row.
//!
//! To start a thread takes half of the time that a row of a large vocabulary takes, to wake one that sleeps a
//! seventh; so threads stay, and look out for work for a while before they sleep. One call has them at a time,
//! another runs on its own thread meanwhile. A fork takes no threads along: a child notices and starts its own.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::apart::{Affinity, Tid, allow, keep_off_this_processor, this_thread};

/// How long a thread looks out for work before it sleeps.
const PATIENCE: Duration = Duration::from_micros(200);
/// Looks between two chances given to other threads.
const LOOKS: u32 = 64;

/// What a thread is to do, given its number.
type Work = *const (dyn Fn(usize) + Sync);

/// A thread and the place where it finds its work.
struct Worker {
    desk: Arc<Desk>,
    thread: Thread,
}

/// Work, and where the thread is allowed to run from now on if that changes.
struct Task {
    work: Work,
    affinity: Option<Affinity>,
}

struct Desk {
    /// Whether `task` is the thread's, and the caller waits.
    is_busy: AtomicBool,
    task: UnsafeCell<Option<Task>>,
    /// The thread while it sleeps.
    sleeper: Mutex<Option<Tid>>,
    /// What the work has panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[expect(unsafe_code, reason = "a pointer to work that outlives its use")]
// SAFETY: `task` is touched by the caller while the desk is not busy, by the thread while it is; what it points to
// is shared by all threads and is there until none of their desks is busy.
unsafe impl Send for Desk {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl Sync for Desk {}

struct Pool {
    workers: UnsafeCell<Vec<Worker>>,
    /// Process that has the pool for a call, 0 for none.
    holder: AtomicU32,
    /// Process whose threads the workers are.
    home: AtomicU32,
}

#[expect(unsafe_code, reason = "the workers are the holder's")]
// SAFETY: they are touched by who has put its process in `holder`, and nobody else does until it is taken out.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool {
    workers: UnsafeCell::new(Vec::new()),
    holder: AtomicU32::new(0),
    home: AtomicU32::new(0),
};

/// This thread and others, until dropped.
pub(super) struct Threads {
    /// Workers that are used beside this thread; the pool is held if there are any.
    num_others: usize,
}

impl Threads {
    /// This thread and up to `num_threads - 1` others.
    pub(super) fn take(num_threads: usize) -> Self {
        let wanted = num_threads.saturating_sub(1);
        if wanted == 0 {
            return Self { num_others: 0 };
        }
        let process = std::process::id();
        let holder = POOL.holder.load(Ordering::Relaxed);
        // A holder from before a fork is not among us.
        let is_free = holder != process
            && POOL
                .holder
                .compare_exchange(holder, process, Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
        if !is_free {
            return Self { num_others: 0 };
        }
        #[expect(unsafe_code, reason = "the workers are the holder's")]
        // SAFETY: this process, and this thread of it, has just become the holder.
        let workers = unsafe { &mut *POOL.workers.get() };
        if POOL.home.swap(process, Ordering::Relaxed) != process {
            // Their threads, if any, were left behind by a fork, and may have been anywhere.
            std::mem::forget(std::mem::take(workers));
        }
        while workers.len() < wanted {
            match Worker::start(workers.len() + 1) {
                Some(worker) => workers.push(worker),
                None => break,
            }
        }
        let num_others = wanted.min(workers.len());
        if num_others == 0 {
            POOL.holder.store(0, Ordering::Release);
        }
        Self { num_others }
    }

    /// How many there are, at least one.
    pub(super) fn len(&self) -> usize {
        1 + self.num_others
    }

    /// Calls `work` on each thread at once, with the threads' numbers.
    pub(super) fn run(&mut self, work: &(dyn Fn(usize) + Sync)) {
        let workers: &[Worker] = if self.num_others == 0 {
            &[]
        } else {
            #[expect(unsafe_code, reason = "the workers are the holder's")]
            // SAFETY: this is the holder, as there are others.
            let workers = unsafe { &*POOL.workers.get() };
            workers.get(..self.num_others).unwrap_or_default()
        };
        #[expect(unsafe_code, reason = "threads that live longer are lent the work")]
        // SAFETY: only the lifetime is changed; this function does not return, nor unwind, before no worker has it.
        let lent: Work = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Work>(work) };
        for worker in workers {
            worker.begin(lent);
        }
        let own = catch_unwind(AssertUnwindSafe(|| work(0)));
        let others = workers.iter().map(Worker::finish).fold(None, Option::or);
        if let Some(panic) = others.or(own.err()) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if self.num_others > 0 {
            POOL.holder.store(0, Ordering::Release);
        }
    }
}

impl Worker {
    fn start(number: usize) -> Option<Self> {
        let desk = Arc::new(Desk {
            is_busy: AtomicBool::new(false),
            task: UnsafeCell::new(None),
            sleeper: Mutex::new(None),
            panic: Mutex::new(None),
        });
        let own = Arc::clone(&desk);
        let handle = thread::Builder::new()
            .name(format!("mmfast-sample-{number}"))
            .spawn(move || {
                loop {
                    own.do_next(number);
                }
            });
        let thread = handle.ok()?.thread().clone();
        Some(Self { desk, thread })
    }

    fn begin(&self, work: Work) {
        let sleeper = *unpoisoned(&self.desk.sleeper);
        let affinity = sleeper.and_then(keep_off_this_processor);
        #[expect(unsafe_code, reason = "the desk is the caller's")]
        // SAFETY: it is not busy, as every run waits until none is.
        unsafe {
            *self.desk.task.get() = Some(Task { work, affinity });
        }
        self.desk.is_busy.store(true, Ordering::Release);
        self.thread.unpark();
    }

    /// Waits for the end of the work; what the thread has panicked with.
    fn finish(&self) -> Option<Box<dyn Any + Send>> {
        wait_until(|| !self.desk.is_busy.load(Ordering::Acquire));
        unpoisoned(&self.desk.panic).take()
    }
}

impl Desk {
    fn do_next(&self, number: usize) {
        self.wait();
        #[expect(unsafe_code, reason = "the desk is the thread's")]
        // SAFETY: it is busy, so the work is there, and stays until it is not.
        let done = unsafe {
            let task = (*self.task.get()).take();
            catch_unwind(AssertUnwindSafe(|| {
                if let Some(Task { work, affinity }) = task {
                    affinity.iter().for_each(allow);
                    (*work)(number);
                }
            }))
        };
        if let Err(panic) = done {
            *unpoisoned(&self.panic) = Some(panic);
        }
        self.is_busy.store(false, Ordering::Release);
    }

    /// Looks out for work, then sleeps until there is some.
    fn wait(&self) {
        let is_busy = || self.is_busy.load(Ordering::Acquire);
        let end = Instant::now() + PATIENCE;
        wait_until(|| is_busy() || Instant::now() > end);
        if !is_busy() {
            *unpoisoned(&self.sleeper) = Some(this_thread());
            while !is_busy() {
                thread::park();
            }
            *unpoisoned(&self.sleeper) = None;
        }
    }
}

/// Looks until it is so, giving way to other threads now and then.
fn wait_until(is_so: impl Fn() -> bool) {
    let mut looks = 0_u32;
    while !is_so() {
        spin_loop();
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(LOOKS) {
            thread::yield_now();
        }
    }
}

/// Threads that work on the parts of one thing, a job at a time, each on a part of its own: one leads, the others
/// follow.
pub(super) struct Team<P, J> {
    hands: Vec<Hand<P, J>>,
    /// Jobs given out; [`CLOSED`] once the leader has gone.
    round: AtomicUsize,
    /// Followers that have done the last one.
    num_done: AtomicUsize,
}

/// Where a follower finds its part and the job, and leaves the part when that is done.
type Hand<P, J> = Mutex<Option<(P, J)>>;

const CLOSED: usize = usize::MAX;

impl<P, J: Copy> Team<P, J> {
    /// A leader and so many followers.
    pub(super) fn new(num_followers: usize) -> Self {
        Self {
            hands: (0..num_followers).map(|_| Mutex::new(None)).collect(),
            round: AtomicUsize::new(0),
            num_done: AtomicUsize::new(0),
        }
    }

    /// Members.
    pub(super) fn len(&self) -> usize {
        1 + self.hands.len()
    }

    /// Does what the leader does, whose end sends the followers home.
    pub(super) fn lead(&self, work: impl FnOnce()) {
        let _closing = OnDrop(|| self.round.store(CLOSED, Ordering::Release));
        work();
    }

    /// Does jobs until the leader has gone; followers count from 0.
    pub(super) fn follow(&self, follower: usize, work: impl Fn(&mut P, J)) {
        let mut last = 0;
        loop {
            wait_until(|| self.round.load(Ordering::Acquire) != last);
            last = self.round.load(Ordering::Acquire);
            let Some(hand) = self.hands.get(follower).filter(|_| last != CLOSED) else {
                return;
            };
            // However the work ends, the leader must not wait for ever.
            let _telling = OnDrop(|| {
                self.num_done.fetch_add(1, Ordering::Release);
            });
            let given = unpoisoned(hand).take();
            if let Some((mut part, job)) = given {
                work(&mut part, job);
                *unpoisoned(hand) = Some((part, job));
            }
        }
    }
}

/// The leader's side of a team: at least one part, and at most one for each member.
pub(super) struct Crew<'a, P, J> {
    pub(super) parts: Vec<P>,
    work: &'a dyn Fn(&mut P, J),
    team: &'a Team<P, J>,
}

impl<'a, P, J: Copy> Crew<'a, P, J> {
    pub(super) fn new(parts: Vec<P>, work: &'a dyn Fn(&mut P, J), team: &'a Team<P, J>) -> Self {
        Self { parts, work, team }
    }

    /// Has the job done on every part.
    pub(super) fn run(&mut self, job: J) {
        let given = self.parts.drain(1..).zip(&self.team.hands);
        given.for_each(|(part, hand)| *unpoisoned(hand) = Some((part, job)));
        self.team.num_done.store(0, Ordering::Relaxed);
        self.team.round.fetch_add(1, Ordering::Release);
        for own in &mut self.parts {
            (self.work)(own, job);
        }
        let num_followers = self.team.hands.len();
        let num_done = &self.team.num_done;
        wait_until(|| num_done.load(Ordering::Acquire) == num_followers);
        for hand in &self.team.hands {
            self.parts
                .extend(unpoisoned(hand).take().map(|(part, _)| part));
        }
    }
}

/// Does something in the end, however that comes.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Threads of the pool, which other tests may hold.
    fn take(num_threads: usize) -> Threads {
        loop {
            let threads = Threads::take(num_threads);
            if threads.len() == num_threads {
                return threads;
            }
            thread::yield_now();
        }
    }

    #[test]
    fn every_thread_works_once_a_run() {
        for num_threads in 1..5 {
            let mut threads = take(num_threads);
            for _ in 0..3 {
                let calls: Vec<_> = (0..num_threads).map(|_| AtomicUsize::new(0)).collect();
                threads.run(&|thread| {
                    calls[thread].fetch_add(1, Ordering::Relaxed);
                });
                assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_that_has_slept_may_run_where_it_could_before() {
        let mut threads = take(2);
        let mut processors = || {
            let found = Mutex::new(None);
            threads.run(&|thread| {
                if thread == 1 {
                    *found.lock().unwrap() = rustix::thread::sched_getaffinity(None).ok();
                }
            });
            found.into_inner().unwrap()
        };
        let before = processors();
        for _ in 0..20 {
            thread::sleep(10 * PATIENCE);
            assert_eq!(processors(), before);
        }
    }

    #[test]
    fn a_pool_that_is_taken_leaves_a_call_on_its_own_thread() {
        let threads = take(3);
        assert_eq!(Threads::take(2).len(), 1);
        drop(threads);
        assert_eq!(take(2).len(), 2);
    }

    #[test]
    fn a_panic_comes_out_and_the_threads_work_on() {
        for panicking in 0..3 {
            let mut threads = take(3);
            let run = AssertUnwindSafe(|| {
                threads.run(&|thread| assert_ne!(thread, panicking, "here"));
            });
            assert!(catch_unwind(run).is_err());
            let calls = AtomicUsize::new(0);
            threads.run(&|_| {
                calls.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(calls.into_inner(), 3);
        }
    }

    #[test]
    fn a_crew_does_every_job_on_every_part_in_order() {
        for (num_threads, num_parts) in [(1, 1), (2, 2), (4, 4), (4, 2)] {
            let mut threads = take(num_threads);
            let team = Team::new(num_threads - 1);
            let work = |part: &mut Vec<u32>, job: u32| part.push(job);
            let found = Mutex::new(Vec::new());
            threads.run(&|thread| match thread.checked_sub(1) {
                None => team.lead(|| {
                    let parts = (0..num_parts).map(|part| vec![part]).collect();
                    let mut crew = Crew::new(parts, &work, &team);
                    (10..13).for_each(|job| crew.run(job));
                    *found.lock().unwrap() = crew.parts;
                }),
                Some(follower) => team.follow(follower, work),
            });
            let expected: Vec<_> = (0..num_parts).map(|part| vec![part, 10, 11, 12]).collect();
            assert_eq!(found.into_inner().unwrap(), expected);
        }
    }

    #[test]
    fn a_follower_that_panics_ends_the_run() {
        let mut threads = take(2);
        let team = Team::new(1);
        let run = AssertUnwindSafe(|| {
            threads.run(&|thread| match thread.checked_sub(1) {
                None => team.lead(|| {
                    let mut crew = Crew::new(vec![0, 1], &|_, ()| (), &team);
                    crew.run(());
                    assert_eq!(crew.parts, [0]);
                }),
                Some(follower) => team.follow(follower, |_, ()| panic!("here")),
            });
        });
        assert!(catch_unwind(run).is_err());
    }
}
