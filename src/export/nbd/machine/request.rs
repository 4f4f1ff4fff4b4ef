//! What a request may ask of a disk: a pure table from the request as it came to what is to
//! be done, or to the protocol's error. It touches no disk.

use super::super::wire::transmission::{
    Errno, FLAG_DF, FLAG_FAST_ZERO, FLAG_FUA, FLAG_NO_HOLE, FLAG_REQ_ONE, Last, Request,
};
use super::negotiation::Contexts;

/// Most bytes of a READ or WRITE, 32 MiB: what clients may ask for without being told
/// ("Block sizes").
pub const LONGEST_REQUEST: u32 = 32 * 1024 * 1024;
/// Most bytes of a READ that must be answered in one chunk or in a simple reply and is held in
/// memory whole.
pub const LONGEST_WHOLE_READ: u32 = 2 * 1024 * 1024;

/// What the table needs to know of the disk and the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Bytes.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// READ is answered in chunks.
    pub structured: bool,
    /// What BLOCK_STATUS may tell.
    pub contexts: Contexts,
}

/// How far a write must have got when it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stable {
    /// It is the next flush's.
    Later,
    /// On stable storage (FUA).
    Now,
}

/// What is to be done. Offsets and lengths lie within the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Read, in one piece or in chunks.
    Read {
        /// `Yes`: the reply has one chunk (or is simple).
        whole: Last,
    },
    /// Write the payload.
    Write(Stable),
    /// Flush.
    Flush,
    /// Discard.
    Trim(Stable),
    /// Write zeroes.
    Zeroes {
        /// Keep the space.
        keep_space: bool,
        /// How far.
        stable: Stable,
    },
    /// Bring into memory.
    Cache,
    /// Tell what lies there; at most that many stretches.
    Status {
        /// How many.
        most: usize,
    },
    /// Answer what is outstanding, then close.
    Disconnect,
}

/// What follows the request's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// Nothing.
    None,
    /// As many bytes as the request's length says; to be taken also when it is refused.
    Length,
}

/// Why a request is refused; a metric label and the reply's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unlawful {
    /// A command that we do not know.
    #[error("this server does not know the command")]
    Command,
    /// A flag that does not go with the command.
    #[error("a flag does not go with the command")]
    Flags,
    /// Length or offset make no sense for the command.
    #[error("offset or length make no sense for the command")]
    Shape,
    /// More than 32 MiB.
    #[error("more than 32 MiB at once")]
    TooLong,
    /// Reads past the end.
    #[error("past the end of the disk")]
    ReadBeyond,
    /// Writes past the end.
    #[error("past the end of the disk")]
    WriteBeyond,
    /// A write to a disk that is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// No metadata was agreed on.
    #[error("no metadata context was agreed on")]
    NoContext,
    /// Too long for one chunk.
    #[error("too long for one chunk")]
    OneChunk,
    /// Zeroes that must not be a hole have to be written out.
    #[error("zeroes without a hole are not fast")]
    NotFast,
}

impl Unlawful {
    /// The protocol's error.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::Command
            | Self::Flags
            | Self::Shape
            | Self::TooLong
            | Self::ReadBeyond
            | Self::NoContext => Errno::Invalid,
            Self::WriteBeyond => Errno::NoSpace,
            Self::ReadOnly => Errno::NotPermitted,
            Self::OneChunk => Errno::Overflow,
            Self::NotFast => Errno::NotSupported,
        }
    }
}

/// What follows a request's header: known before the request is judged, so that the stream
/// stays in step whatever is said of it.
#[must_use]
pub const fn payload(request: &Request) -> Payload {
    match request.command {
        1 => Payload::Length,
        _ => Payload::None,
    }
}

/// Judges a request.
///
/// # Errors
/// Why it is refused.
pub fn judge(request: &Request, disk: &Disk) -> Result<Act, Unlawful> {
    let (allowed, writes) = match request.command {
        0 if disk.structured => (FLAG_DF, false),
        // DF is for structured replies only.
        0 => (0, false),
        1 => (FLAG_FUA, true),
        // Disconnect: whatever else it says.
        2 => return Ok(Act::Disconnect),
        // FUA has no meaning here and is sent by some clients with every command.
        3 | 5 => (FLAG_FUA, false),
        4 => (FLAG_FUA, true),
        6 => (FLAG_FUA | FLAG_NO_HOLE | FLAG_FAST_ZERO, true),
        7 => (FLAG_REQ_ONE | FLAG_FUA, false),
        _ => return Err(Unlawful::Command),
    };
    // FUA is no error with commands that do not write ("Command flags").
    if request.flags & !(allowed | FLAG_FUA) != 0 {
        return Err(Unlawful::Flags);
    }
    if writes && disk.read_only {
        return Err(Unlawful::ReadOnly);
    }
    if request.command == 3 {
        // "Both the offset and the length must be zero."
        let plain = request.offset == 0 && request.length == 0;
        return if plain {
            Ok(Act::Flush)
        } else {
            Err(Unlawful::Shape)
        };
    }
    let end = request.offset.checked_add(u64::from(request.length));
    if end.is_none_or(|end| end > disk.size) {
        return Err(if writes {
            Unlawful::WriteBeyond
        } else {
            Unlawful::ReadBeyond
        });
    }
    if matches!(request.command, 0 | 1) && request.length > LONGEST_REQUEST {
        return Err(Unlawful::TooLong);
    }
    let stable = match request.flags & FLAG_FUA {
        0 => Stable::Later,
        _ => Stable::Now,
    };
    match request.command {
        0 => {
            let whole = match request.flags & FLAG_DF {
                0 if disk.structured => Last::No,
                _ => Last::Yes,
            };
            if disk.structured && whole == Last::Yes && request.length > LONGEST_WHOLE_READ {
                return Err(Unlawful::OneChunk);
            }
            Ok(Act::Read { whole })
        }
        1 => Ok(Act::Write(stable)),
        4 => Ok(Act::Trim(stable)),
        5 => Ok(Act::Cache),
        6 => {
            let keep_space = request.flags & FLAG_NO_HOLE != 0;
            if keep_space && request.flags & FLAG_FAST_ZERO != 0 {
                return Err(Unlawful::NotFast);
            }
            Ok(Act::Zeroes { keep_space, stable })
        }
        _ if disk.contexts == Contexts::None => Err(Unlawful::NoContext),
        _ if request.length == 0 => Err(Unlawful::Shape),
        _ => Ok(Act::Status {
            most: match request.flags & FLAG_REQ_ONE {
                0 => 512,
                _ => 1,
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: Disk = Disk {
        size: 1 << 40,
        read_only: false,
        structured: true,
        contexts: Contexts::Allocation,
    };

    fn request(command: u16, flags: u16, offset: u64, length: u32) -> Request {
        Request {
            flags,
            command,
            cookie: 0,
            offset,
            length,
        }
    }

    #[test]
    fn what_is_lawful() {
        let act = |command, flags| judge(&request(command, flags, 4096, 512), &DISK);
        assert_eq!(act(0, 0), Ok(Act::Read { whole: Last::No }));
        assert_eq!(act(0, FLAG_DF), Ok(Act::Read { whole: Last::Yes }));
        assert_eq!(act(0, FLAG_FUA), Ok(Act::Read { whole: Last::No }));
        assert_eq!(act(1, 0), Ok(Act::Write(Stable::Later)));
        assert_eq!(act(1, FLAG_FUA), Ok(Act::Write(Stable::Now)));
        assert_eq!(act(2, u16::MAX), Ok(Act::Disconnect));
        assert_eq!(judge(&request(3, 0, 0, 0), &DISK), Ok(Act::Flush));
        assert_eq!(act(4, FLAG_FUA), Ok(Act::Trim(Stable::Now)));
        assert_eq!(act(5, 0), Ok(Act::Cache));
        assert_eq!(act(7, FLAG_REQ_ONE), Ok(Act::Status { most: 1 }));
        let keep = Act::Zeroes {
            keep_space: true,
            stable: Stable::Later,
        };
        assert_eq!(act(6, FLAG_NO_HOLE), Ok(keep));
    }

    #[test]
    fn what_is_not() {
        let end = DISK.size;
        for (command, flags, offset, length, expected) in [
            (0, 0, end, 1, Unlawful::ReadBeyond),
            (0, 0, u64::MAX, u32::MAX, Unlawful::ReadBeyond),
            (1, 0, end - 1, 2, Unlawful::WriteBeyond),
            (6, 0, u64::MAX, 1, Unlawful::WriteBeyond),
            (0, 0, 0, LONGEST_REQUEST + 1, Unlawful::TooLong),
            (1, 0, 0, LONGEST_REQUEST + 1, Unlawful::TooLong),
            (0, FLAG_DF, 0, LONGEST_WHOLE_READ + 1, Unlawful::OneChunk),
            (0, FLAG_NO_HOLE, 0, 1, Unlawful::Flags),
            (4, FLAG_NO_HOLE, 0, 1, Unlawful::Flags),
            (1, 1 << 15, 0, 1, Unlawful::Flags),
            (3, 0, 1, 0, Unlawful::Shape),
            (3, 0, 0, 1, Unlawful::Shape),
            (7, 0, 0, 0, Unlawful::Shape),
            (8, 0, 0, 0, Unlawful::Command),
            (6, FLAG_NO_HOLE | FLAG_FAST_ZERO, 0, 1, Unlawful::NotFast),
        ] {
            let found = judge(&request(command, flags, offset, length), &DISK);
            assert_eq!(found, Err(expected), "{command} {flags} {offset} {length}");
        }
        let disk = Disk {
            read_only: true,
            structured: false,
            contexts: Contexts::None,
            ..DISK
        };
        for command in [1, 4, 6] {
            let found = judge(&request(command, 0, 0, 1), &disk);
            assert_eq!(found, Err(Unlawful::ReadOnly));
        }
        assert_eq!(
            judge(&request(0, FLAG_DF, 0, 1), &disk),
            Err(Unlawful::Flags)
        );
        assert_eq!(judge(&request(7, 0, 0, 1), &disk), Err(Unlawful::NoContext));
    }

    proptest! {
        #[test]
        fn what_is_done_lies_within_the_disk(
            command in 0_u16..10,
            flags in 0_u16..64,
            offset in prop_oneof![any::<u64>(), 0..(1_u64 << 41)],
            length: u32,
            size in prop_oneof![any::<u64>(), 0..(1_u64 << 41)],
            structured: bool,
        ) {
            let disk = Disk { size, structured, ..DISK };
            if let Ok(act) = judge(&request(command, flags, offset, length), &disk)
                && act != Act::Disconnect
            {
                let end = u128::from(offset) + u128::from(length);
                prop_assert!(end <= u128::from(size));
            }
        }
    }
}
