//! Tables of the persistent reservations.

use super::super::cdb::Span;
use super::*;

const SPAN: Span = Span { lba: 0, blocks: 1 };
const READ: Op = Op::Read(SPAN);
const WRITE: Op = Op::Write {
    span: SPAN,
    fua: false,
    kind: super::super::cdb::Writing::Plain,
};

fn nexus(name: &str) -> Nexus {
    name.into()
}

fn out(
    r: &mut Reservations,
    who: &str,
    action: u8,
    kind: u8,
    key: u64,
    new: u64,
) -> Result<Vec<(String, Sense)>, Refused> {
    let keys = Keys {
        key,
        action_key: new,
    };
    let notices = r.change(&nexus(who), action, 0, kind, &keys)?;
    Ok(notices
        .iter()
        .map(|n| (n.nexus.to_string(), n.sense))
        .collect())
}

/// `a`, `b` registered with keys 1 and 2; `a` holds a reservation of that type.
fn held(kind: u8) -> Reservations {
    let mut r = Reservations::default();
    assert_eq!(out(&mut r, "a", 0, 0, 0, 1), Ok(vec![]));
    assert_eq!(out(&mut r, "b", 6, 0, 9, 2), Ok(vec![]));
    assert_eq!(out(&mut r, "a", 1, kind, 1, 0), Ok(vec![]));
    r
}

#[test]
fn who_may_do_what() {
    // Type, then registered b: read, write; stranger c: read, write.
    for (kind, b, c) in [
        (1, (true, false), (true, false)),
        (3, (false, false), (false, false)),
        (5, (true, true), (true, false)),
        (6, (true, true), (false, false)),
        (7, (true, true), (true, false)),
        (8, (true, true), (false, false)),
    ] {
        let r = held(kind);
        let may = |who: &str| (r.allows(&nexus(who), &READ), r.allows(&nexus(who), &WRITE));
        assert_eq!(may("a"), (true, true), "type {kind}");
        assert_eq!((may("b"), may("c")), (b, c), "type {kind}");
        assert!(r.allows(&nexus("c"), &Op::TestUnitReady));
    }
}

#[test]
fn keys_are_needed() {
    let mut r = held(1);
    assert_eq!(out(&mut r, "c", 0, 0, 5, 1), Err(Refused::Conflict));
    assert_eq!(out(&mut r, "a", 0, 0, 5, 1), Err(Refused::Conflict));
    assert_eq!(out(&mut r, "b", 2, 1, 1, 0), Err(Refused::Conflict));
    assert_eq!(out(&mut r, "b", 1, 1, 2, 0), Err(Refused::Conflict));
    assert_eq!(out(&mut r, "a", 1, 3, 1, 0), Err(Refused::Conflict));
    assert_eq!(
        out(&mut r, "a", 2, 3, 1, 0),
        Err(Refused::Sense(Sense::RELEASE))
    );
    assert_eq!(
        out(&mut r, "a", 1, 2, 1, 0),
        Err(Refused::Sense(Sense::FIELD))
    );
    assert_eq!(out(&mut r, "b", 2, 1, 2, 0), Ok(vec![]), "not its own");
    assert!(!r.is_free());
}

#[test]
fn others_are_told() {
    let b = |sense| Ok(vec![("b".to_owned(), sense)]);
    assert_eq!(out(&mut held(5), "a", 2, 5, 1, 0), b(Sense::RELEASED));
    assert_eq!(out(&mut held(1), "a", 2, 1, 1, 0), Ok(vec![]));
    assert_eq!(out(&mut held(6), "a", 0, 0, 1, 0), b(Sense::RELEASED));
    assert_eq!(out(&mut held(1), "a", 3, 0, 1, 0), b(Sense::PREEMPTED));
    let mut r = held(1);
    let told = out(&mut r, "b", 4, 3, 2, 1);
    assert_eq!(
        told,
        Ok(vec![("a".to_owned(), Sense::REGISTRATION_PREEMPTED)])
    );
    assert!(r.allows(&nexus("b"), &WRITE) && !r.allows(&nexus("a"), &READ));
    assert_eq!(out(&mut r, "b", 4, 3, 2, 77), Err(Refused::Conflict));
    assert_eq!(
        out(&mut r, "b", 4, 3, 2, 0),
        Err(Refused::Sense(Sense::PARAMETER))
    );
}

#[test]
fn reports() {
    let r = held(1);
    let keys = r.report(ReserveIn::Keys);
    assert_eq!(keys[..8], [0, 0, 0, 2, 0, 0, 0, 16]);
    let reservation = r.report(ReserveIn::Reservation);
    assert_eq!((reservation.len(), reservation[21]), (24, 1));
    let full = r.report(ReserveIn::FullStatus);
    assert_eq!(usize::from(full[7]), full.len() - 8);
    assert_eq!(held(7).report(ReserveIn::Reservation)[8..16], [0; 8]);
}

#[test]
fn the_old_kind() {
    let mut r = Reservations::default();
    assert_eq!(r.reserve(&nexus("a")), Ok(()));
    assert_eq!(r.reserve(&nexus("b")), Err(Refused::Conflict));
    assert!(!r.allows(&nexus("b"), &READ) && r.allows(&nexus("a"), &WRITE));
    r.release(&nexus("b"));
    assert!(!r.is_free());
    r.release(&nexus("a"));
    assert!(r.is_free());
    assert_eq!(held(1).reserve(&nexus("a")), Err(Refused::Conflict));
}

#[test]
fn registrations_are_bounded() {
    let mut r = Reservations::default();
    for i in 0..MOST_REGISTRANTS {
        assert_eq!(out(&mut r, &i.to_string(), 0, 0, 0, 1), Ok(vec![]));
    }
    let full = Err(Refused::Sense(Sense::REGISTRATIONS));
    assert_eq!(out(&mut r, "x", 0, 0, 0, 1), full);
}
