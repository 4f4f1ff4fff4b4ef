//! Boot sessions as the seed has them: one row per boot of a known client from a known image.

use std::net::Ipv4Addr;

use uuid::Uuid;

use super::{Timestamp, words};

words! {
    /// The seed's life cycle: starting -> booting -> running -> shutdown | error.
    pub enum SessionStatus {
        /// The machine has been heard.
        Starting = "starting",
        /// It has its boot script.
        Booting = "booting",
        /// Its system is up.
        Running = "running",
        /// Its system said goodbye, or was seen to have ended.
        Shutdown = "shutdown",
        /// It failed; the message says at which stage and why.
        Error = "error",
    }
}

impl SessionStatus {
    /// True until the session has ended.
    #[must_use]
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Booting | Self::Running)
    }
}

/// A row of `boot_sessions`. Its id is that of its boot attempt.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BootSession {
    /// Primary key, equal to the attempt's.
    pub id: Uuid,
    /// Who boots.
    pub client_id: Uuid,
    /// What it boots.
    pub image_id: Uuid,
    /// First packet.
    pub started_at: Timestamp,
    /// End, `None` while live.
    pub ended_at: Option<Timestamp>,
    /// Where it stands.
    pub status: SessionStatus,
    /// Whole seconds from the first packet to `up`.
    pub boot_time_seconds: Option<i32>,
    /// Stage and cause of an `error`.
    pub error_message: Option<String>,
    /// The machine's address.
    pub client_ip: Option<Ipv4Addr>,
    /// The address of ours that it was served from.
    pub boot_server_ip: Option<Ipv4Addr>,
}
