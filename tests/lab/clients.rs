//! Ordinary DHCP clients against the real server: dhclient and udhcpc get, renew, release
//! and decline, and find their address again.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::capture::{Capture, first};
use crate::net::{Lab, finish};
use crate::product::Dls;
use crate::{secs, wait_for};

const MAC: &str = "52:54:00:77:0c:01";
const POOL: &str = "--pool 10.77.0.50-10.77.0.59 --mode full --lease-seconds 30";

/// Waits until the machine's lease is in that state; returns its address and its start.
fn expect_lease(dls: &Dls<'_>, mac: &str, state: &str) -> (String, f64) {
    let query = format!(
        "select host(address) as address, extract(epoch from starts_at)::float8 as start \
         from leases where mac = '{mac}' and state = '{state}'"
    );
    wait_for(&format!("a lease of {mac} in `{state}`"), secs(40), || {
        let rows = dls.rows(&query);
        let row = rows.first()?;
        let address = row.get("address")?.as_str()?.to_owned();
        Some((address, row.get("start")?.as_f64()?))
    })
}

fn set_mac(lab: &Lab, host: &str, mac: &str) {
    lab.ip(host, &format!("link set lan0 address {mac}"));
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).expect("a process id");
    kill(Pid::from_raw(pid), signal).expect("the client still runs");
}

#[test]
fn udhcpc_gets_renews_releases_and_gets_the_same_again() {
    let lab = Lab::new("udhcpc");
    let dls = Dls::start(&lab, "");
    dls.cli(&format!("range add --network 10.77.0.0/24 {POOL}"));
    let host = lab.host("cli", None);
    set_mac(&lab, &host, MAC);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/testos/dhcp");
    let args = [
        "udhcpc", "-f", "-i", "lan0", "-t", "10", "-T", "1", "-s", script,
    ];
    let mut command = lab.command_in(&host, "busybox", args);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let client = lab.keep(&mut command);
    let (address, start) = expect_lease(&dls, MAC, "active");

    signal(client, Signal::SIGUSR1);
    wait_for("the renewed lease starts later", secs(20), || {
        (expect_lease(&dls, MAC, "active").1 > start).then_some(())
    });

    signal(client, Signal::SIGUSR2);
    assert_eq!(expect_lease(&dls, MAC, "released").0, address);
    // USR1 after a release: it asks anew.
    signal(client, Signal::SIGUSR1);
    assert_eq!(
        expect_lease(&dls, MAC, "active").0,
        address,
        "the same machine, the same address"
    );
}

#[test]
fn dhclient_gets_renews_releases_and_gets_the_same_again() {
    let lab = Lab::new("dhclient");
    let dls = Dls::start(&lab, "");
    dls.cli(&format!("range add --network 10.77.0.0/24 {POOL}"));
    let host = lab.host("cli", None);
    set_mac(&lab, &host, MAC);
    // It sets no address of its own: renewals would leave from none. The test's script does.
    let script = lab.path().join("dhclient-script");
    let text = "#!/bin/sh\ncase $reason in BOUND|RENEW|REBIND|REBOOT)\n\
                ip addr replace \"$new_ip_address/24\" dev \"$interface\" ;;\nesac\nexit 0\n";
    fs::write(&script, text).expect("a script");
    finish(std::process::Command::new("chmod").arg("755").arg(&script));
    let dhclient = |more: &[&str]| {
        let mut command = lab.command_in(
            &host,
            "dhclient",
            ["-4", "-d", "-lf", "dh.leases", "-pf", "dh.pid", "-sf"],
        );
        command.arg(&script).args(more).arg("lan0");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let client = lab.keep(&mut dhclient(&[]));
    let (address, start) = expect_lease(&dls, MAC, "active");
    // The lease is 30 s long: it renews after some 15 s by itself.
    wait_for("dhclient renews by itself", secs(30), || {
        (expect_lease(&dls, MAC, "active").1 > start).then_some(())
    });
    signal(client, Signal::SIGTERM);
    let _ = lab
        .command_in(
            &host,
            "dhclient",
            ["-4", "-r", "-lf", "dh.leases", "-pf", "dh.pid", "-sf"],
        )
        .arg(&script)
        .arg("lan0")
        .status();
    assert_eq!(expect_lease(&dls, MAC, "released").0, address);
    lab.keep(&mut dhclient(&[]));
    assert_eq!(expect_lease(&dls, MAC, "active").0, address);
}

#[test]
fn an_address_that_somebody_else_uses_is_declined_and_kept_out() {
    let lab = Lab::new("decline");
    let dls = Dls::start(&lab, "");
    dls.cli(&format!("range add --network 10.77.0.0/24 {POOL}"));
    let host = lab.host("cli", None);
    // dhclient declines what its script refuses: the first address, once.
    let script = lab.path().join("dhclient-script");
    let text = format!(
        "#!/bin/sh\n[ \"$reason\" = BOUND ] || exit 0\n[ -e {0} ] && exit 0\n\
         echo \"$new_ip_address\" > {0}; exit 1\n",
        lab.path().join("declined").display()
    );
    fs::write(&script, text).expect("a script");
    finish(std::process::Command::new("chmod").arg("755").arg(&script));
    set_mac(&lab, &host, MAC);
    let capture = Capture::start(&lab);
    let mut command = lab.command_in(
        &host,
        "dhclient",
        ["-4", "-d", "-lf", "dh.leases", "-pf", "dh.pid", "-sf"],
    );
    command
        .arg(&script)
        .arg("lan0")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    lab.keep(&mut command);
    let refused = wait_for("an address that it declines", secs(30), || {
        let text = fs::read_to_string(lab.path().join("declined")).ok()?;
        Some(text.trim().to_owned()).filter(|t| !t.is_empty())
    });
    let (address, _) = expect_lease(&dls, MAC, "active");
    wait_for("another address than the declined one", secs(40), || {
        (expect_lease(&dls, MAC, "active").0 != refused).then_some(())
    });
    let rows = dls.rows(&format!(
        "select state from leases where host(address) = '{refused}'"
    ));
    assert_eq!(
        rows,
        [serde_json::json!({"state": "declined"})],
        "after {address}"
    );
    assert!(first(&capture.stop(), &["length 1: Decline"]).is_some());
}

#[test]
fn an_address_in_use_is_not_offered() {
    let lab = Lab::new("in_use");
    let dls = Dls::start(&lab, "");
    dls.cli("range add --network 10.77.0.0/24 --pool 10.77.0.50-10.77.0.51 --mode full");
    // Somebody has set himself the pool's first address by hand; whichever the server
    // picks first, the client must end on the free one.
    lab.host("sit", Some("10.77.0.50/24"));
    let host = lab.host("cli", None);
    let mut addresses = Vec::new();
    for mac in ["52:54:00:77:0c:11", "52:54:00:77:0c:12"] {
        set_mac(&lab, &host, mac);
        // -a: udhcpc looks by itself too, and declines what is in use.
        let args = [
            "udhcpc",
            "-f",
            "-q",
            "-n",
            "-a",
            "-i",
            "lan0",
            "-t",
            "4",
            "-T",
            "1",
            "-s",
            "/bin/true",
        ];
        let output = crate::net::output(&mut lab.command_in(&host, "busybox", args));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        addresses.extend(said.split("lease of ").nth(1).map(|rest| {
            let end = rest.find(' ').unwrap_or(rest.len());
            rest[..end].to_owned()
        }));
    }
    assert_eq!(
        addresses,
        ["10.77.0.51"],
        "one free address: one client served"
    );
}
