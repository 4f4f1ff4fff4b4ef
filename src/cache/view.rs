//! A read-only handle on the current snapshot: it can't reach the catalog.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::Snapshot;
use crate::model::Site;

/// What [`super::Cache::view`] gives; clones share it and always see the newest snapshot.
#[derive(Debug, Clone)]
pub struct View {
    current: Arc<ArcSwap<Snapshot>>,
    site: Arc<ArcSwap<Site>>,
}

impl View {
    pub(super) const fn new(current: Arc<ArcSwap<Snapshot>>, site: Arc<ArcSwap<Site>>) -> Self {
        Self { current, site }
    }

    /// A view of one snapshot that follows no catalog.
    #[must_use]
    pub fn fixed(snapshot: Snapshot) -> Self {
        Self::new(Arc::new(ArcSwap::from_pointee(snapshot)), Arc::default())
    }

    /// The current snapshot; cheap, never waits.
    #[must_use]
    pub fn get(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The servers, and who of them is alive; cheap, never waits.
    #[must_use]
    pub fn site(&self) -> Arc<Site> {
        self.site.load_full()
    }
}
