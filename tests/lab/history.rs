//! What DHCP clients were told, and whether all of it can be true: a pure checker of histories.
//!
//! A machine *holds* an address from the ACK on until the lease has run out (reckoned from when
//! it sent its REQUEST), it has released or forgotten it, was refused it by a NAK, or an ACK moved
//! it to another one. It is *owed* what was acknowledged last, held or not, until the lease has run
//! out, was released or refused. Times are the clients' own, in ms of one clock; there is no tolerance.
//!
//! Must not know how a history came about (`histories`, `dhcp_crowd.py`).

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

/// The database's clock is read in ms, and a lease's length is whole seconds.
const TO_THE_SECOND: i64 = 1_000;

/// Something that a machine did or was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// ms of the crowd's clock.
    pub(crate) at: i64,
    /// Which machine.
    pub(crate) mac: String,
    /// What.
    pub(crate) what: What,
}

/// See the head of `dhcp_crowd.py`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// It has no address and begins to ask for one.
    Wants,
    /// It has been given one.
    Acked(Ack),
    /// It was refused the address that it had asked for.
    Naked {
        address: Ipv4Addr,
        server: Ipv4Addr,
        kind: Kind,
    },
    /// It has given it back.
    Released(Ipv4Addr),
    /// It has stopped using it, at the end of its lease.
    Expired(Ipv4Addr),
    /// It was switched off, and told nobody.
    Forgot(Ipv4Addr),
    /// An ACK that it did not wait for (any more).
    Stray {
        address: Ipv4Addr,
        asked: Option<Ipv4Addr>,
        server: Ipv4Addr,
    },
}

/// An acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ack {
    /// What was given.
    pub(crate) address: Ipv4Addr,
    /// What it had asked for.
    pub(crate) asked: Ipv4Addr,
    /// For how long.
    pub(crate) seconds: i64,
    /// By whom (option 54).
    pub(crate) server: Ipv4Addr,
    /// In which state it had asked.
    pub(crate) kind: Kind,
    /// When it had asked first.
    pub(crate) sent: i64,
}

impl Ack {
    /// When the machine must have stopped using it.
    const fn until(&self) -> i64 {
        self.sent + self.seconds * 1_000
    }
}

/// RFC 2131 section 4.3.2: the four states in which an address is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Select,
    Renew,
    Rebind,
    Reboot,
}

/// All that a crowd has written down.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// What the wall clock is ahead of the crowd's.
    pub(crate) ahead: i64,
    /// In the order in which it happened.
    pub(crate) events: Vec<Event>,
}

/// A row of `leases`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: String,
    pub(crate) state: String,
    /// ms since 1970.
    pub(crate) end: i64,
}

/// What must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The second machine was given what the first one held until then.
    TwoHolders {
        address: Ipv4Addr,
        first: (String, Ack),
        second: (String, Ack),
        at: i64,
    },
    /// A machine was given another address than it had asked for.
    OtherAddress {
        mac: String,
        asked: Ipv4Addr,
        given: Ipv4Addr,
        server: Ipv4Addr,
        at: i64,
    },
    /// A machine was refused what it was owed.
    Refused {
        mac: String,
        owed: Ack,
        server: Ipv4Addr,
        kind: Kind,
        at: i64,
    },
    /// What a machine is owed is not in the database, but this is.
    Lost {
        mac: String,
        owed: Ack,
        found: Option<Row>,
    },
    /// It is there, with an end so many ms before the acknowledged one.
    Shortened { mac: String, owed: Ack, by: i64 },
}

impl History {
    /// Reads what `dhcp_crowd.py` wrote.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut history = Self::default();
        let mut last = i64::MIN;
        for line in text.lines() {
            let read = |history: &mut Self| {
                let words: Vec<&str> = line.split_ascii_whitespace().collect();
                let (&name, words) = words.split_first()?;
                let at = words.first()?.parse().ok()?;
                match (name, &words[1..]) {
                    ("clock", [wall]) => history.ahead = wall.parse::<i64>().ok()? - at,
                    ("end", []) => {}
                    (name, [mac, words @ ..]) => history.events.push(Event {
                        at,
                        mac: (*mac).to_owned(),
                        what: what(name, words)?,
                    }),
                    _ => return None,
                }
                Some(at)
            };
            let at = read(&mut history).ok_or_else(|| format!("not understood: {line}"))?;
            if at < last {
                return Err(format!("the clock went back: {line}"));
            }
            last = at;
        }
        Ok(history)
    }

    /// The lines of some machines and addresses, for people.
    pub(crate) fn excerpt(&self, fault: &Fault) -> String {
        let (macs, address) = match fault {
            Fault::TwoHolders {
                first,
                second,
                address,
                ..
            } => (vec![&first.0, &second.0], Some(*address)),
            Fault::OtherAddress { mac, .. } => (vec![mac], None),
            Fault::Refused { mac, owed, .. }
            | Fault::Lost { mac, owed, .. }
            | Fault::Shortened { mac, owed, .. } => (vec![mac], Some(owed.address)),
        };
        let concerned = |event: &&Event| {
            macs.contains(&&event.mac)
                || matches!(&event.what, What::Acked(ack) if Some(ack.address) == address)
        };
        let lines = self.events.iter().filter(concerned);
        let lines: Vec<String> = lines.map(|event| format!("    {event:?}")).collect();
        let from = lines.len().saturating_sub(40);
        format!("{fault:?}\n{}", lines[from..].join("\n"))
    }
}

fn what(name: &str, words: &[&str]) -> Option<What> {
    let address = |word: &str| word.parse().ok();
    Some(match (name, words) {
        ("wants", []) => What::Wants,
        ("acked", [got, asked, seconds, server, in_state, sent]) => What::Acked(Ack {
            address: address(got)?,
            asked: address(asked)?,
            seconds: seconds.parse().ok()?,
            server: address(server)?,
            kind: kind(in_state)?,
            sent: sent.parse().ok()?,
        }),
        ("naked", [asked, server, in_state]) => What::Naked {
            address: address(asked)?,
            server: address(server)?,
            kind: kind(in_state)?,
        },
        ("released", [held]) => What::Released(address(held)?),
        ("expired", [held]) => What::Expired(address(held)?),
        ("forgot", [held]) => What::Forgot(address(held)?),
        ("stray", [got, asked, server]) => What::Stray {
            address: address(got)?,
            asked: match *asked {
                "-" => None,
                asked => Some(address(asked)?),
            },
            server: address(server)?,
        },
        _ => return None,
    })
}

fn kind(word: &str) -> Option<Kind> {
    Some(match word {
        "select" => Kind::Select,
        "renew" => Kind::Renew,
        "rebind" => Kind::Rebind,
        "reboot" => Kind::Reboot,
        _ => return None,
    })
}

/// All that is wrong in a history and the rows that were read at `read_at` (of the crowd's
/// clock), after its last event.
pub(crate) fn check(history: &History, rows: &[Row], read_at: i64) -> Vec<Fault> {
    let mut holders: HashMap<Ipv4Addr, (&str, &Ack)> = HashMap::new();
    let mut held: HashMap<&str, Ipv4Addr> = HashMap::new();
    let mut owed: HashMap<&str, &Ack> = HashMap::new();
    let mut faults = Vec::new();
    for Event { at, mac, what } in &history.events {
        let mac = mac.as_str();
        let mut let_go = || {
            if let Some(address) = held.remove(mac)
                && holders.get(&address).is_some_and(|(by, _)| *by == mac)
            {
                holders.remove(&address);
            }
        };
        match what {
            What::Wants => {}
            What::Acked(ack) => {
                let_go();
                if let Some((first, before)) = holders.get(&ack.address)
                    && *at < before.until()
                {
                    faults.push(Fault::TwoHolders {
                        address: ack.address,
                        first: ((*first).to_owned(), (*before).clone()),
                        second: (mac.to_owned(), ack.clone()),
                        at: *at,
                    });
                }
                holders.insert(ack.address, (mac, ack));
                held.insert(mac, ack.address);
                owed.insert(mac, ack);
                faults.extend(other(mac, *at, ack.asked, ack.address, ack.server));
            }
            What::Naked {
                address,
                server,
                kind,
            } => {
                let_go();
                let lease = owed.get(mac).filter(|l| l.address == *address);
                if let Some(lease) = lease.filter(|l| *at < l.until() && *kind != Kind::Select) {
                    faults.push(Fault::Refused {
                        mac: mac.to_owned(),
                        owed: (*lease).clone(),
                        server: *server,
                        kind: *kind,
                        at: *at,
                    });
                }
                // Who was only choosing had asked for something new: it is owed the old as before.
                if lease.is_some() && *kind != Kind::Select {
                    owed.remove(mac);
                }
            }
            What::Released(address) => {
                let_go();
                if owed.get(mac).is_some_and(|l| l.address == *address) {
                    owed.remove(mac);
                }
            }
            What::Expired(_) | What::Forgot(_) => let_go(),
            What::Stray {
                address,
                asked,
                server,
            } => {
                let asked = asked.unwrap_or(*address);
                faults.extend(other(mac, *at, asked, *address, *server));
            }
        }
    }
    faults.extend(lost(&owed, rows, read_at, history.ahead));
    faults
}

fn other(mac: &str, at: i64, asked: Ipv4Addr, given: Ipv4Addr, server: Ipv4Addr) -> Option<Fault> {
    (asked != given).then(|| Fault::OtherAddress {
        mac: mac.to_owned(),
        asked,
        given,
        server,
        at,
    })
}

/// What is owed and runs still, against the rows.
fn lost(owed: &HashMap<&str, &Ack>, rows: &[Row], read_at: i64, ahead: i64) -> Vec<Fault> {
    let by_address: HashMap<Ipv4Addr, &Row> = rows.iter().map(|r| (r.address, r)).collect();
    let owed: BTreeMap<&str, &Ack> = owed.iter().map(|(mac, ack)| (*mac, *ack)).collect();
    let mut faults = Vec::new();
    for (mac, ack) in owed {
        if ack.until() <= read_at {
            continue;
        }
        let row = by_address.get(&ack.address).copied();
        match row.filter(|row| row.mac == mac && row.state == "active") {
            Some(row) => {
                let by = ack.until() + ahead - row.end;
                if by > TO_THE_SECOND {
                    faults.push(Fault::Shortened {
                        mac: mac.to_owned(),
                        owed: ack.clone(),
                        by,
                    });
                }
            }
            None => faults.push(Fault::Lost {
                mac: mac.to_owned(),
                owed: ack.clone(),
                found: row
                    .or_else(|| rows.iter().find(|row| row.mac == mac))
                    .cloned(),
            }),
        }
    }
    faults
}

/// Stretches of time, `from..to` in ms, in order and apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stretches(pub(crate) Vec<(i64, i64)>);

impl Stretches {
    /// How much of `from..to` lies in them.
    pub(crate) fn within(&self, from: i64, to: i64) -> i64 {
        let part = |(a, b): &(i64, i64)| (to.min(*b) - from.max(*a)).max(0);
        self.0.iter().map(part).sum()
    }

    /// Whether a moment lies in them, at least `inside` ms after the beginning of its stretch.
    pub(crate) fn hold(&self, at: i64, inside: i64) -> bool {
        (self.0.iter()).any(|(from, to)| (from + inside..*to).contains(&at))
    }
}

/// How long machines that wanted an address have waited for it, in ms, counting only the time in
/// which some server could have given it: those who got one, and those who did not by the end.
pub(crate) fn waits(history: &History, able: &Stretches) -> (Vec<i64>, Vec<i64>) {
    let mut waiting: HashMap<&str, i64> = HashMap::new();
    let mut served = Vec::new();
    for Event { at, mac, what } in &history.events {
        match what {
            What::Wants => {
                waiting.entry(mac).or_insert(*at);
            }
            What::Acked(_) => {
                let since = waiting.remove(mac.as_str());
                served.extend(since.map(|since| able.within(since, *at)));
            }
            _ => {}
        }
    }
    let end = history.events.last().map_or(0, |event| event.at);
    let mut unserved: Vec<i64> = waiting.values().map(|t| able.within(*t, end)).collect();
    served.sort_unstable();
    unserved.sort_unstable();
    (served, unserved)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events are written as the crowd does, with short names: `a` is a machine, `.1` an address,
    /// `S` a server. The wall clock is one second ahead.
    fn history(lines: &[&str]) -> History {
        let word = |word: &str| match word.strip_prefix('.') {
            Some(last) => format!("10.0.0.{last}"),
            None => word.replace('S', "10.0.0.254"),
        };
        let line = |line: &&str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = lines.iter().map(line).collect();
        History::parse(&format!("clock 0 1000\n{}\n", lines.join("\n"))).expect("a history")
    }

    fn row(last: u8, mac: &str, state: &str, end: i64) -> Row {
        Row {
            address: Ipv4Addr::new(10, 0, 0, last),
            mac: mac.to_owned(),
            state: state.to_owned(),
            end,
        }
    }

    /// The faults' names, in order, of a history with no rows, read after all leases' ends.
    fn names(lines: &[&str]) -> Vec<&'static str> {
        check(&history(lines), &[], i64::MAX)
            .iter()
            .map(name)
            .collect()
    }

    fn name(fault: &Fault) -> &'static str {
        match fault {
            Fault::TwoHolders { .. } => "two",
            Fault::OtherAddress { .. } => "other",
            Fault::Refused { .. } => "refused",
            Fault::Lost { .. } => "lost",
            Fault::Shortened { .. } => "short",
        }
    }

    /// What, the history, the rows and when they were read, the faults.
    type Case<'a> = (&'a str, &'a [&'a str], Vec<Row>, i64, &'a [&'a str]);

    const A: &str = "acked 1000 a .1 .1 60 S select 900";

    #[test]
    fn two_holders_of_an_address_are_found_and_only_then() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            (
                "both at once",
                &[A, "acked 2000 b .1 .1 60 S select 1900"],
                &["two"],
            ),
            (
                "to the last ms",
                &[A, "acked 60899 b .1 .1 60 S select 60800"],
                &["two"],
            ),
            (
                "after the end of the first's lease",
                &[A, "acked 60900 b .1 .1 60 S select 60800"],
                &[],
            ),
            (
                "renewed meanwhile",
                &[
                    A,
                    "acked 30000 a .1 .1 60 S renew 29900",
                    "acked 60900 b .1 .1 60 S select 60800",
                ],
                &["two"],
            ),
            (
                "after a release",
                &[
                    A,
                    "released 2000 a .1",
                    "acked 2000 b .1 .1 60 S select 1900",
                ],
                &[],
            ),
            (
                "before a release",
                &[
                    A,
                    "acked 1999 b .1 .1 60 S select 1900",
                    "released 2000 a .1",
                ],
                &["two"],
            ),
            (
                "a moved on",
                &[
                    A,
                    "acked 2000 a .2 .2 60 S select 1900",
                    "acked 3000 b .1 .1 60 S select 2900",
                ],
                &[],
            ),
            (
                "a moved to b's",
                &[
                    "acked 900 b .2 .2 60 S rebind 800",
                    A,
                    "acked 2000 a .2 .2 60 S select 1900",
                ],
                &["two"],
            ),
            (
                "a was switched off",
                &[A, "forgot 2000 a .1", "acked 3000 b .1 .1 60 S select 2900"],
                &[],
            ),
            (
                "a was refused it",
                &[
                    A,
                    "naked 61000 a .1 S renew",
                    "acked 61500 b .1 .1 60 S select 61400",
                ],
                &[],
            ),
            (
                "a third one later",
                &[
                    A,
                    "acked 2000 b .1 .1 60 S select 1900",
                    "acked 3000 c .1 .1 60 S select 2900",
                ],
                &["two", "two"],
            ),
            (
                "the second's release is not the first's",
                &[
                    A,
                    "acked 2000 b .1 .1 60 S select 1900",
                    "released 2500 a .1",
                    "acked 3000 c .1 .1 60 S select 2900",
                ],
                &["two", "two"],
            ),
            (
                "the same machine again",
                &[A, "acked 2000 a .1 .1 60 S reboot 1900"],
                &[],
            ),
            (
                "other addresses",
                &[A, "acked 2000 b .2 .2 60 S select 1900"],
                &[],
            ),
        ];
        for (case, lines, expected) in cases {
            assert_eq!(&names(lines), expected, "{case}");
        }
    }

    #[test]
    fn other_addresses_and_refusals_are_found() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            (
                "given another one",
                &["acked 1000 a .2 .1 60 S select 900"],
                &["other"],
            ),
            (
                "two servers, two addresses",
                &[A, "stray 1001 a .2 .1 S"],
                &["other"],
            ),
            (
                "two servers, one address",
                &[A, "stray 1001 a .1 .1 S"],
                &[],
            ),
            ("too late to tell", &[A, "stray 1001 a .2 - S"], &[]),
            (
                "refused what it has",
                &[A, "naked 60899 a .1 S rebind"],
                &["refused"],
            ),
            (
                "refused what has run out",
                &[A, "naked 60900 a .1 S rebind"],
                &[],
            ),
            ("refused an offer", &["naked 1000 a .1 S select"], &[]),
            (
                "refused what it released",
                &[A, "released 2000 a .1", "naked 3000 a .1 S reboot"],
                &[],
            ),
            (
                "refused what it had before",
                &[
                    A,
                    "acked 2000 a .2 .2 60 S select 1900",
                    "naked 3000 a .1 S reboot",
                ],
                &[],
            ),
        ];
        for (case, lines, expected) in cases {
            assert_eq!(&names(lines), expected, "{case}");
        }
    }

    #[test]
    fn lost_and_shortened_leases_are_found() {
        // Acknowledged until 60,900 of the crowd's clock, 61,900 of the wall's.
        let its = |end| vec![row(1, "a", "active", end)];
        let moved: &[&str] = &[A, "acked 2000 a .2 .2 60 S select 1900"];
        let cases: &[Case<'_>] = &[
            ("there", &[A], its(61_900), 5000, &[]),
            ("there, to the second", &[A], its(60_900), 5000, &[]),
            ("there, longer", &[A], its(99_000), 5000, &[]),
            ("shortened", &[A], its(60_899), 5000, &["short"]),
            (
                "renewed, and the old end is there",
                &[A, "acked 4000 a .1 .1 60 S renew 3900"],
                its(61_900),
                5000,
                &["short"],
            ),
            ("no row", &[A], vec![], 5000, &["lost"]),
            (
                "no row, a ms before its end",
                &[A],
                vec![],
                60_899,
                &["lost"],
            ),
            ("no row, at its end", &[A], vec![], 60_900, &[]),
            (
                "another's",
                &[A],
                vec![row(1, "b", "active", 61_900)],
                5000,
                &["lost"],
            ),
            (
                "another address",
                &[A],
                vec![row(2, "a", "active", 61_900)],
                5000,
                &["lost"],
            ),
            (
                "marked released",
                &[A],
                vec![row(1, "a", "released", 61_900)],
                5000,
                &["lost"],
            ),
            (
                "marked declined",
                &[A],
                vec![row(1, "a", "declined", 61_900)],
                5000,
                &["lost"],
            ),
            ("released", &[A, "released 2000 a .1"], vec![], 5000, &[]),
            (
                "refused by a server that had offered it",
                &[A, "forgot 2000 a .1", "naked 3000 a .1 S select"],
                vec![],
                5000,
                &["lost"],
            ),
            (
                "switched off: it was never given back",
                &[A, "forgot 2000 a .1"],
                vec![],
                5000,
                &["lost"],
            ),
            (
                "moved, the new one is there",
                moved,
                vec![row(2, "a", "active", 62_900)],
                5000,
                &[],
            ),
            (
                "moved, the old one is there",
                moved,
                its(61_900),
                5000,
                &["lost"],
            ),
        ];
        for (case, lines, rows, at, expected) in cases {
            let found = check(&history(lines), rows, *at);
            let found: Vec<&str> = found.iter().map(name).collect();
            assert_eq!(&found, expected, "{case}");
        }
    }

    #[test]
    fn only_the_time_counts_in_which_somebody_could_serve() {
        let able = Stretches(vec![(0, 1000), (5000, 9000)]);
        assert_eq!(able.within(500, 6000), 1500);
        assert_eq!(able.within(2000, 4000), 0);
        assert!(able.hold(5000, 0) && able.hold(8999, 0) && able.hold(7000, 2000));
        assert!(!able.hold(9000, 0) && !able.hold(6999, 2000));
        let told = history(&[
            "wants 0 b",
            "wants 500 a",
            "acked 6000 a .1 .1 60 S select 5900",
            "acked 7000 a .1 .1 60 S renew 6900",
            "expired 8000 a .1",
            "wants 8000 a",
            "acked 8100 a .1 .1 60 S select 8000",
        ]);
        assert_eq!(waits(&told, &able), (vec![100, 1500], vec![4100]));
    }

    #[test]
    fn what_is_no_history_is_not_taken_for_one() {
        for line in [
            "acked 1 a 10.0.0.1 10.0.0.1 60 10.0.0.2 other 1",
            "acked 1 a 10.0.0.1 60 10.0.0.2 select 1",
            "acked 1 a 10.0.0.1 10.0.0.1 60 10.0.0.2 select",
            "lost 1 a 10.0.0.1",
            "wants a",
            "",
        ] {
            assert!(History::parse(&format!("{line}\n")).is_err(), "{line}");
        }
        assert!(History::parse("wants 2 a\nwants 1 b\n").is_err());
        assert!(History::parse("clock 5 1005\nwants 5 a\nend 6\n").is_ok_and(|h| h.ahead == 1000));
    }
}
