//! Crowds at the exports' ports, as the real program bears them: half handshakes that cost
//! little, end in time and take nothing from who has its disk; and what a machine that reads
//! with a full queue costs in memory. `crowd.py` is the crowd.
//!
//! Bounds of memory, not of speed: what is measured is the server's `VmRSS`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use nix::unistd::Pid;

use crate::crashes::rounds;
use crate::exports::{BOTH, By, PYTHON, Stand, site};
use crate::net::Lab;
use crate::product::Dls;
use crate::{secs, wait_for};

/// What a half handshake may cost, in KiB.
const HALF: u64 = 16;
/// What a machine at work may cost, in KiB.
const BUSY: u64 = 1024;

/// The server's memory.
struct Memory(Pid);

impl Memory {
    fn of(lab: &Lab) -> Self {
        let most = lab.all("dls").into_iter().max_by_key(|pid| resident(*pid));
        Self(most.expect("a running dls"))
    }

    /// KiB that are resident now.
    fn now(&self) -> u64 {
        resident(self.0)
    }
}

/// KiB of a process that are resident now.
pub(crate) fn resident(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|n| n.parse().ok()).unwrap_or_default()
}

/// `crowd.py` at work; it ends with the test if not before.
struct Crowd {
    process: Child,
    log: PathBuf,
}

impl Crowd {
    fn start(lab: &Lab, host: &str, name: &str, arguments: &[&str], said_to_it: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/crowd.py");
        let log = lab.path().join(format!("{name}.log"));
        let file = fs::File::create(&log).expect("a log");
        let mut process = lab
            .command_in(host, PYTHON, [script])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(file.try_clone().expect("a log"))
            .stderr(file)
            .spawn()
            .expect("crowd.py");
        let mut input = process.stdin.take().expect("its input");
        input.write_all(said_to_it.as_bytes()).expect("its input");
        Self { process, log }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn ended(&mut self) -> bool {
        let status = self.process.try_wait().expect("crowd.py");
        assert!(status.is_none_or(|s| s.success()), "{}", self.said());
        status.is_some()
    }

    /// Waits until it has said that word.
    fn expect(&mut self, word: &str, seconds: u64) -> String {
        wait_for(&format!("the crowd says {word}"), secs(seconds), || {
            let said = self.said();
            let line = said.lines().find(|line| line.starts_with(word));
            if line.is_none() {
                assert!(!self.ended(), "{}", self.said());
            }
            line.map(str::to_owned)
        })
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `count` machines that have booted as far as their scripts, `first..`.
fn boot<'a>(lab: &'a Lab, dls: &Dls<'_>, host: &str, first: u32, count: u32) -> Vec<Stand<'a>> {
    let stand = |n: u32| {
        let mac = format!("52:54:00:79:{:02x}:{:02x}", n / 256, n % 256);
        dls.cli(&format!(
            "client add --mac {mac} --hostname pc-{n} --image small --disk-mode ephemeral"
        ));
        Stand::boot(lab, host, &mac)
    };
    (first..first + count).map(stand).collect()
}

/// One line for each, by turns over NBD and iSCSI.
fn sessions(stands: &[Stand<'_>]) -> String {
    let by = BOTH.into_iter().cycle();
    let line = |(stand, by): (&Stand<'_>, By)| stand.session(by) + "\n";
    stands.iter().zip(by).map(line).collect()
}

fn base(lab: &Lab) -> String {
    lab.path().join("small.raw").display().to_string()
}

#[test]
fn a_crowd_of_half_handshakes_costs_little_and_ends_in_time() {
    let lab = Lab::new("half_handshakes");
    let dls = site(&lab, "");
    let host = lab.host("cli", None);
    let live = boot(&lab, &dls, &host, 0, 2);
    let newcomers = boot(&lab, &dls, &host, 2, 2);
    // All of these addresses are the crowd's, whichever it takes.
    let other = lab.host("crowd", Some("10.77.199.1/16"));
    lab.ip(&other, "route add local 10.77.200.0/22 dev lo");
    lab.ip(&other, "route add local 10.77.210.0/24 dev lo");
    // Whoever comes first costs more: code and tables that all share.
    let warm = ["half", "10.77.0.1", "24"];
    Crowd::start(&lab, &other, "warm", &warm, "").expect("CLOSED", 60);
    let reading = ["busy", &base(&lab), &rounds(22, 40).to_string()];
    let mut readers = Crowd::start(&lab, &host, "live", &reading, &sessions(&live));
    readers.expect("IN", 60);
    let memory = Memory::of(&lab);
    let before = memory.now();
    let count = rounds(300, 5000).to_string();
    let mut crowd = Crowd::start(&lab, &other, "half", &["half", "10.77.0.1", &count], "");
    let open = crowd.expect("OPEN", 60);
    let after = memory.now();
    let all: u64 = open[5..].parse().expect("a number");
    let each = after.saturating_sub(before) * 1024 / all;
    eprintln!(
        "{all} half handshakes: {before} KiB before, {after} KiB with them, {each} bytes each"
    );
    assert!(each <= HALF * 1024, "{each} bytes each");
    // Machines get in beside them.
    let newcomer = ["busy", &base(&lab), "1"];
    let mut new = Crowd::start(&lab, &host, "new", &newcomer, &sessions(&newcomers));
    eprintln!("new ones: {}", new.expect("READ", 60));

    let closed = crowd.expect("CLOSED", 60);
    eprintln!("{closed}");
    let words: Vec<&str> = closed.split_whitespace().collect();
    let last: f64 = words[3].parse().expect("seconds");
    assert!(words[1] == all.to_string() && last <= 15.0, "{closed}");
    // One address alone gets its share and no more.
    for port in [3260, 10809] {
        assert_eq!(
            crowd.expect(&format!("ONE {port}"), 30),
            format!("ONE {port}: 64 of 80")
        );
    }
    eprintln!("live ones: {}", readers.expect("READ", 120));
}

#[test]
fn a_machine_at_work_costs_less_than_a_mebibyte() {
    let lab = Lab::new("busy");
    let dls = site(&lab, "");
    let host = lab.host("cli", None);
    let count = rounds(20, 200);
    let stands = boot(&lab, &dls, &host, 0, count + 4);
    let (warm, stands) = stands.split_at(4);
    // Whoever comes first costs more: code and tables that all share.
    let mut first = Crowd::start(
        &lab,
        &host,
        "warm",
        &["busy", &base(&lab), "1"],
        &sessions(warm),
    );
    first.expect("READ", 60);
    let memory = Memory::of(&lab);
    let before = memory.now();
    let seconds = rounds(4, 30).to_string();
    let arguments = ["busy", &base(&lab), &seconds];
    let mut crowd = Crowd::start(&lab, &host, "busy", &arguments, &sessions(stands));
    crowd.expect("IN", 120);
    let connected = memory.now();
    let mut most = connected;
    wait_for("the crowd has read enough", secs(300), || {
        most = most.max(memory.now());
        crowd.ended().then_some(())
    });
    let count = u64::from(count);
    let each = |now: u64| now.saturating_sub(before) / count;
    eprintln!("{}", crowd.expect("READ", 1));
    eprintln!(
        "{count} machines: {before} KiB before, {} KiB each when connected, {} KiB each at most at work",
        each(connected),
        each(most)
    );
    assert!(each(most) < BUSY, "{} KiB each", each(most));
}
