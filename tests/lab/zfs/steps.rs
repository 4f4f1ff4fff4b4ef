//! The real server with its disks on real ZFS, and a real PostgreSQL: killed at every named step
//! of everything that it does in several, and its word about damage that was done by hand.
//! `tests/guest/{steps,damage}.rs` run in the lab's ZFS machine; nothing is rebooted for a step.

use std::path::Path;

use super::faults::{expect, program, tests};
use super::guest::{Guest, Shelf};
use super::server::{build, rights, stripped};
use crate::secs;

/// What the tests need beside it; before their program.
const WITH: &str = "PATH=$(echo /usr/lib/postgresql/*/bin):$PATH DLS_PROGRAM=/run/payload/dls \
                    DLS_AUDIT=/run/payload/audit.py";

/// A machine with a pool, and with all that the tests in it need.
fn machine(folder: &Path) -> Guest {
    let tests_there = program(folder);
    let place = folder.join("dls");
    std::fs::create_dir(&place).expect("a folder");
    let server = stripped(
        &build(&["build", "--example", "dls-zfs"], "example"),
        &place,
    );
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shelf = Shelf::new(
        folder,
        &[4 << 30],
        &[
            ("guest", &tests_there),
            ("dls", &server),
            ("audit.py", &here.join("tests/it/audit.py")),
            (
                "etc/udev/rules.d/90-dls-zvol.rules",
                &here.join("deploy/udev/90-dls-zvol.rules"),
            ),
        ],
    );
    let guest = shelf.power_on(None);
    guest.run(&format!(
        "zpool create -O mountpoint=none labpool /dev/vdd && {}",
        rights("labpool")
    ));
    guest
}

#[test]
fn killed_at_every_step_on_zfs_it_is_mended() {
    let folder = tempfile::tempdir().expect("a folder");
    let guest = machine(folder.path());
    let said = tests(&guest, "steps::", WITH, secs(5400));
    expect(&said, &["STEP ", "AUDIT", "STEPS"]);
    guest.run("zpool scrub -w labpool; zpool status -x | grep -q 'all pools are healthy'");
}

#[test]
fn damage_done_by_hand_is_named_and_repaired() {
    let folder = tempfile::tempdir().expect("a folder");
    let guest = machine(folder.path());
    let said = tests(&guest, "damage::", WITH, secs(5400));
    expect(&said, &["DAMAGE"]);
    assert_eq!(said.matches("DAMAGE").count(), 5, "{said}");
}
