//! Many transfers at once, from the real server in a process of its own (scoreboard, row 15):
//! all arrive whole, none much later than the others, and what each costs the server in memory.
//!
//! 300 transfers in `make test`, 2,000 of 1 MiB under `DLS_TORTURE`.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use dls::clock::Clock;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::protocol::{Client, Habits};
use crate::admin::process::Server;
use crate::support::{TestDb, noise, torture};

/// Bytes that one transfer may cost.
const EACH: u64 = 64 * 1024;

/// Bytes of a process that are in memory.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

/// The port that its configuration names for TFTP.
fn port(server: &Server) -> u16 {
    let text = std::fs::read_to_string(&server.config).unwrap();
    let at = text.split("[tftp]").nth(1).unwrap();
    let address = at.split('"').nth(1).unwrap();
    address.rsplit(':').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_crowds_all_arrive_fairly_and_cost_little() {
    let (count, size) = if torture() {
        (2_000, 1 << 20)
    } else {
        (300, 200_000)
    };
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let (db, dir) = (TestDb::new().await, tempfile::tempdir().unwrap());
    let all: Arc<Vec<u8>> = Arc::new(noise(size, 15));
    let loaders = dir.path().join("loaders");
    std::fs::create_dir(&loaders).unwrap();
    std::fs::write(loaders.join("boot.img"), &*all).unwrap();
    let tables = format!("[boot]\nloader_dir = {loaders:?}\n");
    let server = Server::begin(&db.url, dir.path(), &tables, &[]);
    server.ready().await;
    let pid = server.child.id().unwrap();
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port(&server));
    let habits = |n: usize| Habits {
        window: if n.is_multiple_of(2) { 1 } else { 8 },
        acks: 1,
    };
    // What the first ones make the server load is none of the crowd's.
    for n in 0..4 {
        let got = fetch(Ipv4Addr::new(127, 2, 9, 9), address, habits(n)).await;
        assert!(got == *all);
    }
    let before = resident(pid);
    let clock = Clock::system();
    let together = Arc::new(Barrier::new(count));
    let mut tasks = JoinSet::new();
    for n in 0..count {
        let host = u16::try_from(n).unwrap().to_be_bytes();
        let from = Ipv4Addr::new(127, 3, host[0], host[1]);
        let (all, clock, together) = (all.clone(), clock.clone(), together.clone());
        tasks.spawn(async move {
            together.wait().await;
            let began = clock.instant();
            assert!(fetch(from, address, habits(n)).await == *all);
            clock.instant().saturating_duration_since(began)
        });
    }
    let (mut took, mut peak) = (Vec::new(), before);
    let mut look = tokio::time::interval(Duration::from_millis(50));
    while took.len() < count {
        tokio::select! {
            one = tasks.join_next() => took.push(one.unwrap().unwrap()),
            _ = look.tick() => peak = peak.max(resident(pid)),
        }
    }
    took.sort();
    let (median, slowest) = (took[count / 2], took[count - 1]);
    let each = (peak - before) / count as u64;
    eprintln!("{count} at once: median {median:.2?}, slowest {slowest:.2?}, {each} bytes each");
    assert!(
        slowest <= median * 3,
        "median {median:?}, slowest {slowest:?}"
    );
    assert!(each <= EACH, "{each} bytes each");
}

async fn fetch(from: Ipv4Addr, server: SocketAddrV4, habits: Habits) -> Vec<u8> {
    let window = habits.window.to_string();
    let options = [("blksize", "1428"), ("windowsize", window.as_str())];
    let mut client = Client::at(from).await;
    tokio::time::timeout(
        Duration::from_secs(180),
        client.fetch(server, "boot.img", &options, habits),
    )
    .await
    .expect("not done in three minutes")
}
