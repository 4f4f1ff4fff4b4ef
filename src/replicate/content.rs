//! A version's content in a store: its hash, and where it differs from another version. It
//! works on any backend through the storage traits and knows no connection. All of it blocks.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::wire::MOST_DATA;
pub use crate::storage::Beat;
use crate::storage::{Access, BlockDevice, SnapshotId, Storage, Volume, VolumeError};

/// Bytes that are read at a time.
const WINDOW: usize = 1024 * 1024;
/// Bytes that are compared as one.
const BLOCK: usize = 4096;

/// A part of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where.
    pub offset: u64,
    /// How many bytes; at most [`MOST_DATA`] of content, any number of zeroes.
    pub length: u64,
    /// True if all of it is zero.
    pub zero: bool,
}

/// A [`Beat`] that ends when a token is cancelled.
pub fn until(cancel: &CancellationToken) -> impl FnMut() -> Result<(), VolumeError> + '_ {
    || match cancel.is_cancelled() {
        true => Err(VolumeError::Cancelled),
        false => Ok(()),
    }
}

/// True if a store has a version whole.
///
/// # Errors
/// As the store.
pub fn is_whole(store: &dyn Storage, version: Uuid) -> Result<bool, VolumeError> {
    let base = SnapshotId::base(version);
    let info = store.info(base.volume)?;
    Ok(info.is_some_and(|info| info.snapshots.contains(&base.name)))
}

/// SHA-256 of all bytes of a version, read from the store.
///
/// # Errors
/// As the store, and of `beat`.
pub fn hash(store: &dyn Storage, version: Uuid, beat: Beat<'_>) -> Result<[u8; 32], VolumeError> {
    hash_of(&*open(store, version)?, beat)
}

/// SHA-256 of all bytes of a disk.
///
/// # Errors
/// As the disk, and of `beat`.
pub fn hash_of(device: &dyn BlockDevice, beat: Beat<'_>) -> Result<[u8; 32], VolumeError> {
    let size = device.info().size;
    let mut hasher = Sha256::new();
    let mut window = vec![0; WINDOW];
    let mut at = 0;
    while at < size {
        beat()?;
        let part = part(&mut window, size - at);
        device.read_at(at, part)?;
        hasher.update(&*part);
        at += part.len() as u64;
    }
    Ok(hasher.finalize().into())
}

/// The first `left` bytes of a window, or all of it.
fn part(window: &mut [u8], left: u64) -> &mut [u8] {
    let length = usize::try_from(left).map_or(window.len(), |left| left.min(window.len()));
    window.get_mut(..length).unwrap_or_default()
}

/// What has to be sent of a version to who has `base`, or nothing: rising, apart from one
/// another, and only what differs, to blocks of 4 KiB.
///
/// # Errors
/// As the store, and of `beat`.
pub fn differences(
    store: &dyn Storage,
    base: Option<Uuid>,
    version: Uuid,
    beat: Beat<'_>,
) -> Result<Vec<Piece>, VolumeError> {
    let device = store.open(Volume::Image(version), Access::Read)?;
    let former = match base {
        Some(base) => Some(store.open(Volume::Image(base), Access::Read)?),
        None => None,
    };
    let mut found = Pieces::default();
    let (mut new, mut old) = (vec![0; WINDOW], vec![0; WINDOW]);
    let from = base.map(SnapshotId::base);
    for candidate in store.changes(from.as_ref(), &SnapshotId::base(version))? {
        // On whole blocks, so that the pieces are the same however the store tells them.
        let mut at = candidate.start - candidate.start % BLOCK as u64;
        let end = candidate
            .end
            .next_multiple_of(BLOCK as u64)
            .min(device.info().size);
        while at < end {
            beat()?;
            let new = part(&mut new, end - at);
            device.read_at(at, new)?;
            let old = part(&mut old, end - at);
            if let Some(former) = &former {
                former.read_at(at, old)?;
            }
            for (n, (new, old)) in new.chunks(BLOCK).zip(old.chunks(BLOCK)).enumerate() {
                if new != old {
                    found.add(at + (n * BLOCK) as u64, new);
                }
            }
            at += new.len() as u64;
        }
    }
    Ok(found.pieces)
}

/// Pieces in the making.
#[derive(Default)]
struct Pieces {
    pieces: Vec<Piece>,
}

impl Pieces {
    fn add(&mut self, offset: u64, block: &[u8]) {
        let length = block.len() as u64;
        let zero = block.iter().all(|b| *b == 0);
        match self.pieces.last_mut() {
            // Two candidates may share a block.
            Some(last) if last.offset + last.length > offset => {}
            Some(last)
                if last.zero == zero
                    && last.offset + last.length == offset
                    && (zero || last.length + length <= MOST_DATA as u64) =>
            {
                last.length += length;
            }
            _ => self.pieces.push(Piece {
                offset,
                length,
                zero,
            }),
        }
    }
}

/// What the version was made from, and what that was made from, as far as it is images'
/// versions that are whole here; nearest first.
///
/// # Errors
/// As the store.
pub fn ancestors(store: &dyn Storage, version: Uuid) -> Result<Vec<Uuid>, VolumeError> {
    let mut found = Vec::new();
    let mut at = store.info(Volume::Image(version))?;
    // No chain is that long; a store that goes in circles must not hold us.
    for _ in 0..1000 {
        let Some(origin) = at.and_then(|info| info.origin) else {
            break;
        };
        if let Volume::Image(id) = origin.volume
            && origin == SnapshotId::base(id)
        {
            found.push(id);
        }
        at = store.info(origin.volume)?;
    }
    Ok(found)
}

/// A device, for who sends.
///
/// # Errors
/// As the store.
pub fn open(store: &dyn Storage, version: Uuid) -> Result<Arc<dyn BlockDevice>, VolumeError> {
    store.open(Volume::Image(version), Access::Read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Durability;
    use crate::storage::memory::Memory;

    const SIZE: u64 = 3 << 20;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn quiet() -> Result<(), VolumeError> {
        Ok(())
    }

    fn write(store: &Memory, version: Uuid, offset: u64, bytes: &[u8]) {
        let disk = store.open(Volume::Image(version), Access::Write).unwrap();
        disk.write_at(offset, bytes, Durability::Volatile).unwrap();
    }

    /// Version 1, and version 2 that was made from it and differs in three places.
    fn two() -> Memory {
        let store = Memory::new();
        store.create(Volume::Image(id(1)), SIZE).unwrap();
        write(&store, id(1), 0, &[1; 10_000]);
        write(&store, id(1), 1 << 20, &[2; 300_000]);
        store.snapshot(&SnapshotId::base(id(1))).unwrap();
        let clone = Volume::Image(id(2));
        store.clone_volume(&SnapshotId::base(id(1)), clone).unwrap();
        write(&store, id(2), 5000, &[9]);
        write(&store, id(2), (1 << 20) + 4096, &[0; 8192]);
        write(&store, id(2), SIZE - 1, &[7]);
        store.snapshot(&SnapshotId::base(id(2))).unwrap();
        store
    }

    #[test]
    fn only_what_differs_is_to_be_sent() {
        let store = two();
        let piece = |offset, length, zero| Piece {
            offset,
            length,
            zero,
        };
        assert_eq!(
            differences(&store, Some(id(1)), id(2), &mut quiet).unwrap(),
            [
                piece(4096, 4096, false),
                piece((1 << 20) + 4096, 8192, true),
                piece(SIZE - 4096, 4096, false)
            ]
        );
        assert_eq!(
            differences(&store, Some(id(1)), id(1), &mut quiet).unwrap(),
            []
        );
        assert_eq!(ancestors(&store, id(2)).unwrap(), [id(1)]);
        assert!(ancestors(&store, id(1)).unwrap().is_empty());
    }

    #[test]
    fn to_who_has_nothing_no_zeroes_are_sent_and_pieces_are_bounded() {
        let store = two();
        let pieces = differences(&store, None, id(2), &mut quiet).unwrap();
        assert!(
            pieces
                .iter()
                .all(|p| !p.zero && p.length <= MOST_DATA as u64)
        );
        // 10,000 bytes are 3 blocks, 300,000 are 74, less the two that are zero, and one more.
        let bytes: u64 = pieces.iter().map(|p| p.length).sum();
        assert_eq!(bytes, 4096 * (3 + 74 - 2 + 1));
        // What is sent makes the same disk.
        store.create(Volume::Image(id(3)), SIZE).unwrap();
        let (from, to) = (
            open(&store, id(2)).unwrap(),
            store.open(Volume::Image(id(3)), Access::Write).unwrap(),
        );
        for piece in pieces {
            let mut bytes = vec![0; usize::try_from(piece.length).unwrap()];
            from.read_at(piece.offset, &mut bytes).unwrap();
            to.write_at(piece.offset, &bytes, Durability::Volatile)
                .unwrap();
        }
        assert_eq!(
            hash(&store, id(2), &mut quiet).unwrap(),
            hash(&store, id(3), &mut quiet).unwrap()
        );
        assert_ne!(
            hash(&store, id(1), &mut quiet).unwrap(),
            hash(&store, id(3), &mut quiet).unwrap()
        );
    }

    #[test]
    fn it_ends_when_it_is_cancelled() {
        let (store, cancel) = (two(), CancellationToken::new());
        hash(&store, id(1), &mut until(&cancel)).unwrap();
        cancel.cancel();
        let ended = hash(&store, id(1), &mut until(&cancel));
        assert!(matches!(ended, Err(VolumeError::Cancelled)));
    }
}
