//! The raw scan: a packet's fixed fields and its options, whole and in order.
//!
//! It judges form only (RFC 2131 section 2, RFC 2132 section 2, RFC 3396); what an option
//! means is `parse`'s. Total on any input, one pass over each byte.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::Malformed;
use crate::model::MacAddr;

/// Fixed fields and cookie.
const HEADER: usize = 240;
/// RFC 2131 section 3 (99.130.83.99).
const COOKIE: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
/// RFC 1542 section 4.1.1: a relay drops above it.
const MOST_HOPS: u8 = 16;

const PAD: u8 = 0;
const OVERLOAD: u8 = 52;
const END: u8 = 255;

/// Which way it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// 1
    Request,
    /// 2
    Reply,
}

/// A packet in good form.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    header: &'a [u8; HEADER],
    pub(super) op: Op,
    pub(super) mac: MacAddr,
    options: BTreeMap<u8, Vec<u8>>,
}

impl<'a> Scan<'a> {
    /// Reads the fixed fields, then every option.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, rest) = bytes
            .split_first_chunk::<HEADER>()
            .ok_or(Malformed::Short)?;
        let op = match header[0] {
            1 => Op::Request,
            2 => Op::Reply,
            _ => return Err(Malformed::Op),
        };
        // Ethernet or IEEE 802, both with six bytes; hlen is the attacker's to choose.
        if !matches!(header[1], 1 | 6) || header[2] != 6 {
            return Err(Malformed::Hardware);
        }
        if header[3] > MOST_HOPS {
            return Err(Malformed::Hops);
        }
        if header[236..] != COOKIE {
            return Err(Malformed::Cookie);
        }
        let mut mac = [0; 6];
        mac.copy_from_slice(&header[28..34]);
        let mac = MacAddr(mac);
        if !mac.is_station() {
            return Err(Malformed::Station);
        }
        let mut options = BTreeMap::new();
        read_field(rest, &mut options)?;
        // RFC 2131 section 4.1 and RFC 3396 section 5: options, then file, then sname; an
        // overload option inside those two is no overload.
        let overload = match options.get(&OVERLOAD).map(Vec::as_slice) {
            Some(&[how]) => how,
            _ => 0,
        };
        if matches!(overload, 1 | 3) {
            read_field(&header[108..236], &mut options)?;
        }
        if matches!(overload, 2 | 3) {
            read_field(&header[44..108], &mut options)?;
        }
        Ok(Self {
            header,
            op,
            mac,
            options,
        })
    }

    /// One byte of the fixed fields.
    pub(super) fn byte(&self, at: usize) -> u8 {
        self.header.get(at).copied().unwrap_or(0)
    }

    /// Two bytes of the fixed fields.
    pub(super) fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.byte(at), self.byte(at + 1)])
    }

    /// Four bytes of the fixed fields.
    pub(super) fn long(&self, at: usize) -> u32 {
        (u32::from(self.word(at)) << 16) | u32::from(self.word(at + 2))
    }

    /// An address of the fixed fields; 0.0.0.0 is none.
    pub(super) fn address(&self, at: usize) -> Option<Ipv4Addr> {
        some(Ipv4Addr::from(self.long(at)))
    }

    /// An option's data, its parts joined (RFC 3396 section 5).
    pub(super) fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.get(&code).map(Vec::as_slice)
    }

    /// An option's data, if there is any.
    pub(super) fn filled(&self, code: u8) -> Option<Vec<u8>> {
        self.options.get(&code).filter(|d| !d.is_empty()).cloned()
    }

    /// An option that is one address; any other length, or 0.0.0.0, is none.
    pub(super) fn option_address(&self, code: u8) -> Option<Ipv4Addr> {
        address(self.option(code)?)
    }
}

/// Four bytes as an address that is not 0.0.0.0.
pub(super) fn address(data: &[u8]) -> Option<Ipv4Addr> {
    some(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?))
}

fn some(address: Ipv4Addr) -> Option<Ipv4Addr> {
    (!address.is_unspecified()).then_some(address)
}

/// Reads one field of options to its END, or to its end: END is sometimes missing.
fn read_field(mut rest: &[u8], options: &mut BTreeMap<u8, Vec<u8>>) -> Result<(), Malformed> {
    while let Some((&code, after)) = rest.split_first() {
        match code {
            PAD => rest = after,
            END => break,
            _ => {
                let (&length, after) = after.split_first().ok_or(Malformed::Truncated)?;
                let (data, after) = after
                    .split_at_checked(usize::from(length))
                    .ok_or(Malformed::Truncated)?;
                options.entry(code).or_default().extend_from_slice(data);
                rest = after;
            }
        }
    }
    Ok(())
}

/// Sub-options of an encapsulated option (43, 82), as far as they are in good form. PAD and
/// END stand for themselves in option 43 only.
pub(super) fn sub_option(mut rest: &[u8], wanted: u8, pads: bool) -> Option<&[u8]> {
    while let Some((&code, after)) = rest.split_first() {
        if pads && code == PAD {
            rest = after;
            continue;
        }
        if pads && code == END {
            return None;
        }
        let (&length, after) = after.split_first()?;
        let (data, after) = after.split_at_checked(usize::from(length))?;
        if code == wanted {
            return Some(data);
        }
        rest = after;
    }
    None
}
