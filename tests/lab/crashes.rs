//! kill -9 of the server or of its database, at any moment of a boot: the next start needs
//! no help, and every acknowledged lease and every session is there.
//!
//! Rounds and seed come from `DLS_TORTURE` and `DLS_SEED`; the seed is printed.

use std::fs;
use std::time::Duration;

use crate::capture::{Capture, acks};
use crate::machine::{Board, Firmware};
use crate::net::Lab;
use crate::product::Dls;
use crate::{secs, wait_for};

const MAC: &str = "52:54:00:77:00:01";
const POOL: &str = "--pool 10.77.0.50-10.77.0.250 --mode full";

/// A small generator (SplitMix64): the same seed, the same moments.
pub(crate) struct Dice(u64);

impl Dice {
    /// Seeded by `DLS_SEED`, else by the process id.
    pub(crate) fn new() -> Self {
        let seed = std::env::var("DLS_SEED").ok().and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
        eprintln!("DLS_SEED={seed}");
        Self(seed)
    }

    /// With a seed of one's own.
    pub(crate) const fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`.
    pub(crate) const fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

/// `few`, or many under `DLS_TORTURE`.
pub(crate) fn rounds(few: u32, many: u32) -> u32 {
    if std::env::var_os("DLS_TORTURE").is_some() {
        many
    } else {
        few
    }
}

/// Machines that come, take a lease and go, as fast as they can, from a namespace of their
/// own; each has a new MAC, and asks as a boot ROM does. What they were given is appended to `leases.log`.
pub(crate) fn crowd(lab: &Lab, host: &str) {
    let script = lab.path().join("crowd.sh");
    let text = "#!/bin/bash\nfor n in $(seq 1 60000); do\n\
        mac=$(printf '02:00:00:00:%02x:%02x' $((n / 256)) $((n % 256)))\n\
        ip link set lan0 address $mac\n\
        got=$(busybox udhcpc -f -q -n -i lan0 -t 5 -T 1 -V PXEClient:Arch:00000:UNDI:002001 -s /bin/true 2>&1 | sed -n 's/.*lease of \\([0-9.]*\\) obtained.*/\\1/p')\n\
        [ -n \"$got\" ] && echo \"$mac $got\" >> leases.log\ndone\n";
    fs::write(&script, text).expect("a script");
    let mut command = lab.command_in(host, "bash", [&script]);
    lab.keep(
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null()),
    );
}

/// Lines of `leases.log`: MAC and address, as the clients were told.
pub(crate) fn told(lab: &Lab) -> Vec<(String, String)> {
    let text = fs::read_to_string(lab.path().join("leases.log")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(mac, address)| (mac.to_owned(), address.to_owned()))
        .collect()
}

/// Kills the server or its database at random moments under a crowd of clients.
fn every_acknowledged_lease_is_there(test: &'static str, database: bool) {
    let mut dice = Dice::new();
    let lab = Lab::new(test);
    let mut dls = Dls::start(&lab, "");
    // Room for all of them: no address is ever used twice.
    dls.cli("range add --network 10.77.0.0/16 --pool 10.77.1.0-10.77.250.250 --mode full");
    let capture = Capture::start(&lab);
    let host = lab.host("cli", None);
    crowd(&lab, &host);
    for round in 0..rounds(4, 40) {
        let before = told(&lab).len();
        wait_for("clients get leases", secs(60), || {
            (told(&lab).len() > before + 2).then_some(())
        });
        std::thread::sleep(Duration::from_millis(dice.below(700)));
        if database {
            let old = dls.postmaster();
            dls.kill_database();
            wait_for("the database is started again", secs(60), || {
                dls.postmaster().filter(|_| dls.postmaster() != old)
            });
        } else {
            dls.kill();
            dls.start_again();
        }
        eprintln!("round {round}: {} leases", told(&lab).len());
    }
    let before = told(&lab).len();
    wait_for("clients get leases after the last kill", secs(60), || {
        (told(&lab).len() > before).then_some(())
    });
    let witnessed = acks(&capture.stop());
    assert!(witnessed.len() >= before, "the capture saw all");
    // What was acknowledged while the database was not there is paid when it is.
    dls.ready();
    let mut lost = None;
    let paid = std::time::Instant::now();
    while lost.is_none() || (lost != Some(None) && paid.elapsed() < secs(30)) {
        let rows = dls.rows("select mac::text as mac, host(address) as address from leases");
        let is_there = |ack: &&crate::capture::Ack| {
            rows.contains(&serde_json::json!({"mac": ack.mac, "address": ack.address}))
        };
        lost = Some(witnessed.iter().find(|ack| !is_there(ack)));
    }
    if let Some(Some(ack)) = lost {
        panic!("{ack:?} was acknowledged and is lost");
    }
}

#[test]
fn every_acknowledged_lease_outlives_kill_9_of_the_server() {
    every_acknowledged_lease_is_there("kill_server", false);
}

#[test]
fn every_acknowledged_lease_outlives_kill_9_of_the_database() {
    every_acknowledged_lease_is_there("kill_database", true);
}

#[test]
fn a_running_machine_does_not_notice_that_the_server_was_killed() {
    let lab = Lab::new("kill_running");
    lab.ipv6_router();
    let mut dls = Dls::site(&lab, "", POOL, "lab.stay=20");
    dls.cli(&format!(
        "client add --mac {MAC} --hostname pc-01 --image testos"
    ));
    let mut machine = Board::new(Firmware::Bios, MAC).power_on(&lab);
    machine.expect("DLS-TEST-OS-UP", secs(90));
    dls.expect_status("running", secs(10));
    dls.kill();
    dls.start_again();
    let (status, message) = dls.newest_session();
    assert_eq!((status.as_str(), message.as_str()), ("running", ""));
    machine.expect_off(secs(60));
    dls.expect_status("shutdown", secs(10));
    assert_eq!(dls.rows("select id from boot_sessions").len(), 1);
}

#[test]
fn a_boot_goes_on_while_the_database_is_killed() {
    let mut dice = Dice::new();
    let lab = Lab::new("kill_database_boot");
    lab.ipv6_router();
    let dls = Dls::site(&lab, "", POOL, "lab.stay=3");
    dls.cli(&format!(
        "client add --mac {MAC} --hostname pc-01 --image testos"
    ));
    let mut machine = Board::new(Firmware::Bios, MAC).power_on(&lab);
    // Some moment between power-on and the running system, or just after its end.
    std::thread::sleep(Duration::from_millis(2000 + dice.below(8000)));
    dls.kill_database();
    machine.expect("DLS-TEST-OS-UP", secs(120));
    machine.expect_off(secs(60));
    // Where the machine was done sooner, nobody has seen yet that the database is back.
    wait_for("the database answers", secs(60), || {
        dls.has_database().then_some(())
    });
    dls.expect_status("shutdown", secs(30));
    let timeline = dls.expect_outcome(MAC, "completed", secs(10));
    timeline.assert_order(&[
        "discover",
        "script",
        "kernel_requested",
        "initrd_sent",
        "up",
        "bye",
    ]);
}

#[test]
fn a_machine_whose_kernel_was_cut_off_by_kill_9_boots_all_the_same() {
    let mut dice = Dice::new();
    let lab = Lab::new("kill_transfer");
    lab.ipv6_router();
    let mut dls = Dls::site(&lab, "", POOL, "lab.stay=2");
    dls.cli(&format!(
        "client add --mac {MAC} --hostname pc-01 --image testos"
    ));
    lab.firewall(
        "output",
        "tcp sport 8069 limit rate over 2 mbytes/second drop",
    );
    let board = Board {
        persistent: true,
        ..Board::new(Firmware::Bios, MAC)
    };
    let mut machine = board.power_on(&lab);
    dls.expect_stage(MAC, "kernel_requested", secs(60));
    std::thread::sleep(Duration::from_millis(dice.below(2000)));
    dls.kill();
    lab.open_firewall();
    dls.start_again();
    // Its script tries again; if that gives up too, the firmware starts over by itself.
    machine.expect("DLS-TEST-OS-UP", secs(150));
    machine.expect_off(secs(60));
    dls.expect_status("shutdown", secs(10));
    let rows = dls.rows("select outcome from boot_attempts order by started_at");
    assert_eq!(
        rows.last().map(|r| r["outcome"].clone()),
        Some("completed".into())
    );
    assert!(
        rows[..rows.len() - 1]
            .iter()
            .all(|r| r["outcome"] != "open"),
        "{rows:?}"
    );
}

#[test]
fn a_clean_stop_takes_the_database_with_it_and_loses_nothing() {
    let lab = Lab::new("stop");
    let mut dls = Dls::site(&lab, "", POOL, "");
    dls.cli(&format!(
        "client add --mac {MAC} --hostname pc-01 --image testos"
    ));
    assert!(dls.postmaster().is_some());
    dls.stop();
    assert!(
        dls.postmaster().is_none(),
        "the embedded database stops with the server"
    );
    dls.start_again();
    assert_eq!(dls.rows("select hostname from clients").len(), 1);
}
