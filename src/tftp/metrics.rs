//! What TFTP counts. Every transfer's end, every refusal and every silence has a name here;
//! nothing is dropped uncounted.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::wire::Malformed;

/// How a transfer ended; see also [`super::machine::Outcome`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Ending {
    /// Acknowledged to the last block.
    Complete,
    /// The client wanted the size only, or comes back without options.
    Probe,
    /// The client ended it with an ERROR.
    ClientError,
    /// The client fell silent.
    TimedOut,
    /// All sent, the last ACK never came.
    Unconfirmed,
    /// Too slow to hold its place.
    TooSlow,
    /// The file could not be read.
    ReadFailed,
    /// A packet could not be sent.
    SendFailed,
    /// The server stopped.
    Stopped,
    /// The same client, from the same port, asked for something else or started again.
    Superseded,
}

/// Why a request got an ERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Refusal {
    /// A WRQ: nothing is ever taken.
    Write,
    /// netascii would tear binary files.
    Netascii,
    /// A request that can't be parsed.
    Malformed,
    /// The name is none that `BootPath` knows.
    BadPath,
    /// No such loader in `loader_dir`.
    NoLoader,
    /// A token that proves nothing.
    BadToken,
    /// The boot it belongs to is over.
    Over,
    /// No machine with that address boots from us.
    NotBooting,
    /// The image has no such file.
    NoSuchItem,
    /// The file can't be read on this server.
    Unreadable,
    /// A report by phone-home: those go by HTTP.
    Report,
    /// No socket for the transfer: out of file descriptors or ports.
    NoSocket,
    /// A packet from somebody else at a transfer's port (RFC 1350 section 4).
    Stranger,
}

/// Why a packet got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Silence {
    /// An ERROR: answers to errors are how loops begin (RFC 1350 section 7).
    Error,
    /// An ACK, DATA or OACK at the port for requests.
    NoRequest,
    /// Too short to be a packet.
    Short,
    /// An opcode that no RFC has.
    Opcode,
    /// A source port below 1024, or our own: another server, not a client (CVE-2024-2169).
    SourcePort,
    /// A source address that is no host's.
    SourceAddress,
    /// A request to a broadcast address (RFC 1123 section 4.2.3.5).
    Broadcast,
    /// The system did not tell which address was asked.
    NoLocalAddress,
    /// The request of a transfer that lives came again.
    Repeated,
    /// As many transfers as the server takes.
    Full,
    /// As many transfers as one address gets.
    SourceFull,
    /// As many transfers nobody has acknowledged yet as one address gets.
    SourceUnconfirmed,
    /// One stranger too many at a transfer's port.
    Stranger,
    /// A malformed or unexpected packet from the client itself within a transfer.
    InTransfer,
}

impl From<Malformed> for Silence {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Opcode => Self::Opcode,
            Malformed::Short
            | Malformed::TooLong
            | Malformed::Unterminated
            | Malformed::NoName
            | Malformed::Mode => Self::Short,
        }
    }
}

/// Label set of [`TftpMetrics::transfers`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndingLabel {
    /// How it ended.
    pub outcome: Ending,
}

/// Label set of [`TftpMetrics::refusals`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusalLabel {
    /// Why.
    pub reason: Refusal,
}

/// Label set of [`TftpMetrics::silences`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SilenceLabel {
    /// Why.
    pub reason: Silence,
}

/// The counters; clones share them.
#[derive(Debug, Clone, Default)]
pub struct TftpMetrics {
    /// Transfers that ended, by outcome.
    pub transfers: Family<EndingLabel, Counter>,
    /// Requests and strangers answered by an ERROR, by reason.
    pub refusals: Family<RefusalLabel, Counter>,
    /// Packets not answered, by reason.
    pub silences: Family<SilenceLabel, Counter>,
    /// Transfers that live.
    pub active: Gauge,
    /// Bytes of files that clients acknowledged.
    pub bytes: Counter,
    /// DATA packets sent.
    pub blocks: Counter,
    /// Those of them that were sent again.
    pub blocks_resent: Counter,
}

impl TftpMetrics {
    /// Puts the counters into a registry, under the prefix `tftp`.
    pub fn register(&self, registry: &mut Registry) {
        let tftp = registry.sub_registry_with_prefix("tftp");
        tftp.register(
            "transfers",
            "Transfers that ended, by outcome",
            self.transfers.clone(),
        );
        tftp.register(
            "refusals",
            "Packets answered by an ERROR, by reason",
            self.refusals.clone(),
        );
        tftp.register(
            "silences",
            "Packets not answered, by reason",
            self.silences.clone(),
        );
        tftp.register("active", "Transfers that live", self.active.clone());
        tftp.register(
            "bytes",
            "Bytes of files that clients acknowledged",
            self.bytes.clone(),
        );
        tftp.register("blocks", "DATA packets sent", self.blocks.clone());
        tftp.register(
            "blocks_resent",
            "DATA packets sent again",
            self.blocks_resent.clone(),
        );
    }

    /// Counts an end.
    pub fn ended(&self, outcome: Ending) {
        self.transfers.get_or_create(&EndingLabel { outcome }).inc();
    }

    /// Counts a refusal.
    pub fn refused(&self, reason: Refusal) {
        self.refusals.get_or_create(&RefusalLabel { reason }).inc();
    }

    /// Counts a silence.
    pub fn silent(&self, reason: Silence) {
        self.silences.get_or_create(&SilenceLabel { reason }).inc();
    }
}
