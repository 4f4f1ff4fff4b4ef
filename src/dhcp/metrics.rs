//! The counters of the DHCP server: every packet ends in exactly one of them, by reason.
//!
//! Labels come from closed enums only, and every series exists from the start at zero, so
//! that an alarm on a reason works before its first case.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::decide::{BootRefusal, NakReason, ReplyKind, Shape, Silence};
use super::wire::{Malformed, RequestKind};
use crate::model::words;

words! {
    /// Why a packet that was decided on got no answer after all, or was never decided on.
    pub enum Dropped {
        /// Its answer waits for the database: the one answer will do for both.
        InFlight = "in_flight",
        /// The same machine's packet waits for an ARP probe.
        ProbePending = "probe_pending",
        /// It is found out whether its machine's disk is in use.
        DiskPending = "disk_pending",
        /// Another machine with this MAC has the client's disk, and answers.
        DiskInUse = "disk_in_use",
        /// Too many packets wait for the database or for probes.
        Overloaded = "overloaded",
        /// The lease could not be stored, so nothing was acknowledged.
        NotStored = "not_stored",
        /// Another server of ours gave the address away first, and the client can't be told so.
        TakenElsewhere = "taken_elsewhere",
        /// It would be refused its address, and the database could not be asked whether another
        /// server of ours has leased it that one since.
        Unconfirmed = "unconfirmed",
        /// The answer could not be sent.
        SendFailed = "send_failed",
        /// The interface has no address to answer from.
        NoAddress = "no_address",
        /// Another interface's packet took the address in the same instant.
        Contended = "contended",
        /// It lay unread for so long (we stood still) that its machine has asked again, or asked
        /// another server.
        Stale = "stale",
        /// A server's packet on the servers' port.
        ServersReply = "servers_reply",
    }
}

words! {
    /// What a look at an address by ARP came to.
    pub enum ProbeOutcome {
        /// Nobody has it.
        Free = "free",
        /// Somebody has it; it is kept out.
        InUse = "in_use",
        /// It could not be asked for.
        Failed = "failed",
    }
}

words! {
    /// What became of the registration of an unknown machine.
    pub enum Registration {
        /// A row was made.
        Made = "made",
        /// It was known by then.
        Known = "known",
        /// The database could not take it; its next packet tries again.
        Failed = "failed",
        /// The cap or the rate is reached.
        CapReached = "cap_reached",
    }
}

/// A closed word as a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    kind: &'static str,
    reason: &'static str,
}

/// The counters; clones share them.
#[derive(Debug, Clone, Default)]
pub struct DhcpMetrics {
    requests: Family<Kind, Counter>,
    replies: Family<Answer, Counter>,
    silences: Family<Reason, Counter>,
    refusals: Family<Reason, Counter>,
    probes: Family<Reason, Counter>,
    registrations: Family<Reason, Counter>,
    foreign: Counter,
    batches: Counter,
    stored: Counter,
    kept: Counter,
    owed: Counter,
    owing: Gauge,
    not_owed: Counter,
    set_aside: Counter,
    claimed: Gauge,
}

impl DhcpMetrics {
    /// Counters at zero, every series there.
    #[must_use]
    pub fn new() -> Self {
        let made = Self::default();
        for kind in REQUEST_KINDS {
            let _ = made.requests.get_or_create(&Kind {
                kind: request_word(kind),
            });
        }
        for malformed in MALFORMED {
            let _ = made.silence(malformed_word(malformed));
        }
        for silence in Silence::ALL {
            let _ = made.silence(silence.as_str());
        }
        for dropped in Dropped::ALL {
            let _ = made.silence(dropped.as_str());
        }
        let naks = NakReason::ALL
            .iter()
            .map(|n| (ReplyKind::Nak(*n), Shape::Nak));
        let answers = [
            (ReplyKind::Offer, Shape::Full),
            (ReplyKind::Offer, Shape::Proxy),
            (ReplyKind::Ack, Shape::Full),
            (ReplyKind::Ack, Shape::Inform),
            (ReplyKind::Ack, Shape::Proxy),
        ];
        for (kind, shape) in answers.into_iter().chain(naks) {
            let _ = made.replies.get_or_create(&answer(kind, shape));
        }
        for outcome in ProbeOutcome::ALL {
            let _ = made.probes.get_or_create(&reason(outcome.as_str()));
        }
        for registration in Registration::ALL {
            let _ = made
                .registrations
                .get_or_create(&reason(registration.as_str()));
        }
        for word in ["loader_missing", "unknown_ignored", "unknown_cap"] {
            let _ = made.refusals.get_or_create(&reason(word));
        }
        made
    }

    /// Names them in a registry (the application's, whose names begin with `dls_`).
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("dhcp");
        registry.register(
            "requests",
            "Client messages taken in, by type",
            self.requests.clone(),
        );
        registry.register(
            "replies",
            "Answers sent, by type and shape or reason",
            self.replies.clone(),
        );
        registry.register(
            "silences",
            "Packets left unanswered, by reason",
            self.silences.clone(),
        );
        registry.register(
            "boot_refusals",
            "Boot requests answered without a boot part, by reason",
            self.refusals.clone(),
        );
        registry.register(
            "probes",
            "Addresses asked for by ARP, by outcome",
            self.probes.clone(),
        );
        registry.register(
            "registrations",
            "Unknown machines that asked to boot, by what became of them",
            self.registrations.clone(),
        );
        registry.register(
            "foreign_replies",
            "Answers of other DHCP servers seen on our networks",
            self.foreign.clone(),
        );
        registry.register(
            "lease_batches",
            "Transactions in which leases were stored",
            self.batches.clone(),
        );
        registry.register("leases_stored", "Leases stored", self.stored.clone());
        registry.register(
            "leases_kept",
            "Leases acknowledged for what is left of them, with nothing to store",
            self.kept.clone(),
        );
        registry.register(
            "leases_owed",
            "Leases and ends of leases that went to the local journal because the database was away or slow",
            self.owed.clone(),
        );
        registry.register(
            "leases_owing",
            "Of them, those that the database does not have yet",
            self.owing.clone(),
        );
        registry.register(
            "leases_not_owed",
            "Leases and ends of leases that neither the database nor the local journal took",
            self.not_owed.clone(),
        );
        registry.register(
            "leases_set_aside",
            "Leases of the local journal that no longer fitted when the database was back",
            self.set_aside.clone(),
        );
        registry.register(
            "claimed_addresses",
            "Addresses that this server may give away while the database is away (0 where no other server shares it: there it is all)",
            self.claimed.clone(),
        );
    }

    pub(super) fn request(&self, kind: RequestKind) {
        self.requests
            .get_or_create(&Kind {
                kind: request_word(kind),
            })
            .inc();
    }

    pub(super) fn replied(&self, kind: ReplyKind, shape: Shape) {
        self.replies.get_or_create(&answer(kind, shape)).inc();
    }

    pub(super) fn malformed(&self, malformed: Malformed) {
        self.silence(malformed_word(malformed)).inc();
    }

    pub(super) fn silent(&self, silence: Silence) {
        self.silence(silence.as_str()).inc();
    }

    pub(super) fn dropped(&self, dropped: Dropped) {
        self.silence(dropped.as_str()).inc();
    }

    pub(super) fn refused(&self, refusal: &BootRefusal) {
        self.refusals.get_or_create(&reason(refusal.as_str())).inc();
    }

    pub(super) fn probed(&self, outcome: ProbeOutcome) {
        self.probes.get_or_create(&reason(outcome.as_str())).inc();
    }

    pub(super) fn registered(&self, registration: Registration) {
        self.registrations
            .get_or_create(&reason(registration.as_str()))
            .inc();
    }

    pub(super) fn foreign_reply(&self) {
        self.foreign.inc();
    }

    pub(super) fn batch_stored(&self, leases: usize) {
        self.batches.inc();
        self.stored.inc_by(leases as u64);
    }

    pub(super) fn kept(&self) {
        self.kept.inc();
    }

    /// `more` went to the journal, which now holds `all`.
    pub(super) fn owed(&self, more: usize, all: usize) {
        self.owed.inc_by(more as u64);
        self.owing(all);
    }

    pub(super) fn owing(&self, all: usize) {
        self.owing.set(i64::try_from(all).unwrap_or(i64::MAX));
    }

    pub(super) fn not_owed(&self, leases: usize) {
        self.not_owed.inc_by(leases as u64);
    }

    pub(super) fn set_aside(&self) {
        self.set_aside.inc();
    }

    /// So many addresses are this server's own.
    pub(super) fn claimed(&self, addresses: u64) {
        self.claimed
            .set(i64::try_from(addresses).unwrap_or(i64::MAX));
    }

    fn silence(&self, word: &'static str) -> Counter {
        self.silences.get_or_create_owned(&reason(word))
    }
}

const fn reason(reason: &'static str) -> Reason {
    Reason { reason }
}

const fn answer(kind: ReplyKind, shape: Shape) -> Answer {
    let shape = match shape {
        Shape::Full => "full",
        Shape::Inform => "inform",
        Shape::Proxy => "proxy",
        Shape::Nak => "nak",
    };
    match kind {
        ReplyKind::Offer => Answer {
            kind: "offer",
            reason: shape,
        },
        ReplyKind::Ack => Answer {
            kind: "ack",
            reason: shape,
        },
        ReplyKind::Nak(why) => Answer {
            kind: "nak",
            reason: why.as_str(),
        },
    }
}

const REQUEST_KINDS: [RequestKind; 5] = [
    RequestKind::Discover,
    RequestKind::Request,
    RequestKind::Decline,
    RequestKind::Release,
    RequestKind::Inform,
];

const fn request_word(kind: RequestKind) -> &'static str {
    match kind {
        RequestKind::Discover => "discover",
        RequestKind::Request => "request",
        RequestKind::Decline => "decline",
        RequestKind::Release => "release",
        RequestKind::Inform => "inform",
    }
}

const MALFORMED: [Malformed; 8] = [
    Malformed::Short,
    Malformed::Op,
    Malformed::Hardware,
    Malformed::Hops,
    Malformed::Cookie,
    Malformed::Truncated,
    Malformed::MessageType,
    Malformed::Station,
];

const fn malformed_word(malformed: Malformed) -> &'static str {
    match malformed {
        Malformed::Short => "malformed_short",
        Malformed::Op => "malformed_op",
        Malformed::Hardware => "malformed_hardware",
        Malformed::Hops => "malformed_hops",
        Malformed::Cookie => "malformed_cookie",
        Malformed::Truncated => "malformed_truncated",
        Malformed::MessageType => "malformed_message_type",
        Malformed::Station => "malformed_station",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_there_from_the_start() {
        let mut registry = Registry::with_prefix("dls");
        DhcpMetrics::new().register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "dls_dhcp_silences_total{reason=\"not_stored\"} 0",
            "dls_dhcp_silences_total{reason=\"pool_exhausted\"} 0",
            "dls_dhcp_silences_total{reason=\"malformed_cookie\"} 0",
            "dls_dhcp_replies_total{kind=\"nak\",reason=\"nak_taken\"} 0",
            "dls_dhcp_requests_total{kind=\"discover\"} 0",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
