//! A reply as a packet: fixed fields, then as many options as the client can take.

use std::net::Ipv4Addr;

use dhcproto::v4::{Encodable, Flags, HType, Message, Opcode};

use super::options::{Contents, contents, raw, wire};
use super::{Frame, Request};
use crate::dhcp::decide::{Boot, Reply, ReplyKind, Shape};

/// RFC 951 section 3: old relays and ROMs drop anything shorter.
const LEAST: usize = 300;
/// IP and UDP headers, which option 57 counts.
const HEADERS: usize = 28;
/// No reply is fragmented, whatever the client says that it can take.
const MOST: usize = 1500;
/// Fixed fields and cookie.
const FIXED: usize = 240;
/// `file` with its final NUL.
const FILE: usize = 128;

/// Writes a reply: at least 300 bytes, at most `request.max_size` less headers, nothing cut
/// inside an option, no byte that was not set by us.
#[must_use]
pub fn encode(request: &Request, reply: &Reply, frame: &Frame<'_>) -> Vec<u8> {
    let contents = contents(request, reply, frame);
    let most = usize::from(request.max_size).clamp(576, MOST) - HEADERS;
    let mut bytes = fixed_fields(request, reply, &contents);
    // RFC 3046 section 2.2: unchanged and last, or, where it can't fit whole, not at all.
    let tail = request
        .relay_information
        .as_ref()
        .and_then(|data| wire(&raw(82, data)))
        .filter(|w| FIXED + w.len() + 64 <= most)
        .unwrap_or_default();
    let mut room = most - bytes.len() - tail.len() - 1;
    for (_, option) in &contents.options {
        if let Some(left) = room.checked_sub(option.len()) {
            bytes.extend_from_slice(option);
            room = left;
        }
    }
    bytes.extend_from_slice(&tail);
    bytes.push(255);
    if bytes.len() < LEAST {
        bytes.resize(LEAST, 0);
    }
    bytes
}

/// RFC 2131 section 4.3.1, table 3.
fn fixed_fields(request: &Request, reply: &Reply, contents: &Contents) -> Vec<u8> {
    let none = Ipv4Addr::UNSPECIFIED;
    let nak = matches!(reply.kind, ReplyKind::Nak(_));
    let ciaddr = match reply.kind {
        ReplyKind::Ack => request.ciaddr.unwrap_or(none),
        ReplyKind::Offer | ReplyKind::Nak(_) => none,
    };
    let your = reply.your_ip.filter(|_| reply.shape == Shape::Full && !nak);
    let mut message = Message::new_with_id(
        request.xid,
        ciaddr,
        your.unwrap_or(none),
        if nak { none } else { contents.next_server },
        request.giaddr.unwrap_or(none),
        &request.mac.octets(),
    );
    // Section 4.3.2: a NAK through a relay has the broadcast bit set, since the client may
    // not have an address that the relay can reach.
    let broadcast = request.broadcast || (nak && request.giaddr.is_some());
    message
        .set_opcode(Opcode::BootReply)
        .set_htype(HType::from(request.htype))
        .set_flags(if broadcast {
            Flags::default().set_broadcast()
        } else {
            Flags::default()
        });
    if let Some(file) = contents.boot_file.as_deref().filter(|f| f.len() < FILE) {
        message.set_fname(file);
    }
    if matches!(reply.boot, Boot::TftpLoader(_)) && contents.boot_file.is_some() {
        message.set_sname_str(contents.next_server.to_string());
    }
    // Every field is of its fixed length, and no options are encoded here.
    let mut bytes = message.to_vec().unwrap_or_default();
    bytes.resize(FIXED, 0);
    bytes
}
