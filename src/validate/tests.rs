//! Tables: what is taken, what is refused, and that every violation is told at once.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::*;
use crate::model::{
    BootMethod, BootMode, Client, DiskMode, Image, ImageFormat, ImageKind, MacAddr, NetworkRange,
    PhoneHome, RangeMode, Serve, UnreadyAction,
};

fn map(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap()
}

fn new_client() -> Client {
    Client {
        id: Uuid::nil(),
        mac_address: MacAddr([0; 6]),
        more_macs: vec![],
        hostname: String::new(),
        ip_address: None,
        assigned_image_id: None,
        boot_mode: BootMode::Pxe,
        cpu_cores: 2,
        memory_mb: 2048,
        network_config: None,
        custom_boot_params: None,
        enabled: true,
        disk_mode: DiskMode::Ephemeral,
        ring: None,
        pinned_version_id: None,
        auto_registered: false,
        created_at: chrono::DateTime::UNIX_EPOCH,
        updated_at: chrono::DateTime::UNIX_EPOCH,
        last_boot_at: None,
        boot_count: 0,
    }
}

fn new_range() -> NetworkRange {
    NetworkRange {
        id: Uuid::nil(),
        name: String::new(),
        network: "0.0.0.0/32".parse().unwrap(),
        mode: RangeMode::Full,
        serve: Serve::All,
        unready: UnreadyAction::Wait,
        always_chainload: false,
        pools: vec![],
        exclusions: vec![],
        gateway: None,
        dns: vec![],
        domain: None,
        search: vec![],
        ntp: vec![],
        mtu: None,
        routes: vec![],
        lease_seconds: 3600,
        options: BTreeMap::new(),
    }
}

fn new_image() -> Image {
    Image {
        id: Uuid::from_u128(7),
        name: String::new(),
        description: None,
        os_type: None,
        size_bytes: 0,
        format: ImageFormat::Raw,
        kind: ImageKind::Kernel,
        path: String::new(),
        zfs_dataset: None,
        cmdline: String::new(),
        boot_method: BootMethod::San,
        sha256: None,
        source_format: None,
        phone_home: PhoneHome::Auto,
        tags: None,
        is_template: false,
        parent_image_id: None,
        created_at: chrono::DateTime::UNIX_EPOCH,
        updated_at: chrono::DateTime::UNIX_EPOCH,
        files: vec![],
    }
}

const DEBIAN: Uuid = Uuid::from_u128(1);

fn find_image(name: &str) -> Option<Uuid> {
    (name == "debian" || name == DEBIAN.to_string()).then_some(DEBIAN)
}

/// The image has the versions `base` (of its own id) and `mended`.
fn find_version(image: Uuid, name: &str) -> Option<Uuid> {
    match name {
        "base" => Some(image),
        "mended" => Some(Uuid::from_u128(0x3e)),
        _ => (name.parse() == Ok(Uuid::from_u128(0x3e))).then_some(Uuid::from_u128(0x3e)),
    }
}

fn read_client(body: Value, write: Write, strictness: Strictness) -> Result<Client, Violations> {
    let mut client_row = new_client();
    let ranges = [Arc::new(lan())];
    let reader = Reader::new(map(body), write, strictness);
    client(reader, &mut client_row, &ranges, find_image, find_version).map(|()| client_row)
}

fn read_range(body: Value, strictness: Strictness) -> Result<NetworkRange, Violations> {
    let mut row = new_range();
    range(Reader::new(map(body), Write::Create, strictness), &mut row).map(|()| row)
}

fn read_image(body: Value) -> Result<Image, Violations> {
    let mut row = new_image();
    let reader = Reader::new(map(body), Write::Create, Strictness::Lenient);
    image(reader, &mut row).map(|()| row)
}

/// The LAN that reserved addresses are judged by.
fn lan() -> NetworkRange {
    NetworkRange {
        network: "10.0.0.0/24".parse().unwrap(),
        gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
        ..new_range()
    }
}

fn fields(violations: &Violations) -> Vec<&str> {
    violations.iter().map(|v| v.field.as_str()).collect()
}

/// `extra` over a body that is right.
fn with(base: Value, extra: Value) -> Value {
    let mut all = map(base);
    all.extend(map(extra));
    Value::from(all)
}

fn right_client() -> Value {
    json!({"mac_address": "52:54:00:12:34:56", "hostname": "pc-01"})
}

fn right_range() -> Value {
    json!({"network": "10.0.0.0/24", "mode": "full"})
}

#[test]
fn every_violation_of_a_client_is_told_at_once() {
    let refused = read_client(
        json!({
            "mac_address": "ff:ff:ff:ff:ff:ff",
            "more_macs": ["52:54:00:12:34:56", 7],
            "hostname": "${x}",
            "ip_address": "10.0.0.255",
            "assigned_image": "windows",
            "boot_mode": "coreboot",
            "cpu_cores": 129,
            "memory_mb": 63,
            "network_config": {"gateway": "x", "mtu": 10, "color": "red", "kernel_ip": "maybe"},
            "custom_boot_params": "a && b",
            "enabled": "yes",
            "boot_count": 5,
            "colour": "blue",
        }),
        Write::Create,
        Strictness::Strict,
    )
    .unwrap_err();
    assert_eq!(
        fields(&refused),
        [
            "mac_address",
            "more_macs[1]",
            "hostname",
            "ip_address",
            "assigned_image",
            "boot_mode",
            "cpu_cores",
            "memory_mb",
            "network_config.gateway",
            "network_config.mtu",
            "network_config.kernel_ip",
            "network_config.color",
            "custom_boot_params",
            "enabled",
            "boot_count",
            "colour",
        ]
    );
}

#[test]
fn what_is_missing_is_told_too() {
    let refused = read_client(json!({}), Write::Create, Strictness::Lenient).unwrap_err();
    assert_eq!(fields(&refused), ["mac_address", "hostname"]);
    assert!(read_client(json!({}), Write::Change, Strictness::Lenient).is_ok());
    let refused = read_range(json!({}), Strictness::Lenient).unwrap_err();
    assert_eq!(fields(&refused), ["network", "mode"]);
    let refused = read_image(json!({})).unwrap_err();
    assert_eq!(fields(&refused), ["name"]);
}

#[test]
fn a_whole_client_is_read() {
    let body = with(
        right_client(),
        json!({
            "more_macs": ["52:54:00:12:34:57"],
            "ip_address": "10.0.0.20",
            "assigned_image": "debian",
            "boot_mode": "uefi",
            "network_config": {"dns": ["10.0.0.2"], "mtu": 9000, "kernel_ip": "dhcp"},
            "custom_boot_params": "quiet console=ttyS0,115200",
        }),
    );
    let client = read_client(body, Write::Create, Strictness::Strict).unwrap();
    assert_eq!(client.hostname, "pc-01");
    assert_eq!(client.assigned_image_id, Some(DEBIAN));
    assert_eq!(client.network_config.as_ref().unwrap().mtu, Some(9000));
    assert_eq!(client.macs().count(), 2);
}

#[test]
fn a_client_is_pinned_to_a_version_of_its_own_image() {
    let mended = Some(Uuid::from_u128(0x3e));
    let pinned = |body| {
        let read = read_client(
            with(right_client(), body),
            Write::Create,
            Strictness::Strict,
        );
        read.map(|c| (c.ring, c.pinned_version_id))
            .map_err(|refused| refused.to_string())
    };
    let debian = |more| with(json!({"assigned_image": "debian"}), more);
    assert_eq!(pinned(debian(json!({}))), Ok((None, None)));
    let body = json!({"ring": "lab", "pinned_version": "mended"});
    assert_eq!(pinned(debian(body)), Ok((Some("lab".into()), mended)));
    let body = json!({"pinned_version_id": Uuid::from_u128(0x3e)});
    assert_eq!(pinned(debian(body)), Ok((None, mended)));
    let body = json!({"pinned_version": null, "ring": null});
    assert_eq!(pinned(debian(body)), Ok((None, None)));
    for (body, why) in [
        (
            debian(json!({"pinned_version": "other"})),
            "pinned_version: the client's image has no version `other`",
        ),
        (
            json!({"pinned_version": "mended"}),
            "pinned_version: needs an assigned image, of which it is a version",
        ),
        (
            debian(json!({"pinned_version": 3})),
            "pinned_version: must be the name or id of a version",
        ),
        (
            debian(json!({"pinned_version": "base", "pinned_version_id": Uuid::from_u128(0x3e)})),
            "pinned_version: names another version than `pinned_version_id`",
        ),
    ] {
        assert_eq!(pinned(body.clone()), Err(why.to_owned()), "{body}");
    }

    // Another image unpins it.
    let mut row = new_client();
    row.assigned_image_id = Some(Uuid::from_u128(9));
    row.pinned_version_id = Some(Uuid::from_u128(8));
    let Value::Object(body) = json!({"assigned_image": "debian"}) else {
        unreachable!()
    };
    let reader = Reader::new(body, Write::Change, Strictness::Strict);
    client(reader, &mut row, &[], find_image, find_version).unwrap();
    assert_eq!(
        (row.assigned_image_id, row.pinned_version_id),
        (Some(DEBIAN), None)
    );
}

#[test]
fn bounds() {
    for (field, good, bad) in [
        (
            "cpu_cores",
            vec![json!(1), json!(128)],
            vec![
                json!(0),
                json!(129),
                json!(-1),
                json!(1.5),
                json!("2"),
                json!(1e30),
                json!(null),
            ],
        ),
        (
            "memory_mb",
            vec![json!(64), json!(1_048_576)],
            vec![json!(63), json!(1_048_577), json!(u64::MAX)],
        ),
        (
            "ip_address",
            vec![json!("10.0.0.2"), json!(null)],
            vec![
                json!("10.0.0.0"),
                json!("10.0.0.1"),
                json!("127.0.0.1"),
                json!("224.0.0.1"),
                json!("0.0.0.1"),
                json!("10.0.0.300"),
                json!("::1"),
                json!("010.0.0.2"),
            ],
        ),
        (
            "hostname",
            vec![json!("a"), json!("pc-1.lab")],
            vec![
                json!(""),
                json!("-a"),
                json!("a b"),
                json!("<script>"),
                json!("x'; DROP TABLE clients; --"),
                json!("a\nb"),
                json!("a".repeat(64)),
                json!(null),
            ],
        ),
        (
            "custom_boot_params",
            vec![
                json!("quiet splash"),
                json!("a=$x"),
                json!("a&b|c"),
                json!(null),
                json!(""),
            ],
            vec![
                json!("a\nb"),
                json!("a\rb"),
                json!("a\tb"),
                json!("${net0/mac}"),
                json!("a||b"),
                json!("a;b"),
                json!("a\u{0}b"),
                json!("\u{2028}"),
                json!("dls.report=http://x/"),
                json!("x".repeat(2000)),
            ],
        ),
        (
            "network_config",
            vec![json!(null), json!({}), json!({"domain": "lab.example"})],
            vec![
                json!([]),
                json!("x"),
                json!({"dns": "10.0.0.1"}),
                json!({"search": ["a b"]}),
                json!({"dns": [null]}),
            ],
        ),
    ] {
        for value in good {
            let body = with(right_client(), json!({field: value}));
            let read = read_client(body, Write::Create, Strictness::Lenient);
            assert!(read.is_ok(), "{field} {value}: {read:?}");
        }
        for value in bad {
            let body = with(right_client(), json!({field: value}));
            let read = read_client(body, Write::Create, Strictness::Lenient);
            let refused = read.expect_err(&format!("{field} {value}"));
            assert!(
                refused.iter().all(|v| v.field.starts_with(field)),
                "{refused}"
            );
        }
    }
}

#[test]
fn ranges_fit_together() {
    for (extra, field) in [
        (json!({"network": "10.0.0.0"}), "network"),
        (json!({"network": "10.0.0.0/33"}), "network"),
        (json!({"network": "10.0.0.0/255.255.255.0"}), "network"),
        (json!({"network": "224.0.0.0/8"}), "network"),
        (json!({"network": "fd00::/64"}), "network"),
        (json!({"network": "0.0.0.0/0"}), "network"),
        (json!({"mode": "half"}), "mode"),
        (json!({"pools": ["10.0.1.1-10.0.1.9"]}), "pools[0]"),
        (json!({"pools": ["10.0.0.0-10.0.0.9"]}), "pools[0]"),
        (json!({"pools": ["10.0.0.250-10.0.0.255"]}), "pools[0]"),
        (json!({"pools": ["10.0.0.9-10.0.0.1"]}), "pools[0]"),
        (
            json!({"pools": [{"first": "10.0.0.9", "last": "10.0.0.1"}]}),
            "pools[0]",
        ),
        (json!({"pools": [{"first": "10.0.0.9"}]}), "pools[0]"),
        (
            json!({"pools": ["10.0.0.10-10.0.0.20", "10.0.0.20-10.0.0.30"]}),
            "pools[1]",
        ),
        (json!({"exclusions": ["10.0.1.1"]}), "exclusions[0]"),
        (
            json!({"exclusions": ["10.0.0.5-10.0.0.7", "10.0.0.7"]}),
            "exclusions[1]",
        ),
        (json!({"gateway": "10.0.1.1"}), "gateway"),
        (json!({"gateway": "10.0.0.255"}), "gateway"),
        (json!({"routes": ["10.1.0.0/16=10.9.0.1"]}), "routes[0]"),
        (json!({"routes": ["10.1.0.0/16"]}), "routes[0]"),
        (json!({"mtu": 575}), "mtu"),
        (json!({"mtu": 9217}), "mtu"),
        (json!({"lease_seconds": 59}), "lease_seconds"),
        (json!({"lease_seconds": 31_536_001}), "lease_seconds"),
        (json!({"options": {"53": "01"}}), "options.53"),
        (json!({"options": {"0": "01"}}), "options.0"),
        (json!({"options": {"255": "01"}}), "options.255"),
        (json!({"options": {"256": "01"}}), "options.256"),
        (json!({"options": {"+43": "01"}}), "options.+43"),
        (json!({"options": {"43": "0"}}), "options.43"),
        (json!({"options": {"43": "xx"}}), "options.43"),
        (json!({"options": {"43": ""}}), "options.43"),
        (json!({"options": {"43": "00".repeat(256)}}), "options.43"),
        (json!({"options": {"43": 1}}), "options.43"),
        (json!({"options": []}), "options"),
        (json!({"always_chainload": 1}), "always_chainload"),
        (json!({"domain": "a b"}), "domain"),
        (json!({"name": "a\nb"}), "name"),
        (
            json!({"name": "0199ef10-0000-7000-8000-000000000000"}),
            "name",
        ),
    ] {
        let shown = extra.to_string();
        let read = read_range(with(right_range(), extra), Strictness::Lenient);
        let refused = read.expect_err(&shown);
        assert_eq!(fields(&refused), [field], "{shown}");
    }
    let range = read_range(
        json!({
            "network": "10.0.0.7/24", "mode": "full",
            "pools": ["10.0.0.100-10.0.0.199", {"first": "10.0.0.50", "last": "10.0.0.60"}],
            "exclusions": ["10.0.0.150"], "gateway": "10.0.0.1", "dns": ["10.0.0.1", "10.0.0.1"],
            "search": ["lab.example"], "routes": ["10.1.0.0/16=10.0.0.2", {"to": "10.2.0.0/16", "via": "0.0.0.0"}],
            "options": {"43": "01:04:AA:bb:cc:dd"}, "mtu": 1500,
        }),
        Strictness::Lenient,
    )
    .unwrap();
    assert_eq!(range.name, "10.0.0.0/24");
    assert_eq!(range.network.to_string(), "10.0.0.0/24");
    assert_eq!(range.dns.len(), 1);
    assert_eq!(
        range.options.get(&43).map(String::as_str),
        Some("0104aabbccdd")
    );
    assert_eq!(range.routes.len(), 2);
}

#[test]
fn a_range_named_by_its_network_follows_it() {
    let mut row = read_range(right_range(), Strictness::Strict).unwrap();
    let change = |row: &mut NetworkRange, body: Value| {
        range(
            Reader::new(map(body), Write::Change, Strictness::Strict),
            row,
        )
        .unwrap();
    };
    change(&mut row, json!({"network": "10.0.4.0/22"}));
    assert_eq!(row.name, "10.0.4.0/22");
    change(&mut row, json!({"name": "lab"}));
    change(&mut row, json!({"network": "10.0.8.0/22"}));
    assert_eq!(row.name, "lab");
}

#[test]
fn strict_mode_refuses_what_the_lenient_one_puts_right() {
    for extra in [
        json!({"mac_address": "52-54-00-12-34-56"}),
        json!({"mac_address": "525400123456"}),
        json!({"mac_address": "52:54:00:AB:34:56"}),
        json!({"hostname": " pc-01"}),
        json!({"more_macs": ["52:54:00:12:34:57", "52:54:00:12:34:57"]}),
        json!({"more_macs": ["52:54:00:12:34:56"]}),
        json!({"ip_address": "192.168.7.7"}),
        json!({"custom_boot_params": "quiet "}),
    ] {
        let body = with(right_client(), extra);
        let lenient = read_client(body.clone(), Write::Create, Strictness::Lenient);
        assert!(lenient.is_ok(), "{body}: {lenient:?}");
        let strict = read_client(body.clone(), Write::Create, Strictness::Strict);
        assert!(strict.is_err(), "{body}");
    }
    for extra in [
        json!({"network": "10.0.0.7/24"}),
        json!({"options": {"43": "AA"}}),
        json!({"options": {"43": "0a:0b"}}),
        json!({"dns": ["10.0.0.1", "10.0.0.1"]}),
    ] {
        let body = with(right_range(), extra);
        assert!(
            read_range(body.clone(), Strictness::Lenient).is_ok(),
            "{body}"
        );
        assert!(
            read_range(body.clone(), Strictness::Strict).is_err(),
            "{body}"
        );
    }
}

#[test]
fn images() {
    let good = json!({
        "name": "debian-12.7_x", "cmdline": "root=/dev/nfs quiet", "phone_home": "expected",
        "description": "two\nlines", "tags": {"room": ["a", 1, null]}, "is_template": true,
    });
    assert!(read_image(good).is_ok());
    for (extra, field) in [
        (json!({"name": ""}), "name"),
        (json!({"name": "../x"}), "name"),
        (json!({"name": "a/b"}), "name"),
        (json!({"name": "a b"}), "name"),
        (json!({"name": "-a"}), "name"),
        (json!({"name": "a".repeat(65)}), "name"),
        (
            json!({"name": "0199ef10-0000-7000-8000-000000000000"}),
            "name",
        ),
        (json!({"cmdline": "a\nchain http://evil/"}), "cmdline"),
        (json!({"cmdline": null}), "cmdline"),
        (json!({"description": "a\u{0}"}), "description"),
        (json!({"os_type": "a\u{1b}[2J"}), "os_type"),
        (json!({"tags": {"a": "\u{0}"}}), "tags"),
        (json!({"tags": {"\u{0}": 1}}), "tags"),
        (json!({"tags": []}), "tags"),
        (
            json!({"parent_image_id": "00000000-0000-0000-0000-000000000007"}),
            "parent_image_id",
        ),
        (json!({"parent_image_id": "x"}), "parent_image_id"),
        (json!({"size_bytes": 1}), "size_bytes"),
        (json!({"path": "/etc/passwd"}), "path"),
    ] {
        let shown = extra.to_string();
        let refused = read_image(with(json!({"name": "x"}), extra)).expect_err(&shown);
        assert_eq!(fields(&refused), [field], "{shown}");
    }
}

#[test]
fn what_get_answered_can_be_put_back() {
    let client_row = read_client(right_client(), Write::Create, Strictness::Strict).unwrap();
    let body = serde_json::to_value(&client_row).unwrap();
    let again = read_client(body, Write::Replace, Strictness::Strict).unwrap();
    assert_eq!(again, client_row);
    let range_row = read_range(
        with(right_range(), json!({"pools": ["10.0.0.5-10.0.0.9"], "routes": ["10.1.0.0/16=10.0.0.2"], "options": {"43": "01"}})),
        Strictness::Strict,
    )
    .unwrap();
    let mut again = new_range();
    let body = map(serde_json::to_value(&range_row).unwrap());
    range(
        Reader::new(body, Write::Replace, Strictness::Strict),
        &mut again,
    )
    .unwrap();
    assert_eq!(again, range_row);
}

#[test]
fn an_image_is_changed_by_name_or_id_whichever_was_edited() {
    let other = Uuid::from_u128(2);
    let find = |name: &str| match name {
        "debian" => Some(DEBIAN),
        "other" => Some(other),
        id => id.parse().ok(),
    };
    for (id, name, want) in [
        (DEBIAN, "other", other),
        (other, "debian", other),
        (DEBIAN, "debian", DEBIAN),
    ] {
        let mut row = new_client();
        row.assigned_image_id = Some(DEBIAN);
        let body = map(json!({"assigned_image_id": id, "assigned_image": name}));
        client(
            Reader::new(body, Write::Change, Strictness::Strict),
            &mut row,
            &[],
            find,
            find_version,
        )
        .unwrap();
        assert_eq!(row.assigned_image_id, Some(want));
    }
}

proptest! {
    /// Whatever boot text is taken, no line of a script can be made of it.
    #[test]
    fn boot_text_is_one_harmless_line(text in any::<String>()) {
        if let Ok(taken) = rules::boot_text(&Value::from(text), Strictness::Lenient) {
            prop_assert!(taken.chars().all(|c| c.is_ascii_graphic() || c == ' '));
            for bad in ["${", "&&", "||", ";"] {
                prop_assert!(!taken.contains(bad));
            }
        }
    }

    /// No value makes the rules panic, whatever its type.
    #[test]
    fn rules_never_panic(text in any::<String>(), number in any::<i64>()) {
        for value in [json!(text), json!(number), json!([text]), json!({"first": text, "last": number}), json!({"to": text, "via": text})] {
            for field in ["mac_address", "hostname", "ip_address", "network", "pools", "routes", "options", "network_config", "cmdline", "name", "tags"] {
                let body = json!({field: value});
                let _ = read_client(body.clone(), Write::Change, Strictness::Lenient);
                let _ = read_range(body.clone(), Strictness::Strict);
                let _ = read_image(body);
            }
        }
    }
}

#[test]
fn what_a_row_has_had_does_not_hinder_other_changes() {
    let mut client_row = read_client(right_client(), Write::Create, Strictness::Strict).unwrap();
    client_row.ip_address = Some(Ipv4Addr::new(192, 168, 7, 7));
    let reader = Reader::new(
        map(json!({"enabled": false})),
        Write::Change,
        Strictness::Strict,
    );
    client(
        reader,
        &mut client_row,
        &[Arc::new(lan())],
        find_image,
        find_version,
    )
    .unwrap();
    assert!(!client_row.enabled);
    let body = with(
        right_range(),
        json!({"pools": ["10.0.0.5-10.0.0.9"], "exclusions": ["10.0.0.7"]}),
    );
    let mut row = read_range(body, Strictness::Strict).unwrap();
    let reader = Reader::new(map(json!({"pools": []})), Write::Change, Strictness::Strict);
    range(reader, &mut row).unwrap();
}
