//! The wire, point by point, with the section that says so. Names begin with the number of
//! the protocol case.

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

// ---- 4: size (RFC 2132 section 9.10, RFC 951 section 3) ----

#[test]
fn p04_at_least_300_bytes_at_most_what_the_client_takes() {
    let mut big = range();
    big.options = (200..=250).map(|code| (code, "aa".repeat(60))).collect();
    let small = written(
        &request(&packet(DISCOVER)),
        &offer(Boot::Nothing),
        &frame(&big),
    );
    assert!(small.bytes.len() <= 548 && small.bytes.len() > 480);
    for (told, most) in [
        (0, 548),
        (300, 548),
        (575, 548),
        (576, 548),
        (1000, 972),
        (1472, 1444),
    ] {
        let asker = request(&packet(DISCOVER).option(57, &u16::to_be_bytes(told)));
        let length = encode(&asker, &offer(Boot::Nothing), &frame(&big)).len();
        assert!(length <= most && length > most - 62, "{told}: {length}");
    }
    // No more than a frame holds, whatever it says.
    let asker = request(&packet(DISCOVER).option(57, &[255, 255]));
    let length = encode(&asker, &offer(Boot::Nothing), &frame(&big)).len();
    assert!(length <= 1472 && length > 1472 - 62, "{length}");
    // A length that is wrong in itself is as good as none.
    assert_eq!(request(&packet(DISCOVER).option(57, &[9])).max_size, 576);
    let nak = reply(ReplyKind::Nak(NakReason::Taken), Shape::Nak, Boot::Nothing);
    assert_eq!(answer(&packet(REQUEST), &nak).bytes.len(), 300);
}

#[test]
fn p04_what_matters_stays_when_it_is_tight() {
    let mut tight = range();
    tight.dns = (0..20).map(|n| Ipv4Addr::new(10, 0, 1, n)).collect();
    tight.search = vec!["a-very-long-name-of-a-domain.example.org".into(); 1];
    tight.routes = (0..20)
        .map(|n| Route {
            to: format!("10.{n}.0.0/16").parse().unwrap(),
            via: ip("10.0.0.254"),
        })
        .collect();
    let asker = packet(DISCOVER)
        .pxe(7)
        .option(61, &[7; 19])
        .option(82, &[1, 4, 1, 2, 3, 4]);
    let got = written(
        &request(&asker),
        &offer(Boot::TftpLoader("snponly.efi".into())),
        &frame(&tight),
    );
    for code in [53, 54, 61, 51, 1, 3, 6, 60, 43, 67, 66, 82] {
        assert!(got.options.contains_key(&code), "option {code} is gone");
    }
    assert!(!got.options.contains_key(&121), "160 bytes do not fit");
    assert!(got.options.contains_key(&58), "what is small still fits");
}

// ---- 5, 10, 14: fixed fields (RFC 2131 section 4.3.1, table 3) ----

#[test]
fn p14_fixed_fields_of_an_offer() {
    let asker = packet(DISCOVER)
        .pxe(0)
        .at(1, &[6])
        .at(3, &[3])
        .at(8, &[1, 2])
        .giaddr("10.0.0.254")
        .ciaddr("10.0.0.77")
        .broadcast();
    let got = answer(&asker, &offer(Boot::TftpLoader("undionly.kpxe".into())));
    assert_eq!(&got.bytes[..4], [2, 6, 6, 0], "op, htype, hlen; hops are 0");
    assert_eq!(got.bytes[4..8], [0xde, 0xad, 0xbe, 0xef]);
    assert_eq!(got.bytes[8..10], [0, 0], "secs");
    assert_eq!(got.bytes[28..34], packet::MAC);
    assert!(got.broadcast());
    assert_eq!(got.ciaddr(), "0.0.0.0");
    assert_eq!(got.yiaddr(), "10.0.0.150");
    assert_eq!(got.siaddr(), "10.0.0.1");
    assert_eq!(got.giaddr(), "10.0.0.254");
    assert!(!answer(&packet(DISCOVER), &offer(Boot::Nothing)).broadcast());
}

#[test]
fn p14_an_ack_repeats_ciaddr() {
    let asker = packet(REQUEST).ciaddr("10.0.0.150");
    let got = answer(&asker, &reply(ReplyKind::Ack, Shape::Full, Boot::Nothing));
    assert_eq!(got.kind(), 5);
    assert_eq!(got.ciaddr(), "10.0.0.150");
    assert_eq!(got.siaddr(), "0.0.0.0", "nothing to boot");
}

#[test]
fn p10_a_nak_carries_nothing_else() {
    let asker = packet(REQUEST)
        .pxe(7)
        .address(50, "10.0.0.9")
        .ciaddr("10.0.0.9")
        .option(61, &[1, 2, 3])
        .option(82, &[1, 1, 9]);
    for reason in NakReason::ALL {
        let nak = reply(ReplyKind::Nak(*reason), Shape::Nak, Boot::Nothing);
        let got = answer(&asker, &nak);
        assert_eq!(got.kind(), 6);
        assert_eq!(got.order, [53, 54, 61, 56, 82]);
        assert_eq!(got.ciaddr(), "0.0.0.0");
        assert_eq!(got.yiaddr(), "0.0.0.0");
        assert_eq!(got.siaddr(), "0.0.0.0");
        assert!(!got.broadcast());
        assert!(got.text(56).unwrap().len() > 10);
    }
    // RFC 2131 section 4.3.2: through a relay with the broadcast bit set.
    let nak = reply(ReplyKind::Nak(NakReason::Taken), Shape::Nak, Boot::Nothing);
    assert!(answer(&asker.clone().giaddr("10.0.0.254"), &nak).broadcast());
}

// ---- 11, 12, 13: identity and relays ----

#[test]
fn p11_an_inform_has_no_lease() {
    let asker = packet(INFORM).ciaddr("10.0.0.9");
    let got = answer(&asker, &reply(ReplyKind::Ack, Shape::Inform, Boot::Nothing));
    for code in [51, 58, 59, 50] {
        assert_eq!(got.get(code), None);
    }
    assert_eq!(got.yiaddr(), "0.0.0.0");
    assert_eq!(got.ciaddr(), "10.0.0.9");
    assert_eq!(got.text(15), Some("lab.example"));
}

#[test]
fn p12_identifiers_are_attributes() {
    let rom = request(&packet(DISCOVER).pxe(0));
    let os = request(&packet(DISCOVER).option(61, &[255, 1, 2, 3, 4, 0, 1, 0, 1]));
    assert_eq!(rom.mac, os.mac);
    assert_eq!(rom.client_identifier, None);
    assert_eq!(
        request(&packet(DISCOVER).option(61, &[])).client_identifier,
        None
    );
}

#[test]
fn p13_61_and_82_come_back_as_sent() {
    let relay = [1, 4, 0, 0, 0, 9, 2, 6, 1, 2, 3, 4, 5, 6, 200, 0];
    for id in [vec![1, 0x52, 0x54, 0, 0xaa, 0xbb, 1], vec![0], vec![9; 255]] {
        let asker = packet(DISCOVER).option(61, &id).option(82, &relay);
        for reply in [
            offer(Boot::Nothing),
            reply(ReplyKind::Ack, Shape::Full, Boot::Nothing),
            reply(ReplyKind::Nak(NakReason::Taken), Shape::Nak, Boot::Nothing),
        ] {
            let got = answer(&asker, &reply);
            assert_eq!(got.get(61), Some(id.as_slice()), "RFC 6842 section 3");
            assert_eq!(got.get(82), Some(relay.as_slice()), "RFC 3046 section 2.2");
            assert_eq!(got.order.last(), Some(&82));
        }
    }
    // One that leaves no room for an answer is left out whole, never cut.
    let huge = packet(DISCOVER).option(82, &[1; 255]).option(82, &[2; 255]);
    let got = answer(&huge, &offer(Boot::Nothing));
    assert_eq!(got.get(82), None);
    assert!(got.number(51).is_some());
}

#[test]
fn p13_relay_sub_options() {
    let told = [5, 4, 10, 9, 0, 0, 11, 4, 10, 0, 0, 254];
    let relayed = packet(DISCOVER).giaddr("10.0.0.254").option(82, &told);
    let parsed = request(&relayed);
    assert_eq!(parsed.link_selection, Some(ip("10.9.0.0")), "RFC 3527");
    assert_eq!(
        parsed.server_id_override,
        Some(ip("10.0.0.254")),
        "RFC 5107"
    );
    let got = answer(&relayed, &offer(Boot::Nothing));
    assert_eq!(got.addresses(54), ["10.0.0.254"]);
    // Without a relay they are anybody's word.
    let direct = request(&packet(DISCOVER).option(82, &told));
    assert_eq!(
        (direct.link_selection, direct.server_id_override),
        (None, None)
    );
    assert_eq!(direct.relay_information.as_deref(), Some(told.as_slice()));
    // Sub-options in bad form are not there; the option is echoed all the same.
    let cut = packet(DISCOVER)
        .giaddr("10.0.0.254")
        .option(82, &[1, 200, 5, 4]);
    assert_eq!(request(&cut).link_selection, None);
    assert_eq!(
        answer(&cut, &offer(Boot::Nothing)).get(82),
        Some([1, 200, 5, 4].as_slice())
    );
}

// ---- 15: times (RFC 2131 section 4.4.5) ----

#[test]
fn p15_half_and_seven_eighths() {
    for (seconds, t1, t2) in [
        (3600, 1800, 3150),
        (60, 30, 52),
        (u32::MAX - 1, 2_147_483_647, 3_758_096_382),
    ] {
        let reply = Reply {
            lease_seconds: Some(seconds),
            ..offer(Boot::Nothing)
        };
        let got = answer(&packet(DISCOVER), &reply);
        assert_eq!(got.number(51), Some(seconds));
        assert_eq!((got.number(58), got.number(59)), (Some(t1), Some(t2)));
    }
    let forever = Reply {
        lease_seconds: Some(u32::MAX),
        ..offer(Boot::Nothing)
    };
    let got = answer(&packet(DISCOVER), &forever);
    assert_eq!(got.number(51), Some(u32::MAX));
    assert_eq!((got.get(58), got.get(59)), (None, None));
}

// ---- 16, 17: who speaks (RFC 4578, RFC 3004) ----

#[test]
fn p16_architectures_and_machine_ids() {
    let arch = |data: &[u8]| request(&packet(DISCOVER).option(93, data)).arch;
    assert_eq!(arch(&[0, 0]), Some(Arch::Bios));
    assert_eq!(arch(&[0, 7]), Some(Arch::EfiX64));
    assert_eq!(arch(&[0, 9]), Some(Arch::EfiX64));
    assert_eq!(arch(&[0, 16]), Some(Arch::HttpX64));
    assert_eq!(arch(&[0, 27]), Some(Arch::Other));
    assert_eq!(
        arch(&[0, 27, 0, 7]),
        Some(Arch::EfiX64),
        "a list: the first we know"
    );
    assert_eq!(arch(&[0, 27, 0]), Some(Arch::Other));
    assert_eq!(arch(&[]), None);
    assert_eq!(arch(&[7]), None);
    let class = b"PXEClient:Arch:00011:UNDI:003000";
    assert_eq!(
        request(&packet(DISCOVER).option(60, class)).arch,
        Some(Arch::EfiArm64),
        "by the class where 93 is missing"
    );
    let rom = request(&packet(DISCOVER).pxe(7));
    assert_eq!(
        rom.smbios_uuid.map(|u| u.to_string()).as_deref(),
        Some("11223344-5566-7788-99aa-bbccddeeff00")
    );
    let got = answer(
        &packet(DISCOVER).pxe(7),
        &offer(Boot::TftpLoader("a.efi".into())),
    );
    assert_eq!(got.get(97), Some(packet::machine_id().as_slice()));
}

#[test]
fn p16_an_option_that_is_wrong_in_itself_is_as_good_as_absent() {
    let id = |data: &[u8]| {
        let parsed = request(&packet(DISCOVER).option(60, b"PXEClient").option(97, data));
        (parsed.machine_id.is_some(), parsed.smbios_uuid.is_some())
    };
    for data in [&[][..], &[0], &[0; 16], &[0; 18], &[1; 16]] {
        assert_eq!(id(data), (false, false), "{data:?}");
    }
    assert_eq!(
        id(&[3; 17]),
        (true, false),
        "another type: echoed, not read"
    );
    assert_eq!(id(&[0; 17]), (true, false), "no UUID at all");
    let mut all_ones = [255; 17];
    all_ones[0] = 0;
    assert_eq!(id(&all_ones), (true, false), "no UUID at all");
    let odd = packet(DISCOVER)
        .option(12, b"\xff\xfe")
        .option(50, &[10, 0, 0])
        .option(51, &[1])
        .option(54, &[1, 2, 3, 4, 5])
        .option(61, &[])
        .option(94, &[1])
        .option(94, &[1, 2, 3, 4, 5])
        .option(81, &[255; 70]);
    let parsed = request(&odd);
    assert_eq!(parsed.hostname, None);
    assert_eq!(parsed.requested, None);
    assert_eq!(parsed.wanted_seconds, None);
    assert_eq!(parsed.server_id, None);
    for bad in [
        &b"${net0}"[..],
        b"",
        b"\0\0",
        b"a b",
        b"-",
        b"<script>",
        &[b'a'; 200],
    ] {
        assert_eq!(request(&packet(DISCOVER).option(12, bad)).hostname, None);
    }
}

#[test]
fn p17_classes() {
    let vendor = |class: &[u8]| request(&packet(DISCOVER).option(60, class)).vendor;
    assert_eq!(vendor(b"PXEClient"), Vendor::Pxe);
    assert_eq!(vendor(b"PXEClient:Arch:00000:UNDI:002001"), Vendor::Pxe);
    assert_eq!(vendor(b"HTTPClient:Arch:00016:UNDI:003001"), Vendor::Http);
    assert_eq!(vendor(b"MSFT 5.0"), Vendor::Other);
    assert_eq!(vendor(b"pxeclient"), Vendor::Other);
    assert_eq!(vendor(b""), Vendor::Other);
    assert!(!request(&packet(DISCOVER)).is_boot());
}

#[test]
fn p19_ipxe_is_known_by_77_or_175() {
    let ipxe = |code, data: &[u8]| request(&packet(DISCOVER).option(code, data)).ipxe;
    assert!(ipxe(77, b"iPXE"), "raw, as it does");
    assert!(ipxe(77, b"\x04iPXE"), "RFC 3004 section 4");
    assert!(ipxe(77, b"\x03foo\x04iPXE"));
    assert!(ipxe(175, &[0xb1, 1, 1]));
    assert!(!ipxe(77, b"iPXE-like"));
    assert!(!ipxe(77, b"\x09iPXE"));
    assert!(!ipxe(77, b""));
    assert!(!ipxe(175, b""));
}

// ---- 17 to 20: the boot part ----

#[test]
fn p20_a_tftp_loader_stands_in_every_place_that_firmware_reads() {
    let got = answer(
        &packet(DISCOVER).pxe(7),
        &offer(Boot::TftpLoader("snponly.efi".into())),
    );
    assert_eq!(got.text(60), Some("PXEClient"));
    assert_eq!(got.get(43), Some([6, 1, 8, 255].as_slice()));
    assert_eq!(got.text(67), Some("snponly.efi"));
    assert_eq!(got.file(), "snponly.efi");
    assert_eq!(got.text(66), Some("10.0.0.1"));
    assert_eq!(got.sname(), "10.0.0.1");
    assert_eq!(got.siaddr(), "10.0.0.1");
    assert_eq!(got.get(175), None);
}

#[test]
fn p17_http_boot_has_its_class_and_a_url() {
    let got = answer(
        &packet(DISCOVER).http(16),
        &offer(Boot::HttpLoader("snponly.efi".into())),
    );
    assert_eq!(got.text(60), Some("HTTPClient"));
    assert_eq!(
        got.text(67),
        Some("http://10.0.0.1:8069/loader/snponly.efi")
    );
    assert_eq!(got.file(), "http://10.0.0.1:8069/loader/snponly.efi");
    for code in [43, 66, 175] {
        assert_eq!(got.get(code), None, "never mixed with PXE");
    }
}

#[test]
fn p19_ipxe_gets_its_script_and_no_wait_for_a_proxy() {
    let got = answer(&packet(DISCOVER).pxe(0).ipxe(), &offer(Boot::Script));
    assert_eq!(got.text(67), Some(SCRIPT));
    assert_eq!(got.file(), SCRIPT);
    assert_eq!(got.get(175), Some([176, 1, 1].as_slice()));
    assert_eq!((got.get(60), got.get(43)), (None, None));
}

#[test]
fn p20_a_url_too_long_for_the_field_stands_in_67_alone() {
    let asker = request(&packet(DISCOVER).pxe(0).ipxe());
    let range = range();
    for (length, fits) in [(127, true), (128, false), (200, false)] {
        let url = format!("http://{}", "a".repeat(length - 7));
        let long = Frame {
            script_url: Some(&url),
            ..frame(&range)
        };
        let got = written(&asker, &offer(Boot::Script), &long);
        assert_eq!(got.text(67), Some(url.as_str()));
        assert_eq!(got.file(), if fits { url.as_str() } else { "" });
    }
}

#[test]
fn p18_a_proxy_offer_has_the_boot_part_alone() {
    let offer = reply(
        ReplyKind::Offer,
        Shape::Proxy,
        Boot::TftpLoader("undionly.kpxe".into()),
    );
    let got = answer(&packet(DISCOVER).pxe(0).option(61, &[1, 2]), &offer);
    let mut codes = got.order.clone();
    codes.sort_unstable();
    assert_eq!(codes, [43, 53, 54, 60, 61, 66, 67, 97]);
    assert_eq!(got.yiaddr(), "0.0.0.0");
    assert_eq!(got.siaddr(), "10.0.0.1");
    assert_eq!(got.file(), "undionly.kpxe");
    let script = reply(ReplyKind::Offer, Shape::Proxy, Boot::Script);
    let got = answer(&packet(DISCOVER).pxe(0).ipxe(), &script);
    assert_eq!(got.text(60), Some("PXEClient"), "iPXE knows a proxy by it");
    assert_eq!(got.file(), SCRIPT);
    assert_eq!(got.get(175), None);
}

#[test]
fn p18_a_boot_server_names_the_item_that_was_asked_for() {
    let asker = packet(REQUEST).pxe(0).option(43, &[71, 4, 0, 0, 0, 0, 255]);
    let ack = reply(
        ReplyKind::Ack,
        Shape::Proxy,
        Boot::TftpLoader("undionly.kpxe".into()),
    );
    let got = answer(&asker, &ack);
    assert_eq!(
        got.get(43),
        Some([6, 1, 8, 71, 4, 0, 0, 0, 0, 255].as_slice())
    );
}

// ---- the network's options ----

#[test]
fn a_range_tells_its_network() {
    let client = client(MacAddr(packet::MAC));
    let range = range();
    let known = Frame {
        client: Some(&client),
        ..frame(&range)
    };
    let got = written(&request(&packet(DISCOVER)), &offer(Boot::Nothing), &known);
    assert_eq!(got.addresses(1), ["255.255.255.0"]);
    assert_eq!(got.addresses(3), ["10.0.0.254"]);
    assert_eq!(got.addresses(6), ["10.0.0.53", "10.0.0.54"]);
    assert_eq!(got.addresses(28), ["10.0.0.255"]);
    assert_eq!(got.addresses(42), ["10.0.0.123"]);
    assert_eq!(got.text(12), Some("pc-01"));
    assert_eq!(got.text(15), Some("lab.example"));
    assert_eq!(got.get(26), Some([5, 120].as_slice()));
    let names = b"\x03lab\x07example\x00";
    let search = got.get(119).unwrap();
    assert!(search.starts_with(names), "{search:?}");
    // RFC 3397 section 2: the second name may point into the first, or be spelled out.
    let tail = &search[names.len()..];
    assert!(tail == [0xc0, 4] || tail == b"\x07example\x00", "{tail:?}");
    assert_eq!(got.get(121), None);
    // Option 55 narrows what is only nice to have.
    let few = request(&packet(DISCOVER).option(55, &[1, 3, 6]));
    let got = written(&few, &offer(Boot::Nothing), &known);
    for code in [12, 26, 28, 42, 119] {
        assert_eq!(got.get(code), None, "{code}");
    }
    // An unknown client is not named.
    let got = written(
        &request(&packet(DISCOVER)),
        &offer(Boot::Nothing),
        &frame(&range),
    );
    assert_eq!(got.get(12), None);
}

#[test]
fn a_client_overrides_its_range() {
    let mut client = client(MacAddr(packet::MAC));
    client.network_config = Some(NetworkConfig {
        gateway: Some(ip("10.0.0.2")),
        dns: Some(vec![ip("9.9.9.9")]),
        domain: Some("own.example".into()),
        search: Some(Vec::new()),
        ntp: Some(vec![ip("10.0.0.3")]),
        mtu: Some(9000),
        kernel_ip: None,
    });
    let range = range();
    let frame = Frame {
        client: Some(&client),
        ..frame(&range)
    };
    let got = written(&request(&packet(DISCOVER)), &offer(Boot::Nothing), &frame);
    assert_eq!(got.addresses(3), ["10.0.0.2"]);
    assert_eq!(got.addresses(6), ["9.9.9.9"]);
    assert_eq!(got.text(15), Some("own.example"));
    assert_eq!(got.addresses(42), ["10.0.0.3"]);
    assert_eq!(got.get(26), Some(9000_u16.to_be_bytes().as_slice()));
    assert_eq!(
        got.get(119),
        None,
        "an empty list is none, and not the range's"
    );
}

#[test]
fn routes_carry_the_default_route() {
    let mut range = range();
    let route = |to: &str, via: &str| Route {
        to: to.parse().unwrap(),
        via: ip(via),
    };
    range.routes = vec![
        route("192.168.7.128/25", "10.0.0.7"),
        route("10.0.0.0/8", "10.0.0.8"),
    ];
    let got = written(
        &request(&packet(DISCOVER)),
        &offer(Boot::Nothing),
        &frame(&range),
    );
    let want = [
        &[25, 192, 168, 7, 128, 10, 0, 0, 7][..],
        &[8, 10, 10, 0, 0, 8],
        &[0, 10, 0, 0, 254],
    ];
    assert_eq!(got.get(121), Some(want.concat().as_slice()), "RFC 3442");
    range.routes = vec![route("0.0.0.0/0", "10.0.0.9")];
    let got = written(
        &request(&packet(DISCOVER)),
        &offer(Boot::Nothing),
        &frame(&range),
    );
    assert_eq!(
        got.get(121),
        Some([0, 10, 0, 0, 9].as_slice()),
        "one default route"
    );
}

#[test]
fn a_ranges_own_codes_win() {
    let mut range = range();
    range.options = [
        (6, "08:08:08:08"),
        (17, "2f6e6673"),
        (67, "6d696e652e656669"),
        (66, "31302e302e302e39"),
        (224, "00"),
        // Never: the protocol's own, nothing, and what is no hex.
        (51, "00000001"),
        (53, "06"),
        (54, "01020304"),
        (61, "ff"),
        (82, "ff"),
        (225, ""),
        (226, "f"),
        (227, "zz"),
    ]
    .map(|(code, hex)| (code, hex.to_owned()))
    .into();
    let asker = request(&packet(DISCOVER).pxe(7).option(55, &[1]));
    let reply = offer(Boot::TftpLoader("snponly.efi".into()));
    let got = written(&asker, &reply, &frame(&range));
    assert_eq!(got.addresses(6), ["8.8.8.8"]);
    assert_eq!(got.text(17), Some("/nfs"), "asked for or not");
    assert_eq!(
        (got.text(67), got.file().as_str()),
        (Some("mine.efi"), "mine.efi")
    );
    assert_eq!(
        (got.text(66), got.siaddr().as_str()),
        (Some("10.0.0.9"), "10.0.0.9")
    );
    assert_eq!(got.get(224), Some([0].as_slice()));
    assert_eq!((got.kind(), got.number(51)), (2, Some(3600)));
    assert_eq!(got.addresses(54), ["10.0.0.1"]);
    for code in [61, 82, 225, 226, 227] {
        assert_eq!(got.get(code), None);
    }
    // A proxy adds the boot part alone, and an operating system boots nothing.
    let proxy = super::tests::reply(ReplyKind::Offer, Shape::Proxy, reply.boot.clone());
    assert_eq!(written(&asker, &proxy, &frame(&range)).get(224), None);
    let os = written(
        &request(&packet(DISCOVER)),
        &offer(Boot::Nothing),
        &frame(&range),
    );
    assert_eq!((os.text(67), os.file().as_str()), (Some("mine.efi"), ""));
    assert_eq!(os.siaddr(), "0.0.0.0");
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

// ---- properties ----

prop_compose! {
    /// A packet in good form as often as not: hostile values inside a sound frame.
    fn hostile()(
        kind in 0_u8..10,
        options in proptest::collection::vec(
            (prop_oneof![Just(12_u8), Just(43), Just(50), Just(51), Just(52), Just(54),
                Just(55), Just(57), Just(60), Just(61), Just(77), Just(82), Just(93), Just(94),
                Just(97), Just(175), any::<u8>()],
             prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..20),
                proptest::collection::vec(any::<u8>(), 0..=255),
                Just(b"PXEClient:Arch:00007:UNDI:003000".to_vec()),
                Just(b"HTTPClient:Arch:00016".to_vec()),
                Just(b"iPXE".to_vec()),
            ]), 0..14),
        header in proptest::collection::vec((0_usize..236, any::<u8>()), 0..12),
        tail in proptest::collection::vec(any::<u8>(), 0..30),
        end: bool,
        cut in 0_usize..4,
    ) -> Vec<u8> {
        let mut made = packet(kind);
        for (code, data) in options {
            made = made.option(code, &data);
        }
        for (at, byte) in header {
            made = made.at(at, &[byte]);
        }
        made.end = end;
        let mut bytes = made.raw(&tail).bytes();
        bytes.truncate(bytes.len() - cut);
        bytes
    }
}

fn boots() -> impl Strategy<Value = (Shape, Boot)> {
    let boot = prop_oneof![
        Just(Boot::Nothing),
        "[a-z.]{1,140}".prop_map(Boot::TftpLoader),
        "[a-z.]{1,140}".prop_map(Boot::HttpLoader),
        Just(Boot::Script),
    ];
    let shape = prop_oneof![
        Just(Shape::Full),
        Just(Shape::Inform),
        Just(Shape::Proxy),
        Just(Shape::Nak)
    ];
    (shape, boot)
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        let _ = parse(&bytes);
        let mut framed = packet(1).bytes();
        framed.extend_from_slice(&bytes);
        let _ = parse(&framed);
    }

    /// Whatever was understood, the answer is in good form, within the client's size, and
    /// echoes what it must.
    #[test]
    fn answers_are_well_formed(
        bytes in hostile(),
        (shape, boot) in boots(),
        seconds: u32,
        own in proptest::collection::btree_map(any::<u8>(), "[0-9a-f]{0,700}", 0..6),
        url in "[a-z]{0,300}",
    ) {
        let Ok(Packet::Request(request)) = parse(&bytes) else { return Ok(()); };
        let mut range = range();
        // What must be a certain length is an admin's to break, and validated elsewhere.
        range.options = own.into_iter().filter(|(c, _)| *c > 199).collect();
        let kind = match shape {
            Shape::Nak => ReplyKind::Nak(NakReason::Taken),
            Shape::Inform => ReplyKind::Ack,
            Shape::Full | Shape::Proxy => ReplyKind::Offer,
        };
        let mut reply = reply(kind, shape, if shape == Shape::Nak { Boot::Nothing } else { boot });
        reply.lease_seconds = reply.lease_seconds.map(|_| seconds);
        let frame = Frame { script_url: Some(&url), ..frame(&range) };
        let bytes = encode(&request, &reply, &frame);
        prop_assert!(bytes.len() <= usize::from(request.max_size.min(1500)) - 28);
        let got = match check(&bytes) {
            Ok(got) => got,
            Err(why) => return Err(TestCaseError::fail(why)),
        };
        prop_assert_eq!(u32::from_be_bytes(got.bytes[4..8].try_into().unwrap()), request.xid);
        prop_assert_eq!(got.bytes[28..34].to_vec(), request.mac.octets().to_vec());
        let mut echoed = vec![(82, &request.relay_information)];
        if request.client_identifier.as_ref().is_some_and(|id| id.len() < 100) {
            echoed.push((61, &request.client_identifier));
        }
        for (code, sent) in echoed {
            let left_out = code == 82 && got.get(82).is_none()
                && sent.as_ref().is_some_and(|d| d.len() > 200);
            prop_assert!(left_out || got.get(code) == sent.as_deref(), "option {}", code);
        }
    }

    /// A reply has no byte that we did not set: where the request is full of poison, none of
    /// it comes back but in what is echoed.
    #[test]
    fn nothing_of_the_request_leaks(poison in 0xa0_u8..0xf0, (shape, boot) in boots()) {
        let clean = packet(DISCOVER).pxe(7);
        let mut dirty = clean.clone()
            .at(8, &[poison; 2])
            .at(16, &[poison; 8])
            .at(34, &[poison; 10])
            .at(44, &[poison; 64])
            .at(108, &[poison; 128])
            .option(12, &[poison; 30])
            .option(81, &[poison; 30])
            .option(125, &[poison; 200])
            .option(224, &[poison; 200])
            .bytes();
        dirty.extend_from_slice(&[poison; 300]);
        let Ok(Packet::Request(dirty)) = parse(&dirty) else { panic!("refused"); };
        let range = range();
        let reply = reply(ReplyKind::Offer, shape, boot);
        prop_assert_eq!(
            encode(&dirty, &reply, &frame(&range)),
            encode(&request(&clean), &reply, &frame(&range))
        );
    }
}
