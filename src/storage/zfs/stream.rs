//! The records of a `zfs send` stream, as far as they tell which parts of a zvol it would write:
//! data is passed over. Pure; it runs nothing.
//!
//! A record is 312 bytes in this machine's byte order, and then its payload, whose length each
//! type says in its own way. The disk's content is the first object of a zvol; the second holds
//! its size.

use std::io::{self, ErrorKind, Read};
use std::ops::Range;

/// Bytes of a record.
pub(super) const RECORD: usize = 312;
/// At the start of the first one.
const MAGIC: u64 = 0x2_f5ba_cbac;
/// The object that is the disk.
const DISK: u64 = 1;

/// One record.
struct Record([u8; RECORD]);

impl Record {
    /// `None` at the end of the stream.
    fn read(from: &mut dyn Read) -> io::Result<Option<Self>> {
        let mut record = [0; RECORD];
        let mut filled = 0;
        while filled < RECORD {
            match from.read(&mut record[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => filled += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Some(Self(record)))
    }

    fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or_default()
    }

    fn short(&self, at: usize) -> u64 {
        let bytes = self.0.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes.map_or(0, |b| u64::from(u32::from_ne_bytes(b)))
    }

    fn long(&self, at: usize) -> u64 {
        let bytes = self.0.get(at..at + 8).and_then(|b| b.try_into().ok());
        bytes.map_or(0, u64::from_ne_bytes)
    }
}

fn unknown(what: &str) -> io::Error {
    let why = format!("`zfs send` gave {what}");
    io::Error::new(ErrorKind::InvalidData, why)
}

/// Of which snapshot a stream is, and at which it begins: their guids, 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) to: u64,
    pub(super) from: u64,
}

/// Reads the first record of a stream, which must be of one zvol: nothing of a stream that has more than
/// one dataset in it, or properties, is taken.
pub(super) fn head(bytes: &[u8]) -> Result<Head, &'static str> {
    const ONE: u64 = 1;
    const RAW: u64 = 1 << (2 + 24);
    const ZVOL: u64 = 3;
    let record = bytes.get(..RECORD).and_then(|b| b.try_into().ok());
    let record = Record(record.ok_or("it ends in its first record")?);
    if record.short(0) != 0 || record.long(8) != MAGIC {
        return Err("it is no stream of ZFS, or of a machine with another byte order");
    }
    let version = record.long(16);
    if version & 3 != ONE || record.short(32) != ZVOL {
        return Err("it is not of one zvol");
    }
    if version & RAW != 0 {
        return Err("it is a raw stream");
    }
    Ok(Head {
        to: record.long(40),
        from: record.long(48),
    })
}

/// Adds what a stream writes of the disk, in the stream's order, and with `holes` what it frees.
pub(super) fn ranges(
    from: &mut dyn Read,
    holes: bool,
    found: &mut Vec<Range<u64>>,
) -> io::Result<()> {
    let (mut begun, mut ended) = (false, false);
    while let Some(record) = Record::read(from)? {
        let kind = record.short(0);
        if begun == (kind == 0) {
            return Err(unknown("a stream that begins twice, or not at all"));
        }
        let disk = record.long(8) == DISK;
        let payload = match kind {
            0 => {
                if record.long(8) != MAGIC {
                    return Err(unknown("no stream"));
                }
                begun = true;
                record.short(4)
            }
            // An object: its bonus.
            1 => match record.short(36) {
                0 => record.short(28).next_multiple_of(8),
                raw => raw,
            },
            // Objects that are gone; an encrypted stream's ranges of them.
            2 | 9 => 0,
            // Data.
            3 => {
                let (offset, length) = (record.long(24), record.long(32));
                if disk {
                    found.push(offset..offset.saturating_add(length));
                }
                match record.byte(50) {
                    0 => length,
                    _ => record.long(96),
                }
            }
            // What is a hole now; a length of all ones is "to the end".
            4 => {
                if disk && holes {
                    let (offset, length) = (record.long(16), record.long(24));
                    found.push(offset..offset.saturating_add(length));
                }
                0
            }
            5 => {
                ended = true;
                0
            }
            7 => match record.long(40) {
                0 => record.long(16),
                packed => packed,
            },
            // Data that is so short that it lies in its pointer.
            8 => {
                if disk {
                    let (offset, length) = (record.long(16), record.long(24));
                    found.push(offset..offset.saturating_add(length));
                }
                record.short(52).next_multiple_of(8)
            }
            _ => return Err(unknown("a record of a kind that is not known")),
        };
        let passed = io::copy(&mut (&mut *from).take(payload), &mut io::sink())?;
        if passed < payload {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    match ended {
        true => Ok(()),
        false => Err(ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of a kind: numbers of 8 bytes, and of 4, at their places; and its payload.
    fn record(kind: u32, long: &[(usize, u64)], short: &[(usize, u32)], payload: usize) -> Vec<u8> {
        let mut bytes = vec![0; RECORD];
        bytes[..4].copy_from_slice(&kind.to_ne_bytes());
        for (at, value) in long {
            bytes[*at..at + 8].copy_from_slice(&value.to_ne_bytes());
        }
        for (at, value) in short {
            bytes[*at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        bytes.extend(vec![0xee; payload]);
        bytes
    }

    fn stream() -> Vec<Vec<u8>> {
        let mut packed = record(3, &[(8, 1), (24, 8192), (32, 8192), (96, 512)], &[], 512);
        packed[50] = 15;
        vec![
            record(0, &[(8, MAGIC)], &[(4, 96)], 96),
            record(1, &[(8, 1)], &[(28, 5)], 8),
            record(2, &[(8, 3), (16, 9)], &[], 0),
            record(3, &[(8, 1), (24, 0), (32, 4096)], &[], 4096),
            packed,
            // The size's object is none of the disk.
            record(3, &[(8, 2), (24, 0), (32, 512)], &[], 512),
            record(8, &[(8, 1), (16, 16384), (24, 4096)], &[(52, 13)], 16),
            record(4, &[(8, 1), (16, 65536), (24, u64::MAX)], &[], 0),
            record(5, &[], &[], 0),
        ]
    }

    fn read(bytes: &[u8], holes: bool) -> io::Result<Vec<Range<u64>>> {
        let mut found = Vec::new();
        ranges(&mut &*bytes, holes, &mut found).map(|()| found)
    }

    #[test]
    fn what_a_stream_writes_and_frees_is_found() {
        let whole = stream().concat();
        let mut expected = vec![0..4096, 8192..16384, 16384..20480];
        assert_eq!(read(&whole, false).unwrap(), expected);
        expected.push(65536..u64::MAX);
        assert_eq!(read(&whole, true).unwrap(), expected);
    }

    #[test]
    fn only_a_plain_stream_of_one_zvol_is_taken() {
        let begin = |version: u64, kind: u32| {
            let long = [(8, MAGIC), (16, version), (40, 7), (48, 5)];
            record(0, &long, &[(32, kind)], 0)
        };
        assert_eq!(head(&begin(1 | 4 << 2, 3)), Ok(Head { to: 7, from: 5 }));
        assert!(head(&begin(1, 2)).is_err(), "a file system");
        assert!(head(&begin(2, 3)).is_err(), "several datasets");
        assert!(head(&begin(1 | 1 << 26, 3)).is_err(), "raw");
        assert!(head(&begin(1, 3)[..RECORD - 1]).is_err(), "cut short");
        assert!(head(&record(3, &[(8, MAGIC)], &[(32, 3)], 0)).is_err());
    }

    #[test]
    fn a_stream_that_is_cut_short_or_none_is_refused() {
        let whole = stream().concat();
        for end in (0..whole.len()).step_by(61) {
            assert!(read(&whole[..end], false).is_err(), "{end}");
        }
        assert!(read(&stream()[1..].concat(), false).is_err());
        let mut twice = stream();
        twice.insert(3, twice[0].clone());
        assert!(read(&twice.concat(), false).is_err());
        let mut strange = stream();
        strange.insert(3, record(10, &[], &[], 0));
        assert!(read(&strange.concat(), false).is_err());
    }
}
