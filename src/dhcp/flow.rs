//! A packet's way through the server: facts, decision, commit, record, answer, send.
//!
//! All of it is synchronous and in memory; what must wait (the database, ARP) is handed to
//! the committer or to a task, and comes back here. Policy belongs to `decide`.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use chrono::TimeDelta;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::commit::{Ending, Operation, Verdict};
use super::decide::{
    Boot, BootRefusal, DECLINE_SECONDS, Decision, Destination, Loader, NakReason, Port, Reply,
    ReplyKind, Shape, Silence, Unknown, boot_part, decide,
};
use super::facts::{Case, speaker};
use super::foreign::Strangers;
use super::link::Link;
use super::metrics::{DhcpMetrics, Dropped, ProbeOutcome, Registration};
use super::pool::Book;
use super::probe::Probed;
use super::registrar::Registrar;
use super::socket::Received;
use super::wire::{self, ForeignReply, Frame, Packet, RequestKind};
use crate::boot::session::{Context, Evidence, Observation};
use crate::boot::token::boot_url;
use crate::boot::tracker::Tracker;
use crate::cache::{Cache, Snapshot};
use crate::clock::Clock;
use crate::model::{Arch, Lease, LeaseState, MacAddr, RangeMode, Timestamp};

/// How long an offer is held for its machine: longer than a ROM takes to come back.
const OFFER_SECONDS: i64 = 60;

/// Packets that wait for ARP, at most.
const PARKED: usize = 1024;

/// Which loader an architecture gets; the files' business, asked per packet.
pub type LoaderLookup = Arc<dyn Fn(Arch) -> Loader + Send + Sync>;

/// A lease under way, and the answer that hangs on it.
#[derive(Debug)]
pub(super) struct Ticket {
    case: Case,
    reply: Reply,
}

/// An address that a machine now has.
#[derive(Debug, Clone, Copy)]
struct Leased {
    address: Ipv4Addr,
    until: Option<Timestamp>,
}

/// What all tasks of the server share.
pub(super) struct Core {
    pub(super) cache: Cache,
    pub(super) tracker: Tracker,
    pub(super) clock: Clock,
    pub(super) metrics: DhcpMetrics,
    pub(super) loader_for: LoaderLookup,
    pub(super) registrar: Registrar,
    pub(super) book: Arc<Mutex<Book>>,
    pub(super) operations: mpsc::Sender<Operation<Box<Ticket>>>,
    /// Every address of this server, on whichever interface.
    pub(super) ours: ArcSwap<HashSet<Ipv4Addr>>,
    pub(super) http_port: u16,
    pub(super) default_image: Option<String>,
    pub(super) tasks: TaskTracker,
    pub(super) gates: Mutex<Gates>,
    pub(super) strangers: Mutex<Strangers>,
}

/// Machines whose packets must wait.
#[derive(Debug, Default)]
pub(super) struct Gates {
    /// Their lease is being stored.
    in_flight: HashSet<MacAddr>,
    /// An address is being probed for them.
    parked: HashSet<MacAddr>,
}

impl Core {
    /// Takes a packet in.
    pub(super) fn take(
        self: &Arc<Self>,
        link: &Arc<Link>,
        port: Port,
        received: Received,
        bytes: &[u8],
    ) {
        match wire::parse(bytes) {
            Err(malformed) => {
                tracing::debug!(interface = link.name, from = %received.from, %malformed, "packet dropped");
                self.metrics.malformed(malformed);
            }
            Ok(Packet::Reply(reply)) => {
                self.metrics.dropped(Dropped::ServersReply);
                self.hear(link, &reply, *received.from.ip());
            }
            Ok(Packet::Request(request)) => {
                self.metrics.request(request.kind);
                let snapshot = self.cache.get();
                let case = Case::new(link, port, received.from, received.to, *request, &snapshot);
                match case {
                    Some(case) => self.consider(case, &snapshot),
                    None => self.metrics.dropped(Dropped::NoAddress),
                }
            }
        }
    }

    /// Decides, and does it.
    fn consider(self: &Arc<Self>, mut case: Case, snapshot: &Arc<Snapshot>) {
        let now = self.clock.now();
        let ours = self.ours.load_full();
        let mac = case.request.mac;
        let kind = case.request.kind;
        if let Some(dropped) = self.must_wait(&case) {
            self.drop_case(&case, dropped);
            return;
        }
        let facts = self.facts(&case, snapshot, &ours, now);
        let decision = decide(&case.request, &facts, now);
        let lease = facts.address.lease.clone();
        let unknown = facts.boot.unknown;
        let (_, refusal) = boot_part(&case.request, &facts);
        let is_ours = facts.arrival.is_ours;
        tracing::debug!(
            interface = case.link.name, client.mac = %mac, ?kind, xid = case.request.xid, ?decision,
            "decided"
        );
        let mode = case.range.as_ref().map(|range| range.mode);
        let served = matches!(mode, Some(RangeMode::Full | RangeMode::Proxy));
        if kind == RequestKind::Discover && served && !case.noted {
            case.noted = true;
            self.note(
                &case,
                snapshot,
                now,
                Evidence::Discover(speaker(&case.request)),
                None,
            );
        }
        self.register(&case, &decision, unknown, served, now);
        if let (Some(server), false) = (case.request.server_id, is_ours) {
            self.hear_of(&case, server, mode, now);
        }
        match decision {
            Decision::Silent(silence) => self.keep_silent(&case, snapshot, silence, refusal, now),
            Decision::Probe(address) => self.park(case, address, now),
            Decision::Reply(reply) => self.reply(case, snapshot, *reply, now),
            Decision::Release(address) => {
                self.end(&case, lease, address, LeaseState::Released, now);
                self.note(&case, snapshot, now, Evidence::Released, None);
            }
            Decision::Decline(address) => {
                tracing::warn!(
                    client.mac = %mac, %address,
                    "the client found its address in use: kept out for an hour"
                );
                self.end(&case, lease, address, LeaseState::Declined, now);
            }
        }
    }

    /// A packet that another one of the same machine answers for.
    fn must_wait(&self, case: &Case) -> Option<Dropped> {
        let gates = self.gates();
        match case.request.kind {
            // One ACK answers the retransmissions of a REQUEST as well.
            RequestKind::Request if gates.in_flight.contains(&case.request.mac) => {
                Some(Dropped::InFlight)
            }
            RequestKind::Discover if gates.parked.contains(&case.request.mac) => {
                Some(Dropped::ProbePending)
            }
            _ => None,
        }
    }

    fn register(
        &self,
        case: &Case,
        decision: &Decision,
        unknown: Unknown,
        served: bool,
        now: Timestamp,
    ) {
        // A REQUEST that went to another server, or one that we leave alone, registers nobody.
        let asks = case.request.kind == RequestKind::Discover
            || matches!(decision, Decision::Reply(reply) if reply.boot != Boot::Nothing);
        if !(served && asks && case.is_boot() && case.client.is_none()) {
            return;
        }
        match unknown {
            Unknown::Register => self
                .registrar
                .begin(case.request.mac, case.request.arch, now),
            Unknown::CapReached => self.metrics.registered(Registration::CapReached),
            Unknown::Ignore => {}
        }
    }

    fn keep_silent(
        &self,
        case: &Case,
        snapshot: &Snapshot,
        silence: Silence,
        refusal: Option<BootRefusal>,
        now: Timestamp,
    ) {
        self.metrics.silent(silence);
        let mac = case.request.mac;
        match silence {
            Silence::OtherServer => {
                if let Some(range) = &case.range {
                    self.book().unhold(range.id, mac);
                }
            }
            Silence::NothingToBoot => {
                if let Some(refusal) = refusal {
                    self.refuse(case, snapshot, &refusal, now);
                }
            }
            Silence::PoolExhausted | Silence::UnknownClient | Silence::DeclineFlood => {
                if silence == Silence::PoolExhausted {
                    tracing::warn!(
                        client.mac = %mac,
                        range = case.range.as_ref().map(|r| r.name.as_str()),
                        "no address is free"
                    );
                }
                if case.is_boot() {
                    let sentence = match silence {
                        Silence::PoolExhausted => "every address of the network's pools is taken",
                        Silence::UnknownClient => "this network serves registered machines only",
                        _ => "the machine has refused too many addresses",
                    };
                    let refused = Evidence::Refused {
                        reason: silence.as_str(),
                        sentence: sentence.to_owned(),
                        fatal: false,
                    };
                    self.note(case, snapshot, now, refused, None);
                }
            }
            Silence::NoRange
            | Silence::RangeOff
            | Silence::NotABoot
            | Silence::NoRecord
            | Silence::NotItsLease
            | Silence::Senseless
            | Silence::WrongPort => {}
        }
    }

    /// Asks by ARP in a task of its own, then considers the packet again.
    fn park(self: &Arc<Self>, mut case: Case, address: Ipv4Addr, now: Timestamp) {
        let mac = case.request.mac;
        let Some(range) = case.range.as_ref().map(|range| range.id) else {
            return;
        };
        {
            let mut gates = self.gates();
            if case.probes_left == 0 || gates.parked.len() >= PARKED {
                drop(gates);
                self.drop_case(&case, Dropped::Overloaded);
                return;
            }
            gates.parked.insert(mac);
        }
        case.probes_left -= 1;
        // Nobody else is offered it meanwhile.
        let until = now + TimeDelta::seconds(OFFER_SECONDS);
        self.book().hold(range, mac, address, until);
        let core = self.clone();
        self.tasks.spawn(async move {
            core.probe(&case.link, address, range, Some(mac)).await;
            core.gates().parked.remove(&mac);
            let snapshot = core.cache.get();
            core.consider(case, &snapshot);
        });
    }

    /// Asks for an address and writes down what came of it. `machine`: whom it is meant for;
    /// an answer by itself (it kept the address of its last run) is none.
    pub(super) async fn probe(
        &self,
        link: &Link,
        address: Ipv4Addr,
        range: Uuid,
        machine: Option<MacAddr>,
    ) {
        let found = link.prober.probe(address).await;
        let now = self.clock.now();
        match found {
            Ok(Probed::InUse(station)) if Some(station) != machine => {
                self.metrics.probed(ProbeOutcome::InUse);
                tracing::warn!(
                    interface = link.name, %address, station = %station,
                    "a free address is in use by a machine that has no lease of it: kept out for an hour"
                );
                let until = now + TimeDelta::seconds(i64::from(DECLINE_SECONDS));
                self.book().probed_used(address, until);
                self.quarantine(range, address, station, now);
            }
            Ok(Probed::Free | Probed::InUse(_)) => {
                self.metrics.probed(ProbeOutcome::Free);
                self.book().probed_free(address, now);
            }
            Err(error) => {
                // Better served with the client's own probe as the only guard than not at all.
                self.metrics.probed(ProbeOutcome::Failed);
                tracing::warn!(interface = link.name, %address, %error, "ARP probe not sent");
                self.book().probed_free(address, now);
            }
        }
    }

    fn quarantine(&self, range_id: Uuid, address: Ipv4Addr, station: MacAddr, now: Timestamp) {
        let lease = Lease {
            address,
            range_id,
            mac: station,
            client_identifier: None,
            hostname: None,
            state: LeaseState::Declined,
            starts_at: now,
            length_seconds: DECLINE_SECONDS,
            relay_information: None,
        };
        self.book().put(lease.clone());
        self.enqueue(Operation::Quarantine(Box::new(lease)));
    }

    /// RELEASE or DECLINE: the book at once, so that the machine's next packet finds it so;
    /// then the row.
    fn end(
        &self,
        case: &Case,
        lease: Option<Lease>,
        address: Ipv4Addr,
        state: LeaseState,
        now: Timestamp,
    ) {
        let mac = case.request.mac;
        let Some(mut ended) = lease.filter(|lease| lease.address == address) else {
            // Declined before it was acknowledged: there is no row to end, but one to make.
            if let (LeaseState::Declined, Some(range)) = (state, &case.range) {
                self.book().unhold(range.id, mac);
                self.quarantine(range.id, address, mac, now);
            }
            return;
        };
        let length_seconds = match state {
            LeaseState::Declined => DECLINE_SECONDS,
            LeaseState::Active | LeaseState::Released => ended.length_seconds,
        };
        ended.state = state;
        ended.starts_at = now;
        ended.length_seconds = length_seconds;
        {
            let mut book = self.book();
            book.unhold(ended.range_id, mac);
            book.put(ended);
        }
        self.enqueue(Operation::End(Ending {
            address,
            mac,
            state,
            at: now,
            length_seconds,
        }));
    }

    fn reply(&self, case: Case, snapshot: &Arc<Snapshot>, reply: Reply, now: Timestamp) {
        let granted = match (reply.shape, reply.your_ip, &case.range) {
            (Shape::Full, Some(address), Some(range)) => Some((address, range.id)),
            _ => None,
        };
        let Some((address, range_id)) = granted else {
            self.answer(&case, snapshot, reply, now);
            return;
        };
        let mac = case.request.mac;
        let until = now + TimeDelta::seconds(OFFER_SECONDS);
        if !self.book().hold(range_id, mac, address, until) {
            // Between the look and now another interface's packet has taken it.
            self.drop_case(&case, Dropped::Contended);
            return;
        }
        if reply.kind != ReplyKind::Ack {
            self.answer(&case, snapshot, reply, now);
            return;
        }
        let lease = Lease {
            address,
            range_id,
            mac,
            client_identifier: case.request.client_identifier.clone(),
            hostname: case.request.hostname.clone(),
            state: LeaseState::Active,
            starts_at: now,
            length_seconds: reply.lease_seconds.unwrap_or_default(),
            relay_information: case.request.relay_information.clone(),
        };
        self.gates().in_flight.insert(mac);
        let ticket = Box::new(Ticket { case, reply });
        let stored = self.operations.try_send(Operation::Store {
            lease: Box::new(lease),
            ticket,
        });
        if let Err(full) = stored {
            self.gates().in_flight.remove(&mac);
            if let Operation::Store { ticket, .. } = full.into_inner() {
                self.drop_case(&ticket.case, Dropped::Overloaded);
            }
        }
    }

    /// The committer's word on a lease.
    pub(super) fn settled(&self, ticket: Ticket, verdict: Verdict) {
        let Ticket { case, reply } = ticket;
        let mac = case.request.mac;
        let (now, snapshot) = (self.clock.now(), self.cache.get());
        self.gates().in_flight.remove(&mac);
        match verdict {
            Verdict::Stored => self.answer(&case, &snapshot, reply, now),
            // A machine whose session lives keeps its address, whatever a row says.
            Verdict::Taken if self.tracker.is_live(mac) => {
                self.drop_case(&case, Dropped::TakenElsewhere);
            }
            Verdict::Taken => {
                tracing::info!(client.mac = %mac, address = ?reply.your_ip, "another server gave the address away first");
                let nak = Reply {
                    kind: ReplyKind::Nak(NakReason::Taken),
                    shape: Shape::Nak,
                    your_ip: None,
                    lease_seconds: None,
                    boot: Boot::Nothing,
                    // RFC 2131 section 4.3.2: broadcast, since its address is in doubt.
                    to: case
                        .request
                        .giaddr
                        .map_or(Destination::Broadcast, Destination::Relay),
                    refusal: None,
                };
                self.answer(&case, &snapshot, nak, now);
            }
            Verdict::NotStored => {
                self.drop_case(&case, Dropped::NotStored);
                if case.is_boot() {
                    let refused = Evidence::Refused {
                        reason: Dropped::NotStored.as_str(),
                        sentence: "its lease could not be stored in the database".to_owned(),
                        fatal: false,
                    };
                    self.note(&case, &snapshot, now, refused, None);
                }
            }
        }
    }

    /// Records an answer and sends it.
    fn answer(&self, case: &Case, snapshot: &Snapshot, mut reply: Reply, now: Timestamp) {
        let request = &case.request;
        let speaker = speaker(request);
        let address = reply.your_ip;
        let loader = match &reply.boot {
            Boot::TftpLoader(name) | Boot::HttpLoader(name) => Some(name.clone()),
            Boot::Nothing | Boot::Script => None,
        };
        let evidence = match (reply.kind, reply.shape) {
            (ReplyKind::Offer, _) => Some(Evidence::Offered {
                speaker,
                address,
                loader,
            }),
            (ReplyKind::Ack, Shape::Full | Shape::Proxy) => Some(Evidence::Acknowledged {
                speaker,
                address,
                loader,
            }),
            (ReplyKind::Ack, _) | (ReplyKind::Nak(_), _) => None,
        };
        let leased = address
            .filter(|_| reply.kind == ReplyKind::Ack)
            .map(|address| Leased {
                address,
                until: reply
                    .lease_seconds
                    .filter(|seconds| *seconds != Lease::INFINITE)
                    .map(|seconds| now + TimeDelta::seconds(i64::from(seconds))),
            });
        let attempt = match evidence {
            // Nothing may be had to boot where the tracker refuses it: its cap is reached, or
            // another machine runs with this MAC.
            Some(evidence) => self.note(case, snapshot, now, evidence, leased),
            None => self.tracker.open_attempt(request.mac).map(|a| a.id),
        };
        // A boot has one OFFER and one ACK of ours, or only an ACK on 4011: say it once.
        if let Some(refusal) = &reply.refusal
            && (reply.kind == ReplyKind::Offer || case.port == Port::Pxe)
        {
            self.refuse(case, snapshot, refusal, now);
        }
        let script_url = (reply.boot == Boot::Script)
            .then_some(attempt)
            .flatten()
            .map(|id| {
                let url = boot_url(case.server_ip, self.http_port, snapshot.site_key(), id);
                format!("{url}boot.ipxe")
            });
        if reply.boot == Boot::Script && script_url.is_none() {
            reply.boot = Boot::Nothing;
        }
        let frame = Frame {
            server_ip: case.server_ip,
            range: case.range.as_deref(),
            client: case.client.as_deref(),
            script_url: script_url.as_deref(),
            loader_base_url: &format!("http://{}:{}/loader/", case.server_ip, self.http_port),
        };
        let bytes = wire::encode(request, &reply, &frame);
        let sent = case.link.send(
            case.port,
            case.server_ip,
            case.from,
            request.mac,
            reply.to,
            &bytes,
        );
        match sent {
            Ok(()) => {
                self.metrics.replied(reply.kind, reply.shape);
                tracing::debug!(
                    interface = case.link.name, client.mac = %request.mac, kind = ?reply.kind,
                    address = ?reply.your_ip, boot = ?reply.boot, to = ?reply.to, "answered"
                );
            }
            Err(error) => {
                self.metrics.dropped(Dropped::SendFailed);
                tracing::warn!(
                    interface = case.link.name, client.mac = %request.mac, to = ?reply.to, %error,
                    "an answer could not be sent"
                );
            }
        }
    }

    fn refuse(&self, case: &Case, snapshot: &Snapshot, refusal: &BootRefusal, now: Timestamp) {
        self.metrics.refused(refusal);
        tracing::info!(client.mac = %case.request.mac, reason = refusal.as_str(), "{refusal}");
        let refused = Evidence::Refused {
            reason: refusal.as_str(),
            sentence: refusal.to_string(),
            // A machine that waits to be registered has not failed.
            fatal: matches!(refusal, BootRefusal::LoaderMissing { .. }),
        };
        self.note(case, snapshot, now, refused, None);
    }

    /// Tells the tracker; says which attempt it belongs to.
    fn note(
        &self,
        case: &Case,
        snapshot: &Snapshot,
        at: Timestamp,
        what: Evidence,
        leased: Option<Leased>,
    ) -> Option<Uuid> {
        let request = &case.request;
        let client = case.client.as_ref();
        let image = client.filter(|client| client.enabled).and_then(|client| {
            client
                .assigned_image_id
                .and_then(|id| snapshot.image(id))
                .or_else(|| snapshot.image_by_name(self.default_image.as_deref()?))
        });
        self.tracker.observe(Observation {
            mac: request.mac,
            at,
            what,
            context: Context {
                smbios_uuid: request.smbios_uuid,
                arch: request.arch,
                range_id: case.range.as_ref().map(|range| range.id),
                client: client.map(|client| (client.id, client.hostname.clone())),
                image: image.map(|image| (image.id, image.name.clone())),
                client_ip: leased.map(|leased| leased.address),
                server_ip: Some(case.server_ip),
                phone_home: image.map(|image| image.phone_home),
                lease_until: leased.and_then(|leased| leased.until),
            },
        })
    }

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
    fn hear_of(&self, case: &Case, server: Ipv4Addr, mode: Option<RangeMode>, now: Timestamp) {
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

    pub(super) fn enqueue(&self, operation: Operation<Box<Ticket>>) {
        if self.operations.try_send(operation).is_err() {
            // The book has it; the row follows when all is read and written anew.
            tracing::warn!("too much waits for the database: a lease's end was not stored");
        }
    }

    fn drop_case(&self, case: &Case, dropped: Dropped) {
        self.metrics.dropped(dropped);
        tracing::debug!(
            interface = case.link.name, client.mac = %case.request.mac, kind = ?case.request.kind,
            reason = %dropped, "no answer"
        );
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    fn gates(&self) -> MutexGuard<'_, Gates> {
        lock(&self.gates)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
