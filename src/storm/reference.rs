//! What bytes must be: of a file what was given, else what the first machine got; of a disk what
//! the image has, else what others of the same image have read. Kept whole in memory, so that
//! every byte of every machine is compared, not a sum. It fetches nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use sha2::{Digest, Sha256};

use super::words::{Cause, Role, Trouble};
use crate::model::hex;

/// Bytes of a piece of a disk.
const PIECE: usize = 64 << 10;
const SECTOR: usize = 512;

/// One file: as much of its beginning as anybody has got.
#[derive(Debug, Default)]
pub(super) struct Known {
    inner: RwLock<Prefix>,
}

#[derive(Debug, Default)]
struct Prefix {
    bytes: Vec<u8>,
    whole: bool,
}

impl Known {
    fn given(bytes: Vec<u8>) -> Self {
        let inner = RwLock::new(Prefix { bytes, whole: true });
        Self { inner }
    }

    /// Compares a piece at a place, and learns what nobody knew.
    pub(super) fn check(&self, at: usize, piece: &[u8]) -> Result<(), Trouble> {
        let compared = {
            let prefix = self.inner.read().unwrap_or_else(PoisonError::into_inner);
            prefix.compare(at, piece)?
        };
        let Some(new) = piece.get(compared..).filter(|new| !new.is_empty()) else {
            return Ok(());
        };
        let mut prefix = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        // Another may have been here meanwhile.
        let compared = prefix.compare(at + compared, new)?;
        prefix.bytes.extend_from_slice(&new[compared..]);
        Ok(())
    }

    /// The file ended after so many bytes.
    pub(super) fn end(&self, length: usize) -> Result<(), Trouble> {
        let mut prefix = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let must = prefix.bytes.len();
        if length < must {
            let detail = format!("{length} bytes, others got {must}");
            return Err(Trouble::new(Cause::WrongFile, detail));
        }
        prefix.whole = true;
        Ok(())
    }

    /// Bytes and SHA-256, once it is known whole.
    pub(super) fn sum(&self) -> Option<(u64, String)> {
        let prefix = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let sum = || hex(&Sha256::digest(&prefix.bytes));
        prefix.whole.then(|| (prefix.bytes.len() as u64, sum()))
    }
}

impl Prefix {
    /// How many bytes of the piece are known, and right.
    fn compare(&self, at: usize, piece: &[u8]) -> Result<usize, Trouble> {
        let known = self.bytes.get(at..).unwrap_or_default();
        let common = known.len().min(piece.len());
        if known[..common] != piece[..common] {
            let place = known.iter().zip(piece).position(|(a, b)| a != b);
            let place = at + place.unwrap_or(0);
            return Err(Trouble::new(
                Cause::WrongFile,
                format!("another byte at {place}"),
            ));
        }
        if self.whole && common < piece.len() {
            let detail = format!("more than {} bytes", self.bytes.len());
            return Err(Trouble::new(Cause::WrongFile, detail));
        }
        Ok(common)
    }
}

/// The disk of one image: the sectors that anybody has read.
#[derive(Debug, Default)]
pub(super) struct KnownDisk {
    given: Option<File>,
    pieces: RwLock<HashMap<u64, Piece>>,
}

#[derive(Debug)]
struct Piece {
    bytes: Box<[u8]>,
    /// A bit a sector.
    known: u128,
}

impl KnownDisk {
    /// Compares sectors at a place, and learns those that nobody knew. Both numbers are multiples
    /// of a sector.
    pub(super) fn check(&self, at: u64, bytes: &[u8]) -> Result<(), Trouble> {
        let unread = |e: io::Error| Trouble::new(Cause::WrongDisk, format!("the given image: {e}"));
        let (mut at, mut rest) = (at, bytes);
        while !rest.is_empty() {
            let start = usize::try_from(at % PIECE as u64).unwrap_or(0);
            let (now, after) = rest.split_at(rest.len().min(PIECE - start));
            let number = at / PIECE as u64;
            let wanted = bits(start / SECTOR, now.len() / SECTOR);
            let known = {
                let pieces = self.pieces.read().unwrap_or_else(PoisonError::into_inner);
                match pieces.get(&number) {
                    Some(piece) if piece.known & wanted == wanted => {
                        piece.compare(at, start, now)?;
                        true
                    }
                    _ => false,
                }
            };
            if !known {
                let mut pieces = self.pieces.write().unwrap_or_else(PoisonError::into_inner);
                let piece = match pieces.entry(number) {
                    Entry::Occupied(found) => found.into_mut(),
                    Entry::Vacant(none) => none.insert(self.piece(number).map_err(unread)?),
                };
                piece.learn(at, start, now)?;
            }
            at += now.len() as u64;
            rest = after;
        }
        Ok(())
    }

    /// A piece as it is given, or of which nothing is known. What lies beyond the end of a given
    /// file is zeroes.
    fn piece(&self, number: u64) -> io::Result<Piece> {
        let mut bytes = vec![0; PIECE].into_boxed_slice();
        let Some(file) = &self.given else {
            return Ok(Piece { bytes, known: 0 });
        };
        let mut filled = 0;
        while filled < PIECE {
            let at = number * PIECE as u64 + filled as u64;
            match file.read_at(&mut bytes[filled..], at) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Piece {
            bytes,
            known: u128::MAX,
        })
    }

    /// Bytes that are known of it.
    pub(super) fn bytes(&self) -> u64 {
        let pieces = self.pieces.read().unwrap_or_else(PoisonError::into_inner);
        let sectors: u64 = pieces
            .values()
            .map(|p| u64::from(p.known.count_ones()))
            .sum();
        sectors * SECTOR as u64
    }
}

/// So many bits from that one on.
const fn bits(from: usize, count: usize) -> u128 {
    if count == 0 {
        return 0;
    }
    (u128::MAX >> (128 - count)) << from
}

impl Piece {
    fn compare(&self, at: u64, start: usize, bytes: &[u8]) -> Result<(), Trouble> {
        let must = self.bytes.get(start..start + bytes.len());
        if must == Some(bytes) {
            return Ok(());
        }
        let place = must
            .unwrap_or_default()
            .iter()
            .zip(bytes)
            .position(|(a, b)| a != b);
        let place = at + place.unwrap_or(0) as u64;
        Err(Trouble::new(
            Cause::WrongDisk,
            format!("another byte at {place}"),
        ))
    }

    fn learn(&mut self, at: u64, start: usize, bytes: &[u8]) -> Result<(), Trouble> {
        for (n, sector) in bytes.chunks(SECTOR).enumerate() {
            let place = start + n * SECTOR;
            let bit = 1_u128 << (place / SECTOR);
            if self.known & bit != 0 {
                self.compare(at + (n * SECTOR) as u64, place, sector)?;
            } else if let Some(mine) = self.bytes.get_mut(place..place + sector.len()) {
                mine.copy_from_slice(sector);
                self.known |= bit;
            }
        }
        Ok(())
    }
}

/// All that is known, by image. What was given holds for every image.
#[derive(Debug, Default)]
pub(super) struct References {
    given: HashMap<Role, Arc<Known>>,
    disk: Option<Arc<KnownDisk>>,
    files: Mutex<HashMap<(String, Role), Arc<Known>>>,
    disks: Mutex<HashMap<String, Arc<KnownDisk>>>,
}

impl References {
    /// With files that were given.
    pub(super) fn new(given: Vec<(Role, File)>) -> io::Result<Self> {
        let mut all = Self::default();
        for (role, mut file) in given {
            if role == Role::Disk {
                let given = Some(file);
                let disk = KnownDisk {
                    given,
                    ..KnownDisk::default()
                };
                all.disk = Some(Arc::new(disk));
            } else {
                let mut bytes = Vec::new();
                io::Read::read_to_end(&mut file, &mut bytes)?;
                all.given.insert(role, Arc::new(Known::given(bytes)));
            }
        }
        Ok(all)
    }

    /// Of a file of an image.
    pub(super) fn file(&self, image: &str, role: Role) -> Arc<Known> {
        if let Some(given) = self.given.get(&role) {
            return given.clone();
        }
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.entry((image.to_owned(), role)).or_default().clone()
    }

    /// Of an image's disk.
    pub(super) fn disk(&self, image: &str) -> Arc<KnownDisk> {
        if let Some(given) = &self.disk {
            return given.clone();
        }
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        disks.entry(image.to_owned()).or_default().clone()
    }

    /// What the machines got, by image and role: bytes, and SHA-256 of files.
    pub(super) fn sums(&self) -> Vec<(String, Role, u64, Option<String>)> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let learned = files
            .iter()
            .map(|((image, role), known)| (image.clone(), *role, known));
        let given = self
            .given
            .iter()
            .map(|(role, known)| (String::new(), *role, known));
        let mut sums: Vec<_> = learned
            .chain(given)
            .filter_map(|(image, role, known)| {
                let (bytes, sum) = known.sum()?;
                Some((image, role, bytes, Some(sum)))
            })
            .collect();
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        let learned = disks.iter().map(|(image, disk)| (image.clone(), disk));
        let given = self.disk.iter().map(|disk| (String::new(), disk));
        let disks = learned
            .chain(given)
            .map(|(image, disk)| (image, Role::Disk, disk.bytes(), None));
        sums.extend(disks);
        sums.sort();
        sums
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_is_learned_and_held_to() {
        let known = Known::default();
        known.check(0, b"abc").unwrap();
        known.check(0, b"abcdef").unwrap();
        known.check(3, b"de").unwrap();
        known.end(6).unwrap();
        known.end(6).unwrap();
        let cause = |r: Result<(), Trouble>| r.unwrap_err().detail;
        assert_eq!(cause(known.check(2, b"cdX")), "another byte at 4");
        assert_eq!(cause(known.check(3, b"defg")), "more than 6 bytes");
        assert_eq!(cause(known.end(5)), "5 bytes, others got 6");
        assert_eq!(known.sum().unwrap().0, 6);
        assert_eq!(Known::default().sum(), None);
    }

    #[test]
    fn a_given_disk_is_held_to_from_the_first_byte() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; PIECE + SECTOR]).unwrap();
        let all = References::new(vec![(Role::Disk, file)]).unwrap();
        let disk = all.disk("any");
        disk.check(0, &[7; PIECE]).unwrap();
        disk.check((PIECE - SECTOR) as u64, &[7; 2 * SECTOR])
            .unwrap();
        disk.check((PIECE + SECTOR) as u64, &[0; SECTOR]).unwrap();
        let wrong = disk.check(PIECE as u64, &[8; SECTOR]).unwrap_err();
        assert_eq!(
            wrong,
            Trouble::new(Cause::WrongDisk, format!("another byte at {PIECE}"))
        );
    }

    #[test]
    fn images_are_held_apart() {
        let all = References::default();
        all.file("a", Role::Kernel).check(0, b"x").unwrap();
        all.file("b", Role::Kernel).check(0, b"y").unwrap();
        assert!(all.file("a", Role::Kernel).check(0, b"y").is_err());
        all.disk("a").check(0, &[1; SECTOR]).unwrap();
        all.disk("b").check(0, &[2; SECTOR]).unwrap();
        assert!(all.disk("b").check(0, &[1; SECTOR]).is_err());
    }

    proptest! {
        #[test]
        fn a_wrong_byte_is_found_wherever_it_is(
            reads in proptest::collection::vec((0..600_u64, 1..300_usize), 1..30),
            flip in 0..(900 * SECTOR),
        ) {
            let disk: Vec<u8> = (0..900 * SECTOR).map(|n| (n / 7) as u8).collect();
            let known = KnownDisk::default();
            let part = |from: &[u8], (at, count): (u64, usize)| {
                let at = usize::try_from(at).unwrap() * SECTOR;
                from[at..at + count * SECTOR].to_vec()
            };
            for read in &reads {
                prop_assert!(known.check(read.0 * SECTOR as u64, &part(&disk, *read)).is_ok());
            }
            let mut bad = disk.clone();
            bad[flip] ^= 1;
            for read in &reads {
                let at = usize::try_from(read.0).unwrap() * SECTOR;
                let hit = (at..at + read.1 * SECTOR).contains(&flip);
                let checked = known.check(read.0 * SECTOR as u64, &part(&bad, *read));
                prop_assert_eq!(checked.is_err(), hit);
            }
        }
    }
}
