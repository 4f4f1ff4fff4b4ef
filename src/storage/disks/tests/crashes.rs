//! A writer that is killed: every write that it had acknowledged is there. And what a kill
//! leaves of work that was not finished.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use uuid::Uuid;

use super::{InFiles, check, files};
use crate::storage::conformance::Dice;
use crate::storage::disks::{DiskStore, TABLE_CACHE};
use crate::storage::{Access, Durability, SnapshotId, Storage, Volume};

const SIZE: u64 = 8 << 20;
const BLOCK: u64 = 2048;
const ROOT: &str = "DLS_TEST_WRITER_ROOT";

fn clone() -> Volume {
    Volume::Session(Uuid::from_u128(7))
}

pub(super) fn variable(name: &str) -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "how a test talks to its own child"
    )]
    std::env::var(name).ok()
}

/// The child: writes, and says so after each acknowledgement. Does nothing as a test.
#[test]
fn writer() {
    let Some(root) = variable(ROOT) else { return };
    let seed: u64 = variable("DLS_TEST_WRITER_SEED").unwrap().parse().unwrap();
    let store = DiskStore::open(Path::new(&root), TABLE_CACHE).unwrap();
    let disk = store.open(clone(), Access::Write).unwrap();
    let mut dice = Dice(seed);
    let mut out = std::io::stdout().lock();
    for round in 0_u64.. {
        let block = dice.below(SIZE / BLOCK);
        let value = (dice.below(255) + 1) as u8;
        writeln!(out, "\ntry {block} {value}").unwrap();
        out.flush().unwrap();
        let zero = round % 9 == 8;
        if zero {
            disk.discard(block * BLOCK, BLOCK).unwrap();
        } else {
            let durability = match round % 50 {
                49 => Durability::Fua,
                _ => Durability::Volatile,
            };
            disk.write_at(block * BLOCK, &[value; BLOCK as usize], durability)
                .unwrap();
        }
        writeln!(out, "ack {block} {}", if zero { 0 } else { value }).unwrap();
        out.flush().unwrap();
        if round % 200 == 199 {
            disk.flush().unwrap();
        }
    }
}

#[test]
fn a_killed_writer_has_lost_nothing_that_was_acknowledged() {
    let rounds = variable("DLS_TORTURE").map_or(6, |_| 200);
    let mut subject = InFiles::new();
    let image = Volume::Image(Uuid::from_u128(1));
    let store = subject.get();
    store.create(image, SIZE).unwrap();
    let disk = store.open(image, Access::Write).unwrap();
    disk.write_at(0, &vec![200; SIZE as usize], Durability::Volatile)
        .unwrap();
    drop(disk);
    let base = SnapshotId::base(Uuid::from_u128(1));
    store.snapshot(&base).unwrap();
    store.clone_volume(&base, clone()).unwrap();
    let mut model = vec![200_u8; (SIZE / BLOCK) as usize];
    let mut dice = Dice(0x000b_ad5e);
    for round in 0..rounds {
        subject.store = None;
        let name = "storage::disks::tests::crashes::writer";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(ROOT, subject.root.path())
            .env("DLS_TEST_WRITER_SEED", (round + 1).to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stop_at = dice.below(700) + 1;
        let mut under_way = None;
        let mut acknowledged = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let mut words = line.split(' ');
            let word = words.next().unwrap_or_default();
            let mut number = || words.next().and_then(|w| w.parse::<usize>().ok());
            let (Some(block), Some(value)) = (number(), number()) else {
                continue;
            };
            match word {
                "try" => under_way = Some((block, value as u8)),
                "ack" => {
                    model[block] = value as u8;
                    under_way = None;
                    acknowledged += 1;
                    if acknowledged == stop_at {
                        // It goes on writing meanwhile; what it said is read to the end.
                        child.kill().unwrap();
                    }
                }
                _ => {}
            }
        }
        child.wait().unwrap();
        assert!(acknowledged >= stop_at, "the writer worked");
        let store = DiskStore::open(subject.root.path(), TABLE_CACHE).unwrap();
        let disk = store.open(clone(), Access::Write).unwrap();
        let mut read = vec![0; SIZE as usize];
        disk.read_at(0, &mut read).unwrap();
        for (block, bytes) in read.chunks(BLOCK as usize).enumerate() {
            let whole = bytes.iter().all(|b| *b == bytes[0]);
            match under_way {
                Some((unsure, new)) if unsure == block => {
                    let old = model[block];
                    let either = |b: &u8| *b == old || *b == new || *b == 0;
                    assert!(bytes.iter().all(either), "round {round}, block {block}");
                    model[block] = bytes[0];
                    disk.write_at(
                        block as u64 * BLOCK,
                        &vec![bytes[0]; bytes.len()],
                        Durability::Fua,
                    )
                    .unwrap();
                }
                _ => assert!(
                    whole && bytes[0] == model[block],
                    "round {round}, block {block}: {} for {}",
                    bytes[0],
                    model[block]
                ),
            }
        }
        drop(disk);
        subject.store = Some(store);
    }
    subject.store = None;
    check(subject.root.path());
}

#[test]
fn what_was_not_finished_is_gone_and_what_is_damaged_is_said() {
    let mut subject = InFiles::new();
    let root = subject.root.path().to_owned();
    let image = Volume::Image(Uuid::from_u128(1));
    let base = SnapshotId::base(Uuid::from_u128(1));
    let store = subject.get();
    store.create(image, 1 << 20).unwrap();
    store.snapshot(&base).unwrap();
    store.clone_volume(&base, clone()).unwrap();
    let said = DiskStore::open(&root, TABLE_CACHE).unwrap_err();
    assert!(said.to_string().contains("another process"), "{said}");
    let before = files(&root, "layers");
    subject.store = None;
    let disks = root.join("disks");
    let litter = Uuid::from_u128(99);
    for path in [
        format!("staging/{litter}"),
        format!("layers/{litter}.qcow2"),
        format!("layers/{litter}.raw"),
        format!("layers/{litter}.journal"),
    ] {
        std::fs::write(disks.join(path), b"x").unwrap();
    }
    // A clone that a power cut took before its first flush, in two ways.
    let other = Volume::Session(Uuid::from_u128(8));
    let empty = disks.join(format!(
        "volumes/{}",
        super::super::manifest::file_name(other)
    ));
    std::fs::write(&empty, [0; 300]).unwrap();
    let store = DiskStore::open(&root, TABLE_CACHE).unwrap();
    assert_eq!(files(&root, "layers"), before);
    assert!(files(&root, "staging").is_empty());
    assert!(store.info(other).unwrap().is_none());
    drop(store);
    // A manifest that was on the disk and is not what it was.
    let manifest = disks.join(format!(
        "volumes/{}",
        super::super::manifest::file_name(clone())
    ));
    let right = std::fs::read(&manifest).unwrap();
    let mut wrong = right.clone();
    wrong[20] ^= 1;
    std::fs::write(&manifest, &wrong).unwrap();
    std::fs::write(disks.join(format!("layers/{litter}.raw")), b"x").unwrap();
    let store = DiskStore::open(&root, TABLE_CACHE).unwrap();
    let said = store.open(clone(), Access::Read).unwrap_err().to_string();
    assert!(said.contains("manifest is damaged"), "{said}");
    assert_eq!(
        files(&root, "layers").len(),
        before.len() + 1,
        "nothing is swept"
    );
    assert!(store.open(image, Access::Read).is_ok());
    drop(store);
    std::fs::write(&manifest, &right).unwrap();
    let store = DiskStore::open(&root, TABLE_CACHE).unwrap();
    assert!(store.open(clone(), Access::Write).is_ok());
}
