//! What booting needs, in memory: clients by MAC, images, network ranges, the site key.
//!
//! Loaded whole, swapped atomically, kept current by LISTEN/NOTIFY ([`Cache::follow`]) and by
//! [`Cache::refresh`] after a change of our own. Readers never wait and never see half a
//! change. It never asks PostgreSQL on a packet's path. The last picture is kept on disk
//! (`saved`), so that a server starts without PostgreSQL.

mod saved;
mod snapshot;
mod view;

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::catalog::{Catalog, CatalogError, Change, Loaded};
use crate::heap;
use crate::model::Site;
pub use saved::{NoPicture, Saved};
pub use snapshot::Snapshot;
pub use view::View;

/// Pause before the catalog is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(500);

/// Between two savings.
const SAVE_EVERY: std::time::Duration = std::time::Duration::from_secs(2);

/// Clients whose rows are worth giving memory back for.
const MANY: usize = 10_000;

/// A handle on the current [`Snapshot`]; clones share it.
#[derive(Debug, Clone)]
pub struct Cache {
    catalog: Catalog,
    current: Arc<ArcSwap<Snapshot>>,
    /// The servers; read more often than the rest, for their heartbeats.
    site: Arc<ArcSwap<Site>>,
    /// One reload at a time, so that an older read never overwrites a newer one.
    reloading: Arc<tokio::sync::Mutex<()>>,
    /// Wakes those who act on a change by themselves.
    changed: Arc<tokio::sync::watch::Sender<()>>,
}

impl Cache {
    /// Loads everything once.
    ///
    /// # Errors
    /// When the catalog can't be read.
    pub async fn open(catalog: Catalog) -> Result<Self, CatalogError> {
        let cache = Self::of(catalog, Loaded::default());
        cache.refresh().await?;
        Ok(cache)
    }

    /// What was known when the catalog was last there; see [`Saved`].
    #[must_use]
    pub fn of(catalog: Catalog, loaded: Loaded) -> Self {
        Self {
            catalog,
            current: Arc::new(ArcSwap::from_pointee(Snapshot::new(loaded))),
            site: Arc::default(),
            reloading: Arc::new(tokio::sync::Mutex::new(())),
            changed: Arc::new(tokio::sync::watch::Sender::new(())),
        }
    }

    /// The current snapshot; cheap, never waits.
    #[must_use]
    pub fn get(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The current snapshot, for those who have no business with the catalog.
    #[must_use]
    pub fn view(&self) -> View {
        View::new(self.current.clone(), self.site.clone())
    }

    /// The servers, and who of them is alive; cheap, never waits.
    #[must_use]
    pub fn site(&self) -> Arc<Site> {
        self.site.load_full()
    }

    /// Reads the servers again: their heartbeats wake nobody. While the catalog is away, those
    /// who were alive count as alive.
    ///
    /// # Errors
    /// When the catalog can't be read; the servers then stay as they were known.
    pub async fn refresh_site(&self) -> Result<(), CatalogError> {
        self.site.store(Arc::new(self.catalog.site().await?));
        Ok(())
    }

    /// Is woken by each new snapshot, for what does not wait for a packet to look.
    #[must_use]
    pub fn watch(&self) -> tokio::sync::watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Reads the catalog again; when it returns, every change committed before the call holds.
    ///
    /// # Errors
    /// When the catalog can't be read; the old snapshot then stays.
    pub async fn refresh(&self) -> Result<(), CatalogError> {
        let _one = self.reloading.lock().await;
        let loaded = self.catalog.load().await?;
        self.refresh_site().await?;
        self.current.store(Arc::new(Snapshot::new(loaded)));
        self.changed.send_replace(());
        Ok(())
    }
}

impl Cache {
    /// Reads these clients again; when it returns, every change of them that was committed before
    /// the call holds. However many there are in all, it costs little.
    ///
    /// # Errors
    /// When the catalog can't be read; the old snapshot then stays.
    pub async fn refresh_clients(&self, ids: &[Uuid]) -> Result<(), CatalogError> {
        let _one = self.reloading.lock().await;
        let rows = self.catalog.load_clients(ids).await?;
        let next = self.get().with_clients(ids, rows);
        self.current.store(Arc::new(next));
        self.changed.send_replace(());
        Ok(())
    }

    /// Saves each new picture until cancelled, at most one in two seconds, and the last one
    /// at the end.
    pub async fn save(&self, saved: Saved, cancel: CancellationToken) {
        let mut changes = self.watch();
        // What was read before anybody watched.
        changes.mark_changed();
        while cancel
            .run_until_cancelled(changes.changed())
            .await
            .is_some()
        {
            self.save_now(&saved).await;
            let pause = tokio::time::sleep(SAVE_EVERY);
            let _ = cancel.run_until_cancelled(pause).await;
        }
        if changes.has_changed().unwrap_or_default() {
            self.save_now(&saved).await;
        }
    }

    async fn save_now(&self, saved: &Saved) {
        let (saved, snapshot) = (saved.clone(), self.get());
        let written = tokio::task::spawn_blocking(move || {
            let loaded = snapshot.loaded();
            let (written, many) = (saved.write(&loaded), loaded.clients.len() >= MANY);
            drop((snapshot, loaded));
            if many {
                heap::give_back();
            }
            written
        })
        .await;
        match written.map_err(std::io::Error::other).flatten() {
            Ok(()) => tracing::debug!("the picture of the catalog is saved"),
            Err(error) => {
                tracing::warn!(%error, "the picture of the catalog could not be saved");
            }
        }
    }

    /// Keeps the picture current until cancelled: reads the catalog again whenever anybody
    /// changed it, and after every reconnect. Many changes at once cost one read.
    pub async fn follow(&self, cancel: CancellationToken) {
        let mut changes = self.catalog.changes().ready_chunks(1024);
        loop {
            let batch = tokio::select! {
                () = cancel.cancelled() => return,
                batch = changes.next() => batch,
            };
            let Some(batch) = batch else { return };
            let mut ids: Vec<Uuid> = Vec::new();
            let mut all = false;
            for change in batch {
                match change {
                    Change::Leases(_) => {}
                    Change::Clients(some) => ids.extend(some),
                    Change::Configuration | Change::Everything => all = true,
                }
            }
            ids.sort_unstable();
            ids.dedup();
            if !all && ids.is_empty() {
                continue;
            }
            if !all && self.refresh_clients(&ids).await.is_ok() {
                continue;
            }
            while let Err(e) = self.refresh().await {
                tracing::warn!(error = %e, "the catalog can't be read again, serving what is known");
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }
}
