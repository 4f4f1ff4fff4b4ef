//! Modes, policies, the boot part, and the proxy on both ports.

use super::*;

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

// ---- a lease that need not be written again ----

/// A machine that has had its lease for so many microseconds, and may keep it as it is until a
/// quarter of it is gone.
fn holding(packet: Packet, gone: i64) -> Case {
    let mut case = case(packet)
        .ours()
        .leased(IT)
        .standing(Standing::Its)
        .candidate(ready(IT));
    case.keep_percent = 25;
    edit(&mut case, |lease| {
        lease.starts_at = at(10) - chrono::TimeDelta::microseconds(gone);
    });
    case
}

fn edit(case: &mut Case, change: impl FnOnce(&mut Lease)) {
    if let Some(lease) = case.address.lease.as_mut() {
        change(lease);
    }
}

#[test]
fn what_is_left_of_a_lease_is_said_while_little_of_it_is_gone() {
    let again = || packet(REQUEST).address(54, "10.0.0.1").address(50, IT);
    for (gone, want) in [
        (0, (true, 3600)),
        (1, (true, 3599)),
        (1_000_000, (true, 3599)),
        (1_000_001, (true, 3598)),
        (900_000_000, (true, 2700)),
        (900_000_001, (false, 3600)),
        (3_599_000_000, (false, 3600)),
        (4_000_000_000, (false, 3600)),
        // It begins in the future: a clock was set.
        (-5_000_000, (false, 3600)),
    ] {
        for request in [
            again(),
            packet(REQUEST).address(50, IT),
            packet(REQUEST).ciaddr(IT),
        ] {
            let ack = holding(request, gone).reply();
            assert_eq!(ack.kind, ReplyKind::Ack);
            assert_eq!(
                (ack.is_durable, ack.lease_seconds),
                (want.0, Some(want.1)),
                "{gone}"
            );
        }
        let offer = holding(packet(DISCOVER), gone).reply();
        assert_eq!(offer.lease_seconds, Some(want.1), "the offer says the same");
    }
}

#[test]
fn a_lease_that_would_be_another_is_written() {
    type Change = (&'static str, fn(&mut Case));
    let changes: [Change; 9] = [
        ("other servers share the database", |c| {
            c.keep_percent = 0;
        }),
        ("no lease", |c| c.address.lease = None),
        ("given back", |c| {
            edit(c, |l| l.state = LeaseState::Released);
        }),
        ("another address", |c| {
            edit(c, |l| l.address = ip("10.0.0.151"));
        }),
        ("another length", |c| {
            edit(c, |l| l.length_seconds = 1800);
        }),
        ("the range's length was changed", |c| {
            if let Some(range) = c.range.as_mut() {
                range.lease_seconds = 7200;
            }
        }),
        ("another client identifier", |c| {
            edit(c, |l| l.client_identifier = Some(vec![1]));
        }),
        ("another name", |c| {
            edit(c, |l| l.hostname = Some("pc-7".parse().unwrap()));
        }),
        ("another relay", |c| {
            edit(c, |l| l.relay_information = Some(vec![1, 1, 7]));
        }),
    ];
    let same = holding(packet(REQUEST).ciaddr(IT), 5_000_000);
    assert!(same.reply().is_durable);
    for (what, change) in changes {
        let mut case = same.clone();
        change(&mut case);
        assert!(!case.reply().is_durable, "{what}");
    }
}

#[test]
fn a_lease_without_an_end_is_written_once() {
    let mut case = holding(packet(REQUEST).ciaddr(IT), 900_000_000_000_000)
        .range(|r| r.lease_seconds = Lease::INFINITE);
    edit(&mut case, |l| l.length_seconds = Lease::INFINITE);
    let ack = case.reply();
    assert_eq!(
        (ack.is_durable, ack.lease_seconds),
        (true, Some(Lease::INFINITE))
    );
}
