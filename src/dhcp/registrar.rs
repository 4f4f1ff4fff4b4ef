//! Registers unknown machines that ask to boot: disabled, once per MAC, capped.
//!
//! Only packets that ask for a boot come here: a telephone that wants an address never makes
//! a row. Both the number of machines that wait to be looked at and their rate are bounded,
//! since a MAC costs its inventor nothing.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::TimeDelta;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::decide::Unknown;
use super::metrics::{DhcpMetrics, Registration};
use crate::cache::{Cache, Snapshot};
use crate::catalog::Catalog;
use crate::model::{Arch, BootMode, Client, DiskMode, MacAddr, Timestamp};

/// A room that is switched on at once may bring this many new machines in one go.
const BURST: i64 = 256;

/// After that, one more each so often.
const REFILL: TimeDelta = TimeDelta::milliseconds(200);

/// What is done with boot requests of unknown MACs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownClients {
    /// They are registered, disabled, while fewer than this many wait untouched.
    Register {
        /// Rows made by machines and not touched by an admin since.
        cap: usize,
    },
    /// They get no boot part.
    Ignore,
}

#[derive(Debug)]
struct State {
    /// Under way, or registered but not in the cache yet.
    pending: HashSet<MacAddr>,
    /// Registrations that may begin now; spent one each.
    tokens: i64,
    refilled: Timestamp,
    /// Rows that wait, and the snapshot they were counted in.
    waiting: usize,
    counted_in: Option<std::sync::Weak<Snapshot>>,
}

/// The registrar; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Registrar {
    policy: UnknownClients,
    state: Arc<Mutex<State>>,
    queue: mpsc::Sender<Client>,
}

impl Registrar {
    pub(super) fn new(policy: UnknownClients, now: Timestamp) -> (Self, mpsc::Receiver<Client>) {
        let (queue, receiver) = mpsc::channel(usize::try_from(BURST).unwrap_or(256));
        let registrar = Self {
            policy,
            state: Arc::new(Mutex::new(State {
                pending: HashSet::new(),
                tokens: BURST,
                refilled: now,
                waiting: 0,
                counted_in: None,
            })),
            queue,
        };
        (registrar, receiver)
    }

    /// What would be done with this unknown machine now. Spends nothing.
    pub(super) fn stance(&self, mac: MacAddr, snapshot: &Arc<Snapshot>, now: Timestamp) -> Unknown {
        let UnknownClients::Register { cap } = self.policy else {
            return Unknown::Ignore;
        };
        let mut state = self.lock();
        state.refill(now);
        state.count(snapshot);
        let known_soon = state.pending.contains(&mac);
        // What has its row by now is counted as waiting already.
        let unwritten = |mac: &&MacAddr| snapshot.client_by_mac(**mac).is_none();
        let under_way = state.pending.iter().filter(unwritten).count();
        if known_soon || (state.tokens > 0 && state.waiting + under_way < cap) {
            Unknown::Register
        } else {
            Unknown::CapReached
        }
    }

    /// Begins a registration unless one is under way. The caller has asked for the
    /// [`Registrar::stance`].
    pub(super) fn begin(&self, mac: MacAddr, arch: Option<Arch>, now: Timestamp) {
        let mut state = self.lock();
        if !state.pending.insert(mac) {
            return;
        }
        state.tokens -= 1;
        if self.queue.try_send(unknown_client(mac, arch, now)).is_err() {
            state.pending.remove(&mac);
        }
    }

    /// Writes the rows, in the background, until cancelled.
    pub(super) async fn run(
        self,
        mut queue: mpsc::Receiver<Client>,
        catalog: Catalog,
        cache: Cache,
        metrics: DhcpMetrics,
        cancel: CancellationToken,
    ) {
        let mut batch = Vec::new();
        loop {
            let count = tokio::select! {
                () = cancel.cancelled() => return,
                count = queue.recv_many(&mut batch, 64) => count,
            };
            if count == 0 {
                return;
            }
            let mut macs = Vec::with_capacity(count);
            let mut made_ids = Vec::with_capacity(count);
            for client in batch.drain(..) {
                macs.push(client.mac_address);
                let outcome = match catalog.register_client(&client).await {
                    Ok((made, true)) => {
                        made_ids.push(made.id);
                        tracing::info!(
                            client.mac = %client.mac_address, client.name = made.hostname,
                            "unknown machine registered, disabled until an admin enables it"
                        );
                        Registration::Made
                    }
                    Ok((known, false)) => {
                        made_ids.push(known.id);
                        Registration::Known
                    }
                    Err(error) => {
                        tracing::warn!(client.mac = %client.mac_address, %error, "unknown machine not registered");
                        Registration::Failed
                    }
                };
                metrics.registered(outcome);
            }
            // One reading for all of them; then they are known, or will try again.
            if let Err(error) = cache.refresh_clients(&made_ids).await {
                tracing::warn!(%error, "the cache could not be refreshed");
            }
            let mut state = self.lock();
            for mac in macs {
                state.pending.remove(&mac);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn refill(&mut self, now: Timestamp) {
        let elapsed = (now - self.refilled).num_milliseconds();
        let more = elapsed / REFILL.num_milliseconds();
        if more > 0 {
            self.tokens = self.tokens.saturating_add(more).min(BURST);
            self.refilled = now;
        }
    }

    /// Counts once per snapshot.
    fn count(&mut self, snapshot: &Arc<Snapshot>) {
        let current = Arc::downgrade(snapshot);
        if !self
            .counted_in
            .as_ref()
            .is_some_and(|counted| counted.ptr_eq(&current))
        {
            self.waiting = snapshot.clients().filter(|c| c.auto_registered).count();
            self.counted_in = Some(current);
        }
    }
}

/// The row of a machine that nobody has registered.
fn unknown_client(mac: MacAddr, arch: Option<Arch>, now: Timestamp) -> Client {
    Client {
        id: Uuid::new_v4(),
        mac_address: mac,
        more_macs: Vec::new(),
        hostname: format!("unknown-{}", mac.to_string().replace(':', "")),
        ip_address: None,
        assigned_image_id: None,
        boot_mode: if arch.is_some_and(Arch::is_efi) {
            BootMode::Uefi
        } else {
            BootMode::Pxe
        },
        cpu_cores: 2,
        memory_mb: 2048,
        network_config: None,
        custom_boot_params: None,
        enabled: false,
        disk_mode: DiskMode::Ephemeral,
        ring: None,
        pinned_version_id: None,
        auto_registered: true,
        created_at: now,
        updated_at: now,
        last_boot_at: None,
        boot_count: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Loaded;

    fn mac(n: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, n])
    }

    #[test]
    fn the_cap_counts_what_waits_and_what_is_under_way() {
        let now = Timestamp::UNIX_EPOCH;
        let loaded = Loaded {
            clients: vec![unknown_client(mac(1), None, now)],
            ..Loaded::default()
        };
        let snapshot = Arc::new(Snapshot::new(loaded));
        let (registrar, _queue) = Registrar::new(UnknownClients::Register { cap: 2 }, now);
        assert_eq!(registrar.stance(mac(2), &snapshot, now), Unknown::Register);
        registrar.begin(mac(2), None, now);
        assert_eq!(registrar.stance(mac(2), &snapshot, now), Unknown::Register);
        assert_eq!(
            registrar.stance(mac(3), &snapshot, now),
            Unknown::CapReached
        );
    }

    #[test]
    fn a_row_that_is_written_counts_once() {
        let now = Timestamp::UNIX_EPOCH;
        let (registrar, _queue) = Registrar::new(UnknownClients::Register { cap: 2 }, now);
        let none = Arc::new(Snapshot::default());
        assert_eq!(registrar.stance(mac(1), &none, now), Unknown::Register);
        registrar.begin(mac(1), None, now);
        // The cache has it before the task that wrote it says so.
        let loaded = Loaded {
            clients: vec![unknown_client(mac(1), None, now)],
            ..Loaded::default()
        };
        let written = Arc::new(Snapshot::new(loaded));
        assert_eq!(registrar.stance(mac(2), &written, now), Unknown::Register);
    }

    #[test]
    fn a_flood_is_slowed_down() {
        let now = Timestamp::UNIX_EPOCH;
        let snapshot = Arc::new(Snapshot::default());
        let (registrar, _queue) = Registrar::new(UnknownClients::Register { cap: 100_000 }, now);
        for n in 0..BURST {
            registrar.begin(MacAddr([2, 0, 0, 0, (n >> 8) as u8, n as u8]), None, now);
        }
        let newcomer = MacAddr([4, 0, 0, 0, 0, 1]);
        assert_eq!(
            registrar.stance(newcomer, &snapshot, now),
            Unknown::CapReached
        );
        let later = now + REFILL;
        assert_eq!(
            registrar.stance(newcomer, &snapshot, later),
            Unknown::Register
        );
    }

    #[test]
    fn ignored_means_ignored() {
        let now = Timestamp::UNIX_EPOCH;
        let (registrar, _queue) = Registrar::new(UnknownClients::Ignore, now);
        let snapshot = Arc::new(Snapshot::default());
        assert_eq!(registrar.stance(mac(1), &snapshot, now), Unknown::Ignore);
    }
}
