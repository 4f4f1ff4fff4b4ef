//! A DHCP client made of bytes, for what real clients never do.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::lan::Host;

pub(crate) const DISCOVER: u8 = 1;
pub(crate) const OFFER: u8 = 2;
pub(crate) const REQUEST: u8 = 3;
pub(crate) const DECLINE: u8 = 4;
pub(crate) const ACK: u8 = 5;
pub(crate) const NAK: u8 = 6;
pub(crate) const RELEASE: u8 = 7;
pub(crate) const INFORM: u8 = 8;

/// A message to send. The broadcast flag is set: a plain socket hears no frame that goes to
/// an address it does not have.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) kind: u8,
    pub(crate) xid: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) ciaddr: Ipv4Addr,
    pub(crate) options: Vec<(u8, Vec<u8>)>,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) kind: u8,
    pub(crate) address: Ipv4Addr,
    pub(crate) next_server: Ipv4Addr,
    pub(crate) file: String,
    pub(crate) options: BTreeMap<u8, Vec<u8>>,
    pub(crate) from: SocketAddrV4,
}

impl Message {
    pub(crate) fn new(kind: u8, mac: [u8; 6], xid: u32) -> Self {
        Self {
            kind,
            xid,
            mac,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            options: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, code: u8, value: &[u8]) -> Self {
        self.options.push((code, value.to_vec()));
        self
    }

    pub(crate) fn requesting(self, address: Ipv4Addr) -> Self {
        self.with(50, &address.octets())
    }

    pub(crate) fn of_server(self, server: Ipv4Addr) -> Self {
        self.with(54, &server.octets())
    }

    /// As a BIOS boot ROM.
    pub(crate) fn pxe(self) -> Self {
        self.with(60, b"PXEClient:Arch:00000:UNDI:002001")
            .with(93, &[0, 0])
            .with(94, &[1, 2, 1])
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 236];
        bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
        bytes[4..8].copy_from_slice(&self.xid.to_be_bytes());
        bytes[10] = 0x80;
        bytes[12..16].copy_from_slice(&self.ciaddr.octets());
        bytes[28..34].copy_from_slice(&self.mac);
        bytes.extend_from_slice(&[99, 130, 83, 99, 53, 1, self.kind]);
        for (code, value) in &self.options {
            bytes.push(*code);
            bytes.push(u8::try_from(value.len()).unwrap());
            bytes.extend_from_slice(value);
        }
        bytes.push(255);
        bytes.resize(bytes.len().max(300), 0);
        bytes
    }
}

impl Answer {
    fn parse(bytes: &[u8], from: SocketAddrV4) -> Option<(u32, Self)> {
        let xid = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
        let four = |at: usize| -> Option<Ipv4Addr> {
            let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(four.into())
        };
        let mut options = BTreeMap::new();
        let mut rest = bytes.get(240..)?;
        while let [code, length, tail @ ..] = rest {
            match code {
                0 => rest = &rest[1..],
                255 => break,
                _ => {
                    let length = usize::from(*length);
                    options.insert(*code, tail.get(..length)?.to_vec());
                    rest = tail.get(length..)?;
                }
            }
        }
        let file = bytes.get(108..236)?.split(|byte| *byte == 0).next()?;
        let answer = Self {
            kind: *options.get(&53)?.first()?,
            address: four(16)?,
            next_server: four(20)?,
            file: String::from_utf8_lossy(file).into_owned(),
            options,
            from,
        };
        Some((xid, answer))
    }

    pub(crate) fn server(&self) -> Ipv4Addr {
        let four: [u8; 4] = self.options[&54].as_slice().try_into().unwrap();
        four.into()
    }
}

/// A socket on `lan0` of a host; usable from anywhere once it is open.
pub(crate) struct Talker {
    socket: UdpSocket,
}

impl Talker {
    pub(crate) fn new(host: &Host) -> Self {
        Self::on_port(host, 68)
    }

    pub(crate) fn on_port(host: &Host, port: u16) -> Self {
        let socket = host.enter(move || {
            let socket = socket2::Socket::new(
                socket2::Domain::IPV4,
                socket2::Type::DGRAM,
                Some(socket2::Protocol::UDP),
            )
            .unwrap();
            socket.bind_device(Some(b"lan0")).unwrap();
            socket.set_broadcast(true).unwrap();
            let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
            socket.bind(&any.into()).unwrap();
            assert!(socket.as_raw_fd() >= 0);
            UdpSocket::from(socket)
        });
        Self {
            socket: socket.join().unwrap(),
        }
    }

    pub(crate) fn send(&self, bytes: &[u8]) {
        self.send_to(bytes, SocketAddrV4::new(Ipv4Addr::BROADCAST, 67));
    }

    pub(crate) fn send_to(&self, bytes: &[u8], to: SocketAddrV4) {
        self.socket.send_to(bytes, to).unwrap();
    }

    /// Everything that comes for a transaction within a time.
    #[expect(clippy::disallowed_methods, reason = "waits for a server in real time")]
    pub(crate) fn hear(&self, xid: u32, limit: Duration, enough: usize) -> Vec<Answer> {
        let begun = Instant::now();
        let mut heard = Vec::new();
        let mut buffer = [0; 2048];
        while let Some(left) = limit.checked_sub(begun.elapsed()).filter(|l| !l.is_zero()) {
            self.socket.set_read_timeout(Some(left)).unwrap();
            let Ok((length, std::net::SocketAddr::V4(from))) = self.socket.recv_from(&mut buffer)
            else {
                break;
            };
            if let Some((its, answer)) = Answer::parse(&buffer[..length], from)
                && its == xid
            {
                heard.push(answer);
                if heard.len() == enough {
                    break;
                }
            }
        }
        heard
    }

    /// Sends, and the first answer within two seconds.
    pub(crate) fn ask(&self, message: &Message) -> Option<Answer> {
        self.send(&message.bytes());
        self.hear(message.xid, Duration::from_secs(2), 1).pop()
    }

    /// DISCOVER, OFFER, REQUEST, ACK.
    pub(crate) fn lease(&self, mac: [u8; 6], xid: u32) -> Option<Answer> {
        self.lease_as(mac, xid, |message| message)
    }

    /// The same with more options.
    pub(crate) fn lease_as(
        &self,
        mac: [u8; 6],
        xid: u32,
        more: impl Fn(Message) -> Message,
    ) -> Option<Answer> {
        let offer = self.ask(&more(Message::new(DISCOVER, mac, xid)))?;
        assert_eq!(offer.kind, OFFER);
        let request = Message::new(REQUEST, mac, xid)
            .requesting(offer.address)
            .of_server(offer.server());
        let answer = self.ask(&more(request))?;
        assert_eq!(answer.kind, ACK);
        assert_eq!(answer.address, offer.address);
        Some(answer)
    }
}
