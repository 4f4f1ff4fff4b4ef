//! A machine with real OpenZFS: what its disks are made of, power on and off, and a line on
//! which a test has it run scripts. What runs in it is the test's affair; [`super::server`] has
//! `dls` run there.
//!
//! ```ignore
//! let shelf = Shelf::new(folder, &[4 << 30], &[("tests", &program)]);   // two disks of pools: two numbers
//! let mut guest = shelf.power_on(None);            // or Some(&lab): eth0 is 10.77.0.2 on its cable
//! guest.run("zpool create -O mountpoint=none labpool /dev/vdd");       // fails the test unless it ends with 0
//! let answer = guest.try_run("zfs list -Hp", secs(20));                 // Some(code, out, err); None: it is off
//! let writer = guest.start("dd if=/dev/zero of=/dev/zvol/labpool/x");   // goes on beside others
//! guest.cut_power();                                // its page cache is gone, its disks stay
//! let guest = shelf.power_on(None);                 // `zpool import -a` is for the test to say
//! ```
//!
//! In the machine: /dev/vda its root, as it was built at each boot; /run/payload, read only, the
//! files that the test brought along; /var/lib/dls on a disk of its own, which stays;
//! /dev/vdd, /dev/vde, ... for pools (`monitor("drive_del pool0")` makes the first fail every
//! request). A script is bash, runs as root, and beside others; what it starts in the background
//! goes on after it (redirect its output, or the answer waits for it).

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::machine::tail;
use crate::net::{Lab, finish, run};
use crate::{secs, wait_for};

/// The guest's address on the cable.
pub(crate) const ADDRESS: &str = "10.77.0.2";
/// How long a boot may take beside other work.
const BOOT: Duration = secs(300);
/// What the kernel says when an emulated processor's timer does not go off any more.
const TIMER_LOST: &str = "kthread timer wakeup didn't happen";
/// How long a script may take that nobody gave a time.
const SCRIPT: Duration = secs(180);

/// The disks of a machine, in a folder; they outlive its power.
pub(crate) struct Shelf {
    folder: PathBuf,
    built: PathBuf,
    pools: usize,
    /// The last of them is a SCSI disk, which its machine can take offline.
    scsi: bool,
    processors: u8,
    boots: AtomicU64,
}

/// A machine that is switched on.
pub(crate) struct Guest {
    qemu: Child,
    console: PathBuf,
    monitor: PathBuf,
    line: Mutex<UnixStream>,
    waiting: Arc<Mutex<Waiting>>,
    scripts: AtomicU64,
}

/// Scripts under way; nothing once the line is cut.
type Waiting = Option<HashMap<u64, Sender<Answer>>>;

/// What became of a script.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// Its exit code.
    pub(crate) code: i32,
    /// What it wrote to its standard output.
    pub(crate) out: String,
    /// What it wrote to its standard error.
    pub(crate) err: String,
}

/// A script under way.
pub(crate) struct Script {
    text: String,
    answer: Receiver<Answer>,
}

impl Script {
    /// Its answer if it has one within that time; a test that fails already asks so.
    pub(crate) fn poll(&self, limit: Duration) -> Option<Answer> {
        self.answer.recv_timeout(limit).ok()
    }

    /// Its answer; nothing if the machine went off before. Fails the test when it takes longer.
    pub(crate) fn wait(self, limit: Duration) -> Option<Answer> {
        match self.answer.recv_timeout(limit) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("not done within {} s: {}", limit.as_secs(), self.text)
            }
        }
    }
}

impl Shelf {
    /// Disks in a folder: `pools` of so many bytes each, and one with these files, by their
    /// names in /run/payload (`etc/...` goes to /etc before udev starts). Builds the machine, or
    /// finds it in the cache.
    pub(crate) fn new(folder: &Path, pools: &[u64], payload: &[(&str, &Path)]) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/zfs/build");
        let built = PathBuf::from(run(script, std::iter::empty::<&str>()).trim());
        for (number, size) in pools.iter().enumerate() {
            sparse(&folder.join(format!("pool{number}.img")), *size);
        }
        let state = folder.join("state.img");
        sparse(&state, 2 << 30);
        file_system(&state, None);
        let tree = folder.join("payload");
        fs::create_dir_all(&tree).expect("mkdir");
        let mut bytes = 0;
        for (name, file) in payload {
            let to = tree.join(name);
            fs::create_dir_all(to.parent().expect("a folder")).expect("mkdir");
            fs::copy(file, &to).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            bytes += fs::metadata(&to).expect("a file").len();
        }
        let disk = folder.join("payload.img");
        sparse(&disk, bytes + bytes / 8 + (32 << 20));
        file_system(&disk, Some(&tree));
        fs::remove_dir_all(&tree).expect("rm");
        Self {
            folder: folder.to_owned(),
            built,
            pools: pools.len(),
            scsi: false,
            processors: 2,
            boots: AtomicU64::new(0),
        }
    }

    /// The last pool's disk is /dev/sda.
    pub(crate) fn last_on_scsi(mut self) -> Self {
        self.scsi = true;
        self
    }

    /// One processor instead of two: where many programs are started, two emulated ones spend
    /// most of their time waiting for each other in the kernel when this machine is busy.
    pub(crate) fn one_processor(mut self) -> Self {
        self.processors = 1;
        self
    }

    /// Versions of kernel and ZFS.
    pub(crate) fn versions(&self) -> String {
        fs::read_to_string(self.built.join("versions")).unwrap_or_default()
    }

    /// Switches it on and waits until it does scripts. QEMU's emulation of several processors
    /// fails now and then, by an assertion of its own or a timer that never goes off: then it is
    /// switched on again.
    pub(crate) fn power_on(&self, lab: Option<&Lab>) -> Guest {
        let tap = lab.map(|lab| (lab, lab.add_tap()));
        for _ in 0..3 {
            let tap = tap.as_ref().map(|(lab, tap)| (*lab, tap.as_str()));
            let Some(guest) = self.try_power_on(tap) else {
                eprintln!("QEMU failed while the machine booted: once more");
                continue;
            };
            if tap.is_some() {
                guest.run(&format!(
                    "ip addr add {ADDRESS}/16 dev eth0 && ip link set eth0 up"
                ));
            }
            return guest;
        }
        panic!("QEMU failed three times in one boot");
    }

    fn try_power_on(&self, tap: Option<(&Lab, &str)>) -> Option<Guest> {
        let boot = self.boots.fetch_add(1, Ordering::Relaxed);
        let place = |name: &str| self.folder.join(format!("guest-{boot}.{name}"));
        let (console, monitor, line) = (place("log"), place("monitor"), place("line"));
        let mut args: Vec<String> = Vec::new();
        let mut add = |words: &str| args.extend(words.split(' ').map(str::to_owned));
        add("-accel tcg,thread=multi -cpu max -m 2048 -display none -vga none");
        add(&format!("-smp {}", self.processors));
        add("-no-reboot -device virtio-rng-pci -device virtio-serial-pci");
        add(&format!("-serial file:{}", console.display()));
        add(&format!(
            "-monitor unix:{},server=on,wait=off",
            monitor.display()
        ));
        add(&format!(
            "-chardev socket,id=line,path={},server=on,wait=off",
            line.display()
        ));
        add("-device virtserialport,chardev=line,name=lab");
        let built = |name: &str| self.built.join(name).display().to_string();
        add(&format!(
            "-kernel {} -initrd {}",
            built("kernel"),
            built("initrd")
        ));
        args.extend([
            "-append".into(),
            "console=ttyS0 quiet mitigations=off net.ifnames=0 panic=-1".into(),
        ]);
        let mut add = |words: &str| args.extend(words.split(' ').map(str::to_owned));
        // What QEMU has written outlives it in this machine's page cache.
        let drive = |id: &str, file: PathBuf, more: &str| {
            format!(
                "-drive id={id},file={},format=raw,if=virtio,cache=unsafe,discard=unmap{more}",
                file.display()
            )
        };
        add(&drive("root", self.built.join("root.img"), ",snapshot=on"));
        add(&drive(
            "payload",
            self.folder.join("payload.img"),
            ",readonly=on",
        ));
        add(&drive("state", self.folder.join("state.img"), ""));
        for number in 0..self.pools {
            let id = format!("pool{number}");
            let drive = drive(&id, self.folder.join(format!("{id}.img")), "");
            if self.scsi && number + 1 == self.pools {
                add(&drive.replace("if=virtio", "if=none"));
                add(&format!(
                    "-device virtio-scsi-pci -device scsi-hd,drive={id}"
                ));
            } else {
                add(&drive);
            }
        }
        let mut command = match tap {
            None => {
                add("-nic none");
                let mut command = Command::new("qemu-system-x86_64");
                command.args(&args);
                command
            }
            Some((lab, tap)) => {
                add(&format!(
                    "-netdev tap,id=n,ifname={tap},script=no,downscript=no"
                ));
                add("-device virtio-net-pci,netdev=n,mac=52:54:00:77:00:fe,romfile=");
                lab.command_in(&lab.namespace("lan"), "qemu-system-x86_64", &args)
            }
        };
        let errors = fs::File::create(place("qemu")).expect("a log");
        let mut qemu = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .expect("qemu-system-x86_64");
        // Whatever fails from here on must not leave QEMU behind.
        let connected = std::panic::catch_unwind(|| {
            wait_for("QEMU's socket", secs(20), || {
                UnixStream::connect(&line).ok()
            })
        });
        let Ok(stream) = connected else {
            let _ = qemu.kill();
            let _ = qemu.wait();
            let why = fs::read_to_string(place("qemu")).unwrap_or_default();
            panic!("QEMU does not start: {why}");
        };
        let waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let (ready, is_ready) = mpsc::channel();
        let answers = stream.try_clone().expect("a socket");
        std::thread::spawn({
            let waiting = waiting.clone();
            move || {
                listen(answers, &waiting, &ready);
                // Who still waits is told that nothing comes any more.
                waiting.lock().expect("a lock").take();
            }
        });
        let mut guest = Guest {
            qemu,
            console,
            monitor,
            line: Mutex::new(stream),
            waiting,
            scripts: AtomicU64::new(0),
        };
        let on = std::time::Instant::now();
        loop {
            let why = match is_ready.recv_timeout(secs(5)) {
                Ok(()) => return Some(guest),
                Err(why) => why,
            };
            let console = guest.console();
            if guest.aborted() || console.contains(TIMER_LOST) {
                return None;
            }
            let given_up = why == RecvTimeoutError::Disconnected || on.elapsed() > BOOT;
            let console = tail(&console);
            assert!(!given_up, "the machine does not boot: {why}:\n{console}");
        }
    }
}

fn sparse(path: &Path, size: u64) {
    let file = fs::File::create(path).expect("a disk");
    file.set_len(size).expect("a sparse file");
}

fn file_system(disk: &Path, tree: Option<&Path>) {
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-t", "ext4", "-m", "0", "-F"]);
    if let Some(tree) = tree {
        command.arg("-d").arg(tree);
    }
    finish(command.arg(disk));
}

/// Reads answers until the line is cut.
fn listen(stream: UnixStream, waiting: &Mutex<Waiting>, ready: &Sender<()>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
        let words: Vec<&str> = head.split_whitespace().collect();
        let [id, code, out, err] = words[..] else {
            if head.trim() == "ready" {
                let _ = ready.send(());
            }
            continue;
        };
        let mut text = |length: &str| {
            let mut bytes = vec![0; length.parse().ok()?];
            stream.read_exact(&mut bytes).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        };
        let answer = Answer {
            code: code.parse().ok()?,
            out: text(out)?,
            err: text(err)?,
        };
        let mut waiting = waiting.lock().expect("a lock");
        if let Some(who) = waiting.as_mut()?.remove(&id.parse().ok()?) {
            let _ = who.send(answer);
        }
    }
}

impl Guest {
    /// Starts a script.
    pub(crate) fn start(&self, script: &str) -> Script {
        let id = self.scripts.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = mpsc::channel();
        // With the line cut the sender goes at once, and the script is answered by nothing.
        if let Some(waiting) = self.waiting.lock().expect("a lock").as_mut() {
            waiting.insert(id, sender);
        }
        let said = format!("{id} {}\n{script}", script.len());
        let _ = self.line.lock().expect("a lock").write_all(said.as_bytes());
        Script {
            text: script.to_owned(),
            answer,
        }
    }

    /// Runs a script to its end; nothing if the machine went off before. Fails the test when it
    /// takes longer.
    pub(crate) fn try_run(&self, script: &str, limit: Duration) -> Option<Answer> {
        self.start(script).wait(limit)
    }

    /// Runs a script and gives what it said on its standard output. Fails the test, with all that
    /// it said, unless it ends with 0.
    pub(crate) fn run(&self, script: &str) -> String {
        self.run_within(script, SCRIPT)
    }

    /// The same for what may take longer.
    pub(crate) fn run_within(&self, script: &str, limit: Duration) -> String {
        let Some(Answer { code, out, err }) = self.try_run(script, limit) else {
            panic!("the machine went off in: {script}");
        };
        assert_eq!(code, 0, "{script}\n{out}{err}");
        out
    }

    /// All that its console has shown.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Tells QEMU something, such as `drive_del pool0`.
    pub(crate) fn monitor(&self, line: &str) {
        let mut monitor = UnixStream::connect(&self.monitor).expect("the monitor");
        monitor
            .write_all(format!("{line}\n").as_bytes())
            .expect("the monitor");
        // QEMU drops what it has not read yet when the other end hangs up.
        std::thread::sleep(Duration::from_millis(300));
    }

    /// QEMU's process.
    pub(crate) fn process(&self) -> u32 {
        self.qemu.id()
    }

    /// True while it is on.
    pub(crate) fn is_on(&mut self) -> bool {
        self.qemu.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Whether QEMU ended by an assertion of its own.
    fn aborted(&mut self) -> bool {
        let ended = self.qemu.try_wait().ok().flatten();
        ended.and_then(|status| status.signal()) == Some(nix::libc::SIGABRT)
    }

    /// Exports its pools and switches it off in an orderly way.
    pub(crate) fn power_off(mut self) {
        self.run_within("zpool export -a && sync", secs(120));
        self.monitor("quit");
        wait_for("the machine is off", secs(60), || {
            (!self.is_on()).then_some(())
        });
    }

    /// Pulls the plug: what it had not written to its disks is gone.
    pub(crate) fn cut_power(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let console = self.console();
            eprintln!("the ZFS machine's console ends:\n{}", tail(&console));
        }
        self.cut_power();
    }
}
