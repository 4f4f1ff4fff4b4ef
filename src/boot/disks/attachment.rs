//! One connection's hold on a disk: every read and write passes here, is refused once a newer
//! login has the disk, and is counted for the timeline.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use uuid::Uuid;

use super::quota::{Full, Quota};
use crate::model::DiskIdentity;
use crate::storage::{BlockDevice, BlockError, DeviceInfo, Durability, Extent, Lent};

/// What a connection has moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes read.
    pub read: u64,
    /// Bytes written, discarded and zeroed ones not counted.
    pub written: u64,
}

/// What is told of an attachment as it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Its first read.
    FirstRead,
    /// Its first write.
    FirstWrite,
    /// A write was refused: it has written as much as it may.
    OverQuota {
        /// Bytes that it may write.
        limit: u64,
    },
    /// It is gone.
    Detached(Usage),
}

/// Called from the connection's threads; must not block.
pub type Witness = Box<dyn Fn(Seen) + Send + Sync>;

/// What an attachment counts; whoever shares it sees it move, and keeps nothing open.
#[derive(Debug, Default)]
pub struct Meter {
    read: AtomicU64,
    written: AtomicU64,
}

impl Meter {
    /// What has been moved so far.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            read: self.read.load(Ordering::Relaxed),
            written: self.written.load(Ordering::Relaxed),
        }
    }
}

/// A hold on a disk; cheap to clone. When the last clone is dropped it has detached.
#[derive(Clone)]
pub struct Attachment {
    held: Arc<Held>,
}

struct Held {
    identity: DiskIdentity,
    session: Uuid,
    device: Arc<dyn BlockDevice>,
    gate: Arc<Gate>,
    meter: Arc<Meter>,
    has_read: AtomicBool,
    has_written: AtomicBool,
    quota: Option<Arc<Quota>>,
    /// The limit that was told of when a write was refused.
    told: AtomicU64,
    witness: Witness,
}

/// Shut when a newer login takes over. Shared with whoever may shut it.
#[derive(Default)]
pub struct Gate {
    /// Calls under way; the top bit: shut.
    state: AtomicU64,
    drained: Condvar,
    lock: Mutex<()>,
}

const SHUT: u64 = 1 << 63;

impl Gate {
    /// Lets nothing in any more and returns when all that was under way is done.
    pub fn shut(&self) {
        self.state.fetch_or(SHUT, Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.state.load(Ordering::SeqCst) != SHUT {
            guard = self
                .drained
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// True once it is shut.
    #[must_use]
    pub fn is_shut(&self) -> bool {
        self.state.load(Ordering::SeqCst) & SHUT != 0
    }

    fn enter(&self) -> Result<Pass<'_>, BlockError> {
        // One addition both counts the call and looks at the bit: a call is either seen by
        // who shuts the gate, or sees it shut.
        if self.state.fetch_add(1, Ordering::SeqCst) & SHUT != 0 {
            self.leave();
            return Err(BlockError::Fenced);
        }
        Ok(Pass(self))
    }

    fn leave(&self) {
        if self.state.fetch_sub(1, Ordering::SeqCst) == SHUT + 1 {
            let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.drained.notify_all();
        }
    }
}

struct Pass<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Attachment {
    /// A hold of `session` on a disk, under the name of `identity`; `gate` shuts it.
    #[must_use]
    pub fn new(
        identity: DiskIdentity,
        session: Uuid,
        device: Arc<dyn BlockDevice>,
        gate: Arc<Gate>,
        witness: Witness,
    ) -> Self {
        let held = Held {
            identity,
            session,
            device,
            gate,
            meter: Arc::default(),
            has_read: AtomicBool::new(false),
            has_written: AtomicBool::new(false),
            quota: None,
            told: AtomicU64::new(u64::MAX),
            witness,
        };
        Self {
            held: Arc::new(held),
        }
    }

    /// The same, held to a quota.
    #[must_use]
    pub(super) fn limited(mut self, quota: Arc<Quota>) -> Self {
        if let Some(held) = Arc::get_mut(&mut self.held) {
            held.quota = Some(quota);
        }
        self
    }

    /// The disk's names.
    #[must_use]
    pub fn identity(&self) -> DiskIdentity {
        self.held.identity
    }

    /// The boot it belongs to.
    #[must_use]
    pub fn session(&self) -> Uuid {
        self.held.session
    }

    /// What it has moved so far.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.held.meter.usage()
    }

    /// Its counters, for whoever looks at them now and then.
    #[must_use]
    pub fn meter(&self) -> Arc<Meter> {
        self.held.meter.clone()
    }

    fn noted(&self, flag: &AtomicBool, seen: Seen) {
        if !flag.load(Ordering::Relaxed) && !flag.swap(true, Ordering::Relaxed) {
            (self.held.witness)(seen);
        }
    }

    /// Refuses what goes over the quota, and tells of the first time that one does.
    fn charge(&self, how: impl FnOnce(&Quota) -> Result<(), Full>) -> Result<(), BlockError> {
        let Some(quota) = &self.held.quota else {
            return Ok(());
        };
        how(quota).map_err(|Full { limit }| {
            if self.held.told.swap(limit, Ordering::Relaxed) != limit {
                (self.held.witness)(Seen::OverQuota { limit });
            }
            BlockError::NoSpace
        })
    }

    fn has_read(&self, bytes: usize) {
        self.held
            .meter
            .read
            .fetch_add(bytes as u64, Ordering::Relaxed);
        self.noted(&self.held.has_read, Seen::FirstRead);
    }

    fn has_written(&self, bytes: usize) {
        let written = &self.held.meter.written;
        written.fetch_add(bytes as u64, Ordering::Relaxed);
        self.noted(&self.held.has_written, Seen::FirstWrite);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        (self.witness)(Seen::Detached(self.meter.usage()));
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment")
            .field("session", &self.held.session)
            .field("usage", &self.usage())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("shut", &self.is_shut())
            .finish_non_exhaustive()
    }
}

impl BlockDevice for Attachment {
    fn info(&self) -> DeviceInfo {
        self.held.device.info()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BlockError> {
        let _pass = self.held.gate.enter()?;
        self.held.device.read_at(offset, buffer)?;
        self.has_read(buffer.len());
        Ok(())
    }

    fn try_read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, BlockError> {
        let _pass = self.held.gate.enter()?;
        let done = self.held.device.try_read_at(offset, buffer)?;
        if done {
            self.has_read(buffer.len());
        }
        Ok(done)
    }

    fn lend(&self, offset: u64, length: usize) -> Result<Option<Lent>, BlockError> {
        let _pass = self.held.gate.enter()?;
        let lent = self.held.device.lend(offset, length)?;
        if lent.is_some() {
            self.has_read(length);
        }
        Ok(lent)
    }

    fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), BlockError> {
        let _pass = self.held.gate.enter()?;
        self.charge(|quota| quota.charge(offset, data.len() as u64))?;
        self.held.device.write_at(offset, data, durability)?;
        self.has_written(data.len());
        Ok(())
    }

    fn flush(&self) -> Result<(), BlockError> {
        let _pass = self.held.gate.enter()?;
        self.held.device.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        let _pass = self.held.gate.enter()?;
        self.charge(|quota| quota.charge_edges(offset, length))?;
        self.held.device.discard(offset, length)?;
        if let Some(quota) = &self.held.quota {
            quota.release(offset, length);
        }
        self.has_written(0);
        Ok(())
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        keep_space: bool,
        durability: Durability,
    ) -> Result<(), BlockError> {
        let _pass = self.held.gate.enter()?;
        self.charge(|quota| match keep_space {
            true => quota.charge(offset, length),
            false => quota.charge_edges(offset, length),
        })?;
        let device = &self.held.device;
        device.write_zeroes(offset, length, keep_space, durability)?;
        if let Some(quota) = self.held.quota.as_ref().filter(|_| !keep_space) {
            quota.release(offset, length);
        }
        self.has_written(0);
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64, most: usize) -> Result<Vec<Extent>, BlockError> {
        let _pass = self.held.gate.enter()?;
        self.held.device.extents(offset, length, most)
    }
}
