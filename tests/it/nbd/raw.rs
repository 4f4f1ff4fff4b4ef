//! An NBD client that does what it is told, right or wrong, over any stream.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use dls::export::nbd::wire::transmission::{CHUNK_MAGIC, Request, SIMPLE_MAGIC};

use super::NAME;

/// A reply to an option: its kind and data.
pub(super) type OptionReply = (u32, Vec<u8>);

/// A client on a stream.
pub(super) struct Client<S> {
    pub(super) stream: S,
    /// Answers of which some chunks have come.
    begun: HashMap<u64, Answer>,
}

/// What a request was answered with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) cookie: u64,
    pub(super) error: u32,
    /// Data with its offset; holes as zeroes.
    pub(super) data: Vec<(u64, Vec<u8>)>,
    /// Descriptors of BLOCK_STATUS.
    pub(super) status: Vec<(u32, u32)>,
    pub(super) chunks: usize,
}

pub(super) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream
}

/// An option request's bytes, its length as claimed.
pub(super) fn option(code: u32, claimed: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(&claimed.to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

pub(super) fn length(data: &[u8]) -> u32 {
    u32::try_from(data.len()).unwrap()
}

/// Data of INFO and GO.
pub(super) fn info(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = length(name.as_bytes()).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&u16::try_from(kinds.len()).unwrap().to_be_bytes());
    for kind in kinds {
        data.extend_from_slice(&kind.to_be_bytes());
    }
    data
}

/// Data of SET_META_CONTEXT and LIST_META_CONTEXT.
pub(super) fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = length(name.as_bytes()).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend_from_slice(&length(query.as_bytes()).to_be_bytes());
        data.extend_from_slice(query.as_bytes());
    }
    data
}

impl Client<TcpStream> {
    /// Connected, greeted, flags sent.
    pub(super) fn greeted(address: SocketAddr) -> Self {
        let mut client = Self::on(connect(address));
        client.greet(3);
        client
    }

    /// With its disk.
    pub(super) fn ready(address: SocketAddr, structured: bool) -> Self {
        let mut client = Self::greeted(address);
        client.open(structured);
        client
    }
}

impl<S: Read + Write> Client<S> {
    pub(super) fn on(stream: S) -> Self {
        Self {
            stream,
            begun: HashMap::new(),
        }
    }

    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes(2).try_into().unwrap())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes(4).try_into().unwrap())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.bytes(8).try_into().unwrap())
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
        self.stream.flush().unwrap();
    }

    pub(super) fn greet(&mut self, flags: u32) {
        assert_eq!(self.bytes(18), *b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&flags.to_be_bytes());
    }

    /// True if the other end has closed.
    pub(super) fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    pub(super) fn reply(&mut self, code: u32) -> OptionReply {
        assert_eq!(self.u64(), 0x0003_e889_0455_65a9);
        assert_eq!(self.u32(), code);
        let kind = self.u32();
        let length = self.u32() as usize;
        (kind, self.bytes(length))
    }

    /// Asks, and gives all replies up to the one that ends it.
    pub(super) fn ask(&mut self, code: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send(&option(code, length(data), data));
        let mut replies = Vec::new();
        loop {
            let reply = self.reply(code);
            let last = reply.0 == 1 || reply.0 >= 1 << 31;
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    /// Asks for what is answered with an error; gives its number and text.
    pub(super) fn refused(&mut self, code: u32, data: &[u8]) -> (u32, String) {
        let (kind, text) = self.ask(code, data).pop().unwrap();
        assert!(kind > 1 << 31, "{kind:#x}");
        (kind - (1 << 31), String::from_utf8(text).unwrap())
    }

    pub(super) fn open(&mut self, structured: bool) {
        if structured {
            assert_eq!(self.ask(8, &[]), [(1, Vec::new())]);
            let granted = self.ask(10, &meta(NAME, &["base:allocation"]));
            assert_eq!(granted.len(), 2);
        }
        let replies = self.ask(7, &info(NAME, &[]));
        assert_eq!(replies.last().unwrap().0, 1, "{replies:?}");
    }

    pub(super) fn request(
        &mut self,
        command: u16,
        flags: u16,
        cookie: u64,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) {
        let request = Request {
            flags,
            command,
            cookie,
            offset,
            length,
        };
        let mut bytes = request.to_bytes().to_vec();
        bytes.extend_from_slice(payload);
        self.send(&bytes);
    }

    /// Reads until one answer is whole: chunks of several may come in turns. `data`: where
    /// the bytes belong that a simple reply without an error brings, and how many.
    pub(super) fn answer(&mut self, data: impl Fn(u64) -> (u64, usize)) -> Answer {
        let mut begun: HashMap<u64, Answer> = std::mem::take(&mut self.begun);
        let answer = loop {
            match self.u32() {
                SIMPLE_MAGIC => {
                    let error = self.u32();
                    let cookie = self.u64();
                    assert!(!begun.contains_key(&cookie), "simple among chunks");
                    let mut answer = Answer::new(cookie);
                    answer.error = error;
                    let (offset, length) = data(cookie);
                    if error == 0 && length > 0 {
                        answer.data.push((offset, self.bytes(length)));
                    }
                    break answer;
                }
                CHUNK_MAGIC => {
                    let (flags, kind) = (self.u16(), self.u16());
                    let cookie = self.u64();
                    let answer = begun.entry(cookie).or_insert_with(|| Answer::new(cookie));
                    self.chunk(kind, answer);
                    if flags & 1 == 1 {
                        break begun.remove(&cookie).unwrap();
                    }
                }
                other => panic!("magic {other:#x}"),
            }
        };
        self.begun = begun;
        answer
    }

    fn chunk(&mut self, kind: u16, answer: &mut Answer) {
        assert_eq!(answer.error, 0, "an error ends its reply");
        answer.chunks += 1;
        let length = self.u32() as usize;
        match kind {
            0 => assert_eq!(length, 0),
            1 => {
                assert!(length > 8, "empty data");
                let offset = self.u64();
                answer.data.push((offset, self.bytes(length - 8)));
            }
            2 => {
                assert_eq!(length, 12);
                let (offset, hole) = (self.u64(), self.u32());
                assert!(hole > 0);
                answer.data.push((offset, vec![0; hole as usize]));
            }
            5 => {
                assert_eq!(self.u32(), 1, "the context's id");
                for _ in 0..(length - 4) / 8 {
                    let run = (self.u32(), self.u32());
                    assert!(run.0 > 0, "an empty descriptor");
                    answer.status.push(run);
                }
            }
            0x8001 => {
                answer.error = self.u32();
                let text = usize::from(self.u16());
                assert_eq!(length, 6 + text);
                String::from_utf8(self.bytes(text)).unwrap();
            }
            other => panic!("chunk type {other:#x}"),
        }
    }

    /// One request and its answer, alone on the line.
    pub(super) fn exchange(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> Answer {
        let cookie = 0x1122_3344_5566_7788 ^ offset;
        self.request(command, flags, cookie, offset, length, payload);
        let simple = if command == 0 { length as usize } else { 0 };
        let answer = self.answer(|_| (offset, simple));
        assert_eq!(answer.cookie, cookie, "the cookie comes back as it was");
        answer
    }
}

impl Answer {
    const fn new(cookie: u64) -> Self {
        Self {
            cookie,
            error: 0,
            data: Vec::new(),
            status: Vec::new(),
            chunks: 0,
        }
    }

    /// The bytes of a read, which the chunks must cover exactly once.
    pub(super) fn whole(mut self, offset: u64, length: u32) -> Vec<u8> {
        assert_eq!(self.error, 0);
        self.data.sort();
        let mut bytes = Vec::new();
        for (at, piece) in self.data {
            assert_eq!(at, offset + bytes.len() as u64, "a gap or an overlap");
            bytes.extend(piece);
        }
        assert_eq!(bytes.len(), length as usize);
        bytes
    }
}
