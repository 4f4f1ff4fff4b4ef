//! Histories of many machines: never two holders, a pool of N serves N.

use super::*;

// ---- histories ----

#[derive(Debug, Clone)]
enum Step {
    Discover(u8),
    Request(u8),
    Renew(u8),
    Release(u8),
    Decline(u8),
    OtherServer(u8),
    Stranger(u8),
    Live(u8, bool),
    Reserve(u8, Option<u8>),
    Pass(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let m = 0_u8..24;
    let step = prop_oneof![
        8 => m.clone().prop_map(Step::Discover),
        8 => m.clone().prop_map(Step::Request),
        3 => m.clone().prop_map(Step::Renew),
        1 => m.clone().prop_map(Step::Release),
        1 => m.clone().prop_map(Step::Decline),
        1 => m.clone().prop_map(Step::OtherServer),
        1 => (0_u8..12).prop_map(Step::Stranger),
        2 => (m.clone(), any::<bool>()).prop_map(|(m, l)| Step::Live(m, l)),
        1 => (m, proptest::option::of(0_u8..14)).prop_map(|(m, a)| Step::Reserve(m, a)),
        3 => (1_u8..40).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..250)
}

/// Who may use which address, kept by the test alone: what it was acknowledged, until when.
#[derive(Default)]
struct Holders(BTreeMap<Ipv4Addr, (MacAddr, i64)>);

impl Holders {
    /// Fails if another machine holds it, or its session lives.
    fn give(
        &mut self,
        address: Ipv4Addr,
        who: MacAddr,
        live: &HashSet<MacAddr>,
        now: i64,
        until: i64,
    ) {
        if let Some((other, end)) = self.0.get(&address).filter(|(m, _)| *m != who) {
            assert!(
                *end <= now && !live.contains(other),
                "{address} has two holders"
            );
        }
        self.0.retain(|_, (m, _)| *m != who);
        self.0.insert(address, (who, until));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Offers, acknowledgements, renewals, releases, declines, restarts of clients, machines
    /// that live on without renewing: no address ever has two holders, and what is given is
    /// dynamic or the machine's own reservation.
    #[test]
    fn never_two_holders(steps in steps()) {
        let range = small("10.0.0.100", "10.0.0.109");
        let (mut world, mut holders, mut now) = (World::default(), Holders::default(), 0);
        let mut offers: HashMap<MacAddr, Ipv4Addr> = HashMap::new();
        for step in steps {
            match step {
                Step::Pass(seconds) => now += i64::from(seconds),
                Step::Discover(m) => {
                    let who = mac(m.into());
                    if let Some(address) = world.pick(&range, who, now) {
                        let own = world.reserved.get(&address) == Some(&who);
                        let free = range.is_dynamic(address) && !world.reserved.contains_key(&address);
                        let lives_there = world.live.contains(&who)
                            && world.book.lease_of(range.id, who).map(|l| l.address) == Some(address);
                        prop_assert!(own || free || lives_there, "{} to {}", address, who);
                        prop_assert!(world.book.hold(range.id, who, address, at(now + 10)));
                        offers.insert(who, address);
                    }
                }
                Step::Request(m) => {
                    let who = mac(m.into());
                    let Some(address) = offers.remove(&who) else { continue };
                    let facts = world.look(&range, who, Some(address), now);
                    if facts.requested == Standing::Its {
                        holders.give(address, who, &world.live, now, now + 30);
                        world.put(&range, who, address, now, 30);
                    }
                }
                Step::Renew(m) => {
                    let who = mac(m.into());
                    let lease = world.book.lease_of(range.id, who);
                    let Some(address) = lease.map(|l| l.address) else { continue };
                    let facts = world.look(&range, who, Some(address), now);
                    if facts.requested == Standing::Its {
                        holders.give(address, who, &world.live, now, now + 30);
                        world.put(&range, who, address, now, 30);
                    } else {
                        prop_assert!(!world.live.contains(&who)
                            || facts.requested == Standing::Taken, "{:?}", facts);
                    }
                }
                Step::Release(m) => {
                    let lease = world.book.lease_of(range.id, mac(m.into()));
                    let Some(address) = lease.map(|l| l.address) else { continue };
                    world.end(address, LeaseState::Released, now, 30);
                    if let Some((_, end)) = holders.0.get_mut(&address) {
                        *end = now;
                    }
                }
                Step::Decline(m) => {
                    let who = mac(m.into());
                    let lease = world.book.lease_of(range.id, who);
                    let Some(address) = lease.map(|l| l.address) else { continue };
                    world.end(address, LeaseState::Declined, now, 50);
                    holders.0.remove(&address);
                    prop_assert_ne!(world.pick(&range, who, now), Some(address));
                }
                Step::OtherServer(m) => {
                    world.book.unhold(range.id, mac(m.into()));
                    offers.remove(&mac(m.into()));
                }
                Step::Stranger(a) => {
                    let address = Ipv4Addr::new(10, 0, 0, 100 + a);
                    if world.book.lease_at(address).is_none() {
                        world.book.probed_used(address, at(now + 20));
                    }
                }
                // A machine's session starts where it has an address.
                Step::Live(m, true) => {
                    if holders.0.values().any(|(h, end)| *h == mac(m.into()) && now < *end) {
                        world.live.insert(mac(m.into()));
                    }
                }
                Step::Live(m, false) => {
                    world.live.remove(&mac(m.into()));
                }
                Step::Reserve(m, None) => world.reserved.retain(|_, who| *who != mac(m.into())),
                Step::Reserve(m, Some(a)) => {
                    world.reserved.retain(|_, who| *who != mac(m.into()));
                    world.reserved.insert(Ipv4Addr::new(10, 0, 0, 98 + a), mac(m.into()));
                }
            }
        }
    }

    /// A pool of N serves N clients, however their offers cross.
    #[test]
    fn a_pool_of_n_serves_n_clients(
        size in 1_u8..60,
        order in any::<u64>(),
        first in 0_u32..1_000_000,
    ) {
        let range = NetworkRange {
            gateway: None,
            ..small("10.0.0.100", &format!("10.0.0.{}", 99 + size))
        };
        let mut world = World::default();
        let mut offered = Vec::new();
        for n in 0..u32::from(size) {
            let who = mac(first + n);
            let address = world.pick(&range, who, 0);
            prop_assert!(address.is_some(), "client {} of {}", n, size);
            let address = address.unwrap_or(Ipv4Addr::UNSPECIFIED);
            prop_assert!(world.book.hold(range.id, who, address, at(30)));
            offered.push((who, address));
        }
        prop_assert_eq!(world.pick(&range, mac(first + 100), 0), None);
        let turn = usize::try_from(order).unwrap_or(0) % offered.len();
        offered.rotate_left(turn);
        for (who, address) in &offered {
            prop_assert_eq!(world.look(&range, *who, Some(*address), 1).requested, Standing::Its);
            world.put(&range, *who, *address, 1, 600);
        }
        let given: BTreeSet<_> = offered.iter().map(|(_, a)| *a).collect();
        prop_assert_eq!(given.len(), usize::from(size));
        prop_assert_eq!(world.book.usage(&range, at(2)).leased, usize::from(size));
    }

    /// The index is what a walk over the range would find.
    #[test]
    fn the_index_agrees_with_the_range(
        pools in proptest::collection::vec((0_u32..300, 0_u32..80), 0..5),
        holes in proptest::collection::vec((0_u32..300, 0_u32..30), 0..5),
        gateway in proptest::option::of(0_u32..256),
        prefix in 24_u8..=32,
    ) {
        let base = u32::from(ip("10.0.0.0")) - 10;
        let pool = |(first, more): (u32, u32)| crate::model::Pool {
            first: Ipv4Addr::from(base + first),
            last: Ipv4Addr::from(base + first + more),
        };
        let range = NetworkRange {
            network: format!("10.0.0.0/{prefix}").parse().unwrap(),
            pools: pools.into_iter().map(pool).collect(),
            exclusions: holes.into_iter().map(pool).collect(),
            gateway: gateway.map(|g| Ipv4Addr::from(u32::from(ip("10.0.0.0")) + g)),
            ..range()
        };
        let mut index = Index::new(&range, &index::dynamic(&range));
        let want: BTreeSet<Ipv4Addr> = (0..500)
            .map(|n| Ipv4Addr::from(base + n))
            .filter(|a| range.is_dynamic(*a))
            .collect();
        let found: BTreeSet<Ipv4Addr> = index.sweep(10_000).into_iter().collect();
        prop_assert_eq!(index.size(), want.len());
        prop_assert_eq!(found, want);
    }
}
