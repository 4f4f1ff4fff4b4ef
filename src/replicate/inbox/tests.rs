//! What arrives becomes a version only when all of it is right, on the store in files.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::*;
use crate::storage::DiskStore;

const SIZE: u64 = 1 << 20;

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn open(root: &Path) -> Arc<Inbox> {
    let store = Arc::new(DiskStore::open(root, 1 << 20).unwrap());
    Inbox::new(store, Notes::open(root).unwrap())
}

fn offer(version: u128, bases: &[u128]) -> Offer {
    Offer {
        image: id(1),
        version: id(version),
        size: SIZE,
        point: 0,
        bases: bases.iter().map(|n| whole(id(*n))).collect(),
    }
}

fn whole(version: Uuid) -> Base {
    Base {
        version,
        point: 0,
        whole: true,
    }
}

fn quiet() -> Result<(), VolumeError> {
    Ok(())
}

/// Zeroes with that in it.
fn sum(parts: &[(usize, &[u8])]) -> [u8; 32] {
    let mut all = vec![0; usize::try_from(SIZE).unwrap()];
    for (at, bytes) in parts {
        all[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    Sha256::digest(all).into()
}

#[test]
fn a_version_is_one_when_it_is_equal_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let inbox = open(dir.path());
    let mut incoming = inbox.begin(&offer(1, &[])).unwrap();
    assert_eq!((incoming.base(), incoming.through()), (None, 0));
    incoming.write(4096, &[5; 100]).unwrap();
    incoming.sync(SIZE).unwrap();
    assert!(!content::is_whole(&*inbox.store, id(1)).unwrap());
    let busy = inbox.begin(&offer(1, &[])).unwrap_err();
    assert_eq!(busy.why, Refusal::Busy);
    let verdict = incoming.finish(sum(&[(4096, &[5; 100])]), &mut quiet);
    assert_eq!(verdict, Ok(Verdict::Verified));
    assert!(content::is_whole(&*inbox.store, id(1)).unwrap());
    let note = inbox.notes.read(id(1)).unwrap().unwrap();
    assert_eq!(note.sha256, Some(hex(&sum(&[(4096, &[5; 100])]))));
    // Offered once more it is only compared.
    let again = inbox.begin(&offer(1, &[])).unwrap();
    assert_eq!((again.base(), again.through()), (None, SIZE));
    assert!(again.write(0, &[1]).is_err());
    let verdict = again.finish([0; 32], &mut quiet).unwrap();
    assert_eq!(verdict, Verdict::Differs(sum(&[(4096, &[5; 100])])));
    assert!(content::is_whole(&*inbox.store, id(1)).unwrap());
    inbox.remove(id(1)).unwrap();
    assert_eq!(inbox.store.info(Volume::Image(id(1))).unwrap(), None);
    assert!(inbox.notes.list().unwrap().is_empty());
}

#[test]
fn a_bit_that_was_flipped_in_the_store_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let inbox = open(dir.path());
    let mut incoming = inbox.begin(&offer(1, &[])).unwrap();
    incoming.write(8192, &[5; 4096]).unwrap();
    incoming.sync(SIZE).unwrap();
    // Behind its back, after all that the frames and TLS could see.
    let disk = inbox
        .store
        .open(Volume::Image(id(1)), Access::Write)
        .unwrap();
    disk.write_at(9000, &[5 ^ 0x10], Durability::Volatile)
        .unwrap();
    drop(disk);
    let verdict = incoming.finish(sum(&[(8192, &[5; 4096])]), &mut quiet);
    assert!(matches!(verdict, Ok(Verdict::Differs(_))), "{verdict:?}");
    assert_eq!(inbox.store.info(Volume::Image(id(1))).unwrap(), None);
    assert!(
        inbox.notes.list().unwrap().is_empty(),
        "nothing of it is left"
    );
}

#[test]
fn it_goes_on_after_a_restart_where_it_was_flushed_last() {
    let dir = tempfile::tempdir().unwrap();
    let inbox = open(dir.path());
    let mut incoming = inbox.begin(&offer(1, &[])).unwrap();
    incoming.write(0, &[1; 4096]).unwrap();
    incoming.sync(65536).unwrap();
    incoming.write(65536, &[2; 4096]).unwrap();
    drop(incoming);
    drop(inbox);
    let inbox = open(dir.path());
    let mut incoming = inbox.begin(&offer(1, &[])).unwrap();
    assert_eq!(incoming.through(), 65536);
    incoming.write(65536, &[3; 4096]).unwrap();
    incoming.sync(SIZE).unwrap();
    let expected = sum(&[(0, &[1; 4096]), (65536, &[3; 4096])]);
    assert_eq!(incoming.finish(expected, &mut quiet), Ok(Verdict::Verified));
}

#[test]
fn a_difference_stands_upon_what_is_whole_here() {
    let dir = tempfile::tempdir().unwrap();
    let inbox = open(dir.path());
    let first = inbox.begin(&offer(1, &[])).unwrap();
    first.write(0, &[1; 8192]).unwrap();
    // Not whole yet: nothing can stand upon it.
    let early = inbox.begin(&offer(2, &[1])).unwrap();
    assert_eq!(early.base(), None);
    early.abandon().unwrap();
    assert_eq!(inbox.store.info(Volume::Image(id(2))).unwrap(), None);
    first.finish(sum(&[(0, &[1; 8192])]), &mut quiet).unwrap();
    let mut second = inbox.begin(&offer(2, &[9, 1])).unwrap();
    assert_eq!(second.base(), Some(id(1)));
    second.zero(4096, 4096).unwrap();
    second.sync(SIZE).unwrap();
    drop(second);
    // The sender has no version 1 any more: what was begun from it is of no use.
    let anew = inbox.begin(&offer(2, &[])).unwrap();
    assert_eq!((anew.base(), anew.through()), (None, 0));
    drop(anew);
    let mut second = inbox.begin(&offer(2, &[1])).unwrap();
    assert_eq!(second.base(), None, "it goes on as it was begun");
    second.write(0, &[1; 4096]).unwrap();
    second.sync(SIZE).unwrap();
    let verdict = second.finish(sum(&[(0, &[1; 4096])]), &mut quiet);
    assert_eq!(verdict, Ok(Verdict::Verified));
}
