//! A machine that begins anew while a connection has its disk.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dls::boot::disks::DiskDoor;
use dls::boot::session::{Context, Evidence, Observation};
use dls::clock::Clock;
use dls::model::{BootMethod, Client, Image, ImageKind, MacAddr, PhoneHome};
use dls::storage::{SnapshotId, Volume};
use uuid::Uuid;

use super::lan::{Lan, wait_for};
use super::postgres::Database;
use super::raw::{DISCOVER, Message, OFFER, Talker};
use super::server::{Server, Settings, client, prepare, prepare_images, range};
use crate::disks::{Wire, chap};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn its_packet_waits_until_the_old_connection_is_judged() {
    let lan = Lan::new();
    let (srv, cli) = (lan.host("srv", Some("10.77.0.1/24")), lan.host("cli", None));
    let database = Database::new();
    let image = Image {
        kind: ImageKind::Disk,
        files: vec![],
        ..crate::support::image("disk")
    };
    let machine = Client {
        assigned_image_id: Some(image.id),
        ..client(
            "52:54:00:77:00:01",
            "pc-01",
            Some(Ipv4Addr::new(10, 77, 0, 9)),
        )
    };
    prepare_images(&database, std::slice::from_ref(&image));
    let lan_range = range("10.77.0.0/24", &["10.77.0.50-10.77.0.99"]);
    prepare(&database, &[lan_range], std::slice::from_ref(&machine));
    let settings = Settings::default();
    let server = Server::start(&srv, &database, &settings);
    let (disks, tracker) = settings.disks.get().unwrap();
    let store = disks.store();
    store.create(Volume::Image(image.id), 1 << 20).unwrap();
    store.snapshot(&SnapshotId::base(image.id)).unwrap();
    let talker = Talker::new(&cli);
    let mac: MacAddr = machine.mac_address;
    let ask = |xid| Message::new(DISCOVER, mac.0, xid).pxe();

    // A boot, its script, its disk.
    assert_eq!(talker.ask(&ask(1)).unwrap().kind, OFFER);
    let script = Observation {
        mac,
        at: Clock::system().now(),
        what: Evidence::Script { unready: None },
        context: Context {
            image: Some((image.id, image.name.clone())),
            phone_home: Some(PhoneHome::Auto),
            boot_method: Some(BootMethod::San),
            ..Context::default()
        },
    };
    let boot: Uuid = tracker.observe(script).unwrap();
    let line = Wire::new(true);
    let disk = disks.attach(chap(boot, None, &line)).unwrap();
    *line.disk.lock().unwrap() = Some(disk);

    // It answers: whoever else has this MAC hears nothing, and the boot goes on.
    talker.send(&ask(2).bytes());
    wait_for("the newcomer is refused", SOON, || {
        (server.metric("silences_total{reason=\"disk_in_use\"}") >= 1).then_some(())
    });
    assert_eq!(tracker.open_attempt(mac).unwrap().id, boot);
    assert!(!line.closed.load(Ordering::SeqCst));
    wait_for("its timeline says so", SOON, || {
        let refused = "select count(*) from boot_events where detail->>'reason' = 'disk_in_use'";
        (database.query(refused) != "0").then_some(())
    });

    // It was reset: it answers no more, and its machine boots at once.
    line.alive.store(false, Ordering::SeqCst);
    assert_eq!(talker.ask(&ask(3)).unwrap().kind, OFFER);
    assert!(line.closed.load(Ordering::SeqCst));
    assert_ne!(tracker.open_attempt(mac).unwrap().id, boot);
}
