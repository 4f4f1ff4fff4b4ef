//! Every variant of the closed sets is reached, and the rules that hold for any facts.

use super::*;

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
        (0_u32..7, prop_oneof![Just(0_u8), Just(25)], -20_i64..4000),
        (
            proptest::bool::weighted(0.1),
            proptest::bool::weighted(0.3),
            proptest::bool::weighted(0.2),
        ),
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
            let (reserved, leased, offered, candidate, standing, numbers, kept) = address;
            let (mode, known_only, known, chainload, unknown, delivered, found, pxe) = policy;
            let mut case = case(packet).standing(standing).candidate(candidate);
            let (declines, keep_percent, gone) = numbers;
            case.address.declines = declines;
            case.keep_percent = keep_percent;
            (
                case.address.over_share,
                case.address.cut_off,
                case.address.unsure,
            ) = kept;
            case = leased.into_iter().fold(case, Case::leased);
            if let Some(lease) = case.address.lease.as_mut() {
                lease.starts_at = at(10) - chrono::TimeDelta::seconds(gone);
            }
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
            // What is not stored anew is promised no longer than it is durable.
            if reply.is_durable {
                let lease = facts.lease.as_ref().filter(|l| reply.your_ip == Some(l.address));
                let ends = at(10) + chrono::TimeDelta::seconds(reply.lease_seconds.unwrap_or(0).into());
                prop_assert!(lease.and_then(Lease::ends_at).is_some_and(|end| ends <= end));
            }
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
