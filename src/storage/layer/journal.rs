//! The journal beside a layer's file: changes of table entries that are not in the tables
//! yet. It makes acknowledged writes outlive the process, not the machine: records go to the
//! page cache, are never synced, and count only for the boot of the kernel that wrote them.
//!
//! A header of 64 bytes (magic, boot id, generation, region, checksum), then two regions of
//! [`RECORDS`] records of 32 bytes: cluster, entry, low half of the generation, checksum. One
//! region is in use; a restart writes what still counts to the other and then the header.

use std::io;

use super::format::{Entry, Geometry, u32_at, u64_at};
use super::medium::Medium;

/// The id that a kernel gives itself when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Boot(pub(crate) [u8; 16]);

/// A changed entry.
pub(crate) type Change = (u64, Entry);

/// Records of a region.
pub(crate) const RECORDS: u64 = 64 * 1024;
const RECORD: u64 = 32;
const HEADER: usize = 64;
const MAGIC: &[u8; 8] = b"DLSLYJ02";
/// Where the first region begins.
const REGIONS_AT: u64 = 4096;

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal<M> {
    file: M,
    boot: Boot,
    generation: u64,
    region: u64,
    used: u64,
}

fn place(region: u64, record: u64) -> u64 {
    REGIONS_AT + (region * RECORDS + record) * RECORD
}

fn encode(change: &Change, generation: u64, into: &mut Vec<u8>) {
    let from = into.len();
    into.extend(change.0.to_be_bytes());
    into.extend(change.1.bytes());
    into.extend(&generation.to_be_bytes()[4..]);
    let sum = crc32c::crc32c(&into[from..]);
    into.extend(sum.to_be_bytes());
}

impl<M: Medium> Journal<M> {
    /// Begins a journal in a file, whatever that held; the first restart makes it count.
    pub(crate) fn new(file: M, boot: Boot) -> Self {
        let mut head = [0; HEADER];
        // A generation beyond any that the file's records may have.
        let before = match file.read(0, &mut head) {
            Ok(()) => u64_at(&head, 24).unwrap_or(0),
            Err(_) => 0,
        };
        Self {
            file,
            boot,
            generation: before.wrapping_add(1),
            region: 0,
            used: RECORDS,
        }
    }

    /// The changes in a file, oldest first: none if it is of another boot, or no journal.
    pub(crate) fn replay(file: &M, boot: Boot, geometry: &Geometry) -> io::Result<Vec<Change>> {
        let mut head = [0; HEADER];
        file.read(0, &mut head)?;
        let sum = crc32c::crc32c(&head[..HEADER - 4]);
        let region = u64_at(&head, 32).unwrap_or(0);
        if &head[..8] != MAGIC
            || head[8..24] != boot.0
            || region > 1
            || u32_at(&head, HEADER as u64 - 4) != Some(sum)
        {
            return Ok(Vec::new());
        }
        let generation = u64_at(&head, 24).unwrap_or(0) & u64::from(u32::MAX);
        let mut changes = Vec::new();
        let mut part = vec![0; 64 * 1024];
        let mut record = 0;
        while record < RECORDS {
            file.read(place(region, record), &mut part)?;
            for bytes in part.chunks_exact(32) {
                let right = u32_at(bytes, 28) == Some(crc32c::crc32c(&bytes[..28]))
                    && u32_at(bytes, 24).map(u64::from) == Some(generation);
                let cluster = u64_at(bytes, 0).filter(|c| *c < geometry.clusters);
                let entry = Entry::from_bytes(&bytes[8..24], geometry);
                match (cluster, entry) {
                    (Some(cluster), Some(entry)) if right => changes.push((cluster, entry)),
                    _ => return Ok(changes),
                }
            }
            record += part.len() as u64 / RECORD;
        }
        Ok(changes)
    }

    /// Adds changes; `all` gives every change that counts, when the region is full.
    ///
    /// After an error none of them counts, except that a crash right then may bring back some.
    pub(crate) fn append(
        &mut self,
        changes: &[Change],
        all: impl FnOnce() -> Vec<Change>,
    ) -> io::Result<()> {
        if self.used + changes.len() as u64 > RECORDS {
            self.restart(&all())?;
        }
        let mut bytes = Vec::with_capacity(changes.len() * 32);
        for change in changes {
            encode(change, self.generation, &mut bytes);
        }
        self.file.write(place(self.region, self.used), &bytes)?;
        self.used += changes.len() as u64;
        Ok(())
    }

    /// Drops all records but these. After an error everything counts that did before.
    pub(crate) fn restart(&mut self, live: &[Change]) -> io::Result<()> {
        let (region, generation) = (1 - self.region.min(1), self.generation.wrapping_add(1));
        if live.len() as u64 > RECORDS {
            return Err(io::Error::other("more changes than a journal holds"));
        }
        let mut bytes = Vec::with_capacity(live.len() * 32);
        for change in live {
            encode(change, generation, &mut bytes);
        }
        if !bytes.is_empty() {
            self.file.write(place(region, 0), &bytes)?;
        }
        let mut head = Vec::with_capacity(HEADER);
        head.extend(MAGIC);
        head.extend(self.boot.0);
        head.extend(generation.to_be_bytes());
        head.extend(region.to_be_bytes());
        head.resize(HEADER - 4, 0);
        head.extend(crc32c::crc32c(&head).to_be_bytes());
        self.file.write(0, &head)?;
        self.region = region;
        self.generation = generation;
        self.used = live.len() as u64;
        Ok(())
    }
}
