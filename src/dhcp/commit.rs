//! The lease committer: an ACK leaves only when its lease is durable.
//!
//! Leases are gathered for a millisecond, or not at all where [`ENOUGH`] wait already, and
//! stored in one transaction. A transaction costs as much as some tens of leases: a second one
//! begins beside the first only when [`MANY`] wait. Order holds per machine
//! and per address: an operation waits while an earlier one on the same MAC or address is
//! not done. Releases, declines and re-reads of what other servers wrote go the same way, so
//! that the address book never takes an older row for a newer one.
//!
//! Accepted: when the database does not answer in time, it is not known whether the leases
//! were stored. Nothing is acknowledged then, and all leases are read again as soon as the
//! database answers.

use std::collections::{HashSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::metrics::DhcpMetrics;
use super::pool::Book;
use crate::catalog::{Catalog, CatalogError};
use crate::model::{Lease, LeaseState, MacAddr, Timestamp};

/// Leases in one transaction, at most.
const BATCH: usize = 512;

/// Transactions under way at once: while one waits for the disk the next one is filled. More
/// would make them smaller, not faster.
const LANES: usize = 2;

/// Operations that make a batch worth its transaction: nothing more is waited for.
const ENOUGH: usize = 16;

/// Operations that make a second transaction worth its while.
const MANY: usize = 64;

/// How long the first lease of a batch waits for company.
const GATHER: Duration = Duration::from_millis(1);

/// After this a client has asked again: the answer would come too late to be of use.
const PATIENCE: Duration = Duration::from_secs(5);

/// Something to do on leases, in order.
#[derive(Debug)]
pub(super) enum Operation<T> {
    /// Store a lease, then say so to whoever holds the ticket.
    Store { lease: Box<Lease>, ticket: T },
    /// The machine gave its lease back, or found the address in use.
    End(Ending),
    /// Keep an address out that a stranger uses. It is in the book already, so that even
    /// with the database away nobody is offered it.
    Quarantine(Box<Lease>),
    /// Other servers wrote these.
    Reread(Vec<Ipv4Addr>),
    /// Anybody may have written anything.
    RereadAll,
}

/// The end of a lease.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    pub(super) address: Ipv4Addr,
    pub(super) mac: MacAddr,
    pub(super) state: LeaseState,
    pub(super) at: Timestamp,
    /// For a declined address: how long it is kept out.
    pub(super) length_seconds: u32,
}

/// What became of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Durable.
    Stored,
    /// Another machine holds the address.
    Taken,
    /// The database did not take it, or did not say.
    NotStored,
}

/// Who hears the verdicts of a batch.
pub(super) type Report<T> = Arc<dyn Fn(Vec<(T, Verdict)>) + Send + Sync>;

/// The committer; cheap to clone into its tasks.
pub(super) struct Committer<T> {
    pub(super) catalog: Catalog,
    pub(super) server_id: Uuid,
    pub(super) book: Arc<Mutex<Book>>,
    pub(super) metrics: DhcpMetrics,
    pub(super) report: Report<T>,
    /// Addresses that the book knows of, to forget those whose rows are gone.
    pub(super) known: Arc<Mutex<HashSet<Ipv4Addr>>>,
}

impl<T> Clone for Committer<T> {
    fn clone(&self) -> Self {
        Self {
            catalog: self.catalog.clone(),
            server_id: self.server_id,
            book: self.book.clone(),
            metrics: self.metrics.clone(),
            report: self.report.clone(),
            known: self.known.clone(),
        }
    }
}

/// What operations are ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Machine(MacAddr),
    Address(Ipv4Addr),
    /// All leases: nothing else runs meanwhile.
    Everything,
}

/// How a task ended.
struct Done {
    keys: Vec<Key>,
    health: Health,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    /// It is not known what was written.
    Uncertain,
}

impl<T: Send + 'static> Committer<T> {
    /// Works until it is cancelled and what was taken in by then is done.
    pub(super) async fn run(
        self,
        mut operations: mpsc::Receiver<Operation<T>>,
        cancel: CancellationToken,
    ) {
        let mut line = Line::default();
        let mut running: JoinSet<Done> = JoinSet::new();
        let mut taken = Vec::with_capacity(BATCH);
        let mut uncertain = false;
        let mut open = true;
        while open || !running.is_empty() || !line.waiting.is_empty() {
            let room = running.len() < LANES && line.waiting.len() < BATCH;
            tokio::select! {
                count = operations.recv_many(&mut taken, BATCH), if open && room => {
                    open = count > 0;
                    if open && count < ENOUGH {
                        tokio::time::sleep(GATHER).await;
                    }
                    if open {
                        while taken.len() < BATCH && let Ok(more) = operations.try_recv() {
                            taken.push(more);
                        }
                    }
                    line.waiting.extend(taken.drain(..));
                }
                Some(done) = running.join_next(), if !running.is_empty() => {
                    // A task that panicked keeps its keys busy: better silent on those
                    // machines than out of order.
                    if let Ok(done) = done {
                        for key in done.keys {
                            line.busy.remove(&key);
                        }
                        match done.health {
                            Health::Uncertain => uncertain = true,
                            Health::Good if uncertain => {
                                uncertain = false;
                                line.waiting.push_back(Operation::RereadAll);
                            }
                            Health::Good => {}
                        }
                    }
                }
                () = cancel.cancelled(), if open => {
                    operations.close();
                    while let Ok(last) = operations.try_recv() {
                        line.waiting.push_back(last);
                    }
                    open = false;
                }
            }
            while running.is_empty() || (running.len() < LANES && line.waiting.len() >= MANY) {
                let Some(job) = line.next(running.is_empty()) else {
                    break;
                };
                let committer = self.clone();
                running.spawn(async move { committer.work(job).await });
            }
        }
    }

    async fn work(self, job: Job<T>) -> Done {
        let keys = job.keys;
        let health = match job.task {
            Task::Store(batch) => self.store(batch).await,
            Task::Other(Operation::End(ending)) => self.end(ending).await,
            Task::Other(Operation::Quarantine(lease)) => self.quarantine(*lease).await,
            Task::Other(Operation::Reread(addresses)) => self.reread(&addresses).await,
            Task::Other(Operation::RereadAll) => self.reread_all().await,
            Task::Other(Operation::Store { lease, ticket }) => {
                self.store(vec![(*lease, ticket)]).await
            }
        };
        Done { keys, health }
    }

    async fn store(&self, batch: Vec<(Lease, T)>) -> Health {
        let (leases, tickets): (Vec<Lease>, Vec<T>) = batch.into_iter().unzip();
        let (verdicts, health) = self.store_rows(&leases).await;
        (self.report)(tickets.into_iter().zip(verdicts).collect());
        health
    }

    async fn store_rows(&self, leases: &[Lease]) -> (Vec<Verdict>, Health) {
        match self.commit(leases).await {
            Ok(stored) => self.take_over(leases, &stored).await,
            Err(error @ (CatalogError::Refused { .. } | CatalogError::Conflict { .. }))
                if leases.len() > 1 =>
            {
                // One row that breaks a rule (its range was changed a moment ago) must not
                // cost the others their answer.
                tracing::debug!(leases = leases.len(), %error, "batch refused, storing one by one");
                let mut verdicts = Vec::with_capacity(leases.len());
                let mut health = Health::Good;
                for lease in leases {
                    let one = std::slice::from_ref(lease);
                    let (verdict, after) = Box::pin(self.store_rows(one)).await;
                    verdicts.extend(verdict);
                    if after == Health::Uncertain {
                        health = after;
                    }
                }
                (verdicts, health)
            }
            Err(error) => {
                tracing::warn!(leases = leases.len(), %error, "leases not stored, nothing acknowledged");
                (vec![Verdict::NotStored; leases.len()], Health::Uncertain)
            }
        }
    }

    async fn commit(&self, leases: &[Lease]) -> Result<Vec<bool>, CatalogError> {
        self.in_time(self.catalog.commit_leases(leases, self.server_id))
            .await
    }

    /// Brings the book up to what was stored and what was not.
    async fn take_over(&self, leases: &[Lease], stored: &[bool]) -> (Vec<Verdict>, Health) {
        let mut refused = Vec::new();
        let mut verdicts = Vec::with_capacity(leases.len());
        {
            let mut book = lock(&self.book);
            let mut known = lock(&self.known);
            for (lease, stored) in leases.iter().zip(stored) {
                if *stored {
                    known.insert(lease.address);
                    book.put(lease.clone());
                    verdicts.push(Verdict::Stored);
                } else {
                    book.unhold(lease.range_id, lease.mac);
                    refused.push(lease.address);
                    verdicts.push(Verdict::Taken);
                }
            }
        }
        self.metrics.batch_stored(leases.len() - refused.len());
        if refused.is_empty() {
            return (verdicts, Health::Good);
        }
        // Whoever has them must be in the book before the client asks again.
        let health = self.reread(&refused).await;
        (verdicts, health)
    }

    async fn end(&self, ending: Ending) -> Health {
        let ended = self
            .in_time(self.catalog.end_lease(
                ending.address,
                ending.mac,
                ending.state,
                ending.at,
                ending.length_seconds,
            ))
            .await;
        match ended {
            Ok(true) => self.reread(&[ending.address]).await,
            Ok(false) => Health::Good,
            Err(error) => {
                tracing::warn!(
                    client.mac = %ending.mac, address = %ending.address, state = %ending.state, %error,
                    "the end of a lease was not stored"
                );
                Health::Uncertain
            }
        }
    }

    async fn quarantine(&self, lease: Lease) -> Health {
        let address = lease.address;
        lock(&self.known).insert(address);
        let stored = self
            .in_time(self.catalog.commit_leases(&[lease], self.server_id))
            .await;
        match stored {
            Ok(_) => self.reread(&[address]).await,
            Err(error) => {
                tracing::warn!(%address, %error, "a quarantine was not stored");
                Health::Uncertain
            }
        }
    }

    async fn reread(&self, addresses: &[Ipv4Addr]) -> Health {
        match self
            .in_time(self.catalog.list_leases(Some(addresses)))
            .await
        {
            Ok(rows) => {
                self.replace(addresses.iter().copied().collect(), rows);
                Health::Good
            }
            Err(error) => {
                tracing::warn!(%error, "leases could not be read again");
                Health::Uncertain
            }
        }
    }

    /// Reads every lease, before anything is served; `false` if the database does not answer.
    pub(super) async fn read_all(&self) -> bool {
        self.reread_all().await == Health::Good
    }

    /// Reads every lease; alone, so that none is written meanwhile by us.
    async fn reread_all(&self) -> Health {
        match self.catalog.list_leases(None).await {
            Ok(rows) => {
                let before = lock(&self.known).clone();
                self.replace(before, rows);
                Health::Good
            }
            Err(error) => {
                tracing::warn!(%error, "leases could not be read again");
                Health::Uncertain
            }
        }
    }

    /// Takes rows in; forgets what was asked for and has no row.
    fn replace(&self, asked: HashSet<Ipv4Addr>, rows: Vec<Lease>) {
        let mut gone = asked;
        let mut book = lock(&self.book);
        let mut known = lock(&self.known);
        for lease in &rows {
            gone.remove(&lease.address);
        }
        // First the removals: a machine that has moved has one address at any time.
        for address in gone {
            known.remove(&address);
            book.remove(address);
        }
        for lease in rows {
            known.insert(lease.address);
            book.put(lease);
        }
    }

    async fn in_time<R>(
        &self,
        query: impl Future<Output = Result<R, CatalogError>>,
    ) -> Result<R, CatalogError> {
        tokio::time::timeout(PATIENCE, query)
            .await
            .unwrap_or_else(|_| Err(CatalogError::Unavailable("no answer in time".to_owned())))
    }
}

/// Operations that have not begun, and what those hold that have.
struct Line<T> {
    waiting: VecDeque<Operation<T>>,
    busy: HashSet<Key>,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            busy: HashSet::new(),
        }
    }
}

struct Job<T> {
    keys: Vec<Key>,
    task: Task<T>,
}

enum Task<T> {
    Store(Vec<(Lease, T)>),
    Other(Operation<T>),
}

impl<T> Operation<T> {
    fn keys(&self) -> Vec<Key> {
        match self {
            Self::Store { lease, .. } => vec![Key::Machine(lease.mac), Key::Address(lease.address)],
            Self::End(ending) => vec![Key::Machine(ending.mac), Key::Address(ending.address)],
            Self::Quarantine(lease) => vec![Key::Address(lease.address)],
            Self::Reread(addresses) => addresses.iter().copied().map(Key::Address).collect(),
            Self::RereadAll => vec![Key::Everything],
        }
    }
}

impl<T> Line<T> {
    /// The next piece of work that disturbs no other: all leases that may be stored now, or
    /// else one operation of another kind.
    fn next(&mut self, idle: bool) -> Option<Job<T>> {
        if self.busy.contains(&Key::Everything) {
            return None;
        }
        let mut batch = Vec::new();
        let mut batch_keys = Vec::new();
        // What waits before it blocks an operation as well as what runs.
        let mut blocked: HashSet<Key> = HashSet::new();
        let mut kept = VecDeque::with_capacity(self.waiting.len());
        let mut other = None;
        while let Some(operation) = self.waiting.pop_front() {
            if matches!(operation, Operation::RereadAll) {
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
                Operation::Store { lease, ticket } if free && batch.len() < BATCH => {
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
            task: Task::Store(batch),
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ticket,
        }
    }

    fn tickets(job: Option<Job<u32>>) -> Vec<u32> {
        match job.map(|job| job.task) {
            Some(Task::Store(batch)) => batch.into_iter().map(|(_, ticket)| ticket).collect(),
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
            .extend([store(1, 1, 1), Operation::RereadAll, store(2, 2, 2)]);
        assert_eq!(tickets(line.next(true)), [1]);
        assert!(line.next(false).is_none(), "it waits for what runs");
        let alone = line.next(true).unwrap();
        assert!(matches!(alone.task, Task::Other(Operation::RereadAll)));
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
