//! Plain data: the nouns of the problem and the enums of the catalog.
//!
//! Nothing here reads a clock, a file, a socket or a database. Every type that
//! comes from outside is parsed once ([`MacAddr`], [`Arch`], [`Hostname`]) and
//! trusted afterwards.

pub mod arch;
pub mod attempt;
pub mod block;
pub mod client;
pub mod difference;
pub mod disk;
pub mod hostname;
pub mod image;
pub mod image_check;
pub mod lease;
pub mod mac;
pub mod maintenance;
pub mod mark;
pub mod part;
pub mod quota;
pub mod range;
pub mod replica;
pub mod session;
pub mod version;

pub use arch::Arch;
pub use attempt::{Attempt, AttemptOutcome, BootEvent, Stage};
pub use block::Block;
pub use client::{BootMode, Client, DiskMode, NetworkConfig};
pub use disk::{ClientDisk, CloneReport, DiskIdentity, DiskProtocol};
pub use hostname::Hostname;
pub use image::{BootMethod, FileRole, Image, ImageFile, ImageFormat, ImageKind, PhoneHome};
pub use image_check::{CheckFinding, CheckVerdict, Found, ImageCheck, Severity};
pub use lease::{Lease, LeaseState};
pub use mac::MacAddr;
pub use maintenance::Maintenance;
pub use mark::Mark;
pub use quota::CloneQuota;
pub use range::{NetworkRange, Pool, RangeMode, Route, Serve, UnreadyAction};
pub use replica::{Contact, Replica, ReplicaState, Server, Site};
pub use session::{BootSession, SessionStatus};
pub use version::{BootVerdict, Canary, CanaryBoot, Judgement, Version, VersionStage};

/// A point in time, UTC. Elapsed time inside the server is monotonic: see `clock.rs`.
pub type Timestamp = chrono::DateTime<chrono::Utc>;

/// Bytes as hex digits in lower case, two for each: sums, tokens, identifiers.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string never fails.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Declares a closed set of words as an enum with `as_str`, `Display`, `FromStr`,
/// serde and `ALL`, so that the spelling in SQL, JSON, metrics and logs is one.
macro_rules! words {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        $vis enum $name { $($(#[$vmeta])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// Every value, in declaration order.
            $vis const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The word used in SQL, JSON, metrics and logs.
            #[must_use]
            $vis const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::model::UnknownWord;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                $name::ALL.iter().copied().find(|v| v.as_str() == word).ok_or_else(|| {
                    $crate::model::UnknownWord {
                        word: word.to_owned(),
                        allowed: $name::ALL.iter().map(|v| v.as_str()).collect::<Vec<_>>().join(", "),
                    }
                })
            }
        }
    };
}
pub(crate) use words;

/// A word that is not in a closed set; says which words are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` is not one of: {allowed}")]
pub struct UnknownWord {
    /// What was given.
    pub word: String,
    /// What would have been understood, comma separated.
    pub allowed: String,
}
