//! SCSI commands of one session: decoded, judged, their data gathered, carried out, answered.
//! It owns the tasks that wait for data; those that wait for the disk are with the workers.
//!
//! The data of a WRITE goes to the disk as it comes, PDU by PDU, each only when its digest
//! was right: no buffer, and what is written of a task that is aborted is, as SCSI has it, a
//! part of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::metrics::counter::Counter;

use super::execute::{self, Bench, Outcome, Tried};
use super::line::Connection;
use super::lun::{Lun, Seat};
use super::machine::Params;
use super::metrics::{Class, IscsiMetrics};
use super::output::{Numbering, Output};
use super::scsi::cdb::{self, Inquiry, Op, Span, Writing};
use super::scsi::inquiry::{self, Portrait};
use super::scsi::{BLOCK, Sense};
use super::wire::answer::{Answer, Residual};
use super::wire::{FINAL, NO_TAG, Pdu};
use super::workers::{Tag, Workers};
use crate::boot::disks::Attachment;
use crate::storage::BlockDevice;

/// Tasks that wait for data; the window bounds those that are not immediate.
const MOST_WAITING: usize = 256;
/// Bytes of parameter lists and the like that a session may have gathered.
const MOST_GATHERED: usize = 1024 * 1024;

const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;
const RESERVATION_CONFLICT: u8 = 0x18;
const TASK_SET_FULL: u8 = 0x28;

/// What the session's thread and its workers share.
pub struct Desk {
    /// The connection.
    pub connection: Arc<Connection>,
    /// The disk.
    pub device: Attachment,
    /// What all sessions at the disk share.
    pub lun: Arc<Lun>,
    /// This session's place there.
    pub seat: Arc<Seat>,
    /// What the disk is.
    pub portrait: Portrait,
    /// What was agreed.
    pub params: Params,
    /// Counters.
    pub metrics: IscsiMetrics,
    reads: Counter,
    writes: Counter,
}

/// What becomes of the session after a PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It goes on.
    Continue,
    /// A newer login has the disk.
    Fenced,
}

/// What the data of a task is for.
enum Purpose {
    /// Written as it comes.
    Write {
        offset: u64,
        kind: Writing,
        fua: bool,
    },
    /// Compared as it comes.
    Compare { offset: u64 },
    /// Kept until it is complete.
    Gather(Op, Vec<u8>),
}

/// A task that waits for data.
struct Waiting {
    tag: Tag,
    lun: u64,
    epoch: u64,
    purpose: Purpose,
    /// Bytes that the command takes.
    takes: u64,
    /// Bytes that the initiator will send.
    expected: u32,
    /// Bytes that are worth asking for.
    wanted: u32,
    /// Bytes that came.
    came: u32,
    /// The tag of the R2T that is out, or none while unsolicited data comes.
    target_tag: u32,
    /// Data up to there belongs to it.
    until: u32,
    data_number: u32,
    r2t_number: u32,
    fault: Option<Outcome>,
}

/// The commands of one session.
pub struct Commands {
    desk: Arc<Desk>,
    workers: Workers,
    waiting: HashMap<u32, Waiting>,
    next_target_tag: u32,
}

impl Desk {
    /// A session's desk.
    pub fn new(
        connection: Arc<Connection>,
        device: Attachment,
        (lun, seat): (Arc<Lun>, Arc<Seat>),
        params: Params,
        metrics: IscsiMetrics,
    ) -> Self {
        let info = device.info();
        let portrait = Portrait {
            identity: device.identity(),
            blocks: info.size / BLOCK,
            preferred: info.preferred_block,
            read_only: info.read_only,
        };
        Self {
            reads: metrics.class(Class::Read),
            writes: metrics.class(Class::Write),
            connection,
            device,
            lun,
            seat,
            portrait,
            params,
            metrics,
        }
    }

    /// What operations are carried out on.
    pub fn bench(&self) -> Bench<'_> {
        Bench {
            device: &self.device,
            lun: &self.lun,
            seat: &self.seat,
            portrait: &self.portrait,
        }
    }

    fn count(&self, op: &Op) {
        match Class::of(op) {
            Class::Read => self.reads.inc(),
            Class::Write => self.writes.inc(),
            class => self.metrics.class(class).inc(),
        };
    }

    /// Ends a task. `moved`: bytes that the command takes from the initiator, of `expected`.
    fn answer(&self, tag: Tag, outcome: Outcome, takes: u64, expected: u32) -> After {
        let mut output = self.connection.output();
        match outcome {
            Outcome::Good(data) if data.is_empty() => {
                ended(&mut output, tag);
                let residual = Residual::of(takes, expected);
                let answer = Answer::scsi(tag.tag, GOOD, residual);
                output.push(answer, Numbering::Status, &[]);
            }
            Outcome::Good(data) => self.answer_data(&mut output, tag, &data, expected),
            Outcome::Check(sense) => self.answer_sense(&mut output, tag, sense, expected),
            Outcome::Conflict => {
                ended(&mut output, tag);
                self.metrics.refused("reservation_conflict");
                let residual = Residual::of(0, expected);
                let answer = Answer::scsi(tag.tag, RESERVATION_CONFLICT, residual);
                output.push(answer, Numbering::Status, &[]);
            }
            Outcome::Fenced => return After::Fenced,
        }
        After::Continue
    }

    fn answer_sense(&self, output: &mut Output, tag: Tag, sense: Sense, expected: u32) {
        ended(output, tag);
        self.metrics.refused(match sense.key {
            0x3 => "medium_error",
            0x5 => "illegal_request",
            0x6 => "unit_attention",
            0x7 => "data_protect",
            0xe => "miscompare",
            _ => "aborted_command",
        });
        let mut data = vec![0, 18];
        data.extend(sense.fixed());
        let residual = Residual::of(0, expected);
        let answer = Answer::scsi(tag.tag, CHECK_CONDITION, residual);
        output.push(answer, Numbering::Status, &data);
    }

    fn answer_data(&self, output: &mut Output, tag: Tag, data: &[u8], expected: u32) {
        let residual = Residual::of(data.len() as u64, expected);
        let length = data.len().min(expected as usize);
        if length == 0 {
            ended(output, tag);
            let answer = Answer::scsi(tag.tag, GOOD, residual);
            output.push(answer, Numbering::Status, &[]);
            return;
        }
        let mut sending = Sending::new(tag, length, residual);
        while let Some(piece) = sending.next(&self.params) {
            if piece.last {
                ended(output, tag);
            }
            let at = piece.offset;
            let part = &data[at..at + piece.length];
            output.push(piece.answer, piece.numbering, part);
        }
    }
}

/// A task has ended: there is room for another command.
fn ended(output: &mut Output, tag: Tag) {
    if !tag.immediate {
        output.window.ended();
    }
}

/// Cuts data for an initiator into Data-In PDUs.
#[derive(Clone, Copy)]
struct Sending {
    tag: Tag,
    total: usize,
    residual: Residual,
    offset: usize,
    number: u32,
    burst: usize,
}

/// One Data-In PDU.
struct Piece {
    answer: Answer,
    numbering: Numbering,
    offset: usize,
    length: usize,
    last: bool,
}

impl Sending {
    const fn new(tag: Tag, total: usize, residual: Residual) -> Self {
        Self {
            tag,
            total,
            residual,
            offset: 0,
            number: 0,
            burst: 0,
        }
    }

    fn next(&mut self, params: &Params) -> Option<Piece> {
        if self.offset >= self.total {
            return None;
        }
        let most = params.max_burst as usize;
        let length = (self.total - self.offset)
            .min(params.initiator_takes as usize)
            .min(most - self.burst);
        let (offset, number) = (self.offset, self.number);
        self.offset += length;
        self.burst += length;
        self.number = number.wrapping_add(1);
        let last = self.offset == self.total;
        let burst_ends = self.burst == most;
        if burst_ends {
            self.burst = 0;
        }
        let end = last.then_some(self.residual);
        let at = u32::try_from(offset).unwrap_or(u32::MAX);
        Some(Piece {
            answer: Answer::data_in(self.tag.tag, number, at, last || burst_ends, end),
            numbering: if last {
                Numbering::Status
            } else {
                Numbering::Without
            },
            offset,
            length,
            last,
        })
    }
}

impl Commands {
    /// None yet.
    pub fn new(desk: Arc<Desk>) -> Self {
        Self {
            desk,
            workers: Workers::default(),
            waiting: HashMap::new(),
            next_target_tag: 0,
        }
    }

    /// A SCSI command PDU whose turn it is.
    pub fn command(&mut self, pdu: &Pdu<'_>) -> After {
        let header = &pdu.header;
        let tag = Tag {
            tag: header.tag(),
            immediate: header.immediate(),
        };
        let expected = header.word(20);
        let ordered = header.flags() & 7 == 2;
        if ordered {
            // Everything before it first, and nothing after it before it.
            self.workers.drain();
        }
        let after = match self.judge(pdu, tag) {
            Ok(op) => self.begin(&op, tag, pdu, expected),
            Err(outcome) => self.desk.answer(tag, outcome, 0, expected),
        };
        if ordered {
            self.workers.drain();
        }
        after
    }

    /// What stands against a command before it is begun.
    fn judge(&self, pdu: &Pdu<'_>, tag: Tag) -> Result<Op, Outcome> {
        let desk = &self.desk;
        let bytes = pdu.header.0[32..].first_chunk::<16>();
        let decoded = cdb::decode(bytes.unwrap_or(&[0xff; 16]));
        if pdu.header.lun() != 0 {
            return Err(nobody_there(decoded?));
        }
        let unmoved = matches!(
            decoded,
            Ok(Op::Inquiry { .. } | Op::ReportLuns { .. } | Op::RequestSense { .. })
        );
        if !unmoved && let Some(sense) = desk.seat.attention() {
            return Err(sense.into());
        }
        let op = decoded.inspect_err(|_| {
            desk.metrics.class(Class::Unknown).inc();
        })?;
        desk.count(&op);
        // An extended CDB is of no command that we have, and a tag lives once.
        if !pdu.ahs.is_empty() {
            return Err(Sense::FIELD.into());
        }
        if self.waiting.contains_key(&tag.tag) {
            return Err(Sense::new(0xb, 0x4e00).into());
        }
        if !desk.lun.allows(&desk.seat, &op) {
            return Err(Outcome::Conflict);
        }
        match execute::refused(&op, &desk.portrait) {
            Some(sense) => Err(sense.into()),
            None => Ok(op),
        }
    }

    fn begin(&mut self, op: &Op, tag: Tag, pdu: &Pdu<'_>, expected: u32) -> After {
        // The W bit: without it nothing comes, whatever length is expected.
        let writes = pdu.header.flags() & 0x20 != 0;
        if let Op::Read(span) = op {
            return self.read(*span, tag, if writes { 0 } else { expected });
        }
        let takes = op.takes();
        // These have no meaning with a part of their data, or with more than they name.
        let whole = matches!(op, Op::CompareAndWrite { .. } | Op::WriteSame { .. });
        if whole && takes != if writes { u64::from(expected) } else { 0 } {
            return self.desk.answer(tag, Sense::FIELD.into(), 0, expected);
        }
        if takes > 0 {
            return self.gather(op, tag, pdu, if writes { expected } else { 0 });
        }
        self.carry_out(*op, Vec::new(), tag, 0, expected)
    }

    /// READ: from memory here and now, the rest by a worker.
    fn read(&mut self, span: Span, tag: Tag, expected: u32) -> After {
        let desk = &self.desk;
        let offset = span.lba * BLOCK;
        let available = u64::from(span.blocks) * BLOCK;
        let residual = Residual::of(available, expected);
        let length = usize::try_from(available.min(u64::from(expected))).unwrap_or(0);
        if length == 0 {
            return desk.answer(tag, Outcome::Good(Vec::new()), available, expected);
        }
        desk.metrics.read_bytes.inc_by(length as u64);
        let mut sending = Sending::new(tag, length, residual);
        let mut output = desk.connection.output();
        loop {
            let before = sending;
            let Some(piece) = sending.next(&desk.params) else {
                return After::Continue;
            };
            let window = output.window;
            if piece.last {
                ended(&mut output, tag);
            }
            let at = offset + piece.offset as u64;
            let filled = output.fill(piece.answer, piece.numbering, piece.length, |place| {
                desk.device.try_read_at(at, place)
            });
            match filled {
                Ok(true) => {}
                Ok(false) => {
                    output.window = window;
                    drop(output);
                    self.read_later(before, offset, expected);
                    return After::Continue;
                }
                Err(error) => {
                    output.window = window;
                    drop(output);
                    let outcome = execute::failed(&error, Tried::Reading);
                    return desk.answer(tag, outcome, 0, expected);
                }
            }
        }
    }

    fn read_later(&self, mut sending: Sending, offset: u64, expected: u32) {
        let desk = self.desk.clone();
        let work = move |settled: &super::workers::Settled| {
            let mut buffer = Vec::new();
            while let Some(piece) = sending.next(&desk.params) {
                buffer.resize(piece.length, 0);
                let at = offset + piece.offset as u64;
                let read = desk.device.read_at(at, &mut buffer);
                let over = piece.last || read.is_err();
                if if over {
                    settled.swap(true, Ordering::AcqRel)
                } else {
                    settled.load(Ordering::Acquire)
                } {
                    return;
                }
                if let Err(error) = read {
                    let outcome = execute::failed(&error, Tried::Reading);
                    desk.late(sending.tag, outcome, 0, expected);
                    return;
                }
                let mut output = desk.connection.output();
                if piece.last {
                    ended(&mut output, sending.tag);
                }
                output.push(piece.answer, piece.numbering, &buffer);
                output.flush();
            }
        };
        self.workers.queue(sending.tag, Box::new(work));
    }

    /// A command whose data comes with it, after it, or when asked for.
    fn gather(&mut self, op: &Op, tag: Tag, pdu: &Pdu<'_>, expected: u32) -> After {
        let takes = op.takes();
        let wanted = u32::try_from(takes.min(u64::from(expected))).unwrap_or(u32::MAX);
        let purpose = match *op {
            Op::Write { span, fua, kind } => Purpose::Write {
                offset: span.lba * BLOCK,
                kind,
                fua,
            },
            Op::Compare { span, one: false } => Purpose::Compare {
                offset: span.lba * BLOCK,
            },
            op => {
                let held: usize = self.waiting.values().map(Waiting::held).sum();
                if held + wanted as usize > MOST_GATHERED {
                    return self.full(tag, expected);
                }
                Purpose::Gather(op, Vec::with_capacity(wanted as usize))
            }
        };
        if self.waiting.len() >= MOST_WAITING {
            return self.full(tag, expected);
        }
        let mut task = Waiting {
            tag,
            lun: pdu.header.lun(),
            epoch: self.desk.seat.epoch(),
            purpose,
            takes,
            expected,
            wanted,
            came: 0,
            target_tag: NO_TAG,
            until: self.desk.params.first_burst.min(expected),
            data_number: 0,
            r2t_number: 0,
            fault: None,
        };
        let immediate = self.desk.params.immediate_data;
        if !pdu.data.is_empty() && (!immediate || pdu.data.len() > task.until as usize) {
            // Unexpected unsolicited data (RFC 7143 section 11.4.7.2).
            return self.fail(&task, Sense::new(0xb, 0x0c0c));
        }
        task.feed(&self.desk, pdu.data);
        let all_here = pdu.header.flags() & FINAL != 0;
        if !all_here && task.came < task.until && !self.desk.params.initial_r2t {
            self.waiting.insert(tag.tag, task);
            return After::Continue;
        }
        self.go_on(task)
    }

    fn full(&self, tag: Tag, expected: u32) -> After {
        let mut output = self.desk.connection.output();
        ended(&mut output, tag);
        self.desk.metrics.refused("task_set_full");
        let answer = Answer::scsi(tag.tag, TASK_SET_FULL, Residual::of(0, expected));
        output.push(answer, Numbering::Status, &[]);
        After::Continue
    }

    fn fail(&self, task: &Waiting, sense: Sense) -> After {
        let outcome = Outcome::Check(sense);
        self.desk.answer(task.tag, outcome, 0, task.expected)
    }

    /// Asks for more data, or does what the data was for.
    fn go_on(&mut self, mut task: Waiting) -> After {
        if task.came < task.wanted && task.fault.is_none() {
            let length = (task.wanted - task.came).min(self.desk.params.max_burst);
            self.next_target_tag = self.next_target_tag.wrapping_add(1) & 0x7fff_ffff;
            task.target_tag = self.next_target_tag;
            task.until = task.came + length;
            task.data_number = 0;
            let answer = Answer::r2t(
                task.tag.tag,
                task.lun,
                task.target_tag,
                task.r2t_number,
                task.came,
                length,
            );
            task.r2t_number = task.r2t_number.wrapping_add(1);
            let mut output = self.desk.connection.output();
            output.push(answer, Numbering::Next, &[]);
            drop(output);
            self.waiting.insert(task.tag.tag, task);
            return After::Continue;
        }
        let (tag, takes, expected) = (task.tag, task.takes, task.expected);
        if let Some(fault) = task.fault {
            return self.desk.answer(tag, fault, takes, expected);
        }
        match task.purpose {
            Purpose::Write { fua: true, .. } => {
                let flush = Op::Synchronize(Span { lba: 0, blocks: 0 });
                self.carry_out(flush, Vec::new(), tag, takes, expected)
            }
            Purpose::Write { .. } | Purpose::Compare { .. } => {
                let good = Outcome::Good(Vec::new());
                self.desk.answer(tag, good, takes, expected)
            }
            Purpose::Gather(op, data) => self.carry_out(op, data, tag, takes, expected),
        }
    }

    /// Data that came after a command.
    pub fn data_out(&mut self, pdu: &Pdu<'_>) -> After {
        let header = &pdu.header;
        // Of a task that is no more: its data is of no use (RFC 7143 section 11.7).
        let Some(mut task) = self.waiting.remove(&header.tag()) else {
            return After::Continue;
        };
        if task.epoch != self.desk.seat.epoch() {
            ended(&mut self.desk.connection.output(), task.tag);
            return After::Continue;
        }
        let (target_tag, number, offset) = (header.word(20), header.word(36), header.word(40));
        let end = u64::from(offset) + pdu.data.len() as u64;
        let in_order = target_tag == task.target_tag
            && number == task.data_number
            && offset == task.came
            && end <= u64::from(task.until);
        if !in_order {
            // Data phase error: at level 0 it is not asked for again.
            return self.fail(&task, Sense::new(0xb, 0x4b00));
        }
        task.data_number = number.wrapping_add(1);
        task.feed(&self.desk, pdu.data);
        if header.flags() & FINAL == 0 {
            self.waiting.insert(task.tag.tag, task);
            return After::Continue;
        }
        if task.target_tag != NO_TAG && task.came != task.until {
            return self.fail(&task, Sense::new(0xb, 0x4b00));
        }
        self.go_on(task)
    }

    fn carry_out(&self, op: Op, data: Vec<u8>, tag: Tag, takes: u64, expected: u32) -> After {
        if !execute::may_wait(&op) {
            let outcome = execute::carry_out(&self.desk.bench(), &op, &data);
            return self.desk.answer(tag, outcome, takes, expected);
        }
        let desk = self.desk.clone();
        let work = move |settled: &super::workers::Settled| {
            if settled.load(Ordering::Acquire) {
                return;
            }
            let outcome = execute::carry_out(&desk.bench(), &op, &data);
            if !settled.swap(true, Ordering::AcqRel) {
                desk.late(tag, outcome, takes, expected);
            }
        };
        self.workers.queue(tag, Box::new(work));
        After::Continue
    }

    /// Aborts one task; false if there is none with that tag.
    pub fn abort(&mut self, tag: u32) -> bool {
        let waiting = self.waiting.remove(&tag).map(|t| t.tag);
        let Some(found) = waiting.or_else(|| self.workers.abort(tag)) else {
            return false;
        };
        ended(&mut self.desk.connection.output(), found);
        true
    }

    /// Aborts all tasks of this session.
    pub fn abort_all(&mut self) {
        let mut found: Vec<Tag> = self.waiting.drain().map(|(_, t)| t.tag).collect();
        found.extend(self.workers.abort_all());
        let mut output = self.desk.connection.output();
        for tag in found {
            ended(&mut output, tag);
        }
    }

    /// Waits until what is with the workers is answered.
    pub fn drain(&self) {
        self.workers.drain();
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        self.workers.abort_all();
        self.workers.end();
    }
}

impl Desk {
    /// An answer from a worker: sent at once.
    fn late(&self, tag: Tag, outcome: Outcome, takes: u64, expected: u32) {
        if self.answer(tag, outcome, takes, expected) == After::Fenced {
            self.connection.close_for(super::metrics::Ending::Fenced);
            return;
        }
        self.connection.output().flush();
    }
}

impl Waiting {
    const fn held(&self) -> usize {
        match &self.purpose {
            Purpose::Gather(_, data) => data.capacity(),
            _ => 0,
        }
    }

    /// Takes data that came in order.
    fn feed(&mut self, desk: &Desk, data: &[u8]) {
        let before = self.came;
        self.came = before.saturating_add(u32::try_from(data.len()).unwrap_or(u32::MAX));
        // More than the command takes is dropped (RFC 7143 section 11.4.5.1: underflow).
        let useful = (self.wanted.saturating_sub(before) as usize).min(data.len());
        let data = &data[..useful];
        if data.is_empty() || self.fault.is_some() {
            return;
        }
        let done = match &mut self.purpose {
            Purpose::Write { offset, kind, .. } => {
                desk.metrics.written_bytes.inc_by(data.len() as u64);
                let at = *offset + u64::from(before);
                execute::write(&desk.bench(), *kind, at, data)
            }
            Purpose::Compare { offset } => {
                let at = *offset + u64::from(before);
                execute::compare(&desk.bench(), at, data, before)
            }
            Purpose::Gather(_, all) => {
                all.extend_from_slice(data);
                Ok(())
            }
        };
        self.fault = done.err();
    }
}

/// What is answered at a LUN without a disk (SPC-4 6.6.1, SAM-5 4.7).
fn nobody_there(op: Op) -> Outcome {
    let cut = |mut data: Vec<u8>, most: u32| {
        data.truncate(most as usize);
        Outcome::Good(data)
    };
    match op {
        Op::Inquiry {
            what: Inquiry::Standard,
            most,
        } => cut(inquiry::standard(false), most),
        Op::ReportLuns { select, most } => cut(inquiry::luns(select), most),
        Op::RequestSense { most, .. } => cut(Sense::NO_LUN.fixed().to_vec(), most),
        _ => Sense::NO_LUN.into(),
    }
}
