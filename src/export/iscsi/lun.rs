//! What all sessions to one disk share: reservations, unit attentions, and the lock that makes
//! COMPARE AND WRITE atomic. Kept by the disk's identity, and forgotten when its boot is
//! another one: to a machine that boots anew the disk was powered on anew, and reservations
//! that don't outlive power (APTPL is refused) must not lock it out.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use uuid::Uuid;

use super::scsi::Sense;
use super::scsi::cdb::{Op, ReserveIn};
use super::scsi::lists::Keys;
use super::scsi::reserve::{Nexus, Refused, Reservations};
use crate::model::DiskIdentity;

/// Unit attentions that wait for one nexus; the oldest are kept.
const MOST_ATTENTIONS: usize = 8;

/// One session's place at a disk.
#[derive(Debug)]
pub struct Seat {
    nexus: Nexus,
    attentions: Mutex<VecDeque<Sense>>,
    pending: AtomicBool,
    /// Counts what aborted all commands of this session from outside.
    epoch: AtomicU64,
}

impl Seat {
    fn new(nexus: Nexus) -> Self {
        let seat = Self {
            nexus,
            attentions: Mutex::default(),
            pending: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
        };
        seat.post(Sense::POWER_ON);
        seat
    }

    fn post(&self, sense: Sense) {
        let mut waiting = lock(&self.attentions);
        if waiting.len() < MOST_ATTENTIONS && !waiting.contains(&sense) {
            waiting.push_back(sense);
            self.pending.store(true, Ordering::Release);
        }
    }

    /// The next unit attention, if one waits.
    pub fn attention(&self) -> Option<Sense> {
        if !self.pending.load(Ordering::Acquire) {
            return None;
        }
        let mut waiting = lock(&self.attentions);
        let sense = waiting.pop_front();
        self.pending.store(!waiting.is_empty(), Ordering::Release);
        sense
    }

    /// A command that began in another epoch was aborted by somebody else.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }
}

/// One disk, to all its sessions.
#[derive(Debug)]
pub struct Lun {
    boot: Uuid,
    reserved: AtomicBool,
    state: Mutex<State>,
    /// Shared by what changes the disk, exclusive for what must be one step.
    pub media: RwLock<()>,
}

#[derive(Debug, Default)]
struct State {
    reservations: Reservations,
    seats: Vec<Arc<Seat>>,
}

/// Whose commands task management ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    /// Everybody's; the others are told that commands were cleared.
    Clear,
    /// Everybody's; all are told of a reset, and reservations of SPC-2 end.
    Reset,
}

impl Lun {
    /// Whether a command may be done, reservations considered.
    pub fn allows(&self, seat: &Seat, op: &Op) -> bool {
        !self.reserved.load(Ordering::Acquire)
            || lock(&self.state).reservations.allows(&seat.nexus, op)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Reservations) -> T) -> (T, MutexGuard<'_, State>) {
        let mut state = lock(&self.state);
        let result = change(&mut state.reservations);
        let free = state.reservations.is_free();
        self.reserved.store(!free, Ordering::Release);
        (result, state)
    }

    /// RESERVE of SPC-2.
    pub fn reserve(&self, seat: &Seat) -> Result<(), Refused> {
        self.change(|r| r.reserve(&seat.nexus)).0
    }

    /// RELEASE of SPC-2.
    pub fn release(&self, seat: &Seat) {
        drop(self.change(|r| r.release(&seat.nexus)));
    }

    /// PERSISTENT RESERVE OUT.
    pub fn reserve_out(
        &self,
        seat: &Seat,
        action: u8,
        scope: u8,
        kind: u8,
        keys: &Keys,
    ) -> Result<(), Refused> {
        let (notices, state) = self.change(|r| r.change(&seat.nexus, action, scope, kind, keys));
        for notice in notices? {
            for other in state.seats.iter().filter(|s| s.nexus == notice.nexus) {
                other.post(notice.sense);
                if notice.abort {
                    other.epoch.fetch_add(1, Ordering::AcqRel);
                }
            }
        }
        Ok(())
    }

    /// PERSISTENT RESERVE IN.
    pub fn reserve_in(&self, what: ReserveIn) -> Vec<u8> {
        lock(&self.state).reservations.report(what)
    }

    /// Ends commands of all sessions at this disk. When it returns, none of theirs that had
    /// begun changes the disk any more.
    pub fn sweep(&self, by: &Seat, sweep: Sweep) {
        {
            let mut state = lock(&self.state);
            if sweep == Sweep::Reset {
                state.reservations.reset();
                let free = state.reservations.is_free();
                self.reserved.store(!free, Ordering::Release);
            }
            for seat in &state.seats {
                let own = seat.nexus == by.nexus;
                match sweep {
                    Sweep::Clear if own => {}
                    Sweep::Clear => seat.post(Sense::CLEARED),
                    Sweep::Reset => seat.post(Sense::RESET),
                }
                seat.epoch.fetch_add(1, Ordering::AcqRel);
            }
        }
        drop(self.media.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// All disks that have sessions or registrations.
#[derive(Debug, Default)]
pub struct Luns {
    disks: Mutex<HashMap<DiskIdentity, Arc<Lun>>>,
}

impl Luns {
    /// A session joins a disk, as that nexus, in that boot.
    pub fn join(&self, disk: DiskIdentity, boot: Uuid, nexus: Nexus) -> (Arc<Lun>, Arc<Seat>) {
        let mut disks = lock(&self.disks);
        let fresh = || {
            Arc::new(Lun {
                boot,
                reserved: AtomicBool::new(false),
                state: Mutex::default(),
                media: RwLock::default(),
            })
        };
        let lun = disks.entry(disk).or_insert_with(fresh);
        if lun.boot != boot {
            *lun = fresh();
        }
        let seat = Arc::new(Seat::new(nexus));
        lock(&lun.state).seats.push(seat.clone());
        (lun.clone(), seat)
    }

    /// A session leaves. Its reservation of SPC-2 ends with it, a persistent one stays.
    pub fn leave(&self, disk: DiskIdentity, lun: &Arc<Lun>, seat: &Arc<Seat>) {
        lun.release(seat);
        let mut disks = lock(&self.disks);
        let mut state = lock(&lun.state);
        state.seats.retain(|s| !Arc::ptr_eq(s, seat));
        let unused = state.seats.is_empty() && !state.reservations.has_registrants();
        if unused && disks.get(&disk).is_some_and(|l| Arc::ptr_eq(l, lun)) {
            disks.remove(&disk);
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
