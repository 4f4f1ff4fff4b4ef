//! Every induced failure ends in the catalog as `error` with the stage it stopped at and
//! its cause in words; what can be mended is mended without touching the machine.

use crate::machine::{Board, Firmware};
use crate::net::Lab;
use crate::product::Dls;
use crate::secs;

const MAC: &str = "52:54:00:77:00:01";
const POOL: &str = "--pool 10.77.0.50-10.77.0.99 --mode full";
/// Short patience, so that a stall shows within the test.
const IMPATIENT: &str = "stall_seconds = 8\nos_seconds = 90";
/// The same with a system that must report at once.
const VERY_IMPATIENT: &str = "stall_seconds = 8\nos_seconds = 15";

const fn bios() -> Board {
    Board::new(Firmware::Bios, MAC)
}

fn register(dls: &Dls<'_>) {
    dls.cli(&format!(
        "client add --mac {MAC} --hostname pc-01 --image testos"
    ));
}

/// The failed boot's last good stage and reason, and the session's message, name these words.
fn assert_failed(dls: &Dls<'_>, last: &str, words: &[&str]) {
    let timeline = dls.expect_outcome(MAC, "failed", secs(60));
    let reason = timeline.text("reason");
    let (status, message) = dls.newest_session();
    assert_eq!(status, "error", "{timeline:#?}");
    for word in words {
        assert!(reason.contains(word), "`{word}` in the reason: {reason}");
        assert!(
            message.contains(word),
            "`{word}` in error_message: {message}"
        );
    }
    let stages = timeline.stages();
    assert!(stages.contains(&"error"), "{stages:?}");
    assert!(stages.contains(&last), "`{last}` in {stages:?}");
}

#[test]
fn loader_missing() {
    let lab = Lab::new("loader_missing");
    lab.ipv6_router();
    let empty = lab.path().join("loaders");
    std::fs::create_dir(&empty).expect("a directory");
    let boot = format!("loader_dir = \"{}\"\n{IMPATIENT}", empty.display());
    let range = format!("{POOL} --always-chainload true");
    let dls = Dls::site(&lab, &boot, &range, "");
    register(&dls);
    let _machine = bios().power_on(&lab);
    let directory = empty.display().to_string();
    assert_failed(&dls, "discover", &["undionly.kpxe", &directory]);
    // The machine itself got its address all the same.
    assert!(!dls.rows("select * from leases").is_empty());
}

#[test]
fn http_blocked() {
    let lab = Lab::new("http_blocked");
    lab.ipv6_router();
    let dls = Dls::site(&lab, IMPATIENT, POOL, "");
    register(&dls);
    lab.firewall("input", "tcp dport 8069 drop");
    let _machine = bios().power_on(&lab);
    assert_failed(&dls, "discover", &["script", "8069"]);
}

#[test]
fn no_image_then_one_is_assigned() {
    let lab = Lab::new("no_image");
    lab.ipv6_router();
    let dls = Dls::site(&lab, IMPATIENT, POOL, "lab.stay=1");
    dls.cli(&format!("client add --mac {MAC} --hostname pc-01"));
    let mut machine = bios().power_on(&lab);
    let timeline = dls.expect_stage(MAC, "waiting", secs(60));
    let detail = timeline.row("waiting").map(|row| row["detail"].to_string());
    assert!(
        detail.as_deref().is_some_and(|d| d.contains("no_image")),
        "{detail:?}"
    );
    // Longer than any stall: waiting is no failure.
    std::thread::sleep(secs(10));
    assert_eq!(dls.timeline(MAC).text("outcome"), "open");
    // It is looking again every second: no one has to touch the machine.
    dls.cli("client set pc-01 --image testos");
    machine.expect("DLS-TEST-OS-UP", secs(90));
    machine.expect_off(secs(60));
    dls.expect_status("shutdown", secs(10));
    dls.expect_outcome(MAC, "completed", secs(10))
        .assert_order(&[
            "discover",
            "waiting",
            "script",
            "kernel_requested",
            "up",
            "bye",
        ]);
}

#[test]
fn an_unknown_machine_is_registered_and_waits_for_an_operator() {
    let lab = Lab::new("unknown");
    lab.ipv6_router();
    let dls = Dls::site(&lab, IMPATIENT, POOL, "lab.stay=1");
    let mut machine = bios().power_on(&lab);
    let timeline = dls.expect_stage(MAC, "waiting", secs(60));
    assert!(
        timeline
            .row("waiting")
            .is_some_and(|r| r["detail"].to_string().contains("disabled"))
    );
    let rows = dls.rows("select mac_address::text as mac, enabled from clients");
    assert_eq!(rows, [serde_json::json!({"mac": MAC, "enabled": false})]);
    // An operator's psql is enough.
    dls.psql(&format!(
        "update clients set enabled = true, assigned_image_id = (select id from images \
         where name = 'testos') where mac_address = '{MAC}'"
    ));
    machine.expect("DLS-TEST-OS-UP", secs(90));
    machine.expect_off(secs(60));
    dls.expect_status("shutdown", secs(10));
}

#[test]
fn unplugged_while_it_loads_the_kernel() {
    let lab = Lab::new("unplugged");
    lab.ipv6_router();
    let dls = Dls::site(&lab, IMPATIENT, POOL, "");
    register(&dls);
    // The kernel's 14 MB take half a minute: time enough to stumble over the cable.
    lab.firewall(
        "output",
        "tcp sport 8069 limit rate over 400 kbytes/second drop",
    );
    let mut machine = bios().power_on(&lab);
    dls.expect_stage(MAC, "kernel_requested", secs(60));
    machine.pull_cable(&lab);
    machine.cut_power();
    assert_failed(&dls, "kernel_requested", &["kernel"]);
    assert!(dls.timeline(MAC).at("kernel_sent").is_none());
    assert!(dls.timeline(MAC).at("answers").is_none(), "it is off");
}

#[test]
fn panic_in_the_initrd() {
    let lab = Lab::new("panic");
    lab.ipv6_router();
    let dls = Dls::site(&lab, VERY_IMPATIENT, POOL, "lab.panic=1");
    dls.psql("update images set phone_home = 'expected'");
    register(&dls);
    let mut machine = bios().power_on(&lab);
    machine.expect("Kernel panic", secs(90));
    assert_failed(&dls, "initrd_sent", &["up"]);
}

#[test]
fn a_running_machine_that_vanishes() {
    let lab = Lab::new("vanishes");
    lab.ipv6_router();
    let dls = Dls::site(&lab, IMPATIENT, POOL, "lab.stay=600");
    register(&dls);
    let mut machine = bios().power_on(&lab);
    machine.expect("DLS-TEST-OS-UP", secs(90));
    dls.expect_status("running", secs(10));
    machine.cut_power();
    // Three beats of 30 s must be missed before it is given up.
    let message = dls.expect_status("error", secs(130));
    assert!(message.contains("contact lost"), "{message}");
}

#[test]
fn a_machine_reset_while_it_runs_starts_anew() {
    let lab = Lab::new("reset");
    lab.ipv6_router();
    let dls = Dls::site(&lab, "", POOL, "lab.stay=600");
    register(&dls);
    let mut machine = bios().power_on(&lab);
    machine.expect("DLS-TEST-OS-UP", secs(90));
    machine.cut_power();
    let mut again = bios().power_on(&lab);
    again.expect("DLS-TEST-OS-UP", secs(90));
    let rows = dls.rows("select status from boot_sessions order by started_at");
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert_ne!(rows[0]["status"], "running");
    dls.expect_status("running", secs(10));
}
