//! The tracker: the only writer of attempts, events and sessions.
//!
//! [`Tracker::observe`] steps the pure machine in memory and returns at once; a background
//! task writes the rows in order. A database that is away delays rows, never a boot.

use std::net::Ipv4Addr;

use uuid::Uuid;

use super::session::Observation;
use crate::model::MacAddr;

/// A handle; clones share the state.
#[derive(Debug, Clone)]
pub struct Tracker {}

/// What the doors and the DHCP server need to know of an open attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenAttempt {
    /// Its id.
    pub id: Uuid,
    /// Whose.
    pub mac: MacAddr,
    /// Its client, if known.
    pub client_id: Option<Uuid>,
    /// The image its script named, once it got one.
    pub image_id: Option<Uuid>,
    /// Its range.
    pub range_id: Option<Uuid>,
    /// A loader of ours was delivered whole in this attempt.
    pub loader_delivered: bool,
}

impl Tracker {
    /// Takes note, and says to which attempt it belongs; `None` if it starts none and there
    /// is none, or if a cap on unregistered machines is reached.
    pub fn observe(&self, observation: Observation) -> Option<Uuid> {
        let _ = observation;
        unimplemented!()
    }

    /// The open attempt of a machine.
    #[must_use]
    pub fn open_attempt(&self, mac: MacAddr) -> Option<OpenAttempt> {
        let _ = mac;
        unimplemented!()
    }

    /// An open attempt by id (for tokens).
    #[must_use]
    pub fn attempt(&self, id: Uuid) -> Option<OpenAttempt> {
        let _ = id;
        unimplemented!()
    }

    /// The open attempt of the machine that has this address now (for TFTP).
    #[must_use]
    pub fn attempt_at(&self, address: Ipv4Addr) -> Option<OpenAttempt> {
        let _ = address;
        unimplemented!()
    }

    /// True while the machine's session lives (starting, booting, running): its address
    /// is never given away.
    #[must_use]
    pub fn is_live(&self, mac: MacAddr) -> bool {
        let _ = mac;
        unimplemented!()
    }
}
