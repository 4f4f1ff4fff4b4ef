//! TFTP, ours because the boot timeline needs to know when a transfer is complete, and
//! because async-tftp answers an ERROR with more packets.
//!
//! *Pure*: [`wire`] (bytes <-> types), [`machine`] (one transfer). *Edge*: [`server`] (the
//! port, who may ask), `seats` (how many), `transfer` (one transfer's socket), `pump` (the
//! threads of all), `blocks` (its bytes), [`room`] (the files behind it and the reports to the tracker), [`metrics`].

mod blocks;
pub mod machine;
pub mod metrics;
mod pump;
pub mod room;
mod seats;
pub mod server;
mod transfer;
pub mod wire;
