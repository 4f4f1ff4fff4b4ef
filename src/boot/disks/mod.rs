//! Disks of boots: who may have which disk, and the handle that a connection works through.
//!
//! [`door`]: what the exports ask for a disk with. [`attachment`]: one connection's hold on a
//! disk: fenced, counted. [`service`]: the door's other side, over cache, tracker and store;
//! `desk`: who holds a client's disk; `keeper`: what goes on in the background; `publish`: what a client has on its
//! disk becomes a version; `quota`: how much a machine may write; `compare`: what versions and disks differ in; `metrics`: the numbers. It speaks neither iSCSI nor NBD,
//! and knows no SQL.

pub mod attachment;
mod compare;
mod desk;
pub mod door;
mod keeper;
pub mod metrics;
mod publish;
mod quota;
pub mod service;

pub use attachment::{Attachment, Meter, Seen, Usage};
pub use compare::Loss;
pub use desk::Verdict;
pub use door::{ChapSecrets, DiskDoor, Line, Login, NoDisk, Proof};
pub use keeper::{GRACE, NotReset};
pub use metrics::DiskMetrics;
pub use publish::{NotPublished, Taken};
pub use service::Disks;
pub(in crate::boot) use service::version_volume;
