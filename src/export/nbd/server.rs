//! Listening and the handshake, on the runtime: within a time limit, in bounded memory, with
//! a bound on how many there are. A connection that has its disk leaves for a thread of its
//! own. It knows no rule of the protocol (`machine`) and no rule about disks (the door).

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::handshake::{Hall, greet};
use super::line::NbdLine;
use super::metrics::{Crowded, End, NbdMetrics};
use super::tls::Tls;
use crate::boot::disks::{DiskDoor, Line as _};
use crate::crowd::{self, Crowd, Place};

/// Limits of the server. The defaults suit any site.
#[derive(Debug, Clone)]
pub struct NbdLimits {
    /// From the first byte to an open disk, TLS included.
    pub handshake: Duration,
    /// Connections that have no disk yet.
    pub handshakes: usize,
    /// The same, of one address.
    pub handshakes_per_address: usize,
    /// Connections with a disk.
    pub connections: usize,
    /// How long connections may take to end when the server stops.
    pub drain: Duration,
    /// Nothing acknowledged for this long ends a connection.
    pub stall: Duration,
    /// Whether connections go in TLS.
    pub tls: Tls,
    /// Whether clients are told that several connections to one disk work as one.
    pub multi_conn: MultiConn,
}

/// What clients are told of several connections to one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MultiConn {
    /// Nothing: a door that fences gives a disk to the newest connection only.
    Unsaid,
    /// That a flush on one covers all: for a door that lets several in.
    Advertised,
}

impl Default for NbdLimits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(14),
            handshakes: 8192,
            handshakes_per_address: 64,
            connections: 4096,
            drain: Duration::from_secs(5),
            stall: Duration::from_secs(120),
            tls: Tls::Off,
            multi_conn: MultiConn::Unsaid,
        }
    }
}

/// The server, bound and not yet serving.
#[derive(Debug)]
pub struct NbdServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl NbdServer {
    /// Binds the listener; nothing is answered before [`NbdServer::run`].
    ///
    /// # Errors
    /// When the address is taken, not ours, or may not be bound.
    pub async fn bind(listen: SocketAddr) -> io::Result<Self> {
        let listener = crowd::listen(listen).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it listens: the port is the real one where 0 was asked for.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `cancel`. Then what has been asked is still answered, for a while, and
    /// clients see their connections end: they come back when the server does, where an error
    /// would have reached their file systems.
    pub async fn run(
        self,
        door: Arc<dyn DiskDoor>,
        metrics: NbdMetrics,
        limits: NbdLimits,
        cancel: CancellationToken,
    ) {
        let crowd = Crowd::new(limits.handshakes, limits.handshakes_per_address);
        let tasks = TaskTracker::new();
        let hall = Hall {
            door,
            metrics: metrics.clone(),
            seats: Arc::new(Semaphore::new(limits.connections)),
            attaching: Arc::new(Semaphore::new(32)),
            lines: Arc::default(),
            tasks: tasks.clone(),
            limits: Arc::new(limits),
        };
        while let Some((stream, peer)) =
            crowd::next(&self.listener, "the NBD listener", &cancel).await
        {
            let place = match crowd.enter(peer.ip()) {
                Ok(place) => place,
                Err(full) => {
                    let reason = Crowded::from(full);
                    metrics.refused(reason);
                    tracing::debug!(client.ip = %peer.ip(), ?reason, "refused a connection");
                    continue;
                }
            };
            tasks.spawn(handshake(hall.clone(), stream, peer, place, cancel.clone()));
        }
        drop(self.listener);
        tasks.close();
        hall.lines.each(NbdLine::stop);
        if tokio::time::timeout(hall.limits.drain, tasks.wait())
            .await
            .is_err()
        {
            hall.lines.each(|line| line.close());
            tasks.wait().await;
        }
    }
}

/// One connection, until it has its disk and goes.
async fn handshake(
    hall: Hall,
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    cancel: CancellationToken,
) {
    let (metrics, limit) = (hall.metrics.clone(), hall.limits.handshake);
    metrics.handshakes().inc();
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(limit, greet(&hall, stream, peer)) => {
            outcome.unwrap_or(Err(End::SlowHandshake))
        }
        () = cancel.cancelled() => Err(End::Stopped),
    };
    metrics.handshakes().dec();
    drop(place);
    match outcome {
        Ok(ready) => ready.serve(&hall, &cancel),
        Err(end) => {
            metrics.ended(end);
            tracing::debug!(client.ip = %peer.ip(), how = end.as_str(), "a handshake ended");
        }
    }
}

/// Connections with a disk, to be ended when the server stops.
#[derive(Debug, Default)]
pub(super) struct Lines {
    next: AtomicU64,
    lines: Mutex<HashMap<u64, Arc<NbdLine>>>,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<NbdLine>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(self: &Arc<Self>, line: Arc<NbdLine>) -> Listed {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, line);
        Listed {
            number,
            lines: self.clone(),
        }
    }

    fn each(&self, act: impl Fn(&NbdLine)) {
        let lines: Vec<_> = self.lock().values().cloned().collect();
        for line in lines {
            act(&line);
        }
    }
}

/// An entry that goes when it is dropped.
#[derive(Debug)]
pub(super) struct Listed {
    number: u64,
    lines: Arc<Lines>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.lines.lock().remove(&self.number);
    }
}
