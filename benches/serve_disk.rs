//! Serves one disk to whoever asks, for benchmarks: `serve_disk nbd|iscsi PORT BASE [clone]`.
//! `BASE` is `memory`, or a raw file; with `clone` the disk is a clone of it. It has no secrets, and
//! fences nobody: several connections see one disk.
//!
//! `serve_disk clones BASE` times the making and opening of clones, `serve_disk import FILE`
//! (a qcow2) an import; both print JSON. Stores are made in `TMPDIR` and gone afterwards.

use std::env;
use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dls::boot::disks::{Attachment, ChapSecrets, DiskDoor, Login, NoDisk, Proof};
use dls::clock::Clock;
use dls::export::iscsi::{IscsiLimits, IscsiMetrics, IscsiServer};
use dls::export::nbd::{MultiConn, NbdLimits, NbdMetrics, NbdServer};
use dls::model::DiskIdentity;
use dls::storage::memory::Memory;
use dls::storage::{
    Access, BlockDevice, BlockError, DeviceInfo, DiskFormat, DiskStore, Durability, Extent,
    ExtentKind, SnapshotId, Storage, Volume,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Bytes of tables that the store may keep in memory.
const CACHE: usize = 64 << 20;

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

/// A store with a raw file as an image, and the snapshot that clones come from.
fn imported(base: &Path, folder: &Path) -> Result<(DiskStore, SnapshotId)> {
    let store = DiskStore::open(folder, CACHE)?;
    let image = Uuid::from_u128(1);
    let origin = SnapshotId::base(image);
    let cancel = CancellationToken::new();
    let volume = Volume::Image(image);
    store.import(volume, base, DiskFormat::Raw, &mut |_| {}, &cancel)?;
    if !store
        .info(volume)?
        .is_some_and(|i| i.snapshots.contains(&origin.name))
    {
        store.snapshot(&origin)?;
    }
    Ok((store, origin))
}

/// A clone of a raw file.
fn clone(base: &Path, folder: &Path) -> Result<Arc<dyn BlockDevice>> {
    let (store, origin) = imported(base, folder)?;
    let clone = Volume::Session(Uuid::from_u128(2));
    store.clone_volume(&origin, clone)?;
    Ok(store.open(clone, Access::Write)?)
}

/// Milliseconds for making and opening a clone, beside few others and beside a thousand.
fn clones(base: &Path, folder: &Path) -> Result<()> {
    let (store, origin) = imported(base, folder)?;
    let clock = Clock::system();
    let mut open = Vec::new();
    let mut times = Vec::new();
    for number in 0..1020 {
        let clone = Volume::Session(Uuid::from_u128(number));
        let start = clock.instant();
        store.clone_volume(&origin, clone)?;
        let made = start.elapsed();
        open.push(store.open(clone, Access::Write)?);
        times.push((made, start.elapsed() - made));
    }
    let median = |of: &[(Duration, Duration)]| {
        let mut made: Vec<_> = of.iter().map(|t| t.0.as_secs_f64() * 1000.0).collect();
        let mut opened: Vec<_> = of.iter().map(|t| t.1.as_secs_f64() * 1000.0).collect();
        made.sort_by(f64::total_cmp);
        opened.sort_by(f64::total_cmp);
        format!(
            "[{:.3}, {:.3}]",
            made[made.len() / 2],
            opened[opened.len() / 2]
        )
    };
    println!(
        "{{\"1\": {}, \"1000\": {}}}",
        median(&times[..20]),
        median(&times[1000..])
    );
    Ok(())
}

/// Seconds for an import, until it is hashed, verified and safe.
fn import(source: &Path, folder: &Path) -> Result<()> {
    let store = DiskStore::open(folder, CACHE)?;
    let (clock, cancel) = (Clock::system(), CancellationToken::new());
    let volume = Volume::Image(Uuid::from_u128(1));
    let start = clock.instant();
    store.import(volume, source, DiskFormat::Qcow2, &mut |_| {}, &cancel)?;
    println!("{:.3}", start.elapsed().as_secs_f64());
    Ok(())
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
    if arguments == ["modes"] {
        // For the script: what this build can do.
        println!("nbd iscsi clone");
        return Ok(());
    }
    // Goes when this ends by SIGTERM.
    let folder = tempfile::tempdir()?;
    let (protocol, port, disk) = match arguments[..] {
        ["clones", base] => return clones(Path::new(base), folder.path()),
        ["import", source] => return import(Path::new(source), folder.path()),
        [protocol, port, base] => (protocol, port, disk(base)?),
        [protocol, port, base, "clone"] => (protocol, port, clone(Path::new(base), folder.path())?),
        _ => bail!("usage: serve_disk nbd|iscsi PORT memory|FILE [clone]"),
    };
    let listen = SocketAddr::from(([127, 0, 0, 1], port.parse()?));
    let door: Arc<dyn DiskDoor> = Arc::new(Open(disk));
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let mut ended = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        ended.recv().await;
        stop.cancel();
    });
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
        "iscsi" => {
            let server = IscsiServer::bind(listen).await?;
            println!("{}", server.local_addr());
            let (metrics, limits) = (IscsiMetrics::default(), IscsiLimits::default());
            server.run(door, metrics, limits, cancel).await;
        }
        other => bail!("no protocol {other}"),
    }
    Ok(())
}
