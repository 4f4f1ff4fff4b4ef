//! NBD over real sockets: `clients` (programs that people have), `model` (random operations
//! held against bytes in memory), `errors` (a disk that fails), `hostile` (bytes that no client
//! sends), `tls`. This file runs the server on a door of the test's own; `raw` is a client of
//! ours that does what it is told.

#![expect(
    clippy::unwrap_used,
    reason = "a test's helper that fails is a test that fails"
)]

mod clients;
mod errors;
mod hostile;
mod model;
mod raw;
mod tls;

use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dls::boot::disks::{Attachment, ChapSecrets, DiskDoor, Line, Login, NoDisk, Proof};
use dls::export::nbd::{MultiConn, NbdLimits, NbdMetrics, NbdServer};
use dls::model::DiskIdentity;
use dls::storage::memory::Memory;
use dls::storage::{Access, BlockDevice, DeviceInfo, Storage, Volume};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The name of the disk that the door gives.
const NAME: &str = "0123456789abcdef0123456789abcdef.fedcba9876543210fedcba9876543210";

/// A door with one disk, by its name; `refuse`: what it says to other names of its own.
#[derive(Debug)]
struct Door {
    disk: Arc<dyn BlockDevice>,
    attached: Mutex<Vec<Arc<dyn Line>>>,
}

impl Door {
    fn attached(&self) -> usize {
        self.attached.lock().unwrap().len()
    }
}

impl DiskDoor for Door {
    fn secrets(&self, _: &str) -> Option<ChapSecrets> {
        None
    }

    fn visible(&self, _: &str) -> Option<DiskIdentity> {
        None
    }

    fn describe(&self, proof: &Proof) -> Result<Option<DeviceInfo>, NoDisk> {
        match proof {
            Proof::ExportName(name) if name == NAME => Ok(Some(self.disk.info())),
            Proof::ExportName(name) if name == "shy" => Ok(None),
            _ => Err(NoDisk::WrongProof),
        }
    }

    fn attach(&self, login: Login) -> Result<Attachment, NoDisk> {
        let Proof::ExportName(name) = &login.proof else {
            return Err(NoDisk::WrongProof);
        };
        match name.as_str() {
            NAME => {}
            "over" => return Err(NoDisk::BootOver),
            "in-use" => return Err(NoDisk::InUse),
            "full" => return Err(NoDisk::Store("no space is left".to_owned())),
            "stopping" => return Err(NoDisk::Unavailable),
            _ => return Err(NoDisk::WrongProof),
        }
        self.attached.lock().unwrap().push(login.line);
        let owner = Uuid::from_u128(7);
        Ok(Attachment::new(
            DiskIdentity { owner },
            owner,
            self.disk.clone(),
            Arc::default(),
            Box::new(|_| {}),
        ))
    }
}

/// A disk in memory.
fn memory(size: u64, access: Access) -> Arc<dyn BlockDevice> {
    let (store, volume) = (Memory::new(), Volume::Image(Uuid::nil()));
    store.create(volume, size).unwrap();
    store.open(volume, access).unwrap()
}

/// A running server, stopped when dropped.
struct Running {
    address: SocketAddr,
    door: Arc<Door>,
    metrics: NbdMetrics,
    cancel: CancellationToken,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Running {
    fn uri(&self) -> String {
        format!("nbd://{}/{NAME}", self.address)
    }

    /// All counters as text.
    fn counted(&self, line: &str) -> bool {
        let mut registry = prometheus_client::registry::Registry::default();
        self.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text.lines().any(|l| l == line)
    }

    /// Waits until a counter stands so.
    fn counts(&self, line: &str) {
        for _ in 0..200 {
            if self.counted(line) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut registry = prometheus_client::registry::Registry::default();
        self.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        panic!("never `{line}`:\n{text}");
    }

    async fn stop(mut self) {
        self.cancel.cancel();
        self.task.take().unwrap().await.unwrap();
    }
}

/// A server for tests: many connections come from one address.
fn limits() -> NbdLimits {
    NbdLimits {
        handshakes_per_address: 4096,
        multi_conn: MultiConn::Advertised,
        ..NbdLimits::default()
    }
}

async fn serve(disk: Arc<dyn BlockDevice>, limits: NbdLimits) -> Running {
    let server = NbdServer::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let door = Arc::new(Door {
        disk,
        attached: Mutex::default(),
    });
    let (address, cancel) = (server.local_addr(), CancellationToken::new());
    let metrics = NbdMetrics::default();
    let run = server.run(door.clone(), metrics.clone(), limits, cancel.clone());
    Running {
        address,
        door,
        metrics,
        cancel,
        task: Some(tokio::spawn(run)),
    }
}

/// Runs a program to its end, which must come within two minutes.
fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new("timeout")
        .args(["--kill-after=5", "120", program])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs a program that must succeed; gives what it said.
fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// Calls that block, beside the runtime that serves.
async fn aside<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(act).await.unwrap()
}
