//! A session's own thread: from the last answer of its login to its end. It reads as much as
//! the socket has, does what lies there, and sends all answers together.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::command::Commands;
use super::desk::{After, Desk};
use super::line::Connection;
use super::lun::Sweep;
use super::machine::window::Turn;
use super::metrics::Ending;
use super::output::{Numbering, Output};
use super::targets;
use super::wire::answer::{Answer, RejectReason};
use super::wire::text::{Text, pairs};
use super::wire::{Digests, FINAL, Framed, HEADER, LONGEST_DATA, NO_TAG, Pdu, Request, frame};
use crate::attention::Attention;
use crate::clock::Clock;

/// The buffer for what comes; it grows when a longer PDU does.
const BUFFER: usize = 64 * 1024;
/// Silence after which an initiator is pinged.
pub const SILENCE: Duration = Duration::from_secs(5);
/// Pings in a row without an answer.
const MOST_UNANSWERED: u32 = 3;
/// An initiator that never answers pings is let alone for so long: firmware is asleep while a
/// boot menu waits, and iPXE ends a connection that pings it.
const FIRMWARE_SILENCE: Duration = Duration::from_secs(30 * 60);

/// A session in its full-feature phase.
pub struct Session {
    desk: Arc<Desk>,
    connection: Arc<Connection>,
    commands: Commands,
    clock: Clock,
    cid: u16,
    portal: String,
    /// Negotiated as firmware does: no data but what is asked for. It can't be pinged.
    firmware: bool,
    unanswered: u32,
}

/// What a PDU leads to.
enum Next {
    Continue,
    End(Ending),
}

impl From<After> for Next {
    fn from(after: After) -> Self {
        match after {
            After::Continue => Self::Continue,
            After::Fenced => Self::End(Ending::Fenced),
        }
    }
}

impl Session {
    /// Of a login that is done. `portal`: where the initiator reached us, for SendTargets.
    pub fn new(desk: Arc<Desk>, clock: Clock, cid: u16, portal: String) -> Self {
        Self {
            connection: desk.connection.clone(),
            commands: Commands::new(desk.clone()),
            firmware: desk.params.initial_r2t && !desk.params.immediate_data,
            desk,
            clock,
            cid,
            portal,
            unanswered: 0,
        }
    }

    /// Serves until the connection or the session ends.
    pub fn serve(&mut self) -> Ending {
        let params = &self.desk.params;
        let digests = Digests {
            header: params.header_digest,
            data: params.data_digest,
        };
        // A wait that is cut short by a ping is no fault of the socket.
        let timeout = self.connection.stream.set_read_timeout(Some(SILENCE));
        if timeout.is_err() {
            return Ending::Lost;
        }
        let mut buffer = vec![0; BUFFER];
        let (mut start, mut end) = (0, 0);
        let mut heard = self.clock.instant();
        let mut attention = Attention::default();
        loop {
            let mut needs;
            loop {
                match frame(&buffer[start..end], digests, LONGEST_DATA) {
                    Ok(Framed::Whole(pdu, length)) => {
                        let next = self.take(&pdu);
                        start += length;
                        if let Next::End(ending) = next {
                            self.connection.output().flush();
                            return self.connection.closed_for().unwrap_or(ending);
                        }
                    }
                    Ok(Framed::Needs(more)) => {
                        needs = more;
                        break;
                    }
                    Err(malformed) => {
                        self.desk.metrics.refused(malformed.as_str());
                        return Ending::Malformed;
                    }
                }
            }
            self.connection.output().flush();
            if start == end {
                (start, end) = (0, 0);
            }
            needs = needs.max(HEADER);
            if start + needs > buffer.len() || buffer.len() - end < HEADER {
                buffer.copy_within(start..end, 0);
                (start, end) = (0, end - start);
                if needs > buffer.len() {
                    buffer.resize(needs.next_multiple_of(BUFFER), 0);
                }
            }
            match attention.receive(&self.connection.stream, &mut buffer[end..]) {
                Ok(0) => return self.connection.closed_for().unwrap_or(Ending::Lost),
                Ok(read) => {
                    end += read;
                    if self.unanswered > 0 || self.firmware {
                        heard = self.clock.instant();
                        self.unanswered = 0;
                    }
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if let Some(ending) = self.silence(heard) {
                        return ending;
                    }
                }
                Err(_) => return self.connection.closed_for().unwrap_or(Ending::Lost),
            }
        }
    }

    /// Nothing came for a while.
    fn silence(&mut self, heard: Instant) -> Option<Ending> {
        if self.firmware && !self.connection.answers_pings() {
            let silent = self.clock.instant().saturating_duration_since(heard);
            return (silent > FIRMWARE_SILENCE).then_some(Ending::Silent);
        }
        if self.unanswered >= MOST_UNANSWERED {
            return Some(Ending::Silent);
        }
        self.unanswered += 1;
        let mut output = self.connection.output();
        self.connection.ping(&mut output);
        None
    }

    fn take(&mut self, pdu: &Pdu<'_>) -> Next {
        let header = &pdu.header;
        let Some(request) = header.request() else {
            return self.reject(pdu, RejectReason::NotSupported);
        };
        // Data-Out and SNACK have no place in the order of commands.
        let numbered = !matches!(request, Request::DataOut | Request::Snack);
        if numbered && !header.immediate() {
            let turn = self.connection.output().window.take(header.word(24));
            match turn {
                Turn::Next => {}
                Turn::Ignored => {
                    self.desk.metrics.refused("outside_of_window");
                    return Next::Continue;
                }
                Turn::Gap => {
                    self.reject(pdu, RejectReason::Protocol);
                    return Next::End(Ending::Protocol);
                }
            }
        }
        match request {
            Request::Command if header.immediate() && self.commands.is_full() => {
                self.reject(pdu, RejectReason::TooManyImmediate)
            }
            Request::Command => self.commands.command(pdu).into(),
            Request::DataOut => self.commands.data_out(pdu).into(),
            Request::NopOut => self.nop(pdu),
            Request::TaskManagement => self.manage(pdu),
            Request::Text => self.text(pdu),
            Request::Logout => self.logout(pdu),
            Request::Snack => self.reject(pdu, RejectReason::Snack),
            Request::Login => {
                self.reject(pdu, RejectReason::Protocol);
                Next::End(Ending::Protocol)
            }
        }
    }

    fn reject(&self, pdu: &Pdu<'_>, reason: RejectReason) -> Next {
        self.desk.metrics.refused(reason.as_str());
        let mut output = self.connection.output();
        output.push(Answer::reject(reason), Numbering::Status, &pdu.header.0);
        Next::Continue
    }

    fn answer(&self, pdu: &Pdu<'_>, answer: Answer, data: &[u8]) {
        let mut output = self.connection.output();
        if !pdu.header.immediate() {
            output.window.ended();
        }
        output.push(answer, Numbering::Status, data);
    }

    fn nop(&self, pdu: &Pdu<'_>) -> Next {
        let header = &pdu.header;
        if header.tag() == NO_TAG {
            // The answer to a ping of ours, or nothing but new numbers.
            if header.word(20) != NO_TAG {
                self.connection.ponged(header.word(20));
            }
            if !header.immediate() {
                self.connection.output().window.ended();
            }
            return Next::Continue;
        }
        let most = self.desk.params.initiator_takes as usize;
        let data = &pdu.data[..pdu.data.len().min(most)];
        let answer = Answer::nop_in(header.tag(), NO_TAG, header.lun());
        self.answer(pdu, answer, data);
        Next::Continue
    }

    /// Task management (RFC 7143 section 11.5). What is aborted does nothing any more when
    /// the answer is sent.
    fn manage(&mut self, pdu: &Pdu<'_>) -> Next {
        const COMPLETE: u8 = 0;
        const NO_TASK: u8 = 1;
        const NO_LUN: u8 = 2;
        const NO_REASSIGNMENT: u8 = 4;
        const NOT_SUPPORTED: u8 = 5;
        let header = &pdu.header;
        let function = header.flags() & 0x7f;
        let seat = &self.desk.seat;
        let needs_lun = matches!(function, 1 | 2 | 4 | 5);
        let mut end = None;
        let response = match function {
            _ if needs_lun && header.lun() != 0 => NO_LUN,
            1 => {
                if self.commands.abort(header.word(20)) {
                    COMPLETE
                } else {
                    NO_TASK
                }
            }
            2 => {
                self.commands.abort_all();
                COMPLETE
            }
            4 => {
                self.commands.abort_all();
                self.desk.lun.sweep(seat, Sweep::Clear);
                COMPLETE
            }
            5 | 6 => {
                self.commands.abort_all();
                self.desk.lun.sweep(seat, Sweep::Reset);
                COMPLETE
            }
            7 => {
                self.commands.abort_all();
                self.desk.lun.sweep(seat, Sweep::Reset);
                end = Some(Ending::Reset);
                COMPLETE
            }
            8 => NO_REASSIGNMENT,
            _ => NOT_SUPPORTED,
        };
        tracing::debug!(
            iscsi.function = function,
            iscsi.response = response,
            "task management"
        );
        let answer = Answer::task_management(header.tag(), response);
        self.answer(pdu, answer, &[]);
        end.map_or(Next::Continue, Next::End)
    }

    fn text(&self, pdu: &Pdu<'_>) -> Next {
        // Neither long texts in parts nor answers in parts: all that is asked for is short.
        let flags = pdu.header.flags();
        if flags & 0x40 != 0 || flags & FINAL == 0 || pdu.header.word(20) != NO_TAG {
            return self.reject(pdu, RejectReason::Protocol);
        }
        let Ok(pairs) = pairs(pdu.data) else {
            return self.reject(pdu, RejectReason::Protocol);
        };
        let iqn = self.desk.portrait.identity.iqn();
        let mut out = Text::default();
        for (key, value) in pairs.into_iter().take(16) {
            // In a normal session only its own target may be asked for (RFC 7143 section 5.3),
            // which is also all that it may see.
            match key {
                "SendTargets" if value.is_empty() || value == "All" || value == iqn => {
                    targets::list(&mut out, Some(&iqn), &self.portal);
                }
                "SendTargets" => {}
                _ => out.push(key, "NotUnderstood"),
            }
        }
        self.answer(pdu, Answer::text(pdu.header.tag()), out.as_bytes());
        Next::Continue
    }

    fn logout(&mut self, pdu: &Pdu<'_>) -> Next {
        let reason = pdu.header.flags() & 0x7f;
        let cid = u16::from_be_bytes([pdu.header.0[20], pdu.header.0[21]]);
        let tag = pdu.header.tag();
        match reason {
            1 if cid != self.cid => {
                // No such connection.
                self.answer(pdu, Answer::logout(tag, 1), &[]);
                Next::Continue
            }
            0 | 1 => {
                self.commands.drain();
                self.answer(pdu, Answer::logout(tag, 0), &[]);
                Next::End(Ending::Logout)
            }
            2 => {
                self.answer(pdu, Answer::logout(tag, 2), &[]);
                Next::Continue
            }
            _ => self.reject(pdu, RejectReason::InvalidField),
        }
    }
}

/// Asks for a logout: the server stops.
pub fn ask_for_logout(output: &mut Output, seconds: u16) {
    let answer = Answer::asks_for_logout(seconds);
    output.push(answer, Numbering::Status, &[]);
    output.flush();
}
