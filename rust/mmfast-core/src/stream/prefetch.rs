//! Batches made ahead of time: one thread plans the next window, one fills the next batches. Or, with
//! nothing made ahead, all of it in the calling thread.
//!
//! Batches are filled into memory that the caller lends, and come back with it; so no more is made ahead
//! than there is memory for. Threads are started by the first call, so a process may fork before; a fork
//! after it is noticed by the process id, and the child starts threads of its own where the parent's
//! delivery stood. How far the threads are ahead is not part of any state.

use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::stream::arrays::BatchMemory;
use crate::stream::batch::Batch;
use crate::stream::feeder::{Feeder, Skips};
use crate::stream::packing::Packing;
use crate::stream::state::State;
use crate::stream::window::WindowPlan;
use crate::stream::{Cursor, Stream};

/// What a wait came to.
#[derive(Debug)]
pub enum Poll<M> {
    /// The next batch.
    Batch(Box<Batch<M>>),
    /// The stream has ended.
    End,
    /// Nothing yet.
    Pending,
}

/// Delivers the batches of a stream in order.
pub struct Prefetcher<M> {
    stream: Arc<Stream>,
    /// Position after the last delivered batch.
    delivered: Cursor,
    /// Plan of that position's window, if it is known.
    planned: Option<Arc<WindowPlan>>,
    /// Number of this process among those that take turns, and what it passes over for the others.
    turn: u32,
    skips: Skips,
    num_batches: usize,
    /// Lent and not yet given to a worker.
    lent: VecDeque<M>,
    worker: Option<Worker<M>>,
}

enum Worker<M> {
    /// The calling thread.
    Here(Box<Feeder>),
    Threads(Threads<M>),
}

struct Threads<M> {
    memory: Sender<M>,
    /// Sets of arrays that are with the threads, filled or not.
    num_lent: usize,
    batches: Receiver<Result<Option<Batch<M>>>>,
    handles: Vec<JoinHandle<()>>,
    process: u32,
}

impl<M: BatchMemory> Prefetcher<M> {
    /// A prefetcher that stays up to `num_batches` ahead.
    pub fn new(stream: Arc<Stream>, num_batches: usize) -> Self {
        Self {
            stream,
            delivered: Cursor::default(),
            planned: None,
            turn: 0,
            skips: Skips::default(),
            num_batches,
            lent: VecDeque::new(),
            worker: None,
        }
    }

    /// Position after the last delivered batch.
    pub fn delivered(&self) -> Cursor {
        self.delivered
    }

    /// Goes on from a saved state; an error that says what differs if it is of another stream.
    pub fn resume(&mut self, state: &State) -> Result<()> {
        let (cursor, plan) = self.stream.resume(state)?;
        self.seek(cursor);
        self.planned = plan.map(Arc::new);
        Ok(())
    }

    /// Goes on from another position.
    pub fn seek(&mut self, cursor: Cursor) {
        self.stop();
        self.delivered = cursor;
        self.planned = None;
        self.skips.next = self.turn;
    }

    /// From the current position on, delivers only the batches of one of `count` processes: batch number
    /// `turn` and every `count`-th after it.
    pub fn take_turns(&mut self, turn: u32, count: u32) -> Result<()> {
        if turn >= count {
            return Err(Error::argument(format!(
                "turn {turn} is not below the number of turns, {count}"
            )));
        }
        self.stop();
        self.turn = turn;
        self.skips = Skips {
            next: turn,
            after_each: count - 1,
        };
        Ok(())
    }

    /// Lets the threads end; they hold the data files open until then.
    pub fn stop(&mut self) {
        if let Some(Worker::Threads(threads)) = self.worker.take()
            && threads.process != std::process::id()
        {
            // The threads are the parent's, and so may be the locks of the channels.
            std::mem::forget(threads);
        }
    }

    /// How many sets of arrays should be lent before the next [`Self::poll`].
    pub fn num_wanted(&mut self) -> usize {
        self.leave_parent();
        let lent = match &self.worker {
            Some(Worker::Threads(threads)) => threads.num_lent,
            _ => 0,
        };
        // One is filled while the others wait.
        (self.num_batches + 1).saturating_sub(lent + self.lent.len())
    }

    /// Lends memory for a batch to come.
    pub fn lend(&mut self, memory: M) {
        self.lent.push_back(memory);
    }

    /// Waits for the next batch, for at most `timeout`. After an error or the end the same call starts
    /// anew from the last delivered batch.
    pub fn poll(&mut self, timeout: Duration) -> Result<Poll<M>> {
        self.leave_parent();
        let worker = match self.worker.take() {
            Some(worker) => worker,
            None => self.start()?,
        };
        match self.worker.insert(worker) {
            Worker::Here(feeder) => {
                let mut memory = self.lent.pop_front().ok_or_else(nothing_lent)?;
                match feeder.next_batch(&mut memory) {
                    Ok(Some(facts)) => {
                        self.delivered = facts.cursor;
                        self.skips.next = self.skips.after_each;
                        Ok(Poll::Batch(Box::new(Batch { memory, facts })))
                    }
                    Ok(None) => {
                        self.worker = None;
                        Ok(Poll::End)
                    }
                    Err(error) => {
                        self.worker = None;
                        Err(error)
                    }
                }
            }
            Worker::Threads(threads) => {
                for memory in self.lent.drain(..) {
                    // A thread that has ended takes none, and says so with its last batch.
                    threads.num_lent += usize::from(threads.memory.send(memory).is_ok());
                }
                match threads.batches.recv_timeout(timeout) {
                    Ok(Ok(Some(batch))) => {
                        threads.num_lent -= 1;
                        self.delivered = batch.facts.cursor;
                        self.skips.next = self.skips.after_each;
                        Ok(Poll::Batch(Box::new(batch)))
                    }
                    // The filler also sees an end when the planner panicked.
                    Ok(Ok(None)) | Err(RecvTimeoutError::Disconnected) => {
                        self.join();
                        Ok(Poll::End)
                    }
                    Ok(Err(error)) => {
                        self.stop();
                        Err(error)
                    }
                    Err(RecvTimeoutError::Timeout) => Ok(Poll::Pending),
                }
            }
        }
    }

    /// Waits for threads that have come to an end, and passes on a panic.
    fn join(&mut self) {
        if let Some(Worker::Threads(threads)) = self.worker.take() {
            // Threads that wait for memory or for a taker end once these are gone.
            drop((threads.memory, threads.batches));
            for thread in threads.handles {
                if let Err(panic) = thread.join() {
                    resume_unwind(panic);
                }
            }
        }
    }

    /// Forgets the threads of a parent process.
    fn leave_parent(&mut self) {
        if let Some(Worker::Threads(threads)) = &self.worker
            && threads.process != std::process::id()
        {
            self.stop();
        }
    }

    fn start(&mut self) -> Result<Worker<M>> {
        let (stream, cursor, skips) = (&self.stream, self.delivered, self.skips);
        let mut planned = self.planned.take();
        if self.num_batches == 0 {
            let feeder = Feeder::starting_with(stream, cursor, planned, skips);
            return Ok(Worker::Here(Box::new(feeder)));
        }
        let mut handles = Vec::new();
        let mut feeder = if stream.config.packing == Packing::None {
            // Plans of single documents are not worth a thread.
            Feeder::starting_with(stream, cursor, planned, skips)
        } else {
            let (send_plan, plans) = std::sync::mpsc::sync_channel(1);
            let planner = Arc::clone(stream);
            handles.push(spawn("mmfast-plan", move || {
                for window in cursor.window.. {
                    let plan = match planned.take() {
                        Some(plan) => Ok(Some(plan)),
                        None => planner.plan(window).map(|plan| plan.map(Arc::new)),
                    };
                    let is_last = !matches!(plan, Ok(Some(_)));
                    if send_plan.send(plan).is_err() || is_last {
                        return;
                    }
                }
            })?);
            let next_plan = move |_| plans.recv().unwrap_or(Ok(None));
            Feeder::with_plans(stream, cursor, Box::new(next_plan), skips)
        };
        let (memory, lent) = channel::<M>();
        let (send_batch, batches) = channel();
        handles.push(spawn("mmfast-fill", move || {
            while let Ok(mut memory) = lent.recv() {
                let filled = feeder.next_batch(&mut memory);
                let is_last = !matches!(filled, Ok(Some(_)));
                let batch = filled.map(|facts| facts.map(|facts| Batch { memory, facts }));
                if send_batch.send(batch).is_err() || is_last {
                    return;
                }
            }
        })?);
        Ok(Worker::Threads(Threads {
            memory,
            num_lent: 0,
            batches,
            handles,
            process: std::process::id(),
        }))
    }
}

impl<M> Drop for Prefetcher<M> {
    fn drop(&mut self) {
        if let Some(Worker::Threads(threads)) = self.worker.take()
            && threads.process != std::process::id()
        {
            std::mem::forget(threads);
        }
    }
}

fn nothing_lent() -> Error {
    Error::argument("no memory was lent for the next batch")
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    Builder::new()
        .name(name.to_string())
        .spawn(work)
        .map_err(|error| Error::io("start", std::path::Path::new(name), error))
}
