//! Whether PostgreSQL is there: asked by one task, known to all, so that nobody has to find it
//! out by waiting.
//!
//! While it is away, what goes through [`Catalog::again`] fails at once. It must not judge what
//! a failure means: a database that answers and can't write (its disk is full) is there.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::sync::watch;

use super::connect::{in_recovery, primary};
use super::{Catalog, CatalogError};

/// How PostgreSQL stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It answers.
    Here,
    /// It does not.
    Away {
        /// What came of the last question; it may name hosts and users.
        why: String,
    },
}

impl Standing {
    /// True while it is away.
    #[must_use]
    pub const fn is_away(&self) -> bool {
        matches!(self, Self::Away { .. })
    }
}

/// Between two questions while it is here, and while it is away.
const EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(250));

/// What was not written is tried again sooner.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// A question that takes longer is not answered.
const PATIENCE: Duration = Duration::from_millis(1500);

impl Catalog {
    /// How PostgreSQL stands, as [`Catalog::look_after`] knows it; never waits. `Here` where
    /// nobody looks.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.shared.standing.borrow().clone()
    }

    /// True while PostgreSQL is away.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.shared.standing.borrow().is_away()
    }

    /// True while what is known is from before this start, though PostgreSQL may be here by now.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.shared.behind.load(Ordering::Acquire)
    }

    /// All was read that a start reads.
    pub fn caught_up(&self) {
        self.shared.behind.store(false, Ordering::Release);
    }

    /// Is woken when it goes and when it comes back.
    #[must_use]
    pub fn watch_standing(&self) -> watch::Receiver<Standing> {
        self.shared.standing.subscribe()
    }

    /// True while PostgreSQL is there and can't write: its disk is full, say.
    #[must_use]
    pub fn is_not_writing(&self) -> bool {
        self.shared.want.borrow().is_some() && !self.is_away()
    }

    /// Is woken when that begins and when it is over.
    #[must_use]
    pub fn watch_writing(&self) -> watch::Receiver<Option<Instant>> {
        self.shared.want.subscribe()
    }

    /// Something was not written for want of space, or the like.
    pub(super) fn wants(&self, why: &str) {
        let now = self.shared.clock.instant();
        self.shared.want.send_if_modified(|known| {
            let begins = known.replace(now).is_none();
            if begins {
                tracing::warn!(why, "the database is there and can't write: machines boot on, leases and sessions go to the local journal");
            }
            begins
        });
    }

    /// Leases or rows of boots were written.
    pub(super) fn wrote(&self) {
        self.writes_if(|_| true);
    }

    fn writes_if(&self, over: impl Fn(Instant) -> bool) {
        self.shared.want.send_if_modified(|known| {
            let ends = known.is_some_and(over);
            if ends {
                *known = None;
                tracing::info!("the database writes again");
            }
            ends
        });
    }

    /// Waits for something that needs PostgreSQL, until that is away.
    ///
    /// # Errors
    /// `Unavailable` when it is away, or goes while it is waited for.
    pub async fn unless_away<T>(
        &self,
        waited_for: impl Future<Output = T>,
    ) -> Result<T, CatalogError> {
        let mut standing = self.watch_standing();
        self.must_be_here()?;
        tokio::select! {
            done = waited_for => Ok(done),
            Ok(_) = standing.wait_for(Standing::is_away) => {
                Err(CatalogError::Unavailable("it went away".to_owned()))
            }
        }
    }

    /// Something failed: look at once whether it is still there.
    pub(super) fn suspect(&self) {
        self.shared.suspected.notify_one();
    }

    /// It was found out otherwise that it is away, at the start: see [`Catalog::caught_up`].
    pub fn is_gone(&self, why: &str) {
        self.shared.behind.store(true, Ordering::Release);
        self.stand(Standing::Away {
            why: why.to_owned(),
        });
    }

    /// Asks whether PostgreSQL is there, until the catalog is closed.
    pub async fn look_after(&self) {
        let mut line: Option<PgConnection> = None;
        while !self.pool().is_closed() {
            let asked = tokio::time::timeout(PATIENCE, self.ask(&mut line)).await;
            let standing = match asked {
                Ok(Ok(())) => Standing::Here,
                Ok(Err(error)) => Standing::Away {
                    why: error.to_string(),
                },
                Err(_) => Standing::Away {
                    why: format!("no answer within {} ms", PATIENCE.as_millis()),
                },
            };
            if standing.is_away() {
                // It may be stuck: the next question is asked on a new line.
                line = None;
            }
            self.stand(standing);
            // Leases and rows that are owed are tried each second: nothing is.
            let now = self.shared.clock.instant();
            self.writes_if(|last| now.saturating_duration_since(last) >= FORGOTTEN);
            let pause = if self.is_away() { EVERY.1 } else { EVERY.0 };
            tokio::select! {
                () = self.pool().close_event() => return,
                () = self.shared.suspected.notified() => {
                    // Many failures at once are one question.
                    tokio::time::sleep(EVERY.1 / 5).await;
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn stand(&self, standing: Standing) {
        self.shared.standing.send_if_modified(|known| {
            match (&*known, &standing) {
                (Standing::Here, Standing::Away { why }) => {
                    tracing::warn!(why, "the database is away: known machines boot on, leases and sessions go to the local journal");
                }
                (Standing::Away { .. }, Standing::Here) => {
                    tracing::info!("the database is back");
                }
                _ => {}
            }
            let changed = known.is_away() != standing.is_away();
            *known = standing;
            changed
        });
    }

    /// One round trip to the host that takes writes, on a line of its own.
    async fn ask(&self, line: &mut Option<PgConnection>) -> Result<(), sqlx::Error> {
        let open = match line {
            Some(open) => open,
            None => {
                let host = primary(self.hosts()).await?;
                self.turn_to(host.clone());
                line.insert(connect(&host).await?)
            }
        };
        let outcome = in_recovery(open).await;
        match outcome {
            // One host only is taken as it is: it refuses writes by itself.
            Ok(standby) if !standby || self.hosts().len() == 1 => Ok(()),
            Ok(_) => {
                if let Some(line) = line.take() {
                    drop(line.close().await);
                }
                Err(sqlx::Error::Io(std::io::Error::other(
                    "it has become a standby",
                )))
            }
            Err(error) => {
                *line = None;
                Err(error)
            }
        }
    }

    /// Fails while PostgreSQL is away.
    pub(super) fn must_be_here(&self) -> Result<(), CatalogError> {
        if self.is_away() {
            return Err(CatalogError::Unavailable("it is away".to_owned()));
        }
        Ok(())
    }
}

async fn connect(host: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    host.connect().await
}
