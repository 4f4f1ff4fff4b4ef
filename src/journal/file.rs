//! The journal's file: a head of 16 bytes, then records of length, CRC-32C and payload, then
//! zeros up to what is allocated.
//!
//! All numbers are little-endian. The checksum covers the length as well, so that a torn length
//! is no record; a length of zero ends the file.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::posix_fallocate;

use super::CHUNK;

/// Of this kind of file, with its version in the last byte.
const MAGIC: [u8; 16] = *b"DLS journal\0\0\0\0\x01";
const HEAD: u64 = MAGIC.len() as u64;
/// Length and checksum.
const FRAME: usize = 8;
/// No record is longer.
const LONGEST: usize = 1 << 24;

/// The journal could not be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk failed us.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// Not ours to read.
    #[error(
        "{} is no journal of this version of dls: start the version that wrote it and stop it in an orderly way with the database there, or move the file away and lose what it holds",
        path.display()
    )]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
}

impl JournalError {
    pub(super) fn of(path: &Path, doing: &'static str, source: io::Error) -> Self {
        Self::Io {
            doing,
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn ended(path: &Path) -> Self {
        let source = io::Error::other("its thread has ended");
        Self::of(path, "writing", source)
    }
}

/// See the file.
#[derive(Debug)]
pub(super) struct File {
    file: std::fs::File,
    path: PathBuf,
    /// Where the next record goes.
    end: u64,
    allocated: u64,
}

impl File {
    /// Opens or makes it, and reads its bytes up to the first record that is not whole. If anything
    /// but zeros stands there, a copy of the file is kept beside it.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<u8>), JournalError> {
        let mut bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(JournalError::of(path, "reading", e)),
        };
        // A crash before its head was synced leaves an empty file, or one of zeros.
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok((Self::make(path)?, Vec::new()));
        }
        if bytes.get(..MAGIC.len()) != Some(&MAGIC[..]) {
            return Err(JournalError::Foreign {
                path: path.to_owned(),
            });
        }
        let records = records(&bytes);
        let count = records.len();
        let end = records
            .iter()
            .fold(MAGIC.len(), |at, r| at + FRAME + r.len());
        let allocated = bytes.len() as u64;
        let rest = bytes.get(end..);
        if rest.is_some_and(|rest| rest.iter().any(|byte| *byte != 0)) {
            let copy = path.with_extension("torn");
            tracing::warn!(
                journal = %path.display(), records = count, offset = end, copy = %copy.display(),
                "the journal ends in a record that is not whole, as after a power cut; a copy is kept"
            );
            std::fs::write(&copy, &bytes).map_err(|e| JournalError::of(&copy, "writing", e))?;
        }
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|e| JournalError::of(path, "opening", e))?;
        let file = Self {
            file,
            path: path.to_owned(),
            end: end as u64,
            allocated,
        };
        bytes.truncate(end);
        Ok((file, bytes))
    }

    /// An empty one in the place of what is there.
    fn make(path: &Path) -> Result<Self, JournalError> {
        let draft = path.with_extension("new");
        let mut file = Self::draft(&draft)?;
        file.take_place(path)?;
        Ok(file)
    }

    fn draft(path: &Path) -> Result<Self, JournalError> {
        // Readable by its owner alone: names of machines and what they do.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| JournalError::of(path, "making", e))?;
        let mut file = Self {
            file,
            path: path.to_owned(),
            end: HEAD,
            allocated: 0,
        };
        file.reserve(HEAD)?;
        file.put(&MAGIC, 0)?;
        Ok(file)
    }

    fn take_place(&mut self, path: &Path) -> Result<(), JournalError> {
        self.file
            .sync_all()
            .map_err(|e| JournalError::of(&self.path, "syncing", e))?;
        std::fs::rename(&self.path, path).map_err(|e| JournalError::of(path, "replacing", e))?;
        path.to_owned().clone_into(&mut self.path);
        super::whole::sync_folder(path)
            .map_err(|e| JournalError::of(path, "syncing the folder of", e))
    }

    /// Where the records end.
    pub(super) fn len(&self) -> u64 {
        self.end
    }

    /// Adds records; all of them or none.
    pub(super) fn append(&mut self, records: &[Vec<u8>]) -> Result<(), JournalError> {
        if records.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(records.iter().map(|r| r.len() + FRAME).sum());
        for record in records {
            frame(record, &mut bytes);
        }
        self.append_framed(&bytes)
    }

    /// Adds records as they stand in a file; all of them or none.
    pub(super) fn append_framed(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        let end = self.end + bytes.len() as u64;
        // Some zeros stay behind the last record.
        self.reserve(end + FRAME as u64)?;
        if let Err(error) = self.put(bytes, self.end) {
            // What was half written must not be found again behind what comes next.
            let zeros = vec![0; bytes.len()];
            self.put(&zeros, self.end).ok();
            return Err(error);
        }
        self.end = end;
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), JournalError> {
        self.file
            .sync_data()
            .map_err(|e| JournalError::of(&self.path, "syncing", e))
    }

    /// Puts these in the place of all; a crash leaves the old ones or the new ones.
    pub(super) fn replace(&mut self, records: &[Vec<u8>]) -> Result<(), JournalError> {
        let draft = self.draft_with("new", records)?;
        self.give_place_to(draft)
    }

    /// A file with these beside this one, which is to take its place.
    pub(super) fn draft_with(
        &self,
        extension: &str,
        records: &[Vec<u8>],
    ) -> Result<Self, JournalError> {
        let mut draft = Self::draft(&self.path.with_extension(extension))?;
        draft.append(records)?;
        Ok(draft)
    }

    /// Removes such a file, if there is one.
    pub(super) fn forget(&self, extension: &str) {
        std::fs::remove_file(self.path.with_extension(extension)).ok();
    }

    /// A crash leaves this one or that one.
    pub(super) fn give_place_to(&mut self, mut draft: Self) -> Result<(), JournalError> {
        draft.take_place(&self.path)?;
        *self = draft;
        Ok(())
    }

    /// Another handle on it as it is now; one of them is to be written.
    pub(super) fn again(&self) -> Result<Self, JournalError> {
        let file = self.file.try_clone();
        Ok(Self {
            file: file.map_err(|e| self.error("opening", e))?,
            path: self.path.clone(),
            end: self.end,
            allocated: self.allocated,
        })
    }

    pub(super) fn error(&self, doing: &'static str, source: io::Error) -> JournalError {
        JournalError::of(&self.path, doing, source)
    }

    /// What stands in it between these offsets: whole records, if both are ends of records.
    pub(super) fn bytes(&self, from: u64, to: u64) -> Result<Vec<u8>, JournalError> {
        let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(usize::MAX)];
        self.file
            .read_exact_at(&mut bytes, from)
            .map_err(|e| JournalError::of(&self.path, "reading", e))?;
        Ok(bytes)
    }

    fn reserve(&mut self, end: u64) -> Result<(), JournalError> {
        if end <= self.allocated {
            return Ok(());
        }
        let wanted = end.div_ceil(CHUNK) * CHUNK;
        let more = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        posix_fallocate(
            &self.file,
            more(self.allocated),
            more(wanted - self.allocated),
        )
        .map_err(|e| JournalError::of(&self.path, "allocating space for", e.into()))?;
        self.allocated = wanted;
        Ok(())
    }

    fn put(&self, bytes: &[u8], at: u64) -> Result<(), JournalError> {
        self.file
            .write_all_at(bytes, at)
            .map_err(|e| JournalError::of(&self.path, "writing", e))
    }
}

fn frame(record: &[u8], to: &mut Vec<u8>) {
    let length = u32::try_from(record.len())
        .unwrap_or(u32::MAX)
        .to_le_bytes();
    to.extend(length);
    to.extend(sum(length, record).to_le_bytes());
    to.extend(record);
}

fn sum(length: [u8; 4], record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), record)
}

/// The records that are whole, of the bytes of a file.
pub(super) fn records(bytes: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    let mut at = MAGIC.len();
    while let Some(record) = record_at(bytes, at) {
        at += FRAME + record.len();
        records.push(record);
    }
    records
}

fn record_at(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let length: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    let checksum: [u8; 4] = bytes.get(at + 4..at + FRAME)?.try_into().ok()?;
    let size = usize::try_from(u32::from_le_bytes(length)).ok()?;
    if size == 0 || size > LONGEST {
        return None;
    }
    let record = bytes.get(at + FRAME..at + FRAME + size)?;
    (sum(length, record) == u32::from_le_bytes(checksum)).then_some(record)
}
