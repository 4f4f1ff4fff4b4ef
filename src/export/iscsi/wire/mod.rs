//! iSCSI PDUs: bytes <-> headers, segments, digests and text (RFC 7143 section 11). It judges
//! the form only; what a PDU means is `machine`'s and `session`'s business.

pub mod answer;
pub mod ask;
pub mod text;

/// Bytes of a basic header segment.
pub const HEADER: usize = 48;
/// The tag that stands for none.
pub const NO_TAG: u32 = 0xffff_ffff;
/// Longest data segment that we take after login; declared in it.
pub const LONGEST_DATA: usize = 256 * 1024;
/// Longest data segment of a login request (RFC 7143 section 6.1: 8192 until negotiated).
pub const LONGEST_LOGIN: usize = 8192;
/// The final bit of most PDUs' flags.
pub const FINAL: u8 = 0x80;

/// What an initiator sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// NOP-Out.
    NopOut,
    /// SCSI command.
    Command,
    /// Task management.
    TaskManagement,
    /// Login.
    Login,
    /// Text.
    Text,
    /// SCSI Data-Out.
    DataOut,
    /// Logout.
    Logout,
    /// SNACK.
    Snack,
}

/// A basic header segment as it came. Accessors never fail: the length is in the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header(pub [u8; HEADER]);

impl Header {
    /// The first 48 bytes of a buffer.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk::<HEADER>().copied().map(Self)
    }

    /// The opcode, without the immediate bit.
    #[must_use]
    pub const fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    /// The request that it is, if an initiator may send it.
    #[must_use]
    pub const fn request(&self) -> Option<Request> {
        Some(match self.opcode() {
            0x00 => Request::NopOut,
            0x01 => Request::Command,
            0x02 => Request::TaskManagement,
            0x03 => Request::Login,
            0x04 => Request::Text,
            0x05 => Request::DataOut,
            0x06 => Request::Logout,
            0x10 => Request::Snack,
            _ => return None,
        })
    }

    /// For immediate delivery: outside of the command window.
    #[must_use]
    pub const fn immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }

    /// The byte of flags.
    #[must_use]
    pub const fn flags(&self) -> u8 {
        self.0[1]
    }

    /// Bytes of additional header segments.
    #[must_use]
    pub fn ahs_length(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    /// Bytes of the data segment, without padding.
    #[must_use]
    pub fn data_length(&self) -> usize {
        usize::from(self.0[5]) << 16 | usize::from(self.0[6]) << 8 | usize::from(self.0[7])
    }

    /// A big-endian number of 4 bytes; 0 past the end.
    #[must_use]
    pub fn word(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..).and_then(|b| b.first_chunk::<4>());
        bytes.map_or(0, |b| u32::from_be_bytes(*b))
    }

    /// Initiator task tag.
    #[must_use]
    pub fn tag(&self) -> u32 {
        self.word(16)
    }

    /// The logical unit number, eight bytes as SAM-5 section 4.7 has them.
    #[must_use]
    pub fn lun(&self) -> u64 {
        u64::from(self.word(8)) << 32 | u64::from(self.word(12))
    }
}

/// Which digests a connection has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digests {
    /// CRC32C after the headers.
    pub header: bool,
    /// CRC32C after the data segment.
    pub data: bool,
}

/// Why bytes are no PDU. All of them end the connection: at error recovery level 0 there is
/// no way to find the next PDU again, or to ask for this one a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// The header's digest is wrong.
    HeaderDigest,
    /// The data's digest is wrong.
    DataDigest,
    /// The data segment is longer than was agreed.
    TooLong,
}

impl Malformed {
    /// Metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HeaderDigest => "header_digest",
            Self::DataDigest => "data_digest",
            Self::TooLong => "too_long",
        }
    }
}

/// One PDU in a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pdu<'a> {
    /// Its header.
    pub header: Header,
    /// Additional header segments, not looked into.
    pub ahs: &'a [u8],
    /// The data segment, without padding.
    pub data: &'a [u8],
}

/// What a buffer begins with.
#[derive(Debug, PartialEq, Eq)]
pub enum Framed<'a> {
    /// A PDU of that many bytes.
    Whole(Pdu<'a>, usize),
    /// So many bytes are needed before more can be said.
    Needs(usize),
}

/// Bytes up to the next multiple of four (RFC 7143 section 11.1).
#[must_use]
pub const fn padded(length: usize) -> usize {
    (length + 3) & !3
}

/// Looks for a PDU at the start of a buffer. A PDU with a wrong digest is never given out.
///
/// # Errors
/// See [`Malformed`].
pub fn frame(bytes: &[u8], digests: Digests, longest: usize) -> Result<Framed<'_>, Malformed> {
    let Some(header) = Header::read(bytes) else {
        return Ok(Framed::Needs(HEADER));
    };
    let length = header.data_length();
    let head = HEADER + header.ahs_length();
    let data_at = head + if digests.header { 4 } else { 0 };
    let end = data_at + padded(length);
    let has_digest = digests.data && length > 0;
    let total = end + if has_digest { 4 } else { 0 };
    // The header's digest first: until it is right, the lengths are not to be believed.
    if digests.header {
        let Some(stored) = bytes.get(head..data_at) else {
            return Ok(Framed::Needs(data_at));
        };
        if crc32c::crc32c(&bytes[..head]).to_le_bytes() != *stored {
            return Err(Malformed::HeaderDigest);
        }
    }
    if length > longest {
        return Err(Malformed::TooLong);
    }
    if bytes.len() < total {
        return Ok(Framed::Needs(total));
    }
    if has_digest && crc32c::crc32c(&bytes[data_at..end]).to_le_bytes() != bytes[end..total] {
        return Err(Malformed::DataDigest);
    }
    let pdu = Pdu {
        header,
        ahs: &bytes[HEADER..head],
        data: &bytes[data_at..data_at + length],
    };
    Ok(Framed::Whole(pdu, total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOTH: Digests = Digests {
        header: true,
        data: true,
    };

    fn pdu(data: &[u8], digests: Digests) -> Vec<u8> {
        let mut bytes = vec![0_u8; HEADER];
        bytes[5..8].copy_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes()[1..]);
        if digests.header {
            bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        }
        let at = bytes.len();
        bytes.extend(data);
        bytes.resize(at + padded(data.len()), 0);
        if digests.data && !data.is_empty() {
            bytes.extend(crc32c::crc32c(&bytes[at..]).to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_flipped_bit_is_never_given_out() {
        let whole = pdu(b"hello", BOTH);
        assert!(matches!(frame(&whole, BOTH, 8192), Ok(Framed::Whole(p, n))
            if p.data == b"hello" && n == whole.len()));
        for bit in 0..whole.len() * 8 {
            let mut bad = whole.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                !matches!(frame(&bad, BOTH, 8192), Ok(Framed::Whole(..))),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn lengths_at_their_limits() {
        for (length, limit, fits) in [(0, 0, true), (8192, 8192, true), (8193, 8192, false)] {
            let whole = pdu(&vec![1; length], Digests::default());
            let framed = frame(&whole, Digests::default(), limit);
            assert_eq!(framed.is_ok(), fits, "{length}");
        }
        let mut longest = [0xff_u8; HEADER];
        longest[0] = 3;
        assert_eq!(
            frame(&longest, Digests::default(), LONGEST_LOGIN),
            Err(Malformed::TooLong)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_framed_or_refused(bytes: Vec<u8>, header: bool, data: bool) {
            let digests = Digests { header, data };
            match frame(&bytes, digests, 512) {
                Ok(Framed::Whole(pdu, total)) => {
                    prop_assert!(total <= bytes.len() && pdu.data.len() <= 512);
                }
                Ok(Framed::Needs(more)) => prop_assert!(more > bytes.len()),
                Err(_) => {}
            }
        }
    }
}
