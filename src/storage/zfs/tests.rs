//! The store on a real pool, `labpool/dls`, which `tests/lab/zfs.rs` makes in a machine of its
//! own and runs these in; and what needs no pool.

use super::*;

use std::sync::Barrier;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::storage::conformance::{self, Subject};
use crate::storage::{
    Access, BlockDevice, DiskFormat, Durability, SnapshotId, SnapshotName, Storage,
};

mod without_a_pool {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        let (a, b) = (Uuid::from_u128(7), Uuid::from_u128(u128::MAX));
        let volumes = [
            Volume::Image(a),
            Volume::Session(b),
            Volume::Personal {
                client: a,
                image: b,
            },
        ];
        for volume in volumes {
            assert_eq!(names::parse_volume(&names::word(volume)), Some(volume));
            for name in ["base", "v1.2-x_y", "1"] {
                let id = SnapshotId {
                    volume,
                    name: name.parse().unwrap(),
                };
                assert_eq!(names::parse_snapshot(&names::snapshot_word(&id)), Some(id));
            }
            assert_eq!(names::parse_snapshot(&names::word(volume)), None);
        }
        for other in ["image", "image.", "image.xyz", "other.0", "scratch.1", ""] {
            assert_eq!(names::parse_volume(other), None, "{other}");
        }
        let upper = names::word(Volume::Image(b)).to_uppercase();
        assert_eq!(names::parse_volume(&upper), None);
    }

    #[test]
    fn the_longest_name_fits_and_a_whole_pool_is_refused() {
        let id = Uuid::from_u128(u128::MAX);
        let volume = Volume::Personal {
            client: id,
            image: id,
        };
        let snapshot = SnapshotId {
            volume,
            name: "n".repeat(64).parse().unwrap(),
        };
        let parent = Parent::parse(&format!("tank/{}", "d".repeat(35))).unwrap();
        assert!(parent.snapshot(volume, &snapshot).len() <= 255);
        for refused in [
            "",
            "tank",
            "tank/",
            "/tank",
            "tank//x",
            "tank/x@y",
            "tank/-x",
            "tank/a b",
            &format!("tank/{}", "d".repeat(36)),
        ] {
            assert!(Parent::parse(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_listing_is_read() {
        let parent = Parent::parse("tank/dls").unwrap();
        let (one, two) = (
            Volume::Image(Uuid::from_u128(1)),
            Volume::Session(Uuid::from_u128(2)),
        );
        let base = SnapshotId::base(Uuid::from_u128(1));
        let (own, word) = (parent.volume(one), names::snapshot_word(&base));
        let text = format!(
            "{own}\t16384\t8192\t9\t-\t1024\t-\t-\n\
             {own}@{word}\t16384\t8192\t1\t-\t1024\t-\t-\n\
             {own}@autosnap\t16384\t8192\t1\t-\t1024\t-\t-\n\
             {}\t16384\t8192\t5\t{own}@{word}\t1024\t{word}\tdestroy\n\
             tank/dls/else\t16384\t8192\t5\t-\t-\t-\t-\n\
             tank/dls/scratch.5\t16384\t8192\t5\t-\t1024\t-\t-\n",
            parent.volume(two)
        );
        let listing = Listing::parse(&parent, &text).unwrap();
        assert_eq!(listing.volumes.len(), 2);
        assert_eq!(listing.scratch, ["tank/dls/scratch.5"]);
        let snapshot = listing.find(&base).unwrap();
        assert_eq!(listing.standing_on(snapshot).collect::<Vec<_>>(), [two]);
        let clone_info = listing.info(&parent, two).unwrap();
        assert_eq!((clone_info.size, clone_info.used), (1024, 5));
        assert_eq!(clone_info.origin, Some(base));
        assert_eq!(listing.get(two).unwrap().intent.as_deref(), Some("destroy"));
        let info = listing.info(&parent, one).unwrap();
        assert_eq!(info.snapshots, [SnapshotName::base()]);
        // A clone whose properties ZFS is about to set; a zvol that nobody says the size of.
        let fresh = format!(
            "{own}\t16384\t8192\t9\t-\t1024\t-\t-\n\
             {}\t16384\t8192\t5\t{own}@{word}\t-\t-\t-\n\
             {}\t16384\t8192\t9\t-\t-\t-\t-\n",
            parent.volume(two),
            parent.volume(Volume::Image(Uuid::from_u128(9))),
        );
        let listing = Listing::parse(&parent, &fresh).unwrap();
        assert_eq!(listing.volumes.len(), 2);
        assert_eq!(listing.info(&parent, two), Some(clone_info));
        let wrong = format!("{own}\t16384\t8192\t9\t-\t32768\t-\t-\n");
        assert!(Listing::parse(&parent, &wrong).is_err());
    }
}

mod on_a_pool {
    use super::*;

    struct Pool {
        store: Option<ZfsStore>,
        folder: tempfile::TempDir,
    }

    impl Pool {
        /// Tests have a parent dataset each, which the machine's script has made.
        fn dataset(name: &str) -> ZfsOptions {
            ZfsOptions {
                dataset: format!("labpool/{name}"),
                block: 16 * 1024,
                compression: Compression::Lz4,
                reserve: Reserve::Nothing,
            }
        }

        fn open(name: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = ZfsStore::open(Self::dataset(name), folder.path()).unwrap();
            Self {
                store: Some(store),
                folder,
            }
        }
    }

    impl Subject for Pool {
        fn store(&self) -> &dyn Storage {
            self.store.as_ref().unwrap()
        }

        fn reopen(&mut self) {
            let options = self.store.take().unwrap().inner.options.clone();
            self.store = Some(ZfsStore::open(options, self.folder.path()).unwrap());
        }
    }

    fn image(n: u128) -> Volume {
        Volume::Image(Uuid::from_u128(n))
    }

    fn session(n: u128) -> Volume {
        Volume::Session(Uuid::from_u128(n))
    }

    fn fill(store: &dyn Storage, volume: Volume, size: u64, value: u8) {
        store.create(volume, size).unwrap();
        let disk = store.open(volume, Access::Write).unwrap();
        let all = vec![value; usize::try_from(size).unwrap()];
        disk.write_at(0, &all, Durability::Fua).unwrap();
    }

    fn read(disk: &dyn BlockDevice, offset: u64, length: usize) -> Vec<u8> {
        let mut buffer = vec![0xaa; length];
        disk.read_at(offset, &mut buffer).unwrap();
        buffer
    }

    #[test]
    fn the_store_on_zfs_conforms() {
        conformance::all(&mut Pool::open("conformance"));
    }

    /// Each clone is opened by a thread of its own at the same moment, marked, and read back
    /// through a second opening.
    #[test]
    fn clones_that_open_at_once_get_their_own_disks() {
        const CLONES: u128 = 10;
        let mut pool = Pool::open("storm");
        let store = pool.store();
        fill(store, image(1), 8 << 20, 1);
        store
            .snapshot(&SnapshotId::base(Uuid::from_u128(1)))
            .unwrap();
        for round in 0..3_u128 {
            let start = Barrier::new(10);
            let store = pool.store();
            std::thread::scope(|scope| {
                for n in 0..CLONES {
                    let start = &start;
                    scope.spawn(move || {
                        start.wait();
                        let clone = session(n);
                        store
                            .clone_volume(&SnapshotId::base(Uuid::from_u128(1)), clone)
                            .unwrap();
                        let disk = store.open(clone, Access::Write).unwrap();
                        assert_eq!(read(&*disk, 4096, 512), [1; 512]);
                        let mark = (round * 100 + n + 2) as u8;
                        disk.write_at(4096, &[mark; 512], Durability::Fua).unwrap();
                    });
                }
            });
            pool.reopen();
            let store = pool.store();
            for n in 0..CLONES {
                let mark = (round * 100 + n + 2) as u8;
                let disk = store.open(session(n), Access::Read).unwrap();
                assert_eq!(read(&*disk, 4096, 512), [mark; 512], "clone {n}");
                assert_eq!(read(&*disk, 0, 4096), [1; 4096]);
            }
            // Their devices' numbers are used again in the next round.
            for n in 0..CLONES {
                store.destroy(session(n)).unwrap();
            }
            println!("round {round}: {CLONES} clones, no wrong disk");
        }
        pool.store().destroy(image(1)).unwrap();
    }

    /// A clone that was to take a disk's place, and a snapshot that was for a while, are found at the
    /// next opening.
    #[test]
    fn a_renewal_that_was_cut_short_is_finished_or_undone() {
        let mut pool = Pool::open("begun");
        let base = SnapshotId::base(Uuid::from_u128(1));
        let size = 1 << 20;
        let store = pool.store.as_ref().unwrap();
        fill(store, image(1), size, 1);
        store.snapshot(&base).unwrap();
        store.clone_volume(&base, session(1)).unwrap();
        let disk = store.open(session(1), Access::Write).unwrap();
        disk.write_at(0, &[2; 512], Durability::Fua).unwrap();
        drop(disk);
        let mark = |pool: &Pool| read(&*pool.store().open(session(1), Access::Read).unwrap(), 0, 1);
        let begin = |pool: &Pool| {
            let store = pool.store.as_ref().unwrap();
            let renewed = store.inner.parent.renewed(session(1));
            store.make_clone(&base, &renewed, size).unwrap();
            renewed
        };
        // The old one was not on its way out: it stays.
        let renewed = begin(&pool);
        pool.reopen();
        assert_eq!(mark(&pool), [2]);
        let store = pool.store.as_ref().unwrap();
        assert!(!store.exists(&renewed).unwrap());
        // It was: the new one takes its place.
        begin(&pool);
        listing::zfs(&["set", "dls:intent=destroy", &store.place(session(1))]).unwrap();
        pool.reopen();
        assert_eq!(mark(&pool), [1]);
        let store = pool.store.as_ref().unwrap();
        assert!(!store.exists(&renewed).unwrap());
        // It was gone already.
        begin(&pool);
        store.destroy(session(1)).unwrap();
        pool.reopen();
        assert_eq!(mark(&pool), [1]);
        let store = pool.store.as_ref().unwrap();
        let passing = store.inner.parent.passing(session(1), Uuid::from_u128(5));
        store.inner.library.snapshot(&passing).unwrap();
        pool.reopen();
        let store = pool.store.as_ref().unwrap();
        assert!(!store.exists(&passing).unwrap());
        let info = store.info(session(1)).unwrap().unwrap();
        assert!(info.referenced > info.used, "{info:?}");
        store.destroy(session(1)).unwrap();
        store.destroy(image(1)).unwrap();
    }

    #[test]
    fn a_link_to_another_disk_is_not_believed() {
        let pool = Pool::open("links");
        let store = pool.store();
        fill(store, image(1), 1 << 20, 11);
        fill(store, image(2), 1 << 20, 22);
        let place = |v| store.info(v).unwrap().unwrap().path;
        let (one, two) = (place(image(1)), place(image(2)));
        let link = |name: &str| std::path::Path::new("/dev/zvol").join(name);
        std::fs::create_dir_all(link(&one).parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(link(&one));
        let device = two_device(&two);
        std::os::unix::fs::symlink(device, link(&one)).unwrap();
        let disk = store.open(image(1), Access::Read).unwrap();
        assert_eq!(read(&*disk, 0, 512), [11; 512]);
        drop(disk);
        // A disk that is not as large as it was is not opened at all.
        let grown = std::process::Command::new("zfs")
            .args(["set", "volsize=2M", &one])
            .status()
            .unwrap();
        assert!(grown.success());
        let said = store.open(image(1), Access::Read).unwrap_err().to_string();
        assert!(said.contains("2097152"), "{said}");
        for volume in [image(1), image(2)] {
            store.destroy(volume).unwrap();
        }
    }

    fn two_device(dataset: &str) -> std::path::PathBuf {
        for entry in std::fs::read_dir("/sys/block").unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let path = std::path::Path::new("/dev").join(&name);
            if name.starts_with("zd")
                && let Ok(device) = std::fs::File::open(&path)
                && ioctl::dataset(&device).is_ok_and(|n| n == dataset)
            {
                return path;
            }
        }
        panic!("{dataset} has no device");
    }

    /// Devices that the kernel has ever made.
    fn made() -> u64 {
        let count = |e: std::fs::DirEntry| {
            let number = std::fs::read_to_string(e.path().join("diskseq")).ok()?;
            number.trim().parse::<u64>().ok()
        };
        let all = std::fs::read_dir("/sys/block").unwrap().flatten();
        all.filter_map(count).max().unwrap()
    }

    /// Another one in its place would be an I/O error for whoever had opened the first.
    #[test]
    fn a_new_disk_gets_one_device_and_keeps_it() {
        let mut pool = Pool::open("devices");
        let parent = pool.store.as_ref().unwrap().inner.parent.to_string();
        let mode = || listing::zfs(&["get", "-H", "-o", "value", "volmode", &parent]).unwrap();
        assert_eq!(mode().trim(), "dev");
        // Whoever changes that has it changed back.
        listing::zfs(&["inherit", "volmode", &parent]).unwrap();
        assert_eq!(mode().trim(), "default");
        pool.reopen();
        assert_eq!(mode().trim(), "dev");
        let store = pool.store();
        let base = SnapshotId::base(Uuid::from_u128(1));
        fill(store, image(1), 1 << 20, 1);
        store.snapshot(&base).unwrap();
        let before = made();
        for n in 1..=5 {
            store.clone_volume(&base, session(n)).unwrap();
            let disk = store.open(session(n), Access::Write).unwrap();
            disk.write_at(0, &[2; 512], Durability::Fua).unwrap();
        }
        // What is done in the pool's own time is done by now.
        std::thread::sleep(std::time::Duration::from_secs(2));
        assert_eq!(made() - before, 5);
        for n in 1..=5 {
            store.destroy(session(n)).unwrap();
        }
        store.destroy(image(1)).unwrap();
    }

    /// What is asked of one volume is what the list of all says of it.
    fn told_alike(store: &dyn Storage) {
        for one in store.list().unwrap() {
            assert_eq!(store.info(one.volume).unwrap(), Some(one));
        }
    }

    /// A promoted clone carries its origin's snapshots; whose they are must not change.
    #[test]
    fn who_carries_a_snapshot_changes_nothing() {
        let mut pool = Pool::open("promoted");
        let store = pool.store();
        let base = SnapshotId::base(Uuid::from_u128(1));
        fill(store, image(1), 1 << 20, 1);
        store.snapshot(&base).unwrap();
        for n in [1, 2] {
            store.clone_volume(&base, session(n)).unwrap();
        }
        let token = CancellationToken::new();
        store.promote(session(1), &mut |_| {}, &token).unwrap();
        pool.reopen();
        let store = pool.store();
        told_alike(store);
        let info = |v| store.info(v).unwrap().unwrap();
        assert_eq!(info(session(1)).origin, None);
        assert_eq!(info(session(1)).snapshots, []);
        assert_eq!(info(session(2)).origin, Some(base.clone()));
        assert_eq!(info(image(1)).snapshots, [SnapshotName::base()]);
        assert_eq!(info(image(1)).origin, None);
        // A third clone, of a snapshot that lies elsewhere now.
        store.clone_volume(&base, session(3)).unwrap();
        assert!(matches!(store.snapshot(&base), Err(VolumeError::Exists(_))));
        // The carrier goes; the others stay.
        told_alike(store);
        store.destroy(session(1)).unwrap();
        told_alike(store);
        for v in [image(1), session(2), session(3)] {
            let disk = store.open(v, Access::Read).unwrap();
            assert_eq!(read(&*disk, 0, 512), [1; 512]);
        }
        let said = store.destroy(image(1)).unwrap_err();
        assert!(matches!(said, VolumeError::Busy { .. }), "{said}");
        store.promote(session(2), &mut |_| {}, &token).unwrap();
        store.destroy(session(3)).unwrap();
        // Back to a snapshot that lies with the clone.
        let disk = store.open(image(1), Access::Write).unwrap();
        disk.write_at(0, &[9; 512], Durability::Fua).unwrap();
        drop(disk);
        store.rollback(&base).unwrap();
        let disk = store.open(image(1), Access::Read).unwrap();
        assert_eq!(read(&*disk, 0, 512), [1; 512]);
        drop(disk);
        store.destroy(image(1)).unwrap();
        let disk = store.open(session(2), Access::Read).unwrap();
        assert_eq!(read(&*disk, 0, 512), [1; 512]);
        drop(disk);
        store.destroy(session(2)).unwrap();
        assert!(store.list().unwrap().is_empty());
        assert!(
            pool.store
                .as_ref()
                .unwrap()
                .listing()
                .unwrap()
                .snapshots
                .is_empty()
        );
    }

    #[test]
    fn files_come_in_and_go_out() {
        let pool = Pool::open("files");
        let store = pool.store();
        let file = |name: &str| pool.folder.path().join(name);
        let mut content = vec![0; (3 << 20) + 512];
        content[1 << 20..(1 << 20) + 70_000].fill(5);
        content[(3 << 20) + 511] = 6;
        std::fs::write(file("in.raw"), &content).unwrap();
        let token = CancellationToken::new();
        let mut steps = Vec::new();
        let mut progress = |p: crate::storage::Progress| steps.push(p.step);
        let made = store
            .import(
                image(1),
                &file("in.raw"),
                DiskFormat::Raw,
                &mut progress,
                &token,
            )
            .unwrap();
        assert_eq!(made.size, content.len() as u64);
        assert!(steps.contains(&"copying") && steps.contains(&"verifying"));
        let base = SnapshotId::base(Uuid::from_u128(1));
        store.snapshot(&base).unwrap();
        for (name, format) in [
            ("out.raw", DiskFormat::Raw),
            ("out.qcow2", DiskFormat::Qcow2),
        ] {
            store
                .export(&base, &file(name), format, &mut |_| {}, &token)
                .unwrap();
        }
        assert!(std::fs::read(file("out.raw")).unwrap() == content);
        let again = store
            .import(
                image(2),
                &file("out.qcow2"),
                DiskFormat::Qcow2,
                &mut |_| {},
                &token,
            )
            .unwrap();
        assert_eq!(again.sha256, made.sha256);
        // What is refused or cancelled leaves nothing.
        token.cancel();
        let cancelled = store.import(
            image(3),
            &file("in.raw"),
            DiskFormat::Raw,
            &mut |_| {},
            &token,
        );
        assert!(matches!(cancelled, Err(VolumeError::Cancelled)));
        for v in [image(1), image(2)] {
            store.destroy(v).unwrap();
        }
        let left = pool.store.as_ref().unwrap().listing().unwrap();
        assert!(left.scratch.is_empty() && left.volumes.is_empty());
    }

    /// What a crash leaves between the steps of one call, made by hand.
    #[test]
    fn what_was_begun_is_finished_at_the_next_opening() {
        let mut pool = Pool::open("begun");
        let store = pool.store.as_ref().unwrap();
        fill(store, image(1), 1 << 20, 1);
        fill(store, image(2), 1 << 20, 1);
        let back = SnapshotId {
            volume: image(2),
            name: "a".parse().unwrap(),
        };
        store
            .snapshot(&SnapshotId::base(Uuid::from_u128(1)))
            .unwrap();
        store.snapshot(&back).unwrap();
        let disk = store.open(image(2), Access::Write).unwrap();
        disk.write_at(0, &[2; 512], Durability::Fua).unwrap();
        drop(disk);
        let set = |value: String, v| {
            listing::zfs(&[
                "set",
                &format!("{}={value}", listing::INTENT),
                &store.place(v),
            ])
            .unwrap();
        };
        set("destroy".to_owned(), image(1));
        set(
            format!("rollback {}", names::snapshot_word(&back)),
            image(2),
        );
        let scratch = store.inner.parent.scratch(Uuid::from_u128(3));
        store.make(&scratch, 1 << 20).unwrap();
        // A third was removed, and what another carries of it was not.
        let carried = SnapshotId::base(Uuid::from_u128(9));
        for n in [4, 5] {
            fill(store, image(n), 1 << 20, 1);
            let lies = store.inner.parent.snapshot(image(n), &carried);
            store.inner.library.snapshot(&lies).unwrap();
        }
        set(format!("drop {}", names::word(image(9))), image(4));
        pool.reopen();
        let store = pool.store.as_ref().unwrap();
        let listing = store.listing().unwrap();
        let there: Vec<_> = listing.volumes.keys().copied().collect();
        assert_eq!(there, [image(2), image(4), image(5)]);
        assert!(listing.scratch.is_empty());
        for volume in there {
            assert_eq!(listing.get(volume).unwrap().intent, None);
        }
        // Only what was said to go has gone.
        let lie = listing.snapshots.iter().filter(|s| s.id == carried);
        assert_eq!(lie.map(|s| s.lies_in).collect::<Vec<_>>(), [image(5)]);
        let lies = store.inner.parent.snapshot(image(5), &carried);
        store.inner.library.destroy_snapshots(&[lies]).unwrap();
        for n in [4, 5] {
            store.destroy(image(n)).unwrap();
        }
        let disk = store.open(image(2), Access::Read).unwrap();
        assert_eq!(read(&*disk, 0, 512), [1; 512]);
        drop(disk);
        store.destroy(image(2)).unwrap();
    }

    #[test]
    fn what_is_missing_is_said() {
        let folder = tempfile::tempdir().unwrap();
        for (dataset, part) in [
            ("labpool/nothing", "zfs create"),
            ("nopool/dls", "zpool import"),
        ] {
            let options = ZfsOptions {
                dataset: dataset.to_owned(),
                block: 16 * 1024,
                compression: Compression::Inherit,
                reserve: Reserve::Nothing,
            };
            let said = ZfsStore::open(options, folder.path())
                .unwrap_err()
                .to_string();
            let pool = dataset.split('/').next().unwrap();
            assert!(said.contains(pool) && said.contains(part), "{said}");
        }
    }

    #[test]
    fn space_is_set_aside_or_refused_when_a_disk_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let options = ZfsOptions {
            reserve: Reserve::All,
            ..Pool::dataset("reserved")
        };
        let store = ZfsStore::open(options, folder.path()).unwrap();
        store.create(image(1), 64 << 20).unwrap();
        let base = SnapshotId::base(Uuid::from_u128(1));
        store.snapshot(&base).unwrap();
        store.clone_volume(&base, session(1)).unwrap();
        for volume in [image(1), session(1)] {
            let place = store.place(volume);
            let kept = listing::zfs(&["get", "-Hpo", "value", "refreservation", &place]).unwrap();
            let kept: u64 = kept.trim().parse().unwrap();
            assert!(kept >= 64 << 20, "{volume}: {kept}");
        }
        let refused = store.create(image(2), 1 << 40).unwrap_err();
        assert!(matches!(refused, VolumeError::NoSpace), "{refused}");
        assert!(store.info(image(2)).unwrap().is_none());
        for volume in [session(1), image(1)] {
            store.destroy(volume).unwrap();
        }
    }

    #[test]
    fn a_device_that_another_program_claims_keeps_its_volume() {
        use std::os::unix::fs::OpenOptionsExt;
        let pool = Pool::open("claimed");
        let store = pool.store();
        fill(store, image(1), 1 << 20, 1);
        let place = store.info(image(1)).unwrap().unwrap().path;
        let other = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_EXCL)
            .open(two_device(&place))
            .unwrap();
        let said = store.destroy(image(1)).unwrap_err();
        assert!(matches!(said, VolumeError::Busy { .. }), "{said}");
        drop(other);
        store.destroy(image(1)).unwrap();
    }
}
