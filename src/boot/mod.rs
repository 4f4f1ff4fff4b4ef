//! The boot: what a machine is given, and the record of how it went.
//!
//! *Pure*: [`path`] (the only judge of paths), [`plan`] (client, image, range -> what to do),
//! [`script`] (plan -> iPXE text), [`disk_words`] (what a boot is told of its disk), [`session`]
//! (the state machine of a boot), [`token`].
//! *Services*: [`files`] (a path -> bytes, with [`loaders`]), [`disks`] (who gets which disk),
//! [`tracker`] (the only writer of attempts, events and sessions).

pub mod canaries;
pub mod choice;
pub mod disk_words;
pub mod disks;
pub mod files;
pub mod loaders;
pub mod path;
pub mod plan;
pub mod script;
pub mod session;
pub mod token;
pub mod tracker;
