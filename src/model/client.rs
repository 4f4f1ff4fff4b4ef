//! Clients: the machines that boot from us.

use std::net::Ipv4Addr;

use uuid::Uuid;

use super::{MacAddr, Timestamp, words};

words! {
    /// The seed's boot modes.
    pub enum BootMode {
        /// Network boot, whatever the firmware.
        Pxe = "pxe",
        /// UEFI firmware.
        Uefi = "uefi",
        /// BIOS firmware.
        Legacy = "legacy",
    }
}

words! {
    /// What becomes of what a machine writes to its disk.
    pub enum DiskMode {
        /// Clean at each boot: the clone belongs to the boot session.
        Ephemeral = "ephemeral",
        /// Kept: the clone belongs to client and image.
        Persistent = "persistent",
    }
}

/// A row of `clients` with every MAC address that means it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Client {
    /// Primary key.
    pub id: Uuid,
    /// First MAC (`clients.mac_address`).
    pub mac_address: MacAddr,
    /// Further MACs (`client_macs`), without the first.
    pub more_macs: Vec<MacAddr>,
    /// Host name; also given by DHCP.
    pub hostname: String,
    /// Reserved address.
    pub ip_address: Option<Ipv4Addr>,
    /// Image it boots; `None`: the default image, or it waits.
    pub assigned_image_id: Option<Uuid>,
    /// Boot mode as registered.
    pub boot_mode: BootMode,
    /// Cores, as registered.
    pub cpu_cores: i32,
    /// MiB of memory, as registered.
    pub memory_mb: i32,
    /// Overrides of the range's network settings, and extras.
    pub network_config: Option<NetworkConfig>,
    /// Appended to the kernel command line.
    pub custom_boot_params: Option<String>,
    /// Whether its disk is clean at each boot.
    pub disk_mode: DiskMode,
    /// Boots the canary of this ring, where its image has one.
    #[serde(default)]
    pub ring: Option<String>,
    /// The version of its image that it boots, whatever is released (`clients.pinned_version`).
    #[serde(default)]
    pub pinned_version_id: Option<Uuid>,
    /// A disabled client is shown a waiting screen.
    pub enabled: bool,
    /// True where the machine registered itself and nobody has touched it since.
    pub auto_registered: bool,
    /// Made at.
    pub created_at: Timestamp,
    /// Last change by an admin.
    pub updated_at: Timestamp,
    /// Start of the last boot.
    pub last_boot_at: Option<Timestamp>,
    /// Boots so far.
    pub boot_count: i64,
}

impl Client {
    /// Every MAC that means this client, the first one first.
    pub fn macs(&self) -> impl Iterator<Item = MacAddr> + '_ {
        std::iter::once(self.mac_address).chain(self.more_macs.iter().copied())
    }
}

/// Keys of `clients.network_config` (JSON). What is set wins over the network
/// range's value for this machine; unknown keys are refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Default gateway (option 3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Name servers (option 6).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Vec<Ipv4Addr>>,
    /// Domain (option 15).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search list (option 119).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search: Option<Vec<String>>,
    /// Time servers (option 42).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ntp: Option<Vec<Ipv4Addr>>,
    /// Interface MTU in bytes (option 26).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Adds `ip=ADDRESS::GATEWAY:NETMASK:HOSTNAME::off` to the kernel command line when
    /// `static`; `dhcp` adds `ip=dhcp`; absent adds nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_ip: Option<KernelIp>,
}

words! {
    /// How the kernel's `ip=` parameter is made.
    pub enum KernelIp {
        /// `ip=` with the machine's reserved address.
        Static = "static",
        /// `ip=dhcp`.
        Dhcp = "dhcp",
    }
}
