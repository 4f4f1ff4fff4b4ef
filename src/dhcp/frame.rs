//! IPv4/UDP packets and ARP messages as bytes. Pure: no socket, no clock.
//!
//! What stands here begins at the network layer: the kernel writes the Ethernet header
//! (our sockets are `AF_PACKET`/`SOCK_DGRAM`), so that VLAN interfaces need nothing special.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::model::MacAddr;

const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const UDP: u8 = 17;

/// Builds an IPv4/UDP packet with both checksums; `None` if the payload does not fit into
/// one (65,507 bytes).
#[must_use]
pub(crate) fn udp_packet(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Option<Vec<u8>> {
    let total = u16::try_from(IPV4_HEADER + UDP_HEADER + payload.len()).ok()?;
    let udp_length = total - IPV4_HEADER as u16;

    let mut packet = Vec::with_capacity(usize::from(total));
    packet.extend_from_slice(&[0x45, 0x10]); // version 4, 5 words; low delay (RFC 1349)
    packet.extend_from_slice(&total.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0x40, 0, 64, UDP, 0, 0]); // id 0, don't fragment, TTL 64
    packet.extend_from_slice(&from.ip().octets());
    packet.extend_from_slice(&to.ip().octets());
    let header_sum = fold(sum(&packet));
    packet[10..12].copy_from_slice(&header_sum.to_be_bytes());

    packet.extend_from_slice(&from.port().to_be_bytes());
    packet.extend_from_slice(&to.port().to_be_bytes());
    packet.extend_from_slice(&udp_length.to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    let pseudo =
        sum(&from.ip().octets()) + sum(&to.ip().octets()) + u64::from(UDP) + u64::from(udp_length);
    // RFC 768: a sum of zero is sent as all ones, since zero means "none".
    let udp_sum = match fold(pseudo + sum(&packet[IPV4_HEADER..])) {
        0 => 0xffff,
        sum => sum,
    };
    packet[26..28].copy_from_slice(&udp_sum.to_be_bytes());
    Some(packet)
}

/// The UDP payload of an IPv4 packet, with both ends. Checksums are not looked at: between
/// virtual interfaces of one machine they are legally left unfinished. `None`: it is no
/// whole UDP packet, or a fragment.
#[must_use]
pub(crate) fn udp_payload(packet: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4, &[u8])> {
    let first = *packet.first()?;
    let header = usize::from(first & 0x0f) * 4;
    let total = usize::from(be16(packet, 2)?);
    let fragment = be16(packet, 6)? & 0x3fff;
    if first >> 4 != 4 || header < IPV4_HEADER || fragment != 0 || *packet.get(9)? != UDP {
        return None;
    }
    let datagram = packet.get(header..total)?;
    let length = usize::from(be16(datagram, 4)?);
    let payload = datagram.get(UDP_HEADER..length)?;
    Some((
        SocketAddrV4::new(ipv4(packet, 12)?, be16(datagram, 0)?),
        SocketAddrV4::new(ipv4(packet, 16)?, be16(datagram, 2)?),
        payload,
    ))
}

/// An ARP message for IPv4 over Ethernet (RFC 826).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arp {
    /// Asks (1) or tells (2).
    pub(super) operation: ArpOperation,
    /// Who sends it.
    pub(super) sender_mac: MacAddr,
    /// Its address; 0.0.0.0 in a probe.
    pub(super) sender_ip: Ipv4Addr,
    /// Zero in a question.
    pub(super) target_mac: MacAddr,
    /// The address that is asked for, or whom it is told to.
    pub(super) target_ip: Ipv4Addr,
}

/// What an ARP message does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArpOperation {
    /// 1
    Request,
    /// 2
    Reply,
}

impl Arp {
    /// RFC 5227 section 1.1: a probe carries no sender address, so that it spoils nobody's
    /// ARP cache.
    #[must_use]
    pub(super) fn probe(our_mac: MacAddr, address: Ipv4Addr) -> Self {
        Self {
            operation: ArpOperation::Request,
            sender_mac: our_mac,
            sender_ip: Ipv4Addr::UNSPECIFIED,
            target_mac: MacAddr([0; 6]),
            target_ip: address,
        }
    }

    /// The address that this message shows to be in use: the sender's. A probe (no sender
    /// address) shows none: another server of the site, which looks at a free address in the
    /// same moment, must not make it look taken. A client that is about to use it answers for
    /// it a moment later.
    #[must_use]
    pub(super) fn shows_in_use(&self) -> Option<Ipv4Addr> {
        (!self.sender_ip.is_unspecified()).then_some(self.sender_ip)
    }

    /// The 28 bytes.
    #[must_use]
    pub(super) fn encode(&self) -> [u8; 28] {
        let operation = match self.operation {
            ArpOperation::Request => 1,
            ArpOperation::Reply => 2,
        };
        let mut bytes = [0; 28];
        bytes[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, operation]);
        bytes[8..14].copy_from_slice(&self.sender_mac.octets());
        bytes[14..18].copy_from_slice(&self.sender_ip.octets());
        bytes[18..24].copy_from_slice(&self.target_mac.octets());
        bytes[24..28].copy_from_slice(&self.target_ip.octets());
        bytes
    }

    /// Reads one; `None` for any other hardware, protocol, operation or length.
    #[must_use]
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let operation = match bytes.get(..8)? {
            [0, 1, 8, 0, 6, 4, 0, 1] => ArpOperation::Request,
            [0, 1, 8, 0, 6, 4, 0, 2] => ArpOperation::Reply,
            _ => return None,
        };
        Some(Self {
            operation,
            sender_mac: mac(bytes, 8)?,
            sender_ip: ipv4(bytes, 14)?,
            target_mac: mac(bytes, 18)?,
            target_ip: ipv4(bytes, 24)?,
        })
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes(pair.try_into().ok()?))
}

fn ipv4(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(four.into())
}

fn mac(bytes: &[u8], at: usize) -> Option<MacAddr> {
    Some(MacAddr(bytes.get(at..at + 6)?.try_into().ok()?))
}

/// RFC 1071: the sum of 16-bit words, the last one padded.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
            [high] => u64::from(*high) << 8,
            _ => 0,
        })
        .sum()
}

/// Its complement, carries folded in.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn end(ip: [u8; 4], port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(ip.into(), port)
    }

    #[test]
    fn the_header_checksum_is_that_of_a_known_packet() {
        // The worked example of RFC 1071's kind: a header that sums to zero with its checksum.
        let packet = udp_packet(end([192, 168, 0, 1], 67), end([192, 168, 0, 199], 68), &[]);
        let packet = packet.unwrap();
        assert_eq!(fold(sum(&packet[..20])), 0);
        assert_eq!(packet.len(), 28);
    }

    #[test]
    fn arp_both_ways() {
        let ours = MacAddr([2, 0, 0, 0, 0, 1]);
        let probe = Arp::probe(ours, Ipv4Addr::new(10, 0, 0, 9));
        assert_eq!(Arp::parse(&probe.encode()), Some(probe));
        assert_eq!(probe.shows_in_use(), None);
        let answer = Arp {
            operation: ArpOperation::Reply,
            sender_ip: Ipv4Addr::new(10, 0, 0, 9),
            ..probe
        };
        assert_eq!(Arp::parse(&answer.encode()), Some(answer));
        assert_eq!(answer.shows_in_use(), Some(answer.sender_ip));
        let mut tokenring = probe.encode();
        tokenring[1] = 6;
        assert_eq!(Arp::parse(&tokenring), None);
        assert_eq!(Arp::parse(&probe.encode()[..27]), None);
    }

    #[test]
    fn fragments_and_others_are_no_udp() {
        let whole = udp_packet(end([10, 0, 0, 1], 67), end([10, 0, 0, 2], 68), b"x").unwrap();
        let mut fragment = whole.clone();
        fragment[7] = 1;
        assert!(udp_payload(&fragment).is_none());
        let mut tcp = whole.clone();
        tcp[9] = 6;
        assert!(udp_payload(&tcp).is_none());
        assert!(udp_payload(&whole[..whole.len() - 1]).is_none());
    }

    proptest! {
        #[test]
        fn what_was_built_is_read_and_sums_up(
            from in any::<([u8; 4], u16)>(),
            to in any::<([u8; 4], u16)>(),
            payload in proptest::collection::vec(any::<u8>(), 0..700),
        ) {
            let (from, to) = (end(from.0, from.1), end(to.0, to.1));
            let packet = udp_packet(from, to, &payload).unwrap();
            prop_assert_eq!(udp_payload(&packet), Some((from, to, payload.as_slice())));
            let pseudo = sum(&packet[12..20]) + 17 + (packet.len() - 20) as u64;
            prop_assert_eq!(fold(pseudo + sum(&packet[20..])), 0);
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = udp_payload(&noise);
            let _ = Arp::parse(&noise);
        }
    }
}
