//! Boots of the state machine by tables: what it says, what it takes, how it ends.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::machine::{Event, Machine, Order};
use super::orders::Source;
use super::plan::Plan;
use super::plan::tests::plan;
use super::words::{Cause, Role, Stage};
use crate::dhcp::wire::RequestKind;
use crate::dhcp::wire::client::{Answer, AnswerKind, Ask, Firmware, Speaker};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const LEASED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 50);

fn answer(ask: &Ask, kind: AnswerKind, file: Option<&str>) -> Answer {
    Answer {
        kind,
        xid: ask.xid,
        mac: ask.mac,
        your_ip: Some(LEASED),
        server: Some(SERVER),
        next_server: Some(SERVER),
        boot_file: file.map(str::to_owned),
        message: None,
    }
}

/// What it says, and at which stage.
fn said(order: &Order) -> (Stage, Ask) {
    match order {
        Order::Say { stage, ask, .. } => (*stage, *ask),
        other => panic!("{other:?}"),
    }
}

fn failure(order: Option<Order>) -> (Stage, Cause) {
    match order {
        Some(Order::Over(Err(failure))) => (failure.stage, failure.cause),
        other => panic!("{other:?}"),
    }
}

/// Discover and request, answered; the order after it.
fn lease(machine: &mut Machine, order: &Order, file: Option<&str>) -> Option<Order> {
    let (_, discover) = said(order);
    assert_eq!(discover.kind, RequestKind::Discover);
    let offer = answer(&discover, AnswerKind::Offer, file);
    let next = machine.on(Event::Answered(&offer)).expect("a request");
    let (_, request) = said(&next);
    assert_eq!(request.kind, RequestKind::Request);
    assert_eq!(
        (request.requested, request.server),
        (Some(LEASED), Some(SERVER))
    );
    machine.on(Event::Answered(&answer(&request, AnswerKind::Ack, file)))
}

fn at_script(plan: &Plan) -> Machine {
    let (mut machine, order) = Machine::new(plan, 3);
    let order = lease(&mut machine, &order, Some("undionly.kpxe"));
    let loader = Source::Tftp(SERVER, "undionly.kpxe".into());
    assert_eq!(order, Some(Order::Fetch(Role::Loader, loader)));
    let order = machine.on(Event::Fetched(b"")).expect("iPXE's discover");
    assert_eq!(said(&order).0, Stage::IpxeDiscover);
    let url = "http://10.0.0.1:8069/b/1.2/boot.ipxe";
    let order = lease(&mut machine, &order, Some(url));
    assert_eq!(
        order,
        Some(Order::Fetch(Role::Script, Source::Http(url.into())))
    );
    machine
}

const KERNEL: &[u8] = b"#!ipxe\necho DLS: a boots debian\nkernel kernel ip=dhcp nbdroot=10.0.0.1:10809/x dls.report=http://10.0.0.1/b/1.2/\ninitrd initrd0\nboot\n";

#[test]
fn a_whole_boot() {
    let plan = Plan {
        stay: Duration::from_secs(40),
        bye: true,
        ..plan(5)
    };
    let mut machine = at_script(&plan);
    let mut seen = Vec::new();
    let mut next = machine.on(Event::Fetched(KERNEL));
    while let Some(order) = next {
        next = match &order {
            Order::Say { stage, ask, .. } => {
                seen.push(stage.to_string());
                let kind = match ask.kind {
                    RequestKind::Discover => AnswerKind::Offer,
                    _ => AnswerKind::Ack,
                };
                machine.on(Event::Answered(&answer(ask, kind, None)))
            }
            Order::Fetch(role, _) => {
                seen.push(role.to_string());
                machine.on(Event::Fetched(b""))
            }
            Order::Pause(pause) => {
                seen.push(format!("{} s", pause.as_secs()));
                machine.on(Event::Done)
            }
            Order::UseDisk(disk) => {
                seen.push(format!("{disk:?}"));
                machine.on(Event::Done)
            }
            Order::Report(url) => {
                seen.push(url.clone());
                machine.on(Event::Done)
            }
            Order::Over(end) => {
                assert_eq!(end, &Ok(()));
                break;
            }
        };
    }
    assert_eq!(
        seen,
        [
            "kernel",
            "initrd0",
            "system discover",
            "system request",
            "nbd 10.0.0.1:10809",
            "http://10.0.0.1/b/1.2/up",
            "30 s",
            "http://10.0.0.1/b/1.2/beat",
            "10 s",
            "http://10.0.0.1/b/1.2/beat",
            "http://10.0.0.1/b/1.2/bye",
        ]
    );
    assert_eq!(
        (machine.image(), machine.address()),
        ("debian", Some(LEASED))
    );
}

#[test]
fn silence_is_borne_four_times() {
    let (mut machine, mut order) = Machine::new(&plan(5), 0);
    let (_, first) = said(&order);
    let mut listened = Vec::new();
    while let Order::Say {
        ask, listen, again, ..
    } = &order
    {
        assert_eq!((ask.xid, *again), (first.xid, !listened.is_empty()));
        listened.push(listen.as_secs_f64().round());
        order = machine.on(Event::Silence).expect("an order");
    }
    assert_eq!(listened.len(), 4);
    assert!((55.0..=65.0).contains(&listened.iter().sum::<f64>()));
    assert_eq!(failure(Some(order)), (Stage::RomDiscover, Cause::NoOffer));
}

#[test]
fn a_proxy_beside_a_server_is_heard() {
    let (mut machine, order) = Machine::new(&plan(5), 0);
    let (_, ask) = said(&order);
    // The server's offer has no boot file, so it goes on listening.
    let offer = answer(&ask, AnswerKind::Offer, None);
    assert_eq!(machine.on(Event::Answered(&offer)), None);
    let proxy = Answer {
        your_ip: None,
        server: Some(Ipv4Addr::new(10, 0, 0, 2)),
        next_server: Some(Ipv4Addr::new(10, 0, 0, 2)),
        ..answer(&ask, AnswerKind::Offer, Some("ipxe.efi"))
    };
    let order = machine.on(Event::Answered(&proxy)).expect("a request");
    let (_, request) = said(&order);
    assert_eq!(request.server, Some(SERVER));
    let ack = answer(&request, AnswerKind::Ack, None);
    let loader = Source::Tftp(Ipv4Addr::new(10, 0, 0, 2), "ipxe.efi".into());
    assert_eq!(
        machine.on(Event::Answered(&ack)),
        Some(Order::Fetch(Role::Loader, loader))
    );
}

#[test]
fn answers_that_are_not_its_own_are_passed_over() {
    let (mut machine, order) = Machine::new(&plan(5), 0);
    let (_, ask) = said(&order);
    let offer = answer(&ask, AnswerKind::Offer, Some("a"));
    for wrong in [
        Answer {
            xid: ask.xid ^ 1,
            ..offer.clone()
        },
        Answer {
            kind: AnswerKind::Ack,
            ..offer.clone()
        },
        Answer {
            kind: AnswerKind::Nak,
            ..offer.clone()
        },
    ] {
        assert_eq!(machine.on(Event::Answered(&wrong)), None);
    }
    assert!(machine.on(Event::Answered(&offer)).is_some());
}

#[test]
fn refusals_and_missing_files() {
    // No boot file at all: an address is taken, then it is over.
    let (mut machine, order) = Machine::new(&plan(5), 0);
    let (_, ask) = said(&order);
    machine.on(Event::Answered(&answer(&ask, AnswerKind::Offer, None)));
    let order = machine.on(Event::Silence).expect("a request");
    let (_, ask) = said(&order);
    let end = machine.on(Event::Answered(&answer(&ask, AnswerKind::Ack, None)));
    assert_eq!(failure(end), (Stage::RomRequest, Cause::NoBootFile));

    // Three NAKs.
    let (mut machine, mut order) = Machine::new(&plan(5), 0);
    for round in 0..3 {
        let (_, ask) = said(&order);
        let offer = answer(&ask, AnswerKind::Offer, Some("a"));
        let (_, request) = said(&machine.on(Event::Answered(&offer)).expect("a request"));
        let next = machine.on(Event::Answered(&answer(&request, AnswerKind::Nak, None)));
        match next {
            Some(next @ Order::Say { .. }) if round < 2 => order = next,
            end => assert_eq!(failure(end), (Stage::RomRequest, Cause::Nak)),
        }
    }
}

#[test]
fn waiting_and_loops() {
    let mut machine = at_script(&plan(5));
    let screen = b"#!ipxe\necho Reason: no_image\nsleep 5 ||\nchain boot.ipxe ||\n";
    for _ in 0..50 {
        let order = machine.on(Event::Fetched(screen));
        assert_eq!(order, Some(Order::Pause(Duration::from_secs(5))));
        let late = machine.too_late(Stage::Wait);
        assert_eq!(
            (late.cause, late.detail.as_str()),
            (Cause::ToldToWait, "for: no_image")
        );
        assert!(matches!(
            machine.on(Event::Done),
            Some(Order::Fetch(Role::Script, _))
        ));
    }
    let mut order = None;
    for _ in 0..20 {
        order = machine.on(Event::Fetched(b"#!ipxe\nchain boot.ipxe\n"));
        if let Some(Order::Pause(pause)) = order {
            assert!(pause.is_zero());
            machine.on(Event::Done);
        } else {
            break;
        }
    }
    assert_eq!(failure(order), (Stage::Script, Cause::Loop));
    assert_eq!(
        at_script(&plan(5)).too_late(Stage::Kernel).cause,
        Cause::Deadline
    );
}

#[test]
fn an_ipxe_in_the_rom_needs_no_loader() {
    let plan = Plan {
        rom: None,
        platform: Firmware::Uefi,
        ..plan(1)
    };
    let (mut machine, order) = Machine::new(&plan, 0);
    assert_eq!(said(&order).1.speaker, Speaker::Loader(Firmware::Uefi));
    let order = lease(&mut machine, &order, Some("http://10.0.0.1/boot.ipxe"));
    assert!(matches!(order, Some(Order::Fetch(Role::Script, _))));
}
