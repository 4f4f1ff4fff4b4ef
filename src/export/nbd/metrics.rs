//! What the NBD server counts. Every refusal, every error and every end has a name here;
//! labels come from closed sets.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::machine::Ending;
use crate::crowd::Full;
use crate::telemetry::label_by_word;

/// Clones share the counters.
#[derive(Debug, Clone, Default)]
pub struct NbdMetrics {
    connections: Gauge<i64, AtomicI64>,
    handshakes: Gauge<i64, AtomicI64>,
    refused: Family<RefusedLabels, Counter>,
    attached: Family<AttachLabels, Counter>,
    ended: Family<EndedLabels, Counter>,
    requests: Family<RequestLabels, Counter>,
    errors: Family<ErrorLabels, Counter>,
    read_bytes: Counter,
    written_bytes: Counter,
}

/// Why a connection was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Crowded {
    Handshakes,
    Address,
}

/// How a disk's opening went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Attach {
    Given,
    TooMany,
    /// A [`NoDisk`](crate::boot::disks::NoDisk)'s word.
    Refused(&'static str),
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum End {
    /// In the handshake, by a rule.
    Handshake(Ending),
    /// In the handshake: the client went away.
    LeftHandshake,
    /// In the handshake: too slow.
    SlowHandshake,
    /// In the handshake: TLS failed.
    TlsFailed,
    /// The client said so.
    Disconnected,
    /// The client, or the network, without a word.
    Lost,
    /// A request that is none.
    BadRequest,
    /// The server stopped.
    Stopped,
    /// A thread could not be made.
    NoThread,
}

/// Commands, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Command {
    Read,
    Write,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
    Other,
}

impl From<Full> for Crowded {
    fn from(full: Full) -> Self {
        match full {
            Full::All => Self::Handshakes,
            Full::Address => Self::Address,
        }
    }
}

impl Crowded {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Handshakes => "too_many_handshakes",
            Self::Address => "too_many_handshakes_of_address",
        }
    }
}

impl Attach {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::TooMany => "too_many",
            Self::Refused(word) => word,
        }
    }
}

impl End {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Handshake(ending) => ending.as_str(),
            Self::LeftHandshake => "left_handshake",
            Self::SlowHandshake => "slow_handshake",
            Self::TlsFailed => "tls_failed",
            Self::Disconnected => "disconnected",
            Self::Lost => "lost",
            Self::BadRequest => "bad_request",
            Self::Stopped => "stopped",
            Self::NoThread => "no_thread",
        }
    }
}

impl Command {
    const ALL: [Self; 8] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Trim,
        Self::Cache,
        Self::WriteZeroes,
        Self::BlockStatus,
        Self::Other,
    ];

    /// Of a request's number.
    pub(super) const fn of(number: u16) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => Self::Other,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::Cache => "cache",
            Self::WriteZeroes => "write_zeroes",
            Self::BlockStatus => "block_status",
            Self::Other => "other",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    reason: Crowded,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttachLabels {
    outcome: Attach,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndedLabels {
    how: End,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    command: Command,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    cause: &'static str,
}

label_by_word!(Crowded, Attach, End, Command);

/// The counters of the hot path, looked up once per connection.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    requests: [Counter; Command::ALL.len()],
    errors: Family<ErrorLabels, Counter>,
    read_bytes: Counter,
    written_bytes: Counter,
}

impl Tally {
    pub(super) fn asked(&self, command: Command) {
        self.requests[command as usize].inc();
    }

    /// `cause`: the word of an error's closed enum.
    pub(super) fn failed(&self, cause: &'static str) {
        self.errors.get_or_create(&ErrorLabels { cause }).inc();
    }

    pub(super) fn read(&self, bytes: usize) {
        self.read_bytes.inc_by(bytes as u64);
    }

    pub(super) fn written(&self, bytes: usize) {
        self.written_bytes.inc_by(bytes as u64);
    }
}

impl NbdMetrics {
    /// Registers all counters under the prefix `nbd`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("nbd");
        registry.register(
            "connections",
            "Connections with a disk",
            self.connections.clone(),
        );
        registry.register(
            "handshakes",
            "Connections that have no disk yet",
            self.handshakes.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections closed at once because there were too many",
            self.refused.clone(),
        );
        registry.register(
            "attaches",
            "Disks that were asked for, by what came of it",
            self.attached.clone(),
        );
        registry.register(
            "connections_ended",
            "Connections that ended, by how",
            self.ended.clone(),
        );
        registry.register("requests", "Requests by command", self.requests.clone());
        registry.register(
            "errors",
            "Requests that were answered with an error, by cause",
            self.errors.clone(),
        );
        registry.register(
            "read_bytes",
            "Bytes of disks sent to machines",
            self.read_bytes.clone(),
        );
        registry.register(
            "written_bytes",
            "Bytes of disks taken from machines",
            self.written_bytes.clone(),
        );
    }

    pub(super) fn tally(&self) -> Tally {
        Tally {
            requests: Command::ALL.map(|command| {
                self.requests
                    .get_or_create_owned(&RequestLabels { command })
            }),
            errors: self.errors.clone(),
            read_bytes: self.read_bytes.clone(),
            written_bytes: self.written_bytes.clone(),
        }
    }

    pub(super) const fn connections(&self) -> &Gauge<i64, AtomicI64> {
        &self.connections
    }

    pub(super) const fn handshakes(&self) -> &Gauge<i64, AtomicI64> {
        &self.handshakes
    }

    pub(super) fn refused(&self, reason: Crowded) {
        self.refused.get_or_create(&RefusedLabels { reason }).inc();
    }

    pub(super) fn attached(&self, outcome: Attach) {
        let labels = AttachLabels { outcome };
        self.attached.get_or_create(&labels).inc();
    }

    pub(super) fn ended(&self, how: End) {
        self.ended.get_or_create(&EndedLabels { how }).inc();
    }
}
