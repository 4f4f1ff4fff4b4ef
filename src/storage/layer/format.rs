//! The layout of a layer's file: a strict subset of qcow2 version 3 in which every table has
//! a fixed place. It turns bytes into values and back, and reads no files.
//!
//! ```text
//! cluster 0         header, extension with the format of the file below, its name
//! l1_at             L1 table: the place of each L2 table, filled in for good
//! refcounts_at      refcount table (one cluster), then its blocks
//! l2_at             all L2 tables, one after the other: the entry of cluster c lies at
//!                   l2_at + 16 c; a hole in the file is a run of unallocated entries
//! data_at           clusters of data, in the order in which they were first written
//! ```

use std::ops::Range;

/// Bytes of a cluster: what one table entry describes.
pub(crate) const CLUSTER: u64 = 128 * 1024;
/// The same as a power of two.
const CLUSTER_BITS: u32 = 17;
/// Bytes of a subcluster: the least that is allocated.
pub(crate) const SUBCLUSTER: u64 = 4096;
/// Bytes of an extended L2 entry.
pub(crate) const ENTRY: u64 = 16;
/// Entries of an L2 table, which fills a cluster.
const ENTRIES: u64 = CLUSTER / ENTRY;
/// Refcounts (16 bits each) of a refcount block.
const REFCOUNTS: u64 = CLUSTER / 2;
/// The largest disk: its L1 table fits one cluster.
pub(crate) const MAX_SIZE: u64 = CLUSTER / 8 * ENTRIES * CLUSTER;

const MAGIC: u32 = 0x5146_49fb;
/// Bytes of the header's fixed part.
const FIXED: u64 = 112;
/// Refcounts may be wrong.
const DIRTY: u64 = 1;
/// L2 entries have 128 bits.
const EXTENDED: u64 = 1 << 4;
/// Header extension: format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// This table is referred to once (qcow2: `QCOW_OFLAG_COPIED`).
const ONCE: u64 = 1 << 63;
/// Bits of an entry that hold a place in the file.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
/// Where the dirty bit's field lies.
pub(crate) const FEATURES_AT: u64 = 72;

/// Where everything lies, from the size of the disk alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Bytes of the disk.
    pub(crate) size: u64,
    /// Clusters of the disk, the last maybe cut short.
    pub(crate) clusters: u64,
    tables: u64,
    l1_at: u64,
    pub(crate) refcounts_at: u64,
    blocks: u64,
    pub(crate) blocks_at: u64,
    pub(crate) l2_at: u64,
    /// The first cluster of data.
    pub(crate) data_at: u64,
}

impl Geometry {
    /// The layout for a disk; `None` if its size is 0, no multiple of 512, or over 128 TiB.
    pub(crate) fn new(size: u64) -> Option<Self> {
        if size == 0 || !size.is_multiple_of(512) || size > MAX_SIZE {
            return None;
        }
        let clusters = size.div_ceil(CLUSTER);
        let tables = clusters.div_ceil(ENTRIES);
        let l1_clusters = (tables * 8).div_ceil(CLUSTER);
        let refcounts_at = (1 + l1_clusters) * CLUSTER;
        let others = 1 + l1_clusters + 1 + tables + clusters;
        // Refcount blocks count themselves too.
        let blocks = others.div_ceil(REFCOUNTS - 1);
        let blocks_at = refcounts_at + CLUSTER;
        let l2_at = blocks_at + blocks * CLUSTER;
        Some(Self {
            size,
            clusters,
            tables,
            l1_at: CLUSTER,
            refcounts_at,
            blocks,
            blocks_at,
            l2_at,
            data_at: l2_at + tables * CLUSTER,
        })
    }

    /// Where the entry of a cluster lies.
    pub(crate) fn entry_at(&self, cluster: u64) -> u64 {
        self.l2_at + cluster * ENTRY
    }

    /// The end of the largest file that such a layer can become.
    pub(crate) fn most(&self) -> u64 {
        self.data_at + self.clusters * CLUSTER
    }

    /// The L1 table.
    pub(crate) fn l1(&self) -> Vec<u8> {
        (0..self.tables)
            .flat_map(|n| ((self.l2_at + n * CLUSTER) | ONCE).to_be_bytes())
            .collect()
    }

    /// Where the L1 table lies.
    pub(crate) fn l1_at(&self) -> u64 {
        self.l1_at
    }

    /// The refcount table.
    pub(crate) fn refcount_table(&self) -> Vec<u8> {
        (0..self.blocks)
            .flat_map(|n| (self.blocks_at + n * CLUSTER).to_be_bytes())
            .collect()
    }

    /// Where the refcount of the cluster at a place of the file lies.
    pub(crate) fn refcount_at(&self, place: u64) -> u64 {
        // The blocks lie one after the other, so this is one flat array.
        self.blocks_at + place / CLUSTER * 2
    }

    /// The header of a layer.
    pub(crate) fn header(&self, below: Option<&Below>, dirty: bool) -> Vec<u8> {
        let mut extensions = Vec::new();
        if let Some(below) = below {
            let format = below.format.as_bytes();
            extensions.extend(BACKING_FORMAT.to_be_bytes());
            extensions.extend(short(format.len()).to_be_bytes());
            extensions.extend(format);
            extensions.resize(extensions.len().next_multiple_of(8), 0);
        }
        extensions.extend([0; 8]);
        let name_at = FIXED + extensions.len() as u64;
        let mut head = Vec::with_capacity(512);
        let name_len = below.map_or(0, |b| b.name.len());
        head.extend(MAGIC.to_be_bytes());
        head.extend(3_u32.to_be_bytes());
        head.extend(if below.is_some() { name_at } else { 0 }.to_be_bytes());
        head.extend(short(name_len).to_be_bytes());
        head.extend(CLUSTER_BITS.to_be_bytes());
        head.extend(self.size.to_be_bytes());
        head.extend(0_u32.to_be_bytes()); // no encryption
        head.extend(u32::try_from(self.tables).unwrap_or(u32::MAX).to_be_bytes());
        head.extend(self.l1_at.to_be_bytes());
        head.extend(self.refcounts_at.to_be_bytes());
        head.extend(1_u32.to_be_bytes()); // clusters of the refcount table
        head.extend(0_u32.to_be_bytes()); // internal snapshots
        head.extend(0_u64.to_be_bytes());
        head.extend(features(dirty).to_be_bytes());
        head.extend(0_u64.to_be_bytes()); // compatible features
        head.extend(0_u64.to_be_bytes()); // features that clear themselves
        head.extend(4_u32.to_be_bytes()); // refcounts of 16 bits
        head.extend(112_u32.to_be_bytes());
        head.extend([0; 8]); // compression type, padding
        head.extend(extensions);
        if let Some(below) = below {
            head.extend(below.name.as_bytes());
        }
        // To the end of the sector, so that the rest of an older, longer header goes.
        head.resize(head.len().next_multiple_of(512).max(512), 0);
        head
    }
}

/// The field of incompatible features.
pub(crate) fn features(dirty: bool) -> u64 {
    EXTENDED | if dirty { DIRTY } else { 0 }
}

fn short(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// The file that a layer lies upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Below {
    /// Its name in the same folder.
    pub(crate) name: String,
    /// `raw` or `qcow2`.
    pub(crate) format: &'static str,
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// The layout.
    pub(crate) geometry: Geometry,
    /// What it lies upon.
    pub(crate) below: Option<Below>,
    /// It was not closed.
    pub(crate) dirty: bool,
}

impl Header {
    /// Bytes to give [`Header::parse`].
    pub(crate) const READ: usize = 1024;

    /// Reads a header, which must be, byte for byte, one that [`Geometry::header`] makes.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        if u32_at(bytes, 0) != Some(MAGIC) {
            return Err("it is no qcow2 file");
        }
        if u32_at(bytes, 4) != Some(3) {
            return Err("it is not qcow2 version 3");
        }
        let size = u64_at(bytes, 24).ok_or("its header is cut short")?;
        let geometry = Geometry::new(size).ok_or("its header has an impossible size")?;
        let features_said = u64_at(bytes, FEATURES_AT).ok_or("its header is cut short")?;
        let dirty = features_said & DIRTY != 0;
        if features_said != features(dirty) {
            return Err("its header names features that our layers do not have");
        }
        let below = match u64_at(bytes, 8) {
            Some(0) => None,
            Some(_) => Some(below(bytes)?),
            None => return Err("its header is cut short"),
        };
        let again = geometry.header(below.as_ref(), dirty);
        if bytes.get(..again.len()) != Some(again.as_slice()) {
            return Err("its header is not one that this program writes");
        }
        Ok(Self {
            geometry,
            below,
            dirty,
        })
    }
}

/// The file below, as the header names it.
fn below(bytes: &[u8]) -> Result<Below, &'static str> {
    const WHY: &str = "its header names the file below in another way than ours";
    let at = u64_at(bytes, 8).and_then(|at| usize::try_from(at).ok());
    let length = u32_at(bytes, 16).and_then(|l| usize::try_from(l).ok());
    let (Some(at), Some(length)) = (at, length) else {
        return Err(WHY);
    };
    let name = at.checked_add(length).and_then(|end| bytes.get(at..end));
    let name = name.and_then(|n| std::str::from_utf8(n).ok()).ok_or(WHY)?;
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.bytes().all(allowed) {
        return Err(WHY);
    }
    let format = match bytes.get(120..).unwrap_or_default() {
        rest if rest.starts_with(b"raw") => "raw",
        rest if rest.starts_with(b"qcow2") => "qcow2",
        _ => return Err(WHY),
    };
    Ok(Below {
        name: name.to_owned(),
        format,
    })
}

/// Four bytes, big-endian.
pub(crate) fn u32_at(bytes: &[u8], at: u64) -> Option<u32> {
    let at = usize::try_from(at).ok()?;
    let four = bytes.get(at..at.checked_add(4)?)?;
    four.try_into().ok().map(u32::from_be_bytes)
}

/// Eight bytes, big-endian.
pub(crate) fn u64_at(bytes: &[u8], at: u64) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let eight = bytes.get(at..at.checked_add(8)?)?;
    eight.try_into().ok().map(u64::from_be_bytes)
}

/// What a layer holds of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub(crate) struct Entry {
    /// Where its data lies in the file; 0 if it has no place there.
    pub(crate) place: u64,
    /// Subclusters whose data lies there, lowest bit first.
    pub(crate) stored: u32,
    /// Subclusters that read as zeroes; none of the others.
    pub(crate) zero: u32,
}

impl Entry {
    /// As in the file.
    pub(crate) fn bytes(self) -> [u8; 16] {
        let place = if self.place == 0 {
            0
        } else {
            self.place | ONCE
        };
        let bits = u64::from(self.stored) | u64::from(self.zero) << 32;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&place.to_be_bytes());
        bytes[8..].copy_from_slice(&bits.to_be_bytes());
        bytes
    }

    /// From the file's two words; `None` if such an entry can't be.
    pub(crate) fn from_words(place: u64, bits: u64, geometry: &Geometry) -> Option<Self> {
        let stored = (bits & u64::from(u32::MAX)) as u32;
        let zero = (bits >> 32) as u32;
        let entry = Self {
            place: place & PLACE,
            stored,
            zero,
        };
        let right = if entry.place == 0 {
            place == 0 && stored == 0
        } else {
            place == entry.place | ONCE
                && entry.place.is_multiple_of(CLUSTER)
                && (geometry.data_at..geometry.most()).contains(&entry.place)
        };
        (right && stored & zero == 0).then_some(entry)
    }

    /// From the file.
    pub(crate) fn from_bytes(bytes: &[u8], geometry: &Geometry) -> Option<Self> {
        Self::from_words(u64_at(bytes, 0)?, u64_at(bytes, 8)?, geometry)
    }

    /// What a subcluster is.
    pub(crate) fn kind(self, subcluster: u32) -> Kind {
        if self.stored >> subcluster & 1 == 1 {
            Kind::Stored
        } else if self.zero >> subcluster & 1 == 1 {
            Kind::Zero
        } else {
            Kind::Below
        }
    }

    /// The kind of a subcluster, and the first after it that is another (32 at most).
    pub(crate) fn run(self, subcluster: u32) -> (Kind, u32) {
        let kind = self.kind(subcluster);
        let same = match kind {
            Kind::Stored => self.stored,
            Kind::Zero => self.zero,
            Kind::Below => !(self.stored | self.zero),
        };
        let length = (!(same >> subcluster)).trailing_zeros();
        (kind, (subcluster + length).min(32))
    }
}

/// Bits of a run of subclusters.
pub(crate) fn bits(subclusters: Range<u32>) -> u32 {
    let upto = |n: u32| if n >= 32 { u32::MAX } else { (1 << n) - 1 };
    upto(subclusters.end) & !upto(subclusters.start)
}

/// Where the content of a subcluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In this layer.
    Stored,
    /// Zeroes.
    Zero,
    /// In the layer below; zeroes if there is none.
    Below,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_has_room_for_everything_and_no_overlap() {
        for size in [
            512,
            CLUSTER,
            CLUSTER + 512,
            1 << 30,
            (1 << 30) + 512,
            100 << 30,
            16 << 40,
            MAX_SIZE,
        ] {
            let g = Geometry::new(size).unwrap();
            assert!(g.l1().len() as u64 <= g.refcounts_at - g.l1_at, "{size}");
            assert!(g.refcount_table().len() as u64 <= CLUSTER, "{size}");
            assert!(g.refcount_at(g.most() - 1) + 2 <= g.l2_at, "{size}");
            assert!(g.entry_at(g.clusters - 1) + ENTRY <= g.data_at, "{size}");
        }
        for size in [0, 511, 513, MAX_SIZE + 512, u64::MAX] {
            assert!(Geometry::new(size).is_none(), "{size}");
        }
    }

    #[test]
    fn headers_come_back_and_a_changed_byte_is_seen() {
        let g = Geometry::new(100 << 30).unwrap();
        let names = [
            None,
            Some(("8f0e3a9c-2f0e-4a51-9d8c-0a1b2c3d4e5f.raw", "raw")),
            Some(("8f0e3a9c-2f0e-4a51-9d8c-0a1b2c3d4e5f.qcow2", "qcow2")),
        ];
        for (below, dirty) in names.into_iter().flat_map(|n| [(n, false), (n, true)]) {
            let below = below.map(|(name, format)| Below {
                name: name.to_owned(),
                format,
            });
            let mut bytes = g.header(below.as_ref(), dirty);
            bytes.resize(Header::READ, 0);
            let header = Header::parse(&bytes).unwrap();
            assert_eq!(
                (header.geometry, &header.below, header.dirty),
                (g, &below, dirty)
            );
            for at in 0..512 {
                let mut changed = bytes.clone();
                changed[at] ^= 0x40;
                if let Ok(other) = Header::parse(&changed) {
                    assert_ne!(other, header, "byte {at}");
                }
            }
        }
        for cut in 0..200 {
            let mut bytes = g.header(None, false);
            bytes.truncate(cut);
            assert!(Header::parse(&bytes).is_err());
        }
    }

    #[test]
    fn runs_of_an_entry_cover_it() {
        let entry = Entry {
            place: 0,
            stored: 0b0110,
            zero: 1 << 31,
        };
        assert_eq!(entry.run(0), (Kind::Below, 1));
        assert_eq!(entry.run(1), (Kind::Stored, 3));
        assert_eq!(entry.run(3), (Kind::Below, 31));
        assert_eq!(entry.run(31), (Kind::Zero, 32));
        let all = Entry {
            zero: u32::MAX,
            ..Entry::default()
        };
        assert_eq!(all.run(0), (Kind::Zero, 32));
        assert_eq!((bits(0..32), bits(1..3), bits(5..5)), (u32::MAX, 6, 0));
    }
}
