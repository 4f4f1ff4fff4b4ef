//! The jobs: what this server sends, tried again until it is there, given up or refused for
//! good. The row in `image_replicas` is the intention: a server that starts goes on with all
//! that it was sending, and a row that somebody removes ends its job.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::sender::{self, Odometer, Parcel, Stop};
use super::{NotReplicated, Shared};
use crate::model::{Replica, ReplicaState, Server};
use crate::storage::{HoldTag, SnapshotId};

/// Versions that are sent at once.
const AT_ONCE: usize = 2;
/// Pauses between tries: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// How often the row is told how far it is.
const TELL: Duration = Duration::from_secs(1);

/// A version and the server that it goes to.
type Key = (Uuid, Uuid);

/// What is sent now.
#[derive(Debug)]
pub(super) struct Jobs {
    running: Mutex<HashMap<Key, CancellationToken>>,
    room: Semaphore,
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
            room: Semaphore::new(AT_ONCE),
        }
    }
}

impl Jobs {
    fn running(&self) -> MutexGuard<'_, HashMap<Key, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Begins to send a version, or goes on with it; the row says how it stands.
    pub(super) async fn begin(
        self: &Arc<Self>,
        image: Uuid,
        version: Uuid,
        to: &Server,
    ) -> Result<Replica, NotReplicated> {
        if to.id == self.server_id {
            return Err(NotReplicated::Here);
        }
        if !self.has(version).await? {
            return Err(NotReplicated::NotStored);
        }
        let disks = self.disks.clone();
        let allowed = tokio::task::spawn_blocking(move || disks.may_replicate()).await;
        allowed
            .map_err(|e| NotReplicated::Refused(e.to_string()))?
            .map_err(|e| NotReplicated::Refused(e.to_string()))?;
        let row = self.catalog.begin_replica(image, version, to.id).await?;
        self.go_on(&row);
        Ok(row)
    }

    /// Starts the job of a row that this server sends, unless it runs.
    pub(super) fn go_on(self: &Arc<Self>, row: &Replica) {
        if row.state != ReplicaState::Copying || row.from_server != Some(self.server_id) {
            return;
        }
        let key = (row.version_id, row.server_id);
        let cancel = self.cancel.child_token();
        {
            let mut running = self.jobs.running();
            if running.contains_key(&key) {
                return;
            }
            running.insert(key, cancel.clone());
        }
        let (shared, image) = (self.clone(), row.image_id);
        tokio::spawn(async move {
            shared.keep(key, true).await;
            shared.run_job(image, key, cancel).await;
            shared.keep(key, false).await;
            shared.jobs.running().remove(&key);
        });
    }

    /// Holds what is sent, or lets go of it; between two tries nobody has it open. A store that
    /// can't do so only loses time: a version that went meanwhile ends its job.
    async fn keep(self: &Arc<Self>, (version, to): Key, held: bool) {
        let (disks, base) = (self.disks.clone(), SnapshotId::base(version));
        let done = tokio::task::spawn_blocking(move || match held {
            true => disks.hold(&base, HoldTag::Replication(to)),
            false => disks.release(&base, HoldTag::Replication(to)),
        });
        match done.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(version.id = %version, %error, "what is sent can't be held or released");
            }
            Err(error) => tracing::error!(%error, "holding what is sent"),
        }
    }

    /// Ends the job of a version to a server, if it runs.
    pub(super) fn give_up(&self, key: Key) {
        if let Some(cancel) = self.jobs.running().get(&key) {
            cancel.cancel();
        }
    }

    async fn run_job(self: &Arc<Self>, image: Uuid, key: Key, cancel: CancellationToken) {
        let meter = Arc::new(Odometer::default());
        let mut pause = PAUSES.0;
        loop {
            let before = meter.sent.load(Ordering::Relaxed);
            let outcome = self.one_try(image, key, &meter, &cancel).await;
            let sent = meter.sent.load(Ordering::Relaxed);
            if sent > before {
                pause = PAUSES.0;
            }
            let (version, to) = key;
            match outcome {
                Ok(sha256) => {
                    tracing::info!(version.id = %version, to = %to, sent, "a version is on another server, whole and equal");
                    self.end(key, Ok(&sha256), &meter, &cancel).await;
                    return self.have(image, version, Some(&sha256)).await;
                }
                Err(Stop::Final(why)) => {
                    tracing::error!(version.id = %version, to = %to, sent, why, "a version can't be sent");
                    return self.end(key, Err(&why), &meter, &cancel).await;
                }
                Err(Stop::Cancelled) => return,
                Err(Stop::Passing(why)) => {
                    tracing::warn!(version.id = %version, to = %to, sent, why, "sending a version is tried again");
                    if !self.tell(key, &meter, Some(&why)).await {
                        return;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = cancel.cancelled() => return,
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// One connection, with the row being told meanwhile.
    async fn one_try(
        self: &Arc<Self>,
        image: Uuid,
        key: Key,
        meter: &Arc<Odometer>,
        cancel: &CancellationToken,
    ) -> Result<String, Stop> {
        let turn = tokio::select! {
            turn = self.jobs.room.acquire() => turn,
            () = cancel.cancelled() => return Err(Stop::Cancelled),
        };
        let _turn = turn.map_err(|_| Stop::Cancelled)?;
        let site = self.cache.site();
        let to = site.server(key.1).cloned();
        let to = to.ok_or_else(|| Stop::Passing("the server is not in the catalog".to_owned()))?;
        let version = key.0;
        let parcel = Parcel { image, version, to };
        let sending = {
            let (shared, meter, cancel) = (self.clone(), meter.clone(), cancel.clone());
            tokio::task::spawn_blocking(move || sender::send(&shared, &parcel, &meter, &cancel))
        };
        tokio::pin!(sending);
        let mut ticks = tokio::time::interval(TELL);
        loop {
            tokio::select! {
                sent = &mut sending => {
                    return sent.map_err(|e| Stop::Passing(format!("sending broke: {e}")))?;
                }
                _ = ticks.tick() => {
                    if !self.tell(key, meter, None).await {
                        // Somebody has removed the row.
                        cancel.cancel();
                    }
                }
            }
        }
    }

    /// `false` if the row is not under way any more; a catalog that is away says nothing.
    async fn tell(&self, (version, server): Key, meter: &Odometer, why: Option<&str>) -> bool {
        let told = self
            .catalog
            .replica_progress(version, server, meter.read(), why);
        told.await.unwrap_or_else(|error| {
            tracing::debug!(%error, "how far a version is can't be told");
            true
        })
    }

    /// Tells the row how it ended, as soon as the catalog is there.
    async fn end(
        &self,
        (version, server): Key,
        outcome: Result<&str, &str>,
        meter: &Odometer,
        cancel: &CancellationToken,
    ) {
        loop {
            let ended = self
                .catalog
                .end_replica(version, server, outcome, meter.read());
            match ended.await {
                Ok(_) => return,
                Err(error) => {
                    tracing::warn!(%error, "that a version was sent can't be told yet");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSES.0) => {}
                () = cancel.cancelled() => return,
            }
        }
    }
}
