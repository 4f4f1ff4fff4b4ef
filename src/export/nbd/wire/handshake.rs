//! The handshake's bytes: greeting, option requests, option replies. It keeps no state.

use super::Reader;

/// `NBDMAGIC`, the first bytes of all.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, before each option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before each option reply.
pub const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Bytes of an option's header.
pub const OPTION_HEADER: usize = 16;
/// Longest string of the protocol, in bytes ("Values": names, queries and texts).
pub const LONGEST_STRING: usize = 4096;

/// Handshake flag: fixed newstyle.
pub const FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag: no zeroes after the answer to EXPORT_NAME.
pub const NO_ZEROES: u16 = 2;

/// Transmission flag: the others are valid.
pub const HAS_FLAGS: u16 = 1;
/// Transmission flag: writes are refused.
pub const READ_ONLY: u16 = 1 << 1;
/// Transmission flag: FLUSH is understood.
pub const SEND_FLUSH: u16 = 1 << 2;
/// Transmission flag: FUA is understood.
pub const SEND_FUA: u16 = 1 << 3;
/// Transmission flag: TRIM is understood.
pub const SEND_TRIM: u16 = 1 << 5;
/// Transmission flag: WRITE_ZEROES is understood.
pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
/// Transmission flag: DF is understood.
pub const SEND_DF: u16 = 1 << 7;
/// Transmission flag: several connections see one disk, and a flush on one covers all.
pub const CAN_MULTI_CONN: u16 = 1 << 8;
/// Transmission flag: CACHE is understood.
pub const SEND_CACHE: u16 = 1 << 10;
/// Transmission flag: FAST_ZERO is understood.
pub const SEND_FAST_ZERO: u16 = 1 << 11;

/// What is asked in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OptionCode {
    /// Opens an export; can't be refused but by closing.
    ExportName,
    /// Ends the handshake.
    Abort,
    /// Names of all exports.
    List,
    /// Goes on in TLS.
    StartTls,
    /// Tells of an export.
    Info,
    /// Opens an export.
    Go,
    /// Replies in chunks.
    StructuredReply,
    /// Which metadata contexts there are.
    ListMetaContext,
    /// Which metadata contexts are wanted.
    SetMetaContext,
    /// Any other number.
    Unknown(u32),
}

impl OptionCode {
    /// From its number.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::ExportName,
            2 => Self::Abort,
            3 => Self::List,
            5 => Self::StartTls,
            6 => Self::Info,
            7 => Self::Go,
            8 => Self::StructuredReply,
            9 => Self::ListMetaContext,
            10 => Self::SetMetaContext,
            other => Self::Unknown(other),
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::ExportName => 1,
            Self::Abort => 2,
            Self::List => 3,
            Self::StartTls => 5,
            Self::Info => 6,
            Self::Go => 7,
            Self::StructuredReply => 8,
            Self::ListMetaContext => 9,
            Self::SetMetaContext => 10,
            Self::Unknown(other) => other,
        }
    }
}

/// Why an option is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OptionError {
    /// Not understood.
    Unsupported,
    /// Understood, and not allowed.
    Policy,
    /// Malformed, or at the wrong time.
    Invalid,
    /// TLS must come first.
    TlsRequired,
    /// No such export.
    Unknown,
    /// The server is stopping.
    Shutdown,
    /// Too long.
    TooBig,
}

impl OptionError {
    /// The reply's number.
    #[must_use]
    pub const fn number(self) -> u32 {
        let low = match self {
            Self::Unsupported => 1,
            Self::Policy => 2,
            Self::Invalid => 3,
            Self::TlsRequired => 5,
            Self::Unknown => 6,
            Self::Shutdown => 7,
            Self::TooBig => 9,
        };
        (1 << 31) | low
    }
}

/// Header of an option request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// What is asked.
    pub code: OptionCode,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionHeader {
    /// Reads it; `None` if the magic number is wrong.
    #[must_use]
    pub fn parse(bytes: &[u8; OPTION_HEADER]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        if reader.u64()? != OPTION_MAGIC {
            return None;
        }
        Some(Self {
            code: OptionCode::from_number(reader.u32()?),
            length: reader.u32()?,
        })
    }
}

/// Kinds of information that a client may ask for with INFO and GO.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The export's name as the server has it.
    pub name: bool,
    /// Sizes of blocks.
    pub block_size: bool,
}

/// Data of INFO and GO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// The export's name.
    pub name: &'a [u8],
    /// What else is asked for; unknown and repeated kinds are passed over.
    pub wanted: Wanted,
}

impl<'a> InfoRequest<'a> {
    /// Reads it; `None` if lengths do not fit.
    #[must_use]
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(data);
        let length = usize::try_from(reader.u32()?).ok()?;
        let name = reader.take(length)?;
        let count = usize::from(reader.u16()?);
        if name.len() > LONGEST_STRING || reader.left() != count * 2 {
            return None;
        }
        let mut wanted = Wanted::default();
        while let Some(kind) = reader.u16() {
            match kind {
                1 => wanted.name = true,
                3 => wanted.block_size = true,
                _ => {}
            }
        }
        Some(Self { name, wanted })
    }
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, Clone, Copy)]
pub struct MetaRequest<'a> {
    /// The export's name.
    pub name: &'a [u8],
    /// How many queries there are.
    pub count: u32,
    queries: Reader<'a>,
}

impl<'a> MetaRequest<'a> {
    /// Reads it; `None` if lengths do not fit, all queries included.
    #[must_use]
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(data);
        let length = usize::try_from(reader.u32()?).ok()?;
        let name = reader.take(length)?;
        let count = reader.u32()?;
        if name.len() > LONGEST_STRING {
            return None;
        }
        let queries = reader;
        // Each query takes four bytes at least, so a claimed count that is too high ends here.
        for _ in 0..count {
            let length = usize::try_from(reader.u32()?).ok()?;
            if length > LONGEST_STRING {
                return None;
            }
            reader.take(length)?;
        }
        (reader.left() == 0).then_some(Self {
            name,
            count,
            queries,
        })
    }

    /// The queries in turn.
    pub fn queries(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut reader = self.queries;
        std::iter::from_fn(move || {
            let length = usize::try_from(reader.u32()?).ok()?;
            reader.take(length)
        })
    }
}

/// The server's first 18 bytes.
#[must_use]
pub fn greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&GREETING_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    bytes
}

fn reply(option: OptionCode, kind: u32, parts: &[&[u8]], out: &mut Vec<u8>) {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.number().to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    // Replies are ours: none is longer than a name and a few numbers.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(0).to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// REP_ACK.
pub fn ack(option: OptionCode, out: &mut Vec<u8>) {
    reply(option, 1, &[], out);
}

/// An error reply with its sentence, which is cut at what the protocol allows.
pub fn error(option: OptionCode, error: OptionError, text: &str, out: &mut Vec<u8>) {
    let end = text.floor_char_boundary(LONGEST_STRING);
    reply(option, error.number(), &[&text.as_bytes()[..end]], out);
}

/// REP_INFO with INFO_EXPORT.
pub fn info_export(option: OptionCode, size: u64, flags: u16, out: &mut Vec<u8>) {
    let parts: [&[u8]; 3] = [&[0, 0], &size.to_be_bytes(), &flags.to_be_bytes()];
    reply(option, 3, &parts, out);
}

/// REP_INFO with INFO_NAME.
pub fn info_name(option: OptionCode, name: &str, out: &mut Vec<u8>) {
    reply(option, 3, &[&[0, 1], name.as_bytes()], out);
}

/// REP_INFO with INFO_BLOCK_SIZE: least, preferred, most.
pub fn info_block_size(option: OptionCode, sizes: [u32; 3], out: &mut Vec<u8>) {
    let sizes = sizes.map(u32::to_be_bytes);
    reply(option, 3, &[&[0, 3], &sizes[0], &sizes[1], &sizes[2]], out);
}

/// REP_META_CONTEXT.
pub fn meta_context(option: OptionCode, id: u32, name: &str, out: &mut Vec<u8>) {
    reply(option, 4, &[&id.to_be_bytes(), name.as_bytes()], out);
}

/// The answer to EXPORT_NAME, which has no header.
pub fn export(size: u64, flags: u16, zeroes: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    if zeroes {
        out.extend_from_slice(&[0; 124]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn info(name: &[u8], claimed: u32, kinds: &[u16], count: u16) -> Vec<u8> {
        let mut data = claimed.to_be_bytes().to_vec();
        data.extend_from_slice(name);
        data.extend_from_slice(&count.to_be_bytes());
        for kind in kinds {
            data.extend_from_slice(&kind.to_be_bytes());
        }
        data
    }

    #[test]
    fn what_info_asks_for_is_read() {
        let data = info(b"disk", 4, &[3, 1, 3, 9], 4);
        let read = InfoRequest::parse(&data).unwrap();
        assert_eq!(read.name, b"disk");
        let all = Wanted {
            name: true,
            block_size: true,
        };
        assert_eq!(read.wanted, all);
        assert!(InfoRequest::parse(&info(b"", 0, &[], 0)).is_some());
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        for data in [
            info(b"disk", 5, &[], 0),
            info(b"disk", 3, &[], 0),
            info(b"disk", u32::MAX, &[], 0),
            info(b"disk", 4, &[], 1),
            info(b"disk", 4, &[1, 2], 1),
            info(b"disk", 4, &[], u16::MAX),
            info(&[b'a'; 4097], 4097, &[], 0),
            Vec::new(),
            vec![0; 5],
        ] {
            assert_eq!(InfoRequest::parse(&data), None, "{data:02x?}");
        }
    }

    #[test]
    fn queries_are_read_and_their_count_is_not_believed() {
        let mut data = 1_u32.to_be_bytes().to_vec();
        data.push(b'd');
        data.extend_from_slice(&2_u32.to_be_bytes());
        for query in ["base:", "x"] {
            data.extend_from_slice(&u32::try_from(query.len()).unwrap().to_be_bytes());
            data.extend_from_slice(query.as_bytes());
        }
        let read = MetaRequest::parse(&data).unwrap();
        let queries: Vec<_> = read.queries().collect();
        assert_eq!(queries, [&b"base:"[..], b"x"]);
        data[5..9].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(MetaRequest::parse(&data).is_none());
        data[5..9].copy_from_slice(&1_u32.to_be_bytes());
        assert!(MetaRequest::parse(&data).is_none());
    }

    #[test]
    fn a_long_text_is_cut_within_the_limit() {
        let mut out = Vec::new();
        error(
            OptionCode::Go,
            OptionError::Policy,
            &"é".repeat(4000),
            &mut out,
        );
        assert_eq!(out.len(), 20 + 4096);
        error(
            OptionCode::Go,
            OptionError::Policy,
            &"日".repeat(4000),
            &mut out,
        );
    }

    proptest! {
        #[test]
        fn no_bytes_harm_the_readers(data in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = InfoRequest::parse(&data);
            if let Some(read) = MetaRequest::parse(&data) {
                prop_assert_eq!(read.queries().count(), usize::try_from(read.count).unwrap());
            }
            if let Some(head) = data.first_chunk() {
                let _ = OptionHeader::parse(head);
            }
        }
    }
}
