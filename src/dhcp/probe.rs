//! Asks a network by ARP whether an address is in use (RFC 5227 section 2.1.1).
//!
//! One prober per interface. Answers that come late are lost: the client that is given the
//! address probes it once more and declines it (RFC 2131 section 4.4.1).

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::broadcast;

use super::frame::Arp;
use super::raw::{PacketSocket, Traffic};
use crate::model::MacAddr;

/// How long an address is asked for before it counts as free: less than the second after
/// which the most impatient client asks again.
const PATIENCE: Duration = Duration::from_millis(200);

/// When it is asked for a second time, in case the first question was lost.
const AGAIN: Duration = Duration::from_millis(70);

/// What a probe has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probed {
    /// Nobody answered.
    Free,
    /// This station did.
    InUse(MacAddr),
}

/// The ARP side of one interface.
#[derive(Debug)]
pub(super) struct Prober {
    socket: PacketSocket,
    our_mac: MacAddr,
    waiting: Mutex<HashMap<Ipv4Addr, broadcast::Sender<MacAddr>>>,
}

impl Prober {
    /// Opens the ARP socket of an interface. [`Prober::listen`] must run for it to work.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn open(index: u32, our_mac: MacAddr) -> io::Result<Self> {
        Ok(Self {
            socket: PacketSocket::open(index, Traffic::Arp)?,
            our_mac,
            waiting: Mutex::default(),
        })
    }

    /// Asks for an address. Several askers of one address share an answer.
    ///
    /// # Errors
    /// When the question can't be sent.
    pub(super) async fn probe(&self, address: Ipv4Addr) -> io::Result<Probed> {
        let mut answer = {
            let mut waiting = self.lock();
            waiting
                .entry(address)
                .or_insert_with(|| broadcast::channel(1).0)
                .subscribe()
        };
        let question = Arp::probe(self.our_mac, address).encode();
        let asked = async {
            self.socket.send(None, &question)?;
            tokio::time::sleep(AGAIN).await;
            self.socket.send(None, &question)?;
            tokio::time::sleep(PATIENCE.saturating_sub(AGAIN)).await;
            Ok(Probed::Free)
        };
        let found = tokio::select! {
            biased;
            Ok(station) = answer.recv() => Ok(Probed::InUse(station)),
            silent = asked => silent,
        };
        drop(answer);
        let mut waiting = self.lock();
        if waiting
            .get(&address)
            .is_some_and(|sender| sender.receiver_count() == 0)
        {
            waiting.remove(&address);
        }
        found
    }

    /// Hears ARP until the interface is gone; returns that error.
    ///
    /// # Errors
    /// Always ends in one.
    pub(super) async fn listen(&self) -> io::Result<()> {
        loop {
            let bytes = self.socket.receive().await?;
            let Some(arp) = Arp::parse(&bytes) else {
                continue;
            };
            // Our own probe, reflected by a switch, is no stranger.
            if arp.sender_mac == self.our_mac {
                continue;
            }
            if let Some(address) = arp.shows_in_use()
                && let Some(sender) = self.lock().get(&address)
            {
                let _ = sender.send(arp.sender_mac);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Ipv4Addr, broadcast::Sender<MacAddr>>> {
        self.waiting
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
