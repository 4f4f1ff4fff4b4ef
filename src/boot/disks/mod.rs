//! Disks of boots: who may have which disk, and the handle that a connection works through.
//!
//! [`door`]: what the exports ask for a disk with. [`attachment`]: one connection's hold on a
//! disk: fenced, counted. [`service`]: the door's other side, over cache, tracker and store;
//! `desk`: who holds a client's disk; `keeper`: what goes on in the background; `metrics`: the numbers. It speaks neither iSCSI nor NBD,
//! and knows no SQL.

pub mod attachment;
mod desk;
pub mod door;
mod keeper;
pub mod metrics;
pub mod service;

pub use attachment::{Attachment, Meter, Seen, Usage};
pub use desk::Verdict;
pub use door::{ChapSecrets, DiskDoor, Line, Login, NoDisk, Proof};
pub use keeper::{GRACE, NotReset};
pub use metrics::DiskMetrics;
pub use service::Disks;
