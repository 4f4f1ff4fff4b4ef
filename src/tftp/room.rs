//! The files behind the door, as the TFTP server sees them: a name and a visitor go in, an
//! open body comes out, and what became of it is told back.
//!
//! [`boot_room`] is the product's room: `boot::files` and the tracker. The server itself
//! knows only [`Room`], so that it can be driven with any set of files.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::metrics::Refusal;
use crate::boot::files::{Content, Files, NoFile, Visitor};
use crate::boot::path::BootPath;
use crate::boot::session::{Context, Door, Evidence, Observation};
use crate::boot::tracker::Tracker;
use crate::clock::Clock;

/// A request that passed the door.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The name as it came.
    pub name: Vec<u8>,
    /// Who asks.
    pub client: SocketAddrV4,
    /// Which of our addresses was asked.
    pub server: Ipv4Addr,
}

/// What is sent.
#[derive(Debug)]
pub enum Body {
    /// Bytes in memory.
    Memory(bytes::Bytes),
    /// An open file: it is served as it was when it was opened, whatever becomes of its name.
    File {
        /// To read from.
        file: std::fs::File,
        /// Bytes.
        size: u64,
    },
}

impl Body {
    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }
}

/// What becomes of a transfer. A size probe tells nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// The client wants it: it has acknowledged the options or the first block.
    Started,
    /// It has the whole file, as far as can be known: see
    /// [`super::machine::Outcome::Unconfirmed`].
    Sent {
        /// From its request to its last ACK, or to the last packet if that ACK is missing.
        seconds: f64,
    },
    /// It broke off.
    Broken {
        /// Bytes acknowledged.
        sent: u64,
        /// In a few words.
        cause: String,
    },
}

/// Takes the reports of one transfer; called in order, must not block.
pub type Watch = Box<dyn Fn(Progress) + Send + Sync>;

/// Something to send.
pub struct Opened {
    /// The bytes.
    pub body: Body,
    /// Who wants to know; `None`: nobody.
    pub watch: Option<Watch>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

/// Opens what is asked for, or says why not: the reason, and the words for the client.
pub type Room =
    Arc<dyn Fn(Ask) -> BoxFuture<'static, Result<Opened, (Refusal, String)>> + Send + Sync>;

/// The product's room.
#[must_use]
pub fn boot_room(files: Files, tracker: Tracker, clock: Clock) -> Room {
    Arc::new(move |ask| {
        let (files, tracker, clock) = (files.clone(), tracker.clone(), clock.clone());
        Box::pin(async move { open(&files, tracker, clock, ask).await })
    })
}

async fn open(
    files: &Files,
    tracker: Tracker,
    clock: Clock,
    ask: Ask,
) -> Result<Opened, (Refusal, String)> {
    let path =
        BootPath::parse_tftp(&ask.name).map_err(|_| (Refusal::BadPath, "no such file".into()))?;
    let visitor = Visitor {
        client: *ask.client.ip(),
        server: ask.server,
        door: Door::Tftp,
    };
    let content = files
        .open(&path, visitor, None)
        .await
        .map_err(|e| (refusal(e), e.to_string()))?;
    match content {
        Content::Text { body, .. } => Ok(Opened {
            body: Body::Memory(body),
            watch: None,
        }),
        Content::File {
            file,
            size,
            attempt,
            name,
            ..
        } => {
            let asked_at = clock.now();
            let watch = attempt.map(|(_, mac)| -> Watch {
                Box::new(move |progress| {
                    let file = name.clone();
                    let door = Door::Tftp;
                    let (at, what) = match progress {
                        // The timeline wants the request's time, though only the first ACK
                        // tells a request from a size probe.
                        Progress::Started => (asked_at, Evidence::FileStarted { file, door, size }),
                        Progress::Sent { seconds } => (
                            clock.now(),
                            Evidence::FileSent {
                                file,
                                door,
                                size,
                                seconds,
                            },
                        ),
                        Progress::Broken { sent, cause } => (
                            clock.now(),
                            Evidence::FileBroken {
                                file,
                                door,
                                sent,
                                size,
                                cause,
                            },
                        ),
                    };
                    tracker.observe(Observation {
                        mac,
                        at,
                        what,
                        context: Context {
                            client_ip: Some(visitor.client),
                            server_ip: Some(visitor.server),
                            ..Context::default()
                        },
                    });
                })
            });
            Ok(Opened {
                body: Body::File { file, size },
                watch,
            })
        }
        Content::Noted => Err((Refusal::Report, "reports go by HTTP".into())),
    }
}

const fn refusal(why: NoFile) -> Refusal {
    match why {
        NoFile::BadPath => Refusal::BadPath,
        NoFile::NoLoader => Refusal::NoLoader,
        NoFile::BadToken => Refusal::BadToken,
        NoFile::Over => Refusal::Over,
        NoFile::NotBooting => Refusal::NotBooting,
        NoFile::NoSuchItem => Refusal::NoSuchItem,
        NoFile::Unreadable => Refusal::Unreadable,
    }
}
