//! What goes wrong with a request, in the words of the protocol and of the metrics.

use super::machine::Unlawful;
use super::wire::transmission::Errno;
use crate::storage::BlockError;

/// Protocol error, metric word and sentence of a disk's error.
pub(super) fn told(error: &BlockError) -> (Errno, &'static str) {
    match error {
        BlockError::OutOfRange => (Errno::Invalid, "out_of_range"),
        BlockError::ReadOnly => (Errno::NotPermitted, "read_only"),
        BlockError::NoSpace => (Errno::NoSpace, "no_space"),
        BlockError::Fenced => (Errno::Shutdown, "fenced"),
        BlockError::Io(_) => (Errno::Io, "io"),
    }
}

/// A refused request's word in the metrics.
pub(super) const fn word(refused: Unlawful) -> &'static str {
    match refused {
        Unlawful::Command => "unknown_command",
        Unlawful::Flags => "bad_flags",
        Unlawful::Shape => "bad_shape",
        Unlawful::TooLong => "too_long",
        Unlawful::ReadBeyond => "read_beyond",
        Unlawful::WriteBeyond => "write_beyond",
        Unlawful::ReadOnly => "read_only",
        Unlawful::NoContext => "no_context",
        Unlawful::OneChunk => "one_chunk",
        Unlawful::NotFast => "not_fast",
    }
}
