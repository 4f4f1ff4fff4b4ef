//! The calls that have no safe wrapper: a read that does not wait, a shared copy, and what is
//! set in a child process before it becomes another program. Nothing else is unsafe here.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;

/// Reads what is in memory, without waiting for the disk: the number of bytes, or `None` if
/// none of them is there (or the file system can't tell).
pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: i64) -> Option<usize> {
    let part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: the one vector points at `buffer`, which lives and is ours alone meanwhile.
    #[expect(unsafe_code, reason = "nix has no preadv2")]
    let read = unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            &raw const part,
            1,
            offset,
            libc::RWF_NOWAIT,
        )
    };
    // Whatever kept it from being read at once: the read that may wait has the last word.
    usize::try_from(read).ok()
}

/// True if all of a range of a file is in memory, as far as the system tells (Linux 6.5 and
/// newer; the older ones don't).
pub(super) fn is_in_memory(file: &File, at: u64, length: u64) -> bool {
    /// `cachestat(2)`, under the same number on every architecture.
    const CACHESTAT: libc::c_long = 451;
    const PAGE: u64 = 4096;
    let range = [at, length];
    // Pages there, dirty, being written, evicted, recently evicted.
    let mut found = [0_u64; 5];
    // SAFETY: both structures are nothing but so many numbers of 64 bits, and live meanwhile.
    #[expect(unsafe_code, reason = "neither nix nor libc has this call")]
    let done = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            found.as_mut_ptr(),
            0,
        )
    };
    let pages = (at + length).div_ceil(PAGE) - at / PAGE;
    done == 0 && length > 0 && found[0] >= pages
}

/// Reads from an offset on what is in memory, without waiting for the disk: the number of bytes,
/// or `None` if none of them is there (or the file system can't tell).
pub fn read_at_hand(file: &File, buffer: &mut [u8], offset: u64) -> Option<usize> {
    read_at(file, buffer, i64::try_from(offset).ok()?)
}

/// True if a range of a file (not empty) can most likely be sent without waiting for a disk: its
/// first and its last byte are in memory, and files are read from front to back. (`cachestat`
/// knows better, but tells a file's owner alone.)
pub fn is_at_hand(file: &File, at: u64, length: u64) -> bool {
    let there = |at: u64| read_at_hand(file, &mut [0], at) == Some(1);
    there(at) && there((at + length).saturating_sub(1))
}

/// Makes `to` share the blocks of `from`; `false` where the file system can't.
pub(super) fn reflink(from: &File, to: &File) -> bool {
    // SAFETY: both are open files, and the call takes a descriptor as its argument.
    #[expect(unsafe_code, reason = "nix has no wrapper for this request")]
    let done = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) };
    done == 0
}

/// Bounds for a child that reads files from outside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes of address space.
    pub(super) memory: u64,
    /// Seconds of processor time.
    pub(super) seconds: u64,
}

/// Lets a command run within bounds, without a network, and no longer than this process's
/// thread that started it.
pub(super) fn confine(command: &mut Command, bounds: Bounds) {
    let parent = nix::unistd::getpid();
    let before = move || {
        setrlimit(Resource::RLIMIT_AS, bounds.memory, bounds.memory)?;
        setrlimit(Resource::RLIMIT_CPU, bounds.seconds, bounds.seconds)?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        // No right to do so is no error: the files it gets were checked to name no others.
        let _ = unshare(CloneFlags::CLONE_NEWNET);
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        if nix::unistd::getppid() != parent {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls; it takes no lock and allocates nothing.
    #[expect(unsafe_code, reason = "std marks all work between fork and exec so")]
    unsafe {
        command.pre_exec(before);
    }
}
