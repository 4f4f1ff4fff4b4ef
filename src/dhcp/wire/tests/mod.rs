//! The wire, point by point, with the section that says so. Names begin with the number of
//! the protocol case.

mod contents;
mod properties;
mod replies;

use proptest::prelude::*;

use super::*;
use crate::dhcp::decide::{Boot, Destination, NakReason, Reply, ReplyKind, Shape};
use crate::dhcp::packet::{self, Checked, DISCOVER, INFORM, REQUEST, check, ip, packet};
use crate::dhcp::testing::{SERVER, client, range, request};
use crate::model::{NetworkConfig, Route};

const SCRIPT: &str = "http://10.0.0.1:8069/b/0123456789abcdef0123456789abcdef.\
                      0123456789abcdef0123456789abcdef/boot.ipxe";
const LOADERS: &str = "http://10.0.0.1:8069/loader/";

fn malformed(packet: &packet::Packet) -> Malformed {
    parse(&packet.bytes()).unwrap_err()
}

fn reply(kind: ReplyKind, shape: Shape, boot: Boot) -> Reply {
    let address = (shape == Shape::Full).then_some(ip("10.0.0.150"));
    Reply {
        kind,
        shape,
        your_ip: address,
        lease_seconds: address.map(|_| 3600),
        is_durable: false,
        boot,
        to: Destination::Broadcast,
        refusal: None,
    }
}

fn offer(boot: Boot) -> Reply {
    reply(ReplyKind::Offer, Shape::Full, boot)
}

fn frame(range: &NetworkRange) -> Frame<'_> {
    Frame {
        server_ip: SERVER,
        range: Some(range),
        client: None,
        script_url: Some(SCRIPT),
        loader_base_url: LOADERS,
    }
}

fn written(request: &Request, reply: &Reply, frame: &Frame<'_>) -> Checked {
    check(&encode(request, reply, frame)).unwrap()
}

/// An answer to a packet with the usual range.
fn answer(packet: &packet::Packet, reply: &Reply) -> Checked {
    let range = range();
    written(&request(packet), reply, &frame(&range))
}

// ---- 1: form (RFC 2131 section 2, RFC 1542 section 4.1.1) ----

#[test]
fn p01_what_is_no_dhcp_request_is_dropped_by_name() {
    let good = packet(DISCOVER);
    for length in 0..240 {
        assert_eq!(parse(&good.bytes()[..length]), Err(Malformed::Short));
    }
    for op in [0, 3, 255] {
        assert_eq!(malformed(&good.clone().at(0, &[op])), Malformed::Op);
    }
    for (htype, hlen) in [
        (0, 6),
        (32, 6),
        (255, 6),
        (1, 0),
        (1, 16),
        (1, 17),
        (1, 255),
    ] {
        let bad = good.clone().at(1, &[htype, hlen]);
        assert_eq!(malformed(&bad), Malformed::Hardware);
    }
    assert_eq!(request(&good.clone().at(1, &[6, 6])).htype, 6);
    assert_eq!(request(&good.clone().at(3, &[16])).hops, 16);
    assert_eq!(malformed(&good.clone().at(3, &[17])), Malformed::Hops);
    let mut bootp = good.clone();
    bootp.cookie = vec![0; 4];
    assert_eq!(malformed(&bootp), Malformed::Cookie);
    for mac in [[0; 6], [255; 6], [1, 0, 0x5e, 0, 0, 1]] {
        assert_eq!(malformed(&good.clone().mac(mac)), Malformed::Station);
    }
}

#[test]
fn p01_message_type_is_one_byte_and_a_clients() {
    let mut none = packet(DISCOVER);
    none.options.clear();
    assert_eq!(malformed(&none), Malformed::MessageType, "BOOTP");
    for data in [&[][..], &[1, 1], &[0], &[2], &[5], &[6], &[9], &[255]] {
        let bad = none.clone().option(53, data);
        assert_eq!(malformed(&bad), Malformed::MessageType, "{data:?}");
    }
    // RFC 3396 section 5: repeated is joined, and then it is two bytes.
    let twice = packet(DISCOVER).option(53, &[DISCOVER]);
    assert_eq!(malformed(&twice), Malformed::MessageType);
}

#[test]
fn p01_pads_anywhere_and_no_end_are_fine() {
    let mut odd = packet(REQUEST)
        .raw(&[0, 0, 0])
        .address(50, "10.0.0.9")
        .raw(&[0]);
    odd.end = false;
    assert_eq!(request(&odd).requested, Some(ip("10.0.0.9")));
    // What is behind END is not looked at.
    let behind = packet(DISCOVER).raw(&[255, 50, 4, 10, 0, 0, 9]);
    assert_eq!(request(&behind).requested, None);
}

#[test]
fn p01_an_option_past_the_end_is_refused() {
    for tail in [
        &[61][..],
        &[61, 1],
        &[61, 255, 1, 2, 3],
        &[0, 0, 12, 4, b'a'],
    ] {
        let mut cut = packet(DISCOVER).raw(tail);
        cut.end = false;
        assert_eq!(malformed(&cut), Malformed::Truncated, "{tail:?}");
    }
}

// ---- 2 and 3: long options and overload (RFC 3396, RFC 2132 section 9.3) ----

#[test]
fn p02_parts_join_in_the_order_options_file_sname() {
    let mut file = vec![61, 2, 3, 4, 255];
    file.resize(128, 0);
    let mut sname = vec![61, 2, 5, 6, 255];
    sname.resize(64, 0);
    let split = packet(DISCOVER)
        .option(61, &[1])
        .option(52, &[3])
        .option(61, &[2])
        .at(108, &file)
        .at(44, &sname);
    let parsed = request(&split);
    assert_eq!(parsed.client_identifier, Some(vec![1, 2, 3, 4, 5, 6]));
}

#[test]
fn p03_overload_opens_only_the_fields_it_names_and_only_once() {
    let fields = |how: u8, inner: u8| {
        let mut file = vec![12, 1, b'f', 52, 1, inner, 255];
        file.resize(128, 0);
        let mut sname = vec![12, 1, b's', 255];
        sname.resize(64, 0);
        let name = packet(DISCOVER)
            .option(52, &[how])
            .at(108, &file)
            .at(44, &sname);
        request(&name).hostname.map(|h| h.to_string())
    };
    assert_eq!(fields(0, 3), None);
    assert_eq!(
        fields(1, 3).as_deref(),
        Some("f"),
        "52 inside a field is no 52"
    );
    assert_eq!(fields(2, 3).as_deref(), Some("s"));
    assert_eq!(fields(3, 0).as_deref(), Some("fs"));
    assert_eq!(fields(4, 3), None);
    // A boot file's name is no options.
    let plain = packet(DISCOVER).at(108, b"pxelinux.0");
    assert!(parse(&plain.bytes()).is_ok());
    let cut = packet(DISCOVER).option(52, &[1]).at(235, &[61]);
    assert_eq!(malformed(&cut), Malformed::Truncated);
}

#[test]
fn p03_we_never_overload() {
    let range = NetworkRange {
        options: (200..=250).map(|code| (code, "aa".repeat(40))).collect(),
        ..range()
    };
    let full = written(
        &request(&packet(DISCOVER).pxe(0)),
        &offer(Boot::TftpLoader("undionly.kpxe".into())),
        &frame(&range),
    );
    assert_eq!(full.get(52), None);
    assert_eq!(full.file(), "undionly.kpxe");
}

#[test]
fn p02_long_options_are_split_on_output() {
    let range = NetworkRange {
        options: [(224, "ab".repeat(600))].into(),
        ..range()
    };
    let asker = request(&packet(DISCOVER).option(57, &1472_u16.to_be_bytes()));
    let reply = written(&asker, &offer(Boot::Nothing), &frame(&range));
    assert_eq!(reply.get(224), Some([0xab; 600].as_slice()));
    assert_eq!(reply.order.iter().filter(|c| **c == 224).count(), 3);
}

// ---- 21: other servers ----

#[test]
fn p21_another_servers_answers_are_seen() {
    let theirs = |kind, code| {
        let mut bytes = packet(kind).address(code, "10.0.0.66").bytes();
        bytes[0] = 2;
        parse(&bytes)
    };
    let seen = ForeignReply {
        server: ip("10.0.0.66"),
        mac: MacAddr(packet::MAC),
    };
    for kind in [2, 5, 6] {
        assert_eq!(theirs(kind, 54), Ok(Packet::Reply(seen.clone())));
    }
    assert_eq!(theirs(1, 54), Err(Malformed::MessageType));
    assert_eq!(theirs(2, 50), Err(Malformed::MessageType), "of nobody");
    let mut bare = packet(2).at(20, &[10, 0, 0, 66]).bytes();
    bare[0] = 2;
    assert_eq!(
        parse(&bare),
        Ok(Packet::Reply(seen)),
        "siaddr where 54 is missing"
    );
}
