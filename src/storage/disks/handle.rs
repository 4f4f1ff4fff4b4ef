//! An open volume: what all handles on it share, and the handle as a [`BlockDevice`].

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use super::DiskStore;
use super::shelf::OpenLayer;
use crate::storage::layer::{Content, Wait};
use crate::storage::{
    Access, BlockDevice, BlockError, DeviceInfo, Durability, Extent, Lent, Volume,
};

/// An open volume.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) volume: Volume,
    pub(super) size: u64,
    /// Held for reading during each operation, for writing when a snapshot puts a new layer on.
    pub(super) top: RwLock<Arc<OpenLayer>>,
    /// It is not durable yet that this volume exists.
    pub(super) unsettled: AtomicBool,
    pub(super) store: DiskStore,
}

/// A handle.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) disk: Arc<Disk>,
    pub(super) access: Access,
}

impl Disk {
    pub(super) fn top(&self) -> RwLockReadGuard<'_, Arc<OpenLayer>> {
        self.top.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        // Not under the lock: a snapshot that waits for it would hold all others up.
        let top = self.top().clone();
        top.flush()?;
        if self.unsettled.load(Ordering::Acquire) {
            self.store.settle(self.volume)?;
            self.unsettled.store(false, Ordering::Release);
        }
        Ok(())
    }
}

impl Handle {
    fn check(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.disk.size => Ok(()),
            _ => Err(BlockError::OutOfRange),
        }
    }

    fn may_write(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        if self.access == Access::Read {
            return Err(BlockError::ReadOnly);
        }
        self.check(offset, length)
    }

    fn after_write(&self, durability: Durability) -> Result<(), BlockError> {
        match durability {
            Durability::Volatile => Ok(()),
            Durability::Fua => Ok(self.disk.flush()?),
        }
    }
}

impl BlockDevice for Handle {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            size: self.disk.size,
            preferred_block: 4096,
            read_only: self.access == Access::Read,
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BlockError> {
        self.check(offset, buffer.len() as u64)?;
        self.disk.top().read(offset, buffer, Wait::Yes)?;
        Ok(())
    }

    fn try_read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, BlockError> {
        self.check(offset, buffer.len() as u64)?;
        match self.disk.top.try_read() {
            Ok(top) => Ok(top.read(offset, buffer, Wait::No)?),
            Err(_) => Ok(false),
        }
    }

    fn lend(&self, offset: u64, length: usize) -> Result<Option<Lent>, BlockError> {
        let length = length as u64;
        self.check(offset, length)?;
        match self.disk.top.try_read() {
            Ok(top) => Ok(top.lend(offset, length)?),
            Err(_) => Ok(None),
        }
    }

    fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), BlockError> {
        self.may_write(offset, data.len() as u64)?;
        let top = self.disk.top();
        top.write(offset, data)?;
        top.relieve();
        drop(top);
        self.after_write(durability)
    }

    fn flush(&self) -> Result<(), BlockError> {
        if self.access == Access::Read {
            return Ok(());
        }
        Ok(self.disk.flush()?)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        self.write_zeroes(offset, length, false, Durability::Volatile)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        keep_space: bool,
        durability: Durability,
    ) -> Result<(), BlockError> {
        self.may_write(offset, length)?;
        let top = self.disk.top();
        top.zero(offset, length, keep_space)?;
        top.relieve();
        drop(top);
        self.after_write(durability)
    }

    fn extents(&self, offset: u64, length: u64, most: usize) -> Result<Vec<Extent>, BlockError> {
        self.check(offset, length)?;
        let top = self.disk.top();
        let mut runs: Vec<Extent> = Vec::new();
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let next = top.run(at, end - at)?;
            let full = runs.len() >= most;
            match runs.last_mut() {
                Some(run) if run.kind == next.kind => run.length += next.length,
                _ if full => break,
                _ => runs.push(next),
            }
            at += next.length;
        }
        Ok(runs)
    }
}
