//! Disks on the wire: one folder per protocol, each `wire` (bytes <-> types), `machine`
//! (negotiation, pure) and `server` (sockets, threads), over
//! [`BlockDevice`](crate::storage::BlockDevice). Who may have which disk is
//! [`boot::disks`](crate::boot::disks)' business.

mod attention;
pub mod iscsi;
pub mod nbd;
