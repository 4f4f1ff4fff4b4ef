//! The product's NBD server for a store's clones, and a client for one request at a time: fixed
//! newstyle, simple replies. What is wrong ends it.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dls::boot::disks::{Attachment, ChapSecrets, DiskDoor, Login, NoDisk, Proof};
use dls::export::nbd::{NbdLimits, NbdMetrics, NbdServer};
use dls::model::DiskIdentity;
use dls::storage::zfs::ZfsStore;
use dls::storage::{Access, BlockDevice, Storage, VolumeError};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{base, session};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FUA: u16 = 1;

/// A door that gives each name its clone, made when it is asked for first.
#[derive(Debug)]
struct Door {
    store: ZfsStore,
    open: Mutex<HashMap<u128, Arc<dyn BlockDevice>>>,
}

impl DiskDoor for Door {
    fn secrets(&self, _: &str) -> Option<ChapSecrets> {
        None
    }

    fn visible(&self, _: &str) -> Option<DiskIdentity> {
        None
    }

    fn attach(&self, login: Login) -> Result<Attachment, NoDisk> {
        let Proof::ExportName(name) = &login.proof else {
            return Err(NoDisk::WrongProof);
        };
        let number: u128 = name.parse().map_err(|_| NoDisk::WrongProof)?;
        let volume = session(number);
        let failed = |e: VolumeError| NoDisk::Store(e.to_string());
        let disk = match self.store.open(volume, Access::Write) {
            Err(VolumeError::Missing(_)) => {
                self.store.clone_volume(&base(1), volume).map_err(failed)?;
                self.store.open(volume, Access::Write).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
        self.open.lock().unwrap().insert(number, disk.clone());
        let owner = Uuid::from_u128(number);
        Ok(Attachment::new(
            DiskIdentity { owner },
            owner,
            disk,
            Arc::default(),
            Box::new(|_| {}),
        ))
    }
}

/// The server, serving clones of image 1 by their numbers.
pub(super) struct Exports {
    pub(super) address: SocketAddr,
    door: Arc<Door>,
    cancel: CancellationToken,
    runtime: Runtime,
}

impl Exports {
    pub(super) fn of(store: &ZfsStore) -> Self {
        let runtime = Runtime::new().unwrap();
        let server = runtime
            .block_on(NbdServer::bind("127.0.0.1:0".parse().unwrap()))
            .unwrap();
        let (address, cancel) = (server.local_addr(), CancellationToken::new());
        let door = Arc::new(Door {
            store: store.clone(),
            open: Mutex::default(),
        });
        let limits = NbdLimits {
            handshake: Duration::from_secs(200),
            handshakes_per_address: 4096,
            ..NbdLimits::default()
        };
        runtime.spawn(server.run(door.clone(), NbdMetrics::default(), limits, cancel.clone()));
        Self {
            address,
            door,
            cancel,
            runtime,
        }
    }

    /// Lets go of the disks; connections' threads do so a moment after their clients have left.
    pub(super) fn close_all(&self) {
        self.door.open.lock().unwrap().clear();
    }

    pub(super) fn end(self) {
        self.cancel.cancel();
        self.close_all();
        self.runtime.shutdown_timeout(Duration::from_secs(20));
    }
}

/// A connection with a disk.
pub(super) struct Client {
    line: TcpStream,
    cookie: u64,
}

impl Client {
    /// Connects and takes the export of that name.
    pub(super) fn take(address: SocketAddr, export: &str) -> io::Result<Self> {
        let mut line = TcpStream::connect(address)?;
        line.set_nodelay(true)?;
        line.set_read_timeout(Some(Duration::from_secs(240)))?;
        let mut greeting = [0; 18];
        line.read_exact(&mut greeting)?;
        if greeting[..16] != *b"NBDMAGICIHAVEOPT" {
            return Err(io::Error::other("it greets in another way"));
        }
        let name = export.as_bytes();
        let length = name.len() as u32;
        let mut option = 3_u32.to_be_bytes().to_vec();
        option.extend_from_slice(b"IHAVEOPT");
        option.extend_from_slice(&7_u32.to_be_bytes());
        option.extend_from_slice(&(length + 6).to_be_bytes());
        option.extend_from_slice(&length.to_be_bytes());
        option.extend_from_slice(name);
        option.extend_from_slice(&[0; 2]);
        line.write_all(&option)?;
        loop {
            let mut head = [0; 20];
            line.read_exact(&mut head)?;
            let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
            let mut said = vec![0; number(16) as usize];
            line.read_exact(&mut said)?;
            match number(12) {
                1 => return Ok(Self { line, cookie: 0 }),
                kind if kind >> 31 == 1 => {
                    let said = String::from_utf8_lossy(&said).into_owned();
                    return Err(io::Error::other(said));
                }
                _ => {}
            }
        }
    }

    fn ask(&mut self, command: u16, flags: u16, at: u64, length: usize) -> io::Result<()> {
        self.cookie += 1;
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend_from_slice(&flags.to_be_bytes());
        request.extend_from_slice(&command.to_be_bytes());
        request.extend_from_slice(&self.cookie.to_be_bytes());
        request.extend_from_slice(&at.to_be_bytes());
        request.extend_from_slice(&(length as u32).to_be_bytes());
        self.line.write_all(&request)
    }

    fn answer(&mut self) -> io::Result<()> {
        let mut head = [0; 16];
        self.line.read_exact(&mut head)?;
        let right = head[..4] == 0x6744_6698_u32.to_be_bytes();
        if !right || head[8..] != self.cookie.to_be_bytes() {
            return Err(io::Error::other(format!("it answers {head:x?}")));
        }
        match i32::from_be_bytes(head[4..8].try_into().unwrap()) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    pub(super) fn read(&mut self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        self.ask(READ, 0, at, length)?;
        self.answer()?;
        let mut data = vec![0; length];
        self.line.read_exact(&mut data)?;
        Ok(data)
    }

    /// Written for good when it returns.
    pub(super) fn write(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        self.ask(WRITE, FUA, at, data.len())?;
        self.line.write_all(data)?;
        self.answer()
    }

    /// Says goodbye.
    pub(super) fn leave(mut self) -> io::Result<()> {
        self.ask(DISC, 0, 0, 0)
    }
}
