//! iSCSI (RFC 7143): the target. Many targets on one port, each a client's disk, opened at
//! its login.
//!
//! Pure: [`wire`] (PDUs, text), [`machine`] (login, CHAP, order of commands). [`scsi`]:
//! commands, sense data, what a disk says of itself, reservations. On the socket: [`server`]
//! (listener, limits), `login` (requests and answers), `targets` (discovery), `session` (the
//! thread of one session), `command` (its SCSI commands), `desk` (their answers), `execute` (what they do to the
//! disk), `output` (what is sent), `workers` (what may wait), `line` (the connection as others
//! see it), `lun` (what sessions to one disk share).

mod command;
mod desk;
mod execute;
mod line;
mod login;
mod lun;
pub mod machine;
pub mod metrics;
mod output;
pub mod scsi;
pub mod server;
mod session;
mod targets;
pub mod wire;
mod workers;

pub use metrics::IscsiMetrics;
pub use server::{IscsiLimits, IscsiServer};
