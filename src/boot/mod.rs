//! The boot: what a machine is given, and the record of how it went.
//!
//! *Pure*: [`path`] (the only judge of paths), [`plan`] (client, image, range -> what to do),
//! [`script`] (plan -> iPXE text), [`session`] (the state machine of a boot), [`token`].
//! *Services*: [`files`] (a path -> bytes, with [`loaders`]), [`tracker`] (the only writer of attempts,
//! events and sessions).

pub mod disks;
pub mod files;
pub mod loaders;
pub mod path;
pub mod plan;
pub mod script;
pub mod session;
pub mod token;
pub mod tracker;
