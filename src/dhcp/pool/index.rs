//! The addresses of one range, filed by what may be done with them, so that a free one is
//! found without walking the pool. It knows no machines: the book tells it where to file.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;

use super::bits::Bits;
use super::stretches::Stretches;
use crate::model::{MacAddr, NetworkRange, Pool, Timestamp};

/// Pools are indexed up to a whole /8; what lies beyond is never handed out.
const MOST: u64 = 1 << 24;
/// How long what was passed over is left alone, so that a full pool costs one walk in a while,
/// not one a packet.
const PARKED_FOR: chrono::TimeDelta = chrono::TimeDelta::milliseconds(100);

/// Where an address is filed. The times are by which it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// No record of it.
    Free,
    /// Given back; its lease would have ended then.
    Released(Timestamp),
    /// Leased or kept out until then.
    Ending(Timestamp),
    /// Offered.
    Held,
    /// Leased or kept out for ever.
    Kept,
    /// It would be to be had but for its reservation, or for a session that lives.
    Parked,
}

/// A stretch of addresses that are handed out.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: u32,
    last: u32,
    offset: usize,
}

/// See the file.
#[derive(Debug)]
pub(super) struct Index {
    network: Ipv4Network,
    pools: Vec<Pool>,
    exclusions: Vec<Pool>,
    gateway: Option<Ipv4Addr>,
    spans: Vec<Span>,
    size: usize,
    free: Bits,
    /// Of the free ones, those that nobody answered an ARP probe for lately.
    ready: Bits,
    released: BTreeSet<(Timestamp, u32)>,
    ending: BTreeSet<(Timestamp, u32)>,
    held: usize,
    parked: BTreeSet<u32>,
    parked_at: Option<Timestamp>,
    /// Every address that is not free.
    filed: HashMap<u32, Place>,
    cursor: usize,
}

impl Index {
    /// Those addresses of the range, free.
    pub(super) fn new(range: &NetworkRange, which: &Stretches) -> Self {
        let spans = spans(which);
        let size = spans
            .last()
            .map_or(0, |s| s.offset + (s.last - s.first) as usize + 1);
        Self {
            network: range.network,
            pools: range.pools.clone(),
            exclusions: range.exclusions.clone(),
            gateway: range.gateway,
            spans,
            size,
            free: Bits::full(size),
            ready: Bits::empty(size),
            released: BTreeSet::new(),
            ending: BTreeSet::new(),
            held: 0,
            parked: BTreeSet::new(),
            parked_at: None,
            filed: HashMap::new(),
            cursor: 0,
        }
    }

    /// True while the range is as it was.
    pub(super) fn is_of(&self, range: &NetworkRange) -> bool {
        self.network == range.network
            && self.gateway == range.gateway
            && self.pools == range.pools
            && self.exclusions == range.exclusions
    }

    /// True if the two networks share an address.
    pub(super) fn overlaps(&self, range: &NetworkRange) -> bool {
        self.network.overlaps(range.network)
    }

    /// How many addresses it hands out.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// How many have no record.
    pub(super) fn unused(&self) -> usize {
        self.free.len()
    }

    /// Files an address; one that is not handed out is left alone.
    pub(super) fn file(&mut self, address: Ipv4Addr, place: Place) {
        let Some(position) = self.position(address) else {
            return;
        };
        self.ready.remove(position);
        let number = u32::from(address);
        match self.filed.remove(&number) {
            None | Some(Place::Free) => self.free.remove(position),
            Some(Place::Released(at)) => drop(self.released.remove(&(at, number))),
            Some(Place::Ending(at)) => drop(self.ending.remove(&(at, number))),
            Some(Place::Held) => self.held -= 1,
            Some(Place::Parked) => drop(self.parked.remove(&number)),
            Some(Place::Kept) => {}
        }
        match place {
            Place::Free => self.free.insert(position),
            Place::Released(at) => drop(self.released.insert((at, number))),
            Place::Ending(at) => drop(self.ending.insert((at, number))),
            Place::Held => self.held += 1,
            Place::Parked => drop(self.parked.insert(number)),
            Place::Kept => {}
        }
        if place != Place::Free {
            self.filed.insert(number, place);
        }
    }

    /// The free address that is a machine's by its MAC, or the next one. The same machine is
    /// led to the same address even by a server that remembers nothing.
    pub(super) fn guess(&self, mac: MacAddr) -> Option<Ipv4Addr> {
        let size = u64::try_from(self.size).ok().filter(|s| *s > 0)?;
        let position = usize::try_from(hash(mac) % size).ok()?;
        self.address(self.free.next(position)?)
    }

    /// Takes note whether a free address may be given away without asking for it by ARP.
    pub(super) fn set_ready(&mut self, address: Ipv4Addr, ready: bool) {
        let Some(position) = self.position(address) else {
            return;
        };
        if ready && !self.filed.contains_key(&u32::from(address)) {
            self.ready.insert(position);
        } else {
            self.ready.remove(position);
        }
    }

    /// How many free addresses may be given away at once.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Of the free addresses that may be given away at once the one that is next to a
    /// machine's own.
    pub(super) fn ready_guess(&self, mac: MacAddr) -> Option<Ipv4Addr> {
        let size = u64::try_from(self.size).ok().filter(|s| *s > 0)?;
        let position = usize::try_from(hash(mac) % size).ok()?;
        self.address(self.ready.next(position)?)
    }

    /// The address that was given back longest ago.
    pub(super) fn oldest_released(&self) -> Option<Ipv4Addr> {
        self.released.first().map(|(_, a)| Ipv4Addr::from(*a))
    }

    /// The address that ran out longest ago.
    pub(super) fn oldest_run_out(&self, now: Timestamp) -> Option<Ipv4Addr> {
        let (at, address) = self.ending.first()?;
        (*at <= now).then(|| Ipv4Addr::from(*address))
    }

    /// What was passed over, if it is time to look at it again.
    pub(super) fn parked(&mut self, now: Timestamp) -> Vec<Ipv4Addr> {
        // A clock that was set back must not park them for long.
        let waiting = self
            .parked_at
            .is_some_and(|at| at <= now && now - at < PARKED_FOR);
        if waiting || self.parked.is_empty() {
            return Vec::new();
        }
        self.parked_at = Some(now);
        self.parked.iter().copied().map(Ipv4Addr::from).collect()
    }

    /// Leases and the like that last at that time.
    pub(super) fn lasting(&self, now: Timestamp) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let kept = self.filed.iter().filter(|(_, p)| **p == Place::Kept);
        self.ending
            .range((now, u32::MAX)..)
            .map(|(_, a)| *a)
            .chain(kept.map(|(a, _)| *a))
            .map(Ipv4Addr::from)
    }

    /// The addresses without any record.
    pub(super) fn free(&self) -> Stretches {
        let mut parts = Vec::new();
        let mut spans = self.spans.iter().peekable();
        for (mut first, last) in self.free.runs() {
            while let Some(span) = spans.peek() {
                let end = span.offset + (span.last - span.first) as usize;
                if first > end {
                    spans.next();
                    continue;
                }
                let part = (self.address(first), self.address(last.min(end)));
                if let (Some(from), Some(to)) = part {
                    parts.push((u32::from(from), u32::from(to)));
                }
                if last <= end {
                    break;
                }
                first = end + 1;
            }
        }
        Stretches::joined(parts)
    }

    /// How many addresses are held.
    pub(super) fn holds(&self) -> usize {
        self.held
    }

    /// Free addresses from where the last call stopped, `most` of them at the most, each once.
    pub(super) fn sweep(&mut self, most: usize) -> Vec<Ipv4Addr> {
        let mut found = Vec::new();
        let mut position = self.cursor;
        while found.len() < most.min(self.free.len()) {
            let Some(next) = self.free.next(position) else {
                break;
            };
            found.extend(self.address(next));
            position = next + 1;
        }
        self.cursor = position % self.size.max(1);
        found
    }

    fn position(&self, address: Ipv4Addr) -> Option<usize> {
        let number = u32::from(address);
        let after = self.spans.partition_point(|s| s.first <= number);
        let span = self.spans.get(after.checked_sub(1)?)?;
        (number <= span.last).then(|| span.offset + (number - span.first) as usize)
    }

    fn address(&self, position: usize) -> Option<Ipv4Addr> {
        let after = self.spans.partition_point(|s| s.offset <= position);
        let span = self.spans.get(after.checked_sub(1)?)?;
        let step = u32::try_from(position - span.offset).ok()?;
        Some(Ipv4Addr::from(span.first + step))
    }
}

/// All addresses that a range hands out: of its pools what lies in the network, without
/// exclusions, gateway, and the network's own and broadcast addresses.
pub(super) fn dynamic(range: &NetworkRange) -> Stretches {
    let one = |address: Ipv4Addr| Pool {
        first: address,
        last: address,
    };
    let network = Pool {
        first: range.network.network(),
        last: range.network.broadcast(),
    };
    let ends = (range.network.prefix() < 31).then_some([one(network.first), one(network.last)]);
    let holes = range.exclusions.iter().copied();
    let holes = Stretches::of(
        holes
            .chain(range.gateway.map(one))
            .chain(ends.into_iter().flatten()),
    );
    let inside = Stretches::of([network]);
    Stretches::of(range.pools.iter().copied())
        .and(&inside)
        .without(&holes)
}

/// The stretches with the place of each in the index, up to [`MOST`] addresses.
fn spans(which: &Stretches) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut offset = 0_u64;
    for (first, last) in which.numbers().iter().copied() {
        let room = MOST.saturating_sub(offset);
        let size = (u64::from(last - first) + 1).min(room);
        let (Ok(at), Ok(step)) = (usize::try_from(offset), u32::try_from(size)) else {
            break;
        };
        if step == 0 {
            break;
        }
        spans.push(Span {
            first,
            last: first + (step - 1),
            offset: at,
        });
        offset += size;
    }
    spans
}

/// FNV-1a with a final mix: spread well, and the same in every version of this program.
fn hash(mac: MacAddr) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in mac.octets() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}
