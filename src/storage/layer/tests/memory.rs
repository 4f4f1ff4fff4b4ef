//! A file in memory that records what is done to it, and fails when told to.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Barrier, Mutex};

use super::super::medium::Medium;

/// One thing that was done to a file.
#[derive(Debug, Clone)]
pub(super) enum Deed {
    Write { at: u64, data: Vec<u8> },
    Punch { at: u64, length: u64 },
    Length(u64),
    Sync,
}

/// What all files of a test write down together.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// File and deed, in order.
    pub(super) deeds: Vec<(usize, Deed)>,
    /// Operations until one fails.
    pub(super) fail_in: Option<u64>,
    /// Operations so far.
    pub(super) count: u64,
    /// With what it fails.
    pub(super) code: i32,
    pub(super) record: bool,
    /// The next sync waits here twice.
    pub(super) hold: Option<Arc<Barrier>>,
}

#[derive(Debug, Clone)]
pub(super) struct Memory {
    pub(super) number: usize,
    pub(super) bytes: Arc<Mutex<Vec<u8>>>,
    pub(super) book: Arc<Mutex<Book>>,
}

/// Applies a deed to a file's bytes.
pub(super) fn apply(bytes: &mut Vec<u8>, deed: &Deed) {
    let index = |at: u64| usize::try_from(at).unwrap();
    match deed {
        Deed::Write { at, data } => {
            let end = index(*at) + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[index(*at)..end].copy_from_slice(data);
        }
        Deed::Punch { at, length } => {
            let end = bytes.len().min(index(at + length));
            let start = index(*at).min(end);
            bytes[start..end].fill(0);
        }
        Deed::Length(length) => bytes.resize(index(*length), 0),
        Deed::Sync => {}
    }
}

impl Memory {
    pub(super) fn new(number: usize, bytes: Vec<u8>, book: &Arc<Mutex<Book>>) -> Self {
        Self {
            number,
            bytes: Arc::new(Mutex::new(bytes)),
            book: book.clone(),
        }
    }

    /// Two files with one book: a layer's and its journal's.
    pub(super) fn pair() -> (Self, Self, Arc<Mutex<Book>>) {
        let book = Arc::default();
        (
            Self::new(0, Vec::new(), &book),
            Self::new(1, Vec::new(), &book),
            book,
        )
    }

    fn step(&self) -> io::Result<()> {
        let mut book = self.book.lock().unwrap();
        book.count += 1;
        match book.fail_in.as_mut() {
            Some(0) => {
                book.fail_in = None;
                Err(io::Error::from_raw_os_error(book.code))
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn act(&self, deed: Deed) -> io::Result<()> {
        self.step()?;
        // The bytes first held, so that the book has the order in which they changed.
        let mut bytes = self.bytes.lock().unwrap();
        apply(&mut bytes, &deed);
        let mut book = self.book.lock().unwrap();
        if book.record {
            book.deeds.push((self.number, deed));
        }
        Ok(())
    }
}

impl Medium for Memory {
    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.step()?;
        let bytes = self.bytes.lock().unwrap();
        let start = usize::try_from(at).unwrap().min(bytes.len());
        let length = buffer.len().min(bytes.len() - start);
        buffer[..length].copy_from_slice(&bytes[start..start + length]);
        buffer[length..].fill(0);
        Ok(())
    }

    fn try_read(&self, at: u64, buffer: &mut [u8]) -> io::Result<bool> {
        self.read(at, buffer).map(|()| true)
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let data = data.to_vec();
        self.act(Deed::Write { at, data })
    }

    fn sync(&self) -> io::Result<()> {
        let hold = self.book.lock().unwrap().hold.take();
        if let Some(hold) = hold {
            hold.wait();
            hold.wait();
        }
        self.act(Deed::Sync)
    }

    fn punch(&self, at: u64, length: u64) -> io::Result<()> {
        self.act(Deed::Punch { at, length })
    }

    fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
        self.step()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.act(Deed::Length(length))
    }

    fn length(&self) -> io::Result<u64> {
        self.step()?;
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn next_data(&self, within: Range<u64>) -> io::Result<Option<Range<u64>>> {
        self.step()?;
        let end = within.end.min(self.bytes.lock().unwrap().len() as u64);
        Ok((within.start < end).then_some(within.start..end))
    }
}
