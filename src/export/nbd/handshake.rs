//! One connection's handshake, on the runtime: drives the pure machine over the socket, starts
//! TLS, asks the door. It keeps at most one option's bytes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{Connection, Serving};
use super::line::NbdLine;
use super::machine::negotiation::LONGEST_OPTION;
use super::machine::{Disk, Export, Negotiation, Opening, Refused, Turn, Way};
use super::metrics::{Attach, End, NbdMetrics};
use super::outlet::halves;
use super::server::{Lines, MultiConn, NbdLimits};
use super::wire::handshake::{self as wire, OPTION_HEADER, OptionError};
use crate::boot::disks::{Attachment, DiskDoor, Login, NoDisk, Proof};
use crate::model::DiskProtocol;
use crate::storage::{BlockDevice as _, DeviceInfo};

/// Bytes that a connection's buffer starts with: an ordinary client needs no more.
const FIRST: usize = 512;
/// Bytes of a connection thread's stack; a device's own calls need some.
const STACK: usize = 512 * 1024;

/// What all handshakes share.
#[derive(Debug, Clone)]
pub(super) struct Hall {
    pub(super) door: Arc<dyn DiskDoor>,
    pub(super) metrics: NbdMetrics,
    pub(super) limits: Arc<NbdLimits>,
    /// Connections with a disk.
    pub(super) seats: Arc<Semaphore>,
    /// Calls of the door at once: they block.
    pub(super) attaching: Arc<Semaphore>,
    pub(super) lines: Arc<Lines>,
    pub(super) tasks: TaskTracker,
}

/// The handshake's bytes.
struct Talk {
    peer: SocketAddr,
    line: Arc<NbdLine>,
    negotiation: Negotiation,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// Where a stretch of the handshake led.
enum Led {
    StartTls,
    Disk(Box<Given>),
}

/// A disk that was given.
struct Given {
    disk: Attachment,
    opening: Opening,
    seat: OwnedSemaphorePermit,
}

/// A connection that has its disk and has been told so.
pub(super) struct Ready {
    talk: Talk,
    given: Box<Given>,
    socket: std::net::TcpStream,
    tls: Option<Box<rustls::ServerConnection>>,
}

fn left(_: io::Error) -> End {
    End::LeftHandshake
}

/// Leads a connection to its disk.
pub(super) async fn greet(hall: &Hall, stream: TcpStream, peer: SocketAddr) -> Result<Ready, End> {
    // Each may be missing in an odd kernel; the connection works without.
    let _ = stream.set_nodelay(true);
    let socket = socket2::SockRef::from(&stream);
    let _ = socket.set_tcp_user_timeout(Some(hall.limits.stall));
    let twin = socket.try_clone().map_err(left)?;
    let mut talk = Talk {
        peer,
        line: Arc::new(NbdLine::new(peer, twin.into())),
        negotiation: Negotiation::new(hall.limits.tls.offer()),
        input: Vec::with_capacity(FIRST),
        output: wire::greeting().to_vec(),
    };
    let outcome = lead(hall, stream, &mut talk).await;
    match outcome {
        Ok((given, socket, tls)) => Ok(Ready {
            talk,
            given,
            socket,
            tls,
        }),
        Err(end) => {
            talk.line.end();
            Err(end)
        }
    }
}

type Led3 = (
    Box<Given>,
    std::net::TcpStream,
    Option<Box<rustls::ServerConnection>>,
);

async fn lead(hall: &Hall, mut stream: TcpStream, talk: &mut Talk) -> Result<Led3, End> {
    let (given, stream, tls) = match talk.go(hall, &mut stream).await? {
        Led::Disk(given) => (given, stream, None),
        Led::StartTls => {
            let Some(config) = hall.limits.tls.config() else {
                return Err(End::TlsFailed);
            };
            // On the heap: most connections never come here.
            let accepting = Box::pin(TlsAcceptor::from(config).accept(stream));
            let mut stream = accepting.await.map_err(|_| End::TlsFailed)?;
            talk.secured(hall);
            let Led::Disk(given) = Box::pin(talk.go(hall, &mut stream)).await? else {
                return Err(End::TlsFailed);
            };
            let (stream, tls) = stream.into_inner();
            (given, stream, Some(Box::new(tls)))
        }
    };
    let socket = stream.into_std().map_err(left)?;
    socket.set_nonblocking(false).map_err(left)?;
    Ok((given, socket, tls))
}

impl Talk {
    /// TLS has started. No byte that came before it is left.
    fn secured(&mut self, hall: &Hall) {
        let fresh = Negotiation::new(hall.limits.tls.offer());
        self.negotiation = std::mem::replace(&mut self.negotiation, fresh).secured();
        self.input.clear();
        self.output.clear();
    }

    /// Goes on until a disk is given or TLS is to start.
    async fn go<S>(&mut self, hall: &Hall, stream: &mut S) -> Result<Led, End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let (took, turn) = self.negotiation.take(&self.input, &mut self.output);
            self.input.drain(..took);
            match turn {
                Turn::More if took > 0 && !self.input.is_empty() => continue,
                Turn::More => {}
                Turn::StartTls => {
                    self.send(stream).await?;
                    return Ok(Led::StartTls);
                }
                Turn::Open(opening) => {
                    if let Some(given) = self.open(hall, opening).await? {
                        self.send(stream).await?;
                        return Ok(Led::Disk(Box::new(given)));
                    }
                    continue;
                }
                Turn::End(ending) => {
                    // What it is told may not reach it; it is over anyhow.
                    let _ = self.send(stream).await;
                    let _ = stream.shutdown().await;
                    return Err(End::Handshake(ending));
                }
            }
            self.send(stream).await?;
            let most = OPTION_HEADER + LONGEST_OPTION;
            if self.input.len() == self.input.capacity() {
                let more = self.input.capacity().max(FIRST);
                self.input.reserve_exact(more.min(most - self.input.len()));
            }
            let room = (self.input.capacity() - self.input.len()) as u64;
            let read = (&mut *stream).take(room).read_buf(&mut self.input).await;
            if read.map_err(left)? == 0 {
                return Err(End::LeftHandshake);
            }
        }
    }

    async fn send<S: AsyncWrite + Unpin>(&mut self, stream: &mut S) -> Result<(), End> {
        if !self.output.is_empty() {
            stream.write_all(&self.output).await.map_err(left)?;
            stream.flush().await.map_err(left)?;
            self.output.clear();
        }
        Ok(())
    }

    /// Asks the door, and writes what it says.
    async fn open(&mut self, hall: &Hall, opening: Opening) -> Result<Option<Given>, End> {
        let asked = match opening.way {
            Way::Info => self.describe(hall, &opening).await,
            Way::Go | Way::ExportName => self.attach(hall, &opening).await,
        };
        match asked {
            Ok(found) => {
                let export = export(found.info, hall.limits.multi_conn);
                self.negotiation.opened(&opening, export, &mut self.output);
                Ok(found.disk.map(|(disk, seat)| Given {
                    disk,
                    opening,
                    seat,
                }))
            }
            Err(why) => match self.negotiation.refused(&opening, &why, &mut self.output) {
                Turn::End(ending) => Err(End::Handshake(ending)),
                _ => Ok(None),
            },
        }
    }

    async fn describe(&self, hall: &Hall, opening: &Opening) -> Result<Found, Refused> {
        let (door, proof) = (hall.door.clone(), Proof::ExportName(opening.name.clone()));
        let asked = blocking(hall, move || door.describe(&proof)).await;
        match asked {
            Ok(Some(info)) => Ok(Found { info, disk: None }),
            Ok(None) => Err(Refused {
                error: OptionError::Policy,
                text: "a disk is told of only to who opens it (GO)".to_owned(),
            }),
            Err(why) => Err(refused(&why)),
        }
    }

    async fn attach(&self, hall: &Hall, opening: &Opening) -> Result<Found, Refused> {
        let Ok(seat) = hall.seats.clone().try_acquire_owned() else {
            hall.metrics.attached(Attach::TooMany);
            return Err(Refused {
                error: OptionError::Policy,
                text: "the server has too many connections".to_owned(),
            });
        };
        let login = Login {
            protocol: DiskProtocol::Nbd,
            peer: self.peer,
            target: None,
            // NBD clients have no name.
            initiator: String::new(),
            proof: Proof::ExportName(opening.name.clone()),
            line: self.line.clone(),
        };
        let door = hall.door.clone();
        match blocking(hall, move || door.attach(login)).await {
            Ok(disk) => {
                hall.metrics.attached(Attach::Given);
                Ok(Found {
                    info: disk.info(),
                    disk: Some((disk, seat)),
                })
            }
            Err(why) => {
                hall.metrics.attached(Attach::Refused(why.as_str()));
                tracing::info!(
                    client.ip = %self.peer.ip(),
                    reason = why.as_str(),
                    "an NBD client gets no disk: {}",
                    why.sentence()
                );
                Err(refused(&why))
            }
        }
    }
}

struct Found {
    info: DeviceInfo,
    disk: Option<(Attachment, OwnedSemaphorePermit)>,
}

/// Calls the door, which blocks, beside the runtime.
async fn blocking<T: Send + 'static>(
    hall: &Hall,
    call: impl FnOnce() -> Result<T, NoDisk> + Send + 'static,
) -> Result<T, NoDisk> {
    let permit = hall.attaching.clone().acquire_owned().await;
    let Ok(permit) = permit else {
        return Err(NoDisk::Unavailable);
    };
    let task = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        call()
    });
    // A door that panicked gives nothing.
    task.await.unwrap_or(Err(NoDisk::Unavailable))
}

fn refused(why: &NoDisk) -> Refused {
    let error = match why {
        NoDisk::WrongProof | NoDisk::OtherDisk => OptionError::Unknown,
        NoDisk::BootOver
        | NoDisk::NoImage
        | NoDisk::NotStored
        | NoDisk::InUse
        | NoDisk::Store(_) => OptionError::Policy,
        NoDisk::Unavailable => OptionError::Shutdown,
    };
    Refused {
        error,
        text: why.sentence(),
    }
}

fn export(info: DeviceInfo, multi_conn: MultiConn) -> Export {
    let mut flags = wire::HAS_FLAGS
        | wire::SEND_FLUSH
        | wire::SEND_FUA
        | wire::SEND_TRIM
        | wire::SEND_WRITE_ZEROES
        | wire::SEND_DF
        | wire::SEND_CACHE
        | wire::SEND_FAST_ZERO;
    if info.read_only {
        flags |= wire::READ_ONLY;
        flags &= !(wire::SEND_FUA | wire::SEND_TRIM);
        flags &= !(wire::SEND_WRITE_ZEROES | wire::SEND_FAST_ZERO);
    }
    if multi_conn == MultiConn::Advertised {
        flags |= wire::CAN_MULTI_CONN;
    }
    Export {
        size: info.size,
        flags,
        // The protocol's bounds for a preferred size.
        preferred_block: info.preferred_block.clamp(512, 1024 * 1024),
    }
}

impl Ready {
    /// Moves to a thread of its own.
    pub(super) fn serve(self, hall: &Hall, cancel: &CancellationToken) {
        let Self {
            talk,
            given,
            socket,
            tls,
        } = self;
        let (peer, line, metrics) = (talk.peer, talk.line, hall.metrics.clone());
        let info = given.disk.info();
        let (inlet, outlet) = halves(socket, tls);
        let serving = Arc::new(Serving {
            takes_files: outlet.takes_files(),
            outlet,
            line: line.clone(),
            facts: Disk {
                size: info.size,
                read_only: info.read_only,
                structured: talk.negotiation.structured(),
                contexts: talk.negotiation.contexts(&given.opening.name),
            },
            disk: given.disk,
            tally: metrics.tally(),
            jobs: Default::default(),
        });
        let connection = Connection::new(serving, inlet, &talk.input);
        let listed = hall.lines.add(line.clone());
        if cancel.is_cancelled() {
            // It came in while the others were being told.
            line.stop();
        }
        let (token, seat, stopped) = (hall.tasks.token(), given.seat, cancel.clone());
        let counted = metrics.clone();
        let made = std::thread::Builder::new()
            .name("nbd".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                counted.connections().inc();
                let mut end = connection.run();
                if end == End::Lost && stopped.is_cancelled() {
                    end = End::Stopped;
                }
                counted.connections().dec();
                counted.ended(end);
                tracing::debug!(client.ip = %peer.ip(), how = end.as_str(), "a disk's connection ended");
                drop((listed, seat, token));
            });
        if let Err(error) = made {
            // The connection went with the closure.
            line.end();
            metrics.ended(End::NoThread);
            tracing::warn!(%error, "can't start a thread for a disk's connection");
        }
    }
}
