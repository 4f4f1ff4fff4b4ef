//! The address book: sticky, fair, fast, and never two holders of one address.

mod clock;
mod histories;
mod shared;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::dhcp::packet::ip;
use crate::dhcp::testing::{at, lease, mac, range};

/// The world around the book.
#[derive(Default)]
struct World {
    book: Book,
    reserved: HashMap<Ipv4Addr, MacAddr>,
    live: HashSet<MacAddr>,
    reach: Reach,
}

impl World {
    fn look(
        &mut self,
        range: &NetworkRange,
        who: MacAddr,
        asks: Option<Ipv4Addr>,
        now: i64,
    ) -> AddressFacts {
        let reserved = self
            .reserved
            .iter()
            .find(|(a, m)| **m == who && range.network.contains(**a));
        let asker = Asker {
            is_known: false,
            relay: None,
            mac: who,
            reserved: reserved.map(|(a, _)| *a),
            requested: asks,
            is_reserved: &|a| self.reserved.contains_key(&a),
            is_live: &|m| self.live.contains(&m),
            reach: self.reach,
        };
        self.book.look(range, &asker, at(now))
    }

    /// What it would be offered, probed or not.
    fn pick(&mut self, range: &NetworkRange, who: MacAddr, now: i64) -> Option<Ipv4Addr> {
        match self.look(range, who, None, now).candidate {
            Candidate::Ready(a) | Candidate::Unprobed(a) => Some(a),
            Candidate::None => None,
        }
    }

    /// DISCOVER, REQUEST: it has an address for so many seconds.
    fn take(&mut self, range: &NetworkRange, who: MacAddr, now: i64, seconds: u32) -> Ipv4Addr {
        let address = self.pick(range, who, now).unwrap();
        assert!(self.book.hold(range.id, who, address, at(now + 30)));
        self.put(range, who, address, now, seconds);
        address
    }

    fn put(
        &mut self,
        range: &NetworkRange,
        who: MacAddr,
        address: Ipv4Addr,
        now: i64,
        seconds: u32,
    ) {
        self.book.put(Lease {
            range_id: range.id,
            starts_at: at(now),
            ..lease(address, who, seconds)
        });
    }

    fn end(&mut self, address: Ipv4Addr, state: LeaseState, now: i64, seconds: u32) {
        let lease = self.book.lease_at(address).unwrap().clone();
        self.book.put(Lease {
            state,
            starts_at: at(now),
            length_seconds: seconds,
            ..lease
        });
    }

    fn standing(&mut self, who: MacAddr, address: &str, now: i64) -> Standing {
        self.look(&range(), who, Some(ip(address)), now).requested
    }
}

fn small(first: &str, last: &str) -> NetworkRange {
    NetworkRange {
        pools: vec![format!("{first}-{last}").parse().unwrap()],
        ..range()
    }
}

// ---- what an address may be ----

#[test]
fn what_is_not_dynamic_is_never_handed_out() {
    let mut range = small("10.0.0.0", "10.0.0.255");
    range.gateway = Some(ip("10.0.0.1"));
    range.exclusions = vec![
        "10.0.0.2-10.0.0.9".parse().unwrap(),
        "10.0.0.20-10.0.0.250".parse().unwrap(),
        "10.0.0.15".parse().unwrap(),
    ];
    let mut world = World::default();
    world.reserved.insert(ip("10.0.0.12"), mac(9_999));
    let mut given = BTreeSet::new();
    for n in 0.. {
        match world.pick(&range, mac(n), 0) {
            Some(address) => {
                assert!(world.book.hold(range.id, mac(n), address, at(1_000)));
                assert!(given.insert(address), "{address} twice");
            }
            None => break,
        }
    }
    let want: BTreeSet<Ipv4Addr> = (0..=255)
        .map(|n| Ipv4Addr::new(10, 0, 0, n))
        .filter(|a| range.is_dynamic(*a) && *a != ip("10.0.0.12"))
        .collect();
    assert_eq!(given, want);
    assert_eq!(world.pick(&range, mac(9_999), 1), Some(ip("10.0.0.12")));
    let usage = world.book.usage(&range, at(1));
    assert_eq!((usage.size, usage.held), (want.len() + 1, want.len()));
}

#[test]
fn pools_that_touch_overlap_or_leave_the_network() {
    let mut range = range();
    range.gateway = None;
    range.pools = [
        "10.0.0.30-10.0.0.39",
        "10.0.0.10-10.0.0.19",
        "10.0.0.20-10.0.0.31",
        "9.9.9.0-10.0.0.3",
        "10.0.0.250-10.0.1.5",
        "192.168.0.1-192.168.0.9",
    ]
    .map(|p| p.parse().unwrap())
    .into();
    let mut world = World::default();
    assert_eq!(world.book.usage(&range, at(0)).size, 30 + 3 + 5);
    range.pools.clear();
    assert_eq!(world.book.usage(&range, at(0)).size, 0);
    assert_eq!(world.pick(&range, mac(1), 0), None);
    // A /32 and the end of all addresses.
    range.network = "255.255.255.255/32".parse().unwrap();
    range.pools = vec!["255.255.255.255".parse().unwrap()];
    assert_eq!(world.pick(&range, mac(1), 0), Some(ip("255.255.255.255")));
}

#[test]
fn standings() {
    let mut world = World::default();
    let range = range();
    let (a, b) = (mac(1), mac(2));
    assert_eq!(world.look(&range, a, None, 0).requested, Standing::NotAsked);
    assert_eq!(world.standing(a, "10.0.1.5", 0), Standing::Elsewhere);
    assert_eq!(world.standing(a, "10.0.0.5", 0), Standing::NotServed);
    assert_eq!(world.standing(a, "10.0.0.150", 0), Standing::Free);
    world.put(&range, a, ip("10.0.0.150"), 0, 100);
    assert_eq!(world.standing(a, "10.0.0.150", 0), Standing::Its);
    assert_eq!(world.standing(a, "10.0.0.151", 0), Standing::Free);
    assert_eq!(world.standing(b, "10.0.0.150", 99), Standing::Taken);
    assert_eq!(
        world.standing(b, "10.0.0.150", 100),
        Standing::Free,
        "run out"
    );
    assert_eq!(
        world.standing(a, "10.0.0.150", 100),
        Standing::Its,
        "and still on record"
    );
    world.live.insert(a);
    assert_eq!(
        world.standing(b, "10.0.0.150", 1_000),
        Standing::Taken,
        "its session lives"
    );
    world.live.clear();
    assert!(world.book.hold(range.id, b, ip("10.0.0.160"), at(30)));
    assert_eq!(world.standing(b, "10.0.0.160", 29), Standing::Its);
    assert_eq!(world.standing(a, "10.0.0.160", 29), Standing::Taken);
    assert_eq!(world.standing(a, "10.0.0.160", 30), Standing::Free);
    world.reserved.insert(ip("10.0.0.5"), a);
    assert_eq!(world.standing(a, "10.0.0.5", 0), Standing::Its);
    assert_eq!(world.standing(b, "10.0.0.5", 0), Standing::Taken);
    // It has a reservation now, so its old lease is no longer its, unless its session lives.
    assert_eq!(world.standing(a, "10.0.0.150", 0), Standing::NotServed);
    world.live.insert(a);
    assert_eq!(world.standing(a, "10.0.0.150", 0), Standing::Its);
    world.live.clear();
    world.book.probed_used(ip("10.0.0.170"), at(600));
    assert_eq!(world.standing(a, "10.0.0.170", 599), Standing::Taken);
    assert_eq!(world.standing(b, "10.0.0.170", 600), Standing::Free);
    world.end(ip("10.0.0.150"), LeaseState::Declined, 0, 600);
    assert_eq!(
        world.standing(a, "10.0.0.150", 599),
        Standing::Taken,
        "declined by itself"
    );
}

// ---- who gets what ----

#[test]
fn the_same_machine_gets_the_same_address() {
    let range = range();
    let mut world = World::default();
    let first = world.take(&range, mac(1), 0, 60);
    for n in 2..40 {
        world.take(&range, mac(n), 0, 60);
    }
    assert_eq!(world.pick(&range, mac(1), 30), Some(first));
    assert_eq!(
        world.pick(&range, mac(1), 1_000),
        Some(first),
        "long after its lease"
    );
    world.end(first, LeaseState::Released, 30, 30);
    assert_eq!(
        world.pick(&range, mac(1), 40),
        Some(first),
        "after it gave it back"
    );
    // A book that remembers nothing leads it to the same place.
    assert_eq!(World::default().pick(&range, mac(1), 0), Some(first));
}

#[test]
fn a_thousand_discovers_cost_one_address() {
    let range = range();
    let mut world = World::default();
    let first = world.pick(&range, mac(1), 0).unwrap();
    for n in 0..1_000 {
        assert_eq!(world.pick(&range, mac(1), n / 10), Some(first));
        assert!(world.book.hold(range.id, mac(1), first, at(n / 10 + 30)));
    }
    assert_eq!(world.book.usage(&range, at(100)).held, 1);
    assert_eq!(world.book.usage(&range, at(1_000)).held, 0);
}

#[test]
fn reserved_then_leased_then_offered_then_wished() {
    let range = range();
    let mut world = World::default();
    let me = mac(1);
    let wish = world.look(&range, me, Some(ip("10.0.0.177")), 0);
    assert_eq!(
        wish.candidate,
        Candidate::Unprobed(ip("10.0.0.177")),
        "RFC 2131 section 4.3.1"
    );
    assert!(world.book.hold(range.id, me, ip("10.0.0.150"), at(30)));
    let ask = |world: &mut World| world.look(&range, me, Some(ip("10.0.0.177")), 1).candidate;
    assert_eq!(ask(&mut world), Candidate::Ready(ip("10.0.0.150")));
    world.put(&range, me, ip("10.0.0.160"), 0, 600);
    assert_eq!(ask(&mut world), Candidate::Ready(ip("10.0.0.160")));
    world.reserved.insert(ip("10.0.0.7"), me);
    assert_eq!(ask(&mut world), Candidate::Ready(ip("10.0.0.7")));
    // While somebody else still has its reserved address it keeps what it has.
    world.put(&range, mac(2), ip("10.0.0.7"), 0, 600);
    assert_eq!(ask(&mut world), Candidate::Ready(ip("10.0.0.160")));
    assert_eq!(world.standing(me, "10.0.0.7", 1), Standing::Taken);
    assert_eq!(world.standing(me, "10.0.0.160", 1), Standing::Its);
}

#[test]
fn run_out_leases_are_reused_oldest_first_and_not_while_live() {
    let range = small("10.0.0.100", "10.0.0.103");
    let mut world = World::default();
    let given: Vec<Ipv4Addr> = (0..4)
        .map(|n| world.take(&range, mac(n), 0, 100 + 10 * n))
        .collect();
    let new = mac(50);
    assert_eq!(world.pick(&range, new, 99), None);
    assert_eq!(world.pick(&range, new, 100), Some(given[0]));
    assert_eq!(world.pick(&range, new, 1_000), Some(given[0]));
    world.live.insert(mac(0));
    assert_eq!(world.pick(&range, new, 1_000), Some(given[1]));
    // What was given back comes first, however fresh.
    world.end(given[3], LeaseState::Released, 120, 10_000);
    assert_eq!(world.pick(&range, new, 1_000), Some(given[3]));
    world.live.extend([mac(1), mac(2), mac(3)]);
    assert_eq!(world.pick(&range, new, 1_010), None, "every session lives");
    assert_eq!(world.pick(&range, mac(2), 1_010), Some(given[2]), "its own");
    // Passed over is not forgotten.
    world.live.clear();
    let picked = world.pick(&range, new, 1_020);
    assert_eq!(picked, Some(given[3]), "released before run-out");
    world.book.hold(range.id, new, given[3], at(1_050));
    assert_eq!(
        world.pick(&range, mac(51), 1_020),
        Some(given[0]),
        "then the oldest"
    );
    // Its old owner comes back while it is offered to another.
    assert_eq!(world.pick(&range, mac(3), 1_021), Some(given[0]));
    // Nobody took it: it is its again.
    assert_eq!(world.pick(&range, mac(3), 1_051), Some(given[3]));
}

#[test]
fn a_reservation_that_goes_frees_its_address() {
    let range = small("10.0.0.100", "10.0.0.100");
    let mut world = World::default();
    world.reserved.insert(ip("10.0.0.100"), mac(1));
    assert_eq!(world.pick(&range, mac(2), 0), None);
    world.reserved.clear();
    assert_eq!(world.pick(&range, mac(2), 1), Some(ip("10.0.0.100")));
}

#[test]
fn a_full_pool_of_live_machines_gives_nothing_away() {
    let range = small("10.0.0.100", "10.0.0.109");
    let mut world = World::default();
    for n in 0..10 {
        world.take(&range, mac(n), 0, 60);
        world.live.insert(mac(n));
    }
    // None of them ever renews.
    for now in [61, 3_600, 1_000_000] {
        for n in 0..20 {
            let picked = world.pick(&range, mac(n), now);
            assert_eq!(picked.is_some(), n < 10);
            if let Some(own) = picked {
                assert_eq!(world.book.lease_at(own).unwrap().mac, mac(n));
            }
        }
    }
}

#[test]
fn declined_addresses_come_back_when_they_end() {
    let range = small("10.0.0.100", "10.0.0.101");
    let mut world = World::default();
    let first = world.take(&range, mac(1), 0, 600);
    world.end(first, LeaseState::Declined, 10, 100);
    assert_eq!(world.book.decline_count(mac(1), at(20)), 1);
    assert_eq!(world.look(&range, mac(1), None, 20).declines, 1);
    assert_eq!(world.look(&range, mac(1), None, 20).lease, None);
    let second = world.take(&range, mac(1), 20, 600);
    assert_ne!(second, first);
    assert_eq!(world.pick(&range, mac(2), 109), None);
    assert_eq!(world.pick(&range, mac(2), 110), Some(first));
    assert_eq!(world.book.decline_count(mac(1), at(110)), 0);
    world.book.remove(first);
    assert_eq!(world.book.decline_count(mac(1), at(20)), 0);
    // An address that was only offered can be declined too.
    assert!(world.book.hold(range.id, mac(3), first, at(150)));
    world.book.put(Lease {
        state: LeaseState::Declined,
        starts_at: at(120),
        ..lease(first, mac(3), 100)
    });
    assert_eq!(world.look(&range, mac(3), None, 121).offered, None);
    assert_eq!(world.pick(&range, mac(3), 121), None);
}

#[test]
fn offers_are_held_and_let_go() {
    let range = small("10.0.0.100", "10.0.0.100");
    let mut world = World::default();
    let only = ip("10.0.0.100");
    assert!(world.book.hold(range.id, mac(1), only, at(30)));
    assert!(
        !world.book.hold(range.id, mac(2), only, at(30)),
        "it is held for another"
    );
    assert_eq!(world.pick(&range, mac(2), 29), None);
    world.book.unhold(range.id, mac(1));
    assert_eq!(world.pick(&range, mac(2), 29), Some(only));
    assert!(world.book.hold(range.id, mac(2), only, at(30)));
    world.book.probed_used(only, at(100));
    assert_eq!(world.look(&range, mac(2), None, 29).offered, None);
    assert_eq!(world.pick(&range, mac(2), 29), None);
    assert_eq!(world.book.usage(&range, at(29)).kept_out, 1);
    world.book.probed_free(only, at(50));
    assert_eq!(
        world.look(&range, mac(2), None, 50).candidate,
        Candidate::Ready(only)
    );
}

#[test]
fn what_another_server_has_leased_was_only_offered_here() {
    let range = small("10.0.0.100", "10.0.0.100");
    let mut world = World::default();
    let only = ip("10.0.0.100");
    assert!(world.book.hold(range.id, mac(1), only, at(60)));
    world.put(&range, mac(2), only, 0, 30);
    assert_eq!(world.standing(mac(1), "10.0.0.100", 1), Standing::Taken);
    assert_eq!(world.standing(mac(2), "10.0.0.100", 1), Standing::Its);
    assert_eq!(world.look(&range, mac(1), None, 1).offered, None);
    // A lease that has run out goes before no offer.
    assert!(world.book.hold(range.id, mac(1), only, at(60)));
    assert_eq!(world.standing(mac(2), "10.0.0.100", 30), Standing::Taken);
    assert_eq!(world.standing(mac(1), "10.0.0.100", 30), Standing::Its);
}

#[test]
fn an_offer_outside_the_pools_ends_too() {
    let range = range();
    let mut world = World::default();
    world.reserved.insert(ip("10.0.0.9"), mac(1));
    assert!(world.book.hold(range.id, mac(1), ip("10.0.0.9"), at(30)));
    world.reserved.insert(ip("10.0.0.9"), mac(2));
    assert_ne!(world.pick(&range, mac(2), 29), Some(ip("10.0.0.9")));
    assert_eq!(world.pick(&range, mac(2), 30), Some(ip("10.0.0.9")));
    assert!(world.book.hold(range.id, mac(2), ip("10.0.0.9"), at(60)));
}

#[test]
fn a_probe_is_believed_for_an_hour() {
    let range = small("10.0.0.100", "10.0.0.100");
    let mut world = World::default();
    let only = ip("10.0.0.100");
    let ask = |world: &mut World, now| world.look(&range, mac(1), None, now).candidate;
    assert_eq!(ask(&mut world, 0), Candidate::Unprobed(only));
    world.book.probed_free(only, at(0));
    assert_eq!(ask(&mut world, 3_599), Candidate::Ready(only));
    assert_eq!(ask(&mut world, 3_600), Candidate::Unprobed(only));
    world.take(&range, mac(1), 3_600, 60);
    assert_eq!(
        ask(&mut world, 100_000),
        Candidate::Ready(only),
        "its own is not probed"
    );
}

#[test]
fn what_was_probed_goes_before_what_was_not() {
    let range = range();
    let mut world = World::default();
    let own = world.pick(&range, mac(1), 0).unwrap();
    let other = world.pick(&range, mac(2), 0).unwrap();
    assert_ne!(own, other);
    world.book.probed_free(other, at(0));
    assert_eq!(world.book.stock(&range), 1);
    let ask = |world: &mut World, n, now| world.look(&range, mac(n), None, now).candidate;
    assert_eq!(ask(&mut world, 1, 0), Candidate::Ready(other));
    // Its own again where that was probed too, and where the other's probe is too old.
    assert_eq!(ask(&mut world, 1, 3_600), Candidate::Unprobed(own));
    assert_eq!(world.book.stock(&range), 0);
    world.book.probed_free(own, at(3_600));
    world.book.probed_free(other, at(3_600));
    assert_eq!(ask(&mut world, 1, 3_600), Candidate::Ready(own));
    // What is offered is no stock, and is again when the offer is void.
    assert!(world.book.hold(range.id, mac(2), other, at(3_630)));
    assert_eq!(world.book.stock(&range), 1);
    world.book.unhold(range.id, mac(2));
    assert_eq!(world.book.stock(&range), 2);
}

#[test]
fn strangers_get_nothing_beyond_their_share() {
    let range = small("10.0.0.100", "10.0.0.119");
    let mut world = World {
        book: Book::new(90, std::sync::Arc::new(|m| m == mac(99))),
        ..World::default()
    };
    for n in 0..18 {
        assert!(!world.look(&range, mac(n), None, 0).over_share);
        world.take(&range, mac(n), 0, 600);
    }
    assert!(world.look(&range, mac(18), None, 0).over_share);
    assert!(
        !world.look(&range, mac(1), None, 0).over_share,
        "it has one"
    );
    // Whoever is refused twice in one boot has a session, and no address by that; a machine that
    // boots keeps the one that it had when it was switched on.
    let mut live = World {
        live: HashSet::from([mac(18), mac(1)]),
        ..world
    };
    assert!(live.look(&range, mac(18), None, 0).over_share);
    assert!(live.look(&range, mac(18), None, 599).over_share);
    live.take(&range, mac(1), 590, 5);
    for n in 2..18 {
        live.take(&range, mac(n), 590, 600);
    }
    live.take(&range, mac(98), 597, 600);
    assert!(live.look(&range, mac(18), None, 598).over_share);
    assert!(!live.look(&range, mac(1), None, 598).over_share, "it lives");
    for n in 2..18 {
        live.take(&range, mac(n), 598, 2);
    }
    live.take(&range, mac(98), 598, 2);
    live.live.clear();
    // Registered machines take from the rest, and leave the strangers' share as it is.
    live.take(&range, mac(99), 0, 600);
    assert!(live.look(&range, mac(18), None, 599).over_share);
    assert!(!live.look(&range, mac(18), None, 600).over_share);
}

#[test]
fn addresses_to_probe_go_round_the_pool() {
    let range = small("10.0.0.100", "10.0.0.119");
    let mut world = World::default();
    world.put(&range, mac(1), ip("10.0.0.105"), 0, 600);
    world.reserved.insert(ip("10.0.0.106"), mac(2));
    let mut seen = BTreeSet::new();
    for _ in 0..12 {
        let reserved = &world.reserved;
        let few = world
            .book
            .to_probe(&range, &|a| reserved.contains_key(&a), 3, at(0));
        assert!(few.len() <= 3);
        for address in few {
            assert!(seen.insert(address), "{address} twice");
            world.book.probed_free(address, at(0));
        }
    }
    assert_eq!(seen.len(), 18);
}

#[test]
fn a_lease_that_moves_leaves_nothing_behind() {
    let range = range();
    let mut world = World::default();
    world.put(&range, mac(1), ip("10.0.0.150"), 0, 600);
    world.put(&range, mac(1), ip("10.0.0.151"), 0, 600);
    assert_eq!(world.book.leases().count(), 1);
    assert_eq!(world.book.usage(&range, at(1)).leased, 1);
    // Another server gave it to another machine.
    world.put(&range, mac(2), ip("10.0.0.151"), 0, 600);
    assert_eq!(world.book.lease_of(range.id, mac(1)), None);
    assert_eq!(
        world.book.lease_of(range.id, mac(2)).unwrap().address,
        ip("10.0.0.151")
    );
    world.book.remove(ip("10.0.0.151"));
    assert_eq!(world.book.usage(&range, at(1)).unused, 100);
}

#[test]
fn a_changed_range_holds_on_the_next_packet() {
    let mut range = small("10.0.0.100", "10.0.0.109");
    let mut world = World::default();
    let first = world.take(&range, mac(1), 0, 600);
    world.live.insert(mac(1));
    range.pools = vec!["10.0.0.200-10.0.0.200".parse().unwrap()];
    assert_eq!(world.pick(&range, mac(2), 1), Some(ip("10.0.0.200")));
    assert_eq!(
        world.pick(&range, mac(1), 1),
        Some(first),
        "its session lives"
    );
    world.live.clear();
    assert_eq!(world.pick(&range, mac(1), 1), Some(ip("10.0.0.200")));
    range.network = "10.9.0.0/24".parse().unwrap();
    range.pools = vec!["10.9.0.9-10.9.0.9".parse().unwrap()];
    assert_eq!(world.pick(&range, mac(1), 1), Some(ip("10.9.0.9")));
}

/// A walk through the pool a pick would be 65,000 x 65,000 / 2 steps: minutes. The figure is
/// printed, not judged.
#[test]
fn a_whole_16_is_handed_out() {
    let range = NetworkRange {
        network: "10.8.0.0/16".parse().unwrap(),
        pools: vec!["10.8.0.1-10.8.255.254".parse().unwrap()],
        gateway: None,
        ..range()
    };
    let mut world = World::default();
    let mut given = HashSet::new();
    for n in 0..65_534 {
        assert!(given.insert(world.take(&range, mac(n), 0, 600)));
    }
    assert_eq!(world.pick(&range, mac(70_000), 1), None);
    // Then the full pool, all of it live and run out, is asked again and again.
    world.live = (0..65_534).map(mac).collect();
    for n in 0..2_000 {
        assert_eq!(world.pick(&range, mac(80_000 + n), 601), None);
    }
    world.live.clear();
    for n in 0..1_000 {
        assert!(world.pick(&range, mac(80_000 + n), 602).is_some());
    }
}
