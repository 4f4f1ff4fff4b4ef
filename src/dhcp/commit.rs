//! The lease committer: an ACK leaves only when its lease is durable.
//!
//! All leases that wait are stored in one transaction, and a machine that comes alone waits for
//! nobody. A transaction costs as much as some tens of leases: under load one begins no sooner than
//! [`APART`] after the last, unless [`ENOUGH`] wait, and a second one beside the first only when
//! [`MANY`] do. Order holds per machine and per address: an operation waits while an earlier one on
//! the same MAC or address is not done. Releases, declines and re-reads of what other servers wrote
//! go the same way, so that the address book never takes an older row for a newer one.
//!
//! While PostgreSQL is away, or too slow ([`HEDGE`]), leases that no other server can give away
//! are owed to it: they are durable in the [`Ledger`] on this server's own disk, are
//! acknowledged, and are paid in order when it is back. As long as anything is owed, all new
//! business is owed as well, or it would be overtaken by older.
//!
//! Accepted: of the other leases it is not known whether they were stored when the database
//! does not answer in time. They are not acknowledged then, and all leases are read again as
//! soon as the database answers.

mod line;
mod pay;
mod read;

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::line::{Job, Key, Line, Task};
use super::ledger::{Ending, Ledger, Owed};
use super::metrics::DhcpMetrics;
use super::pool::Book;
use crate::boot::tracker::Tracker;
use crate::catalog::{Catalog, CatalogError};
use crate::clock::Clock;
use crate::model::Lease;

/// Leases in one transaction, at most: their ACKs leave together, and the buffers that they meet
/// (a relay's, a load generator's) hold some 160. Larger ones are hardly cheaper.
const BATCH: usize = 128;

/// Transactions under way at once: while one waits for the disk the next one is filled. More
/// would make them smaller, not faster.
const LANES: usize = 2;

/// Operations that make a batch worth its transaction: nothing more is waited for.
const ENOUGH: usize = 48;

/// Operations that make a second transaction worth its while.
const MANY: usize = 64;

/// From the begin of a transaction to the next, where fewer wait. In whole milliseconds, and up to one
/// more, as timers here are.
const APART: Duration = Duration::from_millis(2);

/// After this a client has asked again: the answer would come too late to be of use.
const PATIENCE: Duration = Duration::from_secs(5);

/// A lease that can be owed does not wait longer for the database: the client is to have its
/// answer within 200 ms.
const HEDGE: Duration = Duration::from_millis(150);

/// An address that the database refuses without having a lease of it is left alone for so long.
const ASIDE: TimeDelta = TimeDelta::seconds(15);

/// Between two tries to pay.
const PAY_AGAIN: Duration = Duration::from_secs(1);

/// Hears when something was read; is let go of where it could not be.
pub(super) type Waiting = Option<oneshot::Sender<()>>;

/// Something to do on leases, in order.
#[derive(Debug)]
pub(super) enum Operation<T> {
    /// Store a lease, then say so to whoever holds the ticket. `sure`: no other server can give
    /// its address away, so that it can be owed.
    Store {
        lease: Box<Lease>,
        sure: bool,
        ticket: T,
    },
    /// The machine gave its lease back, or found the address in use.
    End(Ending),
    /// Keep an address out that a stranger uses. It is in the book already, so that even
    /// with the database away nobody is offered it.
    Quarantine(Box<Lease>),
    /// Other servers wrote these, or may have. Who waits for it hears when they are read.
    Reread(Vec<Ipv4Addr>, Waiting),
    /// Anybody may have written anything.
    RereadAll(Waiting),
    /// The database's clock was set: leases are moved with it.
    FollowClock,
}

/// What became of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Durable, in the database or in the ledger.
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
    pub(super) clock: Clock,
    pub(super) server_id: Uuid,
    pub(super) book: Arc<Mutex<Book>>,
    pub(super) metrics: DhcpMetrics,
    pub(super) report: Report<T>,
    /// Addresses that the book knows of, to forget those whose rows are gone.
    pub(super) known: Arc<Mutex<HashSet<Ipv4Addr>>>,
    /// What the database does not have yet.
    pub(super) ledger: Arc<Ledger>,
    /// The database refused an address: how the pools are shared out is to be read again.
    pub(super) misled: Arc<Notify>,
    /// What was seen of boots is durable before their lease is acknowledged.
    pub(super) boots: Tracker,
    /// Transactions that were not waited for; nothing is paid before they have ended.
    pub(super) lagging: Arc<AtomicUsize>,
}

impl<T> Clone for Committer<T> {
    fn clone(&self) -> Self {
        Self {
            catalog: self.catalog.clone(),
            clock: self.clock.clone(),
            server_id: self.server_id,
            book: self.book.clone(),
            metrics: self.metrics.clone(),
            report: self.report.clone(),
            known: self.known.clone(),
            ledger: self.ledger.clone(),
            misled: self.misled.clone(),
            lagging: self.lagging.clone(),
            boots: self.boots.clone(),
        }
    }
}

/// How a task ended.
struct Done {
    keys: Vec<Key>,
    health: Health,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    /// It is not known what was written, or something is owed.
    Uncertain,
}

impl Health {
    fn told(self, waiting: Waiting) -> Self {
        if let (Self::Good, Some(waiting)) = (self, waiting) {
            waiting.send(()).ok();
        }
        self
    }
}

impl<T: Send + 'static> Committer<T> {
    /// Works until it is cancelled and what was taken in by then is done. `uncertain`: the book
    /// may not be what the database says, so all leases are read when it answers.
    pub(super) async fn run(
        self,
        mut operations: mpsc::Receiver<Operation<T>>,
        mut uncertain: bool,
        cancel: CancellationToken,
    ) {
        let mut line = Line::default();
        let mut running: JoinSet<Done> = JoinSet::new();
        let mut taken = Vec::with_capacity(BATCH);
        let mut open = true;
        let paying = CancellationToken::new();
        let payer = tokio::spawn({
            let (payer, paying) = (self.clone(), paying.clone());
            async move { payer.pay_until(paying).await }
        });
        let mut standing = self.catalog.watch_standing();
        // When the next one may begin, if few wait for it; and whether it might at the last look. What
        // still waits then waits for something else than time.
        let (mut next, mut enough) = (tokio::time::Instant::now(), true);
        // What has begun, in all and at the last look: one that takes long holds up nobody else.
        let (mut begun, mut seen, mut stuck) = (0_u64, 0, false);
        let mut watch = tokio::time::interval(HEDGE);
        watch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(PAY_AGAIN);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while open || !running.is_empty() || !line.waiting.is_empty() {
            let mut jumped = false;
            let room = running.len() < LANES && line.waiting.len() < BATCH;
            tokio::select! {
                count = operations.recv_many(&mut taken, BATCH), if open && room => {
                    open = count > 0;
                    line.waiting.extend(taken.drain(..));
                }
                () = tokio::time::sleep_until(next), if !enough && running.is_empty() && !line.waiting.is_empty() => {}
                Some(done) = running.join_next(), if !running.is_empty() => {
                    // A task that panicked keeps its keys busy: better silent on those
                    // machines than out of order.
                    if let Ok(done) = done {
                        for key in done.keys {
                            line.busy.remove(&key);
                        }
                        uncertain |= done.health == Health::Uncertain;
                    }
                }
                // A jump not more often: the database may refuse to follow it.
                _ = look.tick(), if open => {
                    jumped = self.clock.held_back().is_some() && !line.follows_clock();
                }
                _ = watch.tick(), if !running.is_empty() => {
                    stuck = begun == seen;
                    seen = begun;
                }
                Ok(()) = standing.changed(), if uncertain && open => {}
                () = cancel.cancelled(), if open => {
                    operations.close();
                    while let Ok(last) = operations.try_recv() {
                        line.waiting.push_back(last);
                    }
                    open = false;
                }
            }
            uncertain |= jumped;
            if uncertain && open && !self.catalog.is_away() && !self.ledger.owes() {
                uncertain = false;
                if jumped {
                    line.waiting.push_back(Operation::FollowClock);
                }
                line.waiting.push_back(Operation::RereadAll(None));
            }
            let now = tokio::time::Instant::now();
            enough = !open || line.waiting.len() >= ENOUGH || now >= next;
            while (running.is_empty() && enough)
                || (running.len() < LANES && (stuck || line.waiting.len() >= MANY))
            {
                let Some(job) = line.next(running.is_empty()) else {
                    break;
                };
                begun += 1;
                next = now + APART;
                stuck = false;
                let committer = self.clone();
                running.spawn(async move { committer.work(job).await });
            }
        }
        paying.cancel();
        if let Err(error) = payer.await {
            tracing::error!(%error, "the task that pays what is owed failed");
        }
        if self.ledger.owes() {
            tracing::warn!(
                leases = self.ledger.len(),
                "stopped while the database was away; the journal keeps what it does not have"
            );
        }
        // What was noted is on the disk.
        self.ledger.owe(Vec::new()).await.ok();
    }

    async fn work(self, job: Job<T>) -> Done {
        let keys = job.keys;
        let health = match job.task {
            Task::Store { batch, sure } => self.store(batch, sure).await,
            Task::Other(Operation::End(ending)) => self.end(ending).await,
            Task::Other(Operation::Quarantine(lease)) => self.quarantine(*lease).await,
            Task::Other(Operation::Reread(addresses, waiting)) => {
                self.reread(&addresses).await.told(waiting)
            }
            Task::Other(Operation::RereadAll(waiting)) => self.reread_all().await.told(waiting),
            Task::Other(Operation::FollowClock) => self.follow_clock().await,
            Task::Other(Operation::Store {
                lease,
                sure,
                ticket,
            }) => self.store(vec![(*lease, ticket)], sure).await,
        };
        Done { keys, health }
    }

    async fn store(&self, batch: Vec<(Lease, T)>, sure: bool) -> Health {
        let (leases, tickets): (Vec<Lease>, Vec<T>) = batch.into_iter().unzip();
        let stored = async {
            match sure {
                true if self.must_owe() => self.owe_rows(&leases).await,
                true => self.store_or_owe(&leases).await,
                // They may be given away by others: only the database can tell.
                false => self.store_rows(&leases).await,
            }
        };
        let ((verdicts, health), ()) = tokio::join!(stored, boots_synced(&self.boots));
        (self.report)(tickets.into_iter().zip(verdicts).collect());
        health
    }

    fn must_owe(&self) -> bool {
        self.ledger.owes() || self.catalog.is_away()
    }

    /// The database gets [`HEDGE`]; then they are owed, and it may take its time.
    async fn store_or_owe(&self, leases: &[Lease]) -> (Vec<Verdict>, Health) {
        self.lagging.fetch_add(1, Ordering::AcqRel);
        let mut storing = tokio::spawn({
            let (committer, leases) = (self.clone(), leases.to_vec());
            async move {
                let stored = committer.commit(&leases).await;
                committer.lagging.fetch_sub(1, Ordering::AcqRel);
                stored
            }
        });
        let Ok(ended) = tokio::time::timeout(HEDGE, &mut storing).await else {
            tracing::debug!(
                leases = leases.len(),
                "the database is slow, leases are owed"
            );
            return self.owe_rows(leases).await;
        };
        match ended {
            Ok(Ok(stored)) => self.take_over(leases, &stored).await,
            Ok(Err(error @ (CatalogError::Refused { .. } | CatalogError::Conflict { .. }))) => {
                self.refused(leases, error).await
            }
            Ok(Err(error)) => {
                tracing::debug!(leases = leases.len(), %error, "leases are owed to the database");
                self.owe_rows(leases).await
            }
            Err(error) => {
                tracing::error!(%error, "a task that stores leases failed");
                (vec![Verdict::NotStored; leases.len()], Health::Uncertain)
            }
        }
    }

    /// Durable here, the database's later.
    async fn owe_rows(&self, leases: &[Lease]) -> (Vec<Verdict>, Health) {
        let owed = leases.iter().cloned().map(Owed::Put).collect();
        if let Err(error) = self.ledger.owe(owed).await {
            tracing::warn!(leases = leases.len(), %error, "leases can't be owed, nothing acknowledged");
            self.metrics.not_owed(leases.len());
            return (vec![Verdict::NotStored; leases.len()], Health::Uncertain);
        }
        self.metrics.owed(leases.len(), self.ledger.len());
        let mut book = lock(&self.book);
        let mut known = lock(&self.known);
        for lease in leases {
            known.insert(lease.address);
            book.put(lease.clone());
        }
        (vec![Verdict::Stored; leases.len()], Health::Uncertain)
    }

    /// One row that breaks a rule (its range was changed a moment ago) must not cost the others
    /// their answer.
    async fn refused(&self, leases: &[Lease], error: CatalogError) -> (Vec<Verdict>, Health) {
        if leases.len() == 1 {
            tracing::warn!(%error, "a lease was refused by the database, nothing acknowledged");
            return (vec![Verdict::NotStored], Health::Uncertain);
        }
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

    async fn store_rows(&self, leases: &[Lease]) -> (Vec<Verdict>, Health) {
        match self.commit(leases).await {
            Ok(stored) => self.take_over(leases, &stored).await,
            Err(error @ (CatalogError::Refused { .. } | CatalogError::Conflict { .. })) => {
                self.refused(leases, error).await
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
        let mut has = Vec::with_capacity(leases.len());
        let mut verdicts = Vec::with_capacity(leases.len());
        {
            let mut book = lock(&self.book);
            let mut known = lock(&self.known);
            for (lease, stored) in leases.iter().zip(stored) {
                if *stored {
                    known.insert(lease.address);
                    book.put(lease.clone());
                    book.wrote(lease.address);
                    has.push(lease);
                    verdicts.push(Verdict::Stored);
                } else {
                    book.unhold(lease.range_id, lease.mac);
                    refused.push((lease.address, lease.starts_at));
                    verdicts.push(Verdict::Taken);
                }
            }
        }
        self.metrics.batch_stored(has.len());
        if !has.is_empty() {
            self.ledger.stored(&has).await;
        }
        if refused.is_empty() {
            return (verdicts, Health::Good);
        }
        // Whoever has them must be in the book before the client asks again.
        let addresses: Vec<Ipv4Addr> = refused.iter().map(|(address, _)| *address).collect();
        let health = self.reread(&addresses).await;
        let mut book = lock(&self.book);
        for (address, at) in refused {
            if book.lease_at(address).is_none() {
                // In a block that another server has claimed meanwhile.
                book.probed_used(address, at + ASIDE);
                self.misled.notify_one();
            }
        }
        drop(book);
        (verdicts, health)
    }

    async fn end(&self, ending: Ending) -> Health {
        if self.must_owe() {
            return self.owe_one(Owed::End(ending)).await;
        }
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
            // Also where nothing was ended: the book took the machine's word for it.
            Ok(_) => self.reread(&[ending.address]).await,
            Err(error) => {
                tracing::debug!(
                    client.mac = %ending.mac, address = %ending.address, state = %ending.state, %error,
                    "the end of a lease is owed to the database"
                );
                self.owe_one(Owed::End(ending)).await
            }
        }
    }

    async fn quarantine(&self, lease: Lease) -> Health {
        let address = lease.address;
        lock(&self.known).insert(address);
        if self.must_owe() {
            return self.owe_one(Owed::Put(lease)).await;
        }
        let one = std::slice::from_ref(&lease);
        match self.commit(one).await {
            Ok(_) => self.reread(&[address]).await,
            Err(error) => {
                tracing::debug!(%address, %error, "a quarantine is owed to the database");
                self.owe_one(Owed::Put(lease)).await
            }
        }
    }

    async fn owe_one(&self, owed: Owed) -> Health {
        match self.ledger.owe(vec![owed]).await {
            Ok(()) => self.metrics.owed(1, self.ledger.len()),
            Err(error) => {
                tracing::warn!(%error, "the end of a lease was not stored");
                self.metrics.not_owed(1);
            }
        }
        Health::Uncertain
    }

    async fn in_time<R>(
        &self,
        query: impl Future<Output = Result<R, CatalogError>>,
    ) -> Result<R, CatalogError> {
        self.within(PATIENCE, query).await
    }

    async fn within<R>(
        &self,
        limit: Duration,
        query: impl Future<Output = Result<R, CatalogError>>,
    ) -> Result<R, CatalogError> {
        tokio::time::timeout(limit, query)
            .await
            .unwrap_or_else(|_| Err(CatalogError::Unavailable("no answer in time".to_owned())))
    }
}

/// What was seen of boots is durable, as their ACK wants it; but a disk of ours that hangs is no
/// reason to keep quiet about what the database has.
pub(super) async fn boots_synced(boots: &Tracker) {
    tokio::time::timeout(HEDGE, boots.sync()).await.ok();
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
