//! The address book: who has which address, in memory. Pure: time and liveness are told.

use std::net::Ipv4Addr;

use uuid::Uuid;

use super::decide::AddressFacts;
use crate::model::{Lease, MacAddr, NetworkRange, Timestamp};

/// All leases of all ranges, offers that are held, addresses that were probed or are in use
/// by strangers.
#[derive(Debug, Default)]
pub struct Book {}

/// What the book must be told for a look-up.
pub struct Asker<'a> {
    /// Who asks.
    pub mac: MacAddr,
    /// Its reserved address in this range, if any.
    pub reserved: Option<Ipv4Addr>,
    /// What it asks for.
    pub requested: Option<Ipv4Addr>,
    /// Is an address reserved for any client (of whatever range)?
    pub is_reserved: &'a dyn Fn(Ipv4Addr) -> bool,
    /// Does this machine's session live?
    pub is_live: &'a dyn Fn(MacAddr) -> bool,
}

impl Book {
    /// Takes leases in (at start, after a commit, or when others changed them).
    pub fn put(&mut self, lease: Lease) {
        let _ = lease;
        unimplemented!()
    }

    /// Forgets an address (its row is gone).
    pub fn remove(&mut self, address: Ipv4Addr) {
        let _ = address;
        unimplemented!()
    }

    /// The facts for a request. Never hands out a reserved, excluded, held, leased or live
    /// address; the oldest run-out leases come last, and only those whose machine's session
    /// does not live.
    pub fn look(
        &mut self,
        range: &NetworkRange,
        asker: &Asker<'_>,
        now: Timestamp,
    ) -> AddressFacts {
        let _ = (range, asker, now);
        unimplemented!()
    }

    /// Holds an offered address for a machine until a time.
    pub fn hold(&mut self, range_id: Uuid, mac: MacAddr, address: Ipv4Addr, until: Timestamp) {
        let _ = (range_id, mac, address, until);
        unimplemented!()
    }

    /// Drops what was held for a machine (it took another server's offer).
    pub fn unhold(&mut self, range_id: Uuid, mac: MacAddr) {
        let _ = (range_id, mac);
        unimplemented!()
    }

    /// Nobody answered the ARP probe.
    pub fn probed_free(&mut self, address: Ipv4Addr, now: Timestamp) {
        let _ = (address, now);
        unimplemented!()
    }

    /// A few free addresses that no one has probed yet, to probe ahead of need.
    pub fn to_probe(
        &mut self,
        range: &NetworkRange,
        is_reserved: &dyn Fn(Ipv4Addr) -> bool,
        count: usize,
        now: Timestamp,
    ) -> Vec<Ipv4Addr> {
        let _ = (range, is_reserved, count, now);
        unimplemented!()
    }
}
