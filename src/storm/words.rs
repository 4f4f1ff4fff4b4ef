//! Stages of a boot as the storm counts them, what is fetched, and the causes of failures.

use crate::model::words;

words! {
    /// What a machine does, in the order of a boot.
    pub enum Stage {
        /// The firmware's DISCOVER until an offer is taken.
        RomDiscover = "rom discover",
        /// Its REQUEST until the ACK.
        RomRequest = "rom request",
        /// The loader, by TFTP or HTTP.
        Loader = "loader",
        /// iPXE's DISCOVER until an offer is taken.
        IpxeDiscover = "ipxe discover",
        /// Its REQUEST until the ACK.
        IpxeRequest = "ipxe request",
        /// The boot script.
        Script = "script",
        /// Waiting because the script says so.
        Wait = "wait",
        /// The kernel.
        Kernel = "kernel",
        /// All initrds, each by itself.
        Initrd = "initrd",
        /// The system's DISCOVER until an offer is taken.
        SystemDiscover = "system discover",
        /// Its REQUEST until the ACK.
        SystemRequest = "system request",
        /// Connecting and logging in to the disk.
        Login = "disk login",
        /// Each read of the profile.
        Read = "disk read",
        /// Each write of the profile.
        Write = "disk write",
        /// Each flush.
        Flush = "disk flush",
        /// Reading its own writes back.
        Verify = "read back",
        /// Telling the server: up, beat, bye.
        Report = "report",
        /// Being on, after `up`.
        Stay = "stay",
    }
}

impl Stage {
    /// True for an exchange of DHCP.
    #[must_use]
    pub const fn is_dhcp(self) -> bool {
        matches!(
            self,
            Self::RomDiscover
                | Self::RomRequest
                | Self::IpxeDiscover
                | Self::IpxeRequest
                | Self::SystemDiscover
                | Self::SystemRequest
        )
    }
}

words! {
    /// Why a machine did not boot.
    pub enum Cause {
        /// No server offered an address, however often it was asked.
        NoOffer = "no_offer",
        /// The REQUEST was not answered, however often it was sent.
        NoAck = "no_ack",
        /// A server refused the address that was asked for, again and again.
        Nak = "nak",
        /// An address, and nothing to boot.
        NoBootFile = "no_boot_file",
        /// The packet could not be sent.
        Send = "send",
        /// `--addresses`: the leased address is none of this host's.
        AddressNotLocal = "address_not_local",
        /// TFTP: no answer, however often it was asked.
        TftpSilence = "tftp_silence",
        /// TFTP: an ERROR.
        TftpError = "tftp_error",
        /// HTTP: no connection.
        HttpConnect = "http_connect",
        /// HTTP: another status than 200.
        HttpStatus = "http_status",
        /// HTTP: the connection ended before the body did.
        HttpCut = "http_cut",
        /// The script is none, or can't be followed.
        Script = "script",
        /// The script names nothing that can be booted.
        NothingToBoot = "nothing_to_boot",
        /// The script sends the machine to its own disk.
        LocalBoot = "local_boot",
        /// The script told it to wait until its time was over.
        ToldToWait = "told_to_wait",
        /// Scripts that lead to each other.
        Loop = "script_loop",
        /// The disk's port: no connection.
        DiskConnect = "disk_connect",
        /// The login was refused.
        DiskRefused = "disk_refused",
        /// The server did not prove that it knows the machine's disk (mutual CHAP).
        ServerUnproven = "server_unproven",
        /// The disk's connection ended.
        DiskClosed = "disk_closed",
        /// A read, write or flush was answered by an error.
        DiskError = "disk_error",
        /// The other end does not speak the protocol.
        DiskProtocol = "disk_protocol",
        /// A file has other bytes or another length than it must have.
        WrongFile = "wrong_file",
        /// The disk has other bytes than it must have.
        WrongDisk = "wrong_disk",
        /// The machine's own write is not what it reads.
        LostWrite = "lost_write",
        /// Its time was over.
        Deadline = "deadline",
        /// The storm was interrupted.
        Interrupted = "interrupted",
    }
}

/// What is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The boot loader.
    Loader,
    /// The boot script; each machine has its own, so it is not compared.
    Script,
    /// The kernel.
    Kernel,
    /// An initrd, by its place.
    Initrd(u8),
    /// The disk that is read.
    Disk,
}

impl Role {
    /// The stage that it is fetched in.
    #[must_use]
    pub const fn stage(self) -> Stage {
        match self {
            Self::Loader => Stage::Loader,
            Self::Script => Stage::Script,
            Self::Kernel => Stage::Kernel,
            Self::Initrd(_) => Stage::Initrd,
            Self::Disk => Stage::Read,
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Loader => f.write_str("loader"),
            Self::Script => f.write_str("script"),
            Self::Kernel => f.write_str("kernel"),
            Self::Initrd(n) => write!(f, "initrd{n}"),
            Self::Disk => f.write_str("disk"),
        }
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    /// `loader`, `kernel`, `initrd` (the first), `initrdN`, `disk`.
    fn from_str(word: &str) -> Result<Self, String> {
        let bad = || format!("`{word}` is not one of: loader, kernel, initrd0 and so on, disk");
        Ok(match word {
            "loader" => Self::Loader,
            "kernel" => Self::Kernel,
            "disk" => Self::Disk,
            "initrd" => Self::Initrd(0),
            _ => {
                let place = word.strip_prefix("initrd").ok_or_else(bad)?;
                Self::Initrd(place.parse().map_err(|_| bad())?)
            }
        })
    }
}

/// A machine that did not boot: where it stopped, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// Where.
    pub(super) stage: Stage,
    /// Why.
    pub(super) cause: Cause,
    /// In words, for the first of its kind.
    pub(super) detail: String,
}

/// A cause that has no stage yet: who knows the stage adds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Why.
    pub(super) cause: Cause,
    /// In words.
    pub(super) detail: String,
}

impl Trouble {
    pub(super) fn new(cause: Cause, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { cause, detail }
    }

    pub(super) fn at(self, stage: Stage) -> Failure {
        Failure {
            stage,
            cause: self.cause,
            detail: self.detail,
        }
    }
}
