//! Serves one disk to whoever asks, for benchmarks: `serve_disk nbd PORT BASE [clone]`. `BASE`
//! is `memory`, or a raw file; with `clone` the disk is a clone of it. It has no secrets, and
//! fences nobody: several connections see one disk.

use std::env;
use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use dls::boot::disks::{Attachment, ChapSecrets, DiskDoor, Login, NoDisk, Proof};
use dls::export::nbd::{MultiConn, NbdLimits, NbdMetrics, NbdServer};
use dls::model::DiskIdentity;
use dls::storage::memory::Memory;
use dls::storage::{
    Access, BlockDevice, BlockError, DeviceInfo, Durability, Extent, ExtentKind, Storage, Volume,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A door that gives its one disk to all.
#[derive(Debug)]
struct Open(Arc<dyn BlockDevice>);

impl DiskDoor for Open {
    fn secrets(&self, _: &str) -> Option<ChapSecrets> {
        None
    }

    fn visible(&self, _: &str) -> Option<DiskIdentity> {
        None
    }

    fn open_to_all(&self) -> bool {
        true
    }

    fn describe(&self, _: &Proof) -> Result<Option<DeviceInfo>, NoDisk> {
        Ok(Some(self.0.info()))
    }

    fn attach(&self, _: Login) -> Result<Attachment, NoDisk> {
        let owner = Uuid::nil();
        Ok(Attachment::new(
            DiskIdentity { owner },
            owner,
            self.0.clone(),
            Arc::default(),
            Box::new(|_| {}),
        ))
    }
}

/// A raw file as it is.
#[derive(Debug)]
struct Plain {
    file: File,
    size: u64,
}

impl Plain {
    fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("{}", path.display()))?;
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }
}

impl BlockDevice for Plain {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            size: self.size,
            preferred_block: 4096,
            read_only: false,
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BlockError> {
        Ok(self.file.read_exact_at(buffer, offset)?)
    }

    fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), BlockError> {
        self.file.write_all_at(data, offset)?;
        match durability {
            Durability::Volatile => Ok(()),
            Durability::Fua => self.flush(),
        }
    }

    fn flush(&self) -> Result<(), BlockError> {
        Ok(self.file.sync_data()?)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        self.write_zeroes(offset, length, false, Durability::Volatile)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        _keep_space: bool,
        durability: Durability,
    ) -> Result<(), BlockError> {
        let zeroes = vec![0; 64 * 1024];
        let mut done = 0;
        while done < length {
            let here = usize::try_from(length - done).map_or(zeroes.len(), |n| n.min(zeroes.len()));
            self.file.write_all_at(&zeroes[..here], offset + done)?;
            done += here as u64;
        }
        match durability {
            Durability::Volatile => Ok(()),
            Durability::Fua => self.flush(),
        }
    }

    fn extents(&self, _: u64, length: u64, _: usize) -> Result<Vec<Extent>, BlockError> {
        let kind = ExtentKind::Data;
        Ok(vec![Extent { length, kind }])
    }
}

fn disk(base: &str) -> Result<Arc<dyn BlockDevice>> {
    if base == "memory" {
        let (store, volume) = (Memory::new(), Volume::Image(Uuid::nil()));
        store.create(volume, 1 << 30)?;
        return Ok(store.open(volume, Access::Write)?);
    }
    Ok(Arc::new(Plain::open(Path::new(base))?))
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [protocol, port, base] = arguments[..] else {
        bail!("usage: serve_disk nbd PORT memory|FILE");
    };
    let disk = disk(base)?;
    let listen = SocketAddr::from(([127, 0, 0, 1], port.parse()?));
    let door: Arc<dyn DiskDoor> = Arc::new(Open(disk));
    let cancel = CancellationToken::new();
    match protocol {
        "nbd" => {
            let limits = NbdLimits {
                multi_conn: MultiConn::Advertised,
                ..NbdLimits::default()
            };
            let server = NbdServer::bind(listen).await?;
            println!("{}", server.local_addr());
            server
                .run(door, NbdMetrics::default(), limits, cancel)
                .await;
        }
        other => bail!("no protocol {other}"),
    }
    Ok(())
}
