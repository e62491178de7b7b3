//! Where a sleeping thread is woken: not on the processor of who wakes it and goes on working itself.
//!
//! Left alone, Linux looks for an idle processor, but in a virtual machine it passes over those whose host has put
//! them to sleep (`available_idle_cpu` in the kernel's scheduler), and the two then take turns on one until the
//! next balancing, milliseconds later. So the woken thread may not run there, until it runs.

#[cfg(target_os = "linux")]
pub(super) use linux::{Affinity, Tid, allow, keep_off_this_processor, this_thread};

#[cfg(not(target_os = "linux"))]
pub(super) use elsewhere::{Affinity, Tid, allow, keep_off_this_processor, this_thread};

#[cfg(target_os = "linux")]
mod linux {
    use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

    /// Processors that a thread may run on.
    pub(in super::super) type Affinity = CpuSet;
    /// A thread, for others.
    pub(in super::super) type Tid = rustix::thread::Pid;

    pub(in super::super) fn this_thread() -> Tid {
        gettid()
    }

    /// Where the thread could run before, if that is another place now; it is to be allowed that again.
    pub(in super::super) fn keep_off_this_processor(thread: Tid) -> Option<Affinity> {
        let before = sched_getaffinity(Some(thread)).ok()?;
        let here = sched_getcpu();
        // More processors than a set holds are no case for this.
        if here >= CpuSet::MAX_CPU || !before.is_set(here) || before.count() < 2 {
            return None;
        }
        let mut others = before;
        others.unset(here);
        sched_setaffinity(Some(thread), &others).ok()?;
        Some(before)
    }

    /// Lets this thread run there; what does not work (processors that are gone) stays as it is.
    pub(in super::super) fn allow(affinity: &Affinity) {
        sched_setaffinity(None, affinity).ok();
    }
}

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    pub(in super::super) type Affinity = ();
    pub(in super::super) type Tid = ();

    pub(in super::super) fn this_thread() -> Tid {}

    pub(in super::super) fn keep_off_this_processor((): Tid) -> Option<Affinity> {
        None
    }

    pub(in super::super) fn allow((): &Affinity) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::thread::{CpuSet, sched_getaffinity};
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_is_kept_off_one_processor_until_it_is_allowed_there_again() {
        let ((tell_id, id), (tell_affinity, affinity)) = (channel(), channel());
        thread::scope(|scope| {
            let sleeper = scope.spawn(move || {
                tell_id.send(this_thread()).unwrap();
                let before: Option<CpuSet> = affinity.recv().unwrap();
                before.iter().for_each(allow);
                sched_getaffinity(None).unwrap()
            });
            let id = id.recv().unwrap();
            let all = sched_getaffinity(Some(id)).unwrap();
            let before = keep_off_this_processor(id);
            assert_eq!(before.is_some(), all.count() > 1);
            if before.is_some() {
                assert_eq!(
                    sched_getaffinity(Some(id)).unwrap().count(),
                    all.count() - 1
                );
            }
            tell_affinity.send(before).unwrap();
            assert_eq!(sleeper.join().unwrap(), all);
        });
    }
}
