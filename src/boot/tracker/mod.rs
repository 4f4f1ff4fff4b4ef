//! The tracker: the only writer of attempts, events and sessions.
//!
//! [`Tracker::observe`] steps the pure machine in memory and returns at once; a background
//! task ([`Tracker::run`]) writes the rows in order. A database that is away delays rows,
//! never a boot. It judges nothing itself: `session` does.
//!
//! `book`: the attempts in memory. `queue`: rows on their way. `ledger`: the same on disk. `writer`: the task and the
//! tick. `metrics`: the numbers.
//!
//! Two locks, always in this order: book, then queue; rows are pushed under the book's lock,
//! so that they stand in the queue in the order in which the machine made them.

mod book;
mod ledger;
mod metrics;
mod queue;
mod writer;

use std::net::Ipv4Addr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, broadcast};
use tracing::{info, warn};
use uuid::Uuid;

use self::book::{Book, Outcome, Step};
use self::queue::Queue;
use super::session::{Effect, Observation, Rules};
use crate::catalog::{BootWrite, Catalog, CatalogError};
use crate::clock::Clock;
use crate::model::{
    Attempt, AttemptOutcome, BootEvent, BootSession, DiskMode, MacAddr, SessionStatus, Timestamp,
};

pub use self::book::Ignored;
pub use self::ledger::{Ledger, Left};
pub use self::metrics::{EndLabels, ReasonLabel, StageLabel, TrackerMetrics};

/// A handle; clones share the state.
#[derive(Debug, Clone)]
pub struct Tracker {
    shared: Arc<Shared>,
}

/// What the doors, the disks and the DHCP server need to know of an attempt, mostly an open one.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenAttempt {
    /// Its id.
    pub id: Uuid,
    /// Whose.
    pub mac: MacAddr,
    /// Its client, if known.
    pub client_id: Option<Uuid>,
    /// The image its script named, once it got one.
    pub image_id: Option<Uuid>,
    /// Its range.
    pub range_id: Option<Uuid>,
    /// A loader of ours was delivered whole in this attempt.
    pub loader_delivered: bool,
    /// Whether what it writes is kept, once it has logged in to its disk.
    pub disk_mode: Option<DiskMode>,
    /// It may log in to its disk (again).
    pub may_attach: bool,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// How long the rows of an attempt that comes from another server are waited for.
const ADOPTION: std::time::Duration = std::time::Duration::from_secs(4);

/// Bounds of what is kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Open attempts of machines that no client knows.
    pub strangers_open: usize,
    /// New ones of them in a second.
    pub strangers_per_second: u32,
    /// Rows that wait for the database.
    pub queued_rows: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            strangers_open: 1000,
            strangers_per_second: 50,
            queued_rows: 100_000,
        }
    }
}

/// How an attempt id stands with this server.
#[derive(Debug, Clone, PartialEq)]
pub enum Known {
    /// It is open.
    Open(OpenAttempt),
    /// It ended some minutes ago at most.
    Over(OpenAttempt),
    /// Not one of this server's, or ended long ago.
    Never,
}

/// An event as it happens, for those who watch.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LiveEvent {
    /// The attempt after it.
    pub attempt: Attempt,
    /// Its session's status after it, if there is a session.
    pub status: Option<SessionStatus>,
    /// The event.
    pub event: BootEvent,
}

#[derive(Debug)]
struct Shared {
    catalog: Catalog,
    clock: Clock,
    server_id: Uuid,
    book: Mutex<Book>,
    queue: Mutex<Queue>,
    /// Where rows are kept that the database does not have.
    ledger: OnceLock<Ledger>,
    /// Rows that the writer holds in its hand.
    in_hand: AtomicUsize,
    wake: Notify,
    idle: Notify,
    live: broadcast::Sender<Arc<LiveEvent>>,
    metrics: TrackerMetrics,
    /// When the writer was first cancelled while the database was away.
    last_words: Mutex<Option<Instant>>,
}

impl Tracker {
    /// An empty tracker; see [`Tracker::resume`] and [`Tracker::run`].
    #[must_use]
    pub fn new(catalog: Catalog, clock: Clock, server_id: Uuid, rules: Rules, caps: Caps) -> Self {
        let shared = Shared {
            catalog,
            clock,
            server_id,
            book: Mutex::new(Book::new(server_id, rules, caps)),
            queue: Mutex::new(Queue::new(caps.queued_rows)),
            ledger: OnceLock::new(),
            in_hand: AtomicUsize::new(0),
            wake: Notify::new(),
            idle: Notify::new(),
            live: broadcast::channel(1024).0,
            metrics: TrackerMetrics::default(),
            last_words: Mutex::new(None),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// [`Tracker::sync`] has nothing to wait for.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.shared.ledger.get().is_none_or(Ledger::is_synced)
    }

    /// Returns when all that was seen of boots so far outlives a power cut, here or in the
    /// database.
    pub async fn sync(&self) {
        if let Some(ledger) = self.shared.ledger.get() {
            ledger.sync().await;
        }
    }

    /// Keeps rows on this server's own disk from now on, and goes on with what an earlier run
    /// left there: its open boots, whose deadlines begin anew, and the rows that the database
    /// may not have. Returns how many boots. To be called once, before anything is observed.
    pub fn remember(&self, ledger: Ledger, left: Left) -> usize {
        let shared = &self.shared;
        let mut book = shared.book();
        let now = shared.clock.now();
        {
            let mut queue = shared.queue();
            queue.begin_at(left.last);
            for row in left.rows {
                // They stand in the journal already, by the numbers before.
                queue.push(row);
            }
            queue.begin_at(left.last);
        }
        if shared.ledger.set(ledger).is_err() {
            warn!("a tracker has one ledger");
        }
        book.know_ended(left.ended);
        for (attempt, events, session) in left.open {
            let steps = book.recall(attempt, &events, session, now);
            shared.record(&book, steps);
        }
        shared.metrics.sizes(book.len(), book.strangers());
        book.len()
    }

    /// Goes on with the attempts that an earlier run of this server left open in the catalog,
    /// but for those that are known here. Their deadlines begin anew. Returns how many are open.
    ///
    /// # Errors
    /// When the catalog can't be read; nothing was taken over then.
    pub async fn resume(&self) -> Result<usize, CatalogError> {
        let shared = &self.shared;
        let rows = shared.catalog.open_attempts(shared.server_id).await?;
        let mut book = shared.book();
        let now = shared.clock.now();
        for (attempt, events, session) in rows {
            if book.has_ended(attempt.id) {
                continue;
            }
            let steps = book.recall(attempt, &events, session, now);
            shared.record(&book, steps);
        }
        shared.metrics.sizes(book.len(), book.strangers());
        Ok(book.len())
    }

    /// Takes note, and says to which attempt it belongs; `None` if it starts none and there
    /// is none, if a cap on unregistered machines is reached, or if another machine runs
    /// with this MAC (it is not to be given anything to boot then).
    pub fn observe(&self, observation: Observation) -> Option<Uuid> {
        let mut book = self.shared.book();
        let outcome = book.observe(&observation, || self.new_id(observation.at));
        self.shared.conclude(&book, outcome)
    }

    /// Takes note of a phone-home call for the attempt whose token it showed, whatever its
    /// machine has begun since. A call for an attempt that is over is noted as late.
    pub fn report(&self, id: Uuid, observation: Observation) -> Known {
        let mut book = self.shared.book();
        let outcome = book.report(id, &observation);
        self.shared.conclude(&book, outcome);
        known(&book, id)
    }

    /// Gives an open attempt to another server, which goes on with it ([`Tracker::adopt`]);
    /// nothing more is written of it here.
    pub fn hand_over(&self, id: Uuid, server: Uuid) {
        let mut book = self.shared.book();
        let steps = book.hand_over(id, server);
        self.shared.record(&book, steps);
    }

    /// Goes on with an attempt that another server has given to this one. Its rows may still
    /// be on their way: they are waited for, a little.
    pub async fn adopt(&self, id: Uuid) -> Option<OpenAttempt> {
        let looked = tokio::time::timeout(ADOPTION, async {
            loop {
                match self.shared.catalog.get_attempt(id).await {
                    Ok(Some((attempt, ..))) if attempt.ended_at.is_some() => return None,
                    Ok(Some((attempt, events, session)))
                        if attempt.server_id == self.shared.server_id =>
                    {
                        return Some((attempt, events, session));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        warn!(session.id = %id, %error, "a boot from another server can't be read");
                    }
                }
                tokio::time::sleep(ADOPTION / 20).await;
            }
        });
        let (attempt, events, session) = looked.await.ok().flatten()?;
        let mut book = self.shared.book();
        let steps = book.recall(attempt, &events, session, self.shared.clock.now());
        self.shared.record(&book, steps);
        info!(session.id = %id, "going on with a boot that another server began");
        book.by_id(id)
    }

    /// The server that it writes for.
    #[must_use]
    pub fn server_id(&self) -> Uuid {
        self.shared.server_id
    }

    /// Takes note that a machine was refused because the one of that attempt has the disk.
    pub fn turn_away(&self, id: Uuid, newcomer: Observation) {
        let mut book = self.shared.book();
        let outcome = book.turn_away(id, &newcomer);
        self.shared.conclude(&book, outcome);
    }

    /// The open attempt of a machine.
    #[must_use]
    pub fn open_attempt(&self, mac: MacAddr) -> Option<OpenAttempt> {
        self.shared.book().by_mac(mac)
    }

    /// An open attempt by id (for tokens).
    #[must_use]
    pub fn attempt(&self, id: Uuid) -> Option<OpenAttempt> {
        self.shared.book().by_id(id)
    }

    /// How an attempt id stands: open, over, or never seen.
    #[must_use]
    pub fn known(&self, id: Uuid) -> Known {
        known(&self.shared.book(), id)
    }

    /// The open attempt of the machine that has this address now (for TFTP).
    #[must_use]
    pub fn attempt_at(&self, address: Ipv4Addr) -> Option<OpenAttempt> {
        self.shared.book().at(address)
    }

    /// True while the machine boots or runs: its address is never given away. Also true
    /// for some time after an attempt ended by silence if the machine spoke again.
    #[must_use]
    pub fn is_live(&self, mac: MacAddr) -> bool {
        self.shared.book().is_live(mac, self.shared.clock.now())
    }

    /// True if a machine's attempt is open and was begun by a machine with another SMBIOS UUID.
    #[must_use]
    pub fn is_of_another(&self, mac: MacAddr, smbios_uuid: Option<Uuid>) -> bool {
        self.shared.book().is_of_another(mac, smbios_uuid)
    }

    /// Events as they happen; a watcher that is too slow misses some and is told so.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<LiveEvent>> {
        self.shared.live.subscribe()
    }

    /// The numbers.
    #[must_use]
    pub fn metrics(&self) -> &TrackerMetrics {
        &self.shared.metrics
    }

    /// Version 7: in order of time, so that tables and pages stay in order too.
    fn new_id(&self, at: Timestamp) -> Uuid {
        let mut random = [0_u8; 10];
        if getrandom::fill(&mut random).is_err() {
            // No entropy is no reason to fail a boot; ids need to be unique, not secret.
            let nanos = at.timestamp_subsec_nanos().to_be_bytes();
            let server = self.shared.server_id.into_bytes();
            for (byte, from) in random.iter_mut().zip(nanos.iter().chain(&server)) {
                *byte = *from;
            }
        }
        let millis = u64::try_from(at.timestamp_millis()).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        // A panic while it was held can't leave it half changed in a way that matters more
        // than the boots of all other machines.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn conclude(&self, book: &Book, outcome: Outcome) -> Option<Uuid> {
        if let Some(why) = outcome.ignored {
            self.metrics.ignored(why);
        }
        if !outcome.steps.is_empty() {
            self.record(book, outcome.steps);
        }
        outcome.id
    }

    /// Queues rows, counts, logs and tells the watchers. `book` shows that its lock is held.
    fn record(&self, book: &Book, steps: Vec<Step>) {
        self.metrics.sizes(book.len(), book.strangers());
        if steps.is_empty() {
            return;
        }
        let mut queue = self.queue();
        for step in steps {
            self.metrics.step(&step);
            log(&step);
            for effect in step.effects {
                if let Effect::Event(event) = &effect
                    && self.live.receiver_count() > 0
                {
                    // No watcher is no error.
                    let _ = self.live.send(Arc::new(LiveEvent {
                        attempt: step.attempt.clone(),
                        status: step.session.as_ref().map(|s| s.status),
                        event: event.clone(),
                    }));
                }
                let row = row(effect);
                let noted = self.ledger.get().map(|ledger| (ledger, row.clone()));
                let dropped = queue.push(row);
                if let Some((ledger, row)) = noted {
                    ledger.row(queue.last(), &row);
                }
                if dropped > 0 {
                    self.metrics.dropped(dropped);
                    warn!(
                        rows = dropped,
                        total = queue.dropped(),
                        "the database has been away for too long: the oldest events of boots were dropped"
                    );
                }
            }
        }
        self.metrics.queued(queue.len());
        drop(queue);
        self.wake.notify_one();
    }
}

fn known(book: &Book, id: Uuid) -> Known {
    match (book.by_id(id), book.over(id)) {
        (Some(open), _) => Known::Open(open),
        (None, Some(over)) => Known::Over(over),
        (None, None) => Known::Never,
    }
}

fn row(effect: Effect) -> BootWrite {
    match effect {
        Effect::Attempt(a) => BootWrite::Attempt(a),
        Effect::Session(s) => BootWrite::Session(s),
        Effect::Event(e) => BootWrite::Event(e),
        Effect::ClientBooted { client_id, at } => BootWrite::ClientBooted { client_id, at },
        Effect::ImageReports { image_id } => BootWrite::ImageReports { image_id },
    }
}

/// State changes at info; all else is in the timeline.
fn log(step: &Step) {
    let a = &step.attempt;
    let (mac, id) = (a.mac, a.id);
    for effect in &step.effects {
        match effect {
            Effect::Session(BootSession { status, .. }) => {
                info!(client.mac = %mac, session.id = %id, %status, stage = %a.last_stage, "session");
            }
            Effect::Attempt(a) if a.outcome != AttemptOutcome::Open => {
                let reason = a.reason.as_deref().unwrap_or_default();
                info!(client.mac = %mac, session.id = %id, outcome = %a.outcome, stage = %a.last_stage, reason, "boot attempt over");
            }
            Effect::Event(event) => {
                tracing::debug!(client.mac = %mac, session.id = %id, stage = %event.stage, detail = %event.detail, "boot event");
            }
            Effect::Attempt(_) | Effect::ClientBooted { .. } | Effect::ImageReports { .. } => {}
        }
    }
}
