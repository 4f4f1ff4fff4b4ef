//! Intentions that wait for a person (see `dls doctor storage`), in memory: each start finds them anew.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

/// Their ids in the journal.
#[derive(Debug, Default)]
pub(super) struct Aside(Mutex<BTreeSet<Uuid>>);

impl Aside {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<Uuid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that can't be finished without being asked to.
    pub(super) fn add(&self, id: Uuid) {
        self.lock().insert(id);
    }

    /// All of them.
    pub(super) fn all(&self) -> BTreeSet<Uuid> {
        self.lock().clone()
    }

    /// One is dealt with.
    pub(super) fn remove(&self, id: Uuid) {
        self.lock().remove(&id);
    }
}
