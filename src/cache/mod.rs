//! What booting needs, in memory: clients by MAC, images, network ranges, the site key.
//!
//! Loaded whole, swapped atomically, kept current by LISTEN/NOTIFY ([`Cache::follow`]) and by
//! [`Cache::refresh`] after a change of our own. Readers never wait and never see half a
//! change. It never asks PostgreSQL on a packet's path.

mod snapshot;
mod view;

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, CatalogError, Change};
use crate::model::Site;
pub use snapshot::Snapshot;
pub use view::View;

/// Pause before the catalog is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_millis(500);

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
        let snapshot = Snapshot::new(catalog.load().await?);
        let site = catalog.site().await?;
        Ok(Self {
            catalog,
            current: Arc::new(ArcSwap::from_pointee(snapshot)),
            site: Arc::new(ArcSwap::from_pointee(site)),
            reloading: Arc::new(tokio::sync::Mutex::new(())),
            changed: Arc::new(tokio::sync::watch::Sender::new(())),
        })
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
            if batch
                .iter()
                .all(|change| matches!(change, Change::Leases(_)))
            {
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
