//! Our replies, taken apart by an independent implementation: scapy's BOOTP and DHCP layers.
//!
//! A few dozen replies to real and made requests are written to a folder, scapy reads them all
//! in one go and prints what it saw, and each value is held against what we meant.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use dls::dhcp::decide::{Boot, Destination, NakReason, Reply, ReplyKind, Shape};
use dls::dhcp::wire::{Frame, Packet, Request, encode, parse};
use dls::model::{
    BootMode, Client, DiskMode, MacAddr, NetworkRange, RangeMode, Route, Serve, Timestamp,
    UnreadyAction,
};
use uuid::Uuid;

use crate::fuzz_corpus::bodies::dhcp_packet::{self as packet, DISCOVER, INFORM, REQUEST, packet};

const SCRIPT: &str = "http://10.0.0.1:8069/b/0123456789abcdef0123456789abcdef.\
                      0123456789abcdef0123456789abcdef/boot.ipxe";

/// Prints, for each file, the fixed fields and every option, values as scapy has them.
const DISSECTOR: &str = r#"
import json, os, sys
from scapy.layers.dhcp import BOOTP, DHCP
def plain(value):
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return "|".join(map(str, value))
    return str(value)
def names(data):
    """RFC 1035 section 4.1.4, over the joined data of option 119 (RFC 3397)."""
    def name(at):
        parts = []
        while data[at]:
            if data[at] >= 0xc0:
                rest, _ = name((data[at] & 0x3f) << 8 | data[at + 1])
                return parts + rest, at + 2
            parts.append(data[at + 1:at + 1 + data[at]].decode())
            at += 1 + data[at]
        return parts, at + 1
    found, at = [], 0
    while at < len(data):
        parts, at = name(at)
        found.append(".".join(parts))
    return ",".join(found)
out = {}
for name in sorted(os.listdir(sys.argv[1])):
    p = BOOTP(open(os.path.join(sys.argv[1], name), "rb").read())
    seen = {
        "op": str(p.op), "htype": str(p.htype), "hlen": str(p.hlen), "hops": str(p.hops),
        "xid": str(p.xid), "flags": str(int(p.flags)), "ciaddr": p.ciaddr,
        "yiaddr": p.yiaddr, "siaddr": p.siaddr, "giaddr": p.giaddr,
        "chaddr": p.chaddr[:6].hex(), "sname": p.sname.rstrip(b"\0").decode(),
        "file": p.file.rstrip(b"\0").decode(), "layers": p.summary(),
    }
    for option in p[DHCP].options:
        if isinstance(option, tuple):
            name_, values = option[0], option[1:]
            seen["option " + str(name_)] = ",".join(plain(v) for v in values)
            if name_ == 119:
                seen["search"] = names(values[0])
        else:
            seen.setdefault("marks", "")
            if option != "pad":
                seen["marks"] += str(option) + " "
    out[name] = seen
json.dump(out, sys.stdout)
"#;

type Seen = BTreeMap<String, String>;

/// A key of scapy's and the value under it.
type Want = (&'static str, String);

/// Who asks: a name, its packet, its boot part, and what scapy must then see of that part.
type Speaker = (&'static str, packet::Packet, Boot, Vec<Want>);

/// A reply and what scapy must see in it; an empty value means that it must not be there.
struct Case {
    name: String,
    bytes: Vec<u8>,
    want: Vec<Want>,
}

fn request(packet: &packet::Packet) -> Request {
    match parse(&packet.bytes()) {
        Ok(Packet::Request(request)) => *request,
        other => panic!("{other:?}"),
    }
}

fn range() -> NetworkRange {
    let ip = packet::ip;
    NetworkRange {
        id: Uuid::nil(),
        name: "lab".into(),
        network: "10.0.0.0/22".parse().unwrap(),
        mode: RangeMode::Full,
        serve: Serve::All,
        unready: UnreadyAction::Wait,
        always_chainload: false,
        pools: vec!["10.0.0.100-10.0.0.199".parse().unwrap()],
        exclusions: Vec::new(),
        gateway: Some(ip("10.0.3.254")),
        dns: vec![ip("10.0.0.53"), ip("10.0.0.54")],
        domain: Some("lab.example".into()),
        search: vec!["lab.example".into(), "example".into()],
        ntp: vec![ip("10.0.0.123")],
        mtu: Some(1400),
        routes: vec![Route {
            to: "192.168.7.0/24".parse().unwrap(),
            via: ip("10.0.0.7"),
        }],
        lease_seconds: 3600,
        options: [(224, "c0ffee".to_owned()), (17, "2f726f6f74".to_owned())].into(),
    }
}

fn client() -> Client {
    let then = Timestamp::from_timestamp(1_700_000_000, 0).unwrap();
    Client {
        id: Uuid::nil(),
        mac_address: MacAddr(packet::MAC),
        more_macs: Vec::new(),
        hostname: "pc-01".into(),
        ip_address: None,
        assigned_image_id: None,
        boot_mode: BootMode::Uefi,
        cpu_cores: 1,
        memory_mb: 1024,
        network_config: None,
        custom_boot_params: None,
        enabled: true,
        disk_mode: DiskMode::Ephemeral,
        ring: None,
        pinned_version_id: None,
        auto_registered: false,
        created_at: then,
        updated_at: then,
        last_boot_at: None,
        boot_count: 0,
    }
}

fn write(request: &Request, reply: &Reply) -> Vec<u8> {
    let (range, client) = (range(), client());
    encode(
        request,
        reply,
        &Frame {
            server_ip: Ipv4Addr::new(10, 0, 0, 1),
            range: Some(&range),
            client: Some(&client),
            script_url: Some(SCRIPT),
            loader_base_url: "http://10.0.0.1:8069/loader/",
        },
    )
}

/// An operating system, ROMs and iPXE.
fn speakers() -> Vec<Speaker> {
    let hex = |text: &str| text.bytes().map(|b| format!("{b:02x}")).collect::<String>();
    let id = |code| {
        let bytes = packet::machine_id();
        (code, bytes.iter().map(|b| format!("{b:02x}")).collect())
    };
    let url = "http://10.0.0.1:8069/loader/snponly.efi";
    let tftp = |name: &str| {
        vec![
            ("option vendor_class_id", hex("PXEClient")),
            ("option vendor_specific", "060108ff".into()),
            ("option boot-file-name", hex(name)),
            ("option tftp_server_name", hex("10.0.0.1")),
            ("file", name.to_owned()),
            ("sname", "10.0.0.1".into()),
            ("siaddr", "10.0.0.1".into()),
            id("option pxe_client_machine_identifier"),
        ]
    };
    vec![
        (
            "os",
            packet(DISCOVER),
            Boot::Nothing,
            vec![
                ("option vendor_class_id", String::new()),
                ("option boot-file-name", String::new()),
                ("file", String::new()),
                ("siaddr", "0.0.0.0".into()),
            ],
        ),
        (
            "bios",
            packet(DISCOVER).pxe(0),
            Boot::TftpLoader("undionly.kpxe".into()),
            tftp("undionly.kpxe"),
        ),
        (
            "uefi",
            packet(DISCOVER).pxe(7),
            Boot::TftpLoader("snponly.efi".into()),
            tftp("snponly.efi"),
        ),
        (
            "http",
            packet(DISCOVER).http(16),
            Boot::HttpLoader("snponly.efi".into()),
            vec![
                ("option vendor_class_id", hex("HTTPClient")),
                ("option vendor_specific", String::new()),
                ("option boot-file-name", hex(url)),
                ("file", url.to_owned()),
            ],
        ),
        (
            "ipxe",
            packet(DISCOVER).pxe(7).ipxe(),
            Boot::Script,
            vec![
                ("option boot-file-name", hex(SCRIPT)),
                ("file", SCRIPT.to_owned()),
            ],
        ),
    ]
}

/// Every shape for every speaker, directly and through a relay.
fn cases() -> Vec<Case> {
    let kinds = [
        ("offer", ReplyKind::Offer, Shape::Full),
        ("ack", ReplyKind::Ack, Shape::Full),
        ("inform", ReplyKind::Ack, Shape::Inform),
        ("proxy", ReplyKind::Offer, Shape::Proxy),
        ("nak", ReplyKind::Nak(NakReason::WrongNetwork), Shape::Nak),
    ];
    let text = |s: &str| s.to_owned();
    let mut cases = Vec::new();
    for (speaker, asked, boot, boot_part) in speakers() {
        for relayed in [false, true] {
            for (kind_name, kind, shape) in kinds {
                let nothing = boot == Boot::Nothing;
                if shape == Shape::Proxy && nothing {
                    continue;
                }
                let mut asked = asked
                    .clone()
                    .option(57, &1472_u16.to_be_bytes())
                    .option(61, &[1, 0x52, 0x54, 0, 0xaa, 0xbb, 1]);
                if shape == Shape::Inform {
                    asked = asked.ciaddr("10.0.0.9");
                    asked.options[2] = INFORM;
                } else if kind != ReplyKind::Offer {
                    asked.options[2] = REQUEST;
                }
                if relayed {
                    asked = asked.giaddr("10.0.3.254").option(82, &[1, 4, 9, 8, 7, 6]);
                }
                let (full, nak) = (shape == Shape::Full, shape == Shape::Nak);
                let reply = Reply {
                    kind,
                    shape,
                    your_ip: full.then(|| Ipv4Addr::new(10, 0, 0, 150)),
                    lease_seconds: full.then_some(3600),
                    is_durable: false,
                    boot: if nak { Boot::Nothing } else { boot.clone() },
                    to: Destination::Broadcast,
                    refusal: None,
                };
                let message = match kind {
                    ReplyKind::Offer => "2",
                    ReplyKind::Ack => "5",
                    ReplyKind::Nak(_) => "6",
                };
                let when = |there: bool, value: &str| text(if there { value } else { "" });
                let net = full || shape == Shape::Inform;
                let mut want = vec![
                    ("op", text("2")),
                    ("htype", text("1")),
                    ("hlen", text("6")),
                    ("hops", text("0")),
                    ("xid", 0xdead_beef_u32.to_string()),
                    ("chaddr", text("525400aabb01")),
                    ("marks", text("end ")),
                    ("option message-type", text(message)),
                    ("option server_id", text("10.0.0.1")),
                    ("option client_id", text("01525400aabb01")),
                    ("yiaddr", text(if full { "10.0.0.150" } else { "0.0.0.0" })),
                    ("option lease_time", when(full, "3600")),
                    ("option renewal_time", when(full, "1800")),
                    ("option rebinding_time", when(full, "3150")),
                    ("option subnet_mask", when(net, "255.255.252.0")),
                    ("option router", when(net, "10.0.3.254")),
                    ("option name_server", when(net, "10.0.0.53,10.0.0.54")),
                    ("option domain", when(net, &hex(b"lab.example"))),
                    ("option hostname", when(net, &hex(b"pc-01"))),
                    ("option interface-mtu", when(net, "1400")),
                    ("option broadcast_address", when(net, "10.0.3.255")),
                    ("option NTP_server", when(net, "10.0.0.123")),
                    ("option root_disk_path", when(net, &hex(b"/root"))),
                    ("search", when(net, "lab.example,example")),
                    (
                        "option classless_static_routes",
                        when(net, "192.168.7.0/24:10.0.0.7|0.0.0.0/0:10.0.3.254"),
                    ),
                    ("option 175", when(net && speaker == "ipxe", "b00101")),
                    ("option 224", when(net, "c0ffee")),
                    (
                        "option error_message",
                        when(nak, &hex(b"that address belongs to another network")),
                    ),
                    (
                        "giaddr",
                        text(if relayed { "10.0.3.254" } else { "0.0.0.0" }),
                    ),
                    ("flags", text(if relayed && nak { "32768" } else { "0" })),
                    (
                        "option relay_agent_information",
                        when(relayed, "010409080706"),
                    ),
                ];
                if !nak {
                    want.extend(boot_part.clone());
                }
                cases.push(Case {
                    name: format!(
                        "{speaker}_{kind_name}_{}",
                        if relayed { "relayed" } else { "direct" }
                    ),
                    bytes: write(&request(&asked), &reply),
                    want,
                });
            }
        }
    }
    cases
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// scapy gives some options as text and some as bytes, by version: both mean the same.
fn same(seen: &str, want: &str) -> bool {
    seen == want || hex(seen.as_bytes()) == want || seen == hex(want.as_bytes())
}

fn dissect(cases: &[Case]) -> BTreeMap<String, Seen> {
    let folder = tempfile::tempdir().unwrap();
    for case in cases {
        fs::write(folder.path().join(&case.name), &case.bytes).unwrap();
    }
    // The distribution's own interpreter: another one in PATH does not see its packages.
    // It is given a minute: scapy can loop for ever on an option in bad form.
    let output = Command::new("timeout")
        .args(["60", "/usr/bin/python3", "-c", DISSECTOR])
        .arg(folder.path())
        .output()
        .expect("timeout: install the package coreutils");
    assert!(
        output.status.success(),
        "scapy does not run (status {}); install the package python3-scapy:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn scapy_reads_what_we_meant() {
    let cases = cases();
    assert!(cases.len() >= 36, "{} replies", cases.len());
    let seen = dissect(&cases);
    let mut wrong = Vec::new();
    for case in &cases {
        let seen = &seen[&case.name];
        for (key, want) in &case.want {
            let got = seen.get(*key).map_or("", String::as_str);
            if !same(got, want) {
                wrong.push(format!("{}: {key}: {got:?}, meant {want:?}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
