//! What two disks differ in, for people.

use super::words;

/// Ranges that are listed at most.
pub const MOST_RANGES: usize = 1000;
/// Files of one file system that are listed at most.
pub const MOST_FILES: usize = 1000;

/// What two disks differ in.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Difference {
    /// Bytes of the newer disk.
    pub size_bytes: u64,
    /// Bytes that were read of each, because they might differ.
    pub compared_bytes: u64,
    /// Bytes that differ.
    pub changed_bytes: u64,
    /// Of these, bytes in no partition: tables, boot loaders, gaps.
    pub outside_bytes: u64,
    /// Where blocks of 4 KiB differ, in order; the first 1000.
    pub ranges: Vec<DiskRange>,
    /// How many there are.
    pub range_count: u64,
    /// By partition of the newer disk.
    pub partitions: Vec<PartDifference>,
}

/// A part of a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DiskRange {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// What a partition differs in.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PartDifference {
    /// As Linux counts them; 0: the disk has no table, and this is all of it.
    pub number: u32,
    /// Where it begins.
    pub offset: u64,
    /// Bytes.
    pub size_bytes: u64,
    /// What it holds, such as `ext4`; empty: not known.
    pub holds: String,
    /// Bytes that differ.
    pub changed_bytes: u64,
    /// Which files do; `None` where it holds nothing that can be looked into on both disks.
    pub files: Option<FileChanges>,
}

words! {
    /// What became of a file.
    pub enum FileChange {
        /// It is new.
        Added = "added",
        /// It is gone.
        Removed = "removed",
        /// Kind, size, time of change, owner or mode are others.
        Changed = "changed",
    }
}

/// What the files of a file system differ in.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileChanges {
    /// New ones.
    pub added: u64,
    /// Gone ones.
    pub removed: u64,
    /// Changed ones.
    pub changed: u64,
    /// Their paths, in order of the walk; the first 1000.
    pub list: Vec<ChangedFile>,
    /// False if it was given up before all was looked at: it took too long, or can't be read.
    pub complete: bool,
}

/// A file that is not the same.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChangedFile {
    /// What became of it.
    pub change: FileChange,
    /// Its path; a folder that came or went stands for all that is in it.
    pub path: String,
    /// Bytes that it has, or had.
    pub size_bytes: u64,
}

/// What a persistent disk would lose if it began anew from a version.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rebase {
    /// Host name of the client.
    pub client: String,
    /// Name of the image.
    pub image: String,
    /// The version that the disk was made from, where that is known.
    pub from: Option<String>,
    /// The version that it begins from.
    pub to: String,
    /// Since when it has been written to.
    pub since: Option<super::Timestamp>,
    /// Bytes that only it takes in the store.
    pub used_bytes: u64,
    /// What of it is lost: against the version that it was made from or, if that is not
    /// known, against the one that it begins from.
    pub lost: Difference,
    /// True if it was done.
    pub done: bool,
}
