//! What may wait, off a connection's own thread: cold reads, flushes, FUA, discards. Threads
//! are made when there is work and go when there is none; each connection has its own few, so
//! that one slow disk holds up nobody else. It answers through the connection's outlet, in
//! whatever order things get done.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::connection::{Batch, Serving, WORKER_SEND};
use super::machine::request::Stable;
use super::wire::transmission::{Last, Request};

/// Threads of one connection.
const THREADS: usize = 8;
/// Jobs that wait or run, of one connection; then its requests wait in the socket.
const JOBS: usize = 128;
/// Bytes of payload that wait, of one connection.
const BYTES: usize = 512 * 1024;
/// A thread without work goes after this.
const IDLE: Duration = Duration::from_secs(5);
/// Bytes of a worker's stack; a device's own calls need some.
const STACK: usize = 512 * 1024;

/// A request, or the rest of one, for a worker.
#[derive(Debug)]
pub(super) enum Job {
    /// Read on from `done` bytes after the request's offset.
    Read {
        request: Request,
        done: u32,
        whole: Last,
    },
    /// Write with FUA.
    Write {
        request: Request,
        data: Vec<u8>,
    },
    /// Flush, then answer the request, whatever it is.
    Flush(Request),
    Trim(Request, Stable),
    Zeroes {
        request: Request,
        keep_space: bool,
        stable: Stable,
    },
    Cache(Request),
    Status {
        request: Request,
        most: usize,
    },
}

impl Job {
    const fn bytes(&self) -> usize {
        match self {
            Self::Write { data, .. } => data.len(),
            _ => 0,
        }
    }
}

/// A connection's jobs.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    queue: Mutex<Queue>,
    /// There is work, or no more will come.
    ready: Condvar,
    /// Something was done.
    done: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Job>,
    bytes: usize,
    running: usize,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all are done, then lets the threads go.
    pub(super) fn finish(&self) {
        let mut queue = self.lock();
        while !queue.waiting.is_empty() || queue.running > 0 {
            queue = wait(&self.done, queue);
        }
        queue.closed = true;
        self.ready.notify_all();
    }
}

fn wait<'a>(on: &Condvar, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
    on.wait(queue).unwrap_or_else(PoisonError::into_inner)
}

/// Hands a job over; waits if there are too many. Gives it back if there is no thread for it.
pub(super) fn hand_over(serving: &Arc<Serving>, job: Job) -> Result<(), Job> {
    let jobs = &serving.jobs;
    let mut queue = jobs.lock();
    while queue.waiting.len() + queue.running >= JOBS
        || (queue.bytes > 0 && queue.bytes + job.bytes() > BYTES)
    {
        queue = wait(&jobs.done, queue);
    }
    if queue.idle <= queue.waiting.len() && queue.threads < THREADS {
        let serving = serving.clone();
        let made = std::thread::Builder::new()
            .name("nbd-worker".to_owned())
            .stack_size(STACK)
            .spawn(move || work(&serving));
        match made {
            Ok(_) => queue.threads += 1,
            Err(_) if queue.threads > 0 => {}
            Err(error) => {
                tracing::warn!(%error, "can't start a thread for a disk's slow requests");
                return Err(job);
            }
        }
    }
    queue.bytes += job.bytes();
    queue.waiting.push_back(job);
    drop(queue);
    jobs.ready.notify_one();
    Ok(())
}

/// Counts a job as done, also when a device's panic ends the thread.
struct Running<'a> {
    jobs: &'a Jobs,
    bytes: usize,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut queue = self.jobs.lock();
        queue.running -= 1;
        queue.bytes -= self.bytes;
        if std::thread::panicking() {
            queue.threads -= 1;
        }
        self.jobs.done.notify_all();
    }
}

fn work(serving: &Arc<Serving>) {
    let jobs = &serving.jobs;
    let mut batch = Batch::new(WORKER_SEND);
    loop {
        let mut queue = jobs.lock();
        let job = loop {
            if let Some(job) = queue.waiting.pop_front() {
                break job;
            }
            if queue.closed {
                return;
            }
            queue.idle += 1;
            let (back, timeout) = jobs
                .ready
                .wait_timeout(queue, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            queue = back;
            queue.idle -= 1;
            if timeout.timed_out() && queue.waiting.is_empty() {
                queue.threads -= 1;
                return;
            }
        };
        queue.running += 1;
        drop(queue);
        let running = Running {
            jobs,
            bytes: job.bytes(),
        };
        serving.finish(job, &mut batch);
        drop(running);
    }
}
