//! One transfer's socket, bytes and clock around the pure machine.
//!
//! The socket has a fresh port on the address that was asked, and is not connected: a
//! stranger at that port must be told so (RFC 1350 section 4), and a connected socket never
//! sees one. What costs time per packet is kept away: the timer is moved only when it fires,
//! and a window goes out in one system call (UDP segmentation offload) where that works.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use super::blocks::Blocks;
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
    /// Cancelled when transfers must end.
    pub(super) stop: CancellationToken,
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
}

/// What woke the transfer.
enum Event {
    Packet(usize, SocketAddr),
    Timer,
    Superseded,
    Stopped,
    Broken(io::Error),
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
        Ok(Self {
            shared,
            seat,
            socket: UdpSocket::from_std(socket)?,
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
        })
    }

    /// Runs it to its end, and tells of it.
    pub(super) async fn run(mut self) {
        self.shared.metrics.active.inc();
        let (ending, cause) = self.converse().await;
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
    }

    /// Packets back and forth; returns the end and its cause in words.
    async fn converse(&mut self) -> (Ending, String) {
        let (superseded, stop) = (self.seat.superseded.clone(), self.shared.stop.clone());
        let mut superseded = pin!(superseded.cancelled());
        let mut stopped = pin!(stop.cancelled());
        let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
        let mut armed = Duration::MAX;
        let mut buffer = [0_u8; wire::MAX_REQUEST];
        let mut step = self.machine.start(self.elapsed());
        loop {
            match step {
                Step::Wait => {}
                Step::SendOptionAck => {
                    let mut oack = Vec::new();
                    wire::encode_option_ack(&self.machine.terms().granted, &mut oack);
                    if let Err(e) = self.socket.send_to(&oack, self.client).await {
                        return (Ending::SendFailed, format!("can't send: {e}"));
                    }
                }
                Step::SendBlocks { first, count } => {
                    if let Err(e) = self.blocks.load(first, count).await {
                        self.say(ErrorCode::Undefined, "the file can't be read")
                            .await;
                        return (Ending::ReadFailed, format!("can't read the file: {e}"));
                    }
                    if let Err(e) = self.send_row(first, count).await {
                        return (Ending::SendFailed, format!("can't send: {e}"));
                    }
                    let now = self.elapsed();
                    self.machine.on_sent(now);
                    if self.machine.lingers() {
                        // The machine may be running what it got by now: don't keep the
                        // tracker waiting for an ACK that will not come.
                        self.tell_sent(now);
                    }
                }
                Step::End(outcome) => return named(outcome),
            }
            let deadline = self.machine.deadline();
            // The timer is moved only if it would be late: moving it for every packet costs
            // more than letting it fire early now and then.
            if deadline < armed {
                armed = deadline;
                let wait = deadline.saturating_sub(self.elapsed());
                timer.as_mut().reset(tokio::time::Instant::from_std(
                    self.shared.clock.instant() + wait,
                ));
            }
            let event = self
                .event(
                    &mut buffer,
                    timer.as_mut(),
                    superseded.as_mut(),
                    stopped.as_mut(),
                )
                .await;
            step = match event {
                Event::Packet(length, from) => {
                    self.take(buffer.get(..length).unwrap_or_default(), from)
                        .await
                }
                Event::Timer => {
                    armed = Duration::MAX;
                    self.machine.on_timer(self.elapsed())
                }
                Event::Superseded => {
                    return (Ending::Superseded, "the client asked anew".to_owned());
                }
                Event::Stopped => {
                    self.say(ErrorCode::Undefined, "the server is stopping")
                        .await;
                    return (Ending::Stopped, "the server stopped".to_owned());
                }
                Event::Broken(e) => return (Ending::SendFailed, format!("can't receive: {e}")),
            };
        }
    }

    async fn event(
        &self,
        buffer: &mut [u8],
        mut timer: Pin<&mut tokio::time::Sleep>,
        mut superseded: Pin<&mut WaitForCancellationFuture<'_>>,
        mut stopped: Pin<&mut WaitForCancellationFuture<'_>>,
    ) -> Event {
        poll_fn(|cx| {
            let mut read = ReadBuf::new(buffer);
            match self.socket.poll_recv_from(cx, &mut read) {
                Poll::Ready(Ok(from)) => {
                    return Poll::Ready(Event::Packet(read.filled().len(), from));
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Event::Broken(e)),
                Poll::Pending => {}
            }
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Timer);
            }
            if superseded.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Superseded);
            }
            if stopped.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Stopped);
            }
            Poll::Pending
        })
        .await
    }

    /// A packet came to the transfer's port.
    async fn take(&mut self, bytes: &[u8], from: SocketAddr) -> Step {
        let packet = wire::parse(bytes);
        if from != SocketAddr::V4(self.client) {
            self.meet_stranger(from, matches!(packet, Ok(Packet::Error { .. })))
                .await;
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
    async fn meet_stranger(&mut self, from: SocketAddr, is_error: bool) {
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
            let _ = self.socket.send_to(&error, from).await;
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
    async fn say(&self, code: ErrorCode, message: &str) {
        let mut error = Vec::new();
        wire::encode_error(code, message, &mut error);
        let _ = self.socket.send_to(&error, self.client).await;
    }

    /// Sends blocks that are loaded, all in one call if the kernel cuts them.
    async fn send_row(&mut self, first: u64, count: u16) -> io::Result<()> {
        let row = self.blocks.row(first, count);
        if self.segments {
            match self.socket.send_to(row, self.client).await {
                Ok(_) => return Ok(()),
                // No segmentation on this path (a device without checksums, a smaller MTU on
                // the way): from now on one by one.
                Err(_) => {
                    self.segments = false;
                    setsockopt(&self.socket, sockopt::UdpGsoSegment, &0)?;
                }
            }
        }
        for packet in row.chunks(self.blocks.packet()) {
            match self.socket.send_to(packet, self.client).await {
                Ok(_) => {}
                // What the system drops for want of memory or of a neighbour is lost like
                // any packet on the way, and is sent again.
                Err(e) if is_loss(&e) => break,
                Err(e) => return Err(e),
            }
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
            libc::ENOBUFS
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
