//! Command descriptor blocks -> operations. Judges fields that are wrong by themselves; what
//! depends on the disk (its end, its reservations) is judged by who carries the operation out.

use super::{MOST_COMPARE, MOST_TRANSFER, MOST_UNMAP, Sense};

/// A run of logical blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub lba: u64,
    /// How many.
    pub blocks: u32,
}

/// What a WRITE does beside writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writing {
    /// Nothing.
    Plain,
    /// Reads back what was written; with BYTCHK it compares.
    AndVerify,
    /// Ors the data to what is there.
    Or,
}

/// A page of VPD, or the standard data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inquiry {
    /// Standard data.
    Standard,
    /// A page.
    Page(u8),
}

/// What REPORT SUPPORTED OPERATION CODES asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codes {
    /// All of them.
    All,
    /// One without service actions.
    One(u8),
    /// One with a service action.
    Action(u8, u16),
    /// One, with or without.
    Either(u8, u16),
}

/// PERSISTENT RESERVE IN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReserveIn {
    /// Keys that are registered.
    Keys,
    /// The reservation.
    Reservation,
    /// What the disk can do.
    Capabilities,
    /// Everything.
    FullStatus,
}

/// What a command asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// TEST UNIT READY.
    TestUnitReady,
    /// REQUEST SENSE; in descriptor format or not.
    RequestSense {
        /// Descriptor format.
        descriptor: bool,
        /// Allocation length.
        most: u32,
    },
    /// INQUIRY.
    Inquiry {
        /// What.
        what: Inquiry,
        /// Allocation length.
        most: u32,
    },
    /// REPORT LUNS.
    ReportLuns {
        /// Which: all but the well-known, the well-known, all.
        select: u8,
        /// Allocation length.
        most: u32,
    },
    /// MODE SENSE.
    ModeSense {
        /// The form of 6 bytes.
        six: bool,
        /// No block descriptor.
        no_descriptor: bool,
        /// Current, changeable, default, saved.
        control: u8,
        /// Page.
        page: u8,
        /// Subpage.
        subpage: u8,
        /// Allocation length.
        most: u32,
    },
    /// MODE SELECT.
    ModeSelect {
        /// The form of 6 bytes.
        six: bool,
        /// Length of the parameter list.
        length: u32,
    },
    /// READ CAPACITY (10).
    ReadCapacity10,
    /// READ CAPACITY (16).
    ReadCapacity16 {
        /// Allocation length.
        most: u32,
    },
    /// READ.
    Read(Span),
    /// WRITE, WRITE AND VERIFY, ORWRITE.
    Write {
        /// Where.
        span: Span,
        /// On stable storage before the answer.
        fua: bool,
        /// Which of them.
        kind: Writing,
    },
    /// VERIFY without data: that it can be read.
    Verify(Span),
    /// VERIFY with data: that it is the same.
    Compare {
        /// Where.
        span: Span,
        /// One block of data is compared with every block.
        one: bool,
    },
    /// COMPARE AND WRITE.
    CompareAndWrite {
        /// Where.
        span: Span,
        /// On stable storage before the answer.
        fua: bool,
    },
    /// WRITE SAME.
    WriteSame {
        /// Where; 0 blocks is refused before.
        span: Span,
        /// The blocks may be unmapped if the data is zeroes.
        unmap: bool,
        /// No data comes: zeroes.
        no_data: bool,
    },
    /// UNMAP.
    Unmap {
        /// Length of the parameter list.
        length: u32,
    },
    /// SYNCHRONIZE CACHE.
    Synchronize(Span),
    /// PRE-FETCH.
    Prefetch(Span),
    /// GET LBA STATUS.
    LbaStatus {
        /// From there.
        lba: u64,
        /// Allocation length.
        most: u32,
    },
    /// REPORT SUPPORTED OPERATION CODES.
    SupportedCodes {
        /// About what.
        codes: Codes,
        /// With timeouts.
        timeouts: bool,
        /// Allocation length.
        most: u32,
    },
    /// PERSISTENT RESERVE IN.
    ReserveIn {
        /// What.
        what: ReserveIn,
        /// Allocation length.
        most: u32,
    },
    /// PERSISTENT RESERVE OUT.
    ReserveOut {
        /// Service action.
        action: u8,
        /// Scope (must be 0).
        scope: u8,
        /// Type of reservation.
        kind: u8,
        /// Length of the parameter list.
        length: u32,
    },
    /// RESERVE of SPC-2.
    Reserve,
    /// RELEASE of SPC-2.
    Release,
    /// START STOP UNIT: a disk on the network neither starts nor stops.
    StartStop,
    /// PREVENT ALLOW MEDIUM REMOVAL: nothing can be removed.
    PreventAllow,
}

/// How a command stands to a reservation of somebody else (SPC-4 table 66, SBC-3 table 13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Always allowed.
    Free,
    /// Reads the medium: allowed beside a write-exclusive reservation.
    Reads,
    /// Changes something.
    Writes,
}

impl Op {
    /// Bytes of data that the command takes from the initiator.
    #[must_use]
    pub fn takes(&self) -> u64 {
        let bytes = |blocks: u32| u64::from(blocks) * super::BLOCK;
        match self {
            Self::ModeSelect { length, .. }
            | Self::Unmap { length }
            | Self::ReserveOut { length, .. } => u64::from(*length),
            Self::Write { span, .. } => bytes(span.blocks),
            Self::Compare { span, one: false } => bytes(span.blocks),
            Self::Compare { span, one: true } => bytes(span.blocks.min(1)),
            Self::CompareAndWrite { span, .. } => 2 * bytes(span.blocks),
            Self::WriteSame { no_data: false, .. } => super::BLOCK,
            _ => 0,
        }
    }

    /// How it stands to reservations.
    #[must_use]
    pub const fn access(&self) -> Access {
        match self {
            Self::TestUnitReady
            | Self::RequestSense { .. }
            | Self::Inquiry { .. }
            | Self::ReportLuns { .. }
            | Self::ReadCapacity10
            | Self::ReadCapacity16 { .. }
            | Self::LbaStatus { .. }
            | Self::SupportedCodes { .. }
            | Self::ReserveIn { .. }
            | Self::ReserveOut { .. }
            | Self::Release => Access::Free,
            Self::Read(_)
            | Self::Verify(_)
            | Self::Compare { .. }
            | Self::Prefetch(_)
            | Self::ModeSense { .. } => Access::Reads,
            Self::ModeSelect { .. }
            | Self::Write { .. }
            | Self::CompareAndWrite { .. }
            | Self::WriteSame { .. }
            | Self::Unmap { .. }
            | Self::Synchronize(_)
            | Self::Reserve
            | Self::StartStop
            | Self::PreventAllow => Access::Writes,
        }
    }
}

/// A command's bytes with readers that never fail.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8; 16]);

impl Bytes<'_> {
    const fn at(&self, at: usize) -> u8 {
        self.0[at]
    }

    fn half(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    fn word(&self, at: usize) -> u32 {
        u32::from(self.half(at)) << 16 | u32::from(self.half(at + 2))
    }

    fn long(&self, at: usize) -> u64 {
        u64::from(self.word(at)) << 32 | u64::from(self.word(at + 4))
    }

    /// Where and how much, in the forms of 6, 10, 12 and 16 bytes (SPC-4 4.3).
    fn span(&self) -> Span {
        match self.0[0] >> 5 {
            0 => Span {
                lba: u64::from(self.word(0) & 0x001f_ffff),
                // 0 is 256 in the form of 6 bytes (SBC-3 5.7).
                blocks: match self.0[4] {
                    0 => 256,
                    n => u32::from(n),
                },
            },
            1 | 2 => Span {
                lba: u64::from(self.word(2)),
                blocks: u32::from(self.half(7)),
            },
            5 => Span {
                lba: u64::from(self.word(2)),
                blocks: self.word(6),
            },
            _ => Span {
                lba: self.long(2),
                blocks: self.word(10),
            },
        }
    }
}

/// Protection information is not kept: a command that asks for it is refused (SBC-3 5.8).
fn unprotected(cdb: Bytes<'_>) -> Result<(), Sense> {
    if cdb.at(1) & 0xe0 != 0 {
        return Err(Sense::FIELD);
    }
    Ok(())
}

fn bounded(span: Span) -> Result<Span, Sense> {
    if span.blocks > MOST_TRANSFER {
        return Err(Sense::FIELD);
    }
    Ok(span)
}

/// Reads a command.
///
/// # Errors
/// The sense that it is answered with.
pub fn decode(bytes: &[u8; 16]) -> Result<Op, Sense> {
    let cdb = Bytes(bytes);
    let op = operation(cdb)?;
    // NACA (SAM-5 5.2): normal ACA is not supported.
    let control = match bytes[0] >> 5 {
        0 => 5,
        1 | 2 => 9,
        5 => 11,
        _ => 15,
    };
    if cdb.at(control) & 0x04 != 0 {
        return Err(Sense::FIELD);
    }
    Ok(op)
}

fn operation(cdb: Bytes<'_>) -> Result<Op, Sense> {
    let fua = cdb.at(1) & 0x08 != 0;
    Ok(match cdb.at(0) {
        0x00 => Op::TestUnitReady,
        0x03 => Op::RequestSense {
            descriptor: cdb.at(1) & 1 != 0,
            most: u32::from(cdb.at(4)),
        },
        0x08 => Op::Read(cdb.span()),
        0x0a => write(cdb.span(), false, Writing::Plain),
        0x12 => inquiry(cdb)?,
        0x15 => mode_select(cdb, true, u32::from(cdb.at(4)))?,
        0x55 => mode_select(cdb, false, u32::from(cdb.half(7)))?,
        0x16 | 0x56 => Op::Reserve,
        0x17 | 0x57 => Op::Release,
        0x1a => mode_sense(cdb, true, u32::from(cdb.at(4))),
        0x5a => mode_sense(cdb, false, u32::from(cdb.half(7))),
        0x1b => Op::StartStop,
        0x1e => prevent_allow(cdb)?,
        0x25 => capacity10(cdb)?,
        0x28 | 0x88 | 0xa8 => {
            unprotected(cdb)?;
            Op::Read(bounded(cdb.span())?)
        }
        0x2a | 0x8a | 0xaa => {
            unprotected(cdb)?;
            write(bounded(cdb.span())?, fua, Writing::Plain)
        }
        0x2e | 0x8e | 0xae => {
            unprotected(cdb)?;
            // BYTCHK 2 and 3 are reserved (SBC-3 5.36).
            if cdb.at(1) & 0x04 != 0 {
                return Err(Sense::FIELD);
            }
            write(bounded(cdb.span())?, false, Writing::AndVerify)
        }
        0x8b => {
            unprotected(cdb)?;
            write(bounded(cdb.span())?, fua, Writing::Or)
        }
        0x2f | 0x8f | 0xaf => verify(cdb)?,
        0x34 | 0x90 => Op::Prefetch(cdb.span()),
        0x35 | 0x91 => Op::Synchronize(cdb.span()),
        0x41 | 0x93 => write_same(cdb)?,
        0x42 => unmap(cdb)?,
        0x5e => reserve_in(cdb)?,
        0x5f => Op::ReserveOut {
            action: cdb.at(1) & 0x1f,
            scope: cdb.at(2) >> 4,
            kind: cdb.at(2) & 0x0f,
            length: cdb.word(5),
        },
        0x89 => compare_and_write(cdb, fua)?,
        0x9e => service_action_in(cdb)?,
        0xa0 => report_luns(cdb)?,
        0xa3 => supported_codes(cdb)?,
        _ => return Err(Sense::OPCODE),
    })
}

const fn write(span: Span, fua: bool, kind: Writing) -> Op {
    Op::Write { span, fua, kind }
}

fn inquiry(cdb: Bytes<'_>) -> Result<Op, Sense> {
    let page = cdb.at(2);
    let what = match cdb.at(1) {
        0 if page == 0 => Inquiry::Standard,
        1 => Inquiry::Page(page),
        // A page without EVPD, or the obsolete CMDDT (SPC-4 6.6.1).
        _ => return Err(Sense::FIELD),
    };
    let most = u32::from(cdb.half(3));
    Ok(Op::Inquiry { what, most })
}

fn mode_sense(cdb: Bytes<'_>, six: bool, most: u32) -> Op {
    Op::ModeSense {
        six,
        no_descriptor: cdb.at(1) & 0x08 != 0,
        control: cdb.at(2) >> 6,
        page: cdb.at(2) & 0x3f,
        subpage: cdb.at(3),
        most,
    }
}

fn mode_select(cdb: Bytes<'_>, six: bool, length: u32) -> Result<Op, Sense> {
    // PF must be set, SP not: nothing is saved (SPC-4 6.10).
    if cdb.at(1) & 0x11 != 0x10 {
        return Err(Sense::FIELD);
    }
    Ok(Op::ModeSelect { six, length })
}

fn prevent_allow(cdb: Bytes<'_>) -> Result<Op, Sense> {
    if cdb.at(4) & 0x02 != 0 {
        return Err(Sense::FIELD);
    }
    Ok(Op::PreventAllow)
}

fn capacity10(cdb: Bytes<'_>) -> Result<Op, Sense> {
    // PMI, and an address without it, are obsolete (SBC-3 5.16).
    if cdb.at(8) & 1 != 0 || cdb.word(2) != 0 {
        return Err(Sense::FIELD);
    }
    Ok(Op::ReadCapacity10)
}

fn verify(cdb: Bytes<'_>) -> Result<Op, Sense> {
    unprotected(cdb)?;
    let span = bounded(cdb.span())?;
    match cdb.at(1) >> 1 & 3 {
        0 => Ok(Op::Verify(span)),
        1 => Ok(Op::Compare { span, one: false }),
        3 => Ok(Op::Compare { span, one: true }),
        _ => Err(Sense::FIELD),
    }
}

fn write_same(cdb: Bytes<'_>) -> Result<Op, Sense> {
    let sixteen = cdb.at(0) == 0x93;
    unprotected(cdb)?;
    let flags = cdb.at(1);
    let no_data = sixteen && flags & 0x01 != 0;
    let span = cdb.span();
    // PBDATA and LBDATA are obsolete; ANCHOR is not supported (VPD page B2 says so); 0 blocks
    // would be the whole disk, and WSNZ in page B0 says that it is refused (SBC-3 5.43).
    if flags & 0x06 != 0
        || flags & 0x10 != 0
        || (!sixteen && flags & 0x01 != 0)
        || span.blocks == 0
        || span.blocks > MOST_UNMAP
    {
        return Err(Sense::FIELD);
    }
    Ok(Op::WriteSame {
        span,
        unmap: flags & 0x08 != 0,
        no_data,
    })
}

fn unmap(cdb: Bytes<'_>) -> Result<Op, Sense> {
    if cdb.at(1) & 1 != 0 {
        return Err(Sense::FIELD);
    }
    let length = u32::from(cdb.half(7));
    Ok(Op::Unmap { length })
}

fn reserve_in(cdb: Bytes<'_>) -> Result<Op, Sense> {
    let what = match cdb.at(1) & 0x1f {
        0 => ReserveIn::Keys,
        1 => ReserveIn::Reservation,
        2 => ReserveIn::Capabilities,
        3 => ReserveIn::FullStatus,
        _ => return Err(Sense::FIELD),
    };
    let most = u32::from(cdb.half(7));
    Ok(Op::ReserveIn { what, most })
}

fn compare_and_write(cdb: Bytes<'_>, fua: bool) -> Result<Op, Sense> {
    unprotected(cdb)?;
    let blocks = cdb.at(13);
    if blocks > MOST_COMPARE {
        return Err(Sense::FIELD);
    }
    let span = Span {
        lba: cdb.long(2),
        blocks: u32::from(blocks),
    };
    Ok(Op::CompareAndWrite { span, fua })
}

fn service_action_in(cdb: Bytes<'_>) -> Result<Op, Sense> {
    let most = cdb.word(10);
    match cdb.at(1) & 0x1f {
        0x10 if cdb.at(14) & 1 != 0 || cdb.long(2) != 0 => Err(Sense::FIELD),
        0x10 => Ok(Op::ReadCapacity16 { most }),
        0x12 => Ok(Op::LbaStatus {
            lba: cdb.long(2),
            most,
        }),
        _ => Err(Sense::FIELD),
    }
}

fn report_luns(cdb: Bytes<'_>) -> Result<Op, Sense> {
    let (select, most) = (cdb.at(2), cdb.word(6));
    // Fewer than 16 bytes can't hold an answer (SPC-4 6.33).
    if select > 2 || most < 16 {
        return Err(Sense::FIELD);
    }
    Ok(Op::ReportLuns { select, most })
}

fn supported_codes(cdb: Bytes<'_>) -> Result<Op, Sense> {
    if cdb.at(1) & 0x1f != 0x0c {
        return Err(Sense::FIELD);
    }
    let (code, action) = (cdb.at(3), cdb.half(4));
    let codes = match cdb.at(2) & 7 {
        0 => Codes::All,
        1 => Codes::One(code),
        2 => Codes::Action(code, action),
        3 => Codes::Either(code, action),
        _ => return Err(Sense::FIELD),
    };
    Ok(Op::SupportedCodes {
        codes,
        timeouts: cdb.at(2) & 0x80 != 0,
        most: cdb.word(6),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cdb(bytes: &[u8]) -> Result<Op, Sense> {
        let mut all = [0; 16];
        all[..bytes.len()].copy_from_slice(bytes);
        decode(&all)
    }

    #[test]
    fn four_forms_of_a_read() {
        let read = |lba, blocks| Ok(Op::Read(Span { lba, blocks }));
        assert_eq!(cdb(&[0x08, 0xff, 2, 3, 0, 0]), read(0x001f_0203, 256));
        assert_eq!(
            cdb(&[0x28, 0x18, 1, 2, 3, 4, 0, 0, 8]),
            read(0x0102_0304, 8)
        );
        assert_eq!(
            cdb(&[0xa8, 0, 1, 2, 3, 4, 0, 0, 1, 0]),
            read(0x0102_0304, 256)
        );
        assert_eq!(
            cdb(&[0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 9]),
            read(0x0102_0304_0506_0708, 9)
        );
    }

    #[test]
    fn what_is_not_kept_is_refused() {
        for bytes in [
            &[0x28, 0x20][..],
            &[0x2a, 0xe0],
            &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 4],
            &[0x41, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x41, 0x10, 0, 0, 0, 0, 0, 0, 1],
            &[0x93, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            &[0x42, 1],
            &[0x12, 0, 0x83],
            &[0x9e, 0x1f],
            &[0xa3, 0x0d],
            &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1],
            &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 129],
        ] {
            assert_eq!(cdb(bytes), Err(Sense::FIELD), "{bytes:02x?}");
        }
        for opcode in [0x04, 0x43, 0x83, 0x84, 0x7f, 0x48, 0xff] {
            assert_eq!(cdb(&[opcode]), Err(Sense::OPCODE), "{opcode:02x}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: [u8; 16]) {
            if let Ok(op) = decode(&bytes) {
                prop_assert!(op.takes() <= u64::from(u32::MAX));
                let _ = op.access();
            }
        }
    }
}
