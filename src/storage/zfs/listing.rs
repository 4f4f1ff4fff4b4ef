//! What lies below the parent dataset, as `zfs list -Hp` says it: the library has no listing.
//! The program is run by arguments, without a shell; all names in them are ours.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::process::{Command, Stdio};

use super::gate::{Gate, Kind, is_away};
use super::names::{Parent, RENEWED, parse_passing, parse_snapshot, parse_volume};
use super::{damaged, io_error};
use crate::storage::{SnapshotId, Volume, VolumeError, VolumeInfo};

/// The properties of ours, on volumes.
pub(super) const SIZE: &str = "dls:size";
pub(super) const ORIGIN: &str = "dls:origin";
pub(super) const INTENT: &str = "dls:intent";

/// A zvol.
#[derive(Debug, Clone)]
pub(super) struct Dataset {
    /// Bytes that a machine sees.
    pub(super) size: u64,
    /// Bytes of one of its blocks, whatever is configured for new ones.
    pub(super) block: u32,
    /// Bytes it takes, without what it shares.
    pub(super) used: u64,
    /// Bytes it refers to.
    pub(super) referenced: u64,
    /// The snapshot that ZFS has it stand upon: where that lies, and which it is.
    pub(super) stands_on: Option<(Volume, SnapshotId)>,
    /// What it was cloned from.
    pub(super) origin: Option<SnapshotId>,
    /// What was begun with it.
    pub(super) intent: Option<String>,
}

/// A snapshot.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    /// Whose it is, and its name.
    pub(super) id: SnapshotId,
    /// In whose dataset it lies.
    pub(super) lies_in: Volume,
    /// How many holds are on it, ours and others'.
    pub(super) held: u64,
}

/// All that is there.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) volumes: BTreeMap<Volume, Dataset>,
    /// Oldest first.
    pub(super) snapshots: Vec<Snapshot>,
    /// Datasets of ours for a while.
    pub(super) scratch: Vec<String>,
    /// Snapshots of ours for a while.
    pub(super) passing: Vec<String>,
    /// Volumes that a new clone waits for to take their place.
    pub(super) renewed: Vec<Volume>,
}

/// Runs `zfs` and gives its output. The last argument is the dataset that it is about, by whose
/// pool's gate it goes.
pub(super) fn zfs(arguments: &[&str]) -> Result<String, VolumeError> {
    let dataset = *arguments.last().unwrap_or(&"");
    let kind = match arguments.first() {
        Some(&("list" | "get" | "allow")) => Kind::Look,
        _ => Kind::Change,
    };
    zfs_about(dataset, kind, arguments)
}

/// The program with arguments, in an environment that is ours.
pub(super) fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new("zfs");
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    command
}

/// The same for arguments whose last says nothing of the dataset that they are about.
pub(super) fn zfs_about(
    dataset: &str,
    kind: Kind,
    arguments: &[&str],
) -> Result<String, VolumeError> {
    let what = format!("zfs {}", arguments.first().unwrap_or(&""));
    let mut command = program(arguments);
    let gate = Gate::of(dataset);
    let ran = gate.call(kind, &what, move || command.output());
    let ran = ran.flatten().map_err(|e| match e.kind() {
        _ if is_away(&e) => VolumeError::Away(e.to_string()),
        ErrorKind::NotFound => damaged(
            "ZFS",
            "the program `zfs` is not installed (package zfsutils-linux)",
        ),
        _ => io_error(&what, e),
    })?;
    if ran.status.success() {
        return Ok(String::from_utf8_lossy(&ran.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&ran.stderr);
    let said = said.lines().next().unwrap_or("no reason was given");
    if said.contains("out of space") || said.contains("greater than available space") {
        return Err(VolumeError::NoSpace);
    }
    if said.contains("does not exist") || said.contains("no such pool") {
        return Err(gate.without(dataset));
    }
    if said.contains("suspended") {
        return Err(VolumeError::Away(said.to_owned()));
    }
    let hint = if said.contains("permission denied") {
        "; the server's user needs the right to it: see `zfs allow`"
    } else {
        ""
    };
    Err(damaged(what, format!("{said}{hint}")))
}

/// What there is of these types in a dataset and below it as far as snapshots go (`depth` is 2 for
/// the parent, 1 for a volume), with these columns, the oldest first.
pub(super) fn list_below(
    dataset: &str,
    depth: &str,
    types: &str,
    columns: &str,
) -> Result<String, VolumeError> {
    let below = ["list", "-Hp", "-r", "-d", depth, "-s", "createtxg"];
    let what = ["-t", types, "-o", columns, dataset];
    zfs(&[&below[..], &what].concat())
}

impl Listing {
    /// Reads it. ZFS opens each dataset for that: some milliseconds for each.
    pub(super) fn read(parent: &Parent) -> Result<Self, VolumeError> {
        Self::read_below(parent, parent.as_str(), "2")
    }

    /// One volume with the snapshots that lie in it, which takes the same time however many
    /// others there are. Without the volume if its size is not its own to tell.
    pub(super) fn read_one(parent: &Parent, volume: Volume) -> Result<Self, VolumeError> {
        Self::read_below(parent, &parent.volume(volume), "1")
    }

    fn read_below(parent: &Parent, dataset: &str, depth: &str) -> Result<Self, VolumeError> {
        let columns = format!(
            "name,volsize,volblocksize,used,origin,{SIZE},{ORIGIN},{INTENT},referenced,userrefs"
        );
        let text = list_below(dataset, depth, "volume,snapshot", &columns)?;
        Self::parse(parent, &text)
    }

    /// From the lines of `zfs list`.
    pub(super) fn parse(parent: &Parent, text: &str) -> Result<Self, VolumeError> {
        let mut listing = Self::default();
        let place = |name: &str| {
            let (dataset, snapshot) = parent.below(name)?.split_once('@')?;
            Some((parse_volume(dataset)?, parse_snapshot(snapshot)?))
        };
        for line in text.lines() {
            let mut words = line.split('\t');
            let mut next = || words.next().unwrap_or("-");
            let (name, volsize, block) = (next(), next(), next());
            let (used, stands_on) = (next(), next());
            let (size, origin, intent) = (next(), next(), next());
            let referenced = next();
            if let Some((lies_in, id)) = place(name) {
                let held = next().parse().unwrap_or(0);
                listing.snapshots.push(Snapshot { id, lies_in, held });
                continue;
            }
            let Some(below) = parent.below(name) else {
                continue;
            };
            if below.starts_with("scratch.") && !below.contains(['@', '/']) {
                listing.scratch.push(name.to_owned());
            }
            if parse_passing(below) {
                listing.passing.push(name.to_owned());
            }
            if let Some(volume) = below.strip_prefix(RENEWED).and_then(parse_volume) {
                listing.renewed.push(volume);
            }
            let Some(volume) = parse_volume(below) else {
                // Somebody else's; left alone.
                continue;
            };
            let number = |text: &str| text.parse::<u64>().ok();
            let block = block.parse::<u32>().ok();
            let (Some(whole), Some(block), Some(used)) = (number(volsize), block, number(used))
            else {
                return Err(damaged(name, "`zfs list` tells no size of it"));
            };
            let stands_on = place(stands_on);
            let mut origin = parse_snapshot(origin);
            let size = match (number(size), &stands_on) {
                (Some(size), _) => size,
                // ZFS sets the properties of what it makes a moment later. A clone is as large
                // as what it came from, which was made before it.
                (None, Some((lies_in, id))) => {
                    let Some(from) = listing.volumes.get(lies_in) else {
                        continue;
                    };
                    origin = Some(id.clone());
                    from.size
                }
                // Being made, or made by somebody else: its size is not ours to guess.
                (None, None) => continue,
            };
            if size > whole || !size.is_multiple_of(512) {
                let why = format!("its property {SIZE} is {size}, and it has {whole} bytes");
                return Err(damaged(name, why));
            }
            listing.volumes.insert(
                volume,
                Dataset {
                    size,
                    block,
                    used,
                    referenced: number(referenced).unwrap_or(used),
                    stands_on,
                    origin,
                    intent: (intent != "-").then(|| intent.to_owned()),
                },
            );
        }
        Ok(listing)
    }

    pub(super) fn get(&self, volume: Volume) -> Result<&Dataset, VolumeError> {
        let found = self.volumes.get(&volume);
        found.ok_or_else(|| VolumeError::Missing(volume.to_string()))
    }

    /// Where a snapshot lies.
    pub(super) fn find(&self, id: &SnapshotId) -> Result<&Snapshot, VolumeError> {
        let found = self.snapshots.iter().find(|s| s.id == *id);
        found.ok_or_else(|| VolumeError::Missing(id.to_string()))
    }

    /// Volumes that ZFS has stand upon a snapshot.
    pub(super) fn standing_on<'a>(
        &'a self,
        snapshot: &'a Snapshot,
    ) -> impl Iterator<Item = Volume> + 'a {
        let upon = |d: &&(Volume, SnapshotId)| d.0 == snapshot.lies_in && d.1 == snapshot.id;
        self.volumes
            .iter()
            .filter(move |(_, d)| d.stands_on.as_ref().filter(upon).is_some())
            .map(|(volume, _)| *volume)
    }

    /// A volume for whoever asks.
    pub(super) fn info(&self, parent: &Parent, volume: Volume) -> Option<VolumeInfo> {
        let dataset = self.volumes.get(&volume)?;
        let own = self.snapshots.iter().filter(|s| s.id.volume == volume);
        Some(VolumeInfo {
            volume,
            size: dataset.size,
            used: dataset.used,
            referenced: dataset.referenced,
            origin: dataset.origin.clone(),
            snapshots: own.map(|s| s.id.name.clone()).collect(),
            path: parent.volume(volume),
        })
    }
}
