//! What every store of disks must do, as one suite that runs over each backend. It knows the
//! traits only.

mod snapshots;

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Access, BlockDevice, BlockError, Durability, ExtentKind, HeldSnapshot, HoldTag, SnapshotId,
    SnapshotName, Storage, Volume, VolumeError,
};

pub(crate) use snapshots::changes;
use snapshots::{descendants, holds, renewal};

const MIB: u64 = 1 << 20;

/// A store to be tested.
pub(crate) trait Subject {
    /// The store.
    fn store(&self) -> &dyn Storage;

    /// Closes the store and opens it again; nothing for one that has nothing to close.
    fn reopen(&mut self);
}

/// A reproducible source of numbers.
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end
    }
}

fn image(n: u128) -> Volume {
    Volume::Image(Uuid::from_u128(n))
}

fn session(n: u128) -> Volume {
    Volume::Session(Uuid::from_u128(n))
}

fn base(volume: Volume) -> SnapshotId {
    at(volume, "base")
}

fn at(volume: Volume, name: &str) -> SnapshotId {
    SnapshotId {
        volume,
        name: name.parse::<SnapshotName>().unwrap(),
    }
}

fn open(store: &dyn Storage, volume: Volume) -> Arc<dyn BlockDevice> {
    store.open(volume, Access::Write).unwrap()
}

fn write(disk: &dyn BlockDevice, offset: u64, data: &[u8]) {
    disk.write_at(offset, data, Durability::Volatile).unwrap();
}

fn read(disk: &dyn BlockDevice, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xaa; length];
    disk.read_at(offset, &mut buffer).unwrap();
    if let Some(lent) = disk.lend(offset, length).unwrap() {
        let mut sent = vec![0; length];
        lent.file.read_exact_at(&mut sent, lent.at).unwrap();
        assert!(sent == buffer, "{length} bytes at {offset} are lent wrong");
    }
    buffer
}

fn promote(store: &dyn Storage, volume: Volume) {
    let mut last = 0.0;
    let mut progress = |p: super::Progress| last = p.done;
    store
        .promote(volume, &mut progress, &CancellationToken::new())
        .unwrap();
    assert!((last - 1.0_f64).abs() < 1e-9);
}

/// Runs all of it; the store must be empty.
pub(crate) fn all(subject: &mut dyn Subject) {
    names(subject.store());
    bytes(subject.store());
    zeroes(subject.store());
    isolation(subject);
    snapshots(subject);
    holds(subject);
    changes(subject, 77, 16);
    renewal(subject);
    descendants(subject);
    while_open(subject.store());
}

fn names(store: &dyn Storage) {
    assert!(store.list().unwrap().is_empty());
    assert!(store.info(image(1)).unwrap().is_none());
    assert!(matches!(
        store.open(image(1), Access::Read),
        Err(VolumeError::Missing(_))
    ));
    store.destroy(image(1)).unwrap();
    store.create(image(1), MIB).unwrap();
    assert!(matches!(
        store.create(image(1), MIB),
        Err(VolumeError::Exists(_))
    ));
    assert!(matches!(
        store.clone_volume(&base(image(1)), session(1)),
        Err(VolumeError::Missing(_))
    ));
    store.snapshot(&base(image(1))).unwrap();
    assert!(matches!(
        store.snapshot(&base(image(1))),
        Err(VolumeError::Exists(_))
    ));
    store.clone_volume(&base(image(1)), session(1)).unwrap();
    assert!(matches!(
        store.clone_volume(&base(image(1)), session(1)),
        Err(VolumeError::Exists(_))
    ));
    let personal = Volume::Personal {
        client: Uuid::from_u128(5),
        image: Uuid::from_u128(1),
    };
    store.clone_volume(&base(image(1)), personal).unwrap();
    let listed: Vec<_> = store.list().unwrap().iter().map(|i| i.volume).collect();
    assert_eq!(listed, [image(1), session(1), personal]);
    let info = store.info(session(1)).unwrap().unwrap();
    assert_eq!((info.size, info.origin), (MIB, Some(base(image(1)))));
    let info = store.info(image(1)).unwrap().unwrap();
    assert_eq!(info.snapshots, [SnapshotName::base()]);
    let said = store.destroy(image(1)).unwrap_err();
    assert!(
        matches!(&said, VolumeError::Busy { by, .. } if by.contains("cloned")),
        "{said}"
    );
    let disk = open(store, session(1));
    assert!(matches!(
        store.destroy(session(1)),
        Err(VolumeError::Busy { .. })
    ));
    drop(disk);
    for volume in [session(1), personal, image(1)] {
        store.destroy(volume).unwrap();
        store.destroy(volume).unwrap();
    }
    assert!(store.list().unwrap().is_empty());
}

fn bytes(store: &dyn Storage) {
    let size = MIB + 512;
    store.create(image(2), size).unwrap();
    store.snapshot(&base(image(2))).unwrap();
    store.clone_volume(&base(image(2)), session(2)).unwrap();
    for volume in [image(2), session(2)] {
        let disk = open(store, volume);
        let info = disk.info();
        assert_eq!((info.size, info.read_only), (size, false));
        assert!(info.preferred_block.is_power_of_two());
        assert_eq!(read(&*disk, 0, 4096), vec![0; 4096]);
        // Any alignment, and the last byte.
        for (offset, length) in [(0, 1), (511, 2), (4095, 4098), (131_070, 5), (size - 1, 1)] {
            let data: Vec<u8> = (0..length).map(|n| (n % 251 + 1) as u8).collect();
            write(&*disk, offset, &data);
            assert_eq!(read(&*disk, offset, length), data, "{offset}");
        }
        assert_eq!(read(&*disk, 1, 510), vec![0; 510]);
        write(&*disk, 77, &[]);
        assert_eq!(read(&*disk, size, 0), Vec::<u8>::new());
        // Past the end: refused whole.
        let mut two = [0; 2];
        for refused in [
            disk.read_at(size - 1, &mut two),
            disk.write_at(size - 1, &[9, 9], Durability::Volatile),
            disk.write_at(u64::MAX, &[9, 9], Durability::Volatile),
            disk.discard(size - 1, 2),
            disk.discard(u64::MAX, u64::MAX),
            disk.write_zeroes(size, 1, false, Durability::Fua),
            disk.extents(0, size + 1, 9).map(|_| ()),
            disk.try_read_at(size, &mut two).map(|_| ()),
        ] {
            assert!(matches!(refused, Err(BlockError::OutOfRange)));
        }
        assert_eq!(read(&*disk, size - 1, 1), [1]);
        disk.write_at(8192, &[3; 512], Durability::Fua).unwrap();
        disk.flush().unwrap();
        // What was just written is in memory, or the backend says that it can't tell.
        let mut buffer = [0; 512];
        if disk.try_read_at(8192, &mut buffer).unwrap() {
            assert_eq!(buffer, [3; 512]);
        }
        let reader = store.open(volume, Access::Read).unwrap();
        assert!(reader.info().read_only);
        assert_eq!(read(&*reader, 8192, 512), [3; 512]);
        for refused in [
            reader.write_at(0, &[1], Durability::Volatile),
            reader.discard(0, 512),
            reader.write_zeroes(0, 512, true, Durability::Volatile),
        ] {
            assert!(matches!(refused, Err(BlockError::ReadOnly)));
        }
    }
    store.destroy(session(2)).unwrap();
    store.destroy(image(2)).unwrap();
}

fn covers(disk: &dyn BlockDevice, offset: u64, length: u64) {
    let runs = disk.extents(offset, length, usize::MAX).unwrap();
    assert_eq!(runs.iter().map(|r| r.length).sum::<u64>(), length);
    let mut at = offset;
    for run in runs {
        assert!(run.length > 0);
        let content = read(disk, at, usize::try_from(run.length).unwrap());
        if run.kind != ExtentKind::Data {
            assert!(content.iter().all(|b| *b == 0), "{at} is said to be zero");
        }
        at += run.length;
    }
    let few = disk.extents(offset, length, 2).unwrap();
    assert!((1..=2).contains(&few.len()));
}

fn zeroes(store: &dyn Storage) {
    let size = MIB;
    store.create(image(3), size).unwrap();
    write(&*open(store, image(3)), 0, &vec![7; MIB as usize]);
    store.snapshot(&base(image(3))).unwrap();
    store.clone_volume(&base(image(3)), session(3)).unwrap();
    let disk = open(store, session(3));
    write(&*disk, 300_000, &[8; 70_000]);
    let mut model = vec![7; MIB as usize];
    model[300_000..370_000].fill(8);
    for (offset, length) in [
        (0, 512),
        (4096, 4096),
        (5000, 9000),
        (131_072, 131_072),
        (200_000, 250_001),
        (size - 700, 700),
        (9, 0),
    ] {
        disk.discard(offset, length).unwrap();
        let range = offset as usize..(offset + length) as usize;
        model[range].fill(0);
        assert_eq!(read(&*disk, 0, model.len()), model, "{offset} {length}");
        covers(&*disk, 0, size);
        covers(&*disk, 4097, 300_001);
    }
    disk.write_zeroes(600_000, 100_000, true, Durability::Fua)
        .unwrap();
    model[600_000..700_000].fill(0);
    write(&*disk, 650_000, &[5; 3]);
    model[650_000..650_003].fill(5);
    assert_eq!(read(&*disk, 0, model.len()), model);
    drop(disk);
    assert_eq!(read(&*open(store, session(3)), 0, model.len()), model);
    assert_eq!(read(&*open(store, image(3)), 0, 9), [7; 9]);
    store.destroy(session(3)).unwrap();
    store.destroy(image(3)).unwrap();
}

fn isolation(subject: &mut dyn Subject) {
    let store = subject.store();
    store.create(image(4), MIB).unwrap();
    let disk = open(store, image(4));
    write(&*disk, 0, &vec![1; MIB as usize]);
    store.snapshot(&base(image(4))).unwrap();
    // The image itself goes on; its snapshot does not.
    write(&*disk, 0, &[99; 100]);
    let mut dice = Dice(44);
    let mut models = vec![vec![1_u8; MIB as usize]; 6];
    for n in 0..6 {
        store
            .clone_volume(&base(image(4)), session(40 + n))
            .unwrap();
    }
    let disks: Vec<_> = (0..6).map(|n| open(store, session(40 + n))).collect();
    for round in 0..600 {
        let n = dice.below(6) as usize;
        let offset = dice.below(MIB - 5000);
        let length = dice.below(5000) as usize;
        let value = (round % 200 + 2) as u8;
        write(&*disks[n], offset, &vec![value; length]);
        models[n][offset as usize..][..length].fill(value);
    }
    for (disk, model) in disks.iter().zip(&models) {
        disk.flush().unwrap();
        assert_eq!(&read(&**disk, 0, model.len()), model);
    }
    drop((disks, disk));
    // A clone of a clone, and everything again after the store was closed.
    store.snapshot(&at(session(40), "one")).unwrap();
    store
        .clone_volume(&at(session(40), "one"), image(41))
        .unwrap();
    write(&*open(store, image(41)), 77, &[200; 9]);
    subject.reopen();
    let store = subject.store();
    for (n, model) in (0..).zip(&models) {
        assert_eq!(&read(&*open(store, session(40 + n)), 0, model.len()), model);
    }
    models[0][77..86].fill(200);
    assert_eq!(read(&*open(store, image(41)), 0, MIB as usize), models[0]);
    assert_eq!(read(&*open(store, image(4)), 0, 101)[99..], [99, 1]);
    assert!(matches!(
        store.destroy(session(40)),
        Err(VolumeError::Busy { .. })
    ));
    store.destroy(image(41)).unwrap();
    for n in 0..6 {
        store.destroy(session(40 + n)).unwrap();
    }
    store.destroy(image(4)).unwrap();
}

fn snapshots(subject: &mut dyn Subject) {
    let store = subject.store();
    store.create(image(5), MIB).unwrap();
    for (name, value) in [("a", 1), ("b", 2), ("c", 3)] {
        write(&*open(store, image(5)), 1000, &[value; 10_000]);
        store.snapshot(&at(image(5), name)).unwrap();
    }
    store.clone_volume(&at(image(5), "c"), session(50)).unwrap();
    let disk = open(store, image(5));
    assert!(matches!(
        store.rollback(&at(image(5), "a")),
        Err(VolumeError::Busy { .. })
    ));
    drop(disk);
    let said = store.rollback(&at(image(5), "b")).unwrap_err();
    assert!(
        matches!(&said, VolumeError::Busy { by, .. } if by.contains("session")),
        "{said}"
    );
    assert!(matches!(
        store.rollback(&at(image(5), "z")),
        Err(VolumeError::Missing(_))
    ));
    store.destroy(session(50)).unwrap();
    write(&*open(store, image(5)), 0, &[9; 20_000]);
    store.rollback(&at(image(5), "b")).unwrap();
    let model = |value| [vec![0; 1000], vec![value; 10_000], vec![0; 9000]].concat();
    assert_eq!(read(&*open(store, image(5)), 0, 20_000), model(2));
    let info = store.info(image(5)).unwrap().unwrap();
    let names: Vec<_> = info.snapshots.iter().map(SnapshotName::as_str).collect();
    assert_eq!(names, ["a", "b"]);
    subject.reopen();
    let store = subject.store();
    store.rollback(&at(image(5), "a")).unwrap();
    assert_eq!(read(&*open(store, image(5)), 0, 20_000), model(1));
    store.destroy(image(5)).unwrap();
    assert!(store.list().unwrap().is_empty());
}

/// Snapshots and freeing while a machine reads and writes.
fn while_open(store: &dyn Storage) {
    let size = 2 * MIB;
    store.create(image(6), size).unwrap();
    write(&*open(store, image(6)), 0, &vec![6; size as usize]);
    store.snapshot(&base(image(6))).unwrap();
    store.clone_volume(&base(image(6)), session(60)).unwrap();
    let disk = open(store, session(60));
    let done = std::sync::atomic::AtomicBool::new(false);
    let order = std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut dice = Dice(66);
            let mut model = vec![6_u8; size as usize];
            let mut round = 0_u32;
            while !done.load(order) || round < 200 {
                round += 1;
                let offset = dice.below(size - 9000);
                let length = dice.below(9000) as usize;
                let value = (round % 250) as u8;
                write(&*disk, offset, &vec![value; length]);
                model[offset as usize..][..length].fill(value);
                let back = dice.below(size - 500);
                assert_eq!(
                    read(&*disk, back, 500),
                    &model[back as usize..][..500],
                    "round {round}"
                );
                if round.is_multiple_of(50) {
                    disk.flush().unwrap();
                }
            }
            model
        });
        for name in ["a", "b"] {
            store.snapshot(&at(session(60), name)).unwrap();
        }
        promote(store, session(60));
        store.snapshot(&at(session(60), "c")).unwrap();
        done.store(true, order);
        let model = writer.join().unwrap();
        assert_eq!(read(&*disk, 0, model.len()), model);
    });
    drop(disk);
    // Free of its origin, it lives on without it.
    assert_eq!(store.info(session(60)).unwrap().unwrap().origin, None);
    let before = read(&*open(store, session(60)), 0, size as usize);
    store.destroy(image(6)).unwrap();
    assert_eq!(read(&*open(store, session(60)), 0, size as usize), before);
    promote(store, session(60));
    store.destroy(session(60)).unwrap();
}

struct InMemory(super::memory::Memory);

impl Subject for InMemory {
    fn store(&self) -> &dyn Storage {
        &self.0
    }

    fn reopen(&mut self) {}
}

#[test]
fn the_store_in_memory_conforms() {
    all(&mut InMemory(super::memory::Memory::new()));
}
