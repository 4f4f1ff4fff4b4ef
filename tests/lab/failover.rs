//! The primary dies, or hangs, while machines are switched on, and its standby takes its place:
//! they boot on, and nothing that was acknowledged is missing in the new primary. A commit waits
//! for the standby, as `docs/operations.md` has it for whoever wants to lose no lease.

use std::collections::VecDeque;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::crashes::rounds;
use crate::fleet::Database;
use crate::net::Lab;
use crate::outages::{all_boot, all_is_written, has_addresses, has_it_all, lease_of, stranger};
use crate::product::Dls;
use crate::storms::{MIB, Site};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// kill -9: whoever is connected to it hears of it.
    Killed,
    /// It takes connections and says nothing, ever again.
    Hung,
}

#[derive(Debug)]
enum Step {
    /// The primary dies.
    Die,
    /// The standby takes its place.
    Promote,
    /// What was the primary follows it.
    Return,
}

/// Two databases, of which one is the primary.
struct Pair<'a> {
    primary: Database<'a>,
    standby: Database<'a>,
    death: Death,
}

impl Pair<'_> {
    fn take(&mut self, step: &Step) {
        match (step, self.death) {
            (Step::Die, Death::Killed) => self.primary.kill(),
            (Step::Die, Death::Hung) => self.primary.signal(Signal::SIGSTOP),
            (Step::Promote, _) => {
                self.standby.promote();
                std::mem::swap(&mut self.primary, &mut self.standby);
            }
            (Step::Return, _) => {
                self.standby.kill();
                self.standby.follow(&self.primary);
            }
        }
    }
}

/// When what happens: nobody is the primary for a quarter of each round, and the last one that died
/// stays away.
fn steps(rounds: u32, ramp: u32) -> VecDeque<(f64, Step)> {
    let round = f64::from(ramp) / f64::from(rounds);
    let of_round = |n| {
        let from = f64::from(n) * round;
        [
            (from + round * 0.25, Step::Die),
            (from + round * 0.5, Step::Promote),
            (from + round * 0.75, Step::Return),
        ]
    };
    let mut steps: VecDeque<_> = (0..rounds).flat_map(of_round).collect();
    steps.pop_back();
    steps
}

fn machines_boot_through(death: Death, name: &'static str) {
    let (machines, ramp) = (rounds(8, 500), rounds(12, 600));
    let failovers = rounds(1, 4);
    let lab = Lab::new(name);
    let primary = Database::new(&lab);
    primary.link(&lab.namespace("srv"), 0);
    let standby = primary.standby();
    let mut pair = Pair {
        primary,
        standby,
        death,
    };
    let config = format!("[database]\nurl = \"{}\"\n", Database::urls());
    let dls = Dls::start(&lab, &config);
    let site = Site::of(&lab, dls, machines, &["iscsi", "nbd"], (4 * MIB, 16 * MIB));
    let host = lab.host("cli", None);
    has_addresses(&lab);

    let mut steps = steps(failovers, ramp);
    let (booted, given) = all_boot(&lab, &site, &host, (machines, ramp), |since| {
        if let Some((_, step)) = steps.pop_front_if(|(at, _)| *at <= since.as_secs_f64()) {
            eprintln!("{since:.1?}: {step:?}");
            pair.take(&step);
        }
    });
    assert!(steps.is_empty(), "the storm ended before {steps:?}");
    let ended = Instant::now();
    has_it_all(&lab);
    let later = ended.elapsed();
    // What others change is heard of from the new primary: a machine has the address that was
    // reserved for it a moment ago.
    let (mac, mut newest) = stranger(&lab, &host, 1 << 16);
    site.dls.psql(&format!(
        "insert into clients (mac_address, hostname, ip_address) values ('{mac}', 'newest', '10.77.40.7')"
    ));
    assert_eq!(lease_of(&mut newest), "10.77.40.7");
    eprintln!(
        "{death:?}: {booted} of {machines} booted in {ramp} s through {failovers} failovers, {} strangers; the last primary had it all {later:.1?} later",
        given.len()
    );
    all_is_written(&site, booted, &given);
}

#[test]
fn machines_boot_through_a_failover_of_the_database() {
    machines_boot_through(Death::Killed, "failover_killed");
}

#[test]
fn machines_boot_through_a_failover_of_a_database_that_hangs() {
    machines_boot_through(Death::Hung, "failover_hung");
}
