//! Many clones of one image, and a store that is full.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{InFiles, check, files};
use crate::storage::conformance::Dice;
use crate::storage::disks::shelf::Role;
use crate::storage::disks::{DiskStore, MOST_LAYERS, TABLE_CACHE};
use crate::storage::layer::Content;
use crate::storage::{
    Access, BlockDevice, BlockError, DiskFormat, Durability, SnapshotId, Storage, Volume,
    VolumeError,
};

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

/// What comes from an image as it was imported is lent from its file; what the clone has of its
/// own, what is a hole and what lies behind the end are not.
#[test]
fn only_an_images_own_bytes_are_lent() {
    let subject = InFiles::new();
    let store = subject.get();
    let base = image(store, SIZE);
    store.clone_volume(&base, session(1)).unwrap();
    let disk = store.open(session(1), Access::Write).unwrap();
    disk.write_at(300_000, &[7; 5000], Durability::Volatile)
        .unwrap();
    let lends = |offset, length| disk.lend(offset, length).unwrap();
    let lent = lends(4096, 131_072).map(|lent| {
        let mut sent = vec![0; 131_072];
        lent.file.read_exact_at(&mut sent, lent.at).unwrap();
        sent
    });
    // An older kernel does not tell what is in memory.
    let own = tempfile::tempfile().unwrap();
    own.write_all_at(&[1; 4096], 0).unwrap();
    let told = crate::storage::nowait::is_in_memory(&own, 0, 4096);
    assert_eq!(lent, told.then(|| vec![1; 131_072]));
    assert!(lends(299_000, 4096).is_none(), "its own bytes may change");
    assert!(lends(SIZE / 2 - 4096, 8192).is_none(), "partly a hole");
    assert!(lends(SIZE / 2, 65_536).is_none(), "a hole");
    assert!(disk.lend(SIZE - 4096, 8192).is_err(), "behind the end");
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

/// A file that takes all space to the last byte.
fn fill_up(ballast: &Path) -> std::fs::File {
    let mut size = 3 << 20;
    let file = std::fs::File::create(ballast).unwrap();
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
    file
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
    let file = fill_up(&ballast);
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
    // Also where a child of another test, not yet another program, still has it open.
    file.set_len(0).unwrap();
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

#[test]
fn zeroes_that_keep_their_space_are_written_over_in_a_full_store() {
    let small = SmallDisk::new();
    let root: &Path = small.0.path();
    let store = DiskStore::open(root, TABLE_CACHE).unwrap();
    let base = image(&store, 1 << 20);
    store.clone_volume(&base, session(0)).unwrap();
    let disk = store.open(session(0), Access::Write).unwrap();
    let zero = |at, keep| disk.write_zeroes(at, 200_000, keep, Durability::Volatile);
    zero(100_000, true).unwrap();
    zero(600_000, false).unwrap();
    disk.flush().unwrap();
    let ballast = fill_up(&root.join("ballast"));
    let write = |at| disk.write_at(at, &[5; 190_000], Durability::Fua);
    let mut read = vec![1; 200_000];
    disk.read_at(100_000, &mut read).unwrap();
    assert!(read.iter().all(|b| *b == 0));
    let kinds = disk.extents(110_000, 180_000, 9).unwrap();
    assert_eq!(kinds.len(), 1);
    assert_eq!(kinds[0].kind, crate::storage::ExtentKind::Data);
    write(100_000).unwrap();
    assert!(matches!(write(600_000), Err(BlockError::NoSpace)));
    disk.read_at(100_000, &mut read).unwrap();
    assert!(read[..190_000].iter().all(|b| *b == 5) && read[190_000..].iter().all(|b| *b == 0));
    drop((ballast, disk, store));
}

/// Waits for the flattening that was begun.
fn flattened(store: &DiskStore) {
    let threads = std::mem::take(&mut *store.inner.flattening.lock().unwrap());
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Layers in the order of the volume's snapshots: how many lie below each, and below the top.
fn depths(store: &DiskStore, volume: Volume) -> Vec<usize> {
    let manifest = store.state().get(volume).unwrap().manifest.clone();
    let shelf = &store.inner.shelf;
    let mut all = Vec::new();
    for layer in manifest.layers() {
        let role = match layer == manifest.top {
            true => Role::Top,
            false => Role::Ground,
        };
        all.push(shelf.open(layer, role, manifest.size).unwrap().depth());
    }
    all
}

/// Says that it is over, also when an assertion fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn chains_stay_short_while_machines_read_and_write() {
    let mut subject = InFiles::new();
    let store = subject.get();
    let base = image(store, SIZE);
    store.clone_volume(&base, session(0)).unwrap();
    let disk = store.open(session(0), Access::Write).unwrap();
    let half = SIZE / 2;
    let mut lower = vec![1_u8; half as usize];
    let mut kept: Vec<(SnapshotId, Vec<u8>)> = Vec::new();
    let done = AtomicBool::new(false);
    let upper = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut dice = Dice(17);
            let mut model = vec![0_u8; half as usize];
            while !done.load(Ordering::SeqCst) {
                let length = dice.below(9000) as usize;
                let at = dice.below(half - length as u64) as usize;
                let value = dice.below(256) as u8;
                let place = half + at as u64;
                let data = vec![value; length];
                disk.write_at(place, &data, Durability::Volatile).unwrap();
                model[at..at + length].fill(value);
                let at = dice.below(half - 500);
                let mut back = [0; 500];
                disk.read_at(half + at, &mut back).unwrap();
                assert!(back[..] == model[at as usize..][..500]);
            }
            model
        });
        let over = Over(&done);
        let mut dice = Dice(18);
        // Some one by one, then as fast as they come.
        for n in 0..30_u8 {
            let length = dice.below(30_000) as usize;
            let at = dice.below(half - length as u64) as usize;
            let data = vec![n; length];
            disk.write_at(at as u64, &data, Durability::Volatile)
                .unwrap();
            lower[at..at + length].fill(n);
            let name = format!("s{n:02}").parse().unwrap();
            let volume = session(0);
            let snapshot = SnapshotId { volume, name };
            store.snapshot(&snapshot).unwrap();
            kept.push((snapshot, lower.clone()));
            if n < 20 {
                flattened(store);
                let depths = depths(store, session(0));
                let top = depths[depths.len() - 1];
                assert!(top <= MOST_LAYERS, "{n}: {depths:?}");
                // Each lets go of what is below once, not at every snapshot from then on.
                let whole = depths.iter().filter(|d| **d == 0).count();
                assert!(whole <= usize::from(n) / MOST_LAYERS + 1, "{n}: {depths:?}");
            }
        }
        flattened(store);
        drop(over);
        writer.join().unwrap()
    });
    let depths = depths(store, session(0));
    assert!(depths.iter().all(|d| *d <= 30) && depths[depths.len() - 1] <= MOST_LAYERS);
    drop(disk);
    let layers = files(subject.root.path(), "layers").len();
    subject.store = None;
    check(subject.root.path());
    let store = DiskStore::open(subject.root.path(), TABLE_CACHE).unwrap();
    assert!(files(subject.root.path(), "layers").len() <= layers);
    let disk = store.open(session(0), Access::Read).unwrap();
    let mut all = vec![0; SIZE as usize];
    disk.read_at(0, &mut all).unwrap();
    assert!(all[..half as usize] == lower && all[half as usize..] == upper);
    for (n, (snapshot, model)) in (100..).zip(&kept) {
        store.clone_volume(snapshot, session(n)).unwrap();
        let disk = store.open(session(n), Access::Read).unwrap();
        let mut all = vec![0; half as usize];
        disk.read_at(0, &mut all).unwrap();
        assert!(all == *model, "{snapshot}");
    }
    let mut image = vec![0; half as usize];
    let disk = store.open(base.volume, Access::Read).unwrap();
    disk.read_at(0, &mut image).unwrap();
    assert!(image.iter().all(|b| *b == 1));
}

/// One of each way in.
#[test]
fn an_import_into_a_full_store_leaves_nothing_and_works_when_there_is_space() {
    let small = SmallDisk::new();
    let root: &Path = small.0.path();
    let outside = tempfile::tempdir().unwrap();
    let raw = outside.path().join("raw");
    let content: Vec<u8> = (0..5_u32 << 18).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&raw, &content).unwrap();
    let qcow2 = outside.path().join("qcow2");
    let mut convert = Command::new("qemu-img");
    convert
        .args(["convert", "-O", "qcow2"])
        .args([&raw, &qcow2]);
    assert!(convert.status().unwrap().success());
    let store = DiskStore::open(root, TABLE_CACHE).unwrap();
    let base = image(&store, 1 << 20);
    store.clone_volume(&base, session(0)).unwrap();
    let disk = store.open(session(0), Access::Write).unwrap();
    disk.write_at(0, &[7; 50_000], Durability::Fua).unwrap();
    let import = |path: &Path, format| {
        let new = Volume::Image(Uuid::from_u128(50));
        let never = tokio_util::sync::CancellationToken::new();
        store.import(new, path, format, &mut |_| {}, &never)
    };
    let cases = [(&raw, DiskFormat::Raw), (&qcow2, DiskFormat::Qcow2)];
    let before = files(root, "layers");
    for (path, format) in cases {
        let said = import(path, format).unwrap_err();
        assert!(matches!(said, VolumeError::NoSpace), "{format:?}: {said:?}");
        assert_eq!(files(root, "layers"), before, "{format:?}");
        assert!(files(root, "staging").is_empty());
        assert_eq!(files(root, "volumes").len(), 2);
        // Who was there goes on.
        disk.write_at(1000, &[8; 50_000], Durability::Fua).unwrap();
    }
    let more = Command::new("mount")
        .args(["-o", "remount,size=16M"])
        .arg(root)
        .status();
    assert!(more.unwrap().success());
    for (path, format) in cases {
        let imported = import(path, format).unwrap();
        assert_eq!(imported.size, content.len() as u64);
        store.destroy(Volume::Image(Uuid::from_u128(50))).unwrap();
    }
    drop((disk, store));
    check(root);
}
