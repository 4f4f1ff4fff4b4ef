//! The sending side of one connection: a version of an image to a server, from where that left
//! off, as the difference to what it has. Blocks. Whether it is tried again is `desk`'s to say.

mod stream;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;
use super::content::{self, Piece};
use super::line::{Broken, Line};
use super::server::{ALIVE, SILENCE};
use super::wire::{Base, MOST_BASES, MOST_DATA, Message, PROTOCOL};
use crate::clock::Clock;
use crate::model::{Server, hex};
use crate::storage::{BlockDevice, Start, VolumeError};
use stream::Asked;

/// For a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// After so many bytes of content the receiver makes durable what it has.
const SYNC_EVERY: u64 = 8 << 20;

/// What is to be sent to whom.
#[derive(Debug, Clone)]
pub(super) struct Parcel {
    pub(super) image: Uuid,
    pub(super) version: Uuid,
    pub(super) to: Server,
}

/// How far it is; others look at it.
#[derive(Debug, Default)]
pub(super) struct Odometer {
    /// Bytes that the receiver has safely.
    pub(super) done: AtomicU64,
    /// Bytes that are to be sent in all.
    pub(super) total: AtomicU64,
    /// Bytes of content that went over the line, in all tries of this run.
    pub(super) sent: AtomicU64,
}

impl Odometer {
    /// Bytes that are there, and of how many, as rows have them.
    pub(super) fn read(&self) -> (i64, i64) {
        let bytes = |n: &AtomicU64| i64::try_from(n.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        (bytes(&self.done), bytes(&self.total))
    }
}

/// Why it did not come to its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// It may go better in a moment.
    Passing(String),
    /// It will not.
    Final(String),
    /// Somebody gave it up, or this server stops.
    Cancelled,
}

impl From<Broken> for Stop {
    fn from(error: Broken) -> Self {
        Self::Passing(error.to_string())
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::from(Broken::from(error))
    }
}

impl From<VolumeError> for Stop {
    fn from(error: VolumeError) -> Self {
        match error {
            VolumeError::Cancelled => Self::Cancelled,
            VolumeError::Missing(_) => Self::Final(format!("it can't be read here: {error}")),
            other => Self::Passing(format!("it can't be read here: {other}")),
        }
    }
}

/// A connection to a server that has proved who it is.
pub(super) type Way = Line<StreamOwned<ClientConnection, TcpStream>>;

/// Connects to a server, by one of its addresses, and greets it.
pub(super) fn connect(
    shared: &Shared,
    to: &Server,
    cancel: &CancellationToken,
) -> Result<Way, Stop> {
    let contact = &to.contact;
    if !to.alive {
        return Err(Stop::Passing(format!(
            "server {} gives no sign of life",
            to.name
        )));
    }
    let (Some(port), Some(theirs)) = (contact.replication_port, &contact.certificate_sha256) else {
        return Err(Stop::Passing(format!(
            "server {} takes no versions: it says no port and no certificate",
            to.name
        )));
    };
    let mut last = None;
    for address in &contact.replication_addresses {
        match TcpStream::connect_timeout(&SocketAddr::from((*address, port)), CONNECT) {
            Ok(stream) => return greet(shared, to, (theirs, stream), cancel),
            Err(error) => last = Some(error),
        }
    }
    let why = last.map_or_else(|| "it says no address".to_owned(), |e| e.to_string());
    Err(Stop::Passing(format!(
        "server {} can't be reached: {why}",
        to.name
    )))
}

fn greet(
    shared: &Shared,
    to: &Server,
    (theirs, mut stream): (&str, TcpStream),
    cancel: &CancellationToken,
) -> Result<Way, Stop> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let theirs = theirs.to_owned();
    let unfit = |e: &dyn std::fmt::Display| Stop::Passing(format!("TLS with {}: {e}", to.name));
    let known = Arc::new(move |shown: &str| shown == theirs);
    let config = shared.identity.client(known).map_err(|e| unfit(&e))?;
    // No name is looked at: the certificate is known as a whole.
    let name = ServerName::from(std::net::IpAddr::from([0, 0, 0, 0]));
    let mut tls = ClientConnection::new(config, name).map_err(|e| unfit(&e))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).map_err(|e| unfit(&e))?;
    }
    let mut line = Line::new(StreamOwned::new(tls, stream));
    line.send(&Message::Hello {
        protocol: PROTOCOL,
        server: shared.server_id,
    })?;
    match answer(&mut line, cancel)? {
        Message::Welcome { server } if server == to.id => Ok(line),
        other => Err(unexpected(&other)),
    }
}

/// The next frame that says something; a refusal is an end.
pub(super) fn answer<S: Read + Write>(
    line: &mut Line<S>,
    cancel: &CancellationToken,
) -> Result<Message, Stop> {
    loop {
        if cancel.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        match line.receive()? {
            Message::Working => {}
            Message::Refuse { why, sentence } if why.passes() => {
                return Err(Stop::Passing(sentence));
            }
            Message::Refuse { sentence, .. } => return Err(Stop::Final(sentence)),
            other => return Ok(other),
        }
    }
}

pub(super) fn unexpected(message: &Message) -> Stop {
    let kind = format!("{message:?}");
    let kind = kind.split([' ', '{']).next().unwrap_or_default();
    Stop::Passing(format!(
        "the other server answered what was not asked: {kind}"
    ))
}

/// Says each second that we are there, while something takes long.
struct Pulse<'a> {
    line: &'a mut Way,
    clock: &'a Clock,
    cancel: &'a CancellationToken,
    last: Instant,
}

impl<'a> Pulse<'a> {
    fn new(line: &'a mut Way, clock: &'a Clock, cancel: &'a CancellationToken) -> Self {
        let last = clock.instant();
        Self {
            line,
            clock,
            cancel,
            last,
        }
    }

    fn beat(&mut self) -> Result<(), VolumeError> {
        if self.cancel.is_cancelled() {
            return Err(VolumeError::Cancelled);
        }
        let now = self.clock.instant();
        if now.saturating_duration_since(self.last) >= ALIVE {
            self.last = now;
            self.line
                .send(&Message::Working)
                .map_err(|source| VolumeError::Io {
                    what: "the connection".to_owned(),
                    source,
                })?;
        }
        Ok(())
    }
}

/// Sends a version; returns the hash that both sides found in their stores.
pub(super) fn send(
    shared: &Arc<Shared>,
    parcel: &Parcel,
    meter: &Odometer,
    cancel: &CancellationToken,
) -> Result<String, Stop> {
    let Parcel { image, version, to } = parcel;
    let mut line = connect(shared, to, cancel)?;
    send_files(shared, *image, &mut line, cancel)?;
    let store = &*shared.disks;
    let device = content::open(store, *version)?;
    let size = device.info().size;
    let (point, starts) = points(shared, *version);
    let bases = offered(&shared.bases(*image, *version)?, &starts);
    line.send(&Message::Offer {
        image: *image,
        version: *version,
        size,
        point,
        bases: bases.iter().copied().take(MOST_BASES).collect(),
    })?;
    let accepted = answer(&mut line, cancel)?;
    // Beside the sending: what is sent is read once more for its hash.
    let summing = {
        let (disks, version, cancel) = (shared.disks.clone(), *version, cancel.child_token());
        let summing = move || content::hash(&*disks, version, &mut content::until(&cancel));
        let thread = std::thread::Builder::new().name("dls-hash".to_owned());
        move || thread.spawn(summing)
    };
    let summing = match accepted {
        // All is there, and only compared.
        Message::Accept { through, .. } if through == size => summing()?,
        Message::Accept { base, through } => {
            let known = |base| bases.iter().any(|b| b.version == base && b.whole);
            if base.is_some_and(|base| !known(base)) || through > size {
                return Err(Stop::Passing(
                    "the other server accepted what was not offered".to_owned(),
                ));
            }
            let summing = summing()?;
            let way = (&mut line, meter, cancel);
            send_blocks(shared, (*version, &*device), (base, through), way)?;
            summing
        }
        Message::AcceptStream { base, words } => {
            let none = || Stop::Passing("the other server wants a stream".to_owned());
            let streams = store.streams().filter(|_| point != 0).ok_or_else(none)?;
            let summing = summing()?;
            let asked = Asked {
                version: *version,
                base,
                words,
            };
            let how = (meter, cancel);
            stream::send(shared, (streams, &starts), asked, &mut line, how)?;
            summing
        }
        other => return Err(unexpected(&other)),
    };
    drop(device);
    let sum = {
        let mut pulse = Pulse::new(&mut line, &shared.clock, cancel);
        while !summing.is_finished() {
            pulse.beat()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        let summed = summing.join();
        summed.map_err(|_| Stop::Passing("hashing broke".to_owned()))??
    };
    line.send(&Message::End { sha256: sum })?;
    match answer(&mut line, cancel)? {
        Message::Verified => Ok(hex(&sum)),
        Message::Differs { sha256 } => Err(Stop::Final(format!(
            "what the server has stored is not what was sent: its SHA-256 is {}, not {}",
            hex(&sha256),
            hex(&sum)
        ))),
        other => Err(unexpected(&other)),
    }
}

/// The point of a version, and what a stream of it can begin at, where the store has such
/// things. A store that can't tell has the version sent block by block.
fn points(shared: &Shared, version: Uuid) -> (u64, Vec<Start>) {
    let Some(streams) = shared.disks.streams() else {
        return (0, Vec::new());
    };
    let told = streams
        .point(version)
        .and_then(|point| Ok((point.unwrap_or(0), streams.starts(version)?)));
    told.unwrap_or_else(|error| {
        tracing::warn!(version.id = %version, %error, "a version can't be sent as a stream");
        (0, Vec::new())
    })
}

/// What is offered to begin at: first where streams can, nearest first, then what else there is.
fn offered(whole: &[Uuid], starts: &[Start]) -> Vec<Base> {
    let first = starts.iter().map(|start| Base {
        version: start.version,
        point: start.point,
        whole: whole.contains(&start.version),
    });
    let others = whole
        .iter()
        .filter(|version| starts.iter().all(|s| s.version != **version));
    let others = others.map(|version| Base {
        version: *version,
        point: 0,
        whole: true,
    });
    first.chain(others).collect()
}

/// Sends blocks that differ from a base, from an offset on.
fn send_blocks(
    shared: &Shared,
    (version, device): (Uuid, &dyn BlockDevice),
    (base, through): (Option<Uuid>, u64),
    (line, meter, cancel): (&mut Way, &Odometer, &CancellationToken),
) -> Result<(), Stop> {
    let size = device.info().size;
    let pieces = {
        let mut pulse = Pulse::new(line, &shared.clock, cancel);
        content::differences(&*shared.disks, base, version, &mut || pulse.beat())?
    };
    let length = |pieces: &[Piece]| pieces.iter().map(|p| p.length).sum::<u64>();
    let first = pieces.partition_point(|p| p.offset + p.length <= through);
    let (there, rest) = pieces.split_at(first);
    meter.total.store(length(&pieces), Ordering::Relaxed);
    meter.done.store(length(there), Ordering::Relaxed);
    let mut stage = Stage {
        line,
        meter,
        cancel,
        since: 0,
        waiting: None,
    };
    let mut buffer = vec![0; MOST_DATA];
    for piece in rest {
        if cancel.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        if piece.zero {
            stage.zero(piece)?;
        } else {
            let long = usize::try_from(piece.length).unwrap_or(usize::MAX);
            let part = buffer.get_mut(..long).unwrap_or_default();
            device
                .read_at(piece.offset, part)
                .map_err(VolumeError::from)?;
            stage.data(piece, part)?;
        }
    }
    stage.sync(size)?;
    stage.settle()
}

/// Content on its way, with at most one request to sync unanswered.
struct Stage<'a> {
    line: &'a mut Way,
    meter: &'a Odometer,
    cancel: &'a CancellationToken,
    /// Bytes since the last request to sync.
    since: u64,
    /// What the unanswered request covers: the offset, and bytes.
    waiting: Option<(u64, u64)>,
}

impl Stage<'_> {
    fn zero(&mut self, piece: &Piece) -> Result<(), Stop> {
        let Piece { offset, length, .. } = *piece;
        self.line.send(&Message::Zero { offset, length })?;
        self.sent(piece)
    }

    fn data(&mut self, piece: &Piece, bytes: &[u8]) -> Result<(), Stop> {
        let offset = piece.offset;
        let bytes = bytes.to_vec();
        let long = bytes.len() as u64;
        self.line.send(&Message::Data { offset, bytes })?;
        self.meter.sent.fetch_add(long, Ordering::Relaxed);
        self.sent(piece)
    }

    fn sent(&mut self, piece: &Piece) -> Result<(), Stop> {
        self.since += piece.length;
        if self.since >= SYNC_EVERY {
            self.sync(piece.offset + piece.length)?;
        }
        Ok(())
    }

    fn sync(&mut self, through: u64) -> Result<(), Stop> {
        self.settle()?;
        self.line.send(&Message::Sync { through })?;
        self.waiting = Some((through, std::mem::take(&mut self.since)));
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Stop> {
        let Some((expected, bytes)) = self.waiting.take() else {
            return Ok(());
        };
        match answer(self.line, self.cancel)? {
            Message::Synced { through } if through == expected => {
                self.meter.done.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// The image's kernel and initrds, where the receiver has not got them.
fn send_files(
    shared: &Shared,
    image: Uuid,
    line: &mut Way,
    cancel: &CancellationToken,
) -> Result<(), Stop> {
    for number in 0..=u16::MAX {
        let Some(file) = shared.file(image, number) else {
            break;
        };
        line.send(&Message::File { image, number })?;
        match answer(line, cancel)? {
            Message::Skip => continue,
            Message::Want => {}
            other => return Err(unexpected(&other)),
        }
        let opened =
            tokio::runtime::Handle::current().block_on(shared.storage.open_file(&file.path));
        let unreadable = |e: &dyn std::fmt::Display| {
            Stop::Final(format!(
                "the image's file {} can't be read here: {e}",
                file.path
            ))
        };
        let (mut source, _) = opened.map_err(|e| unreadable(&e))?;
        let mut buffer = vec![0; MOST_DATA];
        loop {
            let read = source.read(&mut buffer).map_err(|e| unreadable(&e))?;
            let bytes = buffer.get(..read).unwrap_or_default().to_vec();
            line.send(&Message::Piece { bytes })?;
            if read == 0 {
                break;
            }
        }
        match answer(line, cancel)? {
            Message::Skip => {}
            other => return Err(unexpected(&other)),
        }
    }
    Ok(())
}

/// Asks a server to remove its replica.
pub(super) fn ask_to_drop(shared: &Shared, to: &Server, version: Uuid) -> Result<(), Stop> {
    let cancel = &shared.cancel;
    let mut line = connect(shared, to, cancel)?;
    line.send(&Message::Drop { version })?;
    match answer(&mut line, cancel)? {
        Message::Dropped => Ok(()),
        other => Err(unexpected(&other)),
    }
}
