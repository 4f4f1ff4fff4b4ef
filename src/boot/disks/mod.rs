//! Disks of boots: who may have which disk, and the handle that a connection works through.
//!
//! [`door`]: what the exports ask for a disk with. [`attachment`]: one connection's hold on a
//! disk: fenced, counted. It speaks neither iSCSI nor NBD, and knows no SQL.

pub mod attachment;
pub mod door;

pub use attachment::{Attachment, Seen, Usage};
pub use door::{ChapSecrets, DiskDoor, Line, Login, NoDisk, Proof};
