//! Who has a transfer: one seat for each, all of them counted. Plain bookkeeping behind one
//! short lock; knows no socket.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::metrics::Silence;

/// How many transfers there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// In all.
    pub transfers: usize,
    /// Of one address. Behind a router that translates addresses many machines share one.
    pub per_source: usize,
    /// Of one address, that nobody has acknowledged yet. This bounds what a forged address
    /// makes us send to its owner.
    pub unconfirmed_per_source: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            transfers: 4096,
            per_source: 1024,
            unconfirmed_per_source: 64,
        }
    }
}

/// A transfer lives that long without progress before the same request from the same port
/// counts as a machine that started again, not as a packet that came twice.
const STALE: Duration = Duration::from_secs(1);

/// The two ends of a transfer: a client's port and the address of ours that it asked.
type Key = (SocketAddrV4, Ipv4Addr);

/// All seats; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    caps: Caps,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    seats: HashMap<Key, Entry>,
    sources: HashMap<Ipv4Addr, Source>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    request: Box<[u8]>,
    superseded: Arc<AtomicBool>,
    /// Time of its last sign of life, once it is confirmed.
    alive_at: Option<Duration>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Source {
    seats: usize,
    unconfirmed: usize,
}

impl Seats {
    pub(super) fn new(caps: Caps) -> Self {
        Self {
            caps,
            table: Arc::default(),
        }
    }

    /// Takes a seat for a request, or says why there is none. `now` counts from the server's
    /// start, as in [`Seat::alive`].
    pub(super) fn take(
        &self,
        client: SocketAddrV4,
        server: Ipv4Addr,
        request: &[u8],
        now: Duration,
    ) -> Result<Seat, Silence> {
        let mut table = self.lock();
        let key = (client, server);
        if let Some(entry) = table.seats.get(&key) {
            let stale = entry
                .alive_at
                .is_some_and(|at| now.saturating_sub(at) >= STALE);
            if *entry.request == *request && !stale {
                return Err(Silence::Repeated);
            }
            entry.superseded.store(true, Ordering::Relaxed);
            table.leave(key);
        }
        if table.seats.len() >= self.caps.transfers {
            return Err(Silence::Full);
        }
        let source = table.sources.get(client.ip()).copied().unwrap_or_default();
        if source.seats >= self.caps.per_source {
            return Err(Silence::SourceFull);
        }
        if source.unconfirmed >= self.caps.unconfirmed_per_source {
            return Err(Silence::SourceUnconfirmed);
        }
        let source = table.sources.entry(*client.ip()).or_default();
        source.seats += 1;
        source.unconfirmed += 1;
        table.next += 1;
        let number = table.next;
        let superseded = Arc::new(AtomicBool::new(false));
        table.seats.insert(
            key,
            Entry {
                number,
                request: request.into(),
                superseded: Arc::clone(&superseded),
                alive_at: None,
            },
        );
        Ok(Seat {
            seats: self.clone(),
            key,
            number,
            superseded,
        })
    }

    /// Seats taken.
    pub(super) fn taken(&self) -> usize {
        self.lock().seats.len()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while it holds the lock; if it did, the counts would still be whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn leave(&mut self, key: Key) {
        let Some(entry) = self.seats.remove(&key) else {
            return;
        };
        let address = *key.0.ip();
        let Some(source) = self.sources.get_mut(&address) else {
            return;
        };
        source.seats = source.seats.saturating_sub(1);
        if entry.alive_at.is_none() {
            source.unconfirmed = source.unconfirmed.saturating_sub(1);
        }
        if source.seats == 0 {
            self.sources.remove(&address);
        }
    }
}

/// A seat; dropped, it is free again.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    key: Key,
    number: u64,
    superseded: Arc<AtomicBool>,
}

impl Seat {
    /// True once another request has taken this seat.
    pub(super) fn is_superseded(&self) -> bool {
        self.superseded.load(Ordering::Relaxed)
    }

    /// The client is really there (`now` from the server's start).
    pub(super) fn alive(&self, now: Duration) {
        let mut table = self.seats.lock();
        let Some(entry) = table.seats.get_mut(&self.key) else {
            return;
        };
        if entry.number != self.number {
            return;
        }
        if entry.alive_at.replace(now).is_none()
            && let Some(source) = table.sources.get_mut(self.key.0.ip())
        {
            source.unconfirmed = source.unconfirmed.saturating_sub(1);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut table = self.seats.lock();
        if table
            .seats
            .get(&self.key)
            .is_some_and(|e| e.number == self.number)
        {
            table.leave(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    fn client(host: u8, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, host), port)
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_repeated_request_gets_no_second_transfer() {
        let seats = Seats::new(Caps::default());
        let seat = seats.take(client(2, 2000), SERVER, b"a", at(0)).unwrap();
        let again = |now| seats.take(client(2, 2000), SERVER, b"a", at(now));
        assert_eq!(again(5000).unwrap_err(), Silence::Repeated);
        seat.alive(at(5000));
        assert_eq!(again(5999).unwrap_err(), Silence::Repeated);
        // A machine that was reset asks the same from the same port.
        let newer = again(6000).unwrap();
        assert!(seat.is_superseded());
        drop(seat);
        assert_eq!(seats.taken(), 1);
        drop(newer);
        assert_eq!(seats.taken(), 0);
        assert!(seats.lock().sources.is_empty());
    }

    #[test]
    fn another_request_from_the_same_port_takes_over() {
        let seats = Seats::new(Caps::default());
        let probe = seats.take(client(2, 2070), SERVER, b"a", at(0)).unwrap();
        let real = seats.take(client(2, 2070), SERVER, b"b", at(1)).unwrap();
        assert!(probe.is_superseded() && !real.is_superseded());
        drop(probe);
        assert_eq!(seats.taken(), 1);
    }

    #[test]
    fn caps_hold() {
        let seats = Seats::new(Caps {
            transfers: 4,
            per_source: 3,
            unconfirmed_per_source: 2,
        });
        let take = |host, port| seats.take(client(host, port), SERVER, b"a", at(0));
        let one = take(2, 1).unwrap();
        let two = take(2, 2).unwrap();
        assert_eq!(take(2, 3).unwrap_err(), Silence::SourceUnconfirmed);
        one.alive(at(1));
        two.alive(at(1));
        let three = take(2, 3).unwrap();
        assert_eq!(take(2, 4).unwrap_err(), Silence::SourceFull);
        let four = take(3, 1).unwrap();
        assert_eq!(take(3, 2).unwrap_err(), Silence::Full);
        drop((one, two, three, four));
        assert!(seats.lock().sources.is_empty());
    }
}
