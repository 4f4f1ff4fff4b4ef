//! Disks while their server's PostgreSQL is stopped: a known client's new boot gets its clone
//! out of the cache, over a real connection; I/O goes on; nothing of it is missing afterwards.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use dls::catalog::embedded::{Embedded, choose_user};
use dls::export::nbd::{NbdLimits, NbdMetrics, NbdServer};
use dls::storage::DiskStore;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;
use crate::support::{die_with_us, open, state_dir};

/// How the database is away.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Away {
    /// It takes connections and answers nothing: SIGSTOP.
    Frozen,
    /// It was shut down.
    Down,
}

/// All processes of a cluster, stopped for as long as this lives.
struct Frozen(Vec<Pid>);

impl Frozen {
    fn new(postmaster: u32) -> Self {
        let mut all = vec![postmaster];
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // PID (NAME) STATE PARENT ..
            let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            let parent = rest.split(' ').nth(1).and_then(|n| n.parse::<u32>().ok());
            if parent == Some(postmaster) {
                all.extend(
                    entry
                        .file_name()
                        .to_str()
                        .and_then(|n| n.parse::<u32>().ok()),
                );
            }
        }
        assert!(all.len() > 3, "a postmaster has children: {all:?}");
        let all = all
            .into_iter()
            .map(|pid| Pid::from_raw(i32::try_from(pid).unwrap()));
        let all: Vec<Pid> = all.collect();
        for pid in &all {
            let _ = kill(*pid, Signal::SIGSTOP);
        }
        Self(all)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill(*pid, Signal::SIGCONT);
        }
    }
}

async fn start(dir: &Path) -> Embedded {
    let embedded = Embedded::start(dir, choose_user().as_ref()).await.unwrap();
    die_with_us(embedded.pid(), None);
    embedded
}

/// Commands of qemu-io on a disk, which must all be right.
async fn qemu_io(uri: &str, commands: &[&str]) {
    let mut io = Command::new("timeout");
    io.args(["--kill-after=5", "60", "qemu-io", "-f", "raw"]);
    for command in commands {
        io.args(["-c", command]);
    }
    io.arg(uri).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || io.output().unwrap());
    let output = output.await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{commands:?}: {said}{error}");
    assert!(!said.contains("failed"), "{commands:?}: {said}");
}

async fn disks_are_served_without(away: Away) {
    let (dir, stored) = (state_dir(), tempfile::tempdir().unwrap());
    let mut database = Some(start(dir.path()).await);
    let server_id = Uuid::new_v4();
    let catalog = open(&database.as_ref().unwrap().url(), server_id).await;
    catalog.run_migrations().await.unwrap();
    let store = Arc::new(DiskStore::open(stored.path(), 1 << 20).unwrap());
    let world = World::over(catalog, server_id, store).await;
    let server = NbdServer::bind("127.0.0.1:0".parse().unwrap());
    let server = server.await.unwrap();
    let address = server.local_addr();
    let (door, stop) = (Arc::new(world.disks.clone()), CancellationToken::new());
    let limits = NbdLimits::default();
    let serving = tokio::spawn(server.run(door, NbdMetrics::default(), limits, stop.clone()));
    let uri = |boot: Uuid| {
        let name = export_name(world.cache.get().site_key(), boot);
        format!("nbd://{address}/{name}")
    };

    // One machine runs already.
    let runs = world.boot(0);
    let line = Wire::new(true);
    let disk = world.log_in(runs, &line).unwrap();
    write(&disk, b"runs").unwrap();
    assert!(world.tracker.drain(Duration::from_secs(30)).await);

    let mended = world.add_version("mended", b"mend").await;
    world.release(mended, Some("lab")).await;
    world.set(1, |c| c.ring = Some("lab".into())).await;

    let frozen = match away {
        Away::Frozen => Some(Frozen::new(database.as_ref().unwrap().pid())),
        Away::Down => {
            database.take().unwrap().stop().await.unwrap();
            None
        }
    };
    let asked = world.catalog.get_attempt(runs);
    let asked = tokio::time::timeout(Duration::from_secs(1), asked).await;
    assert!(!matches!(asked, Ok(Ok(_))), "the database is away");

    // It goes on; another one is switched on, and has its own clone, of its ring's version.
    write(&disk, b"more").unwrap();
    assert_eq!(text(&disk), "more");
    let new = world.boot(1);
    assert_eq!(world.clones(), [Volume::Session(runs)]);
    let first = ["read -P 0x6d 0 1", "write -P 0x5a 4096 65536", "flush"];
    qemu_io(&uri(new), &first).await;
    let both = world.clones();
    assert!(both.len() == 2 && both.contains(&Volume::Session(new)));
    // It logs in again, and the one that runs does too: each finds what it wrote.
    qemu_io(&uri(new), &["read -P 0x5a 4096 65536"]).await;
    drop(disk);
    let again = world.log_in(runs, &Wire::new(true)).unwrap();
    assert_eq!(text(&again), "more");
    // The keeper looks on, and takes nothing away because it knows nothing.
    let keeper = tokio::spawn({
        let (disks, catalog) = (world.disks.clone(), world.catalog.clone());
        async move { disks.tidy(&catalog).await }
    });
    assert!(!world.tracker.drain(Duration::from_millis(500)).await);

    drop(frozen);
    if database.is_none() {
        database = Some(start(dir.path()).await);
    }
    keeper.await.unwrap();
    assert_eq!(world.clones().len(), 2);
    let stages = world.stages(new).await;
    let has = |stage: &str| stages.iter().filter(|s| *s == stage).count();
    assert_eq!(stages[..3], ["discover", "script", "disk_attached"]);
    assert!(has("disk_attached") >= 2 && has("disk_read") >= 1 && has("disk_written") >= 1);
    for (boot, n) in [(runs, 0), (new, 1)] {
        let (attempt, _, session) = world.catalog.get_attempt(boot).await.unwrap().unwrap();
        let session = session.unwrap();
        assert_eq!(session.client_id, world.clients[n].id);
        assert_eq!(session.image_id, world.image.id);
        assert!(session.status.as_str() == "booting" || session.status.as_str() == "running");
        assert_eq!(attempt.client_id, Some(world.clients[n].id));
    }
    assert_eq!(world.version_of(runs).await.as_deref(), Some("base"));
    assert_eq!(world.version_of(new).await.as_deref(), Some("mended"));
    world.disks.tidy(&world.catalog).await;

    drop(again);
    stop.cancel();
    serving.await.unwrap();
    world.cancel.cancel();
    world.catalog.close().await;
    database.unwrap().stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_database_stops_no_disk() {
    disks_are_served_without(Away::Frozen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_shut_down_stops_no_disk() {
    disks_are_served_without(Away::Down).await;
}
