//! The one task that writes the rows, in order, and the tick that judges silences.
//!
//! A database that is away: the batch in hand is tried again until it comes back, while the
//! queue holds (bounded) what follows. A row that the database refuses for itself is set
//! aside, with its reason in the log, and holds nothing up.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::Tracker;
use crate::catalog::{BootWrite, CatalogError};

/// Rows in one transaction.
const BATCH: usize = 512;
/// Between two tries, at first and at last.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often a batch may fail for a reason that is not the database's absence before its
/// rows are tried one by one.
const FAILURES: u32 = 10;
/// How long a stopping server goes on trying.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Between two judgements of silence.
const TICK: Duration = Duration::from_secs(1);

impl Tracker {
    /// Writes rows and judges silences until cancelled; then writes what is left, trying for
    /// some seconds.
    pub async fn run(&self, cancel: CancellationToken) {
        tokio::join!(self.tick_until(&cancel), self.write_until(&cancel));
    }

    /// Returns once every row pushed before the call is written, or after `patience`. Needs
    /// [`Tracker::run`] beside it. True if all is written.
    pub async fn drain(&self, patience: Duration) -> bool {
        let all = async {
            loop {
                let idle = self.shared.idle.notified();
                if self.is_drained() {
                    return;
                }
                self.shared.wake.notify_one();
                let _ = tokio::time::timeout(Duration::from_millis(50), idle).await;
            }
        };
        tokio::time::timeout(patience, all).await.is_ok()
    }

    /// Judges silences now; [`Tracker::run`] does it each second.
    pub fn tick(&self) {
        let now = self.shared.clock.now();
        let mut book = self.shared.book();
        let steps = book.tick(now);
        self.shared.record(&book, steps);
    }

    fn is_drained(&self) -> bool {
        let queue = self.shared.queue();
        queue.len() == 0 && self.shared.in_hand.load(Ordering::Acquire) == 0
    }

    async fn tick_until(&self, cancel: &CancellationToken) {
        let mut every = tokio::time::interval(TICK);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while cancel.run_until_cancelled(every.tick()).await.is_some() {
            self.tick();
            if self.shared.catalog.is_away()
                && let Some(ledger) = self.shared.ledger.get()
            {
                ledger.sync().await;
            }
        }
    }

    async fn write_until(&self, cancel: &CancellationToken) {
        loop {
            let (batch, covered) = self.take();
            if batch.is_empty() {
                self.shared.idle.notify_waiters();
                if cancel.is_cancelled() {
                    return;
                }
                let wake = self.shared.wake.notified();
                tokio::select! {
                    () = wake => {}
                    () = cancel.cancelled() => {}
                }
                continue;
            }
            if !self.write(&batch, cancel).await {
                let left = batch.len() + self.shared.queue().len();
                match self.shared.ledger.get() {
                    Some(ledger) => {
                        ledger.sync().await;
                        warn!(
                            rows = left,
                            "stopped while the database was away; the journal keeps the rows of boots that it does not have"
                        );
                    }
                    None => error!(
                        rows = left,
                        "stopped before these rows of boots could be written"
                    ),
                }
                return;
            }
            if let (Some(number), Some(ledger)) = (covered, self.shared.ledger.get()) {
                ledger.written(number);
            }
            self.shared.in_hand.store(0, Ordering::Release);
        }
    }

    /// The next rows; and, if no other waits, the number up to which all are written with them.
    fn take(&self) -> (Vec<BootWrite>, Option<u64>) {
        let mut queue = self.shared.queue();
        let batch = queue.take(BATCH);
        let covered = (queue.len() == 0).then(|| queue.last());
        // Under the lock, so that `is_drained` never sees neither.
        self.shared.in_hand.store(batch.len(), Ordering::Release);
        self.shared.metrics.queued(queue.len());
        (batch, covered)
    }

    /// Writes a batch, however long the database is away; false if cancelled for too long.
    async fn write(&self, batch: &[BootWrite], cancel: &CancellationToken) -> bool {
        let mut pause = RETRY.0;
        let (mut told, mut failures) = (false, 0);
        loop {
            match self.shared.catalog.write_boots(batch).await {
                Ok(()) => {
                    if told {
                        info!(rows = batch.len(), "rows of boots are written again");
                    }
                    return true;
                }
                Err(CatalogError::Unavailable(cause)) => {
                    self.shared.metrics.write_failed();
                    if !told {
                        warn!(%cause, "rows of boots wait for the database");
                        told = true;
                    }
                }
                Err(cause @ CatalogError::Other(_)) if failures < FAILURES => {
                    self.shared.metrics.write_failed();
                    failures += 1;
                    debug!(%cause, failures, "a batch of boot rows failed");
                }
                Err(cause) => {
                    debug!(%cause, "a batch of boot rows was refused; trying row by row");
                    return self.one_by_one(batch, cancel).await;
                }
            }
            if !self.pause(pause, cancel).await {
                return false;
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Finds the row that spoils a batch.
    async fn one_by_one(&self, batch: &[BootWrite], cancel: &CancellationToken) -> bool {
        for row in batch {
            let mut pause = RETRY.0;
            loop {
                match self
                    .shared
                    .catalog
                    .write_boots(std::slice::from_ref(row))
                    .await
                {
                    Ok(()) => break,
                    Err(CatalogError::Unavailable(_)) => {
                        self.shared.metrics.write_failed();
                        if !self.pause(pause, cancel).await {
                            return false;
                        }
                        pause = (pause * 2).min(RETRY.1);
                    }
                    Err(cause) => {
                        self.shared.metrics.set_aside();
                        warn!(%cause, row = ?row, "the database refused a row of a boot; it is set aside");
                        break;
                    }
                }
            }
        }
        true
    }

    /// Waits before the next try. After cancellation tries go on for [`LAST_WORDS`].
    async fn pause(&self, pause: Duration, cancel: &CancellationToken) -> bool {
        if !cancel.is_cancelled() {
            let mut standing = self.shared.catalog.watch_standing();
            tokio::select! {
                () = cancel.cancelled() => {}
                // Once known to be away, its return is waited for.
                () = tokio::time::sleep(pause) => {}
                Ok(()) = standing.changed() => {}
            }
            return true;
        }
        let now = self.shared.clock.instant();
        let since = {
            let mut since = (self.shared.last_words.lock()).unwrap_or_else(PoisonError::into_inner);
            *since.get_or_insert(now)
        };
        if now.saturating_duration_since(since) > LAST_WORDS {
            return false;
        }
        tokio::time::sleep(RETRY.0).await;
        true
    }
}
