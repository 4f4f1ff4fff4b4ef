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
        }
    }

    /// Puts a row at the end, or a state row in the place of its older self. Returns how
    /// many rows were dropped to make room.
    pub(super) fn push(&mut self, row: BootWrite) -> u64 {
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
