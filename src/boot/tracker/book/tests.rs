//! The book's indexes, caps and memory, and a property over random crowds.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::boot::session::Context;
use crate::model::{AttemptOutcome, Stage};

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + TimeDelta::days(20_000) + TimeDelta::seconds(seconds)
}

fn mac(n: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, n])
}

fn seen(n: u8, seconds: i64, what: Evidence) -> Observation {
    Observation {
        mac: mac(n),
        at: at(seconds),
        what,
        context: Context::default(),
    }
}

fn book() -> Book {
    Book::new(Uuid::nil(), Rules::default(), Caps::default())
}

fn acknowledged(speaker: Speaker, last: u8) -> Evidence {
    Evidence::Acknowledged {
        speaker,
        address: Some(Ipv4Addr::new(10, 0, 0, last)),
        loader: None,
    }
}

/// Ids in order.
fn ids() -> impl FnMut() -> Uuid {
    let mut next = 0_u128;
    move || {
        next += 1;
        Uuid::from_u128(next)
    }
}

#[test]
fn an_address_leads_to_the_machine_that_has_it_now() {
    let (mut book, mut id) = (book(), ids());
    for n in [1, 2] {
        book.observe(&seen(n, 0, Evidence::Discover(Speaker::Rom)), &mut id);
        book.observe(&seen(n, 1, acknowledged(Speaker::Rom, n)), &mut id);
    }
    let here = Ipv4Addr::new(10, 0, 0, 1);
    assert_eq!(book.at(here).unwrap().mac, mac(1));
    // The first one gets another address, the second one the first's.
    book.observe(&seen(1, 2, acknowledged(Speaker::Ipxe, 9)), &mut id);
    assert_eq!(book.at(here), None);
    book.observe(&seen(2, 3, acknowledged(Speaker::Ipxe, 1)), &mut id);
    assert_eq!(book.at(here).unwrap().mac, mac(2));
}

#[test]
fn a_machine_that_beats_after_its_end_keeps_its_address() {
    let (mut book, mut id) = (book(), ids());
    book.observe(&seen(1, 0, Evidence::Discover(Speaker::Rom)), &mut id);
    book.observe(&seen(1, 1, Evidence::Up), &mut id);
    for second in 2..=91 {
        book.tick(at(second));
    }
    assert!(book.by_mac(mac(1)).is_none());
    assert!(!book.is_live(mac(1), at(91)));
    let late = book.observe(&seen(1, 100, Evidence::Beat), &mut id);
    assert_eq!(late.id, None);
    assert!(book.is_live(mac(1), at(180)));
    assert!(!book.is_live(mac(1), at(191)));
    // Remembered for as long as it beats, then forgotten.
    for second in 92..3000 {
        if second < 2000 && second % 30 == 0 {
            book.observe(&seen(1, second, Evidence::Beat), &mut id);
        }
        book.tick(at(second));
        assert_eq!(
            book.over(Uuid::from_u128(1)).is_some(),
            second < 1980 + 600,
            "{second}"
        );
    }
    assert!(book.ended.is_empty() && book.ended_of.is_empty() && book.forget.is_empty());
}

#[test]
fn a_clock_that_jumps_ends_no_boot() {
    let (mut book, mut id) = (book(), ids());
    book.observe(&seen(1, 0, Evidence::Discover(Speaker::Rom)), &mut id);
    book.tick(at(1));
    assert!(book.tick(at(86_400)).is_empty());
    assert!(book.tick(at(-86_400)).is_empty());
    assert_eq!(book.len(), 1);
    assert!((-86_399..-86_300).any(|s| !book.tick(at(s)).is_empty()));
}

#[test]
fn a_server_started_in_the_middle_of_an_exchange_still_follows() {
    let (mut book, mut id) = (book(), ids());
    let nothing = book.observe(&seen(1, 0, Evidence::Up), &mut id);
    assert_eq!(nothing.ignored, Some(Ignored::NoAttempt));
    let os = book.observe(&seen(1, 0, acknowledged(Speaker::Os, 1)), &mut id);
    assert_eq!(os.id, None);
    let rom = book.observe(&seen(1, 0, acknowledged(Speaker::Rom, 1)), &mut id);
    assert!(rom.id.is_some());
    assert_eq!(book.by_mac(mac(1)).map(|a| a.id), rom.id);
}

#[test]
fn another_machine_with_a_running_ones_mac_is_given_nothing() {
    let (mut book, mut id) = (book(), ids());
    let with = |n: u128, mut o: Observation| {
        o.context.smbios_uuid = Some(Uuid::from_u128(n));
        o
    };
    let rom = Evidence::Discover(Speaker::Rom);
    let first = book.observe(&with(7, seen(1, 0, rom.clone())), &mut id);
    book.observe(&seen(1, 1, Evidence::Up), &mut id);
    for (uuid, another) in [(Some(8), true), (Some(7), false), (None, false)] {
        let uuid = uuid.map(Uuid::from_u128);
        assert_eq!(book.is_of_another(mac(1), uuid), another);
    }
    assert!(!book.is_of_another(mac(2), Some(Uuid::from_u128(8))));
    let newcomer = book.observe(&with(8, seen(1, 2, rom.clone())), &mut id);
    assert_eq!(newcomer.id, None);
    assert_eq!(newcomer.ignored, Some(Ignored::OtherMachine));
    assert!(matches!(
        newcomer.steps[0].effects[..],
        [Effect::Event(BootEvent {
            stage: Stage::Refused,
            ..
        })]
    ));
    assert_eq!(book.by_mac(mac(1)).map(|a| a.id), first.id);
    let again = book.observe(&with(7, seen(1, 3, rom)), &mut id);
    assert_ne!(again.id, first.id);
}

#[test]
fn what_is_recalled_gives_way_to_what_has_begun_since() {
    let (mut old, mut id) = (book(), ids());
    let begun = old.observe(&seen(1, 0, Evidence::Discover(Speaker::Rom)), &mut id);
    let row = begun.steps[0].attempt.clone();
    // Nothing has begun: it goes on.
    let mut fresh = book();
    assert!(fresh.recall(row.clone(), &[], None, at(9)).is_empty());
    assert_eq!(fresh.by_mac(mac(1)).map(|a| a.id), begun.id);
    assert!(fresh.recall(row.clone(), &[], None, at(9)).is_empty());
    // The machine was quicker than the database.
    let mut busy = book();
    let newer = busy.observe(&seen(1, 5, Evidence::Discover(Speaker::Rom)), &mut id);
    let steps = busy.recall(row, &[], None, at(9));
    assert_eq!(steps[0].attempt.outcome, AttemptOutcome::Restarted);
    assert_eq!(busy.by_mac(mac(1)).map(|a| a.id), newer.id);
    assert!(busy.over(begun.id.unwrap()).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random crowds: at most one open attempt per machine in the rows as well as in memory,
    /// and the indexes agree with it.
    #[test]
    fn at_most_one_open_attempt_per_machine(
        steps in prop::collection::vec((0_u8..4, 0_usize..11, 0_i64..100), 1..300),
    ) {
        let every = [
            Evidence::Discover(Speaker::Rom),
            Evidence::Discover(Speaker::Ipxe),
            Evidence::Discover(Speaker::Os),
            acknowledged(Speaker::Rom, 1),
            acknowledged(Speaker::Ipxe, 2),
            acknowledged(Speaker::Os, 3),
            Evidence::Script { unready: None },
            Evidence::Script { unready: Some(("no_image", false)) },
            Evidence::Up,
            Evidence::Bye(None),
            Evidence::Released,
        ];
        let (mut book, mut id) = (book(), ids());
        let mut rows: HashMap<Uuid, Attempt> = HashMap::new();
        let mut second = 0;
        for (n, which, wait) in steps {
            second += wait;
            let outcome = book.observe(&seen(n, second, every[which].clone()), &mut id);
            let ticked = book.tick(at(second));
            for step in outcome.steps.into_iter().chain(ticked) {
                for effect in step.effects {
                    match effect {
                        Effect::Attempt(a) => { rows.insert(a.id, a); }
                        Effect::Event(e) => prop_assert!(rows.contains_key(&e.session_id)),
                        _ => {}
                    }
                }
                let open: Vec<&Attempt> = rows.values().filter(|a| a.ended_at.is_none()).collect();
                let machines: HashSet<MacAddr> = open.iter().map(|a| a.mac).collect();
                prop_assert_eq!(open.len(), machines.len());
            }
            let open = rows.values().filter(|a| a.ended_at.is_none());
            prop_assert_eq!(open.clone().count(), book.len());
            prop_assert_eq!(book.by_id.len(), book.len());
            prop_assert_eq!(book.strangers(), book.len());
            for a in open {
                prop_assert_eq!(book.by_id(a.id).map(|v| v.mac), Some(a.mac));
            }
        }
    }
}
