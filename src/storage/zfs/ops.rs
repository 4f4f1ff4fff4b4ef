//! The calls of [`Storage`] on volumes, and what the store does when it is opened.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::device::{Disk, Handle};
use super::gate::{Gate, is_away};
use super::library::Properties;
use super::listing::{Dataset, INTENT, Listing, ORIGIN, SIZE, Snapshot, zfs};
use super::names::{parse_snapshot, parse_volume, snapshot_word, word};
use super::{Compression, Reserve, Shape, Slot, ZfsStore, busy, damaged, lock};
use crate::storage::{
    Access, BlockDevice, DiskFormat, HeldSnapshot, HoldTag, Imported, Progress, SnapshotId,
    Storage, Streams, Volume, VolumeError, VolumeInfo,
};

/// How often a removal that finds the device open is tried, and how many times: 5 s in all.
/// udev looks into each new device for a moment.
const TICK: Duration = Duration::from_millis(25);
const PATIENCE: u32 = 200;
/// Datasets that stand upon one another at most, as far as promoting goes.
pub(super) const MOST_STEPS: usize = 64;
/// ZFS's numbers of compressions.
const OFF: u64 = 2;
const LZ4: u64 = 15;
const ZSTD: u64 = 16;

impl ZfsStore {
    /// An error of the library in our words. `rights` is what `zfs allow` must give for it.
    pub(super) fn failed(
        &self,
        what: impl ToString,
        rights: &str,
        error: &io::Error,
    ) -> VolumeError {
        let what = what.to_string();
        if is_away(error) {
            return VolumeError::Away(error.to_string());
        }
        match error.raw_os_error().unwrap_or_default() {
            libc::ENOENT | libc::ENXIO | libc::ESRCH if !self.is_there() => self.without(),
            libc::ENOENT | libc::ENXIO | libc::ESRCH => VolumeError::Missing(what),
            libc::EEXIST => VolumeError::Exists(what),
            libc::EBUSY => busy(
                what,
                "a program of this server has its device open, or it is held",
            ),
            libc::ENOSPC | libc::EDQUOT => VolumeError::NoSpace,
            libc::EPERM | libc::EACCES => damaged(
                what,
                format!(
                    "ZFS refuses it to the server's user: `zfs allow -u dls {rights} {}` gives \
                     the right",
                    self.inner.parent
                ),
            ),
            libc::EAGAIN => VolumeError::Away(format!(
                "the pool of {} is suspended after errors of its disks",
                self.inner.parent
            )),
            libc::EROFS => damaged(what, "the pool was imported for reading only"),
            _ => VolumeError::Io {
                what,
                source: io::Error::new(error.kind(), error.to_string()),
            },
        }
    }

    /// Whether the parent dataset is there: what is missing below it is then missing indeed.
    fn is_there(&self) -> bool {
        let parent = self.inner.parent.as_str();
        self.inner.library.exists(parent).unwrap_or(false)
    }

    fn without(&self) -> VolumeError {
        let parent = self.inner.parent.as_str();
        // What comes back may be another pool of that name, or may have been changed meanwhile.
        lock(&self.inner.shapes).clear();
        Gate::of(parent).without(parent)
    }

    /// Whether a dataset or snapshot is there.
    ///
    /// # Errors
    /// `Away`, which is never told as something missing.
    pub(super) fn exists(&self, name: &str) -> Result<bool, VolumeError> {
        let there = self.inner.library.exists(name);
        match there.map_err(|e| super::io_error(&format!("looking for {name}"), e))? {
            false if !self.is_there() => Err(self.without()),
            there => Ok(there),
        }
    }

    /// Makes an empty zvol, with its space where that is wanted.
    pub(super) fn make(&self, dataset: &str, size: u64) -> Result<(), VolumeError> {
        let rights = "create,mount,userprop,volsize,volblocksize,compression";
        self.make_sparse(dataset, size)
            .map_err(|e| self.failed(dataset, rights, &e))?;
        match self.inner.options.reserve {
            Reserve::Nothing => Ok(()),
            Reserve::Images | Reserve::All => self.set_aside(dataset),
        }
    }

    /// Has the pool keep what the whole of a new dataset takes, or removes it again. A crash in
    /// between leaves it sparse, which loses nothing.
    pub(super) fn set_aside(&self, dataset: &str) -> Result<(), VolumeError> {
        let set = zfs(&["set", "refreservation=auto", dataset]);
        if let Err(refused) = set {
            self.remove(dataset)?;
            return Err(refused);
        }
        Ok(())
    }

    fn make_sparse(&self, dataset: &str, size: u64) -> io::Result<()> {
        let block = u64::from(self.inner.options.block);
        let mut properties = Properties {
            numbers: vec![
                ("volsize", size.next_multiple_of(block)),
                ("volblocksize", block),
            ],
            texts: vec![(SIZE, size.to_string())],
        };
        match self.inner.options.compression {
            Compression::Inherit => {}
            Compression::Off => properties.numbers.push(("compression", OFF)),
            Compression::Lz4 => properties.numbers.push(("compression", LZ4)),
            Compression::Zstd => properties.numbers.push(("compression", ZSTD)),
        }
        self.inner.library.create(dataset, &properties)
    }

    /// Size and blocks of a volume that is there.
    pub(super) fn shape(&self, volume: Volume) -> Result<Shape, VolumeError> {
        if let Some(shape) = lock(&self.inner.shapes).get(&volume) {
            return Ok(*shape);
        }
        let listing = self.listing_of(volume)?;
        let Dataset { size, block, .. } = *listing.get(volume)?;
        let shape = Shape { size, block };
        lock(&self.inner.shapes).insert(volume, shape);
        Ok(shape)
    }

    pub(super) fn lies(&self, snapshot: &Snapshot) -> String {
        self.inner.parent.snapshot(snapshot.lies_in, &snapshot.id)
    }

    /// Makes `dataset` of a snapshot.
    pub(super) fn make_clone(
        &self,
        origin: &SnapshotId,
        dataset: &str,
        size: u64,
    ) -> Result<(), VolumeError> {
        let from = self.place_of(origin)?;
        let properties = Properties {
            numbers: Vec::new(),
            texts: vec![(SIZE, size.to_string()), (ORIGIN, snapshot_word(origin))],
        };
        let made = self.inner.library.clone(&from, dataset, &properties);
        made.map_err(|e| match e.raw_os_error() {
            // Which of the two names is missing or taken is no riddle here.
            Some(libc::ENOENT) if self.is_there() => VolumeError::Missing(origin.to_string()),
            _ => self.failed(dataset, "clone,create,mount,userprop", &e),
        })
    }

    /// Removes a dataset; waits a little for a device that somebody looks into.
    pub(super) fn remove(&self, dataset: &str) -> Result<(), VolumeError> {
        let mut tries = 0;
        loop {
            match self.inner.library.destroy(dataset) {
                Ok(()) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) && self.is_there() => {
                    return Ok(());
                }
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && tries < PATIENCE => {
                    tries += 1;
                    thread::sleep(TICK);
                }
                Err(e) => return Err(self.failed(dataset, "destroy,mount", &e)),
            }
        }
    }

    /// Says on a dataset what is being done to it.
    pub(super) fn intend(&self, volume: Volume, intent: &str) -> Result<(), VolumeError> {
        let value = format!("{INTENT}={intent}");
        zfs(&["set", &value, &self.place(volume)]).map(|_| ())
    }

    pub(super) fn intend_nothing(&self, volume: Volume) -> Result<(), VolumeError> {
        zfs(&["inherit", INTENT, &self.place(volume)]).map(|_| ())
    }

    /// Finishes or undoes what was begun before the store was opened.
    pub(super) fn mend(&self, listing: &Listing) -> Result<(), VolumeError> {
        for dataset in &listing.scratch {
            self.remove(dataset)?;
        }
        for snapshot in &listing.passing {
            let removed = self
                .inner
                .library
                .destroy_snapshots(std::slice::from_ref(snapshot));
            removed.map_err(|e| self.failed(snapshot, "destroy,mount", &e))?;
        }
        for volume in self.inner.staging.list()? {
            self.inner.staging.destroy(volume.volume)?;
        }
        for (volume, dataset) in &listing.volumes {
            let Some(intent) = &dataset.intent else {
                continue;
            };
            let finished = match intent.split_once(' ') {
                None if intent == "destroy" => self.destroy(*volume),
                Some(("rollback", word)) => match parse_snapshot(word) {
                    Some(id) if id.volume == *volume => self.rollback(&id),
                    _ => Err(damaged(volume, format!("its {INTENT} is `{intent}`"))),
                },
                Some(("drop", word)) => match parse_volume(word) {
                    Some(gone) => self.drop_snapshots(gone, *volume),
                    None => Err(damaged(volume, format!("its {INTENT} is `{intent}`"))),
                },
                _ => Err(damaged(volume, format!("its {INTENT} is `{intent}`"))),
            };
            if let Err(e) = finished {
                tracing::warn!(
                    volume = %volume, intent = %intent, error = %e,
                    "what was begun with a volume could not be finished"
                );
            }
        }
        for volume in &listing.renewed {
            if self.exists(&self.place(*volume))? {
                self.remove(&self.inner.parent.renewed(*volume))?;
            } else {
                self.take_place(*volume)?;
            }
        }
        Ok(())
    }

    /// Removes the snapshots of a volume that is gone from who carries them, and says there that
    /// it is done; of a volume that is there still, only that. One that a third volume stands upon
    /// (of two versions made from one disk the older one does) goes with that.
    fn drop_snapshots(&self, gone: Volume, carrier: Volume) -> Result<(), VolumeError> {
        let listing = self.listing()?;
        if !listing.volumes.contains_key(&gone) {
            let its = listing.snapshots.iter();
            let its = its.filter(|s| s.id.volume == gone && s.lies_in == carrier);
            let its: Vec<String> = its.map(|s| self.lies(s)).collect();
            let gone_too = self.inner.library.let_snapshots_go(&its);
            gone_too.map_err(|e| self.failed(gone, "destroy,mount", &e))?;
        }
        self.intend_nothing(carrier)
    }

    /// Has `volume` carry what it stands upon, instead of the other way round, once.
    pub(super) fn turn_round(&self, volume: Volume) -> Result<Listing, VolumeError> {
        let turned = self.inner.library.promote(&self.place(volume));
        turned.map_err(|e| self.failed(volume, "promote,mount", &e))?;
        self.listing()
    }

    /// Removes snapshots, all or none.
    fn remove_snapshots(&self, of: Volume, names: &[String]) -> Result<(), VolumeError> {
        if names.is_empty() {
            return Ok(());
        }
        let done = self.inner.library.destroy_snapshots(names);
        done.map_err(|e| match e.raw_os_error() {
            Some(libc::EEXIST | libc::EBUSY) => {
                busy(of, "one of its snapshots was cloned from or is held")
            }
            _ => self.failed(of, "destroy,mount", &e),
        })
    }

    /// Refuses if something was cloned from a volume.
    pub(super) fn unneeded(&self, listing: &Listing, volume: Volume) -> Result<(), VolumeError> {
        let child =
            |(_, d): &(&Volume, &Dataset)| d.origin.as_ref().is_some_and(|o| o.volume == volume);
        match listing.volumes.iter().find(child) {
            Some((child, _)) => Err(busy(volume, format!("{child} was cloned from it"))),
            None => Self::unheld(
                volume,
                listing.snapshots.iter().filter(|s| s.id.volume == volume),
            ),
        }
    }

    /// Removes a volume that is this thread's, with the tree.
    pub(super) fn destroy_taken(
        &self,
        volume: Volume,
        mut listing: Listing,
    ) -> Result<(), VolumeError> {
        // Who still stands upon it was freed from it, or was there before it: it takes what
        // they share.
        for _ in 0..MOST_STEPS {
            let inside = listing.snapshots.iter().filter(|s| s.lies_in == volume);
            let Some(heir) = inside.rev().find_map(|s| listing.standing_on(s).next()) else {
                break;
            };
            listing = self.turn_round(heir)?;
        }
        let inside = listing.snapshots.iter().filter(|s| s.lies_in == volume);
        if let Some(other) = inside.clone().find(|s| s.id.volume != volume) {
            return Err(busy(volume, format!("it carries {}", other.id)));
        }
        let inside: Vec<String> = inside.map(|s| self.lies(s)).collect();
        if !inside.is_empty() {
            self.intend(volume, "destroy")?;
            if let Err(e) = self.remove_snapshots(volume, &inside) {
                self.intend_nothing(volume)?;
                return Err(e);
            }
        }
        // Its snapshots that another carries go when it does not stand upon them any more.
        let outside = listing.snapshots.iter();
        let outside = outside.filter(|s| s.id.volume == volume && s.lies_in != volume);
        let carriers: BTreeSet<Volume> = outside.map(|s| s.lies_in).collect();
        for carrier in &carriers {
            self.intend(*carrier, &format!("drop {}", word(volume)))?;
        }
        let removed = self.remove(&self.place(volume));
        if removed.is_ok() {
            lock(&self.inner.shapes).remove(&volume);
        }
        for carrier in carriers {
            self.drop_snapshots(volume, carrier)?;
        }
        removed
    }
}

impl Storage for ZfsStore {
    /// ZFS writes a dataset's properties after the dataset, and a power cut may fall between: so
    /// it gets its name last, when it is whole. Its device is waited for before: one that is made
    /// while its dataset is renamed is made for neither name.
    fn create(&self, volume: Volume, size: u64) -> Result<(), VolumeError> {
        let (name, scratch) = (self.place(volume), self.scratch());
        if self.exists(&name)? {
            return Err(VolumeError::Exists(volume.to_string()));
        }
        self.make(&scratch.dataset, size)?;
        let block = self.inner.options.block;
        drop(self.open_scratch(&scratch, Shape { size, block }, Access::Write)?);
        let named = self.inner.library.rename(&scratch.dataset, &name);
        named.map_err(|e| self.failed(volume, "rename,create,mount", &e))
    }

    fn import(
        &self,
        volume: Volume,
        source: &Path,
        format: DiskFormat,
        progress: &mut dyn FnMut(Progress),
        cancel: &CancellationToken,
    ) -> Result<Imported, VolumeError> {
        self.bring_in(volume, source, format, progress, cancel)
    }

    fn export(
        &self,
        snapshot: &SnapshotId,
        to: &Path,
        format: DiskFormat,
        progress: &mut dyn FnMut(Progress),
        cancel: &CancellationToken,
    ) -> Result<(), VolumeError> {
        self.give_out(snapshot, to, format, progress, cancel)
    }

    fn snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        match self.place_of(snapshot) {
            Ok(there) => return Err(VolumeError::Exists(there)),
            Err(VolumeError::Missing(_)) => {}
            Err(e) => return Err(e),
        }
        // What a machine has written and not flushed is in the page cache, above ZFS.
        if let Some(disk) = self.opened(snapshot.volume) {
            disk.flush_for_the_store()
                .map_err(|e| super::io_error(&format!("flushing {}", snapshot.volume), e))?;
        }
        let name = self.inner.parent.snapshot(snapshot.volume, snapshot);
        let made = self.inner.library.snapshot(&name);
        made.map_err(|e| self.failed(snapshot, "snapshot,mount", &e))
    }

    fn clone_volume(&self, origin: &SnapshotId, clone: Volume) -> Result<(), VolumeError> {
        let shape = self.shape(origin.volume)?;
        let place = self.place(clone);
        self.make_clone(origin, &place, shape.size)?;
        if self.inner.options.reserve == Reserve::All {
            self.set_aside(&place)?;
        }
        // A clone has the blocks of what it came from.
        lock(&self.inner.shapes).insert(clone, shape);
        Ok(())
    }

    fn rollback(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        let volume = snapshot.volume;
        let _taken = self
            .take(volume)
            .map_err(|_| busy(volume, "a machine has it open"))?;
        let _tree = lock(&self.inner.tree);
        let mut listing = self.listing()?;
        for _ in 0..MOST_STEPS {
            if listing.find(snapshot)?.lies_in == volume {
                break;
            }
            // A clone of it was promoted and carries its snapshots now.
            listing = self.turn_round(volume)?;
        }
        let own = listing.snapshots.iter().filter(|s| s.lies_in == volume);
        let later: Vec<&Snapshot> = own.skip_while(|s| s.id != *snapshot).skip(1).collect();
        for later in &later {
            if let Some(user) = listing.standing_on(later).next() {
                return Err(busy(&later.id, format!("{user} was cloned from it")));
            }
            if later.id.volume != volume {
                return Err(busy(&later.id, format!("{} needs it", later.id.volume)));
            }
        }
        Self::unheld(snapshot, later.iter().copied())?;
        let names: Vec<String> = later.iter().map(|s| self.lies(s)).collect();
        let begun = listing.get(volume)?.intent.is_some();
        if !names.is_empty() {
            self.intend(volume, &format!("rollback {}", snapshot_word(snapshot)))?;
            if let Err(e) = self.remove_snapshots(volume, &names) {
                self.intend_nothing(volume)?;
                return Err(e);
            }
        }
        let back = self.inner.parent.snapshot(volume, snapshot);
        let done = self.inner.library.rollback(&self.place(volume), &back);
        done.map_err(|e| self.failed(snapshot, "rollback,mount", &e))?;
        if begun || !names.is_empty() {
            self.intend_nothing(volume)?;
        }
        Ok(())
    }

    /// With native encryption, what is sent and what is received need keys at other places and
    /// other times than the datasets do, and OpenZFS has lost data there: it is refused.
    fn may_replicate(&self) -> Result<(), VolumeError> {
        let parent = self.inner.parent.as_str();
        let asked = ["get", "-Hp", "-o", "value", "encryption", parent];
        match zfs(&asked)?.trim() {
            "off" | "-" => Ok(()),
            cipher => Err(damaged(
                parent,
                format!(
                    "it is encrypted by ZFS ({cipher}), and such datasets are not replicated: \
                     use a dataset without `encryption`, on an encrypted disk if need be"
                ),
            )),
        }
    }

    fn streams(&self) -> Option<&dyn Streams> {
        Some(self)
    }

    /// ZFS copies nothing for this: the clone takes over what it shares, and the volume that it
    /// came from stands upon it from then on.
    fn promote(
        &self,
        volume: Volume,
        progress: &mut dyn FnMut(Progress),
        cancel: &CancellationToken,
    ) -> Result<(), VolumeError> {
        let _tree = lock(&self.inner.tree);
        let mut listing = self.listing()?;
        for _ in 0..MOST_STEPS {
            if listing.get(volume)?.stands_on.is_none() {
                break;
            }
            if cancel.is_cancelled() {
                return Err(VolumeError::Cancelled);
            }
            listing = self.turn_round(volume)?;
        }
        if listing.get(volume)?.origin.is_some() {
            zfs(&["set", &format!("{ORIGIN}=-"), &self.place(volume)])?;
        }
        progress(Progress {
            step: "flattening",
            done: 1.0,
        });
        Ok(())
    }

    fn destroy(&self, volume: Volume) -> Result<(), VolumeError> {
        let _taken = self
            .take(volume)
            .map_err(|_| busy(volume, "a machine has it open"))?;
        let _tree = lock(&self.inner.tree);
        let mut listing = self.listing_of(volume)?;
        if !listing.volumes.contains_key(&volume) {
            return Ok(());
        }
        // Nothing stands upon a volume without snapshots, and that is what machines leave.
        if !listing.snapshots.is_empty() {
            listing = self.listing()?;
        }
        self.unneeded(&listing, volume)?;
        self.destroy_taken(volume, listing)
    }

    fn remove_snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        let _tree = lock(&self.inner.tree);
        self.remove_snapshot_now(snapshot)
    }

    fn hold(&self, snapshot: &SnapshotId, tag: HoldTag) -> Result<(), VolumeError> {
        self.hold_now(snapshot, tag)
    }

    fn release(&self, snapshot: &SnapshotId, tag: HoldTag) -> Result<(), VolumeError> {
        self.release_now(snapshot, tag)
    }

    fn holds(&self) -> Result<Vec<HeldSnapshot>, VolumeError> {
        self.holds_now()
    }

    fn open(&self, volume: Volume, access: Access) -> Result<Arc<dyn BlockDevice>, VolumeError> {
        let disk = match self.take(volume) {
            Err(disk) => disk,
            Ok(taken) => {
                let dataset = self.place(volume);
                if !self.exists(&dataset)? {
                    return Err(VolumeError::Missing(volume.to_string()));
                }
                let Shape { size, block } = self.shape(volume)?;
                let disk = Arc::new(Disk::open(&dataset, size, block)?);
                let open = Slot::Open(Arc::downgrade(&disk));
                let mut slots = lock(&self.inner.slots);
                slots.retain(|_, s| !matches!(s, Slot::Open(d) if d.strong_count() == 0));
                slots.insert(volume, open);
                drop(slots);
                drop(taken);
                disk
            }
        };
        Ok(Arc::new(Handle { disk, access }))
    }

    fn changes(
        &self,
        from: Option<&SnapshotId>,
        to: &SnapshotId,
    ) -> Result<Vec<Range<u64>>, VolumeError> {
        self.find_changes(from, to)
    }

    fn own(&self, volume: Volume) -> Result<Vec<Range<u64>>, VolumeError> {
        self.find_own(volume)
    }

    fn renew(&self, origin: &SnapshotId, volume: Volume) -> Result<(), VolumeError> {
        self.renew_now(origin, volume)
    }

    fn info(&self, volume: Volume) -> Result<Option<VolumeInfo>, VolumeError> {
        Ok(self.listing_of(volume)?.info(&self.inner.parent, volume))
    }

    fn list(&self) -> Result<Vec<VolumeInfo>, VolumeError> {
        let listing = self.listing()?;
        let volumes = listing.volumes.keys();
        Ok(volumes
            .filter_map(|v| listing.info(&self.inner.parent, *v))
            .collect())
    }
}
