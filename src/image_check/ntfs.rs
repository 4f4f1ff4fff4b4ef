//! NTFS, read-only, by the crate `ntfs`: files by their path, and what the volume says of
//! itself. How much is read of one volume is bounded here.
//!
//! The crate refuses most of what can't be, but a crafted entry of a folder makes it index
//! past an end and panic, and no other library reads NTFS from Rust. So all its work on a
//! volume runs in [`contained`]: a panic ends the look at that volume, and is told as damage.

use std::io::{self, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};

use ntfs::attribute_value::NtfsAttributeValue;
use ntfs::indexes::NtfsFileNameIndex;
use ntfs::structured_values::{NtfsIndexRoot, NtfsVolumeFlags};
use ntfs::{Ntfs, NtfsAttributeFlags, NtfsAttributeType, NtfsError, NtfsFile, NtfsReadSeek};

use super::bytes::Area;

/// Bytes that are read of one volume at most.
const MOST_READ: u64 = 192 << 20;
/// Bytes of a record of the table of files, or of a folder: the library takes memory for them
/// before it looks whether they are there. Usual are 1 and 4 KiB.
const LARGEST_RECORD: u32 = 64 << 10;
/// Readings of one volume at most: each costs time, even one of few bytes.
const MOST_READINGS: u64 = 1 << 20;

/// Runs what reads a volume; a panic of the library is an error.
pub(super) fn contained<T>(look: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // What the closure leaves behind when it unwinds is a reader of lent bytes, used no more.
    let outcome = catch_unwind(AssertUnwindSafe(look));
    outcome.unwrap_or_else(|_| Err("its folders or files make no sense".to_owned()))
}

/// A volume as the library wants it: read and sought.
struct Lent {
    area: Area,
    at: u64,
    left: u64,
    readings: u64,
}

impl Read for Lent {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.area.size().saturating_sub(self.at);
        let count = buffer
            .len()
            .min(usize::try_from(rest).unwrap_or(usize::MAX));
        let Some(into) = buffer.get_mut(..count) else {
            return Ok(0);
        };
        let (left, readings) = (
            self.left.checked_sub(count as u64),
            self.readings.checked_sub(1),
        );
        let (Some(left), Some(readings)) = (left, readings) else {
            return Err(io::Error::other("more than is read of one volume"));
        };
        (self.left, self.readings) = (left, readings);
        self.area.read_at(self.at, into)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Lent {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.area.size().checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::other("before the beginning"))?;
        Ok(self.at)
    }
}

/// An opened volume. Use it within [`contained`] only.
pub(super) struct Volume {
    lent: Lent,
    ntfs: Ntfs,
}

/// A file's content that is read piece by piece.
pub(super) trait Content {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset`; an error where there is not so much.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), String>;
}

struct OpenFile<'v, 'n, 'f> {
    lent: &'v mut Lent,
    value: NtfsAttributeValue<'n, 'f>,
}

impl Content for OpenFile<'_, '_, '_> {
    fn size(&self) -> u64 {
        self.value.len()
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), String> {
        self.value
            .seek(self.lent, SeekFrom::Start(offset))
            .map_err(words)?;
        self.value.read_exact(self.lent, buffer).map_err(words)
    }
}

fn words(error: NtfsError) -> String {
    error.to_string()
}

impl Volume {
    /// Reads the boot sector and the table of capital letters.
    pub(super) fn open(area: &Area) -> Result<Self, String> {
        let mut lent = Lent {
            area: area.clone(),
            at: 0,
            left: MOST_READ,
            readings: MOST_READINGS,
        };
        let mut ntfs = Ntfs::new(&mut lent).map_err(words)?;
        if ntfs.size() > area.size() {
            return Err("it is larger than its partition".to_owned());
        }
        if ntfs.file_record_size() > LARGEST_RECORD {
            return Err("its records are too large".to_owned());
        }
        ntfs.read_upcase_table(&mut lent).map_err(words)?;
        Ok(Self { lent, ntfs })
    }

    /// True if Windows is to check it at the next start.
    pub(super) fn is_dirty(&mut self) -> Result<bool, String> {
        let about = self.ntfs.volume_info(&mut self.lent).map_err(words)?;
        Ok(about.flags().contains(NtfsVolumeFlags::IS_DIRTY))
    }

    /// True if there is such a file.
    pub(super) fn has(&mut self, path: &str) -> Result<bool, String> {
        Ok(file(&self.ntfs, &mut self.lent, path)?.is_some())
    }

    /// Reads a file; `None` if there is none. Its content is refused where it is packed or
    /// encrypted by NTFS.
    pub(super) fn with<T>(
        &mut self,
        path: &str,
        read: impl FnOnce(&mut dyn Content) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        let Some(file) = file(&self.ntfs, &mut self.lent, path)? else {
            return Ok(None);
        };
        let Some(item) = file.data(&mut self.lent, "") else {
            return Ok(None);
        };
        let item = item.map_err(words)?;
        let attribute = item.to_attribute().map_err(words)?;
        let packed = NtfsAttributeFlags::COMPRESSED | NtfsAttributeFlags::ENCRYPTED;
        if attribute.flags().intersects(packed) {
            return Err(format!("{path} is packed or encrypted"));
        }
        let value = attribute.value(&mut self.lent).map_err(words)?;
        let mut open = OpenFile {
            lent: &mut self.lent,
            value,
        };
        read(&mut open).map(Some)
    }
}

/// Refuses a folder whose records are too large.
fn sane_folder(folder: &NtfsFile<'_>, lent: &mut Lent) -> Result<(), String> {
    let mut attributes = folder.attributes();
    while let Some(item) = attributes.next(lent) {
        let item = item.map_err(words)?;
        let attribute = item.to_attribute().map_err(words)?;
        if !matches!(attribute.ty(), Ok(NtfsAttributeType::IndexRoot)) {
            continue;
        }
        let root = attribute.resident_structured_value::<NtfsIndexRoot>();
        if root.map_err(words)?.index_record_size() > LARGEST_RECORD {
            return Err("the records of a folder are too large".to_owned());
        }
    }
    Ok(())
}

/// A file or folder by its path.
fn file<'n>(ntfs: &'n Ntfs, lent: &mut Lent, path: &str) -> Result<Option<NtfsFile<'n>>, String> {
    let mut file = ntfs.root_directory(lent).map_err(words)?;
    for name in path.split(['\\', '/']).filter(|name| !name.is_empty()) {
        if !file.is_directory() {
            return Ok(None);
        }
        sane_folder(&file, lent)?;
        let next = {
            let index = file.directory_index(lent).map_err(words)?;
            let mut finder = index.finder();
            match NtfsFileNameIndex::find(&mut finder, ntfs, lent, name) {
                None => return Ok(None),
                Some(entry) => entry.and_then(|entry| entry.to_file(ntfs, lent)),
            }
        };
        file = next.map_err(words)?;
    }
    Ok(Some(file))
}
