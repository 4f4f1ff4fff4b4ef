//! Tests of layers over files in memory and real ones: a byte model, crashes at every point,
//! failing operations, and damaged files.

mod crash;
mod faults;
mod memory;
mod model;
mod torn;

use std::sync::Arc;

use super::cache::Cache;
use super::cow::{Layer, Surroundings, create, inspect};
use super::format::Below;
use super::journal::Boot;
use super::medium::Medium;
use super::{Content, Fault};

pub(super) fn surroundings(boot: u8) -> Surroundings {
    Surroundings {
        cache: Arc::new(Cache::new(1 << 20)),
        boot: Boot([boot; 16]),
    }
}

/// The long versions are asked for.
pub(super) fn torture() -> bool {
    #[expect(clippy::disallowed_methods, reason = "make torture says how long")]
    std::env::var("DLS_TORTURE").is_ok()
}

/// Opens a layer over a file and a journal.
pub(super) fn open<M: Medium + Clone>(
    file: &M,
    journal: &M,
    below: Option<Arc<dyn Content>>,
    boot: u8,
) -> Result<Layer<M>, Fault> {
    open_with(file, journal, below, &surroundings(boot))
}

/// As [`open`], with a cache of the caller's.
pub(super) fn open_with<M: Medium + Clone>(
    file: &M,
    journal: &M,
    below: Option<Arc<dyn Content>>,
    with: &Surroundings,
) -> Result<Layer<M>, Fault> {
    let header = inspect(file)?;
    let journal = journal.clone();
    Layer::open(
        "test".to_owned(),
        file.clone(),
        &header,
        below,
        Box::new(move || Ok(journal.clone())),
        with,
    )
}

/// Makes a layer in an empty file.
pub(super) fn make<M: Medium>(file: &M, size: u64) {
    let below = Below {
        name: "below.raw".to_owned(),
        format: "raw",
    };
    create(file, size, Some(&below)).unwrap();
}

/// A disk of pattern bytes that is never written.
#[derive(Debug)]
pub(super) struct Pattern(pub(super) u64);

impl Pattern {
    pub(super) fn byte(at: u64) -> u8 {
        // A third of the blocks is zero.
        let block = at / 4096;
        if block.is_multiple_of(3) {
            0
        } else {
            (block % 200 + at % 50 + 1) as u8
        }
    }

    pub(super) fn all(&self) -> Vec<u8> {
        (0..self.0).map(Self::byte).collect()
    }
}

impl Content for Pattern {
    fn size(&self) -> u64 {
        self.0
    }

    fn read(&self, at: u64, buffer: &mut [u8], _: super::Wait) -> std::io::Result<bool> {
        for (byte, at) in buffer.iter_mut().zip(at..) {
            *byte = Self::byte(at);
        }
        Ok(true)
    }

    fn run(&self, at: u64, most: u64) -> std::io::Result<crate::storage::Extent> {
        let kind = if (at / 4096).is_multiple_of(3) {
            crate::storage::ExtentKind::Hole
        } else {
            crate::storage::ExtentKind::Data
        };
        let length = (4096 - at % 4096).min(most);
        Ok(crate::storage::Extent { length, kind })
    }
}
