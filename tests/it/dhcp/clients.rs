//! Real clients, relays and other servers.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use dls::model::RangeMode;

use super::lan::{Host, Lan, wait_for};
use super::postgres::Database;
use super::raw::{ACK, DISCOVER, Message, OFFER, REQUEST, Talker};
use super::server::{Server, Settings, client, prepare, range};

const SOON: Duration = Duration::from_secs(15);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// What dhclient and udhcpc call: sets the address, touches no file of the machine.
const SCRIPT: &str = r#"#!/bin/sh
case "${reason:-$1}" in
PREINIT) ip link set "$interface" up ;;
BOUND|RENEW|REBIND|REBOOT|bound|renew)
    address=${new_ip_address:-$ip}
    mask=${new_subnet_mask:-$subnet}
    ip addr flush dev "$interface" scope global
    ip addr add "$address/$mask" dev "$interface" ;;
RELEASE|EXPIRE|FAIL|STOP|deconfig) ip addr flush dev "$interface" scope global ;;
esac
exit 0
"#;

fn script(host: &Host) -> String {
    let path = host.path("script");
    std::fs::write(&path, SCRIPT).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// dhclient with files of its own.
struct Dhclient<'a> {
    host: &'a Host,
    script: String,
    leases: PathBuf,
    pid: PathBuf,
}

impl<'a> Dhclient<'a> {
    fn new(host: &'a Host) -> Self {
        Self {
            host,
            script: script(host),
            leases: host.path("leases"),
            pid: host.path("pid"),
        }
    }

    fn run(&self, mode: &str) {
        let (leases, pid) = (self.leases.display(), self.pid.display());
        let arguments = format!(
            "-4 {mode} -v -cf /dev/null -lf {leases} -pf {pid} -sf {} lan0",
            self.script
        );
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        let output = self
            .host
            .run(Duration::from_secs(30), "dhclient", &arguments);
        assert!(
            output.status.success(),
            "dhclient {mode}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

fn row(database: &Database) -> String {
    database.query(
        "select host(address), state, extract(epoch from starts_at) from leases order by address",
    )
}

/// One server, one client's host.
fn pair(pools: &[&str], lease_seconds: u32) -> (Lan, Database, Server, Host) {
    let lan = Lan::new();
    let (srv, cli) = (lan.host("srv", Some("10.77.0.1/24")), lan.host("cli", None));
    let database = Database::new();
    let mut range = range("10.77.0.0/24", pools);
    range.lease_seconds = lease_seconds;
    range.gateway = Some(SERVER);
    prepare(&database, &[range], &[]);
    let server = Server::start(&srv, &database, &Settings::default());
    (lan, database, server, cli)
}

#[test]
fn dhclient_gets_renews_and_releases_and_gets_the_same_again() {
    let (_lan, database, server, cli) = pair(&["10.77.0.50-10.77.0.99"], 60);
    let dhclient = Dhclient::new(&cli);
    dhclient.run("-1");
    let address = cli.addresses()[0];
    let first = row(&database);
    assert!(first.starts_with(&format!("{address}|active")), "{first}");

    // It renews by itself at half its lease.
    let acks = server.metric("replies_total{kind=\"ack\",reason=\"full\"}");
    wait_for("dhclient renews", Duration::from_secs(45), || {
        (row(&database) != first).then_some(())
    });
    assert_eq!(
        server.metric("replies_total{kind=\"ack\",reason=\"full\"}"),
        acks + 1
    );
    assert_eq!(
        server.metric("replies_total{kind=\"nak\",reason=\"nak_taken\"}"),
        0
    );

    dhclient.run("-r");
    wait_for("the lease is released", SOON, || {
        row(&database)
            .starts_with(&format!("{address}|released"))
            .then_some(())
    });
    assert!(cli.addresses().is_empty());
    std::fs::remove_file(&dhclient.leases).unwrap();
    dhclient.run("-1");
    assert_eq!(cli.addresses(), [address]);
    // And once more, with what it remembers (INIT-REBOOT).
    dhclient.run("-x");
    cli.ip("addr flush dev lan0");
    dhclient.run("-1");
    assert_eq!(cli.addresses(), [address]);
}

#[test]
fn udhcpc_gets_renews_and_releases_and_gets_the_same_again() {
    let (_lan, database, _server, cli) = pair(&["10.77.0.50-10.77.0.99"], 3600);
    let script = script(&cli);
    let once = [
        "-i", "lan0", "-n", "-q", "-f", "-t", "5", "-T", "1", "-s", &script,
    ];
    assert!(cli.run(SOON, "udhcpc", &once).status.success());
    let address = cli.addresses()[0];
    cli.ip("addr flush dev lan0");

    // A second run, that stays: renews when told so, releases when it ends.
    let daemon = [
        "-i", "lan0", "-f", "-R", "-t", "5", "-T", "1", "-s", &script,
    ];
    let child = cli.start("udhcpc", &daemon);
    wait_for("the same address", SOON, || {
        (cli.addresses() == [address]).then_some(())
    });
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    let before = row(&database);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
    wait_for("udhcpc renews", SOON, || {
        (row(&database) != before).then_some(())
    });
    assert!(row(&database).starts_with(&format!("{address}|active")));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    wait_for("udhcpc releases", SOON, || {
        row(&database)
            .starts_with(&format!("{address}|released"))
            .then_some(())
    });
    let mut child = child;
    child.wait().unwrap();
}

#[test]
fn udhcpc_declines_an_address_that_is_in_use() {
    let (lan, database, server, cli) = pair(&["10.77.0.50-10.77.0.51"], 3600);
    // The server has looked at both addresses before the stranger comes.
    wait_for("both are probed", SOON, || {
        (server.metric("probes_total{reason=\"free\"}") >= 2).then_some(())
    });
    let cli_mac = database_mac(&cli);
    let talker = Talker::new(&cli);
    let offered = talker
        .ask(&Message::new(DISCOVER, cli_mac, 1))
        .unwrap()
        .address;
    drop(talker);
    lan.host("str", Some(&format!("{offered}/24")));

    let script = script(&cli);
    // -a500: asks by ARP for half a second; -A1: begins anew a second after a DECLINE.
    let arguments = [
        "-i", "lan0", "-n", "-q", "-f", "-a500", "-A", "1", "-t", "5", "-T", "1", "-s", &script,
    ];
    let output = cli.run(Duration::from_secs(30), "udhcpc", &arguments);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let got = cli.addresses()[0];
    assert_ne!(got, offered);
    let states = database.query("select host(address), state from leases order by state");
    assert_eq!(states, format!("{got}|active\n{offered}|declined"));
}

fn database_mac(host: &Host) -> [u8; 6] {
    let output = host
        .command("cat", &["/sys/class/net/lan0/address"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let mac: dls::model::MacAddr = text.trim().parse().unwrap();
    mac.octets()
}

#[test]
fn a_relay_brings_another_network() {
    let lan = Lan::new();
    let srv = lan.host("srv", Some("10.77.0.1/24"));
    let relay = lan.host("relay", Some("10.77.0.2/24"));
    let cli = lan.lonely_host("cli");
    relay.wire_to("down0", &cli, "lan0");
    relay.ip("addr add 10.78.0.1/24 dev down0");
    srv.ip("route add 10.78.0.0/24 via 10.77.0.2");
    relay
        .command("sysctl", &["-qw", "net.ipv4.ip_forward=1"])
        .status()
        .unwrap();
    let database = Database::new();
    let mut far = range("10.78.0.0/24", &["10.78.0.50-10.78.0.99"]);
    far.lease_seconds = 60;
    far.gateway = Some(Ipv4Addr::new(10, 78, 0, 1));
    prepare(
        &database,
        &[range("10.77.0.0/24", &["10.77.0.50-10.77.0.99"]), far],
        &[],
    );
    let _server = Server::start(&srv, &database, &Settings::default());
    let mut dhcrelay = relay.start(
        "dhcrelay",
        &["-4", "-d", "-a", "-id", "down0", "-iu", "lan0", "10.77.0.1"],
    );
    let dhclient = Dhclient::new(&cli);
    dhclient.run("-1");
    let address = cli.addresses()[0];
    assert!(address.octets().starts_with(&[10, 78, 0]), "{address}");
    // Option 82 as the relay made it: sub-option 1 is the name of its interface.
    let relayed = "select convert_from(relay_information, 'latin1') like '%down0%' from leases";
    assert_eq!(database.query(relayed), "t");

    // Renewing goes past the relay, through its router, and back.
    cli.ip("route add default via 10.78.0.1");
    let first = row(&database);
    wait_for("dhclient renews", Duration::from_secs(45), || {
        (row(&database) != first).then_some(())
    });
    assert!(row(&database).starts_with(&format!("{address}|active")));
    let _ = dhcrelay.kill();
    let _ = dhcrelay.wait();
}

#[test]
fn beside_dnsmasq_only_the_boot_part_is_ours() {
    let lan = Lan::new();
    let srv = lan.host("srv", Some("10.77.0.1/24"));
    let router = lan.host("router", Some("10.77.0.254/24"));
    let cli = lan.host("cli", None);
    let database = Database::new();
    let mut proxy = range("10.77.0.0/24", &[]);
    proxy.mode = RangeMode::Proxy;
    prepare(
        &database,
        &[proxy],
        &[client("52:54:00:77:00:01", "pc1", None)],
    );
    let server = Server::start(&srv, &database, &Settings::default());
    let mut dnsmasq = router.start(
        "dnsmasq",
        &[
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--port=0",
            "--interface=lan0",
            "--dhcp-range=10.77.0.100,10.77.0.199,1h",
            "--dhcp-authoritative",
            "--user=root",
            "--pid-file=",
            &format!("--dhcp-leasefile={}", router.path("leases").display()),
        ],
    );
    let mac = [0x52, 0x54, 0, 0x77, 0, 1];
    let talker = Talker::new(&cli);
    let mut xid = 100;
    let offers = wait_for("both servers answer", SOON, || {
        xid += 1;
        talker.send(&Message::new(DISCOVER, mac, xid).pxe().bytes());
        let offers = talker.hear(xid, Duration::from_secs(4), 2);
        (offers.len() == 2).then_some(offers)
    });
    let (ours, theirs): (Vec<_>, Vec<_>) = offers
        .into_iter()
        .partition(|offer| offer.server() == SERVER);
    let (ours, theirs) = (&ours[0], &theirs[0]);
    assert_eq!((ours.kind, ours.address), (OFFER, Ipv4Addr::UNSPECIFIED));
    assert_eq!(ours.options[&60], b"PXEClient");
    assert!(!ours.options.contains_key(&51));
    assert!(theirs.address.octets().starts_with(&[10, 77, 0]));

    // It takes dnsmasq's address and asks us, on 4011, for the boot file.
    let request = Message::new(REQUEST, mac, 200)
        .pxe()
        .requesting(theirs.address)
        .of_server(theirs.server());
    let ack = talker.ask(&request).unwrap();
    assert_eq!((ack.kind, ack.server()), (ACK, theirs.server()));
    cli.ip(&format!("addr add {}/24 dev lan0", ack.address));
    let mut boot = Message::new(REQUEST, mac, 201).pxe();
    boot.ciaddr = ack.address;
    let pxe = Talker::on_port(&cli, 4011);
    pxe.send_to(&boot.bytes(), SocketAddrV4::new(SERVER, 4011));
    let loader = pxe.hear(201, SOON, 1).pop().unwrap();
    assert_eq!((loader.kind, loader.file.as_str()), (ACK, "undionly.kpxe"));
    assert_eq!(loader.from, SocketAddrV4::new(SERVER, 4011));
    assert_eq!(loader.address, Ipv4Addr::UNSPECIFIED);

    // An ordinary client hears dnsmasq alone, and we write no lease.
    let telephone = Message::new(DISCOVER, [0x52, 0x54, 0, 0x77, 0, 9], 300);
    talker.send(&telephone.bytes());
    let offers = talker.hear(300, Duration::from_secs(5), 2);
    assert!(offers.iter().all(|offer| offer.server() != SERVER));
    assert!(server.metric("silences_total{reason=\"not_a_boot\"}") >= 1);
    assert!(server.metric("foreign_replies_total") >= 1);
    assert_eq!(database.query("select count(*) from leases"), "0");
    let _ = dnsmasq.kill();
    let _ = dnsmasq.wait();
}

#[test]
fn two_interfaces_are_two_networks() {
    let lan = Lan::new();
    let srv = lan.host("srv", Some("10.77.0.1/24"));
    let near = lan.host("near", None);
    let other = lan.lonely_host("other");
    srv.wire_to("lan1", &other, "lan0");
    srv.ip("addr add 10.78.0.1/24 dev lan1");
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
    for (host, network) in [(&near, [10, 77, 0]), (&other, [10, 78, 0])] {
        let script = script(host);
        let once = [
            "-i", "lan0", "-n", "-q", "-f", "-t", "5", "-T", "1", "-s", &script,
        ];
        assert!(host.run(SOON, "udhcpc", &once).status.success());
        assert!(host.addresses()[0].octets().starts_with(&network));
    }
}
