//! Boot attempts and their events: a trace of every power-on, known machine or not.

use std::net::Ipv4Addr;

use uuid::Uuid;

use super::{Arch, MacAddr, Timestamp, words};

words! {
    /// How a boot attempt ended.
    pub enum AttemptOutcome {
        /// Not over.
        Open = "open",
        /// The system came up and was shut down, or its next boot shows that it ended.
        Completed = "completed",
        /// It failed; `reason` says at which stage and why.
        Failed = "failed",
        /// The machine started again before it was up.
        Restarted = "restarted",
        /// It was told to wait and has gone, or was sent to its local disk.
        Refused = "refused",
    }
}

words! {
    /// The stages of a boot, in the order in which a healthy one passes them. Each
    /// observation is a row of `boot_events`.
    pub enum Stage {
        /// First packet of the ROM.
        Discover = "discover",
        /// We offered an address (full) or the boot part (proxy).
        Offer = "offer",
        /// The ROM's address is leased and acknowledged.
        Lease = "lease",
        /// A loader's name went out in an ACK or a proxy reply.
        LoaderOffered = "loader_offered",
        /// The loader's first byte was asked for.
        LoaderRequested = "loader_requested",
        /// The loader was delivered whole.
        LoaderSent = "loader_sent",
        /// The loader (iPXE) speaks DHCP itself.
        LoaderRunning = "loader_running",
        /// The loader's address is leased.
        LoaderLease = "loader_lease",
        /// It fetched its boot script.
        Script = "script",
        /// It was told to wait, and why.
        Waiting = "waiting",
        /// It was sent to its local disk.
        LocalBoot = "local_boot",
        /// Kernel asked for.
        KernelRequested = "kernel_requested",
        /// Kernel delivered whole.
        KernelSent = "kernel_sent",
        /// Initrd asked for.
        InitrdRequested = "initrd_requested",
        /// Initrd delivered whole.
        InitrdSent = "initrd_sent",
        /// The operating system speaks DHCP.
        OsNetwork = "os_network",
        /// Its disk was given to it: by its loader (`sanboot`) or by its system.
        DiskAttached = "disk_attached",
        /// It read from its disk for the first time after a login.
        DiskRead = "disk_read",
        /// It wrote to its disk for the first time after a login.
        DiskWritten = "disk_written",
        /// The operating system reports that it is up.
        Up = "up",
        /// The operating system says it is stopping.
        Bye = "bye",
        /// We refused something; detail says what.
        Refused = "refused",
        /// A transfer broke off.
        TransferBroken = "transfer_broken",
        /// Another DHCP server answered this machine.
        ForeignServer = "foreign_server",
        /// A connection to its disk ended; detail says why, and the bytes that went over it.
        DiskDetached = "disk_detached",
        /// It may write no more to its disk: what it has written is as much as its quota.
        DiskQuota = "disk_quota",
        /// Its boot had been given up, and it answered when it was asked: it is on.
        Answers = "answers",
        /// The machine started again.
        Restarted = "restarted",
        /// It ended in an error; detail says stage and cause.
        Error = "error",
        /// It ended without an error.
        Ended = "ended",
    }
}

/// A row of `boot_attempts`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Attempt {
    /// Made by us, time ordered (UUID version 7).
    pub id: Uuid,
    /// The MAC that asked.
    pub mac: MacAddr,
    /// Option 97.
    pub smbios_uuid: Option<Uuid>,
    /// The client, while its row exists.
    pub client_id: Option<Uuid>,
    /// Its name, outliving the row.
    pub client_name: Option<String>,
    /// The image's name, outliving the row.
    pub image_name: Option<String>,
    /// Which server of ours saw it.
    pub server_id: Uuid,
    /// The range it came from.
    pub range_id: Option<Uuid>,
    /// What the ROM says it is.
    pub arch: Option<Arch>,
    /// Its address.
    pub client_ip: Option<Ipv4Addr>,
    /// Ours.
    pub boot_server_ip: Option<Ipv4Addr>,
    /// First packet.
    pub started_at: Timestamp,
    /// End, `None` while open.
    pub ended_at: Option<Timestamp>,
    /// The stage it reached.
    pub last_stage: Stage,
    /// How it ended.
    pub outcome: AttemptOutcome,
    /// Stage and cause, in a sentence.
    pub reason: Option<String>,
    /// Bytes that it has read from its disk so far.
    #[serde(default)]
    pub disk_bytes_read: i64,
    /// Bytes that it has written to its disk so far.
    #[serde(default)]
    pub disk_bytes_written: i64,
    /// The version of the image that its disk was made from.
    #[serde(default)]
    pub version_id: Option<Uuid>,
    /// Its name, outliving the row.
    #[serde(default)]
    pub version_name: Option<String>,
}

/// A row of `boot_events`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BootEvent {
    /// The attempt (and session) it belongs to.
    pub session_id: Uuid,
    /// When.
    pub at: Timestamp,
    /// What.
    pub stage: Stage,
    /// Facts for people and queries: `bytes`, `seconds`, `file`, `door`, `cause`, ...
    pub detail: serde_json::Value,
}
