//! A target with one disk, and the door to it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use dls::boot::disks::{Attachment, ChapSecrets, DiskDoor, Line, Login, NoDisk, Proof};
use dls::export::iscsi::{IscsiLimits, IscsiMetrics, IscsiServer};
use dls::model::DiskIdentity;
use dls::storage::{
    Access, BlockDevice, BlockError, DeviceInfo, Durability, Extent, Storage, Volume,
};

use dls::storage::memory::Memory;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The name that proves itself, and its secrets.
pub const NAME: &str = "0123456789abcdef0123456789abcdef";
pub const MACHINE: &str = "machine-secret-x";
pub const SERVER: &str = "server-secret-xx";

pub const DISK: DiskIdentity = DiskIdentity {
    owner: Uuid::from_u128(0x1234_5678_9abc_4def_8123_4567_89ab_cdef),
};

/// Bytes of the disk.
pub const SIZE: u64 = 64 << 20;

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    Nothing,
    Io,
    Full,
}

/// A disk that fails when it is told to.
#[derive(Debug)]
pub struct Faulty {
    pub inner: Arc<dyn BlockDevice>,
    fault: AtomicU8,
}

impl Faulty {
    pub fn set(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
    }

    fn check(&self, writes: bool) -> Result<(), BlockError> {
        match self.fault.load(Ordering::SeqCst) {
            1 => Err(BlockError::Io(std::io::Error::from_raw_os_error(5))),
            2 if writes => Err(BlockError::NoSpace),
            _ => Ok(()),
        }
    }
}

impl BlockDevice for Faulty {
    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BlockError> {
        self.check(false)?;
        self.inner.read_at(offset, buffer)
    }

    fn try_read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, BlockError> {
        // Every other page is "cold": both ways to an answer are gone.
        if (offset / 65536) % 2 == 1 {
            return Ok(false);
        }
        self.read_at(offset, buffer).map(|()| true)
    }

    fn write_at(&self, offset: u64, data: &[u8], how: Durability) -> Result<(), BlockError> {
        self.check(true)?;
        self.inner.write_at(offset, data, how)
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.check(true)?;
        self.inner.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        self.check(true)?;
        self.inner.discard(offset, length)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        keep: bool,
        how: Durability,
    ) -> Result<(), BlockError> {
        self.check(true)?;
        self.inner.write_zeroes(offset, length, keep, how)
    }

    fn extents(&self, offset: u64, length: u64, most: usize) -> Result<Vec<Extent>, BlockError> {
        self.check(false)?;
        self.inner.extents(offset, length, most)
    }
}

#[derive(Debug)]
struct Door {
    open: bool,
    disks: Vec<(DiskIdentity, Arc<Faulty>)>,
    lines: Lines,
}

/// The connections that got a disk, in their order.
pub type Lines = Arc<Mutex<Vec<Arc<dyn Line>>>>;

impl DiskDoor for Door {
    fn secrets(&self, name: &str) -> Option<ChapSecrets> {
        (name == NAME).then(|| ChapSecrets {
            machine: MACHINE.into(),
            server_name: "dls".into(),
            server: SERVER.into(),
        })
    }

    fn visible(&self, name: &str) -> Option<DiskIdentity> {
        (name == NAME).then_some(DISK)
    }

    fn open_to_all(&self) -> bool {
        self.open
    }

    fn attach(&self, login: Login) -> Result<Attachment, NoDisk> {
        if !self.open {
            assert_eq!(login.proof, Proof::Chap { name: NAME.into() });
        }
        let target = login.target.ok_or(NoDisk::OtherDisk)?;
        let found = self.disks.iter().find(|(disk, _)| *disk == target);
        let (_, device) = found.ok_or(NoDisk::OtherDisk)?;
        self.lines.lock().unwrap().push(login.line);
        let gate = Arc::default();
        let boot = Uuid::from_u128(9);
        let witness = Box::new(|_| {});
        Ok(Attachment::new(target, boot, device.clone(), gate, witness))
    }
}

/// Limits for tests: many connections come from one address.
pub fn limits() -> IscsiLimits {
    IscsiLimits {
        logins_per_address: 4096,
        ..IscsiLimits::default()
    }
}

/// A target that runs until it is dropped.
pub struct House {
    pub address: SocketAddr,
    pub disk: Arc<Faulty>,
    /// A second disk, of another machine.
    pub other: DiskIdentity,
    pub metrics: IscsiMetrics,
    pub lines: Lines,
    pub cancel: CancellationToken,
    runtime: Option<tokio::runtime::Runtime>,
}

impl House {
    /// One that lets everybody in, or only who proves to be [`NAME`].
    pub fn new(open: bool) -> Self {
        Self::with(open, limits())
    }

    pub fn with(open: bool, limits: IscsiLimits) -> Self {
        let store = Memory::new();
        let make = |n| {
            let volume = Volume::Image(Uuid::from_u128(n));
            store.create(volume, SIZE).unwrap();
            Arc::new(Faulty {
                inner: store.open(volume, Access::Write).unwrap(),
                fault: AtomicU8::new(0),
            })
        };
        let other = DiskIdentity {
            owner: Uuid::from_u128(77),
        };
        let (disk, second) = (make(1), make(2));
        let lines = Lines::default();
        let door = Door {
            open,
            disks: vec![(DISK, disk.clone()), (other, second)],
            lines: lines.clone(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = runtime.block_on(IscsiServer::bind(listen)).unwrap();
        let (address, cancel) = (server.local_addr(), CancellationToken::new());
        let metrics = IscsiMetrics::default();
        runtime.spawn(server.run(Arc::new(door), metrics.clone(), limits, cancel.clone()));
        Self {
            address,
            disk,
            other,
            metrics,
            lines,
            cancel,
            runtime: Some(runtime),
        }
    }

    /// `iscsi://127.0.0.1:PORT/IQN/0`, with a user before the host.
    pub fn url(&self, user: &str) -> String {
        format!("iscsi://{user}{}/{}/0", self.address, DISK.iqn())
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(std::time::Duration::from_secs(5));
        }
    }
}
