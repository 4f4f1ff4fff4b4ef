//! The names by which `/etc/fstab` calls what lies in partitions: `UUID=` as blkid tells it.

use super::bytes::{Area, u32_at, u64_at};
use super::inside::Inside;

/// The file systems and swap spaces of a disk.
#[derive(Default)]
pub(super) struct Names {
    found: Vec<String>,
    /// Something that has others in it, which are not seen (LVM, RAID, LUKS).
    hides: bool,
}

impl Names {
    /// Adds a partition.
    pub(super) fn add(&mut self, area: &Area, inside: &Inside) {
        self.hides |= match inside {
            Inside::Encrypted | Inside::BitLocker => true,
            Inside::Other(name) => matches!(*name, "an LVM volume" | "a RAID member"),
            _ => false,
        };
        self.found.extend(name_of(area));
    }

    /// True if it is known that nothing of this disk has that name.
    pub(super) fn lack(&self, name: &str) -> bool {
        !self.hides
            && !self
                .found
                .iter()
                .any(|found| found.eq_ignore_ascii_case(name))
    }
}

fn name_of(area: &Area) -> Option<String> {
    let at = |offset: u64, text: &[u8]| {
        let mut found = vec![0; text.len()];
        area.read_at(offset, &mut found).is_ok() && found == text
    };
    let uuid = |offset: u64| area.array::<16>(offset).map(|bytes| hyphened(&bytes));
    if at(0x438, &[0x53, 0xef]) {
        return uuid(1024 + 0x68);
    }
    if at(4086, b"SWAPSPACE2") {
        return uuid(1024 + 12);
    }
    if at(0, b"XFSB") {
        return uuid(32);
    }
    if at(0x10040, b"_BHRfS_M") {
        return uuid(0x10020);
    }
    let first = area.array::<512>(0)?;
    if at(3, b"NTFS    ") {
        return Some(format!("{:016X}", u64_at(&first, 0x48)));
    }
    // The serial number of FAT32 lies elsewhere than that of the smaller ones.
    let places = [
        (0x52, b"FAT32   ", 0x43),
        (0x36, b"FAT16   ", 0x27),
        (0x36, b"FAT12   ", 0x27),
    ];
    let fat = places.iter().find(|(offset, text, _)| at(*offset, *text));
    let serial = u32_at(&first, fat?.2);
    Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff))
}

/// As `80a1c4e2-acf0-4bcf-a234-177febfe76ec`.
fn hyphened(bytes: &[u8; 16]) -> String {
    let mut text = String::new();
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
