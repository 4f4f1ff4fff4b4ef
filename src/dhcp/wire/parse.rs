//! What a packet's options mean. An option that is wrong in itself is as good as absent; only
//! what makes the packet useless is [`Malformed`].

use dhcproto::v4::MessageType;
use uuid::Uuid;

use super::scan::{Op, Scan, address, sub_option};
use super::{ForeignReply, Malformed, Packet, Request, RequestKind, Vendor};
use crate::model::{Arch, Hostname};

/// RFC 2132 section 9.10: every client accepts a datagram of this many bytes.
const LEAST_MAX_SIZE: u16 = 576;

/// Reads a packet. Never panics, bounded in time and memory by its input.
///
/// # Errors
/// See [`Malformed`].
pub fn parse(bytes: &[u8]) -> Result<Packet, Malformed> {
    let scan = Scan::new(bytes)?;
    // RFC 3396 section 5: an option that must not repeat has a wrong length if it does.
    let Some(&[kind]) = scan.option(53) else {
        return Err(Malformed::MessageType);
    };
    let kind = MessageType::from(kind);
    match scan.op {
        Op::Request => request(&scan, kind).map(|r| Packet::Request(Box::new(r))),
        Op::Reply => reply(&scan, kind).map(Packet::Reply),
    }
}

fn reply(scan: &Scan<'_>, kind: MessageType) -> Result<ForeignReply, Malformed> {
    let answers = matches!(
        kind,
        MessageType::Offer | MessageType::Ack | MessageType::Nak
    );
    let server = scan.option_address(54).or_else(|| scan.address(20));
    match server {
        Some(server) if answers => Ok(ForeignReply {
            server,
            mac: scan.mac,
        }),
        _ => Err(Malformed::MessageType),
    }
}

fn request(scan: &Scan<'_>, kind: MessageType) -> Result<Request, Malformed> {
    let kind = match kind {
        MessageType::Discover => RequestKind::Discover,
        MessageType::Request => RequestKind::Request,
        MessageType::Decline => RequestKind::Decline,
        MessageType::Release => RequestKind::Release,
        MessageType::Inform => RequestKind::Inform,
        _ => return Err(Malformed::MessageType),
    };
    let giaddr = scan.address(24);
    let relay_information = scan.filled(82);
    // Switches add option 82 without being relays (giaddr 0), and so could any client: what
    // says where the client is and who we are is believed only of a relay.
    let of_relay = |code| {
        let _ = giaddr?;
        address(sub_option(relay_information.as_deref()?, code, false)?)
    };
    let (link_selection, server_id_override) = (of_relay(5), of_relay(11));
    let class = scan.option(60).unwrap_or_default();
    Ok(Request {
        xid: scan.long(4),
        secs: scan.word(8),
        broadcast: scan.word(10) & 0x8000 != 0,
        ciaddr: scan.address(12),
        giaddr,
        hops: scan.byte(3),
        htype: scan.byte(1),
        mac: scan.mac,
        kind,
        server_id: scan.option_address(54),
        requested: scan.option_address(50),
        client_identifier: scan.filled(61),
        hostname: scan.option(12).and_then(Hostname::from_wire),
        vendor: vendor(class),
        arch: arch(scan.option(93).unwrap_or_default(), class),
        machine_id: scan.option(97).filter(|id| id.len() == 17).map(Vec::from),
        smbios_uuid: scan.option(97).and_then(machine_uuid),
        ipxe: speaks_ipxe(scan),
        max_size: match scan.option(57) {
            Some(&[high, low]) => u16::from_be_bytes([high, low]).max(LEAST_MAX_SIZE),
            _ => LEAST_MAX_SIZE,
        },
        wanted: scan.filled(55).unwrap_or_default(),
        wanted_seconds: scan
            .option(51)
            .and_then(|d| Some(u32::from_be_bytes(d.try_into().ok()?))),
        relay_information,
        link_selection,
        server_id_override,
        boot_item: scan
            .option(43)
            .and_then(|d| sub_option(d, 71, true))
            .map(Vec::from),
    })
}

fn vendor(class: &[u8]) -> Vendor {
    if class.starts_with(b"PXEClient") {
        Vendor::Pxe
    } else if class.starts_with(b"HTTPClient") {
        Vendor::Http
    } else {
        Vendor::Other
    }
}

/// iPXE sends its user class raw (`iPXE`); RFC 3004 section 4 would have each class behind
/// its length. Its own encapsulated options (175) are as good a sign.
fn speaks_ipxe(scan: &Scan<'_>) -> bool {
    let user_class = scan.option(77).unwrap_or_default();
    let listed = || {
        let mut rest = user_class;
        while let Some((&length, after)) = rest.split_first() {
            let Some((class, after)) = after.split_at_checked(usize::from(length)) else {
                return false;
            };
            if class == b"iPXE" {
                return true;
            }
            rest = after;
        }
        false
    };
    user_class == b"iPXE" || listed() || scan.option(175).is_some_and(|d| !d.is_empty())
}

/// RFC 4578 section 2.1: a list of 16-bit numbers.
fn arch(data: &[u8], class: &[u8]) -> Option<Arch> {
    let (pairs, _) = data.as_chunks::<2>();
    let of_option = || {
        let known = pairs
            .iter()
            .map(|p| Arch::from_option_93(u16::from_be_bytes(*p)));
        let mut known = known.peekable();
        let first = known.peek().copied()?;
        Some(known.find(|a| *a != Arch::Other).unwrap_or(first))
    };
    let of_class = || {
        let text = std::str::from_utf8(class).ok()?;
        let number = text.split(':').skip_while(|p| *p != "Arch").nth(1)?;
        Some(Arch::from_option_93(number.parse().ok()?))
    };
    of_option().or_else(of_class)
}

/// RFC 4578 section 2.3: type 0, then sixteen bytes. OVMF and iPXE (captured) send them as
/// they lie in memory, first three fields little-endian. The two numbers that stand for "no
/// UUID" in SMBIOS are none.
fn machine_uuid(id: &[u8]) -> Option<Uuid> {
    let (0, bytes) = id.split_first().map(|(t, b)| (*t, b))? else {
        return None;
    };
    let uuid = Uuid::from_bytes_le(bytes.try_into().ok()?);
    (!uuid.is_nil() && !uuid.is_max()).then_some(uuid)
}
