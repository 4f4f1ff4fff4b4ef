//! What iSCSI counts: every login's end, every kind of command, every refusal by name.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::scsi::cdb::{Op, Writing};

/// A class of commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Class {
    /// READ.
    Read,
    /// WRITE and its kin.
    Write,
    /// SYNCHRONIZE CACHE.
    Flush,
    /// UNMAP and WRITE SAME.
    Unmap,
    /// VERIFY and comparisons.
    Verify,
    /// Reservations.
    Reserve,
    /// All that asks what the disk is.
    Inquire,
    /// No command that we have.
    Unknown,
}

impl Class {
    /// Of an operation.
    pub(super) const fn of(op: &Op) -> Self {
        match op {
            Op::Read(_) | Op::Prefetch(_) => Self::Read,
            Op::Write {
                kind: Writing::Plain | Writing::AndVerify | Writing::Or,
                ..
            } => Self::Write,
            Op::Synchronize(_) => Self::Flush,
            Op::Unmap { .. } | Op::WriteSame { .. } => Self::Unmap,
            Op::Verify(_) | Op::Compare { .. } | Op::CompareAndWrite { .. } => Self::Verify,
            Op::ReserveIn { .. } | Op::ReserveOut { .. } | Op::Reserve | Op::Release => {
                Self::Reserve
            }
            _ => Self::Inquire,
        }
    }
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Ending {
    /// The initiator logged out.
    Logout,
    /// The connection was closed, or broke.
    Lost,
    /// Three pings in a row were not answered.
    Silent,
    /// A newer login has the disk.
    Fenced,
    /// The same initiator port logged in again.
    Reinstated,
    /// What came was no PDU.
    Malformed,
    /// The initiator broke the protocol beyond repair.
    Protocol,
    /// A reset of the target was asked for.
    Reset,
    /// The server stopped.
    Stopped,
}

impl Ending {
    /// In a log line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Logout => "logout",
            Self::Lost => "lost",
            Self::Silent => "silent",
            Self::Fenced => "fenced",
            Self::Reinstated => "reinstated",
            Self::Malformed => "malformed",
            Self::Protocol => "protocol",
            Self::Reset => "reset",
            Self::Stopped => "stopped",
        }
    }
}

/// Label set of [`IscsiMetrics::logins`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LoginLabel {
    /// `normal`, `discovery`, or why not.
    pub outcome: &'static str,
}

/// Label set of [`IscsiMetrics::commands`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ClassLabel {
    /// Which class.
    pub class: Class,
}

/// Label set of [`IscsiMetrics::refusals`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusalLabel {
    /// Why.
    pub reason: &'static str,
}

/// Label set of [`IscsiMetrics::endings`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndingLabel {
    /// How.
    pub ending: Ending,
}

/// The counters; clones share them.
#[derive(Debug, Clone, Default)]
pub struct IscsiMetrics {
    /// Logins, by outcome.
    pub logins: Family<LoginLabel, Counter>,
    /// Commands, by class.
    pub commands: Family<ClassLabel, Counter>,
    /// Rejected PDUs, malformed ones, refused connections and failed commands, by reason.
    pub refusals: Family<RefusalLabel, Counter>,
    /// Sessions that ended, by how.
    pub endings: Family<EndingLabel, Counter>,
    /// Sessions in their full-feature phase.
    pub sessions: Gauge,
    /// Logins under way.
    pub half_open: Gauge,
    /// Bytes that initiators have read.
    pub read_bytes: Counter,
    /// Bytes that initiators have written.
    pub written_bytes: Counter,
}

impl IscsiMetrics {
    /// Puts the counters into a registry, under the prefix `iscsi`.
    pub fn register(&self, registry: &mut Registry) {
        let iscsi = registry.sub_registry_with_prefix("iscsi");
        iscsi.register("logins", "Logins, by outcome", self.logins.clone());
        iscsi.register("commands", "SCSI commands, by class", self.commands.clone());
        iscsi.register(
            "refusals",
            "Connections, PDUs and commands refused, by reason",
            self.refusals.clone(),
        );
        iscsi.register(
            "session_ends",
            "Sessions that ended, by how",
            self.endings.clone(),
        );
        iscsi.register("sessions", "Sessions that live", self.sessions.clone());
        iscsi.register("half_open", "Logins under way", self.half_open.clone());
        iscsi.register(
            "read_bytes",
            "Bytes that initiators have read",
            self.read_bytes.clone(),
        );
        iscsi.register(
            "written_bytes",
            "Bytes that initiators have written",
            self.written_bytes.clone(),
        );
    }

    /// Counts a login's end.
    pub fn login(&self, outcome: &'static str) {
        self.logins.get_or_create(&LoginLabel { outcome }).inc();
    }

    /// Counts a refusal.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&RefusalLabel { reason }).inc();
    }

    /// Counts a session's end.
    pub fn ended(&self, ending: Ending) {
        self.endings.get_or_create(&EndingLabel { ending }).inc();
    }

    /// The counter of a class, to be kept by who counts often.
    pub(super) fn class(&self, class: Class) -> Counter {
        self.commands.get_or_create(&ClassLabel { class }).clone()
    }
}
