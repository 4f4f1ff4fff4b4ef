//! The answer: lease first, then the record, then the bytes.

use std::net::Ipv4Addr;
use std::sync::Arc;

use chrono::TimeDelta;
use uuid::Uuid;

use super::commit::{Operation, Verdict, boots_synced};
use super::decide::{Boot, BootRefusal, Destination, NakReason, Port, Reply, ReplyKind, Shape};
use super::facts::{Case, speaker};
use super::flow::{Core, OFFER_SECONDS};
use super::link::{Answer, Link, Sent};
use super::metrics::Dropped;
use super::pool::relay_key;
use super::wire::{self, Frame, RequestKind};
use crate::boot::session::{Context, Evidence, Observation};
use crate::boot::token::boot_url;
use crate::cache::Snapshot;
use crate::model::{Lease, LeaseState, RangeMode, Timestamp};

/// A lease under way, and the answer that hangs on it.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) case: Case,
    reply: Reply,
}

/// An address that a machine now has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leased {
    pub(super) address: Ipv4Addr,
    pub(super) until: Option<Timestamp>,
}

/// While it lives, the answers of a link are laid together; they leave when it is dropped.
pub(super) struct Corked<'a> {
    core: &'a Core,
    link: Arc<Link>,
}

impl<'a> Corked<'a> {
    pub(super) fn new(core: &'a Core, link: &Arc<Link>) -> Self {
        link.cork();
        Self {
            core,
            link: link.clone(),
        }
    }
}

impl Drop for Corked<'_> {
    fn drop(&mut self) {
        let sent = self.link.uncork();
        self.core.tell(&self.link, sent);
    }
}

impl Core {
    pub(super) fn reply(
        self: &Arc<Self>,
        case: Case,
        snapshot: &Arc<Snapshot>,
        reply: Reply,
        now: Timestamp,
    ) {
        let granted = match (reply.shape, reply.your_ip, &case.range) {
            (Shape::Full, Some(address), Some(range)) => Some((address, range.id)),
            _ => None,
        };
        let Some((address, range_id)) = granted else {
            self.answer(&case, snapshot, reply, now);
            return;
        };
        let mac = case.request.mac;
        if reply.kind == ReplyKind::Ack && reply.is_durable {
            self.book().unhold(range_id, mac);
            self.affirm(case, snapshot, reply, now);
            return;
        }
        let until = now + TimeDelta::seconds(OFFER_SECONDS);
        let relay = relay_key(case.request.relay_information.as_deref());
        let held = self
            .book()
            .hold_behind(relay, range_id, mac, address, until);
        if !held {
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
        let sure = snapshot.reserved_for(address).is_some()
            || (self.claim.holds() && self.book().is_sure(range_id, address, mac));
        let ticket = Box::new(Ticket { case, reply });
        let stored = self.operations.try_send(Operation::Store {
            lease: Box::new(lease),
            sure,
            ticket,
        });
        if let Err(full) = stored {
            self.gates().in_flight.remove(&mac);
            if let Operation::Store { ticket, .. } = full.into_inner() {
                self.drop_case(&ticket.case, Dropped::Overloaded);
            }
        }
    }

    /// Acknowledges a lease that is durable as it is, once what was seen of the boot is too.
    fn affirm(self: &Arc<Self>, case: Case, snapshot: &Snapshot, reply: Reply, now: Timestamp) {
        self.metrics.kept();
        if self.tracker.is_synced() {
            self.answer(&case, snapshot, reply, now);
            return;
        }
        self.gates().in_flight.insert(case.request.mac);
        let core = self.clone();
        self.tasks.spawn(async move {
            boots_synced(&core.tracker).await;
            core.settled(Ticket { case, reply }, Verdict::Stored);
        });
    }

    /// The committer's word on a batch of leases.
    pub(super) fn all_settled(&self, verdicts: Vec<(Box<Ticket>, Verdict)>) {
        let mut corked: Vec<Corked<'_>> = Vec::new();
        for (ticket, _) in &verdicts {
            let link = &ticket.case.link;
            if !corked.iter().any(|other| Arc::ptr_eq(&other.link, link)) {
                corked.push(Corked::new(self, link));
            }
        }
        for (ticket, verdict) in verdicts {
            self.settled(*ticket, verdict);
        }
    }

    /// The committer's word on a lease.
    fn settled(&self, ticket: Ticket, verdict: Verdict) {
        let Ticket { case, reply } = ticket;
        let mac = case.request.mac;
        let (now, snapshot) = (self.clock.now(), self.cache.get());
        self.gates().in_flight.remove(&mac);
        match verdict {
            Verdict::Stored => self.answer(&case, &snapshot, reply, now),
            // A machine whose session lives keeps the address that it has, whatever a row says;
            // one that is only about to take an offer (it names the server) may be told no.
            Verdict::Taken if case.request.server_id.is_none() && self.tracker.is_live(mac) => {
                self.drop_case(&case, Dropped::TakenElsewhere);
            }
            Verdict::Taken => {
                tracing::info!(client.mac = %mac, address = ?reply.your_ip, "another server gave the address away first");
                let nak = Reply {
                    kind: ReplyKind::Nak(NakReason::Taken),
                    shape: Shape::Nak,
                    your_ip: None,
                    lease_seconds: None,
                    is_durable: false,
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
    pub(super) fn answer(
        &self,
        case: &Case,
        snapshot: &Snapshot,
        mut reply: Reply,
        now: Timestamp,
    ) {
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
        let answer = Answer {
            mac: request.mac,
            to: reply.to,
            kind: reply.kind,
            shape: reply.shape,
            address: reply.your_ip,
        };
        tracing::debug!(client.mac = %request.mac, boot = ?reply.boot, "answer made");
        let sent = case
            .link
            .send(case.port, case.server_ip, case.from, answer, bytes);
        self.tell(&case.link, sent);
    }

    /// Counts and logs what became of answers.
    fn tell(&self, link: &Link, sent: Vec<Sent>) {
        for Sent { answer, error } in sent {
            let Answer { mac, to, kind, .. } = answer;
            match error {
                None => {
                    self.metrics.replied(kind, answer.shape);
                    tracing::debug!(
                        interface = link.name, client.mac = %mac, ?kind,
                        address = ?answer.address, ?to, "answered"
                    );
                }
                Some(error) => {
                    self.metrics.dropped(Dropped::SendFailed);
                    tracing::warn!(
                        interface = link.name, client.mac = %mac, ?to, %error,
                        "an answer could not be sent"
                    );
                }
            }
        }
    }

    pub(super) fn refuse(
        &self,
        case: &Case,
        snapshot: &Snapshot,
        refusal: &BootRefusal,
        now: Timestamp,
    ) {
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
    pub(super) fn note(
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
                client_ip: leased
                    .map(|leased| leased.address)
                    .or_else(|| elsewhere(case)),
                server_ip: Some(case.server_ip),
                phone_home: image.map(|image| image.phone_home),
                boot_method: image.and_then(|image| image.disk_method()),
                lease_until: leased.and_then(|leased| leased.until),
            },
        })
    }
}

/// The address that a machine has from another server: it names it in its own REQUEST, and
/// asks our boot server from it.
fn elsewhere(case: &Case) -> Option<Ipv4Addr> {
    let request = &case.request;
    let proxy = case
        .range
        .as_ref()
        .is_some_and(|range| range.mode == RangeMode::Proxy);
    let asked = request
        .requested
        .filter(|_| request.kind == RequestKind::Request);
    request.ciaddr.or(asked).filter(|_| proxy)
}
