//! From a file of somebody's to a raw, sparse file of ours: looked at, copied or converted,
//! synced, hashed as it lies on the disk, and compared with where it came from.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::vhdx::{self, Log};
use super::{io_error, qemu};
use crate::storage::layer::format::{MAX_SIZE, u32_at, u64_at};
use crate::storage::layer::medium::{Medium, Stored};
use crate::storage::nowait::reflink;
use crate::storage::{DiskFormat, Imported, Progress, VolumeError};

/// Bytes read at a time.
const CHUNK: usize = 1024 * 1024;
/// Zeroes of that many bytes in a row become a hole.
const BLOCK: usize = 4096;

fn bad(why: impl Into<String>) -> VolumeError {
    VolumeError::BadSource(why.into())
}

/// Imports into a new file at `to`; after an error the caller removes what is there.
pub(super) fn import(
    source: &Path,
    format: DiskFormat,
    to: &Path,
    progress: &mut dyn FnMut(Progress),
    cancel: &CancellationToken,
) -> Result<Imported, VolumeError> {
    let from = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK) // a FIFO must not hold us
        .open(source)
        .map_err(|e| bad(format!("{} can't be opened: {e}", source.display())))?;
    let length = from
        .metadata()
        .ok()
        .filter(std::fs::Metadata::is_file)
        .map(|m| m.len())
        .ok_or_else(|| bad(format!("{} is no file", source.display())))?;
    let size = match format {
        DiskFormat::Raw => length,
        _ => {
            look(&from, format)?;
            virtual_size(source, format, cancel)?
        }
    };
    if size == 0 {
        return Err(bad("the disk in this file is empty"));
    }
    // Disks are counted in sectors; the rest of the last one is zeroes.
    let size = size.next_multiple_of(512);
    if size > MAX_SIZE {
        return Err(bad(format!("a disk of {size} bytes is too large")));
    }
    let failed = |e| io_error("writing the disk of an image", e);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o640);
    let file = options.open(to).map_err(failed)?;
    file.set_len(size).map_err(failed)?;
    let hash = match format {
        DiskFormat::Raw => Some(copy(&from, &file, length, size, progress, cancel)?),
        _ => {
            convert(source, format, to, progress, cancel)?;
            None
        }
    };
    file.sync_all().map_err(failed)?;
    // What is read from here on comes from the disk, not from what was meant to be there.
    let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
    let stored = match hash {
        Some(read) => {
            let stored = hash_stored(&file, size, "verifying", progress, cancel)?;
            if stored != read {
                return Err(differs());
            }
            stored
        }
        None => thread::scope(|scope| {
            let compared = scope.spawn(|| compare(source, format, to, cancel));
            let stored = hash_stored(&file, size, "verifying", progress, cancel);
            let compared = compared.join().unwrap_or_else(|_| Err(differs()));
            let stored = stored?;
            compared.map(|()| stored)
        })?,
    };
    let used = file.metadata().map_or(0, |m| m.blocks() * 512);
    Ok(Imported {
        size,
        sha256: stored,
        used,
    })
}

fn differs() -> VolumeError {
    VolumeError::Io {
        what: "verifying the disk of an image".to_owned(),
        source: io::Error::other("what was stored is not what was read"),
    }
}

/// Looks at what a file says about other files before any program opens it.
fn look(file: &File, format: DiskFormat) -> Result<(), VolumeError> {
    let mut head = [0; 1024];
    let unreadable = |e| bad(format!("the file can't be read: {e}"));
    let file = Stored(file.try_clone().map_err(unreadable)?);
    file.read(0, &mut head).map_err(unreadable)?;
    let word = |at| u32_at(&head, at).unwrap_or(0);
    let long = |at| u64_at(&head, at).unwrap_or(0);
    match format {
        DiskFormat::Raw => Ok(()),
        DiskFormat::Qcow2 => {
            if word(0) != 0x5146_49fb || !(2..=3).contains(&word(4)) {
                return Err(bad("this is no qcow2 file (version 2 or 3)"));
            }
            if long(8) != 0 || word(16) != 0 {
                return Err(bad(
                    "this qcow2 file lies upon another file (it has a backing file): write it \
                     out whole first, with `qemu-img convert`",
                ));
            }
            if word(32) != 0 {
                return Err(bad("this qcow2 file is encrypted"));
            }
            if word(4) == 3 && long(72) & 4 != 0 {
                return Err(bad("this qcow2 file keeps its data in another file"));
            }
            Ok(())
        }
        DiskFormat::Vhdx => {
            if !head.starts_with(b"vhdxfile") {
                return Err(bad("this is no vhdx file"));
            }
            match vhdx::log(&file).map_err(unreadable)? {
                Log::Empty => Ok(()),
                Log::Unplayed => Err(unplayed(format)),
                Log::Damaged => Err(bad(
                    "this vhdx file was not closed, and its log is damaged: what was written \
                     last can't be put right, and nobody can say what is wrong with the rest. \
                     Take another copy of it, or let the system that wrote it repair it",
                )),
                Log::NoHeader => Err(bad(
                    "this is no whole vhdx file: both of its headers are damaged",
                )),
            }
        }
        DiskFormat::Vmdk => {
            if head.starts_with(b"# Disk DescriptorFile") {
                return Err(bad(
                    "this vmdk file only describes a disk whose data lies in other files: make \
                     one file of it first (monolithicSparse or streamOptimized)",
                ));
            }
            // Capacity 0: the descriptor within decides, and may name other files.
            if !head.starts_with(b"KDMV") || head[12..20] == [0; 8] {
                return Err(bad("this is no vmdk file that holds a whole disk"));
            }
            Ok(())
        }
    }
}

fn unplayed(format: DiskFormat) -> VolumeError {
    bad(format!(
        "this {} file was not closed: its log must be replayed first, which `qemu-img check -r \
         all FILE` does",
        format.as_str()
    ))
}

/// Why `qemu-img` did not take a file, for whoever gave it.
fn refused(format: DiskFormat, reason: &str) -> VolumeError {
    let name = format.as_str();
    if reason.contains("log that needs to be replayed") {
        return unplayed(format);
    }
    if reason.contains("No space left on device") {
        return VolumeError::NoSpace;
    }
    bad(format!("this is no whole {name} file: {reason}"))
}

/// Asks for the size, and for what `look` can't see.
fn virtual_size(
    source: &Path,
    format: DiskFormat,
    cancel: &CancellationToken,
) -> Result<u64, VolumeError> {
    let image = qemu::image(source, format)?;
    let arguments = ["info", "--output=json", &image];
    let ended = qemu::run(&arguments, &mut |_| {}, &|| 0, cancel)?;
    if !ended.status.success() {
        return Err(refused(format, &ended.complaint));
    }
    let said: serde_json::Value = serde_json::from_slice(&ended.output)
        .map_err(|_| bad("qemu-img does not say what is in this file"))?;
    if said["format"] != format.as_str() {
        return Err(bad(format!("this is no {} file", format.as_str())));
    }
    let data = &said["format-specific"]["data"];
    if !said["backing-filename"].is_null() || !data["data-file"].is_null() {
        return Err(bad("this file refers to other files"));
    }
    if said["encrypted"] == true {
        return Err(bad("this file is encrypted"));
    }
    if data["corrupt"] == true {
        return Err(bad(
            "this file is marked as corrupt; `qemu-img check -r all` may mend it",
        ));
    }
    let extents = data["extents"].as_array().map_or(0, Vec::len);
    if extents > 1 {
        return Err(bad("this vmdk file has its data in several files"));
    }
    whole(&image, format, cancel)?;
    said["virtual-size"]
        .as_u64()
        .ok_or_else(|| bad("qemu-img does not say how large this disk is"))
}

/// Has the tables checked: what refers to places behind the file's end would be read as
/// zeroes, without a word.
fn whole(image: &str, format: DiskFormat, cancel: &CancellationToken) -> Result<(), VolumeError> {
    let ended = qemu::run(&["check", "-q", image], &mut |_| {}, &|| 0, cancel)?;
    match ended.status.code() {
        // Nothing found; space that is only lost; a format that has no check.
        Some(0 | 3 | 63) => Ok(()),
        Some(2) => Err(bad(format!(
            "this {} file is cut short or damaged: its tables refer to data that is not there",
            format.as_str()
        ))),
        _ => Err(refused(format, &ended.complaint)),
    }
}

/// Converts into the file that is there, which reads as zeroes.
fn convert(
    source: &Path,
    format: DiskFormat,
    to: &Path,
    progress: &mut dyn FnMut(Progress),
    cancel: &CancellationToken,
) -> Result<(), VolumeError> {
    let image = qemu::image(source, format)?;
    let target = qemu::image(to, DiskFormat::Raw)?;
    // Past the page cache where the file system can: other clients' data stays in it.
    let direct = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(to)
        .is_ok();
    let cache = if direct { "none" } else { "writeback" };
    let arguments = [
        "convert",
        "-p",
        "-n",
        "--target-is-zero",
        "-W",
        "-t",
        cache,
        "-O",
        "raw",
        &image,
        &target,
    ];
    let alive = || std::fs::metadata(to).map_or(0, |m| m.blocks());
    let mut tell = |done| {
        progress(Progress {
            step: "copying",
            done,
        });
    };
    let ended = qemu::run(&arguments, &mut tell, &alive, cancel)?;
    match ended.status.success() {
        true => Ok(()),
        false => Err(refused(format, &ended.complaint)),
    }
}

/// Compares what was stored with the source, by a second reading of both.
fn compare(
    source: &Path,
    format: DiskFormat,
    to: &Path,
    cancel: &CancellationToken,
) -> Result<(), VolumeError> {
    let image = qemu::image(source, format)?;
    let stored = qemu::image(to, DiskFormat::Raw)?;
    // Of two sizes the longer may only have zeroes more.
    let arguments = ["compare", "-p", &image, &stored];
    let ended = qemu::run(&arguments, &mut |_| {}, &|| 0, cancel)?;
    match ended.status.code() {
        Some(0) => Ok(()),
        Some(1) => Err(differs()),
        _ => Err(refused(format, &ended.complaint)),
    }
}

/// The parts of a file that may hold more than zeroes, in order.
fn data(file: &File, size: u64) -> impl Iterator<Item = io::Result<Range<u64>>> {
    let file = file.try_clone().map(Stored);
    let mut at = 0;
    std::iter::from_fn(move || match &file {
        Err(e) => (at < size).then(|| {
            at = size;
            Err(io::Error::new(e.kind(), "the file can't be read"))
        }),
        Ok(file) if at < size => match file.next_data(at..size) {
            Ok(Some(run)) => {
                at = run.end;
                Some(Ok(run))
            }
            Ok(None) => None,
            Err(e) => {
                at = size;
                Some(Err(e))
            }
        },
        Ok(_) => None,
    })
}

/// A hash that is told of holes without reading them.
#[derive(Default)]
struct Hash {
    sha: Sha256,
    at: u64,
}

impl Hash {
    fn zeroes_to(&mut self, to: u64) {
        static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
        while self.at < to {
            let length = (to - self.at).min(ZEROES.len() as u64);
            self.sha
                .update(&ZEROES[..usize::try_from(length).unwrap_or(0)]);
            self.at += length;
        }
    }

    fn data(&mut self, data: &[u8]) {
        self.sha.update(data);
        self.at += data.len() as u64;
    }

    fn finish(mut self, size: u64) -> String {
        self.zeroes_to(size);
        crate::model::hex(&self.sha.finalize())
    }
}

/// What is told of each piece of a file, with its place.
type Each<'a> = dyn FnMut(u64, &[u8]) -> Result<(), VolumeError> + 'a;

/// Goes through a file's data and tells `each` of every piece with its place.
fn walk(
    file: &File,
    size: u64,
    step: &'static str,
    progress: &mut dyn FnMut(Progress),
    cancel: &CancellationToken,
    each: &mut Each<'_>,
) -> Result<(), VolumeError> {
    let failed = |e| io_error("reading a disk's file", e);
    let mut chunk = vec![0; CHUNK];
    for run in data(file, size) {
        let run = run.map_err(failed)?;
        let mut at = run.start;
        while at < run.end {
            if cancel.is_cancelled() {
                return Err(VolumeError::Cancelled);
            }
            let length = usize::try_from(run.end - at).map_or(CHUNK, |l| l.min(CHUNK));
            let part = &mut chunk[..length];
            match file.read_exact_at(part, at) {
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                    return Err(bad("the file became shorter while it was read"));
                }
                other => other.map_err(failed)?,
            }
            each(at, part)?;
            at += length as u64;
            let done = at as f64 / size as f64;
            progress(Progress { step, done });
        }
    }
    Ok(())
}

/// SHA-256 of a file as a disk of `size` bytes.
pub(super) fn hash_stored(
    file: &File,
    size: u64,
    step: &'static str,
    progress: &mut dyn FnMut(Progress),
    cancel: &CancellationToken,
) -> Result<String, VolumeError> {
    let mut hash = Hash::default();
    walk(file, size, step, progress, cancel, &mut |at, part| {
        hash.zeroes_to(at);
        hash.data(part);
        Ok(())
    })?;
    progress(Progress { step, done: 1.0 });
    Ok(hash.finish(size))
}

/// Copies a raw file, zeroes becoming holes; the hash of what was read.
fn copy(
    from: &File,
    to: &File,
    length: u64,
    size: u64,
    progress: &mut dyn FnMut(Progress),
    cancel: &CancellationToken,
) -> Result<String, VolumeError> {
    let shared = reflink(from, to);
    let failed = |e| io_error("writing the disk of an image", e);
    if shared {
        to.set_len(size).map_err(failed)?;
    }
    let mut hash = Hash::default();
    walk(
        from,
        length,
        "copying",
        progress,
        cancel,
        &mut |at, part| {
            hash.zeroes_to(at);
            hash.data(part);
            match shared {
                true => Ok(()),
                false => write_sparse(to, at, part).map_err(failed),
            }
        },
    )?;
    progress(Progress {
        step: "copying",
        done: 1.0,
    });
    Ok(hash.finish(size))
}

/// Writes to a file that has holes there, leaving out blocks of zeroes.
pub(super) fn write_sparse(to: &File, at: u64, part: &[u8]) -> io::Result<()> {
    let blank = |block: &[u8]| block.iter().all(|b| *b == 0);
    let mut from = None;
    let mut place = 0;
    for block in part.chunks(BLOCK) {
        match (blank(block), from) {
            (true, Some(start)) => {
                to.write_all_at(&part[start..place], at + start as u64)?;
                from = None;
            }
            (false, None) => from = Some(place),
            _ => {}
        }
        place += block.len();
    }
    match from {
        Some(start) => to.write_all_at(&part[start..], at + start as u64),
        None => Ok(()),
    }
}
