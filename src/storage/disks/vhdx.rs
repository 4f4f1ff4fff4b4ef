//! What a vhdx file says of its own log ([MS-VHDX] 2.2.2 and 2.3). `qemu-img` passes over a log
//! that it can't read, as if there were none: then what the log should have put right stays
//! wrong, without a word. So it is looked at before. Nothing is replayed or changed here.

use std::io;

use crate::storage::layer::medium::Medium;

/// Where the two headers lie; the one with the higher sequence number counts.
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const HEADER: usize = 4096;
/// Entries begin at multiples of it.
const SECTOR: u64 = 4096;
/// More than that of a log is not looked at; Hyper-V and QEMU make it 1 MiB.
const MOST: u64 = 64 << 20;

/// The state of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Log {
    /// Nothing is in it: the file was closed.
    Empty,
    /// The file was not closed; the log has what is missing.
    Unplayed,
    /// The file was not closed, and nothing in the log is right.
    Damaged,
    /// Neither header is right.
    NoHeader,
}

fn u32_le(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    four.map_or(0, u32::from_le_bytes)
}

fn u64_le(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_le(bytes, at)) | u64::from(u32_le(bytes, at + 4)) << 32
}

/// Is the sum at byte 4 that of the rest?
fn sum_is_right(mut bytes: Vec<u8>) -> bool {
    let sum = u32_le(&bytes, 4);
    match bytes.get_mut(4..8) {
        Some(place) => place.fill(0),
        None => return false,
    }
    crc32c::crc32c(&bytes) == sum
}

/// Looks at the log of a file that begins like a vhdx.
pub(super) fn log(file: &impl Medium) -> io::Result<Log> {
    let mut best: Option<Vec<u8>> = None;
    for at in HEADERS {
        let mut header = vec![0; HEADER];
        file.read(at, &mut header)?;
        let newer = |best: &Vec<u8>| u64_le(&header, 8) > u64_le(best, 8);
        if header.starts_with(b"head")
            && best.as_ref().is_none_or(newer)
            && sum_is_right(header.clone())
        {
            best = Some(header);
        }
    }
    let Some(header) = best else {
        return Ok(Log::NoHeader);
    };
    let owner = &header[48..64];
    if owner.iter().all(|b| *b == 0) {
        return Ok(Log::Empty);
    }
    let length = u64::from(u32_le(&header, 68));
    let start = u64_le(&header, 72);
    let usable = length.min(MOST);
    if start.checked_add(length).is_none() {
        return Ok(Log::Damaged);
    }
    // However the entries claim to overlap, no more than this is summed.
    let mut budget = 2 * usable;
    for at in (0..usable).step_by(SECTOR as usize) {
        let mut head = [0; 64];
        file.read(start + at, &mut head)?;
        let entry = u64::from(u32_le(&head, 8));
        let possible = head.starts_with(b"loge")
            && head[32..48] == *owner
            && entry > 0
            && entry.is_multiple_of(SECTOR)
            && entry <= usable.min(budget);
        if possible {
            budget -= entry;
            // The log is a ring.
            let before = entry.min(length - at);
            let mut bytes = vec![0; usize::try_from(entry).unwrap_or(0)];
            let (first, second) = bytes.split_at_mut(usize::try_from(before).unwrap_or(0));
            file.read(start + at, first)?;
            file.read(start, second)?;
            if sum_is_right(bytes) {
                return Ok(Log::Unplayed);
            }
        }
    }
    Ok(Log::Damaged)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::storage::layer::medium::Stored;

    /// With its sum put in.
    fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes[4..8].fill(0);
        let sum = crc32c::crc32c(&bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn header(sequence: u64, owner: u8, length: u32) -> Vec<u8> {
        let mut header = vec![0; HEADER];
        header[..4].copy_from_slice(b"head");
        header[8..16].copy_from_slice(&sequence.to_le_bytes());
        header[48..64].fill(owner);
        header[68..72].copy_from_slice(&length.to_le_bytes());
        header[72..80].copy_from_slice(&(1_u64 << 20).to_le_bytes());
        summed(header)
    }

    fn entry(owner: u8, sectors: u32) -> Vec<u8> {
        let mut entry = vec![7; sectors as usize * 4096];
        entry[..4].copy_from_slice(b"loge");
        entry[8..12].copy_from_slice(&(sectors * 4096).to_le_bytes());
        entry[32..48].fill(owner);
        summed(entry)
    }

    fn said(parts: &[(u64, Vec<u8>)]) -> Log {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"vhdxfile").unwrap();
        file.set_len(3 << 20).unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).unwrap();
        }
        log(&Stored(file)).unwrap()
    }

    #[test]
    fn a_log_is_empty_or_can_be_replayed_or_is_damaged() {
        const LOG: u64 = 1 << 20;
        let [one, two] = HEADERS;
        assert_eq!(said(&[]), Log::NoHeader);
        let (old, closed) = (header(4, 9, 1 << 20), header(5, 0, 1 << 20));
        assert_eq!(said(&[(one, old), (two, closed.clone())]), Log::Empty);
        // The newer header counts, if it is right.
        let open = header(6, 9, 1 << 20);
        let headers = [(one, open.clone()), (two, closed.clone())];
        assert_eq!(said(&headers), Log::Damaged);
        let mut torn = open.clone();
        torn[100] ^= 1;
        assert_eq!(said(&[(one, torn), (two, closed)]), Log::Empty);
        let with = |at, bytes| said(&[(one, open.clone()), (LOG + at, bytes)]);
        assert_eq!(with(8192, entry(9, 2)), Log::Unplayed);
        assert_eq!(with(8192, entry(8, 2)), Log::Damaged, "of an earlier use");
        assert_eq!(with(512, entry(9, 2)), Log::Damaged);
        let mut torn = entry(9, 2);
        torn[5000] ^= 1;
        assert_eq!(with(0, torn), Log::Damaged);
        // Over the end of the ring.
        let (end, start) = (entry(9, 2)[..4096].to_vec(), entry(9, 2)[4096..].to_vec());
        let ring = [(one, open), (2 * LOG - 4096, end), (LOG, start)];
        assert_eq!(said(&ring), Log::Unplayed);
    }

    #[test]
    fn no_claim_of_a_log_costs_more_than_its_length() {
        // Each sector claims an entry of the whole log; and a log of 4 GiB behind all ends.
        let mut parts = vec![(HEADERS[0], header(1, 9, 1 << 20))];
        for at in (0..1_u64 << 20).step_by(4096) {
            parts.push(((1 << 20) + at, entry(9, 256)[..64].to_vec()));
        }
        assert_eq!(said(&parts), Log::Damaged);
        let mut endless = header(1, 9, u32::MAX);
        endless[72..80].fill(0xff);
        assert_eq!(said(&[(HEADERS[0], summed(endless))]), Log::Damaged);
    }
}
