//! A fresh clone in the place of a volume, in several steps that the next opening finishes or
//! undoes.

use super::{ZfsStore, busy, lock};
use crate::storage::{SnapshotId, Volume, VolumeError};

impl ZfsStore {
    /// Gives the clone that waits for it the volume's name.
    pub(super) fn take_place(&self, volume: Volume) -> Result<(), VolumeError> {
        let renewed = self.inner.parent.renewed(volume);
        let named = self.inner.library.rename(&renewed, &self.place(volume));
        named.map_err(|e| self.failed(volume, "rename,create,mount", &e))
    }

    /// The clone is made under another name; then the old one goes, which is written on it
    /// first, and the clone takes its name. The next opening finishes that, or removes the clone
    /// if the old one was not on its way out yet.
    pub(super) fn renew_now(&self, origin: &SnapshotId, volume: Volume) -> Result<(), VolumeError> {
        let _taken = self
            .take(volume)
            .map_err(|_| busy(volume, "a machine has it open"))?;
        let shape = self.shape(origin.volume)?;
        let _tree = lock(&self.inner.tree);
        let listing = self.listing()?;
        listing.get(volume)?;
        self.unneeded(&listing, volume)?;
        let renewed = self.inner.parent.renewed(volume);
        self.make_clone(origin, &renewed, shape.size)?;
        let gone = self
            .intend(volume, "destroy")
            .and_then(|()| self.destroy_taken(volume, listing));
        if let Err(e) = gone {
            if self.exists(&self.place(volume)).unwrap_or(false) {
                self.intend_nothing(volume)?;
                self.remove(&renewed)?;
            }
            return Err(e);
        }
        self.take_place(volume)?;
        lock(&self.inner.shapes).insert(volume, shape);
        Ok(())
    }
}
