//! What the disks count, whatever the protocol.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::attachment::Usage;
use super::door::NoDisk;
use crate::model::{DiskMode, DiskProtocol};

/// Label of a login.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProtocolLabel {
    protocol: &'static str,
}

/// Labels of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusalLabels {
    protocol: &'static str,
    reason: &'static str,
}

/// Label of a clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ModeLabel {
    mode: &'static str,
}

/// The numbers; clones share them.
#[derive(Debug, Clone, Default)]
pub struct DiskMetrics {
    open: Gauge,
    logins: Family<ProtocolLabel, Counter>,
    refused: Family<RefusalLabels, Counter>,
    cloned: Family<ModeLabel, Counter>,
    reclaimed: Counter,
    clones: Gauge,
    over_quota: Counter,
    read: Counter,
    written: Counter,
}

impl DiskMetrics {
    /// Makes them known under `dls_disks_...`.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("disks");
        r.register(
            "attached",
            "Connections that have a disk",
            self.open.clone(),
        );
        r.register(
            "logins",
            "Logins that were given a disk",
            self.logins.clone(),
        );
        r.register(
            "refused",
            "Logins that were given no disk",
            self.refused.clone(),
        );
        r.register("clones_made", "Clones made at a login", self.cloned.clone());
        r.register(
            "clones_reclaimed",
            "Clones removed after their boots",
            self.reclaimed.clone(),
        );
        r.register("clones", "Clones in the store", self.clones.clone());
        r.register(
            "over_quota",
            "Disks whose machine had written as much as its quota lets it",
            self.over_quota.clone(),
        );
        r.register(
            "read_bytes",
            "Read over connections that have ended",
            self.read.clone(),
        );
        r.register(
            "written_bytes",
            "Written over connections that have ended",
            self.written.clone(),
        );
    }

    pub(super) fn attached(&self, protocol: DiskProtocol) {
        self.open.inc();
        let protocol = protocol.as_str();
        self.logins.get_or_create(&ProtocolLabel { protocol }).inc();
    }

    pub(super) fn refused(&self, protocol: DiskProtocol, why: &NoDisk) {
        let labels = RefusalLabels {
            protocol: protocol.as_str(),
            reason: why.as_str(),
        };
        self.refused.get_or_create(&labels).inc();
    }

    pub(super) fn detached(&self, moved: Usage) {
        self.open.dec();
        self.read.inc_by(moved.read);
        self.written.inc_by(moved.written);
    }

    pub(super) fn cloned(&self, mode: DiskMode) {
        let mode = mode.as_str();
        self.cloned.get_or_create(&ModeLabel { mode }).inc();
    }

    pub(super) fn reclaimed(&self) {
        self.reclaimed.inc();
    }

    pub(super) fn over_quota(&self) {
        self.over_quota.inc();
    }

    pub(super) fn clones(&self, count: usize) {
        self.clones.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
