//! DHCP for booting machines (RFC 2131, 2132, 4578).
//!
//! [`wire`] bytes <-> types; [`decide`] request + facts -> decision; [`pool`] who has which
//! address; all three pure. [`server`] has the sockets.

pub mod decide;
pub mod pool;
pub mod server;
pub mod wire;

#[cfg(test)]
#[path = "../../tests/support/dhcp_packet.rs"]
mod packet;
#[cfg(test)]
mod testing;
