//! The power of a machine with the whole of `dls` in it cut at any moment of its work: the pool's
//! disk and that with its state (the database's files, the journal of intentions) are copied while
//! the machine is stopped (SIGSTOP: not an instruction more is done), and it goes on. Each pair of
//! copies is then given to one other machine, where the server starts and mends; afterwards
//! `tests/it/audit.py` compares ZFS with the rows, and `acknowledged` the rows with the ledger.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::faults::program;
use super::guest::{Guest, Shelf};
use super::rounds::{batches, ledger};
use super::server::{DATASET, build, rights, stripped};
use crate::crashes::{Dice, rounds};
use crate::net::finish;
use crate::{secs, wait_for};

/// Pairs of disks of one machine.
const AT_ONCE: usize = 10;

/// What the machines bring along.
struct Things {
    folder: PathBuf,
    tests: PathBuf,
    server: PathBuf,
}

impl Things {
    fn new(folder: &Path) -> Self {
        let place = folder.join("dls");
        fs::create_dir(&place).expect("a folder");
        let things = Self {
            folder: folder.to_owned(),
            tests: program(folder),
            server: stripped(
                &build(&["build", "--example", "dls-zfs"], "example"),
                &place,
            ),
        };
        let text = format!(
            "state_dir = \"/var/lib/dls\"\n[storage]\nbackend = \"zfs\"\ndataset = \"{DATASET}\"\n"
        );
        fs::write(folder.join("dls.toml"), text).expect("dls.toml");
        things
    }

    fn shelf(&self, place: &Path, disks: usize, ledgers: &[(String, PathBuf)]) -> Shelf {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let fixed = [
            ("guest", self.tests.clone()),
            ("dls", self.server.clone()),
            ("audit.py", here.join("tests/it/audit.py")),
            ("acknowledged", here.join("tests/lab/zfs/acknowledged")),
            ("etc/dls/dls.toml", self.folder.join("dls.toml")),
            (
                "etc/udev/rules.d/90-dls-zvol.rules",
                here.join("deploy/udev/90-dls-zvol.rules"),
            ),
        ];
        let mut files: Vec<(&str, &Path)> = Vec::new();
        files.extend(fixed.iter().map(|(name, path)| (*name, path.as_path())));
        files.extend(
            ledgers
                .iter()
                .map(|(name, path)| (name.as_str(), path.as_path())),
        );
        fs::create_dir_all(place).expect("a folder");
        Shelf::new(place, &vec![2 << 30; disks], &files).one_processor()
    }
}

/// Starts the server and waits until it is ready.
const SERVE: &str = "setsid /run/payload/dls --config /etc/dls/dls.toml serve >> /var/lib/dls/dls.log 2>&1 < /dev/null &
    for n in $(seq 600); do
        pgrep -x dls > /dev/null || { tail -n 20 /var/lib/dls/dls.log; exit 1; }
        exec 4<> /dev/tcp/127.0.0.1/8080 2> /dev/null && {
            printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&4; grep -q '\"degraded\":false' <&4 && break; exec 4>&-; }
        sleep 0.2
    done
    [ \"$n\" -lt 600 ] || { tail -n 20 /var/lib/dls/dls.log; exit 1; }";

fn answered(guest: &Guest) -> usize {
    guest.console().matches("L A ").count()
}

/// A machine whose server is at work; gives what its disks and its ledger were at so many moments.
fn cuts(dice: &mut Dice, place: &Path, things: &Things, count: usize) -> Vec<PathBuf> {
    let mut guest = things.shelf(place, 1, &[]).power_on(None);
    guest.run_within(
        &format!(
            "set -e; zpool create -O mountpoint=none labpool /dev/vdd; zfs create {DATASET}; {}
            {SERVE}
            pkill -9 -x dls; while pgrep -x dls > /dev/null; do sleep 0.05; done
            DLS_STOCK={DATASET} /run/payload/guest cuts::stock --exact > /run/stock 2>&1 || {{ cat /run/stock; exit 1; }}
            {SERVE}
            zpool sync labpool; sync",
            rights(DATASET)
        ),
        secs(400),
    );
    guest.run(&format!(
        "DLS_CUTS=1 DLS_SEED={} DLS_LEDGER=/dev/console \
         setsid /run/payload/guest cuts::work --exact --nocapture > /run/work 2>&1 < /dev/null &",
        dice.below(1 << 40)
    ));
    wait_for("the work begins", secs(60), || {
        guest.console().contains("L A ").then_some(())
    });
    let process = Pid::from_raw(guest.process().cast_signed());
    let mut moments = Vec::new();
    for n in 0..count {
        // So many more are answered, and then some part of the next is done. What takes long (a
        // machine beside others is slow) is cut all the same.
        let goal = answered(&guest) + usize::try_from(dice.below(3)).expect("few");
        let patience = Instant::now();
        while answered(&guest) < goal && patience.elapsed() < secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(dice.below(2500)));
        if n + 1 == count {
            guest.cut_power();
        } else {
            kill(process, Signal::SIGSTOP).expect("QEMU is there");
        }
        let moment = place.join(format!("cut-{n}"));
        fs::create_dir(&moment).expect("a folder");
        for disk in ["pool0.img", "state.img"] {
            let mut copy = Command::new("cp");
            copy.arg("--sparse=always").arg(place.join(disk));
            finish(copy.arg(moment.join(disk)));
        }
        ledger(&guest.console(), &moment.join("ledger"));
        if n + 1 < count {
            kill(process, Signal::SIGCONT).expect("QEMU is there");
        }
        moments.push(moment);
    }
    moments
}

/// Starts the server on each pair of disks in a machine of its own, and has it judged.
fn look(place: &Path, things: &Things, moments: &[PathBuf], done: usize) {
    let name = |n: usize| format!("ledger-{n}");
    let ledgers = moments.iter().enumerate();
    let ledgers: Vec<_> = ledgers
        .map(|(n, moment)| (name(n), moment.join("ledger")))
        .collect();
    let shelf = things.shelf(place, 2 * moments.len(), &ledgers);
    for (n, moment) in moments.iter().enumerate() {
        for (number, disk) in [(2 * n, "pool0.img"), (2 * n + 1, "state.img")] {
            let to = place.join(format!("pool{number}.img"));
            fs::rename(moment.join(disk), to).expect("mv");
        }
    }
    let guest = shelf.power_on(None);
    guest.run("umount /var/lib/dls");
    for n in 0..moments.len() {
        let disk = |number: usize| char::from(b'd' + u8::try_from(number).expect("few"));
        let said = judge(&guest, disk(2 * n), disk(2 * n + 1), &name(n));
        eprintln!("server's power cut {}: {said}", done + n);
    }
}

fn judge(guest: &Guest, pool: char, state: char, ledger: &str) -> String {
    let script = format!(
        "PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
        wrong() {{ cat /run/payload/{ledger}; tail -n 60 /var/lib/dls/dls.log; zfs list -t all -o name,origin,userrefs,dls:size,dls:origin,dls:intent -r {DATASET}; exit 1; }}
        mount /dev/vd{state} /var/lib/dls && zpool import -f -d /dev/vd{pool}1 labpool || exit 1
        echo cut >> /var/lib/dls/dls.log
        {SERVE}
        for n in $(seq 600); do
            [ -z \"$(find /var/lib/dls/storage/{{pending,uploads,staging}} -mindepth 1 -print -quit)\" ] && break; sleep 0.2
        done
        url=\"postgres:///dls?host=$(head -n 1 /var/lib/dls/postgres/where)&user=dls\"
        python3 /run/payload/audit.py --psql \"$url\" --store /var/lib/dls/storage --dataset {DATASET} || wrong
        udevadm settle -t 60
        /run/payload/acknowledged \"$url\" {DATASET} /run/payload/{ledger} || wrong
        pkill -TERM -x dls; while pgrep -x dls > /dev/null; do sleep 0.05; done
        umount /var/lib/dls && {{ zpool export labpool || {{ sleep 3; zpool export labpool; }}; }}"
    );
    let answer = guest
        .try_run(&script, secs(300))
        .expect("the machine is on");
    assert_eq!(answer.code, 0, "{}{}", answer.out, answer.err);
    assert!(
        answer.out.contains(": 0 wrong") && answer.out.contains("RIGHT: "),
        "{}",
        answer.out
    );
    answer.out.trim().replace('\n', "; ")
}

#[test]
fn a_server_whose_power_is_cut_at_any_moment_has_lost_nothing() {
    let mut dice = Dice::new();
    let folder = tempfile::tempdir().expect("a folder");
    let things = Things::new(folder.path());
    let all = usize::try_from(rounds(5, 40)).expect("a small number");
    for (done, here) in batches(all, AT_ONCE) {
        let place = folder.path().join(format!("batch-{done}"));
        let moments = cuts(&mut dice, &place.join("work"), &things, here);
        look(&place.join("look"), &things, &moments, done);
        fs::remove_dir_all(&place).expect("rm");
    }
}
