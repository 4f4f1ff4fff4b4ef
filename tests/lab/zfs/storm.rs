//! Real ZFS in a crowd: `tests/guest` makes and opens two hundred clones at once in the lab's ZFS
//! machine (or as many as `CLONES` says).

use super::faults::{expect, program, tests};
use super::guest::Shelf;
use crate::secs;

#[test]
fn clones_made_and_opened_at_once_are_nobody_elses() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    let shelf = Shelf::new(folder.path(), &[4 << 30], &[("guest", &program)]);
    let guest = shelf.power_on(None);
    guest.run("set -e; zpool create -O mountpoint=none labpool /dev/vdd; zfs create labpool/crowd");
    let clones = std::env::var("CLONES").unwrap_or_else(|_| "200".to_owned());
    // What the kernel said of its disks is worth more than any guess.
    let before = format!("ulimit -n 65536; trap 'dmesg | tail -n 40' EXIT; CLONES={clones}");
    let said = tests(&guest, "clones_at_once", &before, secs(1400));
    expect(&said, &["STORM"]);
    let right = format!("no wrong disk in {clones};");
    assert_eq!(said.matches(&right).count(), 2, "{said}");
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    eprintln!("(this machine's load: {})", load.trim());
}
