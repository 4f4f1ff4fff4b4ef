//! One connection, as others than its own thread see it: asked for a sign of life, closed.

use std::fmt;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use super::lun::lock;
use super::metrics::Ending;
use super::output::{Numbering, Output};
use super::wire::NO_TAG;
use super::wire::answer::Answer;
use crate::boot::disks::Line;

/// The connection of a session.
pub struct Connection {
    /// The socket.
    pub stream: Arc<TcpStream>,
    /// From where.
    pub peer: SocketAddr,
    output: Mutex<Output>,
    /// Tags of pings: the last sent, the last answered.
    asked: AtomicU32,
    answered: Mutex<u32>,
    heard: Condvar,
    /// Pings were answered before: this initiator can.
    can_answer: AtomicBool,
    /// Why it was closed from outside; 0: it was not.
    closed: AtomicU8,
    ended: Mutex<bool>,
    end: Condvar,
}

impl Connection {
    /// Of a socket and what it sends.
    pub fn new(stream: Arc<TcpStream>, peer: SocketAddr, output: Output) -> Self {
        Self {
            stream,
            peer,
            output: Mutex::new(output),
            asked: AtomicU32::new(0),
            answered: Mutex::new(0),
            heard: Condvar::new(),
            can_answer: AtomicBool::new(false),
            closed: AtomicU8::new(0),
            ended: Mutex::new(false),
            end: Condvar::new(),
        }
    }

    /// What it sends.
    pub fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a ping; returns its tag.
    pub fn ping(&self, output: &mut Output) -> u32 {
        // The highest bit is clear, so that it is never the tag that stands for none.
        let tag = self.asked.fetch_add(1, Ordering::Relaxed).wrapping_add(1) & 0x7fff_ffff;
        output.push(Answer::nop_in(NO_TAG, tag, 0), Numbering::Next, &[]);
        output.flush();
        tag
    }

    /// A ping was answered.
    pub fn ponged(&self, tag: u32) {
        self.can_answer.store(true, Ordering::Relaxed);
        *lock(&self.answered) = tag;
        self.heard.notify_all();
    }

    /// True if this initiator has ever answered a ping.
    pub fn answers_pings(&self) -> bool {
        self.can_answer.load(Ordering::Relaxed)
    }

    /// Breaks the connection off, for that reason.
    pub fn close_for(&self, why: Ending) {
        let code = match why {
            Ending::Reinstated => 1,
            Ending::Stopped => 2,
            Ending::Reset => 3,
            _ => 4,
        };
        let _ = self
            .closed
            .compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Why it was closed from outside, if it was.
    pub fn closed_for(&self) -> Option<Ending> {
        match self.closed.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Ending::Reinstated),
            2 => Some(Ending::Stopped),
            3 => Some(Ending::Reset),
            _ => Some(Ending::Fenced),
        }
    }

    /// The session has ended: nothing of it is under way any more.
    pub fn has_ended(&self) {
        *lock(&self.ended) = true;
        self.end.notify_all();
    }

    /// Waits until the session has ended; false if it has not by then.
    pub fn wait_for_end(&self, patience: Duration) -> bool {
        let guard = lock(&self.ended);
        let (guard, _) = self
            .end
            .wait_timeout_while(guard, patience, |ended| !*ended)
            .unwrap_or_else(PoisonError::into_inner);
        *guard
    }
}

/// True if a ping's tag is that one or a later one. Several may be asked at a time, and whoever
/// waits for the first may wake up when a later one was answered, too.
const fn is_since(answered: u32, tag: u32) -> bool {
    answered.wrapping_sub(tag) & 0x7fff_ffff < 0x4000_0000
}

impl Line for Connection {
    fn answers(&self, patience: Duration) -> bool {
        if self.closed_for().is_some() {
            return false;
        }
        let tag = match self.output.try_lock() {
            Ok(mut output) => self.ping(&mut output),
            Err(TryLockError::Poisoned(_)) => return false,
            // It is being sent to, which may take a moment or for ever.
            Err(TryLockError::WouldBlock) => {
                std::thread::sleep(patience.min(Duration::from_millis(50)));
                match self.output.try_lock() {
                    Ok(mut output) => self.ping(&mut output),
                    Err(_) => return false,
                }
            }
        };
        let guard = lock(&self.answered);
        let (guard, _) = self
            .heard
            .wait_timeout_while(guard, patience, |answered| !is_since(*answered, tag))
            .unwrap_or_else(PoisonError::into_inner);
        is_since(*guard, tag)
    }

    fn close(&self) {
        self.close_for(Ending::Fenced);
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_answer_is_a_sign_of_life_and_an_earlier_one_is_none() {
        for (answered, tag, since) in [
            (7, 7, true),
            (8, 7, true),
            (6, 7, false),
            (0, 1, false),
            (0, 0x7fff_ffff, true),
            (0x7fff_ffff, 0, false),
        ] {
            assert_eq!(is_since(answered, tag), since, "{answered} {tag}");
        }
    }
}
