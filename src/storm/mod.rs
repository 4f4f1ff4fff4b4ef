//! `dls storm`: whole boots of many machines against a server, ours or another, every byte
//! checked. The clients' side of what the edges serve; it holds nothing of a server.
//!
//! *Pure*: [`plan`] which machines and when; `machine` one boot as a state machine; `orders` what
//! a boot script tells to do; [`profile`] what is read and written on a disk, and when; [`report`]
//! times, failures and their tables; `words` stages and causes.
//! *Effects*: `reference` what bytes must be; `link` DHCP by raw frames or as a relay; `fetch`
//! TFTP and HTTP; `disk` iSCSI and NBD; [`run`] the tasks.

mod disk;
mod fetch;
mod link;
mod machine;
mod orders;
pub mod plan;
pub mod profile;
mod reference;
pub mod report;
pub mod run;
mod words;

pub use words::{Cause, Role, Stage};

#[cfg(test)]
mod tests;
