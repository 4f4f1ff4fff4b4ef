//! What a storm has seen: times by stage, failures by stage and cause, bytes by second; and what
//! that comes to. Pure: it is told every number, and prints nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::words::{Cause, Failure, Role, Stage};
use crate::model::MacAddr;

/// Steps within each power of two: a percentile is right to 1/64.
const STEPS: u32 = 64;
/// What Ethernet sends for 1,448 bytes of TCP payload at an MTU of 1,500: with TCP (timestamps),
/// IP, Ethernet, preamble and gap.
const FRAME: (f64, f64) = (1538.0, 1448.0);
/// Wires, in Gb/s.
const WIRES: [u32; 3] = [1, 10, 25];

/// Times in microseconds, in logarithmic steps; the largest is kept as it is.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    most: u64,
}

impl Histogram {
    /// Adds one.
    pub fn add(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let step = step(micros);
        if self.counts.len() <= step {
            self.counts.resize(step + 1, 0);
        }
        self.counts[step] += 1;
        self.total += 1;
        self.most = self.most.max(micros);
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.most = self.most.max(other.most);
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.total
    }

    /// The least time that so many of a thousand do not exceed (the upper end of its step); zero
    /// of none.
    #[must_use]
    pub fn per_mille(&self, share: u64) -> Duration {
        let rank = (self.total * share).div_ceil(1000).max(1);
        let mut seen = 0;
        for (step, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(upper(step).min(self.most));
            }
        }
        Duration::ZERO
    }

    /// The longest.
    #[must_use]
    pub const fn longest(&self) -> Duration {
        Duration::from_micros(self.most)
    }
}

/// The step of a number: below 64 each its own, then 64 for each power of two.
fn step(value: u64) -> usize {
    let steps = u64::from(STEPS);
    let shift = (64 - value.leading_zeros()).saturating_sub(STEPS.ilog2() + 1);
    let within = value >> shift;
    usize::try_from(u64::from(shift) * steps + within).unwrap_or(usize::MAX)
}

/// The largest number of a step.
fn upper(step: usize) -> u64 {
    let steps = u64::from(STEPS);
    let step = step as u64;
    let shift = (step / steps).saturating_sub(1);
    let within = step - shift * steps;
    ((within + 1) << shift) - 1
}

/// What is gathered while the storm runs.
#[derive(Debug, Default)]
pub(super) struct Tally {
    stages: BTreeMap<Stage, Counted>,
    failures: BTreeMap<(Stage, Cause), (u64, MacAddr, String)>,
    boots: Histogram,
    per_second: Vec<u64>,
    begun: u32,
    ended: u32,
    booted: u32,
}

#[derive(Debug, Default)]
struct Counted {
    times: Histogram,
    bytes: u64,
    again: u64,
    failed: u64,
}

impl Tally {
    pub(super) fn begin(&mut self) {
        self.begun += 1;
    }

    /// Something was done well.
    pub(super) fn done(&mut self, stage: Stage, time: Duration) {
        self.stages.entry(stage).or_default().times.add(time);
    }

    /// A packet was sent again.
    pub(super) fn again(&mut self, stage: Stage) {
        self.stages.entry(stage).or_default().again += 1;
    }

    /// Bytes were moved, in that second of the storm.
    pub(super) fn moved(&mut self, stage: Stage, bytes: u64, second: u64) {
        self.stages.entry(stage).or_default().bytes += bytes;
        let second = usize::try_from(second).unwrap_or(0).min(1 << 20);
        if self.per_second.len() <= second {
            self.per_second.resize(second + 1, 0);
        }
        self.per_second[second] += bytes;
    }

    /// A machine's end: how long it took to be up, or why it is not. A machine that was up and
    /// failed later counts as one that failed.
    pub(super) fn end(&mut self, mac: MacAddr, end: Result<Duration, Failure>) {
        self.ended += 1;
        match end {
            Ok(time) => {
                self.booted += 1;
                self.boots.add(time);
            }
            Err(failure) => {
                self.stages.entry(failure.stage).or_default().failed += 1;
                let key = (failure.stage, failure.cause);
                let first = (0, mac, failure.detail);
                self.failures.entry(key).or_insert(first).0 += 1;
            }
        }
    }

    /// A line for who waits.
    pub(super) fn progress(&self) -> String {
        let bytes = self.per_second.iter().sum::<u64>();
        let under_way = self.begun - self.ended;
        let failed = self.ended - self.booted;
        format!(
            "{} switched on, {under_way} under way, {} up, {failed} failed, {} MiB",
            self.begun,
            self.booted,
            bytes >> 20
        )
    }

    /// What it comes to.
    pub(super) fn report(&self, machines: u32, took: Duration) -> Report {
        let mut dhcp = Counted::default();
        for (stage, counted) in &self.stages {
            if stage.is_dhcp() {
                dhcp.times.merge(&counted.times);
                dhcp.again += counted.again;
                dhcp.failed += counted.failed;
            }
        }
        let all = self.stages.iter().map(|(s, c)| row(s.as_str(), c));
        let mut stages: Vec<Row> = all.collect();
        stages.push(row("all of DHCP", &dhcp));
        let boots = Counted {
            times: self.boots.clone(),
            failed: u64::from(machines - self.booted),
            ..Counted::default()
        };
        stages.push(row("whole boot", &boots));
        let failures = self.failures.iter();
        let failures = failures.map(|((stage, cause), (count, mac, detail))| FailureRow {
            stage: *stage,
            cause: *cause,
            machines: *count,
            first: *mac,
            detail: detail.clone(),
        });
        let bytes: u64 = self.per_second.iter().sum();
        let seconds = took.as_secs_f64();
        Report {
            machines,
            booted: self.booted,
            seconds,
            stages,
            failures: failures.collect(),
            bytes,
            bytes_per_second: bytes as f64 / seconds.max(0.001),
            most_in_a_second: self.per_second.iter().copied().max().unwrap_or(0),
            wires: WIRES.map(|gigabits| wire(gigabits, bytes)).to_vec(),
            files: Vec::new(),
        }
    }
}

fn row(stage: &str, counted: &Counted) -> Row {
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    Row {
        stage: stage.to_owned(),
        n: counted.times.count(),
        p50_ms: millis(counted.times.per_mille(500)),
        p95_ms: millis(counted.times.per_mille(950)),
        p99_ms: millis(counted.times.per_mille(990)),
        max_ms: millis(counted.times.longest()),
        sent_again: counted.again,
        failed: counted.failed,
        bytes: counted.bytes,
    }
}

fn wire(gigabits: u32, bytes: u64) -> Wire {
    let bits = bytes as f64 * 8.0 * FRAME.0 / FRAME.1;
    Wire {
        gigabits,
        seconds: bits / (f64::from(gigabits) * 1e9),
    }
}

/// What a storm came to; its JSON.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How many were to boot.
    pub machines: u32,
    /// How many did.
    pub booted: u32,
    /// How long it took, from the first switch to the last end.
    pub seconds: f64,
    /// By stage, in the order of a boot; then all of DHCP, and the whole boot to `up`.
    pub stages: Vec<Row>,
    /// By stage and cause.
    pub failures: Vec<FailureRow>,
    /// Payload that was moved, both ways.
    pub bytes: u64,
    /// On average.
    pub bytes_per_second: f64,
    /// In the busiest second.
    pub most_in_a_second: u64,
    /// How long a wire would need for these bytes.
    pub wires: Vec<Wire>,
    /// What the machines got, to be compared with what they should.
    pub files: Vec<FileRow>,
}

/// One stage.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its name.
    pub stage: String,
    /// How often it was done.
    pub n: u64,
    /// Half took no longer, in milliseconds.
    pub p50_ms: f64,
    /// 95 of 100 took no longer.
    pub p95_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
    /// Packets that were sent again.
    pub sent_again: u64,
    /// Machines that ended here.
    pub failed: u64,
    /// Payload.
    pub bytes: u64,
}

/// Machines that ended at the same stage for the same cause.
#[derive(Debug, Clone, Serialize)]
pub struct FailureRow {
    /// Where.
    pub stage: Stage,
    /// Why.
    pub cause: Cause,
    /// How many.
    pub machines: u64,
    /// The first of them.
    pub first: MacAddr,
    /// What happened to that one.
    pub detail: String,
}

/// A wire.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Wire {
    /// How fast, in Gb/s.
    pub gigabits: u32,
    /// How long it needs at least, full all the time.
    pub seconds: f64,
}

/// Something that the machines got.
#[derive(Debug, Clone, Serialize)]
pub struct FileRow {
    /// Of which image, where the script said it.
    pub image: String,
    /// What it is.
    pub role: String,
    /// Bytes; of a disk those that anybody has read.
    pub bytes: u64,
    /// Of a file.
    pub sha256: Option<String>,
}

impl FileRow {
    pub(super) fn new((image, role, bytes, sha256): (String, Role, u64, Option<String>)) -> Self {
        Self {
            image,
            role: role.to_string(),
            bytes,
            sha256,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::words::Trouble;
    use super::*;

    #[test]
    fn failures_are_counted_by_stage_and_cause() {
        let mut tally = Tally::default();
        let mac = |n| MacAddr([2, 0, 0, 0, 0, n]);
        for n in 0..5 {
            tally.begin();
            let end = match n {
                0 => Ok(Duration::from_secs(2)),
                1 => Err(Trouble::new(Cause::NoOffer, "x").at(Stage::RomDiscover)),
                _ => Err(Trouble::new(Cause::HttpStatus, format!("{n}")).at(Stage::Kernel)),
            };
            tally.end(mac(n), end);
        }
        tally.done(Stage::RomDiscover, Duration::from_millis(1));
        tally.done(Stage::IpxeRequest, Duration::from_millis(3));
        tally.moved(Stage::Kernel, 1_250_000_000, 1);
        let report = tally.report(6, Duration::from_secs(10));
        assert_eq!((report.machines, report.booted), (6, 1));
        let failed: Vec<_> = report
            .failures
            .iter()
            .map(|f| (f.cause, f.machines, f.first))
            .collect();
        assert_eq!(
            failed,
            [(Cause::NoOffer, 1, mac(1)), (Cause::HttpStatus, 3, mac(2))]
        );
        let named = |name: &str| report.stages.iter().find(|r| r.stage == name).unwrap();
        assert_eq!(named("all of DHCP").n, 2);
        assert_eq!(named("all of DHCP").max_ms, 3.0);
        assert_eq!(named("kernel").failed, 3);
        assert_eq!(named("whole boot").failed, 5);
        // 1.25 GB on 10 Gb/s is one second and what the frames cost.
        let ten = report.wires[1];
        assert!(ten.gigabits == 10 && (1.06..1.07).contains(&ten.seconds));
        assert!((report.bytes_per_second - 1.25e8).abs() < 1.0);
    }

    proptest! {
        #[test]
        fn percentiles_are_right_to_a_64th(
            mut micros in proptest::collection::vec(0..10_000_000_u64, 1..300),
            share in 1..=1000_u64,
        ) {
            let mut histogram = Histogram::default();
            for one in &micros {
                histogram.add(Duration::from_micros(*one));
            }
            micros.sort_unstable();
            let rank = (micros.len() as u64 * share).div_ceil(1000).max(1) as usize;
            let exact = micros[rank - 1];
            let told = histogram.per_mille(share).as_micros() as u64;
            prop_assert!(told >= exact && told <= exact + exact / 64, "{told} {exact}");
            prop_assert_eq!(histogram.longest().as_micros() as u64, micros[micros.len() - 1]);
        }

        #[test]
        fn steps_are_in_order(a: u64, b: u64) {
            let (low, high) = (a.min(b) >> 2, a.max(b) >> 2);
            prop_assert!(step(low) <= step(high));
            prop_assert!(upper(step(high)) >= high);
        }
    }
}
