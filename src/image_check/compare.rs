//! Where the partitions of a disk lie, and which files of a Linux file system are not the same on two
//! disks. It believes nothing of what it reads, and reads as much as a check does.
//!
//! Files are told apart by kind, size, time of change, owner and mode; what they hold is not
//! read. So one that was changed behind the file system's back counts as the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use ext4_view::{Ext4, Metadata, Path, PathBuf};

use super::bytes::{Area, Bytes, READ_LIMIT};
use super::inside::{self, Inside};
use super::report::Report;
use super::table;
use crate::model::BootMethod;
use crate::model::difference::{ChangedFile, FileChange, FileChanges, MOST_FILES};

/// Partitions of a disk that are looked at.
const MOST_PARTS: usize = 128;
/// Files of both disks that are looked at, and how deep they may lie.
const MOST_LOOKS: u64 = 2_000_000;
const MOST_DEPTH: usize = 64;

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// As Linux counts them; 0: all of a disk without a table.
    pub number: u32,
    /// Where it begins, in bytes.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What it holds, such as `ext4`; empty: not known.
    pub holds: &'static str,
}

/// The partitions of a disk, by where they begin.
#[must_use]
pub fn parts(disk: &Arc<dyn Bytes>) -> Vec<Part> {
    let area = Area::whole(disk.clone(), READ_LIMIT);
    let table = table::read(&area, &mut Report::new(BootMethod::San));
    let partitions = table.partitions.iter().take(MOST_PARTS);
    let mut parts: Vec<Part> = partitions
        .map(|p| Part {
            number: p.number,
            start: p.start,
            size: p.size,
            holds: match inside::look(&area.part(p.start, p.size)) {
                Inside::Ext(..) => "ext4",
                Inside::ExtBroken(..) => "ext4, broken",
                Inside::Fat(..) => "FAT",
                Inside::Ntfs(..) => "NTFS",
                Inside::Other(name) => name,
                Inside::Encrypted => "LUKS",
                Inside::BitLocker => "BitLocker",
                Inside::Nothing => "",
            },
        })
        .collect();
    parts.sort_by_key(|p| (p.start, p.number));
    parts
}

/// Which files of a part that holds ext4 on both disks are not the same; `None` if one of them
/// can't be opened.
#[must_use]
pub fn files(old: &Arc<dyn Bytes>, new: &Arc<dyn Bytes>, part: &Part) -> Option<FileChanges> {
    let open = |disk: &Arc<dyn Bytes>| {
        let area = Area::whole(disk.clone(), READ_LIMIT).part(part.start, part.size);
        // Whether it is one that can be opened without harm.
        match inside::look(&area) {
            Inside::Ext(..) => Ext4::load(Box::new(area)).ok(),
            _ => None,
        }
    };
    let mut walk = Walk {
        old: open(old)?,
        new: open(new)?,
        found: FileChanges {
            complete: true,
            ..FileChanges::default()
        },
        looks: 0,
    };
    walk.folder(&PathBuf::new("/"), 0);
    Some(walk.found)
}

struct Walk {
    old: Ext4,
    new: Ext4,
    found: FileChanges,
    looks: u64,
}

/// A folder's entries by name.
type Entries = BTreeMap<Vec<u8>, Metadata>;

/// What is compared of a file. That of a folder changes with its entries, which are told.
fn looks(of: &Metadata) -> (ext4_view::FileType, u64, u16, u32, u32, i64, u32) {
    let (length, time) = match of.is_dir() {
        true => (0, (0, 0)),
        false => {
            let time = of.modified();
            (of.len(), (time.seconds(), time.nanoseconds()))
        }
    };
    let kind = of.file_type();
    (kind, length, of.mode(), of.uid(), of.gid(), time.0, time.1)
}

impl Walk {
    fn entries(looks: &mut u64, of: &Ext4, folder: Path<'_>) -> Option<Entries> {
        let mut entries = Entries::new();
        for entry in of.read_dir(folder).ok()? {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let bytes: &[u8] = name.as_ref();
            if bytes == b"." || bytes == b".." {
                continue;
            }
            *looks += 1;
            if *looks > MOST_LOOKS {
                return None;
            }
            entries.insert(bytes.to_vec(), entry.metadata().ok()?);
        }
        Some(entries)
    }

    fn folder(&mut self, folder: &PathBuf, depth: usize) {
        let old = Self::entries(&mut self.looks, &self.old, folder.as_path());
        let new = Self::entries(&mut self.looks, &self.new, folder.as_path());
        let (Some(old), Some(new), true) = (old, new, depth < MOST_DEPTH) else {
            self.found.complete = false;
            return;
        };
        let mut names: Vec<&Vec<u8>> = old.keys().chain(new.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let Ok(part) = ext4_view::Path::try_from(name.as_slice()) else {
                self.found.complete = false;
                continue;
            };
            let path = folder.join(part);
            match (old.get(name), new.get(name)) {
                (None, Some(new)) => self.tell(FileChange::Added, &path, new),
                (Some(old), None) => self.tell(FileChange::Removed, &path, old),
                (Some(old), Some(new)) => {
                    if looks(old) != looks(new) {
                        self.tell(FileChange::Changed, &path, new);
                    }
                    if old.is_dir() && new.is_dir() {
                        self.folder(&path, depth + 1);
                    }
                }
                (None, None) => {}
            }
        }
    }

    fn tell(&mut self, change: FileChange, path: &PathBuf, of: &Metadata) {
        let count = match change {
            FileChange::Added => &mut self.found.added,
            FileChange::Removed => &mut self.found.removed,
            FileChange::Changed => &mut self.found.changed,
        };
        *count += 1;
        if self.found.list.len() < MOST_FILES {
            let path: &[u8] = path.as_ref();
            self.found.list.push(ChangedFile {
                change,
                path: String::from_utf8_lossy(path).into_owned(),
                size_bytes: if of.is_dir() { 0 } else { of.len() },
            });
        }
    }
}
