//! The frames that servers send each other, to bytes and back. Pure.
//!
//! A frame is `length (4) | kind (1) | body | CRC-32C of kind and body (4)`, numbers in network
//! order; the length counts kind and body. It lies in TLS, which lets nothing be changed on its
//! way; the sum finds what was damaged before or behind that. Whoever sends is believed nothing:
//! each length is bounded before anything is kept for it, and each body must end where it says.

use uuid::Uuid;

/// What a connection begins with.
pub const GREETING: [u8; 8] = *b"DLS-REPL";
/// The version of the protocol. Servers of another one refuse each other.
pub const PROTOCOL: u16 = 2;
/// Most bytes of content in one frame.
pub const MOST_DATA: usize = 256 * 1024;
/// Most bytes of kind and body of a frame.
pub const LONGEST: usize = MOST_DATA + 64;
/// Most versions that are offered as what the receiver may have already.
pub const MOST_BASES: usize = 64;
/// Most bytes of the words by which a stream goes on.
const LONGEST_WORDS: usize = 4096;
/// Most bytes of a sentence.
const LONGEST_SENTENCE: usize = 1024;

/// Why a server does not take a version, or not now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Another protocol.
    Protocol,
    /// It does not know the version (yet).
    Unknown,
    /// Something is in the way for now.
    Busy,
    /// Its store is full.
    Full,
    /// Its store failed.
    Store,
    /// What was sent makes no sense.
    Confused,
    /// It would be the last one that is removed.
    LastCopy,
}

impl Refusal {
    /// Every value, in the order of their numbers.
    pub const ALL: &'static [Self] = &[
        Self::Protocol,
        Self::Unknown,
        Self::Busy,
        Self::Full,
        Self::Store,
        Self::Confused,
        Self::LastCopy,
    ];

    /// True if it may be otherwise in a moment.
    #[must_use]
    pub const fn passes(self) -> bool {
        matches!(self, Self::Unknown | Self::Busy)
    }

    fn number(self) -> u8 {
        let at = Self::ALL.iter().position(|r| *r == self);
        u8::try_from(at.unwrap_or_default()).unwrap_or_default()
    }
}

/// A version that another may be sent as the difference to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// The version.
    pub version: Uuid,
    /// Where a stream of the store's own can begin; 0 if it can't.
    pub point: u64,
    /// True if the sender has its content, to compare with.
    pub whole: bool,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Sender: who it is. The first frame.
    Hello {
        /// Its protocol.
        protocol: u16,
        /// Its id.
        server: Uuid,
    },
    /// Receiver: who it is.
    Welcome {
        /// Its id.
        server: Uuid,
    },
    /// Sender: a version to be had.
    Offer {
        /// The image.
        image: Uuid,
        /// The version.
        version: Uuid,
        /// Bytes of the disk.
        size: u64,
        /// Its point, if the sender's store can send it as a stream; else 0.
        point: u64,
        /// Versions that it may be sent as the difference to, best first.
        bases: Vec<Base>,
    },
    /// Receiver: go on.
    Accept {
        /// What the receiver has already, and began with.
        base: Option<Uuid>,
        /// All that differs below this offset is there and flushed.
        through: u64,
    },
    /// Receiver: no.
    Refuse {
        /// Why.
        why: Refusal,
        /// In words.
        sentence: String,
    },
    /// Sender: content.
    Data {
        /// Where it goes; offsets only ever rise.
        offset: u64,
        /// 1 to [`MOST_DATA`] bytes.
        bytes: Vec<u8>,
    },
    /// Sender: zeroes.
    Zero {
        /// Where.
        offset: u64,
        /// How many bytes, more than 0.
        length: u64,
    },
    /// Sender: all that differs below this offset was sent; make it durable.
    Sync {
        /// The offset.
        through: u64,
    },
    /// Receiver: it is.
    Synced {
        /// The offset.
        through: u64,
    },
    /// Sender: that was all.
    End {
        /// SHA-256 of the whole content as the sender read it.
        sha256: [u8; 32],
    },
    /// Either: it works and is not dead.
    Working,
    /// Receiver: what it stored has the same hash. It is a version now.
    Verified,
    /// Receiver: what it stored has another hash, and was removed.
    Differs {
        /// That hash.
        sha256: [u8; 32],
    },
    /// Sender: remove your replica of a version.
    Drop {
        /// The version.
        version: Uuid,
    },
    /// Receiver: it is gone.
    Dropped,
    /// Sender: a file of the image (kernel or initrd) that belongs to it.
    File {
        /// The image.
        image: Uuid,
        /// Its number among the image's files, in the catalog's order.
        number: u16,
    },
    /// Receiver: it has it.
    Skip,
    /// Receiver: send it.
    Want,
    /// Sender: the next bytes of it; none is its end.
    Piece {
        /// At most [`MOST_DATA`] bytes.
        bytes: Vec<u8>,
    },
    /// Receiver: go on, with a stream of the store's own.
    AcceptStream {
        /// What it is to begin at.
        base: Option<Uuid>,
        /// Words of the receiver's store to go on with; empty if it has nothing yet.
        words: String,
    },
    /// Sender: the next bytes of the stream; none is its end.
    Stream {
        /// At most [`MOST_DATA`] bytes.
        bytes: Vec<u8>,
    },
    /// Sender: with these words it can't go on; from the beginning, please.
    Restart,
}

/// What is no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Longer than any frame.
    #[error("a frame of {0} bytes is longer than any")]
    TooLong(u32),
    /// No kind in it.
    #[error("a frame is empty")]
    Empty,
    /// The sum is another one.
    #[error("a frame was damaged: its checksum is another one")]
    Damaged,
    /// A kind that is not known.
    #[error("a frame of the unknown kind {0}")]
    UnknownKind(u8),
    /// A body that ends too early, goes on too long or holds what can't be.
    #[error("a frame of kind {0} with a body that makes no sense")]
    BadBody(u8),
}

/// The length of kind and body, from the four bytes that a frame begins with.
///
/// # Errors
/// `TooLong`, `Empty`.
pub fn length(head: [u8; 4]) -> Result<usize, Malformed> {
    let said = u32::from_be_bytes(head);
    match usize::try_from(said) {
        Ok(0) => Err(Malformed::Empty),
        Ok(length) if length <= LONGEST => Ok(length),
        _ => Err(Malformed::TooLong(said)),
    }
}

/// A frame's bytes.
#[must_use]
pub fn encode(message: &Message) -> Vec<u8> {
    let mut frame = vec![0; 4];
    let mut put = |kind: u8, parts: &[&[u8]]| {
        frame.push(kind);
        for part in parts {
            frame.extend_from_slice(part);
        }
    };
    match message {
        Message::Hello { protocol, server } => {
            put(1, &[&GREETING, &protocol.to_be_bytes(), server.as_bytes()]);
        }
        Message::Welcome { server } => put(2, &[server.as_bytes()]),
        Message::Offer {
            image,
            version,
            size,
            point,
            bases,
        } => {
            let mut list = Vec::new();
            for base in bases.iter().take(MOST_BASES) {
                list.extend_from_slice(base.version.as_bytes());
                list.extend_from_slice(&base.point.to_be_bytes());
                list.push(u8::from(base.whole));
            }
            let (size, point) = (size.to_be_bytes(), point.to_be_bytes());
            let ids = [image.as_bytes(), version.as_bytes()];
            put(3, &[ids[0], ids[1], &size, &point, &list]);
        }
        Message::Accept { base, through } => {
            let base = base.unwrap_or_default();
            put(4, &[base.as_bytes(), &through.to_be_bytes()]);
        }
        Message::Refuse { why, sentence } => {
            let mut end = sentence.len().min(LONGEST_SENTENCE);
            while !sentence.is_char_boundary(end) {
                end -= 1;
            }
            let sentence = sentence.as_bytes().get(..end).unwrap_or_default();
            put(5, &[&[why.number()], sentence]);
        }
        Message::Data { offset, bytes } => put(6, &[&offset.to_be_bytes(), bytes]),
        Message::Zero { offset, length } => {
            put(7, &[&offset.to_be_bytes(), &length.to_be_bytes()]);
        }
        Message::Sync { through } => put(8, &[&through.to_be_bytes()]),
        Message::Synced { through } => put(9, &[&through.to_be_bytes()]),
        Message::End { sha256 } => put(10, &[sha256]),
        Message::Working => put(11, &[]),
        Message::Verified => put(12, &[]),
        Message::Differs { sha256 } => put(13, &[sha256]),
        Message::Drop { version } => put(14, &[version.as_bytes()]),
        Message::Dropped => put(15, &[]),
        Message::File { image, number } => put(16, &[image.as_bytes(), &number.to_be_bytes()]),
        Message::Skip => put(17, &[]),
        Message::Want => put(18, &[]),
        Message::Piece { bytes } => put(19, &[bytes]),
        Message::AcceptStream { base, words } => {
            let base = base.unwrap_or_default();
            put(20, &[base.as_bytes(), words.as_bytes()]);
        }
        Message::Stream { bytes } => put(21, &[bytes]),
        Message::Restart => put(22, &[]),
    }
    let sum = crc32c::crc32c(frame.get(4..).unwrap_or_default());
    let length = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
    for (to, from) in frame.iter_mut().zip(length.to_be_bytes()) {
        *to = from;
    }
    frame.extend_from_slice(&sum.to_be_bytes());
    frame
}

/// Takes a body apart.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    fn id(&mut self) -> Option<Uuid> {
        self.take().map(Uuid::from_bytes)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// A frame, from kind, body and sum: all that follows the length.
///
/// # Errors
/// See [`Malformed`].
pub fn decode(frame: &[u8]) -> Result<Message, Malformed> {
    let (content, sum) = frame.split_last_chunk::<4>().ok_or(Malformed::Empty)?;
    if crc32c::crc32c(content) != u32::from_be_bytes(*sum) {
        return Err(Malformed::Damaged);
    }
    let (kind, body) = content.split_first().ok_or(Malformed::Empty)?;
    let mut body = Body(body);
    let known = (1..=22).contains(kind);
    let message = read(*kind, &mut body).filter(|_| body.0.is_empty());
    message.ok_or(if known {
        Malformed::BadBody(*kind)
    } else {
        Malformed::UnknownKind(*kind)
    })
}

fn read(kind: u8, body: &mut Body<'_>) -> Option<Message> {
    Some(match kind {
        1 => {
            if body.take::<8>()? != GREETING {
                return None;
            }
            Message::Hello {
                protocol: u16::from_be_bytes(body.take()?),
                server: body.id()?,
            }
        }
        2 => Message::Welcome { server: body.id()? },
        3 => {
            let (image, version) = (body.id()?, body.id()?);
            let (size, point) = (body.number()?, body.number()?);
            let mut bases = Vec::new();
            while !body.0.is_empty() {
                let (version, point, [whole]) = (body.id()?, body.number()?, body.take()?);
                if whole > 1 || bases.len() == MOST_BASES {
                    return None;
                }
                bases.push(Base {
                    version,
                    point,
                    whole: whole == 1,
                });
            }
            Message::Offer {
                image,
                version,
                size,
                point,
                bases,
            }
        }
        4 => Message::Accept {
            base: body.id().map(|id| (!id.is_nil()).then_some(id))?,
            through: body.number()?,
        },
        5 => {
            let [why] = body.take()?;
            let sentence = std::str::from_utf8(body.rest()).ok()?;
            if sentence.len() > LONGEST_SENTENCE || sentence.chars().any(char::is_control) {
                return None;
            }
            Message::Refuse {
                why: *Refusal::ALL.get(usize::from(why))?,
                sentence: sentence.to_owned(),
            }
        }
        6 => {
            let (offset, bytes) = (body.number()?, body.rest());
            if bytes.is_empty() || bytes.len() > MOST_DATA {
                return None;
            }
            Message::Data {
                offset,
                bytes: bytes.to_vec(),
            }
        }
        7 => {
            let (offset, length) = (body.number()?, body.number()?);
            if length == 0 || offset.checked_add(length).is_none() {
                return None;
            }
            Message::Zero { offset, length }
        }
        8 => Message::Sync {
            through: body.number()?,
        },
        9 => Message::Synced {
            through: body.number()?,
        },
        10 => Message::End {
            sha256: body.take()?,
        },
        11 => Message::Working,
        12 => Message::Verified,
        13 => Message::Differs {
            sha256: body.take()?,
        },
        14 => Message::Drop {
            version: body.id()?,
        },
        15 => Message::Dropped,
        16 => Message::File {
            image: body.id()?,
            number: u16::from_be_bytes(body.take()?),
        },
        17 => Message::Skip,
        18 => Message::Want,
        19 => {
            let bytes = body.rest();
            if bytes.len() > MOST_DATA {
                return None;
            }
            Message::Piece {
                bytes: bytes.to_vec(),
            }
        }
        20 => {
            let base = body.id().map(|id| (!id.is_nil()).then_some(id))?;
            let words = std::str::from_utf8(body.rest()).ok()?;
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            if words.len() > LONGEST_WORDS || !words.bytes().all(allowed) {
                return None;
            }
            Message::AcceptStream {
                base,
                words: words.to_owned(),
            }
        }
        21 => {
            let bytes = body.rest();
            if bytes.len() > MOST_DATA {
                return None;
            }
            Message::Stream {
                bytes: bytes.to_vec(),
            }
        }
        22 => Message::Restart,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn samples() -> Vec<Message> {
        vec![
            Message::Hello {
                protocol: PROTOCOL,
                server: id(1),
            },
            Message::Welcome { server: id(2) },
            Message::Offer {
                image: id(3),
                version: id(4),
                size: 1 << 40,
                point: 77,
                bases: [(id(5), 8, true), (id(6), 0, false)]
                    .map(|(version, point, whole)| Base {
                        version,
                        point,
                        whole,
                    })
                    .to_vec(),
            },
            Message::Accept {
                base: Some(id(5)),
                through: 7,
            },
            Message::Accept {
                base: None,
                through: 0,
            },
            Message::Refuse {
                why: Refusal::LastCopy,
                sentence: "nö".into(),
            },
            Message::Data {
                offset: 8,
                bytes: vec![1; 600],
            },
            Message::Zero {
                offset: 9,
                length: 10,
            },
            Message::Sync { through: 11 },
            Message::Synced { through: 12 },
            Message::End { sha256: [13; 32] },
            Message::Working,
            Message::Verified,
            Message::Differs { sha256: [14; 32] },
            Message::Drop { version: id(15) },
            Message::Dropped,
            Message::File {
                image: id(3),
                number: 2,
            },
            Message::Skip,
            Message::Want,
            Message::Piece { bytes: vec![] },
            Message::AcceptStream {
                base: None,
                words: "1-ab-3".into(),
            },
            Message::Stream { bytes: vec![4; 70] },
            Message::Restart,
        ]
    }

    fn round(frame: &[u8]) -> Result<Message, Malformed> {
        let (head, rest) = frame.split_first_chunk::<4>().unwrap();
        let length = length(*head)?;
        if rest.len() != length + 4 {
            return Err(Malformed::Damaged);
        }
        decode(rest)
    }

    #[test]
    fn every_message_comes_back() {
        for message in samples() {
            assert_eq!(round(&encode(&message)), Ok(message));
        }
    }

    #[test]
    fn a_flipped_bit_is_found_wherever_it_is() {
        for message in samples() {
            let frame = encode(&message);
            for bit in 0..frame.len() * 8 {
                let mut bad = frame.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(round(&bad).is_err(), "{message:?}, bit {bit}");
            }
        }
    }

    #[test]
    fn what_can_t_be_is_refused() {
        let framed = |kind: u8, body: &[u8]| {
            let mut frame = vec![kind];
            frame.extend_from_slice(body);
            let sum = crc32c::crc32c(&frame);
            frame.extend_from_slice(&sum.to_be_bytes());
            decode(&frame)
        };
        assert_eq!(framed(0, b""), Err(Malformed::UnknownKind(0)));
        assert_eq!(framed(23, b"x"), Err(Malformed::UnknownKind(23)));
        for (kind, body) in [
            (1, &[b"DLS-REPX".as_slice(), &[0; 18]].concat()),
            (3, &vec![0; 49]),
            (3, &vec![2; 48 + 25]),
            (3, &vec![0; 48 + 25 * (MOST_BASES + 1)]),
            (5, &vec![7]),
            (5, &b"\0\x1b[2J".to_vec()),
            (5, &b"\0\xff".to_vec()),
            (5, &vec![b'x'; 1100]),
            (6, &vec![0; 8]),
            (6, &vec![0; 9 + MOST_DATA]),
            (7, &[[0; 8], [0; 8]].concat()),
            (7, &[[255; 8], [255; 8]].concat()),
            (8, &vec![0; 9]),
            (11, &vec![0]),
            (19, &vec![0; MOST_DATA + 1]),
            (20, &vec![0; 15]),
            (20, &[&[0; 16][..], b"1-ab; x"].concat()),
            (20, &vec![b'a'; 16 + 4097]),
            (21, &vec![0; MOST_DATA + 1]),
            (22, &vec![0]),
        ] {
            assert_eq!(framed(kind, body), Err(Malformed::BadBody(kind)));
        }
        assert_eq!(length([0; 4]), Err(Malformed::Empty));
        assert!(matches!(length([0, 8, 0, 0]), Err(Malformed::TooLong(_))));
        assert_eq!(decode(&[]), Err(Malformed::Empty));
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0_u8..25) {
            let _ = decode(&bytes);
            let mut frame = vec![kind];
            frame.extend_from_slice(&bytes);
            let sum = crc32c::crc32c(&frame);
            frame.extend_from_slice(&sum.to_be_bytes());
            if let Ok(message) = decode(&frame) {
                prop_assert_eq!(round(&encode(&message)), Ok(message));
            }
        }
    }
}
