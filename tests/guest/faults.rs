//! A pool that is full, exported, without its disk: what is told, that it is told in time, that
//! other pools go on, that nothing acknowledged is lost, and that all goes on afterwards without a
//! new start. The machine's script makes the pools; each test breaks its own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dls::storage::zfs::ZfsStore;
use dls::storage::{
    Access, BlockDevice, BlockError, DiskFormat, Durability, SnapshotId, Storage, VolumeError,
};
use tokio_util::sync::CancellationToken;

use super::nbd::{Client, Exports};
use super::{Stand, base, image, make_image, noise, read, run, session, shell, wait_for};

const CHUNK: usize = 1024 * 1024;

fn chunk(n: u64) -> Vec<u8> {
    noise(4096, n + 1).repeat(CHUNK / 4096)
}

fn at(n: u64) -> u64 {
    n * CHUNK as u64
}

fn all_there(disk: &dyn BlockDevice, chunks: u64) {
    for n in 0..chunks {
        assert!(
            read(disk, at(n), CHUNK) == chunk(n),
            "chunk {n} was acknowledged and is lost"
        );
    }
}

/// Writes until there is no room; how many chunks were acknowledged.
fn fill(disk: &dyn BlockDevice) -> u64 {
    // ZFS reckons with 24 bytes for each that is to be written: near the end of so small a pool
    // it would take some 60 KiB a second.
    std::fs::write("/sys/module/zfs/parameters/spa_asize_inflation", "3").unwrap();
    for n in 0..1 << 10 {
        let written = disk.write_at(at(n), &chunk(n), Durability::Volatile);
        match written.and_then(|()| disk.flush()) {
            Ok(()) => {}
            Err(BlockError::NoSpace) => return n,
            Err(e) => panic!("{e:?}"),
        }
    }
    panic!("it never gets full");
}

#[test]
fn a_full_pool_is_told_loses_nothing_and_goes_on() {
    let mut stand = Stand::open("fullpool/dls");
    let store = stand.store();
    make_image(store, 1, 4 << 20, 1);
    store.clone_volume(&base(1), session(1)).unwrap();
    // What will be thrown away, with snapshots: removing it takes several steps.
    make_image(store, 2, 24 << 20, 2);
    store
        .snapshot(&SnapshotId {
            volume: image(2),
            name: "later".parse().unwrap(),
        })
        .unwrap();
    let other = Stand::open("labpool/other");
    make_image(other.store(), 1, 1 << 20, 3);
    other.store().clone_volume(&base(1), session(1)).unwrap();
    let beside = other.store().open(session(1), Access::Write).unwrap();
    let beside = Writer::start(beside, 1);
    store.create(image(3), 1 << 30).unwrap();
    let disk = store.open(image(3), Access::Write).unwrap();
    let start = Instant::now();
    let acknowledged = fill(&*disk);
    println!(
        "FULL after {} MiB in {:.1?}",
        at(acknowledged) >> 20,
        start.elapsed()
    );
    assert!(acknowledged > 20, "{acknowledged}");
    // A machine is told so, and soon; it reads on.
    let exports = Exports::of(store);
    let mut machine = Client::take(exports.address, "1").unwrap();
    let start = Instant::now();
    // What is left of the last block may take a little.
    let told = (0..64).find_map(|n| machine.write(n * 65536, &noise(65536, n)).err());
    let took = start.elapsed();
    println!("FULL over NBD after {took:.1?}: {told:?}");
    let told = told.expect("writes of 4 MiB find room in a full pool");
    assert_eq!(told.raw_os_error(), Some(28), "{told}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(machine.read(4128768, 65536).unwrap(), [1; 65536]);
    machine.leave().unwrap();
    exports.end();
    beside.goes_on("a machine on another pool writes");
    // A write with FUA tells of it too, and what it did not store is not served later.
    let before = read(&*disk, at(acknowledged), CHUNK);
    let mut refused = 0;
    for n in 0..8 {
        let place = acknowledged + 1 + n;
        match disk.write_at(at(place), &chunk(place), Durability::Fua) {
            Ok(()) => {}
            Err(BlockError::NoSpace) => refused += 1,
            Err(e) => panic!("{e:?}"),
        }
    }
    assert!(refused > 0, "writes of 8 MiB found room in a full pool");
    let name = |text: &str| SnapshotId {
        volume: image(3),
        name: text.parse().unwrap(),
    };
    let calls: [(&str, Result<(), VolumeError>); 3] = [
        ("create", store.create(image(9), 1 << 20)),
        ("snapshot", store.snapshot(&name("full"))),
        ("clone", store.clone_volume(&base(1), session(9))),
    ];
    for (call, result) in calls {
        println!("FULL {call}: {result:?}");
        assert!(
            matches!(result, Ok(()) | Err(VolumeError::NoSpace)),
            "{call}: {result:?}"
        );
    }
    // Readers and the listing do not notice.
    let clone = store.open(session(1), Access::Write).unwrap();
    assert_eq!(read(&*clone, 4128768, 4096), [1; 4096]);
    assert!(store.list().unwrap().len() >= 4);
    all_there(&*disk, acknowledged);
    drop((disk, clone));
    stand.reopen();
    let store = stand.store();
    let disk = store.open(image(3), Access::Write).unwrap();
    all_there(&*disk, acknowledged);
    let after = read(&*disk, at(acknowledged), CHUNK);
    assert!(
        after == before,
        "what a machine read after a failed flush is not what is stored"
    );
    // Space comes back by what an admin does: removes something.
    store.destroy(image(2)).unwrap();
    wait_for("the space is free", 60, || {
        let _ = shell("zpool sync fullpool");
        disk.write_at(at(acknowledged), &chunk(acknowledged), Durability::Fua)
            .is_ok()
    });
    for volume in [session(9), image(9)] {
        store.destroy(volume).unwrap();
    }
    store.clone_volume(&base(1), session(2)).unwrap();
    let clone = store.open(session(2), Access::Write).unwrap();
    clone.write_at(0, &[7; 4096], Durability::Fua).unwrap();
    all_there(&*disk, acknowledged + 1);
    beside.goes_on("a machine on another pool writes");
    assert_eq!(beside.end().1, 0);
    println!("FULL-GOES-ON {acknowledged} chunks are there");
    for volume in other.store().list().unwrap().iter().rev() {
        other.store().destroy(volume.volume).unwrap();
    }
}

#[test]
fn a_quota_that_is_reached_is_told_like_a_full_pool() {
    run("zfs create -o quota=12M labpool/small");
    let stand = Stand::open("labpool/small");
    let store = stand.store();
    store.create(image(1), 1 << 30).unwrap();
    let disk = store.open(image(1), Access::Write).unwrap();
    let acknowledged = fill(&*disk);
    println!("QUOTA after {} MiB", at(acknowledged) >> 20);
    assert!((6..12).contains(&acknowledged), "{acknowledged}");
    all_there(&*disk, acknowledged);
    run("zfs set quota=24M labpool/small");
    for n in acknowledged..acknowledged + 4 {
        disk.write_at(at(n), &chunk(n), Durability::Fua).unwrap();
    }
    all_there(&*disk, acknowledged + 4);
}

/// Calls of every kind, each of which must say within `limit` that the pool is away.
fn all_say_away(store: &ZfsStore, part: &str, limit: Duration) {
    let id = |text: &str| SnapshotId {
        volume: image(1),
        name: text.parse().unwrap(),
    };
    let token = CancellationToken::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out");
    type Call<'a> = (&'a str, Box<dyn Fn() -> Result<(), VolumeError> + 'a>);
    let calls: Vec<Call<'_>> = vec![
        ("list", Box::new(|| store.list().map(|_| ()))),
        ("info", Box::new(|| store.info(image(1)).map(|_| ()))),
        ("create", Box::new(|| store.create(image(77), 1 << 20))),
        ("snapshot", Box::new(|| store.snapshot(&id("new")))),
        (
            "clone",
            Box::new(|| store.clone_volume(&base(1), session(77))),
        ),
        (
            "open",
            Box::new(|| store.open(session(9), Access::Write).map(|_| ())),
        ),
        ("destroy", Box::new(|| store.destroy(session(9)))),
        ("destroy nothing", Box::new(|| store.destroy(session(123)))),
        ("rollback", Box::new(|| store.rollback(&base(1)))),
        (
            "promote",
            Box::new(|| store.promote(session(9), &mut |_| {}, &token)),
        ),
        (
            "export",
            Box::new(|| store.export(&base(1), &file, DiskFormat::Raw, &mut |_| {}, &token)),
        ),
    ];
    for (name, call) in calls {
        let start = Instant::now();
        let said = call();
        let took = start.elapsed();
        println!("AWAY {name} after {took:.1?}: {said:?}");
        match said {
            Err(VolumeError::Away(why)) => assert!(why.contains(part), "{name}: {why}"),
            other => panic!("{name}: {other:?}"),
        }
        assert!(took < limit, "{name} took {took:?}");
    }
}

#[test]
fn an_exported_pool_is_away_and_comes_back() {
    let stand = Stand::open("awaypool/dls");
    let store = stand.store();
    make_image(store, 1, 4 << 20, 1);
    for n in [8, 9] {
        store.clone_volume(&base(1), session(n)).unwrap();
    }
    let disk = store.open(session(8), Access::Write).unwrap();
    disk.write_at(0, &[8; 4096], Durability::Fua).unwrap();
    disk.write_at(4096, &[9; 4096], Durability::Fua).unwrap();
    drop(disk);
    for round in 0..2 {
        run("zpool export awaypool");
        all_say_away(store, "zpool import awaypool", Duration::from_secs(20));
        let folder = tempfile::tempdir().unwrap();
        let opened = ZfsStore::open(stand.options(), folder.path());
        assert!(matches!(opened, Err(VolumeError::Away(_))), "{opened:?}");
        run("zpool import awaypool");
        // By itself.
        assert_eq!(store.list().unwrap().len(), 3 + round);
        let disk = store.open(session(8), Access::Write).unwrap();
        assert_eq!(read(&*disk, 0, 4096), [8; 4096]);
        assert_eq!(read(&*disk, 4096, 4096), [9; 4096]);
        store
            .clone_volume(&base(1), session(20 + round as u128))
            .unwrap();
    }
    println!("AWAY-GOES-ON");
}

/// A machine at work: writes blocks in turn, each with a number, and flushes.
struct Writer {
    /// The last number that was acknowledged, of each block.
    acknowledged: Arc<Mutex<Vec<u64>>>,
    count: Arc<AtomicU64>,
    errors: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

const BLOCKS: usize = 64;
const BLOCK: usize = 16 * 1024;

impl Writer {
    fn start(disk: Arc<dyn BlockDevice>, seed: u64) -> Self {
        let acknowledged = Arc::new(Mutex::new(vec![0; BLOCKS]));
        let (count, errors) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (acknowledged, count) = (acknowledged.clone(), count.clone());
            let (errors, stop) = (errors.clone(), stop.clone());
            move || {
                let mut number = 0;
                while !stop.load(Ordering::SeqCst) {
                    number += 1;
                    let place = number as usize % BLOCKS;
                    let data = block(seed, number);
                    let offset = (place * BLOCK) as u64;
                    let done = disk
                        .write_at(offset, &data, Durability::Volatile)
                        .and_then(|()| disk.flush());
                    match done {
                        Ok(()) => {
                            acknowledged.lock().unwrap()[place] = number;
                            count.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(_) => {
                            errors.fetch_add(1, Ordering::SeqCst);
                            std::thread::sleep(Duration::from_millis(100));
                        }
                    }
                }
            }
        });
        Self {
            acknowledged,
            count,
            errors,
            stop,
            thread,
        }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    fn goes_on(&self, what: &str) {
        let before = self.count();
        wait_for(what, 90, || self.count() > before + 3);
    }

    /// Ends it; of each block the last acknowledged number, and how many errors it was told.
    fn end(self) -> (Vec<u64>, u64) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        (acknowledged, self.errors.load(Ordering::SeqCst))
    }
}

fn block(seed: u64, number: u64) -> Vec<u8> {
    let mut data = noise(BLOCK, seed * 1_000_003 + number);
    data[..8].copy_from_slice(&number.to_le_bytes());
    data[8..16].copy_from_slice(&seed.to_le_bytes());
    data
}

/// Every block is the last acknowledged one, or a whole newer one of the same disk.
fn judge(disk: &dyn BlockDevice, seed: u64, acknowledged: &[u64]) {
    for (place, last) in acknowledged.iter().enumerate() {
        let there = read(disk, (place * BLOCK) as u64, BLOCK);
        let number = u64::from_le_bytes(there[..8].try_into().unwrap());
        if *last == 0 && number == u64::from_le_bytes([1; 8]) {
            continue;
        }
        assert!(
            number >= *last,
            "block {place}: {last} was acknowledged, and {number} is there"
        );
        assert!(there == block(seed, number), "block {place} is torn");
    }
}

/// Takes the disk of a pool away while machines write there; `lose` and `give` are what does so.
fn a_disk_is_taken_away(pool: &str, lose: &str, give: &str) {
    let mut stand = Stand::open(&format!("{pool}/dls"));
    let other = Stand::open("labpool/other");
    let store = stand.store();
    make_image(store, 1, 4 << 20, 1);
    make_image(other.store(), 1, 4 << 20, 3);
    for n in [1, 2, 9] {
        store.clone_volume(&base(1), session(n)).unwrap();
    }
    let open = |n| store.open(session(n), Access::Write).unwrap();
    let writers = [1, 2].map(|n| Writer::start(open(u128::from(n)), n));
    other.store().clone_volume(&base(1), session(50)).unwrap();
    let beside = other.store().open(session(50), Access::Write).unwrap();
    let beside = Writer::start(beside, 50);
    for writer in &writers {
        writer.goes_on("a machine writes");
    }
    run(lose);
    wait_for("the pool is suspended", 60, || {
        let state = std::fs::read_to_string(format!("/proc/spl/kstat/zfs/{pool}/state"));
        state.unwrap_or_default().contains("SUSPENDED")
    });
    let stood: Vec<u64> = writers.iter().map(Writer::count).collect();
    all_say_away(store, "suspended", Duration::from_secs(20));
    // Machines on another pool do not notice: nor do those that come, without udev's links, so
    // that all devices are looked at.
    beside.goes_on("a machine on another pool writes");
    run("udevadm control --stop-exec-queue");
    for n in 60..64 {
        let start = Instant::now();
        other.store().clone_volume(&base(1), session(n)).unwrap();
        let disk = other.store().open(session(n), Access::Write).unwrap();
        disk.write_at(0, &[n as u8; 4096], Durability::Fua).unwrap();
        assert_eq!(read(&*disk, 4096, 4096), [3; 4096]);
        let took = start.elapsed();
        println!("BESIDE a clone of another pool after {took:.1?}");
        assert!(took < Duration::from_secs(45), "{took:?}");
    }
    run("udevadm control --start-exec-queue");
    assert!(other.store().list().unwrap().len() >= 6);
    let now: Vec<u64> = writers.iter().map(Writer::count).collect();
    assert_eq!(stood, now, "something was acknowledged without a disk");
    run(give);
    run(&format!("timeout 60 zpool clear {pool}"));
    for writer in &writers {
        writer.goes_on("a machine goes on");
    }
    // Without a new start.
    store.clone_volume(&base(1), session(30)).unwrap();
    assert!(store.list().unwrap().len() >= 5);
    let ended = writers.map(Writer::end);
    let (of_beside, errors) = beside.end();
    assert_eq!(errors, 0);
    stand.reopen();
    for (n, (acknowledged, errors)) in ended.iter().enumerate() {
        let n = n as u64 + 1;
        let disk = stand.store().open(session(u128::from(n)), Access::Read);
        judge(&*disk.unwrap(), n, acknowledged);
        println!(
            "TAKEN {pool}: machine {n} wrote {} times, was told {errors} errors, lost nothing",
            acknowledged.iter().max().unwrap()
        );
    }
    let disk = other.store().open(session(50), Access::Read).unwrap();
    judge(&*disk, 50, &of_beside);
    drop(disk);
    for volume in other.store().list().unwrap().iter().rev() {
        other.store().destroy(volume.volume).unwrap();
    }
    for volume in stand.store().list().unwrap().iter().rev() {
        stand.store().destroy(volume.volume).unwrap();
    }
}

const OFFLINE: &str = "echo offline > /sys/block/sda/device/state";
const RUNNING: &str = "echo running > /sys/block/sda/device/state";

#[test]
fn a_disk_taken_away_under_load_with_failmode_wait() {
    run("zpool set failmode=wait scsipool");
    a_disk_is_taken_away("scsipool", OFFLINE, RUNNING);
}

#[test]
fn a_disk_taken_away_under_load_with_failmode_continue() {
    run("zpool set failmode=continue scsipool");
    a_disk_is_taken_away("scsipool", OFFLINE, RUNNING);
}

/// The whole device goes, and ZFS 2.3 neither suspends the pool nor comes back from a call: only
/// time tells. Nothing ends what hangs, so this is the last that its machine does.
#[test]
fn a_pool_that_hangs_is_told_after_a_while() {
    let stand = Stand::open("hangpool/dls");
    let other = Stand::open("labpool/other");
    let store = stand.store();
    make_image(store, 1, 4 << 20, 1);
    make_image(other.store(), 1, 4 << 20, 3);
    store.clone_volume(&base(1), session(9)).unwrap();
    let disk = store.open(session(9), Access::Write).unwrap();
    // Never joined: it does not come back.
    let writer = Writer::start(disk, 9);
    writer.goes_on("a machine writes");
    run("device=$(readlink -f /sys/block/vdg/device/..); echo 1 > $device/remove");
    std::thread::sleep(Duration::from_secs(2));
    let start = Instant::now();
    let said = store.create(image(5), 1 << 20);
    let took = start.elapsed();
    println!("HANGS create after {took:.1?}: {said:?}");
    let Err(VolumeError::Away(why)) = said else {
        panic!("{said:?}");
    };
    assert!(why.contains("hangpool"), "{why}");
    assert!(took < Duration::from_secs(120), "{took:?}");
    // Whoever comes next is not kept waiting.
    let start = Instant::now();
    for n in 0..20 {
        let said = store.clone_volume(&base(1), session(100 + n));
        assert!(matches!(said, Err(VolumeError::Away(_))), "{said:?}");
    }
    println!("HANGS twenty more calls after {:.1?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(45));
    let listed = Instant::now();
    let listing = store.list().map(|all| all.len());
    println!("HANGS list after {:.1?}: {listing:?}", listed.elapsed());
    assert!(listed.elapsed() < Duration::from_secs(120));
    let start = Instant::now();
    other.store().clone_volume(&base(1), session(1)).unwrap();
    let disk = other.store().open(session(1), Access::Write).unwrap();
    disk.write_at(0, &[5; 4096], Durability::Fua).unwrap();
    println!("HANGS another pool's clone after {:.1?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(45));
    println!("HANGS-AND-ANSWERS");
}
