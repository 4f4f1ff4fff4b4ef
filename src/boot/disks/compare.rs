//! What two versions differ in, and what a persistent disk would lose if it began anew from
//! another version; and that it does. All calls block.
//!
//! Where they may differ is told by the store; those ranges are read on both sides and
//! compared, so that what was only written anew with the same bytes does not count.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::publish::NotPublished;
use super::service::Disks;
use crate::clock::Clock;
use crate::image_check::{Bytes, files, parts};
use crate::model::difference::{Difference, DiskRange, MOST_RANGES, PartDifference};
use crate::storage::mend::free_of;
use crate::storage::{Access, BlockDevice, BlockError, SnapshotId, Volume, VolumeError};

/// Bytes that are read at a time.
const CHUNK: u64 = 1 << 20;
/// Bytes of a block that is told as the same or not.
const BLOCK: usize = 4096;
/// Files are looked at for so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a persistent disk would lose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The version that it was made from, if it still stands on that.
    pub from: Option<Uuid>,
    /// Bytes that only it takes.
    pub used: u64,
    /// What it differs in from that version, or from the one that it is to begin from.
    pub lost: Difference,
}

/// A disk to be looked at, for a while.
struct Lent {
    disk: Arc<dyn BlockDevice>,
    until: Instant,
    clock: Clock,
    cancel: CancellationToken,
}

impl Bytes for Lent {
    fn size(&self) -> u64 {
        self.disk.info().size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.cancel.is_cancelled() || self.clock.instant() > self.until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.disk
            .read_at(offset, buffer)
            .map_err(|error| io::Error::other(error.to_string()))
    }
}

/// Reads a disk; behind its end there are zeroes.
fn read(disk: &dyn BlockDevice, offset: u64, buffer: &mut [u8]) -> Result<(), BlockError> {
    let there = disk.info().size.saturating_sub(offset);
    let there = usize::try_from(there).unwrap_or(usize::MAX);
    let (inside, behind) = buffer.split_at_mut(there.min(buffer.len()));
    behind.fill(0);
    disk.read_at(offset, inside)
}

/// What was found while comparing.
struct Findings {
    told: Difference,
    /// Where the last range ends, kept or not.
    end: u64,
}

impl Findings {
    /// A block that is not the same.
    fn block(&mut self, at: u64, old: &[u8], new: &[u8]) {
        let differ = |from: u64, until: u64| {
            let place = |n: u64| usize::try_from(n.saturating_sub(at)).unwrap_or(usize::MAX);
            let (from, until) = (place(from).min(new.len()), place(until).min(new.len()));
            let (old, new) = (old.get(from..until), new.get(from..until));
            let pairs = old.unwrap_or(&[]).iter().zip(new.unwrap_or(&[]));
            pairs.filter(|(a, b)| a != b).count() as u64
        };
        let end = at + new.len() as u64;
        let all = differ(at, end);
        self.told.changed_bytes += all;
        let mut inside = 0;
        for part in &mut self.told.partitions {
            let until = part.offset.saturating_add(part.size_bytes);
            if part.offset < end && until > at {
                let here = differ(part.offset.max(at), until.min(end));
                part.changed_bytes += here;
                inside += here;
            }
        }
        self.told.outside_bytes += all.saturating_sub(inside);
        let told = &mut self.told;
        let length = new.len() as u64;
        let kept = told.range_count == told.ranges.len() as u64;
        if told.range_count == 0 || self.end != at {
            told.range_count += 1;
            if told.ranges.len() < MOST_RANGES {
                told.ranges.push(DiskRange { offset: at, length });
            }
        } else if let Some(last) = told.ranges.last_mut().filter(|_| kept) {
            last.length += length;
        }
        self.end = end;
    }
}

/// Compares two disks where they may differ.
fn compare(
    old: &dyn BlockDevice,
    new: &dyn BlockDevice,
    candidates: &[Range<u64>],
    partitions: Vec<PartDifference>,
    cancel: &CancellationToken,
) -> Result<Difference, VolumeError> {
    let size = new.info().size;
    let mut findings = Findings {
        told: Difference {
            size_bytes: size,
            partitions,
            ..Difference::default()
        },
        end: 0,
    };
    let chunk = usize::try_from(CHUNK).unwrap_or(0);
    let (mut left, mut right) = (vec![0; chunk], vec![0; chunk]);
    for range in candidates {
        let mut at = range.start;
        while at < range.end.min(size) {
            if cancel.is_cancelled() {
                return Err(VolumeError::Cancelled);
            }
            let until = (at / CHUNK + 1) * CHUNK;
            let here = until.min(range.end).min(size) - at;
            let length = usize::try_from(here).unwrap_or(0);
            let (a, b) = (&mut left[..length], &mut right[..length]);
            read(old, at, a)?;
            read(new, at, b)?;
            if a != b {
                let blocks = a.chunks(BLOCK).zip(b.chunks(BLOCK));
                for ((a, b), n) in blocks.zip(0_u64..).filter(|((a, b), _)| a != b) {
                    findings.block(at + n * BLOCK as u64, a, b);
                }
            }
            findings.told.compared_bytes += here;
            at += here;
        }
    }
    Ok(findings.told)
}

impl Disks {
    /// What the version `new` differs in from the version `old`.
    ///
    /// # Errors
    /// `Missing` if one of them is not on this server; `Cancelled`; when the store fails.
    pub fn difference(
        &self,
        old: Uuid,
        new: Uuid,
        cancel: &CancellationToken,
    ) -> Result<Difference, VolumeError> {
        let store = &self.shared.store;
        let (from, to) = (SnapshotId::base(old), SnapshotId::base(new));
        let candidates = store.changes(Some(&from), &to)?;
        // Nobody writes to a version, so that it is as its snapshot.
        let old = store.open(from.volume, Access::Read)?;
        let new = store.open(to.volume, Access::Read)?;
        self.tell(old, new, &candidates, cancel)
    }

    fn tell(
        &self,
        old: Arc<dyn BlockDevice>,
        new: Arc<dyn BlockDevice>,
        candidates: &[Range<u64>],
        cancel: &CancellationToken,
    ) -> Result<Difference, VolumeError> {
        let clock = &self.shared.clock;
        let until = clock.instant() + PATIENCE;
        let lend = |disk: &Arc<dyn BlockDevice>| -> Arc<dyn Bytes> {
            Arc::new(Lent {
                disk: disk.clone(),
                until,
                clock: clock.clone(),
                cancel: cancel.clone(),
            })
        };
        let (before, after) = (lend(&old), lend(&new));
        let (parts_before, parts_after) = (parts(&before), parts(&after));
        let told = parts_after.iter().map(|part| PartDifference {
            number: part.number,
            offset: part.start,
            size_bytes: part.size,
            holds: part.holds.to_owned(),
            changed_bytes: 0,
            files: None,
        });
        let mut told = compare(&*old, &*new, candidates, told.collect(), cancel)?;
        let (before, after) = (lend(&old), lend(&new));
        for (told, part) in told.partitions.iter_mut().zip(&parts_after) {
            if told.changed_bytes > 0 && parts_before.contains(part) {
                told.files = files(&before, &after, part);
            }
        }
        Ok(told)
    }

    /// What a client's persistent disk of an image would lose if it began anew from the version
    /// `to`.
    ///
    /// # Errors
    /// `NoDisk`; `Store` when the store fails, or if it was cancelled.
    pub fn loss(
        &self,
        client: Uuid,
        image: Uuid,
        to: Uuid,
        cancel: &CancellationToken,
    ) -> Result<Loss, NotPublished> {
        let store = &self.shared.store;
        let volume = Volume::Personal { client, image };
        let info = store.info(volume)?.ok_or(NotPublished::NoDisk)?;
        let from = match info.origin {
            Some(origin) if origin == base_of(origin.volume) => match origin.volume {
                Volume::Image(id) => Some(id),
                Volume::Session(_) | Volume::Personal { .. } => None,
            },
            _ => None,
        };
        let candidates = match from {
            Some(_) => store.own(volume)?,
            None => std::iter::once(0..info.size).collect(),
        };
        let old = store.open(Volume::Image(from.unwrap_or(to)), Access::Read)?;
        let new = store.open(volume, Access::Read)?;
        Ok(Loss {
            from,
            used: info.used,
            lost: self.tell(old, new, &candidates, cancel)?,
        })
    }

    /// Has a client's persistent disk of an image begin anew from a version: what it has
    /// written is lost. The old disk stays until the new one is there, whatever happens. Versions that were made from it
    /// get a copy of what they need first.
    ///
    /// # Errors
    /// See [`NotPublished`]; the disk is as it was.
    pub fn rebase(&self, client: Uuid, image: Uuid, to: Uuid) -> Result<(), NotPublished> {
        let shared = &self.shared;
        let volume = Volume::Personal { client, image };
        let desk = shared.desk(client);
        if shared.store.info(volume)?.is_none() {
            return Err(NotPublished::NoDisk);
        }
        // Before its turn: this may take long, and changes nothing that the machine sees.
        if !desk.holds().iter().any(|hold| hold.volume == volume) {
            free_of(&*shared.store, volume, &shared.cancel)?;
        }
        let _one = desk.serial();
        let boot = shared.keeps_writing(client);
        if !desk.vacate(boot.is_none(), |hold| hold.volume == volume) {
            return Err(NotPublished::InUse);
        }
        if let Some(boot) = boot {
            return Err(NotPublished::Booted(boot));
        }
        shared.store.renew(&SnapshotId::base(to), volume)?;
        shared.forget(volume);
        shared.renewed(volume);
        shared.changed.notify_one();
        Ok(())
    }
}

/// The snapshot that clones of an image's volume come from.
fn base_of(volume: Volume) -> SnapshotId {
    SnapshotId {
        volume,
        name: crate::storage::SnapshotName::base(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::Memory;
    use crate::storage::{Durability, Storage};

    fn part(number: u32, offset: u64, size_bytes: u64) -> PartDifference {
        PartDifference {
            number,
            offset,
            size_bytes,
            holds: String::new(),
            changed_bytes: 0,
            files: None,
        }
    }

    #[test]
    fn bytes_that_differ_are_counted_by_partition() {
        let store = Memory::new();
        let (a, b) = (
            Volume::Image(Uuid::from_u128(1)),
            Volume::Image(Uuid::from_u128(2)),
        );
        store.create(a, 4 << 20).unwrap();
        store.create(b, 5 << 20).unwrap();
        let (old, new) = (
            store.open(a, Access::Write).unwrap(),
            store.open(b, Access::Write).unwrap(),
        );
        let put = |disk: &dyn BlockDevice, at, data: &[u8]| {
            disk.write_at(at, data, Durability::Volatile).unwrap();
        };
        put(&*old, 100, &[7; 10]);
        put(&*new, 100, &[7; 8]);
        // Over the border of a partition, and over that of a chunk.
        put(&*new, (1 << 20) - 10, &[9; 30]);
        // Written, and the same.
        put(&*old, 3 << 20, &[5; 4096]);
        put(&*new, 3 << 20, &[5; 4096]);
        // Behind the end of the older one.
        put(&*new, (4 << 20) + 4096, &[1; 2]);
        let parts = vec![part(1, 512, (1 << 20) - 512), part(2, 1 << 20, 1 << 20)];
        let cancel = CancellationToken::new();
        let only = |range: Range<u64>| -> Vec<Range<u64>> { std::iter::once(range).collect() };
        let all = only(0..8 << 20);
        let told = compare(&*old, &*new, &all, parts.clone(), &cancel).unwrap();
        assert_eq!((told.changed_bytes, told.compared_bytes), (34, 5 << 20));
        let by_part: Vec<u64> = told.partitions.iter().map(|p| p.changed_bytes).collect();
        assert_eq!((by_part, told.outside_bytes), (vec![10, 20], 4));
        let range = |offset, length| DiskRange { offset, length };
        assert_eq!(
            told.ranges,
            [
                range(0, 4096),
                range((1 << 20) - 4096, 8192),
                range((4 << 20) + 4096, 4096)
            ]
        );
        assert_eq!(told.range_count, 3);
        // What is not asked for is not looked at.
        let few = compare(&*old, &*new, &only(0..4096), parts.clone(), &cancel).unwrap();
        assert_eq!((few.changed_bytes, few.compared_bytes), (2, 4096));
        cancel.cancel();
        let stopped = compare(&*old, &*new, &all, parts, &cancel);
        assert!(matches!(stopped, Err(VolumeError::Cancelled)));
    }
}
