//! Replies in form: size, fixed fields, echoes, times, and who speaks in a request.

use super::*;

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
