//! `zfs send` and `zfs receive` as programs beside us, each with a thread that moves its bytes:
//! who sends or receives waits for bytes and never for a pool, and looks at the pool's state
//! meanwhile. It knows no versions, but for the head of a stream that comes: that must be of the
//! snapshot, and begin at the one, that were agreed on.

use std::io::{self, Read, Write};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::super::gate::{Gate, State};
use super::super::listing::program;
use super::super::stream::{self, Head};
use super::super::{damaged, io_error};
use crate::storage::{Beat, Ingoing, Outgoing, VolumeError, Wanted};

/// Bytes that are moved at a time, and how many such pieces wait.
const PIECE: usize = 256 * 1024;
const PIECES: usize = 4;
/// How often is looked at what waits, and when a pool that moves nothing is given up: 90 s. A full
/// pool, or a busy one, may take its time.
const TICK: Duration = Duration::from_millis(200);
const PATIENCE: u32 = 450;
/// How often a program is asked whether it has ended, and how long one may take that was left: 20 s.
const SOON: Duration = Duration::from_millis(10);
const LEAVE: u32 = 2000;

/// A program, and what it says of its faults.
#[derive(Debug)]
struct Running {
    what: &'static str,
    dataset: String,
    child: Child,
    said: Option<JoinHandle<String>>,
}

impl Running {
    fn begin(
        what: &'static str,
        dataset: &str,
        arguments: &[&str],
        (input, output): (Stdio, Stdio),
    ) -> Result<Self, VolumeError> {
        let gate = Gate::of(dataset);
        if gate.state() != State::Well {
            return Err(gate.without(dataset));
        }
        let mut command = program(arguments);
        command.stdin(input).stdout(output).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| io_error(what, e))?;
        let stderr = child.stderr.take();
        let said = thread::Builder::new().name("zfs-says".to_owned());
        let said = said.spawn(move || {
            let mut said = Vec::new();
            if let Some(mut stderr) = stderr {
                // What can't be read is not told.
                let _ = stderr.by_ref().take(4096).read_to_end(&mut said);
                let _ = io::copy(&mut stderr, &mut io::sink());
            }
            String::from_utf8_lossy(&said).into_owned()
        });
        Ok(Self {
            what,
            dataset: dataset.to_owned(),
            child,
            said: Some(said.map_err(|e| io_error(what, e))?),
        })
    }

    /// An error if the pool does not answer any more; `ticks` of nothing have passed.
    fn look(&self, ticks: u32) -> Result<(), VolumeError> {
        let gate = Gate::of(&self.dataset);
        match gate.state() {
            State::Well if ticks < PATIENCE => Ok(()),
            State::Well => Err(VolumeError::Away(format!(
                "`{}` has moved nothing for {} s",
                self.what,
                (TICK * ticks).as_secs()
            ))),
            _ => Err(gate.without(&self.dataset)),
        }
    }

    /// Waits for its end.
    fn wait(&mut self, beat: Beat<'_>) -> Result<(), VolumeError> {
        let mut ticks = 0;
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) => {}
                Err(e) => return Err(io_error(self.what, e)),
            }
            beat()?;
            thread::sleep(SOON);
            ticks += 1;
            self.look(ticks / 20)?;
        };
        self.ended(status)
    }

    fn ended(&mut self, status: ExitStatus) -> Result<(), VolumeError> {
        let said = self.said.take().and_then(|said| said.join().ok());
        if status.success() {
            return Ok(());
        }
        let said = said.unwrap_or_default();
        let said = said.lines().next().unwrap_or("no reason was given");
        if said.contains("out of space") || said.contains("quota") {
            return Err(VolumeError::NoSpace);
        }
        if said.contains("suspended") {
            return Err(VolumeError::Away(said.to_owned()));
        }
        let hint = match said.contains("permission denied") {
            true => "; the server's user needs the right to it: see `dls doctor`",
            false => "",
        };
        Err(damaged(self.what, format!("{said}{hint}")))
    }

    /// Waits a while for one that was left alone, then ends it.
    fn leave(&mut self) {
        for _ in 0..LEAVE {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(SOON),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        let _ = self.child.kill();
    }
}

/// `zfs send`.
pub(super) struct Sending {
    running: Running,
    length: u64,
    pieces: Receiver<io::Result<Vec<u8>>>,
    over: bool,
}

impl Sending {
    /// Of a dataset below `parent`, by these arguments.
    pub(super) fn begin(parent: &str, told: &[String], length: u64) -> Result<Self, VolumeError> {
        let mut arguments = vec!["send"];
        arguments.extend(told.iter().map(String::as_str));
        let ways = (Stdio::null(), Stdio::piped());
        let mut running = Running::begin("zfs send", parent, &arguments, ways)?;
        let stdout = running.child.stdout.take();
        let (give, pieces) = mpsc::sync_channel(PIECES);
        let moving = thread::Builder::new().name("zfs-send".to_owned());
        let moving = moving.spawn(move || {
            let Some(mut from) = stdout else { return };
            loop {
                let mut piece = Vec::with_capacity(PIECE);
                let read = from.by_ref().take(PIECE as u64).read_to_end(&mut piece);
                let end = piece.is_empty() || read.is_err();
                if give.send(read.map(|_| piece)).is_err() || end {
                    return;
                }
            }
        });
        moving.map_err(|e| io_error("zfs send", e))?;
        Ok(Self {
            running,
            length,
            pieces,
            over: false,
        })
    }
}

impl Outgoing for Sending {
    fn length(&self) -> u64 {
        self.length
    }

    fn next(&mut self, beat: Beat<'_>) -> Result<Option<Vec<u8>>, VolumeError> {
        if self.over {
            return Ok(None);
        }
        let mut ticks = 0;
        loop {
            beat()?;
            match self.pieces.recv_timeout(TICK) {
                Ok(Ok(piece)) if piece.is_empty() => break,
                Ok(Ok(piece)) => return Ok(Some(piece)),
                Ok(Err(e)) => return Err(io_error("zfs send", e)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => ticks += 1,
            }
            self.running.look(ticks)?;
        }
        self.running.wait(beat)?;
        self.over = true;
        Ok(None)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.over {
            // It may have ended.
            let _ = self.running.child.kill();
            self.running.leave();
        }
    }
}

/// `zfs receive`, which is begun when the head of the stream was seen to be right.
#[derive(Debug)]
pub(super) struct Receiving {
    parent: String,
    told: Vec<String>,
    expected: Head,
    head: Vec<u8>,
    /// The way to the program, while it may get more.
    pieces: Option<SyncSender<Vec<u8>>>,
    running: Option<Running>,
}

impl Receiving {
    pub(super) fn new(parent: &str, told: Vec<String>, wanted: &Wanted) -> Self {
        Self {
            parent: parent.to_owned(),
            told,
            expected: Head {
                to: wanted.point,
                from: wanted.base.map_or(0, |(_, point)| point),
            },
            head: Vec::new(),
            pieces: None,
            running: None,
        }
    }

    fn begin(&mut self) -> Result<(), VolumeError> {
        let head = stream::head(&self.head).map_err(|why| damaged("the stream", why))?;
        if head != self.expected {
            let why = "it is of another version, or begins at another one";
            return Err(damaged("the stream", why));
        }
        let mut arguments = vec!["receive"];
        arguments.extend(self.told.iter().map(String::as_str));
        let ways = (Stdio::piped(), Stdio::null());
        let mut running = Running::begin("zfs receive", &self.parent, &arguments, ways)?;
        let stdin = running.child.stdin.take();
        let (pieces, take) = mpsc::sync_channel(PIECES);
        let moving = thread::Builder::new().name("zfs-receive".to_owned());
        let moving = moving.spawn(move || {
            let Some(to) = stdin else { return };
            feed(to, &take);
        });
        self.running = Some(running);
        moving.map_err(|e| io_error("zfs receive", e))?;
        self.pieces = Some(pieces);
        Ok(())
    }

    fn hand(&mut self, mut piece: Vec<u8>, beat: Beat<'_>) -> Result<(), VolumeError> {
        let mut ticks = 0;
        loop {
            let sent = match &self.pieces {
                Some(pieces) => pieces.try_send(piece),
                None => Err(TrySendError::Disconnected(piece)),
            };
            match sent {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(again)) => piece = again,
                // It has ended before its stream, and says why.
                Err(TrySendError::Disconnected(_)) => {
                    self.end(beat)?;
                    let why = "it ended before the stream did";
                    return Err(damaged("zfs receive", why));
                }
            }
            beat()?;
            thread::sleep(SOON);
            ticks += 1;
            if let Some(running) = &self.running {
                running.look(ticks / 20)?;
            }
        }
    }

    fn end(&mut self, beat: Beat<'_>) -> Result<(), VolumeError> {
        self.pieces = None;
        let Some(mut running) = self.running.take() else {
            return Err(damaged("the stream", "it ended before it had begun"));
        };
        let ended = running.wait(beat);
        if ended.is_err() {
            running.leave();
        }
        ended
    }
}

/// Moves pieces until there are no more, or nobody takes them.
fn feed(mut to: ChildStdin, pieces: &Receiver<Vec<u8>>) {
    while let Ok(piece) = pieces.recv() {
        if to.write_all(&piece).is_err() {
            return;
        }
    }
}

impl Ingoing for Receiving {
    fn write(&mut self, bytes: &[u8], beat: Beat<'_>) -> Result<(), VolumeError> {
        if self.running.is_some() {
            return self.hand(bytes.to_vec(), beat);
        }
        self.head.extend_from_slice(bytes);
        if self.head.len() < stream::RECORD {
            return Ok(());
        }
        self.begin()?;
        let head = std::mem::take(&mut self.head);
        self.hand(head, beat)
    }

    fn finish(mut self: Box<Self>, beat: Beat<'_>) -> Result<(), VolumeError> {
        self.end(beat)
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        // It sees its stream end, keeps what it has, and goes.
        self.pieces = None;
        if let Some(running) = &mut self.running {
            running.leave();
        }
    }
}
