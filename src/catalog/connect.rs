//! The pool: reaching PostgreSQL, trying several hosts, trying again.
//!
//! It must not decide what is worth trying again (that is `error::is_transient`) nor repeat
//! what is not idempotent: only operations that say so go through [`Catalog::again`].

use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use super::error::{is_transient, is_want};
use super::{Catalog, CatalogError, CatalogOptions, Standing};
use crate::clock::Clock;
use crate::model::Timestamp;

/// What all clones of a [`Catalog`] share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) pool: PgPool,
    pub(super) server_id: Uuid,
    /// How PostgreSQL stands; see [`super::Standing`].
    pub(super) standing: watch::Sender<Standing>,
    pub(super) suspected: Notify,
    /// When it last could not write, unless something was written since.
    pub(super) want: watch::Sender<Option<Instant>>,
    /// PostgreSQL was away at the start, and not all of it was read since.
    pub(super) behind: AtomicBool,
    hosts: Vec<PgConnectOptions>,
    /// Which of them it is, and since when.
    pub(super) chosen: watch::Sender<Chosen>,
    /// Held by whoever looks for it: others need not look as well.
    looking: tokio::sync::Mutex<()>,
    pub(super) clock: Clock,
}

/// The host in use.
#[derive(Debug)]
pub(super) struct Chosen {
    host: PgConnectOptions,
    since: Instant,
}

/// How often a statement is sent in all, and the pause before the second time; it doubles.
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// An operation that takes longer makes us look for another primary.
const LONG: Duration = Duration::from_millis(500);

/// How long a host may take to say whether it takes writes; less than [`super::standing`] waits
/// for all of them.
const ANSWER: Duration = Duration::from_secs(1);

/// How much later than the first another one may say that it takes writes.
const OTHERS: Duration = Duration::from_millis(100);

/// A line that was not used for so long is asked whether it is still one.
const UNUSED: Duration = Duration::from_secs(1);

impl Catalog {
    /// Opens the pool (retrying while PostgreSQL starts or is away, up to `patience`).
    ///
    /// # Errors
    /// When it can't be reached within `patience`, or refuses us.
    pub async fn connect(
        options: &CatalogOptions,
        patience: Duration,
    ) -> Result<Self, CatalogError> {
        let catalog = Self::prepare(options)?;
        catalog.reach(patience).await?;
        Ok(catalog)
    }

    /// A catalog whose PostgreSQL need not be there yet; see [`Catalog::reach`].
    ///
    /// # Errors
    /// When the URL is not valid.
    pub fn prepare(options: &CatalogOptions) -> Result<Self, CatalogError> {
        let hosts = split_hosts(&options.url)?
            .into_iter()
            .map(|url| {
                let parsed = PgConnectOptions::from_str(&url).map_err(|e| {
                    CatalogError::Other(format!("[database] url is not valid: {e}"))
                })?;
                Ok(parsed.application_name("dls").options([
                    ("dls.server_id", options.server_id.to_string()),
                    // Disks without heads, or all of it in memory. With PostgreSQL's usual 4
                    // the plans that are made while a table is empty, and kept, read all of
                    // it later on.
                    ("random_page_cost", "1.1".to_owned()),
                ]))
            })
            .collect::<Result<Vec<_>, CatalogError>>()?;
        let clock = Clock::system();
        let (chosen, known) = watch::channel(Chosen {
            host: hosts.first().cloned().unwrap_or_default(),
            since: clock.instant(),
        });
        Ok(Self {
            shared: Arc::new(Shared {
                pool: pool(options, hosts.len() > 1, known, clock.clone()),
                server_id: options.server_id,
                standing: watch::Sender::new(Standing::Here),
                suspected: Notify::new(),
                want: watch::Sender::new(None),
                behind: AtomicBool::new(false),
                hosts,
                chosen,
                looking: tokio::sync::Mutex::default(),
                clock,
            }),
        })
    }

    /// Waits until PostgreSQL answers, up to `patience`.
    ///
    /// # Errors
    /// When it can't be reached within `patience`, or refuses us.
    pub async fn reach(&self, patience: Duration) -> Result<(), CatalogError> {
        let mut last = CatalogError::Unavailable("it did not answer".to_owned());
        let attempt = async {
            loop {
                let reached = async {
                    let host = primary(self.hosts()).await?;
                    self.turn_to(host);
                    self.pool().acquire().await
                };
                match reached.await {
                    Ok(_) => return Ok(()),
                    Err(error) if !is_transient(&error) && !is_absence(&error) => {
                        return Err(CatalogError::from(error));
                    }
                    Err(error) => last = CatalogError::Unavailable(error.to_string()),
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(patience, attempt)
            .await
            .unwrap_or(Err(last))
    }

    /// A round trip: PostgreSQL's clock, and when it was asked.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn health_check(&self) -> Result<(Timestamp, Instant), CatalogError> {
        let mut connection = self.shared.pool.acquire().await?;
        let asked = self.shared.clock.instant();
        let at = sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "at!""#)
            .fetch_one(&mut *connection)
            .await?;
        Ok((at, asked))
    }

    /// Closes every connection.
    pub async fn close(&self) {
        self.shared.pool.close().await;
    }

    /// The pool.
    pub(super) fn pool(&self) -> &PgPool {
        &self.shared.pool
    }

    /// The hosts of the URL.
    pub(super) fn hosts(&self) -> &[PgConnectOptions] {
        &self.shared.hosts
    }

    /// Runs an idempotent operation, again and again where its failure is one that passes; at
    /// once in vain while PostgreSQL is known to be away.
    pub(super) async fn again<'a, T, F, Fut>(&'a self, operation: F) -> Result<T, CatalogError>
    where
        F: Fn(&'a PgPool) -> Fut,
        Fut: Future<Output = Result<T, sqlx::Error>> + Send,
    {
        let mut pause = FIRST_PAUSE;
        let mut tries = 1;
        loop {
            let asked = self.watched(operation(self.pool()));
            match self.unless_away(asked).await? {
                Err(error) if tries < TRIES && is_transient(&error) => {
                    tracing::debug!(%error, tries, "the database failed, trying again");
                    self.suspect();
                    tokio::time::sleep(pause).await;
                    self.find_primary().await;
                    pause *= 2;
                    tries += 1;
                }
                outcome => {
                    if matches!(outcome, Err(sqlx::Error::PoolTimedOut)) {
                        self.suspect();
                    }
                    if let Err(error) = &outcome
                        && is_want(error)
                    {
                        self.wants(&error.to_string());
                    }
                    return outcome.map_err(CatalogError::from);
                }
            }
        }
    }

    /// Waits for an operation; while it takes long, looks whether another host has become the
    /// primary. The pool, which may be waiting for the old one, then goes on with that.
    async fn watched<T>(
        &self,
        operation: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        if self.shared.hosts.len() < 2 {
            return operation.await;
        }
        tokio::pin!(operation);
        loop {
            tokio::select! {
                outcome = &mut operation => return outcome,
                () = tokio::time::sleep(LONG) => self.find_primary().await,
            }
        }
    }

    /// Points the pool at the host that takes writes, where there are several.
    pub(super) async fn find_primary(&self) {
        if self.shared.hosts.len() > 1
            && let Ok(_place) = self.shared.looking.try_lock()
            && let Ok(host) = primary(&self.shared.hosts).await
        {
            self.turn_to(host);
        }
    }

    /// The pool goes on with that host. Its lines to another one, which may be stuck or be an old
    /// primary that comes back, are not used again.
    pub(super) fn turn_to(&self, host: PgConnectOptions) {
        self.shared.chosen.send_if_modified(|chosen| {
            if same(&chosen.host, &host) {
                return false;
            }
            tracing::info!(
                from = chosen.host.get_host(),
                to = host.get_host(),
                "another host of the database takes writes now"
            );
            *chosen = Chosen {
                host: host.clone(),
                since: self.shared.clock.instant(),
            };
            true
        });
        self.pool().set_connect_options(host);
    }
}

/// Opens no connection yet.
fn pool(
    options: &CatalogOptions,
    several: bool,
    chosen: watch::Receiver<Chosen>,
    clock: Clock,
) -> PgPool {
    let host = chosen.borrow().host.clone();
    PgPoolOptions::new()
        .min_connections(options.min_connections)
        .max_connections(options.max_connections)
        .acquire_timeout(options.pool_timeout)
        // Its question before each use is a round trip more for each batch of leases.
        .test_before_acquire(false)
        .before_acquire(move |connection, line| {
            let since = chosen.borrow().since;
            let here = clock.instant().saturating_duration_since(since);
            let outdated = several && line.age > here;
            Box::pin(async move {
                let unused = line.idle_for >= UNUSED;
                Ok(!outdated && (!unused || connection.ping().await.is_ok()))
            })
        })
        .after_connect(move |connection, _| {
            Box::pin(async move {
                if several && in_recovery(connection).await? {
                    return Err(standby());
                }
                Ok(())
            })
        })
        .connect_lazy_with(host)
}

/// The same host and port.
fn same(one: &PgConnectOptions, other: &PgConnectOptions) -> bool {
    one.get_host() == other.get_host()
        && one.get_port() == other.get_port()
        && one.get_socket() == other.get_socket()
}

/// The host that takes writes. All are asked at once: one that is gone may keep silent, and would
/// hold up the question to its successor for ever. Where several take writes, because an old
/// primary came back beside the standby that took its place, it is the one of the newest timeline.
/// One host only: it is taken as it is.
pub(super) async fn primary(hosts: &[PgConnectOptions]) -> Result<PgConnectOptions, sqlx::Error> {
    if let [one] = hosts {
        return Ok(one.clone());
    }
    let ask = |host| async move {
        let asked = tokio::time::timeout(ANSWER, takes_writes(host)).await;
        (host, asked.unwrap_or_else(|_| Err(silent())))
    };
    let mut asked: FuturesUnordered<_> = hosts.iter().map(ask).collect();
    let mut last = standby();
    let mut found = Vec::new();
    while found.is_empty()
        && let Some((host, answer)) = asked.next().await
    {
        match answer {
            Ok(Some(line)) => found.push((host, line)),
            Ok(None) => {}
            Err(error) => last = error,
        }
    }
    let others = async {
        while let Some((host, answer)) = asked.next().await {
            if let Ok(Some(line)) = answer {
                found.push((host, line));
            }
        }
    };
    tokio::time::timeout(OTHERS, others).await.ok();
    let several = found.len() > 1;
    let mut newest: Option<(i64, &PgConnectOptions)> = None;
    for (host, mut line) in found {
        let timeline = if several {
            timeline(&mut line).await
        } else {
            0
        };
        if newest.is_none_or(|(known, _)| timeline > known) {
            newest = Some((timeline, host));
        }
        line.close().await.ok();
    }
    newest.map(|(_, host)| host.clone()).ok_or(last)
}

/// A line to that host, if it takes writes.
async fn takes_writes(host: &PgConnectOptions) -> Result<Option<PgConnection>, sqlx::Error> {
    let mut line = host.connect().await?;
    if in_recovery(&mut line).await? {
        line.close().await?;
        return Ok(None);
    }
    Ok(Some(line))
}

/// How often a standby has become the primary in its history; 0 where it can't be told.
async fn timeline(line: &mut PgConnection) -> i64 {
    let asked = sqlx::query_scalar!(
        r#"SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint AS "timeline!""#
    );
    let asked = tokio::time::timeout(ANSWER, asked.fetch_one(line)).await;
    asked.ok().and_then(Result::ok).unwrap_or_default()
}

pub(super) async fn in_recovery(connection: &mut sqlx::PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT pg_is_in_recovery() AS "standby!""#)
        .fetch_one(connection)
        .await
}

fn silent() -> sqlx::Error {
    io::Error::from(io::ErrorKind::TimedOut).into()
}

fn standby() -> sqlx::Error {
    io::Error::other("every host is a standby that takes no writes").into()
}

/// While a cluster starts its pool may time out; that passes as well.
fn is_absence(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::PoolTimedOut)
}

/// One URL per host: `postgres://u:p@h1:5433,h2/db?x=y` becomes two. libpq knows such lists,
/// sqlx does not.
fn split_hosts(url: &str) -> Result<Vec<String>, CatalogError> {
    let bad = || {
        CatalogError::Other(
            "[database] url must be \"embedded\" or begin with postgres://".to_owned(),
        )
    };
    let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
    if scheme != "postgres" && scheme != "postgresql" {
        return Err(bad());
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), authority),
    };
    Ok(hosts
        .split(',')
        .map(|host| format!("{scheme}://{user}{host}{tail}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_url_per_host() {
        assert_eq!(
            split_hosts("postgres://u:p@a:1,b/db?x=y").unwrap(),
            ["postgres://u:p@a:1/db?x=y", "postgres://u:p@b/db?x=y"]
        );
        assert_eq!(
            split_hosts("postgres:///dls?host=/run/x").unwrap(),
            ["postgres:///dls?host=/run/x"]
        );
        assert!(split_hosts("mysql://a/b").is_err());
        assert!(split_hosts("embedded").is_err());
    }
}
