//! The client's side of TFTP: read requests and acknowledgements, and what a server answers.
//! For who plays machines; the server itself never speaks so.

use super::{ErrorCode, MAX_MESSAGE, Malformed, number, split_u16, string};

/// What a server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromServer<'a> {
    /// DATA: block number and its bytes.
    Data(u16, &'a [u8]),
    /// OACK.
    OptionAck(Granted),
    /// ERROR.
    Error(ErrorCode, &'a [u8]),
}

/// What was granted of the options, in their units: bytes, bytes, blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Granted {
    /// RFC 2348.
    pub blksize: Option<u64>,
    /// RFC 2349.
    pub tsize: Option<u64>,
    /// RFC 7440.
    pub windowsize: Option<u64>,
}

/// RRQ in octet mode with `tsize`, a block size, and a window where that is over 1.
#[must_use]
pub fn read_request(name: &str, blksize: u16, windowsize: u16) -> Vec<u8> {
    let mut bytes = vec![0, 1];
    let mut word = |text: &str| {
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
    };
    for text in [name, "octet", "tsize", "0", "blksize"] {
        word(text);
    }
    word(&blksize.to_string());
    if windowsize > 1 {
        word("windowsize");
        word(&windowsize.to_string());
    }
    bytes
}

/// ACK of a block.
#[must_use]
pub const fn ack(block: u16) -> [u8; 4] {
    let [high, low] = block.to_be_bytes();
    [0, 4, high, low]
}

/// Reads a server's packet; `Ok(None)`: no server sends that.
///
/// # Errors
/// See [`Malformed`].
pub fn parse(bytes: &[u8]) -> Result<Option<FromServer<'_>>, Malformed> {
    let (opcode, rest) = split_u16(bytes)?;
    match opcode {
        3 => split_u16(rest).map(|(block, data)| Some(FromServer::Data(block, data))),
        5 => {
            let (code, text) = split_u16(rest)?;
            let text = text.split(|b| *b == 0).next().unwrap_or_default();
            let text = text.get(..MAX_MESSAGE).unwrap_or(text);
            let code = ErrorCode::from_number(code);
            Ok(Some(FromServer::Error(code, text)))
        }
        6 => granted(rest).map(|granted| Some(FromServer::OptionAck(granted))),
        _ => Ok(None),
    }
}

fn granted(mut rest: &[u8]) -> Result<Granted, Malformed> {
    let mut granted = Granted::default();
    while !rest.is_empty() {
        let (key, after) = string(rest)?;
        let (value, after) = string(after)?;
        rest = after;
        let value = number(value);
        if key.eq_ignore_ascii_case(b"blksize") {
            granted.blksize = value;
        } else if key.eq_ignore_ascii_case(b"tsize") {
            granted.tsize = value;
        } else if key.eq_ignore_ascii_case(b"windowsize") {
            granted.windowsize = value;
        }
    }
    Ok(granted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Mode, Opt, Packet, encode_error, encode_option_ack};
    use super::*;

    #[test]
    fn the_server_reads_a_request_and_the_client_its_answers() {
        let bytes = read_request("a.efi", 1468, 4);
        let Ok(Packet::Read(read)) = super::super::parse(&bytes) else {
            panic!("not read");
        };
        assert_eq!((read.name, read.mode), (&b"a.efi"[..], Mode::Octet));
        assert_eq!(read.options.get(Opt::Blksize), Some(1468));
        assert_eq!(read.options.get(Opt::Windowsize), Some(4));
        let mut answer = Vec::new();
        encode_option_ack(&read.options, &mut answer);
        let granted = Granted {
            blksize: Some(1468),
            tsize: Some(0),
            windowsize: Some(4),
        };
        assert_eq!(parse(&answer), Ok(Some(FromServer::OptionAck(granted))));
        encode_error(ErrorCode::FileNotFound, "no", &mut answer);
        let error = FromServer::Error(ErrorCode::FileNotFound, b"no");
        assert_eq!(parse(&answer), Ok(Some(error)));
        let lockstep = read_request("a", 1456, 1);
        assert!(!lockstep.windows(6).any(|w| w == b"window"));
        assert_eq!(super::super::parse(&ack(7)), Ok(Packet::Ack(7)));
        assert_eq!(parse(&[0, 3, 0, 1, 9]), Ok(Some(FromServer::Data(1, &[9]))));
        assert_eq!(parse(&bytes), Ok(None));
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&noise);
        }
    }
}
