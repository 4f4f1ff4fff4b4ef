//! How the disk describes itself: standard INQUIRY data, VPD pages, capacity, LUNs. All names
//! come from the client that owns the disk, so that a system sees the same disk for ever.

use super::{BLOCK, MOST_COMPARE, MOST_TRANSFER, MOST_UNMAP, MOST_UNMAP_DESCRIPTORS, Sense};
use crate::model::DiskIdentity;

const VENDOR: &[u8; 8] = b"DLS     ";
const PRODUCT: &[u8; 16] = b"Network disk    ";
const REVISION: &[u8; 4] = b"1   ";

/// What a disk says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Portrait {
    /// Its names.
    pub identity: DiskIdentity,
    /// Logical blocks.
    pub blocks: u64,
    /// Bytes that are best read and written at once.
    pub preferred: u32,
    /// Writes are refused.
    pub read_only: bool,
}

/// Standard INQUIRY data (SPC-4 6.6.2). `there`: false at a LUN without a disk.
#[must_use]
pub fn standard(there: bool) -> Vec<u8> {
    let mut data = vec![0_u8; 74];
    // Qualifier 3, type 1f: no device can be there (SPC-4 table 146).
    data[0] = if there { 0x00 } else { 0x7f };
    data[2] = 0x06;
    data[3] = 0x12;
    data[4] = 69;
    data[7] = 0x02;
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(PRODUCT);
    data[32..36].copy_from_slice(REVISION);
    // SAM-5, iSCSI, SPC-4, SBC-3: claims without a revision of the drafts.
    for (at, version) in [(58, 0x00a0_u16), (60, 0x0960), (62, 0x0460), (64, 0x04c0)] {
        data[at..at + 2].copy_from_slice(&version.to_be_bytes());
    }
    data
}

/// A VPD page.
///
/// # Errors
/// There is no such page.
pub fn page(number: u8, disk: &Portrait) -> Result<Vec<u8>, Sense> {
    let body = match number {
        0x00 => vec![0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2],
        0x80 => disk.identity.serial().into_bytes(),
        0x83 => designators(&disk.identity),
        0xb0 => limits(disk),
        0xb1 => {
            let mut body = vec![0; 60];
            // Does not rotate.
            body[1] = 1;
            body
        }
        // Thin: UNMAP and WRITE SAME unmap, what is unmapped reads as zeroes.
        0xb2 => vec![0, 0xe4, 0x02, 0],
        _ => return Err(Sense::FIELD),
    };
    let length = u16::try_from(body.len()).unwrap_or(0).to_be_bytes();
    let mut page = vec![0, number, length[0], length[1]];
    page.extend(body);
    Ok(page)
}

/// Page 83 (SPC-4 7.8.6): who the disk is, and which port and target it is reached by.
fn designators(identity: &DiskIdentity) -> Vec<u8> {
    let mut body = Vec::new();
    let mut add = |head: [u8; 3], name: &[u8]| {
        body.extend(head);
        body.push(u8::try_from(name.len()).unwrap_or(0));
        body.extend(name);
    };
    add([0x01, 0x03, 0], &identity.naa());
    let mut t10 = VENDOR.to_vec();
    t10.extend(identity.serial().bytes());
    add([0x02, 0x01, 0], &t10);
    // Relative target port 1, target port group 1.
    add([0x51, 0x94, 0], &[0, 0, 0, 1]);
    add([0x51, 0x95, 0], &[0, 0, 0, 1]);
    // SCSI name strings of port and device: zero-terminated, padded to four.
    let padded = |name: String| {
        let mut name = name.into_bytes();
        name.push(0);
        name.resize(name.len().next_multiple_of(4), 0);
        name
    };
    add(
        [0x53, 0x98, 0],
        &padded(format!("{},t,0x0001", identity.iqn())),
    );
    add([0x53, 0xa8, 0], &padded(identity.iqn()));
    body
}

/// Page B0 (SBC-3 6.6.4); every limit is one that is held.
fn limits(disk: &Portrait) -> Vec<u8> {
    let mut body = vec![0_u8; 60];
    let mut put = |at: usize, value: &[u8]| body[at..at + value.len()].copy_from_slice(value);
    let grain = (u64::from(disk.preferred) / BLOCK).clamp(1, 0x7fff);
    let grain = u32::try_from(grain).unwrap_or(8);
    // WSNZ: WRITE SAME of 0 blocks is refused.
    put(0, &[1, MOST_COMPARE]);
    put(2, &u16::try_from(grain).unwrap_or(8).to_be_bytes());
    put(4, &MOST_TRANSFER.to_be_bytes());
    put(8, &2048_u32.to_be_bytes());
    put(16, &MOST_UNMAP.to_be_bytes());
    put(20, &MOST_UNMAP_DESCRIPTORS.to_be_bytes());
    put(24, &grain.to_be_bytes());
    put(28, &0x8000_0000_u32.to_be_bytes());
    put(32, &u64::from(MOST_UNMAP).to_be_bytes());
    body
}

/// READ CAPACITY (10): 8 bytes; all ones when it does not fit.
#[must_use]
pub fn capacity10(disk: &Portrait) -> Vec<u8> {
    let last = u32::try_from(disk.blocks.saturating_sub(1)).unwrap_or(u32::MAX);
    let mut data = last.to_be_bytes().to_vec();
    data.extend(512_u32.to_be_bytes());
    data
}

/// READ CAPACITY (16): 32 bytes.
#[must_use]
pub fn capacity16(disk: &Portrait) -> Vec<u8> {
    let mut data = disk.blocks.saturating_sub(1).to_be_bytes().to_vec();
    data.extend(512_u32.to_be_bytes());
    // 2^3 logical blocks are a physical one; thin (LBPME), reads as zeroes (LBPRZ).
    data.extend([0, 3, 0xc0, 0]);
    data.resize(32, 0);
    data
}

/// REPORT LUNS: LUN 0; no well-known ones.
#[must_use]
pub fn luns(select: u8) -> Vec<u8> {
    let mut data = vec![0; 8];
    if select != 1 {
        data[3] = 8;
        data.extend([0; 8]);
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn disk() -> Portrait {
        Portrait {
            identity: DiskIdentity {
                owner: Uuid::from_u128(7),
            },
            blocks: 2048,
            preferred: 4096,
            read_only: false,
        }
    }

    #[test]
    fn every_page_that_is_named_is_there() {
        let all = page(0, &disk()).unwrap();
        for number in &all[4..] {
            let page = page(*number, &disk()).unwrap();
            assert_eq!(page[1], *number);
            assert_eq!(
                usize::from(page[2]) << 8 | usize::from(page[3]),
                page.len() - 4
            );
        }
        assert_eq!(page(0x84, &disk()), Err(Sense::FIELD));
    }

    #[test]
    fn capacity() {
        assert_eq!(capacity10(&disk()), [0, 0, 7, 255, 0, 0, 2, 0]);
        let huge = Portrait {
            blocks: 1 << 33,
            ..disk()
        };
        assert_eq!(capacity10(&huge)[..4], [255; 4]);
        assert_eq!(capacity16(&huge)[..8], ((1_u64 << 33) - 1).to_be_bytes());
        assert_eq!(standard(true).len(), 74);
    }
}
