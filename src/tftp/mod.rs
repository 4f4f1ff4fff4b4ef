//! TFTP, ours because the boot timeline needs to know when a transfer is complete, and
//! because async-tftp answers an ERROR with more packets.
//!
//! [`wire`] bytes <-> types; [`machine`] one transfer, pure; [`server`] sockets and tasks.

pub mod machine;
pub mod server;
pub mod wire;
