//! FAT file systems, read-only: names in folders, found without regard to case. Written here
//! because the library at hand (`fatfs`) wants to write and takes what it reads at its word.

use super::bytes::{Area, u16_at, u32_at};

/// Bytes of one folder that are read: 65,536 entries.
const MOST_FOLDER: usize = 2 << 20;

/// An opened one.
pub(super) struct Fat {
    area: Area,
    /// 12, 16 or 32.
    bits: u32,
    cluster: u64,
    /// Where the first table begins.
    table: u64,
    /// Where the root folder of FAT12 and FAT16 lies, and its length.
    root: (u64, u64),
    /// Where cluster 2 begins.
    data: u64,
    /// One more than the last cluster.
    clusters: u64,
    /// The root folder's first cluster, of FAT32.
    root_cluster: u64,
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) is_folder: bool,
    pub(super) size: u64,
    first: u64,
}

impl Fat {
    /// `None` if that is no FAT.
    pub(super) fn open(area: &Area) -> Option<Self> {
        let sector = area.array::<512>(0)?;
        let bytes = u64::from(u16_at(&sector, 11));
        let per_cluster = u64::from(*sector.get(13)?);
        let reserved = u64::from(u16_at(&sector, 14));
        let tables = u64::from(*sector.get(16)?);
        let root_entries = u64::from(u16_at(&sector, 17));
        let small = |at| u64::from(u16_at(&sector, at));
        let large = |at| u64::from(u32_at(&sector, at));
        let either = |small, large| if small == 0 { large } else { small };
        let total = either(small(19), large(32));
        let per_table = either(small(22), large(36));
        let sane = u16_at(&sector, 510) == 0xaa55
            && matches!(bytes, 512 | 1024 | 2048 | 4096)
            && per_cluster.is_power_of_two()
            && reserved > 0
            && matches!(tables, 1 | 2)
            && per_table > 0;
        if !sane {
            return None;
        }
        let root_at = reserved + tables * per_table;
        let root_sectors = (root_entries * 32).div_ceil(bytes);
        let data = root_at + root_sectors;
        let clusters = total.checked_sub(data)? / per_cluster;
        // Microsoft's rule: the number of clusters alone tells.
        let bits = match clusters {
            0..4085 => 12,
            4085..65525 => 16,
            _ => 32,
        };
        Some(Self {
            area: area.clone(),
            bits,
            cluster: bytes * per_cluster,
            table: reserved * bytes,
            root: (root_at * bytes, root_sectors * bytes),
            data: data * bytes,
            clusters: clusters + 2,
            root_cluster: large(44),
        })
    }

    /// The cluster after this one; `None` at the end, or where there is none such.
    fn after(&self, cluster: u64) -> Option<u64> {
        let next = match self.bits {
            12 => {
                let pair = self.area.array::<2>(self.table + cluster + cluster / 2)?;
                let both = u64::from(u16_at(&pair, 0));
                if cluster.is_multiple_of(2) {
                    both & 0xfff
                } else {
                    both >> 4
                }
            }
            16 => u64::from(u16_at(&self.area.array::<2>(self.table + cluster * 2)?, 0)),
            _ => {
                let word = self.area.array::<4>(self.table + cluster * 4)?;
                u64::from(u32_at(&word, 0)) & 0x0fff_ffff
            }
        };
        (2..self.clusters).contains(&next).then_some(next)
    }

    /// A folder's bytes; what can't be read ends it.
    fn folder_bytes(&self, first: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        if first == 0 && self.bits != 32 {
            let length = usize::try_from(self.root.1).unwrap_or(0).min(MOST_FOLDER);
            bytes.resize(length, 0);
            if self.area.read_at(self.root.0, &mut bytes).is_err() {
                bytes.clear();
            }
            return bytes;
        }
        let mut at = Some(if first == 0 { self.root_cluster } else { first });
        let cluster = usize::try_from(self.cluster).unwrap_or(usize::MAX);
        while let Some(here) = at.filter(|at| (2..self.clusters).contains(at)) {
            let mut more = vec![0; cluster];
            let offset = self.data + (here - 2) * self.cluster;
            if bytes.len().saturating_add(cluster) > MOST_FOLDER
                || self.area.read_at(offset, &mut more).is_err()
            {
                break;
            }
            bytes.extend(more);
            at = self.after(here);
        }
        bytes
    }

    fn list_at(&self, first: u64) -> Vec<Named> {
        let bytes = self.folder_bytes(first);
        let mut found = Vec::new();
        // Pieces of a long name come before the entry, the last one first.
        let mut long: Vec<u16> = Vec::new();
        for entry in bytes.chunks_exact(32) {
            let (head, attributes) = (entry.first().copied(), entry.get(11).copied());
            let (Some(head), Some(attributes)) = (head, attributes) else {
                break;
            };
            match (head, attributes) {
                (0, _) => break,
                (0xe5, _) => long.clear(),
                (_, 0x0f) => {
                    let places = (1..11).chain(14..26).chain(28..32).step_by(1);
                    let raw: Vec<u8> = places.filter_map(|at| entry.get(at).copied()).collect();
                    let mut piece: Vec<u16> = raw.chunks_exact(2).map(|c| u16_at(c, 0)).collect();
                    piece.retain(|unit| !matches!(unit, 0 | 0xffff));
                    piece.append(&mut long);
                    long = piece;
                    long.truncate(512);
                }
                (_, attributes) if attributes & 0x08 != 0 => long.clear(),
                _ => {
                    let name = if long.is_empty() {
                        short_name(entry)
                    } else {
                        String::from_utf16_lossy(&long)
                    };
                    long.clear();
                    let low = u64::from(u16_at(entry, 26));
                    let high = u64::from(u16_at(entry, 20));
                    found.push(Named {
                        name,
                        is_folder: attributes & 0x10 != 0,
                        size: u64::from(u32_at(entry, 28)),
                        first: low | if self.bits == 32 { high << 16 } else { 0 },
                    });
                }
            }
        }
        found.retain(|named| !matches!(named.name.as_str(), "." | ".."));
        found
    }

    /// What is in a folder; nothing if it is not there. `path`: names with `/` between, none
    /// for the root.
    pub(super) fn list(&self, path: &str) -> Vec<Named> {
        let mut first = 0;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let here = self.list_at(first);
            let folder = here.into_iter().find(|named| {
                named.is_folder && named.first >= 2 && named.name.eq_ignore_ascii_case(part)
            });
            match folder {
                Some(folder) => first = folder.first,
                None => return Vec::new(),
            }
        }
        self.list_at(first)
    }

    /// A file that is not empty, by its path; spelled as the disk has it.
    pub(super) fn file(&self, path: &str) -> Option<String> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let found = self.list(folder).into_iter().find(|named| {
            !named.is_folder && named.size > 0 && named.name.eq_ignore_ascii_case(name)
        });
        found.map(|named| format!("{folder}/{}", named.name))
    }
}

fn short_name(entry: &[u8]) -> String {
    let text = |bytes: Option<&[u8]>| {
        let text = String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        text.trim_end().to_owned()
    };
    let (mut stem, mut extension) = (text(entry.get(..8)), text(entry.get(8..11)));
    // Windows NT's and Linux's way to spare a long name.
    let small = entry.get(12).copied().unwrap_or_default();
    if small & 0x08 != 0 {
        stem.make_ascii_lowercase();
    }
    if small & 0x10 != 0 {
        extension.make_ascii_lowercase();
    }
    if extension.is_empty() {
        stem
    } else {
        format!("{stem}.{extension}")
    }
}
