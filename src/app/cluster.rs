//! The embedded database as a part of the running server: started first, watched, stopped last.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cache::Saved;
use crate::catalog::embedded::{Embedded, EmbeddedError};

/// How often the postmaster is looked after.
const LOOK: Duration = Duration::from_millis(500);

/// How long a start is waited for, where machines can be served without it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two tries to start one that did not.
const AGAIN: Duration = Duration::from_secs(5);

/// A private cluster with the task that keeps it alive.
#[derive(Debug)]
pub(super) struct Cluster {
    url: String,
    late: bool,
    stop: CancellationToken,
    keeper: JoinHandle<()>,
}

impl Cluster {
    /// Starts or adopts the cluster under `state_dir`, as the user that we are by now. Where it
    /// can't be started and it is known under `local` what it held last, that is told, and it
    /// is tried again and again.
    pub(super) async fn start(state_dir: &Path, local: &Path) -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        let mut starting = tokio::spawn({
            let state_dir = state_dir.to_owned();
            async move { Embedded::start(&state_dir, None).await }
        });
        // Machines wait: where it is known what it held last, it may come when it can.
        let located = Embedded::locate(state_dir).ok();
        let known = located.filter(|_| Saved::at(local).is_there());
        let patience = known.as_ref().map_or(Duration::MAX, |_| PATIENCE);
        let started = tokio::time::timeout(patience, &mut starting).await;
        let late = !matches!(started, Ok(Ok(Ok(_))));
        let (url, keeper) = match (started, known) {
            (Ok(Ok(Ok(embedded))), _) => {
                (embedded.url(), tokio::spawn(keep(embedded, stop.clone())))
            }
            (Ok(Ok(Err(error @ EmbeddedError::InUse(_)))), _) => return Err(error.into()),
            (Ok(Ok(Err(error))), None) => return Err(error.into()),
            (Ok(Err(error)), _) => return Err(error).context("starting the embedded database"),
            (Ok(Ok(Err(error))), Some((url, _))) => {
                tracing::error!(%error, "the embedded database can't be started; machines are served without it");
                let later = begin_later(None, state_dir.to_owned(), stop.clone());
                (url, tokio::spawn(later))
            }
            (Err(_), known) => {
                tracing::warn!(
                    "the embedded database takes long to start; machines are served without it"
                );
                let (url, _) = known.unwrap_or_default();
                let later = begin_later(Some(starting), state_dir.to_owned(), stop.clone());
                (url, tokio::spawn(later))
            }
        };
        Ok(Self {
            url,
            late,
            stop,
            keeper,
        })
    }

    /// It was not there when it was no longer waited for.
    pub(super) const fn is_late(&self) -> bool {
        self.late
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

/// A start that is under way.
type Starting = JoinHandle<Result<Embedded, EmbeddedError>>;

/// Waits for a start that is under way, tries again until it is there, then keeps it.
async fn begin_later(mut starting: Option<Starting>, state_dir: PathBuf, stop: CancellationToken) {
    loop {
        let begun = async {
            match starting.take() {
                Some(starting) => starting.await.ok(),
                None => Some(Embedded::start(&state_dir, None).await),
            }
        };
        match stop.run_until_cancelled(begun).await {
            None => return,
            Some(Some(Ok(embedded))) => {
                tracing::info!("the embedded database is started");
                return keep(embedded, stop).await;
            }
            Some(Some(Err(error))) => {
                tracing::debug!(%error, "the embedded database can't be started yet");
            }
            Some(None) => {}
        }
        let pause = stop.run_until_cancelled(tokio::time::sleep(AGAIN));
        if pause.await.is_none() {
            return;
        }
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
