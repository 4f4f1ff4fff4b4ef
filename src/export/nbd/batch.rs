//! Replies on their way out, gathered so that one call sends many. It knows neither requests
//! nor the disk.

use super::outlet::Outlet;
use crate::storage::Lent;

/// Replies on their way out: a buffer that is made once.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) filled: usize,
}

/// The connection can't go on.
#[derive(Debug)]
pub(super) struct Broken;

impl Batch {
    pub(super) fn new(room: usize) -> Self {
        // Zeroed pages cost nothing before they are used.
        Self {
            bytes: vec![0; room],
            filled: 0,
        }
    }

    /// Sends what is there if `length` more bytes have no room; they fit then, if at all.
    pub(super) fn make_room(&mut self, length: usize, outlet: &Outlet) -> Result<(), Broken> {
        if self.filled + length > self.bytes.len() {
            self.send(outlet)?;
        }
        Ok(())
    }

    pub(super) fn send(&mut self, outlet: &Outlet) -> Result<(), Broken> {
        if self.filled > 0 {
            let sent = outlet.send(&self.bytes[..self.filled]);
            self.filled = 0;
            sent.map_err(|_| Broken)?;
        }
        Ok(())
    }

    /// Sends what is there and `length` bytes of a file behind it.
    pub(super) fn send_with(
        &mut self,
        lent: &Lent,
        length: usize,
        outlet: &Outlet,
    ) -> Result<(), Broken> {
        let head = &self.bytes[..self.filled];
        let sent = outlet.turn().send_file(head, lent, length);
        self.filled = 0;
        sent.map_err(|_| Broken)
    }

    /// Adds some bytes, for which room was made.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.filled..self.filled + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }
}
