//! Machines at once, two hundred or as many as `CLONES` says: each logs in over NBD, which makes its clone and opens it; it
//! marks its disk, and reads all of it back through a second login. udev is stopped meanwhile. Then
//! half of the disks are removed and as many made, with udev slow and devices' numbers used again,
//! and all are read back. Links are wrong on purpose. Beside it, in the same run, what `zfs clone` alone takes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use dls::storage::{Storage, VolumeError};
use uuid::Uuid;

use super::nbd::{Client, Exports};
use super::{Stand, make_image, noise, run, session, shell, wait_for};

const SIZE: usize = 512 << 10;
const MARK: usize = 64 * 1024;

/// The 50th and 99th of a hundred, and the longest.
fn spread(mut all: Vec<Duration>) -> String {
    all.sort_unstable();
    let at = |percent: usize| all[(all.len() * percent).div_ceil(100).max(1) - 1];
    format!(
        "p50 {:.2} s, p99 {:.2} s, longest {:.2} s",
        at(50).as_secs_f64(),
        at(99).as_secs_f64(),
        all[all.len() - 1].as_secs_f64()
    )
}

/// Everybody at the same moment; what each took.
fn at_once(who: &[u128], act: impl Fn(u128) + Sync) -> Vec<Duration> {
    let barrier = Barrier::new(who.len());
    std::thread::scope(|scope| {
        let all: Vec<_> = who
            .iter()
            .map(|n| {
                let (barrier, act) = (&barrier, &act);
                scope.spawn(move || {
                    barrier.wait();
                    let start = Instant::now();
                    act(*n);
                    start.elapsed()
                })
            })
            .collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn mark(n: u128) -> Vec<u8> {
    noise(MARK, n as u64 + 1)
}

/// Where a machine's mark lies: not all in one place.
fn place(n: u128) -> usize {
    n as usize % 8 * MARK
}

/// Has links lead to each other's disks: what udev leaves when it is late and numbers are used again.
fn links(count: u128) {
    let folder = Path::new("/dev/zvol/labpool/crowd");
    std::fs::create_dir_all(folder).unwrap();
    for n in 0..count {
        let link = folder.join(format!("session.{}", Uuid::from_u128(n).simple()));
        let _ = std::fs::remove_file(&link);
        symlink(format!("/dev/zd{}", 16 * (n % 40)), link).unwrap();
    }
}

/// The numbers of all zvols' devices.
fn numbers() -> BTreeSet<String> {
    let all = std::fs::read_dir("/sys/block").unwrap().flatten();
    let all = all.map(|e| e.file_name().into_string().unwrap());
    all.filter(|name| name.starts_with("zd")).collect()
}

/// These log in at the same moment, which makes their clones, and mark them.
fn make_and_mark(address: SocketAddr, who: &[u128]) -> Vec<Duration> {
    at_once(who, |n| {
        let mut client = Client::take(address, &n.to_string()).unwrap();
        client.write(place(n) as u64, &mark(n)).unwrap();
        client.leave().unwrap();
    })
}

/// These log in again at the same moment, and each finds its own mark and nothing else.
fn read_back(address: SocketAddr, who: &[u128]) -> Vec<Duration> {
    at_once(who, |n| {
        let mut client = Client::take(address, &n.to_string()).unwrap();
        let all: Vec<u8> = (0..SIZE / MARK)
            .flat_map(|part| client.read((part * MARK) as u64, MARK).unwrap())
            .collect();
        let mut right = vec![1; SIZE];
        right[place(n)..place(n) + MARK].copy_from_slice(&mark(n));
        assert!(all == right, "machine {n} has another's disk");
        client.leave().unwrap();
    })
}

fn told(what: &str, start: Instant) {
    println!("STORM {:6.1} s  {what}", start.elapsed().as_secs_f64());
}

#[test]
fn many_clones_at_once_are_nobody_elses() {
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(tracing::Level::WARN)
        .try_init();
    let start = Instant::now();
    let count: u128 = std::env::var("CLONES").map_or(200, |n| n.parse().unwrap());
    let stand = Stand::open("labpool/crowd");
    let store = stand.store().clone();
    make_image(&store, 1, SIZE, 1);
    let exports = Exports::of(&store);
    let address = exports.address;
    let first: Vec<u128> = (0..count).collect();
    run("udevadm control --stop-exec-queue");
    links(count);
    told("udev is stopped, its links are wrong", start);
    let took = make_and_mark(address, &first);
    told(
        "all have logged in, which made their clones, and marked them",
        start,
    );
    println!(
        "STORM {count} clones made, opened, marked: {}",
        spread(took)
    );
    exports.close_all();
    let took = read_back(address, &first);
    println!(
        "STORM no wrong disk in {count}; second login and all of it read: {}",
        spread(took)
    );
    exports.close_all();

    // Half of them go, and as many new ones get their devices' numbers, with udev slow.
    run(
        "mkdir -p /run/udev/rules.d && echo 'KERNEL==\"zd*\", PROGRAM=\"/bin/sleep 0.3\"' > /run/udev/rules.d/00-slow.rules \
         && udevadm control --reload && udevadm control --start-exec-queue",
    );
    let before = numbers();
    let (stay, go): (Vec<u128>, Vec<u128>) = first.iter().partition(|n| *n % 2 == 0);
    let mut took = Vec::new();
    for n in go {
        // The connections' threads let go a moment after their clients have left.
        wait_for("a disk is closed", 60, || {
            let began = Instant::now();
            match store.destroy(session(n)) {
                Ok(()) => took.push(began.elapsed()),
                Err(VolumeError::Busy { .. }) => return false,
                Err(e) => panic!("{e}"),
            }
            true
        });
    }
    println!("STORM each removed in {}", spread(took));
    let free: BTreeSet<String> = before.difference(&numbers()).cloned().collect();
    told("half of them are removed", start);
    let new: Vec<u128> = (count..count + count / 2).collect();
    links(count + count / 2);
    let took = make_and_mark(address, &new);
    let again = free.intersection(&numbers()).count();
    println!(
        "STORM {} more made, opened, marked, {again} of them with numbers used again: {}",
        new.len(),
        spread(took)
    );
    assert!(again * 2 > new.len(), "{again} numbers were used again");
    exports.close_all();
    let all: Vec<u128> = stay.into_iter().chain(new).collect();
    let took = read_back(address, &all);
    println!(
        "STORM no wrong disk in {}; second login and all of it read: {}",
        all.len(),
        spread(took)
    );
    exports.end();

    run("rm -f /run/udev/rules.d/00-slow.rules; udevadm control --reload");
    let _ = shell("udevadm settle -t 60");
    told("udev is done", start);
    let origin = "labpool/crowd/image.00000000000000000000000000000001\
                  @image.00000000000000000000000000000001.base";
    let took = at_once(&first, |n| {
        run(&format!("exec zfs clone {origin} labpool/crowd/bare.{n}"));
    });
    println!("STORM {count} `zfs clone` alone, at once: {}", spread(took));
    told("the end", start);
}
