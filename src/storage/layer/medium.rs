//! What a layer asks of a file: a small trait, so that tests can record, drop and fail each
//! operation. The real file costs no more than its system calls. It knows no format.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use super::super::nowait;

/// A file of bytes. Reads past its end give zeroes: files here are sparse, and a table's rest
/// need not be there.
pub(crate) trait Medium: Send + Sync + fmt::Debug + 'static {
    /// Fills the buffer.
    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// As `read`, but `false` where that would have to wait.
    fn try_read(&self, at: u64, buffer: &mut [u8]) -> io::Result<bool>;

    /// Writes all of it.
    fn write(&self, at: u64, data: &[u8]) -> io::Result<()>;

    /// When it returns, all that was written before survives a power cut.
    fn sync(&self) -> io::Result<()>;

    /// Makes a range read as zeroes and gives its space back; the length stays.
    fn punch(&self, at: u64, length: u64) -> io::Result<()>;

    /// Sees to it that a write to the range finds space; its content stays.
    fn reserve(&self, at: u64, length: u64) -> io::Result<()>;

    /// Sets the file's length.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// The file's length.
    fn length(&self) -> io::Result<u64>;

    /// The first run within the range that may hold bytes other than zero, if one does.
    fn next_data(&self, within: Range<u64>) -> io::Result<Option<Range<u64>>>;
}

/// A file of the system.
#[derive(Debug)]
pub(crate) struct Stored(pub(crate) File);

fn offset(at: u64) -> io::Result<i64> {
    i64::try_from(at).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl Medium for Stored {
    fn read(&self, mut at: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.0.read_at(buffer, at) {
                Ok(0) => {
                    buffer.fill(0);
                    break;
                }
                Ok(n) => {
                    buffer = &mut buffer[n..];
                    at += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn try_read(&self, at: u64, buffer: &mut [u8]) -> io::Result<bool> {
        // Short: part of it is not in memory, or the file ends here; both go the slow way.
        Ok(nowait::read_at(&self.0, buffer, offset(at)?) == Some(buffer.len()))
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn punch(&self, at: u64, length: u64) -> io::Result<()> {
        let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.0, how, offset(at)?, offset(length)?) {
            Err(Errno::EOPNOTSUPP) => {
                // A file system without holes: the zeroes are written.
                let zeroes = vec![0; 64 * 1024];
                let end = (at + length).min(self.length()?);
                let mut at = at;
                while at < end {
                    let n = (end - at).min(zeroes.len() as u64);
                    self.write(at, &zeroes[..usize::try_from(n).unwrap_or(0)])?;
                    at += n;
                }
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn reserve(&self, at: u64, length: u64) -> io::Result<()> {
        let how = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.0, how, offset(at)?, offset(length)?) {
            // A file system that can't reserve: the write itself will tell.
            Err(Errno::EOPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn next_data(&self, within: Range<u64>) -> io::Result<Option<Range<u64>>> {
        let start = match lseek(&self.0, offset(within.start)?, Whence::SeekData) {
            Ok(at) => u64::try_from(at).unwrap_or(0),
            // Nothing but a hole from here to the end.
            Err(Errno::ENXIO) => return Ok(None),
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => within.start,
            Err(e) => return Err(e.into()),
        };
        if start >= within.end {
            return Ok(None);
        }
        let end = match lseek(&self.0, offset(start)?, Whence::SeekHole) {
            Ok(at) => u64::try_from(at).unwrap_or(0),
            Err(Errno::ENXIO | Errno::EINVAL | Errno::EOPNOTSUPP) => within.end,
            Err(e) => return Err(e.into()),
        };
        Ok(Some(start..end.min(within.end).max(start + 1)))
    }
}
