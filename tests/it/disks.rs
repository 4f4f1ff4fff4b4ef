//! Who gets which disk, with a real tracker and PostgreSQL, over a store in memory.
//! `outage`: the same while PostgreSQL is stopped, over real disks.
//! `versions`: which version of its image it is.

mod outage;
mod versions;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::TimeDelta;
use dls::boot::disks::{Attachment, DiskDoor, Disks, Line, Login, NoDisk, Proof, Verdict};
use dls::boot::session::{Context, Evidence, Observation, Rules, Speaker};
use dls::boot::token::{chap_name, export_name};
use dls::boot::tracker::{Caps, Tracker};
use dls::cache::Cache;
use dls::catalog::Catalog;
use dls::clock::Clock;
use dls::model::{
    BootMethod, Client, DiskIdentity, DiskMode, DiskProtocol, Image, ImageKind, MacAddr,
};
use dls::storage::memory::Memory;
use dls::storage::{BlockDevice, BlockError, Durability, SnapshotId, Storage, Volume};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::{TestDb, client, image};

const SIZE: u64 = 1 << 20;

/// A connection as an export would make it: closing it lets go of the disk.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    pub(crate) alive: AtomicBool,
    pub(crate) asked: AtomicU32,
    pub(crate) closed: AtomicBool,
    pub(crate) disk: Mutex<Option<Attachment>>,
}

impl Wire {
    pub(crate) fn new(alive: bool) -> Arc<Self> {
        Arc::new(Self {
            alive: AtomicBool::new(alive),
            ..Self::default()
        })
    }

    pub(crate) fn hold(&self, disk: Attachment) {
        *self.disk.lock().unwrap() = Some(disk);
    }
}

impl Line for Wire {
    fn answers(&self, _patience: Duration) -> bool {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.alive.load(Ordering::SeqCst)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let gone = self.disk.lock().unwrap().take();
        drop(gone);
    }
}

/// A login by CHAP over iSCSI.
pub(crate) fn chap(attempt: Uuid, target: Option<Uuid>, line: &Arc<Wire>) -> Login {
    Login {
        protocol: DiskProtocol::Iscsi,
        peer: SocketAddr::from(([10, 9, 0, 50], 40_000)),
        target: target.map(|owner| DiskIdentity { owner }),
        initiator: "iqn.test".to_owned(),
        proof: Proof::Chap {
            name: chap_name(attempt),
        },
        line: line.clone(),
    }
}

struct World {
    /// Of the shared cluster, if it is on that.
    db: Option<TestDb>,
    catalog: Catalog,
    cache: Cache,
    tracker: Tracker,
    disks: Disks,
    store: Arc<dyn Storage>,
    clock: Clock,
    image: Image,
    clients: Vec<Client>,
    server_id: Uuid,
    cancel: CancellationToken,
}

impl World {
    /// Two ephemeral clients and a persistent one, of one disk image.
    async fn new() -> Self {
        let (db, server_id) = (TestDb::new().await, Uuid::new_v4());
        let catalog = db.catalog_of(server_id).await;
        let world = Self::over(catalog, server_id, Arc::new(Memory::new())).await;
        Self {
            db: Some(db),
            ..world
        }
    }

    /// The same on that database and that store.
    async fn over(catalog: Catalog, server_id: Uuid, store: Arc<dyn Storage>) -> Self {
        let image = Image {
            kind: ImageKind::Disk,
            boot_method: BootMethod::San,
            files: vec![],
            size_bytes: 1 << 20,
            ..image("disk")
        };
        catalog.save_image_metadata(&image).await.unwrap();
        let mut clients = Vec::new();
        for n in 1..=3 {
            let client = Client {
                assigned_image_id: Some(image.id),
                disk_mode: if n == 3 {
                    DiskMode::Persistent
                } else {
                    DiskMode::Ephemeral
                },
                ..client(n)
            };
            catalog.save_client_config(&client).await.unwrap();
            clients.push(client);
        }
        let cache = Cache::open(catalog.clone()).await.unwrap();
        let volume = Volume::Image(image.id);
        store.create(volume, SIZE).unwrap();
        let disk = store.open(volume, dls::storage::Access::Write).unwrap();
        disk.write_at(0, b"base", Durability::Fua).unwrap();
        drop(disk);
        store.snapshot(&SnapshotId::base(image.id)).unwrap();
        let clock = Clock::system();
        let (tracker, cancel) = tracker_of(&catalog, &clock, server_id);
        let disks = Disks::new(cache.view(), tracker.clone(), store.clone(), clock.clone());
        Self {
            db: None,
            catalog,
            cache,
            tracker,
            disks,
            store,
            clock,
            image,
            clients,
            server_id,
            cancel,
        }
    }

    /// The same server, started again: nothing is left but store and database.
    async fn restart(&mut self) {
        assert!(self.tracker.drain(Duration::from_secs(30)).await);
        self.cancel.cancel();
        let (tracker, cancel) = tracker_of(&self.catalog, &self.clock, self.server_id);
        tracker.resume().await.unwrap();
        self.disks = Disks::new(
            self.cache.view(),
            tracker.clone(),
            self.store.clone(),
            self.clock.clone(),
        );
        (self.tracker, self.cancel) = (tracker, cancel);
    }

    fn see(&self, n: usize, what: Evidence) -> Uuid {
        let client = &self.clients[n];
        let observation = Observation {
            mac: client.mac_address,
            at: self.clock.now(),
            what,
            context: Context {
                client: Some((client.id, client.hostname.clone())),
                image: Some((self.image.id, self.image.name.clone())),
                phone_home: Some(self.image.phone_home),
                boot_method: Some(BootMethod::San),
                ..Context::default()
            },
        };
        self.tracker.observe(observation).unwrap()
    }

    /// A boot of that client, up to its script.
    fn boot(&self, n: usize) -> Uuid {
        self.see(n, Evidence::Discover(Speaker::Rom));
        self.see(n, Evidence::Script { unready: None })
    }

    fn log_in(&self, attempt: Uuid, line: &Arc<Wire>) -> Result<Attachment, NoDisk> {
        let disk = self.disks.attach(chap(attempt, None, line))?;
        line.hold(disk.clone());
        Ok(disk)
    }

    fn clones(&self) -> Vec<Volume> {
        let all = self.store.list().unwrap();
        let clones = all.into_iter().map(|v| v.volume);
        clones.filter(|v| !matches!(v, Volume::Image(_))).collect()
    }

    async fn stages(&self, attempt: Uuid) -> Vec<String> {
        assert!(self.tracker.drain(Duration::from_secs(30)).await);
        let (_, events, _) = self.catalog.get_attempt(attempt).await.unwrap().unwrap();
        events.iter().map(|e| e.stage.to_string()).collect()
    }
}

fn tracker_of(catalog: &Catalog, clock: &Clock, id: Uuid) -> (Tracker, CancellationToken) {
    let caps = Caps::default();
    let tracker = Tracker::new(catalog.clone(), clock.clone(), id, Rules::default(), caps);
    let cancel = CancellationToken::new();
    tokio::spawn({
        let (tracker, cancel) = (tracker.clone(), cancel.clone());
        async move { tracker.run(cancel).await }
    });
    (tracker, cancel)
}

fn text(disk: &Attachment) -> String {
    let mut bytes = [0; 4];
    disk.read_at(0, &mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn write(disk: &Attachment, what: &[u8; 4]) -> Result<(), BlockError> {
    disk.write_at(0, what, Durability::Volatile)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_boot_has_its_clone_and_finds_it_again() {
    let mut world = World::new().await;
    let boot = world.boot(0);
    let (loader, kernel) = (Wire::new(true), Wire::new(true));
    let first = world.log_in(boot, &loader).unwrap();
    assert_eq!(first.identity().owner, world.clients[0].id);
    assert_eq!(text(&first), "base");
    write(&first, b"mine").unwrap();
    // The kernel logs in while the loader's connection is open: the loader's ends.
    let second = world.log_in(boot, &kernel).unwrap();
    assert!(loader.closed.load(Ordering::SeqCst));
    assert!(matches!(write(&first, b"late"), Err(BlockError::Fenced)));
    assert_eq!(
        loader.asked.load(Ordering::SeqCst),
        0,
        "the same boot asks nobody"
    );
    assert_eq!(text(&second), "mine");
    drop((first, second));

    // Another machine from the same image sees nothing of it.
    let neighbour = world.boot(1);
    let other = world.log_in(neighbour, &Wire::new(true)).unwrap();
    assert_eq!(text(&other), "base");
    drop(other);

    let stages = world.stages(boot).await.join(",");
    assert_eq!(
        stages,
        "discover,script,disk_attached,disk_read,disk_written,disk_attached,disk_read,disk_detached"
    );
    // The server is started again under the running machine.
    let _ = kernel.disk.lock().unwrap().take();
    world.restart().await;
    let again = world.log_in(boot, &Wire::new(false)).unwrap();
    assert_eq!(text(&again), "mine");
    write(&again, b"more").unwrap();
    world.disks.tell_usage();
    assert!(world.tracker.drain(Duration::from_secs(30)).await);
    let (attempt, _, _) = world.catalog.get_attempt(boot).await.unwrap().unwrap();
    assert_eq!(
        (attempt.disk_bytes_read, attempt.disk_bytes_written),
        (12, 8)
    );
    drop(again);

    // Its next boot is clean, and the old clone goes.
    let next = world.boot(0);
    let clean = world.log_in(next, &Wire::new(true)).unwrap();
    assert_eq!(text(&clean), "base");
    assert!(matches!(
        world.log_in(boot, &Wire::new(true)),
        Err(NoDisk::BootOver)
    ));
    assert!(world.clones().contains(&Volume::Session(boot)));
    world.disks.tidy(&world.catalog).await;
    let left = world.clones();
    assert!(left.contains(&Volume::Session(next)) && left.contains(&Volume::Session(neighbour)));
    assert!(!left.contains(&Volume::Session(boot)));
    let db = world.db.as_ref().unwrap();
    let rows = db.text("SELECT string_agg(client || ' ' || mode || ' ' || image, ',' ORDER BY client) FROM client_disks");
    assert_eq!(
        rows.await.as_deref(),
        Some("pc-0001 ephemeral disk,pc-0002 ephemeral disk")
    );
    let peer = "SELECT attached_from FROM client_disks WHERE client = 'pc-0001'";
    assert_eq!(db.text(peer).await.as_deref(), Some("10.9.0.50:40000"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_persistent_disk_is_kept_and_can_be_reset() {
    let world = World::new().await;
    let boot = world.boot(2);
    let line = Wire::new(true);
    let disk = world.log_in(boot, &line).unwrap();
    write(&disk, b"kept").unwrap();
    drop(disk);
    let client = world.clients[2].id;
    assert!(world.disks.reset(client, None).is_err(), "it is open");
    line.close();
    let next = world.boot(2);
    let line = Wire::new(true);
    let disk = world.log_in(next, &line).unwrap();
    assert_eq!(text(&disk), "kept");
    // What the row says by now is for the next boot.
    let changed = Client {
        disk_mode: DiskMode::Ephemeral,
        ..world.clients[2].clone()
    };
    world.catalog.save_client_config(&changed).await.unwrap();
    world.cache.refresh().await.unwrap();
    drop(disk);
    assert_eq!(
        text(&world.log_in(next, &Wire::new(false)).unwrap()),
        "kept"
    );
    let third = world.boot(2);
    assert_eq!(
        text(&world.log_in(third, &Wire::new(true)).unwrap()),
        "base"
    );
    world.disks.tidy(&world.catalog).await;
    let personal = Volume::Personal {
        client,
        image: world.image.id,
    };
    assert!(world.clones().contains(&personal), "nobody takes it away");
    assert_eq!(world.disks.reset(client, None).unwrap(), 1);
    assert!(!world.clones().contains(&personal));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gets_no_disk_and_why() {
    let world = World::new().await;
    let (boot, other) = (world.boot(0), world.clients[1].id);
    let line = Wire::new(true);
    let why = |login| world.disks.attach(login).unwrap_err();
    assert_eq!(why(chap(boot, Some(other), &line)), NoDisk::OtherDisk);
    assert_eq!(why(chap(Uuid::new_v4(), None, &line)), NoDisk::BootOver);
    for name in ["", "x", "../../etc/passwd", &boot.to_string()] {
        let login = Login {
            proof: Proof::Chap {
                name: name.to_owned(),
            },
            ..chap(boot, None, &line)
        };
        assert_eq!(why(login), NoDisk::WrongProof, "{name}");
    }
    let exports = |name: String| Login {
        protocol: DiskProtocol::Nbd,
        proof: Proof::ExportName(name),
        ..chap(boot, None, &line)
    };
    let right = export_name(world.cache.get().site_key(), boot);
    let wrong = export_name(b"another key", boot);
    assert_eq!(why(exports(wrong)), NoDisk::WrongProof);
    assert!(world.disks.attach(exports(right)).is_ok());
    // Secrets are made for any name of the right form, so that a guess learns nothing.
    assert!(world.disks.secrets(&chap_name(Uuid::new_v4())).is_some());
    assert!(world.disks.secrets("nobody").is_none());
    assert_eq!(
        world.disks.visible(&chap_name(boot)).unwrap().owner,
        world.clients[0].id
    );
    assert!(world.disks.visible(&chap_name(Uuid::new_v4())).is_none());
    // Said goodbye: over for good, and no clone is made for it.
    world.see(0, Evidence::Bye(None));
    assert_eq!(why(chap(boot, None, &line)), NoDisk::BootOver);
    // A boot without a script has no image yet.
    let early = world.see(1, Evidence::Discover(Speaker::Rom));
    assert_eq!(why(chap(early, None, &line)), NoDisk::NoImage);
    // Its image is not here.
    let next = world.boot(1);
    for volume in world.clones() {
        world.store.destroy(volume).unwrap();
    }
    world.store.destroy(Volume::Image(world.image.id)).unwrap();
    assert_eq!(why(chap(next, None, &line)), NoDisk::NotStored);
    assert!(world.stages(next).await.contains(&"refused".to_owned()));
    world.disks.close();
    assert_eq!(why(chap(next, None, &line)), NoDisk::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_boot_waits_for_the_one_that_answers() {
    let world = World::new().await;
    let client = world.clients[0].id;
    let old = world.boot(0);
    let line = Wire::new(true);
    let disk = world.log_in(old, &line).unwrap();
    let new = world.boot(0);
    assert!(matches!(
        world.log_in(new, &Wire::new(true)),
        Err(NoDisk::InUse)
    ));
    assert_eq!(world.disks.settle(client, None), Verdict::Taken { by: old });
    assert!(world.disks.is_held(client));
    assert!(
        write(&disk, b"runs").is_ok(),
        "the one that runs is not disturbed"
    );
    line.alive.store(false, Ordering::SeqCst);
    assert_eq!(world.disks.settle(client, None), Verdict::Free);
    assert!(line.closed.load(Ordering::SeqCst) && !world.disks.is_held(client));
    assert!(matches!(write(&disk, b"dead"), Err(BlockError::Fenced)));
    drop(disk);
    assert_eq!(text(&world.log_in(new, &Wire::new(true)).unwrap()), "base");
    let (_, events, _) = {
        assert!(world.tracker.drain(Duration::from_secs(30)).await);
        world.catalog.get_attempt(old).await.unwrap().unwrap()
    };
    let detached = events.iter().rfind(|e| e.stage.as_str() == "disk_detached");
    let cause = detached.unwrap().detail["cause"].as_str().unwrap();
    assert!(cause.contains("did not answer"), "{cause}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_lives_keeps_its_address_and_its_clone() {
    let world = World::new().await;
    let boot = world.boot(0);
    let line = Wire::new(true);
    let disk = world.log_in(boot, &line).unwrap();
    drop(disk);
    let mac: MacAddr = world.clients[0].mac_address;
    world.see(0, Evidence::Bye(None));
    assert!(world.tracker.is_live(mac), "its disk is open");
    world.disks.tidy(&world.catalog).await;
    assert_eq!(world.clones(), [Volume::Session(boot)]);
    line.close();
    assert!(!world.tracker.is_live(mac));
    // Long after its end.
    world.clock.shift(TimeDelta::minutes(20));
    world.disks.tidy(&world.catalog).await;
    assert_eq!(world.clones(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_of_a_run_before_are_judged_by_the_catalog() {
    let mut world = World::new().await;
    let (open, over) = (world.boot(0), world.boot(1));
    for attempt in [open, over] {
        let line = Wire::new(true);
        drop(world.log_in(attempt, &line).unwrap());
        line.close();
    }
    world.see(1, Evidence::Bye(None));
    let stray = Volume::Session(Uuid::now_v7());
    let base = SnapshotId::base(world.image.id);
    world.store.clone_volume(&base, stray).unwrap();
    world.restart().await;
    world.disks.tidy(&world.catalog).await;
    assert_eq!(world.clones().len(), 3, "nothing goes at once");
    world.clock.shift(TimeDelta::minutes(20));
    world.disks.tidy(&world.catalog).await;
    let left = world.clones();
    assert!(left.contains(&Volume::Session(open)), "its machine may run");
    assert!(!left.contains(&Volume::Session(over)));
    assert!(
        left.contains(&stray),
        "only since now is it known to be nobody's"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_login_asks_the_database() {
    let world = World::new().await;
    let boot = world.boot(0);
    // Every query fails from here on.
    world.catalog.close().await;
    let line = Wire::new(true);
    let disk = world.log_in(boot, &line).unwrap();
    write(&disk, b"mine").unwrap();
    drop(disk);
    let again = world.log_in(boot, &Wire::new(true)).unwrap();
    assert_eq!(text(&again), "mine");
    // The keeper has nobody to tell, and takes nothing away.
    world.disks.tidy(&world.catalog).await;
    assert_eq!(world.clones(), [Volume::Session(boot)]);
}
