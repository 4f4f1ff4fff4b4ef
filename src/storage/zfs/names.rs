//! What datasets and snapshots are called: `PARENT/image.ID`, `PARENT/session.ID`,
//! `PARENT/personal.CLIENT.IMAGE`, and `@OWNER.NAME` for snapshots. Names are made from volumes
//! and never from input. It touches no pool.
//!
//! A snapshot's name holds its owner because `zfs promote` moves snapshots to another dataset:
//! whose it is must not depend on where it lies, and two owners' `base` must not meet.

use std::fmt;

use uuid::Uuid;

use super::damaged;
use crate::storage::{SnapshotId, Volume, VolumeError};

/// Bytes of a parent's name at most: ZFS's names have 255, and the longest below it needs 215.
const LONGEST_PARENT: usize = 40;

/// The dataset that all of the store lies below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parent(String);

impl fmt::Display for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Parent {
    /// `POOL/NAME` or deeper; never a whole pool, in which other things may lie.
    pub(super) fn parse(text: &str) -> Result<Self, VolumeError> {
        let refused = |why: &str| Err(damaged(format!("the dataset `{text}`"), why));
        let part = |part: &str| {
            let first = part.bytes().next();
            first.is_some_and(|b| b.is_ascii_alphanumeric())
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
        };
        if text.split('/').count() < 2 || !text.split('/').all(part) {
            return refused("the name must be POOL/NAME, of letters, digits, `-`, `_`, `.`, `:`");
        }
        if text.len() > LONGEST_PARENT {
            return refused("the name is too long: at most 40 characters");
        }
        Ok(Self(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// A volume's dataset.
    pub(super) fn volume(&self, volume: Volume) -> String {
        format!("{}/{}", self.0, word(volume))
    }

    /// A dataset that is ours for a while.
    pub(super) fn scratch(&self, id: Uuid) -> String {
        format!("{}/scratch.{}", self.0, id.simple())
    }

    /// What comes of a version from another server, until it is kept.
    pub(super) fn incoming(&self, version: Uuid) -> String {
        format!("{}/incoming.{}", self.0, version.simple())
    }

    /// A bookmark of a version's snapshot, in the dataset of `lies_in`.
    pub(super) fn bookmark(&self, lies_in: Volume, id: &SnapshotId) -> String {
        self.snapshot(lies_in, id).replace('@', "#")
    }

    /// A snapshot of a volume that is ours for a while.
    pub(super) fn passing(&self, volume: Volume, id: Uuid) -> String {
        format!("{}@passing.{}", self.volume(volume), id.simple())
    }

    /// A clone that is to take a volume's place.
    pub(super) fn renewed(&self, volume: Volume) -> String {
        format!("{}/{RENEWED}{}", self.0, word(volume))
    }

    /// A snapshot in the dataset of `lies_in`.
    pub(super) fn snapshot(&self, lies_in: Volume, id: &SnapshotId) -> String {
        format!(
            "{}@{}.{}",
            self.volume(lies_in),
            word(id.volume),
            id.name.as_str()
        )
    }

    /// The part of a dataset's name below the parent.
    pub(super) fn below<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(&self.0)?.strip_prefix('/')
    }
}

/// What the name of a clone begins with that is to take a volume's place.
pub(super) const RENEWED: &str = "renewed.";

/// True for a snapshot that was ours for a while, by its name below the parent.
pub(super) fn parse_passing(text: &str) -> bool {
    let parts = text.split_once("@passing.");
    parts.is_some_and(|(volume, _)| parse_volume(volume).is_some())
}

/// A volume as one word.
pub(super) fn word(volume: Volume) -> String {
    match volume {
        Volume::Image(id) => format!("image.{}", id.simple()),
        Volume::Session(id) => format!("session.{}", id.simple()),
        Volume::Personal { client, image } => {
            format!("personal.{}.{}", client.simple(), image.simple())
        }
    }
}

/// A volume from the start of a text, and what follows.
fn leading(text: &str) -> Option<(Volume, &str)> {
    let (kind, rest) = text.split_once('.')?;
    let id = |text: &str| {
        // Only the form that we write: names must go both ways.
        let id = Uuid::try_parse(text).ok()?;
        (id.simple().to_string() == text).then_some(id)
    };
    let first = id(rest.get(..32)?)?;
    let rest = &rest[32..];
    match kind {
        "image" => Some((Volume::Image(first), rest)),
        "session" => Some((Volume::Session(first), rest)),
        "personal" => {
            let rest = rest.strip_prefix('.')?;
            let volume = Volume::Personal {
                client: first,
                image: id(rest.get(..32)?)?,
            };
            Some((volume, &rest[32..]))
        }
        _ => None,
    }
}

/// The volume of such a word.
pub(super) fn parse_volume(text: &str) -> Option<Volume> {
    leading(text)
        .filter(|(_, rest)| rest.is_empty())
        .map(|(volume, _)| volume)
}

/// A snapshot as one word, without the place where it lies.
pub(super) fn snapshot_word(id: &SnapshotId) -> String {
    format!("{}.{}", word(id.volume), id.name.as_str())
}

/// The snapshot of such a word.
pub(super) fn parse_snapshot(text: &str) -> Option<SnapshotId> {
    let (volume, rest) = leading(text)?;
    let name = rest.strip_prefix('.')?.parse().ok()?;
    Some(SnapshotId { volume, name })
}
