//! `dls storm`: its options, and its report for people or scripts. The storm itself is
//! [`crate::storm`].

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio_util::sync::CancellationToken;

use super::{Failure, output};
use crate::clock::Clock;
use crate::dhcp::wire::client::Firmware;
use crate::model::MacAddr;
use crate::storm::Role;
use crate::storm::plan::{MOST_MACHINES, Plan};
use crate::storm::profile::{Profile, bytes};
use crate::storm::report::{Report, Row};
use crate::storm::run::{Pattern, Storm, Way, default_interfaces, interface_of, run as storm};

/// Where the kernel tells its routes.
const ROUTES: &str = "/proc/net/route";

/// What a machine's firmware is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rom {
    /// A BIOS ROM: loader by TFTP, lock-step
    Bios,
    /// UEFI x64: loader by TFTP, four blocks for an ACK
    Uefi,
    /// UEFI HTTP Boot
    UefiHttp,
    /// iPXE in the ROM: no loader
    Ipxe,
}

/// Whole boots of many machines at a server: DHCP, loader, script, kernel and initrds, disk, `up`.
/// Every byte is checked. Ends with 1 unless all of them boot.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Speak DHCP by raw frames on this interface
    #[arg(
        long,
        value_name = "NAME",
        required_unless_present = "relay",
        conflicts_with = "relay"
    )]
    interface: Option<String>,
    /// Speak DHCP as a relay agent with this address of this host
    #[arg(long, value_name = "ADDRESS", requires = "dhcp_server")]
    relay: Option<Ipv4Addr>,
    /// Where the relay sends to
    #[arg(long, value_name = "ADDRESS", requires = "relay")]
    dhcp_server: Option<Ipv4Addr>,
    /// How many machines
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_MACHINES)))]
    machines: u32,
    /// They are switched on evenly over so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    ramp: u32,
    /// A machine that is not up after so many seconds has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u32,
    /// MAC of the first machine; the others count on from it
    #[arg(long, value_name = "MAC", default_value = "02:d1:50:00:00:00")]
    first_mac: MacAddr,
    /// What their firmware is
    #[arg(long, value_enum, default_value = "bios")]
    firmware: Rom,
    /// Percent of the usual times between retransmissions (DHCP: 4, 8, 16, 32 s)
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    patience: u32,
    /// Speak from each machine's leased address, which must be local to this host
    #[arg(long)]
    addresses: bool,
    /// What is read and written on a disk: a file of `r|w OFFSET LENGTH [THINK_MS]` lines
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Without a profile: so much is read of each disk, in the shape of a Linux boot
    #[arg(long, value_name = "BYTES", default_value = "16M", value_parser = bytes, conflicts_with = "profile")]
    disk_read: u64,
    /// Percent of the profile's pauses
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1000))]
    think: u32,
    /// What they must get: loader, kernel, initrd0 (and so on) or disk; else they are compared
    /// with each other
    #[arg(long, value_name = "ROLE=FILE", value_parser = expectation)]
    expect: Vec<(Role, PathBuf)>,
    /// Each machine stays on for so many seconds after `up`, with beats and its disk open
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    stay: u32,
    /// Each machine says `bye` at its end
    #[arg(long)]
    bye: bool,
    /// Seed of transaction numbers and jitter
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Storm even on the network of this host's default route
    #[arg(long)]
    yes_this_network: bool,
}

/// `ROLE=FILE`.
fn expectation(text: &str) -> Result<(Role, PathBuf), String> {
    let (role, file) = text.split_once('=').ok_or("expected ROLE=FILE")?;
    Ok((role.parse()?, file.into()))
}

pub(super) fn run(options: &Options, json: bool) -> Result<(), Failure> {
    let routes = fs::read_to_string(ROUTES).unwrap_or_default();
    let way = way(options, &routes)?;
    let wanted = prepared(options, way)?;
    let plan = &wanted.plan;
    if !json {
        eprintln!(
            "{} machines from {} over {} s, each {} s at most; all of it ends after {} s",
            plan.machines,
            plan.first_mac,
            plan.ramp.as_secs(),
            plan.timeout.as_secs(),
            plan.longest().as_secs()
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Failed(format!("can't start: {e}")))?;
    let report = runtime.block_on(async {
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                stop.cancel();
            }
        });
        let news = |line: &str| {
            if !json {
                eprintln!("{line}");
            }
        };
        storm(wanted, Clock::system(), cancel, news).await
    });
    let report = report.map_err(|e| Failure::Failed(e.to_string()))?;
    if json {
        let value = serde_json::to_value(&report);
        output::json(&value.map_err(|e| Failure::Failed(e.to_string()))?)?;
    } else {
        tell(&report)?;
    }
    let failed = report.machines - report.booted;
    if failed == 0 {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "{failed} of {} machines did not boot",
        report.machines
    )))
}

/// How DHCP goes, unless that is a network that others live on.
fn way(options: &Options, routes: &str) -> Result<Way, Failure> {
    let (way, interface) = match (&options.interface, options.relay, options.dhcp_server) {
        (Some(name), ..) => (Way::Raw(name.clone()), Some(name.clone())),
        (None, Some(own), Some(server)) => (Way::Relay { own, server }, interface_of(own)),
        _ => {
            return Err(Failure::Usage(
                "say --interface, or --relay and --dhcp-server".into(),
            ));
        }
    };
    let everybodys = default_interfaces(routes);
    if let Some(name) = interface
        && everybodys.contains(&name)
        && !options.yes_this_network
    {
        return Err(Failure::Usage(format!(
            "{name} has this host's default route: others live on that network, and a storm takes\n\
             its addresses and its server's time. --yes-this-network says that you mean it"
        )));
    }
    Ok(way)
}

fn prepared(options: &Options, way: Way) -> Result<Storm, Failure> {
    if !options.first_mac.is_station() {
        return Err(Failure::Usage(format!(
            "{} is no machine's MAC",
            options.first_mac
        )));
    }
    let unread = |file: &PathBuf, e: std::io::Error| {
        Failure::Failed(format!("can't read {}: {e}", file.display()))
    };
    let pattern = match &options.profile {
        None => Pattern::Linux(options.disk_read),
        Some(file) => {
            let text = fs::read_to_string(file).map_err(|e| unread(file, e))?;
            let profile = Profile::parse(&text);
            let bad = |e| Failure::Usage(format!("{}: {e}", file.display()));
            Pattern::Recorded(profile.map_err(bad)?)
        }
    };
    let expected = options.expect.iter().map(|(role, file)| {
        let opened = File::open(file).map_err(|e| unread(file, e))?;
        Ok((*role, opened))
    });
    let (rom, platform) = match options.firmware {
        Rom::Bios => (Some(Firmware::Bios), Firmware::Bios),
        Rom::Uefi => (Some(Firmware::Uefi), Firmware::Uefi),
        // A loader that HTTP Boot has started says UEFI x64 of itself.
        Rom::UefiHttp => (Some(Firmware::UefiHttp), Firmware::Uefi),
        Rom::Ipxe => (None, Firmware::Bios),
    };
    let seconds = |n: u32| Duration::from_secs(u64::from(n));
    Ok(Storm {
        plan: Plan {
            machines: options.machines,
            ramp: seconds(options.ramp),
            timeout: seconds(options.timeout),
            first_mac: options.first_mac,
            rom,
            platform,
            patience: options.patience,
            think: options.think,
            stay: seconds(options.stay),
            bye: options.bye,
            seed: options.seed,
        },
        way,
        pattern,
        addresses: options.addresses,
        expected: expected.collect::<Result<_, Failure>>()?,
    })
}

fn tell(report: &Report) -> Result<(), Failure> {
    let rows = report.stages.iter().map(stage).collect();
    let head = [
        "STAGE", "N", "P50 MS", "P95 MS", "P99 MS", "MAX MS", "AGAIN", "FAILED", "BYTES",
    ];
    output::table(&head, rows)?;
    if !report.failures.is_empty() {
        output::line("")?;
        let rows = report.failures.iter().map(|failure| {
            vec![
                failure.stage.to_string(),
                failure.cause.to_string(),
                failure.machines.to_string(),
                format!("{}: {}", failure.first, failure.detail),
            ]
        });
        output::table(
            &["FAILED AT", "CAUSE", "MACHINES", "FIRST OF THEM"],
            rows.collect(),
        )?;
    }
    output::line("")?;
    let mut facts = vec![
        (
            "booted",
            format!("{} of {}", report.booted, report.machines),
        ),
        ("took", format!("{:.1} s", report.seconds)),
        ("bytes", size(report.bytes)),
        (
            "throughput",
            format!(
                "{}/s, {}/s in the busiest second",
                size(report.bytes_per_second as u64),
                size(report.most_in_a_second)
            ),
        ),
    ];
    let wires = report.wires.iter();
    let wires = wires.map(|wire| format!("{:.1} s on {} Gb/s", wire.seconds, wire.gigabits));
    facts.push(("on a wire", output::several(wires)));
    for file in &report.files {
        let of = if file.image.is_empty() {
            String::new()
        } else {
            format!(" of {}", file.image)
        };
        let sum = file.sha256.as_ref().map(|sum| format!(", sha256 {sum}"));
        let told = format!(
            "{}{of}, {} bytes{}",
            file.role,
            file.bytes,
            sum.unwrap_or_default()
        );
        facts.push(("same for all", told));
    }
    output::card(&facts)
}

fn stage(row: &Row) -> Vec<String> {
    let millis = |millis: f64| {
        if row.n == 0 {
            String::new()
        } else if millis < 10.0 {
            format!("{millis:.2}")
        } else {
            format!("{millis:.0}")
        }
    };
    let number = |n: u64| if n == 0 { String::new() } else { n.to_string() };
    vec![
        row.stage.clone(),
        row.n.to_string(),
        millis(row.p50_ms),
        millis(row.p95_ms),
        millis(row.p99_ms),
        millis(row.max_ms),
        number(row.sent_again),
        number(row.failed),
        if row.bytes == 0 {
            String::new()
        } else {
            size(row.bytes)
        },
    ]
}

fn size(bytes: u64) -> String {
    output::bytes(i64::try_from(bytes).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(line: &str) -> Options {
        let words = std::iter::once("storm").chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().options
    }

    const ROUTES: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                          office\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\n";

    #[test]
    fn an_office_is_not_stormed_by_accident() {
        assert!(way(&options("--interface lab"), ROUTES).is_ok());
        let refused = way(&options("--interface office"), ROUTES);
        assert!(
            matches!(refused, Err(Failure::Usage(text)) if text.contains("--yes-this-network"))
        );
        assert!(way(&options("--interface office --yes-this-network"), ROUTES).is_ok());
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        for line in [
            "",
            "--relay 10.0.0.2",
            "--interface a --relay 10.0.0.2 --dhcp-server 10.0.0.1",
            "--interface a --machines 0",
            "--interface a --expect kernel",
            "--interface a --expect cow=x",
            "--interface a --disk-read 16X",
        ] {
            let words = std::iter::once("storm").chain(line.split_whitespace());
            assert!(Line::try_parse_from(words).is_err(), "{line}");
        }
        let broadcast = options("--interface a --first-mac ff:ff:ff:ff:ff:ff");
        let refused = prepared(&broadcast, Way::Raw("a".into()));
        assert!(matches!(refused, Err(Failure::Usage(_))));
    }
}
