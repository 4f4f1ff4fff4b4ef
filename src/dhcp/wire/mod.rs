//! Bytes <-> types. The only folder that names `dhcproto`.
//!
//! `scan` reads the raw packet (length, op, htype, hlen, cookie, RFC 3396 concatenation,
//! overload) because dhcproto panics or loses options on hostile input; `parse` gives the
//! options their meaning; `options` says which options a reply has, most important first,
//! with dhcproto's types and encoder; `encode` puts them into a packet of the right size.
//! `client` is the other side of the wire, for who plays machines.
//! Nothing here decides who gets what: that is [`super::decide`].

pub mod client;
mod encode;
mod options;
mod parse;
mod scan;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;

use uuid::Uuid;

use crate::model::{Arch, Client, Hostname, MacAddr, NetworkRange};

pub use encode::encode;
pub use parse::parse;

/// A request as the decision needs it. Everything hostile has been refused by [`parse()`].
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Transaction id, copied to the reply.
    pub xid: u32,
    /// Seconds the client has tried.
    pub secs: u16,
    /// The broadcast flag.
    pub broadcast: bool,
    /// Address the client has and answers ARP for.
    pub ciaddr: Option<Ipv4Addr>,
    /// First relay.
    pub giaddr: Option<Ipv4Addr>,
    /// Hops so far.
    pub hops: u8,
    /// Hardware type as sent, 1 (Ethernet) or 6 (IEEE 802), copied to the reply.
    pub htype: u8,
    /// Hardware address.
    pub mac: MacAddr,
    /// Option 53.
    pub kind: RequestKind,
    /// Option 54.
    pub server_id: Option<Ipv4Addr>,
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// Option 61, echoed (RFC 6842).
    pub client_identifier: Option<Vec<u8>>,
    /// Option 12, where it is a host name.
    pub hostname: Option<Hostname>,
    /// Option 60's meaning.
    pub vendor: Vendor,
    /// Option 93, the first type that we know (else `Other`); where it is missing, the number
    /// in `PXEClient:Arch:00007:...`.
    pub arch: Option<Arch>,
    /// Option 97 as sent, echoed.
    pub machine_id: Option<Vec<u8>>,
    /// Option 97 as a UUID, in SMBIOS spelling.
    pub smbios_uuid: Option<Uuid>,
    /// Options 77 or 175 say that iPXE speaks.
    pub ipxe: bool,
    /// Option 57, at least 576.
    pub max_size: u16,
    /// Option 55.
    pub wanted: Vec<u8>,
    /// Option 51, seconds.
    pub wanted_seconds: Option<u32>,
    /// Option 82 as sent, echoed last and unchanged.
    pub relay_information: Option<Vec<u8>>,
    /// Sub-option 5 of option 82 (RFC 3527), from a relay only.
    pub link_selection: Option<Ipv4Addr>,
    /// Sub-option 11 of option 82 (RFC 5107), from a relay only.
    pub server_id_override: Option<Ipv4Addr>,
    /// Option 43 sub-option 71 as sent (PXE boot item), echoed on 4011.
    pub boot_item: Option<Vec<u8>>,
}

impl Request {
    /// True for a machine that boots: PXE or HTTP Boot firmware, or iPXE.
    #[must_use]
    pub fn is_boot(&self) -> bool {
        self.ipxe || self.vendor != Vendor::Other
    }

    /// The address it asks for: option 50, else ciaddr.
    #[must_use]
    pub fn asked(&self) -> Option<Ipv4Addr> {
        self.requested.or(self.ciaddr)
    }
}

/// Client messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// 1
    Discover,
    /// 3
    Request,
    /// 4
    Decline,
    /// 7
    Release,
    /// 8
    Inform,
}

/// Vendor classes that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Vendor {
    /// Begins with `PXEClient`.
    Pxe,
    /// Begins with `HTTPClient`.
    Http,
    /// Anything else or none.
    Other,
}

/// An OFFER, ACK or NAK by another server, seen on the wire.
#[derive(Debug, Clone, PartialEq)]
pub struct ForeignReply {
    /// Option 54, or siaddr.
    pub server: Ipv4Addr,
    /// Whom it answers.
    pub mac: MacAddr,
}

/// What came.
#[derive(Debug, Clone, PartialEq)]
pub enum Packet {
    /// op 1.
    Request(Box<Request>),
    /// op 2: a server's.
    Reply(ForeignReply),
}

/// Why a packet is dropped at the door; a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Malformed {
    /// Under 236 + 4 bytes.
    #[error("too short")]
    Short,
    /// op is neither 1 nor 2.
    #[error("neither request nor reply")]
    Op,
    /// htype/hlen are not Ethernet's (1 or 6, and 6).
    #[error("not an Ethernet address")]
    Hardware,
    /// Over 16 hops.
    #[error("too many hops")]
    Hops,
    /// No magic cookie: BOOTP or noise.
    #[error("no DHCP cookie")]
    Cookie,
    /// An option runs past its field.
    #[error("an option runs past the end")]
    Truncated,
    /// No option 53, or not one byte, or no client message.
    #[error("no usable message type")]
    MessageType,
    /// The MAC is zero, multicast or broadcast.
    #[error("not a station's address")]
    Station,
}

/// What goes into a reply besides the decision.
#[derive(Debug, Clone)]
pub struct Frame<'a> {
    /// Our address on that wire: option 54, siaddr, next-server.
    pub server_ip: Ipv4Addr,
    /// The range (its options), where one is meant.
    pub range: Option<&'a NetworkRange>,
    /// The client (host name, network_config).
    pub client: Option<&'a Client>,
    /// `http://SERVER:PORT/b/ID.TOKEN/boot.ipxe`, where the decision says script.
    pub script_url: Option<&'a str>,
    /// `http://SERVER:PORT/loader/`, for HTTP Boot.
    pub loader_base_url: &'a str,
}
