//! Keeps the store tidy and the catalog told: clones whose boots are over are removed, boots
//! hear what they have moved, and each clone has its row in `clones`. In the background; no
//! login waits for it, and a catalog that is away only delays what people see.
//!
//! An ephemeral clone goes when its client's next boot has its own, or [`GRACE`] after its boot
//! has ended (later than a boot may come back, see `session/disk.rs`); never while a connection has
//! it. A persistent one goes with its client's row, and only if this run of the server has seen
//! that row: a database that was restored or swapped must not cost anybody their data.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::attachment::Usage;
use super::service::{Disks, Shared, used};
use crate::boot::session::Evidence;
use crate::boot::tracker::Known;
use crate::cache::Snapshot;
use crate::catalog::Catalog;
use crate::model::{CloneReport, DiskMode, Timestamp};
use crate::steps::{self, Step};
use crate::storage::mend::{free_of, is_personal, remove_clone, settle_held};
use crate::storage::{Intent, StorageError, Volume, VolumeError, VolumeInfo};

/// How long after its end a boot's clone stays, and a persistent one after its client's.
pub const GRACE: TimeDelta = TimeDelta::minutes(15);
/// How often boots are told what they have moved, and the store is looked over.
const ROUND: Duration = Duration::from_secs(60);
/// After a login or a connection's end: several of them cost one look.
const SOON: Duration = Duration::from_secs(2);

/// What the keeper has learnt.
#[derive(Default)]
struct Memory {
    /// Clients whose rows this run has seen, with the time since when they are gone.
    clients: HashMap<Uuid, Option<Timestamp>>,
    /// Clones that no catalog knows, since when.
    strange: HashMap<Volume, Timestamp>,
    /// What was said of a clone once.
    said: HashSet<Volume>,
}

impl Disks {
    /// Does it until cancelled.
    pub async fn keep(&self, catalog: Catalog, cancel: CancellationToken) {
        let mut memory = Memory::default();
        let mut told = self.shared.clock.now();
        loop {
            let now = self.shared.clock.now();
            if (now - told).abs() >= TimeDelta::seconds(60) {
                self.tell_usage();
                told = now;
            }
            self.round(&catalog, &mut memory).await;
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(ROUND) => {}
                () = self.shared.changed.notified() => {
                    if cancel.run_until_cancelled(tokio::time::sleep(SOON)).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// Tells each boot with an open disk what it has moved since it was told last.
    pub fn tell_usage(&self) {
        let desks: Vec<_> = self.shared.desks().values().cloned().collect();
        for desk in desks {
            let mut news: Vec<(Uuid, u64, Usage)> = Vec::new();
            for hold in desk.holds().iter_mut() {
                let usage = hold.meter.usage();
                if usage != hold.told {
                    hold.told = usage;
                    news.push((hold.attempt, hold.connection, usage));
                }
            }
            for (attempt, connection, usage) in news {
                if let Known::Open(boot) | Known::Over(boot) = self.shared.tracker.known(attempt) {
                    let moved = Evidence::DiskUsed(used(connection, usage));
                    self.shared.tell(attempt, boot.mac, moved);
                }
            }
        }
    }

    /// Looks the store over once: removes what nobody needs, tells the catalog of the rest.
    pub async fn tidy(&self, catalog: &Catalog) {
        self.round(catalog, &mut Memory::default()).await;
    }

    async fn round(&self, catalog: &Catalog, memory: &mut Memory) {
        let shared = &self.shared;
        let store = shared.store.clone();
        let listed = tokio::task::spawn_blocking(move || {
            let held = store.holds();
            let volumes = store.list()?;
            if let Err(error) = held.and_then(|held| settle_held(&*store, &held, &volumes)) {
                tracing::warn!(%error, "holds on versions can't be put right");
            }
            Ok::<_, VolumeError>(volumes)
        })
        .await;
        let clones: Vec<VolumeInfo> = match listed {
            Ok(Ok(all)) => all
                .into_iter()
                .filter(|v| !matches!(v.volume, Volume::Image(_)))
                .collect(),
            Ok(Err(error)) => return tracing::warn!(%error, "clones can't be listed"),
            Err(error) => return tracing::error!(%error, "listing clones"),
        };
        let now = shared.clock.now();
        let snapshot = shared.view.get();
        memory.see_clients(&snapshot, now);
        let mut rows = Vec::with_capacity(clones.len());
        for info in clones {
            let goes = match info.volume {
                Volume::Session(attempt) => self.is_over(catalog, memory, attempt, now).await,
                Volume::Personal { client, .. } => memory.is_orphan(info.volume, client, now),
                Volume::Image(_) => false,
            };
            if goes && self.remove(info.volume).await {
                continue;
            }
            rows.push(shared.report(&snapshot, &info));
        }
        shared.metrics.clones(rows.len());
        if let Err(error) = catalog.save_clones(&rows).await {
            tracing::debug!(%error, "the catalog was not told of the clones; later");
        }
    }

    /// True if nobody needs the clone of that boot any more.
    async fn is_over(
        &self,
        catalog: &Catalog,
        memory: &mut Memory,
        attempt: Uuid,
        now: Timestamp,
    ) -> bool {
        let shared = &self.shared;
        let ended = match shared.tracker.known(attempt) {
            Known::Open(boot) => {
                if let Some(client) = boot.client_id {
                    shared.owners().insert(attempt, client);
                }
                return false;
            }
            Known::Over(boot) => {
                if let Some(client) = boot.client_id {
                    shared.owners().insert(attempt, client);
                }
                boot.ended_at
            }
            Known::Never => match catalog.get_attempt(attempt).await {
                Ok(Some((row, _, _))) => {
                    if let Some(client) = row.client_id {
                        shared.owners().insert(attempt, client);
                    }
                    // Open there, and not here: another server goes on with it, or none yet.
                    let Some(ended) = row.ended_at else {
                        return false;
                    };
                    Some(ended)
                }
                Ok(None) => None,
                Err(_) => return false,
            },
        };
        let since = match ended {
            Some(ended) => ended,
            None => *memory
                .strange
                .entry(Volume::Session(attempt))
                .or_insert(now),
        };
        now >= since + GRACE || shared.has_newer(attempt)
    }

    /// Removes a clone unless a connection has it; true if it is gone.
    async fn remove(&self, volume: Volume) -> bool {
        let shared = self.shared.clone();
        let removed = tokio::task::spawn_blocking(move || shared.destroy(volume)).await;
        match removed {
            Ok(Ok(true)) => {
                self.shared.metrics.reclaimed();
                tracing::info!(%volume, "a clone was removed: its boot is over, or its client gone");
                true
            }
            Ok(Ok(false) | Err(VolumeError::Busy { .. })) => false,
            Ok(Err(error)) => {
                tracing::warn!(%volume, %error, "a clone can't be removed");
                false
            }
            Err(error) => {
                tracing::error!(%volume, %error, "removing a clone");
                false
            }
        }
    }
}

impl Memory {
    fn see_clients(&mut self, snapshot: &Snapshot, now: Timestamp) {
        for (id, gone) in &mut self.clients {
            match (snapshot.client(*id), &gone) {
                (Some(_), _) => *gone = None,
                (None, None) => *gone = Some(now),
                (None, Some(_)) => {}
            }
        }
        for client in snapshot.clients() {
            self.clients.entry(client.id).or_default();
        }
    }

    fn is_orphan(&mut self, volume: Volume, client: Uuid, now: Timestamp) -> bool {
        match self.clients.get(&client) {
            Some(None) => false,
            Some(Some(gone)) => now >= *gone + GRACE,
            None => {
                if self.said.insert(volume) {
                    tracing::warn!(%volume, "a persistent disk of a client that is not in the catalog; it is kept");
                }
                false
            }
        }
    }
}

impl Shared {
    /// True if the client of that boot has a newer one with a clone of its own. Ids of boots
    /// are in order of time.
    fn has_newer(&self, attempt: Uuid) -> bool {
        let owners = self.owners();
        let Some(client) = owners.get(&attempt) else {
            return false;
        };
        let newer_clone = owners.iter().any(|(id, of)| of == client && *id > attempt);
        let client = *client;
        drop(owners);
        let desk = self.desks().get(&client).cloned();
        newer_clone || desk.is_some_and(|d| d.holds().iter().any(|h| h.attempt > attempt))
    }

    /// Destroys a clone that no connection has. Blocks.
    fn destroy(self: &Arc<Self>, volume: Volume) -> Result<bool, VolumeError> {
        let client = match volume {
            Volume::Session(attempt) => self.owners().get(&attempt).copied(),
            Volume::Personal { client, .. } => Some(client),
            Volume::Image(_) => return Ok(false),
        };
        if matches!(volume, Volume::Personal { .. }) {
            free_of(&*self.store, volume, &self.cancel)?;
        }
        // Without a client nobody can log in to it.
        let Some(client) = client else {
            return self.throw_away(volume).map(|()| true);
        };
        let desk = self.desk(client);
        let _one = desk.serial();
        if desk.holds().iter().any(|hold| hold.volume == volume) {
            return Ok(false);
        }
        self.throw_away(volume)?;
        if let Volume::Session(attempt) = volume {
            self.owners().remove(&attempt);
        }
        self.forget(volume);
        Ok(true)
    }

    /// Destroys a clone, and lets go of the version that it was made from.
    fn throw_away(&self, volume: Volume) -> Result<(), VolumeError> {
        match self.store.info(volume)? {
            Some(info) => remove_clone(&*self.store, &info),
            None => Ok(()),
        }
    }

    fn report(&self, snapshot: &Snapshot, info: &VolumeInfo) -> CloneReport {
        let base = match info.origin.as_ref().map(|o| o.volume) {
            Some(Volume::Image(id)) => Some(id),
            _ => None,
        };
        let version = base.and_then(|id| snapshot.version(id));
        let origin = version.map(|v| v.image_id).or(base);
        let (client_id, session_id, image_id, mode) = match info.volume {
            Volume::Session(attempt) => {
                let client = self.owners().get(&attempt).copied();
                (client, Some(attempt), origin, DiskMode::Ephemeral)
            }
            Volume::Personal { client, image } => {
                (Some(client), None, Some(image), DiskMode::Persistent)
            }
            Volume::Image(image) => (None, None, Some(image), DiskMode::Persistent),
        };
        let desk = client_id.and_then(|client| self.desks().get(&client).cloned());
        let hold = desk.and_then(|desk| {
            let holds = desk.holds();
            let of = holds.iter().filter(|h| h.volume == info.volume);
            of.max_by_key(|h| h.connection).cloned()
        });
        let last = self.last(info.volume);
        let quota = self.quota(info.volume);
        let bytes = |n| i64::try_from(n).unwrap_or(i64::MAX);
        CloneReport {
            name: info.volume.to_string(),
            mode,
            client_id,
            session_id: session_id.or_else(|| hold.as_ref().map(|h| h.attempt)),
            image_id,
            image_name: image_id
                .and_then(|id| snapshot.image(id))
                .map(|i| i.name.clone()),
            version_name: version.map(|v| v.name.clone()),
            size_bytes: bytes(info.size),
            used_bytes: bytes(info.used),
            referenced_bytes: bytes(info.referenced),
            own_bytes: quota.as_ref().and_then(|q| q.written()).map(bytes),
            quota_bytes: quota.and_then(|q| q.limit()).map(bytes),
            last_attached_at: hold.as_ref().map(|h| h.since).or(last.attached),
            idle_since: if hold.is_some() { None } else { last.idle },
            protocol: hold.as_ref().map(|h| h.protocol),
            peer: hold.map(|h| h.peer.to_string()),
        }
    }
}

/// Why a client's persistent disk was not reset.
#[derive(Debug, thiserror::Error)]
pub enum NotReset {
    /// A connection has it.
    #[error("the machine has its disk open: shut it down first")]
    InUse,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] VolumeError),
}

impl Disks {
    /// Removes a client's persistent disks, of all images or of one, so that its next boot begins
    /// with a clean one. Returns how many there were. Blocks; versions that were made from them get a copy of what
    /// they need first. What a crash cuts short is finished at the next start.
    ///
    /// # Errors
    /// See [`NotReset`].
    pub fn reset(&self, client: Uuid, image: Option<Uuid>) -> Result<usize, NotReset> {
        self.reset_noting(client, image, None)
    }

    /// The same with the disk of a maintenance that began at that time. The intention stays in the
    /// journal: whoever ends the maintenance in the catalog ends it, too.
    ///
    /// # Errors
    /// See [`NotReset`].
    pub fn discard(&self, client: Uuid, image: Uuid, begun: Timestamp) -> Result<(), NotReset> {
        self.reset_noting(client, Some(image), Some(begun))
            .map(drop)
    }

    fn reset_noting(
        &self,
        client: Uuid,
        image: Option<Uuid>,
        maintenance: Option<Timestamp>,
    ) -> Result<usize, NotReset> {
        let shared = &self.shared;
        let desk = shared.desk(client);
        let personal = |v: &Volume| is_personal(*v, client, image);
        // Before its turn: this may take long, and changes nothing that the machine sees.
        if !desk.holds().iter().any(|hold| personal(&hold.volume)) {
            for info in shared.store.list()? {
                if personal(&info.volume) {
                    free_of(&*shared.store, info.volume, &shared.cancel)?;
                }
            }
        }
        steps::reach(Step::ResetFreed);
        let _one = desk.serial();
        let over = shared.keeps_writing(client).is_none();
        if !desk.vacate(over, |hold| personal(&hold.volume)) {
            return Err(NotReset::InUse);
        }
        // Not before: the next start finishes it without asking whether a machine has the disk.
        let intent = Intent::Reset {
            client,
            image,
            maintenance,
        };
        shared.noted(|journal| journal.note(intent, None))?;
        steps::reach(Step::ResetBegun);
        let removed = shared.remove_all(&personal);
        steps::reach(Step::ResetGone);
        if removed.is_err() || maintenance.is_none() {
            shared.noted(|journal| journal.end(client))?;
        }
        shared.changed.notify_one();
        Ok(removed?)
    }
}

impl Shared {
    /// Does something with the journal of intentions, if there is one.
    fn noted(
        &self,
        what: impl FnOnce(&crate::storage::Pending) -> Result<(), StorageError>,
    ) -> Result<(), VolumeError> {
        let done = self.journal.get().map_or(Ok(()), what);
        done.map_err(|e| VolumeError::Io {
            what: "the journal of intentions".to_owned(),
            source: std::io::Error::other(e),
        })
    }

    fn remove_all(&self, of: &dyn Fn(&Volume) -> bool) -> Result<usize, VolumeError> {
        let mut removed = 0;
        for info in self.store.list()? {
            if of(&info.volume) {
                remove_clone(&*self.store, &info)?;
                self.forget(info.volume);
                removed += 1;
            }
        }
        Ok(removed)
    }
}
