//! Canaries that are judged by the boots of their machines. When: after each boot's end or rise,
//! and every ten seconds. How: [`Canary::judge`](crate::model::Canary::judge). Each server
//! of a catalog does so; who comes second changes nothing.

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::tracker::Tracker;
use crate::catalog::{Catalog, CatalogError};
use crate::model::{Judgement, Stage};

/// How often, whatever is heard.
const EVERY: Duration = Duration::from_secs(10);
/// What was heard of is in the catalog a moment later; a busy one takes longer. The first look
/// is early, because a machine that restarts asks for its version within a second.
const WRITTEN: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// Judges them until cancelled; a database that is away is the next look's business.
pub async fn watch(catalog: Catalog, tracker: Tracker, cancel: CancellationToken) {
    let mut events = tracker.subscribe();
    loop {
        let telling = async {
            loop {
                match events.recv().await {
                    Ok(live) if live.attempt.version_id.is_none() => {}
                    Ok(live) => match live.event.stage {
                        Stage::Up | Stage::Error | Stage::Restarted | Stage::Answers => return,
                        _ => {}
                    },
                    Err(RecvError::Lagged(_)) => return,
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        let pauses: &[Duration] = tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(EVERY) => &[Duration::ZERO],
            () = telling => &WRITTEN,
        };
        for pause in pauses {
            tokio::time::sleep(*pause).await;
            if let Err(error) = look(&catalog).await {
                tracing::debug!(%error, "canaries are judged later");
            }
        }
    }
}

/// Judges them once; returns how many were released or sent back.
///
/// # Errors
/// As the catalog.
pub async fn look(catalog: &Catalog) -> Result<usize, CatalogError> {
    let mut settled = 0;
    for canary in catalog.watched_canaries().await? {
        let judgement = canary.judge();
        if !catalog.settle_canary(&canary, &judgement).await? {
            continue;
        }
        settled += 1;
        let (image, version, ring) = (&canary.image, &canary.name, &canary.ring);
        match judgement {
            Judgement::Return(reason) => tracing::warn!(
                image.name = image,
                version,
                ring,
                reason,
                "canary sent back"
            ),
            _ => tracing::info!(
                image.name = image,
                version,
                ring,
                good_boots = canary.wanted,
                "canary released to all"
            ),
        }
    }
    Ok(settled)
}
