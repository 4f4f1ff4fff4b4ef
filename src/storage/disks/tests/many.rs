//! Many clones of one image, and a store that is full.

use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{InFiles, check};
use crate::storage::conformance::Dice;
use crate::storage::disks::{DiskStore, TABLE_CACHE};
use crate::storage::{Access, BlockDevice, BlockError, Durability, SnapshotId, Storage, Volume};

const SIZE: u64 = 4 << 20;

fn session(n: u128) -> Volume {
    Volume::Session(Uuid::from_u128(n))
}

fn image(store: &dyn Storage, size: u64) -> SnapshotId {
    let id = Uuid::from_u128(1);
    store.create(Volume::Image(id), size).unwrap();
    let disk = store.open(Volume::Image(id), Access::Write).unwrap();
    disk.write_at(0, &vec![1; size as usize / 2], Durability::Volatile)
        .unwrap();
    let base = SnapshotId::base(id);
    store.snapshot(&base).unwrap();
    base
}

fn hash(disk: &dyn BlockDevice) -> Vec<u8> {
    let mut all = vec![0; disk.info().size as usize];
    disk.read_at(0, &mut all).unwrap();
    Sha256::digest(&all).to_vec()
}

#[test]
fn no_byte_crosses_between_fifty_clones_and_the_image_stays() {
    let mut subject = InFiles::new();
    let store = subject.get();
    let base = image(store, SIZE);
    let before = hash(&*store.open(base.volume, Access::Read).unwrap());
    for n in 0..50 {
        store.clone_volume(&base, session(n)).unwrap();
    }
    std::thread::scope(|scope| {
        for half in 0..2 {
            scope.spawn(move || {
                for n in (0..50_u128).filter(|n| n % 2 == half) {
                    let disk = store.open(session(n), Access::Write).unwrap();
                    let mut dice = Dice(n as u64 + 1);
                    let mark = n as u8 + 2;
                    for _ in 0..60 {
                        let length = dice.below(20_000);
                        let at = dice.below(SIZE - length);
                        disk.write_at(at, &vec![mark; length as usize], Durability::Volatile)
                            .unwrap();
                    }
                }
            });
        }
    });
    for n in 0..50_u128 {
        let disk = store.open(session(n), Access::Read).unwrap();
        let mut all = vec![0; SIZE as usize];
        disk.read_at(0, &mut all).unwrap();
        let mut model = vec![1; SIZE as usize / 2];
        model.resize(SIZE as usize, 0);
        let mut dice = Dice(n as u64 + 1);
        for _ in 0..60 {
            let length = dice.below(20_000) as usize;
            let at = dice.below(SIZE - length as u64) as usize;
            model[at..at + length].fill(n as u8 + 2);
        }
        assert!(all == model, "clone {n}");
    }
    assert_eq!(
        hash(&*store.open(base.volume, Access::Read).unwrap()),
        before
    );
    subject.store = None;
    check(subject.root.path());
}

/// A file system of 3 MiB; gone when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=3M", "dls-test"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(made.success(), "mounting a tmpfs needs root");
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_store_stops_its_writers_only_and_goes_on_when_there_is_space() {
    let small = SmallDisk::new();
    let root: &Path = small.0.path();
    let store = DiskStore::open(root, TABLE_CACHE).unwrap();
    let base = image(&store, 1 << 20);
    let ballast = root.join("ballast");
    for n in 0..2 {
        store.clone_volume(&base, session(n)).unwrap();
    }
    let first = store.open(session(0), Access::Write).unwrap();
    let second = store.open(session(1), Access::Write).unwrap();
    first.write_at(0, &[3; 8192], Durability::Fua).unwrap();
    second.write_at(0, &[4; 8192], Durability::Fua).unwrap();
    // Full to the last byte.
    let mut size = 3 << 20;
    let file = std::fs::File::create(&ballast).unwrap();
    while size >= 4096 {
        let at = file.metadata().unwrap().len();
        match std::os::unix::fs::FileExt::write_all_at(&file, &vec![9; size], at) {
            Ok(()) => {}
            Err(_) => {
                file.set_len(file.metadata().unwrap().len().next_multiple_of(4096))
                    .unwrap();
                size /= 2;
            }
        }
    }
    let error = (16..256)
        .map(|n| first.write_at(n * 4096, &[5; 4096], Durability::Volatile))
        .find_map(Result::err);
    assert!(matches!(error, Some(BlockError::NoSpace)), "{error:?}");
    // What is stored is read and written; the other is as it was.
    first.write_at(100, &[6; 50], Durability::Fua).unwrap();
    second.write_at(4096, &[7; 4096], Durability::Fua).unwrap();
    let mut read = [0; 8192];
    second.read_at(0, &mut read).unwrap();
    assert!(read[..4096] == [4; 4096] && read[4096..] == [7; 4096]);
    std::fs::remove_file(&ballast).unwrap();
    drop(file);
    first
        .write_at(1 << 19, &[8; 9000], Durability::Fua)
        .unwrap();
    drop((first, second));
    let first = store.open(session(0), Access::Write).unwrap();
    let mut read = [0; 9000];
    first.read_at(1 << 19, &mut read).unwrap();
    assert_eq!(read, [8; 9000]);
    first.read_at(99, &mut read[..52]).unwrap();
    assert_eq!((read[0], read[1], read[51]), (3, 6, 3));
    drop((first, store));
    check(root);
}
