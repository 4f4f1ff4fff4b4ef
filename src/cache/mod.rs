//! What booting needs, in memory: clients by MAC, images, network ranges, the site key.
//!
//! Loaded whole, swapped atomically, kept current by LISTEN/NOTIFY ([`Cache::follow`]) and by
//! [`Cache::refresh`] after a change of our own. Readers never wait and never see half a
//! change. It never asks PostgreSQL on a packet's path.

mod snapshot;
mod view;

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::catalog::{Catalog, CatalogError};
pub use snapshot::Snapshot;
pub use view::View;

/// A handle on the current [`Snapshot`]; clones share it.
#[derive(Debug, Clone)]
pub struct Cache {
    catalog: Catalog,
    current: Arc<ArcSwap<Snapshot>>,
    /// One reload at a time, so that an older read never overwrites a newer one.
    reloading: Arc<tokio::sync::Mutex<()>>,
}

impl Cache {
    /// Loads everything once.
    ///
    /// # Errors
    /// When the catalog can't be read.
    pub async fn open(catalog: Catalog) -> Result<Self, CatalogError> {
        let snapshot = Snapshot::new(catalog.load().await?);
        Ok(Self {
            catalog,
            current: Arc::new(ArcSwap::from_pointee(snapshot)),
            reloading: Arc::new(tokio::sync::Mutex::new(())),
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
        View::new(self.current.clone())
    }

    /// Reads the catalog again; when it returns, every change committed before the call holds.
    ///
    /// # Errors
    /// When the catalog can't be read; the old snapshot then stays.
    pub async fn refresh(&self) -> Result<(), CatalogError> {
        let _one = self.reloading.lock().await;
        let loaded = self.catalog.load().await?;
        self.current.store(Arc::new(Snapshot::new(loaded)));
        Ok(())
    }
}
