//! Bytes to look at, and how much of them may be read: nothing here trusts what it reads, and
//! nothing writes.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ext4_view::Ext4Read;

/// Bytes of one check at most, over all that it reads: 1 GiB.
pub const READ_LIMIT: u64 = 1 << 30;

/// A disk or a file that is looked at.
pub trait Bytes: Send + Sync {
    /// How many.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// Past the end, or when they can't be read; `TimedOut` ends the whole check.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Bytes for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let until = from.saturating_add(buffer.len());
        match self.get(from..until) {
            Some(found) => buffer.copy_from_slice(found),
            None => return Err(past_the_end()),
        }
        Ok(())
    }
}

fn past_the_end() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "past the end")
}

/// A part of a disk, as a disk of its own. All parts share what may still be read.
#[derive(Clone)]
pub(super) struct Area {
    bytes: Arc<dyn Bytes>,
    start: u64,
    size: u64,
    left: Arc<AtomicU64>,
}

impl Area {
    /// A whole disk, and how many bytes of it may be read in all.
    pub(super) fn whole(bytes: Arc<dyn Bytes>, limit: u64) -> Self {
        Self {
            size: bytes.size(),
            bytes,
            start: 0,
            left: Arc::new(AtomicU64::new(limit)),
        }
    }

    /// A part of it, cut off where it ends.
    pub(super) fn part(&self, start: u64, size: u64) -> Self {
        let start = start.min(self.size);
        Self {
            bytes: self.bytes.clone(),
            start: self.start + start,
            size: size.min(self.size - start),
            left: self.left.clone(),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// True once the limit has been reached.
    pub(super) fn is_spent(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }

    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let length = buffer.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(past_the_end());
        }
        let taken = |left: u64| Some(left.saturating_sub(length));
        let before = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        if before.unwrap_or_default() < length {
            return Err(io::Error::other("more than a check reads"));
        }
        let read = self.bytes.read_at(self.start + offset, buffer);
        if read
            .as_ref()
            .is_err_and(|e| e.kind() == io::ErrorKind::TimedOut)
        {
            self.left.store(0, Ordering::Relaxed);
        }
        read
    }

    /// `N` bytes from there; `None` where there are not so many, or they can't be read.
    pub(super) fn array<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        let mut found = [0; N];
        self.read_at(offset, &mut found).ok().map(|()| found)
    }

    /// All of it, in order.
    pub(super) fn reader(&self) -> AreaReader {
        AreaReader {
            area: self.clone(),
            at: 0,
        }
    }
}

impl Ext4Read for Area {
    fn read(
        &mut self,
        start: u64,
        into: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.read_at(start, into).map_err(Into::into)
    }
}

/// Reads an area from its beginning.
pub(super) struct AreaReader {
    area: Area,
    at: u64,
}

impl Read for AreaReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.area.size - self.at).unwrap_or(usize::MAX);
        let count = buffer.len().min(left);
        let Some(into) = buffer.get_mut(..count) else {
            return Ok(0);
        };
        self.area.read_at(self.at, into)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Little-endian numbers in bytes from others: 0 where there are not so many.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().map_or(0, u16::from_le_bytes)
}

/// As [`u16_at`].
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().map_or(0, u32::from_le_bytes)
}

/// As [`u16_at`].
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_where_the_disk_does_and_share_one_limit() {
        let disk = Area::whole(Arc::new((0..=255).collect::<Vec<u8>>()), 20);
        let part = disk.part(250, 100);
        assert_eq!((part.size(), disk.part(999, 1).size()), (6, 0));
        assert_eq!(part.array::<2>(4), Some([254, 255]));
        assert_eq!(part.array::<3>(4), None);
        assert_eq!(part.array::<1>(u64::MAX), None);
        assert!(!disk.is_spent());
        assert_eq!(disk.array::<19>(0), None, "2 of 20 are spent");
        assert!(disk.is_spent() && part.is_spent());
    }
}
