//! The door between the exports and the disks: what a connection shows to get a disk, and why
//! it may be refused.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Attachment;
use crate::model::{DiskIdentity, DiskProtocol};
use crate::storage::DeviceInfo;

/// CHAP secrets of one boot. 16 characters each: initiators of Windows take 12 to 16.
#[derive(Clone, PartialEq, Eq)]
pub struct ChapSecrets {
    /// What the machine proves that it knows.
    pub machine: String,
    /// The name that the server answers a challenge of the machine with (mutual CHAP).
    pub server_name: String,
    /// What the server proves that it knows.
    pub server: String,
}

impl fmt::Debug for ChapSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChapSecrets(..)")
    }
}

/// How a machine proved which boot it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// It answered a CHAP challenge with this boot's secret; the export checked that against
    /// [`DiskDoor::secrets`].
    Chap {
        /// The CHAP name, which is the boot's.
        name: String,
    },
    /// It named an export that only this boot was told of (`ID.TOKEN`, 32 hex digits each).
    ExportName(String),
}

/// What a connection shows.
#[derive(Debug, Clone)]
pub struct Login {
    /// Spoken how.
    pub protocol: DiskProtocol,
    /// From where.
    pub peer: SocketAddr,
    /// The disk asked for, where the protocol names it apart from the proof.
    pub target: Option<DiskIdentity>,
    /// The initiator's own name, for the record; proves nothing.
    pub initiator: String,
    /// The proof.
    pub proof: Proof,
    /// The connection itself, to be asked and closed later.
    pub line: Arc<dyn Line>,
}

/// A connection, as the disks see it. Neither call blocks for long. It must not keep the
/// [`Attachment`] that it gets: the disks keep the line as long as the attachment lives.
pub trait Line: Send + Sync + fmt::Debug {
    /// Asks the other end for a sign of life (iSCSI: NOP-In; NBD: TCP keep-alive) and waits
    /// for it on the calling thread, at most that long.
    fn answers(&self, patience: Duration) -> bool;

    /// Breaks the connection off; what it had under way ends with errors.
    fn close(&self);
}

/// Why a connection gets no disk. Metric label, event detail, sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoDisk {
    /// No disk has that name, or none with that proof: which of both is not told apart.
    WrongProof,
    /// The disk that is asked for is not that boot's.
    OtherDisk,
    /// The boot that it belongs to is over.
    BootOver,
    /// The boot has no image with a disk.
    NoImage,
    /// The image has no disk on this server.
    NotStored,
    /// Another boot of this client has the disk, and its connection still answers.
    InUse,
    /// The store failed or is full; the sentence says how.
    Store(String),
    /// The server is stopping, or has too many connections.
    Unavailable,
}

impl NoDisk {
    /// Metric label and event word.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::WrongProof => "wrong_proof",
            Self::OtherDisk => "other_disk",
            Self::BootOver => "boot_over",
            Self::NoImage => "no_image",
            Self::NotStored => "not_stored",
            Self::InUse => "in_use",
            Self::Store(_) => "store",
            Self::Unavailable => "unavailable",
        }
    }

    /// In words.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self {
            Self::WrongProof => "no disk is there for this name and secret".to_owned(),
            Self::OtherDisk => "the disk that was asked for belongs to another machine".to_owned(),
            Self::BootOver => {
                "the boot that this name and secret belong to is over; a restart begins a new one"
                    .to_owned()
            }
            Self::NoImage => "this boot has no disk image".to_owned(),
            Self::NotStored => "the image has no disk on this server".to_owned(),
            Self::InUse => {
                "another boot of this machine has the disk, and its connection still answers"
                    .to_owned()
            }
            Self::Store(why) => format!("the disk can't be opened: {why}"),
            Self::Unavailable => "the server gives out no disks now".to_owned(),
        }
    }
}

/// Where exports get disks from. Calls may block for some milliseconds (a clone is made, an
/// older login is fenced): call from a blocking thread.
pub trait DiskDoor: Send + Sync + fmt::Debug {
    /// The secrets that go with a CHAP name; `None` if it can't be one of ours. Answers for
    /// boots that are over too, and provisions nothing: it tells nothing to who guesses.
    fn secrets(&self, chap_name: &str) -> Option<ChapSecrets>;

    /// The disk that a CHAP name may see (for SendTargets), if its boot has one.
    fn visible(&self, chap_name: &str) -> Option<DiskIdentity>;

    /// True if logins without CHAP are let in (never in the server; a test's door may).
    fn open_to_all(&self) -> bool {
        false
    }

    /// What the disk is that a proof would give, without opening or making anything (NBD's
    /// INFO); `None` from a door that tells so only to who opens it.
    ///
    /// # Errors
    /// Why it would give none.
    fn describe(&self, _proof: &Proof) -> Result<Option<DeviceInfo>, NoDisk> {
        Ok(None)
    }

    /// Gives the disk. An older login of the same boot has been fenced when this returns:
    /// nothing it had under way can be written any more.
    ///
    /// # Errors
    /// Why not.
    fn attach(&self, login: Login) -> Result<Attachment, NoDisk>;
}
