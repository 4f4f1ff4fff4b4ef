//! The bytes of a transfer, laid out as the packets they become.
//!
//! A stretch of the file is read straight into a row of DATA packets, headers between the
//! payloads, so that any run of blocks is one slice to send: nothing is copied or allocated
//! per packet. What is in memory is read at once; an [`Errand`] reads what is not, on a
//! thread that may wait for a disk.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::sys::uio::preadv;

use super::room::Body;
use super::wire::{DATA_HEADER, data_header};
use crate::storage::read_at_hand;

/// Most blocks of a stretch (the system takes 1024 buffers in one read).
const MOST_BLOCKS: u64 = 1024;

#[derive(Debug)]
enum Origin {
    Memory(bytes::Bytes),
    File(Arc<File>),
}

/// A window onto the file.
#[derive(Debug)]
pub(super) struct Blocks {
    origin: Origin,
    size: u64,
    blksize: usize,
    /// Number of the final block.
    last: u64,
    /// Blocks read at a time.
    stretch: u64,
    /// Packets of blocks `first .. first + count`.
    packets: Vec<u8>,
    first: u64,
    count: u64,
}

impl Blocks {
    /// `bytes` is about how much is read at a time: as many whole windows as fit, one at least.
    pub(super) fn new(body: Body, blksize: u16, windowsize: u16, bytes: usize) -> Self {
        let size = body.size();
        let blksize = usize::from(blksize.max(1));
        let window = u64::from(windowsize.max(1));
        let stretch = ((bytes / blksize) as u64).min(MOST_BLOCKS);
        Self {
            origin: match body {
                Body::Memory(bytes) => Origin::Memory(bytes),
                Body::File { file, .. } => Origin::File(Arc::new(file)),
            },
            size,
            blksize,
            last: size / blksize as u64 + 1,
            stretch: (stretch / window * window).max(window),
            packets: Vec::new(),
            first: 1,
            count: 0,
        }
    }

    /// Bytes of a full packet.
    pub(super) const fn packet(&self) -> usize {
        self.blksize + DATA_HEADER
    }

    fn has(&self, first: u64, count: u16) -> bool {
        first >= self.first && first + u64::from(count) <= self.first + self.count
    }

    /// Sees to it that [`Blocks::row`] has these blocks, if that takes no waiting; `false` if it
    /// does, or if the file has become shorter: then an [`Errand`] tells. `scratch` is memory.
    pub(super) fn load(&mut self, first: u64, count: u16, scratch: &mut Vec<u8>) -> bool {
        if self.has(first, count) {
            return true;
        }
        let Stretch {
            offset,
            blocks,
            bytes,
        } = self.stretch_at(first);
        let Ok(from) = usize::try_from(offset) else {
            return false;
        };
        let source = match &self.origin {
            Origin::Memory(all) => all.get(from..from + bytes),
            Origin::File(file) => {
                scratch.resize(bytes, 0);
                (bytes == 0 || read_at_hand(file, scratch, offset) == Some(bytes))
                    .then_some(scratch.as_slice())
            }
        };
        let Some(mut source) = source else {
            return false;
        };
        lay_out(&mut self.packets, first, (blocks, bytes), self.blksize);
        for packet in self.packets.chunks_mut(self.blksize + DATA_HEADER) {
            let (_, payload) = packet.split_at_mut(DATA_HEADER);
            let (now, rest) = source.split_at(payload.len().min(source.len()));
            payload.copy_from_slice(now);
            source = rest;
        }
        self.first = first;
        self.count = self.packets.len().div_ceil(self.packet()) as u64;
        true
    }

    /// The stretch that begins with a block.
    fn stretch_at(&self, first: u64) -> Stretch {
        let blocks = self.stretch.min((self.last + 1).saturating_sub(first));
        let offset = (first - 1) * self.blksize as u64;
        let left = self.size.saturating_sub(offset);
        let bytes = (blocks * self.blksize as u64).min(left);
        // A stretch has at most 1024 blocks of 64 KiB.
        let narrow = |n: u64| usize::try_from(n).unwrap_or(0);
        Stretch {
            offset,
            blocks: narrow(blocks),
            bytes: narrow(bytes),
        }
    }

    /// What reads the stretch that begins with this block; [`Blocks::put`] takes its result.
    pub(super) fn errand(&mut self, first: u64) -> Errand {
        let stretch = self.stretch_at(first);
        self.count = 0;
        Errand {
            file: match &self.origin {
                Origin::File(file) => Some(Arc::clone(file)),
                Origin::Memory(_) => None,
            },
            first,
            stretch,
            blksize: self.blksize,
            packets: std::mem::take(&mut self.packets),
        }
    }

    /// What an [`Errand`] has read.
    pub(super) fn put(&mut self, first: u64, packets: Vec<u8>) {
        self.packets = packets;
        self.first = first;
        self.count = self.packets.len().div_ceil(self.packet()) as u64;
    }

    /// The packets of these blocks, one behind the other; all but the file's last one are
    /// [`Blocks::packet`] bytes long. They must have been loaded.
    pub(super) fn row(&self, first: u64, count: u16) -> &[u8] {
        let skip = usize::try_from(first - self.first).unwrap_or(usize::MAX);
        let from = skip.saturating_mul(self.packet());
        let to = from + usize::from(count) * self.packet();
        self.packets
            .get(from..to.min(self.packets.len()))
            .unwrap_or_default()
    }
}

/// So many bytes from somewhere on, and the blocks that they make: one more, maybe empty, at the
/// file's end.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    offset: u64,
    blocks: usize,
    bytes: usize,
}

/// A stretch to be read on a thread that may wait.
#[derive(Debug)]
pub(super) struct Errand {
    file: Option<Arc<File>>,
    first: u64,
    stretch: Stretch,
    blksize: usize,
    packets: Vec<u8>,
}

impl Errand {
    /// Reads; the row of packets.
    ///
    /// # Errors
    /// When the file can't be read, or has become shorter.
    pub(super) fn run(mut self) -> io::Result<Vec<u8>> {
        let Some(file) = self.file else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let Stretch {
            offset,
            blocks,
            bytes,
        } = self.stretch;
        lay_out(&mut self.packets, self.first, (blocks, bytes), self.blksize);
        fill(&file, offset, self.blksize, &mut self.packets)?;
        Ok(self.packets)
    }
}

/// Makes a row of so many packets, with their headers, for so many bytes from a block on.
fn lay_out(packets: &mut Vec<u8>, first: u64, (blocks, bytes): (usize, usize), blksize: usize) {
    let row = blksize + DATA_HEADER;
    packets.resize(blocks * DATA_HEADER + bytes, 0);
    for (index, packet) in packets.chunks_mut(row).enumerate() {
        let header = data_header(ring(first + index as u64));
        for (to, from) in packet.iter_mut().zip(header) {
            *to = from;
        }
    }
}

/// Block numbers on the wire are the low 16 bits: 65535 is followed by 0.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the ring of block numbers is what the low 16 bits are"
)]
const fn ring(block: u64) -> u16 {
    block as u16
}

/// Reads into the payloads of a row of packets.
fn fill(file: &File, offset: u64, blksize: usize, packets: &mut [u8]) -> io::Result<()> {
    let row = blksize + DATA_HEADER;
    let want: usize = packets.len() - packets.len().div_ceil(row) * DATA_HEADER;
    let start = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let mut payloads: Vec<IoSliceMut<'_>> = packets
        .chunks_mut(row)
        .map(|p| IoSliceMut::new(p.split_at_mut(DATA_HEADER).1))
        .collect();
    if preadv(file, &mut payloads, start)? == want {
        return Ok(());
    }
    // Interrupted, or the file has become shorter: block by block tells which.
    let mut at = offset;
    for payload in &mut payloads {
        file.read_exact_at(payload, at)?;
        at += payload.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn content(size: usize) -> Vec<u8> {
        (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect()
    }

    /// `waits`: as if nothing were in memory.
    fn check(body: Body, all: &[u8], (blksize, window): (u16, u16), bytes: usize, waits: bool) {
        let mut blocks = Blocks::new(body, blksize, window, bytes);
        let mut scratch = Vec::new();
        let step = usize::from(blksize);
        let last = all.len() / step + 1;
        let mut first = 1;
        while first <= last {
            let count = usize::from(window).min(last - first + 1);
            let short = u16::try_from(count).unwrap();
            if waits && !blocks.has(first as u64, short) {
                let row = blocks.errand(first as u64).run().unwrap();
                blocks.put(first as u64, row);
            }
            assert!(blocks.load(first as u64, short, &mut scratch));
            let row = blocks.row(first as u64, short);
            let mut packets = row.chunks(blocks.packet());
            for block in first..first + count {
                let packet = packets.next().unwrap();
                assert_eq!(packet[..4], data_header(ring(block as u64)));
                let from = (block - 1) * step;
                assert_eq!(packet[4..], all[from..(from + step).min(all.len())]);
            }
            assert!(packets.next().is_none());
            first += count;
        }
    }

    #[test]
    fn rows_hold_the_file() {
        for size in [0, 1, 511, 512, 513, 1024, 100_000] {
            let all = content(size);
            for (blksize, window, bytes) in [
                (512, 1, 0),
                (512, 4, 3000),
                (8, 64, 1 << 16),
                (1468, 16, 1 << 16),
            ] {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&all).unwrap();
                let size = all.len() as u64;
                let terms = (blksize, window);
                for waits in [false, true] {
                    let file = file.try_clone().unwrap();
                    check(Body::File { file, size }, &all, terms, bytes, waits);
                }
                let body = Body::Memory(all.clone().into());
                check(body, &all, terms, bytes, false);
            }
        }
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content(5000)).unwrap();
        file.set_len(3000).unwrap();
        let mut blocks = Blocks::new(Body::File { file, size: 5000 }, 1000, 2, 0);
        let mut scratch = Vec::new();
        assert!(blocks.load(1, 2, &mut scratch));
        assert!(!blocks.load(3, 2, &mut scratch));
        assert!(blocks.errand(3).run().is_err());
    }
}
