//! Carries operations out on a disk: everything but the streams of READ and WRITE, whose data
//! never lies in a buffer of its own. It knows SCSI and the disk, no PDU.

use std::sync::PoisonError;

use super::lun::{Lun, Seat};
use super::scsi::cdb::{Inquiry, Op, Span, Writing};
use super::scsi::inquiry::{self, Portrait};
use super::scsi::mode::{self, Question};
use super::scsi::reserve::Refused;
use super::scsi::{BLOCK, Sense, lists, opcodes};
use crate::boot::disks::Attachment;
use crate::storage::{BlockDevice, BlockError, Durability, ExtentKind};

/// Bytes that are read at once to be compared or verified.
const PIECE: usize = 256 * 1024;
/// Runs of GET LBA STATUS in one answer.
const MOST_RUNS: usize = 256;

/// How an operation ended.
#[derive(Debug)]
pub enum Outcome {
    /// Well, with data for the initiator.
    Good(Vec<u8>),
    /// With sense data.
    Check(Sense),
    /// With status RESERVATION CONFLICT.
    Conflict,
    /// A newer login has the disk: the session ends.
    Fenced,
}

impl From<Sense> for Outcome {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

impl From<Refused> for Outcome {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Conflict => Self::Conflict,
            Refused::Sense(sense) => Self::Check(sense),
        }
    }
}

/// What was tried when the disk failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// To read.
    Reading,
    /// To write, discard or flush.
    Writing,
}

/// What the initiator is told of a disk's failure; `None` of a fence.
pub fn told(error: &BlockError, tried: Tried) -> Option<Sense> {
    Some(match error {
        BlockError::OutOfRange => Sense::OUT_OF_RANGE,
        BlockError::ReadOnly => Sense::WRITE_PROTECTED,
        BlockError::NoSpace => Sense::NO_SPACE,
        BlockError::Fenced => return None,
        BlockError::Io(_) => match tried {
            Tried::Reading => Sense::READ_ERROR,
            Tried::Writing => Sense::WRITE_ERROR,
        },
    })
}

/// The outcome of a disk's failure.
pub fn failed(error: &BlockError, tried: Tried) -> Outcome {
    told(error, tried).map_or(Outcome::Fenced, Outcome::Check)
}

/// What operations are carried out on.
#[derive(Debug, Clone, Copy)]
pub struct Bench<'a> {
    /// The bytes.
    pub device: &'a Attachment,
    /// What is shared.
    pub lun: &'a Lun,
    /// Who asks.
    pub seat: &'a Seat,
    /// What the disk is.
    pub portrait: &'a Portrait,
}

/// The part of an operation that concerns where on the disk it works, if anywhere.
pub const fn place(op: &Op) -> Option<Span> {
    match op {
        Op::Read(span)
        | Op::Verify(span)
        | Op::Synchronize(span)
        | Op::Prefetch(span)
        | Op::Compare { span, .. }
        | Op::Write { span, .. }
        | Op::CompareAndWrite { span, .. }
        | Op::WriteSame { span, .. } => Some(*span),
        _ => None,
    }
}

/// True if it changes the medium.
pub const fn changes(op: &Op) -> bool {
    matches!(
        op,
        Op::Write { .. } | Op::CompareAndWrite { .. } | Op::WriteSame { .. } | Op::Unmap { .. }
    )
}

/// True if it may take long, and is better done beside the session's own thread.
pub const fn may_wait(op: &Op) -> bool {
    matches!(
        op,
        Op::Verify(_)
            | Op::Synchronize(_)
            | Op::WriteSame { .. }
            | Op::Unmap { .. }
            | Op::LbaStatus { .. }
            | Op::CompareAndWrite { fua: true, .. }
    )
}

/// What can be said against an operation before its data comes.
pub fn refused(op: &Op, disk: &Portrait) -> Option<Sense> {
    if let Some(span) = place(op)
        && let Err(sense) = within(span, disk)
    {
        return Some(sense);
    }
    (changes(op) && disk.read_only).then_some(Sense::WRITE_PROTECTED)
}

fn within(span: Span, disk: &Portrait) -> Result<(), Sense> {
    match span.lba.checked_add(u64::from(span.blocks)) {
        Some(end) if end <= disk.blocks => Ok(()),
        _ => Err(Sense::OUT_OF_RANGE),
    }
}

/// Byte offset and length.
const fn bytes(span: Span) -> (u64, u64) {
    (span.lba * BLOCK, span.blocks as u64 * BLOCK)
}

/// Carries it out. `data` is all that came with it.
pub fn carry_out(bench: &Bench<'_>, op: &Op, data: &[u8]) -> Outcome {
    match attempt(bench, op, data) {
        Ok(answer) => Outcome::Good(answer),
        Err(outcome) => outcome,
    }
}

fn attempt(bench: &Bench<'_>, op: &Op, data: &[u8]) -> Result<Vec<u8>, Outcome> {
    let disk = bench.portrait;
    let cut = |mut answer: Vec<u8>, most: u32| {
        answer.truncate(most as usize);
        Ok(answer)
    };
    match *op {
        Op::TestUnitReady | Op::StartStop | Op::PreventAllow | Op::Prefetch(_) => Ok(Vec::new()),
        Op::RequestSense { descriptor, most } => {
            let sense = bench.seat.attention().unwrap_or(Sense::NONE);
            let answer = if descriptor {
                sense.descriptor().to_vec()
            } else {
                sense.fixed().to_vec()
            };
            cut(answer, most)
        }
        Op::Inquiry { what, most } => match what {
            Inquiry::Standard => cut(inquiry::standard(true), most),
            Inquiry::Page(page) => cut(inquiry::page(page, disk)?, most),
        },
        Op::ReportLuns { select, most } => cut(inquiry::luns(select), most),
        Op::ReadCapacity10 => Ok(inquiry::capacity10(disk)),
        Op::ReadCapacity16 { most } => cut(inquiry::capacity16(disk), most),
        Op::ModeSense {
            six,
            no_descriptor,
            control,
            page,
            subpage,
            most,
        } => {
            let asked = Question {
                six,
                no_descriptor,
                control,
                page,
                subpage,
            };
            cut(mode::sense(&asked, disk)?, most)
        }
        Op::ModeSelect { six, .. } => Ok(mode::select(data, six).map(|()| Vec::new())?),
        Op::SupportedCodes {
            codes,
            timeouts,
            most,
        } => cut(opcodes::report(codes, timeouts)?, most),
        Op::Reserve => Ok(bench.lun.reserve(bench.seat).map(|()| Vec::new())?),
        Op::Release => {
            bench.lun.release(bench.seat);
            Ok(Vec::new())
        }
        Op::ReserveIn { what, most } => cut(bench.lun.reserve_in(what), most),
        Op::ReserveOut {
            action,
            scope,
            kind,
            ..
        } => {
            let keys = lists::keys(data)?;
            let lun = bench.lun;
            let changed = lun.reserve_out(bench.seat, action, scope, kind, &keys);
            Ok(changed.map(|()| Vec::new())?)
        }
        Op::LbaStatus { lba, most } => cut(lba_status(bench, lba)?, most),
        Op::Verify(span) => verify(bench, span),
        Op::Synchronize(_) => {
            let flushed = bench.device.flush();
            flushed.map_err(|e| failed(&e, Tried::Writing))?;
            Ok(Vec::new())
        }
        Op::Unmap { .. } => unmap(bench, data),
        Op::WriteSame {
            span,
            no_data,
            unmap,
        } => write_same(bench, span, unmap, no_data, data),
        Op::CompareAndWrite { span, fua } => compare_and_write(bench, span, fua, data),
        // One block against each of many; the stream of data is compared as it comes.
        Op::Compare { span, .. } => compare_one(bench, span, data),
        // Of no blocks: those of some are streams.
        Op::Read(_) | Op::Write { .. } => Ok(Vec::new()),
    }
}

/// Takes a part of a WRITE's data.
pub fn write(bench: &Bench<'_>, kind: Writing, offset: u64, data: &[u8]) -> Result<(), Outcome> {
    let writing = |e: BlockError| failed(&e, Tried::Writing);
    let device = bench.device;
    if kind == Writing::Or {
        let media = &bench.lun.media;
        let _alone = media.write().unwrap_or_else(PoisonError::into_inner);
        let mut old = vec![0; data.len()];
        let read = device.read_at(offset, &mut old);
        read.map_err(|e| failed(&e, Tried::Reading))?;
        old.iter_mut().zip(data).for_each(|(old, new)| *old |= new);
        return device
            .write_at(offset, &old, Durability::Volatile)
            .map_err(writing);
    }
    {
        let media = &bench.lun.media;
        let _beside = media.read().unwrap_or_else(PoisonError::into_inner);
        device
            .write_at(offset, data, Durability::Volatile)
            .map_err(writing)?;
    }
    if kind == Writing::AndVerify {
        compare(bench, offset, data, 0)?;
    }
    Ok(())
}

/// Compares a part of the disk; `before` bytes of the command's data came before this part.
pub fn compare(bench: &Bench<'_>, offset: u64, data: &[u8], before: u32) -> Result<(), Outcome> {
    let mut found = vec![0; data.len()];
    let read = bench.device.read_at(offset, &mut found);
    read.map_err(|e| failed(&e, Tried::Reading))?;
    match found.iter().zip(data).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => {
            let at = before.saturating_add(u32::try_from(at).unwrap_or(u32::MAX));
            Err(Sense::MISCOMPARE.about(at).into())
        }
    }
}

fn verify(bench: &Bench<'_>, span: Span) -> Result<Vec<u8>, Outcome> {
    let (mut offset, mut left) = bytes(span);
    let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
    let mut buffer = vec![0; most];
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(most).min(most);
        let read = bench.device.read_at(offset, &mut buffer[..length]);
        read.map_err(|e| failed(&e, Tried::Reading))?;
        offset += length as u64;
        left -= length as u64;
    }
    Ok(Vec::new())
}

fn compare_one(bench: &Bench<'_>, span: Span, data: &[u8]) -> Result<Vec<u8>, Outcome> {
    if span.blocks > 0 && data.len() < 512 {
        return Err(Sense::TOO_LITTLE_DATA.into());
    }
    for block in 0..u64::from(span.blocks) {
        compare(bench, (span.lba + block) * BLOCK, &data[..512], 0)?;
    }
    Ok(Vec::new())
}

fn compare_and_write(
    bench: &Bench<'_>,
    span: Span,
    fua: bool,
    data: &[u8],
) -> Result<Vec<u8>, Outcome> {
    let (offset, length) = bytes(span);
    let half = usize::try_from(length).unwrap_or(usize::MAX);
    if data.len() < half.saturating_mul(2) {
        return Err(Sense::TOO_LITTLE_DATA.into());
    }
    let durability = if fua {
        Durability::Fua
    } else {
        Durability::Volatile
    };
    let media = &bench.lun.media;
    let _alone = media.write().unwrap_or_else(PoisonError::into_inner);
    compare(bench, offset, &data[..half], 0)?;
    let written = bench
        .device
        .write_at(offset, &data[half..half * 2], durability);
    written.map_err(|e| failed(&e, Tried::Writing))?;
    Ok(Vec::new())
}

fn unmap(bench: &Bench<'_>, data: &[u8]) -> Result<Vec<u8>, Outcome> {
    let spans = lists::unmap(data)?;
    // All are judged before the first is unmapped.
    for span in &spans {
        within(*span, bench.portrait)?;
    }
    let media = &bench.lun.media;
    let _beside = media.read().unwrap_or_else(PoisonError::into_inner);
    for span in spans.iter().filter(|s| s.blocks > 0) {
        let (offset, length) = bytes(*span);
        let done = bench.device.discard(offset, length);
        done.map_err(|e| failed(&e, Tried::Writing))?;
    }
    Ok(Vec::new())
}

fn write_same(
    bench: &Bench<'_>,
    span: Span,
    unmap: bool,
    no_data: bool,
    data: &[u8],
) -> Result<Vec<u8>, Outcome> {
    if !no_data && data.len() < 512 {
        return Err(Sense::TOO_LITTLE_DATA.into());
    }
    let (mut offset, mut left) = bytes(span);
    let zeroes = no_data || data[..512].iter().all(|b| *b == 0);
    let media = &bench.lun.media;
    let _beside = media.read().unwrap_or_else(PoisonError::into_inner);
    let writing = |e: BlockError| failed(&e, Tried::Writing);
    if zeroes {
        // Unmapped blocks read as zeroes, so that is right for zeroes only (SBC-3 5.43).
        let done = if unmap {
            bench.device.discard(offset, left)
        } else {
            let device = bench.device;
            device.write_zeroes(offset, left, true, Durability::Volatile)
        };
        done.map_err(writing)?;
        return Ok(Vec::new());
    }
    let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
    let pattern = data[..512].repeat(most.div_ceil(512));
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(most).min(most);
        let device = bench.device;
        device
            .write_at(offset, &pattern[..length], Durability::Volatile)
            .map_err(writing)?;
        offset += length as u64;
        left -= length as u64;
    }
    Ok(Vec::new())
}

/// GET LBA STATUS (SBC-3 5.5): mapped or deallocated. A block that only a part of is stored
/// counts as mapped.
fn lba_status(bench: &Bench<'_>, lba: u64) -> Result<Vec<u8>, Outcome> {
    if lba >= bench.portrait.blocks {
        return Err(Sense::OUT_OF_RANGE.into());
    }
    let (start, end) = (lba * BLOCK, bench.portrait.blocks * BLOCK);
    let runs = bench.device.extents(start, end - start, MOST_RUNS);
    let runs = runs.map_err(|e| failed(&e, Tried::Reading))?;
    // Borders that lie within a block: it belongs to what is stored.
    let (mut at, mut list) = (start, Vec::<(u64, u64, bool)>::new());
    for run in runs {
        let hole = run.kind == ExtentKind::Hole;
        let (from, to) = (at, at + run.length);
        at = to;
        let (from, to) = if hole {
            (from.next_multiple_of(BLOCK), to / BLOCK * BLOCK)
        } else {
            (from / BLOCK * BLOCK, to.next_multiple_of(BLOCK))
        };
        if from >= to {
            continue;
        }
        match list.last_mut() {
            Some((_, end, kind)) if *kind == hole => *end = to,
            _ => list.push((from, to, hole)),
        }
    }
    let mut data = vec![0; 8];
    for (from, to, hole) in list {
        let mut first = from / BLOCK;
        let mut left = (to - from) / BLOCK;
        while left > 0 {
            let blocks = u32::try_from(left).unwrap_or(u32::MAX);
            data.extend(first.to_be_bytes());
            data.extend(blocks.to_be_bytes());
            data.extend([u8::from(hole), 0, 0, 0]);
            first += u64::from(blocks);
            left -= u64::from(blocks);
        }
    }
    let length = u32::try_from(data.len() - 4).unwrap_or(0);
    data[..4].copy_from_slice(&length.to_be_bytes());
    Ok(data)
}
