//! Sets of addresses as stretches from one to another, and how a server shares a range with
//! others: [`arrange`]. Pure.

use std::net::Ipv4Addr;

use crate::model::Pool;

/// Of the free addresses of a range, a server claims this many at most.
const MOST: u64 = 8_192;

/// A set of addresses: sorted stretches that neither overlap nor touch, both ends included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stretches(Vec<(u32, u32)>);

impl Stretches {
    /// The addresses of all pools.
    #[must_use]
    pub fn of(pools: impl IntoIterator<Item = Pool>) -> Self {
        Self::joined(
            pools
                .into_iter()
                .map(|pool| (pool.first.into(), pool.last.into()))
                .collect(),
        )
    }

    /// Single addresses.
    #[must_use]
    pub fn of_addresses(addresses: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        Self::of(addresses.into_iter().map(|address| Pool {
            first: address,
            last: address,
        }))
    }

    /// Any stretches, in any order.
    pub(super) fn joined(mut parts: Vec<(u32, u32)>) -> Self {
        parts.retain(|(first, last)| first <= last);
        parts.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::with_capacity(parts.len());
        for (first, last) in parts {
            match joined.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => joined.push((first, last)),
            }
        }
        Self(joined)
    }

    /// First and last address of each, in order.
    pub fn pools(&self) -> impl Iterator<Item = Pool> + '_ {
        self.0.iter().map(|(first, last)| Pool {
            first: Ipv4Addr::from(*first),
            last: Ipv4Addr::from(*last),
        })
    }

    pub(super) fn numbers(&self) -> &[(u32, u32)] {
        &self.0
    }

    /// How many addresses.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.iter().map(|stretch| size(*stretch)).sum()
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Is it one of them?
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let number = u32::from(address);
        let after = self.0.partition_point(|(first, _)| *first <= number);
        after
            .checked_sub(1)
            .and_then(|before| self.0.get(before))
            .is_some_and(|(_, last)| number <= *last)
    }

    /// Those of either.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self::joined(self.0.iter().chain(&other.0).copied().collect())
    }

    /// Those of both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut both = Vec::new();
        while let (Some(a), Some(b)) = (ours.peek(), theirs.peek()) {
            let (first, last) = (a.0.max(b.0), a.1.min(b.1));
            if first <= last {
                both.push((first, last));
            }
            if a.1 < b.1 {
                ours.next();
            } else {
                theirs.next();
            }
        }
        Self(both)
    }

    /// Those that are not of the other.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        let mut holes = other.0.iter().peekable();
        for (first, last) in &self.0 {
            // In 64 bits: the address after the last may be none.
            let (mut from, last) = (u64::from(*first), u64::from(*last));
            while let Some((hole_first, hole_last)) = holes.peek() {
                if u64::from(*hole_first) > last {
                    break;
                }
                if u64::from(*hole_first) > from {
                    left.push((from, u64::from(*hole_first) - 1));
                }
                from = from.max(u64::from(*hole_last) + 1);
                if u64::from(*hole_last) > last {
                    break;
                }
                holes.next();
            }
            if from <= last {
                left.push((from, last));
            }
        }
        let narrow = |(first, last): (u64, u64)| {
            Some((u32::try_from(first).ok()?, u32::try_from(last).ok()?))
        };
        Self(left.into_iter().filter_map(narrow).collect())
    }

    /// So many of them, in as few stretches as may be.
    #[must_use]
    pub fn some(&self, count: u64) -> Self {
        let mut stretches = self.0.clone();
        stretches.sort_by_key(|stretch| std::cmp::Reverse(size(*stretch)));
        let mut left = count;
        let mut taken = Vec::new();
        for (first, last) in stretches {
            let here = size((first, last)).min(left);
            let Some(step) = here.checked_sub(1).and_then(|s| u32::try_from(s).ok()) else {
                break;
            };
            taken.push((first, first + step));
            left -= here;
        }
        Self::joined(taken)
    }
}

fn size((first, last): (u32, u32)) -> u64 {
    u64::from(last - first) + 1
}

/// How the addresses of a range are shared out, as far as this server knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// This server's.
    pub own: Stretches,
    /// Other servers', and this one's that it may not use yet.
    pub others: Stretches,
}

/// What [`arrange`] looks at.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Addresses of which there is no record.
    pub free: Stretches,
    /// Addresses whose leases this server has written.
    pub written: Stretches,
    /// Claimed by this server, usable or not yet.
    pub own: Stretches,
    /// Claimed by others.
    pub others: Stretches,
    /// Servers that live, this one among them.
    pub servers: u64,
}

/// What this server should claim from now on: of the free addresses as many as let each server
/// have as much with half of them left to all, so that claims get smaller as the range fills,
/// down to none; and what it has leased, so that it can renew by itself. Changes little at a
/// time: nothing is claimed or given back for a small difference.
#[must_use]
pub fn arrange(layout: &Layout) -> Stretches {
    let adopted = layout.own.or(&layout.written.without(&layout.others));
    let share = (layout.free.size() / (2 * layout.servers.max(1))).min(MOST);
    let stock = adopted.and(&layout.free);
    let has = stock.size();
    if has < share - share / 4 {
        let unclaimed = layout.free.without(&layout.others).without(&stock);
        adopted.or(&unclaimed.some(share - has))
    } else if has > share + share / 2 {
        adopted.without(&stock.without(&stock.some(share)))
    } else {
        adopted
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn of(parts: &[(u32, u32)]) -> Stretches {
        Stretches::joined(parts.to_vec())
    }

    fn set(stretches: &Stretches) -> BTreeSet<u32> {
        stretches.0.iter().flat_map(|(a, b)| *a..=*b).collect()
    }

    fn any_set() -> impl Strategy<Value = Stretches> {
        let part = (0_u32..200, 0_u32..20).prop_map(|(first, more)| (first, first + more));
        prop::collection::vec(part, 0..12).prop_map(Stretches::joined)
    }

    proptest! {
        #[test]
        fn they_are_sets(a in any_set(), b in any_set(), count in 0_u64..300) {
            let (x, y) = (set(&a), set(&b));
            prop_assert_eq!(set(&a.or(&b)), &x | &y);
            prop_assert_eq!(set(&a.and(&b)), &x & &y);
            prop_assert_eq!(set(&a.without(&b)), &x - &y);
            prop_assert_eq!(a.size(), x.len() as u64);
            let some = a.some(count);
            prop_assert!(set(&some).is_subset(&x));
            prop_assert_eq!(some.size(), a.size().min(count));
            for n in 0..220 {
                prop_assert_eq!(a.contains(Ipv4Addr::from(n)), x.contains(&n));
            }
        }

        /// Whatever there is: nothing of others is claimed, nothing leased is given back, and
        /// what is claimed is in proportion.
        #[test]
        fn a_claim_is_fair(
            free in any_set(),
            used in any_set(),
            own in any_set(),
            others in any_set(),
            written in any_set(),
            servers in 1_u64..6,
        ) {
            let own = own.without(&others);
            let free = free.without(&used);
            let written = written.and(&used);
            let layout = Layout { free: free.clone(), written: written.clone(), own: own.clone(), others: others.clone(), servers };
            let next = arrange(&layout);
            prop_assert!(next.and(&others).is_empty());
            prop_assert!(own.without(&free).without(&next).is_empty());
            prop_assert!(written.without(&others).without(&next).is_empty());
            let stock = next.and(&free).size();
            let share = free.size() / (2 * servers);
            prop_assert!(stock <= share + share / 2);
            let to_be_had = free.without(&others).size();
            prop_assert!(stock >= (share - share / 4).min(to_be_had));
            // Once arranged it stays.
            let again = Layout { own: next.clone(), ..layout };
            prop_assert_eq!(arrange(&again), next);
        }
    }

    #[test]
    fn the_ends_of_the_numbers_are_addresses_too() {
        let all = of(&[(0, u32::MAX)]);
        assert_eq!(all.size(), 1 << 32);
        assert_eq!(
            all.without(&of(&[(0, 0), (u32::MAX, u32::MAX)])),
            of(&[(1, u32::MAX - 1)])
        );
        assert!(all.without(&all).is_empty());
        assert!(all.contains(Ipv4Addr::BROADCAST));
        assert_eq!(of(&[(5, 6), (7, 8), (3, 2)]), of(&[(5, 8)]));
    }

    #[test]
    fn claims_get_smaller_as_a_range_fills() {
        // Two servers: a quarter of the free ones each.
        let layout = |first: u32, own: &[(u32, u32)], others: &[(u32, u32)]| Layout {
            free: of(&[(first, 99)]),
            own: of(own),
            others: of(others),
            servers: 2,
            ..Layout::default()
        };
        let at_first = arrange(&layout(0, &[], &[]));
        assert_eq!(at_first.size(), 25);
        let second = arrange(&layout(0, &[], &[(0, 24)]));
        assert_eq!((second.size(), second.and(&at_first).size()), (25, 0));
        // Nearly full: the last addresses are anybody's, through the database.
        let last = arrange(&layout(97, &[(90, 99)], &[]));
        assert!(last.and(&of(&[(97, 99)])).is_empty());
        // What is leased in the block stays in it.
        assert_eq!(last, of(&[(90, 96)]));
    }
}
