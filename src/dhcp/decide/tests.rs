//! Every branch of the decision, with the section that says so; every variant of the closed
//! sets is reached.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::*;
use crate::dhcp::packet::{DECLINE, DISCOVER, INFORM, Packet, RELEASE, REQUEST, ip, packet};
use crate::dhcp::testing::{SERVER, at, client, lease, range, request};
use crate::dhcp::wire::RequestKind;
use crate::model::{LeaseState, MacAddr};

const IT: &str = "10.0.0.150";

/// Facts in the making.
#[derive(Debug, Clone)]
struct Case {
    packet: Packet,
    port: Port,
    is_ours: bool,
    range: Option<NetworkRange>,
    client: Option<Client>,
    address: AddressFacts,
    boot: BootFacts,
}

fn case(packet: Packet) -> Case {
    Case {
        packet,
        port: Port::Dhcp,
        is_ours: false,
        range: Some(range()),
        client: None,
        address: AddressFacts::default(),
        boot: BootFacts {
            loader: Loader::Found("undionly.kpxe".into()),
            unknown: Unknown::Register,
            loader_delivered: false,
        },
    }
}

impl Case {
    fn standing(mut self, standing: Standing) -> Self {
        self.address.requested = standing;
        self
    }

    fn candidate(mut self, candidate: Candidate) -> Self {
        self.address.candidate = candidate;
        self
    }

    fn offered(mut self, address: &str) -> Self {
        self.address.offered = Some(ip(address));
        self
    }

    fn leased(mut self, address: &str) -> Self {
        self.address.lease = Some(lease(ip(address), MacAddr(crate::dhcp::packet::MAC), 3600));
        self
    }

    fn reserved(mut self, address: &str) -> Self {
        self.address.reserved = Some(ip(address));
        self
    }

    fn ours(mut self) -> Self {
        self.is_ours = true;
        self
    }

    fn port(mut self, port: Port) -> Self {
        self.port = port;
        self
    }

    fn range(mut self, change: impl FnOnce(&mut NetworkRange)) -> Self {
        if let Some(range) = self.range.as_mut() {
            change(range);
        }
        self
    }

    fn proxy(self) -> Self {
        self.range(|r| r.mode = RangeMode::Proxy)
    }

    fn boot(mut self, change: impl FnOnce(&mut BootFacts)) -> Self {
        change(&mut self.boot);
        self
    }

    fn known(mut self) -> Self {
        self.client = Some(client(MacAddr(crate::dhcp::packet::MAC)));
        self
    }

    fn decide(&self) -> Decision {
        let facts = Facts {
            arrival: Arrival {
                port: self.port,
                server_ip: SERVER,
                is_ours: self.is_ours,
                unicast: false,
            },
            range: self.range.as_ref(),
            client: self.client.as_ref(),
            address: self.address.clone(),
            boot: self.boot.clone(),
        };
        decide(&request(&self.packet), &facts, at(10))
    }

    fn reply(&self) -> Reply {
        match self.decide() {
            Decision::Reply(reply) => *reply,
            other => panic!("no reply: {other:?}"),
        }
    }

    fn silence(&self) -> Silence {
        match self.decide() {
            Decision::Silent(silence) => silence,
            other => panic!("not silent: {other:?}"),
        }
    }

    fn nak(&self) -> NakReason {
        let reply = self.reply();
        assert_eq!((reply.shape, reply.your_ip), (Shape::Nak, None));
        assert_eq!((reply.lease_seconds, reply.boot), (None, Boot::Nothing));
        match reply.kind {
            ReplyKind::Nak(reason) => reason,
            other => panic!("not a NAK: {other:?}"),
        }
    }
}

fn selecting(address: &str) -> Case {
    case(packet(REQUEST).address(54, "10.0.0.1").address(50, address)).ours()
}

fn init_reboot(address: &str) -> Case {
    case(packet(REQUEST).address(50, address))
}

fn renewing(address: &str) -> Case {
    case(packet(REQUEST).ciaddr(address))
}

fn ready(address: &str) -> Candidate {
    Candidate::Ready(ip(address))
}

// ---- DISCOVER (RFC 2131 section 4.3.1) ----

#[test]
fn p06_discover_is_offered_what_the_book_proposes() {
    let discover = case(packet(DISCOVER));
    let offer = discover.clone().candidate(ready(IT)).reply();
    assert_eq!(offer.kind, ReplyKind::Offer);
    assert_eq!(offer.your_ip, Some(ip(IT)));
    assert_eq!(offer.lease_seconds, Some(3600));
    assert_eq!(offer.boot, Boot::Nothing, "no boot request");
    assert_eq!(
        discover
            .clone()
            .candidate(Candidate::Unprobed(ip(IT)))
            .decide(),
        Decision::Probe(ip(IT))
    );
    assert_eq!(discover.silence(), Silence::PoolExhausted);
}

// ---- REQUEST (section 4.3.2) ----

#[test]
fn p07_selecting() {
    let ack = selecting(IT).standing(Standing::Its).reply();
    assert_eq!((ack.kind, ack.your_ip), (ReplyKind::Ack, Some(ip(IT))));
    assert_eq!(ack.lease_seconds, Some(3600));
    let theirs = case(packet(REQUEST).address(54, "10.0.0.66").address(50, IT));
    for standing in [
        Standing::Its,
        Standing::Free,
        Standing::Taken,
        Standing::Elsewhere,
    ] {
        let theirs = theirs.clone().standing(standing).offered(IT).leased(IT);
        assert_eq!(theirs.silence(), Silence::OtherServer);
    }
    let other = selecting("10.0.0.151").standing(Standing::Free).offered(IT);
    assert_eq!(other.nak(), NakReason::WrongAddress);
    let other = selecting("10.0.0.9")
        .standing(Standing::NotServed)
        .offered(IT);
    assert_eq!(other.nak(), NakReason::WrongAddress);
    assert_eq!(
        selecting(IT).standing(Standing::Taken).nak(),
        NakReason::Taken
    );
    assert_eq!(
        selecting(IT).standing(Standing::NotServed).nak(),
        NakReason::NotServed
    );
    assert_eq!(
        selecting("192.168.0.1").standing(Standing::Elsewhere).nak(),
        NakReason::WrongNetwork
    );
}

#[test]
fn p07_an_offer_that_we_forgot_is_kept() {
    let ack = selecting(IT).standing(Standing::Free).reply();
    assert_eq!((ack.kind, ack.your_ip), (ReplyKind::Ack, Some(ip(IT))));
}

#[test]
fn p07_a_request_without_an_address_is_senseless() {
    let bare = case(packet(REQUEST).address(54, "10.0.0.1")).ours();
    assert_eq!(bare.silence(), Silence::Senseless);
    assert_eq!(case(packet(REQUEST)).silence(), Silence::Senseless);
    let both = case(packet(REQUEST).address(50, IT).ciaddr("10.0.0.151"));
    assert_eq!(both.standing(Standing::Its).silence(), Silence::Senseless);
    let agreeing = case(packet(REQUEST).address(50, IT).ciaddr(IT)).standing(Standing::Its);
    assert_eq!(agreeing.reply().kind, ReplyKind::Ack);
}

#[test]
fn p08_init_reboot() {
    let ack = init_reboot(IT).standing(Standing::Its).leased(IT).reply();
    assert_eq!((ack.kind, ack.your_ip), (ReplyKind::Ack, Some(ip(IT))));
    assert_eq!(
        init_reboot("192.168.0.1")
            .standing(Standing::Elsewhere)
            .nak(),
        NakReason::WrongNetwork
    );
    for standing in [Standing::Free, Standing::Taken, Standing::NotServed] {
        let unknown = init_reboot(IT).standing(standing);
        assert_eq!(unknown.silence(), Silence::NoRecord, "{standing:?}");
    }
    let moved = init_reboot(IT).leased("10.0.0.151");
    assert_eq!(
        moved.clone().standing(Standing::Free).nak(),
        NakReason::WrongAddress
    );
    assert_eq!(
        moved.clone().standing(Standing::NotServed).nak(),
        NakReason::WrongAddress
    );
    assert_eq!(moved.standing(Standing::Taken).nak(), NakReason::Taken);
    let reserved = init_reboot(IT)
        .reserved("10.0.0.9")
        .standing(Standing::Free);
    assert_eq!(reserved.nak(), NakReason::WrongAddress);
}

#[test]
fn p09_renewing_and_rebinding() {
    let ack = renewing(IT).standing(Standing::Its).leased(IT).reply();
    assert_eq!(ack.kind, ReplyKind::Ack);
    assert_eq!(ack.to, Destination::Unicast(ip(IT)));
    assert_eq!(ack.your_ip, Some(ip(IT)));
    // Option 82 is missing when the relay was passed by, and nothing needs it.
    assert_eq!(request(&renewing(IT).packet).relay_information, None);
    assert_eq!(
        renewing(IT).standing(Standing::Free).silence(),
        Silence::NoRecord
    );
}

// ---- destinations (section 4.1) ----

#[test]
fn p05_destinations() {
    let discover = |packet: Packet| case(packet).candidate(ready(IT)).reply().to;
    assert_eq!(discover(packet(DISCOVER)), Destination::Frame(ip(IT)));
    assert_eq!(
        discover(packet(DISCOVER).broadcast()),
        Destination::Broadcast
    );
    assert_eq!(
        discover(packet(DISCOVER).broadcast().giaddr("10.0.0.254")),
        Destination::Relay(ip("10.0.0.254"))
    );
    // Nobody can have us send an OFFER to whom he likes.
    assert_eq!(
        discover(packet(DISCOVER).ciaddr("192.0.2.1")),
        Destination::Frame(ip(IT))
    );
    let relayed = case(packet(REQUEST).ciaddr(IT).giaddr("10.0.0.254")).standing(Standing::Its);
    assert_eq!(relayed.reply().to, Destination::Relay(ip("10.0.0.254")));
    let nak = init_reboot("192.168.0.1").standing(Standing::Elsewhere);
    assert_eq!(nak.reply().to, Destination::Broadcast);
    let nak = case(packet(REQUEST).ciaddr("192.168.0.1")).standing(Standing::Elsewhere);
    assert_eq!(nak.reply().to, Destination::Broadcast, "never to ciaddr");
    let nak = case(
        packet(REQUEST)
            .address(50, "192.168.0.1")
            .giaddr("10.0.0.254"),
    );
    assert_eq!(
        nak.standing(Standing::Elsewhere).reply().to,
        Destination::Relay(ip("10.0.0.254"))
    );
}

// ---- lease times ----

#[test]
fn p15_the_wish_is_bounded() {
    let seconds = |wish: u32, most: u32| {
        case(packet(DISCOVER).option(51, &wish.to_be_bytes()))
            .candidate(ready(IT))
            .range(|r| r.lease_seconds = most)
            .reply()
            .lease_seconds
    };
    assert_eq!(seconds(600, 3600), Some(600));
    assert_eq!(seconds(0, 3600), Some(60));
    assert_eq!(seconds(59, 3600), Some(60));
    assert_eq!(seconds(7200, 3600), Some(3600));
    assert_eq!(
        seconds(u32::MAX, 3600),
        Some(3600),
        "infinity is not the client's to take"
    );
    assert_eq!(seconds(u32::MAX, u32::MAX), Some(u32::MAX));
    assert_eq!(seconds(600, u32::MAX), Some(600));
    assert_eq!(seconds(10, 30), Some(30), "the range has the last word");
}

// ---- RELEASE, DECLINE, INFORM (sections 4.3.3 to 4.3.5) ----

#[test]
fn p11_release() {
    let release = case(packet(RELEASE).ciaddr(IT).address(54, "10.0.0.1")).ours();
    assert_eq!(
        release.clone().leased(IT).decide(),
        Decision::Release(ip(IT))
    );
    assert_eq!(release.silence(), Silence::NotItsLease);
    assert_eq!(
        release.clone().leased("10.0.0.151").silence(),
        Silence::NotItsLease
    );
    let mut twice = release.clone().leased(IT);
    if let Some(lease) = twice.address.lease.as_mut() {
        lease.state = LeaseState::Released;
    }
    assert_eq!(twice.silence(), Silence::NotItsLease);
    let theirs = case(packet(RELEASE).ciaddr(IT).address(54, "10.0.0.66")).leased(IT);
    assert_eq!(theirs.silence(), Silence::OtherServer);
    let bare = case(packet(RELEASE).address(54, "10.0.0.1"))
        .ours()
        .leased(IT);
    assert_eq!(bare.silence(), Silence::Senseless);
}

#[test]
fn p11_decline() {
    let decline = case(packet(DECLINE).address(50, IT).address(54, "10.0.0.1")).ours();
    assert_eq!(
        decline.clone().leased(IT).decide(),
        Decision::Decline(ip(IT))
    );
    assert_eq!(
        decline.clone().offered(IT).decide(),
        Decision::Decline(ip(IT))
    );
    assert_eq!(decline.silence(), Silence::NotItsLease);
    assert_eq!(
        decline
            .clone()
            .standing(Standing::Its)
            .reserved(IT)
            .silence(),
        Silence::NotItsLease,
        "it was never given it"
    );
    let mut run_out = decline.clone().leased(IT);
    if let Some(lease) = run_out.address.lease.as_mut() {
        lease.length_seconds = 5;
    }
    assert_eq!(run_out.silence(), Silence::NotItsLease);
    let mut flood = decline.offered(IT);
    flood.address.declines = MOST_DECLINES;
    assert_eq!(flood.silence(), Silence::DeclineFlood);
    let theirs = case(packet(DECLINE).address(50, IT).address(54, "10.0.0.66"));
    assert_eq!(theirs.offered(IT).silence(), Silence::OtherServer);
    let bare = case(packet(DECLINE).address(50, IT)).offered(IT);
    assert_eq!(bare.silence(), Silence::Senseless);
}

#[test]
fn p11_inform() {
    let ack = case(packet(INFORM).ciaddr("10.0.0.9")).reply();
    assert_eq!((ack.kind, ack.shape), (ReplyKind::Ack, Shape::Inform));
    assert_eq!((ack.your_ip, ack.lease_seconds), (None, None));
    assert_eq!(ack.to, Destination::Unicast(ip("10.0.0.9")));
    for elsewhere in ["192.0.2.1", "10.0.0.255", "10.0.0.0"] {
        let inform = case(packet(INFORM).ciaddr(elsewhere));
        assert_eq!(inform.silence(), Silence::Senseless, "no reflector");
    }
    assert_eq!(case(packet(INFORM)).silence(), Silence::Senseless);
}

// ---- modes and policies ----

#[test]
fn modes_and_who_is_served() {
    let mut nowhere = case(packet(DISCOVER));
    nowhere.range = None;
    assert_eq!(nowhere.silence(), Silence::NoRange);
    let off = case(packet(DISCOVER).pxe(0)).range(|r| r.mode = RangeMode::Off);
    assert_eq!(off.silence(), Silence::RangeOff);
    assert_eq!(off.port(Port::Pxe).silence(), Silence::RangeOff);
    let known_only = |kind| {
        case(
            packet(kind)
                .pxe(0)
                .address(50, IT)
                .address(54, "10.0.0.1")
                .ciaddr("10.0.0.9"),
        )
        .ours()
        .range(|r| r.serve = Serve::Known)
        .candidate(ready(IT))
        .standing(Standing::Elsewhere)
    };
    for kind in [DISCOVER, REQUEST, INFORM, RELEASE, DECLINE] {
        assert_eq!(known_only(kind).silence(), Silence::UnknownClient);
        assert_eq!(known_only(kind).proxy().silence(), Silence::UnknownClient);
    }
    assert_eq!(known_only(DISCOVER).known().reply().kind, ReplyKind::Offer);
}

#[test]
fn unknown_machines_are_judged_only_when_they_boot() {
    let policy = |packet: Packet, unknown| {
        let case = case(packet)
            .candidate(ready(IT))
            .boot(|b| b.unknown = unknown);
        let reply = case.reply();
        assert_eq!(
            reply.your_ip,
            Some(ip(IT)),
            "it has its address all the same"
        );
        (reply.boot, reply.refusal)
    };
    let rom = || packet(DISCOVER).pxe(0);
    let loader = Boot::TftpLoader("undionly.kpxe".into());
    assert_eq!(policy(rom(), Unknown::Register), (loader, None));
    assert_eq!(
        policy(rom(), Unknown::Ignore),
        (Boot::Nothing, Some(BootRefusal::UnknownIgnored))
    );
    assert_eq!(
        policy(rom(), Unknown::CapReached),
        (Boot::Nothing, Some(BootRefusal::UnknownCap))
    );
    for unknown in [Unknown::Register, Unknown::Ignore, Unknown::CapReached] {
        assert_eq!(policy(packet(DISCOVER), unknown), (Boot::Nothing, None));
        let known = case(rom())
            .known()
            .candidate(ready(IT))
            .boot(|b| b.unknown = unknown);
        assert_eq!(known.reply().refusal, None);
    }
    let ignored = case(rom()).proxy().boot(|b| b.unknown = Unknown::Ignore);
    assert_eq!(ignored.silence(), Silence::NothingToBoot);
}

// ---- the boot part ----

fn missing() -> Loader {
    Loader::Missing {
        wanted: &["snponly.efi", "ipxe.efi"],
        directory: "/srv/loaders".into(),
    }
}

#[test]
fn p17_each_speaker_gets_its_boot_part() {
    let boot = |packet: Packet| case(packet).candidate(ready(IT)).reply().boot;
    let name = "undionly.kpxe".to_owned();
    assert_eq!(
        boot(packet(DISCOVER).pxe(0)),
        Boot::TftpLoader(name.clone())
    );
    assert_eq!(boot(packet(DISCOVER).http(16)), Boot::HttpLoader(name));
    assert_eq!(boot(packet(DISCOVER).pxe(0).ipxe()), Boot::Script);
    assert_eq!(
        boot(packet(DISCOVER).ipxe()),
        Boot::Script,
        "175 without a class"
    );
    assert_eq!(
        boot(packet(DISCOVER).option(60, b"MSFT 5.0")),
        Boot::Nothing
    );
}

#[test]
fn p19_chain_loading_comes_to_its_end() {
    let ipxe = |always: bool, delivered: bool| {
        case(packet(DISCOVER).pxe(0).ipxe())
            .candidate(ready(IT))
            .range(|r| r.always_chainload = always)
            .boot(|b| b.loader_delivered = delivered)
            .reply()
            .boot
    };
    assert_eq!(ipxe(false, false), Boot::Script);
    assert_eq!(ipxe(false, true), Boot::Script);
    assert_eq!(ipxe(true, false), Boot::TftpLoader("undionly.kpxe".into()));
    assert_eq!(
        ipxe(true, true),
        Boot::Script,
        "one loader, then the script"
    );
}

#[test]
fn a_missing_loader_is_named_and_costs_no_address() {
    let rom = case(packet(DISCOVER).pxe(7)).boot(|b| b.loader = missing());
    let reply = rom.clone().candidate(ready(IT)).reply();
    assert_eq!((reply.your_ip, reply.boot), (Some(ip(IT)), Boot::Nothing));
    let refusal = reply.refusal.unwrap();
    assert_eq!(refusal.as_str(), "loader_missing");
    let sentence = refusal.to_string();
    assert!(
        sentence.contains("snponly.efi or ipxe.efi into /srv/loaders"),
        "{sentence}"
    );
    let unknown_arch = BootRefusal::LoaderMissing {
        wanted: &[],
        directory: "/srv/loaders".into(),
    };
    assert!(unknown_arch.to_string().contains("no loader is known"));
    assert_eq!(rom.clone().proxy().silence(), Silence::NothingToBoot);
    // An iPXE needs none.
    let ipxe = case(packet(DISCOVER).pxe(7).ipxe()).boot(|b| b.loader = missing());
    assert_eq!(ipxe.candidate(ready(IT)).reply().boot, Boot::Script);
}

// ---- proxy (PXE 2.1) ----

#[test]
fn p18_a_proxy_offers_the_boot_part_to_who_boots() {
    let rom = case(packet(DISCOVER).pxe(0)).proxy();
    let offer = rom.reply();
    assert_eq!((offer.kind, offer.shape), (ReplyKind::Offer, Shape::Proxy));
    assert_eq!((offer.your_ip, offer.lease_seconds), (None, None));
    assert_eq!(offer.to, Destination::Broadcast, "it has no address yet");
    assert_eq!(offer.boot, Boot::TftpLoader("undionly.kpxe".into()));
    let relayed = case(packet(DISCOVER).pxe(0).giaddr("10.0.0.254"))
        .proxy()
        .reply();
    assert_eq!(relayed.to, Destination::Relay(ip("10.0.0.254")));
    assert_eq!(
        case(packet(DISCOVER).pxe(0).ipxe()).proxy().reply().boot,
        Boot::Script
    );
    let http = case(packet(DISCOVER).http(16)).proxy().reply();
    assert_eq!(http.boot, Boot::HttpLoader("undionly.kpxe".into()));
    let no_loader = case(packet(DISCOVER).http(16))
        .proxy()
        .boot(|b| b.loader = missing());
    assert_eq!(no_loader.silence(), Silence::NothingToBoot);
}

#[test]
fn p18_a_proxy_is_silent_to_everything_else() {
    for kind in [DISCOVER, REQUEST, INFORM, RELEASE, DECLINE] {
        let os = case(packet(kind).ciaddr("10.0.0.9")).proxy();
        assert_eq!(os.silence(), Silence::NotABoot);
        assert_eq!(os.port(Port::Pxe).silence(), Silence::NotABoot);
    }
    for kind in [INFORM, RELEASE, DECLINE] {
        let rom = case(packet(kind).pxe(0).ciaddr("10.0.0.9")).proxy();
        assert_eq!(rom.silence(), Silence::NotABoot);
    }
    let takes = case(
        packet(REQUEST)
            .pxe(0)
            .address(54, "10.0.0.66")
            .address(50, IT),
    )
    .proxy();
    assert_eq!(takes.silence(), Silence::OtherServer);
}

#[test]
fn p18_port_4011_acknowledges_to_the_sender() {
    for (kind, mode) in [
        (REQUEST, RangeMode::Proxy),
        (INFORM, RangeMode::Proxy),
        (REQUEST, RangeMode::Full),
    ] {
        let ack = case(packet(kind).pxe(0).ciaddr("10.0.0.9"))
            .range(|r| r.mode = mode)
            .port(Port::Pxe)
            .reply();
        assert_eq!((ack.kind, ack.shape), (ReplyKind::Ack, Shape::Proxy));
        assert_eq!(ack.to, Destination::Sender);
        assert_eq!((ack.your_ip, ack.lease_seconds), (None, None));
    }
    for kind in [DISCOVER, RELEASE, DECLINE] {
        let wrong = case(packet(kind).pxe(0).ciaddr("10.0.0.9")).port(Port::Pxe);
        assert_eq!(wrong.silence(), Silence::WrongPort);
    }
}

// ---- 21: other servers' clients ----

#[test]
fn p21_another_servers_client_is_never_naked() {
    for standing in [Standing::Free, Standing::Taken, Standing::NotServed] {
        for case in [init_reboot(IT), renewing(IT)] {
            assert_eq!(case.standing(standing).silence(), Silence::NoRecord);
        }
    }
}

// ---- every variant is reached, and properties ----

fn packets() -> impl Strategy<Value = Packet> {
    let speaker = prop_oneof![
        Just(0_u8), // an operating system
        Just(1),    // a BIOS ROM
        Just(2),    // UEFI HTTP Boot
        Just(3),    // iPXE
    ];
    let address = proptest::option::of(prop_oneof![
        Just(IT),
        Just("10.0.0.151"),
        Just("10.0.0.9"),
        Just("192.168.0.1")
    ]);
    (
        prop_oneof![
            Just(DISCOVER),
            Just(REQUEST),
            Just(DECLINE),
            Just(RELEASE),
            Just(INFORM)
        ],
        speaker,
        address.clone(),
        address,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(
            |(kind, speaker, asked, ciaddr, server, relayed, broadcast)| {
                let mut made = match speaker {
                    0 => packet(kind),
                    1 => packet(kind).pxe(0),
                    2 => packet(kind).http(16),
                    _ => packet(kind).pxe(7).ipxe(),
                };
                made = asked.into_iter().fold(made, |p, a| p.address(50, a));
                made = ciaddr.into_iter().fold(made, Packet::ciaddr);
                if server {
                    made = made.address(54, "10.0.0.1");
                }
                if relayed {
                    made = made.giaddr("10.0.0.254");
                }
                if broadcast { made.broadcast() } else { made }
            },
        )
}

fn cases() -> impl Strategy<Value = Case> {
    let standing = prop_oneof![
        Just(Standing::NotAsked),
        Just(Standing::Its),
        Just(Standing::Free),
        Just(Standing::Taken),
        Just(Standing::NotServed),
        Just(Standing::Elsewhere)
    ];
    let candidate = prop_oneof![
        Just(Candidate::None),
        Just(ready(IT)),
        Just(Candidate::Unprobed(ip(IT)))
    ];
    let address = (
        any::<bool>(),
        proptest::option::of(prop_oneof![Just(IT), Just("10.0.0.151")]),
        any::<bool>(),
        candidate,
        standing,
        0_u32..7,
    );
    let policy = (
        prop_oneof![
            Just(RangeMode::Full),
            Just(RangeMode::Proxy),
            Just(RangeMode::Off)
        ],
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        prop_oneof![
            Just(Unknown::Register),
            Just(Unknown::Ignore),
            Just(Unknown::CapReached)
        ],
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    );
    (packets(), address, policy, any::<bool>(), 0_u8..10).prop_map(
        |(packet, address, policy, ours, nowhere)| {
            let (reserved, leased, offered, candidate, standing, declines) = address;
            let (mode, known_only, known, chainload, unknown, delivered, found, pxe) = policy;
            let mut case = case(packet).standing(standing).candidate(candidate);
            case.address.declines = declines;
            case = leased.into_iter().fold(case, Case::leased);
            if reserved {
                case = case.reserved(IT);
            }
            if offered {
                case = case.offered(IT);
            }
            if known {
                case = case.known();
            }
            case.is_ours = ours;
            if pxe {
                case.port = Port::Pxe;
            }
            case = case.boot(|b| {
                b.unknown = unknown;
                b.loader_delivered = delivered;
                if !found {
                    b.loader = missing();
                }
            });
            case = case.range(|r| {
                r.mode = mode;
                r.always_chainload = chainload;
                if known_only {
                    r.serve = Serve::Known;
                }
            });
            if nowhere == 0 {
                case.range = None;
            }
            case
        },
    )
}

fn address_of(decision: &Decision) -> Option<Ipv4Addr> {
    match decision {
        Decision::Reply(reply) => reply.your_ip,
        Decision::Probe(address) => Some(*address),
        _ => None,
    }
}

#[test]
fn every_variant_is_reached() {
    let mut seen = BTreeSet::new();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..60_000 {
        let case = cases().new_tree(&mut runner).unwrap().current();
        let name = match case.decide() {
            Decision::Silent(silence) => silence.to_string(),
            Decision::Probe(_) => "probe".into(),
            Decision::Release(_) => "release".into(),
            Decision::Decline(_) => "decline".into(),
            Decision::Reply(reply) => {
                if let Some(refusal) = &reply.refusal {
                    seen.insert(refusal.as_str().into());
                }
                match reply.kind {
                    ReplyKind::Offer => "offer".into(),
                    ReplyKind::Ack => "ack".into(),
                    ReplyKind::Nak(reason) => reason.to_string(),
                }
            }
        };
        seen.insert(name);
    }
    let refusals = [
        BootRefusal::UnknownIgnored,
        BootRefusal::UnknownCap,
        BootRefusal::LoaderMissing {
            wanted: &[],
            directory: String::new(),
        },
    ];
    let want: BTreeSet<String> = Silence::ALL
        .iter()
        .map(|s| s.to_string())
        .chain(NakReason::ALL.iter().map(|n| n.to_string()))
        .chain(refusals.iter().map(|r| r.as_str().to_owned()))
        .chain(["probe", "release", "decline", "offer", "ack"].map(String::from))
        .collect();
    assert_eq!(seen, want);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn rules_that_always_hold(case in cases()) {
        let asked = request(&case.packet);
        let decision = case.decide();
        let facts = &case.address;
        // An address is given only as the book says, and only by a full server.
        if let Some(address) = address_of(&decision) {
            prop_assert_eq!(case.range.as_ref().map(|r| r.mode), Some(RangeMode::Full));
            if asked.kind == RequestKind::Discover {
                prop_assert!(matches!(facts.candidate,
                    Candidate::Ready(a) | Candidate::Unprobed(a) if a == address));
            } else {
                prop_assert!(matches!(facts.requested, Standing::Its | Standing::Free));
                prop_assert_eq!(asked.asked(), Some(address));
            }
        }
        if let Decision::Reply(reply) = &decision {
            // Another server's choice is never answered on port 67.
            prop_assert!(case.port == Port::Pxe || asked.server_id.is_none() || case.is_ours
                || matches!(asked.kind, RequestKind::Discover | RequestKind::Inform));
            if let ReplyKind::Nak(reason) = reply.kind {
                prop_assert_ne!(facts.requested, Standing::Its);
                prop_assert_eq!(asked.kind, RequestKind::Request);
                let record = facts.lease.is_some() || facts.reserved.is_some()
                    || facts.offered.is_some();
                prop_assert!(record || case.is_ours || reason == NakReason::WrongNetwork);
            }
            prop_assert_eq!(reply.your_ip.is_some(), reply.lease_seconds.is_some());
            prop_assert_eq!(reply.your_ip.is_some(), reply.shape == Shape::Full);
            prop_assert!(reply.refusal.is_none() || reply.boot == Boot::Nothing);
            prop_assert!(reply.boot == Boot::Nothing || asked.is_boot());
            prop_assert!(asked.giaddr.is_none() || reply.shape == Shape::Inform
                || case.port == Port::Pxe || matches!(reply.to, Destination::Relay(_)));
            // The book never says that an address of another network is its.
            let here = asked.asked().is_none_or(|a| range().network.contains(a));
            if let Destination::Unicast(to) | Destination::Frame(to) = reply.to
                && here
            {
                prop_assert!(range().network.contains(to));
            }
        }
    }
}
