//! The receiving side of a connection between servers: TLS with a certificate that the catalog
//! knows, then frames. One blocking thread for each, few of them, each with time limits. What
//! may come when is `machine`'s to say, what is stored is `inbox`'s.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::{ServerConnection, StreamOwned};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::Shared;
use super::content::{Beat, is_whole};
use super::files::Arriving;
use super::identity::fingerprint;
use super::inbox::{Incoming, Offer, Rejected, Verdict};
use super::line::{Broken, Line};
use super::machine::{Machine, Step};
use super::wire::{Message, Refusal};
use crate::crowd::{self, Crowd};
use crate::model::hex;
use crate::storage::VolumeError;

/// From the first byte to a server that is known.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// Without a frame, the other side is gone: who works says so each second.
pub(super) const SILENCE: Duration = Duration::from_secs(30);
/// How often who works says so.
pub(super) const ALIVE: Duration = Duration::from_secs(1);
/// Connections at once, and of one address.
const CONNECTIONS: (usize, usize) = (64, 16);

/// Listens until cancelled.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener, cancel: CancellationToken) {
    let crowd = Crowd::new(CONNECTIONS.0, CONNECTIONS.1);
    let tasks = TaskTracker::new();
    while let Some((stream, peer)) =
        crowd::next(&listener, "the replication listener", &cancel).await
    {
        let place = match crowd.enter(peer.ip()) {
            Ok(place) => place,
            Err(full) => {
                tracing::debug!(%peer, ?full, "refused a server's connection");
                continue;
            }
        };
        let Ok((stream, watched)) = stream.into_std().and_then(ready) else {
            continue;
        };
        let known = Arc::new(AtomicBool::new(false));
        let over = CancellationToken::new();
        tasks.spawn(watch(watched, known.clone(), over.clone(), cancel.clone()));
        let shared = shared.clone();
        tasks.spawn_blocking(move || {
            let _place = place;
            let _over = over.drop_guard();
            if let Err(why) = converse(&shared, stream, &known) {
                tracing::debug!(%peer, %why, "a server's connection is over");
            }
        });
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// A socket as blocking threads want it, and a second handle to end it by.
fn ready(stream: TcpStream) -> io::Result<(TcpStream, TcpStream)> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let watched = stream.try_clone()?;
    Ok((stream, watched))
}

/// Breaks a connection off that does not say in time who it is, or when the server stops.
async fn watch(
    stream: TcpStream,
    known: Arc<AtomicBool>,
    over: CancellationToken,
    cancel: CancellationToken,
) {
    tokio::select! {
        () = over.cancelled() => return,
        () = cancel.cancelled() => {}
        () = tokio::time::sleep(HANDSHAKE) => {
            if known.load(Ordering::Relaxed) {
                tokio::select! {
                    () = over.cancelled() => return,
                    () = cancel.cancelled() => {}
                }
            }
        }
    }
    // It may have ended by itself.
    let _ = stream.shutdown(Shutdown::Both);
}

type Talk = Line<StreamOwned<ServerConnection, TcpStream>>;

fn converse(shared: &Arc<Shared>, mut stream: TcpStream, known: &AtomicBool) -> Result<(), Broken> {
    let tls = shared.as_server.clone();
    let mut tls = ServerConnection::new(tls).map_err(io::Error::other)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    let shown = tls.peer_certificates().and_then(<[_]>::first);
    let shown = shown.map(|certificate| fingerprint(certificate));
    let peer = shown.and_then(|shown| shared.by_fingerprint(&shown));
    let Some(peer) = peer else {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied).into());
    };
    known.store(true, Ordering::Relaxed);
    let mut guest = Guest {
        shared,
        peer,
        line: Line::new(StreamOwned::new(tls, stream)),
        machine: Machine::default(),
        incoming: None,
        file: None,
    };
    loop {
        let message = guest.line.receive()?;
        let done = match guest.machine.take(message) {
            Ok(step) => guest.act(step),
            Err((why, sentence)) => Err(Ended::No(Rejected::new(why, sentence))),
        };
        match done {
            Ok(()) => {}
            Err(Ended::Broken(why)) => return Err(why),
            Err(Ended::No(rejected)) => {
                let kept = guest.refuse(&rejected)?;
                if !kept {
                    return Ok(());
                }
            }
        }
    }
}

/// Why a step came to nothing.
enum Ended {
    Broken(Broken),
    No(Rejected),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.into())
    }
}

impl From<Rejected> for Ended {
    fn from(rejected: Rejected) -> Self {
        Self::No(rejected)
    }
}

/// Says each second that we work, as long as somebody listens and this server is not to stop.
fn beat<'a>(
    line: &'a mut Talk,
    shared: &'a Shared,
) -> impl FnMut() -> Result<(), VolumeError> + 'a {
    let (clock, cancel) = (&shared.clock, &shared.cancel);
    let mut last = clock.instant();
    move || {
        if cancel.is_cancelled() {
            return Err(VolumeError::Cancelled);
        }
        let now = clock.instant();
        if now.saturating_duration_since(last) >= ALIVE {
            last = now;
            // Without who asked for it, it is of no use.
            let told = line.send(&Message::Working);
            return told.map_err(|_| VolumeError::Cancelled);
        }
        Ok(())
    }
}

/// A server that sends to us.
struct Guest<'a> {
    shared: &'a Arc<Shared>,
    peer: Uuid,
    line: Talk,
    machine: Machine,
    incoming: Option<Incoming>,
    file: Option<Arriving>,
}

impl Guest<'_> {
    fn act(&mut self, step: Step) -> Result<(), Ended> {
        match step {
            Step::Nothing => {}
            Step::Greet(server) => {
                if server != self.peer {
                    let sentence = "this certificate is another server's";
                    return Err(Rejected::new(Refusal::Confused, sentence).into());
                }
                let server = self.shared.server_id;
                self.line.send(&Message::Welcome { server })?;
            }
            Step::Offer {
                image,
                version,
                size,
                point,
                bases,
            } => {
                let offer = Offer {
                    image,
                    version,
                    size,
                    point,
                    bases,
                };
                let incoming = self.begin(&offer)?;
                self.accept(incoming)?;
            }
            Step::Stream(bytes) => {
                self.with_beat(|incoming, beat| incoming.stream(&bytes, beat))?;
            }
            Step::StreamEnd(through) => {
                self.with_beat(Incoming::stream_ended)?;
                self.line.send(&Message::Synced { through })?;
            }
            Step::Restart => {
                let mut incoming = self.incoming.take();
                if let Some(incoming) = &mut incoming {
                    incoming.restart()?;
                    self.shared.restarts.inc();
                    tracing::warn!(version.id = %incoming.version(), "a stream begins anew: its sender can't go on with it");
                }
                let none = || Rejected::new(Refusal::Confused, "nothing was offered");
                self.accept(incoming.ok_or_else(none)?)?;
            }
            Step::Write { offset, bytes } => self.incoming()?.write(offset, &bytes)?,
            Step::Zero { offset, length } => self.incoming()?.zero(offset, length)?,
            Step::Sync(through) => {
                self.incoming()?.sync(through)?;
                self.line.send(&Message::Synced { through })?;
            }
            Step::Finish(expected) => self.finish(expected)?,
            Step::Drop(version) => {
                self.drop_replica(version)?;
                self.line.send(&Message::Dropped)?;
            }
            Step::File { image, number } => {
                let arriving = self.shared.file_wanted(image, number)?;
                if arriving.is_none() {
                    self.machine.refused();
                }
                let answer = arriving.as_ref().map_or(Message::Skip, |_| Message::Want);
                self.file = arriving;
                self.line.send(&answer)?;
            }
            Step::Piece(bytes) => {
                let file = self.file.as_mut();
                let file = file.ok_or_else(|| Rejected::new(Refusal::Confused, "no file"))?;
                if !bytes.is_empty() {
                    file.add(&bytes)?;
                } else if let Some(file) = self.file.take() {
                    self.shared.place(file)?;
                    self.line.send(&Message::Skip)?;
                }
            }
        }
        Ok(())
    }

    fn incoming(&mut self) -> Result<&mut Incoming, Rejected> {
        let incoming = self.incoming.as_mut();
        incoming.ok_or_else(|| Rejected::new(Refusal::Confused, "nothing was offered"))
    }

    /// Says how a version is to come.
    fn accept(&mut self, incoming: Incoming) -> Result<(), Ended> {
        let (base, through) = (incoming.base(), incoming.through());
        let words = incoming.words().map(str::to_owned);
        let way = match &words {
            None => "blocks",
            Some(words) if words.is_empty() => "stream",
            Some(_) => "stream-goes-on",
        };
        tracing::info!(
            version.id = %incoming.version(), from = %self.peer, through, base = ?base, way,
            "a version of an image comes from another server"
        );
        self.incoming = Some(incoming);
        match words {
            Some(words) => {
                self.machine.streaming();
                self.line.send(&Message::AcceptStream { base, words })?;
            }
            None => {
                self.machine.accepted(through);
                self.line.send(&Message::Accept { base, through })?;
            }
        }
        Ok(())
    }

    /// Has something done that may take long, and says each second that it goes on.
    fn with_beat<T>(
        &mut self,
        work: impl FnOnce(&mut Incoming, Beat<'_>) -> Result<T, Rejected>,
    ) -> Result<T, Rejected> {
        let incoming = self.incoming.as_mut();
        let none = || Rejected::new(Refusal::Confused, "nothing was offered");
        let mut beat = beat(&mut self.line, self.shared);
        work(incoming.ok_or_else(none)?, &mut beat)
    }

    /// What the catalog says about an offer, then what the store does.
    fn begin(&self, offer: &Offer) -> Result<Incoming, Rejected> {
        let snapshot = self.shared.cache.get();
        let known = snapshot.version(offer.version);
        if known.is_none_or(|version| version.image_id != offer.image) {
            let sentence = "the catalog does not know the version, or not yet";
            return Err(Rejected::new(Refusal::Unknown, sentence));
        }
        let pending = self.shared.pending.list();
        let pending = pending.map_err(|e| Rejected::new(Refusal::Store, e.to_string()))?;
        if pending.contains(&offer.version) {
            let sentence = "the version is being made or removed on that server";
            return Err(Rejected::new(Refusal::Busy, sentence));
        }
        self.shared.inbox.begin(offer)
    }

    fn finish(&mut self, expected: [u8; 32]) -> Result<(), Ended> {
        let incoming = self.incoming.take();
        let incoming =
            incoming.ok_or_else(|| Rejected::new(Refusal::Confused, "nothing was offered"))?;
        let (image, version) = (incoming.image(), incoming.version());
        let verdict = {
            let mut beat = beat(&mut self.line, self.shared);
            incoming.finish(expected, &mut beat)?
        };
        match verdict {
            Verdict::Verified => {
                tracing::info!(version.id = %version, image.id = %image, "a version is complete, and equal to its sender's");
                self.line.send(&Message::Verified)?;
            }
            Verdict::Differs(sha256) => {
                tracing::error!(
                    version.id = %version, found = hex(&sha256), expected = hex(&expected),
                    "a received version is not what was sent: it is removed"
                );
                self.line.send(&Message::Differs { sha256 })?;
            }
        }
        Ok(())
    }

    fn drop_replica(&self, version: Uuid) -> Result<(), Rejected> {
        let whole = is_whole(&*self.shared.disks, version)?;
        if whole && !self.shared.others_have(version) {
            let sentence = "no other server that is alive has this version";
            return Err(Rejected::new(Refusal::LastCopy, sentence));
        }
        self.shared.inbox.leave_to_others(version)?;
        tracing::info!(version.id = %version, by = %self.peer, "a replica is removed");
        Ok(())
    }

    /// Says no. `false`: the connection is of no use any more.
    fn refuse(&mut self, rejected: &Rejected) -> Result<bool, Broken> {
        tracing::warn!(server.id = %self.peer, why = rejected.sentence, "a server was refused");
        let incoming = self.incoming.take();
        if rejected.why == Refusal::Full
            && let Some(incoming) = incoming
            && let Err(why) = incoming.abandon()
        {
            tracing::warn!(why = why.sentence, "what was received of a version stays");
        }
        self.file = None;
        self.machine.refused();
        self.line.send(&Message::Refuse {
            why: rejected.why,
            sentence: rejected.sentence.clone(),
        })?;
        Ok(!matches!(
            rejected.why,
            Refusal::Confused | Refusal::Protocol
        ))
    }
}
