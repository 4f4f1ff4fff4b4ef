//! Real ZFS under faults: `tests/guest` runs in the lab's ZFS machine, on pools that are full,
//! exported, or lose their disks.

use std::path::Path;
use std::time::Duration;

use super::guest::{Guest, Shelf};
use super::server::{build, stripped};
use crate::machine::tail;
use crate::secs;

/// The guest's tests, with the feature.
pub(super) fn program(folder: &Path) -> std::path::PathBuf {
    stripped(
        &build(&["test", "--test", "guest", "--no-run"], "test"),
        folder,
    )
}

/// Runs tests by name; what they said, which the machine's console shows on the way.
pub(super) fn tests(guest: &Guest, names: &str, more: &str, limit: Duration) -> String {
    let script = format!(
        "set -o pipefail; {more} /run/payload/guest {names} --test-threads 1 --nocapture 2>&1 \
         | tee /dev/console"
    );
    let answer = guest.try_run(&script, limit);
    let said = answer.expect("the machine is on");
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    said.out
}

/// Prints lines with these words, and holds them to be there.
pub(super) fn expect(said: &str, words: &[&str]) {
    for word in words {
        let mut lines = said.lines().filter(|line| line.contains(word)).peekable();
        assert!(lines.peek().is_some(), "`{word}` was not said:\n{said}");
        lines.for_each(|line| eprintln!("{line}"));
    }
}

#[test]
fn pools_that_are_full_away_or_broken_are_borne() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    let pools = [2 << 30, 160 << 20, 1 << 30, 1 << 30, 1 << 30];
    let shelf = Shelf::new(folder.path(), &pools, &[("guest", &program)]).last_on_scsi();
    let guest = shelf.power_on(None);
    guest.run(
        "set -e; modprobe -a virtio_scsi sd_mod; udevadm settle
        for n in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/sda ] || sleep 1; done
        make() { zpool create -O mountpoint=none $1 $2; zfs create $1/dls; }
        make labpool /dev/vdd; zfs create labpool/other
        make fullpool /dev/vde; make awaypool /dev/vdf; make hangpool /dev/vdg
        make scsipool /dev/sda",
    );
    let said = tests(
        &guest,
        "a_full_pool a_quota an_exported_pool",
        "",
        secs(900),
    );
    expect(&said, &["FULL", "QUOTA", "AWAY-GOES-ON"]);
    let said = tests(&guest, "a_disk_taken_away", "", secs(900));
    expect(&said, &["TAKEN scsipool: machine 2", "BESIDE"]);
    assert_eq!(said.matches("lost nothing").count(), 4, "{said}");
    // What hangs does not let its process end: it says how it ended, and the plug is pulled.
    let said = guest.run_within(
        "setsid /run/payload/guest a_pool_that_hangs --nocapture > /run/hangs 2>&1 < /dev/null &
        for n in $(seq 300); do grep -q '^test result' /run/hangs && break; sleep 1; done
        cat /run/hangs",
        secs(900),
    );
    expect(&said, &["HANGS create", "HANGS list", "HANGS-AND-ANSWERS"]);
    assert!(
        said.contains("test result: ok. 1 passed"),
        "{}",
        tail(&said)
    );
}
