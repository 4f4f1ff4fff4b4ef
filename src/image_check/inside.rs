//! What a partition holds, told by its first bytes; and files of an ext4 (ext2, ext3) file
//! system, by the library ext4-view, with bounds on how much of each is read.

use std::io::Read;

use ext4_view::{Ext4, File, FileType};

use super::bytes::{Area, u16_at, u32_at};
use super::fat::Fat;

/// Names of one folder.
const MOST_NAMES: usize = 10_000;
/// Bytes of a file that is read as text.
const MOST_TEXT: u64 = 1 << 20;

/// Groups of blocks of a file system: 128 TiB with blocks of 4 KiB.
const MOST_GROUPS: u64 = 1 << 20;
/// The feature `64bit`: block numbers have 64 bits.
const INCOMPAT_64BIT: u32 = 0x80;

/// What lies in a partition.
pub(super) enum Inside {
    /// ext2, ext3, ext4.
    Ext(Ext),
    /// One of these, which can't be read; with the reason.
    ExtBroken(String),
    /// FAT12, FAT16, FAT32.
    Fat(Fat),
    /// NTFS, where it lies; true if its first sector starts Windows' boot manager.
    Ntfs(Area, bool),
    /// Encrypted by Windows.
    BitLocker,
    /// Something known by name that can't be looked into.
    Other(&'static str),
    /// LUKS.
    Encrypted,
    /// Swap space, or nothing that is known.
    Nothing,
}

/// Looks at the first bytes of a partition.
pub(super) fn look(area: &Area) -> Inside {
    let first = area.array::<512>(0).unwrap_or([0; 512]);
    let at = |offset, text: &[u8]| {
        let mut found = vec![0; text.len()];
        area.read_at(offset, &mut found).is_ok() && found == text
    };
    if at(0x438, &[0x53, 0xef]) {
        return match Ext::open(area) {
            Ok(ext) => Inside::Ext(ext),
            Err(why) => Inside::ExtBroken(why),
        };
    }
    let names: [(u64, &[u8], &'static str); 8] = [
        (0, b"XFSB", "XFS"),
        (0x10040, b"_BHRfS_M", "Btrfs"),
        (512, b"LABELONE", "an LVM volume"),
        (1024, &[0x10, 0x20, 0xf5, 0xf2], "F2FS"),
        (0, b"hsqs", "SquashFS"),
        (3, b"EXFAT   ", "exFAT"),
        (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a RAID member"),
        (0x8001, b"CD001", "ISO 9660"),
    ];
    if at(0, b"LUKS\xba\xbe") {
        return Inside::Encrypted;
    }
    if at(3, b"-FVE-FS-") {
        return Inside::BitLocker;
    }
    if at(3, b"NTFS    ") {
        let starts = first.windows(7).any(|word| word == b"BOOTMGR");
        return Inside::Ntfs(area.clone(), starts && u16_at(&first, 510) == 0xaa55);
    }
    if let Some((.., name)) = names.iter().find(|(offset, text, _)| at(*offset, text)) {
        return Inside::Other(name);
    }
    match Fat::open(area) {
        Some(fat) => Inside::Fat(fat),
        None => Inside::Nothing,
    }
}

/// The library takes memory for as many groups of blocks as the superblock says.
fn sane(area: &Area) -> Result<(), String> {
    let superblock = area.array::<1024>(1024).ok_or("its beginning is missing")?;
    let high = match u32_at(&superblock, 0x60) & INCOMPAT_64BIT {
        0 => 0,
        _ => u64::from(u32_at(&superblock, 0x150)),
    };
    let blocks = u64::from(u32_at(&superblock, 4)) | high << 32;
    let block = match u32_at(&superblock, 24) {
        log @ 0..=6 => 1024_u64 << log,
        _ => return Err("its blocks have a size that can't be".to_owned()),
    };
    let groups = blocks / u64::from(u32_at(&superblock, 32)).max(1);
    if blocks.saturating_mul(block) > area.size() {
        return Err("it is larger than its partition".to_owned());
    }
    if groups > MOST_GROUPS {
        return Err("it has too many groups of blocks".to_owned());
    }
    Ok(())
}

/// An ext4 file system.
pub(super) struct Ext {
    system: Ext4,
}

impl Ext {
    fn open(area: &Area) -> Result<Self, String> {
        sane(area)?;
        match Ext4::load(Box::new(area.clone())) {
            Ok(system) => Ok(Self { system }),
            Err(e) => Err(e.to_string()),
        }
    }

    /// A file's content as text, links followed; `None` if there is none or it is too large.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let mut bytes = Vec::new();
        self.file(path)?
            .take(MOST_TEXT)
            .read_to_end(&mut bytes)
            .ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A file to be read, links followed.
    pub(super) fn file(&self, path: &str) -> Option<File> {
        let file = self.system.open(path).ok()?;
        (file.metadata().file_type() == FileType::Regular).then_some(file)
    }

    /// Names in a folder, sorted; none if it is not there.
    pub(super) fn names(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = self.system.read_dir(folder) else {
            return Vec::new();
        };
        let entries = entries.take(MOST_NAMES).map_while(Result::ok);
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().as_str().ok().map(str::to_owned))
            .filter(|name| name != "." && name != "..")
            .collect();
        names.sort();
        names
    }
}
