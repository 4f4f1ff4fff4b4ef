//! NBD: disks over the network block device protocol, fixed newstyle. The map.
//!
//! Pure: [`wire`] (bytes <-> types), [`machine`] (negotiation, and what a request may ask).
//! [`server`] listens and negotiates on the runtime; then each connection has a thread of its
//! own in `connection`, with `workers` for what may wait, `outlet` for the socket (plain or
//! TLS), `conduit` for what goes there without a copy, and `line` for the door's questions. It decides nothing about who may have which
//! disk: that is [`DiskDoor`](crate::boot::disks::DiskDoor)'s.

mod batch;
mod conduit;
mod connection;
mod handshake;
mod line;
pub mod machine;
pub mod metrics;
mod outlet;
pub mod server;
mod tls;
pub mod wire;
mod words;
mod workers;

pub use metrics::NbdMetrics;
pub use server::{MultiConn, NbdLimits, NbdServer};
pub use tls::{BadTls, Tls, tls_config};
