//! The login phase on the socket: reads requests, lets `machine` decide, writes answers. A
//! half-open login holds its socket and, while a request is being read, at most one of them.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::machine::{Door, Fresh, Login, Ready, Refusal, Secrets, Step};
use super::targets::bytes;
use super::wire::answer::Answer;
use super::wire::{Digests, HEADER, Header, LONGEST_LOGIN, padded};
use crate::boot::disks::DiskDoor;

/// A login that wants its disk: what was agreed, and what the last answer is made from.
pub struct Admitted {
    /// What was agreed.
    pub ready: Ready,
    /// The last request.
    pub request: Header,
    /// StatSN of the last answer.
    pub stat: u32,
}

/// How a login ended.
pub enum Ended {
    /// It may have what it asks for.
    Admitted(Box<Admitted>),
    /// It was told why not.
    Refused(Refusal),
    /// The connection ended, or sent what is no PDU.
    Gone,
}

struct Keys(Arc<dyn DiskDoor>);

impl Door for Keys {
    fn open_to_all(&self) -> bool {
        self.0.open_to_all()
    }

    fn secrets(&self, name: &str) -> Option<Secrets> {
        self.0.secrets(name).map(|found| Secrets {
            machine: found.machine,
            server_name: found.server_name,
            server: found.server,
        })
    }
}

/// Reads one PDU; `None` at the end of the stream, and for what is no PDU. Nothing is
/// allocated that the header's length alone asks for beyond `longest`.
pub async fn read_pdu(
    stream: &mut TcpStream,
    digests: Digests,
    longest: usize,
) -> io::Result<Option<(Header, Vec<u8>)>> {
    let mut head = [0; HEADER];
    match stream.read_exact(&mut head).await {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let header = Header(head);
    let length = header.data_length();
    // Nobody has additional headers before its first SCSI command.
    if length > longest || header.ahs_length() > 0 {
        return Ok(None);
    }
    if digests.header {
        let mut digest = [0; 4];
        stream.read_exact(&mut digest).await?;
        if crc32c::crc32c(&head).to_le_bytes() != digest {
            return Ok(None);
        }
    }
    let has_digest = digests.data && length > 0;
    let mut data = vec![0; padded(length) + if has_digest { 4 } else { 0 }];
    stream.read_exact(&mut data).await?;
    if has_digest {
        let (body, digest) = data.split_at(padded(length));
        if crc32c::crc32c(body).to_le_bytes() != *digest {
            return Ok(None);
        }
    }
    data.truncate(length);
    Ok(Some((header, data)))
}

/// Leads a login to its last answer but one. Its time is limited by who calls.
pub async fn negotiate(stream: &mut TcpStream, door: Arc<dyn DiskDoor>) -> io::Result<Ended> {
    let mut login = Login::new();
    let mut stat = 0_u32;
    loop {
        let pdu = read_pdu(stream, Digests::default(), LONGEST_LOGIN).await?;
        let Some((header, data)) = pdu else {
            return Ok(Ended::Gone);
        };
        if stat == 0 {
            stat = header.word(28);
        }
        let mut random = [0; 33];
        // Without randomness there is no proof: better no login than a guessable challenge.
        getrandom::fill(&mut random).map_err(|e| io::Error::other(e.to_string()))?;
        let mut fresh = Fresh {
            id: random[32],
            challenge: [0; 32],
        };
        fresh.challenge.copy_from_slice(&random[..32]);
        let keys = Keys(door.clone());
        let decide = move || {
            let step = login.step(&header, &data, &fresh, &keys);
            (login, step)
        };
        let (next, step) = tokio::task::spawn_blocking(decide)
            .await
            .map_err(io::Error::other)?;
        login = next;
        match step {
            Step::Reply(reply) => {
                let answer = Answer::login(&header, reply.flags, 0, 0);
                send(stream, &header, answer, stat, reply.text.as_bytes()).await?;
                stat = stat.wrapping_add(1);
            }
            Step::Ready(ready) => {
                return Ok(Ended::Admitted(Box::new(Admitted {
                    ready: *ready,
                    request: header,
                    stat,
                })));
            }
            Step::Refuse(refusal) => {
                let answer = Answer::login(&header, 0, 0, refusal.status());
                send(stream, &header, answer, stat, &[]).await?;
                return Ok(Ended::Refused(refusal));
            }
        }
    }
}

/// A login response. Login requests are immediate: the first command has the same CmdSN.
pub fn response(request: &Header, mut answer: Answer, stat: u32, text: &[u8]) -> Vec<u8> {
    let expected = request.word(24);
    let most = expected.wrapping_add(super::machine::window::DEPTH - 1);
    answer.stamp(stat, expected, most);
    bytes(answer, text, Digests::default())
}

async fn send(
    stream: &mut TcpStream,
    request: &Header,
    answer: Answer,
    stat: u32,
    text: &[u8],
) -> io::Result<()> {
    stream
        .write_all(&response(request, answer, stat, text))
        .await
}
