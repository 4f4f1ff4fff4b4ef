//! A read-only handle on the current snapshot: it can't reach the catalog.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::Snapshot;

/// What [`super::Cache::view`] gives; clones share it and always see the newest snapshot.
#[derive(Debug, Clone)]
pub struct View {
    current: Arc<ArcSwap<Snapshot>>,
}

impl View {
    pub(super) const fn new(current: Arc<ArcSwap<Snapshot>>) -> Self {
        Self { current }
    }

    /// A view of one snapshot that follows no catalog.
    #[must_use]
    pub fn fixed(snapshot: Snapshot) -> Self {
        Self::new(Arc::new(ArcSwap::from_pointee(snapshot)))
    }

    /// The current snapshot; cheap, never waits.
    #[must_use]
    pub fn get(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }
}
