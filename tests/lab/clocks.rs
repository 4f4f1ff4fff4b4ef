//! Row 27: the clock that all go by is set while leases last, by an hour and by ten years, to
//! and fro. No lease ends by that and none becomes longer, no address is given twice.
//!
//! That clock is PostgreSQL's: `libfaketime` is between it and the machine's. The server reads its
//! own once, when it starts; it can't be put under the library, for the kernel stamps packets with the
//! machine's time, and it would take all of them for hours old.

use std::fs;
use std::path::Path;
use std::time::Instant;

use crate::fleet::Database;
use crate::net::{Lab, output};
use crate::outages::{lease_of, stranger};
use crate::product::Dls;
use crate::{secs, wait_for};

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// What stands before PostgreSQL's programs to put them under the lab's clock, where a test has
/// set one. The library shares memory by user: behind whatever changes that.
pub(crate) fn words(lab: &Lab) -> Vec<String> {
    let clock = lab.path().join("clock");
    if !clock.exists() {
        return Vec::new();
    }
    vec![
        "env".to_owned(),
        format!("LD_PRELOAD={LIBRARY}"),
        format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        "NO_FAKE_STAT=1".to_owned(),
    ]
}

/// The clock differs from the real one by that from now on.
fn set(lab: &Lab, by: &str) {
    assert!(Path::new(LIBRARY).exists(), "{LIBRARY} is missing");
    // In one step: it is read at any time.
    let draft = lab.path().join("clock.new");
    fs::write(&draft, by).expect("a file");
    fs::rename(draft, lab.path().join("clock")).expect("a file");
}

fn lease(lab: &Lab, host: &str, n: u64) -> String {
    lease_of(&mut stranger(lab, host, n).1)
}

/// Machines with an address, and when each had it last.
struct Room<'a> {
    lab: &'a Lab,
    database: &'a Database<'a>,
    host: String,
    given: Vec<(String, Instant)>,
}

/// What is left of two clocks' difference while both were read, and of a second's fraction.
const SLACK: f64 = 3.0;
const LEASE: f64 = 900.0;

impl Room<'_> {
    fn switch_on(&mut self) {
        let n = self.given.len() as u64;
        self.given
            .push((lease(self.lab, &self.host, n), Instant::now()));
    }

    /// Each lease has as much of its time left as has not passed, by the database's own clock.
    fn last(&self, when: &str) {
        for (address, since) in &self.given {
            let left = self.database.ask(
                "dls",
                &format!(
                    "select extract(epoch from dls_lease_end(starts_at, length_seconds) - clock_timestamp()) \
                     from leases where address = '{address}' and state = 'active'"
                ),
            );
            let left: f64 = left
                .trim()
                .parse()
                .unwrap_or_else(|_| panic!("{when}: {address}: {left:?}"));
            let want = LEASE - since.elapsed().as_secs_f64();
            assert!(
                (want - left).abs() < SLACK,
                "{when}: {address} has {left} s left, and {want} of its own"
            );
        }
    }
}

#[test]
fn a_clock_that_is_set_ends_no_lease_and_makes_none_longer() {
    let lab = Lab::new("clocks");
    set(&lab, "+0");
    let database = Database::new(&lab);
    database.link(&lab.namespace("srv"), 0);
    let dls = Dls::start(
        &lab,
        &format!("[database]\nurl = \"{}\"\n", Database::url()),
    );
    // Ten addresses, of which strangers may have nine.
    dls.cli("range add --network 10.77.0.0/16 --mode full --pool 10.77.64.1-10.77.64.10 --lease-seconds 900");
    let host = lab.host("cli", None);
    let mut room = Room {
        lab: &lab,
        database: &database,
        host: host.clone(),
        given: Vec::new(),
    };
    for _ in 0..8 {
        room.switch_on();
    }
    room.last("before");
    let hour = 3600;
    let years = 10 * 365 * 24 * hour;
    // Each is what the clock differs from the real one by; the jump is from the one before.
    for (n, by) in [hour, 0, -hour, 0, years, 0, -years, 0].iter().enumerate() {
        set(&lab, &format!("{by:+}"));
        let seen = wait_for("the server has noticed", secs(30), || {
            let noted = database.ask("dls", "select count(*) from clock_jumps");
            (noted.trim() == (n + 1).to_string()).then_some(noted)
        });
        let when = format!("jump {seen}, {by} s from the real time");
        room.last(&when);
        // A machine that asks again has its own address, for all of its time by the new clock.
        let again = n % 4;
        let (had, _) = room.given[again].clone();
        assert_eq!(lease(&lab, &host, again as u64), had, "{when}");
        room.given[again].1 = Instant::now();
        room.last(&when);
    }
    // There is one address left for strangers, as if nothing had been.
    room.switch_on();
    let ninth = &room.given[8].0;
    assert!(
        room.given[..8].iter().all(|(had, _)| had != ninth),
        "{ninth}"
    );
    let tenth = output(&mut stranger(&lab, &host, 9).1);
    assert!(!tenth.status.success(), "an address for a tenth: {tenth:?}");
    room.last("at the end");
    drop(dls);
}
