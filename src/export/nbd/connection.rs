//! A connection in its transmission phase, on a thread of its own.
//!
//! One receive brings many requests; what can be answered at once (reads from memory, writes
//! into the page cache) is, into one batch, which goes out in one send when no whole request
//! is left to look at. What may wait goes to `workers`. Nothing is allocated per request on
//! that way, and no buffer grows by what a client claims: a long write is taken in pieces, a
//! long read is answered in pieces.
//!
//! The protocol promises nothing about requests that are under way together, so a read may
//! pass a write that waits; a flush covers what was *answered* before it, and that was done
//! before its answer.

use std::sync::Arc;

use super::batch::{Batch, Broken};
use super::line::NbdLine;
use super::machine::request::{LONGEST_WHOLE_READ, Stable, payload};
use super::machine::{Act, Disk, Payload, judge};
use super::metrics::{Command, End, Tally};
use super::outlet::{Inlet, Outlet};
use super::wire::transmission::{
    Allocation, DATA_CHUNK_HEADER, Errno, HOLE_CHUNK, Last, REQUEST_HEADER, Request, SIMPLE_HEADER,
    data_chunk, error_chunk, hole_chunk, none_chunk, simple, status_chunk,
};
use super::words::{told, word};
use super::workers::{Job, Jobs, hand_over};
use crate::boot::disks::{Attachment, Line as _};
use crate::storage::{BlockDevice as _, BlockError, Durability, ExtentKind, Lent};

/// Bytes received at once, and the longest payload that is written in one call.
const RECEIVE: usize = 256 * 1024;
/// Bytes of replies of a connection's own thread that go out at once: two long reads. Each
/// send wakes the client, which on one machine costs as much as copying 64 KiB.
const SEND: usize = 304 * 1024;
/// Bytes that a worker sends at once: it answers one request at a time.
pub(super) const WORKER_SEND: usize = 192 * 1024;
/// Bytes of a long read that make one chunk.
const PIECE: u32 = 128 * 1024;
/// Reads from that length on are sent from the image's file itself where they can be; below it
/// copying is cheaper.
const LEND: usize = 64 * 1024;
/// Most bytes that one CACHE request brings into memory: it is a hint.
const CACHE: u32 = 32 * 1024 * 1024;

/// What the connection's thread and its workers share.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) outlet: Outlet,
    /// The outlet's socket is not encrypted.
    pub(super) takes_files: bool,
    pub(super) line: Arc<NbdLine>,
    pub(super) disk: Attachment,
    pub(super) facts: Disk,
    pub(super) tally: Tally,
    pub(super) jobs: Jobs,
}

/// How a read is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Only if it needs no waiting.
    None,
    /// Whatever it takes.
    All,
}

/// True if all bytes are zero: compares the slice with itself, one byte on.
fn is_zero(bytes: &[u8]) -> bool {
    match bytes.first() {
        Some(0) => bytes[1..] == bytes[..bytes.len() - 1],
        Some(_) => false,
        None => true,
    }
}

impl Serving {
    fn ok(&self, request: &Request, batch: &mut Batch) -> Result<(), Broken> {
        batch.make_room(SIMPLE_HEADER, &self.outlet)?;
        batch.put(&simple(request.cookie, None));
        Ok(())
    }

    fn error(
        &self,
        request: &Request,
        errno: Errno,
        text: &str,
        batch: &mut Batch,
    ) -> Result<(), Broken> {
        if self.facts.structured {
            let mut chunk = Vec::new();
            error_chunk(request.cookie, errno, text, &mut chunk);
            batch.make_room(chunk.len(), &self.outlet)?;
            batch.put(&chunk);
        } else {
            batch.make_room(SIMPLE_HEADER, &self.outlet)?;
            batch.put(&simple(request.cookie, Some(errno)));
        }
        Ok(())
    }

    fn failed(
        &self,
        request: &Request,
        error: &BlockError,
        batch: &mut Batch,
    ) -> Result<(), Broken> {
        let (errno, cause) = told(error);
        self.tally.failed(cause);
        let (session, offset) = (self.disk.session(), request.offset);
        if matches!(error, BlockError::Io(_)) {
            tracing::warn!(session.id = %session, %error, command = request.command, offset, "the store failed a request");
        } else {
            tracing::debug!(session.id = %session, %error, command = request.command, offset, "a request failed");
        }
        self.error(request, errno, &error.to_string(), batch)
    }

    fn outcome(
        &self,
        request: &Request,
        outcome: Result<(), BlockError>,
        batch: &mut Batch,
    ) -> Result<(), Broken> {
        match outcome {
            Ok(()) => self.ok(request, batch),
            Err(error) => self.failed(request, &error, batch),
        }
    }

    fn fetch(&self, offset: u64, to: &mut [u8], patience: Patience) -> Result<bool, BlockError> {
        match patience {
            Patience::None => self.disk.try_read_at(offset, to),
            Patience::All => self.disk.read_at(offset, to).map(|()| true),
        }
    }

    /// A long read as part of a file, where it is one and the socket takes it so.
    fn lend(
        &self,
        offset: u64,
        length: usize,
        patience: Patience,
    ) -> Result<Option<Lent>, BlockError> {
        if patience == Patience::All || length < LEND || !self.takes_files {
            return Ok(None);
        }
        self.disk.lend(offset, length)
    }

    /// Reads and answers. Gives back from where on it would have to wait, if it may not.
    fn read(
        &self,
        request: &Request,
        done: u32,
        whole: Last,
        patience: Patience,
        batch: &mut Batch,
    ) -> Result<Option<u32>, Broken> {
        match whole {
            Last::No => self.read_chunks(request, done, patience, batch),
            Last::Yes if request.length <= PIECE => self.read_whole(request, patience, batch),
            Last::Yes if patience == Patience::None => Ok(Some(0)),
            Last::Yes if request.length <= LONGEST_WHOLE_READ => {
                self.read_large(request, batch)?;
                Ok(None)
            }
            Last::Yes => {
                self.read_stream(request, batch)?;
                Ok(None)
            }
        }
    }

    fn read_chunks(
        &self,
        request: &Request,
        mut done: u32,
        patience: Patience,
        batch: &mut Batch,
    ) -> Result<Option<u32>, Broken> {
        let cookie = request.cookie;
        if request.length == 0 {
            let chunk = none_chunk(cookie);
            batch.make_room(chunk.len(), &self.outlet)?;
            batch.put(&chunk);
        }
        while done < request.length {
            let length = (request.length - done).min(PIECE);
            let offset = request.offset + u64::from(done);
            let size = length as usize;
            let last = if length == request.length - done {
                Last::Yes
            } else {
                Last::No
            };
            match self.lend(offset, size, patience) {
                Ok(Some(lent)) => {
                    let head = data_chunk(cookie, offset, length, last);
                    if batch.lend(&head, &lent, size, &self.outlet)? {
                        self.tally.read(size);
                        done += length;
                        continue;
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    self.failed(request, &error, batch)?;
                    return Ok(None);
                }
            }
            batch.make_room((DATA_CHUNK_HEADER + size).max(HOLE_CHUNK), &self.outlet)?;
            let start = batch.filled + DATA_CHUNK_HEADER;
            let data = &mut batch.bytes[start..start + size];
            match self.fetch(offset, data, patience) {
                Ok(true) => {}
                Ok(false) => return Ok(Some(done)),
                Err(error) => {
                    self.failed(request, &error, batch)?;
                    return Ok(None);
                }
            }
            self.tally.read(size);
            done += length;
            if size > HOLE_CHUNK && is_zero(data) {
                batch.put(&hole_chunk(cookie, offset, length, last));
            } else {
                batch.put(&data_chunk(cookie, offset, length, last));
                batch.filled += size;
            }
        }
        Ok(None)
    }

    /// Bytes before the data of a reply that has its data in one piece.
    fn head(&self, request: &Request) -> ([u8; DATA_CHUNK_HEADER], usize) {
        let mut head = data_chunk(request.cookie, request.offset, request.length, Last::Yes);
        if self.facts.structured {
            return (head, DATA_CHUNK_HEADER);
        }
        head[..SIMPLE_HEADER].copy_from_slice(&simple(request.cookie, None));
        (head, SIMPLE_HEADER)
    }

    fn read_whole(
        &self,
        request: &Request,
        patience: Patience,
        batch: &mut Batch,
    ) -> Result<Option<u32>, Broken> {
        if request.length == 0 && self.facts.structured {
            return self.read_chunks(request, 0, patience, batch);
        }
        let size = request.length as usize;
        let (head, head_length) = self.head(request);
        batch.make_room(head_length + size, &self.outlet)?;
        let start = batch.filled + head_length;
        let data = &mut batch.bytes[start..start + size];
        match self.fetch(request.offset, data, patience) {
            Ok(true) => {}
            Ok(false) => return Ok(Some(0)),
            Err(error) => {
                self.failed(request, &error, batch)?;
                return Ok(None);
            }
        }
        self.tally.read(size);
        batch.put(&head[..head_length]);
        batch.filled += size;
        Ok(None)
    }

    /// A read in one piece that is too long for the batch.
    fn read_large(&self, request: &Request, batch: &mut Batch) -> Result<(), Broken> {
        let (head, head_length) = self.head(request);
        let size = request.length as usize;
        let mut bytes = vec![0; head_length + size];
        bytes[..head_length].copy_from_slice(&head[..head_length]);
        if let Err(error) = self.disk.read_at(request.offset, &mut bytes[head_length..]) {
            return self.failed(request, &error, batch);
        }
        self.tally.read(size);
        batch.send(&self.outlet)?;
        self.outlet.send(&bytes).map_err(|_| Broken)
    }

    /// A simple reply that is too long to hold. Once its header is out it can't be refused any
    /// more ("Simple reply message"), so it is read twice: first to learn if it can be read.
    fn read_stream(&self, request: &Request, batch: &mut Batch) -> Result<(), Broken> {
        batch.send(&self.outlet)?;
        let pieces = || {
            let steps = (0..request.length).step_by(PIECE as usize);
            steps.map(|done| {
                let length = (request.length - done).min(PIECE) as usize;
                (request.offset + u64::from(done), length)
            })
        };
        for (offset, length) in pieces() {
            if let Err(error) = self.disk.read_at(offset, &mut batch.bytes[..length]) {
                return self.failed(request, &error, batch);
            }
        }
        let mut turn = self.outlet.turn();
        let (head, head_length) = self.head(request);
        turn.send(&head[..head_length]).map_err(|_| Broken)?;
        for (offset, length) in pieces() {
            let data = &mut batch.bytes[..length];
            self.disk.read_at(offset, data).map_err(|_| Broken)?;
            self.tally.read(length);
            turn.send(data).map_err(|_| Broken)?;
        }
        Ok(())
    }

    fn zeroes(
        &self,
        request: &Request,
        keep_space: bool,
        stable: Stable,
    ) -> Result<(), BlockError> {
        let (offset, length) = (request.offset, u64::from(request.length));
        let durability = match stable {
            Stable::Later => Durability::Volatile,
            Stable::Now => Durability::Fua,
        };
        self.disk
            .write_zeroes(offset, length, keep_space, durability)
    }

    fn trim(&self, request: &Request, stable: Stable) -> Result<(), BlockError> {
        self.disk
            .discard(request.offset, u64::from(request.length))?;
        match stable {
            Stable::Later => Ok(()),
            Stable::Now => self.disk.flush(),
        }
    }

    fn cache(&self, request: &Request, batch: &mut Batch) -> Result<(), Broken> {
        batch.send(&self.outlet)?;
        let length = request.length.min(CACHE);
        for done in (0..length).step_by(PIECE as usize) {
            let size = (length - done).min(PIECE) as usize;
            let offset = request.offset + u64::from(done);
            if let Err(error) = self.disk.read_at(offset, &mut batch.bytes[..size]) {
                return self.failed(request, &error, batch);
            }
        }
        self.ok(request, batch)
    }

    fn status(&self, request: &Request, most: usize, batch: &mut Batch) -> Result<(), Broken> {
        let length = u64::from(request.length);
        let extents = match self.disk.extents(request.offset, length, most) {
            Ok(extents) => extents,
            Err(error) => return self.failed(request, &error, batch),
        };
        let stretches = extents.iter().map(|extent| {
            let kind = match extent.kind {
                ExtentKind::Data => Allocation::Data,
                ExtentKind::Zero => Allocation::Zero,
                ExtentKind::Hole => Allocation::Hole,
            };
            (extent.length, kind)
        });
        let mut chunk = Vec::new();
        status_chunk(request.cookie, stretches, request.length, &mut chunk);
        batch.make_room(chunk.len(), &self.outlet)?;
        batch.put(&chunk);
        Ok(())
    }

    /// Does a job and sends its answer; a connection that can't take it is closed.
    pub(super) fn finish(&self, job: Job, batch: &mut Batch) {
        let answered = match job {
            Job::Read {
                request,
                done,
                whole,
            } => self
                .read(&request, done, whole, Patience::All, batch)
                .map(|_| ()),
            Job::Write { request, data } => {
                let outcome = self.disk.write_at(request.offset, &data, Durability::Fua);
                if outcome.is_ok() {
                    self.tally.written(data.len());
                }
                self.outcome(&request, outcome, batch)
            }
            Job::Flush(request) => self.outcome(&request, self.disk.flush(), batch),
            Job::Trim(request, stable) => {
                self.outcome(&request, self.trim(&request, stable), batch)
            }
            Job::Zeroes {
                request,
                keep_space,
                stable,
            } => self.outcome(&request, self.zeroes(&request, keep_space, stable), batch),
            Job::Cache(request) => self.cache(&request, batch),
            Job::Status { request, most } => self.status(&request, most, batch),
        };
        if answered.and_then(|()| batch.send(&self.outlet)).is_err() {
            self.line.close();
        }
    }
}

/// The connection's own thread.
#[derive(Debug)]
pub(super) struct Connection {
    serving: Arc<Serving>,
    inlet: Inlet,
    batch: Batch,
    /// Received bytes; those from `start` to `end` have not been looked at.
    received: Vec<u8>,
    start: usize,
    end: usize,
}

impl Connection {
    /// `early`: what came with the last bytes of the handshake.
    pub(super) fn new(serving: Arc<Serving>, inlet: Inlet, early: &[u8]) -> Self {
        let mut received = vec![0; RECEIVE.max(early.len())];
        received[..early.len()].copy_from_slice(early);
        Self {
            serving,
            inlet,
            batch: Batch::new(SEND),
            received,
            start: 0,
            end: early.len(),
        }
    }

    /// Serves to the end.
    pub(super) fn run(mut self) -> End {
        let _closing = Closing(self.serving.line.clone());
        let end = loop {
            match self.next() {
                Ok(()) => {}
                Err(end) => break end,
            }
        };
        // Answers to all that was asked go out before the connection ends, also when it was
        // the client's side that ended: it may have shut only its sending half.
        let serving = &self.serving;
        let _ = self.batch.send(&serving.outlet);
        serving.jobs.finish();
        serving.outlet.close();
        end
    }

    /// Has at least `need` bytes at hand, in one piece. Answers go out before it waits.
    fn fill(&mut self, need: usize) -> Result<(), End> {
        while self.end - self.start < need {
            if self.batch.send(&self.serving.outlet).is_err() {
                return Err(End::Lost);
            }
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
            } else if self.start + need > self.received.len() {
                self.received.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            let room = &mut self.received[self.end..];
            match self.inlet.receive(&self.serving.outlet, room) {
                Ok(0) => return Err(End::Lost),
                Ok(length) => self.end += length,
                Err(error) => {
                    tracing::debug!(%error, "a connection broke off");
                    return Err(End::Lost);
                }
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Result<(), End> {
        self.fill(REQUEST_HEADER)?;
        let head = self.received[self.start..].first_chunk();
        let Some(request) = head.and_then(Request::parse) else {
            return Err(End::BadRequest);
        };
        self.start += REQUEST_HEADER;
        self.serving.tally.asked(Command::of(request.command));
        let act = match judge(&request, &self.serving.facts) {
            Ok(act) => act,
            Err(refused) => {
                if payload(&request) == Payload::Length {
                    self.pass_over(request.length)?;
                }
                self.serving.tally.failed(word(refused));
                let text = refused.to_string();
                let (errno, batch) = (refused.errno(), &mut self.batch);
                return lost(self.serving.error(&request, errno, &text, batch));
            }
        };
        match act {
            Act::Read { whole } => {
                let batch = &mut self.batch;
                let patience = Patience::None;
                match self.serving.read(&request, 0, whole, patience, batch) {
                    Ok(None) => Ok(()),
                    Ok(Some(done)) => {
                        // A worker's chunks, the last one among them, go after these.
                        if done > 0 {
                            lost(batch.send(&self.serving.outlet))?;
                        }
                        self.hand_over(Job::Read {
                            request,
                            done,
                            whole,
                        })
                    }
                    Err(Broken) => Err(End::Lost),
                }
            }
            Act::Write(stable) => self.write(request, stable),
            Act::Flush => self.hand_over(Job::Flush(request)),
            Act::Trim(stable) => self.hand_over(Job::Trim(request, stable)),
            Act::Zeroes { keep_space, stable } => self.hand_over(Job::Zeroes {
                request,
                keep_space,
                stable,
            }),
            Act::Cache => self.hand_over(Job::Cache(request)),
            Act::Status { most } => self.hand_over(Job::Status { request, most }),
            Act::Disconnect => Err(End::Disconnected),
        }
    }

    fn hand_over(&mut self, job: Job) -> Result<(), End> {
        if let Err(job) = hand_over(&self.serving, job) {
            self.serving.finish(job, &mut self.batch);
        }
        Ok(())
    }

    /// Takes a payload and drops it.
    fn pass_over(&mut self, length: u32) -> Result<(), End> {
        let mut left = length as usize;
        while left > 0 {
            self.fill(1)?;
            let here = left.min(self.end - self.start);
            self.start += here;
            left -= here;
        }
        Ok(())
    }

    /// A write whose payload is taken in pieces: one, for all but the longest.
    fn write(&mut self, request: Request, stable: Stable) -> Result<(), End> {
        let length = request.length as usize;
        if stable == Stable::Now && length <= RECEIVE {
            self.fill(length)?;
            let data = self.received[self.start..self.start + length].to_vec();
            self.start += length;
            return self.hand_over(Job::Write { request, data });
        }
        let mut outcome = Ok(());
        let mut done = 0;
        while done < length {
            let here = (length - done).min(RECEIVE);
            self.fill(here)?;
            let data = &self.received[self.start..self.start + here];
            // After an error the rest is only taken in, so that the stream stays in step.
            if outcome.is_ok() {
                let offset = request.offset + done as u64;
                let disk = &self.serving.disk;
                outcome = disk.write_at(offset, data, Durability::Volatile);
            }
            self.start += here;
            done += here;
        }
        if outcome.is_ok() {
            self.serving.tally.written(length);
        }
        if outcome.is_ok() && stable == Stable::Now {
            return self.hand_over(Job::Flush(request));
        }
        lost(self.serving.outcome(&request, outcome, &mut self.batch))
    }
}

/// Closes the connection, also when a device's panic ends the thread: others hold its socket.
struct Closing(Arc<NbdLine>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn lost(answered: Result<(), Broken>) -> Result<(), End> {
    answered.map_err(|Broken| End::Lost)
}
