//! Holds on snapshots are ZFS's own user holds, with tags that begin with `dls:`. Those of others
//! are left alone, and keep what they hold as well.

use std::io;

use super::listing::zfs;
use super::names::parse_snapshot;
use super::{ZfsStore, damaged};
use crate::storage::{HeldSnapshot, HoldTag, SnapshotId, VolumeError};

/// What our tags begin with.
const OURS: &str = "dls:";

/// The hold of a line of `zfs holds -H`: snapshot, tag, time.
fn read(line: &str) -> Option<HeldSnapshot> {
    let mut words = line.split('\t');
    let snapshot = parse_snapshot(words.next()?.split_once('@')?.1)?;
    let tag = HoldTag::parse(words.next()?.strip_prefix(OURS)?)?;
    Some(HeldSnapshot { snapshot, tag })
}

impl ZfsStore {
    fn tag(tag: HoldTag) -> String {
        format!("{OURS}{tag}")
    }

    pub(super) fn hold_now(&self, snapshot: &SnapshotId, tag: HoldTag) -> Result<(), VolumeError> {
        let place = self.place_of(snapshot)?;
        match self.inner.library.hold(&place, &Self::tag(tag)) {
            Err(e) if e.raw_os_error() != Some(libc::EEXIST) => {
                Err(self.failed(snapshot, "hold", &e))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn release_now(
        &self,
        snapshot: &SnapshotId,
        tag: HoldTag,
    ) -> Result<(), VolumeError> {
        let place = match self.place_of(snapshot) {
            Err(VolumeError::Missing(_)) => return Ok(()),
            other => other?,
        };
        let gone = |e: &io::Error| {
            let code = e.raw_os_error().unwrap_or_default();
            [libc::ENOENT, libc::ESRCH].contains(&code)
        };
        match self.inner.library.release(&place, &Self::tag(tag)) {
            Err(e) if !gone(&e) => Err(self.failed(snapshot, "release", &e)),
            _ => Ok(()),
        }
    }

    pub(super) fn holds_now(&self) -> Result<Vec<HeldSnapshot>, VolumeError> {
        let listing = self.listing()?;
        let held = listing.snapshots.iter().filter(|s| s.held > 0);
        let places: Vec<String> = held.map(|s| self.lies(s)).collect();
        let mut found = Vec::new();
        // A command line has room for so many names.
        for some in places.chunks(200) {
            let mut arguments = vec!["holds", "-H"];
            arguments.extend(some.iter().map(String::as_str));
            found.extend(zfs(&arguments)?.lines().filter_map(read));
        }
        found.sort();
        Ok(found)
    }

    /// Refuses if one of these snapshots is held, by whomever.
    pub(super) fn unheld<'a>(
        what: impl ToString,
        mut of: impl Iterator<Item = &'a super::listing::Snapshot>,
    ) -> Result<(), VolumeError> {
        match of.find(|s| s.held > 0) {
            None => Ok(()),
            Some(held) => Err(super::busy(
                what,
                format!("{} is held (`zfs holds` says by whom)", held.id),
            )),
        }
    }

    pub(super) fn remove_snapshot_now(&self, snapshot: &SnapshotId) -> Result<(), VolumeError> {
        let listing = self.listing()?;
        let Ok(found) = listing.find(snapshot) else {
            return Ok(());
        };
        if let Some(user) = listing.standing_on(found).next() {
            return Err(super::busy(snapshot, format!("{user} was cloned from it")));
        }
        Self::unheld(snapshot, std::iter::once(found))?;
        let name = self.lies(found);
        self.inner
            .library
            .destroy_snapshots(std::slice::from_ref(&name))
            .map_err(|e| match e.raw_os_error() {
                Some(libc::EEXIST | libc::EBUSY) => {
                    super::busy(snapshot, "it was cloned from or is held")
                }
                Some(libc::ENOENT) => damaged(snapshot, "it went away meanwhile"),
                _ => self.failed(snapshot, "destroy,mount", &e),
            })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::storage::Volume;

    #[test]
    fn holds_of_others_are_none_of_ours() {
        let image = Uuid::from_u128(1);
        let tag = HoldTag::Clone(Volume::Session(Uuid::from_u128(2)));
        let at = format!("tank/dls/image.{0}@image.{0}.base", image.simple());
        let line = format!("{at}\tdls:{tag}\tSat Nov  1 10:00 2025");
        let snapshot = SnapshotId::base(image);
        assert_eq!(read(&line), Some(HeldSnapshot { snapshot, tag }));
        assert_eq!(read(&format!("{at}\tkeep\tSat")), None);
        assert_eq!(read(&format!("{at}\tdls:else\tSat")), None);
        assert_eq!(read("tank/dls/else@x\tdls:else\tSat"), None);
    }
}
