//! The threads of one session for what may wait: cold reads, flushes, much unmapping. Made
//! when needed, gone when idle; their number is bounded, and a session has its own, so that
//! nobody waits for another machine's disk.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Threads of one session.
const MOST: usize = 4;
/// An idle thread ends after this.
const IDLE: Duration = Duration::from_secs(10);

/// Who sets it first has the last word on a task: the worker that answers it, or the task
/// management that aborts it, and then it is never answered.
pub type Settled = Arc<AtomicBool>;

/// The work for one task.
pub type Work = Box<dyn FnOnce(&Settled) + Send>;

/// Which task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// Initiator task tag.
    pub tag: u32,
    /// It came outside of the command window.
    pub immediate: bool,
}

struct Job {
    tag: Tag,
    settled: Settled,
    work: Work,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    running: Vec<(Tag, Settled)>,
    threads: usize,
    idle: usize,
    ending: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    done: Condvar,
}

/// The pool.
#[derive(Default, Clone)]
pub struct Workers {
    shared: Arc<Shared>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Workers {
    /// Queues work for a task. `work` answers unless it was aborted.
    pub fn queue(&self, tag: Tag, work: Work) {
        let mut state = self.shared.lock();
        state.queue.push_back(Job {
            tag,
            settled: Settled::default(),
            work,
        });
        if state.idle > 0 {
            self.shared.work.notify_one();
            return;
        }
        if state.threads >= MOST {
            return;
        }
        state.threads += 1;
        drop(state);
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new()
            .name("iscsi-io".into())
            .stack_size(512 * 1024)
            .spawn(move || serve(&shared));
        if thread.is_err() {
            let mut state = self.shared.lock();
            state.threads -= 1;
            if state.threads == 0
                && let Some(job) = state.queue.pop_back()
            {
                // No thread at all: it is done here, and the session waits.
                drop(state);
                (job.work)(&job.settled);
            }
        }
    }

    /// Tasks that are here.
    pub fn load(&self) -> usize {
        let state = self.shared.lock();
        state.queue.len() + state.running.len()
    }

    /// Aborts a task: when this returns it does nothing any more and is never answered.
    /// `None` if it is not here, or was answered already.
    pub fn abort(&self, tag: u32) -> Option<Tag> {
        let mut state = self.shared.lock();
        if let Some(at) = state.queue.iter().position(|j| j.tag.tag == tag) {
            return state.queue.remove(at).map(|j| j.tag);
        }
        let (found, settled) = state.running.iter().find(|(t, _)| t.tag == tag)?;
        let aborted = (!settled.swap(true, Ordering::AcqRel)).then_some(*found);
        while state.running.iter().any(|(t, _)| t.tag == tag) {
            state = self.wait(state);
        }
        aborted
    }

    /// Aborts all; returns which, when none of them does anything any more.
    pub fn abort_all(&self) -> Vec<Tag> {
        let mut state = self.shared.lock();
        let mut aborted: Vec<Tag> = state.queue.drain(..).map(|j| j.tag).collect();
        let running = state.running.iter();
        aborted.extend(
            running
                .filter(|(_, settled)| !settled.swap(true, Ordering::AcqRel))
                .map(|(tag, _)| *tag),
        );
        while !state.running.is_empty() {
            state = self.wait(state);
        }
        aborted
    }

    /// Waits until all is done.
    pub fn drain(&self) {
        let mut state = self.shared.lock();
        while !state.running.is_empty() || !state.queue.is_empty() {
            state = self.wait(state);
        }
    }

    /// Ends the threads once the queue is done.
    pub fn end(&self) {
        self.shared.lock().ending = true;
        self.shared.work.notify_all();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let done = &self.shared.done;
        done.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if let Some(job) = state.queue.pop_front() {
            state.running.push((job.tag, job.settled.clone()));
            drop(state);
            (job.work)(&job.settled);
            state = shared.lock();
            let own = |r: &(Tag, Settled)| Arc::ptr_eq(&r.1, &job.settled);
            if let Some(at) = state.running.iter().position(own) {
                state.running.swap_remove(at);
            }
            shared.done.notify_all();
            continue;
        }
        if state.ending {
            break;
        }
        state.idle += 1;
        let (next, timeout) = shared
            .work
            .wait_timeout(state, IDLE)
            .unwrap_or_else(PoisonError::into_inner);
        state = next;
        state.idle -= 1;
        if timeout.timed_out() && state.queue.is_empty() {
            break;
        }
    }
    state.threads -= 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn an_aborted_task_does_nothing_any_more() {
        let workers = Workers::default();
        let (started, has_started) = mpsc::channel();
        let ended = Settled::default();
        let note = ended.clone();
        let tag = Tag {
            tag: 1,
            immediate: false,
        };
        workers.queue(
            tag,
            Box::new(move |settled| {
                started.send(()).unwrap();
                while !settled.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                note.store(true, Ordering::Release);
            }),
        );
        has_started.recv().unwrap();
        assert_eq!(workers.abort(1), Some(tag));
        assert!(ended.load(Ordering::Acquire), "it has ended");
        assert_eq!(workers.abort(1), None);
        assert!(workers.abort_all().is_empty());
        workers.drain();
        workers.end();
    }
}
