//! Open layers. Each file is open once, whoever uses it, and closes cleanly when the last user
//! is gone; who wants it meanwhile waits until it has.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use super::manifest::{Form, LayerName};
use crate::storage::directory::sync_folder;
use crate::storage::layer::cow::{self, Layer, Surroundings};
use crate::storage::layer::format::{Below, CLUSTER};
use crate::storage::layer::medium::{Medium, Stored};
use crate::storage::layer::raw::Raw;
use crate::storage::layer::{Content, Fault, Wait};
use crate::storage::{Extent, Lent, VolumeError};

/// All layers of a store.
#[derive(Debug)]
pub(super) struct Shelf {
    folder: PathBuf,
    with: Surroundings,
    /// A dead entry is one that is being opened or closed.
    open: Mutex<HashMap<LayerName, Weak<OpenLayer>>>,
    moved: Condvar,
}

/// A layer that is open.
#[derive(Debug)]
pub(super) struct OpenLayer {
    pub(super) name: LayerName,
    body: Body,
    /// Filling is done by one at a time.
    upkeep: Mutex<()>,
    /// A thread makes a checkpoint.
    relieving: AtomicBool,
    shelf: Arc<Shelf>,
}

#[derive(Debug)]
enum Body {
    Raw(Raw),
    Cow(Box<Layer<Stored>>),
}

/// Is a layer written, or something else's ground?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The volume's top.
    Top,
    /// Frozen.
    Ground,
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o640)
        .open(path)
}

impl Shelf {
    pub(super) fn new(folder: PathBuf, with: Surroundings) -> Self {
        Self {
            folder,
            with,
            open: Mutex::default(),
            moved: Condvar::new(),
        }
    }

    pub(super) fn boot(&self) -> [u8; 16] {
        self.with.boot.0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LayerName, Weak<OpenLayer>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A layer's file.
    pub(super) fn path(&self, name: LayerName) -> PathBuf {
        self.folder.join(name.file())
    }

    /// Makes an empty layer. Nothing is synced.
    pub(super) fn create(
        &self,
        name: LayerName,
        size: u64,
        below: Option<LayerName>,
    ) -> io::Result<()> {
        let path = self.path(name);
        let file = Stored(new_file(&path)?);
        let done = match name.form {
            Form::Raw => file.set_length(size),
            Form::Qcow2 => {
                let below = below.map(|b| Below {
                    name: b.file(),
                    format: b.form.as_str(),
                });
                cow::create(&file, size, below.as_ref())
            }
        };
        if done.is_err() {
            let _ = fs::remove_file(path);
        }
        done
    }

    /// Makes a layer's file and its name durable.
    pub(super) fn settle(&self, name: LayerName) -> io::Result<()> {
        File::open(self.path(name))?.sync_all()?;
        sync_folder(&self.folder)
    }

    /// Says what is wrong with a layer's file, if something is.
    pub(super) fn inspect(&self, name: LayerName) -> Result<(), VolumeError> {
        let looked = open_file(&self.path(name)).map_err(Fault::from);
        let looked = looked.and_then(|file| match name.form {
            Form::Raw => Ok(()),
            Form::Qcow2 => cow::inspect(&Stored(file)).map(|_| ()),
        });
        looked.map_err(|fault| self.fault(name, fault))
    }

    /// What a layer lies upon, as its file says.
    pub(super) fn below(&self, name: LayerName) -> Result<Option<LayerName>, VolumeError> {
        if name.form == Form::Raw {
            return Ok(None);
        }
        let file = open_file(&self.path(name)).map_err(|e| self.fault(name, e.into()))?;
        let header = cow::inspect(&Stored(file)).map_err(|fault| self.fault(name, fault))?;
        let below = header.below.as_ref();
        Ok(below.and_then(|below| LayerName::parse(&below.name)))
    }

    fn fault(&self, name: LayerName, fault: Fault) -> VolumeError {
        let what = format!("disks/layers/{}", name.file());
        match fault {
            Fault::Damaged(why) => VolumeError::Damaged { what, why },
            Fault::Io(e) if e.kind() == io::ErrorKind::NotFound => VolumeError::Damaged {
                what,
                why: "the file is missing".to_owned(),
            },
            Fault::Io(e) => super::io_error(&what, e),
        }
    }

    /// Opens a layer with all below it.
    pub(super) fn open(
        self: &Arc<Self>,
        name: LayerName,
        role: Role,
        size: u64,
    ) -> Result<Arc<OpenLayer>, VolumeError> {
        self.open_at(name, role, size, &mut Vec::new())
    }

    fn open_at(
        self: &Arc<Self>,
        name: LayerName,
        role: Role,
        size: u64,
        above: &mut Vec<LayerName>,
    ) -> Result<Arc<OpenLayer>, VolumeError> {
        if above.contains(&name) {
            let why = "its layers lie upon themselves".to_owned();
            return Err(self.fault(name, Fault::Damaged(why)));
        }
        above.push(name);
        let mut open = self.lock();
        while let Some(layer) = open.get(&name) {
            if let Some(layer) = layer.upgrade() {
                return Ok(layer);
            }
            let waited = self.moved.wait(open);
            open = waited.unwrap_or_else(PoisonError::into_inner);
        }
        open.insert(name, Weak::new());
        drop(open);
        let opened = self.open_now(name, role, size, above);
        let mut open = self.lock();
        match &opened {
            Ok(layer) => open.insert(name, Arc::downgrade(layer)),
            Err(_) => open.remove(&name),
        };
        self.moved.notify_all();
        opened
    }

    fn open_now(
        self: &Arc<Self>,
        name: LayerName,
        role: Role,
        size: u64,
        above: &mut Vec<LayerName>,
    ) -> Result<Arc<OpenLayer>, VolumeError> {
        let fault = |fault| self.fault(name, fault);
        let damaged = |why: &str| fault(Fault::Damaged(why.to_owned()));
        let file = open_file(&self.path(name)).map_err(|e| fault(e.into()))?;
        let file = Stored(file);
        let body = match name.form {
            Form::Raw => {
                let raw = Raw::new(file, role == Role::Ground).map_err(|e| fault(e.into()))?;
                Body::Raw(raw)
            }
            Form::Qcow2 => {
                let header = cow::inspect(&file).map_err(fault)?;
                let below = match &header.below {
                    None => None,
                    Some(below) => {
                        let under = LayerName::parse(&below.name)
                            .filter(|under| under.form.as_str() == below.format && *under != name)
                            .ok_or_else(|| damaged("it lies upon no layer of ours"))?;
                        Some(self.open_at(under, Role::Ground, size, above)?)
                    }
                };
                let journal = self.folder.join(name.journal());
                let open_journal = Box::new(move || {
                    let file = OpenOptions::new()
                        .read(true)
                        .write(true)
                        .create(true)
                        .truncate(false)
                        .mode(0o640)
                        .open(&journal)?;
                    Ok(Stored(file))
                });
                let below = below.map(|b| b as Arc<dyn Content>);
                let layer =
                    Layer::open(name.file(), file, &header, below, open_journal, &self.with)
                        .map_err(fault)?;
                Body::Cow(Box::new(layer))
            }
        };
        let layer = OpenLayer {
            name,
            body,
            upkeep: Mutex::default(),
            relieving: AtomicBool::new(false),
            shelf: self.clone(),
        };
        if layer.size() != size {
            return Err(damaged("it is not as large as its volume"));
        }
        Ok(Arc::new(layer))
    }

    /// Removes a layer's files, once it is closed.
    pub(super) fn remove(&self, name: LayerName) -> io::Result<()> {
        let mut open = self.lock();
        while open.get(&name).is_some_and(|l| l.strong_count() == 0) {
            let waited = self.moved.wait(open);
            open = waited.unwrap_or_else(PoisonError::into_inner);
        }
        drop(open);
        let _ = fs::remove_file(self.folder.join(name.journal()));
        match fs::remove_file(self.path(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

impl OpenLayer {
    pub(super) fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        match &self.body {
            Body::Raw(raw) => raw.write(at, data),
            Body::Cow(layer) => layer.write(at, data),
        }
    }

    /// After a write: has a checkpoint made if one is due, on a thread of its own.
    pub(super) fn relieve(self: &Arc<Self>) {
        let due = match &self.body {
            Body::Raw(_) => false,
            Body::Cow(layer) => layer.crowded(),
        };
        if !due || self.relieving.swap(true, Ordering::AcqRel) {
            return;
        }
        let of = self.clone();
        let work = move || {
            if let Body::Cow(layer) = &of.body {
                // Its error is the next flush's.
                let _ = layer.relieve();
            }
            of.relieving.store(false, Ordering::Release);
        };
        let made = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .stack_size(256 * 1024)
            .spawn(work);
        if made.is_err() {
            // Then a write that finds no room makes it.
            self.relieving.store(false, Ordering::Release);
        }
    }

    /// Makes a range read as zeroes. To keep its space, they are stored.
    pub(super) fn zero(&self, at: u64, length: u64, keep_space: bool) -> io::Result<()> {
        if keep_space {
            return self.store_zeroes(at, length);
        }
        match &self.body {
            Body::Raw(raw) => raw.zero(at, length),
            Body::Cow(layer) => layer.zero(at, length),
        }
    }

    fn store_zeroes(&self, mut at: u64, length: u64) -> io::Result<()> {
        static ZEROES: [u8; CLUSTER as usize] = [0; CLUSTER as usize];
        let end = at + length;
        while at < end {
            let here = (CLUSTER - at % CLUSTER).min(end - at);
            self.write(at, &ZEROES[..usize::try_from(here).unwrap_or(0)])?;
            at += here;
        }
        Ok(())
    }

    /// A checkpoint on nobody's behalf: a machine whose writes it may have lost hears of it
    /// at its own next flush.
    pub(super) fn checkpoint(&self) -> io::Result<()> {
        match &self.body {
            Body::Raw(raw) => raw.flush(),
            Body::Cow(layer) => layer.relieve(),
        }
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        match &self.body {
            Body::Raw(raw) => raw.flush(),
            Body::Cow(layer) => layer.flush(),
        }
    }

    /// Brings all to the disk, so that the file is right by itself; nobody may write meanwhile.
    pub(super) fn freeze(&self) -> io::Result<()> {
        match &self.body {
            Body::Raw(raw) => raw.freeze(),
            Body::Cow(layer) => layer.freeze(),
        }
    }

    /// Takes over what comes from below, and lets go of it; a layer that nobody else writes is
    /// closed then. `step` is told how far it is, and ends it by an error.
    pub(super) fn fill(
        &self,
        role: Role,
        step: &mut dyn FnMut(f64) -> Result<(), VolumeError>,
    ) -> Result<(), VolumeError> {
        let Body::Cow(layer) = &self.body else {
            return Ok(());
        };
        let _one = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        let clusters = layer.clusters();
        let failed = |e| super::io_error("flattening a layer", e);
        let mut filled = Ok(());
        for cluster in 0..clusters {
            if cluster % 64 == 0 {
                filled = step(cluster as f64 / clusters as f64);
            }
            filled = filled.and_then(|()| layer.fill(cluster).map_err(failed));
            if filled.is_err() {
                break;
            }
        }
        let filled = filled.and_then(|()| layer.cut().map_err(failed));
        if role == Role::Ground {
            layer.close().map_err(failed)?;
        }
        filled
    }
}

impl Content for OpenLayer {
    fn size(&self) -> u64 {
        match &self.body {
            Body::Raw(raw) => raw.size(),
            Body::Cow(layer) => layer.size(),
        }
    }

    fn read(&self, at: u64, buffer: &mut [u8], wait: Wait) -> io::Result<bool> {
        match &self.body {
            Body::Raw(raw) => raw.read(at, buffer, wait),
            Body::Cow(layer) => layer.read(at, buffer, wait),
        }
    }

    fn lend(&self, at: u64, length: u64) -> io::Result<Option<Lent>> {
        match &self.body {
            Body::Raw(raw) => raw.lend(at, length),
            Body::Cow(layer) => layer.lend(at, length),
        }
    }

    fn run(&self, at: u64, most: u64) -> io::Result<Extent> {
        match &self.body {
            Body::Raw(raw) => raw.run(at, most),
            Body::Cow(layer) => layer.run(at, most),
        }
    }

    fn own(&self, at: u64, most: u64) -> io::Result<(bool, u64)> {
        match &self.body {
            Body::Raw(raw) => raw.own(at, most),
            Body::Cow(layer) => layer.own(at, most),
        }
    }

    fn under(&self) -> Option<Arc<dyn Content>> {
        match &self.body {
            Body::Raw(raw) => raw.under(),
            Body::Cow(layer) => layer.under(),
        }
    }

    fn depth(&self) -> usize {
        match &self.body {
            Body::Raw(raw) => raw.depth(),
            Body::Cow(layer) => layer.depth(),
        }
    }
}

impl Drop for OpenLayer {
    fn drop(&mut self) {
        if let Body::Cow(layer) = &self.body {
            match layer.close() {
                Ok(()) => {
                    let _ = fs::remove_file(self.shelf.folder.join(self.name.journal()));
                }
                // The journal stays; the next opening recovers.
                Err(e) => tracing::error!(
                    layer = %self.name.file(),
                    error = %e,
                    "a layer of a disk could not be closed cleanly"
                ),
            }
        }
        self.shelf.lock().remove(&self.name);
        self.shelf.moved.notify_all();
    }
}
