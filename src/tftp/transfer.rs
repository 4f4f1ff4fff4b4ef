//! One transfer's socket, bytes and clock around the pure machine.
//!
//! The socket has a fresh port on the address that was asked, and is not connected: a
//! stranger at that port must be told so (RFC 1350 section 4), and a connected socket never
//! sees one. A window goes out in one system call (UDP segmentation offload) where that works.
//! It waits for nothing: [`super::pump`] calls it when something has come or is due.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::blocks::{Blocks, Errand};
use super::machine::{Limits, Machine, Outcome, Step, negotiate};
use super::metrics::{Ending, Refusal, Silence, TftpMetrics};
use super::room::{Opened, Progress, Watch};
use super::seats::Seat;
use super::wire::{self, ErrorCode, MAX_BLKSIZE, MIN_BLKSIZE, Options, Packet};
use crate::clock::Clock;

/// Largest window in blocks (Linux segments at most 64 at once) and in bytes (one datagram's
/// worth, which also bounds the memory of a transfer).
const MAX_WINDOW: u16 = 64;
const WINDOW_BYTES: u32 = 64_000;
/// IP, UDP and TFTP headers.
const HEADERS: u16 = 20 + 8 + 4;
/// Path MTU that is assumed where the system tells none.
const ETHERNET: u16 = 1500;
/// Strangers that are answered in one transfer.
const STRANGERS: u32 = 8;
/// How long a timer is put off while bytes are read.
const READING: Duration = Duration::from_millis(100);
/// How often the seat hears that the client lives.
const HEARTBEAT: Duration = Duration::from_millis(200);

/// What a transfer needs besides its request.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) clock: Clock,
    pub(super) metrics: TftpMetrics,
    /// When the server started.
    pub(super) started: Instant,
    /// Port for requests.
    pub(super) port: u16,
    /// All that lives, for the server to wait for when it stops.
    pub(super) tasks: TaskTracker,
}

/// A source port from which no client of ours asks: other servers' ports, where an answer
/// could start a loop (CVE-2024-2169). Clients take theirs from 1024 up.
pub(super) const fn suspect(port: u16, own: u16) -> bool {
    port < 1024 || port == own
}

/// A transfer about to begin.
pub(super) struct Transfer {
    shared: Shared,
    seat: Seat,
    socket: UdpSocket,
    client: SocketAddrV4,
    machine: Machine,
    blocks: Blocks,
    watch: Option<Watch>,
    asked_at: Instant,
    /// The kernel cuts a row of packets into datagrams.
    segments: bool,
    told_started: bool,
    told_sent: bool,
    alive_at: Duration,
    strangers: u32,
    /// Blocks that go out once they are read.
    unread: Option<(u64, u16)>,
    /// Held while it lives: the server waits for its transfers when it stops.
    _counted: TaskTrackerToken,
}

/// What a transfer needs next.
pub(super) enum Next {
    /// To be called when something comes, and at this time at the latest.
    Due(Instant),
    /// Bytes that are not in memory; until it has them, it must not be called.
    Read(Errand),
    /// Nothing any more.
    Over,
}

/// What the transfers of a thread share: memory for one moment.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) bytes: Vec<u8>,
}

impl Transfer {
    /// Opens the socket and agrees on terms. `read_ahead` is in bytes.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub(super) fn open(
        shared: Shared,
        seat: Seat,
        (client, server): (SocketAddrV4, Ipv4Addr),
        asked: &Options,
        opened: Opened,
        asked_at: Instant,
        read_ahead: usize,
    ) -> io::Result<Self> {
        let mtu = path_mtu(server, client).unwrap_or(ETHERNET);
        let socket = std::net::UdpSocket::bind((server, 0))?;
        socket.set_nonblocking(true)?;
        let limits = Limits {
            max_blksize: mtu.saturating_sub(HEADERS).clamp(MIN_BLKSIZE, MAX_BLKSIZE),
            max_window: MAX_WINDOW,
            window_bytes: WINDOW_BYTES,
        };
        let machine = Machine::new(negotiate(asked, opened.body.size(), limits));
        let terms = machine.terms();
        let blocks = Blocks::new(opened.body, terms.blksize, terms.windowsize, read_ahead);
        let segments = terms.windowsize > 1
            && i32::try_from(blocks.packet())
                .is_ok_and(|size| setsockopt(&socket, sockopt::UdpGsoSegment, &size).is_ok());
        // Whatever becomes of it from here on, it ends by `end`.
        shared.metrics.active.inc();
        Ok(Self {
            _counted: shared.tasks.token(),
            shared,
            seat,
            socket,
            client,
            machine,
            blocks,
            watch: opened.watch,
            asked_at,
            segments,
            told_started: false,
            told_sent: false,
            alive_at: Duration::ZERO,
            strangers: 0,
            unread: None,
        })
    }

    pub(super) const fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Sends its first packet.
    pub(super) fn begin(&mut self, scratch: &mut Scratch) -> Next {
        let step = self.machine.start(self.elapsed());
        self.perform(step, scratch)
    }

    /// Takes one packet, if there is one.
    pub(super) fn readable(&mut self, scratch: &mut Scratch) -> Next {
        if self.unread.is_some() {
            return self.later();
        }
        let mut buffer = [0_u8; wire::MAX_REQUEST];
        match self.socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                if self.seat.is_superseded() {
                    return self.end(Ending::Superseded, "the client asked anew".to_owned());
                }
                let step = self.take(buffer.get(..length).unwrap_or_default(), from);
                self.perform(step, scratch)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.due(),
            Err(e) if is_loss(&e) => self.due(),
            Err(e) => self.broken(&e),
        }
    }

    /// Its time has come.
    pub(super) fn timer(&mut self, scratch: &mut Scratch) -> Next {
        if self.unread.is_some() {
            return self.later();
        }
        if self.seat.is_superseded() {
            return self.end(Ending::Superseded, "the client asked anew".to_owned());
        }
        let step = self.machine.on_timer(self.elapsed());
        self.perform(step, scratch)
    }

    /// The bytes that it waited for.
    pub(super) fn has_read(&mut self, row: io::Result<Vec<u8>>, scratch: &mut Scratch) -> Next {
        let Some((first, count)) = self.unread.take() else {
            return self.due();
        };
        match row {
            Ok(row) => {
                self.blocks.put(first, row);
                self.perform(Step::SendBlocks { first, count }, scratch)
            }
            Err(e) => {
                self.say(ErrorCode::Undefined, "the file can't be read");
                self.end(Ending::ReadFailed, format!("can't read the file: {e}"))
            }
        }
    }

    /// The server stops.
    pub(super) fn cut_off(&mut self) {
        self.say(ErrorCode::Undefined, "the server is stopping");
        self.end(Ending::Stopped, "the server stopped".to_owned());
    }

    /// Its socket is of no use.
    pub(super) fn broken(&mut self, error: &io::Error) -> Next {
        self.end(Ending::SendFailed, format!("can't receive: {error}"))
    }

    /// Does what the machine says.
    fn perform(&mut self, step: Step, scratch: &mut Scratch) -> Next {
        match step {
            Step::Wait => {}
            Step::SendOptionAck => {
                let mut oack = Vec::new();
                wire::encode_option_ack(&self.machine.terms().granted, &mut oack);
                if let Err(e) = self.send(&oack) {
                    return self.end(Ending::SendFailed, format!("can't send: {e}"));
                }
            }
            Step::SendBlocks { first, count } => {
                if !self.blocks.load(first, count, &mut scratch.bytes) {
                    self.unread = Some((first, count));
                    return Next::Read(self.blocks.errand(first));
                }
                if let Err(e) = self.send_row(first, count) {
                    return self.end(Ending::SendFailed, format!("can't send: {e}"));
                }
                let now = self.elapsed();
                self.machine.on_sent(now);
                if self.machine.lingers() {
                    // The machine may be running what it got by now: don't keep the
                    // tracker waiting for an ACK that will not come.
                    self.tell_sent(now);
                }
            }
            Step::End(outcome) => {
                let (ending, cause) = named(outcome);
                return self.end(ending, cause);
            }
        }
        self.due()
    }

    fn due(&self) -> Next {
        Next::Due(self.asked_at + self.machine.deadline())
    }

    /// While bytes are read, what the machine waits for may be overdue.
    fn later(&self) -> Next {
        Next::Due(self.shared.clock.instant() + READING)
    }

    /// Tells how it ended.
    fn end(&mut self, ending: Ending, cause: String) -> Next {
        let took = self.elapsed();
        let metrics = &self.shared.metrics;
        metrics.active.dec();
        metrics.ended(ending);
        let counts = self.machine.counts();
        metrics.bytes.inc_by(self.machine.delivered());
        metrics.blocks.inc_by(counts.sent);
        metrics.blocks_resent.inc_by(counts.resent);
        tracing::debug!(
            client.address = %self.client,
            outcome = ?ending,
            cause,
            bytes = self.machine.delivered(),
            size = self.machine.terms().size,
            seconds = took.as_secs_f64(),
            blksize = self.machine.terms().blksize,
            windowsize = self.machine.terms().windowsize,
            resent = counts.resent,
            "TFTP transfer ended"
        );
        match ending {
            Ending::Probe => {}
            // Whoever has not acknowledged the very end most likely has it nevertheless: a
            // boot that goes on must not be told as a broken transfer.
            Ending::Complete | Ending::Unconfirmed => self.tell_sent(took),
            _ if self.told_sent => {}
            _ => {
                self.tell_started();
                self.tell(Progress::Broken {
                    sent: self.machine.delivered(),
                    cause,
                });
            }
        }
        Next::Over
    }

    /// A packet came to the transfer's port.
    fn take(&mut self, bytes: &[u8], from: SocketAddr) -> Step {
        let packet = wire::parse(bytes);
        if from != SocketAddr::V4(self.client) {
            self.meet_stranger(from, matches!(packet, Ok(Packet::Error { .. })));
            return Step::Wait;
        }
        let now = self.elapsed();
        match packet {
            Ok(Packet::Ack(block)) => {
                let step = self.machine.on_ack(block, now);
                if self.machine.confirmed() {
                    self.client_lives(now);
                }
                step
            }
            Ok(Packet::Error { code, message }) => self.machine.on_error(code, message),
            Ok(Packet::Read(_) | Packet::Write | Packet::Data | Packet::OptionAck) | Err(_) => {
                self.shared.metrics.silent(Silence::InTransfer);
                Step::Wait
            }
        }
    }

    /// RFC 1350 section 4: a packet from elsewhere gets an ERROR and disturbs nothing; an
    /// ERROR gets none.
    fn meet_stranger(&mut self, from: SocketAddr, is_error: bool) {
        let metrics = &self.shared.metrics;
        if is_error {
            metrics.silent(Silence::Error);
        } else if suspect(from.port(), self.shared.port) {
            metrics.silent(Silence::SourcePort);
        } else if self.strangers >= STRANGERS {
            metrics.silent(Silence::Stranger);
        } else {
            metrics.refused(Refusal::Stranger);
            self.strangers += 1;
            let mut error = Vec::new();
            wire::encode_error(
                ErrorCode::UnknownTransferId,
                "not your transfer",
                &mut error,
            );
            // A stranger's loss is no event of this transfer.
            let _ = self.socket.send_to(&error, from);
        }
    }

    fn client_lives(&mut self, now: Duration) {
        if !self.told_started || now.saturating_sub(self.alive_at) >= HEARTBEAT {
            self.alive_at = now;
            let at = self.shared.clock.instant();
            self.seat
                .alive(at.saturating_duration_since(self.shared.started));
        }
        self.tell_started();
    }

    fn tell_started(&mut self) {
        if !std::mem::replace(&mut self.told_started, true) {
            self.tell(Progress::Started);
        }
    }

    fn tell_sent(&mut self, took: Duration) {
        if !std::mem::replace(&mut self.told_sent, true) {
            self.tell(Progress::Sent {
                seconds: took.as_secs_f64(),
            });
        }
    }

    fn tell(&self, progress: Progress) {
        if let Some(watch) = &self.watch {
            watch(progress);
        }
    }

    /// Last words; whether they arrive is not waited for.
    fn say(&self, code: ErrorCode, message: &str) {
        let mut error = Vec::new();
        wire::encode_error(code, message, &mut error);
        let _ = self.socket.send_to(&error, self.client);
    }

    /// Sends one packet. What the system drops for want of memory or of a neighbour is lost
    /// like any packet on the way, and is sent again.
    fn send(&self, packet: &[u8]) -> io::Result<()> {
        match self.socket.send_to(packet, self.client) {
            Err(e) if !is_loss(&e) => Err(e),
            _ => Ok(()),
        }
    }

    /// Sends blocks that are loaded, all in one call if the kernel cuts them.
    fn send_row(&mut self, first: u64, count: u16) -> io::Result<()> {
        let row = self.blocks.row(first, count);
        if self.segments {
            match self.socket.send_to(row, self.client) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // No segmentation on this path (a device without checksums, a smaller MTU on
                // the way): from now on one by one.
                Err(_) => {
                    self.segments = false;
                    setsockopt(&self.socket, sockopt::UdpGsoSegment, &0)?;
                }
            }
        }
        for packet in row.chunks(self.blocks.packet()) {
            self.send(packet)?;
        }
        Ok(())
    }

    fn elapsed(&self) -> Duration {
        self.shared
            .clock
            .instant()
            .saturating_duration_since(self.asked_at)
    }
}

/// Send errors that pass.
fn is_loss(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(
            libc::EAGAIN
                | libc::EINTR
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ECONNREFUSED
                | libc::EPERM
        )
    )
}

/// The outcome's label and its words.
fn named(outcome: Outcome) -> (Ending, String) {
    match outcome {
        Outcome::Complete => (Ending::Complete, String::new()),
        Outcome::Probe => (Ending::Probe, String::new()),
        Outcome::ClientError { code, message } => (
            Ending::ClientError,
            format!("the client ended it: error {} {message}", code.number()),
        ),
        Outcome::TimedOut { block } => (
            Ending::TimedOut,
            format!("the client fell silent at block {block}"),
        ),
        Outcome::Unconfirmed => (
            Ending::Unconfirmed,
            "all was sent, the last block was never acknowledged".to_owned(),
        ),
        Outcome::TooSlow { block } => (Ending::TooSlow, format!("too slow, at block {block}")),
    }
}

/// The largest datagram that reaches the client in one piece, with its headers.
fn path_mtu(server: Ipv4Addr, client: SocketAddrV4) -> Option<u16> {
    let probe = std::net::UdpSocket::bind((server, 0)).ok()?;
    probe.connect(client).ok()?;
    let mtu = nix::sys::socket::getsockopt(&probe, sockopt::IpMtu).ok()?;
    // The loopback's 65536 is one more than fits a u16.
    Some(u16::try_from(mtu).unwrap_or(u16::MAX)).filter(|&mtu| mtu > HEADERS)
}
