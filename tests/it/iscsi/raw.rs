//! A small initiator of the test's own: it says exactly what it is told to.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::house::DISK;

/// A PDU that came.
#[derive(Debug, Clone)]
pub struct Pdu {
    pub head: [u8; 48],
    pub data: Vec<u8>,
}

impl Pdu {
    pub fn opcode(&self) -> u8 {
        self.head[0] & 0x3f
    }

    pub fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.head[at..at + 4].try_into().unwrap())
    }
}

pub struct Raw {
    pub stream: TcpStream,
    pub number: u32,
    tag: u32,
    pub isid: u8,
}

/// How a command ended: SCSI status, sense key and code, data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub status: u8,
    pub sense: Option<(u8, u16)>,
    pub data: Vec<u8>,
}

pub fn pdu(opcode: u8, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 48];
    bytes[0] = opcode;
    bytes[1] = flags;
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    bytes[5..8].copy_from_slice(&length[1..]);
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// `a|b` with NULs.
pub fn text(pairs: &str) -> Vec<u8> {
    (pairs.replace('|', "\0") + "\0").into_bytes()
}

impl Raw {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self {
            stream,
            number: 1,
            tag: 0,
            isid: 1,
        }
    }

    /// A session without CHAP, with keys beside the names.
    pub fn login(address: SocketAddr, isid: u8, keys: &str) -> Self {
        let mut raw = Self::connect(address);
        raw.isid = isid;
        let names = format!(
            "InitiatorName=iqn.2026-11.test:raw|TargetName={}|SessionType=Normal|{keys}",
            DISK.iqn()
        );
        let answer = raw.ask_login(0x87, &text(&names));
        assert_eq!(answer.head[36..38], [0, 0], "{answer:?}");
        // The unit attention of a new nexus.
        let first = raw.command(&[0; 6], 0, &[], 0);
        assert_eq!(first.sense, Some((6, 0x2900)));
        raw
    }

    pub fn ask_login(&mut self, flags: u8, data: &[u8]) -> Pdu {
        let mut bytes = pdu(0x43, flags, data);
        bytes[13] = self.isid;
        bytes[24..28].copy_from_slice(&self.number.to_be_bytes());
        self.stream.write_all(&bytes).unwrap();
        self.receive().unwrap()
    }

    pub fn receive(&mut self) -> io::Result<Pdu> {
        let mut head = [0; 48];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        let mut data = vec![0; length.next_multiple_of(4)];
        self.stream.read_exact(&mut data)?;
        data.truncate(length);
        Ok(Pdu { head, data })
    }

    /// Sends a command; the flags say what moves (0x40 reads, 0x20 writes).
    pub fn send(&mut self, cdb: &[u8], moves: u8, immediate: &[u8], expected: u32) -> u32 {
        let mut bytes = pdu(0x01, 0x80 | moves | 1, immediate);
        self.tag += 1;
        bytes[16..20].copy_from_slice(&self.tag.to_be_bytes());
        bytes[20..24].copy_from_slice(&expected.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.number.to_be_bytes());
        bytes[32..32 + cdb.len()].copy_from_slice(cdb);
        self.number = self.number.wrapping_add(1);
        self.stream.write_all(&bytes).unwrap();
        self.tag
    }

    /// Data-Out to an R2T.
    pub fn data_out(&mut self, r2t: &Pdu, number: u32, offset: u32, last: bool, data: &[u8]) {
        let mut bytes = pdu(0x05, if last { 0x80 } else { 0 }, data);
        bytes[16..24].copy_from_slice(&r2t.head[16..24]);
        bytes[36..40].copy_from_slice(&number.to_be_bytes());
        bytes[40..44].copy_from_slice(&offset.to_be_bytes());
        self.stream.write_all(&bytes).unwrap();
    }

    /// A command with all its data, to its end. What is more than `immediate` goes by R2T.
    pub fn command(&mut self, cdb: &[u8], reads: u32, writes: &[u8], immediate: usize) -> Ended {
        let expected = reads.max(u32::try_from(writes.len()).unwrap());
        let moves = match (reads, writes.len()) {
            (0, 0) => 0,
            (0, _) => 0x20,
            _ => 0x40,
        };
        let first = immediate.min(writes.len());
        self.send(cdb, moves, &writes[..first], expected);
        self.finish(writes)
    }

    /// Takes answers until the status of the command that is under way.
    pub fn finish(&mut self, writes: &[u8]) -> Ended {
        let mut data = Vec::new();
        loop {
            let answer = self.receive().unwrap();
            match answer.opcode() {
                0x25 => {
                    assert_eq!(answer.word(40) as usize, data.len());
                    data.extend(&answer.data);
                    if answer.head[1] & 1 != 0 {
                        return Ended {
                            status: answer.head[3],
                            sense: None,
                            data,
                        };
                    }
                }
                0x21 => {
                    let sense = (answer.data.len() >= 20).then(|| {
                        let code = u16::from_be_bytes([answer.data[14], answer.data[15]]);
                        (answer.data[4], code)
                    });
                    return Ended {
                        status: answer.head[3],
                        sense,
                        data,
                    };
                }
                0x31 => {
                    let (mut at, end) = (answer.word(40), answer.word(40) + answer.word(44));
                    let mut number = 0;
                    while at < end {
                        let next = (at + 8192).min(end);
                        let part = &writes[at as usize..next as usize];
                        self.data_out(&answer, number, at, next == end, part);
                        (at, number) = (next, number + 1);
                    }
                }
                0x20 => {}
                other => panic!("opcode {other:02x}"),
            }
        }
    }

    pub fn write(&mut self, lba: u32, data: &[u8], immediate: usize) -> Ended {
        let blocks = u32::try_from(data.len() / 512).unwrap();
        self.command(&ten(0x2a, lba, blocks), 0, data, immediate)
    }

    pub fn read(&mut self, lba: u32, blocks: u32) -> Ended {
        self.command(&ten(0x28, lba, blocks), blocks * 512, &[], 0)
    }
}

/// A CDB of 10 bytes.
pub fn ten(opcode: u8, lba: u32, blocks: u32) -> [u8; 10] {
    let (lba, blocks) = (lba.to_be_bytes(), blocks.to_be_bytes());
    let mut cdb = [0; 10];
    cdb[0] = opcode;
    cdb[2..6].copy_from_slice(&lba);
    cdb[7..9].copy_from_slice(&blocks[2..]);
    cdb
}
