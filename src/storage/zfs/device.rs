//! A zvol's block device: found, checked, read and written. It knows no snapshots.
//!
//! Which device a dataset has is asked of the device itself (`BLKZNAME`), once it is open, and
//! its size must be the dataset's. Links in /dev/zvol are udev's: late in a boot storm, and of
//! yesterday where a number was used again. So they, and what is remembered of devices
//! ([`super::search`]), are only where the search begins.
//! The device is claimed (`O_EXCL`) for as long as it is open: nothing else on this machine can
//! mount it or claim it meanwhile.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::gate::{Gate, Kind};
use super::listing::zfs;
use super::search::Search;
use super::{busy, damaged, io_error, ioctl, lock};
use crate::storage::nowait;
use crate::storage::{
    Access, BlockDevice, BlockError, DeviceInfo, Durability, Extent, ExtentKind, VolumeError,
};

/// With less than this to take, a pool has no room: ZFS counts each write many times over until
/// it is written.
const NO_ROOM: u64 = 1 << 20;

/// An open zvol.
#[derive(Debug)]
pub(super) struct Disk {
    device: File,
    /// Of its name: for the gate of its pool.
    dataset: String,
    size: u64,
    block: u32,
    flushes: Flushes,
}

/// Orders flushes. The kernel tells of what it could not write once, to whoever flushes first, so
/// one flush at a time asks it; who waited meanwhile shares the answer of one that began after it
/// came. What the store learned when it flushed for itself is owed to the machine.
#[derive(Debug, Default)]
struct Flushes {
    /// How many have begun.
    begun: AtomicU64,
    last: Mutex<Last>,
}

/// The flush that ended last.
#[derive(Debug, Default)]
struct Last {
    /// Its number.
    number: u64,
    /// The system's number of its error.
    failed: Option<i32>,
    /// Nobody has told the machine of this one.
    owed: Option<i32>,
}

/// A handle.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) disk: Arc<Disk>,
    pub(super) access: Access,
}

/// What became of one look at a device.
enum Look {
    Found(File),
    Other,
    /// It is the one, and somebody has claimed it.
    Claimed,
    /// We may not open it, or may not yet: udev gives a new device to its user some time after
    /// the kernel made it.
    Refused(PathBuf),
}

impl Disk {
    /// Opens the device of `dataset`, a disk of `size` bytes in blocks of `block`. Waits for the
    /// device, which the kernel makes some time after the dataset.
    ///
    /// Opening a device of a pool that hangs does so, too, and so may looking at one of another
    /// pool: the gate ends it.
    pub(super) fn open(dataset: &str, size: u64, block: u32) -> Result<Self, VolumeError> {
        let name = dataset.to_owned();
        let opened = Gate::of(dataset).call(Kind::Look, "opening a device", move || {
            Self::seek(&name, size, block)
        });
        opened.map_err(|e| io_error(&format!("opening {dataset}"), e))?
    }

    fn seek(dataset: &str, size: u64, block: u32) -> Result<Self, VolumeError> {
        let mut search = Search::new(dataset);
        let mut last = Look::Other;
        while search.goes_on() {
            if let Some(candidate) = search.candidate() {
                last = match look(&candidate.path(), dataset) {
                    Look::Found(device) => return Self::check(device, dataset, size, block),
                    other => other,
                };
                if matches!(last, Look::Other) {
                    candidate.not_it();
                }
            }
            search.wait()?;
        }
        if matches!(last, Look::Other)
            && let Some(path) = search.refused()
        {
            last = Look::Refused(path);
        }
        Err(match last {
            Look::Claimed => busy(
                dataset,
                "another program of this server has its device open",
            ),
            Look::Refused(path) => damaged(
                dataset,
                format!(
                    "the server's user may not open its block device (as {}): a udev rule must \
                     give it the devices of its disks (deploy/udev/90-dls-zvol.rules; `dls doctor` \
                     says whether it does)",
                    path.display()
                ),
            ),
            Look::Found(_) | Look::Other => damaged(
                dataset,
                "its block device did not appear within 30 s: is its `volmode` or the module's \
                 parameter zvol_inhibit_dev set against it?",
            ),
        })
    }

    fn check(mut device: File, dataset: &str, size: u64, block: u32) -> Result<Self, VolumeError> {
        let there = device.seek(SeekFrom::End(0));
        let there = there.map_err(|e| io_error(&format!("asking the size of {dataset}"), e))?;
        let whole = size.next_multiple_of(u64::from(block));
        if there < size || there != whole {
            return Err(damaged(
                dataset,
                format!("its device has {there} bytes, and {whole} were expected"),
            ));
        }
        // Nothing that another program has read before is taken for what is there now.
        let _ = posix_fadvise(&device, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        Ok(Self {
            device,
            dataset: dataset.to_owned(),
            size,
            block,
            flushes: Flushes::default(),
        })
    }

    /// All that was written is in the pool when it returns. Waits as long as the pool does.
    pub(super) fn flush(&self) -> io::Result<()> {
        let came = self.flushes.begun.load(Ordering::SeqCst);
        let mut last = lock(&self.flushes.last);
        if last.number <= came {
            self.sync(&mut last);
        }
        // What the store was told is the machine's affair, too: told once, to the first of it.
        match last.owed.take().or(last.failed) {
            None => Ok(()),
            Some(number) => Err(io::Error::from_raw_os_error(number)),
        }
    }

    /// The same for the store's own ends: a failure reaches the machine with its next flush. Does
    /// not wait for a pool that does not answer.
    pub(super) fn flush_for_the_store(self: &Arc<Self>) -> io::Result<()> {
        let disk = self.clone();
        let flushed = Gate::of(&self.dataset).call(Kind::Change, "a flush", move || {
            let mut last = lock(&disk.flushes.last);
            disk.sync(&mut last);
            last.owed = last.owed.or(last.failed);
            last.failed
        });
        flushed?.map_or(Ok(()), |number| Err(io::Error::from_raw_os_error(number)))
    }

    fn sync(&self, last: &mut Last) {
        last.number = self.flushes.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let synced = self.device.sync_data();
        last.failed = synced.err().map(|e| match e.raw_os_error() {
            None | Some(libc::EIO) if self.has_no_room() => libc::ENOSPC,
            number => number.unwrap_or(libc::EIO),
        });
        if last.failed.is_some() {
            // The kernel keeps the pages that it could not write and says no more of it. What is
            // read from now on is what the pool has.
            let all = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            let _ = posix_fadvise(&self.device, 0, 0, all);
        }
    }

    /// Whether its pool or a quota has no room for it. The page cache of a device makes `EIO` of
    /// all that goes wrong when it is written, so ZFS is asked.
    fn has_no_room(&self) -> bool {
        let room = zfs(&["list", "-Hp", "-o", "available", &self.dataset]);
        room.is_ok_and(|room| room.trim().parse().is_ok_and(|room: u64| room < NO_ROOM))
    }

    /// Makes a range zeroes: whole blocks are given back, the rest is written.
    fn clear(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        let block = u64::from(self.block);
        let end = offset + length;
        let first = offset.next_multiple_of(block);
        let last = end - end % block;
        if first >= last {
            return self.zero(offset, length);
        }
        self.zero(offset, first - offset)?;
        match ioctl::discard(&self.device, first, last - first) {
            Ok(()) => {}
            // Somebody claims it just now, or the device can't.
            Err(e) if matches!(e.kind(), ErrorKind::ResourceBusy | ErrorKind::Unsupported) => {
                self.zero(first, last - first)?;
            }
            Err(e) => return Err(e.into()),
        }
        self.zero(last, end - last)
    }

    fn zero(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        static ZEROES: [u8; 128 * 1024] = [0; 128 * 1024];
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let here = (end - at).min(ZEROES.len() as u64);
            let part = &ZEROES[..usize::try_from(here).unwrap_or(0)];
            self.device.write_all_at(part, at)?;
            at += here;
        }
        Ok(())
    }
}

/// Asks a device whose it is; claims it only when it is ours, and asks again.
fn look(path: &Path, dataset: &str) -> Look {
    let refused = |e: io::Error| match e.kind() {
        ErrorKind::PermissionDenied => Look::Refused(path.to_owned()),
        // It was removed, is not made yet, or is no zvol.
        _ => Look::Other,
    };
    let ours = |device: &File| ioctl::dataset(device).is_ok_and(|name| name == dataset);
    // It stays open until it is claimed: opening it once more is little then.
    let seen = match OpenOptions::new().read(true).open(path) {
        Ok(device) if ours(&device) => device,
        Ok(_) => return Look::Other,
        Err(e) => return refused(e),
    };
    let claimed = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_EXCL)
        .open(path);
    let found = match claimed {
        Ok(device) if ours(&device) => Look::Found(device),
        Ok(_) => Look::Other,
        Err(e) if e.kind() == ErrorKind::ResourceBusy => Look::Claimed,
        Err(e) => refused(e),
    };
    drop(seen);
    found
}

impl Handle {
    fn check(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.disk.size => Ok(()),
            _ => Err(BlockError::OutOfRange),
        }
    }

    fn may_write(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        if self.access == Access::Read {
            return Err(BlockError::ReadOnly);
        }
        self.check(offset, length)
    }

    fn after_write(&self, durability: Durability) -> Result<(), BlockError> {
        match durability {
            Durability::Volatile => Ok(()),
            Durability::Fua => Ok(self.disk.flush()?),
        }
    }
}

impl BlockDevice for Handle {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            size: self.disk.size,
            preferred_block: self.disk.block,
            read_only: self.access == Access::Read,
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BlockError> {
        self.check(offset, buffer.len() as u64)?;
        Ok(self.disk.device.read_exact_at(buffer, offset)?)
    }

    fn try_read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, BlockError> {
        self.check(offset, buffer.len() as u64)?;
        let Ok(at) = i64::try_from(offset) else {
            return Err(BlockError::OutOfRange);
        };
        let read = nowait::read_at(&self.disk.device, buffer, at);
        Ok(read == Some(buffer.len()))
    }

    fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), BlockError> {
        self.may_write(offset, data.len() as u64)?;
        self.disk.device.write_all_at(data, offset)?;
        self.after_write(durability)
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(self.disk.flush()?)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        self.may_write(offset, length)?;
        self.disk.clear(offset, length)
    }

    /// `keep_space` changes nothing: a zvol without a reservation never has space that is its
    /// own, and zeroes take none.
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        _keep_space: bool,
        durability: Durability,
    ) -> Result<(), BlockError> {
        self.may_write(offset, length)?;
        self.disk.clear(offset, length)?;
        self.after_write(durability)
    }

    /// A zvol does not tell where its holes are: all of it is data.
    fn extents(&self, offset: u64, length: u64, most: usize) -> Result<Vec<Extent>, BlockError> {
        self.check(offset, length)?;
        let one = (length > 0 && most > 0).then_some(Extent {
            length,
            kind: ExtentKind::Data,
        });
        Ok(one.into_iter().collect())
    }
}
