//! The address book: who has which address, in memory. Pure: time and liveness are told.
//!
//! `index` files the addresses of one range so that the next free one is found at once;
//! `share` counts what machines have that nobody has registered; `stretches` are sets of addresses, and say
//! which of them a server claims that shares the catalog with others; [`Book`] knows the machines, leases, offers and probes. It proposes, [`super::decide`]
//! judges, and PostgreSQL's unique key is the arbiter between servers.
//!
//! In which order a machine is given an address: its reservation; its last lease; what it has
//! been offered; what it asks for, if that is free; the free address its MAC leads to, or the
//! next one that need not be asked for by ARP first; one that was given back; one that ran out. Of each
//! kind one that this server has claimed goes before one that nobody has; those of others are theirs. Reserved addresses and those of machines whose
//! session lives are passed over wherever they lie.

mod bits;
mod index;
mod pick;
mod share;
mod stock;
mod stretches;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;

use chrono::TimeDelta;
use uuid::Uuid;

use self::index::{Index, Place};
use self::share::{Holding, Shares};
pub use self::share::{IsKnown, RelayKey, relay_key};
pub use self::stock::Stock;
pub use self::stretches::{Claims, Layout, Stretches, arrange};
use super::decide::{AddressFacts, Candidate, Standing};
use crate::model::{Lease, LeaseState, MacAddr, NetworkRange, Timestamp};

/// For how long an ARP probe that nobody answered is believed.
pub const PROBED_FOR: TimeDelta = TimeDelta::hours(1);

/// All leases of all ranges, offers that are held, addresses that were probed or are in use
/// by strangers.
#[derive(Debug, Default)]
pub struct Book {
    leases: HashMap<Ipv4Addr, Lease>,
    /// The active or released lease of a machine in a range.
    lease_of: HashMap<(Uuid, MacAddr), Ipv4Addr>,
    offers: HashMap<Ipv4Addr, Offer>,
    offer_of: HashMap<(Uuid, MacAddr), Ipv4Addr>,
    /// The offers by their end.
    offer_ends: BTreeSet<(Timestamp, Ipv4Addr)>,
    declined_by: HashMap<MacAddr, BTreeSet<Ipv4Addr>>,
    strangers: HashMap<Ipv4Addr, Timestamp>,
    probed: HashMap<Ipv4Addr, Timestamp>,
    /// Of each range, by who gives the addresses away: this server, whoever is first, others.
    /// Where no other server shares the catalog there is one part.
    indexes: HashMap<Uuid, Vec<Index>>,
    /// `None`: no other server shares the catalog.
    claims: Option<HashMap<Uuid, Claims>>,
    /// Whose lease this server wrote last.
    written: HashSet<Ipv4Addr>,
    /// When each range was last asked for.
    asked: HashMap<Uuid, Timestamp>,
    shares: Shares,
}

/// The part of a range's addresses that is other servers'.
const OTHERS: usize = 2;

/// Which addresses may be given to a machine that has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reach {
    /// The database judges: this server's, and those that nobody has claimed.
    #[default]
    Database,
    /// It can't be asked: only what no other server can know or give away.
    Own,
}

#[derive(Debug, Clone, Copy)]
struct Offer {
    range_id: Uuid,
    mac: MacAddr,
    until: Timestamp,
    relay: Option<RelayKey>,
}

/// What the book must be told for a look-up.
pub struct Asker<'a> {
    /// Who asks.
    pub mac: MacAddr,
    /// Is it registered?
    pub is_known: bool,
    /// By which relay.
    pub relay: Option<RelayKey>,
    /// Its reserved address in this range, if any.
    pub reserved: Option<Ipv4Addr>,
    /// What it asks for.
    pub requested: Option<Ipv4Addr>,
    /// Is an address reserved for any client (of whatever range)? Should be true for the
    /// server's own addresses too.
    pub is_reserved: &'a dyn Fn(Ipv4Addr) -> bool,
    /// Does this machine's session live?
    pub is_live: &'a dyn Fn(MacAddr) -> bool,
    /// Can the database be asked?
    pub reach: Reach,
}

/// How full the pools of a range are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Addresses that are handed out in all.
    pub size: usize,
    /// Of them, leased now.
    pub leased: usize,
    /// Of them, offered now.
    pub held: usize,
    /// Of them, kept out: declined, or in use by strangers.
    pub kept_out: usize,
    /// Of them, without any record.
    pub unused: usize,
}

impl Book {
    /// An empty book, of whose pools strangers may have `percent`.
    #[must_use]
    pub fn new(percent: u8, is_known: IsKnown) -> Self {
        Self {
            shares: Shares::new(percent, is_known),
            ..Self::default()
        }
    }

    /// Other servers share the catalog: what each may give away is said by [`Book::claim`].
    pub fn share(&mut self) {
        self.claims.get_or_insert_default();
        self.indexes.clear();
    }

    /// Takes over how the ranges are shared out; no effect on a book that is not shared.
    pub fn claim(&mut self, claims: HashMap<Uuid, Claims>) {
        let Some(before) = self.claims.as_mut() else {
            return;
        };
        let none = Claims::default();
        self.indexes.retain(|range, _| {
            before.get(range).unwrap_or(&none) == claims.get(range).unwrap_or(&none)
        });
        *before = claims;
    }

    /// How a range is shared out.
    #[must_use]
    pub fn claims(&self, range_id: Uuid) -> Option<&Claims> {
        self.claims.as_ref()?.get(&range_id)
    }

    /// Has a machine asked for an address of the range since then?
    #[must_use]
    pub fn is_asked_for(&self, range_id: Uuid, since: Timestamp) -> bool {
        self.asked.get(&range_id).is_some_and(|at| *at >= since)
    }

    /// This server has written the lease of that address.
    pub fn wrote(&mut self, address: Ipv4Addr) {
        if self.claims.is_some() {
            self.written.insert(address);
        }
    }

    /// What [`arrange`] has to know of a range, but for the claims as the catalog has them.
    pub fn layout(&mut self, range: &NetworkRange, now: Timestamp) -> Layout {
        self.prepare(range, now);
        let parts = self.indexes.get(&range.id).into_iter().flatten();
        let free = parts.fold(Stretches::default(), |all, part| all.or(&part.free()));
        let written = self.written.iter().copied().filter(|address| {
            range.is_dynamic(*address)
                && (self.leases.get(address))
                    .is_some_and(|l| l.state == LeaseState::Active && l.lasts(now))
        });
        Layout {
            free,
            written: Stretches::of_addresses(written),
            ..Layout::default()
        }
    }

    /// Takes leases in (at start, after a commit, or when others changed them). An older
    /// lease of the same machine in the same range goes, and so does what was held for it.
    pub fn put(&mut self, lease: Lease) {
        let (address, key) = (lease.address, (lease.range_id, lease.mac));
        self.forget(address);
        if lease.state == LeaseState::Declined {
            self.declined_by
                .entry(lease.mac)
                .or_default()
                .insert(address);
            if self.offer_of.get(&key) == Some(&address) {
                self.unhold(key.0, key.1);
            }
        } else {
            if let Some(old) = self.lease_of.insert(key, address).filter(|o| *o != address) {
                self.leases.remove(&old);
                self.refile(old);
            }
            self.unhold(key.0, key.1);
        }
        self.leases.insert(address, lease);
        self.refile(address);
    }

    /// The clock was set: whatever ends goes on for as long as it would have.
    pub fn shift(&mut self, by: TimeDelta) {
        let moved = |at: Timestamp| at.checked_add_signed(by).unwrap_or(at);
        for lease in self.leases.values_mut() {
            lease.starts_at = moved(lease.starts_at);
        }
        for offer in self.offers.values_mut() {
            offer.until = moved(offer.until);
        }
        self.offer_ends = (self.offers.iter())
            .map(|(address, offer)| (offer.until, *address))
            .collect();
        for at in (self.strangers.values_mut())
            .chain(self.probed.values_mut())
            .chain(self.asked.values_mut())
        {
            *at = moved(*at);
        }
        // Made anew when they are asked for.
        self.indexes.clear();
        let all: HashSet<Ipv4Addr> = (self.leases.keys())
            .chain(self.offers.keys())
            .copied()
            .collect();
        all.into_iter().for_each(|address| self.refile(address));
    }

    /// Forgets an address (its row is gone).
    pub fn remove(&mut self, address: Ipv4Addr) {
        self.forget(address);
        self.refile(address);
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
        self.prepare(range, now);
        if self.claims.is_some() {
            self.asked.insert(range.id, now);
        }
        let key = (range.id, asker.mac);
        let lease = self
            .lease_of
            .get(&key)
            .and_then(|a| self.leases.get(a))
            .cloned();
        // Another server has leased it what was only offered to somebody else here.
        let other = (lease.as_ref())
            .filter(|l| l.state == LeaseState::Active)
            .filter(|l| l.lasts(now) || (asker.is_live)(asker.mac))
            .and_then(|l| self.offers.get(&l.address))
            .filter(|offer| offer.mac != asker.mac)
            .map(|offer| (offer.range_id, offer.mac));
        if let Some((range_id, mac)) = other {
            self.unhold(range_id, mac);
        }
        let offered = self.offer_of.get(&key).copied();
        let requested = self.standing(range, asker, lease.as_ref(), offered, now);
        // Who has an address, or has been offered one, takes no other. A session alone counts for
        // nothing: it begins with a packet that was refused.
        let has_one = offered.is_some()
            || (lease.as_ref())
                .filter(|l| l.state == LeaseState::Active)
                .is_some_and(|l| l.lasts(now) || (asker.is_live)(asker.mac));
        let size = self.count(range.id, Index::size);
        let over_share =
            !asker.is_known && !has_one && self.shares.used_up(range.id, size, asker.relay, now);
        AddressFacts {
            over_share,
            cut_off: self.claims.is_some() && asker.reach == Reach::Own,
            unsure: asker.requested.is_some_and(|address| {
                !(asker.is_reserved)(address) && self.is_others(range.id, address, asker.reach)
            }),
            reserved: asker.reserved,
            candidate: self.candidate(range, asker, lease.as_ref(), offered, requested, now),
            requested,
            declines: self.decline_count(asker.mac, now),
            lease,
            offered,
        }
    }

    /// Holds an offered address for a machine until a time; `false`, and nothing is done, if
    /// it is held for another.
    pub fn hold(
        &mut self,
        range_id: Uuid,
        mac: MacAddr,
        address: Ipv4Addr,
        until: Timestamp,
    ) -> bool {
        self.hold_behind(None, range_id, mac, address, until)
    }

    /// The same for a machine behind a relay.
    pub fn hold_behind(
        &mut self,
        relay: Option<RelayKey>,
        range_id: Uuid,
        mac: MacAddr,
        address: Ipv4Addr,
        until: Timestamp,
    ) -> bool {
        if self.offers.get(&address).is_some_and(|o| o.mac != mac) {
            return false;
        }
        self.unhold(range_id, mac);
        let offer = Offer {
            range_id,
            mac,
            until,
            relay,
        };
        self.offers.insert(address, offer);
        self.offer_ends.insert((until, address));
        self.offer_of.insert((range_id, mac), address);
        self.refile(address);
        true
    }

    /// Drops what was held for a machine (it took another server's offer).
    pub fn unhold(&mut self, range_id: Uuid, mac: MacAddr) {
        if let Some(address) = self.offer_of.remove(&(range_id, mac)) {
            if let Some(offer) = self.offers.remove(&address) {
                self.offer_ends.remove(&(offer.until, address));
            }
            self.refile(address);
        }
    }

    /// Nobody answered the ARP probe.
    pub fn probed_free(&mut self, address: Ipv4Addr, now: Timestamp) {
        self.probed.insert(address, now);
        self.strangers.remove(&address);
        self.refile(address);
    }

    /// Somebody that we do not know answered the ARP probe: the address is kept out until
    /// then, and what was offered of it is void.
    pub fn probed_used(&mut self, address: Ipv4Addr, until: Timestamp) {
        self.probed.remove(&address);
        self.strangers.insert(address, until);
        if let Some(offer) = self.offers.get(&address).copied() {
            self.unhold(offer.range_id, offer.mac);
        }
        self.refile(address);
    }

    /// A few free addresses that no one has probed lately, to probe ahead of need. Goes round
    /// the pools from call to call.
    pub fn to_probe(
        &mut self,
        range: &NetworkRange,
        is_reserved: &dyn Fn(Ipv4Addr) -> bool,
        count: usize,
        now: Timestamp,
    ) -> Vec<Ipv4Addr> {
        self.prepare(range, now);
        let mut found = Vec::new();
        for part in 0..OTHERS {
            let Some(index) = self.part_mut(range.id, part) else {
                break;
            };
            let mut more = index.sweep(count.saturating_mul(8));
            more.retain(|a| !is_reserved(*a) && !self.is_probed(*a, now));
            found.extend(more);
        }
        found.truncate(count);
        found
    }

    /// How many free addresses of a range need not be asked for by ARP.
    #[must_use]
    pub fn stock(&self, range: &NetworkRange) -> usize {
        let parts = self.indexes.get(&range.id).into_iter().flatten();
        parts.take(OTHERS).map(Index::ready).sum()
    }

    /// How many addresses this machine keeps out by DECLINE now.
    #[must_use]
    pub fn decline_count(&self, mac: MacAddr, now: Timestamp) -> u32 {
        let lasts = |a: &&Ipv4Addr| self.leases.get(a).is_some_and(|l| l.lasts(now));
        let count = self
            .declined_by
            .get(&mac)
            .map_or(0, |all| all.iter().filter(lasts).count());
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// How full a range is.
    pub fn usage(&mut self, range: &NetworkRange, now: Timestamp) -> Usage {
        self.prepare(range, now);
        let mut usage = Usage {
            size: self.count(range.id, Index::size),
            held: self.count(range.id, Index::holds),
            unused: self.count(range.id, Index::unused),
            ..Usage::default()
        };
        let parts = self.indexes.get(&range.id).into_iter().flatten();
        for address in parts.flat_map(|part| part.lasting(now)) {
            match self.leases.get(&address).map(|l| l.state) {
                Some(LeaseState::Active) if !self.strangers.contains_key(&address) => {
                    usage.leased += 1;
                }
                _ => usage.kept_out += 1,
            }
        }
        usage
    }

    /// What is recorded of an address: active, released or declined, run out or not.
    #[must_use]
    pub fn lease_at(&self, address: Ipv4Addr) -> Option<&Lease> {
        self.leases.get(&address)
    }

    /// A machine's active or released lease in a range.
    #[must_use]
    pub fn lease_of(&self, range_id: Uuid, mac: MacAddr) -> Option<&Lease> {
        self.leases.get(self.lease_of.get(&(range_id, mac))?)
    }

    /// Every record, in no order.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    // ---- standing ----

    fn standing(
        &self,
        range: &NetworkRange,
        asker: &Asker<'_>,
        lease: Option<&Lease>,
        offered: Option<Ipv4Addr>,
        now: Timestamp,
    ) -> Standing {
        let Some(address) = asker.requested else {
            return Standing::NotAsked;
        };
        if !range.network.contains(address) {
            return Standing::Elsewhere;
        }
        if self.is_taken(address, asker, now) {
            return Standing::Taken;
        }
        if asker.reserved == Some(address) {
            return Standing::Its;
        }
        // The lease of a machine whose session lives stands, whatever has changed since.
        let leased = lease.is_some_and(|l| l.address == address);
        if leased && (asker.is_live)(asker.mac) {
            return Standing::Its;
        }
        if (asker.is_reserved)(address) {
            return Standing::Taken;
        }
        let moves = asker
            .reserved
            .is_some_and(|r| !self.is_taken(r, asker, now));
        if !range.is_dynamic(address) || (leased && moves) {
            return Standing::NotServed;
        }
        if leased || offered == Some(address) {
            return Standing::Its;
        }
        if self.is_others(range.id, address, Reach::Database) {
            return Standing::Taken;
        }
        Standing::Free
    }

    /// Somebody else's by our records; reservations not looked at.
    fn is_taken(&self, address: Ipv4Addr, asker: &Asker<'_>, now: Timestamp) -> bool {
        let stranger = self.strangers.get(&address).is_some_and(|t| now < *t);
        let offer = self.offers.get(&address);
        let held = offer.is_some_and(|o| o.mac != asker.mac && now < o.until);
        stranger
            || held
            || self.leases.get(&address).is_some_and(|l| match l.state {
                LeaseState::Declined => l.lasts(now),
                _ if l.mac == asker.mac => false,
                LeaseState::Active => l.lasts(now) || (asker.is_live)(l.mac),
                LeaseState::Released => (asker.is_live)(l.mac),
            })
    }

    fn is_probed(&self, address: Ipv4Addr, now: Timestamp) -> bool {
        let age = self.probed.get(&address).map(|at| now - *at);
        age.is_some_and(|age| age < PROBED_FOR)
    }

    // ---- filing ----

    /// Sees to it that the range's index stands and that no offer is held beyond its end.
    fn prepare(&mut self, range: &NetworkRange, now: Timestamp) {
        let stands = |parts: &Vec<Index>| parts.iter().all(|part| part.is_of(range));
        if !self.indexes.get(&range.id).is_some_and(stands) {
            // Networks never overlap: one that does is gone or was changed.
            self.indexes
                .retain(|_, parts| !parts.iter().any(|part| part.overlaps(range)));
            let all = index::dynamic(range);
            let parts = match &self.claims {
                None => vec![all],
                Some(claims) => {
                    let none = Claims::default();
                    let Claims { own, others } = claims.get(&range.id).unwrap_or(&none);
                    vec![all.and(own), all.without(&own.or(others)), all.and(others)]
                }
            };
            let mut parts: Vec<Index> =
                parts.iter().map(|which| Index::new(range, which)).collect();
            let known = self.leases.keys().chain(self.offers.keys());
            for address in known.chain(self.strangers.keys()) {
                let place = self.place(*address);
                parts.iter_mut().for_each(|part| part.file(*address, place));
            }
            for address in self.probed.keys() {
                parts
                    .iter_mut()
                    .for_each(|part| part.set_ready(*address, true));
            }
            self.indexes.insert(range.id, parts);
        }
        while let Some((until, address)) = self.offer_ends.first().copied() {
            if now < until {
                break;
            }
            self.offer_ends.remove(&(until, address));
            if let Some(offer) = self.offers.get(&address).copied() {
                self.unhold(offer.range_id, offer.mac);
            }
        }
    }

    /// Drops the record of an address with what points to it.
    fn forget(&mut self, address: Ipv4Addr) {
        let Some(old) = self.leases.remove(&address) else {
            return;
        };
        let key = (old.range_id, old.mac);
        if self.lease_of.get(&key) == Some(&address) {
            self.lease_of.remove(&key);
        }
        if let Some(all) = self.declined_by.get_mut(&old.mac) {
            all.remove(&address);
            if all.is_empty() {
                self.declined_by.remove(&old.mac);
            }
        }
    }

    fn refile(&mut self, address: Ipv4Addr) {
        let place = self.place(address);
        self.shares.file(address, self.holding(address));
        let ready = place == Place::Free && self.probed.contains_key(&address);
        for index in self.indexes.values_mut().flatten() {
            index.file(address, place);
            index.set_ready(address, ready);
        }
    }

    fn holding(&self, address: Ipv4Addr) -> Option<Holding> {
        if let Some(offer) = self.offers.get(&address) {
            return Some(Holding {
                range_id: offer.range_id,
                mac: offer.mac,
                until: Some(offer.until),
                relay: offer.relay,
            });
        }
        let lease = self.leases.get(&address)?;
        (lease.state != LeaseState::Released).then(|| Holding {
            range_id: lease.range_id,
            mac: lease.mac,
            until: lease.ends_at(),
            relay: relay_key(lease.relay_information.as_deref()),
        })
    }

    fn place(&self, address: Ipv4Addr) -> Place {
        if let Some(until) = self.strangers.get(&address) {
            return Place::Ending(*until);
        }
        if self.offers.contains_key(&address) {
            return Place::Held;
        }
        match self.leases.get(&address) {
            None => Place::Free,
            Some(lease) => match (lease.state, lease.ends_at()) {
                (LeaseState::Released, end) => Place::Released(end.unwrap_or(lease.starts_at)),
                (LeaseState::Active | LeaseState::Declined, Some(end)) => Place::Ending(end),
                (LeaseState::Active | LeaseState::Declined, None) => Place::Kept,
            },
        }
    }
}
