//! What each fuzz target does with its input. Shared by the targets and by the ordinary test
//! that replays the corpus; names no crate but `dls`.

#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each fuzz target uses one of these"
)]

use std::net::Ipv4Addr;

use dls::boot::path::BootPath;
use dls::dhcp::decide::{
    Arrival, Boot, BootFacts, Candidate, Decision, Destination, Facts, Loader, NakReason, Port,
    Reply, ReplyKind, Shape, Unknown, decide,
};
use dls::dhcp::pool::{Asker, Book, Reach};
use dls::dhcp::wire::{Frame, Packet, Request, RequestKind, encode, parse};
use dls::export::iscsi::machine::{Door, Fresh, Login, Secrets, Step};
use dls::export::iscsi::scsi::{cdb, lists};
use dls::export::iscsi::wire;
use dls::export::nbd::machine::negotiation::LONGEST_OPTION;
use dls::export::nbd::machine::{Act, Disk, Export, Negotiation, Offer, Turn, Way, judge};
use dls::export::nbd::wire::transmission::Request as NbdRequest;
use dls::model::{
    BootMode, Client, DiskMode, Lease, LeaseState, MacAddr, NetworkRange, RangeMode, Serve,
    Timestamp, UnreadyAction,
};
use dls::tftp;

#[path = "../tests/support/dhcp_packet.rs"]
pub mod dhcp_packet;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OTHERS: [MacAddr; 3] = [
    MacAddr([2, 0, 0, 0, 0, 1]),
    MacAddr([2, 0, 0, 0, 0, 2]),
    MacAddr([2, 0, 0, 0, 0, 3]),
];

/// Reads a packet and writes every kind of answer to it.
pub fn dhcp_scan(data: &[u8]) {
    let Ok(Packet::Request(request)) = parse(data) else {
        return;
    };
    let range = range(RangeMode::Full);
    let shapes = [
        (ReplyKind::Offer, Shape::Full),
        (ReplyKind::Ack, Shape::Inform),
        (ReplyKind::Offer, Shape::Proxy),
        (ReplyKind::Nak(NakReason::Taken), Shape::Nak),
    ];
    let boots = [
        Boot::Nothing,
        Boot::TftpLoader("undionly.kpxe".into()),
        Boot::HttpLoader("snponly.efi".into()),
        Boot::Script,
    ];
    for (kind, shape) in shapes {
        for boot in &boots {
            let nak = shape == Shape::Nak;
            write(
                &request,
                &Reply {
                    kind,
                    shape,
                    your_ip: (shape == Shape::Full).then_some(SERVER),
                    lease_seconds: (shape == Shape::Full).then_some(3600),
                    is_durable: false,
                    boot: if nak { Boot::Nothing } else { boot.clone() },
                    to: Destination::Broadcast,
                    refusal: None,
                },
                &range,
                None,
            );
        }
    }
}

/// Writes a reply and holds it against the checker.
fn write(request: &Request, reply: &Reply, range: &NetworkRange, client: Option<&Client>) {
    let bytes = encode(
        request,
        reply,
        &Frame {
            server_ip: SERVER,
            range: Some(range),
            client,
            script_url: Some("http://10.0.0.1:8069/b/ID.TOKEN/boot.ipxe"),
            loader_base_url: "http://10.0.0.1:8069/loader/",
        },
    );
    assert!(bytes.len() <= usize::from(request.max_size.min(1500)) - 28);
    if let Err(why) = dhcp_packet::check(&bytes) {
        panic!("{why}: {bytes:02x?}");
    }
}

/// Fills a book and facts from the first sixteen bytes, decides on the packet that follows,
/// and holds the decision against rules that it must never break.
pub fn dhcp_decide(data: &[u8]) {
    let Some((knobs, bytes)) = data.split_first_chunk::<16>() else {
        return;
    };
    let Ok(Packet::Request(request)) = parse(bytes) else {
        return;
    };
    let bit = |n: u8| knobs[1] >> n & 1 == 1;
    let now = at(i64::from(knobs[12]) * 10);
    let mode = [RangeMode::Full, RangeMode::Proxy, RangeMode::Off][usize::from(knobs[0] % 3)];
    let mut range = range(mode);
    range.always_chainload = bit(2);
    range.lease_seconds = [3600, 30, Lease::INFINITE][usize::from(knobs[14] % 3)];
    if bit(0) {
        range.serve = Serve::Known;
    }
    let client = bit(1).then(|| client(request.mac));

    let mut book = Book::default();
    let place = |knob: u8| (knob != 0).then(|| Ipv4Addr::new(10, 0, 0, 98 + knob % 14));
    let states = [
        LeaseState::Active,
        LeaseState::Released,
        LeaseState::Declined,
    ];
    let mut put = |address: Option<Ipv4Addr>, mac: MacAddr, state: u8, seconds: u8| {
        if let Some(address) = address {
            book.put(Lease {
                address,
                range_id: range.id,
                mac,
                client_identifier: None,
                hostname: None,
                state: states[usize::from(state % 3)],
                starts_at: at(0),
                length_seconds: match seconds {
                    255 => Lease::INFINITE,
                    other => u32::from(other) * 10,
                },
                relay_information: None,
            });
        }
    };
    for (n, other) in OTHERS.into_iter().enumerate() {
        let knob = knobs[6 + n];
        put(place(knob), other, knob >> 4, knob.wrapping_mul(7));
    }
    put(place(knobs[3]), request.mac, knobs[5], knobs[4]);
    let reserved = place(knobs[9]);
    let theirs = place(knobs[10]).filter(|a| Some(*a) != reserved);
    if let Some(address) = place(knobs[11]) {
        let who = if knobs[11] & 0x80 == 0 {
            request.mac
        } else {
            OTHERS[0]
        };
        book.hold(range.id, who, address, at(600));
    }
    if let Some(address) = place(knobs[13]) {
        book.probed_used(address, at(900));
    }
    if knobs[15] & 1 == 1 {
        for n in 100..110 {
            book.probed_free(Ipv4Addr::new(10, 0, 0, n), now);
        }
    }
    let is_live =
        |mac: MacAddr| (mac == request.mac && knobs[15] & 2 != 0) || (mac == OTHERS[1] && bit(7));
    let is_reserved = |a: Ipv4Addr| Some(a) == reserved || Some(a) == theirs;
    let facts = Facts {
        arrival: Arrival {
            port: if bit(6) { Port::Pxe } else { Port::Dhcp },
            server_ip: SERVER,
            is_ours: bit(5) && request.server_id.is_some(),
            unicast: false,
        },
        range: Some(&range),
        client: client.as_ref(),
        address: book.look(
            &range,
            &Asker {
                is_known: false,
                relay: None,
                mac: request.mac,
                reserved,
                requested: request.asked(),
                is_reserved: &is_reserved,
                is_live: &is_live,
                reach: if knobs[15] & 4 != 0 {
                    Reach::Own
                } else {
                    Reach::Database
                },
            },
            now,
        ),
        keep_percent: if knobs[15] & 8 != 0 { 25 } else { 0 },
        boot: BootFacts {
            loader: if bit(3) {
                Loader::Found("snponly.efi".into())
            } else {
                Loader::Missing {
                    wanted: &["snponly.efi"],
                    directory: "/srv/loaders".into(),
                }
            },
            unknown: [Unknown::Register, Unknown::Ignore, Unknown::CapReached]
                [usize::from(knobs[2] % 3)],
            loader_delivered: bit(4),
        },
    };
    let decision = decide(&request, &facts, now);

    let given = match &decision {
        Decision::Reply(reply) => reply.your_ip,
        Decision::Probe(address) => Some(*address),
        Decision::Silent(_) | Decision::Release(_) | Decision::Decline(_) => None,
    };
    if let Some(address) = given {
        assert_eq!(range.mode, RangeMode::Full);
        assert!(
            range.network.contains(address),
            "{address} of another network"
        );
        assert_ne!(
            Some(address),
            theirs.filter(|_| !is_live(request.mac)),
            "reserved"
        );
        if let Some(lease) = book.lease_at(address) {
            let other = lease.mac != request.mac;
            let lasts = lease.lasts(now) && lease.state == LeaseState::Active;
            assert!(
                !other || !(lasts || is_live(lease.mac) && lease.state != LeaseState::Declined)
            );
            assert!(
                lease.state != LeaseState::Declined || !lease.lasts(now),
                "declined"
            );
        }
        if request.kind == RequestKind::Discover {
            assert!(matches!(facts.address.candidate,
                Candidate::Ready(a) | Candidate::Unprobed(a) if a == address));
        }
    }
    if let Decision::Reply(reply) = &decision {
        if let ReplyKind::Nak(reason) = reply.kind {
            let record = facts.address.lease.is_some()
                || facts.address.reserved.is_some()
                || facts.address.offered.is_some();
            assert!(record || facts.arrival.is_ours || reason == NakReason::WrongNetwork);
        }
        write(&request, reply, &range, client.as_ref());
    }
}

/// Reads a datagram; what a request holds can be acknowledged.
pub fn tftp_wire(data: &[u8]) {
    if let Ok(tftp::wire::Packet::Read(request)) = tftp::wire::parse(data) {
        let mut reply = Vec::new();
        tftp::wire::encode_option_ack(&request.options, &mut reply);
        assert_eq!(tftp::wire::parse(&reply), Ok(tftp::wire::Packet::OptionAck));
        let _ = BootPath::parse_tftp(request.name);
    }
}

/// An NBD connection's bytes, in pieces: a handshake, and what follows it as requests. The
/// first byte says how TLS stands and how long the pieces are.
pub fn nbd_wire(data: &[u8]) {
    let Some((knob, bytes)) = data.split_first() else {
        return;
    };
    let offer = [Offer::NoTls, Offer::Tls, Offer::OnlyTls][usize::from(knob % 3)];
    let size = usize::from(knob / 3) + 1;
    let mut machine = Negotiation::new(offer);
    let (mut kept, mut out) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(size) {
        kept.extend_from_slice(piece);
        loop {
            let (took, turn) = machine.take(&kept, &mut out);
            kept.drain(..took);
            assert!(kept.len() <= LONGEST_OPTION + 16 + size, "bounded");
            match turn {
                Turn::More if took > 0 => {}
                Turn::More => break,
                Turn::StartTls => {
                    machine = machine.secured();
                    kept.clear();
                    break;
                }
                Turn::Open(opening) => {
                    assert!(opening.name.len() <= 4096 && !opening.name.contains('\0'));
                    assert!(offer != Offer::OnlyTls || out.len() >= 20, "TLS came first");
                    let export = Export {
                        size: 1 << 20,
                        flags: 1,
                        preferred_block: 4096,
                    };
                    machine.opened(&opening, export, &mut out);
                    nbd_requests(&kept, &machine, &opening.name);
                    if opening.way != Way::Info {
                        return;
                    }
                }
                Turn::End(_) => return,
            }
        }
    }
    assert!(out.len() < 64 * 8192, "replies are bounded too");
}

fn nbd_requests(bytes: &[u8], machine: &Negotiation, name: &str) {
    let disk = Disk {
        size: 1 << 20,
        read_only: false,
        structured: machine.structured(),
        contexts: machine.contexts(name),
    };
    for head in bytes.chunks_exact(28) {
        let Some(request) = head.first_chunk().and_then(NbdRequest::parse) else {
            return;
        };
        match judge(&request, &disk) {
            Ok(Act::Disconnect) => return,
            Ok(_) => assert!(request.offset + u64::from(request.length) <= disk.size),
            Err(refused) => assert_ne!(refused.errno().number(), 0),
        }
    }
}

/// Reads a path by both doors: what is a loader's name stays inside its directory.
pub fn boot_path(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for path in [BootPath::parse_tftp(data), BootPath::parse_http(&text)] {
        if let Ok(BootPath::Loader(name)) = path {
            assert!(!name.is_empty() && !name.starts_with('.'), "{name:?}");
            assert!(!name.contains(['/', '\\', '\0', '%']), "{name:?}");
        }
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_timestamp(1_700_000_000 + second, 0).unwrap_or_default()
}

fn range(mode: RangeMode) -> NetworkRange {
    let pool = "10.0.0.100-10.0.0.109".parse();
    NetworkRange {
        id: Default::default(),
        name: "fuzz".into(),
        network: "10.0.0.0/24".parse().expect("a network"),
        mode,
        serve: Serve::All,
        unready: UnreadyAction::Wait,
        always_chainload: false,
        pools: pool.into_iter().collect(),
        exclusions: Vec::new(),
        gateway: Some(Ipv4Addr::new(10, 0, 0, 254)),
        dns: vec![Ipv4Addr::new(10, 0, 0, 53); 9],
        domain: Some("lab.example".into()),
        search: vec!["lab.example".into(), "example".into()],
        ntp: vec![Ipv4Addr::new(10, 0, 0, 123)],
        mtu: Some(1400),
        routes: Vec::new(),
        lease_seconds: 3600,
        options: [(224, "00ff".repeat(200))].into(),
    }
}

fn client(mac: MacAddr) -> Client {
    Client {
        id: Default::default(),
        mac_address: mac,
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
        created_at: at(0),
        updated_at: at(0),
        last_boot_at: None,
        boot_count: 0,
    }
}

/// The target of the iSCSI body: nobody can prove to be anybody.
struct NoDoor;

impl Door for NoDoor {
    fn open_to_all(&self) -> bool {
        false
    }

    fn secrets(&self, name: &str) -> Option<Secrets> {
        (name == "boot").then(|| Secrets {
            machine: "machine-secret16".into(),
            server_name: "dls".into(),
            server: "server-secret-16".into(),
        })
    }
}

/// Login requests one after the other, each as it would lie in a socket's buffer; what is no
/// login is a SCSI command with its parameter list. The first byte says which digests.
pub fn iscsi(data: &[u8]) {
    let Some((first, mut rest)) = data.split_first() else {
        return;
    };
    let digests = wire::Digests {
        header: first & 1 != 0,
        data: first & 2 != 0,
    };
    let fresh = Fresh {
        id: 7,
        challenge: [0xc5; 32],
    };
    let mut login = Login::new();
    let mut answered = 0;
    while let Ok(wire::Framed::Whole(pdu, length)) = wire::frame(rest, digests, wire::LONGEST_LOGIN)
    {
        match login.step(&pdu.header, pdu.data, &fresh, &NoDoor) {
            Step::Reply(reply) => answered += reply.text.as_bytes().len(),
            Step::Refuse(_) => {}
            Step::Ready(ready) => assert_eq!(ready.proven.as_deref(), Some("boot")),
        }
        if let Some(bytes) = pdu.header.0[32..].first_chunk::<16>()
            && let Ok(op) = cdb::decode(bytes)
        {
            let _ = (op.takes(), op.access());
        }
        let _ = (lists::unmap(pdu.data), lists::keys(pdu.data));
        let _ = (lists::pages(pdu.data, true), lists::pages(pdu.data, false));
        rest = &rest[length..];
    }
    assert!(answered <= 64 * 1024);
}
