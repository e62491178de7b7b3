//! Work shared out over threads that end with it, so that a fork finds none.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::scope;

/// Does the work on every item, each on a thread of its own, the first on this one.
pub(super) fn for_each<T: Send>(items: impl Iterator<Item = T>, work: impl Fn(T) + Sync) {
    let mut items = items;
    let Some(own) = items.next() else {
        return;
    };
    let mut others = items.peekable();
    if others.peek().is_none() {
        return work(own);
    }
    scope(|scope| {
        for item in others {
            let work = &work;
            scope.spawn(move || work(item));
        }
        work(own);
    });
}

/// Parts of one thing and a thread for each, this one for the first; they do one job after another.
pub(super) struct Crew<'a, P, J> {
    pub(super) parts: Vec<P>,
    work: &'a (dyn Fn(&mut P, J) + Sync),
    others: Vec<Hand<P, J>>,
}

/// A thread of a crew.
struct Hand<P, J> {
    jobs: Sender<(P, J)>,
    done: Receiver<P>,
}

impl<P, J: Copy> Crew<'_, P, J> {
    /// Has the job done on every part.
    pub(super) fn run(&mut self, job: J) {
        let others = self.parts.drain(1..).zip(&self.others);
        // A thread that is gone has panicked, which the end of its scope tells.
        others.for_each(|(part, hand)| drop(hand.jobs.send((part, job))));
        for own in &mut self.parts {
            (self.work)(own, job);
        }
        let done = self.others.iter().filter_map(|hand| hand.done.recv().ok());
        self.parts.extend(done);
    }
}

/// Calls `lead` with a crew for the parts, of which there is at least one; what it returns, and the parts.
pub(super) fn with_crew<P: Send, J: Copy + Send, R>(
    parts: Vec<P>,
    work: &(dyn Fn(&mut P, J) + Sync),
    lead: impl FnOnce(&mut Crew<'_, P, J>) -> R,
) -> (R, Vec<P>) {
    scope(|scope| {
        let others = parts.iter().skip(1).map(|_| {
            let (jobs, waiting) = channel::<(P, J)>();
            let (finished, done) = channel();
            scope.spawn(move || {
                for (mut part, job) in waiting {
                    work(&mut part, job);
                    drop(finished.send(part));
                }
            });
            Hand { jobs, done }
        });
        let others = others.collect();
        let mut crew = Crew {
            parts,
            work,
            others,
        };
        let found = lead(&mut crew);
        // The channels close with the crew, and the threads end.
        (found, crew.parts)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_item_is_worked_on_once() {
        for num_items in 0..5 {
            let mut items = vec![0_usize; num_items];
            let calls = AtomicUsize::new(0);
            for_each(items.iter_mut().enumerate(), |(place, item)| {
                *item += place + 1;
                calls.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(items, (1..=num_items).collect::<Vec<_>>());
            assert_eq!(calls.into_inner(), num_items);
        }
    }

    #[test]
    fn a_crew_does_every_job_on_every_part_in_order() {
        for num_parts in 1..5 {
            let work = |part: &mut Vec<u32>, job: u32| part.push(job);
            let parts: Vec<_> = (0..num_parts).map(|part| vec![part]).collect();
            let (sum, parts) = with_crew(parts, &work, |crew| {
                (10..13).for_each(|job| crew.run(job));
                crew.parts.len()
            });
            assert_eq!(sum, parts.len());
            for (number, part) in (0..num_parts).zip(parts) {
                assert_eq!(part, [number, 10, 11, 12]);
            }
        }
    }
}
