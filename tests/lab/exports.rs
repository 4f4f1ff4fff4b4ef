//! The exports under hard treatment, by machines without a machine: `boot.py` boots as iPXE
//! does and is told its disk's names and secrets, `disk.py` writes to that disk over NBD, or
//! over iSCSI through a bridge of QEMU's own initiator, and knows what must be on it.
//!
//! kill -9 and restarts under writes, clones beside each other, the fence between two logins
//! of one boot, a full store. Rounds and seed come from `DLS_TORTURE` and `DLS_SEED`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::crashes::{Dice, rounds};
use crate::net::{Lab, SmallDisk, finish};
use crate::product::{DiskImport, Dls, TestSystem};
use crate::{secs, wait_for};

/// Bytes of the small disk.
const SIZE: usize = 16 << 20;
/// Debian's: the bindings of libnbd are a package of its own.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

/// How a stand-in reaches its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Nbd,
    Iscsi,
}

pub(crate) const BOTH: [By; 2] = [By::Nbd, By::Iscsi];

/// A machine that has booted as far as its script.
pub(crate) struct Stand<'a> {
    lab: &'a Lab,
    host: String,
    script: String,
}

fn tool(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/lab")
        .join(name)
}

/// A file of bytes that no two places have in common.
pub(crate) fn noise(path: &Path, bytes: usize, seed: u64) {
    let mut dice = Dice::of(seed);
    let mut content = Vec::with_capacity(bytes);
    while content.len() < bytes {
        content.extend_from_slice(&dice.below(u64::MAX).to_le_bytes());
    }
    content.truncate(bytes);
    fs::write(path, content).expect("a small disk");
}

/// A server with one small disk image, `small`, whose script tells all names and secrets.
pub(crate) fn site<'a>(lab: &'a Lab, more: &str) -> Dls<'a> {
    let dls = Dls::start(lab, more);
    dls.cli("range add --network 10.77.0.0/16 --pool 10.77.1.0-10.77.1.250 --mode full");
    let disk = lab.path().join("small.raw");
    noise(&disk, SIZE, 1);
    dls.import(&small(&disk));
    dls
}

/// The small disk, with words in the command line by which a stand-in finds its way.
pub(crate) fn small(disk: &Path) -> DiskImport<'_> {
    let system = TestSystem::build();
    DiskImport {
        name: "small",
        disk,
        boot_method: "iscsi",
        kernel: Some((system.kernel().to_owned(), system.initrd().to_owned())),
        cmdline: "lab.export={export} lab.target={target} lab.user={username} lab.pass={password}"
            .to_owned(),
    }
}

impl<'a> Stand<'a> {
    /// Boots; the client must be there.
    pub(crate) fn boot(lab: &'a Lab, host: &str, mac: &str) -> Self {
        let mut command = lab.command_in(host, PYTHON, [tool("boot.py")]);
        let script = finish(command.arg(mac));
        assert!(script.contains("lab.export="), "its script:\n{script}");
        Self {
            lab,
            host: host.to_owned(),
            script,
        }
    }

    /// A word that its script tells.
    fn word(&self, name: &str) -> &str {
        let start = format!("{name}=");
        self.script
            .split_whitespace()
            .find_map(|word| word.strip_prefix(&start))
            .unwrap_or_else(|| panic!("`{name}` in:\n{}", self.script))
    }

    /// Where its disk is; for iSCSI a bridge is started, which lives as long as the lab.
    pub(crate) fn uri(&self, by: By) -> String {
        if by == By::Nbd {
            return format!("nbd://10.77.0.1:10809/{}", self.word("lab.export"));
        }
        let name = format!("bridge-{}", self.word("lab.user"));
        let mut number = 0;
        let socket = loop {
            let socket = self.lab.path().join(format!("{name}-{number}.sock"));
            if !socket.exists() {
                break socket;
            }
            number += 1;
        };
        let secret = self.lab.path().join(format!("{name}.secret"));
        fs::write(&secret, self.word("lab.pass")).expect("a secret");
        let image = format!(
            "driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=10.77.0.1:3260,\
             file.target={},file.lun=0,file.user={},file.password-secret=chap,\
             file.initiator-name=iqn.2026-11.internal.dls.lab:stand",
            self.word("lab.target"),
            self.word("lab.user")
        );
        let log = fs::File::create(socket.with_extension("log")).expect("a log");
        let mut bridge = self.lab.command_in(
            &self.host,
            "qemu-nbd",
            ["--persistent", "--shared=0", "--cache=none", "--object"],
        );
        bridge
            .arg(format!("secret,id=chap,file={}", secret.display()))
            .args(["--image-opts", &image, "--socket"])
            .arg(&socket)
            .stdout(Stdio::null())
            .stderr(log);
        self.lab.keep(&mut bridge);
        wait_for("the bridge has logged in", secs(30), || {
            let log = fs::read_to_string(socket.with_extension("log")).unwrap_or_default();
            assert!(!log.contains("qemu-nbd:"), "{log}");
            socket.exists().then_some(())
        });
        format!("nbd+unix:///?socket={}", socket.display())
    }

    /// The same for `crowd.py`, which speaks both protocols itself.
    pub(crate) fn session(&self, by: By) -> String {
        let word = |name: &str| self.word(&format!("lab.{name}"));
        match by {
            By::Nbd => format!("nbd 10.77.0.1 {}", word("export")),
            By::Iscsi => format!(
                "iscsi 10.77.0.1 {} {} {}",
                word("target"),
                word("user"),
                word("pass")
            ),
        }
    }

    /// `disk.py` in its namespace.
    pub(crate) fn disk(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.command_in(&self.host, PYTHON, [tool("disk.py")]);
        command.args(arguments);
        command
    }
}

fn acknowledgements(ledger: &str) -> usize {
    let text = fs::read_to_string(ledger).unwrap_or_default();
    text.lines().filter(|line| line.starts_with('A')).count()
}

/// A writer at work; it ends with the test if not before.
pub(crate) struct Writer {
    process: Child,
    ledger: String,
    /// Acknowledgements that the ledger held before.
    before: usize,
}

impl Writer {
    pub(crate) fn start(stand: &Stand<'_>, uri: &str, ledger: &Path, seconds: u64) -> Self {
        let ledger = ledger.display().to_string();
        let log = fs::File::create(format!("{ledger}.log")).expect("a log");
        let before = acknowledgements(&ledger);
        let process = stand
            .disk(&["write", uri, &ledger, "7", &seconds.to_string()])
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("disk.py");
        Self {
            process,
            ledger,
            before,
        }
    }

    /// Acknowledgements so far.
    pub(crate) fn acknowledged(&self) -> usize {
        acknowledgements(&self.ledger) - self.before
    }

    /// Where it keeps its book.
    pub(crate) fn ledger(&self) -> &str {
        &self.ledger
    }

    /// Tells it to end, and waits for that; what it said.
    fn finish(mut self) -> String {
        fs::write(format!("{}.stop", self.ledger), "").expect("a word to the writer");
        let status = self.process.wait().expect("disk.py");
        let said = fs::read_to_string(format!("{}.log", self.ledger)).unwrap_or_default();
        assert!(status.success(), "{said}");
        said
    }

    /// Ends it here and now.
    pub(crate) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Clients `pc-0..` with the small disk, in one namespace.
fn stands<'a>(lab: &'a Lab, dls: &Dls<'_>, count: usize, mode: &str) -> Vec<Stand<'a>> {
    let host = lab.host("cli", None);
    (0..count)
        .map(|n| {
            let mac = format!("52:54:00:78:00:{n:02x}");
            dls.cli(&format!(
                "client add --mac {mac} --hostname pc-{n} --image small --disk-mode {mode}"
            ));
            Stand::boot(lab, &host, &mac)
        })
        .collect()
}

#[test]
fn what_was_flushed_outlives_kill_9_of_the_server() {
    let mut dice = Dice::new();
    let lab = Lab::new("kill_disks");
    let mut dls = site(&lab, "");
    let stands = stands(&lab, &dls, BOTH.len(), "ephemeral");
    let mut blocks = 0;
    let count = rounds(3, 200);
    for round in 1..=count {
        let mut writers: Vec<Writer> = Vec::new();
        for (stand, by) in stands.iter().zip(BOTH) {
            // One for all rounds: what outlived one kill must outlive the next ones too.
            let ledger = lab.path().join(format!("ledger-{by:?}"));
            writers.push(Writer::start(stand, &stand.uri(by), &ledger, 3600));
        }
        wait_for("both writers write", secs(60), || {
            writers.iter().all(|w| w.acknowledged() > 20).then_some(())
        });
        std::thread::sleep(Duration::from_millis(dice.below(800)));
        dls.kill();
        for writer in &mut writers {
            writer.kill();
        }
        lab.end_all("qemu-nbd");
        dls.start_again();
        for ((stand, by), writer) in stands.iter().zip(BOTH).zip(&writers) {
            let uri = stand.uri(by);
            let said = finish(&mut stand.disk(&["verify", &uri, writer.ledger()]));
            blocks += writer.acknowledged();
            if round == count {
                eprintln!("round {round}, {by:?}: {}", said.trim());
            }
        }
        lab.end_all("qemu-nbd");
    }
    eprintln!("{count} kills, {blocks} acknowledged blocks, none lost");
}

#[test]
fn writes_outlive_restarts_of_the_server() {
    let mut dice = Dice::new();
    let lab = Lab::new("restart_disks");
    let mut dls = site(&lab, "");
    let stands = stands(&lab, &dls, BOTH.len(), "persistent");
    let count = rounds(2, 50);
    let mut writers: Vec<Writer> = Vec::new();
    let mut uris = Vec::new();
    for (stand, by) in stands.iter().zip(BOTH) {
        let uri = stand.uri(by);
        let ledger = lab.path().join(format!("ledger-{by:?}"));
        writers.push(Writer::start(stand, &uri, &ledger, 3600));
        uris.push(uri);
    }
    for round in 1..=count {
        std::thread::sleep(Duration::from_millis(1000 + dice.below(1000)));
        // In turn: as an administrator restarts it, and as nobody would.
        if round % 2 == 0 {
            dls.kill();
        } else {
            dls.stop();
        }
        dls.start_again();
        let before: Vec<usize> = writers.iter().map(Writer::acknowledged).collect();
        for (writer, before) in writers.iter().zip(before) {
            wait_for("writing goes on", secs(10), || {
                (writer.acknowledged() > before).then_some(())
            });
        }
    }
    for ((stand, writer), uri) in stands.iter().zip(writers).zip(&uris) {
        let ledger = writer.ledger.clone();
        eprintln!("{}", writer.finish().trim());
        eprintln!(
            "{}",
            finish(&mut stand.disk(&["verify", uri, &ledger])).trim()
        );
    }
}

#[test]
fn clones_of_one_image_stay_apart() {
    let lab = Lab::new("clones");
    let dls = site(&lab, "");
    let count = rounds(6, 50);
    let stands = stands(
        &lab,
        &dls,
        usize::try_from(count).expect("a count"),
        "ephemeral",
    );
    let uris: Vec<String> = stands.iter().map(|s| s.uri(By::Nbd)).collect();
    let base = lab.path().join("small.raw").display().to_string();
    let seed = Dice::new().below(1 << 32).to_string();
    let writes = (count * 60).to_string();
    let mut arguments = vec!["apart", &base, &seed, &writes];
    arguments.extend(uris.iter().map(String::as_str));
    eprintln!("{}", finish(&mut stands[0].disk(&arguments)).trim());
    dls.assert_unchanged("small", &lab.path().join("small.raw"));
}

#[test]
fn a_newer_login_shuts_the_older_one_out() {
    let lab = Lab::new("fence");
    let dls = site(&lab, "");
    let stands = stands(&lab, &dls, 1, "ephemeral");
    let stand = &stands[0];
    for round in 0..rounds(1, 30) {
        // Over NBD: an initiator of iSCSI would log in again by itself, and win.
        let (old, new) = (stand.uri(By::Nbd), stand.uri(By::Nbd));
        let seed = round.to_string();
        eprintln!(
            "{}",
            finish(&mut stand.disk(&["fence", &old, &new, &seed])).trim()
        );
    }
}

#[test]
fn a_full_store_concerns_who_writes_and_comes_back() {
    let lab = Lab::new("full");
    let store = SmallDisk::mount(&lab, "store", 64);
    let dls = site(
        &lab,
        &format!("[storage]\npath = \"{}\"\n", store.path().display()),
    );
    let stands = stands(&lab, &dls, 3, "ephemeral");
    let read_all = |stand: &Stand<'_>| {
        let mut read = lab.command_in(&stand.host, "nbdcopy", ["--"]);
        finish(read.arg(stand.uri(By::Nbd)).arg("null:"));
    };
    // It has its clone before there is no space for one.
    read_all(&stands[1]);
    for by in BOTH {
        store.fill(4 << 20);
        let log = lab.path().join(format!("full-{by:?}.log"));
        let mut writer = stands[0]
            .disk(&["full", &stands[0].uri(by)])
            .stdout(fs::File::create(&log).expect("a log"))
            .spawn()
            .expect("disk.py");
        let said = || fs::read_to_string(&log).unwrap_or_default();
        wait_for("the store is full", secs(60), || {
            assert!(
                writer.try_wait().is_ok_and(|s| s.is_none()),
                "{by:?}: {}",
                said()
            );
            said().contains("FULL").then_some(())
        });
        // The others read on, and machines get addresses and scripts.
        read_all(&stands[1]);
        Stand::boot(&lab, &lab.namespace("cli"), "52:54:00:78:00:02");
        store.empty();
        let status = writer.wait().expect("disk.py");
        assert!(
            status.success() && said().contains("SPACE"),
            "{by:?}: {}",
            said()
        );
        eprintln!("{by:?}: {}", said().trim().replace('\n', ", then "));
        lab.end_all("qemu-nbd");
    }
}
