//! A fresh clone in the place of a volume: one manifest in the place of another, in one step; the
//! layers that nobody names any more go after it.

use super::manifest::{Form, LayerName};
use super::ops::{busy, turn};
use super::{DiskStore, io_error};
use crate::storage::{SnapshotId, Volume, VolumeError};

impl DiskStore {
    /// See [`crate::storage::Storage::renew`].
    pub(super) fn renew_now(&self, origin: &SnapshotId, volume: Volume) -> Result<(), VolumeError> {
        let order = self.order(volume)?;
        let _turn = turn(&order);
        let short = self.short(volume)?;
        let _short = turn(&short);
        let _pin = self.pin(origin.volume, "a clone of it is being made")?;
        let (below, size) = self.frozen(origin)?;
        let mut manifest = {
            let state = self.state();
            let record = state.get(volume)?;
            record.unused()?;
            if let Some(user) = state.child(volume, |_| true) {
                return Err(busy(volume, format!("{user} was cloned from it")));
            }
            if let Some(holder) = state.holder(volume, |_| true) {
                return Err(busy(volume, holder));
            }
            record.manifest.clone()
        };
        let gone: Vec<LayerName> = manifest.layers().collect();
        let top = self.new_layer(Form::Qcow2, size, Some(below))?;
        manifest.size = size;
        manifest.top = top;
        manifest.snapshots = Vec::new();
        manifest.origin = Some(origin.clone());
        manifest.settled = true;
        self.publish(top, manifest)?;
        for layer in gone {
            let removed = self.inner.shelf.remove(layer);
            removed.map_err(|e| io_error("removing a layer", e))?;
        }
        Ok(())
    }
}
