//! Asks a network by ARP whether an address is in use (RFC 5227 section 2.1.1).
//!
//! One prober per interface. Answers that come late are lost: the client that is given the
//! address probes it once more and declines it (RFC 2131 section 4.4.1).

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};

use super::batch::{Datagram, send_many};
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

/// What was heard of one address.
#[derive(Debug)]
struct Answer {
    from: Option<MacAddr>,
    stations: broadcast::Receiver<MacAddr>,
}

impl Answer {
    /// Waits for a station that answers.
    async fn peek(&mut self) {
        self.from = loop {
            match self.stations.recv().await {
                Ok(station) => break Some(station),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => break None,
            }
        };
    }

    /// The station that has answered by now.
    fn heard(&mut self) -> Option<MacAddr> {
        while self.from.is_none() {
            match self.stations.try_recv() {
                Ok(station) => self.from = Some(station),
                // Several stations have answered; the last one's answer is left.
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        self.from
    }
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

    /// Asks for an address; see [`Prober::probe_all`].
    ///
    /// # Errors
    /// When the question can't be sent.
    pub(super) async fn probe(&self, address: Ipv4Addr) -> io::Result<Probed> {
        let mut found = self.probe_all(&[address]).await;
        found.pop().unwrap_or(Ok(Probed::Free))
    }

    /// Asks for addresses, all in the time that one takes, and tells of each in order what
    /// was found, or that the question could not be sent. Several askers of one address share
    /// an answer.
    pub(super) async fn probe_all(&self, addresses: &[Ipv4Addr]) -> Vec<io::Result<Probed>> {
        let mut answers = self.await_answers(addresses);
        let all: Vec<usize> = (0..addresses.len()).collect();
        let mut unsent: HashMap<usize, io::Error> = self.ask(addresses, &all).into_iter().collect();
        // One address alone is asked for while its machine waits: its answer is told at once.
        let alone = answers.len() == 1;
        if alone && let Some(answer) = answers.first_mut() {
            let _ = tokio::time::timeout(AGAIN, answer.peek()).await;
        } else {
            tokio::time::sleep(AGAIN).await;
        }
        let silent: Vec<usize> = (answers.iter_mut().enumerate())
            .filter_map(|(n, answer)| answer.heard().is_none().then_some(n))
            .filter(|n| !unsent.contains_key(n))
            .collect();
        if !silent.is_empty() {
            unsent.extend(self.ask(addresses, &silent));
            let rest = PATIENCE.saturating_sub(AGAIN);
            match answers.first_mut() {
                Some(answer) if alone => {
                    let _ = tokio::time::timeout(rest, answer.peek()).await;
                }
                _ => tokio::time::sleep(rest).await,
            }
        }
        let found = (answers.iter_mut().enumerate())
            .map(|(n, answer)| match (answer.heard(), unsent.remove(&n)) {
                (Some(station), _) => Ok(Probed::InUse(station)),
                (None, Some(error)) => Err(error),
                (None, None) => Ok(Probed::Free),
            })
            .collect();
        drop(answers);
        let mut waiting = self.lock();
        for address in addresses {
            if waiting
                .get(address)
                .is_some_and(|sender| sender.receiver_count() == 0)
            {
                waiting.remove(address);
            }
        }
        found
    }

    fn await_answers(&self, addresses: &[Ipv4Addr]) -> Vec<Answer> {
        let mut waiting = self.lock();
        addresses
            .iter()
            .map(|address| Answer {
                from: None,
                stations: waiting
                    .entry(*address)
                    .or_insert_with(|| broadcast::channel(1).0)
                    .subscribe(),
            })
            .collect()
    }

    /// Sends the questions for some of the addresses; returns those that could not be sent.
    fn ask(&self, addresses: &[Ipv4Addr], which: &[usize]) -> Vec<(usize, io::Error)> {
        let everybody = self.socket.address_of(MacAddr([0xff; 6]));
        let (positions, questions): (Vec<usize>, Vec<[u8; 28]>) = which
            .iter()
            .filter_map(|n| Some((*n, Arp::probe(self.our_mac, *addresses.get(*n)?).encode())))
            .unzip();
        let datagrams: Vec<Datagram<'_>> = questions
            .iter()
            .map(|question| Datagram {
                to: &everybody,
                from: None,
                payload: question,
            })
            .collect();
        send_many(self.socket.as_fd(), &datagrams)
            .into_iter()
            .filter_map(|(n, error)| Some((*positions.get(n)?, error)))
            .collect()
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
