//! The tracker against a real PostgreSQL: what a boot leaves in the catalog.

use std::net::Ipv4Addr;
use std::time::Duration;

use chrono::TimeDelta;
use dls::boot::session::{BootFile, Context, Door, Evidence, Observation, Rules, Speaker};
use dls::boot::tracker::{Caps, Known, OpenAttempt, Tracker};
use dls::catalog::Catalog;
use dls::clock::Clock;
use dls::model::{Arch, Client, FileRole, Image, MacAddr, Timestamp};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::{TestDb, client, image, mac};

pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 50);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

/// A tracker that runs, on a catalog with one client and one image.
pub(crate) struct Bench {
    pub(crate) catalog: Catalog,
    pub(crate) tracker: Tracker,
    pub(crate) server_id: Uuid,
    client: Client,
    image: Image,
    begin: Timestamp,
    cancel: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Bench {
    pub(crate) async fn new(catalog: Catalog, server_id: Uuid, caps: Caps) -> Self {
        let (client, image) = (client(1), image("debian"));
        catalog.save_image_metadata(&image).await.unwrap();
        catalog.save_client_config(&client).await.unwrap();
        let clock = Clock::system();
        let begin = clock.now();
        let tracker = Tracker::new(catalog.clone(), clock, server_id, Rules::default(), caps);
        let cancel = CancellationToken::new();
        let running = tokio::spawn({
            let (tracker, cancel) = (tracker.clone(), cancel.clone());
            async move { tracker.run(cancel).await }
        });
        Self {
            catalog,
            tracker,
            server_id,
            client,
            image,
            begin,
            cancel,
            running,
        }
    }

    /// Tells the tracker what was seen so many milliseconds after the beginning.
    pub(crate) fn see(&self, millis: i64, what: Evidence) -> Option<Uuid> {
        let known = Some((self.client.id, self.client.hostname.clone()));
        self.see_of(mac(1), known, millis, what)
    }

    pub(crate) fn see_of(
        &self,
        mac: MacAddr,
        client: Option<(Uuid, String)>,
        millis: i64,
        what: Evidence,
    ) -> Option<Uuid> {
        let image = client
            .is_some()
            .then(|| (self.image.id, self.image.name.clone()));
        self.tracker.observe(Observation {
            mac,
            at: self.begin + TimeDelta::milliseconds(millis),
            what,
            context: Context {
                arch: Some(Arch::Bios),
                client,
                phone_home: image.as_ref().map(|_| self.image.phone_home),
                image,
                server_ip: Some(SERVER),
                ..Context::default()
            },
        })
    }

    pub(crate) async fn written(&self) {
        assert!(self.tracker.drain(Duration::from_secs(30)).await);
    }

    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        self.running.await.unwrap();
    }
}

fn sent(file: BootFile, started: bool) -> Evidence {
    let door = Door::Http;
    let size = 5_000_000;
    if started {
        Evidence::FileStarted { file, door, size }
    } else {
        let seconds = 0.25;
        Evidence::FileSent {
            file,
            door,
            size,
            seconds,
        }
    }
}

fn acknowledged(speaker: Speaker, loader: Option<&str>) -> Evidence {
    Evidence::Acknowledged {
        speaker,
        address: Some(ADDRESS),
        loader: loader.map(str::to_owned),
    }
}

/// A boot from its first packet to `up`, a tenth of a second each.
pub(crate) fn whole_boot() -> Vec<Evidence> {
    let loader = BootFile::Loader("undionly.kpxe".to_owned());
    let kernel = BootFile::Image(FileRole::Kernel, 0);
    let initrd = BootFile::Image(FileRole::Initrd, 0);
    vec![
        Evidence::Discover(Speaker::Rom),
        Evidence::Offered {
            speaker: Speaker::Rom,
            address: Some(ADDRESS),
            loader: Some("undionly.kpxe".to_owned()),
        },
        acknowledged(Speaker::Rom, Some("undionly.kpxe")),
        sent(loader.clone(), true),
        sent(loader, false),
        Evidence::Discover(Speaker::Ipxe),
        acknowledged(Speaker::Ipxe, None),
        Evidence::Script { unready: None },
        sent(kernel.clone(), true),
        sent(kernel, false),
        sent(initrd.clone(), true),
        sent(initrd, false),
        acknowledged(Speaker::Os, None),
        Evidence::Up,
    ]
}

pub(crate) const STAGES: &str = "discover,offer,lease,loader_offered,loader_requested,loader_sent,loader_running,\
loader_lease,script,kernel_requested,kernel_sent,initrd_requested,initrd_sent,os_network,up";

async fn bench(db: &TestDb) -> Bench {
    let server_id = Uuid::new_v4();
    Bench::new(db.catalog_of(server_id).await, server_id, Caps::default()).await
}

#[tokio::test]
async fn a_whole_boot_in_the_timeline() {
    let db = TestDb::new().await;
    let bench = bench(&db).await;
    let mut live = bench.tracker.subscribe();
    for (n, what) in (0..).zip(whole_boot()) {
        assert!(bench.see(n * 100, what).is_some());
    }
    let attempt = bench.tracker.open_attempt(mac(1)).unwrap();
    assert!(attempt.loader_delivered);
    assert_eq!(bench.tracker.attempt_at(ADDRESS).as_ref(), Some(&attempt));
    assert!(bench.tracker.is_live(mac(1)));
    assert_eq!(live.recv().await.unwrap().event.stage.as_str(), "discover");
    bench.written().await;
    let timeline = "SELECT string_agg(stage, ',' ORDER BY since_start_seconds, n) FROM
        (SELECT *, row_number() OVER () AS n FROM boot_timeline) AS t";
    assert_eq!(db.text(timeline).await.unwrap(), STAGES);
    assert_eq!(
        db.text("SELECT concat_ws('|', status, boot_time_seconds, host(client_ip), host(boot_server_ip), error_message) FROM boot_sessions")
            .await
            .unwrap(),
        "running|1|10.9.0.50|10.9.0.1"
    );
    assert_eq!(
        db.text("SELECT concat_ws('|', boot_count, last_boot_at = (SELECT started_at FROM boot_sessions)) FROM clients")
            .await
            .unwrap(),
        "1|t"
    );
    assert_eq!(
        db.text("SELECT phone_home FROM images").await.unwrap(),
        "expected"
    );
    assert_eq!(
        db.text("SELECT stage FROM active_sessions").await.unwrap(),
        "up"
    );

    bench.see(5000, Evidence::Bye(Some("poweroff".to_owned())));
    bench.written().await;
    assert_eq!(
        db.text("SELECT concat_ws('|', s.status, s.ended_at IS NOT NULL, a.outcome, a.reason) FROM boot_sessions s JOIN boot_attempts a USING (id)")
            .await
            .unwrap(),
        "shutdown|t|completed|poweroff"
    );
    assert!(bench.tracker.attempt(attempt.id).is_none());
    // After its goodbye it gets no disk any more.
    let over = OpenAttempt {
        may_attach: false,
        ended_at: match bench.tracker.known(attempt.id) {
            Known::Over(over) => Some(over.ended_at.expect("when it ended")),
            other => panic!("{other:?}"),
        },
        ..attempt.clone()
    };
    assert_eq!(bench.tracker.known(attempt.id), Known::Over(over));
    assert!(!bench.tracker.is_live(mac(1)));
    // What comes late starts nothing.
    assert_eq!(bench.see(5100, Evidence::Beat), None);
    assert_eq!(bench.see(5200, acknowledged(Speaker::Os, None)), None);
    bench.written().await;
    assert_eq!(
        db.text("SELECT count(*) FROM boot_attempts").await.unwrap(),
        "1"
    );
    bench.stop().await;
}

#[tokio::test]
async fn a_machine_that_starts_again_in_the_middle() {
    let db = TestDb::new().await;
    let bench = bench(&db).await;
    let mut ids = Vec::new();
    for (n, what) in (0..).zip(whole_boot().into_iter().take(9)) {
        ids.extend(bench.see(n, what));
    }
    for (n, what) in (100..).zip(whole_boot()) {
        ids.extend(bench.see(n, what));
    }
    ids.dedup();
    assert_eq!(ids.len(), 2);
    // A report for the first boot does not touch the second.
    let late = Observation {
        mac: mac(1),
        at: bench.begin + TimeDelta::seconds(3),
        what: Evidence::Bye(None),
        context: Context::default(),
    };
    assert!(matches!(
        bench.tracker.report(ids[0], late.clone()),
        Known::Over(_)
    ));
    assert_eq!(bench.tracker.report(Uuid::new_v4(), late), Known::Never);
    bench.written().await;
    assert_eq!(
        db.text("SELECT string_agg(concat_ws('|', a.outcome, a.last_stage, a.reason, s.status, s.error_message), ';' ORDER BY a.id)
                 FROM boot_attempts a JOIN boot_sessions s USING (id)")
            .await
            .unwrap(),
        "restarted|kernel_requested|restarted at stage kernel_requested|error|restarted at stage kernel_requested;open|up|running"
    );
    assert_eq!(
        db.text("SELECT boot_count FROM clients").await.unwrap(),
        "2"
    );
    bench.stop().await;
}

#[tokio::test]
async fn strangers_leave_an_attempt_and_are_capped() {
    let db = TestDb::new().await;
    let server_id = Uuid::new_v4();
    let caps = Caps {
        strangers_open: 5,
        strangers_per_second: 3,
        ..Caps::default()
    };
    let bench = Bench::new(db.catalog_of(server_id).await, server_id, caps).await;
    let taken: Vec<bool> = (0..20)
        .map(|n| {
            let what = Evidence::Discover(Speaker::Rom);
            bench
                .see_of(mac(100 + n), None, i64::from(n) * 200, what)
                .is_some()
        })
        .collect();
    assert_eq!(taken.iter().filter(|t| **t).count(), 5, "{taken:?}");
    assert_eq!(taken[..4], [true, true, true, false], "three in a second");
    // Machines that are known are followed all the same.
    assert!(bench.see(4000, Evidence::Discover(Speaker::Rom)).is_some());
    bench.written().await;
    assert_eq!(
        db.text("SELECT concat_ws('|', (SELECT count(*) FROM boot_attempts), (SELECT count(*) FROM boot_sessions))")
            .await
            .unwrap(),
        "6|1"
    );
    let mut metrics = prometheus_client::registry::Registry::with_prefix("dls");
    bench.tracker.metrics().register(&mut metrics);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &metrics).unwrap();
    assert!(text.contains("dls_boot_attempts_open 6"), "{text}");
    assert!(text.contains("reason=\"strangers_rate\""), "{text}");
    bench.stop().await;
}

#[tokio::test]
async fn a_restarted_server_goes_on() {
    let db = TestDb::new().await;
    let bench = bench(&db).await;
    for (n, what) in (0..).zip(whole_boot().into_iter().take(12)) {
        bench.see(n * 10, what);
    }
    let before = bench.tracker.open_attempt(mac(1)).unwrap();
    let (catalog, server_id) = (bench.catalog.clone(), bench.server_id);
    let (client, image) = (bench.client.clone(), bench.image.clone());
    // What it has not written yet, it writes when it stops.
    bench.stop().await;

    let tracker = Tracker::new(
        catalog.clone(),
        Clock::system(),
        server_id,
        Rules::default(),
        Caps::default(),
    );
    assert_eq!(tracker.resume().await.unwrap(), 1);
    assert_eq!(tracker.open_attempt(mac(1)), Some(before.clone()));
    assert_eq!(tracker.attempt_at(ADDRESS), Some(before.clone()));
    tracker.tick();
    let up = Observation {
        mac: mac(1),
        at: Clock::system().now(),
        what: Evidence::Up,
        context: Context::default(),
    };
    assert_eq!(tracker.report(before.id, up), Known::Open(before.clone()));
    let cancel = CancellationToken::new();
    let run = tokio::spawn({
        let (tracker, cancel) = (tracker.clone(), cancel.clone());
        async move { tracker.run(cancel).await }
    });
    assert!(tracker.drain(Duration::from_secs(30)).await);
    let (attempt, events, session) = catalog.get_attempt(before.id).await.unwrap().unwrap();
    assert_eq!(attempt.client_id, Some(client.id));
    assert_eq!(session.unwrap().image_id, image.id);
    assert_eq!(events.len(), 14);
    assert_eq!(
        db.text(
            "SELECT concat_ws('|', boot_count, (SELECT status FROM boot_sessions)) FROM clients"
        )
        .await
        .unwrap(),
        "1|running"
    );
    // Another server's attempts are not its own.
    let other = Tracker::new(
        catalog,
        Clock::system(),
        Uuid::new_v4(),
        Rules::default(),
        Caps::default(),
    );
    assert_eq!(other.resume().await.unwrap(), 0);
    cancel.cancel();
    run.await.unwrap();
}

#[tokio::test]
async fn a_client_deleted_in_the_middle_holds_nothing_up() {
    let db = TestDb::new().await;
    let bench = bench(&db).await;
    for (n, what) in (0..).zip(whole_boot().into_iter().take(8)) {
        bench.see(n, what);
    }
    bench.written().await;
    db.sql("DELETE FROM clients").await.unwrap();
    for (n, what) in (8..).zip(whole_boot().into_iter().skip(8)) {
        bench.see(n, what);
    }
    bench.written().await;
    assert_eq!(
        db.text("SELECT concat_ws('|', client_name, last_stage, (SELECT count(*) FROM boot_events), (SELECT count(*) FROM boot_sessions)) FROM boot_attempts")
            .await
            .unwrap(),
        "pc-0001|up|15|0"
    );
    bench.stop().await;
}
