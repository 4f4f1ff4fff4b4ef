//! The lab's network: namespaces made for one test and gone with it, however it ends.
//!
//! `LAB-lan` is the cable: a bridge, the machines' taps and QEMU itself. `LAB-srv` is the
//! server: `lan0` with 10.77.0.1/16. Others (a foreign DHCP server, DHCP clients) get
//! namespaces of their own, each with one `lan0` on the bridge. Must not touch anything
//! outside them.

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The server's address.
pub(crate) const SERVER: &str = "10.77.0.1";

/// One test's network and directory.
pub(crate) struct Lab {
    test: &'static str,
    name: String,
    dir: tempfile::TempDir,
    namespaces: RefCell<Vec<String>>,
    children: RefCell<Vec<Child>>,
    taps: Cell<u32>,
}

/// Runs a program to its end and returns its standard output; fails the test if it fails.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    let mut command = Command::new(program);
    command.args(args);
    finish(&mut command)
}

/// Runs a command to its end; fails the test with its output if it fails.
pub(crate) fn finish(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command to its end, whatever comes of it.
pub(crate) fn output(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

impl Lab {
    /// Makes the cable and the server's namespace.
    pub(crate) fn new(test: &'static str) -> Self {
        assert!(
            nix::unistd::Uid::effective().is_root(),
            "the lab makes network namespaces: run it as root"
        );
        sweep();
        let dir = tempfile::Builder::new()
            .prefix("dlslab-")
            .tempdir()
            .expect("a temporary directory");
        // dls becomes an unprivileged user and must get at its files below.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let tail: String = dir.path().to_string_lossy().chars().rev().take(6).collect();
        let lab = Self {
            test,
            name: format!("dlslab{}-{tail}", std::process::id()),
            dir,
            namespaces: RefCell::default(),
            children: RefCell::default(),
            taps: Cell::new(0),
        };
        let lan = lab.add_namespace("lan");
        for line in [
            "link add br0 type bridge",
            "link set br0 type bridge stp_state 0 forward_delay 0",
            "link set br0 up",
        ] {
            lab.ip(&lan, line);
        }
        lab.host("srv", Some("10.77.0.1/16"));
        lab
    }

    /// A new namespace `LAB-what`.
    pub(crate) fn add_namespace(&self, what: &str) -> String {
        let name = format!("{}-{what}", self.name);
        run("ip", ["netns", "add", name.as_str()]);
        self.namespaces.borrow_mut().push(name.clone());
        // No duplicate-address detection: the first seconds count here.
        let quiet = "net.ipv6.conf.default.accept_dad=0";
        finish(&mut self.command_in(&name, "sysctl", ["-qw", quiet]));
        self.ip(&name, "link set lo up");
        name
    }

    /// A host on the cable: a namespace with `lan0` on the bridge. Returns its full name.
    pub(crate) fn host(&self, what: &str, address: Option<&str>) -> String {
        let host = self.add_namespace(what);
        let lan = self.namespace("lan");
        self.ip(
            &lan,
            &format!("link add p-{what} type veth peer name lan0 netns {host}"),
        );
        self.ip(&lan, &format!("link set p-{what} master br0 up"));
        if let Some(address) = address {
            self.ip(&host, &format!("addr add {address} dev lan0"));
        }
        self.ip(&host, "link set lan0 up");
        host
    }

    /// A new tap on the bridge, for one machine.
    pub(crate) fn add_tap(&self) -> String {
        let number = self.taps.get();
        self.taps.set(number + 1);
        let tap = format!("tap{number}");
        let lan = self.namespace("lan");
        self.ip(&lan, &format!("tuntap add {tap} mode tap"));
        self.ip(&lan, &format!("link set {tap} master br0 up"));
        tap
    }

    /// Full name of a namespace of this lab.
    pub(crate) fn namespace(&self, what: &str) -> String {
        format!("{}-{what}", self.name)
    }

    /// `ip -n NAMESPACE LINE`.
    pub(crate) fn ip(&self, namespace: &str, line: &str) {
        run("ip", ["-n", namespace].into_iter().chain(words(line)));
    }

    /// A command that will run inside a namespace (full name).
    pub(crate) fn command_in<S: AsRef<OsStr>>(
        &self,
        namespace: &str,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", namespace])
            .arg(program)
            .args(args)
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    /// The same in the server's namespace.
    pub(crate) fn on_server<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        self.command_in(&self.namespace("srv"), program, args)
    }

    /// Adds rules to the server's firewall, lines of an nftables chain on packets coming in
    /// (`input`) or going out (`output`).
    pub(crate) fn firewall(&self, hook: &str, rule: &str) {
        let table = format!(
            "table inet lab {{\n chain {hook} {{\n type filter hook {hook} priority 0; policy accept;\n {rule}\n }}\n}}\n"
        );
        let file = self.path().join("rules.nft");
        fs::write(&file, table).expect("rules.nft");
        finish(&mut self.on_server("nft", [OsStr::new("-f"), file.as_os_str()]));
    }

    /// Takes all rules away.
    pub(crate) fn open_firewall(&self) {
        finish(&mut self.on_server("nft", ["flush", "ruleset"]));
    }

    /// An IPv6 router on the cable, as most LANs have one. Without it each iPXE waits 13 s
    /// for router advertisements before it fetches anything.
    pub(crate) fn ipv6_router(&self) {
        let host = self.host("rtr", None);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/router.py");
        let mut command = self.command_in(&host, "python3", [script.as_os_str()]);
        self.keep(command.stdout(Stdio::null()).stderr(Stdio::null()));
    }

    /// Starts a program that lives as long as the lab; returns its process id.
    pub(crate) fn keep(&self, command: &mut Command) -> u32 {
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let pid = child.id();
        self.children.borrow_mut().push(child);
        pid
    }

    /// All processes of that name (the kernel's: 15 characters) in this lab.
    pub(crate) fn all(&self, program: &str) -> Vec<Pid> {
        let namespaces = self.namespaces.borrow();
        let all = namespaces.iter().flat_map(|n| Self::named(program, n));
        all.collect()
    }

    /// Those of one namespace (full name).
    pub(crate) fn named(program: &str, namespace: &str) -> Vec<Pid> {
        let mut all = pids(namespace);
        all.retain(|pid| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm"));
            comm.is_ok_and(|name| name.trim() == program)
        });
        all
    }

    /// Ends them.
    pub(crate) fn end_all(&self, program: &str) {
        for pid in self.all(program) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }

    /// This test's directory.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in self.namespaces.borrow().iter() {
            remove(namespace);
        }
        for child in self.children.borrow_mut().iter_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let keep = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
                .join("lab")
                .join(self.test);
            let _ = fs::remove_dir_all(&keep);
            let _ = fs::create_dir_all(&keep);
            for entry in fs::read_dir(self.path()).into_iter().flatten().flatten() {
                if entry.path().is_file() {
                    let _ = fs::copy(entry.path(), keep.join(entry.file_name()));
                }
            }
            eprintln!("logs, consoles and captures: {}", keep.display());
        }
    }
}

/// What runs in a namespace.
fn pids(namespace: &str) -> Vec<Pid> {
    let pids = Command::new("ip")
        .args(["netns", "pids", namespace])
        .output();
    let text = pids.map(|o| o.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| line.trim().parse().ok().map(Pid::from_raw))
        .collect()
}

/// Kills all that runs in a namespace of ours, then deletes it.
fn remove(namespace: &str) {
    for pid in pids(namespace) {
        let _ = kill(pid, Signal::SIGKILL);
    }
    let _ = Command::new("ip")
        .args(["netns", "delete", namespace])
        .stderr(Stdio::null())
        .status();
}

/// Takes away what a test left that was killed before it could: namespaces named after a
/// process that is gone.
fn sweep() {
    let list = Command::new("ip").args(["netns", "list"]).output();
    let list = list.map(|o| o.stdout).unwrap_or_default();
    for line in String::from_utf8_lossy(&list).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let owner = name
            .strip_prefix("dlslab")
            .and_then(|rest| rest.split('-').next());
        if let Some(pid) = owner.filter(|p| p.parse::<u32>().is_ok())
            && !Path::new("/proc").join(pid).exists()
        {
            remove(name);
        }
    }
}

/// A small file system for one test, in memory.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it at a new folder of the lab.
    pub(crate) fn mount(lab: &Lab, name: &str, mib: u32) -> Self {
        let path = lab.path().join(name);
        fs::create_dir(&path).expect("a folder");
        let size = format!("size={mib}m,mode=777");
        finish(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
                .arg(&path),
        );
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Takes all of its space but so many bytes.
    pub(crate) fn fill(&self, but: u64) {
        let free = nix::sys::statvfs::statvfs(&self.0).expect("statvfs");
        let left = free.blocks_available() * free.fragment_size();
        let bytes = usize::try_from(left.saturating_sub(but)).expect("a small disk");
        fs::write(self.ballast(), vec![1_u8; bytes]).expect("ballast");
    }

    /// Gives that space back.
    pub(crate) fn empty(&self) {
        fs::remove_file(self.ballast()).expect("ballast");
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = output(Command::new("umount").arg("-l").arg(&self.0));
    }
}
