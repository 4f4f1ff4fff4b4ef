//! What there is to find, in words: each finding has a stable name, a sentence, and what can be
//! done about it. What destroys something is apart from what does not.

use uuid::Uuid;

use super::{Hold, Name};
use crate::model::words;

words! {
    /// What is wrong. The words are stable: they are names in metrics, logs and commands.
    pub enum Kind {
        /// An image's disk is not in the store.
        ImageWithoutDisk = "image-without-disk",
        /// A version's disk is not in the store.
        VersionWithoutDisk = "version-without-disk",
        /// A disk is there, but not the snapshot of it that machines' disks are made from.
        DiskWithoutBase = "disk-without-base",
        /// An image's kernel and initrds are not there.
        ImageWithoutFiles = "image-without-files",
        /// A disk of no image and no version.
        DiskWithoutRow = "disk-without-row",
        /// Kernel and initrds of no image.
        FilesWithoutRow = "files-without-row",
        /// A persistent disk whose client is not in the catalog.
        DiskWithoutClient = "disk-without-client",
        /// A persistent disk whose image is not in the catalog.
        DiskWithoutImage = "disk-without-image",
        /// A snapshot that was made for a version that nobody knows.
        SnapshotWithoutVersion = "snapshot-without-version",
        /// A disk whose origin is not there.
        OriginMissing = "origin-missing",
        /// A hold that nobody needs.
        HoldWithoutClone = "hold-without-clone",
        /// The row says another size than the disk has.
        SizeDiffers = "size-differs",
        /// Something was begun that is not finished by itself.
        IntentionUnfinished = "intention-unfinished",
    }
}

impl Kind {
    /// What is done about it when asked to repair it: nothing is lost by that.
    #[must_use]
    pub const fn repair(self) -> Option<&'static str> {
        match self {
            Self::DiskWithoutBase => Some("makes the snapshot of what the disk has now"),
            Self::DiskWithoutRow | Self::DiskWithoutClient | Self::DiskWithoutImage => {
                Some("adopts it as an image")
            }
            Self::HoldWithoutClone => Some("releases the hold"),
            Self::SizeDiffers => Some("has the row say what the disk has, and forgets its hash"),
            Self::IntentionUnfinished => Some("forgets the intention and keeps all that is stored"),
            Self::ImageWithoutDisk
            | Self::VersionWithoutDisk
            | Self::ImageWithoutFiles
            | Self::FilesWithoutRow
            | Self::SnapshotWithoutVersion
            | Self::OriginMissing => None,
        }
    }

    /// True if there is nothing to decide, so that it may be repaired with all others. A disk that
    /// becomes an image stands in the way of the row that it had, if that comes back.
    #[must_use]
    pub const fn is_plain(self) -> bool {
        self.repair().is_some()
            && !matches!(
                self,
                Self::DiskWithoutRow | Self::DiskWithoutClient | Self::DiskWithoutImage
            )
    }

    /// What is destroyed when its removal is asked for.
    #[must_use]
    pub const fn removal(self) -> Option<&'static str> {
        match self {
            Self::DiskWithoutRow | Self::DiskWithoutClient | Self::DiskWithoutImage => {
                Some("destroys the disk")
            }
            Self::FilesWithoutRow => Some("deletes the files"),
            Self::SnapshotWithoutVersion => Some("destroys the snapshot"),
            Self::VersionWithoutDisk => Some("deletes the version's row"),
            Self::IntentionUnfinished => Some("finishes it: what it was about is destroyed"),
            Self::ImageWithoutDisk
            | Self::DiskWithoutBase
            | Self::ImageWithoutFiles
            | Self::OriginMissing
            | Self::HoldWithoutClone
            | Self::SizeDiffers => None,
        }
    }

    /// What a person does about it, where neither is all.
    #[must_use]
    pub const fn by_hand(self) -> Option<&'static str> {
        match self {
            Self::ImageWithoutDisk => Some(
                "bring the store's files back, or delete the image (`dls image delete`) and import it again",
            ),
            Self::VersionWithoutDisk => {
                Some("bring the store's files back, or release another version and remove this one")
            }
            Self::ImageWithoutFiles => {
                Some("bring the files back, or add the image again (`dls image add`)")
            }
            Self::OriginMissing => Some("bring the store's files back"),
            Self::FilesWithoutRow
            | Self::DiskWithoutRow
            | Self::DiskWithoutClient
            | Self::DiskWithoutImage => {
                Some("if the database was put back to an older state, bring the rows back")
            }
            Self::DiskWithoutBase
            | Self::SnapshotWithoutVersion
            | Self::HoldWithoutClone
            | Self::SizeDiffers
            | Self::IntentionUnfinished => None,
        }
    }
}

/// What a finding is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A row of an image.
    Image(Uuid),
    /// A row of a version.
    Version(Uuid),
    /// A disk.
    Disk(Name),
    /// Kernel and initrds.
    Files(Uuid),
    /// A snapshot of a disk.
    Snapshot(Name, String),
    /// A hold.
    Hold(Hold),
    /// An intention, by its id in the journal.
    Intention(Uuid),
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub kind: Kind,
    /// With what.
    pub target: Target,
    /// The same for people.
    pub sentence: String,
}

impl Finding {
    /// By what it is named: `disk-without-row:image/ID`.
    #[must_use]
    pub fn id(&self) -> String {
        let of = match &self.target {
            Target::Image(id) | Target::Version(id) | Target::Files(id) | Target::Intention(id) => {
                id.to_string()
            }
            Target::Disk(name) => name.to_string(),
            Target::Snapshot(name, snapshot) => format!("{name}@{snapshot}"),
            Target::Hold(hold) => {
                let (name, snapshot) = &hold.on;
                let of = hold.clone.map_or_else(String::new, |c| format!("+{c}"));
                format!("{name}@{snapshot}{of}")
            }
        };
        format!("{}:{of}", self.kind)
    }
}
