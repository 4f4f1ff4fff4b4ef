//! Notes on DHCP servers that are not ours. Pure: time is told.
//!
//! A second server on a network that we serve in full is the usual cause of boots that fail
//! now and then, so it is said, but once an hour and server, not per packet.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use chrono::TimeDelta;
use uuid::Uuid;

use crate::model::Timestamp;

/// More strangers than this are counted, not told apart: a flood of invented servers must
/// not eat memory.
const REMEMBERED: usize = 256;

/// Boots that remember which stranger was written into their timeline.
const BOOTS_REMEMBERED: usize = 4096;

/// Whom we have seen, and when we last said so.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    said: HashMap<Ipv4Addr, Timestamp>,
    boots: HashMap<(Uuid, Ipv4Addr), Timestamp>,
}

impl Strangers {
    /// Takes note; `true` if it should be logged now.
    pub(super) fn note(&mut self, server: Ipv4Addr, now: Timestamp) -> bool {
        let quiet = TimeDelta::hours(1);
        match self.said.get(&server) {
            Some(said) if now - *said < quiet => false,
            None if self.said.len() >= REMEMBERED => {
                self.said.retain(|_, said| now - *said < quiet);
                false
            }
            _ => {
                self.said.insert(server, now);
                true
            }
        }
    }

    /// `true` the first time that this server is seen to answer this boot.
    pub(super) fn first_in_boot(
        &mut self,
        attempt: Uuid,
        server: Ipv4Addr,
        now: Timestamp,
    ) -> bool {
        if self.boots.len() >= BOOTS_REMEMBERED {
            self.boots
                .retain(|_, at| now - *at < TimeDelta::minutes(10));
            if self.boots.len() >= BOOTS_REMEMBERED {
                return false;
            }
        }
        self.boots.insert((attempt, server), now).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_an_hour_and_server() {
        let mut strangers = Strangers::default();
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let start = Timestamp::UNIX_EPOCH;
        assert!(strangers.note(a, start));
        assert!(!strangers.note(a, start + TimeDelta::minutes(59)));
        assert!(strangers.note(b, start));
        assert!(strangers.note(a, start + TimeDelta::minutes(61)));
    }

    #[test]
    fn a_flood_of_strangers_is_bounded() {
        let mut strangers = Strangers::default();
        let start = Timestamp::UNIX_EPOCH;
        for n in 0..10_000_u32 {
            strangers.note(Ipv4Addr::from(n), start);
            strangers.first_in_boot(Uuid::from_u128(u128::from(n)), Ipv4Addr::LOCALHOST, start);
        }
        assert!(strangers.said.len() <= REMEMBERED);
        assert!(strangers.boots.len() <= BOOTS_REMEMBERED);
    }
}
