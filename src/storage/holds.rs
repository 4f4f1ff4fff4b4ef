//! Who holds a snapshot, so that it can't be destroyed, nor its volume. It touches no store.
//!
//! A hold says what it is for, so that whoever opens the store after a crash can tell whether
//! anybody still needs it: see [`stale`] and [`lacking`].

use std::collections::HashSet;
use std::fmt;

use uuid::Uuid;

use super::volume::{SnapshotId, Volume, VolumeInfo};

/// What a hold is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HoldTag {
    /// A volume that was cloned from the snapshot: a machine's disk, from its first login until
    /// it is removed.
    Clone(Volume),
    /// A replication in progress, by an id of its own.
    Replication(Uuid),
}

impl fmt::Display for HoldTag {
    /// `clone.session.ID`, `replication.ID`; ids are 32 hex digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clone(Volume::Image(id)) => write!(f, "clone.image.{}", id.simple()),
            Self::Clone(Volume::Session(id)) => write!(f, "clone.session.{}", id.simple()),
            Self::Clone(Volume::Personal { client, image }) => {
                write!(f, "clone.personal.{}.{}", client.simple(), image.simple())
            }
            Self::Replication(id) => write!(f, "replication.{}", id.simple()),
        }
    }
}

impl HoldTag {
    /// Reads what is displayed; `None` for what is none of ours.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split('.').collect();
        let id = |text: &str| Uuid::try_parse(text).ok();
        let tag = match words.as_slice() {
            ["clone", "image", of] => Self::Clone(Volume::Image(id(of)?)),
            ["clone", "session", of] => Self::Clone(Volume::Session(id(of)?)),
            ["clone", "personal", client, image] => Self::Clone(Volume::Personal {
                client: id(client)?,
                image: id(image)?,
            }),
            ["replication", of] => Self::Replication(id(of)?),
            _ => return None,
        };
        (tag.to_string() == text).then_some(tag)
    }
}

/// One hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeldSnapshot {
    /// What is held.
    pub snapshot: SnapshotId,
    /// What for.
    pub tag: HoldTag,
}

impl fmt::Display for HeldSnapshot {
    /// `image/ID@base for clone.session.ID`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {}", self.snapshot, self.tag)
    }
}

/// Holds of clones that are gone, or do not stand upon that snapshot any more: nobody needs them.
#[must_use]
pub fn stale(holds: &[HeldSnapshot], volumes: &[VolumeInfo]) -> Vec<HeldSnapshot> {
    let needed: HashSet<HeldSnapshot> = wanted(volumes).collect();
    let of_clones = holds.iter().filter(|h| matches!(h.tag, HoldTag::Clone(_)));
    of_clones.filter(|h| !needed.contains(h)).cloned().collect()
}

/// Holds that machines' disks should have and have not.
#[must_use]
pub fn lacking(holds: &[HeldSnapshot], volumes: &[VolumeInfo]) -> Vec<HeldSnapshot> {
    let there: HashSet<&HeldSnapshot> = holds.iter().collect();
    wanted(volumes).filter(|h| !there.contains(h)).collect()
}

/// Machines' disks that were made from a version, each with its hold on that.
fn wanted(volumes: &[VolumeInfo]) -> impl Iterator<Item = HeldSnapshot> {
    volumes
        .iter()
        .filter(|info| !matches!(info.volume, Volume::Image(_)))
        .filter_map(|info| {
            let snapshot = info.origin.clone()?;
            let tag = HoldTag::Clone(info.volume);
            Some(HeldSnapshot { snapshot, tag })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_go_both_ways_and_others_are_none_of_ours() {
        let (a, b) = (Uuid::from_u128(7), Uuid::from_u128(u128::MAX));
        let personal = Volume::Personal {
            client: a,
            image: b,
        };
        for tag in [
            HoldTag::Clone(Volume::Image(a)),
            HoldTag::Clone(Volume::Session(b)),
            HoldTag::Clone(personal),
            HoldTag::Replication(a),
        ] {
            assert_eq!(HoldTag::parse(&tag.to_string()), Some(tag));
        }
        let upper = HoldTag::Replication(b).to_string().to_uppercase();
        for other in [
            "",
            "clone",
            "clone.session",
            "keep",
            "replication.1",
            &upper,
        ] {
            assert_eq!(HoldTag::parse(other), None, "{other}");
        }
    }

    #[test]
    fn holds_of_clones_that_are_gone_are_stale_and_clones_without_one_lack_it() {
        let image = Uuid::from_u128(1);
        let clone = |n: u128, origin: Option<SnapshotId>| VolumeInfo {
            volume: Volume::Session(Uuid::from_u128(n)),
            size: 512,
            used: 0,
            referenced: 0,
            origin,
            snapshots: Vec::new(),
            path: String::new(),
        };
        let base = SnapshotId::base(image);
        let hold = |n: u128| HeldSnapshot {
            snapshot: base.clone(),
            tag: HoldTag::Clone(Volume::Session(Uuid::from_u128(n))),
        };
        let copying = HeldSnapshot {
            snapshot: base.clone(),
            tag: HoldTag::Replication(image),
        };
        // 2 has its hold, 3 lacks one, 4 is gone, 5 was freed of its version.
        let volumes = [
            clone(2, Some(base.clone())),
            clone(3, Some(base.clone())),
            clone(5, None),
        ];
        let holds = [hold(2), hold(4), hold(5), copying];
        assert_eq!(stale(&holds, &volumes), [hold(4), hold(5)]);
        assert_eq!(lacking(&holds, &volumes), [hold(3)]);
    }
}
