//! Gathers what the decision may look at: from the cache, the address book and the tracker,
//! never from a query.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::Ipv4Network;

use super::decide::{AddressFacts, Arrival, BootFacts, Candidate, Facts, Loader, Port, Unknown};
use super::flow::Core;
use super::link::Link;
use super::pool::{Asker, Reach, relay_key};
use super::wire::{Request, RequestKind, Vendor};
use crate::boot::session::Speaker;
use crate::cache::Snapshot;
use crate::model::{Arch, Client, MacAddr, NetworkRange, RangeMode, Timestamp};

/// A request on its way through the server.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// The interface it came in by.
    pub(super) link: Arc<Link>,
    pub(super) port: Port,
    pub(super) from: SocketAddrV4,
    /// Our address that it reached, or the interface's in the network that is meant.
    pub(super) server_ip: Ipv4Addr,
    pub(super) unicast: bool,
    pub(super) request: Request,
    pub(super) range: Option<Arc<NetworkRange>>,
    pub(super) client: Option<Arc<Client>>,
    /// Probes that may still be made for it.
    pub(super) probes_left: u8,
    /// The tracker knows of this packet.
    pub(super) noted: bool,
    /// Nobody else has its client's disk.
    pub(super) settled: bool,
    /// The database was asked for the address that it would be refused.
    pub(super) confirmed: bool,
    /// How long it lay unread.
    pub(super) waited: Duration,
}

impl Case {
    /// Resolves interface, range and client of a packet. `None`: the interface has lost its
    /// addresses.
    pub(super) fn new(
        link: &Arc<Link>,
        port: Port,
        from: SocketAddrV4,
        to: Ipv4Addr,
        request: Request,
        snapshot: &Snapshot,
    ) -> Option<Self> {
        let addresses = link.addresses();
        let unicast = addresses.iter().any(|address| address.ip() == to);
        let client = snapshot.client_by_mac(request.mac).cloned();
        let (range, on_wire) =
            range_meant(&request, unicast, &addresses, client.as_deref(), snapshot);
        let server_ip = if unicast {
            to
        } else {
            on_wire.or_else(|| addresses.first().map(|address| address.ip()))?
        };
        Some(Self {
            link: link.clone(),
            port,
            from,
            server_ip,
            unicast,
            request,
            range,
            client,
            probes_left: 4,
            noted: false,
            settled: false,
            confirmed: false,
            waited: Duration::ZERO,
        })
    }

    /// A boot request: a ROM's or iPXE's.
    pub(super) fn is_boot(&self) -> bool {
        self.request.is_boot()
    }

    /// Behind a relay there is no ARP for us.
    pub(super) fn relayed(&self) -> bool {
        self.request.giaddr.is_some()
    }
}

/// Who speaks.
pub(super) fn speaker(request: &Request) -> Speaker {
    match request.vendor {
        _ if request.ipxe => Speaker::Ipxe,
        Vendor::Pxe | Vendor::Http => Speaker::Rom,
        Vendor::Other => Speaker::Os,
    }
}

/// The range that a request means, and our own address in it where it is on this wire.
///
/// RFC 3527: link selection goes before giaddr. RFC 2131 section 4.3.1: then giaddr. A client
/// that speaks from an address it has, directly to us, is judged by that. What is broadcast
/// belongs to the interface; where that has several networks, the server identifier, the
/// address asked for and the reservation say which, and the first one that is served else.
fn range_meant(
    request: &Request,
    unicast: bool,
    addresses: &[Ipv4Network],
    client: Option<&Client>,
    snapshot: &Snapshot,
) -> (Option<Arc<NetworkRange>>, Option<Ipv4Addr>) {
    let elsewhere = request
        .link_selection
        .or(request.giaddr)
        .or(request.ciaddr.filter(|_| unicast));
    if let Some(address) = elsewhere {
        let range = snapshot.range_of(address).cloned();
        let ours = range.as_ref().and_then(|range| {
            let mut inside = addresses.iter().map(|a| a.ip());
            inside.find(|ip| range.network.contains(*ip))
        });
        return (range, ours);
    }
    let local: Vec<(Ipv4Addr, &Arc<NetworkRange>)> = addresses
        .iter()
        .filter_map(|a| Some((a.ip(), snapshot.range_of(a.ip())?)))
        .collect();
    let hints = [
        request.server_id,
        request.requested,
        request.ciaddr,
        client.and_then(|client| client.ip_address),
    ];
    let hinted = hints.into_iter().flatten().find_map(|hint| {
        local.iter().find(|(ip, range)| {
            *ip == hint || (request.server_id != Some(hint) && range.network.contains(hint))
        })
    });
    let served = || local.iter().find(|(_, range)| range.mode != RangeMode::Off);
    match hinted.or_else(served).or(local.first()) {
        Some((ip, range)) => (Some((*range).clone()), Some(*ip)),
        None => (None, None),
    }
}

impl Core {
    /// All facts of a case. `snapshot` is the one that the case was made from or a newer one.
    pub(super) fn facts<'a>(
        &self,
        case: &'a Case,
        snapshot: &Arc<Snapshot>,
        ours: &HashSet<Ipv4Addr>,
        now: Timestamp,
    ) -> Facts<'a> {
        let request = &case.request;
        let is_ours = request.server_id.is_some_and(|server| {
            ours.contains(&server) || request.server_id_override == Some(server)
        });
        Facts {
            arrival: Arrival {
                port: case.port,
                server_ip: case.server_ip,
                is_ours,
                unicast: case.unicast,
            },
            range: case.range.as_deref(),
            client: case.client.as_deref(),
            address: self.address_facts(case, snapshot, ours, now),
            keep_percent: match self.claim.is_shared() {
                true => 0,
                false => self.keep_percent,
            },
            boot: self.boot_facts(case, snapshot, now),
        }
    }

    fn address_facts(
        &self,
        case: &Case,
        snapshot: &Snapshot,
        ours: &HashSet<Ipv4Addr>,
        now: Timestamp,
    ) -> AddressFacts {
        let request = &case.request;
        let Some(range) = case.range.as_deref() else {
            return AddressFacts::default();
        };
        if range.mode != RangeMode::Full || request.kind == RequestKind::Inform {
            return AddressFacts::default();
        }
        let is_reserved = |address| keep_out(snapshot, ours, address);
        let is_live = |mac: MacAddr| self.tracker.is_live(mac);
        let asker = Asker {
            mac: request.mac,
            is_known: case.client.as_deref().is_some_and(is_registered),
            relay: relay_key(request.relay_information.as_deref()),
            reserved: case
                .client
                .as_ref()
                .and_then(|client| client.ip_address)
                .filter(|address| range.is_host(*address)),
            requested: request.asked(),
            is_reserved: &is_reserved,
            is_live: &is_live,
            reach: if self.catalog.is_away() {
                Reach::Own
            } else {
                Reach::Database
            },
        };
        let mut facts = self.book().look(range, &asker, now);
        // Nobody can ask a network behind a relay by ARP: the client's own probe must do.
        if let (true, Candidate::Unprobed(address)) = (case.relayed(), facts.candidate) {
            facts.candidate = Candidate::Ready(address);
        }
        facts
    }

    fn boot_facts(&self, case: &Case, snapshot: &Arc<Snapshot>, now: Timestamp) -> BootFacts {
        let request = &case.request;
        let unknown = if case.is_boot() && case.client.is_none() {
            self.registrar.stance(request.mac, snapshot, now)
        } else {
            Unknown::Ignore
        };
        let loader = if case.is_boot() {
            // A ROM that does not say what it is, is of the time before there was a choice.
            (self.loader_for)(request.arch.unwrap_or(Arch::Bios))
        } else {
            Loader::Missing {
                wanted: &[],
                directory: String::new(),
            }
        };
        BootFacts {
            loader,
            unknown,
            loader_delivered: request.ipxe
                && self
                    .tracker
                    .open_attempt(request.mac)
                    .is_some_and(|attempt| attempt.loader_delivered),
        }
    }
}

/// A person knows of it: the server puts unknown machines on the list by itself, and whoever
/// invents MACs must gain nothing by that.
pub(super) fn is_registered(client: &Client) -> bool {
    !client.auto_registered
}

/// Reserved for a client, or an address of this server: no pool hands it out.
pub(super) fn keep_out(snapshot: &Snapshot, ours: &HashSet<Ipv4Addr>, address: Ipv4Addr) -> bool {
    snapshot.reserved_for(address).is_some() || ours.contains(&address)
}
