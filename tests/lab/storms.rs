//! `dls storm` against the real server, both the real program, in namespaces of their own: all
//! machines boot and every byte is right; a server that is killed and a byte that is wrong are
//! found and named; in `make torture` a thousand machines in a minute, a processor for each side.
//!
//! The machines' addresses are routed to the simulator's host, which answers ARP for its own
//! alone: so the server sees each machine with its address, and finds none of them in use before.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::Value;

use crate::crashes::rounds;
use crate::crowds::resident;
use crate::exports::noise;
use crate::net::{Lab, output};
use crate::product::{DiskImport, Dls, PROGRAM};
use crate::{secs, wait_for};

pub(crate) const MIB: usize = 1 << 20;

/// A site with machines that are registered and not there.
pub(crate) struct Site<'a> {
    lab: &'a Lab,
    pub(crate) dls: Dls<'a>,
    host: String,
}

impl<'a> Site<'a> {
    /// So many machines; their images by turns, each a boot method of the same name. Kernel and
    /// initrd are a quarter and three quarters of `files` bytes, the disk has `disk` bytes.
    fn new(lab: &'a Lab, machines: u32, methods: &[&str], files: usize, disk: usize) -> Self {
        Self::of(lab, Dls::start(lab, ""), machines, methods, (files, disk))
    }

    /// The same of a server that runs.
    pub(crate) fn of(
        lab: &'a Lab,
        dls: Dls<'a>,
        machines: u32,
        methods: &[&str],
        (files, disk): (usize, usize),
    ) -> Self {
        dls.cli("range add --network 10.77.0.0/16 --pool 10.77.16.1-10.77.31.250 --mode full");
        let path = |name: &str| lab.path().join(name);
        noise(&path("kernel"), files / 4, 2);
        noise(&path("initrd"), files / 4 * 3, 3);
        noise(&path("disk.raw"), disk, 4);
        for method in methods {
            let kernel = (path("kernel"), path("initrd"));
            dls.import(&DiskImport {
                name: method,
                disk: &path("disk.raw"),
                boot_method: method,
                kernel: (*method != "san").then_some(kernel),
                cmdline: String::new(),
            });
        }
        let images: Vec<String> = methods.iter().map(|m| format!("'{m}'")).collect();
        dls.psql(&format!(
            "insert into clients (mac_address, hostname, assigned_image_id, disk_mode) \
             select '02:d1:50:00:' || substr(h, 1, 2) || ':' || substr(h, 3, 2), 'storm-' || n, \
             (select id from images where name = (array[{}])[1 + n % {}]), 'ephemeral' \
             from (select n, lpad(to_hex(n), 4, '0') h from generate_series(0, {machines} - 1) n) x",
            images.join(","),
            images.len()
        ));
        let host = lab.host("storm", Some("10.77.0.9/16"));
        for which in ["all", "lan0"] {
            let quiet = format!("net.ipv4.conf.{which}.arp_ignore=1");
            let mut set = lab.command_in(&host, "sysctl", ["-qw", &quiet]);
            assert!(output(&mut set).status.success());
        }
        lab.ip(&host, "route add local 10.77.16.0/20 dev lo");
        lab.ip(
            &lab.namespace("srv"),
            "route add 10.77.16.0/20 via 10.77.0.9",
        );
        Self { lab, dls, host }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.lab.path().join(name)
    }

    /// `dls storm` with the files that the machines must get.
    fn storm(&self, more: &str) -> Command {
        let mut storm = self
            .lab
            .command_in(&self.host, PROGRAM, ["--json", "storm"]);
        storm.args(["--interface", "lan0"]);
        for (role, file) in [
            ("kernel", "kernel"),
            ("initrd0", "initrd"),
            ("disk", "disk.raw"),
        ] {
            storm.args(["--expect", &format!("{role}={}", self.file(file).display())]);
        }
        storm.args(more.split_whitespace());
        storm
    }

    /// The same, and what else happens meanwhile is the test's.
    pub(crate) fn begin(&self, more: &str) -> Storm {
        let told = self.file("storm.json");
        let mut storm = self.storm(more);
        storm
            .stdout(fs::File::create(&told).expect("a file"))
            .stderr(Stdio::null());
        let process = storm.spawn().expect("dls storm");
        Storm { process, told }
    }
}

/// A storm under way.
pub(crate) struct Storm {
    pub(crate) process: Child,
    told: PathBuf,
}

impl Storm {
    /// What it says once it has ended.
    pub(crate) fn report(&self) -> Value {
        let told = fs::read(&self.told).expect("a report");
        serde_json::from_slice(&told).expect("JSON")
    }
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
        let said = String::from_utf8_lossy(&output.stderr);
        panic!("{e} in what `dls storm` says: {said}")
    })
}

/// A number of a stage.
fn of(report: &Value, stage: &str, key: &str) -> f64 {
    let rows = report["stages"].as_array().expect("stages");
    let row = rows.iter().find(|row| row["stage"] == stage);
    let number = row.and_then(|row| row[key].as_f64());
    number.unwrap_or_else(|| panic!("no {key} of {stage} in {report:#}"))
}

/// Stages and causes of failures.
fn causes(report: &Value) -> Vec<(String, String)> {
    let rows = report["failures"].as_array().expect("failures").iter();
    let word = |row: &Value, key: &str| row[key].as_str().expect("a word").to_owned();
    rows.map(|row| (word(row, "stage"), word(row, "cause")))
        .collect()
}

#[test]
fn a_small_storm_boots_every_machine_and_checks_every_byte() {
    let lab = Lab::new("storm");
    let site = Site::new(&lab, 20, &["iscsi", "nbd", "san"], 8 * MIB, 16 * MIB);
    for (more, loader) in [
        ("--addresses --bye", "by raw frames, BIOS"),
        (
            "--addresses --bye --firmware uefi-http",
            "by raw frames, HTTP Boot",
        ),
        ("--firmware uefi --bye", "all from one address"),
    ] {
        let line = format!("--machines 20 --ramp 2 --timeout 60 --disk-read 6M {more}");
        let ended = output(&mut site.storm(&line));
        let told = report(&ended);
        assert!(ended.status.success(), "{loader}: {told:#}");
        assert_eq!(told["booted"], 20);
        assert_eq!(causes(&told), []);
        // Seven of them by iSCSI, seven by NBD, six from the disk's own loader.
        assert_eq!(of(&told, "kernel", "n"), 14.0);
        assert_eq!(of(&told, "kernel", "bytes"), (14 * 2 * MIB) as f64);
        assert_eq!(of(&told, "initrd", "bytes"), (14 * 6 * MIB) as f64);
        assert_eq!(of(&told, "disk read", "bytes"), (20 * 6 * MIB) as f64);
        assert!(of(&told, "disk write", "n") >= 20.0);
        assert!(of(&told, "read back", "n") >= 20.0);
        assert_eq!(of(&told, "report", "n"), 40.0, "up and bye");
        eprintln!(
            "{loader}: DHCP p99 {:.1} ms, {:.0} MiB/s in the busiest second",
            of(&told, "all of DHCP", "p99_ms"),
            told["most_in_a_second"].as_f64().unwrap_or_default() / MIB as f64
        );
    }
    // The server has seen what the machines say that they did.
    wait_for("sixty boots have ended well", secs(30), || {
        let rows = site
            .dls
            .rows("select count(*)::int as n from boot_sessions where status = 'shutdown'");
        (rows[0]["n"] == 60).then_some(())
    });
    site.dls.assert_unchanged("nbd", &site.file("disk.raw"));
}

#[test]
fn a_storm_through_a_relay_needs_no_raw_frames() {
    let lab = Lab::new("storm_relay");
    let site = Site::new(&lab, 5, &["nbd"], 4 * MIB, 8 * MIB);
    let mut storm = site
        .lab
        .command_in(&site.host, PROGRAM, ["--json", "storm"]);
    storm.args(
        "--relay 10.77.0.9 --dhcp-server 10.77.0.1 --machines 5 --ramp 1 --disk-read 1M".split(' '),
    );
    let ended = output(&mut storm);
    let told = report(&ended);
    assert!(ended.status.success(), "{told:#}");
    // Nothing was given to compare with: they are compared with each other, and their sum is told.
    let files = told["files"].as_array().expect("files");
    let kernel = files
        .iter()
        .find(|file| file["role"] == "kernel")
        .expect("the kernel");
    assert_eq!(kernel["bytes"], MIB);
    assert_eq!(kernel["sha256"].as_str().map(str::len), Some(64));
}

#[test]
fn a_wrong_byte_and_a_dead_server_are_named() {
    let lab = Lab::new("storm_faults");
    let mut site = Site::new(&lab, 10, &["iscsi", "nbd"], 8 * MIB, 16 * MIB);
    // One byte of what they must get is another one.
    for (file, at, cause) in [
        ("initrd", 3 * MIB + 5, "wrong_file"),
        ("disk.raw", 4100, "wrong_disk"),
    ] {
        let mut bytes = fs::read(site.file(file)).expect("a file");
        bytes[at] ^= 1;
        fs::write(site.file(file), &bytes).expect("a file");
        let ended = output(
            &mut site.storm("--machines 4 --ramp 0 --timeout 60 --addresses --disk-read 2M"),
        );
        let told = report(&ended);
        assert_eq!(ended.status.code(), Some(1), "{told:#}");
        assert_eq!(told["booted"], 0);
        assert!(
            causes(&told).iter().all(|(_, found)| found == cause),
            "{told:#}"
        );
        let detail = told["failures"][0]["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(&at.to_string()), "{detail}");
        bytes[at] ^= 1;
        fs::write(site.file(file), &bytes).expect("a file");
    }
    // kill -9 while some are up, some at work and some not on yet.
    let mut storm =
        site.begin("--machines 10 --ramp 20 --timeout 20 --patience 10 --addresses --stay 60");
    wait_for("a machine is up", secs(60), || {
        let rows = site
            .dls
            .rows("select count(*)::int as n from boot_sessions where status = 'running'");
        (rows[0]["n"].as_u64() >= Some(2)).then_some(())
    });
    site.dls.kill();
    let status = wait_for("the storm ends by itself", secs(120), || {
        storm.process.try_wait().ok().flatten()
    });
    assert_eq!(status.code(), Some(1));
    let told = storm.report();
    let causes = causes(&told);
    let has = |stage: &str, cause: &str| causes.contains(&(stage.into(), cause.into()));
    assert!(has("rom discover", "no_offer"), "{told:#}");
    assert!(has("stay", "disk_closed"), "{told:#}");
    let failed: u64 = told["failures"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|f| f["machines"].as_u64())
        .sum();
    assert_eq!(
        failed + told["booted"].as_u64().unwrap_or(0),
        10,
        "{told:#}"
    );
}

/// The process that serves.
fn server(lab: &Lab) -> Pid {
    let server = lab.all("dls").into_iter().find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.ends_with(b"serve\0")
    });
    server.expect("a running server")
}

/// The server's memory, by second, while something runs.
fn memory_meanwhile(lab: &Lab, storm: &mut Child, limit: Duration) -> Vec<u64> {
    let server = server(lab);
    let mut samples = Vec::new();
    wait_for("the storm has ended", limit, || {
        samples.push(resident(server));
        storm.try_wait().ok().flatten()
    });
    samples
}

/// Binds a running process with all its threads to a processor; of children that come later too.
fn pin(pid: i32, processor: &str) {
    let mut command = Command::new("taskset");
    command.args(["-a", "-p", "-c", processor, &pid.to_string()]);
    assert!(output(&mut command).status.success());
}

#[test]
fn torture_a_thousand_machines_in_a_minute() {
    let machines = rounds(40, 1000);
    let ramp = rounds(2, 60);
    let lab = Lab::new("storm_thousand");
    let site = Site::new(&lab, machines, &["iscsi", "nbd"], 16 * MIB, 32 * MIB);
    // A new address of the pool is looked for by ARP first, which takes 200 ms by design: theirs
    // are reserved.
    site.dls.psql(
        "update clients set ip_address = '10.77.16.0'::inet + split_part(hostname, '-', 2)::int + 1",
    );
    // The server and its database on one processor, the machines on another.
    for pid in ["dls", "postgres"].iter().flat_map(|name| lab.all(name)) {
        pin(pid.as_raw(), "0");
    }
    let line = format!(
        "--machines {machines} --ramp {ramp} --timeout 300 --addresses --bye --think 0 --disk-read 16M"
    );
    let mut storm = site.begin(&line);
    pin(
        i32::try_from(storm.process.id()).expect("a process id"),
        "1",
    );
    let samples = memory_meanwhile(&lab, &mut storm.process, secs(600));
    let told = storm.report();
    let number = |key: &str| told[key].as_f64().unwrap_or_default();
    eprintln!(
        "{machines} machines in {ramp} s: {} booted, took {:.1} s, {:.0} MiB/s, {:.0} in the busiest second",
        told["booted"],
        number("seconds"),
        number("bytes_per_second") / MIB as f64,
        number("most_in_a_second") / MIB as f64
    );
    for row in told["stages"].as_array().into_iter().flatten() {
        eprintln!(
            "{:16} n {:7} p50 {:9.2} p95 {:9.2} p99 {:9.2} max {:9.2} ms, {} again",
            row["stage"].as_str().unwrap_or_default(),
            row["n"],
            row["p50_ms"].as_f64().unwrap_or_default(),
            row["p95_ms"].as_f64().unwrap_or_default(),
            row["p99_ms"].as_f64().unwrap_or_default(),
            row["max_ms"].as_f64().unwrap_or_default(),
            row["sent_again"]
        );
    }
    eprintln!("on a wire: {}", told["wires"]);
    let tenth = (samples.len() / 10).max(1);
    let each: Vec<u64> = samples.iter().step_by(tenth).copied().collect();
    eprintln!(
        "the server's memory, KiB, by tenths: {each:?}, most {:?}",
        samples.iter().max()
    );
    assert_eq!(told["booted"], machines, "{:#}", told["failures"]);
}

fn median(samples: &[u64]) -> u64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// Scoreboard, row 40: a room that boots again and again leaves neither memory nor files behind.
#[test]
fn torture_a_room_that_boots_all_day_leaves_nothing_behind() {
    // Boots that have ended are remembered for ten minutes, each in some kilobytes: that much is
    // reached before the quarters begin that are compared.
    let long = rounds(30, 40 * 60);
    let lab = Lab::new("storm_soak");
    let site = Site::new(&lab, 30, &["iscsi", "nbd", "san"], 4 * MIB, 16 * MIB);
    let server = server(&lab);
    let files = || {
        fs::read_dir(format!("/proc/{server}/fd"))
            .expect("its files")
            .count() as u64
    };
    let (mut memory, mut open, mut boots) = (Vec::new(), Vec::new(), 0);
    let start = Instant::now();
    // What is made once (connections, threads, first rooms of the allocator) is made by then.
    while start.elapsed() < secs(u64::from(long)) || memory.len() < 8 {
        let firmware = ["", "--firmware uefi-http", "--firmware uefi"][boots % 3];
        let line = format!(
            "--machines 30 --ramp 3 --timeout 60 --addresses --bye --disk-read 2M {firmware}"
        );
        let ended = output(&mut site.storm(&line));
        let told = report(&ended);
        assert_eq!(told["booted"], 30, "round {boots}: {:#}", told["failures"]);
        boots += 1;
        memory.push(resident(server));
        open.push(files());
    }
    let quarter = memory.len() / 4;
    let of = |samples: &[u64]| {
        let early = median(&samples[quarter..2 * quarter]);
        (early, median(&samples[3 * quarter..]))
    };
    let ((memory_early, memory_late), (open_early, open_late)) = (of(&memory), of(&open));
    let hours = start.elapsed().as_secs_f64() / 2.0 / 3600.0;
    eprintln!(
        "{} boots in {:.0} s: memory {memory_early}, later {memory_late} KiB ({:+.1} MiB an hour), files {open_early}, later {open_late}",
        boots * 30,
        start.elapsed().as_secs_f64(),
        (memory_late as f64 - memory_early as f64) / 1024.0 / hours
    );
    // KiB. A few rounds tell of files only: the allocator takes its time.
    let more = if long > 60 { 1024 } else { 16 * 1024 };
    assert!(
        memory_late <= memory_early + more,
        "KiB by round: {memory:?}"
    );
    assert!(open_late <= open_early + 4, "by round: {open:?}");
}
