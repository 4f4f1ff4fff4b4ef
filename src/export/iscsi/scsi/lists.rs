//! Parameter lists that come with commands: UNMAP's descriptors, MODE SELECT's pages,
//! PERSISTENT RESERVE OUT's keys. Bounded; nothing is believed that does not fit.

use super::cdb::Span;
use super::{MOST_UNMAP, MOST_UNMAP_DESCRIPTORS, Sense};

fn half(bytes: &[u8], at: usize) -> u16 {
    let bytes = bytes.get(at..).and_then(|b| b.first_chunk::<2>());
    bytes.map_or(0, |b| u16::from_be_bytes(*b))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from(half(bytes, at)) << 16 | u32::from(half(bytes, at + 2))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) << 32 | u64::from(word(bytes, at + 4))
}

/// UNMAP's block descriptors (SBC-3 5.32).
///
/// # Errors
/// A list that is cut, or one with more than page B0 allows.
pub fn unmap(list: &[u8]) -> Result<Vec<Span>, Sense> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    if list.len() < 8 {
        return Err(Sense::LIST_LENGTH);
    }
    // A descriptor that is cut is left out (SBC-3 5.32.2).
    let length = usize::from(half(list, 2)).min(list.len() - 8);
    let descriptors = list[8..8 + length].chunks_exact(16);
    if descriptors.len() > MOST_UNMAP_DESCRIPTORS as usize {
        return Err(Sense::PARAMETER);
    }
    let spans: Vec<Span> = descriptors
        .map(|one| Span {
            lba: long(one, 0),
            blocks: word(one, 8),
        })
        .collect();
    let sum: u64 = spans.iter().map(|s| u64::from(s.blocks)).sum();
    if sum > u64::from(MOST_UNMAP) {
        return Err(Sense::PARAMETER);
    }
    Ok(spans)
}

/// PERSISTENT RESERVE OUT's list of 24 bytes (SPC-4 6.16.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keys {
    /// The key of who asks.
    pub key: u64,
    /// The new key, or the one to preempt.
    pub action_key: u64,
}

/// Reads it.
///
/// # Errors
/// Another length; a wish for what page "report capabilities" says is not there.
pub fn keys(list: &[u8]) -> Result<Keys, Sense> {
    if list.len() != 24 {
        return Err(Sense::LIST_LENGTH);
    }
    // SPEC_I_PT, ALL_TG_PT and APTPL: registrations are of one nexus and don't outlive power.
    if list[20] & 0x0d != 0 {
        return Err(Sense::PARAMETER);
    }
    Ok(Keys {
        key: long(list, 0),
        action_key: long(list, 8),
    })
}

/// MODE SELECT's pages: number and bytes, without header and block descriptor.
///
/// # Errors
/// A list that is cut, or a block descriptor.
pub fn pages(list: &[u8], six: bool) -> Result<Vec<&[u8]>, Sense> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let (header, descriptor) = if six {
        (4, list.get(3).copied().map(usize::from))
    } else {
        (8, (list.len() >= 8).then(|| usize::from(half(list, 6))))
    };
    let descriptor = descriptor.ok_or(Sense::LIST_LENGTH)?;
    let mut rest = list.get(header..).and_then(|l| l.get(descriptor..));
    let mut found = Vec::new();
    while let Some(pages) = rest.filter(|r| !r.is_empty()) {
        let length = match pages {
            [first, _, _, _, ..] if first & 0x40 != 0 => 4 + usize::from(half(pages, 2)),
            [_, length, ..] => 2 + usize::from(*length),
            _ => return Err(Sense::LIST_LENGTH),
        };
        found.push(pages.get(..length).ok_or(Sense::LIST_LENGTH)?);
        rest = pages.get(length..);
    }
    if rest.is_none() {
        return Err(Sense::LIST_LENGTH);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unmap_lists() {
        let mut list = vec![0, 38, 0, 32, 0, 0, 0, 0];
        for lba in [5_u64, 9] {
            list.extend(lba.to_be_bytes());
            list.extend([0, 0, 0, 7, 0, 0, 0, 0]);
        }
        let span = |lba| Span { lba, blocks: 7 };
        assert_eq!(unmap(&list), Ok(vec![span(5), span(9)]));
        assert_eq!(unmap(&list[..30]), Ok(vec![span(5)]));
        assert_eq!(unmap(&[]), Ok(vec![]));
        assert_eq!(unmap(&[0; 7]), Err(Sense::LIST_LENGTH));
        list[16] = 0xff;
        assert_eq!(unmap(&list), Err(Sense::PARAMETER));
    }

    #[test]
    fn aptpl_is_refused() {
        let mut list = [0; 24];
        list[7] = 1;
        list[15] = 2;
        assert_eq!(
            keys(&list),
            Ok(Keys {
                key: 1,
                action_key: 2
            })
        );
        list[20] = 1;
        assert_eq!(keys(&list), Err(Sense::PARAMETER));
        assert_eq!(keys(&list[..23]), Err(Sense::LIST_LENGTH));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>, six: bool) {
            let _ = (unmap(&bytes), keys(&bytes));
            if let Ok(found) = pages(&bytes, six) {
                prop_assert!(found.iter().map(|p| p.len()).sum::<usize>() <= bytes.len());
            }
        }
    }
}
