//! The client's side of NBD: option requests, and the headers of what a server answers. For who
//! plays machines; the server itself never speaks so. Requests: `transmission::Request`.

use super::Reader;
use super::handshake::{
    FIXED_NEWSTYLE, GREETING_MAGIC, NO_ZEROES, OPTION_MAGIC, OptionCode, REPLY_MAGIC,
};
use super::transmission::{SIMPLE_HEADER, SIMPLE_MAGIC};

/// Bytes of the server's greeting.
pub const GREETING: usize = 18;
/// Bytes of an option reply's header.
pub const REPLY_HEADER: usize = 20;

/// True if a server greets so that [`flags`] may follow: newstyle, fixed.
#[must_use]
pub fn is_greeting(bytes: &[u8; GREETING]) -> bool {
    let mut reader = Reader::new(bytes);
    reader.u64() == Some(GREETING_MAGIC)
        && reader.u64() == Some(OPTION_MAGIC)
        && reader
            .u16()
            .is_some_and(|flags| flags & FIXED_NEWSTYLE != 0)
}

/// The client's flags, for a server with these in its greeting.
#[must_use]
pub fn flags(greeting: &[u8; GREETING]) -> [u8; 4] {
    let theirs = u16::from_be_bytes([greeting[16], greeting[17]]);
    u32::from(theirs & (FIXED_NEWSTYLE | NO_ZEROES)).to_be_bytes()
}

/// GO for an export of that name, without further questions.
#[must_use]
pub fn go(name: &str) -> Vec<u8> {
    let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&OptionCode::Go.number().to_be_bytes());
    bytes.extend_from_slice(&length(name.len() + 6));
    bytes.extend_from_slice(&length(name.len()));
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes
}

/// What an option reply is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyKind {
    /// Done.
    Ack,
    /// Something that is told of the export.
    Info,
    /// Refused, by that number; a sentence follows.
    Error(u32),
    /// Anything else.
    Other,
}

/// Header of an option reply: its kind and how many bytes follow. `None` if the magic number
/// is wrong.
#[must_use]
pub fn reply_header(bytes: &[u8; REPLY_HEADER]) -> Option<(ReplyKind, u32)> {
    let mut reader = Reader::new(bytes);
    if reader.u64()? != REPLY_MAGIC {
        return None;
    }
    reader.u32()?;
    let kind = match reader.u32()? {
        1 => ReplyKind::Ack,
        3 => ReplyKind::Info,
        number if number >> 31 == 1 => ReplyKind::Error(number),
        _ => ReplyKind::Other,
    };
    Some((kind, reader.u32()?))
}

/// Size in bytes and transmission flags, where the data of an INFO reply tells them.
#[must_use]
pub fn export_info(data: &[u8]) -> Option<(u64, u16)> {
    let mut reader = Reader::new(data);
    if reader.u16()? != 0 {
        return None;
    }
    Some((reader.u64()?, reader.u16()?))
}

/// Header of a simple reply: cookie and error number, 0 for none. `None` if the magic number is
/// wrong.
#[must_use]
pub fn simple_header(bytes: &[u8; SIMPLE_HEADER]) -> Option<(u64, u32)> {
    let mut reader = Reader::new(bytes);
    if reader.u32()? != SIMPLE_MAGIC {
        return None;
    }
    let error = reader.u32()?;
    Some((reader.u64()?, error))
}

#[cfg(test)]
mod tests {
    use super::super::handshake::{
        InfoRequest, OPTION_HEADER, OptionError, OptionHeader, ack, error, greeting, info_export,
    };
    use super::super::transmission::{Errno, simple};
    use super::*;

    #[test]
    fn each_side_reads_the_other() {
        assert!(is_greeting(&greeting()));
        assert_eq!(flags(&greeting()), [0, 0, 0, 3]);
        let mut old = greeting();
        old[17] = 0;
        assert!(!is_greeting(&old));
        let go = go("disk");
        let head = OptionHeader::parse(go.first_chunk().unwrap()).unwrap();
        assert_eq!(head.code, OptionCode::Go);
        assert_eq!(usize::try_from(head.length), Ok(go.len() - OPTION_HEADER));
        assert_eq!(
            InfoRequest::parse(&go[OPTION_HEADER..]).unwrap().name,
            b"disk"
        );

        let mut said = Vec::new();
        info_export(OptionCode::Go, 4096, 5, &mut said);
        assert_eq!(
            reply_header(said.first_chunk().unwrap()),
            Some((ReplyKind::Info, 12))
        );
        assert_eq!(export_info(&said[REPLY_HEADER..]), Some((4096, 5)));
        said.clear();
        ack(OptionCode::Go, &mut said);
        assert_eq!(
            reply_header(said.first_chunk().unwrap()),
            Some((ReplyKind::Ack, 0))
        );
        said.clear();
        error(OptionCode::Go, OptionError::Unknown, "no", &mut said);
        let refused = ReplyKind::Error(OptionError::Unknown.number());
        assert_eq!(
            reply_header(said.first_chunk().unwrap()),
            Some((refused, 2))
        );
        assert_eq!(simple_header(&simple(7, None)), Some((7, 0)));
        assert_eq!(simple_header(&simple(7, Some(Errno::Io))), Some((7, 5)));
        assert_eq!(simple_header(&[0; 16]), None);
    }
}
