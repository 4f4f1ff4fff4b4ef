//! What a session's thread and its workers share, and how tasks are answered: statuses,
//! sense data, and data cut into PDUs. It decides nothing about commands.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;

use super::execute::{Bench, Outcome};
use super::line::Connection;
use super::lun::{Lun, Seat};
use super::machine::Params;
use super::metrics::{Class, Ending, IscsiMetrics};
use super::output::{Numbering, Output};
use super::scsi::cdb::Op;
use super::scsi::inquiry::Portrait;
use super::scsi::{BLOCK, Sense};
use super::wire::answer::{Answer, Residual};
use super::workers::Tag;
use crate::boot::disks::Attachment;
use crate::storage::BlockDevice;

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

    /// Counts a command.
    pub fn count(&self, op: &Op) {
        match Class::of(op) {
            Class::Read => self.reads.inc(),
            Class::Write => self.writes.inc(),
            class => self.metrics.class(class).inc(),
        };
    }

    /// Ends a task. `moved`: bytes that the command takes from the initiator, of `expected`.
    pub fn answer(&self, tag: Tag, outcome: Outcome, takes: u64, expected: u32) -> After {
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

    /// No room for the task: the initiator tries again later.
    pub fn full(&self, tag: Tag, expected: u32) -> After {
        let mut output = self.connection.output();
        ended(&mut output, tag);
        self.metrics.refused("task_set_full");
        let answer = Answer::scsi(tag.tag, TASK_SET_FULL, Residual::of(0, expected));
        output.push(answer, Numbering::Status, &[]);
        After::Continue
    }

    /// An answer from a worker: sent at once.
    pub fn late(&self, tag: Tag, outcome: Outcome, takes: u64, expected: u32) {
        if self.answer(tag, outcome, takes, expected) == After::Fenced {
            self.connection.close_for(Ending::Fenced);
            return;
        }
        self.connection.output().flush();
    }
}

/// A task has ended: there is room for another command.
pub fn ended(output: &mut Output, tag: Tag) {
    if !tag.immediate {
        output.window.ended();
    }
}

/// Cuts data for an initiator into Data-In PDUs.
#[derive(Clone, Copy)]
pub struct Sending {
    /// Of which task.
    pub tag: Tag,
    total: usize,
    residual: Residual,
    offset: usize,
    number: u32,
    burst: usize,
}

/// One Data-In PDU.
pub struct Piece {
    /// Its header.
    pub answer: Answer,
    /// How it is numbered.
    pub numbering: Numbering,
    /// Where in the task's data.
    pub offset: usize,
    /// How much of it.
    pub length: usize,
    /// The last: the task has ended with it.
    pub last: bool,
}

impl Sending {
    /// All of it.
    pub const fn new(tag: Tag, total: usize, residual: Residual) -> Self {
        Self {
            tag,
            total,
            residual,
            offset: 0,
            number: 0,
            burst: 0,
        }
    }

    /// The next PDU, as long as the initiator takes it.
    pub fn next(&mut self, params: &Params) -> Option<Piece> {
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
