//! Four servers on one PostgreSQL while all of it is broken again and again: no address is held
//! by two machines, and no acknowledged lease is lost.
//!
//! `fleet` is the servers, their database and the clients; `history` judges what these were told.
//!
//! What is broken when, is decided beforehand by the seed; what comes of it depends on the machine.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};

use crate::crashes::{Dice, rounds};
use crate::fleet::{Crowd, Database, Server};
use crate::history::{History, Kind, Stretches, What, check, waits};
use crate::net::{Lab, finish};
use crate::{secs, wait_for};

/// How many share the database.
const SERVERS: usize = 4;
/// A server that was cut off less than this ago may acknowledge what the database took before.
const CUT_FOR_SURE: i64 = 2_000;

/// What is done to the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// kill -9 of a server.
    Kill(usize),
    /// It is started again, with the state that it had.
    Start(usize),
    /// A server's link to the database's network.
    Cut(usize),
    Mend(usize),
    /// SIGSTOP: it takes no part, and does not know that it does not.
    Freeze(usize),
    Thaw(usize),
    /// The database, without a checkpoint.
    Stop,
    Restart,
}

type Of = fn(usize) -> Harm;

/// How much is done in a run, and for how long each lasts at least and at most, in seconds.
struct Measure {
    clients: u32,
    /// A fifth more than there are machines at a time: addresses are used again soon, and those of
    /// machines that were switched off have room.
    addresses: u32,
    seconds: u32,
    ramp: u32,
    lease: u32,
    kills: (u32, u64, u64),
    cuts: (u32, u64, u64),
    freezes: (u32, u64, u64),
    stops: (u32, u64, u64),
}

impl Measure {
    fn of_this_run() -> Self {
        if rounds(0, 1) == 0 {
            Self {
                clients: 300,
                addresses: 360,
                seconds: 50,
                ramp: 4,
                lease: 60,
                kills: (2, 1, 6),
                cuts: (2, 8, 16),
                freezes: (1, 4, 10),
                stops: (1, 4, 9),
            }
        } else {
            Self {
                clients: 10_000,
                addresses: 12_000,
                seconds: 600,
                ramp: 60,
                lease: 120,
                kills: (30, 1, 20),
                cuts: (24, 5, 70),
                freezes: (16, 2, 40),
                stops: (6, 3, 40),
            }
        }
    }

    /// What is done when, in ms from the beginning. No harm is done twice at a time to the same one,
    /// different ones meet as they may. In the last part nothing new begins.
    fn plan(&self, dice: &mut Dice) -> Vec<(u64, Harm)> {
        let mut plan = Vec::new();
        let kinds: [(_, usize, Of, Of); 4] = [
            (self.kills, SERVERS, Harm::Kill, Harm::Start),
            (self.cuts, SERVERS, Harm::Cut, Harm::Mend),
            (self.freezes, SERVERS, Harm::Freeze, Harm::Thaw),
            (self.stops, 1, |_| Harm::Stop, |_| Harm::Restart),
        ];
        for ((count, least, most), of, begin, end) in kinds {
            let mut busy: Vec<Vec<(u64, u64)>> = vec![Vec::new(); of];
            for _ in 0..count {
                // Where there is no room left, one less is done.
                for _ in 0..100 {
                    let whom = usize::try_from(dice.below(of as u64)).expect("small");
                    let lasts = least * 1_000 + dice.below((most - least) * 1_000);
                    let first = u64::from(self.ramp) * 500;
                    let room = u64::from(self.seconds) * 1_000 - first - lasts;
                    let from = first + dice.below(room);
                    let to = from + lasts;
                    let taken = &mut busy[whom];
                    if taken
                        .iter()
                        .all(|(a, b)| to + 1_000 < *a || from > *b + 1_000)
                    {
                        taken.push((from, to));
                        plan.extend([(from, begin(whom)), (to, end(whom))]);
                        break;
                    }
                }
            }
        }
        plan.sort_by_key(|(at, _)| *at);
        plan
    }
}

/// ms of CLOCK_MONOTONIC, as the crowd counts them.
fn now() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock");
    now.tv_sec() * 1_000 + now.tv_nsec() / 1_000_000
}

/// When a server could do what.
#[derive(Debug, Default, Clone)]
struct Standing {
    killed: bool,
    cut: bool,
    frozen: bool,
    /// At work without the database.
    alone: Stretches,
}

/// All of it.
struct Site<'a> {
    lab: &'a Lab,
    database: Database<'a>,
    servers: Vec<Server<'a>>,
    stopped: bool,
    standing: Vec<Standing>,
    /// At least one server was at work and had the database.
    able: Stretches,
}

impl<'a> Site<'a> {
    fn new(lab: &'a Lab, measure: &Measure) -> Self {
        let database = Database::new(lab);
        let mut servers: Vec<_> = (0..SERVERS)
            .map(|n| Server::new(lab, &database, n))
            .collect();
        for server in &mut servers {
            server.start();
            wait_for("a server is ready", secs(60), || {
                server.must_run();
                server.is_well().then_some(())
            });
        }
        let first = Ipv4Addr::new(10, 77, 64, 1);
        let last = Ipv4Addr::from(u32::from(first) + measure.addresses - 1);
        finish(&mut servers[0].command(&format!(
            "range add --network 10.77.0.0/16 --mode full --lease-seconds {} --pool {first}-{last}",
            measure.lease
        )));
        for server in &servers {
            wait_for("a server has claimed addresses", secs(60), || {
                (server.metric("dls_dhcp_claimed_addresses") > Some(0)).then_some(())
            });
        }
        Self {
            lab,
            database,
            servers,
            stopped: false,
            standing: vec![Standing::default(); SERVERS],
            able: Stretches::default(),
        }
    }

    /// Does it, and writes down since when who can do what. Whatever ends does so before, whatever
    /// begins does so after: nobody is said to have been able, or alone, who was not.
    fn apply(&mut self, harm: Harm) {
        self.mark();
        match harm {
            Harm::Kill(n) => {
                self.standing[n].killed = true;
                self.servers[n].kill();
                // What is dead is not frozen: it is started as others are.
                self.standing[n].frozen = false;
            }
            Harm::Start(n) => {
                // Where the run began with an older version this is a rolling upgrade.
                self.servers[n].upgrade();
                self.servers[n].start();
                self.standing[n].killed = false;
            }
            Harm::Cut(n) => {
                self.standing[n].cut = true;
                self.link(n, "down");
            }
            Harm::Mend(n) => {
                self.link(n, "up");
                self.standing[n].cut = false;
            }
            Harm::Freeze(n) => {
                self.standing[n].frozen = !self.standing[n].killed;
                self.servers[n].signal(Signal::SIGSTOP);
            }
            Harm::Thaw(n) => {
                self.servers[n].signal(Signal::SIGCONT);
                self.standing[n].frozen = false;
            }
            Harm::Stop => {
                self.stopped = true;
                self.database.stop();
            }
            Harm::Restart => {
                self.database.start();
                self.stopped = false;
            }
        }
        eprintln!("{}: {harm:?}", now());
        let now = now();
        let mut able = false;
        for standing in &mut self.standing {
            let works = !standing.killed && !standing.frozen;
            let has = !standing.cut && !self.stopped;
            able |= works && has;
            if works && !has {
                standing.alone.0.push((now, i64::MAX));
            }
        }
        if able {
            self.able.0.push((now, i64::MAX));
        }
    }

    /// All stretches end here.
    fn mark(&mut self) {
        let now = now();
        let all = self.standing.iter_mut().map(|s| &mut s.alone);
        for stretches in all.chain([&mut self.able]) {
            if let Some((_, to)) = stretches.0.last_mut() {
                *to = (*to).min(now);
            }
        }
    }

    fn link(&self, server: usize, state: &str) {
        let database = self.lab.namespace("db");
        self.lab
            .ip(&database, &format!("link set p-{server} {state}"));
    }

    /// Does what is planned, when it is, and waits for the end of the run.
    fn harm(&mut self, plan: &[(u64, Harm)], seconds: u32) {
        let start = now();
        let wait_until = |at: u64| {
            let at = start + i64::try_from(at).expect("a time");
            let wait = u64::try_from(at - now()).unwrap_or_default();
            std::thread::sleep(Duration::from_millis(wait));
        };
        self.able.0.push((start, i64::MAX));
        for (at, harm) in plan {
            wait_until(*at);
            for server in &mut self.servers {
                server.must_run();
            }
            self.apply(*harm);
        }
        wait_until(u64::from(seconds) * 1_000);
    }

    /// Everybody is there, and the database has all.
    fn settle(&mut self) {
        for server in &mut self.servers {
            let what = format!("server-{} owes nothing", server.number);
            wait_for(&what, secs(120), || {
                server.must_run();
                server.owes_nothing().then_some(())
            });
        }
    }

    /// How often any of them has said something.
    fn said(&self, text: &str) -> usize {
        let logs = self.servers.iter().map(|s| fs::read_to_string(s.log()));
        let logs: Vec<String> = logs.map(Result::unwrap_or_default).collect();
        logs.iter().map(|log| log.matches(text).count()).sum()
    }
}

/// What went on, in numbers, for people; and how many machines of a thousand had their address
/// within a minute in which some server could give it.
fn tell(site: &Site<'_>, history: &History) -> i64 {
    let (mut all, mut alone, mut alone_new) = (0, 0, 0);
    for event in &history.events {
        let What::Acked(ack) = &event.what else {
            continue;
        };
        all += 1;
        let by = site.servers.iter().position(|s| s.address == ack.server);
        let stretches = by.map(|n| &site.standing[n].alone);
        if stretches.is_some_and(|s| s.hold(event.at, CUT_FOR_SURE)) {
            alone += 1;
            alone_new += i32::from(ack.kind == Kind::Select);
        }
    }
    eprintln!(
        "{all} ACKs, {alone} of them by servers that were without the database, {alone_new} of those to machines that had none"
    );
    let (served, unserved) = waits(history, &site.able);
    let late = |waits: &[i64]| waits.iter().filter(|w| **w > 60_000).count();
    let (in_time, late) = (
        served.len() - late(&served),
        late(&served) + late(&unserved),
    );
    let of = |percent: usize| served.get(served.len() * percent / 100).copied();
    let each = i64::try_from(in_time * 1_000 / (in_time + late).max(1)).expect("small");
    eprintln!(
        "{in_time} times an address was had within a minute of {}, {each} of a thousand; waits of those served p50 {:?} p99 {:?} most {:?} ms; {} wait at the end",
        in_time + late,
        of(50),
        of(99),
        served.last(),
        unserved.len()
    );
    eprintln!(
        "the servers: {} leases set aside, {} times all leases were had again",
        site.said("it is set aside"),
        site.said("the database has all leases again")
    );
    each
}

#[test]
fn no_address_is_held_twice_and_no_lease_is_lost_under_kill_9_and_cut_links() {
    let mut dice = Dice::new();
    let measure = Measure::of_this_run();
    let plan = measure.plan(&mut dice);
    let lab = Lab::new("histories");
    let mut site = Site::new(&lab, &measure);
    let crowd = Crowd::start(
        &lab,
        (measure.clients, measure.ramp),
        dice.below(1 << 32),
        &[],
    );
    site.harm(&plan, measure.seconds);
    site.settle();
    // Some more time in which whoever has something wrong can say so to a client.
    std::thread::sleep(secs(u64::from(rounds(5, 60))));
    let (history, said) = crowd.end();
    eprintln!("the crowd: {said}");
    site.settle();
    let read_at = now();
    let rows = site.database.leases();
    let served = tell(&site, &history);
    let faults = check(&history, &rows, read_at);
    let excerpts: Vec<String> = faults.iter().take(5).map(|f| history.excerpt(f)).collect();
    assert!(
        faults.is_empty(),
        "{} faults, the first of them:\n{}",
        faults.len(),
        excerpts.join("\n")
    );
    assert!(served >= 990, "{served} of a thousand");
}

#[test]
fn torture_a_pool_of_as_many_addresses_serves_as_many_machines() {
    let mut dice = Dice::new();
    let machines = rounds(200, 5_000);
    let measure = Measure {
        clients: machines,
        addresses: machines,
        ramp: rounds(5, 60),
        ..Measure::of_this_run()
    };
    let lab = Lab::new("histories_full");
    let site = Site::new(&lab, &measure);
    let crowd = Crowd::start(
        &lab,
        (measure.clients, measure.ramp),
        dice.below(1 << 32),
        &["calm"],
    );
    let limit = secs(u64::from(measure.ramp) + 60);
    let count = machines.to_string();
    wait_for("every machine has an address", limit, || {
        let query = "select count(*) from leases where state = 'active'";
        (site.database.ask("dls", query).trim() == count).then_some(())
    });
    let (history, said) = crowd.end();
    eprintln!("the crowd: {said}");
    let read_at = now();
    let faults = check(&history, &site.database.leases(), read_at);
    assert_eq!(faults, []);
    let (served, unserved) = waits(&history, &Stretches(vec![(0, i64::MAX)]));
    eprintln!("the longest wait: {:?} ms", served.last());
    assert_eq!((served.len(), unserved), (machines as usize, vec![]));
}
