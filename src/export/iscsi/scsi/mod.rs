//! SCSI (SPC-4, SBC-3) without sockets and disks: [`cdb`] reads commands, [`sense`] says what
//! went wrong, [`inquiry`], [`mode`] and [`opcodes`] describe the disk, [`reserve`] is who may
//! use it, [`lists`] the parameter lists that come with a command.

pub mod cdb;
pub mod inquiry;
pub mod lists;
pub mod mode;
pub mod opcodes;
pub mod reserve;
pub mod sense;

pub use sense::Sense;

/// Bytes of a logical block.
pub const BLOCK: u64 = 512;

/// The longest transfer of one command, in blocks: 32 MiB. Reported in VPD page B0. None of
/// it is gathered: data is passed on PDU by PDU.
pub const MOST_TRANSFER: u32 = 64 * 1024;
/// The most blocks of one COMPARE AND WRITE.
pub const MOST_COMPARE: u8 = 128;
/// The most blocks that one UNMAP descriptor or WRITE SAME may name: 512 MiB.
pub const MOST_UNMAP: u32 = 1024 * 1024;
/// The most descriptors of one UNMAP.
pub const MOST_UNMAP_DESCRIPTORS: u32 = 256;
