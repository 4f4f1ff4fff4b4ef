//! A network that loses packets, in a namespace of the test: nftables drops a share of what
//! arrives, DATA and ACKs alike.

use std::process::Command;
use std::time::Duration;

use dls::clock::Clock;
use nix::sched::{CloneFlags, unshare};

use super::{memory, serve};
use crate::support::noise;

/// Runs a test in a namespace whose loopback loses packets.
///
/// The namespace has no name: it is this one thread's, its sockets' and its children's, and
/// is gone with them however the test ends.
fn with_loss<T: Send>(percent: u32, test: impl AsyncFnOnce() -> T + Send) -> T {
    // atftp takes a second OACK for an error, so the ACK of the first must not be lost.
    let spared = "@th,64,32 0x00040000 accept;";
    let rules = format!(
        "table inet loss {{ chain input {{ type filter hook input priority 0; \
         {spared} meta l4proto udp numgen random mod 100 < {percent} drop; }}\n}}\n"
    );
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            must("ip", &["link", "set", "lo", "up"]);
            must("nft", &[&rules]);
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(test())
        });
        thread.join().unwrap()
    })
}

fn must(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {text}");
}

/// Fetches 1 MiB at blksize 1428 with a ready-made client.
fn fetch(percent: u32, program: &str, options: &[&str], limit: u64) {
    let all = noise(1 << 20, u64::from(percent));
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let (took, resent) = with_loss(percent, async || {
        let server = serve(&[("f", memory(&all))]);
        let began = clock.instant();
        let port = server.address.port().to_string();
        let child = tokio::process::Command::new(program)
            .args(options)
            .args(["-r", "f", "-l", "out", "127.0.0.1", &port])
            .current_dir(folder.path())
            .kill_on_drop(true)
            .output();
        let done = tokio::time::timeout(Duration::from_secs(limit), child).await;
        let done = done.expect("not done in time").unwrap();
        let words = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{words}");
        let took = clock.instant().saturating_duration_since(began);
        (took, server.metrics.blocks_resent.get())
    });
    assert!(std::fs::read(folder.path().join("out")).unwrap() == all);
    eprintln!("{percent} % each way, {program} {options:?}: {took:.1?}, {resent} blocks resent");
}

/// Scoreboard: 1 MiB at 5 % loss each way, blksize 1428, lock-step: done within 15 s.
///
/// Not with atftp: it answers a repeated block only once, so that every ACK that is lost
/// twice costs five seconds of its own timer, whatever the server does.
#[test]
fn five_percent_each_way_lock_step() {
    fetch(5, "busybox", &["tftp", "-b", "1428", "-g"], 15);
}

/// The same in windows. Only atftp speaks them, so its own timer (above) may cost some five
/// seconds more than once.
#[test]
fn five_percent_each_way_windows() {
    let options = [
        "--option",
        "blksize 1428",
        "--option",
        "windowsize 8",
        "--get",
    ];
    fetch(5, "atftp", &options, 45);
}

/// Scoreboard: 20 % each way, within 90 s.
#[test]
fn twenty_percent_each_way() {
    fetch(20, "busybox", &["tftp", "-b", "1428", "-g"], 90);
}
