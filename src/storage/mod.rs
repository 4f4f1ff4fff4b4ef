//! Images as bytes on this server. Nothing here knows PostgreSQL, sockets or boots.
//!
//! [`directory`]: files of kernel images below one root. Disks: [`block`] is the trait on
//! bytes, [`volume`] the trait on names, [`disks`] the backend in files (upon `layer`),
//! [`memory`] the backend for tests. On the way in: [`uploads`] (files in pieces), [`magic`]
//! (what they are), [`pending`] (what was begun).

pub mod block;
#[cfg(test)]
pub(crate) mod conformance;
pub mod directory;
pub mod disks;
mod layer;
pub mod magic;
pub mod memory;
mod nowait;
pub mod pending;
pub mod uploads;
pub mod volume;

pub use block::{BlockDevice, BlockError, DeviceInfo, Durability, Extent, ExtentKind, Lent};
pub use directory::{Directory, Staged, StorageError};
pub use disks::DiskStore;
pub use pending::Pending;
pub use uploads::{Held, Hold, Standing, Upload, Uploads};
pub use volume::{
    Access, DiskFormat, Imported, Progress, SnapshotId, SnapshotName, Storage, Volume, VolumeError,
    VolumeInfo,
};
