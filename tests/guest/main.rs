//! What runs in the lab's ZFS machine, on pools that its scripts make and break: the store held
//! to its word by real faults. `tests/lab/zfs/*.rs` run these by name; elsewhere
//! they have no pool. Only the library's public face is used.
//!
//! - [`faults`]: a full pool and quota, one that is exported, one that loses its disk
//! - [`storm`]: many clones at once, over real NBD connections ([`nbd`])
//! - [`replicas`]: versions as streams between two pools
//! - [`rounds`]: work that is killed at any moment, and what mends it
//! - [`cuts`]: the whole server at work, until its machine has no power
//! - [`damage`]: what `dls doctor storage` says of a store that was damaged by hand
//! - [`steps`]: the whole server, killed at every named step

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests measure, take their tasks from the machine's scripts, and fail by panics"
)]

mod cuts;
mod damage;
#[path = "../it/admin/deeds.rs"]
mod deeds;
mod faults;
mod nbd;
#[path = "../it/admin/process.rs"]
mod process;
mod replicas;
mod rounds;
mod steps;
mod storm;
#[path = "../it/support/mod.rs"]
mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use dls::storage::zfs::{Compression, Reserve, ZfsOptions, ZfsStore};
use dls::storage::{Access, BlockDevice, Durability, SnapshotId, Storage, Volume};
use support::noise;
use uuid::Uuid;

/// A store, and the folder in which it converts files.
struct Stand {
    store: Option<ZfsStore>,
    dataset: String,
    folder: tempfile::TempDir,
}

impl Stand {
    fn open(dataset: &str) -> Self {
        let mut stand = Self {
            store: None,
            dataset: dataset.to_owned(),
            folder: tempfile::tempdir().unwrap(),
        };
        stand.reopen();
        stand
    }

    /// What a restart of the server does.
    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(ZfsStore::open(self.options(), self.folder.path()).unwrap());
    }

    fn options(&self) -> ZfsOptions {
        ZfsOptions {
            dataset: self.dataset.clone(),
            block: 16 * 1024,
            compression: Compression::Off,
            reserve: Reserve::Nothing,
        }
    }

    fn store(&self) -> &ZfsStore {
        self.store.as_ref().unwrap()
    }
}

fn image(n: u128) -> Volume {
    Volume::Image(Uuid::from_u128(n))
}

fn session(n: u128) -> Volume {
    Volume::Session(Uuid::from_u128(n))
}

fn base(n: u128) -> SnapshotId {
    SnapshotId::base(Uuid::from_u128(n))
}

/// An image of one value, and the snapshot that clones are made from.
fn make_image(store: &dyn Storage, n: u128, size: usize, value: u8) {
    store.create(image(n), size as u64).unwrap();
    let disk = store.open(image(n), Access::Write).unwrap();
    disk.write_at(0, &vec![value; size], Durability::Fua)
        .unwrap();
    drop(disk);
    store.snapshot(&base(n)).unwrap();
}

fn read(disk: &dyn BlockDevice, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xaa; length];
    disk.read_at(offset, &mut buffer).unwrap();
    buffer
}

/// Runs a line of shell; what it said, and whether it went well.
fn shell(line: &str) -> (bool, String) {
    let ran = Command::new("bash").args(["-c", line]).output().unwrap();
    let said = [ran.stdout, ran.stderr].concat();
    (
        ran.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// Runs a line of shell that must go well.
fn run(line: &str) -> String {
    let (well, said) = shell(line);
    assert!(well, "{line}: {said}");
    said
}

fn wait_for(what: &str, seconds: u64, mut probe: impl FnMut() -> bool) {
    let start = Instant::now();
    while !probe() {
        assert!(
            start.elapsed() < Duration::from_secs(seconds),
            "{what}: not within {seconds} s"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}
