//! Tests of the machine: tables by RFC section, and a simulated bad network.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::super::wire::{self, Packet};
use super::*;

const LIMITS: Limits = Limits {
    max_blksize: 1468,
    max_window: 64,
    window_bytes: 65_000,
};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn asked(options: &[(&str, &str)]) -> Options {
    let mut bytes = b"\0\x01f\0octet\0".to_vec();
    for (name, value) in options {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
    }
    match wire::parse(&bytes) {
        Ok(Packet::Read(request)) => request.options,
        other => panic!("{other:?}"),
    }
}

fn machine(options: &[(&str, &str)], size: u64) -> Machine {
    Machine::new(negotiate(&asked(options), size, LIMITS))
}

fn blocks(first: u64, count: u16) -> Step {
    Step::SendBlocks { first, count }
}

fn oack(terms: &Terms) -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::encode_option_ack(&terms.granted, &mut bytes);
    bytes
}

/// RFC 2348, 2349, 7440; reliability cases 3 and 5.
#[test]
fn options_are_granted_within_limits() {
    for (options, want) in [
        (vec![("blksize", "8")], "blksize 8 "),
        (vec![("blksize", "65464")], "blksize 1468 "),
        (vec![("tsize", "0")], "tsize 1000 "),
        (vec![("timeout", "255")], "timeout 255 "),
        (vec![("timeout", "1")], "timeout 1 "),
        (vec![("windowsize", "4")], "windowsize 4 "),
        (vec![("windowsize", "65535")], "windowsize 64 "),
        // 44 blocks of 1468 bytes are 64,592 bytes, wherever blksize stands in the request.
        (
            vec![("windowsize", "64"), ("blksize", "1468")],
            "windowsize 44 blksize 1468 ",
        ),
        (vec![("multicast", "")], ""),
        (vec![("blksize", "7"), ("windowsize", "0")], ""),
        (
            vec![("TSize", "0"), ("blksize", "1024")],
            "TSize 1000 blksize 1024 ",
        ),
    ] {
        let terms = negotiate(&asked(&options), 1000, LIMITS);
        let text = String::from_utf8(oack(&terms)[2..].to_vec()).unwrap();
        assert_eq!(text.replace('\0', " "), want, "{options:?}");
    }
}

/// RFC 2347 section 3; reliability case 3: no option granted means DATA at once.
#[test]
fn no_option_no_oack() {
    let mut m = machine(&[("multicast", "")], 10);
    assert_eq!(m.start(ms(0)), blocks(1, 1));
    assert_eq!(m.on_ack(1, ms(1)), Step::End(Outcome::Complete));
}

/// RFC 1350 section 2; reliability case 2: how many blocks a size takes.
#[test]
fn the_last_block_is_short_even_if_empty() {
    for (size, count) in [(0, 1), (1, 1), (511, 1), (512, 2), (513, 2), (1024, 3)] {
        let mut m = machine(&[], size);
        let mut step = m.start(ms(0));
        let mut sent = 0;
        while let Step::SendBlocks { first, count: 1 } = step {
            sent += 1;
            assert_eq!(first, sent);
            step = m.on_ack(u16::try_from(first).unwrap(), ms(first));
        }
        assert_eq!(step, Step::End(Outcome::Complete));
        assert_eq!(sent, count, "{size}");
        assert_eq!(m.delivered(), size);
    }
}

/// RFC 2349 and the field (UEFI); reliability case 4: a size probe is no failure.
#[test]
fn an_error_before_the_first_block_is_a_probe() {
    for after_ack in [false, true] {
        let mut m = machine(&[("tsize", "0"), ("blksize", "1468")], 9000);
        assert_eq!(m.start(ms(0)), Step::SendOptionAck);
        if after_ack {
            assert_eq!(m.on_ack(0, ms(1)), blocks(1, 1));
        }
        let end = m.on_error(ErrorCode::OptionNegotiation, b"User aborted");
        assert_eq!(end, Step::End(Outcome::Probe));
    }
    // Once it has taken a block, or if it never asked for options, it is what it says.
    let mut m = machine(&[("tsize", "0")], 9000);
    m.start(ms(0));
    m.on_ack(0, ms(1));
    m.on_ack(1, ms(2));
    let want = Step::End(Outcome::ClientError {
        code: ErrorCode::DiskFull,
        message: "full".to_owned(),
    });
    assert_eq!(m.on_error(ErrorCode::DiskFull, b"f\x07ull\n"), want);
    let mut m = machine(&[], 9000);
    m.start(ms(0));
    assert_eq!(m.on_error(ErrorCode::DiskFull, b"full"), want);
}

/// RFC 7440 section 4; reliability case 5: a partial ACK resumes right behind it.
#[test]
fn a_partial_ack_resumes_behind_it() {
    let mut m = machine(&[("windowsize", "4")], 512 * 10);
    m.start(ms(0));
    assert_eq!(m.on_ack(0, ms(1)), blocks(1, 4));
    assert_eq!(m.on_ack(2, ms(2)), blocks(3, 4));
    assert_eq!(m.on_ack(6, ms(3)), blocks(7, 4));
    assert_eq!(m.on_ack(10, ms(4)), blocks(11, 1));
    assert_eq!(m.on_ack(11, ms(5)), Step::End(Outcome::Complete));
    assert_eq!(m.counts().resent, 2);
}

/// RFC 7440 section 4: the first block of a window was lost, so the ACK before it comes
/// again; but not when it comes too soon to be an answer.
#[test]
fn a_late_repeated_ack_resends_a_window() {
    let mut m = machine(&[("windowsize", "4")], 512 * 100);
    m.start(ms(0));
    m.on_ack(0, ms(8));
    assert_eq!(m.on_ack(4, ms(16)), blocks(5, 4));
    assert_eq!(m.on_ack(4, ms(17)), Step::Wait);
    assert_eq!(m.on_ack(4, ms(24)), blocks(5, 4));
}

/// RFC 1350 says nothing, the field says 0; reliability case 6.
#[test]
fn numbers_roll_over_to_zero() {
    for window in [1_u64, 64] {
        let size = 8 * 200_000 + 3;
        let mut m = machine(
            &[("blksize", "8"), ("windowsize", &window.to_string())],
            size,
        );
        m.start(ms(0));
        let mut now = 1;
        let mut step = m.on_ack(0, ms(now));
        let mut expected = 1;
        while let Step::SendBlocks { first, count } = step {
            assert_eq!(first, expected);
            expected += u64::from(count);
            now += 1;
            step = m.on_ack(u16::try_from((expected - 1) % 65536).unwrap(), ms(now));
        }
        assert_eq!(step, Step::End(Outcome::Complete));
        assert_eq!(expected, 200_002);
        assert_eq!(m.counts().resent, 0);
    }
}

/// RFC 1123 section 4.2.3.1; reliability case 7: duplicate, old and future ACKs.
#[test]
fn acks_that_mean_nothing_send_nothing() {
    let mut m = machine(&[("blksize", "512")], 512 * 10);
    m.start(ms(0));
    assert_eq!(
        m.on_ack(7, ms(1)),
        Step::Wait,
        "ACK of a block before the OACK's"
    );
    assert_eq!(m.on_ack(0, ms(1)), blocks(1, 1));
    assert_eq!(m.on_ack(0, ms(2)), Step::Wait, "duplicate of ACK 0");
    assert_eq!(m.on_ack(1, ms(3)), blocks(2, 1));
    for (block, what) in [(1, "duplicate"), (0, "old"), (3, "future"), (65535, "old")] {
        assert_eq!(m.on_ack(block, ms(400)), Step::Wait, "{what}");
    }
    assert_eq!(m.on_ack(2, ms(401)), blocks(3, 1));
    assert_eq!(m.counts().idle_acks, 6);
}

/// RFC 1350 section 6; reliability case 7: the last ACK may be lost. The last block is sent
/// again while there is hope; then the transfer ends without a word.
#[test]
fn a_lost_last_ack_ends_quietly() {
    let mut m = machine(&[], 700);
    m.start(ms(0));
    assert_eq!(m.on_ack(1, ms(1)), blocks(2, 1));
    let mut sends = 1;
    loop {
        let now = m.deadline();
        match m.on_timer(now) {
            Step::SendBlocks { first: 2, count: 1 } => sends += 1,
            step => {
                assert_eq!(step, Step::End(Outcome::Unconfirmed));
                assert_eq!(now, ms(1) + LAST_SILENCE);
                break;
            }
        }
    }
    assert!((6..=10).contains(&sends), "{sends}");
}

/// A client that has answered is given up by time, not by count: 30 s without progress, and each
/// bit of progress begins them anew.
#[test]
fn silence_after_an_ack_is_timed() {
    let mut m = machine(&[("timeout", "1")], 512 * 10);
    m.start(ms(0));
    m.on_ack(0, ms(10));
    let mut now = ms(0);
    for block in 1..4 {
        for _ in 0..15 {
            now = m.deadline();
            assert_eq!(m.on_timer(now), blocks(block, 1));
        }
        m.on_ack(u16::try_from(block).unwrap(), now);
    }
    let moved = now;
    loop {
        now = m.deadline();
        if let Step::End(end) = m.on_timer(now) {
            assert_eq!(end, Outcome::TimedOut { block: 4 });
            break;
        }
    }
    assert_eq!(now, moved + SILENCE);
}

/// RFC 6298, RFC 2349; reliability case 9: first retry within 150 ms, back-off, six sends.
#[test]
fn silence_is_met_with_patience_and_an_end() {
    for options in [vec![], vec![("blksize", "1024")], vec![("timeout", "2")]] {
        let mut m = machine(&options, 512 * 10);
        let mut at = vec![ms(0)];
        let mut step = m.start(ms(0));
        let end = loop {
            if let Step::End(end) = step {
                break end;
            }
            let now = m.deadline();
            step = m.on_timer(now);
            if !matches!(step, Step::End(_)) {
                at.push(now);
            } else {
                assert!(now >= at[at.len() - 1] + ms(1000), "no last chance");
                assert!(
                    (ms(5_000)..=ms(60_000)).contains(&now),
                    "gives up at {now:?}"
                );
            }
        };
        let block = u64::from(options.is_empty());
        assert_eq!(end, Outcome::TimedOut { block });
        assert_eq!(at.len(), 6);
        assert!(at[1] <= ms(150));
        let waits: Vec<_> = at.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(waits.windows(2).all(|w| w[1] >= w[0]), "{waits:?}");
        assert_eq!(m.counts().sent, if options.is_empty() { 6 } else { 0 });
    }
}

/// RFC 6298 section 2: the wait follows the round trips, within its bounds.
#[test]
fn the_wait_follows_the_round_trip() {
    for (trip, low, high) in [(1, 50, 50), (100, 100, 500), (900, 900, 1000)] {
        let mut m = machine(&[], 512 * 1000);
        m.start(ms(0));
        let mut now = 0;
        for block in 1..100 {
            now += trip;
            m.on_ack(block, ms(now));
        }
        let wait = m.deadline() - ms(now);
        assert!((ms(low)..=ms(high)).contains(&wait), "{trip} ms: {wait:?}");
    }
}

/// A path whose round trip gets longer than the wait is not sent everything twice for ever.
#[test]
fn a_slower_path_is_learned() {
    let mut m = machine(&[], 512 * 1000);
    m.start(ms(0));
    let mut now = 0;
    for block in 1..400_u16 {
        let trip = if block < 50 { 1 } else { 300 };
        let ack_at = now + trip;
        while m.deadline() < ms(ack_at) {
            m.on_timer(m.deadline());
        }
        now = ack_at;
        assert!(matches!(m.on_ack(block, ms(now)), Step::SendBlocks { .. }));
    }
    assert!(m.counts().resent < 60, "{:?}", m.counts());
}

/// A transfer that crawls does not hold its place for ever.
#[test]
fn a_crawling_transfer_ends() {
    let mut m = machine(&[], 512 * 60_000);
    m.start(ms(0));
    let mut now = 0;
    let mut block = 0_u16;
    let end = loop {
        now += 400;
        if let Step::End(end) = m.on_timer(ms(now)) {
            break end;
        }
        block = block.wrapping_add(1);
        m.on_ack(block, ms(now));
    };
    assert!(matches!(end, Outcome::TooSlow { .. }));
    assert!(ms(now) < Duration::from_secs(3700 + 600));
}

// ---- a simulated network ----

#[derive(Debug, Clone, Copy)]
struct Weather {
    /// Of a thousand packets each way.
    lost: u64,
    doubled: u64,
    delayed: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Sent {
    ToClient(u64, bool),
    ToServer(u16),
    ClientTimer(u64),
}

/// A reference client as RFC 1350 and RFC 7440 section 4 describe it.
struct Client {
    window: u64,
    last: u64,
    got: u64,
    since_ack: u64,
    ack_of_gap: Option<u64>,
    epoch: u64,
    done: bool,
}

struct Net {
    now: Duration,
    queue: BinaryHeap<Reverse<(Duration, u64, Sent)>>,
    order: u64,
    random: u64,
    weather: Weather,
}

impl Net {
    fn dice(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 1000
    }

    fn put(&mut self, delay: Duration, what: Sent) {
        self.order += 1;
        let at = self.now + delay;
        self.queue.push(Reverse((at, self.order, what)));
    }

    fn send(&mut self, what: &Sent) {
        if self.dice() < self.weather.lost {
            return;
        }
        let copies = 1 + u64::from(self.dice() < self.weather.doubled);
        for copy in 0..copies {
            let mut delay = Duration::from_micros(500 + copy);
            if self.dice() < self.weather.delayed {
                delay += ms(self.random % 40);
            }
            self.put(delay, what.clone());
        }
    }
}

/// Runs a transfer; returns the machine's end, its machine and the simulated time, having
/// checked that the client got every block once and in order.
fn simulate(
    size: u64,
    blksize: u16,
    window: u16,
    weather: Weather,
    seed: u64,
) -> (Outcome, Machine, Duration) {
    let options = [
        ("blksize", blksize.to_string()),
        ("windowsize", window.to_string()),
    ];
    let options: Vec<_> = options.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let mut machine = machine(&options, size);
    let terms = *machine.terms();
    let mut client = Client {
        window: u64::from(terms.windowsize),
        last: size / u64::from(terms.blksize) + 1,
        got: 0,
        since_ack: 0,
        ack_of_gap: None,
        epoch: 0,
        done: false,
    };
    let mut net = Net {
        now: Duration::ZERO,
        queue: BinaryHeap::new(),
        order: 0,
        random: seed | 1,
        weather,
    };
    let mut step = machine.start(net.now);
    loop {
        match step {
            Step::Wait => {}
            Step::SendOptionAck => net.send(&Sent::ToClient(0, true)),
            Step::SendBlocks { first, count } => {
                for block in first..first + u64::from(count) {
                    net.send(&Sent::ToClient(block, false));
                }
            }
            Step::End(outcome) => {
                assert!(client.done || outcome != Outcome::Complete);
                return (outcome, machine, net.now);
            }
        }
        let due = machine.deadline();
        let next = net.queue.peek().map(|Reverse((at, ..))| *at);
        if next.is_none_or(|at| at > due) {
            net.now = net.now.max(due);
            step = machine.on_timer(net.now);
            continue;
        }
        let Some(Reverse((at, _, what))) = net.queue.pop() else {
            continue;
        };
        net.now = at;
        step = match what {
            Sent::ToServer(block) => machine.on_ack(block, net.now),
            Sent::ToClient(block, offer) => {
                receive(&mut client, block, offer, &mut net);
                Step::Wait
            }
            Sent::ClientTimer(epoch) => {
                if epoch == client.epoch && !client.done {
                    acknowledge(&mut client, &mut net);
                }
                Step::Wait
            }
        };
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "numbers on the wire are the low 16 bits"
)]
fn acknowledge(client: &mut Client, net: &mut Net) {
    client.since_ack = 0;
    client.epoch += 1;
    net.put(Duration::from_secs(2), Sent::ClientTimer(client.epoch));
    net.send(&Sent::ToServer(client.got as u16));
}

fn receive(client: &mut Client, block: u64, offer: bool, net: &mut Net) {
    if offer {
        if client.got == 0 {
            acknowledge(client, net);
        }
        return;
    }
    if block == client.got + 1 {
        client.got = block;
        client.since_ack += 1;
        client.ack_of_gap = None;
        client.done = client.got == client.last;
        if client.since_ack >= client.window || client.done {
            acknowledge(client, net);
        }
    } else if client.window == 1 || client.done || client.ack_of_gap != Some(client.got) {
        // Lock-step clients acknowledge a block again when it comes again; windowed ones
        // tell of a gap once.
        client.ack_of_gap = Some(client.got);
        acknowledge(client, net);
    }
}

const FINE: Weather = Weather {
    lost: 0,
    doubled: 0,
    delayed: 0,
};

/// RFC 1123 section 4.2.3.1; scoreboard: DATA sent at most 1.05 x when all is duplicated.
#[test]
fn a_network_that_doubles_every_packet_costs_nothing() {
    for window in [1, 2, 4, 16, 32] {
        let weather = Weather {
            doubled: 1000,
            ..FINE
        };
        let (end, m, _) = simulate(1_468_000, 1468, window, weather, 7);
        assert_eq!(end, Outcome::Complete);
        let sent = m.counts().sent;
        assert!(sent * 100 <= 1001 * 105, "window {window}: {sent} of 1001");
    }
}

/// Scoreboard: 1 MiB at blksize 1428 in 15 s at 5 % loss each way, in 90 s at 20 %.
#[test]
fn loss_is_overcome_in_time() {
    for (lost, limit) in [(0, 1), (50, 15), (200, 90)] {
        for window in [1, 4, 16] {
            for seed in 1..=20 {
                let weather = Weather { lost, ..FINE };
                let (end, m, took) = simulate(1 << 20, 1428, window, weather, seed * 7919);
                let delivered = matches!(end, Outcome::Complete | Outcome::Unconfirmed);
                assert!(delivered, "{end:?} {lost} {window} {seed} {:?}", m.counts());
                // The wait for a lost last ACK is no part of what the client sees.
                if end == Outcome::Complete {
                    assert!(
                        took <= Duration::from_secs(limit),
                        "{took:?} {lost} {window}"
                    );
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the network does, what arrives is the file, and the machine always ends.
    #[test]
    fn the_file_arrives_over_any_network(
        size in 0_u64..200_000,
        blksize in 8_u16..1500,
        window in 1_u16..80,
        lost in 0_u64..300,
        doubled in 0_u64..500,
        delayed in 0_u64..300,
        seed in any::<u64>(),
    ) {
        let weather = Weather { lost, doubled, delayed };
        let (end, m, _) = simulate(size, blksize, window, weather, seed);
        match end {
            Outcome::Complete => prop_assert_eq!(m.delivered(), size),
            Outcome::Unconfirmed | Outcome::TimedOut { .. } | Outcome::TooSlow { .. } => {
                prop_assert!(lost > 0 || delayed > 0, "{:?} on a network that loses nothing", end);
            }
            other => prop_assert!(false, "{:?}", other),
        }
        if lost == 0 && delayed == 0 && doubled == 0 {
            prop_assert_eq!(m.counts().resent, 0);
        }
    }

    /// Any sequence of packets and times is taken without panic, and ends.
    #[test]
    fn any_events_are_survived(
        size in 0_u64..100_000,
        window in 1_u16..64,
        events in proptest::collection::vec((0_u8..3, any::<u16>(), 0_u64..3000), 0..300),
    ) {
        let mut m = machine(&[("windowsize", &window.to_string())], size);
        let mut now = ms(0);
        let mut step = m.start(now);
        for (kind, number, later) in events {
            if matches!(step, Step::End(_)) {
                break;
            }
            if let Step::SendBlocks { first, count } = step {
                prop_assert!(first >= 1 && count >= 1 && count <= window);
            }
            now += ms(later);
            step = match kind {
                0 => m.on_ack(number, now),
                1 => m.on_ack(number % 70, now),
                _ => m.on_timer(now),
            };
        }
    }
}
