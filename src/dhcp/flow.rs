//! A packet's way through the server: facts, decision, commit, record, answer, send.
//!
//! All of it is synchronous and in memory; what must wait (the database, ARP) is handed to
//! the committer or to a task, and comes back here. Policy belongs to `decide`.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use chrono::TimeDelta;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::answer::Ticket;
use super::claims::Claim;
use super::commit::Operation;
use super::decide::{
    Boot, BootRefusal, DECLINE_SECONDS, Decision, Loader, Port, Silence, Unknown, boot_part, decide,
};
use super::facts::{Case, speaker};
use super::foreign::Strangers;
use super::ledger::Ending;
use super::link::Link;
use super::metrics::{DhcpMetrics, Dropped, ProbeOutcome, Registration};
use super::pool::Book;
use super::probe::Probed;
use super::registrar::Registrar;
use super::socket::Received;
use super::wire::{self, Packet, RequestKind};
use crate::boot::disks::Disks;
use crate::boot::session::Evidence;
use crate::boot::tracker::Tracker;
use crate::cache::{Cache, Snapshot};
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::model::{Arch, Lease, LeaseState, MacAddr, RangeMode, Timestamp};

/// How long an offer is held for its machine: longer than a ROM takes to come back.
pub(super) const OFFER_SECONDS: i64 = 60;

/// A packet that lay unread for longer is left alone: its machine has asked again, and may have
/// turned to another server, whose lease ours would take the place of.
const STALE: Duration = Duration::from_secs(3);

/// Between two warnings about the same thing.
const TELL_AGAIN: TimeDelta = TimeDelta::minutes(1);

/// The MAC in a row about an address whose user is better not named.
const NOBODY: MacAddr = MacAddr([0; 6]);

/// Packets that wait for ARP, at most.
const PARKED: usize = 1024;

/// Which loader an architecture gets; the files' business, asked per packet.
pub type LoaderLookup = Arc<dyn Fn(Arch) -> Loader + Send + Sync>;

/// What all tasks of the server share.
pub(super) struct Core {
    pub(super) cache: Cache,
    pub(super) tracker: Tracker,
    pub(super) clock: Clock,
    pub(super) metrics: DhcpMetrics,
    pub(super) disks: Disks,
    pub(super) loader_for: LoaderLookup,
    pub(super) registrar: Registrar,
    pub(super) book: Arc<Mutex<Book>>,
    pub(super) operations: mpsc::Sender<Operation<Box<Ticket>>>,
    /// The committer's queue was full: the book may not be what the catalog says.
    pub(super) behind: AtomicBool,
    /// Every address of this server, on whichever interface.
    pub(super) ours: ArcSwap<HashSet<Ipv4Addr>>,
    pub(super) http_port: u16,
    pub(super) default_image: Option<String>,
    /// As the configuration has it.
    pub(super) keep_percent: u8,
    /// For how long this server's blocks are its own.
    pub(super) claim: Claim,
    /// To know whether the database is there.
    pub(super) catalog: Catalog,
    pub(super) tasks: TaskTracker,
    pub(super) gates: Mutex<Gates>,
    pub(super) strangers: Mutex<Strangers>,
    /// Of which range, and when last, it was said that strangers have used up their share.
    pub(super) share_told: Mutex<HashMap<Uuid, Timestamp>>,
}

/// Machines whose packets must wait.
#[derive(Debug, Default)]
pub(super) struct Gates {
    /// Their lease is being stored, or read before they are refused.
    pub(super) in_flight: HashSet<MacAddr>,
    /// An address is being probed for them.
    parked: HashSet<MacAddr>,
    /// How many of them are those that are to be refused.
    pub(super) confirming: usize,
    /// An old connection to their disk is being asked for a sign of life.
    pub(super) settling: HashSet<MacAddr>,
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
                let Some(mut case) = case else {
                    self.metrics.dropped(Dropped::NoAddress);
                    return;
                };
                case.waited = received
                    .at
                    .map(|at| self.clock.since(at))
                    .unwrap_or_default();
                if case.waited > STALE {
                    self.drop_case(&case, Dropped::Stale);
                } else {
                    self.consider(case, &snapshot);
                }
            }
        }
    }

    /// Decides, and does it.
    pub(super) fn consider(self: &Arc<Self>, mut case: Case, snapshot: &Arc<Snapshot>) {
        let now = self.clock.now();
        let ours = self.ours.load_full();
        let mac = case.request.mac;
        let kind = case.request.kind;
        if let Some(dropped) = self.must_wait(&case) {
            self.drop_case(&case, dropped);
            return;
        }
        if let Some(client) = self.must_settle(&case) {
            self.settle(case, client);
            return;
        }
        let facts = self.facts(&case, snapshot, &ours, now);
        let decision = decide(&case.request, &facts, now);
        let lease = facts.address.lease.clone();
        if self.must_confirm(&case, &decision) {
            self.confirm(case, lease.map(|lease| lease.address));
            return;
        }
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
            RequestKind::Discover | RequestKind::Request
                if gates.settling.contains(&case.request.mac) =>
            {
                Some(Dropped::DiskPending)
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
                    // Beside another server this is where we learn the machine's address.
                    if range.mode == RangeMode::Proxy && case.is_boot() {
                        self.note(case, snapshot, now, Evidence::Located, None);
                    }
                }
            }
            Silence::NothingToBoot => {
                if let Some(refusal) = refusal {
                    self.refuse(case, snapshot, &refusal, now);
                }
            }
            Silence::PoolExhausted
            | Silence::CutOff
            | Silence::UnknownClient
            | Silence::UnknownShare
            | Silence::DeclineFlood => {
                if silence == Silence::UnknownShare {
                    self.tell_share(case, now);
                }
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
                        Silence::CutOff => {
                            "the database is away, and no address is free in what this server has claimed of the pools"
                        }
                        Silence::UnknownClient => "this network serves registered machines only",
                        Silence::UnknownShare => {
                            "machines that nobody has registered have used up their share of the network's pools"
                        }
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
            | Silence::NotOurs
            | Silence::NotItsLease
            | Silence::Senseless
            | Silence::WrongPort => {}
        }
    }

    /// Says once in a while, not once a packet, that strangers are refused.
    fn tell_share(&self, case: &Case, now: Timestamp) {
        let Some(range) = &case.range else {
            return;
        };
        let mut told = lock(&self.share_told);
        if told
            .get(&range.id)
            .is_some_and(|at| *at <= now && now - *at < TELL_AGAIN)
        {
            return;
        }
        told.insert(range.id, now);
        tracing::warn!(
            client.mac = %case.request.mac, range = range.name,
            "machines that nobody has registered have used up their share of the range's pools; they are refused, registered ones are served"
        );
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
        case.link.stock_is_low.notify_one();
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
        self.take_note(link, address, range, machine, found);
    }

    /// Asks for some addresses that nobody waits for yet.
    pub(super) async fn probe_ahead(&self, link: &Link, addresses: &[Ipv4Addr], range: Uuid) {
        if addresses.is_empty() {
            return;
        }
        let found = link.prober.probe_all(addresses).await;
        for (address, found) in addresses.iter().zip(found) {
            self.take_note(link, *address, range, None, found);
        }
    }

    fn take_note(
        &self,
        link: &Link,
        address: Ipv4Addr,
        range: Uuid,
        machine: Option<MacAddr>,
        found: io::Result<Probed>,
    ) {
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
        let mut book = self.book();
        // A machine has one row in a range: where the stranger is a client of ours that sits on
        // another address than its own, its lease must not go for this row.
        let has_lease = book.lease_of(range_id, station).is_some();
        let lease = Lease {
            address,
            range_id,
            mac: if has_lease { NOBODY } else { station },
            client_identifier: None,
            hostname: None,
            state: LeaseState::Declined,
            starts_at: now,
            length_seconds: DECLINE_SECONDS,
            relay_information: None,
        };
        book.put(lease.clone());
        drop(book);
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
            // When it was said: by now another server may have given the machine a newer lease.
            at: now - TimeDelta::from_std(case.waited).unwrap_or_default(),
            length_seconds,
        }));
    }

    /// Hands an operation to the committer. Where too many wait already it is left out, and
    /// all leases are read again once there is room: see [`Core::catch_up`].
    pub(super) fn enqueue(&self, operation: Operation<Box<Ticket>>) {
        if self.operations.try_send(operation).is_err() && !self.behind.swap(true, Relaxed) {
            tracing::warn!(
                "too much waits for the database; leases are read again when it is done"
            );
        }
    }

    /// Makes good what [`Core::enqueue`] left out; called each second.
    pub(super) fn catch_up(&self) {
        if self.behind.swap(false, Relaxed) {
            self.enqueue(Operation::RereadAll(None));
        }
    }

    pub(super) fn drop_case(&self, case: &Case, dropped: Dropped) {
        self.metrics.dropped(dropped);
        tracing::debug!(
            interface = case.link.name, client.mac = %case.request.mac, kind = ?case.request.kind,
            reason = %dropped, "no answer"
        );
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    pub(super) fn gates(&self) -> MutexGuard<'_, Gates> {
        lock(&self.gates)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
