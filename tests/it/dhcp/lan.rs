//! A LAN of network namespaces, made for one test and gone with it.
//!
//! `NAME-cable` holds a bridge; every host is a namespace of its own with one interface,
//! `lan0`, on that bridge. Nothing outside them is touched.

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

static LANS: AtomicU32 = AtomicU32::new(0);

/// The namespaces and a directory for files.
pub(crate) struct Lan {
    name: String,
    hosts: RefCell<Vec<String>>,
    dir: tempfile::TempDir,
}

/// A host on the cable.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Its namespace.
    pub(crate) namespace: String,
    cable: String,
    dir: PathBuf,
}

fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Lan {
    pub(crate) fn new() -> Self {
        let number = LANS.fetch_add(1, Ordering::Relaxed);
        let name = format!("dlsd{}-{number}", std::process::id());
        let lan = Self {
            dir: tempfile::Builder::new().prefix("dlsd-").tempdir().unwrap(),
            hosts: RefCell::default(),
            name,
        };
        let cable = lan.add("cable");
        ip(&format!(
            "-n {cable} link add br0 type bridge forward_delay 0"
        ));
        ip(&format!("-n {cable} link set br0 up"));
        lan
    }

    fn add(&self, what: &str) -> String {
        let namespace = format!("{}-{what}", self.name);
        ip(&format!("netns add {namespace}"));
        self.hosts.borrow_mut().push(namespace.clone());
        ip(&format!("-n {namespace} link set lo up"));
        namespace
    }

    /// A host, with an address like `10.77.0.1/24` or none.
    pub(crate) fn host(&self, what: &str, address: Option<&str>) -> Host {
        let host = Host {
            namespace: self.add(what),
            cable: format!("{}-cable", self.name),
            dir: self.dir.path().to_owned(),
        };
        host.plug("lan0", what, address);
        host
    }

    /// A host that is on no cable yet.
    pub(crate) fn lonely_host(&self, what: &str) -> Host {
        Host {
            namespace: self.add(what),
            cable: format!("{}-cable", self.name),
            dir: self.dir.path().to_owned(),
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for namespace in self.hosts.borrow().iter() {
            // What still runs in there was started by this test: daemons of clients.
            let pids = Command::new("ip")
                .args(["netns", "pids", namespace])
                .output();
            if let Ok(pids) = pids {
                for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
                    let this_test = pid == std::process::id().to_string();
                    if let (Ok(pid), false) = (pid.parse(), this_test) {
                        let pid = nix::unistd::Pid::from_raw(pid);
                        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                    }
                }
            }
            let _ = Command::new("ip")
                .args(["netns", "del", namespace])
                .output();
        }
    }
}

impl Host {
    /// Another interface of this host on the cable.
    pub(crate) fn plug(&self, interface: &str, peer: &str, address: Option<&str>) {
        let Self {
            namespace, cable, ..
        } = self;
        ip(&format!(
            "-n {cable} link add {peer} type veth peer name {interface} netns {namespace}"
        ));
        ip(&format!("-n {cable} link set {peer} master br0 up"));
        if let Some(address) = address {
            self.ip(&format!("addr add {address} dev {interface}"));
        }
        self.ip(&format!("link set {interface} up"));
    }

    /// A cable of its own to another host, past the bridge.
    pub(crate) fn wire_to(&self, interface: &str, other: &Host, their_interface: &str) {
        ip(&format!(
            "-n {} link add {interface} type veth peer name {their_interface} netns {}",
            self.namespace, other.namespace
        ));
        self.ip(&format!("link set {interface} up"));
        other.ip(&format!("link set {their_interface} up"));
    }

    /// `ip ARGUMENTS` on this host.
    pub(crate) fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.namespace));
    }

    /// A command on this host.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace, program])
            .args(arguments)
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        command
    }

    /// Runs a program to its end, at most `limit`; its output, whatever became of it.
    pub(crate) fn run(&self, limit: Duration, program: &str, arguments: &[&str]) -> Output {
        let seconds = limit.as_secs().max(1).to_string();
        let mut all = vec!["--kill-after=2", seconds.as_str(), program];
        all.extend(arguments);
        self.command("timeout", &all).output().unwrap()
    }

    /// Starts a program that lives at most as long as the LAN.
    pub(crate) fn start(&self, program: &str, arguments: &[&str]) -> std::process::Child {
        self.command(program, arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// A place for files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{}-{name}", self.namespace))
    }

    /// The IPv4 addresses of `lan0`.
    pub(crate) fn addresses(&self) -> Vec<Ipv4Addr> {
        let output = self
            .command("ip", &["-4", "-o", "addr", "show", "dev", "lan0"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| {
                line.split_whitespace()
                    .nth(3)?
                    .split('/')
                    .next()?
                    .parse()
                    .ok()
            })
            .collect()
    }

    /// Runs a function on a thread that lives in this host's namespace, and those that it
    /// starts do so too.
    pub(crate) fn enter<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let path = Path::new("/run/netns").join(&self.namespace);
        std::thread::spawn(move || {
            let namespace = std::fs::File::open(path).unwrap();
            #[expect(unsafe_code, reason = "setns takes a descriptor and a flag, no memory")]
            let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(entered, 0, "setns: {}", std::io::Error::last_os_error());
            work()
        })
    }
}

/// Asks until there is an answer; fails the test once `limit` is over.
#[expect(
    clippy::disallowed_methods,
    reason = "waits for other programs in real time"
)]
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
