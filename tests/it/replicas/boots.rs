//! Machines go where their version is: two boot listeners on one catalog, each with its own
//! tracker, store and cache, as two servers have them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dls::boot::disks::Disks;
use dls::boot::files::{Files, FilesOptions};
use dls::boot::session::{Context, Evidence, Observation, Rules, Speaker};
use dls::boot::token::BootToken;
use dls::boot::tracker::{Caps, Tracker};
use dls::cache::Cache;
use dls::catalog::Catalog;
use dls::clock::Clock;
use dls::http::{HttpLimits, HttpMetrics, HttpServer};
use dls::model::{Contact, DiskMode, Image, ImageKind, MacAddr};
use dls::storage::memory::Memory;
use dls::storage::{Directory, SnapshotId, Storage, Volume};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::{TestDb, client, image, mac};

/// One server's boot side.
struct Boots {
    id: Uuid,
    catalog: Catalog,
    cache: Cache,
    tracker: Tracker,
    store: Arc<Memory>,
    address: SocketAddr,
    iscsi: u16,
    cancel: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Boots {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Boots {
    async fn new(db: &TestDb, name: &str, iscsi: u16) -> Self {
        let id = Uuid::new_v4();
        let catalog = db.catalog_of(id).await;
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(catalog.clone()).await.unwrap();
        let clock = Clock::system();
        let (rules, caps) = (Rules::default(), Caps::default());
        let tracker = Tracker::new(catalog.clone(), clock.clone(), id, rules, caps);
        let store = Arc::new(Memory::new());
        let disks: Arc<dyn Storage> = store.clone();
        let disks = Disks::new(cache.view(), tracker.clone(), disks, clock.clone());
        let server = HttpServer::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = server.local_addr();
        let files = Files::new(
            cache.view(),
            tracker.clone(),
            clock,
            Directory::open(dir.path()).await.unwrap(),
            disks,
            FilesOptions {
                http_port: address.port(),
                disk_ports: (iscsi, 10809),
                ..FilesOptions::default()
            },
        );
        let cancel = CancellationToken::new();
        let (metrics, limits) = (HttpMetrics::default(), HttpLimits::default());
        tokio::spawn(server.run(files, metrics, limits, cancel.clone()));
        tokio::spawn({
            let (tracker, cancel) = (tracker.clone(), cancel.clone());
            async move { tracker.run(cancel).await }
        });
        catalog.save_server(id, name, &[], "0").await.unwrap();
        let contact = Contact {
            boot_addresses: vec![Ipv4Addr::LOCALHOST],
            boot_port: Some(address.port()),
            ..Contact::default()
        };
        catalog.publish_contact(id, &contact).await.unwrap();
        Self {
            id,
            catalog,
            cache,
            tracker,
            store,
            address,
            iscsi,
            cancel,
            _dir: dir,
        }
    }

    /// The version is in its store, and its row says so.
    async fn has(&self, image: Uuid) {
        self.store.create(Volume::Image(image), 4096).unwrap();
        self.store.snapshot(&SnapshotId::base(image)).unwrap();
        self.catalog.have_replica(image, image, None).await.unwrap();
    }

    /// A machine begins to boot here.
    fn power_on(&self, mac: MacAddr) -> Uuid {
        let context = Context {
            client_ip: Some(Ipv4Addr::LOCALHOST),
            ..Context::default()
        };
        let (speaker, address) = (Speaker::Rom, Some(Ipv4Addr::LOCALHOST));
        let loader = Some("ipxe.efi".to_owned());
        for what in [
            Evidence::Discover(speaker),
            Evidence::Acknowledged {
                speaker,
                address,
                loader,
            },
        ] {
            self.tracker.observe(Observation {
                mac,
                at: Clock::system().now(),
                what,
                context: context.clone(),
            });
        }
        self.tracker.open_attempt(mac).unwrap().id
    }

    fn url(&self, boot: Uuid) -> String {
        let token = BootToken::make(self.cache.get().site_key(), boot).reveal();
        format!(
            "http://{}/b/{}.{token}/boot.ipxe",
            self.address,
            boot.simple()
        )
    }

    fn san(&self) -> String {
        format!("sanboot iscsi:127.0.0.1::{}:0:iqn.", self.iscsi)
    }
}

async fn get(url: &str) -> String {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = http.get(url).send().await.unwrap();
    let status = answer.status();
    let text = answer.text().await.unwrap();
    format!("{status} {text}")
}

/// The URL that a script goes on at.
fn chained(script: &str) -> &str {
    let mut lines = script.lines();
    let line = lines.find_map(|l| l.strip_prefix("chain --replace --autofree "));
    line.unwrap_or_else(|| panic!("{script}"))
        .trim_end_matches(" ||")
}

/// Two servers, an image with a disk, and a client.
async fn two() -> (TestDb, Boots, Boots, Image, MacAddr) {
    let db = TestDb::new().await;
    let (a, b) = (
        Boots::new(&db, "one", 3261).await,
        Boots::new(&db, "two", 3262).await,
    );
    let disk = Image {
        kind: ImageKind::Disk,
        files: vec![],
        ..image("debian")
    };
    a.catalog.save_image_metadata(&disk).await.unwrap();
    let mut pc = client(1);
    pc.assigned_image_id = Some(disk.id);
    a.catalog.save_client_config(&pc).await.unwrap();
    (db, a, b, disk, mac(1))
}

async fn fresh(both: [&Boots; 2]) {
    for server in both {
        server.cache.refresh().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_goes_on_at_the_server_that_has_its_version() {
    let (db, a, b, disk, mac) = two().await;
    fresh([&a, &b]).await;
    // Nobody has it: a named reason, on the screen and in the trace.
    let boot = b.power_on(mac);
    let script = get(&b.url(boot)).await;
    assert!(script.contains("Reason: no_disk_stored"), "{script}");

    a.has(disk.id).await;
    fresh([&a, &b]).await;
    let script = get(&b.url(boot)).await;
    assert!(script.starts_with("200"), "{script}");
    assert!(script.contains("goes on at server one"), "{script}");
    assert!(!script.contains("sanboot"), "{script}");
    let there = chained(&script).to_owned();
    assert_eq!(there, a.url(boot));
    assert_eq!(b.tracker.attempt(boot), None, "B writes no more of it");
    let script = get(&there).await;
    assert!(script.contains(&a.san()), "{script}");
    assert!(a.tracker.attempt(boot).is_some());
    // One boot, one timeline, and whose it is now.
    let stages = format!(
        "SELECT string_agg(stage || coalesce(':' || (detail ->> 'reason'), ''), ' ' ORDER BY id) FROM boot_events WHERE session_id = '{boot}'"
    );
    let mut told = String::new();
    for _ in 0..100 {
        told = db.text(&stages).await.unwrap_or_default();
        if told.ends_with("script") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        told.ends_with("waiting:no_disk_stored waiting:sent_to_server script"),
        "{told}"
    );
    let of = format!("SELECT server_id FROM boot_attempts WHERE id = '{boot}'");
    assert_eq!(db.text(&of).await.unwrap(), a.id.to_string());
    // A looks again at its own server.
    assert!(script.contains(&format!("{}/b/", a.address)), "{script}");

    // Once B has it too, it stays.
    b.has(disk.id).await;
    fresh([&a, &b]).await;
    let boot = b.power_on(mac);
    let script = get(&b.url(boot)).await;
    assert!(script.contains(&b.san()), "{script}");
    assert!(b.tracker.attempt(boot).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_sent_to_a_server_that_is_away() {
    let (db, a, b, disk, mac) = two().await;
    a.has(disk.id).await;
    db.sql("UPDATE servers SET heartbeat_at = now() - interval '1 minute' WHERE name = 'one'")
        .await
        .unwrap();
    fresh([&a, &b]).await;
    let boot = b.power_on(mac);
    let script = get(&b.url(boot)).await;
    assert!(script.contains("Reason: disk_servers_away"), "{script}");
    let reason = "SELECT detail ->> 'reason' FROM boot_events WHERE stage = 'waiting'";
    let mut told = None;
    for _ in 0..100 {
        told = db
            .text(&format!("SELECT max(r) FROM ({reason}) AS t(r)"))
            .await;
        if told.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(told.as_deref(), Some("disk_servers_away"));
    // It comes back: a heartbeat is all that is needed.
    a.catalog.save_server(a.id, "one", &[], "0").await.unwrap();
    b.cache.refresh_site().await.unwrap();
    let script = get(&b.url(boot)).await;
    assert_eq!(chained(&script), a.url(boot));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_s_own_disk_is_where_it_was_made() {
    let (db, a, b, disk, mac) = two().await;
    a.has(disk.id).await;
    b.has(disk.id).await;
    let mut pc = a.catalog.get_client_by_mac(mac).await.unwrap().unwrap();
    pc.disk_mode = DiskMode::Persistent;
    a.catalog.save_client_config(&pc).await.unwrap();
    let own = Volume::Personal {
        client: pc.id,
        image: disk.id,
    };
    let base = SnapshotId::base(disk.id);
    a.store.clone_volume(&base, own).unwrap();
    db.sql(&format!(
        "INSERT INTO clones (server_id, name, mode, client_id, image_id, size_bytes, used_bytes)
         VALUES ('{}', '{own}', 'persistent', '{}', '{}', 4096, 0)",
        a.id, pc.id, disk.id
    ))
    .await
    .unwrap();
    fresh([&a, &b]).await;
    let boot = b.power_on(mac);
    let script = get(&b.url(boot)).await;
    assert_eq!(
        chained(&script),
        a.url(boot),
        "B has the version, A the disk"
    );
    let script = get(chained(&script)).await;
    assert!(script.contains(&a.san()), "{script}");
}
