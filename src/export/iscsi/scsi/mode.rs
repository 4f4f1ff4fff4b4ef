//! Mode pages: what MODE SENSE tells, and MODE SELECT that changes nothing.

use super::inquiry::Portrait;
use super::lists::pages;
use super::{BLOCK, Sense};

/// Caching (SBC-3 6.5.6): writes are cached until flushed.
const CACHING: [u8; 20] = {
    let mut page = [0; 20];
    page[0] = 0x08;
    page[1] = 18;
    page[2] = 0x04;
    page
};
/// Control (SPC-4 7.5.8): commands may be reordered, nothing else is switched on.
const CONTROL: [u8; 12] = [0x0a, 10, 0x02, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
/// Informational exceptions (SPC-4 7.5.11): none are reported.
const EXCEPTIONS: [u8; 12] = [0x1c, 10, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0];

const ALL: [&[u8]; 3] = [&CACHING, &CONTROL, &EXCEPTIONS];

/// What MODE SENSE asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The form of 6 bytes.
    pub six: bool,
    /// No block descriptor.
    pub no_descriptor: bool,
    /// Current, changeable, default, saved.
    pub control: u8,
    /// Page; 3f is all.
    pub page: u8,
    /// Subpage; ff is all.
    pub subpage: u8,
}

/// MODE SENSE.
///
/// # Errors
/// No such page; saved values.
pub fn sense(asked: &Question, disk: &Portrait) -> Result<Vec<u8>, Sense> {
    if asked.control == 3 {
        return Err(Sense::SAVING);
    }
    if asked.subpage != 0 && asked.subpage != 0xff {
        return Err(Sense::FIELD);
    }
    let chosen = ALL
        .iter()
        .filter(|p| asked.page == 0x3f || p[0] == asked.page);
    let mut body = Vec::new();
    for page in chosen {
        let start = body.len();
        body.extend_from_slice(page);
        if asked.control == 1 {
            // Nothing can be changed.
            body[start + 2..].fill(0);
        }
    }
    if body.is_empty() {
        return Err(Sense::FIELD);
    }
    let mut descriptor = Vec::new();
    if !asked.no_descriptor {
        let blocks = u32::try_from(disk.blocks).unwrap_or(u32::MAX);
        descriptor.extend(blocks.to_be_bytes());
        descriptor.extend([0, 0, 2, 0]);
        debug_assert_eq!(BLOCK, 512);
    }
    // WP, and that DPO and FUA are taken (SBC-3 6.5.1).
    let specific = if disk.read_only { 0x90 } else { 0x10 };
    let length = descriptor.len() + body.len();
    let byte = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
    let mut data = if asked.six {
        vec![byte(length + 3), 0, specific, byte(descriptor.len())]
    } else {
        vec![
            0,
            byte(length + 6),
            0,
            specific,
            0,
            0,
            0,
            byte(descriptor.len()),
        ]
    };
    data.extend(descriptor);
    data.extend(body);
    Ok(data)
}

/// MODE SELECT: takes what is so already.
///
/// # Errors
/// A page that we don't have, or a value that would change.
pub fn select(list: &[u8], six: bool) -> Result<(), Sense> {
    for page in pages(list, six)? {
        // The PS bit is reserved in a MODE SELECT.
        if !ALL.contains(&page) {
            return Err(Sense::PARAMETER);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DiskIdentity;
    use uuid::Uuid;

    const DISK: Portrait = Portrait {
        identity: DiskIdentity {
            owner: Uuid::from_u128(7),
        },
        blocks: 2048,
        preferred: 4096,
        read_only: false,
    };

    fn ask(six: bool, control: u8, page: u8) -> Result<Vec<u8>, Sense> {
        let asked = Question {
            six,
            no_descriptor: false,
            control,
            page,
            subpage: 0,
        };
        sense(&asked, &DISK)
    }

    #[test]
    fn lengths_agree_and_what_is_told_is_taken_back() {
        for six in [true, false] {
            let data = ask(six, 0, 0x3f).unwrap();
            let told = if six { data[0] + 1 } else { data[1] + 2 };
            assert_eq!(usize::from(told), data.len());
            assert_eq!(select(&data, six), Ok(()));
            let mut changed = data.clone();
            let at = if six { 4 + 8 + 2 } else { 8 + 8 + 2 };
            changed[at] ^= 0x04;
            assert_eq!(select(&changed, six), Err(Sense::PARAMETER));
        }
        assert_eq!(ask(true, 3, 0x08), Err(Sense::SAVING));
        assert_eq!(ask(true, 0, 0x01), Err(Sense::FIELD));
        assert_eq!(ask(true, 1, 0x08).unwrap()[14..], [0; 18]);
    }
}
