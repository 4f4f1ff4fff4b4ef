//! What is put right in a store before anybody uses it, after a crash: all that needs no catalog.
//! It asks no database and waits for none; what only the catalog can tell stays written down.
//!
//! A volume without its first snapshot was being made: its row comes later, so it has none and
//! goes. A disk that was being thrown away goes. Holds follow the disks that are there.

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::holds::{self, HeldSnapshot, HoldTag};
use super::pending::{Intent, Pending};
use super::volume::{SnapshotId, SnapshotName, Storage, Volume, VolumeError, VolumeInfo};

/// The snapshot of a client's disk that a version is made from.
///
/// # Errors
/// Never; names of ours are right.
pub fn version_snapshot(version: Uuid) -> Result<SnapshotName, VolumeError> {
    format!("version-{}", version.simple()).parse()
}

/// The version that a snapshot of a client's disk was made for.
#[must_use]
pub fn version_of(name: &SnapshotName) -> Option<Uuid> {
    let id = name.as_str().strip_prefix("version-")?;
    Uuid::try_parse(id).ok()
}

/// Puts right what can be; what can't is told in the log and stays for the next start. Blocks.
pub fn mend(store: &dyn Storage, pending: &Pending) {
    let noted = match pending.intents() {
        Ok(noted) => noted,
        Err(error) => {
            tracing::error!(%error, "the journal of intentions can't be read");
            Vec::new()
        }
    };
    for noted in noted {
        match settle(store, noted.intent) {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(intent = ?noted.intent, "what was begun before the server ended is undone or finished");
                if let Err(error) = pending.end(noted.intent.id()) {
                    tracing::warn!(%error, "the journal of intentions keeps an entry that is over");
                }
            }
            Err(error) => {
                tracing::warn!(intent = ?noted.intent, %error, "what was begun before the server ended can't be settled yet");
            }
        }
    }
    match end_replications(store).and_then(|ended| {
        let (released, made) = settle_holds(store)?;
        Ok((released + ended, made))
    }) {
        Ok((0, 0)) => {}
        Ok((released, made)) => tracing::info!(released, made, "holds on versions put right"),
        Err(error) => tracing::warn!(%error, "holds on versions can't be put right"),
    }
}

/// At the start nothing is being replicated; whoever goes on with it holds anew.
fn end_replications(store: &dyn Storage) -> Result<usize, VolumeError> {
    let held = store.holds()?;
    let ended = held
        .iter()
        .filter(|h| matches!(h.tag, HoldTag::Replication(_)));
    for hold in ended.clone() {
        store.release(&hold.snapshot, hold.tag)?;
    }
    Ok(ended.count())
}

/// True if it is over; false if the catalog has to be asked.
fn settle(store: &dyn Storage, intent: Intent) -> Result<bool, VolumeError> {
    let is_whole = |id: Uuid| {
        let info = store.info(Volume::Image(id))?;
        Ok::<_, VolumeError>(info.map(|info| info.snapshots.contains(&SnapshotName::base())))
    };
    match intent {
        Intent::Image { image } => {
            if is_whole(image)? == Some(false) {
                store.destroy(Volume::Image(image))?;
            }
            // There may be a row and files.
            Ok(false)
        }
        Intent::Version { version, .. } => {
            if is_whole(version)? == Some(true) {
                return Ok(false);
            }
            store.destroy(Volume::Image(version))?;
            forget_version(store, version)?;
            Ok(true)
        }
        Intent::Reset {
            client,
            image,
            maintenance,
        } => {
            for info in store.list()? {
                if is_personal(info.volume, client, image) {
                    free_of(store, info.volume, &CancellationToken::new())?;
                    remove_clone(store, &info)?;
                }
            }
            Ok(maintenance.is_none())
        }
    }
}

/// True if that is a client's persistent disk, of that image or of any.
#[must_use]
pub fn is_personal(volume: Volume, of: Uuid, on: Option<Uuid>) -> bool {
    match volume {
        Volume::Personal { client, image } => client == of && on.is_none_or(|on| on == image),
        Volume::Image(_) | Volume::Session(_) => false,
    }
}

/// Removes the snapshot that a version was made from, wherever that disk is.
///
/// # Errors
/// `Busy` while the version's volume stands upon it; `Io`.
pub fn forget_version(store: &dyn Storage, version: Uuid) -> Result<(), VolumeError> {
    let name = version_snapshot(version)?;
    for info in store.list()? {
        if info.snapshots.contains(&name) {
            store.remove_snapshot(&SnapshotId {
                volume: info.volume,
                name: name.clone(),
            })?;
        }
    }
    Ok(())
}

/// Removes a machine's disk, and then its hold on the version that it was made from.
///
/// # Errors
/// As [`Storage::destroy`].
pub fn remove_clone(store: &dyn Storage, info: &VolumeInfo) -> Result<(), VolumeError> {
    store.destroy(info.volume)?;
    match &info.origin {
        Some(origin) => store.release(origin, HoldTag::Clone(info.volume)),
        None => Ok(()),
    }
}

/// Frees what was made from a volume of it, so that it can go: versions of a client's disk hold
/// all of their content themselves afterwards, which takes as long as copying it.
///
/// # Errors
/// As [`Storage::promote`].
pub fn free_of(
    store: &dyn Storage,
    volume: Volume,
    cancel: &CancellationToken,
) -> Result<(), VolumeError> {
    for info in store.list()? {
        if info.stands_upon(volume) {
            tracing::info!(%volume, version = %info.volume, "a version is freed of the disk that it was made from");
            store.promote(info.volume, &mut |_| {}, cancel)?;
        }
    }
    Ok(())
}

/// Releases what nobody needs any more, and holds what machines' disks stand upon; how many of
/// each. May run beside logins: these make a disk first, then its hold.
///
/// # Errors
/// As the store's calls; what was not done is done the next time.
pub fn settle_holds(store: &dyn Storage) -> Result<(usize, usize), VolumeError> {
    // In this order: whose disk was gone when it was looked for had none when it was held.
    let held = store.holds()?;
    let volumes = store.list()?;
    settle_held(store, &held, &volumes)
}

/// The same for who has looked already: for the holds first, then for the volumes.
///
/// # Errors
/// As [`settle_holds`].
pub fn settle_held(
    store: &dyn Storage,
    held: &[HeldSnapshot],
    volumes: &[VolumeInfo],
) -> Result<(usize, usize), VolumeError> {
    let stale = holds::stale(held, volumes);
    for hold in &stale {
        store.release(&hold.snapshot, hold.tag)?;
    }
    let mut made = 0;
    for hold in holds::lacking(held, volumes) {
        match store.hold(&hold.snapshot, hold.tag) {
            // Either was removed meanwhile.
            Err(VolumeError::Missing(_)) => {}
            other => {
                other?;
                made += 1;
            }
        }
    }
    Ok((stale.len(), made))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::Memory;

    const SIZE: u64 = 65536;

    struct World {
        store: Memory,
        pending: Pending,
        _dir: tempfile::TempDir,
    }

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    const fn personal() -> Volume {
        Volume::Personal {
            client: Uuid::from_u128(1),
            image: Uuid::from_u128(2),
        }
    }

    /// An image 2 and the disk of client 1 of it.
    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = Memory::new();
        store.create(Volume::Image(id(2)), SIZE).unwrap();
        store.snapshot(&SnapshotId::base(id(2))).unwrap();
        let base = SnapshotId::base(id(2));
        store.clone_volume(&base, personal()).unwrap();
        store.hold(&base, HoldTag::Clone(personal())).unwrap();
        World {
            store,
            pending: Pending::open(dir.path()).unwrap(),
            _dir: dir,
        }
    }

    fn from_disk(version: u128) -> SnapshotId {
        let name = version_snapshot(id(version)).unwrap();
        assert_eq!(version_of(&name), Some(id(version)));
        SnapshotId {
            volume: personal(),
            name,
        }
    }

    fn volumes(world: &World) -> Vec<Volume> {
        let all = world.store.list().unwrap();
        all.iter().map(|info| info.volume).collect()
    }

    #[test]
    fn a_version_that_is_not_whole_leaves_nothing_and_one_that_is_waits_for_the_catalog() {
        let world = world();
        let begin = |version: u128| {
            let intent = Intent::Version {
                version: id(version),
                client: id(1),
                image: id(2),
                reset: false,
            };
            world.pending.note(intent, None).unwrap();
            world.store.snapshot(&from_disk(version)).unwrap();
        };
        begin(10);
        begin(11);
        let clone = |n: u128| {
            let made = world
                .store
                .clone_volume(&from_disk(n), Volume::Image(id(n)));
            made.unwrap();
        };
        clone(11);
        begin(12);
        clone(12);
        world.store.snapshot(&SnapshotId::base(id(12))).unwrap();
        mend(&world.store, &world.pending);
        assert_eq!(world.pending.list().unwrap(), [id(12)]);
        let left = [Volume::Image(id(2)), Volume::Image(id(12)), personal()];
        assert_eq!(volumes(&world), left);
        let disk = world.store.info(personal()).unwrap().unwrap();
        assert_eq!(disk.snapshots, [from_disk(12).name]);
    }

    #[test]
    fn a_reset_is_finished_and_what_was_made_from_the_disk_stays() {
        let world = world();
        world.store.snapshot(&from_disk(10)).unwrap();
        let made = world
            .store
            .clone_volume(&from_disk(10), Volume::Image(id(10)));
        made.unwrap();
        world.store.snapshot(&SnapshotId::base(id(10))).unwrap();
        let intent = Intent::Reset {
            client: id(1),
            image: Some(id(2)),
            maintenance: None,
        };
        world.pending.note(intent, None).unwrap();
        mend(&world.store, &world.pending);
        assert_eq!(
            volumes(&world),
            [Volume::Image(id(2)), Volume::Image(id(10))]
        );
        assert_eq!(world.pending.intents().unwrap(), []);
        assert_eq!(world.store.holds().unwrap(), [], "its hold went with it");
    }

    #[test]
    fn holds_follow_the_disks() {
        let world = world();
        let base = SnapshotId::base(id(2));
        let gone = HoldTag::Clone(Volume::Session(id(77)));
        world.store.hold(&base, gone).unwrap();
        world
            .store
            .clone_volume(&base, Volume::Session(id(5)))
            .unwrap();
        assert_eq!(settle_holds(&world.store).unwrap(), (1, 1));
        let tags: Vec<_> = world.store.holds().unwrap().iter().map(|h| h.tag).collect();
        let there = [Volume::Session(id(5)), personal()].map(HoldTag::Clone);
        assert_eq!(tags, there);
        assert_eq!(settle_holds(&world.store).unwrap(), (0, 0));
        // A replication goes on while others' holds are put right, and has none at a start.
        let copying = HoldTag::Replication(id(9));
        world.store.hold(&base, copying).unwrap();
        assert_eq!(settle_holds(&world.store).unwrap(), (0, 0));
        assert_eq!(world.store.holds().unwrap().len(), 3);
        mend(&world.store, &world.pending);
        assert_eq!(world.store.holds().unwrap().len(), 2);
    }
}
