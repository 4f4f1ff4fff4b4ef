//! `dls doctor`: what is missing, and the command that mends it. Looks at this machine by itself
//! and changes nothing; the server need not run.

pub(super) mod storage;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Failure, output};
use crate::config::{Config, StorageBackend};

/// Says what is missing and the command that mends it; ends with 1 if anything is.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    #[command(subcommand)]
    pub(super) part: Option<Part>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Part {
    /// What the server's user needs of this machine [this is looked at when nothing is named]
    System,
    /// Check the catalog and the store of disks against each other
    Storage(storage::Storage),
}

/// One line of the answer.
#[derive(Debug)]
struct Line {
    good: bool,
    what: String,
    mend: Option<String>,
}

/// Runs it. A configuration that is wrong has been told before.
pub(super) fn run(config: &Config, as_json: bool) -> Result<(), Failure> {
    tell(&system(config), as_json)
}

fn tell(lines: &[Line], as_json: bool) -> Result<(), Failure> {
    if as_json {
        let rows: Vec<_> = lines
            .iter()
            .map(|line| json!({"good": line.good, "what": line.what, "mend": line.mend}))
            .collect();
        output::json(&json!({ "findings": rows }))?;
    } else {
        for line in lines {
            let mark = if line.good { "ok      " } else { "MISSING " };
            output::line(&format!("{mark}{}", output::printable(&line.what)))?;
            if let Some(mend) = &line.mend {
                output::line(&format!("        mend: {}", output::printable(mend)))?;
            }
        }
    }
    match lines.iter().filter(|line| !line.good).count() {
        0 => Ok(()),
        1 => Err(Failure::Failed("one thing is missing".into())),
        n => Err(Failure::Failed(format!("{n} things are missing"))),
    }
}

fn system(config: &Config) -> Vec<Line> {
    let mut lines = vec![match nix::unistd::User::from_name(&config.user) {
        Ok(Some(_)) => Line {
            good: true,
            what: format!("the server runs as user {}", config.user),
            mend: None,
        },
        _ => Line {
            good: false,
            what: format!(
                "there is no user `{}` for the server to become",
                config.user
            ),
            mend: Some(format!("adduser --system --group {}", config.user)),
        },
    }];
    match config.storage.backend {
        StorageBackend::Directory => lines.push(Line {
            good: true,
            what: format!("disks are files below {}", config.storage_path().display()),
            mend: None,
        }),
        StorageBackend::Zfs => lines.extend(zfs(config)),
    }
    lines
}

#[cfg(feature = "zfs")]
fn zfs(config: &Config) -> Vec<Line> {
    let dataset = config.storage.dataset.as_deref().unwrap_or_default();
    let found = crate::storage::zfs::examine(dataset, &config.user);
    let line = |one: crate::storage::zfs::Finding| Line {
        good: one.good,
        what: one.what,
        mend: one.mend,
    };
    found.into_iter().map(line).collect()
}

/// `Config::check` refuses such a configuration before.
#[cfg(not(feature = "zfs"))]
fn zfs(_: &Config) -> Vec<Line> {
    vec![Line {
        good: false,
        what: "this dls was built without ZFS".into(),
        mend: Some("install the package dls-zfs in place of dls".into()),
    }]
}
