//! The admin listener: its socket, its connections, its end.
//!
//! Connections are few and bounded; a peer that does not finish its headers is dropped. On
//! cancellation no new connection is taken, running requests get [`GRACE`] to end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Api, Handles, Shared, imports, router};
use crate::crowd;

/// Connections at once.
const CONNECTIONS: usize = 256;
/// For a request's headers, and between two requests of a connection.
const HEADERS_IN: Duration = Duration::from_secs(30);
/// For running requests when the server stops.
const GRACE: Duration = Duration::from_secs(5);
/// After a failed accept (out of file descriptors, mostly).
const PAUSE: Duration = Duration::from_millis(200);

/// A bound admin listener.
#[derive(Debug)]
pub struct AdminServer {
    listener: TcpListener,
}

impl AdminServer {
    /// Binds the address.
    ///
    /// # Errors
    /// When it is taken or not ours.
    pub async fn bind(listen: SocketAddr) -> std::io::Result<Self> {
        let listener = crowd::listen(listen).await?;
        Ok(Self { listener })
    }

    /// Where it listens (the port that the system chose, if 0 was asked for).
    ///
    /// # Errors
    /// As the system call.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until cancelled.
    pub async fn run(self, handles: Handles, cancel: CancellationToken) {
        // Read before the first request, which may begin something of its own.
        let left = handles.pending.intents().unwrap_or_else(|e| {
            tracing::error!(error = %e, "the journal of images can't be read");
            Vec::new()
        });
        let api: Shared = Arc::new(Api {
            handles,
            works: imports::Works::default(),
            aside: super::aside::Aside::default(),
            writes: tokio::sync::Mutex::new(()),
            checks: tokio::sync::Semaphore::new(super::images::CHECKS_AT_ONCE),
            cancel: cancel.clone(),
        });
        let keeper = tokio::spawn(imports::resume(api.clone(), left));
        let router = router(&api);
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            // The place is taken first: beyond the limit, peers wait in the kernel's queue.
            let accepted = tokio::select! {
                () = cancel.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = accept(&self.listener, &room) => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    let serving = serve(stream, router.clone(), cancel.clone(), permit);
                    connections.spawn(serving);
                }
                Err(e) => {
                    tracing::warn!(error = %e, "the admin listener can't accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        drop(self.listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, drained).await.is_err() {
            tracing::info!("admin requests still running are cut off");
            connections.shutdown().await;
        }
        keeper.abort();
        api.works.rest(GRACE).await;
    }
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = room
        .clone()
        .acquire_owned()
        .await
        .map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

async fn serve(
    stream: TcpStream,
    router: Router,
    cancel: CancellationToken,
    permit: OwnedSemaphorePermit,
) {
    let _permit = permit;
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_IN)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!(error = %e, "an admin connection ended");
    }
}
