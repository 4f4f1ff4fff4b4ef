//! Every point of a trace as a crash: the end of the process (all that was done to the files
//! is there, and the boot is the same), and a power cut (what was not synced may be missing in
//! parts and in any order, and the boot is another one).

use std::sync::Arc;

use super::super::Content;
use super::super::Wait;
use super::memory::{Book, Deed, Memory, apply};
use super::{Pattern, make, open, torture};
use crate::storage::conformance::Dice;

const SIZE: u64 = 2 * 1024 * 1024 + 512;
const SECTOR: usize = 512;

/// What a disk's user did.
#[derive(Debug, Clone)]
enum Act {
    Write { at: u64, value: u8, length: u64 },
    Zero { at: u64, length: u64 },
    Flush,
}

/// An act, with how many deeds were in the book before it and when it was acknowledged.
struct Step {
    act: Act,
    began: usize,
    ended: usize,
}

fn play(seed: u64, steps: usize) -> (Vec<Step>, Vec<(usize, Deed)>, Vec<u8>) {
    let (file, journal, book) = Memory::pair();
    make(&file, SIZE);
    let empty = file.bytes.lock().unwrap().clone();
    book.lock().unwrap().record = true;
    let layer = open(&file, &journal, Some(Arc::new(Pattern(SIZE))), 1).unwrap();
    let mut dice = Dice(seed);
    let mut done = Vec::new();
    let length_of_book = |book: &std::sync::Mutex<Book>| book.lock().unwrap().deeds.len();
    for n in 0..steps {
        let began = length_of_book(&book);
        let length = match dice.below(4) {
            0 => 512,
            1 => 4096,
            2 => dice.below(12_000) + 1,
            _ => 512 * (dice.below(40) + 1),
        };
        let mut at = dice.below(SIZE - length + 1);
        if dice.below(2) == 0 {
            at -= at % 512;
        }
        let act = match dice.below(12) {
            0 => Act::Flush,
            1 => Act::Zero { at, length },
            2 => Act::Zero {
                at: at - at % 4096,
                length: (dice.below(80) * 4096).min(SIZE - at),
            },
            _ => Act::Write {
                at,
                value: (n % 255) as u8,
                length,
            },
        };
        match act {
            Act::Write { at, value, length } => {
                let data = vec![value; usize::try_from(length).unwrap()];
                layer.write(at, &data).unwrap();
            }
            Act::Zero { at, length } => layer.zero(at, length).unwrap(),
            Act::Flush => layer.flush().unwrap(),
        }
        let ended = length_of_book(&book);
        done.push(Step { act, began, ended });
    }
    // As closing does; its deeds are crash points too.
    layer.close().unwrap();
    let deeds = std::mem::take(&mut book.lock().unwrap().deeds);
    (done, deeds, empty)
}

fn change(model: &mut [u8], act: &Act) {
    let index = |n: u64| usize::try_from(n).unwrap();
    match act {
        Act::Write { at, value, length } => model[index(*at)..index(at + length)].fill(*value),
        Act::Zero { at, length } => model[index(*at)..index(at + length)].fill(0),
        Act::Flush => {}
    }
}

fn content(file: Vec<u8>, journal: Vec<u8>, boot: u8) -> Vec<u8> {
    let book = Arc::default();
    let file = Memory::new(0, file, &book);
    let journal = Memory::new(1, journal, &book);
    let layer = open(&file, &journal, Some(Arc::new(Pattern(SIZE))), boot).unwrap();
    let mut read = vec![0; usize::try_from(SIZE).unwrap()];
    layer.read(0, &mut read, Wait::Yes).unwrap();
    // It can be written and closed as well.
    layer.write(SIZE - 700, &[1; 600]).unwrap();
    layer.close().unwrap();
    read
}

/// Kills at each point: acknowledged is there, the act under way is there or not by sectors.
#[test]
fn the_end_of_the_process_loses_nothing_that_was_acknowledged() {
    let (steps, deeds, empty) = play(0x5eed, 250);
    let every = if torture() { 1 } else { 7 };
    let mut files = [empty, Vec::new()];
    let (mut model, mut at) = (Pattern(SIZE).all(), 0);
    for point in 0..=deeds.len() {
        while at < steps.len() && steps[at].ended <= point {
            change(&mut model, &steps[at].act);
            at += 1;
        }
        if point % every == 0 {
            let mut after = model.clone();
            if let Some(step) = steps.get(at).filter(|s| s.began < point) {
                change(&mut after, &step.act);
            }
            let read = content(files[0].clone(), files[1].clone(), 1);
            for (n, byte) in read.iter().enumerate() {
                assert!(
                    *byte == model[n] || *byte == after[n],
                    "point {point} of {}, byte {n}: {byte}, not {} or {}",
                    deeds.len(),
                    model[n],
                    after[n]
                );
            }
        }
        if let Some((file, deed)) = deeds.get(point) {
            apply(&mut files[*file], deed);
        }
    }
}

/// What may be lost of a deed that was not synced: sectors of it.
fn apply_some(bytes: &mut Vec<u8>, deed: &Deed, dice: &mut Dice) {
    match deed {
        Deed::Write { at, data } => {
            let mut from = 0;
            while from < data.len() {
                let here = SECTOR - usize::try_from(*at).unwrap().wrapping_add(from) % SECTOR;
                let to = (from + here).min(data.len());
                if dice.below(2) == 0 {
                    let part = Deed::Write {
                        at: at + from as u64,
                        data: data[from..to].to_vec(),
                    };
                    apply(bytes, &part);
                }
                from = to;
            }
        }
        other if dice.below(2) == 0 => apply(bytes, other),
        _ => {}
    }
}

/// Cuts the power at each point: what was flushed is there, each sector is one of those that
/// it was since, and the layer opens.
#[test]
fn a_power_cut_leaves_what_was_flushed_and_each_sector_old_or_new() {
    let torture = torture();
    let (traces, length, tries, every) = if torture {
        (4, 1000, 4, 1)
    } else {
        (2, 250, 2, 9)
    };
    for trace in 0..traces {
        let seed = 77 + trace;
        let (steps, deeds, empty) = play(seed, length);
        let mut dice = Dice(seed * 31 + 1);
        let mut synced = [empty, Vec::new()];
        let mut loose: Vec<usize> = Vec::new();
        // The content at the last flush that was acknowledged, and the acts after it.
        let (mut flushed, mut recent, mut at) = (Pattern(SIZE).all(), 0, 0);
        for point in 0..=deeds.len() {
            while at < steps.len() && steps[at].ended <= point {
                if matches!(steps[at].act, Act::Flush) {
                    for step in &steps[recent..at] {
                        change(&mut flushed, &step.act);
                    }
                    recent = at;
                }
                at += 1;
            }
            for _ in 0..if point % every == 0 { tries } else { 0 } {
                let mut files = synced.clone();
                let drop_all = dice.below(8) == 0;
                for deed in &loose {
                    let (file, deed) = &deeds[*deed];
                    if !drop_all {
                        apply_some(&mut files[*file], deed, &mut dice);
                    }
                }
                let [file, journal] = files;
                let read = content(file, journal, 2);
                let under_way = steps.get(at).filter(|s| s.began < point);
                let since = steps[recent..at].iter().chain(under_way);
                let mut candidates = vec![flushed.clone()];
                for step in since {
                    let mut next = candidates[candidates.len() - 1].clone();
                    change(&mut next, &step.act);
                    candidates.push(next);
                }
                compare(&read, &candidates, &format!("trace {trace}, point {point}"));
            }
            if let Some((file, deed)) = deeds.get(point) {
                match deed {
                    Deed::Sync => loose.retain(|n| {
                        let (other, deed) = &deeds[*n];
                        if other == file {
                            apply(&mut synced[*file], deed);
                        }
                        other != file
                    }),
                    _ => loose.push(point),
                }
            }
        }
    }
}

/// Each byte is what it was in one of the candidates, the first of which is the least.
fn compare(read: &[u8], candidates: &[Vec<u8>], what: &str) {
    for (n, sector) in read.chunks(SECTOR).enumerate() {
        let range = n * SECTOR..n * SECTOR + sector.len();
        if candidates.iter().any(|c| c[range.clone()] == *sector) {
            continue;
        }
        // Acts that begin or end within a sector may be there in part: byte for byte.
        for (byte, at) in sector.iter().zip(range) {
            assert!(
                candidates.iter().any(|c| c[at] == *byte),
                "{what}: byte {at} is {byte}, which it never was"
            );
        }
    }
}
