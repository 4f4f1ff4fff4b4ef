//! Catalog and store, checked against each other: two lists in, findings out. Pure: it reads
//! neither, repairs nothing and decides nothing; which side is right is for a person to say.
//!
//! `finding`: what there is to find, in words, with what can be done about it. `compare`: how it is
//! found. Clones of boots are no concern of it: they come and go, and whoever made them clears them away.

mod compare;
mod finding;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;

use uuid::Uuid;

pub use compare::compare;
pub use finding::{Finding, Kind, Target};

/// The name of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// Of an image, or a version.
    Image(Uuid),
    /// Of a boot.
    Session(Uuid),
    /// A client's own.
    Personal {
        /// Whose.
        client: Uuid,
        /// Of which image.
        image: Uuid,
    },
}

impl fmt::Display for Name {
    /// `image/ID`, `session/ID`, `personal/CLIENT/IMAGE`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(id) => write!(f, "image/{id}"),
            Self::Session(id) => write!(f, "session/{id}"),
            Self::Personal { client, image } => write!(f, "personal/{client}/{image}"),
        }
    }
}

/// A volume of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its name.
    pub name: Name,
    /// Bytes that a machine sees.
    pub size: u64,
    /// Bytes it takes.
    pub used: u64,
    /// Volume and snapshot that it was made from.
    pub origin: Option<(Name, String)>,
    /// Its snapshots.
    pub snapshots: Vec<String>,
    /// The versions that some of these were made for.
    pub made_for: Vec<(String, Uuid)>,
}

/// A hold on a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The snapshot.
    pub on: (Name, String),
    /// The volume that it is for; none where that is no volume's concern.
    pub clone: Option<Name>,
}

/// Something that was begun and is not finished without being asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Its id in the journal.
    pub id: Uuid,
    /// What it was.
    pub what: String,
}

/// What the store has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Store {
    /// Disks.
    pub disks: Vec<Disk>,
    /// Images whose kernel or initrds are there.
    pub files: Vec<Uuid>,
    /// Holds.
    pub holds: Vec<Hold>,
    /// What waits for a person.
    pub unfinished: Vec<Unfinished>,
    /// Images and versions that are being made or removed right now: nothing is said of them.
    pub busy: Vec<Uuid>,
}

/// An image of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRow {
    /// Its id, and that of its first version.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// It has a disk.
    pub disk: bool,
    /// It has kernel and initrds.
    pub files: bool,
    /// Bytes of its disk, as the row says.
    pub size: i64,
    /// Who uses it, in words.
    pub used_by: Vec<String>,
}

/// A version that is not the first of its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRow {
    /// Its id.
    pub id: Uuid,
    /// The image's name.
    pub image: String,
    /// Its name.
    pub name: String,
    /// Who uses it, in words.
    pub used_by: Vec<String>,
}

/// What the catalog says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    /// Images and versions that other servers have and this one need not.
    pub elsewhere: BTreeSet<Uuid>,
    /// Its images.
    pub images: Vec<ImageRow>,
    /// Their later versions.
    pub versions: Vec<VersionRow>,
    /// Its clients.
    pub clients: Vec<Uuid>,
}
