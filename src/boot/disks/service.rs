//! The disks of boots: a proof becomes a boot, the boot a client and an image, and those a
//! clone that is found or made and opened. Knows neither protocol nor SQL; asks no query, so
//! that it works while PostgreSQL is away.
//!
//! Who may log in: a boot that is open and was given a script, and one that a deadline of
//! ours ended, as long as its machine has begun no other (see `session/disk.rs`). Which disk:
//! that of its client's mode when the boot first logged in, and the same one until it ends.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::attachment::{Attachment, Gate, Seen, Usage};
use super::desk::{Desk, Hold, PATIENCE, PATIENCE_WITH_ANOTHER, Verdict};
use super::door::{ChapSecrets, DiskDoor, Login, NoDisk, Proof};
use super::metrics::DiskMetrics;
use super::quota::Quota;
use crate::boot::disk_words::SERVER_NAME;
use crate::boot::session::{CloneOrigin, DiskLogin, DiskUse, Evidence, Observation};
use crate::boot::token::{self, Chap};
use crate::boot::tracker::{Known, OpenAttempt, Tracker};
use crate::cache::{Snapshot, View};
use crate::clock::Clock;
use crate::model::{DiskIdentity, DiskMode, ImageKind, MacAddr, Timestamp};
use crate::storage::{Access, BlockDevice, Pending, SnapshotId, Storage, Volume, VolumeError};

/// The disks; clones share them.
#[derive(Clone)]
pub struct Disks {
    pub(super) shared: Arc<Shared>,
}

/// What they share.
pub(super) struct Shared {
    pub(super) view: View,
    pub(super) tracker: Tracker,
    pub(super) store: Arc<dyn Storage>,
    pub(super) clock: Clock,
    pub(super) metrics: DiskMetrics,
    desks: Mutex<HashMap<Uuid, Arc<Desk>>>,
    connections: AtomicU64,
    closed: AtomicBool,
    /// Wakes the keeper: a clone was made, or a connection came or went.
    pub(super) changed: Notify,
    /// Ends long work on the store.
    pub(super) cancel: CancellationToken,
    /// What is begun with disks is written down here.
    pub(super) journal: OnceLock<Pending>,
    /// Which client an ephemeral clone is of, as far as this run has seen.
    pub(super) owners: Mutex<HashMap<Uuid, Uuid>>,
    /// When clones were last logged in to and let go of, in this run.
    times: Mutex<HashMap<Volume, Times>>,
    /// Persistent disks that began anew in this run, and when.
    renewed: Mutex<HashMap<Volume, Timestamp>>,
    /// Of clones that were opened in this run.
    pub(super) quotas: Mutex<HashMap<Volume, Arc<Quota>>>,
}

/// When a clone was last used.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Times {
    pub(super) attached: Option<Timestamp>,
    pub(super) idle: Option<Timestamp>,
}

impl fmt::Debug for Disks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disks")
            .field("store", &self.shared.store)
            .finish_non_exhaustive()
    }
}

/// A disk that is ready for a connection.
struct Opened {
    volume: Volume,
    mode: DiskMode,
    origin: CloneOrigin,
    /// The version of the image that it was made from.
    version: Option<(Uuid, String)>,
    device: Arc<dyn BlockDevice>,
    quota: Arc<Quota>,
}

impl Disks {
    /// The disks in a store, for the boots that the tracker knows.
    #[must_use]
    pub fn new(view: View, tracker: Tracker, store: Arc<dyn Storage>, clock: Clock) -> Self {
        let shared = Shared {
            view,
            tracker,
            store,
            clock,
            metrics: DiskMetrics::default(),
            desks: Mutex::default(),
            connections: AtomicU64::new(1),
            closed: AtomicBool::new(false),
            changed: Notify::new(),
            cancel: CancellationToken::new(),
            journal: OnceLock::new(),
            owners: Mutex::default(),
            times: Mutex::default(),
            quotas: Mutex::default(),
            renewed: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Has what is done in several steps written down in that journal; the first call counts.
    #[must_use]
    pub fn with_journal(self, journal: Pending) -> Self {
        let _ = self.shared.journal.set(journal);
        self
    }

    /// The numbers.
    #[must_use]
    pub fn metrics(&self) -> &DiskMetrics {
        &self.shared.metrics
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Storage> {
        &self.shared.store
    }

    /// True if this server has the disk that a client would get: its own one, or the version
    /// of the image that it follows. Blocks for a moment.
    #[must_use]
    pub fn has_disk(&self, client: Uuid, image: Uuid) -> bool {
        let snapshot = self.shared.view.get();
        let persistent = snapshot.disk_mode(client, image) == Some(DiskMode::Persistent);
        let own = Volume::Personal { client, image };
        let base = SnapshotId::base(version_volume(&snapshot, client, image));
        let look = || {
            if persistent && self.shared.store.info(own)?.is_some() {
                return Ok(true);
            }
            let info = self.shared.store.info(base.volume)?;
            Ok::<_, VolumeError>(info.is_some_and(|i| i.snapshots.contains(&base.name)))
        };
        look().unwrap_or_else(|error| {
            tracing::warn!(image.id = %image, %error, "the disk of an image can't be looked at");
            false
        })
    }

    /// True if this server keeps a client's own disk of an image. Blocks for a moment.
    #[must_use]
    pub fn has_own_disk(&self, client: Uuid, image: Uuid) -> bool {
        let own = self.shared.store.info(Volume::Personal { client, image });
        own.is_ok_and(|info| info.is_some())
    }

    /// True if a connection has a client's disk; costs nothing.
    #[must_use]
    pub fn is_held(&self, client: Uuid) -> bool {
        let desk = self.shared.desks().get(&client).cloned();
        desk.is_some_and(|desk| desk.is_held())
    }

    /// Settles who has a client's disk before its machine begins anew: an old connection that
    /// gives no sign of life within three seconds is broken off. Blocks for that long; call it from
    /// a blocking thread. `but`: a boot whose connections are of no concern.
    #[must_use]
    pub fn settle(&self, client: Uuid, but: Option<Uuid>) -> Verdict {
        self.settle_within(PATIENCE, client, |hold| Some(hold.attempt) != but)
    }

    /// The same for a newcomer that says it is another machine (by its SMBIOS UUID): the old
    /// connection has fifteen seconds.
    #[must_use]
    pub fn settle_with_another(&self, client: Uuid) -> Verdict {
        self.settle_within(PATIENCE_WITH_ANOTHER, client, |_| true)
    }

    fn settle_within(
        &self,
        patience: Duration,
        client: Uuid,
        of: impl Fn(&Hold) -> bool,
    ) -> Verdict {
        let Some(desk) = self.shared.desks().get(&client).cloned() else {
            return Verdict::Free;
        };
        let _one = desk.serial();
        desk.settle(patience, of)
    }

    /// Gives no disk out any more; the server stops.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        self.shared.cancel.cancel();
    }
}

impl Shared {
    pub(super) fn desks(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Desk>>> {
        self.desks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn owners(&self) -> MutexGuard<'_, HashMap<Uuid, Uuid>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn times(&self) -> MutexGuard<'_, HashMap<Volume, Times>> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a clone was last used, as far as this run knows.
    pub(super) fn last(&self, volume: Volume) -> Times {
        self.times().get(&volume).copied().unwrap_or_default()
    }

    /// A persistent disk is another one from now on.
    pub(super) fn renewed(&self, volume: Volume) {
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        renewed.insert(volume, self.clock.now());
    }

    /// True if a boot began before its disk did: ids of boots tell their time.
    fn is_older(&self, boot: Uuid, volume: Volume) -> bool {
        let renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(renewed) = renewed.get(&volume) else {
            return false;
        };
        let begun = boot.get_timestamp().map(|t| t.to_unix().0);
        let renewed = u64::try_from(renewed.timestamp()).unwrap_or(0);
        begun.is_some_and(|begun| begun <= renewed)
    }

    pub(super) fn forget(&self, volume: Volume) {
        self.times().remove(&volume);
        self.forget_quota(volume);
    }

    pub(super) fn desk(&self, client: Uuid) -> Arc<Desk> {
        self.desks().entry(client).or_default().clone()
    }

    /// The boot that a login proved to be of. The answer to a CHAP challenge was checked by
    /// the export; an export's name is checked here.
    fn proven(&self, snapshot: &Snapshot, login: &Login) -> Result<Uuid, NoDisk> {
        let attempt = match &login.proof {
            Proof::Chap { name } => token::read_chap_name(name),
            Proof::ExportName(name) => token::read_export_name(snapshot.site_key(), name),
        };
        attempt.ok_or(NoDisk::WrongProof)
    }

    fn boot(&self, attempt: Uuid) -> Result<OpenAttempt, NoDisk> {
        match self.tracker.known(attempt) {
            Known::Open(boot) | Known::Over(boot) if boot.may_attach => Ok(boot),
            Known::Open(_) => Err(NoDisk::NoImage),
            Known::Over(_) | Known::Never => Err(NoDisk::BootOver),
        }
    }

    fn attach(self: &Arc<Self>, login: Login) -> Result<Attachment, NoDisk> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(NoDisk::Unavailable);
        }
        let snapshot = self.view.get();
        let attempt = self.proven(&snapshot, &login)?;
        let boot = self.boot(attempt)?;
        let given = self.admit(&snapshot, &boot, login);
        if let Err(why) = &given {
            self.tell(
                attempt,
                boot.mac,
                Evidence::DiskRefused {
                    reason: why.as_str(),
                    sentence: why.sentence(),
                },
            );
        }
        given
    }

    fn admit(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        boot: &OpenAttempt,
        login: Login,
    ) -> Result<Attachment, NoDisk> {
        let client = boot.client_id.ok_or(NoDisk::NoImage)?;
        let identity = DiskIdentity { owner: client };
        if login.target.is_some_and(|target| target != identity) {
            return Err(NoDisk::OtherDisk);
        }
        let desk = self.desk(client);
        let _one = desk.serial();
        // It may have begun anew while this login waited for its turn.
        let boot = self.boot(boot.id)?;
        let others = desk.settle(PATIENCE, |hold| hold.attempt != boot.id);
        if matches!(others, Verdict::Taken { .. }) {
            return Err(NoDisk::InUse);
        }
        let opened = self.open(snapshot, &boot, client)?;
        // The older logins of this boot end here, whatever they have under way.
        let older: Vec<Hold> = desk
            .holds()
            .iter()
            .filter(|h| !h.gate.is_shut())
            .cloned()
            .collect();
        for hold in &older {
            desk.break_off(hold, "a newer login of the same boot took its place");
        }
        Ok(self.hold(&desk, &boot, identity, opened, login))
    }

    /// The boot's clone, found or made, and opened.
    fn open(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        boot: &OpenAttempt,
        client: Uuid,
    ) -> Result<Opened, NoDisk> {
        let image = boot.image_id.ok_or(NoDisk::NoImage)?;
        let session = Volume::Session(boot.id);
        let mode = match boot.disk_mode {
            Some(mode) => mode,
            // Known to the store, if not to the tracker: rows may have been lost in an outage.
            None if self.store.info(session).map_err(refusal)?.is_some() => DiskMode::Ephemeral,
            None => snapshot.disk_mode(client, image).ok_or(NoDisk::BootOver)?,
        };
        let volume = match mode {
            DiskMode::Ephemeral => session,
            DiskMode::Persistent => Volume::Personal { client, image },
        };
        let found = self.store.info(volume).map_err(refusal)?;
        // What a machine has read in this boot may be of a disk that is gone.
        if boot.disk_mode.is_some() && self.is_older(boot.id, volume) {
            return Err(NoDisk::NotStored);
        }
        let (origin, base) = if let Some(found) = found {
            let base = match found.origin.map(|origin| origin.volume) {
                Some(Volume::Image(id)) => Some(id),
                _ => None,
            };
            (CloneOrigin::Found, base)
        } else {
            // What it has read in this boot was of a clone that is gone: to put another disk
            // under a running machine would tear its file system.
            if boot.disk_mode.is_some() {
                return Err(NoDisk::NotStored);
            }
            let known = snapshot.image(image);
            if known.is_none_or(|i| i.kind != ImageKind::Disk) {
                return Err(NoDisk::NoImage);
            }
            // From here on it is this boot's version, whatever is released meanwhile.
            let base = version_volume(snapshot, client, image);
            self.store
                .clone_volume(&SnapshotId::base(base), volume)
                .map_err(refusal)?;
            // Its hold follows by the keeper: the clone keeps its version as well, and a machine that
            // waits for its disk need not wait for one more sync.
            self.metrics.cloned(mode);
            (CloneOrigin::New, Some(base))
        };
        let device = self.store.open(volume, Access::Write).map_err(refusal)?;
        if mode == DiskMode::Ephemeral {
            self.owners().insert(boot.id, client);
        }
        let quota = Quota::new(volume, client, image, device.info());
        let quota = self.take_quota(quota, origin == CloneOrigin::New);
        Ok(Opened {
            volume,
            mode,
            origin,
            version: base
                .and_then(|id| snapshot.version(id))
                .map(|v| (v.id, v.name.clone())),
            device,
            quota,
        })
    }

    fn hold(
        self: &Arc<Self>,
        desk: &Arc<Desk>,
        boot: &OpenAttempt,
        identity: DiskIdentity,
        opened: Opened,
        login: Login,
    ) -> Attachment {
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        let gate = Arc::new(Gate::default());
        let (attempt, mac) = (boot.id, boot.mac);
        let witness = {
            let (shared, desk) = (self.clone(), desk.clone());
            Box::new(move |seen| shared.witness(&desk, (attempt, mac), connection, seen))
        };
        let attachment = Attachment::new(identity, attempt, opened.device, gate.clone(), witness)
            .limited(opened.quota);
        let now = self.clock.now();
        self.times().entry(opened.volume).or_default().attached = Some(now);
        desk.holds().push(Hold {
            connection,
            attempt,
            volume: opened.volume,
            protocol: login.protocol,
            peer: login.peer,
            since: now,
            line: login.line,
            gate,
            meter: attachment.meter(),
            told: Usage::default(),
            cause: None,
        });
        tracing::info!(
            client.mac = %mac, session.id = %attempt, protocol = %login.protocol, peer = %login.peer,
            initiator = login.initiator, volume = %opened.volume, clone = %opened.origin,
            version = opened.version.as_ref().map(|v| v.1.as_str()),
            "disk attached"
        );
        self.tell(
            attempt,
            mac,
            Evidence::DiskAttached(DiskLogin {
                connection,
                protocol: login.protocol,
                peer: login.peer,
                mode: opened.mode,
                clone: opened.origin,
                version: opened.version,
            }),
        );
        self.changed.notify_one();
        attachment
    }

    /// On the connection's threads; short.
    fn witness(&self, desk: &Desk, boot: (Uuid, MacAddr), connection: u64, seen: Seen) {
        let (attempt, mac) = boot;
        let what = match seen {
            Seen::FirstRead => Evidence::DiskRead { connection },
            Seen::FirstWrite => Evidence::DiskWritten { connection },
            Seen::OverQuota { limit } => {
                self.metrics.over_quota();
                tracing::warn!(
                    client.mac = %mac, session.id = %attempt, limit,
                    "a machine has written as much to its disk as its quota lets it"
                );
                Evidence::DiskQuota { limit }
            }
            Seen::Detached(usage) => {
                let hold = desk.gone(connection);
                if let Some(hold) = &hold {
                    let now = self.clock.now();
                    self.times().entry(hold.volume).or_default().idle = Some(now);
                }
                let cause = hold.and_then(|hold| hold.cause);
                let stopping = self.closed.load(Ordering::Relaxed);
                let cause = cause.unwrap_or(if stopping {
                    "the server stopped"
                } else {
                    "the connection ended"
                });
                self.metrics.detached(usage);
                tracing::info!(
                    client.mac = %mac, session.id = %attempt, read = usage.read,
                    written = usage.written, cause, "disk detached"
                );
                self.changed.notify_one();
                Evidence::DiskDetached {
                    moved: used(connection, usage),
                    cause,
                }
            }
        };
        self.tell(attempt, mac, what);
    }

    pub(super) fn tell(&self, attempt: Uuid, mac: MacAddr, what: Evidence) {
        let observation = Observation {
            mac,
            at: self.clock.now(),
            what,
            context: crate::boot::session::Context::default(),
        };
        // A boot that nobody remembers has no timeline to write to.
        let _ = self.tracker.report(attempt, observation);
    }
}

pub(super) const fn used(connection: u64, usage: Usage) -> DiskUse {
    DiskUse {
        connection,
        read: usage.read,
        written: usage.written,
    }
}

/// The volume that a client's disk of an image is made from: that of the version it follows.
/// An image that is not in the picture with its versions has its first one.
pub(in crate::boot) fn version_volume(snapshot: &Snapshot, client: Uuid, image: Uuid) -> Uuid {
    let version = snapshot.version_for(client, image);
    version.map_or(image, |version| version.id)
}

fn refusal(error: VolumeError) -> NoDisk {
    match error {
        VolumeError::Missing(_) => NoDisk::NotStored,
        other => NoDisk::Store(other.to_string()),
    }
}

impl DiskDoor for Disks {
    fn secrets(&self, chap_name: &str) -> Option<ChapSecrets> {
        let attempt = token::read_chap_name(chap_name)?;
        let snapshot = self.shared.view.get();
        let secret = |whose| token::chap_secret(snapshot.site_key(), attempt, whose);
        Some(ChapSecrets {
            machine: secret(Chap::Machine),
            server_name: SERVER_NAME.to_owned(),
            server: secret(Chap::Server),
        })
    }

    fn visible(&self, chap_name: &str) -> Option<DiskIdentity> {
        let attempt = token::read_chap_name(chap_name)?;
        let boot = self.shared.boot(attempt).ok()?;
        let owner = boot.client_id?;
        boot.image_id.map(|_| DiskIdentity { owner })
    }

    fn attach(&self, login: Login) -> Result<Attachment, NoDisk> {
        let (protocol, peer) = (login.protocol, login.peer);
        let given = self.shared.attach(login);
        match &given {
            Ok(_) => self.shared.metrics.attached(protocol),
            Err(why) => {
                self.shared.metrics.refused(protocol, why);
                tracing::warn!(%protocol, %peer, reason = why.as_str(), "no disk: {}", why.sentence());
            }
        }
        given
    }
}
