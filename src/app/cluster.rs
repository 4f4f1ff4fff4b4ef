//! The embedded database as a part of the running server: started first, watched, stopped last.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::catalog::embedded::Embedded;

/// How often the postmaster is looked after.
const LOOK: Duration = Duration::from_millis(500);

/// A private cluster with the task that keeps it alive.
#[derive(Debug)]
pub(super) struct Cluster {
    url: String,
    stop: CancellationToken,
    keeper: JoinHandle<()>,
}

impl Cluster {
    /// Starts or adopts the cluster under `state_dir`, as the user that we are by now.
    pub(super) async fn start(state_dir: &Path) -> anyhow::Result<Self> {
        let embedded = Embedded::start(state_dir, None).await?;
        let stop = CancellationToken::new();
        Ok(Self {
            url: embedded.url(),
            keeper: tokio::spawn(keep(embedded, stop.clone())),
            stop,
        })
    }

    /// How to reach it.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Stops it in an orderly way.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.keeper.await.context("stopping the embedded database")
    }
}

async fn keep(mut embedded: Embedded, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(LOOK) => {}
        }
        match embedded.supervise().await {
            Ok(false) => {}
            Ok(true) => tracing::warn!("the embedded database had died and was started again"),
            Err(e) => tracing::error!(error = %e, "the embedded database can't be started again"),
        }
    }
    if let Err(e) = embedded.stop().await {
        tracing::error!(error = %e, "the embedded database did not stop");
    }
}
