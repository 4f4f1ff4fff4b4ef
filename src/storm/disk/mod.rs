//! A machine's disk: login over [`iscsi`] or [`nbd`], then the profile, each byte checked against
//! what the image has and against the machine's own writes, which are read back at the end.

mod iscsi;
mod nbd;
pub(super) mod written;

use std::net::Ipv4Addr;
use std::time::Duration;

use super::fetch::connect;
use super::orders::Disk;
use super::words::Trouble;

/// An open disk.
pub(super) enum Session {
    /// Over iSCSI.
    Iscsi(Box<iscsi::Iscsi>),
    /// Over NBD.
    Nbd(Box<nbd::Nbd>),
}

impl Session {
    /// Connects from the machine's own address and logs in. `fresh`: a number for the session and
    /// the challenge of mutual CHAP.
    pub(super) async fn open(
        own: Option<Ipv4Addr>,
        disk: &Disk,
        fresh: [u64; 3],
    ) -> Result<Self, Trouble> {
        match disk {
            Disk::Iscsi(target) => {
                let stream = connect(own, target.server).await?;
                let session = iscsi::Iscsi::login(stream, target, fresh).await?;
                Ok(Self::Iscsi(Box::new(session)))
            }
            Disk::Nbd(server, export) => {
                let stream = connect(own, *server).await?;
                let session = nbd::Nbd::open(stream, export).await?;
                Ok(Self::Nbd(Box::new(session)))
            }
        }
    }

    /// Bytes of the disk.
    pub(super) const fn size(&self) -> u64 {
        match self {
            Self::Iscsi(session) => session.size(),
            Self::Nbd(session) => session.size(),
        }
    }

    /// Reads as many bytes as there is room for. Multiples of a sector.
    pub(super) async fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Trouble> {
        match self {
            Self::Iscsi(session) => session.read(at, into).await,
            Self::Nbd(session) => session.read(at, into).await,
        }
    }

    /// Writes. Multiples of a sector.
    pub(super) async fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), Trouble> {
        match self {
            Self::Iscsi(session) => session.write(at, bytes).await,
            Self::Nbd(session) => session.write(at, bytes).await,
        }
    }

    /// Everything written is on stable storage.
    pub(super) async fn flush(&mut self) -> Result<(), Trouble> {
        match self {
            Self::Iscsi(session) => session.flush().await,
            Self::Nbd(session) => session.flush().await,
        }
    }

    /// Asks for nothing for so long, and answers what the server asks.
    pub(super) async fn rest(&mut self, pause: Duration) -> Result<(), Trouble> {
        match self {
            Self::Iscsi(session) => session.rest(pause).await,
            Self::Nbd(session) => session.rest(pause).await,
        }
    }

    /// Ends it as a system does that stops; whatever comes of that.
    pub(super) async fn close(self) {
        match self {
            Self::Iscsi(session) => session.close().await,
            Self::Nbd(session) => session.close().await,
        }
    }
}
