//! Operations that fail, and files that are damaged.

use std::sync::{Arc, Barrier, Mutex};

use proptest::prelude::*;

use super::super::cow::{Layer, inspect};
use super::super::format::CLUSTER;
use super::super::{Content, Wait};
use super::memory::{Book, Memory};
use super::{Pattern, make, open};
use crate::storage::conformance::Dice;

const SIZE: u64 = 300 * 1024;

/// The same work with the n-th operation failing, for each n: an error is reported, or all is
/// right; and afterwards everything works and holds what was acknowledged.
fn each_failure(code: i32) {
    let mut n = 0;
    loop {
        let (file, journal, book) = Memory::pair();
        make(&file, SIZE);
        let below: Arc<dyn Content> = Arc::new(Pattern(SIZE));
        let layer = open(&file, &journal, Some(below.clone()), 1).unwrap();
        {
            let mut book = book.lock().unwrap();
            book.fail_in = Some(n);
            book.code = code;
        }
        let mut dice = Dice(9);
        let mut model = Pattern(SIZE).all();
        // Ranges in which a failed operation may have left old or new.
        let mut unknown: Vec<(u64, u64)> = Vec::new();
        let mut errors = 0;
        for round in 0..60_u8 {
            let length = dice.below(9000) + 1;
            let at = dice.below(SIZE - length);
            let range = usize::try_from(at).unwrap()..usize::try_from(at + length).unwrap();
            let value = if round % 5 == 4 { 0 } else { round + 1 };
            let done = match round % 5 {
                4 => layer.zero(at, length),
                _ => layer.write(at, &vec![value; range.len()]),
            };
            match done {
                Ok(()) => {
                    model[range].fill(value);
                }
                Err(e) => {
                    assert_eq!(e.raw_os_error(), Some(code));
                    errors += 1;
                    unknown.push((at, length));
                }
            }
            if round % 20 == 19 && layer.flush().is_err() {
                errors += 1;
                layer.flush().unwrap();
            }
        }
        let mut read = vec![0; usize::try_from(SIZE).unwrap()];
        if layer.read(0, &mut read, Wait::Yes).is_err() {
            errors += 1;
            layer.read(0, &mut read, Wait::Yes).unwrap();
        }
        let right = |read: &[u8], what: &str| {
            for (at, (byte, should)) in (0_u64..).zip(read.iter().zip(&model)) {
                let unknown = || unknown.iter().any(|(f, l)| (*f..f + l).contains(&at));
                assert!(
                    byte == should || unknown(),
                    "{what}, failure {n}, byte {at}"
                );
            }
        };
        right(&read, "open");
        if layer.close().is_err() {
            errors += 1;
            layer.close().unwrap();
        }
        drop(layer);
        let failed = book.lock().unwrap().fail_in.take().is_none();
        let again = open(&file, &journal, Some(below), 2).unwrap();
        let mut read = vec![0; usize::try_from(SIZE).unwrap()];
        again.read(0, &mut read, Wait::Yes).unwrap();
        right(&read, "opened again");
        assert!(errors <= 1, "one failure, {errors} errors");
        if !failed {
            assert!(n > 100, "all operations were tried");
            break;
        }
        // Every one in the long run; each third is enough of a look.
        n += if super::torture() { 1 } else { 3 };
    }
}

#[test]
fn an_error_of_the_disk_reaches_the_caller_and_nothing_else() {
    each_failure(libc::EIO);
}

#[test]
fn a_full_store_refuses_and_goes_on() {
    each_failure(libc::ENOSPC);
}

fn failing() -> (Memory, Memory, Layer<Memory>, Arc<Mutex<Book>>) {
    let (file, journal, book) = Memory::pair();
    make(&file, SIZE);
    let layer = open(&file, &journal, Some(Arc::new(Pattern(SIZE))), 1).unwrap();
    layer.write(5000, &[9; 20_000]).unwrap();
    book.lock().unwrap().code = libc::EIO;
    (file, journal, layer, book)
}

fn fail_next(book: &Mutex<Book>) {
    book.lock().unwrap().fail_in = Some(0);
}

fn is_eio(done: std::io::Result<()>) -> bool {
    done.is_err_and(|e| e.raw_os_error() == Some(libc::EIO))
}

/// What a machine wrote is there after a power cut.
fn is_whole(file: &Memory, journal: &Memory) {
    let again = open(file, journal, Some(Arc::new(Pattern(SIZE))), 2).unwrap();
    let mut read = vec![0; 20_000];
    again.read(5000, &mut read, Wait::Yes).unwrap();
    assert!(read == [9; 20_000]);
}

#[test]
fn a_checkpoint_in_the_background_that_fails_makes_the_next_flush_fail_and_no_later_one() {
    // A sync and a write of tables.
    for step in [0, 1, 2] {
        let (file, journal, layer, book) = failing();
        book.lock().unwrap().fail_in = Some(step);
        assert!(is_eio(layer.relieve()), "{step}");
        assert!(is_eio(layer.flush()), "{step}: the kernel tells only once");
        layer.flush().unwrap();
        layer.write(0, &[1; 10]).unwrap();
        layer.flush().unwrap();
        drop(layer);
        is_whole(&file, &journal);
    }
}

#[test]
fn what_others_asked_for_does_not_take_the_error_from_the_machine() {
    // A snapshot's checkpoint that fails, a later one that goes well, and the freezing.
    let (file, journal, layer, book) = failing();
    fail_next(&book);
    assert!(is_eio(layer.freeze()));
    layer.relieve().unwrap();
    assert!(is_eio(layer.freeze()), "nothing is frozen before");
    assert!(is_eio(layer.cut()), "nor cut off");
    assert!(is_eio(layer.flush()));
    layer.flush().unwrap();
    layer.freeze().unwrap();
    drop(layer);
    is_whole(&file, &journal);
}

#[test]
fn a_flush_that_comes_while_a_checkpoint_fails_fails_too() {
    for background in [true, false] {
        let (file, journal, layer, book) = failing();
        let hold = Arc::new(Barrier::new(2));
        book.lock().unwrap().hold = Some(hold.clone());
        let (first, second) = std::thread::scope(|scope| {
            let first = scope.spawn(|| match background {
                true => layer.relieve(),
                false => layer.flush(),
            });
            hold.wait();
            let second = scope.spawn(|| layer.flush());
            // It waits for its turn; if it should come later, it has even less of an excuse.
            std::thread::sleep(std::time::Duration::from_millis(50));
            fail_next(&book);
            hold.wait();
            (first.join().unwrap(), second.join().unwrap())
        });
        assert!(is_eio(first) && is_eio(second), "background: {background}");
        layer.flush().unwrap();
        drop(layer);
        is_whole(&file, &journal);
    }
}

fn written() -> (Vec<u8>, Vec<u8>) {
    let (file, journal, _) = Memory::pair();
    make(&file, SIZE);
    let layer = open(&file, &journal, Some(Arc::new(Pattern(SIZE))), 1).unwrap();
    for at in [0, 140_000, 270_000] {
        layer.write(at, &[9; 5000]).unwrap();
    }
    layer.flush().unwrap();
    layer.write(300_000, &[8; 5000]).unwrap();
    let bytes = |m: &Memory| m.bytes.lock().unwrap().clone();
    (bytes(&file), bytes(&journal))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any content of header, tables and journal: opened or refused, read or refused.
    #[test]
    fn no_content_of_a_file_is_fatal(
        changes in prop::collection::vec((0_u8..8, any::<u32>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<u32>()),
    ) {
        let (mut file, mut journal) = written();
        let cluster = CLUSTER as usize;
        for (area, place, value) in changes {
            let place = place as usize;
            match area {
                0 | 1 => file[place % 256] ^= value,
                2 => file[cluster + place % 8] ^= value,
                3 => file[2 * cluster + place % 8] ^= value,
                4 | 5 => file[4 * cluster + place % 128] ^= value,
                6 => journal[place % 64] ^= value,
                _ => {
                    let length = journal.len();
                    journal[4096 + place % (length - 4096)] ^= value;
                }
            }
        }
        if let Some(cut) = cut {
            let length = cut as usize % (file.len() + 1);
            file.truncate(length);
        }
        let book = Arc::default();
        let file = Memory::new(0, file, &book);
        let journal = Memory::new(1, journal, &book);
        if let Ok(layer) = open(&file, &journal, Some(Arc::new(Pattern(SIZE))), 1) {
            let mut buffer = vec![0; SIZE as usize];
            let _ = layer.read(0, &mut buffer, Wait::Yes);
            let _ = layer.write(123_456, &[1; 300]);
            let _ = layer.zero(1, 300_000);
            let _ = layer.run(0, SIZE);
            let _ = layer.flush();
            let _ = layer.close();
        }
        prop_assert!(inspect(&Memory::new(2, vec![0; 100], &book)).is_err());
    }
}

#[test]
fn damage_is_said_in_words() {
    let (file, journal) = written();
    let cluster = CLUSTER as usize;
    let book = Arc::default();
    let said = |bytes: Vec<u8>| {
        let file = Memory::new(0, bytes, &book);
        let journal = Memory::new(1, journal.clone(), &book);
        match open(&file, &journal, Some(Arc::new(Pattern(SIZE))), 2) {
            Ok(_) => "opened".to_owned(),
            Err(fault) => fault.to_string(),
        }
    };
    assert_eq!(said(file.clone()), "opened");
    let mut other = file.clone();
    other[0] = 0;
    assert!(said(other).contains("no qcow2"));
    let mut other = file.clone();
    other[20] = 16;
    assert!(said(other).contains("header"));
    assert!(said(file[..2 * cluster].to_vec()).contains("cut short"));
    let mut other = file.clone();
    other[cluster + 3] ^= 1;
    assert!(said(other).contains("tables"));
    let mut other = file.clone();
    // The entry of cluster 0 with another place.
    other[4 * cluster + 3] ^= 1;
    assert!(said(other).contains("cluster 0"));
    let mut other = file;
    // Two clusters in one place.
    let first = other[4 * cluster..4 * cluster + 16].to_vec();
    other[4 * cluster + 16..4 * cluster + 32].copy_from_slice(&first);
    assert!(said(other).contains("same place"));
}
