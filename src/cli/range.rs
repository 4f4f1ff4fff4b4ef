//! `dls range`: the networks, and how they are served.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value};

use super::client::{number_or_text, text_or_null};
use super::remote::{Remote, segment, typed};
use super::{Failure, output};
use crate::model::NetworkRange;

/// Ranges are named by name, network or id.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve a network
    Add {
        /// The network, as in 10.0.0.0/24
        #[arg(long)]
        network: String,
        /// full: we are its DHCP server; proxy: another one is, we add the boot part; off
        #[arg(long, value_parser = ["full", "proxy", "off"])]
        mode: String,
        #[command(flatten)]
        settings: Settings,
    },
    /// Change how a network is served; what is not given stays
    Set {
        /// Name, network or id
        range: String,
        /// Another network
        #[arg(long)]
        network: Option<String>,
        /// full: we are its DHCP server; proxy: another one is, we add the boot part; off
        #[arg(long, value_parser = ["full", "proxy", "off"])]
        mode: Option<String>,
        #[command(flatten)]
        settings: Settings,
    },
    /// List the networks
    List,
    /// Show one network
    Show {
        /// Name, network or id
        range: String,
    },
    /// Serve networks no longer
    Rm {
        /// Name, network or id
        #[arg(required = true)]
        ranges: Vec<String>,
    },
}

/// What both `add` and `set` take. Lists are set anew as a whole; an empty value ('') empties.
#[derive(Debug, Args)]
pub(super) struct Settings {
    /// Name [default: the network]
    #[arg(long)]
    name: Option<String>,
    /// Addresses to give out; may be repeated
    #[arg(long, value_name = "FIRST-LAST")]
    pool: Vec<String>,
    /// Addresses inside pools that are not given out; may be repeated
    #[arg(long, value_name = "FIRST-LAST")]
    exclude: Vec<String>,
    /// Default gateway
    #[arg(long)]
    gateway: Option<String>,
    /// Name server; may be repeated
    #[arg(long)]
    dns: Vec<String>,
    /// Domain
    #[arg(long)]
    domain: Option<String>,
    /// Search domain; may be repeated
    #[arg(long)]
    search: Vec<String>,
    /// Time server; may be repeated
    #[arg(long)]
    ntp: Vec<String>,
    /// MTU in bytes
    #[arg(long)]
    mtu: Option<String>,
    /// Static route; may be repeated
    #[arg(long, value_name = "NET=VIA")]
    route: Vec<String>,
    /// Length of a lease
    #[arg(long, value_name = "SECONDS")]
    lease_seconds: Option<u32>,
    /// Who gets an address
    #[arg(long, value_parser = ["all", "known"])]
    serve: Option<String>,
    /// What a machine does that can't boot yet: wait on its screen, or boot its local disk
    #[arg(long, value_parser = ["wait", "local"])]
    unready: Option<String>,
    /// Load our boot loader even where the machine's ROM is an iPXE
    #[arg(long, value_name = "true|false")]
    always_chainload: Option<bool>,
    /// DHCP option of your own; may be repeated
    #[arg(long, value_name = "CODE=HEX")]
    option: Vec<String>,
}

pub(super) async fn run(remote: Remote, command: Command) -> Result<(), Failure> {
    match command {
        Command::Add {
            network,
            mode,
            settings,
        } => {
            let mut body = settings.fields()?;
            body.insert("network".into(), network.into());
            body.insert("mode".into(), mode.into());
            let body = Value::from(body);
            let made = remote
                .fetch(Method::POST, "/api/v1/network-ranges", Some(&body))
                .await?;
            show(&remote, made)
        }
        Command::Set {
            range,
            network,
            mode,
            settings,
        } => {
            let mut body = settings.fields()?;
            if let Some(network) = network {
                body.insert("network".into(), network.into());
            }
            if let Some(mode) = mode {
                body.insert("mode".into(), mode.into());
            }
            if body.is_empty() {
                return Err(Failure::Usage(
                    "nothing to set: see `dls range set --help`".into(),
                ));
            }
            let path = format!("/api/v1/network-ranges/{}", segment(&range));
            let body = Value::from(body);
            let changed = remote.fetch(Method::PATCH, &path, Some(&body)).await?;
            show(&remote, changed)
        }
        Command::List => {
            let path = "/api/v1/network-ranges";
            list(&remote, remote.list(path, "network_ranges").await?)
        }
        Command::Show { range } => {
            let path = format!("/api/v1/network-ranges/{}", segment(&range));
            show(&remote, remote.fetch(Method::GET, &path, None).await?)
        }
        Command::Rm { ranges } => {
            for range in ranges {
                let path = format!("/api/v1/network-ranges/{}", segment(&range));
                remote.fetch(Method::DELETE, &path, None).await?;
                if !remote.wants_json() {
                    output::line(&format!("{} removed", output::printable(&range)))?;
                }
            }
            Ok(())
        }
    }
}

impl Settings {
    fn fields(&self) -> Result<Map<String, Value>, Failure> {
        let mut body = Map::new();
        let lists = [
            ("pools", &self.pool),
            ("exclusions", &self.exclude),
            ("dns", &self.dns),
            ("search", &self.search),
            ("ntp", &self.ntp),
            ("routes", &self.route),
        ];
        for (field, given) in lists {
            if !given.is_empty() {
                body.insert(field.into(), entries(given));
            }
        }
        let texts = [
            ("name", &self.name),
            ("gateway", &self.gateway),
            ("domain", &self.domain),
            ("serve", &self.serve),
            ("unready", &self.unready),
        ];
        for (field, given) in texts {
            if let Some(text) = given {
                body.insert(field.into(), text_or_null(text));
            }
        }
        if let Some(mtu) = &self.mtu {
            let value = if mtu.is_empty() {
                Value::Null
            } else {
                number_or_text(mtu)
            };
            body.insert("mtu".into(), value);
        }
        if let Some(seconds) = self.lease_seconds {
            body.insert("lease_seconds".into(), seconds.into());
        }
        if let Some(always) = self.always_chainload {
            body.insert("always_chainload".into(), always.into());
        }
        if !self.option.is_empty() {
            body.insert("options".into(), options(&self.option)?);
        }
        Ok(body)
    }
}

/// Repeated options, and several values with commas in one; an empty one adds nothing.
fn entries(given: &[String]) -> Value {
    given
        .iter()
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .collect()
}

fn options(given: &[String]) -> Result<Value, Failure> {
    let mut options = Map::new();
    for text in given.iter().filter(|text| !text.is_empty()) {
        let Some((code, hex)) = text.split_once('=') else {
            return Err(Failure::Usage(format!(
                "--option {text}: expected CODE=HEX"
            )));
        };
        if options.insert(code.to_owned(), hex.into()).is_some() {
            return Err(Failure::Usage(format!("--option {code} is there twice")));
        }
    }
    Ok(options.into())
}

fn list(remote: &Remote, ranges: Value) -> Result<(), Failure> {
    if remote.wants_json() {
        return output::json(&ranges);
    }
    let ranges: Vec<NetworkRange> = typed(ranges)?;
    let rows = ranges.iter().map(|range| {
        vec![
            range.name.clone(),
            range.network.to_string(),
            range.mode.to_string(),
            range.serve.to_string(),
            output::several(&range.pools),
            output::maybe(range.gateway),
            range.lease_seconds.to_string(),
        ]
    });
    let head = [
        "NAME",
        "NETWORK",
        "MODE",
        "SERVE",
        "POOLS",
        "GATEWAY",
        "LEASE SECONDS",
    ];
    output::table(&head, rows.collect())
}

fn show(remote: &Remote, value: Value) -> Result<(), Failure> {
    if remote.wants_json() {
        return output::json(&value);
    }
    let range: NetworkRange = typed(value)?;
    let routes = range.routes.iter().map(|r| format!("{}={}", r.to, r.via));
    let options = range
        .options
        .iter()
        .map(|(code, hex)| format!("{code}={hex}"));
    output::card(&[
        ("name", range.name.clone()),
        ("id", range.id.to_string()),
        ("network", range.network.to_string()),
        ("mode", range.mode.to_string()),
        ("serve", range.serve.to_string()),
        ("unready", range.unready.to_string()),
        ("always chainload", range.always_chainload.to_string()),
        ("pools", output::several(&range.pools)),
        ("exclusions", output::several(&range.exclusions)),
        ("gateway", output::maybe(range.gateway)),
        ("dns", output::several(&range.dns)),
        ("domain", range.domain.clone().unwrap_or_default()),
        ("search", output::several(&range.search)),
        ("ntp", output::several(&range.ntp)),
        ("mtu", output::maybe(range.mtu)),
        ("routes", output::several(routes)),
        ("lease seconds", range.lease_seconds.to_string()),
        ("options", output::several(options)),
    ])
}
