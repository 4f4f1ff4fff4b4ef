//! What is seen of a machine that boots: the words in which DHCP, TFTP and HTTP tell the
//! tracker. Plain data; judges nothing.

use std::net::{Ipv4Addr, SocketAddr};

use uuid::Uuid;

use crate::model::{
    Arch, BootMethod, DiskMode, DiskProtocol, FileRole, MacAddr, PhoneHome, Timestamp,
};

/// Something that was seen of a machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// Whose.
    pub mac: MacAddr,
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: Evidence,
    /// What else that packet or request told.
    pub context: Context,
}

/// Facts that come along; each is kept once known.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Context {
    /// SMBIOS UUID, option 97.
    pub smbios_uuid: Option<Uuid>,
    /// Option 93.
    pub arch: Option<Arch>,
    /// Network range.
    pub range_id: Option<Uuid>,
    /// The client, as the cache has it.
    pub client: Option<(Uuid, String)>,
    /// The image it would boot, as the cache has it.
    pub image: Option<(Uuid, String)>,
    /// The machine's address.
    pub client_ip: Option<Ipv4Addr>,
    /// Ours.
    pub server_ip: Option<Ipv4Addr>,
    /// Whether that image's system reports itself (goes with `image`).
    pub phone_home: Option<PhoneHome>,
    /// How the disk of that image is booted; `None` for a kernel without one (goes with
    /// `image`).
    pub boot_method: Option<BootMethod>,
    /// When the lease just acknowledged runs out (goes with an ACK of a leased address).
    pub lease_until: Option<Timestamp>,
}

/// The door a file goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Door {
    /// TFTP.
    Tftp,
    /// HTTP.
    Http,
}

impl Door {
    /// `tftp` or `http`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tftp => "tftp",
            Self::Http => "http",
        }
    }
}

impl BootFile {
    /// `snponly.efi`, `kernel`, `initrd0`, ...
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            Self::Loader(name) => name.clone(),
            Self::Image(FileRole::Kernel, _) => "kernel".to_owned(),
            Self::Image(FileRole::Initrd, n) => format!("initrd{n}"),
        }
    }
}

impl Speaker {
    /// `rom`, `ipxe` or `os`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rom => "rom",
            Self::Ipxe => "ipxe",
            Self::Os => "os",
        }
    }
}

/// A login to a disk that was let in.
#[derive(Debug, Clone, PartialEq)]
pub struct DiskLogin {
    /// Number of the connection, unique while the server runs.
    pub connection: u64,
    /// Spoken how.
    pub protocol: DiskProtocol,
    /// From where.
    pub peer: SocketAddr,
    /// Whether what it writes is kept.
    pub mode: DiskMode,
    /// Whether its copy of the image was made for this login.
    pub clone: CloneOrigin,
    /// The version of the image that it was made from, by id and name, where that is known.
    pub version: Option<(Uuid, String)>,
}

crate::model::words! {
    /// Where the copy came from that a machine was given.
    pub enum CloneOrigin {
        /// Made for this login.
        New = "new",
        /// Made before.
        Found = "found",
    }
}

/// What a connection to a disk has moved, from its beginning on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUse {
    /// Number of the connection.
    pub connection: u64,
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
}

/// A file as the timeline names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BootFile {
    /// A loader by name.
    Loader(String),
    /// A file of the image.
    Image(FileRole, u8),
}

/// Who sent a DHCP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Speaker {
    /// A boot ROM: PXEClient or HTTPClient, not iPXE.
    Rom,
    /// iPXE, ours or one from a ROM.
    Ipxe,
    /// Anything else: an operating system.
    Os,
}

/// What was observed.
#[derive(Debug, Clone, PartialEq)]
pub enum Evidence {
    /// A DISCOVER (or a proxy's boot request).
    Discover(Speaker),
    /// We sent an OFFER; `loader` when it named one.
    Offered {
        /// To whom.
        speaker: Speaker,
        /// Address offered; `None` as proxy.
        address: Option<Ipv4Addr>,
        /// Loader named.
        loader: Option<String>,
    },
    /// An ACK went out, its lease stored (or a proxy's ACK, without address).
    Acknowledged {
        /// To whom.
        speaker: Speaker,
        /// Address leased; `None` as proxy.
        address: Option<Ipv4Addr>,
        /// Loader named.
        loader: Option<String>,
    },
    /// A boot request was refused or left unanswered, with a named reason and a sentence.
    Refused {
        /// `loader_missing`, `pool_exhausted`, ... as in the metrics.
        reason: &'static str,
        /// For people.
        sentence: String,
        /// True if the boot can't go on (it becomes an error).
        fatal: bool,
    },
    /// The script was asked for and answered.
    Script {
        /// `None`: it boots an image. Else why not (`no_image`, ...), and whether it waits
        /// (true) or goes to its local disk.
        unready: Option<(&'static str, bool)>,
    },
    /// A transfer began.
    FileStarted {
        /// Which file.
        file: BootFile,
        /// By which door.
        door: Door,
        /// Bytes in all.
        size: u64,
    },
    /// A transfer is complete.
    FileSent {
        /// Which file.
        file: BootFile,
        /// By which door.
        door: Door,
        /// Bytes in all.
        size: u64,
        /// Seconds it took.
        seconds: f64,
    },
    /// A transfer broke off.
    FileBroken {
        /// Which file.
        file: BootFile,
        /// By which door.
        door: Door,
        /// Bytes delivered.
        sent: u64,
        /// Bytes in all.
        size: u64,
        /// In a few words.
        cause: String,
    },
    /// Another DHCP server answered this machine.
    ForeignServer(Ipv4Addr),
    /// Phone-home: up.
    Up,
    /// Phone-home: beat.
    Beat,
    /// Phone-home: bye, with the reason it gave.
    Bye(Option<String>),
    /// It logged in to its disk and was given it.
    DiskAttached(DiskLogin),
    /// The first read over a connection to its disk.
    DiskRead {
        /// Which connection.
        connection: u64,
    },
    /// The first write over a connection to its disk.
    DiskWritten {
        /// Which connection.
        connection: u64,
    },
    /// A write to its disk was refused: it has written as much as it may.
    DiskQuota {
        /// Bytes that it may write.
        limit: u64,
    },
    /// What a connection to its disk has moved so far.
    DiskUsed(DiskUse),
    /// A connection to its disk is gone.
    DiskDetached {
        /// What it moved in all.
        moved: DiskUse,
        /// Why, in a few words.
        cause: &'static str,
    },
    /// It proved to be this boot, but was not given its disk.
    DiskRefused {
        /// `not_stored`, `in_use`, ... as in the metrics.
        reason: &'static str,
        /// For people.
        sentence: String,
    },
    /// Its boot had been given up, and it answered an ARP request: it is on.
    Answers,
    /// Its lease was released by the OS.
    Released,
    /// It takes an address of another DHCP server (`context.client_ip`): no stage of its
    /// own, but the doors know it by that address.
    Located,
}
