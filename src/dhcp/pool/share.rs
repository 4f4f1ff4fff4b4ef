//! How much of a range machines have that nobody has registered: a MAC costs its inventor
//! nothing, and a pool that strangers empty must still serve the site's own machines.
//!
//! A share, not a rate: of N addresses strangers hold [`Shares::allowed`] at most, offers and
//! declined addresses included, and those behind one relay (by its option 82: a switch port, or
//! a whole switch) that share of the share. A machine that is registered later counts as a
//! stranger until its lease is next written.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;
use std::sync::Arc;

use uuid::Uuid;

use crate::model::{MacAddr, Timestamp};

/// Whether a machine is registered (by a person: one that the server has put on the list by
/// itself is not).
pub type IsKnown = Arc<dyn Fn(MacAddr) -> bool + Send + Sync>;

/// Which relay a packet came by, where it says so.
pub type RelayKey = u64;

/// A relay, by what it wrote into option 82.
#[must_use]
pub fn relay_key(relay_information: Option<&[u8]>) -> Option<RelayKey> {
    let bytes = relay_information?;
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    Some(hasher.finish())
}

/// Who has an address, and until when (never ending: `None`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holding {
    pub(super) range_id: Uuid,
    pub(super) mac: MacAddr,
    pub(super) until: Option<Timestamp>,
    pub(super) relay: Option<RelayKey>,
}

/// What strangers have.
pub(super) struct Shares {
    percent: u8,
    is_known: IsKnown,
    holdings: HashMap<Ipv4Addr, Holding>,
    ranges: HashMap<Uuid, Held>,
}

#[derive(Debug, Default)]
struct Held {
    count: usize,
    relays: HashMap<RelayKey, usize>,
    ends: BTreeSet<(Timestamp, Ipv4Addr)>,
}

impl Shares {
    /// `percent` of a pool is theirs.
    pub(super) fn new(percent: u8, is_known: IsKnown) -> Self {
        Self {
            percent: percent.min(100),
            is_known,
            holdings: HashMap::new(),
            ranges: HashMap::new(),
        }
    }

    /// Of so many addresses, how many strangers may have: what is kept from them is rounded
    /// down, so that a pool of few addresses is not smaller than it is.
    fn allowed(&self, size: usize) -> usize {
        size - size.saturating_mul(usize::from(100 - self.percent)) / 100
    }

    /// Writes down who has an address now.
    pub(super) fn file(&mut self, address: Ipv4Addr, holding: Option<Holding>) {
        let holding = holding.filter(|holding| !(self.is_known)(holding.mac));
        if self.holdings.get(&address) == holding.as_ref() {
            return;
        }
        if let Some(old) = self.holdings.remove(&address)
            && let Some(held) = self.ranges.get_mut(&old.range_id)
        {
            held.count -= 1;
            if let Some(until) = old.until {
                held.ends.remove(&(until, address));
            }
            if let Some(relay) = old.relay
                && let Some(count) = held.relays.get_mut(&relay)
            {
                *count -= 1;
                if *count == 0 {
                    held.relays.remove(&relay);
                }
            }
            if held.count == 0 {
                self.ranges.remove(&old.range_id);
            }
        }
        if let Some(new) = holding {
            let held = self.ranges.entry(new.range_id).or_default();
            held.count += 1;
            if let Some(until) = new.until {
                held.ends.insert((until, address));
            }
            if let Some(relay) = new.relay {
                *held.relays.entry(relay).or_default() += 1;
            }
            self.holdings.insert(address, new);
        }
    }

    /// True if no stranger, or none behind that relay, may have one more address of a range of
    /// so many.
    pub(super) fn used_up(
        &mut self,
        range_id: Uuid,
        size: usize,
        relay: Option<RelayKey>,
        now: Timestamp,
    ) -> bool {
        if size == 0 {
            return false;
        }
        let allowed = self.allowed(size);
        while let Some(address) = self.run_out(range_id, now) {
            self.file(address, None);
        }
        let Some(held) = self.ranges.get(&range_id) else {
            return allowed == 0;
        };
        let of_relay = relay.and_then(|relay| held.relays.get(&relay)).copied();
        held.count >= allowed || of_relay.is_some_and(|count| count >= self.allowed(allowed))
    }

    fn run_out(&self, range_id: Uuid, now: Timestamp) -> Option<Ipv4Addr> {
        let (until, address) = self.ranges.get(&range_id)?.ends.first()?;
        (*until <= now).then_some(*address)
    }
}

impl Default for Shares {
    /// No share: nobody is refused.
    fn default() -> Self {
        Self::new(100, Arc::new(|_| true))
    }
}

impl fmt::Debug for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shares")
            .field("percent", &self.percent)
            .field("ranges", &self.ranges)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::testing::at;

    fn address(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, n)
    }

    fn holding(n: u8, until: i64, relay: Option<RelayKey>) -> Option<Holding> {
        Some(Holding {
            range_id: Uuid::nil(),
            mac: MacAddr([2, 0, 0, 0, 0, n]),
            until: Some(at(until)),
            relay,
        })
    }

    fn shares() -> Shares {
        // Machines above 200 are registered.
        Shares::new(90, Arc::new(|mac| mac.0[5] > 200))
    }

    #[test]
    fn strangers_have_nine_tenths() {
        let mut shares = shares();
        for n in 1..=8 {
            shares.file(address(n), holding(n, 100, None));
        }
        assert!(!shares.used_up(Uuid::nil(), 10, None, at(0)));
        // Registered machines do not count, nor does what is written twice.
        shares.file(address(20), holding(201, 100, None));
        shares.file(address(8), holding(8, 90, None));
        assert!(!shares.used_up(Uuid::nil(), 10, None, at(0)));
        shares.file(address(9), holding(9, 100, None));
        assert!(shares.used_up(Uuid::nil(), 10, None, at(0)));
        assert!(!shares.used_up(Uuid::from_u128(1), 10, None, at(0)));
        // One has run out; one was given back.
        assert!(!shares.used_up(Uuid::nil(), 10, None, at(90)));
        shares.file(address(1), None);
        assert_eq!(shares.holdings.len(), 7);
        assert!(!shares.used_up(Uuid::nil(), 10, None, at(100)));
        assert!(shares.holdings.is_empty() && shares.ranges.is_empty());
    }

    #[test]
    fn behind_one_relay_nine_tenths_of_that() {
        let mut shares = shares();
        for n in 1..=81 {
            shares.file(address(n), holding(n, 100, Some(7)));
        }
        assert!(shares.used_up(Uuid::nil(), 100, Some(7), at(0)));
        assert!(!shares.used_up(Uuid::nil(), 100, Some(8), at(0)));
        assert!(!shares.used_up(Uuid::nil(), 100, None, at(0)));
    }

    #[test]
    fn small_pools_are_not_smaller() {
        let shares = shares();
        let allowed: Vec<usize> = [0, 1, 9, 10, 19, 20, 254]
            .map(|n| shares.allowed(n))
            .to_vec();
        assert_eq!(allowed, [0, 1, 9, 9, 18, 18, 229]);
    }
}
