//! What differs between two snapshots, by the tables of the layers above what they share: no
//! data is read. Nothing is changed here.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::shelf::{OpenLayer, Role};
use super::{DiskStore, io_error};
use crate::storage::layer::Content;
use crate::storage::ranges::push;
use crate::storage::{ExtentKind, SnapshotId, Volume, VolumeError};

/// Layers from a snapshot's own down, all held open.
type Chain = Vec<Arc<dyn Content>>;

/// Does something of interest lie at a place, and for how many of so many bytes is it so.
type Look = fn(&dyn Content, u64, u64) -> io::Result<(bool, u64)>;

/// Layers are open once, so that it is enough to compare where they lie.
fn same(a: &Arc<dyn Content>, b: &Arc<dyn Content>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b))
}

fn has_data(layer: &dyn Content, at: u64, most: u64) -> io::Result<(bool, u64)> {
    let run = layer.run(at, most)?;
    Ok((run.kind == ExtentKind::Data, run.length))
}

fn is_own(layer: &dyn Content, at: u64, most: u64) -> io::Result<(bool, u64)> {
    layer.own(at, most)
}

/// Ranges of a disk of `size` bytes where at least one of the layers has something.
fn found(layers: &[Arc<dyn Content>], size: u64, look: Look) -> io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let (mut differs, mut length) = (false, size - at);
        for layer in layers {
            // The older disk may be shorter.
            let most = length.min(layer.size().saturating_sub(at));
            if most > 0 {
                let (theirs, run) = look(layer.as_ref(), at, most)?;
                differs |= theirs;
                length = length.min(run);
            }
        }
        if differs {
            push(&mut ranges, at..at + length);
        }
        at += length;
    }
    Ok(ranges)
}

/// A layer and all that it lies upon.
fn down_from(top: Arc<OpenLayer>) -> Chain {
    let mut chain: Chain = vec![top];
    while let Some(below) = chain.last().and_then(|l| l.under()) {
        chain.push(below);
    }
    chain
}

/// Where the first layers of two chains differ.
fn between(mut new: Chain, mut old: Chain, size: u64) -> Result<Vec<Range<u64>>, VolumeError> {
    // A layer that is being flattened lets go of what is below it at some moment, and then
    // nothing is shared any more; what was seen to be shared before stays right, since
    // flattening changes no content.
    let of_old = |layer| old.iter().position(|o| same(o, layer));
    let mut places = new.iter().enumerate();
    let found = match places.find_map(|(n, layer)| Some((n, of_old(layer)?))) {
        Some((above_new, above_old)) => {
            new.truncate(above_new);
            old.truncate(above_old);
            new.append(&mut old);
            found(&new, size, is_own)
        }
        None => {
            new.truncate(1);
            old.truncate(1);
            new.append(&mut old);
            found(&new, size, has_data)
        }
    };
    found.map_err(|e| io_error("reading the tables of a disk", e))
}

impl DiskStore {
    fn chain(&self, snapshot: &SnapshotId) -> Result<(Chain, u64), VolumeError> {
        let (layer, size) = self.frozen(snapshot)?;
        let top = self.inner.shelf.open(layer, Role::Ground, size)?;
        Ok((down_from(top), size))
    }

    /// See [`crate::storage::Storage::own`].
    pub(super) fn find_own(&self, volume: Volume) -> Result<Vec<Range<u64>>, VolumeError> {
        let disk = self.disk(volume)?;
        let top = disk.top().clone();
        let origin = self.state().get(volume)?.manifest.origin.clone();
        let why = "what lies upon it is being listed";
        let _pinned = origin
            .as_ref()
            .map(|o| self.pin(o.volume, why))
            .transpose()?;
        let old = match &origin {
            Some(origin) => self.chain(origin)?.0,
            None => Chain::new(),
        };
        between(down_from(top), old, disk.size)
    }

    /// See [`crate::storage::Storage::changes`].
    pub(super) fn find_changes(
        &self,
        from: Option<&SnapshotId>,
        to: &SnapshotId,
    ) -> Result<Vec<Range<u64>>, VolumeError> {
        let why = "its changes are being listed";
        let _pin = self.pin(to.volume, why)?;
        let (new, size) = self.chain(to)?;
        let _pinned = from.map(|f| self.pin(f.volume, why)).transpose()?;
        let old = match from {
            Some(from) => self.chain(from)?.0,
            None => Chain::new(),
        };
        between(new, old, size)
    }
}
