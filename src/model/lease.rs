//! Leases: which machine holds which address, from when and for how long.

use std::net::Ipv4Addr;

use uuid::Uuid;

use super::{Hostname, MacAddr, Timestamp, words};

words! {
    /// State of a row of `leases`.
    pub enum LeaseState {
        /// Given to its MAC until it ends.
        Active = "active",
        /// Given back; kept so that the same machine gets it again.
        Released = "released",
        /// Found in use by somebody else; kept out until it ends.
        Declined = "declined",
    }
}

/// A row of `leases`: start and length, never an end of its own, so that a clock that
/// jumps ends nothing.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Lease {
    /// The address; primary key.
    pub address: Ipv4Addr,
    /// The network range it lies in.
    pub range_id: Uuid,
    /// The machine. One active or released lease per MAC and range.
    pub mac: MacAddr,
    /// Option 61 as sent, an attribute only.
    pub client_identifier: Option<Vec<u8>>,
    /// Option 12, where it was a host name.
    pub hostname: Option<Hostname>,
    /// Active, released or declined.
    pub state: LeaseState,
    /// Start.
    pub starts_at: Timestamp,
    /// Length in seconds; [`Lease::INFINITE`] never ends.
    pub length_seconds: u32,
    /// Option 82 as the relay sent it.
    pub relay_information: Option<Vec<u8>>,
}

impl Lease {
    /// RFC 2131 section 3.3: all ones is infinity.
    pub const INFINITE: u32 = u32::MAX;

    /// When it ends; `None` for never.
    #[must_use]
    pub fn ends_at(&self) -> Option<Timestamp> {
        (self.length_seconds != Self::INFINITE)
            .then(|| self.starts_at + chrono::TimeDelta::seconds(i64::from(self.length_seconds)))
    }

    /// True while it lasts, whatever its state.
    #[must_use]
    pub fn lasts(&self, now: Timestamp) -> bool {
        self.ends_at().is_none_or(|end| now < end)
    }
}
