//! Holds on snapshots: an empty file for each in `holds/`, by the names of snapshot and tag. A
//! snapshot's end is refused while there is one; it is no manifest's concern.
//!
//! A clone's hold is made in a login, which waits for no disk: like the clone itself it outlives the
//! server at once and a power cut later. What a power cut took is held again when the store is
//! mended, before anybody could remove anything.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::manifest::{file_name, volume_of};
use super::{DiskStore, State, io_error};
use crate::storage::directory::sync_folder;
use crate::storage::{HeldSnapshot, HoldTag, SnapshotId, Volume, VolumeError};

/// `image.ID@base@clone.session.ID`
fn name_of(held: &HeldSnapshot) -> String {
    let volume = file_name(held.snapshot.volume);
    let volume = volume.trim_end_matches(".json");
    format!("{volume}@{}@{}", held.snapshot.name.as_str(), held.tag)
}

fn held_of(name: &str) -> Option<HeldSnapshot> {
    let mut words = name.split('@');
    let volume = volume_of(&format!("{}.json", words.next()?))?;
    let snapshot = SnapshotId {
        volume,
        name: words.next()?.parse().ok()?,
    };
    let tag = HoldTag::parse(words.next()?)?;
    Some(HeldSnapshot { snapshot, tag }).filter(|held| name_of(held) == name)
}

/// The holds that a folder has.
pub(super) fn load(folder: &Path) -> io::Result<BTreeSet<HeldSnapshot>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        match name.to_str().and_then(held_of) {
            Some(held) => {
                found.insert(held);
            }
            None => tracing::warn!(file = ?name, "a file among the holds is none of ours"),
        }
    }
    Ok(found)
}

impl State {
    /// Who holds a snapshot of a volume, of those that `of` picks; for people.
    pub(super) fn holder(
        &self,
        volume: Volume,
        of: impl Fn(&SnapshotId) -> bool,
    ) -> Option<String> {
        let mut held = self.holds.iter();
        let found = held.find(|h| h.snapshot.volume == volume && of(&h.snapshot))?;
        Some(format!("it is held ({})", found.tag))
    }
}

impl DiskStore {
    pub(super) fn hold_now(&self, held: HeldSnapshot) -> Result<(), VolumeError> {
        {
            let mut state = self.state();
            let manifest = &state.get(held.snapshot.volume)?.manifest;
            if manifest.frozen(&held.snapshot.name).is_none() {
                return Err(VolumeError::Missing(held.snapshot.to_string()));
            }
            // From here on nothing removes it; the file follows.
            if !state.holds.insert(held.clone()) {
                return Ok(());
            }
        }
        let path = self.inner.holds.join(name_of(&held));
        let made = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640)
            .open(&path)
            .and_then(|_| match held.tag {
                HoldTag::Clone(_) => Ok(()),
                HoldTag::Replication(_) => sync_folder(&self.inner.holds),
            });
        made.map_err(|e| {
            let _ = fs::remove_file(&path);
            self.state().holds.remove(&held);
            io_error("holding a snapshot", e)
        })
    }

    pub(super) fn release_now(&self, held: &HeldSnapshot) -> Result<(), VolumeError> {
        if !self.state().holds.contains(held) {
            return Ok(());
        }
        match fs::remove_file(self.inner.holds.join(name_of(held))) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("releasing a snapshot", e));
            }
            _ => {}
        }
        self.state().holds.remove(held);
        Ok(())
    }
}
