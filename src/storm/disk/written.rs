//! What a machine has written on its disk: where, and which bytes, made anew when they are needed
//! from a number of the machine's and of the write. Pure.

use super::super::profile::SECTOR;
use super::super::reference::KnownDisk;
use super::super::words::{Cause, Trouble};
use crate::storm::plan::Dice;

/// The writes of one machine, in their order.
#[derive(Debug, Default)]
pub(in crate::storm) struct Written {
    seed: u64,
    writes: Vec<(u64, u64)>,
}

impl Written {
    /// None yet. Machines with other seeds write other bytes.
    pub(in crate::storm) const fn new(seed: u64) -> Self {
        let writes = Vec::new();
        Self { seed, writes }
    }

    /// Notes a write and gives its bytes.
    pub(in crate::storm) fn write(&mut self, at: u64, length: u32) -> Vec<u8> {
        self.writes.push((at, at + u64::from(length)));
        let number = self.writes.len() - 1;
        let sectors = (at..at + u64::from(length)).step_by(SECTOR as usize);
        sectors.flat_map(|at| self.sector(number, at)).collect()
    }

    /// What a write puts into the sector at that byte.
    fn sector(&self, number: usize, at: u64) -> [u8; SECTOR as usize] {
        let mut dice = Dice::new(self.seed ^ (number as u64).rotate_left(40) ^ at);
        let mut sector = [0; SECTOR as usize];
        for word in sector.chunks_exact_mut(8) {
            word.copy_from_slice(&dice.roll().to_le_bytes());
        }
        sector
    }

    /// Where it has written, each place once.
    pub(in crate::storm) fn places(&self) -> Vec<(u64, u32)> {
        let mut places: Vec<(u64, u32)> = Vec::with_capacity(self.writes.len());
        for (start, end) in &self.writes {
            let length = u32::try_from(end - start).unwrap_or(u32::MAX);
            if !places.contains(&(*start, length)) {
                places.push((*start, length));
            }
        }
        places
    }

    /// Compares what was read: with its own last write where there is one, else with the image.
    pub(in crate::storm) fn check(
        &self,
        image: &KnownDisk,
        at: u64,
        bytes: &[u8],
    ) -> Result<(), Trouble> {
        let end = at + bytes.len() as u64;
        let touched = self.writes.iter().enumerate();
        let touched: Vec<(usize, (u64, u64))> = touched
            .filter(|(_, (from, to))| *from < end && at < *to)
            .map(|(number, place)| (number, *place))
            .collect();
        if touched.is_empty() {
            return image.check(at, bytes);
        }
        // Runs of sectors that are the image's are compared as one.
        let mut run = (at, 0_usize);
        for (n, sector) in bytes.chunks(SECTOR as usize).enumerate() {
            let place = at + n as u64 * SECTOR;
            let own = touched
                .iter()
                .rev()
                .find(|(_, (from, to))| (*from..*to).contains(&place));
            let Some((number, _)) = own else {
                run.1 += sector.len();
                continue;
            };
            if self.sector(*number, place) != *sector {
                let detail = format!("another byte in the sector at {place}, its own write");
                return Err(Trouble::new(Cause::LostWrite, detail));
            }
            self.image_run(image, at, bytes, run)?;
            run = (place + SECTOR, 0);
        }
        self.image_run(image, at, bytes, run)
    }

    fn image_run(
        &self,
        image: &KnownDisk,
        at: u64,
        bytes: &[u8],
        run: (u64, usize),
    ) -> Result<(), Trouble> {
        let from = usize::try_from(run.0 - at).unwrap_or(usize::MAX);
        match bytes.get(from..from + run.1) {
            Some(part) if !part.is_empty() => image.check(run.0, part),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_knows_its_own_bytes_and_the_images(
            writes in proptest::collection::vec((0..40_u64, 1..9_u32), 0..12),
            read in (0..40_u64, 1..9_u64),
            flip in proptest::option::of(0..8_usize * 512),
        ) {
            const UNIT: usize = SECTOR as usize;
            let image: Vec<u8> = (0..50 * UNIT).map(|n| (n / 3) as u8).collect();
            let known = KnownDisk::default();
            known.check(0, &image).unwrap();
            let mut disk = image.clone();
            let mut written = Written::new(7);
            for (at, count) in &writes {
                let bytes = written.write(at * SECTOR, count * SECTOR as u32);
                let at = usize::try_from(*at).unwrap() * UNIT;
                disk[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            let at = usize::try_from(read.0).unwrap() * UNIT;
            let length = usize::try_from(read.1).unwrap() * UNIT;
            let mut bytes = disk[at..at + length].to_vec();
            let harmed = flip.filter(|flip| *flip < length);
            if let Some(flip) = harmed {
                bytes[flip] ^= 0x10;
            }
            let checked = written.check(&known, read.0 * SECTOR, &bytes);
            prop_assert_eq!(checked.is_err(), harmed.is_some());
        }
    }

    #[test]
    fn machines_and_writes_differ() {
        let (mut a, mut b) = (Written::new(1), Written::new(2));
        let first = a.write(0, 1024);
        assert_ne!(first, b.write(0, 1024));
        assert_ne!(first, a.write(0, 1024));
        assert_ne!(first[..512], first[512..]);
        assert_eq!(a.places(), [(0, 1024)]);
    }
}
