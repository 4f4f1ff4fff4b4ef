//! Work that is killed at any moment. `work` does random things with volumes until it is killed,
//! and says each in a ledger before it begins and after it was acknowledged; `mend` opens the
//! store as a new start would. Who compares the ledger with the pool is `tests/lab/zfs/audit`,
//! which is none of this.

use std::fs::{File, OpenOptions};
use std::io::Write;

use dls::storage::zfs::ZfsStore;
use dls::storage::{Access, Durability, SnapshotId, SnapshotName, Storage, Volume, VolumeError};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Stand, noise};

fn word(volume: Volume) -> String {
    match volume {
        Volume::Image(id) => format!("image.{}", id.simple()),
        Volume::Session(id) => format!("session.{}", id.simple()),
        Volume::Personal { client, image } => {
            format!("personal.{}.{}", client.simple(), image.simple())
        }
    }
}

pub(super) fn task(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let bytes = noise(8, self.0);
        u64::from_le_bytes(bytes.try_into().unwrap()) as usize % bound
    }
}

/// What is done next.
enum Step {
    Create(Volume),
    Mark(Volume, u64),
    Snapshot(SnapshotId),
    Clone(SnapshotId, Volume),
    Destroy(Volume),
    Promote(Volume),
    Rollback(SnapshotId),
}

impl Step {
    fn words(&self) -> String {
        let snapshot = |id: &SnapshotId| format!("{} {}", word(id.volume), id.name.as_str());
        match self {
            Self::Create(volume) => format!("create {}", word(*volume)),
            Self::Mark(volume, mark) => format!("mark {} {mark}", word(*volume)),
            Self::Snapshot(id) => format!("snapshot {}", snapshot(id)),
            Self::Clone(id, volume) => format!("clone {} {}", snapshot(id), word(*volume)),
            Self::Destroy(volume) => format!("destroy {}", word(*volume)),
            Self::Promote(volume) => format!("promote {}", word(*volume)),
            Self::Rollback(id) => format!("rollback {}", snapshot(id)),
        }
    }

    fn act(&self, store: &ZfsStore) -> Result<(), VolumeError> {
        match self {
            Self::Create(volume) => store.create(*volume, 1 << 20),
            Self::Mark(volume, mark) => {
                let disk = store.open(*volume, Access::Write)?;
                let data = mark.to_le_bytes().repeat(64);
                Ok(disk.write_at(4096, &data, Durability::Fua)?)
            }
            Self::Snapshot(id) => store.snapshot(id),
            Self::Clone(id, volume) => store.clone_volume(id, *volume),
            Self::Destroy(volume) => store.destroy(*volume),
            Self::Promote(volume) => store.promote(*volume, &mut |_| {}, &CancellationToken::new()),
            Self::Rollback(id) => store.rollback(id),
        }
    }
}

/// One of what is possible.
fn next(store: &ZfsStore, dice: &mut Dice, number: u64) -> Step {
    let all = store.list().unwrap();
    let fresh = Uuid::from_u128(u128::from(number) << 64 | u128::from(dice.0));
    if all.is_empty() || (all.len() < 3 && dice.below(2) == 0) {
        return Step::Create(Volume::Image(fresh));
    }
    let one = &all[dice.below(all.len())];
    let id = |name: &SnapshotName| SnapshotId {
        volume: one.volume,
        name: name.clone(),
    };
    let own = one.snapshots.len();
    let some = (own > 0).then(|| id(&one.snapshots[dice.below(own)]));
    match (dice.below(10), some) {
        (0..=2, Some(from)) if all.len() < 14 => {
            let version = dice.below(3) == 0;
            let to = if version {
                Volume::Image(fresh)
            } else {
                Volume::Session(fresh)
            };
            Step::Clone(from, to)
        }
        (3..=5, _) if own < 3 => Step::Snapshot(id(&format!("s{number}").parse().unwrap())),
        (6, _) if one.origin.is_some() => Step::Promote(one.volume),
        (7, Some(back)) => Step::Rollback(back),
        (8, _) => Step::Destroy(one.volume),
        _ => Step::Mark(one.volume, number),
    }
}

pub(super) fn say(ledger: &mut File, line: &str) {
    // One write: it is there whole or not at all.
    ledger.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Until it is killed. Does nothing where no task is set.
#[test]
fn work() {
    if std::env::var_os("DLS_DATASET").is_none() {
        return;
    }
    let stand = Stand::open(&task("DLS_DATASET"));
    let mut dice = Dice(task("DLS_SEED").parse().unwrap());
    let mut number: u64 = task("DLS_FIRST").parse().unwrap();
    let ledger = OpenOptions::new()
        .append(true)
        .create(true)
        .open(task("DLS_LEDGER"));
    let mut ledger = ledger.unwrap();
    say(&mut ledger, "L working");
    loop {
        number += 1;
        let step = next(stand.store(), &mut dice, number);
        say(&mut ledger, &format!("L B {number} {}", step.words()));
        match step.act(stand.store()) {
            Ok(()) => say(&mut ledger, &format!("L A {number}")),
            Err(VolumeError::Busy { .. }) => say(&mut ledger, &format!("L R {number}")),
            Err(e) => {
                say(&mut ledger, &format!("L FAILED {number} {e}"));
                panic!("{e}");
            }
        }
    }
}

/// What a new start does.
#[test]
fn mend() {
    if std::env::var_os("DLS_DATASET").is_some() {
        drop(Stand::open(&task("DLS_DATASET")));
    }
}
