//! Which address a machine would be given: the order of the book's map, applied; and which
//! addresses are this server's to judge.

use std::net::Ipv4Addr;

use uuid::Uuid;

use super::index::{Index, Place};
use super::{
    Asker, Book, Candidate, Lease, LeaseState, MacAddr, NetworkRange, OTHERS, Reach, Standing,
    Timestamp,
};

impl Book {
    /// True if no other server can give this address to another machine, nor has, whatever it
    /// knows: it lies in a block of this one and has no record but this machine's.
    #[must_use]
    pub fn is_sure(&self, range_id: Uuid, address: Ipv4Addr, mac: MacAddr) -> bool {
        let Some(claims) = &self.claims else {
            return true;
        };
        claims
            .get(&range_id)
            .is_some_and(|claims| claims.own.contains(address))
            && (self.leases.get(&address))
                .is_none_or(|l| l.mac == mac && l.state != LeaseState::Declined)
    }

    /// True if another server may have leased this address without our knowing.
    pub(super) fn is_others(&self, range_id: Uuid, address: Ipv4Addr, reach: Reach) -> bool {
        let Some(claims) = &self.claims else {
            return false;
        };
        let claims = claims.get(&range_id);
        match reach {
            Reach::Database => claims.is_some_and(|c| c.others.contains(address)),
            Reach::Own => !claims.is_some_and(|c| c.own.contains(address)),
        }
    }

    pub(super) fn candidate(
        &mut self,
        range: &NetworkRange,
        asker: &Asker<'_>,
        lease: Option<&Lease>,
        offered: Option<Ipv4Addr>,
        requested: Standing,
        now: Timestamp,
    ) -> Candidate {
        let free_for_it = |book: &Self, address| {
            range.is_dynamic(address)
                && !(asker.is_reserved)(address)
                && !book.is_taken(address, asker, now)
        };
        if let Some(address) = asker.reserved.filter(|r| !self.is_taken(*r, asker, now)) {
            return Candidate::Ready(address);
        }
        let reaches = |book: &Self, address| match asker.reach {
            Reach::Database => true,
            Reach::Own => book.is_sure(range.id, address, asker.mac),
        };
        if let Some(lease) = lease
            && reaches(self, lease.address)
            && !self.is_taken(lease.address, asker, now)
            && ((asker.is_live)(asker.mac) || free_for_it(self, lease.address))
        {
            return Candidate::Ready(lease.address);
        }
        let may_have = |address: &Ipv4Addr| reaches(self, *address);
        if let Some(address) = offered.filter(may_have).filter(|a| free_for_it(self, *a)) {
            return Candidate::Ready(address);
        }
        let wish = (asker.requested.filter(|_| requested == Standing::Free)).filter(may_have);
        match wish.or_else(|| self.pick(range.id, asker, now)) {
            Some(address) if self.is_probed(address, now) => Candidate::Ready(address),
            Some(address) => Candidate::Unprobed(address),
            None => Candidate::None,
        }
    }

    /// An address that nobody has. What must be passed over is parked, so that each such
    /// address is seen once, not once a packet.
    fn pick(&mut self, range_id: Uuid, asker: &Asker<'_>, now: Timestamp) -> Option<Ipv4Addr> {
        for round in 0..2 {
            if round == 1 {
                for part in 0..OTHERS {
                    let parked = self.part_mut(range_id, part).map(|i| i.parked(now));
                    for address in parked.unwrap_or_default() {
                        if !(asker.is_reserved)(address) && !self.is_taken(address, asker, now) {
                            self.refile(address);
                        }
                    }
                }
            }
            while let Some((part, address)) = self.next(range_id, asker, now) {
                if self.strangers.get(&address).is_some_and(|t| *t <= now) {
                    self.strangers.remove(&address);
                    self.refile(address);
                } else if (asker.is_reserved)(address) || self.is_taken(address, asker, now) {
                    self.part_mut(range_id, part)?.file(address, Place::Parked);
                } else {
                    return Some(address);
                }
            }
        }
        None
    }

    /// The best address that its filing allows, and in which part of the range it is.
    fn next(
        &mut self,
        range_id: Uuid,
        asker: &Asker<'_>,
        now: Timestamp,
    ) -> Option<(usize, Ipv4Addr)> {
        let parts = match asker.reach {
            Reach::Database => 0..OTHERS,
            Reach::Own => 0..1,
        };
        for part in parts.clone() {
            while let Some(old) = self.stale(range_id, part, asker.mac, now) {
                self.part_mut(range_id, part)?.set_ready(old, false);
            }
        }
        let of_each = |pick: &dyn Fn(&Index) -> Option<Ipv4Addr>| {
            let indexes = self.indexes.get(&range_id)?;
            let mut inside = parts.clone().zip(indexes);
            inside.find_map(|(part, index)| Some((part, pick(index)?)))
        };
        let free = of_each(&|index| {
            let own = index.guess(asker.mac);
            own.filter(|a| self.is_probed(*a, now))
                .or_else(|| index.ready_guess(asker.mac))
                .or(own)
        });
        // Another server may have renewed what ran out or was given back here.
        let used = || {
            let released = of_each(&Index::oldest_released);
            released.or_else(|| of_each(&|index| index.oldest_run_out(now)))
        };
        match (asker.reach, &self.claims) {
            (Reach::Own, Some(_)) => free,
            _ => free.or_else(used),
        }
    }

    /// The address of the stock that a machine would get, if its probe is too old by now.
    fn stale(&self, range_id: Uuid, part: usize, mac: MacAddr, now: Timestamp) -> Option<Ipv4Addr> {
        let next = self.indexes.get(&range_id)?.get(part)?.ready_guess(mac)?;
        (!self.is_probed(next, now)).then_some(next)
    }

    pub(super) fn part_mut(&mut self, range_id: Uuid, part: usize) -> Option<&mut Index> {
        self.indexes.get_mut(&range_id)?.get_mut(part)
    }

    pub(super) fn count(&self, range_id: Uuid, what: impl Fn(&Index) -> usize) -> usize {
        let parts = self.indexes.get(&range_id).into_iter().flatten();
        parts.map(what).sum()
    }
}
