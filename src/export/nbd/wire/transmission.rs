//! The transmission phase's bytes: requests, simple replies, chunks of structured replies.
//! Replies are written into buffers of the caller's: the hot path allocates nothing.

use super::Reader;

/// Before each request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before each simple reply.
pub const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// Before each chunk.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Bytes of a request without its payload.
pub const REQUEST_HEADER: usize = 28;
/// Bytes of a simple reply without its payload.
pub const SIMPLE_HEADER: usize = 16;
/// Bytes of a chunk's header.
pub const CHUNK_HEADER: usize = 20;
/// Bytes before the data of an OFFSET_DATA chunk.
pub const DATA_CHUNK_HEADER: usize = CHUNK_HEADER + 8;
/// Bytes of an OFFSET_HOLE chunk.
pub const HOLE_CHUNK: usize = CHUNK_HEADER + 12;

/// Command flag: on stable storage before the reply.
pub const FLAG_FUA: u16 = 1;
/// Command flag of WRITE_ZEROES: no hole.
pub const FLAG_NO_HOLE: u16 = 2;
/// Command flag of READ: one chunk.
pub const FLAG_DF: u16 = 4;
/// Command flag of BLOCK_STATUS: one extent.
pub const FLAG_REQ_ONE: u16 = 8;
/// Command flag of WRITE_ZEROES: fail rather than write out zeroes.
pub const FLAG_FAST_ZERO: u16 = 16;

/// The id of the one metadata context that there is, `base:allocation`.
pub const ALLOCATION_ID: u32 = 1;

/// What `base:allocation` tells of a stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// May hold data.
    Data,
    /// Stored, reads as zeroes.
    Zero,
    /// Not stored, reads as zeroes.
    Hole,
}

impl Allocation {
    /// Status flags.
    #[must_use]
    pub const fn flags(self) -> u32 {
        match self {
            Self::Data => 0,
            Self::Zero => 2,
            Self::Hole => 3,
        }
    }
}

/// A request as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Command flags.
    pub flags: u16,
    /// The command's number.
    pub command: u16,
    /// Chosen by the client, sent back as it is.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub length: u32,
}

impl Request {
    /// Reads it; `None` if the magic number is wrong: then all that follows is noise.
    #[must_use]
    pub fn parse(bytes: &[u8; REQUEST_HEADER]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        if reader.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: reader.u16()?,
            command: reader.u16()?,
            cookie: reader.u64()?,
            offset: reader.u64()?,
            length: reader.u32()?,
        })
    }

    /// Its bytes, for clients.
    #[must_use]
    pub fn to_bytes(self) -> [u8; REQUEST_HEADER] {
        let mut bytes = [0; REQUEST_HEADER];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// The protocol's error numbers ("Error values").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Errno {
    /// EPERM: the disk is read-only.
    NotPermitted,
    /// EIO.
    Io,
    /// EINVAL.
    Invalid,
    /// ENOSPC.
    NoSpace,
    /// EOVERFLOW: too long for one chunk.
    Overflow,
    /// ENOTSUP: not fast.
    NotSupported,
    /// ESHUTDOWN.
    Shutdown,
}

impl Errno {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
        }
    }
}

/// Types of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkType {
    None = 0,
    OffsetData = 1,
    OffsetHole = 2,
    BlockStatus = 5,
    Error = 0x8001,
}

/// Whether other chunks of the same reply follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// More follow.
    No,
    /// It ends the reply.
    Yes,
}

/// Header of a simple reply; `None`: success.
#[must_use]
pub fn simple(cookie: u64, error: Option<Errno>) -> [u8; SIMPLE_HEADER] {
    let mut bytes = [0; SIMPLE_HEADER];
    bytes[..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.map_or(0, Errno::number).to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

fn chunk(cookie: u64, kind: ChunkType, last: Last, length: u32) -> [u8; CHUNK_HEADER] {
    let mut bytes = [0; CHUNK_HEADER];
    bytes[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&u16::from(last == Last::Yes).to_be_bytes());
    bytes[6..8].copy_from_slice(&(kind as u16).to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// What goes before the `length` bytes of data of an OFFSET_DATA chunk.
#[must_use]
pub fn data_chunk(cookie: u64, offset: u64, length: u32, last: Last) -> [u8; DATA_CHUNK_HEADER] {
    let mut bytes = [0; DATA_CHUNK_HEADER];
    let head = chunk(
        cookie,
        ChunkType::OffsetData,
        last,
        length.saturating_add(8),
    );
    bytes[..CHUNK_HEADER].copy_from_slice(&head);
    bytes[CHUNK_HEADER..].copy_from_slice(&offset.to_be_bytes());
    bytes
}

/// A whole OFFSET_HOLE chunk.
#[must_use]
pub fn hole_chunk(cookie: u64, offset: u64, length: u32, last: Last) -> [u8; HOLE_CHUNK] {
    let mut bytes = [0; HOLE_CHUNK];
    let head = chunk(cookie, ChunkType::OffsetHole, last, 12);
    bytes[..CHUNK_HEADER].copy_from_slice(&head);
    bytes[CHUNK_HEADER..CHUNK_HEADER + 8].copy_from_slice(&offset.to_be_bytes());
    bytes[CHUNK_HEADER + 8..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// A whole NONE chunk that ends a reply: success without content.
#[must_use]
pub fn none_chunk(cookie: u64) -> [u8; CHUNK_HEADER] {
    chunk(cookie, ChunkType::None, Last::Yes, 0)
}

/// A whole ERROR chunk that ends a reply, its text cut at 200 bytes.
pub fn error_chunk(cookie: u64, error: Errno, text: &str, out: &mut Vec<u8>) {
    let text = &text.as_bytes()[..text.floor_char_boundary(200)];
    let length = u16::try_from(text.len()).unwrap_or(0);
    let head = chunk(cookie, ChunkType::Error, Last::Yes, 6 + u32::from(length));
    out.extend_from_slice(&head);
    out.extend_from_slice(&error.number().to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text);
}

/// A whole BLOCK_STATUS chunk that ends a reply. Stretches (bytes and kind) are described up
/// to `limit` bytes, neighbours of one kind as one.
pub fn status_chunk(
    cookie: u64,
    stretches: impl Iterator<Item = (u64, Allocation)>,
    limit: u32,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    out.extend_from_slice(&chunk(cookie, ChunkType::BlockStatus, Last::Yes, 0));
    out.extend_from_slice(&ALLOCATION_ID.to_be_bytes());
    let mut write = |length: u32, kind: Allocation| {
        if length > 0 {
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&kind.flags().to_be_bytes());
        }
    };
    let mut left = limit;
    let mut run = (0_u32, Allocation::Data);
    for (length, kind) in stretches {
        // A descriptor has 32 bits, a stretch 64; `limit` has 32 too.
        let length = u32::try_from(length).unwrap_or(u32::MAX).min(left);
        left -= length;
        if kind == run.1 {
            run.0 += length;
        } else {
            write(run.0, run.1);
            run = (length, kind);
        }
    }
    write(run.0, run.1);
    let length = u32::try_from(out.len() - start - CHUNK_HEADER).unwrap_or(4);
    out[start + 16..start + CHUNK_HEADER].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn descriptors_end_at_the_limit_and_join_neighbours() {
        let mut out = vec![1, 2, 3];
        let stretches = [
            (10, Allocation::Data),
            (20, Allocation::Data),
            (1 << 40, Allocation::Hole),
            (5, Allocation::Zero),
        ];
        status_chunk(7, stretches.into_iter(), u32::MAX, &mut out);
        let out = out.split_off(3);
        assert_eq!(out.len(), CHUNK_HEADER + 4 + 16);
        assert_eq!(out[24..32], [0, 0, 0, 30, 0, 0, 0, 0]);
        assert_eq!(out[32..36], (u32::MAX - 30).to_be_bytes());
        assert_eq!(out[36..40], [0, 0, 0, 3]);
    }

    #[test]
    fn an_error_text_is_cut() {
        let mut out = Vec::new();
        error_chunk(1, Errno::Io, &"日".repeat(500), &mut out);
        assert_eq!(out.len(), CHUNK_HEADER + 6 + 198);
    }

    proptest! {
        #[test]
        fn requests_come_back(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
            let request = Request { flags, command, cookie, offset, length };
            prop_assert_eq!(Request::parse(&request.to_bytes()), Some(request));
        }

        #[test]
        fn only_the_magic_number_makes_a_request(bytes: [u8; REQUEST_HEADER]) {
            let magic = bytes[..4] == REQUEST_MAGIC.to_be_bytes();
            prop_assert_eq!(Request::parse(&bytes).is_some(), magic);
        }
    }
}
