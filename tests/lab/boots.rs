//! Every firmware path to a running Debian kernel that phones home; each boot's timeline
//! is compared with a capture of the wire.

use crate::capture::{Capture, Packet, first};
use crate::machine::{Board, Firmware};
use crate::net::Lab;
use crate::product::{Dls, Timeline};
use crate::secs;

const MAC: &str = "52:54:00:77:00:01";
const POOL: &str = "--pool 10.77.0.50-10.77.0.99 --mode full";

/// The part of a boot that is the same whatever brought the loader.
const FROM_SCRIPT: [&str; 8] = [
    "script",
    "kernel_requested",
    "kernel_sent",
    "initrd_requested",
    "initrd_sent",
    "os_network",
    "up",
    "bye",
];

/// Switches the machine on, sees it up, off, and `shutdown` in the catalog.
fn boot(lab: &Lab, dls: &Dls<'_>, board: &Board) -> (Timeline, Vec<Packet>) {
    let capture = Capture::start(lab);
    let mut machine = board.power_on(lab);
    machine.expect("DLS-TEST-OS-UP", secs(150));
    machine.expect_off(secs(60));
    dls.expect_status("shutdown", secs(10));
    let timeline = dls.expect_outcome(board.mac, "completed", secs(10));
    (timeline, capture.stop())
}

/// Each stage's time agrees with the first packet that shows it.
fn assert_times(timeline: &Timeline, packets: &[Packet], loader: Option<&str>) {
    let request = format!("Client-Ethernet-Address {MAC}");
    let witnesses = [
        ("discover", vec!["BOOTP/DHCP, Request", request.as_str()]),
        ("script", vec!["GET /b/", "/boot.ipxe "]),
        ("kernel_requested", vec!["GET /b/", "/kernel "]),
        ("initrd_requested", vec!["GET /b/", "/initrd0 "]),
        ("up", vec![" /b/", "/up "]),
        ("bye", vec![" /b/", "/bye "]),
    ];
    let row = |stage: &str| {
        timeline
            .at(stage)
            .unwrap_or_else(|| panic!("`{stage}` in {timeline:#?}"))
    };
    for (stage, words) in witnesses {
        let wire = first(packets, &words).unwrap_or_else(|| panic!("{words:?} on the wire"));
        let apart = (wire - row(stage)).abs();
        assert!(apart < 0.5, "`{stage}`: {apart:.3} s off the capture");
    }
    if let Some(loader) = loader {
        // Firmware asks twice: for the size (tsize 0, HEAD), then for the file.
        let apart = packets
            .iter()
            .filter(|p| p.text.contains(loader))
            .map(|p| (p.at - row("loader_requested")).abs())
            .fold(f64::INFINITY, f64::min);
        assert!(apart < 0.5, "`{loader}`: {apart:.3} s off the capture");
    }
}

#[test]
fn bios_pxe_through_our_loader() {
    let lab = Lab::new("bios_pxe");
    lab.ipv6_router();
    let range = format!("{POOL} --always-chainload true");
    let dls = Dls::site(&lab, "", &range, "lab.stay=2");
    dls.cli(&format!(
        "client add --mac {MAC} --hostname pc-01 --image testos"
    ));
    let (timeline, packets) = boot(&lab, &dls, &Board::new(Firmware::Bios, MAC));
    timeline.assert_order(&[
        "discover",
        "offer",
        "lease",
        "loader_requested",
        "loader_sent",
        "loader_running",
    ]);
    timeline.assert_order(&FROM_SCRIPT);
    assert_times(&timeline, &packets, Some("RRQ \"undionly.kpxe\""));

    // What the operator reads: who booted, what, how long, from where.
    let rows = dls.rows(
        "select s.boot_time_seconds > 0 as timed, s.client_ip is not null as placed, \
         host(s.boot_server_ip) as server, c.boot_count, c.last_boot_at = s.started_at as dated \
         from boot_sessions s join clients c on c.id = s.client_id",
    );
    let expected = serde_json::json!([{"timed": true, "placed": true,
        "server": crate::net::SERVER, "boot_count": 1, "dated": true}]);
    assert_eq!(serde_json::Value::Array(rows), expected);
}

#[test]
fn bios_whose_rom_is_an_ipxe() {
    let lab = Lab::new("bios_ipxe");
    lab.ipv6_router();
    let dls = Dls::site(&lab, "", POOL, "lab.stay=2");
    dls.cli(&format!(
        "client add --mac {MAC} --hostname pc-01 --image testos --ip 10.77.0.20"
    ));
    let capture = Capture::start(&lab);
    let mut machine = Board::new(Firmware::Bios, MAC).power_on(&lab);
    machine.expect("DLS-TEST-OS-UP", secs(150));
    // Its reserved address and its name reached the system.
    machine.expect("DLS-TEST-OS-ADDRESS 10.77.0.20/24", secs(1));
    machine.expect("DLS-TEST-OS-HOSTNAME pc-01", secs(1));
    machine.expect_off(secs(60));
    dls.expect_status("shutdown", secs(10));
    let timeline = dls.expect_outcome(MAC, "completed", secs(10));
    timeline.assert_order(&FROM_SCRIPT);
    let packets = capture.stop();
    assert_times(&timeline, &packets, None);
    assert_eq!(first(&packets, &["RRQ"]), None, "no loader was needed");
}

#[test]
fn uefi_pxe() {
    let lab = Lab::new("uefi_pxe");
    lab.ipv6_router();
    let dls = Dls::site(&lab, "", POOL, "lab.stay=2");
    dls.cli(&format!(
        "client add --mac {MAC} --hostname pc-01 --image testos"
    ));
    let (timeline, packets) = boot(&lab, &dls, &Board::new(Firmware::UefiPxe, MAC));
    timeline.assert_order(&[
        "discover",
        "offer",
        "lease",
        "loader_requested",
        "loader_sent",
        "loader_running",
        "loader_lease",
    ]);
    timeline.assert_order(&FROM_SCRIPT);
    // The size probe comes first; both ask for the same name.
    assert_times(&timeline, &packets, Some("RRQ \"snponly.efi\""));
}

#[test]
fn uefi_http_boot() {
    let lab = Lab::new("uefi_http");
    lab.ipv6_router();
    let dls = Dls::site(&lab, "", POOL, "lab.stay=2");
    dls.cli(&format!(
        "client add --mac {MAC} --hostname pc-01 --image testos"
    ));
    let (timeline, packets) = boot(&lab, &dls, &Board::new(Firmware::UefiHttp, MAC));
    timeline.assert_order(&[
        "discover",
        "offer",
        "lease",
        "loader_requested",
        "loader_sent",
        "loader_running",
        "loader_lease",
    ]);
    timeline.assert_order(&FROM_SCRIPT);
    assert_times(&timeline, &packets, Some(" /loader/snponly.efi"));
}

/// The LAN has its DHCP server already; `dls` adds the boot part only.
fn beside_a_foreign_server(test: &'static str, firmware: Firmware, range: &str, loader: &str) {
    let lab = Lab::new(test);
    lab.ipv6_router();
    let router = lab.host("dhcp", Some("10.77.0.2/24"));
    let mut dnsmasq = lab.command_in(
        &router,
        "dnsmasq",
        [
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
            "--port=0",
            "--interface=lan0",
            "--bind-interfaces",
            "--no-ping",
            "--log-dhcp",
            "--log-facility=-",
            "--dhcp-leasefile=dnsmasq.leases",
            "--pid-file=dnsmasq.pid",
            "--dhcp-range=10.77.0.150,10.77.0.199,1h",
        ],
    );
    let log = std::fs::File::create(lab.path().join("dnsmasq.log")).expect("a log");
    lab.keep(dnsmasq.stderr(log));
    let dls = Dls::site(&lab, "", &format!("--mode proxy {range}"), "lab.stay=2");
    dls.cli(&format!(
        "client add --mac {MAC} --hostname pc-01 --image testos"
    ));
    let (timeline, packets) = boot(&lab, &dls, &Board::new(firmware, MAC));
    timeline.assert_order(&[
        "discover",
        "loader_requested",
        "loader_sent",
        "loader_running",
    ]);
    timeline.assert_order(&FROM_SCRIPT[..5]);
    assert_times(&timeline, &packets, Some(loader));
    let ours = first(
        &packets,
        &["10.77.0.1.67 >", "length 1: ACK", "Your-IP 10.77"],
    );
    assert_eq!(ours, None, "a proxy gives no address");
    assert!(dls.rows("select * from leases").is_empty());
    let session = dls.rows("select host(client_ip) as ip from boot_sessions");
    let ip = session[0]["ip"].as_str().unwrap_or_default();
    assert!(
        ip.starts_with("10.77.0.1"),
        "the other server's address: {ip}"
    );
}

#[test]
fn proxy_beside_dnsmasq_uefi() {
    beside_a_foreign_server("proxy_uefi", Firmware::UefiPxe, "", "RRQ \"snponly.efi\"");
}

#[test]
fn proxy_beside_dnsmasq_bios() {
    beside_a_foreign_server(
        "proxy_bios",
        Firmware::Bios,
        "--always-chainload true",
        "RRQ \"undionly.kpxe\"",
    );
}
