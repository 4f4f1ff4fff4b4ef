//! Random operations on a chain of real files, equal to bytes in memory; in the end QEMU's
//! programs agree.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use super::super::cow::{Layer, create, inspect};
use super::super::format::Below;
use super::super::medium::{Medium, Stored};
use super::super::raw::Raw;
use super::super::{Content, Wait};
use super::surroundings;
use crate::storage::conformance::Dice;

const SIZE: u64 = 5 * 1024 * 1024 + 1536;

fn stored(path: &Path) -> Stored {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    Stored(options.open(path).unwrap())
}

fn open(folder: &Path, name: &str, below: Arc<dyn Content>) -> Layer<Stored> {
    let file = stored(&folder.join(name));
    let header = inspect(&file).unwrap();
    let journal = folder.join(format!("{name}.journal"));
    let make = Box::new(move || Ok(stored(&journal)));
    let name = name.to_owned();
    Layer::open(name, file, &header, Some(below), make, &surroundings(1)).unwrap()
}

fn make(folder: &Path, name: &str, below: &str, format: &'static str) {
    let below = Below {
        name: below.to_owned(),
        format,
    };
    create(&stored(&folder.join(name)), SIZE, Some(&below)).unwrap();
}

fn qemu_img(folder: &Path, arguments: &[&str]) {
    let mut command = Command::new("qemu-img");
    let out = command
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(out.status.success(), "{arguments:?}: {out:?}");
}

/// Operations; more by an environment variable.
fn rounds() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "make torture says how many")]
    let asked = std::env::var("DLS_MODEL_ROUNDS");
    asked.ok().and_then(|n| n.parse().ok()).unwrap_or(4000)
}

fn work(layer: &Layer<Stored>, model: &mut [u8], dice: &mut Dice, rounds: u64) {
    for round in 0..rounds {
        let length = match dice.below(5) {
            0 => 512 * (dice.below(8) + 1),
            1 => 4096,
            2 => dice.below(600_000) + 1,
            _ => dice.below(20_000) + 1,
        };
        let at = dice.below(SIZE - length + 1);
        let at = if dice.below(3) == 0 {
            at - at % 4096
        } else {
            at
        };
        let range = usize::try_from(at).unwrap()..usize::try_from(at + length).unwrap();
        match dice.below(10) {
            0..4 => {
                let value = (round % 255) as u8;
                layer.write(at, &vec![value; range.len()]).unwrap();
                model[range].fill(value);
            }
            4 => {
                layer.zero(at, length).unwrap();
                model[range].fill(0);
            }
            5 if round % 40 == 0 => layer.flush().unwrap(),
            6 => {
                let run = layer.run(at, length).unwrap();
                assert!((1..=length).contains(&run.length));
                if run.kind != crate::storage::ExtentKind::Data {
                    let end = range.start + usize::try_from(run.length).unwrap();
                    assert!(model[range.start..end].iter().all(|b| *b == 0));
                }
            }
            _ => {
                let mut read = vec![1; range.len()];
                layer.read(at, &mut read, Wait::Yes).unwrap();
                assert!(read == model[range], "round {round}, {at} + {length}");
                let mut quick = vec![1; read.len()];
                if layer.read(at, &mut quick, Wait::No).unwrap() {
                    assert!(quick == read);
                }
            }
        }
    }
}

#[test]
fn a_chain_is_equal_to_a_model_and_qemu_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut dice = Dice(0xd15c);
    let mut model = vec![0_u8; usize::try_from(SIZE).unwrap()];
    let base = stored(&at.join("base.raw"));
    base.set_length(SIZE).unwrap();
    for _ in 0..40 {
        let start = usize::try_from(dice.below(SIZE - 70_000)).unwrap();
        let length = usize::try_from(dice.below(70_000)).unwrap();
        model[start..start + length].fill_with(|| dice.below(256) as u8);
        base.write(start as u64, &model[start..start + length])
            .unwrap();
    }
    let base: Arc<dyn Content> = Arc::new(Raw::new(base, true).unwrap());
    make(at, "one.qcow2", "base.raw", "raw");
    make(at, "two.qcow2", "one.qcow2", "qcow2");
    let rounds = rounds();
    let one = open(at, "one.qcow2", base.clone());
    work(&one, &mut model, &mut dice, rounds / 4);
    one.close().unwrap();
    let frozen = model.clone();
    let one: Arc<dyn Content> = Arc::new(one);
    for part in 0..3 {
        let two = open(at, "two.qcow2", one.clone());
        work(&two, &mut model, &mut dice, rounds / 4);
        match part {
            // Left as a process leaves it that is killed.
            0 => {}
            1 => two.close().unwrap(),
            _ => {
                two.fill(3).unwrap();
                two.close().unwrap();
            }
        }
    }
    std::fs::write(at.join("model.raw"), &model).unwrap();
    std::fs::write(at.join("frozen.raw"), &frozen).unwrap();
    for (name, right) in [("one.qcow2", "frozen.raw"), ("two.qcow2", "model.raw")] {
        qemu_img(at, &["check", "-f", "qcow2", name]);
        qemu_img(at, &["compare", "-f", "qcow2", "-F", "raw", name, right]);
    }
    // Filled and cut off, it is whole by itself.
    let two = open(at, "two.qcow2", one);
    for cluster in 0..two.clusters() {
        two.fill(cluster).unwrap();
    }
    two.cut().unwrap();
    two.close().unwrap();
    drop(two);
    std::fs::remove_file(at.join("one.qcow2")).unwrap();
    qemu_img(at, &["check", "-f", "qcow2", "two.qcow2"]);
    let compare = [
        "compare",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "two.qcow2",
        "model.raw",
    ];
    qemu_img(at, &compare);
    // QEMU writes it, and we read what it wrote.
    let out = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 0x77 1000k 300k", "two.qcow2"])
        .current_dir(at)
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    model[1000 * 1024..1300 * 1024].fill(0x77);
    let two = open(at, "two.qcow2", base);
    let mut read = vec![0; model.len()];
    two.read(0, &mut read, Wait::Yes).unwrap();
    assert!(read == model);
}
