//! Boots from disks: logins, uses, losses, ends, and coming back.

use std::net::SocketAddr;

use super::*;
use crate::boot::session::arrival::Caller;
use crate::model::{BootMethod, DiskMode, DiskProtocol};

pub(super) fn login(connection: u64) -> Evidence {
    let clone = if connection == 1 {
        CloneOrigin::New
    } else {
        CloneOrigin::Found
    };
    Evidence::DiskAttached(DiskLogin {
        connection,
        protocol: DiskProtocol::Iscsi,
        peer: SocketAddr::from((CLIENT_IP, 40_000)),
        mode: DiskMode::Ephemeral,
        clone,
        version: Some((Uuid::from_u128(0xb5), "base".to_owned())),
    })
}

pub(super) fn detached(connection: u64, read: u64, written: u64) -> Evidence {
    Evidence::DiskDetached {
        moved: DiskUse {
            connection,
            read,
            written,
        },
        cause: "the connection ended",
    }
}

fn disk_context(method: BootMethod, phone_home: PhoneHome) -> Context {
    Context {
        boot_method: Some(method),
        ..context(phone_home)
    }
}

/// A boot with its script at second 1, then this evidence at those seconds.
fn disk_boot(method: BootMethod, phone_home: PhoneHome, life: &[(i64, Evidence)]) -> (Boot, Rows) {
    let mut rows = Rows::default();
    let of = |second, what| Observation {
        context: disk_context(method, phone_home),
        ..seen(second, what)
    };
    let first = of(0, Evidence::Discover(Speaker::Rom));
    let (mut boot, effects) =
        Boot::start(Uuid::from_u128(9), Uuid::nil(), Rules::default(), &first);
    rows.write(effects);
    rows.write(boot.step(&of(1, Evidence::Script { unready: None })));
    for (second, what) in life {
        rows.write(boot.tick(at(*second)));
        rows.write(boot.step(&of(*second, what.clone())));
    }
    (boot, rows)
}

fn loaded() -> Vec<(i64, Evidence)> {
    vec![
        (2, started(kernel())),
        (3, sent(kernel())),
        (4, started(initrd())),
        (5, sent(initrd())),
        (9, acknowledged(Speaker::Os, false)),
    ]
}

/// The second at which it ends or starts to run by itself, with the reason.
fn fate(boot: &mut Boot, rows: &mut Rows, from: i64) -> (i64, String) {
    for second in from..from + 5_000 {
        let effects = boot.tick(at(second));
        let happened = !effects.is_empty();
        rows.write(effects);
        if happened {
            let reason = boot.attempt().reason.clone().unwrap_or_default();
            return (second, reason);
        }
    }
    (-1, String::new())
}

#[test]
fn a_san_boot_stage_by_stage() {
    let life = [
        (2, login(1)),
        (3, Evidence::DiskRead { connection: 1 }),
        (30, login(2)),
        (31, detached(1, 50_000, 0)),
        (32, Evidence::DiskRead { connection: 2 }),
        (35, Evidence::DiskWritten { connection: 2 }),
        (60, Evidence::Up),
    ];
    let (mut boot, mut rows) = disk_boot(BootMethod::San, PhoneHome::Expected, &life);
    let stages: Vec<&str> = rows.events.iter().map(|e| e.stage.as_str()).collect();
    assert_eq!(
        stages.join(","),
        "discover,script,disk_attached,disk_read,disk_attached,disk_detached,disk_read,disk_written,up"
    );
    let attached = &rows.events[2].detail;
    assert_eq!(attached["protocol"], "iscsi");
    assert_eq!(attached["clone"], "new");
    assert_eq!(attached["mode"], "ephemeral");
    assert_eq!(attached["peer"], "10.0.0.50:40000");
    assert_eq!(rows.events[1].detail["disk"], "san");
    assert_eq!(boot.attempt().disk_bytes_read, 50_000);

    // Each minute it is told what has been moved.
    let moved = DiskUse {
        connection: 2,
        read: 7,
        written: 9,
    };
    rows.write(boot.step(&seen(100, Evidence::DiskUsed(moved))));
    assert_eq!(boot.attempt().disk_bytes_read, 50_007);
    assert_eq!(boot.attempt().disk_bytes_written, 9);
    // A disk that is open keeps it alive without a beat.
    assert!(boot.tick(at(50_000)).is_empty());
    rows.write(boot.step(&seen(50_000, Evidence::Bye(None))));
    assert_eq!(boot.attempt().outcome, AttemptOutcome::Completed);
    assert!(boot.holds_disk() && !boot.may_attach(), "it said bye");
    // What it moved at last is written all the same.
    rows.write(boot.step(&seen(50_002, detached(2, 1_000, 2_000))));
    assert!(!boot.holds_disk());
    let stored = &rows.attempts[&boot.attempt().id];
    assert_eq!(
        (stored.disk_bytes_read, stored.disk_bytes_written),
        (51_000, 2_000)
    );
    assert_eq!(rows.last().stage, Stage::DiskDetached);
    assert_eq!(rows.last().detail["late"], true);
}

#[test]
fn an_image_without_a_report_runs_once_its_system_has_the_disk() {
    // san: the loader's login is none of the system.
    let (boot, _) = disk_boot(BootMethod::San, PhoneHome::Absent, &[(2, login(1))]);
    assert_eq!(session(&boot).status, SessionStatus::Booting);
    let life = [(2, login(1)), (20, login(2))];
    let (mut boot, mut rows) = disk_boot(BootMethod::San, PhoneHome::Absent, &life);
    assert_eq!(session(&boot).status, SessionStatus::Running);
    assert_eq!(rows.last().detail["by"], "disk");
    // It stays as long as the disk is open, and ends after it.
    assert_eq!(fate(&mut boot, &mut rows, 20).0, -1);
    rows.write(boot.step(&seen(9_000, detached(1, 0, 0))));
    assert_eq!(
        fate(&mut boot, &mut rows, 9_000).0,
        -1,
        "the loader's is not the last"
    );
    rows.write(boot.step(&seen(20_000, detached(2, 0, 0))));
    let (second, reason) = fate(&mut boot, &mut rows, 20_000);
    assert_eq!(second, 20_120);
    assert!(
        reason.contains("not attached again within 120 s"),
        "{reason}"
    );
    assert_eq!(boot.attempt().outcome, AttemptOutcome::Completed);
    assert_eq!(rows.last().detail["inferred"], true);
    assert!(boot.may_attach(), "it may only have been cut off");

    // iscsi and nbd: the first login is the system's; before it nothing runs, whatever DHCP says.
    for method in [BootMethod::Iscsi, BootMethod::Nbd] {
        let mut life = loaded();
        let (mut boot, mut rows) = disk_boot(method, PhoneHome::Absent, &life);
        assert_eq!(session(&boot).status, SessionStatus::Booting);
        let (second, reason) = fate(&mut boot, &mut rows, 9);
        assert_eq!(second, 309);
        assert!(reason.contains("no login to the disk followed"), "{reason}");
        life.push((12, login(1)));
        let (boot, _) = disk_boot(method, PhoneHome::Absent, &life);
        assert_eq!(session(&boot).status, SessionStatus::Running);
    }
    // A system that reads through its loader only.
    let (mut boot, mut rows) = disk_boot(BootMethod::San, PhoneHome::Absent, &[(2, login(1))]);
    assert_eq!(fate(&mut boot, &mut rows, 2).0, 62);
    assert_eq!(session(&boot).status, SessionStatus::Running);
}

#[test]
fn an_image_that_may_report_gets_its_time() {
    let read = Evidence::DiskRead { connection: 1 };
    let life = [(2, login(1)), (3, read), (20, login(2))];
    let (mut boot, mut rows) = disk_boot(BootMethod::San, PhoneHome::Auto, &life);
    assert_eq!(session(&boot).status, SessionStatus::Booting);
    assert_eq!(fate(&mut boot, &mut rows, 20).0, 320);
    assert_eq!(session(&boot).status, SessionStatus::Running);
    assert_eq!(session(&boot).boot_time_seconds, Some(20));

    let (mut boot, mut rows) = disk_boot(BootMethod::San, PhoneHome::Expected, &life);
    let (second, reason) = fate(&mut boot, &mut rows, 20);
    assert_eq!(second, 320);
    assert!(reason.contains("never reported up"), "{reason}");
    assert!(boot.may_attach(), "it may run all the same");
}

#[test]
fn a_disk_that_is_never_asked_for_or_refused_is_the_cause() {
    let (mut boot, mut rows) = disk_boot(BootMethod::San, PhoneHome::Auto, &[]);
    let (second, reason) = fate(&mut boot, &mut rows, 1);
    assert_eq!(second, 61);
    assert_eq!(
        reason,
        "at stage script: the script was delivered, but no login to the disk followed within 60 s: is the iSCSI port of 10.0.0.1 blocked by a firewall, or can the machine's iPXE not do iSCSI?"
    );
    let refused = Evidence::DiskRefused {
        reason: "store",
        sentence: "no space is left".to_owned(),
    };
    let (mut boot, mut rows) = disk_boot(BootMethod::San, PhoneHome::Auto, &[(2, refused)]);
    assert_eq!(rows.last().stage, Stage::Refused);
    assert_eq!(rows.last().detail["reason"], "disk_store");
    let (_, reason) = fate(&mut boot, &mut rows, 2);
    assert_eq!(
        reason,
        "at stage script: its disk was refused: no space is left"
    );
    assert_eq!(boot.attempt().outcome, AttemptOutcome::Failed);
}

#[test]
fn a_disk_that_is_lost_while_booting_is_the_cause() {
    // The loader's connection is no loss: the kernel starts and logs in anew.
    let life = [(2, login(1)), (10, detached(1, 1, 0)), (80, login(2))];
    let (boot, _) = disk_boot(BootMethod::San, PhoneHome::Auto, &life);
    assert!(boot.is_open());
    let life = [(2, login(1)), (20, login(2)), (30, detached(2, 1, 0))];
    let (mut boot, mut rows) = disk_boot(BootMethod::San, PhoneHome::Auto, &life);
    rows.write(boot.step(&seen(31, detached(1, 1, 0))));
    let (second, reason) = fate(&mut boot, &mut rows, 31);
    assert_eq!(second, 151);
    assert!(reason.contains("lost while it booted"), "{reason}");
    assert_eq!(boot.attempt().outcome, AttemptOutcome::Failed);
}

#[test]
fn a_running_system_that_reports_and_lost_its_disk() {
    let life = [(2, login(1)), (20, login(2)), (40, Evidence::Up)];
    let (mut boot, mut rows) = disk_boot(BootMethod::San, PhoneHome::Auto, &life);
    assert!(boot.tick(at(5_000)).is_empty(), "no beat, but its disk");
    rows.write(boot.step(&seen(5_000, detached(2, 0, 0))));
    rows.write(boot.step(&seen(5_001, detached(1, 0, 0))));
    // It comes back in time.
    rows.write(boot.step(&seen(5_100, login(3))));
    assert!(boot.tick(at(9_000)).is_empty());
    rows.write(boot.step(&seen(9_000, detached(3, 0, 0))));
    let (second, reason) = fate(&mut boot, &mut rows, 9_000);
    assert_eq!(second, 9_120);
    assert!(reason.contains("contact lost"), "{reason}");
    // Too late for its timeline, not for its disk.
    assert!(boot.may_attach());
    rows.write(boot.step(&seen(9_500, login(4))));
    assert!(boot.holds_disk());
    assert_eq!(rows.last().detail["late"], true);
    assert_eq!(boot.attempt().outcome, AttemptOutcome::Failed);
}

#[test]
fn who_may_come_back_to_its_disk() {
    let life = [(2, login(1))];
    let (mut boot, _) = disk_boot(BootMethod::San, PhoneHome::Auto, &life);
    assert!(boot.may_attach());
    boot.restart(at(10));
    assert!(!boot.may_attach(), "its machine has begun anew");
    let (boot, _) = boot_to(5, PhoneHome::Auto);
    assert!(!boot.may_attach(), "no script, no disk");
}

#[test]
fn recalled_it_goes_on_with_its_disk() {
    let life = [
        (2, login(1)),
        (3, detached(1, 5, 6)),
        (20, login(2)),
        (40, Evidence::Up),
    ];
    let (boot, rows) = disk_boot(BootMethod::San, PhoneHome::Auto, &life);
    let now = at(10_000);
    let row = boot.attempt().clone();
    let session = rows.sessions.values().next().cloned();
    let again = Boot::recall(Rules::default(), row, &rows.events, session, now);
    let mut again = again.unwrap();
    assert_eq!(again.disk_mode(), Some(DiskMode::Ephemeral));
    assert!(again.may_attach() && !again.holds_disk());
    assert_eq!(again.attempt().disk_bytes_read, 5);
    // The machine has time to log in again, and its bytes go on.
    assert!(again.tick(now + TimeDelta::seconds(119)).is_empty());
    again.step(&Observation {
        at: now,
        ..seen(0, login(1))
    });
    assert!(again.tick(now + TimeDelta::seconds(10_000)).is_empty());
    again.step(&Observation {
        at: now,
        ..seen(0, detached(1, 5, 6))
    });
    assert_eq!(again.attempt().disk_bytes_read, 10);
    assert!(!again.tick(now + TimeDelta::seconds(20_000)).is_empty());
}

#[test]
fn a_script_that_is_asked_for_again_forgets_the_last_login() {
    let script = Evidence::Script { unready: None };
    let life = [
        (2, login(1)),
        (5, detached(1, 0, 0)),
        (16, script.clone()),
        (17, login(2)),
    ];
    let (boot, _) = disk_boot(BootMethod::San, PhoneHome::Absent, &life);
    assert_eq!(
        session(&boot).status,
        SessionStatus::Booting,
        "both were the loader's"
    );
}

#[test]
fn a_machine_is_turned_away_in_words() {
    let (mut boot, mut rows) = disk_boot(BootMethod::San, PhoneHome::Auto, &[(2, login(1))]);
    let newcomer = seen(9, Evidence::Discover(Speaker::Rom));
    rows.write(boot.turn_away(&newcomer, TurnedAway::DiskInUse));
    assert_eq!(rows.last().stage, Stage::Refused);
    assert_eq!(rows.last().detail["reason"], "disk_in_use");
    assert!(boot.is_open());
}

/// No loader writes: one that calls after a write is of a machine that was reset (or of
/// another one), and an ephemeral disk must not be found again.
#[test]
fn a_loader_that_calls_after_a_write_begins_anew() {
    let call = Caller {
        speaker: Speaker::Ipxe,
        http: false,
        smbios_uuid: None,
    };
    let life = [
        (2, login(1)),
        (3, Evidence::DiskRead { connection: 1 }),
        (30, login(2)),
        (35, Evidence::DiskWritten { connection: 2 }),
    ];
    let (read_only, _) = disk_boot(BootMethod::San, PhoneHome::Auto, &life[..3]);
    let standing = read_only.standing(at(36));
    assert_eq!(arrival(Some(&standing), call), Arrival::Join);
    // At the first write already, whatever its bytes are counted as.
    let (wrote, rows) = disk_boot(BootMethod::San, PhoneHome::Auto, &life);
    let standing = wrote.standing(at(36));
    assert_eq!(arrival(Some(&standing), call), Arrival::Restart);

    // The same after a restart of the server.
    let (row, session) = (wrote.attempt().clone(), wrote.session().cloned());
    let again = Boot::recall(Rules::default(), row, &rows.events, session, at(40)).unwrap();
    let standing = again.standing(at(41));
    assert_eq!(arrival(Some(&standing), call), Arrival::Restart);
}
