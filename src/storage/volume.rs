//! The trait on names: which disks there are, and what is made of what. It knows no bytes.
//!
//! Calls block and may take long (an import, a flattening); they are made from blocking
//! threads. Each is all or nothing, also across a crash: what was begun and not finished is
//! undone or finished when the store is opened again.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::block::{BlockDevice, BlockError};
use super::holds::{HeldSnapshot, HoldTag};
use super::streams::Streams;

/// The name of a disk in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Volume {
    /// An image's own disk.
    Image(Uuid),
    /// The clone of one boot session (ephemeral clients): the attempt's id.
    Session(Uuid),
    /// A client's own copy of an image (persistent clients).
    Personal {
        /// The client.
        client: Uuid,
        /// The image.
        image: Uuid,
    },
}

impl fmt::Display for Volume {
    /// `image/ID`, `session/ID`, `personal/CLIENT/IMAGE`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(id) => write!(f, "image/{id}"),
            Self::Session(id) => write!(f, "session/{id}"),
            Self::Personal { client, image } => write!(f, "personal/{client}/{image}"),
        }
    }
}

/// The name of a snapshot within its volume: 1 to 64 of `a-z 0-9 - _ .`, the first a letter
/// or digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotName(String);

impl SnapshotName {
    /// The snapshot that an image's clones come from.
    #[must_use]
    pub fn base() -> Self {
        Self("base".to_owned())
    }

    /// What a frozen layer has whose snapshot was removed; nobody can ask for it.
    pub(super) const fn nameless() -> Self {
        Self(String::new())
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SnapshotName {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Self, VolumeError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
        let first = text.bytes().next();
        if text.len() > 64
            || !first.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            || !text.bytes().all(allowed)
        {
            return Err(VolumeError::BadName(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A point in time of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId {
    /// Of what.
    pub volume: Volume,
    /// Which.
    pub name: SnapshotName,
}

impl SnapshotId {
    /// The snapshot of an image that its clones come from.
    #[must_use]
    pub fn base(image: Uuid) -> Self {
        Self {
            volume: Volume::Image(image),
            name: SnapshotName::base(),
        }
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.volume, self.name.as_str())
    }
}

/// How a disk is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads only.
    Read,
    /// Reads and writes.
    Write,
}

/// Formats of files that disks come from and go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    /// Bytes as they are.
    Raw,
    /// QEMU's.
    Qcow2,
    /// Hyper-V's.
    Vhdx,
    /// VMware's; import only.
    Vmdk,
}

impl DiskFormat {
    /// Every value.
    pub const ALL: &'static [Self] = &[Self::Raw, Self::Qcow2, Self::Vhdx, Self::Vmdk];

    /// `raw`, `qcow2`, `vhdx`, `vmdk`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
        }
    }
}

/// What a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its name.
    pub volume: Volume,
    /// Bytes that a machine sees.
    pub size: u64,
    /// Bytes that it takes in the store, without what it shares.
    pub used: u64,
    /// Bytes that it refers to, what it shares included.
    pub referenced: u64,
    /// What it was cloned from, while it still needs that.
    pub origin: Option<SnapshotId>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<SnapshotName>,
    /// Where it lies, below the store's root, for people.
    pub path: String,
}

impl VolumeInfo {
    /// True if it was cloned from a snapshot of that volume and still needs it.
    #[must_use]
    pub fn stands_upon(&self, volume: Volume) -> bool {
        self.origin.as_ref().is_some_and(|o| o.volume == volume)
    }
}

/// How far a long call is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// What it does now: `copying`, `verifying`, `flattening`.
    pub step: &'static str,
    /// From 0 to 1, within that step.
    pub done: f64,
}

/// What an import made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Bytes of the disk.
    pub size: u64,
    /// SHA-256 of the disk's content, 64 hex digits in lower case.
    pub sha256: String,
    /// Bytes it takes in the store.
    pub used: u64,
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No such volume or snapshot.
    #[error("{0} is not in this server's image store")]
    Missing(String),
    /// The name is taken.
    #[error("{0} is there already")]
    Exists(String),
    /// Something depends on it or has it open.
    #[error("{what} is in use: {by}")]
    Busy {
        /// What.
        what: String,
        /// By whom, for people.
        by: String,
    },
    /// Not a name.
    #[error("`{0}` can't be the name of a snapshot: 1 to 64 of a-z, 0-9, `-`, `_`, `.`")]
    BadName(String),
    /// The file to import is not what it says, or broken; the sentence says what and where.
    #[error("{0}")]
    BadSource(String),
    /// The store is full; nothing was changed.
    #[error("no space is left in the image store")]
    NoSpace,
    /// The store is away, or does not answer: nothing is known of what was asked, which may still
    /// be done later. It goes on by itself when it is back. The sentence says what it lacks.
    #[error("the image store does not answer: {0}")]
    Away(String),
    /// It was cancelled; nothing was changed.
    #[error("it was cancelled")]
    Cancelled,
    /// A stored file is not what it should be.
    #[error("{what}: {why}")]
    Damaged {
        /// Which file or volume.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The store failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// How it failed.
        #[source]
        source: std::io::Error,
    },
}

impl From<BlockError> for VolumeError {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::NoSpace => Self::NoSpace,
            BlockError::Io(source) => Self::Io {
                what: "the image store".to_owned(),
                source,
            },
            other => Self::Damaged {
                what: "the image store".to_owned(),
                why: other.to_string(),
            },
        }
    }
}

/// A store of disks. One call on one volume at a time is the caller's duty for none of them:
/// a store orders its calls itself.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Makes an empty disk of that many bytes (a multiple of 512), all zeroes.
    ///
    /// # Errors
    /// `Exists`, `NoSpace`, `Io`.
    fn create(&self, volume: Volume, size: u64) -> Result<(), VolumeError>;

    /// Makes a disk from a file: converts, keeps zeroes sparse, hashes, reads back what was
    /// stored and compares, syncs. `progress` is called now and then.
    ///
    /// # Errors
    /// `BadSource` with a sentence for whoever gave the file, `Exists`, `NoSpace`,
    /// `Cancelled`, `Io`. Nothing is left behind.
    fn import(
        &self,
        volume: Volume,
        source: &Path,
        format: DiskFormat,
        progress: &mut dyn FnMut(Progress),
        cancel: &CancellationToken,
    ) -> Result<Imported, VolumeError>;

    /// Writes a disk's content, as of a snapshot, to a file that must not exist yet.
    ///
    /// # Errors
    /// `Missing`, `NoSpace`, `Cancelled`, `Io`; the file is then removed.
    fn export(
        &self,
        snapshot: &SnapshotId,
        to: &Path,
        format: DiskFormat,
        progress: &mut dyn FnMut(Progress),
        cancel: &CancellationToken,
    ) -> Result<(), VolumeError>;

    /// Keeps the present content of a volume under a name.
    ///
    /// # Errors
    /// `Missing`, `Exists`, `Io`.
    fn snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError>;

    /// Makes a writable volume with the content of a snapshot, sharing its space. Takes a few
    /// milliseconds however large the disk is and however many clones there are. It becomes
    /// durable with its first flush.
    ///
    /// # Errors
    /// `Missing`, `Exists`, `NoSpace`, `Io`.
    fn clone_volume(&self, origin: &SnapshotId, clone: Volume) -> Result<(), VolumeError>;

    /// Puts a volume back to one of its snapshots; later snapshots of it are lost.
    ///
    /// # Errors
    /// `Missing`; `Busy` while it is open, or while a later snapshot has clones or is held; `Io`.
    fn rollback(&self, snapshot: &SnapshotId) -> Result<(), VolumeError>;

    /// Frees a clone from its origin: it holds all of its content itself afterwards. May run
    /// while the clone is open.
    ///
    /// # Errors
    /// `Missing`, `NoSpace`, `Cancelled`, `Io`; the clone is then as it was.
    fn promote(
        &self,
        volume: Volume,
        progress: &mut dyn FnMut(Progress),
        cancel: &CancellationToken,
    ) -> Result<(), VolumeError>;

    /// Removes a volume with its snapshots. What is not there is no error.
    ///
    /// # Errors
    /// `Busy` while it is open, something was cloned from it or a snapshot of it is held; `Io`.
    fn destroy(&self, volume: Volume) -> Result<(), VolumeError>;

    /// Removes a snapshot; the volume keeps its content. What is not there is no error.
    ///
    /// # Errors
    /// `Busy` while something was cloned from it, or it is held; `Io`.
    fn remove_snapshot(&self, snapshot: &SnapshotId) -> Result<(), VolumeError>;

    /// Keeps a snapshot, and its volume, from being removed until it is released as often as
    /// it is held with different tags. It outlives the end of the server, and a power cut: with
    /// [`HoldTag::Replication`] at once, with [`HoldTag::Clone`] when the clone does. Once more is no error.
    ///
    /// # Errors
    /// `Missing`, `Io`.
    fn hold(&self, snapshot: &SnapshotId, tag: HoldTag) -> Result<(), VolumeError>;

    /// Lets go of it. What is not held is no error.
    ///
    /// # Errors
    /// `Io`.
    fn release(&self, snapshot: &SnapshotId, tag: HoldTag) -> Result<(), VolumeError>;

    /// All holds of ours in the store, sorted.
    ///
    /// # Errors
    /// `Io`.
    fn holds(&self) -> Result<Vec<HeldSnapshot>, VolumeError>;

    /// Opens a volume. All handles that write share one disk; the files close when the last
    /// handle is gone.
    ///
    /// # Errors
    /// `Missing`, `Damaged`, `Io`.
    fn open(&self, volume: Volume, access: Access) -> Result<Arc<dyn BlockDevice>, VolumeError>;

    /// Where two snapshots of any two volumes may differ: sorted ranges of bytes within `to`,
    /// apart from one another. Outside of them both read the same; within them they may, too. Without
    /// `from`, and behind its end, against zeroes. Costs about what was written between them, at
    /// most, and not what the disk's size is.
    ///
    /// # Errors
    /// `Missing`, `Damaged`, `Io`.
    fn changes(
        &self,
        from: Option<&SnapshotId>,
        to: &SnapshotId,
    ) -> Result<Vec<Range<u64>>, VolumeError>;

    /// What was written to a volume since it was cloned, or made if it was not: as
    /// [`Storage::changes`], also while it is open and written, but what was discarded since
    /// need not be told.
    ///
    /// # Errors
    /// `Missing`, `Damaged`, `Io`.
    fn own(&self, volume: Volume) -> Result<Vec<Range<u64>>, VolumeError>;

    /// Puts a fresh clone of a snapshot in the place of a volume, whose content and snapshots
    /// are lost. In one step, whatever happens: the old one is kept until the new one is there.
    ///
    /// # Errors
    /// `Missing` of either; `Busy` while the volume is open or something was cloned from it;
    /// `NoSpace`, `Io`.
    fn renew(&self, origin: &SnapshotId, volume: Volume) -> Result<(), VolumeError>;

    /// Whether the content of this store may go to other servers, or come from them.
    ///
    /// # Errors
    /// Why not, in a sentence.
    fn may_replicate(&self) -> Result<(), VolumeError> {
        Ok(())
    }

    /// How it sends versions to stores of its kind; most can't.
    fn streams(&self) -> Option<&dyn Streams> {
        None
    }

    /// One volume; `None` if it is not there.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    fn info(&self, volume: Volume) -> Result<Option<VolumeInfo>, VolumeError>;

    /// All volumes, by name.
    ///
    /// # Errors
    /// `Io`.
    fn list(&self) -> Result<Vec<VolumeInfo>, VolumeError>;
}
