//! Operations in order: per machine and per address, one after another; the rest beside each
//! other. It only orders: what an operation does is the committer's business.

use std::collections::{HashSet, VecDeque};
use std::net::Ipv4Addr;

use super::{BATCH, Operation};
use crate::model::{Lease, MacAddr};

/// What operations are ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Machine(MacAddr),
    Address(Ipv4Addr),
    /// All leases: nothing else runs meanwhile.
    Everything,
}

/// Operations that have not begun, and what those hold that have.
pub(super) struct Line<T> {
    pub(super) waiting: VecDeque<Operation<T>>,
    pub(super) busy: HashSet<Key>,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            busy: HashSet::new(),
        }
    }
}

pub(super) struct Job<T> {
    pub(super) keys: Vec<Key>,
    pub(super) task: Task<T>,
}

pub(super) enum Task<T> {
    /// All of them sure, or none.
    Store {
        batch: Vec<(Lease, T)>,
        sure: bool,
    },
    Other(Operation<T>),
}

impl<T> Operation<T> {
    pub(super) fn keys(&self) -> Vec<Key> {
        match self {
            Self::Store { lease, .. } => vec![Key::Machine(lease.mac), Key::Address(lease.address)],
            Self::End(ending) => vec![Key::Machine(ending.mac), Key::Address(ending.address)],
            Self::Quarantine(lease) => vec![Key::Address(lease.address)],
            Self::Reread(addresses, _) => addresses.iter().copied().map(Key::Address).collect(),
            Self::RereadAll(_) | Self::FollowClock => vec![Key::Everything],
        }
    }
}

impl<T> Line<T> {
    /// Such an operation waits, or may be under way.
    pub(super) fn follows_clock(&self) -> bool {
        let follows = |o: &Operation<T>| matches!(o, Operation::FollowClock);
        self.busy.contains(&Key::Everything) || self.waiting.iter().any(follows)
    }

    /// The next piece of work that disturbs no other: all leases that may be stored now, or
    /// else one operation of another kind.
    pub(super) fn next(&mut self, idle: bool) -> Option<Job<T>> {
        if self.busy.contains(&Key::Everything) {
            return None;
        }
        let mut batch = Vec::new();
        let mut all_sure = None;
        let mut batch_keys = Vec::new();
        // What waits before it blocks an operation as well as what runs.
        let mut blocked: HashSet<Key> = HashSet::new();
        let mut kept = VecDeque::with_capacity(self.waiting.len());
        let mut other = None;
        while let Some(operation) = self.waiting.pop_front() {
            if matches!(operation, Operation::RereadAll(_) | Operation::FollowClock) {
                if idle && batch.is_empty() && kept.is_empty() {
                    batch_keys = operation.keys();
                    self.busy.extend(&batch_keys);
                    other = Some(operation);
                } else {
                    kept.push_back(operation);
                }
                break;
            }
            let keys = operation.keys();
            let free = keys
                .iter()
                .all(|key| !self.busy.contains(key) && !blocked.contains(key));
            match operation {
                Operation::Store {
                    lease,
                    sure,
                    ticket,
                } if free && batch.len() < BATCH && all_sure.is_none_or(|all| all == sure) => {
                    all_sure = Some(sure);
                    self.busy.extend(&keys);
                    batch_keys.extend(keys);
                    batch.push((*lease, ticket));
                }
                operation if free && batch.is_empty() => {
                    self.busy.extend(&keys);
                    batch_keys = keys;
                    other = Some(operation);
                    break;
                }
                operation => {
                    blocked.extend(keys);
                    kept.push_back(operation);
                }
            }
        }
        kept.append(&mut self.waiting);
        self.waiting = kept;
        if let Some(operation) = other {
            return Some(Job {
                keys: batch_keys,
                task: Task::Other(operation),
            });
        }
        (!batch.is_empty()).then_some(Job {
            keys: batch_keys,
            task: Task::Store {
                batch,
                sure: all_sure.unwrap_or_default(),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ending;
    use super::*;
    use crate::model::{LeaseState, Timestamp};
    use uuid::Uuid;

    fn store(mac: u8, address: u8, ticket: u32) -> Operation<u32> {
        Operation::Store {
            lease: Box::new(Lease {
                address: Ipv4Addr::new(10, 0, 0, address),
                range_id: Uuid::nil(),
                mac: MacAddr([2, 0, 0, 0, 0, mac]),
                client_identifier: None,
                hostname: None,
                state: LeaseState::Active,
                starts_at: Timestamp::UNIX_EPOCH,
                length_seconds: 60,
                relay_information: None,
            }),
            sure: true,
            ticket,
        }
    }

    fn tickets(job: Option<Job<u32>>) -> Vec<u32> {
        match job.map(|job| job.task) {
            Some(Task::Store { batch, .. }) => {
                batch.into_iter().map(|(_, ticket)| ticket).collect()
            }
            _ => Vec::new(),
        }
    }

    #[test]
    fn one_machine_and_one_address_at_a_time() {
        let mut line = Line::default();
        line.waiting.extend([
            store(1, 1, 1),
            store(2, 2, 2),
            store(1, 3, 3), // the same machine
            store(3, 2, 4), // the same address
            store(4, 3, 5), // behind the one that waits for its machine
            store(5, 5, 6),
        ]);
        let first = line.next(true).unwrap();
        let keys = first.keys.clone();
        assert_eq!(tickets(Some(first)), [1, 2, 6]);
        assert!(line.next(false).is_none());
        for key in keys {
            line.busy.remove(&key);
        }
        assert_eq!(tickets(line.next(true)), [3, 4]);
    }

    #[test]
    fn reading_all_is_done_alone() {
        let mut line = Line::default();
        line.waiting
            .extend([store(1, 1, 1), Operation::RereadAll(None), store(2, 2, 2)]);
        assert_eq!(tickets(line.next(true)), [1]);
        assert!(line.next(false).is_none(), "it waits for what runs");
        let alone = line.next(true).unwrap();
        assert!(matches!(alone.task, Task::Other(Operation::RereadAll(_))));
    }

    #[test]
    fn a_release_waits_for_its_machine() {
        let mut line = Line::default();
        line.waiting.extend([
            store(1, 1, 1),
            Operation::End(Ending {
                address: Ipv4Addr::new(10, 0, 0, 1),
                mac: MacAddr([2, 0, 0, 0, 0, 1]),
                state: LeaseState::Released,
                at: Timestamp::UNIX_EPOCH,
                length_seconds: 0,
            }),
        ]);
        let first = line.next(true).unwrap();
        assert!(line.next(false).is_none());
        for key in &first.keys {
            line.busy.remove(key);
        }
        assert!(matches!(
            line.next(true).unwrap().task,
            Task::Other(Operation::End(_))
        ));
    }
}
