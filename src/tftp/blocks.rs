//! The bytes of a transfer, laid out as the packets they become.
//!
//! A stretch of the file is read straight into a row of DATA packets, headers between the
//! payloads, so that any run of blocks is one slice to send: nothing is copied or allocated
//! per packet. Reading is blocking work and goes to the pool for that, a stretch at a time.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::sys::uio::preadv;

use super::room::Body;
use super::wire::{DATA_HEADER, data_header};

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
    /// `bytes` is about how much is read at a time; a whole window is in any case.
    pub(super) fn new(body: Body, blksize: u16, windowsize: u16, bytes: usize) -> Self {
        let size = body.size();
        let blksize = usize::from(blksize.max(1));
        let stretch = (bytes / blksize) as u64;
        Self {
            origin: match body {
                Body::Memory(bytes) => Origin::Memory(bytes),
                Body::File { file, .. } => Origin::File(Arc::new(file)),
            },
            size,
            blksize,
            last: size / blksize as u64 + 1,
            stretch: stretch.clamp(1, MOST_BLOCKS).max(u64::from(windowsize)),
            packets: Vec::new(),
            first: 1,
            count: 0,
        }
    }

    /// Bytes of a full packet.
    pub(super) const fn packet(&self) -> usize {
        self.blksize + DATA_HEADER
    }

    /// Sees to it that [`Blocks::row`] has these blocks.
    ///
    /// # Errors
    /// When the file can't be read, or has become shorter.
    pub(super) async fn load(&mut self, first: u64, count: u16) -> io::Result<()> {
        let end = first + u64::from(count);
        if first >= self.first && end <= self.first + self.count {
            return Ok(());
        }
        let blocks = self.stretch.min((self.last + 1).saturating_sub(first));
        let offset = (first - 1) * self.blksize as u64;
        let bytes = (blocks * self.blksize as u64).min(self.size - offset);
        // A block has at most 64 KiB and a stretch 1024 of them.
        let (blocks_n, bytes) = (narrow(blocks)?, narrow(bytes)?);
        let mut packets = std::mem::take(&mut self.packets);
        packets.resize(blocks_n * DATA_HEADER + bytes, 0);
        for (index, packet) in packets.chunks_mut(self.packet()).enumerate() {
            let header = data_header(ring(first + index as u64));
            for (to, from) in packet.iter_mut().zip(header) {
                *to = from;
            }
        }
        let blksize = self.blksize;
        self.packets = match &self.origin {
            Origin::Memory(all) => {
                let from = narrow(offset)?;
                let mut source = all.get(from..from + bytes).unwrap_or_default();
                for packet in packets.chunks_mut(blksize + DATA_HEADER) {
                    let (_, payload) = packet.split_at_mut(DATA_HEADER);
                    let (now, rest) = source.split_at(payload.len().min(source.len()));
                    payload.copy_from_slice(now);
                    source = rest;
                }
                packets
            }
            Origin::File(file) => {
                let file = Arc::clone(file);
                tokio::task::spawn_blocking(move || {
                    fill(&file, offset, blksize, &mut packets).map(|()| packets)
                })
                .await
                .map_err(io::Error::other)??
            }
        };
        self.first = first;
        self.count = blocks;
        Ok(())
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

/// Block numbers on the wire are the low 16 bits: 65535 is followed by 0.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the ring of block numbers is what the low 16 bits are"
)]
const fn ring(block: u64) -> u16 {
    block as u16
}

fn narrow(n: u64) -> io::Result<usize> {
    usize::try_from(n).map_err(io::Error::other)
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

    async fn check(body: Body, all: &[u8], blksize: u16, window: u16, bytes: usize) {
        let mut blocks = Blocks::new(body, blksize, window, bytes);
        let step = usize::from(blksize);
        let last = all.len() / step + 1;
        let mut first = 1;
        while first <= last {
            let count = usize::from(window).min(last - first + 1);
            let short = u16::try_from(count).unwrap();
            blocks.load(first as u64, short).await.unwrap();
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

    #[tokio::test]
    async fn rows_hold_the_file() {
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
                check(Body::File { file, size }, &all, blksize, window, bytes).await;
                let body = Body::Memory(all.clone().into());
                check(body, &all, blksize, window, bytes).await;
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content(5000)).unwrap();
        file.set_len(3000).unwrap();
        let mut blocks = Blocks::new(Body::File { file, size: 5000 }, 1000, 2, 0);
        blocks.load(1, 2).await.unwrap();
        assert!(blocks.load(3, 2).await.is_err());
    }
}
