//! Opening the catalog, with PostgreSQL there or not.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::heartbeat::{self, Who};
use crate::boot::tracker::Tracker;
use crate::cache::{Cache, NoPicture, Saved};
use crate::catalog::{Catalog, CatalogError, CatalogOptions, Loaded};
use crate::clock::Clock;
use crate::config::Config;

/// How long PostgreSQL may take to answer at the start.
const DATABASE_PATIENCE: Duration = Duration::from_secs(60);

/// ... where it is known what it held last: machines wait.
pub(super) const KNOWN_PATIENCE: Duration = Duration::from_secs(2);

/// What is known without the database.
pub(super) struct Local {
    /// Journals, and a picture of the catalog.
    pub(super) path: PathBuf,
    /// How long the database is waited for where there is such a picture.
    pub(super) patience: Duration,
}

/// The catalog, and what is known of it.
pub(super) struct Opened {
    pub(super) catalog: Catalog,
    pub(super) cache: Cache,
    /// The database is away: what is known is what was saved.
    pub(super) late: bool,
}

pub(super) async fn open_catalog(
    config: &Config,
    who: &Who,
    url: String,
    clock: &Clock,
    local: &Local,
) -> anyhow::Result<Opened> {
    let options = CatalogOptions {
        url,
        min_connections: config.database.min_connections,
        max_connections: config.database.max_connections,
        pool_timeout: config.pool_timeout(),
        server_id: who.id,
    };
    let catalog = Catalog::prepare(&options).context("opening the catalog")?;
    let saved = Saved::at(&local.path);
    // Read only where it is needed: of a large site it takes memory.
    let (known, saved) = tokio::task::spawn_blocking(move || (saved.is_there(), saved)).await?;
    let patience = if known {
        local.patience
    } else {
        DATABASE_PATIENCE
    };
    let mut opened = open(&catalog, clock, who, patience).await;
    let mut picture = Err(NoPicture::None);
    if opened.as_ref().is_err_and(is_absence) {
        picture = tokio::task::spawn_blocking(move || saved.read()).await?;
        if known && picture.is_err() {
            opened = open(&catalog, clock, who, DATABASE_PATIENCE).await;
        }
    }
    let looking = catalog.clone();
    match (opened, picture) {
        (Ok(()), _) => {
            let cache = Cache::of(catalog.clone(), Loaded::default());
            cache.refresh().await.context("reading the catalog")?;
            tokio::spawn(async move { looking.look_after().await });
            Ok(Opened {
                catalog,
                cache,
                late: false,
            })
        }
        (Err(error), Ok(picture)) => {
            let why = format!("{error:#}");
            tracing::warn!(
                why,
                clients = picture.clients.len(),
                "the database is away: starting with what was known when it was there last"
            );
            let cache = Cache::of(catalog.clone(), picture);
            catalog.is_gone(&why);
            tokio::spawn(async move { looking.look_after().await });
            Ok(Opened {
                catalog,
                cache,
                late: true,
            })
        }
        (Err(error), Err(why @ (NoPicture::Io(_) | NoPicture::Damaged(_)))) => {
            Err(error.context(format!("there is no picture of it to start with: {why}")))
        }
        (Err(error), Err(NoPicture::None)) => Err(error),
    }
}

/// Reaches the catalog and does what has to be done before it is used.
async fn open(
    catalog: &Catalog,
    clock: &Clock,
    who: &Who,
    patience: Duration,
) -> anyhow::Result<()> {
    let reached = catalog.reach(patience).await;
    reached.context("opening the catalog")?;
    bring_up(catalog, clock, who).await
}

/// It is away, or lets nobody in, or can't write: nothing that a start could put right.
fn is_absence(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<CatalogError>(),
        Some(CatalogError::Unavailable(_))
    )
}

/// Keeps the gauges at how the database stands, until cancelled.
pub(super) async fn tell_standing(catalog: &Catalog, gauges: &Gauges, cancel: CancellationToken) {
    let (mut standing, mut writing) = (catalog.watch_standing(), catalog.watch_writing());
    loop {
        gauges
            .away
            .set(i64::from(standing.borrow_and_update().is_away()));
        writing.mark_unchanged();
        gauges.not_writing.set(i64::from(catalog.is_not_writing()));
        let changed = tokio::select! {
            () = cancel.cancelled() => return,
            changed = standing.changed() => changed,
            changed = writing.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// How PostgreSQL stands, for `/metrics`.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    away: Gauge,
    not_writing: Gauge,
}

impl Gauges {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        registry.register(
            "database_away",
            "1 while PostgreSQL is away and machines are served from what is known",
            gauges.away.clone(),
        );
        registry.register(
            "database_not_writing",
            "1 while PostgreSQL is there and can't write",
            gauges.not_writing.clone(),
        );
        gauges
    }
}

/// What has to be done before a catalog is used.
async fn bring_up(catalog: &Catalog, clock: &Clock, who: &Who) -> anyhow::Result<()> {
    catalog
        .run_migrations()
        .await
        .context("bringing the catalog up to date")?;
    heartbeat::once(catalog, clock, who, false)
        .await
        .context("registering this server")
}

/// A catalog that was away at the start.
pub(super) struct Late {
    pub(super) catalog: Catalog,
    pub(super) cache: Cache,
    pub(super) tracker: Tracker,
    pub(super) clock: Clock,
    pub(super) who: Who,
}

impl Late {
    /// Opens it when it is there.
    pub(super) async fn open(self, cancel: &CancellationToken) {
        let mut standing = self.catalog.watch_standing();
        while !cancel.is_cancelled() {
            if !self.catalog.is_away() {
                match self.try_to().await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(
                        error = format!("{error:#}"),
                        "the database is there and can't be used yet"
                    ),
                }
            }
            tokio::select! {
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                Ok(()) = standing.changed() => {}
            }
        }
    }

    async fn try_to(&self) -> anyhow::Result<()> {
        bring_up(&self.catalog, &self.clock, &self.who).await?;
        self.cache.refresh().await?;
        self.tracker.resume().await?;
        self.catalog.caught_up();
        Ok(())
    }
}
