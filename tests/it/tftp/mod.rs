//! TFTP over real sockets: `clients` (programs that people have), `protocol` (a client of our
//! own that misbehaves on purpose), `hostile` (packets no client sends), `loss` (a lossy
//! network in a namespace), `crowd` (thousands at once). This file runs the server on a set of files.

#![expect(
    clippy::unwrap_used,
    reason = "a test's helper that fails is a test that fails"
)]

mod clients;
mod crowd;
mod hostile;
mod loss;
mod protocol;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dls::clock::Clock;
use dls::tftp::metrics::{Ending, EndingLabel, Refusal, TftpMetrics};
use dls::tftp::room::{Body, Opened, Progress, Room};
use dls::tftp::server::{Caps, TftpServer};
use tokio_util::sync::CancellationToken;

/// A file to serve.
#[derive(Clone)]
enum Served {
    Memory(bytes::Bytes),
    Path(PathBuf),
}

/// What the server told about its transfers, by file name.
type Diary = Arc<Mutex<Vec<(String, Progress)>>>;

/// A running server, stopped when dropped.
struct Running {
    address: SocketAddrV4,
    metrics: TftpMetrics,
    diary: Diary,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Running {
    fn ended(&self, outcome: Ending) -> u64 {
        let label = EndingLabel { outcome };
        self.metrics.transfers.get_or_create(&label).get()
    }

    fn told(&self, name: &str) -> Vec<Progress> {
        let diary = self.diary.lock().unwrap();
        let of_name = diary.iter().filter(|(n, _)| n == name);
        of_name.map(|(_, p)| p.clone()).collect()
    }

    /// Waits until a transfer has ended that way so many times.
    async fn wait_for(&self, outcome: Ending, count: u64) {
        for _ in 0..1000 {
            if self.ended(outcome) >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{outcome:?}: {} of {count}", self.ended(outcome));
    }
}

/// Starts a server on a free port of every loopback address.
fn serve(files: &[(&str, Served)]) -> Running {
    serve_with(files, Caps::default())
}

fn serve_with(files: &[(&str, Served)], caps: Caps) -> Running {
    let files: HashMap<Vec<u8>, Served> = files
        .iter()
        .map(|(name, file)| (name.as_bytes().to_vec(), file.clone()))
        .collect();
    let files = Arc::new(files);
    let diary = Diary::default();
    let told = Arc::clone(&diary);
    let room: Room = Arc::new(move |ask| {
        let (files, told) = (Arc::clone(&files), Arc::clone(&told));
        Box::pin(async move {
            let body = match files.get(&ask.name) {
                None => return Err((Refusal::NoLoader, "no such file".to_owned())),
                Some(Served::Memory(bytes)) => Body::Memory(bytes.clone()),
                Some(Served::Path(path)) => {
                    let file = std::fs::File::open(path).unwrap();
                    let size = file.metadata().unwrap().len();
                    Body::File { file, size }
                }
            };
            let name = String::from_utf8_lossy(&ask.name).into_owned();
            Ok(Opened {
                body,
                watch: Some(Box::new(move |progress| {
                    told.lock().unwrap().push((name.clone(), progress));
                })),
            })
        })
    });
    let server = TftpServer::bind("0.0.0.0:0".parse().unwrap())
        .unwrap()
        .with_caps(caps);
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, server.local_addr().port());
    let metrics = TftpMetrics::default();
    let cancel = CancellationToken::new();
    let task = tokio::spawn(server.run(room, metrics.clone(), Clock::system(), cancel.clone()));
    Running {
        address,
        metrics,
        diary,
        cancel,
        task,
    }
}

fn memory(bytes: &[u8]) -> Served {
    Served::Memory(bytes.to_vec().into())
}
