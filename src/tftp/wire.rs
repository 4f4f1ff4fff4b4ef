//! TFTP packets: bytes <-> types (RFC 1350, 2347, 2348, 2349, 7440).
//!
//! Parsing copies nothing but option values and never allocates: every packet that reaches
//! the port may be hostile. File names stay raw bytes; only `boot::path` judges them. What is
//! granted of the options is the machine's affair, not ours.

pub mod client;

/// Longest request we look at, in bytes (RFC 2347 section 2: "maximum of 512 octets").
pub const MAX_REQUEST: usize = 512;
/// Bytes before the payload of a DATA packet (RFC 1350 section 5).
pub const DATA_HEADER: usize = 4;
/// Block size without an option (RFC 1350 section 2).
pub const DEFAULT_BLKSIZE: u16 = 512;
/// Smallest block size (RFC 2348).
pub const MIN_BLKSIZE: u16 = 8;
/// Largest block size (RFC 2348).
pub const MAX_BLKSIZE: u16 = 65464;
/// Longest ERROR message that we send or keep, in bytes.
pub const MAX_MESSAGE: usize = 96;

/// A packet from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// RRQ: a file is asked for.
    Read(Request<'a>),
    /// WRQ: never served.
    Write,
    /// DATA: nothing that a client of ours sends.
    Data,
    /// ACK of a block.
    Ack(u16),
    /// ERROR: the other side has ended the transfer.
    Error {
        /// RFC 1350 section 5, table of error codes.
        code: ErrorCode,
        /// Raw text without its NUL, at most [`MAX_MESSAGE`] bytes of it.
        message: &'a [u8],
    },
    /// OACK: nothing that a client of ours sends.
    OptionAck,
}

/// A read request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The file's name as it came: not empty, no NUL, not judged in any other way.
    pub name: &'a [u8],
    /// Transfer mode.
    pub mode: Mode,
    /// Options that we know and whose values are in range.
    pub options: Options,
}

/// Transfer modes (RFC 1350 section 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Bytes as they are.
    Octet,
    /// Lines of text, with CR LF.
    Netascii,
}

/// Options we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Opt {
    /// RFC 2348.
    Blksize,
    /// RFC 2349.
    Tsize,
    /// RFC 2349.
    Timeout,
    /// RFC 7440.
    Windowsize,
}

impl Opt {
    const ALL: [Self; 4] = [Self::Blksize, Self::Tsize, Self::Timeout, Self::Windowsize];

    /// The option's name in lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blksize => "blksize",
            Self::Tsize => "tsize",
            Self::Timeout => "timeout",
            Self::Windowsize => "windowsize",
        }
    }

    /// Values an option may have in a request.
    const fn range(self) -> (u64, u64) {
        match self {
            Self::Blksize => (MIN_BLKSIZE as u64, MAX_BLKSIZE as u64),
            // RFC 2349 has a client send 0; other numbers do no harm.
            Self::Tsize => (0, u64::MAX),
            Self::Timeout => (1, 255),
            Self::Windowsize => (1, 65535),
        }
    }
}

/// One option with its value, and the spelling the client used for its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Which.
    pub opt: Opt,
    /// Value, in the option's own unit: bytes, bytes, seconds, blocks.
    pub value: u64,
    spelling: [u8; 10],
}

impl Entry {
    /// The same option with another value.
    #[must_use]
    pub const fn with(self, value: u64) -> Self {
        Self { value, ..self }
    }

    fn name(&self) -> &[u8] {
        self.spelling
            .get(..self.opt.name().len())
            .unwrap_or_default()
    }
}

/// Options of a request, in its order, each at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    entries: [Option<Entry>; 4],
}

impl Options {
    /// The options, in the order in which they were asked for.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().flatten()
    }

    /// Value of an option.
    #[must_use]
    pub fn get(&self, opt: Opt) -> Option<u64> {
        self.iter().find(|e| e.opt == opt).map(|e| e.value)
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.iter().all(Option::is_none)
    }

    /// Appends an option; one that is there already stays as it is.
    pub fn push(&mut self, entry: Entry) {
        if self.get(entry.opt).is_some() {
            return;
        }
        if let Some(free) = self.entries.iter_mut().find(|e| e.is_none()) {
            *free = Some(entry);
        }
    }
}

/// Codes of ERROR packets (RFC 1350 section 5, RFC 2347 section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// 0: see the message.
    Undefined,
    /// 1.
    FileNotFound,
    /// 2.
    AccessViolation,
    /// 3.
    DiskFull,
    /// 4.
    IllegalOperation,
    /// 5.
    UnknownTransferId,
    /// 6.
    FileExists,
    /// 7.
    NoSuchUser,
    /// 8: the options are not what the sender can do with.
    OptionNegotiation,
    /// A number that no RFC names.
    Other(u16),
}

impl ErrorCode {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Undefined => 0,
            Self::FileNotFound => 1,
            Self::AccessViolation => 2,
            Self::DiskFull => 3,
            Self::IllegalOperation => 4,
            Self::UnknownTransferId => 5,
            Self::FileExists => 6,
            Self::NoSuchUser => 7,
            Self::OptionNegotiation => 8,
            Self::Other(n) => n,
        }
    }

    const fn from_number(n: u16) -> Self {
        match n {
            0 => Self::Undefined,
            1 => Self::FileNotFound,
            2 => Self::AccessViolation,
            3 => Self::DiskFull,
            4 => Self::IllegalOperation,
            5 => Self::UnknownTransferId,
            6 => Self::FileExists,
            7 => Self::NoSuchUser,
            8 => Self::OptionNegotiation,
            n => Self::Other(n),
        }
    }
}

/// Why bytes are not a packet; the words are metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Malformed {
    /// Less than an opcode, or than the opcode's fixed part.
    #[error("packet cut short")]
    Short,
    /// An opcode that no RFC has.
    #[error("unknown opcode")]
    Opcode,
    /// A request of more than [`MAX_REQUEST`] bytes.
    #[error("request too long")]
    TooLong,
    /// A string without its NUL, or an option name without a value.
    #[error("string not ended")]
    Unterminated,
    /// No file name.
    #[error("no file name")]
    NoName,
    /// A mode other than octet and netascii (mail is obsolete: RFC 1350 section 1).
    #[error("unknown transfer mode")]
    Mode,
}

impl Malformed {
    /// True if the packet claims to be a request, so that its sender waits for an answer.
    /// All others are met with silence: an answer could start a loop (CVE-2024-2169).
    #[must_use]
    pub const fn is_request(self) -> bool {
        match self {
            Self::TooLong | Self::Unterminated | Self::NoName | Self::Mode => true,
            Self::Short | Self::Opcode => false,
        }
    }
}

/// Parses one datagram.
///
/// # Errors
/// See [`Malformed`].
pub fn parse(bytes: &[u8]) -> Result<Packet<'_>, Malformed> {
    let (opcode, rest) = split_u16(bytes)?;
    match opcode {
        1 => {
            if bytes.len() > MAX_REQUEST {
                return Err(Malformed::TooLong);
            }
            request(rest).map(Packet::Read)
        }
        2 => Ok(Packet::Write),
        3 => split_u16(rest).map(|_| Packet::Data),
        // Bytes behind the block number are padding of some ROMs.
        4 => split_u16(rest).map(|(block, _)| Packet::Ack(block)),
        5 => {
            let (code, text) = split_u16(rest)?;
            // The text's NUL is missing in some clients' packets: what there is, counts.
            let text = text.split(|&b| b == 0).next().unwrap_or_default();
            Ok(Packet::Error {
                code: ErrorCode::from_number(code),
                message: text.get(..MAX_MESSAGE).unwrap_or(text),
            })
        }
        6 => Ok(Packet::OptionAck),
        _ => Err(Malformed::Opcode),
    }
}

fn split_u16(bytes: &[u8]) -> Result<(u16, &[u8]), Malformed> {
    let (head, rest) = bytes.split_first_chunk::<2>().ok_or(Malformed::Short)?;
    Ok((u16::from_be_bytes(*head), rest))
}

/// The next NUL-terminated string and what follows it.
fn string(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let end = bytes
        .iter()
        .position(|&b| b == 0)
        .ok_or(Malformed::Unterminated)?;
    let (text, rest) = bytes.split_at(end);
    Ok((text, rest.get(1..).unwrap_or_default()))
}

fn request(bytes: &[u8]) -> Result<Request<'_>, Malformed> {
    let (name, rest) = string(bytes)?;
    if name.is_empty() {
        return Err(Malformed::NoName);
    }
    let (mode, mut rest) = string(rest)?;
    // RFC 1350 section 5: "in any combination of upper and lower case".
    let mode = if mode.eq_ignore_ascii_case(b"octet") {
        Mode::Octet
    } else if mode.eq_ignore_ascii_case(b"netascii") {
        Mode::Netascii
    } else {
        return Err(Malformed::Mode);
    };
    let mut seen: [bool; 4] = [false; 4];
    let mut options = Options::default();
    while !rest.is_empty() {
        // Some ROMs pad the request with NULs: an empty name ends the options.
        if rest.first() == Some(&0) {
            break;
        }
        let (key, after) = string(rest)?;
        let (value, after) = string(after)?;
        rest = after;
        let Some(slot) = Opt::ALL
            .iter()
            .position(|o| key.eq_ignore_ascii_case(o.name().as_bytes()))
        else {
            // RFC 2347 section 3: options not understood are left out of the answer.
            continue;
        };
        // A repeated option: its first occurrence counts, in range or not (RFC 2347
        // section 2 forbids repeating one).
        if std::mem::replace(&mut seen[slot], true) {
            continue;
        }
        let opt = Opt::ALL[slot];
        let (low, high) = opt.range();
        if let Some(value) = number(value).filter(|v| (low..=high).contains(v)) {
            let mut spelling = [0_u8; 10];
            for (to, from) in spelling.iter_mut().zip(key) {
                *to = *from;
            }
            options.push(Entry {
                opt,
                value,
                spelling,
            });
        }
    }
    Ok(Request {
        name,
        mode,
        options,
    })
}

/// A decimal number of ASCII digits (RFC 2347 section 2), or nothing.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 20 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The header of a DATA packet.
#[must_use]
pub const fn data_header(block: u16) -> [u8; DATA_HEADER] {
    let [high, low] = block.to_be_bytes();
    [0, 3, high, low]
}

/// Writes an OACK with these options into an emptied buffer. Names are echoed as the client
/// spelled them.
pub fn encode_option_ack(options: &Options, into: &mut Vec<u8>) {
    into.clear();
    into.extend_from_slice(&[0, 6]);
    for entry in options.iter() {
        into.extend_from_slice(entry.name());
        into.push(0);
        into.extend_from_slice(entry.value.to_string().as_bytes());
        into.push(0);
    }
}

/// Writes an ERROR into an emptied buffer. The message is cut to [`MAX_MESSAGE`] bytes and
/// kept to printable ASCII.
pub fn encode_error(code: ErrorCode, message: &str, into: &mut Vec<u8>) {
    into.clear();
    into.extend_from_slice(&[0, 5]);
    into.extend_from_slice(&code.number().to_be_bytes());
    into.extend(
        message
            .bytes()
            .filter(|b| (0x20..0x7f).contains(b))
            .take(MAX_MESSAGE),
    );
    into.push(0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rrq(parts: &[&str]) -> Vec<u8> {
        let mut bytes = vec![0, 1];
        for part in parts {
            bytes.extend_from_slice(part.as_bytes());
            bytes.push(0);
        }
        bytes
    }

    fn options(parts: &[&str]) -> Vec<(Opt, u64)> {
        let mut all = vec!["f", "octet"];
        all.extend_from_slice(parts);
        match parse(&rrq(&all)) {
            Ok(Packet::Read(r)) => r.options.iter().map(|e| (e.opt, e.value)).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// RFC 1350 section 5; reliability case 1: mode in any case, netascii told apart.
    #[test]
    fn modes_are_case_insensitive() {
        for (mode, want) in [
            ("octet", Ok(Mode::Octet)),
            ("OcTeT", Ok(Mode::Octet)),
            ("NETASCII", Ok(Mode::Netascii)),
            ("mail", Err(Malformed::Mode)),
            ("", Err(Malformed::Mode)),
        ] {
            let bytes = rrq(&["f", mode]);
            let got = parse(&bytes).map(|p| match p {
                Packet::Read(r) => r.mode,
                other => panic!("{other:?}"),
            });
            assert_eq!(got, want, "{mode}");
        }
    }

    /// RFC 1350 section 5; reliability case 1: every way of being malformed has its name.
    #[test]
    fn malformed_requests_are_named() {
        let long = rrq(&[&"a".repeat(600), "octet"]);
        let cases: [(&[u8], Malformed); 12] = [
            (b"", Malformed::Short),
            (b"\0", Malformed::Short),
            (b"\0\x01", Malformed::Unterminated),
            (b"\0\x01name", Malformed::Unterminated),
            (b"\0\x01name\0octet", Malformed::Unterminated),
            (b"\0\x01\0octet\0", Malformed::NoName),
            (b"\0\x01name\0octet\0blksize", Malformed::Unterminated),
            (
                b"\0\x01name\0octet\0blksize\x001468",
                Malformed::Unterminated,
            ),
            (b"\0\x04\0", Malformed::Short),
            (b"\0\x05\0", Malformed::Short),
            (b"\0\x07abc", Malformed::Opcode),
            (&long, Malformed::TooLong),
        ];
        for (bytes, want) in cases {
            assert_eq!(parse(bytes), Err(want), "{bytes:?}");
        }
    }

    /// RFC 2347 section 2, RFC 2348, 2349, 7440; reliability case 3.
    #[test]
    fn options_out_of_range_unknown_or_repeated() {
        use Opt::{Blksize, Timeout, Tsize, Windowsize};
        for (given, want) in [
            (vec!["blksize", "1468"], vec![(Blksize, 1468)]),
            (vec!["BLKSIZE", "8"], vec![(Blksize, 8)]),
            (vec!["blksize", "7"], vec![]),
            (vec!["blksize", "65465"], vec![]),
            (vec!["blksize", "65464"], vec![(Blksize, 65464)]),
            (vec!["blksize", "-1"], vec![]),
            (vec!["blksize", "+512"], vec![]),
            (vec!["blksize", ""], vec![]),
            (vec!["blksize", "99999999999999999999999"], vec![]),
            (vec!["timeout", "0"], vec![]),
            (vec!["timeout", "255"], vec![(Timeout, 255)]),
            (vec!["timeout", "256"], vec![]),
            (vec!["windowsize", "0"], vec![]),
            (vec!["windowsize", "65535"], vec![(Windowsize, 65535)]),
            (vec!["windowsize", "65536"], vec![]),
            (vec!["multicast", ""], vec![]),
            (
                vec!["blksize", "512", "blksize", "1024"],
                vec![(Blksize, 512)],
            ),
            (vec!["blksize", "7", "BlkSize", "1024"], vec![]),
            (
                vec!["windowsize", "4", "x", "y", "tsize", "0"],
                vec![(Windowsize, 4), (Tsize, 0)],
            ),
        ] {
            assert_eq!(options(&given), want, "{given:?}");
        }
    }

    #[test]
    fn padding_behind_a_request_is_no_option() {
        let mut bytes = rrq(&["f", "octet", "tsize", "0"]);
        bytes.extend_from_slice(&[0; 9]);
        assert!(
            matches!(parse(&bytes), Ok(Packet::Read(r)) if r.options.get(Opt::Tsize) == Some(0))
        );
    }

    #[test]
    fn other_packets() {
        assert_eq!(parse(b"\0\x04\x01\x02pad"), Ok(Packet::Ack(0x102)));
        assert_eq!(parse(b"\0\x02"), Ok(Packet::Write));
        assert_eq!(parse(b"\0\x03\0\x01x"), Ok(Packet::Data));
        assert_eq!(parse(b"\0\x06"), Ok(Packet::OptionAck));
        assert_eq!(
            parse(b"\0\x05\0\x08User aborted"),
            Ok(Packet::Error {
                code: ErrorCode::OptionNegotiation,
                message: b"User aborted"
            })
        );
        for n in 0..20 {
            assert_eq!(ErrorCode::from_number(n).number(), n);
        }
    }

    /// RFC 2347 section 3: names echoed, values as granted, in the order asked.
    #[test]
    fn option_ack_echoes_the_clients_spelling() {
        let bytes = rrq(&["f", "octet", "BLKsize", "1468", "tsize", "0"]);
        let Ok(Packet::Read(request)) = parse(&bytes) else {
            panic!()
        };
        let mut granted = Options::default();
        for entry in request.options.iter() {
            granted.push(entry.with(entry.value + 1));
        }
        let mut out = vec![1, 2, 3];
        encode_option_ack(&granted, &mut out);
        assert_eq!(out, b"\0\x06BLKsize\x001469\0tsize\x001\0");
    }

    #[test]
    fn errors_are_bounded_text() {
        let mut out = Vec::new();
        encode_error(ErrorCode::FileNotFound, "no\nsuch\0file", &mut out);
        assert_eq!(out, b"\0\x05\0\x01nosuchfile\0");
        encode_error(ErrorCode::Undefined, &"x".repeat(5000), &mut out);
        assert_eq!(out.len(), 4 + MAX_MESSAGE + 1);
        assert!(matches!(parse(&out), Ok(Packet::Error { .. })));
    }

    /// The fuzz corpus, replayed: nothing panics, and requests hold what they promise.
    #[test]
    fn corpus_replays() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/tftp_wire");
        let mut files = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            judge(&bytes);
            files += 1;
        }
        assert!(files >= 12, "{files} files");
    }

    fn judge(bytes: &[u8]) {
        if let Ok(Packet::Read(request)) = parse(bytes) {
            assert!(bytes.len() <= MAX_REQUEST);
            assert!(!request.name.is_empty() && !request.name.contains(&0));
            for entry in request.options.iter() {
                let (low, high) = entry.opt.range();
                assert!((low..=high).contains(&entry.value));
            }
            let mut oack = Vec::new();
            encode_option_ack(&request.options, &mut oack);
            assert_eq!(parse(&oack), Ok(Packet::OptionAck));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
            judge(&bytes);
        }

        #[test]
        fn any_request_like_bytes(text in "\\PC{0,40}", rest in proptest::collection::vec("[a-z0-9]{0,12}", 0..12)) {
            let mut parts = vec![text.as_str()];
            parts.extend(rest.iter().map(String::as_str));
            judge(&rrq(&parts));
        }
    }
}
