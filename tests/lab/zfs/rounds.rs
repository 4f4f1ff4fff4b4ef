//! Kills at any moment: of the work alone (kill -9), and of its whole machine. After each an
//! independent script (`tests/lab/zfs/audit`) compares what ZFS lists with a ledger of what was
//! acknowledged, once a new start has mended the rest.
//!
//! A power cut is what kill -9 of QEMU leaves: the pool's disk as it is in this machine's files at
//! that moment. So a machine at work is stopped at a random moment (SIGSTOP: not an instruction
//! more is done), its disk copied, and it goes on; the last time it is killed. All copies are
//! then looked at in one other machine.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::faults::program;
use super::guest::{Guest, Shelf};
use crate::crashes::{Dice, rounds};
use crate::net::finish;
use crate::{secs, wait_for};

const AUDIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/zfs/audit");
/// Disks of one machine.
const AT_ONCE: usize = 16;

fn shelf(
    folder: &Path,
    pools: usize,
    program: &Path,
    ledgers: &[(String, std::path::PathBuf)],
) -> Shelf {
    let mut files: Vec<(&str, &Path)> = vec![("guest", program), ("audit", Path::new(AUDIT))];
    files.extend(
        ledgers
            .iter()
            .map(|(name, path)| (name.as_str(), path.as_path())),
    );
    fs::create_dir_all(folder).expect("a folder");
    Shelf::new(folder, &vec![2 << 30; pools], &files)
}

const POOL: &str = "zpool create -O mountpoint=none labpool /dev/vdd && zfs create labpool/rounds";

/// Starts the work; it says its ledger to a file of the guest's, or to its console.
fn work(seed: u64, first: u32, ledger: &str) -> String {
    format!(
        "DLS_DATASET=labpool/rounds DLS_SEED={seed} DLS_FIRST={first} DLS_LEDGER={ledger} \
         setsid /run/payload/guest rounds::work --nocapture > /run/work 2>&1 < /dev/null &"
    )
}

const MEND: &str = "DLS_DATASET=labpool/rounds /run/payload/guest rounds::mend --exact > /run/mend 2>&1 \
    || { cat /run/mend; exit 1; }";

fn verdict(guest: &Guest, script: &str) -> String {
    let answer = guest.try_run(script, secs(240)).expect("the machine is on");
    assert_eq!(answer.code, 0, "{}{}", answer.out, answer.err);
    assert!(answer.out.contains("RIGHT: "), "{}", answer.out);
    answer.out.trim().to_owned()
}

#[test]
fn work_that_is_killed_at_any_moment_leaves_nothing_half_done() {
    let mut dice = Dice::new();
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    let guest = shelf(&folder.path().join("shelf"), 1, &program, &[]).power_on(None);
    guest.run(POOL);
    let mut before = "-";
    for round in 0..rounds(12, 200) {
        // So many steps are done, and then some part of the next; the first time there is
        // something to work on afterwards.
        let (seed, rest) = (dice.below(1 << 40), dice.below(1500));
        let steps = if round == 0 { 12 } else { dice.below(4) };
        let script = format!(
            "rm -f /run/ledger; {}
            for n in $(seq 600); do grep -q working /run/ledger 2>/dev/null && break; sleep 0.05; done
            for n in $(seq 300); do [ \"$(grep -c 'L A' /run/ledger)\" -ge {steps} ] && break; sleep 0.1; done
            sleep {}.{:03}
            pkill -9 -x guest; while pgrep -x guest > /dev/null; do sleep 0.02; done
            ! grep -q FAILED /run/ledger || cat /run/work
            {MEND}
            /run/payload/audit list labpool/rounds > /run/after || exit 1
            /run/payload/audit judge {before} /run/ledger /run/after || {{ cat /run/ledger; zfs list -t all -o name,origin,dls:size,dls:origin,dls:intent -r labpool/rounds; exit 1; }}
            mv /run/after.model /run/before",
            work(seed, round * 10_000, "/run/ledger"),
            rest / 1000,
            rest % 1000,
        );
        let said = verdict(&guest, &script);
        before = "/run/before";
        eprintln!("kill {round}: {said}");
    }
    guest.run("zpool scrub -w labpool; zpool status -x | grep -q 'all pools are healthy'");
}

/// The lines of a ledger on a console.
pub(super) fn ledger(console: &str, to: &Path) -> usize {
    let lines: Vec<&str> = console.lines().filter(|l| l.contains("L ")).collect();
    fs::write(to, lines.join("\n") + "\n").expect("a ledger");
    lines.iter().filter(|line| line.contains("L A ")).count()
}

#[test]
fn a_machine_whose_power_is_cut_at_any_moment_has_lost_nothing() {
    let mut dice = Dice::new();
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    let all = usize::try_from(rounds(15, 260)).expect("a small number");
    for (done, here) in batches(all, AT_ONCE) {
        let place = folder.path().join(format!("batch-{done}"));
        let images = cuts(&mut dice, &place.join("work"), &program, here);
        look(&place.join("look"), &program, &images, done);
        fs::remove_dir_all(&place).expect("rm");
    }
}

/// So many by so many: what was done before, and how many are next.
pub(super) fn batches(all: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..all)
        .step_by(most)
        .map(move |done| (done, (all - done).min(most)))
}

/// Lets a machine work and takes its disk and its ledger at so many moments.
fn cuts(
    dice: &mut Dice,
    place: &Path,
    program: &Path,
    count: usize,
) -> Vec<(std::path::PathBuf, std::path::PathBuf)> {
    let mut guest = shelf(place, 1, program, &[]).power_on(None);
    guest.run(&format!("{POOL} && zpool sync labpool"));
    guest.run(&work(dice.below(1 << 40), 0, "/dev/console"));
    wait_for("the work begins", secs(60), || {
        guest.console().contains("L A ").then_some(())
    });
    let process = Pid::from_raw(guest.process().cast_signed());
    let mut images = Vec::new();
    for n in 0..count {
        std::thread::sleep(Duration::from_millis(200 + dice.below(3000)));
        if n + 1 == count {
            guest.cut_power();
        } else {
            kill(process, Signal::SIGSTOP).expect("QEMU is there");
        }
        let (image, lines) = (
            place.join(format!("cut-{n}.img")),
            place.join(format!("ledger-{n}")),
        );
        finish(
            Command::new("cp")
                .arg("--sparse=always")
                .arg(place.join("pool0.img"))
                .arg(&image),
        );
        ledger(&guest.console(), &lines);
        if n + 1 < count {
            kill(process, Signal::SIGCONT).expect("QEMU is there");
        }
        images.push((image, lines));
    }
    images
}

/// Imports each disk in a machine of its own, mends and judges it.
fn look(
    place: &Path,
    program: &Path,
    images: &[(std::path::PathBuf, std::path::PathBuf)],
    done: usize,
) {
    let ledgers: Vec<_> = images
        .iter()
        .enumerate()
        .map(|(n, (_, ledger))| (format!("ledger-{n}"), ledger.clone()))
        .collect();
    let shelf = shelf(place, images.len(), program, &ledgers);
    for (n, (image, _)) in images.iter().enumerate() {
        fs::rename(image, place.join(format!("pool{n}.img"))).expect("mv");
    }
    let guest = shelf.power_on(None);
    for n in 0..images.len() {
        let disk = char::from(b'd' + u8::try_from(n).expect("a small number"));
        let script = format!(
            "zpool import -f -d /dev/vd{disk}1 labpool || exit 1
            udevadm settle -t 60
            {MEND}
            /run/payload/audit list labpool/rounds > /run/after || exit 1
            /run/payload/audit judge - /run/payload/ledger-{n} /run/after || {{ cat /run/payload/ledger-{n}; zfs list -t all -o name,origin,dls:size,dls:origin,dls:intent -r labpool/rounds; exit 1; }}
            zpool export labpool || {{ sleep 3; zpool export labpool; }}"
        );
        let said = verdict(&guest, &script);
        eprintln!("power cut {}: {said}", done + n);
    }
}
