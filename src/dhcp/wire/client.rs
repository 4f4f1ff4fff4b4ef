//! The client's side of DHCP: what a machine says while it boots, and what it is told. For who
//! plays machines (`dls storm`); the server itself never speaks so. Form only, no decision.

use std::net::Ipv4Addr;

use super::scan::{Op, Scan, address};
use super::{Malformed, RequestKind};
use crate::model::MacAddr;

/// RFC 951 section 3: nothing is sent that is shorter.
const LEAST: usize = 300;
/// RFC 2131 section 2: the flag of who can't take unicast before it has an address.
const BROADCAST: [u8; 2] = [0x80, 0];
/// What is asked for (option 55): mask, router, DNS, host name, domain, boot server and file,
/// times, the encapsulated options of PXE and of iPXE.
const WANTED: [u8; 11] = [1, 3, 6, 12, 15, 43, 51, 54, 66, 67, 175];

/// What a machine's network card starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// A BIOS ROM: architecture 0, loader by TFTP.
    Bios,
    /// UEFI x64: architecture 7, loader by TFTP.
    Uefi,
    /// UEFI HTTP Boot: architecture 16, loader by HTTP.
    UefiHttp,
}

impl Firmware {
    /// Its number in option 93 (RFC 4578 section 2.1 and IANA's list).
    #[must_use]
    pub const fn arch(self) -> u16 {
        match self {
            Self::Bios => 0,
            Self::Uefi => 7,
            Self::UefiHttp => 16,
        }
    }
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// The firmware.
    Rom(Firmware),
    /// iPXE, started on that firmware.
    Loader(Firmware),
    /// The operating system.
    System,
}

/// A message of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// What kind.
    pub kind: RequestKind,
    /// Transaction.
    pub xid: u32,
    /// Seconds since it began to ask.
    pub secs: u16,
    /// Whether answers must be broadcast.
    pub broadcast: bool,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Its SMBIOS UUID, as it lies in memory (option 97).
    pub machine_id: [u8; 16],
    /// Who speaks.
    pub speaker: Speaker,
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// Option 54.
    pub server: Option<Ipv4Addr>,
}

impl Ask {
    /// The packet as the client sends it, or, with the address of a relay, as that forwards it
    /// (RFC 1542 section 4.1.1).
    #[must_use]
    pub fn encode(&self, relay: Option<Ipv4Addr>) -> Vec<u8> {
        let mut bytes = vec![0; 240];
        bytes[..4].copy_from_slice(&[1, 1, 6, u8::from(relay.is_some())]);
        bytes[4..8].copy_from_slice(&self.xid.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.secs.to_be_bytes());
        if self.broadcast {
            bytes[10..12].copy_from_slice(&BROADCAST);
        }
        if let Some(relay) = relay {
            bytes[24..28].copy_from_slice(&relay.octets());
        }
        bytes[28..34].copy_from_slice(&self.mac.octets());
        bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
        let mut option = |code: u8, data: &[u8]| {
            bytes.push(code);
            // All of them are ours and short.
            bytes.push(u8::try_from(data.len()).unwrap_or(0));
            bytes.extend_from_slice(data);
        };
        option(53, &[number(self.kind)]);
        if let Some(requested) = self.requested {
            option(50, &requested.octets());
        }
        if let Some(server) = self.server {
            option(54, &server.octets());
        }
        option(57, &1472_u16.to_be_bytes());
        option(55, &WANTED);
        if let Speaker::Rom(firmware) | Speaker::Loader(firmware) = self.speaker {
            let class = match firmware {
                Firmware::UefiHttp if self.speaker == Speaker::Rom(firmware) => "HTTPClient",
                _ => "PXEClient",
            };
            let class = format!("{class}:Arch:{:05}:UNDI:003001", firmware.arch());
            option(60, class.as_bytes());
            option(93, &firmware.arch().to_be_bytes());
            option(94, &[1, 3, 1]);
            let mut id = [0; 17];
            id[1..].copy_from_slice(&self.machine_id);
            option(97, &id);
        }
        if let Speaker::Loader(_) = self.speaker {
            option(77, b"iPXE");
            // Its own: PXE, HTTP and iSCSI it can.
            option(175, &[19, 1, 1, 23, 1, 1, 17, 1, 1]);
        }
        bytes.push(255);
        if bytes.len() < LEAST {
            bytes.resize(LEAST, 0);
        }
        bytes
    }
}

/// RFC 2132 section 9.6.
const fn number(kind: RequestKind) -> u8 {
    match kind {
        RequestKind::Discover => 1,
        RequestKind::Request => 3,
        RequestKind::Decline => 4,
        RequestKind::Release => 7,
        RequestKind::Inform => 8,
    }
}

/// Messages of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// 2
    Offer,
    /// 5
    Ack,
    /// 6
    Nak,
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What kind.
    pub kind: AnswerKind,
    /// Transaction.
    pub xid: u32,
    /// Whom it is for.
    pub mac: MacAddr,
    /// yiaddr.
    pub your_ip: Option<Ipv4Addr>,
    /// Option 54.
    pub server: Option<Ipv4Addr>,
    /// Whom the boot file is to be had from: option 66 where it is an address, else siaddr,
    /// else option 54.
    pub next_server: Option<Ipv4Addr>,
    /// Option 67, else the `file` field where no options lie in it.
    pub boot_file: Option<String>,
    /// Option 56: why, of a NAK.
    pub message: Option<String>,
}

/// Reads a server's answer. `Ok(None)`: it is a client's message, or none that answers one.
///
/// # Errors
/// See [`Malformed`].
pub fn parse(bytes: &[u8]) -> Result<Option<Answer>, Malformed> {
    let scan = Scan::new(bytes)?;
    let kind = match (scan.op, scan.option(53)) {
        (Op::Reply, Some([2])) => AnswerKind::Offer,
        (Op::Reply, Some([5])) => AnswerKind::Ack,
        (Op::Reply, Some([6])) => AnswerKind::Nak,
        _ => return Ok(None),
    };
    let text = |data: &[u8]| {
        let end = data.iter().position(|b| *b == 0).unwrap_or(data.len());
        let text = String::from_utf8_lossy(&data[..end]).into_owned();
        (!text.is_empty()).then_some(text)
    };
    let in_field = !matches!(scan.option(52), Some([1 | 3]));
    let field = bytes.get(108..236).filter(|_| in_field);
    let named = scan.option(66).and_then(text);
    let server = scan.option(54).and_then(address);
    Ok(Some(Answer {
        kind,
        xid: scan.long(4),
        mac: scan.mac,
        your_ip: scan.address(16),
        server,
        next_server: named
            .and_then(|name| name.parse().ok())
            .or(scan.address(20))
            .or(server),
        boot_file: scan
            .option(67)
            .and_then(text)
            .or_else(|| field.and_then(text)),
        message: scan.option(56).and_then(text),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Packet, Vendor};
    use super::*;
    use crate::model::Arch;

    fn ask(kind: RequestKind, speaker: Speaker) -> Ask {
        Ask {
            kind,
            xid: 0x0102_0304,
            secs: 9,
            broadcast: true,
            mac: MacAddr([2, 0, 0, 0, 0, 7]),
            machine_id: [5; 16],
            speaker,
            requested: Some(Ipv4Addr::new(10, 0, 0, 9)),
            server: None,
        }
    }

    #[test]
    fn the_server_reads_what_the_client_means() {
        let cases = [
            (
                Speaker::Rom(Firmware::Bios),
                Vendor::Pxe,
                Some(Arch::Bios),
                false,
            ),
            (
                Speaker::Rom(Firmware::UefiHttp),
                Vendor::Http,
                Some(Arch::from_option_93(16)),
                false,
            ),
            (
                Speaker::Loader(Firmware::Uefi),
                Vendor::Pxe,
                Some(Arch::from_option_93(7)),
                true,
            ),
            (Speaker::System, Vendor::Other, None, false),
        ];
        for (speaker, vendor, arch, ipxe) in cases {
            let ask = ask(RequestKind::Request, speaker);
            for relay in [None, Some(Ipv4Addr::new(10, 0, 0, 2))] {
                let bytes = ask.encode(relay);
                assert!(bytes.len() >= LEAST);
                let Ok(Packet::Request(read)) = super::super::parse(&bytes) else {
                    panic!("{speaker:?} is not read");
                };
                assert_eq!((read.kind, read.xid, read.secs), (ask.kind, ask.xid, 9));
                assert_eq!((read.mac, read.broadcast), (ask.mac, true));
                assert_eq!((read.requested, read.giaddr), (ask.requested, relay));
                assert_eq!((read.vendor, read.arch, read.ipxe), (vendor, arch, ipxe));
                assert_eq!(read.smbios_uuid.is_some(), speaker != Speaker::System);
                assert_eq!(parse(&bytes), Ok(None), "it is no answer");
            }
        }
    }

    #[test]
    fn an_answer_is_read_from_its_options_or_its_fields() {
        let mut bytes = ask(RequestKind::Discover, Speaker::System).encode(None);
        bytes[0] = 2;
        bytes[16..20].copy_from_slice(&[10, 0, 0, 9]);
        bytes[20..24].copy_from_slice(&[10, 0, 0, 1]);
        bytes[108..112].copy_from_slice(b"file");
        bytes.truncate(240);
        bytes.extend([53, 1, 5, 54, 4, 10, 0, 0, 3]);
        let read = parse(&bytes).unwrap().unwrap();
        assert_eq!(read.kind, AnswerKind::Ack);
        assert_eq!(read.your_ip, Some(Ipv4Addr::new(10, 0, 0, 9)));
        assert_eq!(read.server, Some(Ipv4Addr::new(10, 0, 0, 3)));
        assert_eq!(read.next_server, Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(read.boot_file.as_deref(), Some("file"));
        // Options go before fields; a field that holds options is no name.
        let mut named = bytes.clone();
        named.extend([66, 8]);
        named.extend(b"10.0.0.5");
        named.extend([67, 5]);
        named.extend(b"other");
        let read = parse(&named).unwrap().unwrap();
        assert_eq!(read.next_server, Some(Ipv4Addr::new(10, 0, 0, 5)));
        assert_eq!(read.boot_file.as_deref(), Some("other"));
        bytes[108..112].copy_from_slice(&[255, 0, 0, 0]);
        bytes.extend([52, 1, 1]);
        assert_eq!(parse(&bytes).unwrap().unwrap().boot_file, None);
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&noise);
        }
    }
}
