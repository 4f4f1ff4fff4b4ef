//! Who holds a client's disk: at most one boot at a time. A newer login of the same boot fences
//! the older; another boot gets the disk only once the older one's connections answer no more.
//!
//! Two locks. `serial` is held over a whole login or settlement, which may wait [`PATIENCE`]
//! for a sign of life; `holds` for moments only, by connections' own threads too, and never while
//! anything is waited for.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use super::attachment::{Gate, Meter, Usage};
use super::door::Line;
use crate::model::{DiskProtocol, Timestamp};
use crate::storage::Volume;

/// How long a machine may take to answer a ping before it counts as gone. One at work on a crowded
/// host has taken more than a second; one that was reset pays for it once, while its ROM asks again.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// The same where the newcomer says that it is another machine with the same MAC. Switches send
/// the ping to whoever spoke last then, and the machine at work hears it when it has spoken again:
/// its initiator does every five seconds or so if its disk does not answer.
pub(super) const PATIENCE_WITH_ANOTHER: Duration = Duration::from_secs(15);

/// How often, and how many times, it is looked whether a connection that was broken off has gone.
const LOOK: Duration = Duration::from_millis(20);
const LEAVING: u32 = 250;

/// One client's.
#[derive(Debug, Default)]
pub(super) struct Desk {
    serial: Mutex<()>,
    holds: Mutex<Vec<Hold>>,
}

/// One connection that has the disk, or has been fenced and is not gone yet.
#[derive(Debug, Clone)]
pub(super) struct Hold {
    pub(super) connection: u64,
    pub(super) attempt: Uuid,
    pub(super) volume: Volume,
    pub(super) protocol: DiskProtocol,
    pub(super) peer: SocketAddr,
    pub(super) since: Timestamp,
    pub(super) line: Arc<dyn Line>,
    pub(super) gate: Arc<Gate>,
    pub(super) meter: Arc<Meter>,
    /// What its boot was last told of it.
    pub(super) told: Usage,
    /// Why it was broken off, if we did.
    pub(super) cause: Option<&'static str>,
}

/// What was found of older connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody has the disk (any more).
    Free,
    /// The boot that has it answers.
    Taken {
        /// Which boot.
        by: Uuid,
    },
}

impl Desk {
    /// One login or settlement at a time.
    pub(super) fn serial(&self) -> MutexGuard<'_, ()> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn holds(&self) -> MutexGuard<'_, Vec<Hold>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if a connection has the disk that was not fenced.
    pub(super) fn is_held(&self) -> bool {
        self.holds().iter().any(|hold| !hold.gate.is_shut())
    }

    /// Asks the connections that `of` picks for a sign of life: the first that answers has
    /// the disk; those that don't within `patience` are broken off. To be called with `serial`
    /// held.
    pub(super) fn settle(&self, patience: Duration, of: impl Fn(&Hold) -> bool) -> Verdict {
        let live: Vec<Hold> = {
            let holds = self.holds();
            let picked = holds.iter().filter(|h| of(h) && !h.gate.is_shut());
            picked.cloned().collect()
        };
        for hold in live {
            if hold.line.answers(patience) {
                return Verdict::Taken { by: hold.attempt };
            }
            self.break_off(&hold, "it did not answer when the machine began anew");
        }
        Verdict::Free
    }

    /// False if one of these connections has the disk. A machine that is off has not always hung
    /// up, so where its boot is `over` they are asked, and those that do not answer broken off.
    /// To be called with `serial` held.
    pub(super) fn vacate(&self, over: bool, of: impl Fn(&Hold) -> bool) -> bool {
        let held = || self.holds().iter().any(&of);
        if !held() {
            return true;
        }
        if !over || self.settle(PATIENCE, &of) != Verdict::Free {
            return false;
        }
        // Their threads let go of the disk in a moment.
        for _ in 0..LEAVING {
            if !held() {
                return true;
            }
            std::thread::sleep(LOOK);
        }
        false
    }

    /// Lets nothing more through a connection, waits for what is under way, closes it.
    pub(super) fn break_off(&self, hold: &Hold, cause: &'static str) {
        let mut holds = self.holds();
        let known = holds.iter_mut().find(|h| h.connection == hold.connection);
        if let Some(known) = known {
            known.cause.get_or_insert(cause);
        }
        drop(holds);
        hold.gate.shut();
        hold.line.close();
    }

    /// A connection is gone; its hold, if it was here.
    pub(super) fn gone(&self, connection: u64) -> Option<Hold> {
        let mut holds = self.holds();
        let at = holds.iter().position(|h| h.connection == connection)?;
        Some(holds.swap_remove(at))
    }
}
