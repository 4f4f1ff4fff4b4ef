//! Replies on their way out, gathered so that one call sends many. It knows neither requests
//! nor the disk.

use super::conduit::Conduit;
use super::outlet::Outlet;
use crate::storage::Lent;

/// Replies of so many bytes go into a pipe with the pages behind them.
const HEADS: usize = 4096;

/// Replies on their way out: a buffer that is made once.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) filled: usize,
    /// What goes out before them.
    conduit: Option<Conduit>,
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
            conduit: None,
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
        let bytes = &self.bytes[..self.filled];
        self.filled = 0;
        if let Some(mut conduit) = self.conduit.take() {
            let mut turn = outlet.turn();
            turn.send_pages(&mut conduit, !bytes.is_empty())
                .and_then(|()| turn.send(bytes))
                .map_err(|_| Broken)?;
            conduit.give_back();
        } else if !bytes.is_empty() {
            outlet.send(bytes).map_err(|_| Broken)?;
        }
        Ok(())
    }

    /// Adds a head and a part of a file behind it. `false` if that is not possible at present:
    /// then nothing was added.
    pub(super) fn lend(
        &mut self,
        head: &[u8],
        lent: &Lent,
        length: usize,
        outlet: &Outlet,
    ) -> Result<bool, Broken> {
        if self.filled > HEADS {
            self.send(outlet)?;
        }
        let before = self.filled + head.len();
        let fits = |conduit: &Conduit| conduit.has_room(before, lent, length);
        if self.conduit.as_ref().is_some_and(|c| !fits(c)) {
            self.send(outlet)?;
        }
        let Some(mut conduit) = self.conduit.take().or_else(Conduit::take) else {
            return Ok(false);
        };
        // From its head on an answer can't be taken back.
        let put = conduit
            .put(&self.bytes[..self.filled])
            .and_then(|()| conduit.put(head))
            .and_then(|()| conduit.lend(lent, length));
        self.filled = 0;
        self.conduit = Some(conduit);
        put.map_err(|_| Broken)?;
        Ok(true)
    }

    /// Adds some bytes, for which room was made.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.filled..self.filled + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }
}
