//! Counters of the boot listener. Every answer and every refusal by name.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::boot::files::NoFile;
use crate::boot::path::BadPath;
use crate::crowd::Full;
use crate::telemetry::label_by_word;

/// Clones share the counters.
#[derive(Debug, Clone, Default)]
pub struct HttpMetrics {
    requests: Family<RequestLabels, Counter>,
    sent_bytes: Counter,
    connections: Gauge<i64, AtomicI64>,
    refused: Family<RefusedLabels, Counter>,
    cut: Family<CutLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    item: ItemLabel,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    reason: Crowded,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CutLabels {
    cause: Cut,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ItemLabel {
    Loader,
    Script,
    Kernel,
    Initrd,
    Report,
    None,
}

/// What was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Outcome {
    Served,
    Partial,
    NotModified,
    RangeBeyond,
    Noted,
    BadMethod,
    BadBody,
    OtherHost,
    NotIpv4,
    BadPath(BadPath),
    NoFile(NoFile),
}

/// Why a connection was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Crowded {
    All,
    Address,
}

/// Why a connection was ended by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Cut {
    SlowRequest,
    SlowReader,
    Malformed,
    Other,
}

impl ItemLabel {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Loader => "loader",
            Self::Script => "script",
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Report => "report",
            Self::None => "none",
        }
    }
}

impl Outcome {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Partial => "partial",
            Self::NotModified => "not_modified",
            Self::RangeBeyond => "range_beyond",
            Self::Noted => "noted",
            Self::BadMethod => "bad_method",
            Self::BadBody => "bad_body",
            Self::OtherHost => "other_host",
            Self::NotIpv4 => "not_ipv4",
            Self::BadPath(reason) => reason.as_str(),
            Self::NoFile(reason) => reason.as_str(),
        }
    }
}

impl From<Full> for Crowded {
    fn from(full: Full) -> Self {
        match full {
            Full::All => Self::All,
            Full::Address => Self::Address,
        }
    }
}

impl Crowded {
    const fn as_str(self) -> &'static str {
        match self {
            Self::All => "too_many",
            Self::Address => "too_many_of_address",
        }
    }
}

impl Cut {
    const fn as_str(self) -> &'static str {
        match self {
            Self::SlowRequest => "slow_request",
            Self::SlowReader => "slow_reader",
            Self::Malformed => "malformed",
            Self::Other => "other",
        }
    }
}

label_by_word!(ItemLabel, Outcome, Crowded, Cut);

impl HttpMetrics {
    /// Registers all counters under the prefix `http`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("http");
        registry.register(
            "requests",
            "Requests of the boot listener by what was asked for and how it was answered",
            self.requests.clone(),
        );
        registry.register(
            "sent_bytes",
            "Bytes of files handed to the network",
            self.sent_bytes.clone(),
        );
        registry.register(
            "connections",
            "Connections that are open",
            self.connections.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections closed at once because there were too many",
            self.refused.clone(),
        );
        registry.register(
            "connections_cut",
            "Connections that ended in an error, by cause",
            self.cut.clone(),
        );
    }

    pub(super) fn answered(&self, item: ItemLabel, outcome: Outcome) {
        self.requests
            .get_or_create(&RequestLabels { item, outcome })
            .inc();
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.sent_bytes.inc_by(bytes);
    }

    pub(super) fn opened(&self) {
        self.connections.inc();
    }

    pub(super) fn closed(&self) {
        self.connections.dec();
    }

    pub(super) fn refused(&self, reason: Crowded) {
        self.refused.get_or_create(&RefusedLabels { reason }).inc();
    }

    pub(super) fn cut(&self, cause: Cut) {
        self.cut.get_or_create(&CutLabels { cause }).inc();
    }
}
