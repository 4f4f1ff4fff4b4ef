//! Bytes <-> types. The only file that names `dhcproto`.
//!
//! `parse` scans the raw packet itself first (length, op, htype, hlen, cookie, RFC 3396
//! concatenation, overload) because dhcproto panics or loses options on hostile input; then
//! uses its types and its encoder.

use std::net::Ipv4Addr;

use uuid::Uuid;

use super::decide::Reply;
use crate::model::{Arch, Client, Hostname, MacAddr, NetworkRange};

/// A request as the decision needs it. Everything hostile has been refused by [`parse`].
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
    /// Option 93, first type.
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
    /// Option 51.
    pub wanted_seconds: Option<u32>,
    /// Option 82 as sent, echoed last and unchanged.
    pub relay_information: Option<Vec<u8>>,
    /// Sub-option 5 of option 82 (RFC 3527).
    pub link_selection: Option<Ipv4Addr>,
    /// Sub-option 11 of option 82 (RFC 5107).
    pub server_id_override: Option<Ipv4Addr>,
    /// Option 43 sub-option 71 as sent (PXE boot item), echoed on 4011.
    pub boot_item: Option<Vec<u8>>,
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

/// Reads a packet. Never panics, bounded in time and memory by its input.
///
/// # Errors
/// See [`Malformed`].
pub fn parse(bytes: &[u8]) -> Result<Packet, Malformed> {
    let _ = bytes;
    unimplemented!()
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

/// Writes a reply: at least 300 bytes, at most `request.max_size` less headers, nothing cut
/// inside an option, no byte that was not set by us.
#[must_use]
pub fn encode(request: &Request, reply: &Reply, frame: &Frame<'_>) -> Vec<u8> {
    let _ = (request, reply, frame);
    unimplemented!()
}
