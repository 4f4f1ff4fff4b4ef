//! Partition tables: MBR with its chain of logical partitions, GPT (UEFI 2.10, section 5)
//! with both of its copies, and both at once. Says where partitions lie and what is wrong.

use super::bytes::{Area, u16_at, u32_at, u64_at};
use super::report::Report;
use crate::model::CheckFinding;

/// Bytes of a sector, as our exports have them.
pub(super) const SECTOR: u64 = 512;
/// Logical partitions that are followed.
const MOST_LOGICAL: usize = 128;
/// Bytes of a GPT's array of entries that are read: 1024 entries of 128 bytes.
const MOST_ENTRIES: usize = 128 * 1024;

/// The GPT type of the EFI system partition, as it lies on the disk (the first three groups
/// little-endian).
pub(super) const ESP: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];

/// What a partition is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Of an MBR: its type.
    Mbr(u8),
    /// Of a GPT: its type.
    Gpt([u8; 16]),
    /// The whole disk, without a table.
    Whole,
}

impl Kind {
    /// True if firmware looks for loaders in it.
    pub(super) fn is_esp(self) -> bool {
        matches!(self, Self::Mbr(0xef)) || self == Self::Gpt(ESP)
    }
}

/// A partition, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Partition {
    /// As Linux counts them, from 1; 0 for a whole disk.
    pub(super) number: u32,
    pub(super) start: u64,
    pub(super) size: u64,
    pub(super) kind: Kind,
    /// MBR: marked to be booted.
    pub(super) active: bool,
}

impl Partition {
    fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    pub(super) partitions: Vec<Partition>,
    pub(super) is_gpt: bool,
    /// The first sector, if it is marked as one that can be booted.
    pub(super) boot_sector: Option<[u8; 512]>,
}

/// Reads the table of a disk.
pub(super) fn read(disk: &Area, report: &mut Report) -> Table {
    let first = disk.array::<512>(0).unwrap_or([0; 512]);
    let signed = u16_at(&first, 510) == 0xaa55;
    let boot_sector = signed.then_some(first);
    let entries: Vec<Entry> = if signed {
        Entry::four(&first)
    } else {
        Vec::new()
    };
    let protective = entries.iter().any(|entry| entry.kind == 0xee);
    let mut table = match gpt(disk, report) {
        Gpt::Read(partitions) => {
            report.say(CheckFinding::Gpt);
            if !protective {
                report.say(CheckFinding::NoProtectiveMbr);
            } else if entries.iter().any(|entry| entry.kind != 0xee) {
                report.say(CheckFinding::HybridMbr);
            }
            Table {
                partitions,
                is_gpt: true,
                boot_sector,
            }
        }
        Gpt::Broken => Table {
            is_gpt: true,
            boot_sector,
            ..Table::default()
        },
        Gpt::None if protective => {
            // The MBR says that there is one.
            report.say(CheckFinding::GptBroken);
            Table {
                is_gpt: true,
                boot_sector,
                ..Table::default()
            }
        }
        Gpt::None => Table {
            partitions: mbr(disk, &entries, report),
            is_gpt: false,
            boot_sector,
        },
    };
    if table.partitions.is_empty() && !table.is_gpt {
        report.say(CheckFinding::NoTable);
        table.partitions.push(Partition {
            number: 0,
            start: 0,
            size: disk.size(),
            kind: Kind::Whole,
            active: false,
        });
        return table;
    }
    if !table.is_gpt {
        report.say(CheckFinding::Mbr);
    }
    judge(disk, &table.partitions, report);
    table
}

fn judge(disk: &Area, partitions: &[Partition], report: &mut Report) {
    for partition in partitions {
        if partition.end() > disk.size() {
            let number = partition.number;
            report.say_of(
                CheckFinding::PartitionOutside,
                format!("partition {number}"),
            );
        }
    }
    let mut sorted: Vec<&Partition> = partitions.iter().collect();
    sorted.sort_by_key(|partition| partition.start);
    for pair in sorted.windows(2) {
        if let [a, b] = pair
            && a.end() > b.start
        {
            let which = format!("partitions {} and {}", a.number, b.number);
            report.say_of(CheckFinding::PartitionsOverlap, which);
        }
    }
}

/// An entry of an MBR that is used.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// From 0.
    slot: u32,
    kind: u8,
    active: bool,
    start: u64,
    sectors: u64,
}

impl Entry {
    fn four(sector: &[u8]) -> Vec<Self> {
        let entry = |slot: u32| {
            let bytes = sector.get(446 + 16 * slot as usize..)?.get(..16)?;
            let [flag, .., kind] = *bytes.first_chunk::<5>()?;
            // Boot code of a file system without a table looks like an entry only by chance.
            if !matches!(flag, 0 | 0x80) {
                return None;
            }
            Some(Self {
                slot,
                kind,
                active: flag == 0x80,
                start: u64::from(u32_at(bytes, 8)),
                sectors: u64::from(u32_at(bytes, 12)),
            })
        };
        let used = |entry: &Self| entry.kind != 0 && entry.sectors != 0;
        (0..4).filter_map(entry).filter(used).collect()
    }

    fn is_extended(self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn partition(self, number: u32, base: u64) -> Partition {
        Partition {
            number,
            start: (base + self.start) * SECTOR,
            size: self.sectors * SECTOR,
            kind: Kind::Mbr(self.kind),
            active: self.active,
        }
    }
}

fn mbr(disk: &Area, entries: &[Entry], report: &mut Report) -> Vec<Partition> {
    let mut found = Vec::new();
    for entry in entries {
        if entry.is_extended() {
            logical(disk, entry.start, &mut found, report);
        } else {
            found.push(entry.partition(entry.slot + 1, 0));
        }
    }
    found.sort_by_key(|partition| partition.number);
    found
}

/// Follows the chain: each link tells of one partition, relative to itself, and of the next
/// link, relative to the first one.
fn logical(disk: &Area, first: u64, found: &mut Vec<Partition>, report: &mut Report) {
    let mut at = first;
    for number in 5.. {
        let sector = disk.array::<512>(at * SECTOR);
        let sector = sector.filter(|sector| u16_at(sector, 510) == 0xaa55);
        let Some(sector) = sector else {
            report.say(CheckFinding::EbrBroken);
            return;
        };
        let mut next = None;
        for entry in Entry::four(&sector) {
            if entry.is_extended() {
                next = Some(first + entry.start);
            } else if next.is_none() {
                found.push(entry.partition(number, at));
            }
        }
        // A chain that comes back or has no end is none.
        match next {
            None => return,
            Some(next) if next > at && (number as usize) < MOST_LOGICAL => at = next,
            Some(_) => {
                report.say(CheckFinding::EbrBroken);
                return;
            }
        }
    }
}

enum Gpt {
    None,
    Broken,
    Read(Vec<Partition>),
}

fn gpt(disk: &Area, report: &mut Report) -> Gpt {
    let last = disk.size() / SECTOR;
    let Some(last) = last.checked_sub(1) else {
        return Gpt::None;
    };
    let primary = copy(disk, 1);
    let backup = copy(disk, last);
    match (primary, backup) {
        (Copy::Good(found), backup) => {
            if !matches!(backup, Copy::Good(_)) {
                report.say(CheckFinding::GptBackupBroken);
            }
            Gpt::Read(found)
        }
        (_, Copy::Good(found)) => {
            report.say(CheckFinding::GptHeaderBroken);
            Gpt::Read(found)
        }
        (Copy::Broken, _) | (_, Copy::Broken) => {
            report.say(CheckFinding::GptBroken);
            Gpt::Broken
        }
        (Copy::None, Copy::None) => {
            if disk.array::<8>(4096) == Some(*b"EFI PART") {
                report.say(CheckFinding::GptOfLargeSectors);
                return Gpt::Broken;
            }
            Gpt::None
        }
    }
}

/// One of the two copies.
enum Copy {
    None,
    Broken,
    Good(Vec<Partition>),
}

fn copy(disk: &Area, at: u64) -> Copy {
    let Some(mut header) = disk.array::<512>(at * SECTOR) else {
        return Copy::None;
    };
    if !header.starts_with(b"EFI PART") {
        return Copy::None;
    }
    let said = u32_at(&header, 16);
    let length = u32_at(&header, 12) as usize;
    if let Some(sum) = header.get_mut(16..20) {
        sum.fill(0);
    }
    let Some(summed) = header.get(..length).filter(|_| length >= 92) else {
        return Copy::Broken;
    };
    if crc32fast::hash(summed) != said || u64_at(&header, 24) != at {
        return Copy::Broken;
    }
    let (place, count) = (u64_at(&header, 72), u32_at(&header, 80) as usize);
    let (size, sum) = (u32_at(&header, 84) as usize, u32_at(&header, 88));
    let bytes = count.saturating_mul(size);
    if size < 128 || bytes > MOST_ENTRIES {
        return Copy::Broken;
    }
    let mut array = vec![0; bytes];
    let offset = place.saturating_mul(SECTOR);
    if disk.read_at(offset, &mut array).is_err() || crc32fast::hash(&array) != sum {
        return Copy::Broken;
    }
    let entries = array.chunks_exact(size).zip(1_u32..);
    let partitions = entries.filter_map(|(entry, number)| {
        let kind = *entry.first_chunk::<16>()?;
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let sectors = last.checked_sub(first)?.checked_add(1)?;
        (kind != [0; 16]).then(|| Partition {
            number,
            start: first.saturating_mul(SECTOR),
            size: sectors.saturating_mul(SECTOR),
            kind: Kind::Gpt(kind),
            active: false,
        })
    });
    Copy::Good(partitions.collect())
}
