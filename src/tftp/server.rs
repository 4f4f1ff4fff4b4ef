//! The port for requests: who may ask, and what a request gets.
//!
//! One reader takes requests and hands each, checked and seated, to a task of its own; the
//! file is opened there, so that a slow disk or catalog holds up one client. The transfer then
//! lives on a thread of `pump`. Replies leave by the address that was asked. No protocol policy here: that is [`super::machine`]'s.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::metrics::{Refusal, Silence, TftpMetrics};
use super::pump::Pumps;
use super::room::{Ask, Room};
use super::seats::{Seat, Seats};
use super::transfer::{Shared, Transfer, suspect};
use super::wire::{self, ErrorCode, Mode, Options, Packet};
use crate::clock::Clock;
use crate::crowd;

pub use super::seats::Caps;

/// How long transfers may go on after the stop was asked for.
const DRAIN: Duration = Duration::from_secs(5);
/// Bytes read from a file at a time: with it a transfer costs less than 64 KiB, and the kernel
/// reads ahead of it anyway.
const READ_AHEAD: usize = 32 * 1024;
/// Pause after an error of the port itself, so that it can't become a busy loop.
const PAUSE: Duration = Duration::from_millis(100);

/// Why the port can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// An IPv6 address: DLS boots by IPv4.
    #[error("TFTP can't listen on {0}: only IPv4 addresses are served")]
    NotIpv4(SocketAddr),
    /// Somebody has it.
    #[error(
        "TFTP can't listen on {0}: the port is taken by another program (`ss -lnup` tells which)"
    )]
    Taken(SocketAddrV4),
    /// Ports below 1024 need a privilege.
    #[error("TFTP can't listen on {0}: no permission (CAP_NET_BIND_SERVICE is needed)")]
    Forbidden(SocketAddrV4),
    /// No interface has that address.
    #[error("TFTP can't listen on {0}: this machine has no such address")]
    NoSuchAddress(SocketAddrV4),
    /// Anything else.
    #[error("TFTP can't listen on {address}: {source}")]
    Other {
        /// Address and port.
        address: SocketAddrV4,
        /// The system's reason.
        source: io::Error,
    },
}

/// A bound port. Bind before privileges are dropped, then [`TftpServer::run`].
#[derive(Debug)]
pub struct TftpServer {
    socket: std::net::UdpSocket,
    address: SocketAddrV4,
    caps: Caps,
}

/// A request on its way to a transfer.
struct Call {
    seat: Seat,
    client: SocketAddrV4,
    server: Ipv4Addr,
    name: Vec<u8>,
    options: Options,
}

/// What every request needs.
#[derive(Clone)]
struct Desk {
    socket: Arc<UdpSocket>,
    room: Room,
    seats: Seats,
    shared: Shared,
    pumps: Arc<Pumps>,
}

impl TftpServer {
    /// Binds the port for requests.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(listen: SocketAddr) -> Result<Self, BindError> {
        let SocketAddr::V4(address) = listen else {
            return Err(BindError::NotIpv4(listen));
        };
        let open = || {
            let socket = std::net::UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
            crowd::make_room(&socket, crowd::BURST);
            let bound = socket.local_addr()?;
            Ok((socket, bound))
        };
        match open() {
            Ok((socket, SocketAddr::V4(address))) => Ok(Self {
                socket,
                address,
                caps: Caps::default(),
            }),
            Ok((_, other)) => Err(BindError::NotIpv4(other)),
            Err(source) => Err(explain(address, source)),
        }
    }

    /// The same with other caps.
    #[must_use]
    pub fn with_caps(self, caps: Caps) -> Self {
        Self { caps, ..self }
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddrV4 {
        self.address
    }

    /// Serves until cancelled; then takes no more requests, lets transfers go on for five
    /// seconds, and tells those that are left that the server stops.
    ///
    /// # Errors
    /// When the socket can't be used by the runtime, or there is no thread to be had.
    pub async fn run(
        self,
        room: Room,
        metrics: TftpMetrics,
        clock: Clock,
        cancel: CancellationToken,
    ) -> io::Result<()> {
        // If this future is dropped, its transfers end with it.
        let pumps = Arc::new(Pumps::start(&clock)?);
        let tasks = TaskTracker::new();
        let desk = Desk {
            socket: Arc::new(UdpSocket::from_std(self.socket)?),
            room,
            seats: Seats::new(self.caps),
            shared: Shared {
                started: clock.instant(),
                clock,
                metrics,
                port: self.address.port(),
                tasks: tasks.clone(),
            },
            pumps: Arc::clone(&pumps),
        };
        tracing::info!(listen = %self.address, "TFTP listens");
        tokio::select! {
            () = cancel.cancelled() => {}
            () = desk.receive() => {}
        }
        tasks.close();
        if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
            tracing::warn!(
                transfers = desk.seats.taken(),
                "TFTP transfers cut off by the stop"
            );
            pumps.end();
            let _ = tokio::time::timeout(DRAIN, tasks.wait()).await;
        }
        Ok(())
    }
}

fn explain(address: SocketAddrV4, source: io::Error) -> BindError {
    match source.kind() {
        io::ErrorKind::AddrInUse => BindError::Taken(address),
        io::ErrorKind::PermissionDenied => BindError::Forbidden(address),
        io::ErrorKind::AddrNotAvailable => BindError::NoSuchAddress(address),
        _ => BindError::Other { address, source },
    }
}

/// A datagram's ends.
#[derive(Debug, Clone, Copy)]
struct Ends {
    client: SocketAddrV4,
    /// Our address that it was sent to; `None` if the system did not tell.
    server: Option<Ipv4Addr>,
    /// It was sent to a broadcast or multicast address.
    broadcast: bool,
}

impl Desk {
    /// Takes datagrams for ever.
    async fn receive(&self) {
        // One byte more than a request may have shows that it has too many.
        let mut buffer = [0_u8; wire::MAX_REQUEST + 1];
        let mut control = nix::cmsg_space!(libc::in_pktinfo);
        loop {
            let got = self
                .socket
                .async_io(Interest::READABLE, || {
                    datagram(&self.socket, &mut buffer, &mut control)
                })
                .await;
            match got {
                Ok((length, Some(ends))) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    if let Some(call) = self.judge(bytes, ends) {
                        let desk = self.clone();
                        self.shared
                            .tasks
                            .spawn(async move { desk.serve(call).await });
                    }
                }
                Ok((_, None)) => self.shared.metrics.silent(Silence::SourceAddress),
                Err(e) => {
                    tracing::warn!(error = %e, "TFTP can't receive, going on");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Sorts out what is no request of a client; a request gets its seat here.
    fn judge(&self, bytes: &[u8], ends: Ends) -> Option<Call> {
        let silence = match self.admit(bytes, ends) {
            Ok(call) => return call,
            Err(silence) => silence,
        };
        self.shared.metrics.silent(silence);
        tracing::debug!(client.address = %ends.client, reason = ?silence, "TFTP packet not answered");
        None
    }

    fn admit(&self, bytes: &[u8], ends: Ends) -> Result<Option<Call>, Silence> {
        let client = ends.client;
        if suspect(client.port(), self.shared.port) {
            return Err(Silence::SourcePort);
        }
        let address = client.ip();
        if address.is_unspecified() || address.is_broadcast() || address.is_multicast() {
            return Err(Silence::SourceAddress);
        }
        if ends.broadcast {
            return Err(Silence::Broadcast);
        }
        let Some(server) = ends.server else {
            return Err(Silence::NoLocalAddress);
        };
        let request = match wire::parse(bytes) {
            Ok(Packet::Read(request)) => request,
            Ok(Packet::Write) => {
                let words = "this server takes no files";
                self.refuse(client, server, Refusal::Write, words);
                return Ok(None);
            }
            Ok(Packet::Error { .. }) => return Err(Silence::Error),
            Ok(Packet::Ack(_) | Packet::Data | Packet::OptionAck) => {
                return Err(Silence::NoRequest);
            }
            Err(malformed) if malformed.is_request() => {
                self.refuse(client, server, Refusal::Malformed, &malformed.to_string());
                return Ok(None);
            }
            Err(malformed) => return Err(malformed.into()),
        };
        if request.mode == Mode::Netascii {
            // Translating would change every line end of a binary.
            let words = "only octet (binary) mode is served";
            self.refuse(client, server, Refusal::Netascii, words);
            return Ok(None);
        }
        let now = self.shared.clock.instant();
        let now = now.saturating_duration_since(self.shared.started);
        let seat = self.seats.take(client, server, bytes, now)?;
        Ok(Some(Call {
            seat,
            client,
            server,
            name: request.name.to_vec(),
            options: request.options,
        }))
    }

    /// Opens the file and runs the transfer.
    async fn serve(self, call: Call) {
        let asked_at = self.shared.clock.instant();
        let ask = Ask {
            name: call.name,
            client: call.client,
            server: call.server,
        };
        let name = String::from_utf8_lossy(&ask.name)
            .escape_debug()
            .to_string();
        tracing::debug!(client.address = %call.client, file = name, "TFTP request");
        let opened = match (self.room)(ask).await {
            Ok(opened) => opened,
            Err((reason, words)) => {
                tracing::info!(client.address = %call.client, file = name, ?reason, "TFTP request refused");
                return self.refuse(call.client, call.server, reason, &words);
            }
        };
        let ends = (call.client, call.server);
        let shared = self.shared.clone();
        match Transfer::open(
            shared,
            call.seat,
            ends,
            &call.options,
            opened,
            asked_at,
            READ_AHEAD,
        ) {
            Ok(transfer) => self.pumps.run(transfer),
            Err(e) => {
                tracing::warn!(client.address = %call.client, file = name, error = %e, "TFTP has no socket for a transfer");
                let words = "the server is out of sockets";
                self.refuse(call.client, call.server, Refusal::NoSocket, words);
            }
        }
    }

    /// Answers by one ERROR, from the address that was asked.
    fn refuse(&self, client: SocketAddrV4, server: Ipv4Addr, reason: Refusal, words: &str) {
        self.shared.metrics.refused(reason);
        let code = match reason {
            Refusal::BadPath | Refusal::NoLoader | Refusal::NoSuchItem | Refusal::Report => {
                ErrorCode::FileNotFound
            }
            Refusal::Write | Refusal::BadToken | Refusal::Over | Refusal::NotBooting => {
                ErrorCode::AccessViolation
            }
            Refusal::Malformed => ErrorCode::IllegalOperation,
            Refusal::Stranger => ErrorCode::UnknownTransferId,
            Refusal::Netascii | Refusal::Unreadable | Refusal::NoSocket => ErrorCode::Undefined,
        };
        let mut error = Vec::new();
        wire::encode_error(code, words, &mut error);
        let from = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from_ne_bytes(server.octets()),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        // The answer to a refused request may be lost like any datagram: the client asks
        // again or gives up.
        let _ = self.socket.try_io(Interest::WRITABLE, || {
            sendmsg(
                self.socket.as_raw_fd(),
                &[IoSlice::new(&error)],
                &[ControlMessage::Ipv4PacketInfo(&from)],
                MsgFlags::empty(),
                Some(&SockaddrIn::from(client)),
            )
            .map_err(io::Error::from)
        });
    }
}

/// Receives one datagram and where it came from and went to.
fn datagram(
    socket: &UdpSocket,
    buffer: &mut [u8],
    control: &mut [u8],
) -> io::Result<(usize, Option<Ends>)> {
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrIn>(
        socket.as_raw_fd(),
        &mut parts,
        Some(control),
        MsgFlags::empty(),
    )?;
    let (mut server, mut broadcast) = (None, false);
    for part in message.cmsgs()? {
        if let ControlMessageOwned::Ipv4PacketInfo(info) = part {
            let local = address(info.ipi_spec_dst);
            // The header's destination differs from the address of ours that stands for it
            // when it was a broadcast.
            broadcast = address(info.ipi_addr) != local;
            server = Some(local);
        }
    }
    let ends = message.address.map(|from| Ends {
        client: SocketAddrV4::from(from),
        server,
        broadcast,
    });
    Ok((message.bytes, ends))
}

fn address(raw: libc::in_addr) -> Ipv4Addr {
    // Network byte order in memory, whatever the machine's own is.
    Ipv4Addr::from(raw.s_addr.to_ne_bytes())
}
