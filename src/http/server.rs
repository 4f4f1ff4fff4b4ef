//! Listening, connections and their limits.
//!
//! A connection is cheap to open and costly to keep, so each has time limits for its request,
//! its report and its reading, and each address and all together a number of connections.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::Desk;
use super::ledger::Ledger;
use super::link::{End, Fate, Link};
use super::metrics::{Crowded, Cut, HttpMetrics};
use super::standin::Errands;
use crate::boot::files::Files;
use crate::crowd::{self, Crowd};

/// Longest request head in bytes; hyper takes no less.
const LONGEST_HEAD: usize = 8192;
/// Bytes that the kernel holds unsent: keeps the timeline honest about what a machine has,
/// and is more than any LAN needs.
const NOTSENT_LOWAT: u32 = 1024 * 1024;

/// Limits of the boot listener. The defaults suit any site.
#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one address.
    pub connections_per_address: usize,
    /// A request's head must be complete within this; an idle connection ends after it.
    pub request: Duration,
    /// A request's body must be complete within this.
    pub body: Duration,
    /// A reader that takes nothing for this long is cut, as is one that acknowledges nothing.
    pub stall: Duration,
    /// How long running answers may go on when the server stops.
    pub drain: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: 8192,
            connections_per_address: 64,
            // By anybody's clock a slow connection is gone within 15 s.
            request: Duration::from_secs(14),
            body: Duration::from_secs(10),
            stall: Duration::from_secs(14),
            drain: Duration::from_secs(5),
        }
    }
}

/// The listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another program listens there.
    #[error("[http] listen: {address} is taken by another program (`ss -ltnp` names it)")]
    Taken {
        /// Where.
        address: SocketAddr,
    },
    /// The address is not one of this machine.
    #[error("[http] listen: {address} is no address of this machine")]
    NotOurs {
        /// Where.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("[http] listen: can't listen on {address}: {source}")]
    Other {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// The boot listener, bound and not yet serving.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl HttpServer {
    /// Binds the listener; nothing is answered before [`HttpServer::run`].
    ///
    /// # Errors
    /// When the address is taken, not ours, or may not be bound.
    pub async fn bind(listen: SocketAddr) -> Result<Self, BindError> {
        let err = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::Taken { address: listen },
            io::ErrorKind::AddrNotAvailable => BindError::NotOurs { address: listen },
            _ => BindError::Other {
                address: listen,
                source,
            },
        };
        let listener = crowd::listen(listen).await.map_err(err)?;
        let address = listener.local_addr().map_err(err)?;
        Ok(Self { listener, address })
    }

    /// Where it listens: the port is the real one where 0 was asked for.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `cancel`; then lets running answers end for a while.
    pub async fn run(
        self,
        files: Files,
        metrics: HttpMetrics,
        limits: HttpLimits,
        cancel: CancellationToken,
    ) {
        let ledger = Ledger::new(files.clone());
        let crowd = Crowd::new(limits.connections, limits.connections_per_address);
        let tasks = TaskTracker::new();
        while let Some((stream, client)) =
            crowd::next(&self.listener, "the boot listener", &cancel).await
        {
            let place = match crowd.enter(client.ip()) {
                Ok(place) => place,
                Err(full) => {
                    let reason = Crowded::from(full);
                    metrics.refused(reason);
                    tracing::debug!(client.ip = %client.ip(), ?reason, "refused a connection");
                    continue;
                }
            };
            let fate = Fate::default();
            let Ok(server) = stream.local_addr() else {
                continue;
            };
            let desk = Desk {
                files: files.clone(),
                ledger: ledger.clone(),
                metrics: metrics.clone(),
                client,
                server,
                fate,
                errands: Errands::default(),
                body_timeout: limits.body,
            };
            let cancel = cancel.clone();
            tasks.spawn(async move {
                let metrics = desk.metrics.clone();
                metrics.opened();
                serve(stream, desk, limits, cancel).await;
                metrics.closed();
                drop(place);
            });
        }
        drop(self.listener);
        tasks.close();
        tasks.wait().await;
    }
}

/// Serves one connection to its end.
async fn serve(stream: TcpStream, desk: Desk, limits: HttpLimits, cancel: CancellationToken) {
    let socket = socket2::SockRef::from(&stream);
    // Each may be missing in an odd kernel; the connection works without.
    let _ = stream.set_nodelay(true);
    let _ = socket.set_tcp_user_timeout(Some(limits.stall));
    let _ = socket.set_tcp_notsent_lowat(NOTSENT_LOWAT);
    let (fate, metrics) = (desk.fate.clone(), desk.metrics.clone());
    let link = Link::new(stream, fate.clone(), desk.errands.clone(), limits.stall);
    let service = service_fn(move |request| desk.clone().answer(request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.request)
        .max_buf_size(LONGEST_HEAD)
        .half_close(false)
        // Stand-ins are known by their address, so hyper must not copy them.
        .writev(true)
        .serve_connection(TokioIo::new(link), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(limits.drain, connection.as_mut()).await {
                Ok(result) => result,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = result {
        let cause = match fate.get() {
            End::Stalled => Cut::SlowReader,
            End::Closed | End::Broken => return,
            End::None if error.is_timeout() => Cut::SlowRequest,
            End::None if error.is_parse() => Cut::Malformed,
            End::None => Cut::Other,
        };
        metrics.cut(cause);
        tracing::debug!(?cause, "ended a connection");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let first = HttpServer::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let error = HttpServer::bind(first.local_addr()).await.unwrap_err();
        assert!(matches!(error, BindError::Taken { .. }));
        assert!(error.to_string().contains(&first.local_addr().to_string()));
        let elsewhere = HttpServer::bind(([192, 0, 2, 1], 0).into())
            .await
            .unwrap_err();
        assert!(matches!(elsewhere, BindError::NotOurs { .. }));
    }
}
