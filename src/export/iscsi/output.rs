//! What a connection sends: answers are put into one buffer, numbered in the order in which
//! they lie there, and go out together in one call. Data is read straight into it.
//!
//! The session's thread and its workers share it under one lock; who fills the buffer sends
//! it, so a client that does not read stops its own session and nobody else's.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use super::machine::window::Window;
use super::wire::answer::Answer;
use super::wire::{Digests, HEADER, padded};
use crate::storage::BlockError;

/// Sent at the latest when so much has gathered.
const FULL: usize = 256 * 1024;

/// How an answer is numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbering {
    /// It carries a status: StatSN goes on.
    Status,
    /// It tells the next StatSN and leaves it.
    Next,
    /// It has no StatSN (Data-In without status).
    Without,
}

/// The sending half of a connection.
#[derive(Debug)]
pub struct Output {
    stream: Arc<TcpStream>,
    buffer: Vec<u8>,
    used: usize,
    stat: u32,
    digests: Digests,
    broken: bool,
    /// The command window, told in each answer.
    pub window: Window,
}

impl Output {
    /// Of a connection whose next answer has that StatSN.
    pub const fn new(stream: Arc<TcpStream>, stat: u32, window: Window, digests: Digests) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            used: 0,
            stat,
            digests,
            broken: false,
            window,
        }
    }

    /// From the first PDU after the login on.
    pub const fn set_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    /// Appends an answer with its data.
    pub fn push(&mut self, answer: Answer, numbering: Numbering, data: &[u8]) {
        let copied = self.fill(answer, numbering, data.len(), |place| {
            place.copy_from_slice(data);
            Ok(true)
        });
        debug_assert!(copied.is_ok());
    }

    /// Appends an answer whose data is written in place. If that fails, or could not be done
    /// at once (`false`), nothing is appended.
    pub fn fill(
        &mut self,
        mut answer: Answer,
        numbering: Numbering,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<bool, BlockError>,
    ) -> Result<bool, BlockError> {
        let start = self.used;
        let at = start + HEADER + if self.digests.header { 4 } else { 0 };
        let end = at + padded(length);
        if self.buffer.len() < end + 4 {
            self.buffer.resize((end + 4).next_multiple_of(4096), 0);
        }
        if !fill(&mut self.buffer[at..at + length])? {
            return Ok(false);
        }
        self.buffer[at + length..end].fill(0);
        let stat = match numbering {
            Numbering::Without => 0,
            Numbering::Next | Numbering::Status => self.stat,
        };
        if numbering == Numbering::Status {
            self.stat = self.stat.wrapping_add(1);
        }
        let (expected, most) = self.window.numbers();
        answer.stamp(stat, expected, most);
        answer.set_length(length);
        self.buffer[start..start + HEADER].copy_from_slice(&answer.0);
        if self.digests.header {
            let digest = crc32c::crc32c(&answer.0).to_le_bytes();
            self.buffer[start + HEADER..at].copy_from_slice(&digest);
        }
        self.used = end;
        if self.digests.data && length > 0 {
            let digest = crc32c::crc32c(&self.buffer[at..end]).to_le_bytes();
            self.buffer[end..end + 4].copy_from_slice(&digest);
            self.used += 4;
        }
        if self.used >= FULL {
            self.flush();
        }
        Ok(true)
    }

    /// Sends what has gathered.
    pub fn flush(&mut self) {
        if self.used == 0 {
            return;
        }
        if !self.broken
            && (&*self.stream)
                .write_all(&self.buffer[..self.used])
                .is_err()
        {
            // Whoever reads from the connection sees its end, and ends the session.
            self.broken = true;
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        self.used = 0;
    }
}
