//! A raw file as the lowest layer: an image's base, or a disk that was made empty.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::medium::{Medium, Stored};
use super::{Content, Wait};
use crate::storage::{Extent, ExtentKind, Lent, nowait};

/// An open raw file.
#[derive(Debug)]
pub(crate) struct Raw {
    file: Stored,
    /// The same file, for what is lent.
    shared: Arc<File>,
    size: u64,
    /// Nobody writes it any more, so its holes stay.
    frozen: AtomicBool,
}

impl Raw {
    /// Takes an open file.
    pub(crate) fn new(file: Stored, frozen: bool) -> io::Result<Self> {
        Ok(Self {
            size: file.length()?,
            shared: Arc::new(file.0.try_clone()?),
            file,
            frozen: AtomicBool::new(frozen),
        })
    }

    /// From now on nobody writes it.
    pub(crate) fn freeze(&self) -> io::Result<()> {
        self.frozen.store(true, Ordering::Release);
        self.file.sync()
    }

    /// Writes; the range lies within the disk.
    pub(crate) fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(at, data)
    }

    /// Makes a range read as zeroes.
    pub(crate) fn zero(&self, at: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.file.punch(at, length)
    }

    /// Syncs.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.file.sync()
    }
}

impl Content for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, at: u64, buffer: &mut [u8], wait: Wait) -> io::Result<bool> {
        match wait {
            Wait::Yes => self.file.read(at, buffer).map(|()| true),
            Wait::No => self.file.try_read(at, buffer),
        }
    }

    fn lend(&self, at: u64, length: u64) -> io::Result<Option<Lent>> {
        let there = self.frozen.load(Ordering::Acquire)
            && nowait::is_in_memory(&self.shared, at, length)
            // What is a hole is better told than sent.
            && self.file.next_data(at..at + length)? == Some(at..at + length);
        let file = || self.shared.clone();
        Ok(there.then(|| Lent { file: file(), at }))
    }

    fn run(&self, at: u64, most: u64) -> io::Result<Extent> {
        let extent = |length, kind| Ok(Extent { length, kind });
        if !self.frozen.load(Ordering::Acquire) {
            return extent(most, ExtentKind::Data);
        }
        match self.file.next_data(at..at + most)? {
            None => extent(most, ExtentKind::Hole),
            Some(data) if data.start > at => extent(data.start - at, ExtentKind::Hole),
            Some(data) => extent(data.end - at, ExtentKind::Data),
        }
    }
}
