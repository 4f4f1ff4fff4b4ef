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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

use super::attachment::{Attachment, Gate, Seen, Usage};
use super::desk::{Desk, Hold, Verdict};
use super::door::{ChapSecrets, DiskDoor, Login, NoDisk, Proof};
use super::metrics::DiskMetrics;
use crate::boot::disk_words::SERVER_NAME;
use crate::boot::session::{CloneOrigin, DiskLogin, DiskUse, Evidence, Observation};
use crate::boot::token::{self, Chap};
use crate::boot::tracker::{Known, OpenAttempt, Tracker};
use crate::cache::{Snapshot, View};
use crate::clock::Clock;
use crate::model::{DiskIdentity, DiskMode, ImageKind, MacAddr, Timestamp};
use crate::storage::{Access, BlockDevice, SnapshotId, Storage, Volume, VolumeError};

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
    /// Which client an ephemeral clone is of, as far as this run has seen.
    pub(super) owners: Mutex<HashMap<Uuid, Uuid>>,
    /// When clones were last logged in to and let go of, in this run.
    times: Mutex<HashMap<Volume, Times>>,
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
    device: Arc<dyn BlockDevice>,
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
            owners: Mutex::default(),
            times: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
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

    /// True if the disk of an image lies on this server. Blocks for a moment.
    #[must_use]
    pub fn has_image(&self, image: Uuid) -> bool {
        let base = SnapshotId::base(image);
        match self.shared.store.info(base.volume) {
            Ok(info) => info.is_some_and(|i| i.snapshots.contains(&base.name)),
            Err(error) => {
                tracing::warn!(image.id = %image, %error, "the disk of an image can't be looked at");
                false
            }
        }
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
        let Some(desk) = self.shared.desks().get(&client).cloned() else {
            return Verdict::Free;
        };
        let _one = desk.serial();
        desk.settle(|hold| Some(hold.attempt) != but)
    }

    /// Gives no disk out any more; the server stops.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
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

    pub(super) fn forget(&self, volume: Volume) {
        self.times().remove(&volume);
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
        let others = desk.settle(|hold| hold.attempt != boot.id);
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
        &self,
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
            None => snapshot
                .client(client)
                .map(|c| c.disk_mode)
                .ok_or(NoDisk::BootOver)?,
        };
        let volume = match mode {
            DiskMode::Ephemeral => session,
            DiskMode::Persistent => Volume::Personal { client, image },
        };
        let origin = if self.store.info(volume).map_err(refusal)?.is_some() {
            CloneOrigin::Found
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
            self.store
                .clone_volume(&SnapshotId::base(image), volume)
                .map_err(refusal)?;
            self.metrics.cloned(mode);
            CloneOrigin::New
        };
        let device = self.store.open(volume, Access::Write).map_err(refusal)?;
        if mode == DiskMode::Ephemeral {
            self.owners().insert(boot.id, client);
        }
        Ok(Opened {
            volume,
            mode,
            origin,
            device,
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
        let attachment = Attachment::new(identity, attempt, opened.device, gate.clone(), witness);
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
