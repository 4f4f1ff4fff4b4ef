//! Each finding, made on purpose; and what is consistent has none.

use proptest::prelude::*;

use super::*;

const IMAGE: Uuid = Uuid::from_u128(1);
const KERNEL: Uuid = Uuid::from_u128(2);
const VERSION: Uuid = Uuid::from_u128(3);
const CLIENT: Uuid = Uuid::from_u128(4);
const STRAY: Uuid = Uuid::from_u128(99);

fn disk(name: Name, origin: Option<(Name, &str)>, snapshots: &[&str]) -> Disk {
    Disk {
        name,
        size: 4096,
        used: 10,
        origin: origin.map(|(name, snapshot)| (name, snapshot.to_owned())),
        snapshots: snapshots.iter().map(|s| (*s).to_owned()).collect(),
        made_for: Vec::new(),
    }
}

const fn personal() -> Name {
    Name::Personal {
        client: CLIENT,
        image: IMAGE,
    }
}

/// A disk image with a version that was made from its client's disk, a boot of that, a kernel image.
fn right() -> (Rows, Store) {
    let row = |id, name: &str, disk| ImageRow {
        id,
        name: name.to_owned(),
        disk,
        files: !disk,
        size: 4096,
        used_by: vec!["client pc-01".to_owned()],
    };
    let rows = Rows {
        images: vec![row(IMAGE, "debian", true), row(KERNEL, "rescue", false)],
        versions: vec![VersionRow {
            id: VERSION,
            image: "debian".to_owned(),
            name: "v2".to_owned(),
            used_by: Vec::new(),
        }],
        clients: vec![CLIENT],
        ..Rows::default()
    };
    let session = Name::Session(Uuid::from_u128(5));
    let mut own = disk(personal(), Some((Name::Image(IMAGE), "base")), &["version"]);
    own.made_for = vec![("version".to_owned(), VERSION)];
    let hold = |on, clone| Hold {
        on: (on, "base".to_owned()),
        clone: Some(clone),
    };
    let store = Store {
        disks: vec![
            disk(Name::Image(IMAGE), None, &["base"]),
            own,
            disk(
                Name::Image(VERSION),
                Some((personal(), "version")),
                &["base"],
            ),
            disk(session, Some((Name::Image(VERSION), "base")), &[]),
        ],
        files: vec![KERNEL],
        holds: vec![
            hold(Name::Image(IMAGE), personal()),
            hold(Name::Image(VERSION), session),
            Hold {
                clone: None,
                ..hold(Name::Image(IMAGE), personal())
            },
        ],
        unfinished: Vec::new(),
        busy: Vec::new(),
    };
    (rows, store)
}

/// What is found after something was done to what was right.
fn after(change: impl FnOnce(&mut Rows, &mut Store)) -> Vec<String> {
    let (mut rows, mut store) = right();
    change(&mut rows, &mut store);
    compare(&rows, &store).iter().map(Finding::id).collect()
}

fn lose(store: &mut Store, name: Name) {
    store.disks.retain(|disk| disk.name != name);
}

#[test]
fn what_is_right_has_no_finding() {
    assert_eq!(after(|_, _| {}), Vec::<String>::new());
}

#[test]
fn what_another_server_has_need_not_be_here_and_what_comes_from_there_is_not_whole_yet() {
    let away = |rows: &mut Rows, store: &mut Store| {
        store.disks.pop();
        store.holds.remove(1);
        lose(store, Name::Image(VERSION));
        rows.elsewhere.insert(VERSION);
    };
    assert_eq!(after(away), Vec::<String>::new());
    let half = |rows: &mut Rows, store: &mut Store| {
        away(rows, store);
        store.disks.push(disk(Name::Image(VERSION), None, &[]));
    };
    let left = format!("{}:{}", Kind::DiskWithoutBase, Name::Image(VERSION));
    assert_eq!(after(half), [left]);
    let arriving = |rows: &mut Rows, store: &mut Store| {
        half(rows, store);
        store.busy.push(VERSION);
    };
    assert_eq!(after(arriving), Vec::<String>::new());
}

/// Every kind, with the names that it is to be found by.
fn made(kind: Kind) -> (Vec<String>, Vec<String>) {
    let one = |of: String| vec![format!("{kind}:{of}")];
    let base = |store: &mut Store, name: Name| {
        let disk = store.disks.iter_mut().find(|disk| disk.name == name);
        disk.unwrap().snapshots.clear();
    };
    match kind {
        Kind::ImageWithoutDisk => (
            after(|rows, store| {
                rows.images[1].disk = true;
                store.disks.pop();
                store.holds.remove(1);
            }),
            one(KERNEL.to_string()),
        ),
        Kind::VersionWithoutDisk => (
            after(|_, store| {
                store.disks.pop();
                store.holds.remove(1);
                lose(store, Name::Image(VERSION));
            }),
            one(VERSION.to_string()),
        ),
        Kind::DiskWithoutBase => (
            after(|_, store| {
                store.disks.pop();
                store.holds.remove(1);
                base(store, Name::Image(VERSION));
            }),
            one(Name::Image(VERSION).to_string()),
        ),
        Kind::ImageWithoutFiles => (
            after(|_, store| store.files.clear()),
            one(KERNEL.to_string()),
        ),
        Kind::DiskWithoutRow => (
            after(|_, store| {
                let stray = disk(Name::Image(STRAY), None, &["base"]);
                let upon = Some((Name::Image(STRAY), "base"));
                let child = disk(Name::Image(Uuid::from_u128(98)), upon, &[]);
                store.disks.extend([stray, child]);
            }),
            // What stands upon the other can be removed first.
            [98, 99]
                .map(|n| format!("{kind}:{}", Name::Image(Uuid::from_u128(n))))
                .to_vec(),
        ),
        Kind::FilesWithoutRow => (
            after(|_, store| store.files.push(STRAY)),
            one(STRAY.to_string()),
        ),
        Kind::DiskWithoutClient => (
            after(|rows, _| rows.clients.clear()),
            one(personal().to_string()),
        ),
        Kind::DiskWithoutImage => {
            let name = Name::Personal {
                client: CLIENT,
                image: STRAY,
            };
            let found = after(|_, store| store.disks.push(disk(name, None, &[])));
            (found, one(name.to_string()))
        }
        Kind::SnapshotWithoutVersion => (
            after(|_, store| {
                store.disks[1].snapshots.push("old".to_owned());
                store.disks[1].made_for.push(("old".to_owned(), STRAY));
            }),
            one(format!("{}@old", personal())),
        ),
        Kind::OriginMissing => {
            let name = Name::Session(STRAY);
            let upon = Some((Name::Image(IMAGE), "gone"));
            let found = after(|_, store| store.disks.push(disk(name, upon, &[])));
            (found, one(name.to_string()))
        }
        Kind::HoldWithoutClone => (
            after(|_, store| {
                store.disks.pop();
            }),
            one(format!(
                "{}@base+{}",
                Name::Image(VERSION),
                Name::Session(Uuid::from_u128(5))
            )),
        ),
        Kind::SizeDiffers => (
            after(|rows, _| rows.images[0].size = 8192),
            one(IMAGE.to_string()),
        ),
        Kind::IntentionUnfinished => (
            after(|_, store| {
                store.unfinished.push(Unfinished {
                    id: STRAY,
                    what: "it was begun".to_owned(),
                });
                // That it has no row is the same finding.
                store.disks.push(disk(Name::Image(STRAY), None, &[]));
            }),
            one(STRAY.to_string()),
        ),
    }
}

#[test]
fn each_finding_is_found_and_nothing_else() {
    for kind in Kind::ALL {
        let (found, expected) = made(*kind);
        assert_eq!(found, expected, "{kind}");
        let ways = [kind.repair(), kind.removal(), kind.by_hand()];
        assert!(ways.iter().any(Option::is_some), "{kind}: and what now?");
    }
}

#[test]
fn a_database_that_was_put_back_loses_rows_and_nothing_is_said_of_what_is_under_way() {
    let found = after(|rows, _| *rows = Rows::default());
    let kinds: Vec<&str> = found.iter().filter_map(|id| id.split(':').next()).collect();
    assert_eq!(
        kinds,
        [
            "disk-without-row",
            "disk-without-row",
            "files-without-row",
            "disk-without-client"
        ]
    );
    let busy = after(|rows, store| {
        *rows = Rows::default();
        rows.clients = vec![CLIENT];
        store.busy = vec![IMAGE, VERSION, KERNEL];
    });
    assert_eq!(busy, Vec::<String>::new());
}

#[test]
fn a_sentence_says_who_misses_it() {
    let (rows, mut store) = right();
    store.files.clear();
    let found = compare(&rows, &store);
    assert_eq!(
        found[0].sentence,
        "kernel and initrds of the image `rescue` are not in this server's store (used by client pc-01)"
    );
}

proptest! {
    /// Rows with all they need, clones upon clones, and a store that has just these.
    #[test]
    fn consistent_input_has_no_finding(
        images in 0_u128..12,
        versions in prop::collection::vec((0_u128..12, any::<bool>()), 0..12),
        sessions in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        size in 1_u64..1 << 40,
    ) {
        let (mut rows, mut store) = (Rows::default(), Store::default());
        let sized = |name, origin, snapshots: &[&str]| Disk { size, ..disk(name, origin, snapshots) };
        for n in 0..images {
            let id = Uuid::from_u128(1000 + n);
            rows.images.push(ImageRow {
                id,
                name: n.to_string(),
                disk: true,
                files: n % 2 == 0,
                size: i64::try_from(size).unwrap(),
                used_by: Vec::new(),
            });
            if n % 2 == 0 {
                store.files.push(id);
            }
            store.disks.push(sized(Name::Image(id), None, &["base"]));
        }
        for (n, (of, freed)) in (0..).zip(&versions) {
            if *of >= images {
                continue;
            }
            let id = Uuid::from_u128(2000 + n);
            let origin = (!freed).then_some((Name::Image(Uuid::from_u128(1000 + of)), "base"));
            store.disks.push(sized(Name::Image(id), origin, &["base"]));
            rows.versions.push(VersionRow {
                id,
                image: of.to_string(),
                name: n.to_string(),
                used_by: Vec::new(),
            });
        }
        let grounds: Vec<Name> = store.disks.iter().map(|disk| disk.name).collect();
        for (n, ground) in (0..).zip(&sessions) {
            if grounds.is_empty() {
                break;
            }
            let ground = *ground.get(&grounds);
            let name = Name::Session(Uuid::from_u128(3000 + n));
            store.disks.push(sized(name, Some((ground, "base")), &[]));
            store.holds.push(Hold { on: (ground, "base".to_owned()), clone: Some(name) });
        }
        prop_assert_eq!(compare(&rows, &store), Vec::new());
        // And it does not depend on what the lists begin with.
        store.disks.reverse();
        rows.versions.reverse();
        prop_assert_eq!(compare(&rows, &store), Vec::new());
    }
}
