//! Versions to and from other servers by `zfs send` and `zfs receive` ([`Streams`]).
//!
//! What comes lies in `incoming.ID`, a name that is made here and never taken from a stream; it
//! is no volume to anybody until it is kept, which is one renaming. Points are ZFS's guids of
//! snapshots, which a receive keeps. Of a version that is removed while others stay that were made
//! from it, a bookmark `VOLUME#image.ID.base` may stay, in the dataset that carried its snapshot:
//! an increment can begin there, though none of the content is left.
//!
//! Nothing is ever sent raw, and nothing encrypted at all: see `may_replicate`.

mod pipes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use super::device::{Disk, Handle};
use super::gate::Kind;
use super::listing::{ORIGIN, SIZE, list_below, zfs, zfs_about};
use super::names::{parse_snapshot, parse_volume, snapshot_word};
use super::{Compression, Reserve, ZfsStore, damaged, lock};
use crate::storage::{
    Access, Arrived, BlockDevice, Ingoing, Outgoing, SnapshotId, Start, Streams, Volume,
    VolumeError, Wanted,
};

/// Bytes of a receiver's words at most.
const LONGEST_WORDS: usize = 4096;

/// A snapshot or bookmark as ZFS lists it.
#[derive(Debug, Clone, Copy)]
struct Mark {
    guid: u64,
    /// When it was made, in the pool's own count.
    made: u64,
}

/// Where a stream can begin, and what that is called.
#[derive(Debug, Clone)]
struct Found {
    start: Start,
    place: String,
    made: u64,
}

/// Every snapshot and bookmark below the parent, by its whole name.
fn marks(text: &str) -> BTreeMap<&str, Mark> {
    let line = |line| {
        let mut words = str::split(line, '\t');
        let (name, guid, made) = (words.next()?, words.next()?, words.next()?);
        let (guid, made) = (guid.parse().ok()?, made.parse().ok()?);
        Some((name, Mark { guid, made }))
    };
    text.lines().filter_map(line).collect()
}

/// The version whose first snapshot that word is.
fn version(word: &str) -> Option<Uuid> {
    let id = parse_snapshot(word)?;
    match id.volume {
        Volume::Image(version) if id == SnapshotId::base(version) => Some(version),
        _ => None,
    }
}

/// `toguid` and `fromguid` in what `zfs send -nv -t` says of a receiver's words.
fn points(said: &str) -> (Option<u64>, Option<u64>) {
    let number = |name: &str| {
        let value = said.lines().find_map(|line| {
            let (key, value) = line.trim().split_once(" = ")?;
            (key == name).then_some(value)
        });
        value.and_then(|v| u64::from_str_radix(v.strip_prefix("0x")?, 16).ok())
    };
    (number("toguid"), number("fromguid"))
}

/// The length that `zfs send -nP` tells in its last line.
fn length(said: &str) -> u64 {
    let last = said.lines().rev().find_map(|l| l.strip_prefix("size\t"));
    last.and_then(|size| size.trim().parse().ok()).unwrap_or(0)
}

/// Words that may be handed to the program.
fn may_be_words(words: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_hexdigit() || b == b'-';
    words.len() <= LONGEST_WORDS && words.starts_with("1-") && words.bytes().all(allowed)
}

impl ZfsStore {
    fn list_marks(&self) -> Result<String, VolumeError> {
        list_below(
            self.inner.parent.as_str(),
            "2",
            "snapshot,bookmark",
            "name,guid,createtxg",
        )
    }

    /// The bookmarks of ours: the dataset that each lies in, and the version that it is of.
    fn bookmarks(&self, text: &str) -> Vec<(Volume, Uuid)> {
        let ours = |name: &&str| {
            let (dataset, word) = self.inner.parent.below(name)?.split_once('#')?;
            Some((parse_volume(dataset)?, version(word)?))
        };
        marks(text).keys().filter_map(ours).collect()
    }

    /// What a version can be sent from, nearest first. ZFS begins a stream at any snapshot that
    /// lies before, in this dataset or in one that it stands upon, and at bookmarks of these.
    fn find_starts(&self, of: Uuid) -> Result<Vec<Found>, VolumeError> {
        let parent = &self.inner.parent;
        let to = SnapshotId::base(of);
        let _tree = lock(&self.inner.tree);
        let (listing, text) = (self.listing()?, self.list_marks()?);
        let (line, marks) = (listing.lineage(&to)?, marks(&text));
        let mut found = Vec::new();
        // By how far along each dataset the line goes.
        let mut until: BTreeMap<Volume, u64> = BTreeMap::new();
        for snapshot in line {
            let place = parent.snapshot(snapshot.lies_in, &snapshot.id);
            let Some(Mark { guid, made }) = marks.get(place.as_str()).copied() else {
                continue;
            };
            until.entry(snapshot.lies_in).or_insert(made);
            let Some(version) = version(&snapshot_word(&snapshot.id)) else {
                continue;
            };
            let start = Start {
                version,
                point: guid,
                whole: true,
            };
            if version != of {
                found.push(Found { start, place, made });
            }
        }
        for (lies_in, version) in self.bookmarks(&text) {
            let place = parent.bookmark(lies_in, &SnapshotId::base(version));
            let mark = marks.get(place.as_str()).copied();
            let before = |m: &Mark| until.get(&lies_in).is_some_and(|end| m.made < *end);
            let Some(Mark { guid, made }) = mark.filter(before) else {
                continue;
            };
            let start = Start {
                version,
                point: guid,
                whole: false,
            };
            if version != of && found.iter().all(|f| f.start.version != version) {
                found.push(Found { start, place, made });
            }
        }
        found.sort_by_key(|f| std::cmp::Reverse(f.made));
        Ok(found)
    }

    /// What `zfs send` is told, and how much that is about; nothing if a receiver's words are not
    /// of this version and that start.
    fn told(
        &self,
        to: &SnapshotId,
        from: Option<u64>,
        words: Option<&str>,
    ) -> Result<Option<(Vec<String>, u64)>, VolumeError> {
        let Volume::Image(id) = to.volume else {
            return Err(VolumeError::Missing(to.to_string()));
        };
        let place = self.place_of(to)?;
        let about = |more: &[String]| {
            let mut all = vec!["send", "-nPv"];
            all.extend(more.iter().map(String::as_str));
            zfs_about(&place, Kind::Look, &all)
        };
        let mut told: Vec<String> = vec!["-c".into(), "-e".into()];
        if let Some(words) = words {
            if !may_be_words(words) {
                return Ok(None);
            }
            told.extend(["-t".into(), words.to_owned()]);
            let said = match about(&told) {
                Err(VolumeError::Away(why)) => return Err(VolumeError::Away(why)),
                Err(error) => {
                    tracing::warn!(version.id = %id, %error, "a stream can't go on where it was");
                    return Ok(None);
                }
                Ok(said) => said,
            };
            let expected = (self.point(id)?, from);
            if points(&said) != expected {
                tracing::warn!(version.id = %id, "a receiver has the beginning of another stream");
                return Ok(None);
            }
            return Ok(Some((told, length(&said))));
        }
        if let Some(point) = from {
            let starts = self.find_starts(id)?;
            let start = starts.into_iter().find(|f| f.start.point == point);
            let start = start.ok_or_else(|| VolumeError::Missing(format!("what {to} began at")))?;
            told.extend(["-i".into(), start.place]);
        }
        told.push(place.clone());
        let said = about(&told)?;
        Ok(Some((told, length(&said))))
    }
}

impl Streams for ZfsStore {
    fn point(&self, version: Uuid) -> Result<Option<u64>, VolumeError> {
        let base = SnapshotId::base(version);
        let place = match self.place_of(&base) {
            Err(VolumeError::Missing(_)) => return Ok(None),
            other => other?,
        };
        let guid = zfs(&["get", "-Hp", "-o", "value", "guid", &place])?;
        Ok(guid.trim().parse().ok())
    }

    fn starts(&self, version: Uuid) -> Result<Vec<Start>, VolumeError> {
        let found = self.find_starts(version)?;
        Ok(found.into_iter().map(|f| f.start).collect())
    }

    fn send(
        &self,
        version: Uuid,
        from: Option<u64>,
        words: Option<&str>,
    ) -> Result<Option<Box<dyn Outgoing>>, VolumeError> {
        let Some((told, length)) = self.told(&SnapshotId::base(version), from, words)? else {
            return Ok(None);
        };
        let sending = pipes::Sending::begin(self.inner.parent.as_str(), &told, length)?;
        Ok(Some(Box::new(sending)))
    }

    fn arrived(&self, version: Uuid) -> Result<Arrived, VolumeError> {
        let dataset = self.inner.parent.incoming(version);
        if !self.exists(&dataset)? {
            return Ok(Arrived::Nothing);
        }
        let whole = incoming_snapshot(&dataset, version);
        if self.exists(&whole)? {
            let guid = zfs(&["get", "-Hp", "-o", "value", "guid", &whole])?;
            return Ok(Arrived::Whole(guid.trim().parse().unwrap_or(0)));
        }
        let asked = ["get", "-Hp", "-o", "value", "receive_resume_token"];
        let words = zfs(&[&asked[..], &[&dataset]].concat())?;
        Ok(Arrived::Part(words.trim().to_owned()))
    }

    fn receive(&self, wanted: &Wanted) -> Result<Box<dyn Ingoing>, VolumeError> {
        let dataset = self.inner.parent.incoming(wanted.version);
        let mut told: Vec<String> = vec!["-s".into(), "-u".into()];
        let mut property = |text: String| told.extend(["-o".into(), text]);
        property(format!("{SIZE}={}", wanted.size));
        match self.inner.options.compression {
            Compression::Inherit => {}
            Compression::Off => property("compression=off".to_owned()),
            Compression::Lz4 => property("compression=lz4".to_owned()),
            Compression::Zstd => property("compression=zstd".to_owned()),
        }
        if let Some((base, _)) = wanted.base {
            let base = SnapshotId::base(base);
            property(format!("{ORIGIN}={}", snapshot_word(&base)));
            // What goes on stands upon it already.
            if self.arrived(wanted.version)? == Arrived::Nothing {
                property(format!("origin={}", self.place_of(&base)?));
            }
        }
        told.push(incoming_snapshot(&dataset, wanted.version));
        let parent = self.inner.parent.as_str();
        Ok(Box::new(pipes::Receiving::new(parent, told, wanted)))
    }

    fn read_arrived(&self, wanted: &Wanted) -> Result<Arc<dyn BlockDevice>, VolumeError> {
        let dataset = self.inner.parent.incoming(wanted.version);
        let asked = ["get", "-Hp", "-o", "value", "volsize,volblocksize"];
        let said = zfs(&[&asked[..], &[&dataset]].concat())?;
        let mut numbers = said.lines().map(|n| n.trim().parse::<u64>().ok());
        let (whole, block) = (numbers.next().flatten(), numbers.next().flatten());
        let (Some(whole), Some(block)) = (whole, block.and_then(|b| u32::try_from(b).ok())) else {
            return Err(damaged(dataset, "what has arrived is no disk"));
        };
        if whole != wanted.size.next_multiple_of(u64::from(block)) {
            let why = format!("it has {whole} bytes, and not {}", wanted.size);
            return Err(damaged(dataset, why));
        }
        let disk = Disk::open(&dataset, wanted.size, block)?;
        Ok(Arc::new(Handle {
            disk: Arc::new(disk),
            access: Access::Read,
        }))
    }

    fn keep(&self, wanted: &Wanted) -> Result<(), VolumeError> {
        let dataset = self.inner.parent.incoming(wanted.version);
        let volume = Volume::Image(wanted.version);
        match self.inner.options.reserve {
            Reserve::All => self.set_aside(&dataset)?,
            Reserve::Images if wanted.base.is_none() => self.set_aside(&dataset)?,
            Reserve::Images | Reserve::Nothing => {}
        }
        let named = self.inner.library.rename(&dataset, &self.place(volume));
        named.map_err(|e| self.failed(volume, "rename,create,mount", &e))
    }

    fn discard(&self, version: Uuid) -> Result<(), VolumeError> {
        let dataset = self.inner.parent.incoming(version);
        if !self.exists(&dataset)? {
            return Ok(());
        }
        let whole = incoming_snapshot(&dataset, version);
        if self.exists(&whole)? {
            let removed = self.inner.library.destroy_snapshots(&[whole]);
            removed.map_err(|e| self.failed(&dataset, "destroy,mount", &e))?;
        }
        self.remove(&dataset)
    }

    /// Its snapshot is handed to who stands upon it first, as removing it would do: a bookmark lies
    /// in one dataset, and goes with it.
    fn remember(&self, version: Uuid) -> Result<bool, VolumeError> {
        let base = SnapshotId::base(version);
        let _tree = lock(&self.inner.tree);
        let mut listing = self.listing()?;
        if self.unneeded(&listing, base.volume).is_err() {
            return Ok(false);
        }
        let Ok(found) = listing.find(&base) else {
            return Ok(false);
        };
        if found.lies_in == base.volume {
            let Some(heir) = listing.standing_on(found).next() else {
                return Ok(false);
            };
            listing = self.turn_round(heir)?;
        }
        let found = listing.find(&base)?;
        let mark = self.inner.parent.bookmark(found.lies_in, &base);
        if self
            .bookmarks(&self.list_marks()?)
            .contains(&(found.lies_in, version))
        {
            return Ok(true);
        }
        zfs(&["bookmark", &self.lies(found), &mark]).map(|_| true)
    }

    fn remembered(&self) -> Result<Vec<Uuid>, VolumeError> {
        let all = self.bookmarks(&self.list_marks()?);
        let versions: BTreeSet<Uuid> = all.into_iter().map(|(_, version)| version).collect();
        Ok(versions.into_iter().collect())
    }

    fn forget(&self, version: Uuid) -> Result<(), VolumeError> {
        let base = SnapshotId::base(version);
        for (lies_in, of) in self.bookmarks(&self.list_marks()?) {
            if of == version {
                zfs(&["destroy", &self.inner.parent.bookmark(lies_in, &base)])?;
            }
        }
        Ok(())
    }
}

/// The snapshot that a stream ends with.
fn incoming_snapshot(dataset: &str, version: Uuid) -> String {
    format!("{dataset}@{}", snapshot_word(&SnapshotId::base(version)))
}
