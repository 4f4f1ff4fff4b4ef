//! What every store must do with snapshots that are there: hold them, tell what differs between
//! them, put fresh clones of them in a volume's place.

use super::*;

/// Snapshots that are held stay, and those that nobody needs can go.
pub(super) fn holds(subject: &mut dyn Subject) {
    let store = subject.store();
    let tag = |n: u128| HoldTag::Clone(session(n));
    let held = |snapshot: SnapshotId, tag| HeldSnapshot { snapshot, tag };
    store.create(image(7), MIB).unwrap();
    assert!(matches!(
        store.hold(&base(image(7)), tag(1)),
        Err(VolumeError::Missing(_))
    ));
    for (name, value) in [("base", 1), ("a", 2), ("b", 3)] {
        write(&*open(store, image(7)), 5000, &[value; 9000]);
        store.snapshot(&at(image(7), name)).unwrap();
    }
    write(&*open(store, image(7)), 5000, &[4; 9000]);
    assert!(store.holds().unwrap().is_empty());
    let replication = HoldTag::Replication(Uuid::from_u128(9));
    for tag in [tag(1), replication, tag(1)] {
        store.hold(&at(image(7), "a"), tag).unwrap();
    }
    store.hold(&base(image(7)), tag(2)).unwrap();
    let all = [
        held(at(image(7), "a"), tag(1)),
        held(at(image(7), "a"), replication),
        held(base(image(7)), tag(2)),
    ];
    assert_eq!(store.holds().unwrap(), all);
    subject.reopen();
    let store = subject.store();
    assert_eq!(store.holds().unwrap(), all);
    for refused in [
        store.destroy(image(7)),
        store.remove_snapshot(&at(image(7), "a")),
        store.rollback(&base(image(7))),
    ] {
        let said = refused.unwrap_err();
        assert!(
            matches!(&said, VolumeError::Busy { by, .. } if by.contains("held")),
            "{said}"
        );
    }
    // One of two tags is not enough; what was never held is no error.
    store.release(&at(image(7), "a"), tag(1)).unwrap();
    store.release(&at(image(7), "a"), tag(1)).unwrap();
    store.release(&at(image(7), "z"), tag(1)).unwrap();
    store.release(&base(image(77)), tag(1)).unwrap();
    assert!(store.remove_snapshot(&at(image(7), "a")).is_err());
    store.release(&at(image(7), "a"), replication).unwrap();
    // What others stand upon stays.
    store.clone_volume(&at(image(7), "a"), session(70)).unwrap();
    assert!(matches!(
        store.remove_snapshot(&at(image(7), "a")),
        Err(VolumeError::Busy { .. })
    ));
    store.destroy(session(70)).unwrap();
    for _ in 0..2 {
        store.remove_snapshot(&at(image(7), "a")).unwrap();
        store.remove_snapshot(&at(image(77), "a")).unwrap();
    }
    let names = |store: &dyn Storage| -> Vec<SnapshotName> {
        store.info(image(7)).unwrap().unwrap().snapshots
    };
    let left = [SnapshotName::base(), "b".parse().unwrap()];
    assert_eq!(names(store), left);
    let now = |store: &dyn Storage, value: u8| {
        assert_eq!(
            read(&*open(store, image(7)), 4999, 9002),
            [vec![0], vec![value; 9000], vec![0]].concat()
        );
    };
    now(store, 4);
    subject.reopen();
    let store = subject.store();
    assert_eq!(names(store), left);
    now(store, 4);
    // The name can be given again, and what is between two snapshots can be gone back over.
    store.snapshot(&at(image(7), "a")).unwrap();
    store.rollback(&at(image(7), "b")).unwrap();
    now(store, 3);
    assert_eq!(names(store), left);
    store.rollback(&base(image(7))).unwrap();
    now(store, 1);
    store.release(&base(image(7)), tag(2)).unwrap();
    store.destroy(image(7)).unwrap();
    assert!(store.holds().unwrap().is_empty());
}

/// What two snapshots differ in, against models of them: on one line, on two branches, against
/// nothing, with one that shares nothing; also after one was freed from what it came from. So many
/// pairs of them, by those dice.
pub(crate) fn changes(subject: &mut dyn Subject, seed: u64, pairs: u64) {
    let size = 4 * MIB;
    let mut dice = Dice(seed);
    let mut kept: Vec<(SnapshotId, Vec<u8>)> = Vec::new();
    let mut models = std::collections::BTreeMap::new();
    subject.store().create(image(7), size).unwrap();
    subject.store().create(image(71), size).unwrap();
    models.insert(image(7), vec![0; size as usize]);
    models.insert(image(71), vec![0; size as usize]);
    for round in 0..8_u8 {
        let store = subject.store();
        for (volume, model) in &mut models {
            let disk = open(store, *volume);
            for _ in 0..dice.below(4) {
                let (offset, length) = (dice.below(size - 70_000), dice.below(70_000));
                let range = offset as usize..(offset + length) as usize;
                if dice.below(3) == 0 {
                    disk.discard(offset, length).unwrap();
                    model[range].fill(0);
                } else {
                    write(&*disk, offset, &vec![round + 1; length as usize]);
                    model[range].fill(round + 1);
                }
            }
            drop(disk);
            let id = at(*volume, &format!("r{round}"));
            store.snapshot(&id).unwrap();
            kept.push((id, model.clone()));
        }
        let branch = |n: u128, round: u8| (session(n), at(image(7), &format!("r{round}")));
        match round {
            1 | 3 => {
                let (clone, from) = branch(700 + u128::from(round), round);
                store.clone_volume(&from, clone).unwrap();
                models.insert(clone, models[&image(7)].clone());
            }
            4 => {
                let from = at(session(701), "r3");
                store.clone_volume(&from, session(710)).unwrap();
                let model = kept.iter().find(|k| k.0 == from).unwrap().1.clone();
                models.insert(session(710), model);
            }
            5 => promote(store, session(703)),
            6 => subject.reopen(),
            _ => {}
        }
    }
    let store = subject.store();
    let mut told = 0;
    for round in 0..pairs {
        let pick = |dice: &mut Dice| &kept[dice.below(kept.len() as u64) as usize];
        let (old, new) = (pick(&mut dice), pick(&mut dice));
        let zeroes = vec![0; size as usize];
        let (from, before) = match round % 5 {
            0 => (None, &zeroes),
            _ => (Some(&old.0), &old.1),
        };
        let ranges = store.changes(from, &new.0).unwrap();
        let mut end = 0;
        for range in &ranges {
            let apart = range.start > end || (end == 0 && range.start == 0);
            assert!(apart && range.end > range.start && range.end <= size);
            let same = end as usize..range.start as usize;
            assert!(before[same.clone()] == new.1[same], "{from:?} {}", new.0);
            end = range.end;
        }
        let same = end as usize..;
        assert!(before[same.clone()] == new.1[same], "{from:?} {}", new.0);
        if from == Some(&new.0) {
            assert!(ranges.is_empty());
        }
        told += ranges.iter().map(|r| r.end - r.start).sum::<u64>();
    }
    // It is not all that is told each time.
    assert!(told < pairs * size * 3 / 4, "{told}");
    // A neighbour on the line differs in what was written in between alone. The line is a short
    // one: a long one is flattened in the background, and shares nothing from some moment on.
    store.create(image(72), size).unwrap();
    let mut now = vec![0; size as usize];
    now[..3 * MIB as usize].fill(1);
    for (name, at_byte, value) in [("first", 0, 1), ("last", MIB, 99)] {
        now[at_byte as usize..][..4096].fill(value);
        let end = if name == "first" {
            3 * MIB
        } else {
            at_byte + 4096
        };
        let part = &now[at_byte as usize..end as usize];
        write(&*open(store, image(72)), at_byte, part);
        store.snapshot(&at(image(72), name)).unwrap();
    }
    let last = store.changes(Some(&at(image(72), "first")), &at(image(72), "last"));
    let last = last.unwrap();
    assert!(last.iter().any(|r| r.contains(&MIB)), "{last:?}");
    // Of what is not empty nothing else is told, but for the rest of its block.
    let told = last
        .iter()
        .flat_map(|r| &now[r.start as usize..r.end as usize]);
    let told = told.filter(|byte| **byte != 0).count();
    assert!(told <= 128 * 1024, "{told} {last:?}");
    for missing in [at(image(7), "none"), at(image(79), "r1")] {
        let of = store.changes(None, &missing);
        assert!(matches!(of, Err(VolumeError::Missing(_))), "{of:?}");
        let of = store.changes(Some(&missing), &at(image(7), "r7"));
        assert!(matches!(of, Err(VolumeError::Missing(_))), "{of:?}");
    }
    for volume in [710, 701, 703] {
        store.destroy(session(volume)).unwrap();
    }
    store.destroy(image(7)).unwrap();
    store.destroy(image(71)).unwrap();
    store.destroy(image(72)).unwrap();
}

/// What a clone has of its own, and a fresh one in its place.
pub(super) fn renewal(subject: &mut dyn Subject) {
    let size = 2 * MIB;
    let store = subject.store();
    store.create(image(8), size).unwrap();
    write(&*open(store, image(8)), 0, &vec![8; size as usize]);
    store.snapshot(&base(image(8))).unwrap();
    write(&*open(store, image(8)), 0, &vec![9; size as usize]);
    store.snapshot(&at(image(8), "two")).unwrap();
    store.clone_volume(&base(image(8)), session(80)).unwrap();
    let none: [std::ops::Range<u64>; 0] = [];
    assert_eq!(store.own(session(80)).unwrap(), none);
    let disk = open(store, session(80));
    write(&*disk, MIB, &[1; 4096]);
    disk.discard(MIB + 262_144, 131_072).unwrap();
    let own = |store: &dyn Storage| {
        let own = store.own(session(80)).unwrap();
        for at in [MIB, MIB + 4095] {
            assert!(own.iter().any(|r| r.contains(&at)), "{at} {own:?}");
        }
        let sum: u64 = own.iter().map(|r| r.end - r.start).sum();
        assert!(sum <= 131_072 * 3, "{own:?}");
    };
    own(store);
    store.snapshot(&at(session(80), "kept")).unwrap();
    own(store);
    assert!(matches!(
        store.renew(&at(image(8), "two"), session(80)),
        Err(VolumeError::Busy { .. })
    ));
    drop(disk);
    store
        .clone_volume(&at(session(80), "kept"), session(81))
        .unwrap();
    assert!(matches!(
        store.renew(&at(image(8), "two"), session(80)),
        Err(VolumeError::Busy { .. })
    ));
    store.destroy(session(81)).unwrap();
    for missing in [
        store.renew(&at(image(8), "three"), session(80)),
        store.renew(&base(image(8)), session(89)),
    ] {
        assert!(matches!(missing, Err(VolumeError::Missing(_))));
    }
    assert_eq!(read(&*open(store, session(80)), MIB, 1), [1]);
    store.renew(&at(image(8), "two"), session(80)).unwrap();
    let info = store.info(session(80)).unwrap().unwrap();
    assert_eq!(info.origin, Some(at(image(8), "two")));
    assert!(info.snapshots.is_empty());
    assert!(info.referenced >= info.used);
    assert_eq!(store.own(session(80)).unwrap(), none);
    write(&*open(store, session(80)), 0, &[3; 512]);
    subject.reopen();
    let store = subject.store();
    let disk = open(store, session(80));
    assert_eq!(read(&*disk, 511, 2), [3, 9]);
    assert_eq!(read(&*disk, MIB, 4096), [9; 4096]);
    drop(disk);
    store.destroy(session(80)).unwrap();
    store.destroy(image(8)).unwrap();
}

/// Two versions are made from one disk, which then goes; they stay, whole and apart.
pub(super) fn descendants(subject: &mut dyn Subject) {
    let store = subject.store();
    store.create(image(8), MIB).unwrap();
    store.snapshot(&base(image(8))).unwrap();
    store.clone_volume(&base(image(8)), session(80)).unwrap();
    for n in [81, 82] {
        write(&*open(store, session(80)), 4096 * n as u64, &[n as u8; 512]);
        let made_for = at(session(80), &format!("v{n}"));
        store.snapshot(&made_for).unwrap();
        store.clone_volume(&made_for, image(n)).unwrap();
        store.snapshot(&base(image(n))).unwrap();
    }
    for n in [81, 82] {
        promote(store, image(n));
    }
    store.destroy(session(80)).unwrap();
    let whole = |store: &dyn Storage, n: u128| {
        let disk = open(store, image(n));
        assert_eq!(read(&*disk, 4096 * 81, 512), [81; 512]);
        assert_eq!(
            read(&*disk, 4096 * 82, 512),
            [if n == 82 { 82 } else { 0 }; 512]
        );
        assert_eq!(store.info(image(n)).unwrap().unwrap().snapshots.len(), 1);
    };
    for n in [81, 82] {
        whole(store, n);
    }
    subject.reopen();
    let store = subject.store();
    assert!(store.info(session(80)).unwrap().is_none());
    // Its name can be given again, and nothing of the former comes with it.
    store.clone_volume(&base(image(81)), session(80)).unwrap();
    write(&*open(store, session(80)), 0, &[1; 512]);
    store.destroy(session(80)).unwrap();
    store.destroy(image(81)).unwrap();
    whole(store, 82);
    store.destroy(image(8)).unwrap();
    whole(store, 82);
    store.destroy(image(82)).unwrap();
    assert!(store.list().unwrap().is_empty());
}
