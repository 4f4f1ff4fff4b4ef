//! The requests to a block device that have no safe wrapper. Nothing else is unsafe here.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IOR(0x12, 125, char[256])` of ZFS.
const BLKZNAME: libc::c_ulong = (2 << 30) | (256 << 16) | (0x12 << 8) | 125;
/// `_IO(0x12, 119)` of Linux.
const BLKDISCARD: libc::c_ulong = (0x12 << 8) | 119;

/// The dataset whose zvol this device is, from the module itself.
pub(super) fn dataset(device: &File) -> io::Result<String> {
    let mut name = [0_u8; 256];
    // SAFETY: the request writes 256 bytes, which `name` has.
    #[expect(unsafe_code, reason = "nix has no wrapper for this request")]
    let failed = unsafe { libc::ioctl(device.as_raw_fd(), BLKZNAME, name.as_mut_ptr()) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

/// Gives a range back; both numbers are multiples of the device's block.
pub(super) fn discard(device: &File, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: the request reads two numbers, which `range` has.
    #[expect(unsafe_code, reason = "nix has no wrapper for this request")]
    let failed = unsafe { libc::ioctl(device.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    match failed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
