//! Listening, logins and their limits, and the sessions that come of them.
//!
//! Logins are tasks of the runtime, thousands of them cost little. A session is a thread of
//! its own from the moment it asks for its disk: it may wait for that, and nobody with it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::desk::Desk;
use super::line::Connection;
use super::login::{Admitted, Ended, negotiate, response};
use super::lun::Luns;
use super::machine::SessionKind;
use super::machine::window::Window;
use super::metrics::{Ending, IscsiMetrics};
use super::output::Output;
use super::scsi::reserve::Nexus;
use super::session::{Session, ask_for_logout};
use super::targets;
use super::wire::Digests;
use super::wire::answer::Answer;
use crate::boot::disks::{Attachment, DiskDoor, Login, NoDisk, Proof};
use crate::clock::Clock;
use crate::crowd::{self, Crowd, Full, Place};
use crate::model::{DiskIdentity, DiskProtocol};

/// How long an older session of the same initiator port may take to end.
const REINSTATEMENT: Duration = Duration::from_secs(10);
/// A client that takes nothing for so long is cut off.
const STALL: Duration = Duration::from_secs(30);
/// How long sessions have to log out when the server stops.
const GOODBYE: Duration = Duration::from_secs(2);

/// Limits of the iSCSI port. The defaults suit any site.
#[derive(Debug, Clone, Copy)]
pub struct IscsiLimits {
    /// Sessions in all.
    pub sessions: usize,
    /// Logins under way in all.
    pub logins: usize,
    /// The same, of one address.
    pub logins_per_address: usize,
    /// A login must be done within this, a discovery session too.
    pub login: Duration,
}

impl Default for IscsiLimits {
    fn default() -> Self {
        Self {
            sessions: 4096,
            logins: 8192,
            logins_per_address: 64,
            login: Duration::from_secs(14),
        }
    }
}

/// The iSCSI port, bound and not yet serving.
#[derive(Debug)]
pub struct IscsiServer {
    listener: TcpListener,
    address: SocketAddr,
}

/// A session that lives, by its initiator port and target.
type Port = (String, [u8; 6], DiskIdentity);

struct Hub {
    door: Arc<dyn DiskDoor>,
    metrics: IscsiMetrics,
    limits: IscsiLimits,
    luns: Luns,
    sessions: Mutex<HashMap<Port, Arc<Connection>>>,
    places: Arc<Semaphore>,
    handle: AtomicU16,
    clock: Clock,
    stopping: CancellationToken,
    /// Threads of sessions hold one each.
    threads: TaskTracker,
}

impl IscsiServer {
    /// Binds the port; nothing is answered before [`IscsiServer::run`].
    ///
    /// # Errors
    /// When the address is taken, not ours, or may not be bound.
    pub async fn bind(listen: SocketAddr) -> io::Result<Self> {
        let listener = crowd::listen(listen).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it listens: the port is the real one where 0 was asked for.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `cancel`; then asks all sessions to log out, and ends them.
    pub async fn run(
        self,
        door: Arc<dyn DiskDoor>,
        metrics: IscsiMetrics,
        limits: IscsiLimits,
        cancel: CancellationToken,
    ) {
        let hub = Arc::new(Hub {
            door,
            metrics,
            limits,
            luns: Luns::default(),
            sessions: Mutex::default(),
            places: Arc::new(Semaphore::new(limits.sessions)),
            handle: AtomicU16::new(0),
            clock: Clock::system(),
            stopping: cancel.clone(),
            threads: TaskTracker::new(),
        });
        let logins = Crowd::new(limits.logins, limits.logins_per_address);
        let tasks = TaskTracker::new();
        while let Some((stream, peer)) =
            crowd::next(&self.listener, "the iSCSI listener", &cancel).await
        {
            let place = match logins.enter(peer.ip()) {
                Ok(place) => place,
                Err(full) => {
                    hub.metrics.refused(match full {
                        Full::All => "too_many_logins",
                        Full::Address => "too_many_logins_of_address",
                    });
                    continue;
                }
            };
            tasks.spawn(hub.clone().welcome(stream, peer, place));
        }
        drop(self.listener);
        hub.goodbye().await;
        tasks.close();
        hub.threads.close();
        let all = async {
            tasks.wait().await;
            hub.threads.wait().await;
        };
        if tokio::time::timeout(GOODBYE, all).await.is_err() {
            tracing::warn!("iSCSI: a session did not end in time");
        }
    }
}

impl Hub {
    fn sessions(&self) -> MutexGuard<'_, HashMap<Port, Arc<Connection>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection, until it is a session or gone.
    async fn welcome(self: Arc<Self>, mut stream: TcpStream, peer: SocketAddr, place: Place) {
        self.metrics.half_open.inc();
        let login = async {
            let ended = negotiate(&mut stream, self.door.clone()).await?;
            if let Ended::Admitted(admitted) = &ended
                && admitted.ready.kind == SessionKind::Discovery
            {
                self.discovery(&mut stream, admitted).await?;
            }
            io::Result::Ok(ended)
        };
        let ended = tokio::select! {
            ended = tokio::time::timeout(self.limits.login, login) => ended,
            () = self.stopping.cancelled() => Ok(Ok(Ended::Gone)),
        };
        self.metrics.half_open.dec();
        match ended {
            Err(_) => self.metrics.login("timed_out"),
            Ok(Err(_)) | Ok(Ok(Ended::Gone)) => self.metrics.login("gone"),
            Ok(Ok(Ended::Refused(refusal))) => {
                self.metrics.login(refusal.as_str());
                tracing::info!(
                    net.peer = %peer,
                    iscsi.reason = refusal.as_str(),
                    "iSCSI login refused"
                );
            }
            Ok(Ok(Ended::Admitted(admitted))) => match admitted.ready.kind {
                SessionKind::Discovery => {}
                SessionKind::Normal => self.clone().promote(stream, peer, admitted),
            },
        }
        drop(place);
    }

    async fn discovery(&self, stream: &mut TcpStream, admitted: &Admitted) -> io::Result<()> {
        use tokio::io::AsyncWriteExt;
        self.metrics.login("discovery");
        let handle = self.next_handle();
        let ready = &admitted.ready;
        let request = &admitted.request;
        let answer = Answer::login(request, ready.reply.flags, handle, 0);
        let text = ready.reply.text.as_bytes();
        let bytes = response(request, answer, admitted.stat, text);
        stream.write_all(&bytes).await?;
        let portal = stream.local_addr()?.to_string();
        let numbers = (admitted.stat.wrapping_add(1), request.word(24));
        targets::discover(stream, ready, numbers, self.door.clone(), &portal).await
    }

    /// Never 0, which stands for a new session.
    fn next_handle(&self) -> u16 {
        self.handle.fetch_add(1, Ordering::Relaxed) % 0xfffe + 1
    }

    /// Gives a login a thread of its own.
    fn promote(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, admitted: Box<Admitted>) {
        let token = self.threads.token();
        let work = {
            let hub = self.clone();
            move || {
                let _token = token;
                hub.session(stream, peer, &admitted);
            }
        };
        let spawned = stream_is_ready(work);
        if let Err(error) = spawned {
            self.metrics.login("no_thread");
            tracing::warn!(%error, "iSCSI: no thread for a session");
        }
    }

    /// A session from its last answer to its end, on its own thread.
    fn session(&self, stream: TcpStream, peer: SocketAddr, admitted: &Admitted) {
        let Ok((stream, portal)) = blocking(stream) else {
            self.metrics.login("gone");
            return;
        };
        let ready = &admitted.ready;
        let window = Window::new(admitted.request.word(24));
        let stat = admitted.stat.wrapping_add(1);
        let output = Output::new(stream.clone(), stat, window, Digests::default());
        let connection = Arc::new(Connection::new(stream, peer, output));
        let place = self.places.try_acquire();
        let attached = match (&place, self.stopping.is_cancelled()) {
            (Ok(_), false) => self.attach(&connection, admitted),
            _ => Err(NoDisk::Unavailable),
        };
        let device = match attached {
            Ok(device) => device,
            Err(why) => {
                self.turn_away(&connection, admitted, &why);
                return;
            }
        };
        let identity = device.identity();
        let port: Port = (ready.initiator.clone(), ready.isid, identity);
        if !self.reinstate(&port, &connection) {
            self.turn_away(&connection, admitted, &NoDisk::InUse);
            return;
        }
        let handle = self.next_handle();
        let answer = Answer::login(&admitted.request, ready.reply.flags, handle, 0);
        let text = ready.reply.text.as_bytes();
        let last = response(&admitted.request, answer, admitted.stat, text);
        let ending = if io::Write::write_all(&mut &*connection.stream, &last).is_ok() {
            self.metrics.login("normal");
            self.full_feature(&connection, device, admitted, portal)
        } else {
            Ending::Lost
        };
        connection.close_for(ending);
        let mut sessions = self.sessions();
        if sessions
            .get(&port)
            .is_some_and(|c| Arc::ptr_eq(c, &connection))
        {
            sessions.remove(&port);
        }
        drop(sessions);
        connection.has_ended();
    }

    fn attach(
        &self,
        connection: &Arc<Connection>,
        admitted: &Admitted,
    ) -> Result<Attachment, NoDisk> {
        let ready = &admitted.ready;
        // A name that is no disk's is the same as one of somebody else's.
        let target = DiskIdentity::from_iqn(&ready.target).ok_or(NoDisk::OtherDisk)?;
        let name = ready.proven.clone().unwrap_or_default();
        self.door.attach(Login {
            protocol: DiskProtocol::Iscsi,
            peer: connection.peer,
            target: Some(target),
            initiator: ready.initiator.clone(),
            proof: Proof::Chap { name },
            line: connection.clone(),
        })
    }

    fn turn_away(&self, connection: &Connection, admitted: &Admitted, why: &NoDisk) {
        self.metrics.login(why.as_str());
        tracing::info!(
            net.peer = %connection.peer,
            iscsi.initiator = admitted.ready.initiator,
            iscsi.target = admitted.ready.target,
            iscsi.reason = why.as_str(),
            "iSCSI login gets no disk: {}",
            why.sentence()
        );
        let answer = Answer::login(&admitted.request, 0, 0, status(why));
        let bytes = response(&admitted.request, answer, admitted.stat, &[]);
        // The connection is given up either way.
        let _ = io::Write::write_all(&mut &*connection.stream, &bytes);
        connection.close_for(Ending::Lost);
    }

    /// The same initiator port again: its older session ends, with all that it had under way,
    /// before the new one may do anything (RFC 7143 section 6.3.5).
    fn reinstate(&self, port: &Port, connection: &Arc<Connection>) -> bool {
        let older = self.sessions().insert(port.clone(), connection.clone());
        let Some(older) = older else {
            return true;
        };
        older.close_for(Ending::Reinstated);
        if older.wait_for_end(REINSTATEMENT) {
            return true;
        }
        // It hangs in the store, and might still write: it keeps its place.
        self.sessions().insert(port.clone(), older);
        false
    }

    fn full_feature(
        &self,
        connection: &Arc<Connection>,
        device: Attachment,
        admitted: &Admitted,
        portal: String,
    ) -> Ending {
        let ready = &admitted.ready;
        let params = ready.params;
        connection.output().set_digests(Digests {
            header: params.header_digest,
            data: params.data_digest,
        });
        let isid = crate::model::hex(&ready.isid);
        let nexus: Nexus = format!("{},i,0x{isid}", ready.initiator).into();
        let (identity, boot) = (device.identity(), device.session());
        let (lun, seat) = self.luns.join(identity, boot, nexus);
        tracing::info!(
            net.peer = %connection.peer,
            session.id = %boot,
            iscsi.initiator = ready.initiator,
            iscsi.target = %identity,
            "iSCSI session begins"
        );
        self.metrics.sessions.inc();
        let metrics = self.metrics.clone();
        let shared = (lun.clone(), seat.clone());
        let desk = Desk::new(connection.clone(), device, shared, params, metrics);
        let mut session = Session::new(Arc::new(desk), self.clock.clone(), ready.cid, portal);
        let ending = session.serve();
        // Aborts what is under way, and waits for it; then the disk is let go.
        drop(session);
        self.luns.leave(identity, &lun, &seat);
        self.metrics.sessions.dec();
        self.metrics.ended(ending);
        tracing::info!(
            net.peer = %connection.peer,
            session.id = %boot,
            iscsi.ending = ending.as_str(),
            "iSCSI session ended"
        );
        ending
    }

    /// Asks all sessions to log out, and closes those that don't.
    async fn goodbye(&self) {
        let all = || -> Vec<_> { self.sessions().values().cloned().collect() };
        let asked = all();
        if asked.is_empty() {
            return;
        }
        // A client that does not read must not hold the stop up: each is asked by itself.
        for connection in asked {
            tokio::task::spawn_blocking(move || {
                let seconds = u16::try_from(GOODBYE.as_secs()).unwrap_or(2);
                ask_for_logout(&mut connection.output(), seconds);
            });
        }
        let pause = Duration::from_millis(20);
        for _ in 0..GOODBYE.as_millis() / pause.as_millis() {
            if self.sessions().is_empty() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
        for connection in all() {
            connection.close_for(Ending::Stopped);
        }
    }
}

/// Runs a session on a thread of its own.
fn stream_is_ready(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new()
        .name("iscsi".into())
        .stack_size(512 * 1024)
        .spawn(work)
        .map(drop)
}

/// Makes the socket one for a thread, and says where it was reached.
fn blocking(stream: TcpStream) -> io::Result<(Arc<std::net::TcpStream>, String)> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(STALL))?;
    let portal = stream.local_addr()?.to_string();
    Ok((Arc::new(stream), portal))
}

/// The status class and detail of a login that gets no disk (RFC 7143 section 11.13.5).
const fn status(why: &NoDisk) -> u16 {
    match why {
        NoDisk::WrongProof => 0x0201,
        NoDisk::OtherDisk | NoDisk::BootOver | NoDisk::InUse => 0x0202,
        NoDisk::NoImage | NoDisk::NotStored => 0x0203,
        NoDisk::Store(_) | NoDisk::Unavailable => 0x0301,
    }
}
