//! A machine that asks to boot while a connection has its client's disk: before its packet is
//! decided on, the connection is asked for a sign of life. One that gives none is broken off,
//! and the packet goes its way: a machine that was reset always boots. One that answers is a
//! machine that runs, so the newcomer has its MAC wrongly; it hears nothing.
//!
//! The packet waits in a task of its own for three seconds at most, and for fifteen if it is
//! another machine's by its SMBIOS UUID; no other machine's packet waits
//! for it, and further ones of the same machine are dropped meanwhile.

use std::sync::Arc;

use uuid::Uuid;

use super::decide::Port;
use super::facts::{Case, speaker};
use super::flow::Core;
use super::metrics::Dropped;
use super::wire::RequestKind;
use crate::boot::disks::Verdict;
use crate::boot::session::{Context, Evidence, Observation};
use crate::model::{RangeMode, Timestamp};

/// Machines that are asked for at the same time; more come back by themselves.
const SETTLING: usize = 256;

impl Core {
    /// The client whose disk must be settled before this packet is decided on.
    pub(super) fn must_settle(&self, case: &Case) -> Option<Uuid> {
        let asks_to_boot = case.is_boot()
            && (case.request.kind == RequestKind::Discover || case.port == Port::Pxe);
        let served = case
            .range
            .as_ref()
            .is_some_and(|range| range.mode != RangeMode::Off);
        if case.settled || !asks_to_boot || !served {
            return None;
        }
        // Whether the packet would begin a boot or join the one that has the disk does not
        // matter: a loader of another machine joins as easily as one that tries again.
        let client = case.client.as_ref()?.id;
        self.disks.is_held(client).then_some(client)
    }

    /// Settles it aside, then considers the packet again.
    pub(super) fn settle(self: &Arc<Self>, mut case: Case, client: Uuid) {
        let mac = case.request.mac;
        {
            let mut gates = self.gates();
            if gates.settling.len() >= SETTLING {
                drop(gates);
                self.drop_case(&case, Dropped::Overloaded);
                return;
            }
            gates.settling.insert(mac);
        }
        let core = self.clone();
        self.tasks.spawn(async move {
            let disks = core.disks.clone();
            let uuid = case.request.smbios_uuid;
            let another = core.tracker.is_of_another(mac, uuid);
            let verdict = tokio::task::spawn_blocking(move || match another {
                true => disks.settle_with_another(client),
                false => disks.settle(client, None),
            })
            .await;
            core.gates().settling.remove(&mac);
            match verdict {
                Ok(Verdict::Taken { by }) => {
                    tracing::warn!(
                        client.mac = %mac, session.id = %by,
                        "a machine asks to boot while another with its MAC has the disk and answers: it gets nothing"
                    );
                    let newcomer = observation(&case, core.clock.now());
                    core.tracker.turn_away(by, newcomer);
                    core.drop_case(&case, Dropped::DiskInUse);
                }
                Ok(Verdict::Free) => {
                    case.settled = true;
                    let snapshot = core.cache.get();
                    core.consider(case, &snapshot);
                }
                Err(error) => tracing::error!(%error, "settling who has a disk"),
            }
        });
    }
}

fn observation(case: &Case, at: Timestamp) -> Observation {
    Observation {
        mac: case.request.mac,
        at,
        what: Evidence::Discover(speaker(&case.request)),
        context: Context {
            smbios_uuid: case.request.smbios_uuid,
            arch: case.request.arch,
            ..Context::default()
        },
    }
}
