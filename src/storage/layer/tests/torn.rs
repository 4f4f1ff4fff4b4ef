//! A read of a table's page while a checkpoint writes it: the kernel promises nothing about
//! which of the two each byte comes from.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, Weak};

use super::super::cache::Cache;
use super::super::cow::Layer;
use super::super::format::CLUSTER;
use super::super::medium::Medium;
use super::super::{Content, Wait};
use super::memory::Memory;
use super::{Pattern, make, open_with, surroundings};

type Meanwhile = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// A file whose next read of a table's page is overtaken: the first word of each entry is of
/// the time before, the second of the time after.
#[derive(Clone)]
struct Overtaken {
    file: Memory,
    meanwhile: Meanwhile,
}

impl std::fmt::Debug for Overtaken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Overtaken")
    }
}

impl Medium for Overtaken {
    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read(at, buffer)?;
        if buffer.len() != 4096 {
            return Ok(());
        }
        let Some(deed) = self.meanwhile.lock().unwrap().take() else {
            return Ok(());
        };
        deed();
        let mut after = vec![0; buffer.len()];
        self.file.read(at, &mut after)?;
        for (entry, new) in buffer.chunks_mut(16).zip(after.chunks(16)) {
            entry[8..].copy_from_slice(&new[8..]);
        }
        Ok(())
    }

    fn try_read(&self, at: u64, buffer: &mut [u8]) -> io::Result<bool> {
        self.read(at, buffer).map(|()| true)
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(at, data)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn punch(&self, at: u64, length: u64) -> io::Result<()> {
        self.file.punch(at, length)
    }

    fn reserve(&self, at: u64, length: u64) -> io::Result<()> {
        self.file.reserve(at, length)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_length(length)
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn next_data(&self, within: Range<u64>) -> io::Result<Option<Range<u64>>> {
        self.file.next_data(within)
    }
}

#[test]
fn a_table_that_is_being_written_is_not_taken_for_a_damaged_one() {
    for wait in [Wait::Yes, Wait::No] {
        let size = 64 * CLUSTER;
        let (file, journal, _) = Memory::pair();
        let meanwhile = Meanwhile::default();
        let with = |file| Overtaken {
            file,
            meanwhile: meanwhile.clone(),
        };
        let (file, journal) = (with(file), with(journal));
        make(&file, size);
        let mut around = surroundings(1);
        // Nothing stays in memory: each look-up reads the file.
        around.cache = Arc::new(Cache::new(0));
        let below: Arc<dyn Content> = Arc::new(Pattern(size));
        let layer = open_with(&file, &journal, Some(below), &around).unwrap();
        let layer: Arc<Layer<Overtaken>> = Arc::new(layer);
        // Another machine's request of the same cluster, at another place, and its flush.
        let other = Arc::downgrade(&layer);
        let deed = move || {
            let other = Weak::upgrade(&other).unwrap();
            other.write(5 * CLUSTER + 65536, &[7; 4096]).unwrap();
            other.flush().unwrap();
        };
        *meanwhile.lock().unwrap() = Some(Box::new(deed));
        let mut buffer = [0; 512];
        let at = 5 * CLUSTER + 4096;
        let read = layer.read(at, &mut buffer, wait).unwrap();
        assert!(meanwhile.lock().unwrap().is_none(), "it was overtaken");
        // Who does not wait may say so, and then it is done with waiting.
        assert!(read || wait == Wait::No);
        let again = layer.read(at, &mut buffer, Wait::Yes).unwrap();
        assert!(again && buffer[0] == Pattern::byte(at));
        layer
            .read(5 * CLUSTER + 65536, &mut buffer, Wait::Yes)
            .unwrap();
        assert_eq!(buffer, [7; 512]);
    }
}
