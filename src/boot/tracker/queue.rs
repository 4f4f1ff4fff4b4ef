//! Rows on their way to the database: bounded, in order, newest states kept.
//!
//! A state row (attempt, session) that still waits is replaced in its place by a newer one,
//! so an attempt's row always stands before its events. When the queue is full, the oldest
//! events go first, then whole attempts, the oldest first; both are counted. Synchronous; the
//! tracker holds the lock.

use std::collections::{HashMap, HashSet, VecDeque};

use uuid::Uuid;

use crate::catalog::BootWrite;

/// The queue.
#[derive(Debug)]
pub(super) struct Queue {
    rows: VecDeque<BootWrite>,
    /// Number of the row at the front, counted from the first ever pushed.
    front: u64,
    /// Where an attempt's or a session's waiting state row is.
    states: HashMap<(Uuid, Kind), u64>,
    capacity: usize,
    dropped: u64,
    /// Rows pushed since the beginning of the journal, replaced ones too.
    last: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Attempt,
    Session,
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            rows: VecDeque::new(),
            front: 0,
            states: HashMap::new(),
            capacity: capacity.max(16),
            dropped: 0,
            last: 0,
        }
    }

    /// Puts a row at the end, or a state row in the place of its older self. Returns how
    /// many rows were dropped to make room.
    pub(super) fn push(&mut self, row: BootWrite) -> u64 {
        self.last += 1;
        if let Some(key) = state_key(&row) {
            let waiting = self.states.get(&key).and_then(|&n| self.index(n));
            if let Some(older) = waiting.and_then(|i| self.rows.get_mut(i)) {
                *older = row;
                return 0;
            }
            self.states.insert(key, self.front + self.rows.len() as u64);
        }
        self.rows.push_back(row);
        if self.rows.len() > self.capacity {
            self.make_room()
        } else {
            0
        }
    }

    /// The number of the row that was pushed last, counted from the beginning.
    pub(super) const fn last(&self) -> u64 {
        self.last
    }

    /// Counts from there on.
    pub(super) const fn begin_at(&mut self, last: u64) {
        self.last = last;
    }

    /// Takes up to `most` rows from the front.
    pub(super) fn take(&mut self, most: usize) -> Vec<BootWrite> {
        let n = most.min(self.rows.len());
        let taken: Vec<BootWrite> = self.rows.drain(..n).collect();
        for row in &taken {
            if let Some(key) = state_key(row) {
                self.states.remove(&key);
            }
        }
        self.front += n as u64;
        taken
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Rows dropped since the beginning.
    pub(super) const fn dropped(&self) -> u64 {
        self.dropped
    }

    fn index(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.front)?).ok()
    }

    /// Frees a quarter, so that the work is done once in a while and not for each row.
    fn make_room(&mut self) -> u64 {
        let target = self.capacity - self.capacity / 4;
        let mut excess = self.rows.len().saturating_sub(target);
        let before = self.rows.len();
        self.rows.retain(|row| {
            let goes = excess > 0 && matches!(row, BootWrite::Event(_));
            excess -= usize::from(goes);
            !goes
        });
        if self.rows.len() > target {
            self.drop_attempts(target);
        }
        self.front = 0;
        self.states = self
            .rows
            .iter()
            .enumerate()
            .filter_map(|(i, row)| Some((state_key(row)?, i as u64)))
            .collect();
        let gone = before.saturating_sub(self.rows.len()) as u64;
        self.dropped += gone;
        gone
    }

    /// Whole attempts with all that belongs to them, and then anything.
    fn drop_attempts(&mut self, target: usize) {
        let excess = self.rows.len().saturating_sub(target);
        let doomed: HashSet<Uuid> = self
            .rows
            .iter()
            .filter_map(|row| match row {
                BootWrite::Attempt(a) => Some(a.id),
                _ => None,
            })
            .take(excess)
            .collect();
        self.rows.retain(|row| match row {
            BootWrite::Attempt(a) => !doomed.contains(&a.id),
            BootWrite::Session(s) => !doomed.contains(&s.id),
            BootWrite::Event(e) => !doomed.contains(&e.session_id),
            BootWrite::ClientBooted { .. } | BootWrite::ImageReports { .. } => true,
        });
        while self.rows.len() > self.capacity {
            self.rows.pop_front();
        }
    }
}

const fn state_key(row: &BootWrite) -> Option<(Uuid, Kind)> {
    match row {
        BootWrite::Attempt(a) => Some((a.id, Kind::Attempt)),
        BootWrite::Session(s) => Some((s.id, Kind::Session)),
        BootWrite::Event(_) | BootWrite::ClientBooted { .. } | BootWrite::ImageReports { .. } => {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Attempt, AttemptOutcome, BootEvent, BootSession, MacAddr, SessionStatus, Stage, Timestamp,
    };

    fn attempt(n: u128, stage: Stage) -> BootWrite {
        BootWrite::Attempt(Attempt {
            id: Uuid::from_u128(n),
            mac: MacAddr([0x52, 0, 0, 0, 0, 1]),
            smbios_uuid: None,
            client_id: None,
            client_name: None,
            image_name: None,
            server_id: Uuid::nil(),
            range_id: None,
            arch: None,
            client_ip: None,
            boot_server_ip: None,
            started_at: Timestamp::UNIX_EPOCH,
            ended_at: None,
            last_stage: stage,
            outcome: AttemptOutcome::Open,
            reason: None,
            disk_bytes_read: 0,
            disk_bytes_written: 0,
            version_id: None,
            version_name: None,
        })
    }

    fn session(n: u128, status: SessionStatus) -> BootWrite {
        BootWrite::Session(BootSession {
            id: Uuid::from_u128(n),
            client_id: Uuid::nil(),
            image_id: Uuid::nil(),
            started_at: Timestamp::UNIX_EPOCH,
            ended_at: None,
            status,
            boot_time_seconds: None,
            error_message: None,
            client_ip: None,
            boot_server_ip: None,
        })
    }

    fn event(n: u128, k: i64) -> BootWrite {
        BootWrite::Event(BootEvent {
            session_id: Uuid::from_u128(n),
            at: Timestamp::UNIX_EPOCH + chrono::TimeDelta::seconds(k),
            stage: Stage::Offer,
            detail: serde_json::json!({}),
        })
    }

    #[test]
    fn a_newer_state_takes_the_place_of_the_older() {
        let mut queue = Queue::new(100);
        queue.push(attempt(1, Stage::Discover));
        queue.push(event(1, 1));
        queue.push(session(1, SessionStatus::Starting));
        queue.push(attempt(1, Stage::Up));
        queue.push(session(1, SessionStatus::Running));
        assert_eq!(queue.take(1), [attempt(1, Stage::Up)], "before its events");
        // It has gone to the writer: the next state is a row of its own.
        queue.push(attempt(1, Stage::Bye));
        assert_eq!(
            queue.take(10),
            [
                event(1, 1),
                session(1, SessionStatus::Running),
                attempt(1, Stage::Bye)
            ]
        );
        assert_eq!((queue.len(), queue.dropped()), (0, 0));
    }

    #[test]
    fn the_oldest_events_go_first_and_states_stay() {
        let mut queue = Queue::new(20);
        queue.push(attempt(1, Stage::Discover));
        let dropped: u64 = (0..100).map(|k| queue.push(event(1, k))).sum();
        queue.push(attempt(1, Stage::Up));
        assert!(dropped > 0 && queue.len() <= 20);
        assert_eq!(queue.dropped(), dropped);
        let rows = queue.take(100);
        assert_eq!(rows.len() as u64 + dropped, 101);
        assert_eq!(rows.first(), Some(&attempt(1, Stage::Up)));
        assert_eq!(rows.last(), Some(&event(1, 99)));
        // Numbers hold after room was made.
        queue.push(attempt(2, Stage::Discover));
        queue.push(attempt(2, Stage::Up));
        assert_eq!(queue.take(9), [attempt(2, Stage::Up)]);
    }

    #[test]
    fn too_many_attempts_go_whole() {
        let mut queue = Queue::new(20);
        for n in 0..50 {
            queue.push(attempt(n, Stage::Discover));
            queue.push(session(n, SessionStatus::Starting));
        }
        assert!(queue.len() <= 20);
        let rows = queue.take(100);
        for row in &rows {
            if let BootWrite::Session(s) = row {
                let its = |r: &BootWrite| matches!(r, BootWrite::Attempt(a) if a.id == s.id);
                assert!(rows.iter().any(its), "a session without its attempt");
            }
        }
        assert_eq!(rows.last(), Some(&session(49, SessionStatus::Starting)));
    }
}
