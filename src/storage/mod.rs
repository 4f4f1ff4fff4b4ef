//! Images as bytes on this server. Nothing here knows PostgreSQL, sockets or boots.
//!
//! [`directory`]: files of kernel images below one root. Disks: [`block`] is the trait on
//! bytes, [`volume`] the trait on names, [`disks`] the backend in files (upon `layer`),
//! `zfs` the backend upon ZFS (feature `zfs`), [`memory`] the backend for tests. On the way in: [`uploads`] (files in pieces), [`magic`]
//! (what they are), [`pending`] (what was begun), [`mend`] (what a crash cut short). [`holds`]: who needs
//! which snapshot. [`streams`]: what stores send to their like. `ranges`: bytes in order.

pub mod block;
#[cfg(test)]
pub(crate) mod conformance;
pub mod directory;
pub mod disks;
pub mod holds;
mod layer;
pub mod magic;
pub mod memory;
pub mod mend;
mod nowait;
pub mod pending;
mod ranges;
pub mod streams;
pub mod uploads;
pub mod volume;
#[cfg(feature = "zfs")]
pub mod zfs;

pub use block::{BlockDevice, BlockError, DeviceInfo, Durability, Extent, ExtentKind, Lent};
pub use directory::{Directory, Scratch, Staged, StorageError};
pub use disks::DiskStore;
pub use holds::{HeldSnapshot, HoldTag};
pub use nowait::{is_at_hand, read_at_hand};
pub use pending::{Intent, Noted, Pending};
pub use streams::{Arrived, Beat, Ingoing, Outgoing, Start, Streams, Wanted};
pub use uploads::{Held, Hold, Standing, Upload, Uploads};
pub use volume::{
    Access, DiskFormat, Imported, Progress, SnapshotId, SnapshotName, Storage, Volume, VolumeError,
    VolumeInfo,
};
#[cfg(feature = "zfs")]
pub use zfs::ZfsStore;
