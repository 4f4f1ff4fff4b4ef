//! A network that loses packets, in a namespace of the test: nftables drops a share of what
//! arrives, DATA and ACKs alike.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use super::{memory, noise, serve};

/// A network namespace with a loopback that loses packets; gone when dropped.
struct Namespace(String);

impl Namespace {
    fn new(percent: u32) -> Self {
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        let name = format!("dls-tftp-{}", &nonce[..8]);
        must("ip", &["netns", "add", &name]);
        let namespace = Self(name);
        namespace.must("ip", &["link", "set", "lo", "up"]);
        let rules = format!(
            "table inet loss {{ chain input {{ type filter hook input priority 0; \
             meta l4proto udp numgen random mod 100 < {percent} drop; }} }}"
        );
        namespace.must("nft", &[&rules]);
        namespace
    }

    fn must(&self, program: &str, args: &[&str]) {
        let mut all = vec!["netns", "exec", &self.0, program];
        all.extend_from_slice(args);
        must("ip", &all);
    }

    /// Runs a test inside: this thread, its sockets and its children are in the namespace.
    fn inside<T: Send>(&self, test: impl AsyncFnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.0);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let file = std::fs::File::open(path).unwrap();
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap()
                    .block_on(test())
            });
            thread.join().unwrap()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn must(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {text}");
}

/// Fetches 1 MiB with atftp, blksize 1428; gives the seconds it took.
fn fetch(percent: u32, window: &str, limit: u64) {
    let namespace = Namespace::new(percent);
    let all = noise(1 << 20, u64::from(percent));
    let folder = tempfile::tempdir().unwrap();
    let (took, resent) = namespace.inside(async || {
        let server = serve(&[("f", memory(&all))]);
        let began = Instant::now();
        let port = server.address.port().to_string();
        let child = tokio::process::Command::new("atftp")
            .args(["--option", "blksize 1428", "--option", window, "--get"])
            .args(["-r", "f", "-l", "out", "127.0.0.1", &port])
            .current_dir(folder.path())
            .kill_on_drop(true)
            .output();
        let done = tokio::time::timeout(Duration::from_secs(limit), child).await;
        let done = done.expect("not done in time").unwrap();
        let words = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{words}");
        (began.elapsed(), server.metrics.blocks_resent.get())
    });
    assert!(std::fs::read(folder.path().join("out")).unwrap() == all);
    eprintln!("{percent} % each way, {window}: {took:.1?}, {resent} blocks resent");
}

/// Scoreboard: 1 MiB at 5 % loss each way, blksize 1428, lock-step: done within 15 s.
#[test]
fn five_percent_each_way_lock_step() {
    fetch(5, "windowsize 1", 15);
}

/// The same in windows.
#[test]
fn five_percent_each_way_windows() {
    fetch(5, "windowsize 8", 15);
}

/// Scoreboard: 20 % each way, within 90 s.
#[test]
fn twenty_percent_each_way() {
    fetch(20, "windowsize 4", 90);
}
