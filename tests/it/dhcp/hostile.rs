//! Invented machines: whatever they do, the registered ones are served. `DLS_TORTURE=1` sends
//! the full count; the MACs follow from the number of the machine, so a run repeats itself.

use std::net::Ipv4Addr;
use std::time::Duration;

use dls::model::Client;

use super::lan::{Host, Lan};
use super::postgres::Database;
use super::raw::{ACK, Answer, DECLINE, DISCOVER, Message, REQUEST, Talker};
use super::server::{Server, Settings, client, prepare, range};

/// Their MACs are of another maker than perfdhcp's.
fn registered(n: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 9, n]
}

/// 40 machines: every other one with a reserved address, some of those in the pool.
fn machines() -> Vec<Client> {
    (0..40)
        .map(|n| {
            let reserved = (n % 2 == 0).then(|| match n % 4 {
                0 => Ipv4Addr::new(10, 77, 0, 100 + n),
                _ => Ipv4Addr::new(10, 77, 1, 100 + n),
            });
            client(
                &format!("52:54:00:00:09:{n:02x}"),
                &format!("pc-{n:02}"),
                reserved,
            )
        })
        .collect()
}

/// As a machine does that gets no answer: it asks again.
fn lease(talker: &Talker, n: u8, xid: u32) -> Option<Answer> {
    (0..4).find_map(|again| {
        let xid = xid + again * 1_000_000;
        let offer = talker.ask(&Message::new(DISCOVER, registered(n), xid))?;
        let request = Message::new(REQUEST, registered(n), xid)
            .requesting(offer.address)
            .of_server(offer.server());
        talker.ask(&request).filter(|answer| answer.kind == ACK)
    })
}

/// Resident memory of this process, KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.unwrap().parse().unwrap()
}

#[test]
fn random_macs_leave_the_rest_of_the_pool_to_registered_machines() {
    let torture = std::env::vars().any(|(key, _)| key == "DLS_TORTURE");
    let (count, rate) = if torture {
        (100_000, 2_000)
    } else {
        (2_000, 400)
    };
    let lan = Lan::new();
    let srv = lan.host("srv", Some("10.77.0.1/16"));
    let flood = lan.host("bad", Some("10.77.0.2/16"));
    let cli = lan.host("cli", None);
    let database = Database::new();
    // 1,000 addresses, of which ten are reserved.
    prepare(
        &database,
        &[range("10.77.0.0/16", &["10.77.1.0-10.77.4.231"])],
        &machines(),
    );
    let server = Server::start(&srv, &database, &Settings::default());
    let before = resident();
    let arguments = format!("-4 -l lan0 -r {rate} -R {count} -n {count} -p 120 -W 1000000");
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    let attack = flood.start("perfdhcp", &arguments);
    served_throughout(&server, &cli, attack);
    let grown = resident().saturating_sub(before);

    let strangers = "select count(*) from leases l where state <> 'released'
        and not exists (select 1 from client_macs m where m.mac = l.mac)";
    let strangers: usize = database.query(strangers).parse().unwrap();
    assert!((800..=900).contains(&strangers), "{strangers}");
    assert_eq!(
        database.query("select count(distinct l.mac) from leases l join client_macs m using (mac)"),
        "40"
    );
    assert!(server.metric("silences_total{reason=\"unknown_share\"}") > 0);
    println!("{count} strangers at {rate}/s: {strangers} leases, {grown} KiB more");
    // By itself in a process only where all of the count is sent.
    assert!(!torture || grown <= 64 << 10, "{grown} KiB");
}

/// Leases for all registered machines, one after another, while the attack lasts and after it.
fn served_throughout(server: &Server, cli: &Host, mut attack: std::process::Child) {
    let talker = Talker::new(cli);
    // First let the strangers have what they can get.
    super::lan::wait_for("the share is used up", Duration::from_secs(60), || {
        (server.metric("silences_total{reason=\"unknown_share\"}") > 0).then_some(())
    });
    for n in 0..40 {
        let answer = lease(&talker, n, 1000 + u32::from(n));
        let address = answer
            .unwrap_or_else(|| panic!("machine {n} got nothing"))
            .address;
        if n % 2 == 0 {
            assert_eq!(address.octets()[3], 100 + n);
        }
    }
    attack.wait().unwrap();
    assert!(lease(&talker, 1, 5000).is_some());
}

#[test]
fn a_flood_of_declines_leaves_the_rest_to_registered_machines() {
    let lan = Lan::new();
    let srv = lan.host("srv", Some("10.77.0.1/24"));
    let cli = lan.host("cli", None);
    let database = Database::new();
    prepare(
        &database,
        &[range("10.77.0.0/24", &["10.77.0.50-10.77.0.69"])],
        &machines()[1..2],
    );
    let server = Server::start(&srv, &database, &Settings::default());
    let talker = Talker::new(&cli);
    // Every stranger takes an address and declines it, until there is none for strangers.
    let mut declined = 0;
    for n in 0..60_u8 {
        let mac = [0x02, 0, 0, 0, 7, n];
        let Some(answer) = talker.lease(mac, 100 + u32::from(n)) else {
            break;
        };
        let decline = Message::new(DECLINE, mac, 500)
            .requesting(answer.address)
            .of_server(answer.server());
        talker.send(&decline.bytes());
        declined += 1;
    }
    assert_eq!(declined, 18);
    assert!(server.metric("silences_total{reason=\"unknown_share\"}") > 0);
    assert!(lease(&talker, 1, 900).is_some());
}
