//! Batches made ahead of time: one thread plans the next window, one fills the next batches.
//!
//! Threads are started by the first call, so a process may fork before; a fork after it is noticed by
//! the process id, and the child starts threads of its own where the parent's delivery stood. How far
//! the threads are ahead is not part of any state.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::stream::batch::Batch;
use crate::stream::feeder::Feeder;
use crate::stream::window::WindowPlan;
use crate::stream::{Cursor, Stream};

/// What a wait came to.
#[derive(Debug)]
pub enum Poll {
    /// The next batch.
    Batch(Box<Batch>),
    /// The stream has ended.
    End,
    /// Nothing yet.
    Pending,
}

/// Delivers the batches of a stream in order.
pub struct Prefetcher {
    stream: Arc<Stream>,
    /// Position after the last delivered batch.
    delivered: Cursor,
    num_batches: usize,
    workers: Option<Workers>,
}

struct Workers {
    batches: Receiver<Result<Option<Batch>>>,
    threads: Vec<JoinHandle<()>>,
    process: u32,
}

impl Prefetcher {
    /// A prefetcher that stays up to `num_batches` (at least 1) ahead.
    pub fn new(stream: Arc<Stream>, num_batches: usize) -> Self {
        Self {
            stream,
            delivered: Cursor::default(),
            num_batches: num_batches.max(1),
            workers: None,
        }
    }

    /// The stream.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Position after the last delivered batch.
    pub fn delivered(&self) -> Cursor {
        self.delivered
    }

    /// Goes on from another position.
    pub fn seek(&mut self, cursor: Cursor) {
        self.stop();
        self.delivered = cursor;
    }

    /// Lets the threads end; they hold the data files open until then.
    pub fn stop(&mut self) {
        if let Some(workers) = self.workers.take()
            && workers.process != std::process::id()
        {
            // The threads are the parent's, and so may be the locks of the channel.
            std::mem::forget(workers);
        }
    }

    /// Waits for the next batch, for at most `timeout`. After an error or the end the same call starts
    /// anew from the last delivered batch.
    pub fn poll(&mut self, timeout: Duration) -> Result<Poll> {
        if self
            .workers
            .as_ref()
            .is_some_and(|workers| workers.process != std::process::id())
        {
            self.stop();
        }
        let workers = match self.workers.take() {
            Some(workers) => workers,
            None => self.start()?,
        };
        let workers = self.workers.insert(workers);
        match workers.batches.recv_timeout(timeout) {
            Ok(Ok(Some(batch))) => {
                self.delivered = batch.cursor;
                Ok(Poll::Batch(Box::new(batch)))
            }
            // The filler also sees an end when the planner panicked.
            Ok(Ok(None)) | Err(RecvTimeoutError::Disconnected) => {
                for thread in self.workers.take().into_iter().flat_map(|w| w.threads) {
                    if let Err(panic) = thread.join() {
                        resume_unwind(panic);
                    }
                }
                Ok(Poll::End)
            }
            Ok(Err(error)) => {
                self.stop();
                Err(error)
            }
            Err(RecvTimeoutError::Timeout) => Ok(Poll::Pending),
        }
    }

    fn start(&self) -> Result<Workers> {
        let (send_plan, plans) = sync_channel::<Result<Option<Arc<WindowPlan>>>>(1);
        let stream = Arc::clone(&self.stream);
        let first = self.delivered.window;
        let planner = spawn("mmfast-plan", move || {
            for window in first.. {
                let plan = stream.plan(window).map(|plan| plan.map(Arc::new));
                let is_last = !matches!(plan, Ok(Some(_)));
                if send_plan.send(plan).is_err() || is_last {
                    return;
                }
            }
        })?;
        let (send_batch, batches) = sync_channel(self.num_batches);
        let next_plan = move |_| plans.recv().unwrap_or(Ok(None));
        let mut feeder = Feeder::with_plans(&self.stream, self.delivered, Box::new(next_plan));
        let filler = spawn("mmfast-fill", move || {
            loop {
                let batch = feeder.next_batch();
                let is_last = !matches!(batch, Ok(Some(_)));
                if send_batch.send(batch).is_err() || is_last {
                    return;
                }
            }
        })?;
        Ok(Workers {
            batches,
            threads: vec![planner, filler],
            process: std::process::id(),
        })
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    Builder::new()
        .name(name.to_string())
        .spawn(work)
        .map_err(|error| Error::io("start", std::path::Path::new(name), error))
}
