//! `BootPath`: the only place that judges a path from the network.
//!
//! TFTP file names and HTTP paths become one of a closed set of things; no text of a client
//! ever becomes part of a file system path.

use uuid::Uuid;

use super::token::BootToken;

/// What a client asks for, by either door.
#[derive(Debug, Clone)]
pub enum BootPath {
    /// A loader by its base name, one path component of `[A-Za-z0-9._-]`, not starting with a dot.
    Loader(String),
    /// A thing of one boot, with the proof that came with it (HTTP), or to be proved by the
    /// sender's address (TFTP).
    Mine {
        /// Attempt and token; `None` by TFTP.
        proof: Option<(Uuid, BootToken)>,
        /// Which thing.
        item: Item,
    },
}

/// Things of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Item {
    /// `boot.ipxe` (and `autoexec.ipxe`).
    Script,
    /// `kernel`.
    Kernel,
    /// `initrd0`, `initrd1`, ...
    Initrd(u8),
    /// `up`, `beat`, `bye`: phone-home.
    Report(Report),
}

/// Phone-home calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Report {
    /// The system is up.
    Up,
    /// It lives.
    Beat,
    /// It stops.
    Bye,
}

/// Why a path is refused; a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BadPath {
    /// Empty or longer than 255 bytes.
    #[error("empty or too long")]
    Length,
    /// NUL, control characters, backslash, or a bad percent escape.
    #[error("forbidden characters")]
    Characters,
    /// `.` or `..` as a component.
    #[error("leaves its directory")]
    Traversal,
    /// Nothing by that name here.
    #[error("no such name")]
    Unknown,
    /// Token or id is malformed.
    #[error("malformed token")]
    Token,
}

impl BootPath {
    /// A TFTP file name, raw bytes as received.
    ///
    /// # Errors
    /// See [`BadPath`].
    pub fn parse_tftp(name: &[u8]) -> Result<Self, BadPath> {
        let _ = name;
        unimplemented!()
    }

    /// The path of an HTTP request target (no query), still percent-encoded.
    ///
    /// # Errors
    /// See [`BadPath`].
    pub fn parse_http(path: &str) -> Result<Self, BadPath> {
        let _ = path;
        unimplemented!()
    }
}
