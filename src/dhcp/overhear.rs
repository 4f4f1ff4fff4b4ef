//! What is heard of DHCP servers that are not ours: said, counted, and written into the boots
//! that it concerns.

use std::net::Ipv4Addr;

use super::facts::Case;
use super::flow::{Core, lock};
use super::link::Link;
use super::wire::ForeignReply;
use crate::boot::session::{Context, Evidence, Observation};
use crate::model::{MacAddr, RangeMode, Timestamp};

impl Core {
    /// An OFFER, ACK or NAK on the wire that may be another server's.
    pub(super) fn hear(&self, link: &Link, reply: &ForeignReply, source: Ipv4Addr) {
        let ours = self.ours.load();
        if ours.contains(&reply.server) || ours.contains(&source) {
            return;
        }
        let now = self.clock.now();
        self.metrics.foreign_reply();
        let snapshot = self.cache.get();
        let mode = link
            .addresses()
            .iter()
            .find_map(|address| snapshot.range_of(address.ip()))
            .map(|range| range.mode);
        self.say_foreign(&link.name, reply.server, mode, now);
        self.foreign_in_boot(reply.mac, reply.server, now);
    }

    /// A client's REQUEST names another server.
    pub(super) fn hear_of(
        &self,
        case: &Case,
        server: Ipv4Addr,
        mode: Option<RangeMode>,
        now: Timestamp,
    ) {
        self.say_foreign(&case.link.name, server, mode, now);
        self.foreign_in_boot(case.request.mac, server, now);
    }

    fn say_foreign(&self, link: &str, server: Ipv4Addr, mode: Option<RangeMode>, now: Timestamp) {
        if !lock(&self.strangers).note(server, now) {
            return;
        }
        match mode {
            Some(RangeMode::Full) => tracing::warn!(
                interface = link, foreign.server = %server,
                "another DHCP server answers on a network that we serve in full: \
                 machines will get its address and no boot from time to time"
            ),
            Some(RangeMode::Proxy | RangeMode::Off) | None => tracing::info!(
                interface = link, foreign.server = %server,
                "another DHCP server answers here"
            ),
        }
    }

    fn foreign_in_boot(&self, mac: MacAddr, server: Ipv4Addr, at: Timestamp) {
        let Some(attempt) = self.tracker.open_attempt(mac) else {
            return;
        };
        if lock(&self.strangers).first_in_boot(attempt.id, server, at) {
            self.tracker.observe(Observation {
                mac,
                at,
                what: Evidence::ForeignServer(server),
                context: Context::default(),
            });
        }
    }
}
