//! Several servers on one database, cut off from it and from each other at random: whatever
//! happens, no two machines are ever acknowledged one address at one time.
//!
//! The database is a model of its rules (`catalog/leases.rs`, `catalog/blocks.rs`); books, claims
//! and what counts as sure are the real ones.

use super::*;

/// Seconds.
const LEASE: i64 = 60;
const CLAIM: i64 = 200;
const SERVERS: usize = 3;
const POOL: u8 = 12;

#[derive(Debug, Clone)]
enum Step {
    /// A machine without an address asks this server.
    Ask {
        machine: u32,
        server: usize,
    },
    /// A machine renews with this server what it has.
    Renew {
        machine: u32,
        server: usize,
    },
    Release {
        machine: u32,
        server: usize,
    },
    /// The link of a server to the database goes, or comes back.
    Cut {
        server: usize,
    },
    Heal {
        server: usize,
    },
    /// Its round: claims are kept, and shared out.
    Round {
        server: usize,
    },
    /// It is killed, and starts again with what is on its disk.
    Restart {
        server: usize,
    },
    Wait {
        seconds: i64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let server = 0..SERVERS;
    let machine = 0_u32..20;
    let step = prop_oneof![
        8 => (machine.clone(), server.clone()).prop_map(|(machine, server)| Step::Ask { machine, server }),
        4 => (machine.clone(), server.clone()).prop_map(|(machine, server)| Step::Renew { machine, server }),
        2 => (machine, server.clone()).prop_map(|(machine, server)| Step::Release { machine, server }),
        2 => server.clone().prop_map(|server| Step::Cut { server }),
        3 => server.clone().prop_map(|server| Step::Heal { server }),
        4 => server.clone().prop_map(|server| Step::Round { server }),
        1 => server.prop_map(|server| Step::Restart { server }),
        3 => (1_i64..40).prop_map(|seconds| Step::Wait { seconds }),
        1 => Just(Step::Wait { seconds: CLAIM + LEASE }),
    ];
    prop::collection::vec(step, 1..120)
}

/// What the database does.
#[derive(Default)]
struct Central {
    rows: BTreeMap<Ipv4Addr, Lease>,
    blocks: Vec<(usize, Stretches)>,
    until: BTreeMap<usize, i64>,
}

impl Central {
    fn commit(&mut self, server: usize, lease: &Lease, now: i64) -> bool {
        let before = self.rows.get(&lease.address);
        let its = before.is_some_and(|row| row.mac == lease.mac);
        let of_others = self
            .blocks
            .iter()
            .any(|(owner, block)| *owner != server && block.contains(lease.address));
        let lasts = before.is_some_and(|row| {
            row.mac != lease.mac && row.state == LeaseState::Active && row.lasts(at(now))
        });
        if lasts || (of_others && !its) {
            return false;
        }
        self.rows
            .retain(|address, row| row.mac != lease.mac || *address == lease.address);
        self.rows.insert(lease.address, lease.clone());
        true
    }

    /// What was acknowledged without it.
    fn replay(&mut self, server: usize, lease: &Lease, now: i64) -> bool {
        let newer = self
            .rows
            .values()
            .any(|row| row.mac == lease.mac && row.starts_at > lease.starts_at);
        !newer && self.commit(server, lease, now)
    }

    fn release(&mut self, address: Ipv4Addr, mac: MacAddr, now: i64) {
        if let Some(row) = self.rows.get_mut(&address)
            && row.mac == mac
            && row.starts_at <= at(now)
        {
            row.state = LeaseState::Released;
        }
    }

    fn of(&self, server: usize, own: bool) -> Stretches {
        let blocks = self.blocks.iter().filter(|(s, _)| (*s == server) == own);
        blocks.fold(Stretches::default(), |all, (_, block)| all.or(block))
    }
}

enum Due {
    Put(Lease),
    Release(Ipv4Addr, MacAddr, i64),
}

struct Node {
    book: Book,
    cut: bool,
    until: i64,
    claims: Claims,
    owed: Vec<Due>,
}

struct Shared {
    range: NetworkRange,
    now: i64,
    central: Central,
    nodes: Vec<Node>,
    /// What each machine believes: its address, until when.
    held: BTreeMap<u32, (Ipv4Addr, i64)>,
    without: usize,
}

impl Shared {
    fn new() -> Self {
        let range = small("10.0.0.100", &format!("10.0.0.{}", 99 + POOL));
        let node = |_| {
            let mut book = Book::default();
            book.share();
            Node {
                book,
                cut: false,
                until: 0,
                claims: Claims::default(),
                owed: Vec::new(),
            }
        };
        Self {
            range,
            now: 0,
            central: Central::default(),
            nodes: (0..SERVERS).map(node).collect(),
            held: BTreeMap::new(),
            without: 0,
        }
    }

    fn look(&mut self, server: usize, who: u32, asks: Option<Ipv4Addr>) -> AddressFacts {
        let node = &mut self.nodes[server];
        let asker = Asker {
            is_known: true,
            relay: None,
            mac: mac(who),
            reserved: None,
            requested: asks,
            is_reserved: &|_| false,
            is_live: &|_| false,
            reach: if node.cut {
                Reach::Own
            } else {
                Reach::Database
            },
        };
        node.book.look(&self.range, &asker, at(self.now))
    }

    /// Is it acknowledged?
    fn grant(&mut self, server: usize, machine: u32, address: Ipv4Addr) -> bool {
        let now = self.now;
        let lease = Lease {
            range_id: self.range.id,
            starts_at: at(now),
            ..lease(address, mac(machine), u32::try_from(LEASE).unwrap())
        };
        let node = &mut self.nodes[server];
        let sure = now < node.until && node.book.is_sure(self.range.id, address, mac(machine));
        if !node.cut && node.owed.is_empty() {
            if !self.central.commit(server, &lease, now) {
                self.read(server);
                return false;
            }
            self.tell(&lease);
        } else if sure {
            node.owed.push(Due::Put(lease.clone()));
            self.without += 1;
        } else if !node.cut && self.central.commit(server, &lease, now) {
            self.tell(&lease);
        } else {
            return false;
        }
        let node = &mut self.nodes[server];
        node.book.put(lease);
        node.book.wrote(address);
        self.held.insert(machine, (address, now + LEASE));
        true
    }

    /// Those that can hear of it do.
    fn tell(&mut self, lease: &Lease) {
        for node in self
            .nodes
            .iter_mut()
            .filter(|n| !n.cut && n.owed.is_empty())
        {
            node.book.put(lease.clone());
        }
    }

    /// All leases, as the database has them.
    fn read(&mut self, server: usize) {
        let node = &mut self.nodes[server];
        if node.cut || !node.owed.is_empty() {
            return;
        }
        let gone: Vec<Ipv4Addr> = node
            .book
            .leases()
            .map(|l| l.address)
            .filter(|a| !self.central.rows.contains_key(a))
            .collect();
        gone.into_iter().for_each(|a| node.book.remove(a));
        let rows = self.central.rows.values();
        rows.for_each(|row| node.book.put(row.clone()));
    }

    fn pay(&mut self, server: usize) {
        let owed = std::mem::take(&mut self.nodes[server].owed);
        for due in owed {
            match due {
                Due::Put(lease) => {
                    if self.central.replay(server, &lease, self.now) {
                        self.tell(&lease);
                    }
                }
                Due::Release(address, who, then) => self.central.release(address, who, then),
            }
        }
        self.read(server);
    }

    fn round(&mut self, server: usize) {
        let (now, range) = (self.now, self.range.clone());
        if self.nodes[server].cut {
            return;
        }
        self.central.until.insert(server, now + CLAIM);
        self.read(server);
        let (own, others) = (
            self.central.of(server, true),
            self.central.of(server, false),
        );
        let node = &mut self.nodes[server];
        node.until = now + CLAIM - 10;
        node.claims = Claims { own, others };
        node.book
            .claim(HashMap::from([(range.id, node.claims.clone())]));
        // Who is gone for good leaves its blocks.
        let until = self.central.until.clone();
        self.central
            .blocks
            .retain(|(owner, _)| *owner == server || until[owner] + LEASE >= now);
        let layout = Layout {
            own: node.claims.own.clone(),
            others: self.central.of(server, false),
            servers: SERVERS as u64,
            ..node.book.layout(&range, at(now))
        };
        let wanted = arrange(&layout);
        // What is given back is out of use first; what is new is used once all is read.
        self.central.blocks.retain(|(owner, _)| *owner != server);
        self.central.blocks.push((server, wanted.clone()));
        self.read(server);
        let node = &mut self.nodes[server];
        node.claims = Claims {
            own: wanted,
            others: self.central.of(server, false),
        };
        let claims = HashMap::from([(range.id, node.claims.clone())]);
        self.nodes[server].book.claim(claims);
    }

    fn step(&mut self, step: &Step) {
        // No two leases begin at the same moment: which is newer would not be known.
        self.now += i64::from(matches!(step, Step::Ask { .. } | Step::Renew { .. }));
        match *step {
            Step::Ask { machine, server } => {
                if self.held.contains_key(&machine) {
                    return;
                }
                let found = self.look(server, machine, None).candidate;
                if let Candidate::Ready(address) | Candidate::Unprobed(address) = found {
                    self.grant(server, machine, address);
                }
            }
            Step::Renew { machine, server } => {
                if let Some((address, _)) = self.held.get(&machine).copied()
                    && self.look(server, machine, Some(address)).requested == Standing::Its
                {
                    self.grant(server, machine, address);
                }
            }
            Step::Release { machine, server } => {
                let Some((address, _)) = self.held.remove(&machine) else {
                    return;
                };
                let (now, who) = (self.now, mac(machine));
                let node = &mut self.nodes[server];
                if node.book.lease_at(address).is_none_or(|l| l.mac != who) {
                    return;
                }
                let ended = Lease {
                    state: LeaseState::Released,
                    ..node.book.lease_at(address).unwrap().clone()
                };
                node.book.put(ended.clone());
                if node.cut || !node.owed.is_empty() {
                    node.owed.push(Due::Release(address, who, now));
                } else {
                    self.central.release(address, who, now);
                    self.tell(&ended);
                }
            }
            Step::Cut { server } => self.nodes[server].cut = true,
            Step::Heal { server } => {
                self.nodes[server].cut = false;
                self.pay(server);
            }
            Step::Round { server } => self.round(server),
            Step::Restart { server } => {
                let node = &mut self.nodes[server];
                let leases: Vec<Lease> = node.book.leases().cloned().collect();
                node.book = Book::default();
                node.book.share();
                leases.into_iter().for_each(|lease| node.book.put(lease));
                let claims = HashMap::from([(self.range.id, node.claims.clone())]);
                node.book.claim(claims);
                self.read(server);
            }
            Step::Wait { seconds } => self.now += seconds,
        }
        let now = self.now;
        self.held.retain(|_, (_, until)| now < *until);
        let addresses: BTreeSet<Ipv4Addr> = self.held.values().map(|(a, _)| *a).collect();
        assert_eq!(addresses.len(), self.held.len(), "{:?}", self.held);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn no_address_is_anybody_elses_whoever_is_cut_off(steps in steps()) {
        let mut shared = Shared::new();
        for step in &steps {
            shared.step(step);
        }
        // And nothing acknowledged is lost when all is well again.
        for server in 0..SERVERS {
            shared.step(&Step::Heal { server });
        }
        for (machine, (address, _)) in &shared.held {
            let row = shared.central.rows.get(address);
            prop_assert!(
                row.is_some_and(|row| row.mac == mac(*machine)),
                "machine {machine} has {address}, the database says {row:?}"
            );
        }
    }
}

#[test]
fn a_server_that_is_cut_off_gives_away_what_it_has_claimed_and_no_more() {
    let mut shared = Shared::new();
    for server in 0..SERVERS {
        shared.step(&Step::Round { server });
    }
    // Two each, half of the pool is left to all.
    let claimed = |s: &Shared, n: usize| s.nodes[n].claims.own.size();
    assert_eq!([0, 1, 2].map(|n| claimed(&shared, n)), [2, 2, 2]);
    // It hears of the third one's.
    shared.step(&Step::Round { server: 1 });
    shared.step(&Step::Cut { server: 0 });
    for machine in 0..5 {
        shared.step(&Step::Ask { machine, server: 0 });
    }
    assert_eq!((shared.held.len(), shared.without), (2, 2));
    assert!(shared.look(0, 9, None).cut_off);
    // What it has not claimed it does not judge, nor do others what it has.
    let unsure = |s: &mut Shared, n: usize, a| s.look(n, 9, Some(a)).unsure;
    let own = shared.nodes[0].claims.own.pools().next().unwrap().first;
    let others = shared.nodes[1].claims.own.pools().next().unwrap().first;
    assert!(!unsure(&mut shared, 0, own) && unsure(&mut shared, 0, others));
    assert!(unsure(&mut shared, 1, own) && !unsure(&mut shared, 1, others));
    // They renew there, and with nobody else: the others have no record.
    shared.step(&Step::Wait { seconds: 30 });
    for machine in 0..2 {
        shared.step(&Step::Renew { machine, server: 1 });
        shared.step(&Step::Renew { machine, server: 0 });
    }
    assert_eq!(shared.without, 4);
    // The rest of the pool is there for the others' machines.
    for machine in 10..20 {
        shared.step(&Step::Ask { machine, server: 1 });
    }
    assert_eq!(shared.held.len(), 2 + 8, "all but the third server's two");
    // Its claim ends: it stops by itself.
    for _ in 0..10 {
        shared.step(&Step::Wait { seconds: 29 });
        shared.step(&Step::Renew {
            machine: 0,
            server: 0,
        });
    }
    assert!(!shared.held.contains_key(&0));
    shared.step(&Step::Round { server: 1 });
    shared.step(&Step::Ask {
        machine: 19,
        server: 1,
    });
    assert_eq!(shared.central.of(0, true).size(), 0, "taken over");
}

#[test]
fn a_pool_of_so_many_serves_so_many() {
    let mut shared = Shared::new();
    for machine in 0..u32::from(POOL) {
        for server in 0..SERVERS {
            shared.step(&Step::Round { server });
        }
        shared.step(&Step::Ask {
            machine,
            server: machine as usize % SERVERS,
        });
    }
    assert_eq!(shared.held.len(), usize::from(POOL));
}
