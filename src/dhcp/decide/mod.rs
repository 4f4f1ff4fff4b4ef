//! The DHCP decision: a pure function from a request and facts to what is done.
//!
//! No sockets, no SQL, no clock: `now` is a parameter. Every silence and every answer has a
//! name that is a metric label and a test subject.
//!
//! `full` is the server that gives addresses (RFC 2131 section 4.3), `proxy` the one that
//! adds the boot part beside another (PXE 2.1 section 2.2.3, and port 4011), `boot` the boot
//! part itself.

mod boot;
mod full;
mod proxy;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;

pub use boot::boot_part;

use super::wire::Request;
use crate::model::{Client, Lease, NetworkRange, RangeMode, Serve, Timestamp};

/// The shortest lease that a client can get by asking (option 51), seconds.
pub const LEAST_LEASE_SECONDS: u32 = 60;
/// For how long a declined address stays out of the pools, seconds.
pub const DECLINE_SECONDS: u32 = 3_600;
/// How many addresses one machine may keep out by DECLINE at a time.
pub const MOST_DECLINES: u32 = 5;

/// Where a packet came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Port 67 or 4011.
    pub port: Port,
    /// Our address on the interface (or the one the packet was sent to).
    pub server_ip: Ipv4Addr,
    /// Option 54 of the request is one of our addresses, or the RFC 5107 override that we gave.
    pub is_ours: bool,
    /// Sent to our own address, not broadcast.
    pub unicast: bool,
}

/// The two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Port {
    /// 67.
    Dhcp,
    /// 4011, the PXE boot server's.
    Pxe,
}

/// All that the decision may look at.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// Where it came in.
    pub arrival: Arrival,
    /// The range meant: link selection, else giaddr, else ciaddr (unicast), else the
    /// interface's network.
    pub range: Option<&'a NetworkRange>,
    /// The client of the MAC.
    pub client: Option<&'a Client>,
    /// Who has which address.
    pub address: AddressFacts,
    /// So much of a lease may be gone, percent, and an ACK still says what is left of it instead
    /// of writing it anew; 0: each ACK writes. Also 0 where other servers share the database: what
    /// they wrote a moment ago may not have been heard of here.
    pub keep_percent: u8,
    /// What there is to boot with.
    pub boot: BootFacts,
}

/// Facts of the address book for this MAC in this range.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AddressFacts {
    /// The client's reserved address, if it lies in this range.
    pub reserved: Option<Ipv4Addr>,
    /// The MAC's lease in this range, active or released (never declined), run out or not.
    pub lease: Option<Lease>,
    /// What we have offered it and still hold for it.
    pub offered: Option<Ipv4Addr>,
    /// What the book would give it now (reserved, else leased, else a free one).
    pub candidate: Candidate,
    /// Standing of the address it asks for (option 50, else ciaddr).
    pub requested: Standing,
    /// Addresses that this MAC keeps out by DECLINE at the moment.
    pub declines: u32,
    /// Nobody has registered it, it has no address, and the share of the pools that is for
    /// such machines is used up.
    pub over_share: bool,
    /// The database can't be asked, and other servers share it.
    pub cut_off: bool,
    /// Another server may have leased it the address that it asks for, and nobody could tell us.
    pub unsure: bool,
}

/// An address to offer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Candidate {
    /// Offer it.
    Ready(Ipv4Addr),
    /// Ask by ARP first.
    Unprobed(Ipv4Addr),
    /// Nothing is free.
    #[default]
    None,
}

/// How the requested address stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Standing {
    /// None was asked for.
    #[default]
    NotAsked,
    /// It may have it: its reservation, its lease, its offer.
    Its,
    /// In a pool and nobody else's.
    Free,
    /// Somebody else's: leased, reserved, offered, declined, or a live session's.
    Taken,
    /// Of this network but not handed out: in no pool and not reserved for it.
    NotServed,
    /// Not of this network.
    Elsewhere,
}

/// Facts about booting.
#[derive(Debug, Clone, PartialEq)]
pub struct BootFacts {
    /// Loader for its architecture.
    pub loader: Loader,
    /// What is done with a boot request of an unknown MAC.
    pub unknown: Unknown,
    /// A loader of ours was delivered in this machine's open attempt: the iPXE that speaks is ours.
    pub loader_delivered: bool,
}

/// The loader for an architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loader {
    /// Its base name.
    Found(String),
    /// Not installed: any of these names in that directory would do. Empty: none is known.
    Missing {
        /// Names, best first.
        wanted: &'static [&'static str],
        /// Where to put one.
        directory: String,
    },
}

/// Policy for boot requests of unknown MACs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unknown {
    /// It will be registered (or is being): serve it a loader and the waiting screen.
    Register,
    /// Give it no boot part.
    Ignore,
    /// Would register, but the cap is reached: no boot part.
    CapReached,
}

/// What is done with a packet.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Nothing, and why.
    Silent(Silence),
    /// Ask by ARP whether the address is in use, then decide again.
    Probe(Ipv4Addr),
    /// Answer.
    Reply(Box<Reply>),
    /// RELEASE: end this lease; no answer.
    Release(Ipv4Addr),
    /// DECLINE: keep this address out; no answer.
    Decline(Ipv4Addr),
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// OFFER, ACK or NAK.
    pub kind: ReplyKind,
    /// What it holds.
    pub shape: Shape,
    /// yiaddr.
    pub your_ip: Option<Ipv4Addr>,
    /// Lease to hold (OFFER) or to store before sending (ACK), seconds; of one that is durable,
    /// what is left.
    pub lease_seconds: Option<u32>,
    /// The lease is durable as it is: nothing is to be stored.
    pub is_durable: bool,
    /// Boot part.
    pub boot: Boot,
    /// Where to.
    pub to: Destination,
    /// A refusal that goes with it (a named reason why there is no boot part).
    pub refusal: Option<BootRefusal>,
}

/// Message types of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplyKind {
    /// 2
    Offer,
    /// 5
    Ack,
    /// 6, with the reason (option 56 and metric label).
    Nak(NakReason),
}

/// Which options go in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// Address, lease and the range's options.
    Full,
    /// The range's options, no address and no lease (INFORM).
    Inform,
    /// Boot part only (proxyDHCP).
    Proxy,
    /// NAK: 53, 54, 56, 61, 82 only.
    Nak,
}

/// The boot part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// None.
    Nothing,
    /// This loader by TFTP: `file` and option 67 hold its base name; 60 is `PXEClient`.
    TftpLoader(String),
    /// This loader (base name) by URL; 60 is `HTTPClient`.
    HttpLoader(String),
    /// The script's URL, for iPXE.
    Script,
}

/// Why a boot request gets no boot part. Metric label and event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootRefusal {
    /// No loader for its architecture is installed.
    LoaderMissing {
        /// Names that would do.
        wanted: &'static [&'static str],
        /// Where.
        directory: String,
    },
    /// Unknown client, `unknown_clients = "ignore"`.
    UnknownIgnored,
    /// Unknown client, too many of them wait already.
    UnknownCap,
}

/// Where an answer goes (RFC 2131 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To the relay, port 67.
    Relay(Ipv4Addr),
    /// To an address that the client answers ARP for, port 68 (or its source port on 4011).
    Unicast(Ipv4Addr),
    /// 255.255.255.255:68.
    Broadcast,
    /// To a client without an address: a raw frame to its MAC and yiaddr, port 68.
    Frame(Ipv4Addr),
    /// Back to the sender's address and port (4011).
    Sender,
}

impl BootRefusal {
    /// The metric label.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::LoaderMissing { .. } => "loader_missing",
            Self::UnknownIgnored => "unknown_ignored",
            Self::UnknownCap => "unknown_cap",
        }
    }
}

impl std::fmt::Display for BootRefusal {
    /// A sentence for people: what is missing, and what to do about it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::LoaderMissing { wanted: [], .. } => {
                f.write_str("no loader is known for this machine's architecture")
            }
            Self::LoaderMissing { wanted, directory } => write!(
                f,
                "no loader for this machine's architecture: put {} into {directory}",
                wanted.join(" or ")
            ),
            Self::UnknownIgnored => {
                f.write_str("the machine is not registered, and unknown_clients is \"ignore\"")
            }
            Self::UnknownCap => f.write_str(
                "the machine is not registered, and too many unregistered ones wait already",
            ),
        }
    }
}

crate::model::words! {
    /// Why a NAK.
    pub enum NakReason {
        /// Its address belongs to another network.
        WrongNetwork = "nak_wrong_network",
        /// Its address is not the one it holds here.
        WrongAddress = "nak_wrong_address",
        /// Its address is somebody else's.
        Taken = "nak_taken",
        /// Its address is in no pool.
        NotServed = "nak_not_served",
    }
}

crate::model::words! {
    /// Why no answer.
    pub enum Silence {
        /// No range holds the network it comes from.
        NoRange = "no_range",
        /// The range is off.
        RangeOff = "range_off",
        /// The range serves known clients only.
        UnknownClient = "unknown_client",
        /// Proxy mode, and no boot request.
        NotABoot = "not_a_boot",
        /// Proxy mode, and nothing to boot with (see the refusal's event).
        NothingToBoot = "nothing_to_boot",
        /// It took another server's offer.
        OtherServer = "other_server",
        /// Every address is taken.
        PoolExhausted = "pool_exhausted",
        /// The database can't be asked, and of the addresses that this server may give away by
        /// itself none is free.
        CutOff = "cut_off",
        /// Nobody has registered the machine, and the share of the pool that is for such
        /// machines is used up, in the range or behind its relay.
        UnknownShare = "unknown_share",
        /// We have no record of the address it remembers: not ours to judge.
        NoRecord = "no_record",
        /// By our records the address is not its, but another server may know better: the address
        /// is of that one's block, or the database can't be asked.
        NotOurs = "not_ours",
        /// RELEASE or DECLINE of what it does not hold.
        NotItsLease = "not_its_lease",
        /// Too many DECLINEs by this machine.
        DeclineFlood = "decline_flood",
        /// The message makes no sense on this port.
        WrongPort = "wrong_port",
        /// The message contradicts itself (RFC 2131 table 5): a field or an option that it
        /// must have is missing, or ciaddr is no address of this network.
        Senseless = "senseless",
    }
}

/// Decides. See RFC 2131 section 4.3 for the branches.
///
/// `now` tells whether a lease still lasts, and how much of it is gone; nothing else depends on time.
#[must_use]
pub fn decide(request: &Request, facts: &Facts<'_>, now: Timestamp) -> Decision {
    let Some(range) = facts.range else {
        return Decision::Silent(Silence::NoRange);
    };
    let served = range.serve == Serve::All || facts.client.is_some();
    match (range.mode, facts.arrival.port) {
        (RangeMode::Off, _) => Decision::Silent(Silence::RangeOff),
        _ if !served => Decision::Silent(Silence::UnknownClient),
        (RangeMode::Full | RangeMode::Proxy, Port::Pxe) => proxy::boot_server(request, facts),
        (RangeMode::Proxy, Port::Dhcp) => proxy::offer(request, facts),
        (RangeMode::Full, Port::Dhcp) => full::decide(request, facts, range, now),
    }
}
