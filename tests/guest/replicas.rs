//! Versions as streams from one store to another, on two pools: what comes is what was sent, or
//! is none; a stream goes on where it was cut off, and begins at a bookmark where nothing else is
//! left of a version.

use dls::storage::{
    Access, Arrived, BlockDevice, Durability, SnapshotId, Storage, Streams, Volume, VolumeError,
    Wanted,
};
use uuid::Uuid;

use super::{Stand, base, image, make_image, noise, read, run, session};

const SIZE: usize = 8 << 20;

fn quiet() -> Result<(), VolumeError> {
    Ok(())
}

fn streams(stand: &Stand) -> &dyn Streams {
    stand.store().streams().unwrap()
}

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn wanted(from: &Stand, n: u128, start: Option<u128>) -> Wanted {
    let starts = streams(from).starts(id(n)).unwrap();
    let begins = |start| {
        starts
            .iter()
            .find(|s| s.version == id(start))
            .unwrap()
            .point
    };
    Wanted {
        version: id(n),
        point: streams(from).point(id(n)).unwrap().unwrap(),
        size: SIZE as u64,
        base: start.map(|start| (id(start), begins(start))),
    }
}

/// All of a stream.
fn recorded(from: &Stand, wanted: &Wanted, words: Option<&str>) -> Vec<u8> {
    let start = wanted.base.map(|(_, point)| point);
    let stream = streams(from).send(wanted.version, start, words).unwrap();
    let mut stream = stream.expect("the words are good");
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next(&mut quiet).unwrap() {
        bytes.extend(piece);
    }
    bytes
}

/// Feeds a stream; what the store says of it.
fn take(to: &Stand, wanted: &Wanted, bytes: &[u8]) -> Result<(), VolumeError> {
    let mut taking = streams(to).receive(wanted)?;
    for piece in bytes.chunks(100_000) {
        taking.write(piece, &mut quiet)?;
    }
    taking.finish(&mut quiet)
}

fn content(disk: &dyn BlockDevice) -> Vec<u8> {
    read(disk, 0, SIZE)
}

fn stored(stand: &Stand, n: u128) -> Vec<u8> {
    content(&*stand.store().open(image(n), Access::Read).unwrap())
}

/// Version 1 of noise, and version 2 of it with a few other blocks; both on the first stand.
fn two(first: &Stand) {
    make_image(first.store(), 1, SIZE, 0);
    let store = first.store();
    store.clone_volume(&base(1), session(9)).unwrap();
    let write = |v, at: usize, bytes: &[u8]| {
        let disk = store.open(v, Access::Write).unwrap();
        disk.write_at(at as u64, bytes, Durability::Fua).unwrap();
    };
    write(session(9), 0, &noise(SIZE / 2, 1));
    let made = SnapshotId {
        volume: session(9),
        name: "made".parse().unwrap(),
    };
    store.snapshot(&made).unwrap();
    store.clone_volume(&made, image(2)).unwrap();
    store.snapshot(&base(2)).unwrap();
}

#[test]
fn a_stream_is_the_same_version_or_none() {
    let (first, second) = (Stand::open("onepool/unit"), Stand::open("twopool/unit"));
    two(&first);
    let whole = wanted(&first, 1, None);
    take(&second, &whole, &recorded(&first, &whole, None)).unwrap();
    assert_eq!(
        streams(&second).arrived(id(1)).unwrap(),
        Arrived::Whole(whole.point)
    );
    assert!(
        second.store().info(image(1)).unwrap().is_none(),
        "it was not kept yet"
    );
    let arrived = streams(&second).read_arrived(&whole).unwrap();
    assert!(content(&*arrived) == stored(&first, 1));
    drop(arrived);
    streams(&second).keep(&whole).unwrap();
    assert_eq!(streams(&second).point(id(1)).unwrap(), Some(whole.point));

    // The increment, through a machine's disk that lies between.
    let more = wanted(&first, 2, Some(1));
    let bytes = recorded(&first, &more, None);
    let mut dice = 7_u64;
    let mut refused = 0;
    for flip in 0..12 {
        dice = dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let bit = usize::try_from(dice >> 20).unwrap() % (bytes.len() * 8);
        // Some in the records themselves.
        let bit = if flip < 4 { flip * 400 + 70 } else { bit };
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let taken = take(&second, &more, &bad);
        refused += u32::from(taken.is_err());
        if taken.is_ok() {
            // A bit that says nothing: then all of it must be right.
            let arrived = streams(&second).read_arrived(&more).unwrap();
            assert!(content(&*arrived) == stored(&first, 2), "bit {bit}");
        }
        assert!(second.store().info(image(2)).unwrap().is_none());
        streams(&second).discard(id(2)).unwrap();
        assert_eq!(streams(&second).arrived(id(2)).unwrap(), Arrived::Nothing);
    }
    assert!(refused >= 10, "{refused} of 12");
    // Another version's stream, or one from another start, is not taken for this one.
    let other = recorded(&first, &wanted(&first, 2, None), None);
    for strange in [
        &other[..],
        &recorded(&first, &whole, None),
        b"none at all, but long enough".repeat(20).as_slice(),
    ] {
        let said = take(&second, &more, strange).unwrap_err();
        assert!(matches!(said, VolumeError::Damaged { .. }), "{said}");
        assert_eq!(streams(&second).arrived(id(2)).unwrap(), Arrived::Nothing);
    }

    // Cut off three times, it goes on from there; words that are none are said to be none.
    let mut words: Option<String> = None;
    let mut lengths = vec![];
    for part in [3, 2, 2] {
        let rest = recorded(&first, &more, words.as_deref());
        lengths.push(rest.len());
        assert!(take(&second, &more, &rest[..rest.len() / part]).is_err());
        let Arrived::Part(said) = streams(&second).arrived(id(2)).unwrap() else {
            panic!("nothing is left of it");
        };
        words = Some(said);
    }
    let rest = recorded(&first, &more, words.as_deref());
    assert!(
        rest.len() < lengths[0] / 2,
        "{} after {lengths:?}",
        rest.len()
    );
    let start = more.base.map(|(_, point)| point);
    for bad in ["", "1-00", "-x", &words.clone().unwrap()[..60]] {
        let sent = streams(&first).send(id(2), start, Some(bad)).unwrap();
        assert!(sent.is_none(), "{bad}");
    }
    let sent = streams(&first).send(id(1), None, words.as_deref()).unwrap();
    assert!(sent.is_none(), "these words are of another version");
    take(&second, &more, &rest).unwrap();
    streams(&second).keep(&more).unwrap();
    assert!(stored(&second, 2) == stored(&first, 2));
    let info = second.store().info(image(2)).unwrap().unwrap();
    assert_eq!(info.origin, Some(base(1)));
    assert_eq!(info.snapshots, [base(2).name]);
    println!(
        "STREAMS {refused} of 12 flipped bits refused, {} bytes after {lengths:?}",
        rest.len()
    );

    a_bookmark_is_enough(&first, &second);
    let health = run("zpool status -x");
    assert!(health.contains("all pools are healthy"), "{health}");
}

fn a_bookmark_is_enough(first: &Stand, second: &Stand) {
    let store = first.store();
    assert!(
        !streams(first).remember(id(1)).unwrap(),
        "machines stand upon it"
    );
    let token = tokio_util::sync::CancellationToken::new();
    store.promote(image(2), &mut |_| {}, &token).unwrap();
    store.destroy(session(9)).unwrap();
    assert!(streams(first).remember(id(1)).unwrap());
    assert!(
        streams(first).remember(id(1)).unwrap(),
        "once more is no error"
    );
    store.destroy(image(1)).unwrap();
    assert_eq!(streams(first).remembered().unwrap(), [id(1)]);
    assert_eq!(streams(first).point(id(1)).unwrap(), None);
    let there: Vec<Volume> = store.list().unwrap().iter().map(|i| i.volume).collect();
    assert_eq!(there, [image(2)]);
    // A third, of the second; sent to who has only the first.
    store.clone_volume(&base(2), image(3)).unwrap();
    let disk = store.open(image(3), Access::Write).unwrap();
    disk.write_at(4096, &noise(9000, 3), Durability::Fua)
        .unwrap();
    drop(disk);
    store.snapshot(&base(3)).unwrap();
    let starts = streams(first).starts(id(3)).unwrap();
    let starts: Vec<_> = starts.iter().map(|s| (s.version, s.whole)).collect();
    assert_eq!(starts, [(id(2), true), (id(1), false)]);
    let third = wanted(first, 3, Some(1));
    take(second, &third, &recorded(first, &third, None)).unwrap();
    streams(second).keep(&third).unwrap();
    assert!(stored(second, 3) == stored(first, 3));
    assert_eq!(
        second.store().info(image(3)).unwrap().unwrap().origin,
        Some(base(1))
    );
    streams(first).forget(id(1)).unwrap();
    streams(first).forget(id(1)).unwrap();
    assert!(streams(first).remembered().unwrap().is_empty());
    println!("BOOKMARK an increment began at one");
}
