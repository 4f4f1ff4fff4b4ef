//! What replies say: the boot part, the options of the network, an admin's own codes.

use super::*;

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
    assert_eq!(got.get(150), None);
    let asks = packet(DISCOVER).pxe(7).option(55, &[1, 3, 66, 150]);
    let got = answer(&asks, &offer(Boot::TftpLoader("snponly.efi".into())));
    assert_eq!(got.addresses(150), ["10.0.0.1"], "RFC 5859");
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
