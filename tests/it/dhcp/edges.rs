//! What real clients seldom do, and what happens around them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use dls::dhcp::server::{BindError, Selection, UnknownClients};
use dls::model::{RangeMode, Serve};

use super::lan::{Lan, wait_for};
use super::postgres::Database;
use super::raw::{ACK, DISCOVER, INFORM, Message, NAK, OFFER, RELEASE, REQUEST, Talker};
use super::server::{Server, Settings, client, prepare, range};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const SOON: Duration = Duration::from_secs(10);

fn mac(n: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0x77, 0, n]
}

fn lease_row(database: &Database, mac_end: &str) -> String {
    database.query(&format!(
        "select host(address), state from leases where mac like '%{mac_end}'"
    ))
}

#[test]
fn an_address_is_stored_before_it_is_acknowledged() {
    let lan = Lan::new();
    let (srv, cli) = (lan.host("srv", Some("10.77.0.1/24")), lan.host("cli", None));
    let database = Database::new();
    prepare(
        &database,
        &[range("10.77.0.0/24", &["10.77.0.50-10.77.0.99"])],
        &[],
    );
    let _server = Server::start(&srv, &database, &Settings::default());
    let talker = Talker::new(&cli);

    let first = talker.lease(mac(1), 1).unwrap();
    assert_eq!(first.server(), SERVER);
    assert_eq!(first.from, SocketAddrV4::new(SERVER, 67));
    assert_eq!(
        lease_row(&database, "00:01"),
        format!("{}|active", first.address)
    );

    // Renewing: directly to the server, from the address that it has.
    let mut renew = Message::new(REQUEST, mac(1), 2);
    renew.ciaddr = first.address;
    cli.ip(&format!("addr add {}/24 dev lan0", first.address));
    talker.send_to(&renew.bytes(), SocketAddrV4::new(SERVER, 67));
    let renewed = talker.hear(2, SOON, 1).pop().unwrap();
    assert_eq!((renewed.kind, renewed.address), (ACK, first.address));

    // INFORM: options and no address.
    let mut inform = Message::new(INFORM, mac(1), 3);
    inform.ciaddr = first.address;
    talker.send(&inform.bytes());
    let informed = talker.hear(3, SOON, 1).pop().unwrap();
    assert_eq!(
        (informed.kind, informed.address),
        (ACK, Ipv4Addr::UNSPECIFIED)
    );
    assert!(!informed.options.contains_key(&51));

    let mut release = Message::new(RELEASE, mac(1), 4).of_server(SERVER);
    release.ciaddr = first.address;
    talker.send(&release.bytes());
    wait_for("the lease is released", SOON, || {
        (lease_row(&database, "00:01") == format!("{}|released", first.address)).then_some(())
    });
    // It was kept for it.
    assert_eq!(talker.lease(mac(1), 5).unwrap().address, first.address);

    // An address of another network is refused, whoever remembers it.
    let elsewhere = Message::new(REQUEST, mac(1), 6).requesting(Ipv4Addr::new(10, 9, 9, 9));
    assert_eq!(talker.ask(&elsewhere).unwrap().kind, NAK);
    // What somebody else gave to a machine that we do not know is not ours to judge.
    let unknown = Message::new(REQUEST, mac(9), 7).requesting(Ipv4Addr::new(10, 77, 0, 60));
    talker.send(&unknown.bytes());
    assert!(talker.hear(7, Duration::from_millis(500), 1).is_empty());
}

#[test]
fn noise_is_counted_and_hurts_nobody() {
    let lan = Lan::new();
    let (srv, cli) = (lan.host("srv", Some("10.77.0.1/24")), lan.host("cli", None));
    let database = Database::new();
    prepare(
        &database,
        &[range("10.77.0.0/24", &["10.77.0.50-10.77.0.99"])],
        &[],
    );
    let server = Server::start(&srv, &database, &Settings::default());
    let talker = Talker::new(&cli);

    let good = Message::new(DISCOVER, mac(1), 1).bytes();
    let mut no_cookie = good.clone();
    no_cookie[236] = 0;
    let mut long_hlen = good.clone();
    long_hlen[2] = 255;
    let mut overrun = good.clone();
    overrun.truncate(243);
    overrun.extend_from_slice(&[12, 200, b'x']);
    let mut group = good.clone();
    group[28] |= 1;
    for bytes in [
        &[][..],
        &[1],
        &good[..239],
        &no_cookie,
        &long_hlen,
        &overrun,
        &group,
    ] {
        talker.send(bytes);
    }
    for (word, count) in [
        ("malformed_short", 3),
        ("malformed_cookie", 1),
        ("malformed_hardware", 1),
        ("malformed_truncated", 1),
        ("malformed_station", 1),
    ] {
        let line = format!("silences_total{{reason=\"{word}\"}}");
        wait_for(word, SOON, || (server.metric(&line) == count).then_some(()));
    }
    assert!(talker.lease(mac(1), 2).is_some());
}

#[test]
fn an_address_lives_as_long_as_its_session() {
    let lan = Lan::new();
    let (srv, cli) = (lan.host("srv", Some("10.77.0.1/24")), lan.host("cli", None));
    let database = Database::new();
    let one_address = range("10.77.0.0/24", &["10.77.0.50"]);
    prepare(
        &database,
        &[one_address],
        &[client("52:54:00:77:00:01", "pc1", None)],
    );
    // An image makes it a session, not an attempt alone.
    let image = "insert into images (name, size_bytes, format, path) values ('img', 1, 'raw', 'x') returning id";
    let image = database.query(image).lines().next().unwrap().to_owned();
    database.query(&format!("update clients set assigned_image_id = '{image}'"));
    let server = Server::start(&srv, &database, &Settings::default());
    let talker = Talker::new(&cli);

    let booting = talker.lease_as(mac(1), 1, Message::pxe).unwrap();
    assert_eq!(booting.file, "undionly.kpxe");
    assert_eq!(booting.next_server, SERVER);
    wait_for("its session is in the catalog", SOON, || {
        (database.query("select count(*) from boot_sessions") == "1").then_some(())
    });
    // The lease runs out unrenewed; another server of the site would see the same.
    database.query("update leases set starts_at = now() - interval '1 day'");
    std::thread::sleep(Duration::from_millis(500));
    let newcomer = Message::new(DISCOVER, mac(2), 2);
    assert!(
        talker.ask(&newcomer).is_none(),
        "given away under a live session"
    );
    assert!(server.metric("silences_total{reason=\"pool_exhausted\"}") >= 1);
    // Its system may ask again at any time, and is not refused.
    let reboot = Message::new(REQUEST, mac(1), 3).requesting(booting.address);
    assert_eq!(talker.ask(&reboot).unwrap().kind, ACK);
}

#[test]
fn an_address_that_ran_out_is_given_to_the_next() {
    let lan = Lan::new();
    let (srv, cli) = (lan.host("srv", Some("10.77.0.1/24")), lan.host("cli", None));
    let database = Database::new();
    prepare(&database, &[range("10.77.0.0/24", &["10.77.0.50"])], &[]);
    let _server = Server::start(&srv, &database, &Settings::default());
    let talker = Talker::new(&cli);
    let first = talker.lease(mac(1), 1).unwrap();
    assert!(talker.ask(&Message::new(DISCOVER, mac(2), 2)).is_none());
    database.query("update leases set starts_at = now() - interval '1 day'");
    let second = wait_for("the edit in psql holds", SOON, || talker.lease(mac(2), 3));
    assert_eq!(first.address, second.address);
    assert_eq!(
        database.query("select mac from leases"),
        "52:54:00:77:00:02"
    );
}

#[test]
fn what_is_not_stored_is_not_acknowledged() {
    let lan = Lan::new();
    let (srv, cli) = (lan.host("srv", Some("10.77.0.1/24")), lan.host("cli", None));
    let database = Database::new();
    prepare(
        &database,
        &[range("10.77.0.0/24", &["10.77.0.50-10.77.0.99"])],
        &[],
    );
    let server = Server::start(&srv, &database, &Settings::default());
    let talker = Talker::new(&cli);
    let offer = talker.ask(&Message::new(DISCOVER, mac(1), 1)).unwrap();
    let request = Message::new(REQUEST, mac(1), 1)
        .requesting(offer.address)
        .of_server(SERVER);

    database.query("alter table leases rename to elsewhere");
    assert!(talker.ask(&request).is_none());
    wait_for("the silence is counted", SOON, || {
        (server.metric("silences_total{reason=\"not_stored\"}") == 1).then_some(())
    });
    database.query("alter table elsewhere rename to leases");
    assert_eq!(talker.ask(&request).unwrap().kind, ACK);
}

#[test]
fn retransmissions_are_answered_once() {
    let lan = Lan::new();
    let (srv, cli) = (lan.host("srv", Some("10.77.0.1/24")), lan.host("cli", None));
    let database = Database::new();
    prepare(
        &database,
        &[range("10.77.0.0/24", &["10.77.0.50-10.77.0.99"])],
        &[],
    );
    let server = Server::start(&srv, &database, &Settings::default());
    let talker = Talker::new(&cli);
    let other = Talker::new(&lan.host("other", None));
    // As a machine does that gets no answer: it asks again.
    let (xid, offer) = (10..14)
        .find_map(|xid| Some((xid, talker.ask(&Message::new(DISCOVER, mac(1), xid))?)))
        .unwrap();
    let in_flight = || server.metric("silences_total{reason=\"in_flight\"}");
    let before = in_flight();
    let request = Message::new(REQUEST, mac(1), xid)
        .requesting(offer.address)
        .of_server(SERVER);
    let blocker = {
        let database = database.clone();
        std::thread::spawn(move || {
            database
                .query("begin; lock table leases in exclusive mode; select pg_sleep(1.5); commit");
        })
    };
    wait_for("the table is locked", SOON, || {
        let locks = "select count(*) from pg_locks where mode = 'ExclusiveLock' and granted and relation = 'leases'::regclass";
        (database.query(locks) == "1").then_some(())
    });
    for _ in 0..4 {
        talker.send(&request.bytes());
    }
    // Others are not held up while the database is. (Who listens for another's answer hears this
    // one's, and forgets it.)
    assert!(other.ask(&Message::new(DISCOVER, mac(2), 2)).is_some());
    assert_eq!(talker.hear(xid, Duration::from_secs(4), 2).len(), 1);
    assert_eq!(in_flight() - before, 3);
    blocker.join().unwrap();
}

#[test]
fn two_servers_of_one_site_never_give_one_address_twice() {
    let lan = Lan::new();
    let cli = lan.host("cli", None);
    let one = lan.host("one", Some("10.77.0.1/24"));
    let two = lan.host("two", Some("10.77.0.2/24"));
    let database = Database::new();
    prepare(
        &database,
        &[range("10.77.0.0/24", &["10.77.0.50-10.77.0.51"])],
        &[],
    );
    let _one = Server::start(&one, &database, &Settings::default());
    let _two = Server::start(&two, &database, &Settings::default());
    let talker = Talker::new(&cli);
    talker.send(&Message::new(DISCOVER, mac(1), 1).bytes());
    let offers = talker.hear(1, SOON, 2);
    assert_eq!(offers.len(), 2, "both may offer");

    // Two machines take one address at the same time, one from each.
    let address = offers[0].address;
    let take = |n: u8, server: Ipv4Addr| {
        Message::new(REQUEST, mac(n), u32::from(n) * 100)
            .requesting(address)
            .of_server(server)
    };
    talker.send(&take(1, offers[0].server()).bytes());
    talker.send(&take(2, offers[1].server()).bytes());
    let kinds: Vec<u8> = [100, 200]
        .into_iter()
        .flat_map(|xid| talker.hear(xid, Duration::from_secs(2), 1))
        .map(|answer| answer.kind)
        .collect();
    assert!(
        kinds.iter().filter(|kind| **kind == ACK).count() <= 1,
        "{kinds:?}"
    );
    let holders = format!("select count(*) from leases where address = '{address}'");
    assert_eq!(database.query(&holders), "1");
}

#[test]
fn unknown_machines_that_boot_are_registered_once_and_capped() {
    let lan = Lan::new();
    let (srv, cli) = (lan.host("srv", Some("10.77.0.1/24")), lan.host("cli", None));
    let database = Database::new();
    prepare(
        &database,
        &[range("10.77.0.0/24", &["10.77.0.50-10.77.0.99"])],
        &[],
    );
    let settings = Settings {
        unknown_clients: UnknownClients::Register { cap: 2 },
        ..Settings::default()
    };
    let server = Server::start(&srv, &database, &settings);
    let talker = Talker::new(&cli);
    // A telephone is no machine to boot.
    assert!(talker.lease(mac(9), 9).is_some());
    let names = "select string_agg(hostname || ' ' || enabled, ',' order by hostname) from clients";
    for n in 1..=2 {
        let ack = talker.lease_as(mac(n), u32::from(n), Message::pxe).unwrap();
        assert_eq!(ack.file, "undionly.kpxe");
        wait_for("it is registered", SOON, || {
            (database.query("select count(*) from clients") == n.to_string()).then_some(())
        });
    }
    assert_eq!(
        database.query(names),
        "unknown-525400770001 false,unknown-525400770002 false"
    );
    wait_for("the cap is seen", SOON, || {
        let ack = talker.lease_as(mac(3), 3, Message::pxe)?;
        ack.file.is_empty().then_some(())
    });
    assert!(server.metric("boot_refusals_total{reason=\"unknown_cap\"}") >= 1);
    assert_eq!(database.query("select count(*) from clients"), "2");
}

#[test]
fn a_missing_loader_is_named() {
    let lan = Lan::new();
    let (srv, cli) = (lan.host("srv", Some("10.77.0.1/24")), lan.host("cli", None));
    let database = Database::new();
    prepare(
        &database,
        &[range("10.77.0.0/24", &["10.77.0.50-10.77.0.99"])],
        &[client("52:54:00:77:00:01", "arm", None)],
    );
    let server = Server::start(&srv, &database, &Settings::default());
    let talker = Talker::new(&cli);
    let arm = |message: Message| {
        message
            .with(60, b"PXEClient:Arch:00011:UNDI:003000")
            .with(93, &[0, 11])
    };
    let ack = talker.lease_as(mac(1), 1, arm).unwrap();
    assert_eq!(ack.file, "");
    assert!(server.metric("boot_refusals_total{reason=\"loader_missing\"}") >= 1);
    wait_for("the boot's trace says which file is missing", SOON, || {
        let found =
            database.query("select coalesce(string_agg(detail::text, ' '), '') from boot_events");
        found.contains("snponly-arm64.efi").then_some(())
    });
}

#[test]
fn registered_machines_only_where_the_range_says_so() {
    let lan = Lan::new();
    let (srv, cli) = (lan.host("srv", Some("10.77.0.1/24")), lan.host("cli", None));
    let database = Database::new();
    let mut known_only = range("10.77.0.0/24", &["10.77.0.50-10.77.0.99"]);
    known_only.serve = Serve::Known;
    let reserved = Ipv4Addr::new(10, 77, 0, 10);
    prepare(
        &database,
        &[known_only],
        &[client("52:54:00:77:00:01", "pc1", Some(reserved))],
    );
    let server = Server::start(&srv, &database, &Settings::default());
    let talker = Talker::new(&cli);
    assert_eq!(talker.lease(mac(1), 1).unwrap().address, reserved);
    assert!(talker.ask(&Message::new(DISCOVER, mac(2), 2)).is_none());
    assert_eq!(
        server.metric("silences_total{reason=\"unknown_client\"}"),
        1
    );
    // An edit in psql holds from the next packet on.
    database.query("update clients set ip_address = '10.77.0.11'");
    wait_for("the new reservation holds", SOON, || {
        let offer = talker.ask(&Message::new(DISCOVER, mac(1), 3))?;
        (offer.address == Ipv4Addr::new(10, 77, 0, 11)).then_some(())
    });
}

#[test]
fn an_address_in_use_by_a_stranger_is_not_offered() {
    let lan = Lan::new();
    let (srv, cli) = (lan.host("srv", Some("10.77.0.1/24")), lan.host("cli", None));
    let _stranger = lan.host("str", Some("10.77.0.50/24"));
    let database = Database::new();
    prepare(
        &database,
        &[range("10.77.0.0/24", &["10.77.0.50-10.77.0.51"])],
        &[],
    );
    let server = Server::start(&srv, &database, &Settings::default());
    let talker = Talker::new(&cli);
    let free = Ipv4Addr::new(10, 77, 0, 51);
    for n in 1..=3 {
        if let Some(offer) = talker.ask(&Message::new(DISCOVER, mac(n), u32::from(n))) {
            assert_eq!((offer.kind, offer.address), (OFFER, free));
        }
    }
    wait_for("the find is in the catalog", SOON, || {
        let rows = database.query("select host(address), state from leases");
        (rows == "10.77.0.50|declined").then_some(())
    });
    assert!(server.metric("probes_total{reason=\"in_use\"}") >= 1);
}

#[test]
fn an_interface_that_comes_later_is_served() {
    let lan = Lan::new();
    let srv = lan.host("srv", Some("10.77.0.1/24"));
    let cli = lan.lonely_host("cli");
    let database = Database::new();
    prepare(
        &database,
        &[
            range("10.77.0.0/24", &["10.77.0.50-10.77.0.99"]),
            range("10.78.0.0/24", &["10.78.0.50-10.78.0.99"]),
        ],
        &[],
    );
    let _server = Server::start(&srv, &database, &Settings::default());
    srv.wire_to("lan1", &cli, "lan0");
    srv.ip("addr add 10.78.0.1/24 dev lan1");
    let talker = Talker::new(&cli);
    let lease = wait_for("the new network is served", SOON, || {
        talker.lease(mac(1), 1)
    });
    assert!(lease.address.octets().starts_with(&[10, 78]));
    assert_eq!(lease.server(), Ipv4Addr::new(10, 78, 0, 1));

    // Gone, and made anew under the same name.
    srv.ip("link del lan1");
    srv.wire_to("lan1", &cli, "lan0");
    srv.ip("addr add 10.78.0.2/24 dev lan1");
    let talker = Talker::new(&cli);
    let again = wait_for("it is served again", SOON, || talker.lease(mac(1), 2));
    assert_eq!(again.address, lease.address);
    assert_eq!(again.server(), Ipv4Addr::new(10, 78, 0, 2));
}

#[test]
fn a_taken_port_is_named() {
    let lan = Lan::new();
    let srv = lan.host("srv", Some("10.77.0.1/24"));
    let database = Database::new();
    prepare(&database, &[range("10.77.0.0/24", &[])], &[]);
    let squatter = srv
        .enter(|| std::net::UdpSocket::bind("0.0.0.0:67").unwrap())
        .join()
        .unwrap();
    let error = Server::try_start(&srv, &database, &Settings::default())
        .err()
        .unwrap();
    assert!(matches!(error, BindError::Taken { port: 67, .. }));
    let text = error.to_string();
    for part in ["67", "lan0", "10.77.0.1"] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    drop(squatter);
    Server::start(&srv, &database, &Settings::default()).stop();
}

#[test]
fn another_dhcp_server_is_noticed() {
    let lan = Lan::new();
    let (srv, cli) = (lan.host("srv", Some("10.77.0.1/24")), lan.host("cli", None));
    let rogue = lan.host("rogue", Some("10.77.0.9/24"));
    let database = Database::new();
    prepare(
        &database,
        &[range("10.77.0.0/24", &["10.77.0.50-10.77.0.99"])],
        &[client("52:54:00:77:00:01", "pc1", None)],
    );
    let server = Server::start(&srv, &database, &Settings::default());
    let talker = Talker::new(&cli);
    assert!(
        talker
            .ask(&Message::new(DISCOVER, mac(1), 1).pxe())
            .is_some()
    );
    let mut offer = Message::new(OFFER, mac(1), 1)
        .of_server(Ipv4Addr::new(10, 77, 0, 9))
        .bytes();
    offer[0] = 2;
    Talker::on_port(&rogue, 67).send_to(&offer, SocketAddrV4::new(Ipv4Addr::BROADCAST, 68));
    wait_for("it is counted", SOON, || {
        (server.metric("foreign_replies_total") == 1).then_some(())
    });
    wait_for("it is in the boot's timeline", SOON, || {
        let found = "select count(*) from boot_events where stage = 'foreign_server'";
        (database.query(found) == "1").then_some(())
    });
    // The machine takes the other's offer: not ours to answer.
    let request = Message::new(REQUEST, mac(1), 2)
        .requesting(Ipv4Addr::new(10, 77, 0, 200))
        .of_server(Ipv4Addr::new(10, 77, 0, 9));
    talker.send(&request.bytes());
    assert!(talker.hear(2, Duration::from_millis(500), 1).is_empty());
    assert_eq!(server.metric("silences_total{reason=\"other_server\"}"), 1);
}

#[test]
fn what_is_off_or_nowhere_is_silent() {
    let lan = Lan::new();
    let (srv, cli) = (lan.host("srv", Some("10.77.0.1/24")), lan.host("cli", None));
    let database = Database::new();
    let mut off = range("10.77.0.0/24", &["10.77.0.50-10.77.0.99"]);
    off.mode = RangeMode::Off;
    prepare(&database, &[off], &[]);
    let settings = Settings {
        interfaces: Selection::Named(vec!["lan0".to_owned(), "none0".to_owned()]),
        ..Settings::default()
    };
    let server = Server::start(&srv, &database, &settings);
    let talker = Talker::new(&cli);
    talker.send(&Message::new(DISCOVER, mac(1), 1).bytes());
    wait_for("it is counted", SOON, || {
        (server.metric("silences_total{reason=\"range_off\"}") == 1).then_some(())
    });
    database.query("delete from network_ranges");
    wait_for("the deletion holds", SOON, || {
        talker.send(&Message::new(DISCOVER, mac(1), 2).bytes());
        (server.metric("silences_total{reason=\"no_range\"}") >= 1).then_some(())
    });
    assert_eq!(database.query("select count(*) from boot_attempts"), "0");
}
