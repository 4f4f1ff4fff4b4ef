//! The plan of a boot: client, image and range -> what the machine does next. Pure.
//!
//! It judges what the catalog says about one machine and joins the kernel command line; how
//! that is said to a loader is `script`'s business.

use uuid::Uuid;

use super::script::{LONGEST_COMMAND_LINE, is_safe};
use crate::model::client::KernelIp;
use crate::model::{
    BootMethod, Client, DiskProtocol, FileRole, Image, ImageKind, NetworkRange, UnreadyAction,
};

/// What a machine does once its loader asks for a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Load kernel and initrds of this image.
    Kernel {
        /// The image.
        image_id: Uuid,
        /// Number of initrds.
        initrds: u8,
        /// Complete kernel command line but for what the script adds (`initrd=`, the disk's
        /// names and secrets, the phone-home URL, the host name): image, network, client.
        cmdline: String,
        /// How the system reaches its root disk; `None`: the image is a kernel without one.
        disk: Option<DiskProtocol>,
    },
    /// Boot the disk itself over iSCSI (`sanboot`); the system finds it again in the iBFT.
    Disk {
        /// The image.
        image_id: Uuid,
    },
    /// Not now.
    Unready {
        /// Why not.
        why: Unready,
        /// What it does meanwhile (from the range).
        action: UnreadyAction,
    },
}

/// How the disk stands that a machine would get; of no concern to kernel images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskStanding {
    /// It is there, and nobody else has it.
    Ready,
    /// No server has the disk of the image.
    NotStored,
    /// A running machine has it, and its connection answers.
    InUse,
    /// Another server has it, and the machine is sent there.
    Elsewhere,
    /// Other servers have it, and none of them is alive.
    Away,
}

/// Why a machine can't boot now. Metric label, event detail, and a line on its screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unready {
    /// No client has this MAC.
    Unknown,
    /// Its client is disabled.
    Disabled,
    /// It has no image, and there is no default image.
    NoImage,
    /// Its image is a disk that is not stored on this server, nor on another one.
    NoDiskStored,
    /// The servers that have its disk are away.
    DiskServersAway,
    /// It goes on at a server that has its disk.
    SentToServer,
    /// Another machine runs from this client's disk, and answers.
    DiskInUse,
    /// Its image has no kernel file.
    NoKernel,
    /// Its parameters would not be safe in a script, or are longer than a kernel reads.
    UnsafeParameters,
}

impl Unready {
    /// Every value, in declaration order.
    pub const ALL: &'static [Self] = &[
        Self::Unknown,
        Self::Disabled,
        Self::NoImage,
        Self::NoDiskStored,
        Self::DiskServersAway,
        Self::SentToServer,
        Self::DiskInUse,
        Self::NoKernel,
        Self::UnsafeParameters,
    ];

    /// Metric label and event word, `no_image` and the like.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown_client",
            Self::Disabled => "client_disabled",
            Self::NoImage => "no_image",
            Self::NoDiskStored => "no_disk_stored",
            Self::DiskServersAway => "disk_servers_away",
            Self::SentToServer => "sent_to_server",
            Self::DiskInUse => "disk_in_use",
            Self::NoKernel => "no_kernel",
            Self::UnsafeParameters => "unsafe_parameters",
        }
    }

    /// What the machine waits for, in a sentence for whoever stands before it.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Unknown => "no client is registered with this MAC address",
            Self::Disabled => "this client is registered, but not enabled yet",
            Self::NoImage => "no image is assigned to this client, and there is no default image",
            Self::NoDiskStored => "the disk of the assigned image is not stored on this server",
            Self::DiskServersAway => "the servers that have the disk of this client are away",
            Self::SentToServer => "another server has the disk of this client",
            Self::DiskInUse => "a running machine has the disk of this client",
            Self::NoKernel => "the assigned image has no kernel",
            Self::UnsafeParameters => {
                "the boot parameters are too long, or hold characters that are not allowed"
            }
        }
    }
}

/// Makes the plan. `image` is the client's assigned image or else the default one; `range` is
/// the network it boots from (without one, an unready machine waits); `disk` is the standing
/// of the disk that it would get.
#[must_use]
pub fn plan(
    client: Option<&Client>,
    image: Option<&Image>,
    range: Option<&NetworkRange>,
    disk: DiskStanding,
) -> Plan {
    let action = range.map_or(UnreadyAction::Wait, |r| r.unready);
    match judge(client, image, range, disk) {
        Ok(plan) => plan,
        // Another machine with this one's MAC runs: the local disk is not meant then either. Nor
        // while it is on its way to another server.
        Err(why @ (Unready::DiskInUse | Unready::SentToServer)) => Plan::Unready {
            why,
            action: UnreadyAction::Wait,
        },
        Err(why) => Plan::Unready { why, action },
    }
}

fn judge(
    client: Option<&Client>,
    image: Option<&Image>,
    range: Option<&NetworkRange>,
    standing: DiskStanding,
) -> Result<Plan, Unready> {
    let client = client.ok_or(Unready::Unknown)?;
    if !client.enabled {
        return Err(Unready::Disabled);
    }
    let image = image.ok_or(Unready::NoImage)?;
    let disk = match image.kind {
        ImageKind::Kernel => None,
        ImageKind::Disk => {
            match standing {
                DiskStanding::Ready => {}
                DiskStanding::NotStored => return Err(Unready::NoDiskStored),
                DiskStanding::InUse => return Err(Unready::DiskInUse),
                DiskStanding::Elsewhere => return Err(Unready::SentToServer),
                DiskStanding::Away => return Err(Unready::DiskServersAway),
            }
            match image.boot_method {
                BootMethod::San => return Ok(Plan::Disk { image_id: image.id }),
                BootMethod::Iscsi => Some(DiskProtocol::Iscsi),
                BootMethod::Nbd => Some(DiskProtocol::Nbd),
            }
        }
    };
    if image.file(FileRole::Kernel, 0).is_none() {
        return Err(Unready::NoKernel);
    }
    // Positions count from 0 without gaps; what lies behind a gap could not be named anyway.
    let initrds = (0..=99_u8)
        .take_while(|n| image.file(FileRole::Initrd, i32::from(*n)).is_some())
        .count();
    let mut cmdline = cmdline(client, image, range);
    // The root disk is at the other end of the network; no initramfs asks for an address
    // unless it is told to.
    if disk.is_some() && !cmdline.split(' ').any(|word| word.starts_with("ip=")) {
        cmdline.push_str(if cmdline.is_empty() {
            "ip=dhcp"
        } else {
            " ip=dhcp"
        });
    }
    if !is_safe(&cmdline) || cmdline.len() > LONGEST_COMMAND_LINE {
        return Err(Unready::UnsafeParameters);
    }
    Ok(Plan::Kernel {
        image_id: image.id,
        initrds: u8::try_from(initrds).unwrap_or(u8::MAX),
        cmdline,
        disk,
    })
}

/// Image, then network, then client: the kernel and most of its readers let the last of two
/// equal parameters win, so a client's own ones come last.
fn cmdline(client: &Client, image: &Image, range: Option<&NetworkRange>) -> String {
    let ip = kernel_ip(client, range);
    let parts = [
        image.cmdline.trim(),
        ip.as_deref().unwrap_or_default(),
        client.custom_boot_params.as_deref().unwrap_or_default(),
    ];
    let parts: Vec<&str> = parts
        .into_iter()
        .map(str::trim)
        .filter(|p| !p.is_empty())
        .collect();
    parts.join(" ")
}

/// The `ip=` parameter (Linux, `Documentation/admin-guide/nfs/nfsroot.rst`). `static` needs an
/// address that is reserved in this range; without one the machine asks by DHCP, which gives
/// it the same network settings.
fn kernel_ip(client: &Client, range: Option<&NetworkRange>) -> Option<String> {
    let config = client.network_config.as_ref()?;
    let fixed = || {
        let range = range?;
        let address = client.ip_address.filter(|a| range.is_host(*a))?;
        let gateway = config.gateway.or(range.gateway);
        let gateway = gateway.map(|g| g.to_string()).unwrap_or_default();
        let netmask = range.network.mask();
        let hostname = &client.hostname;
        Some(format!("ip={address}::{gateway}:{netmask}:{hostname}::off"))
    };
    Some(match config.kernel_ip? {
        KernelIp::Static => fixed().unwrap_or_else(|| "ip=dhcp".to_owned()),
        KernelIp::Dhcp => "ip=dhcp".to_owned(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{
        BootMethod, BootMode, DiskMode, ImageFile, ImageFormat, MacAddr, NetworkConfig, PhoneHome,
        RangeMode, Serve, Timestamp,
    };

    /// A client that may boot.
    pub(crate) fn client() -> Client {
        Client {
            id: Uuid::from_u128(1),
            mac_address: MacAddr([0x52, 0x54, 0, 0xaa, 0xbb, 1]),
            more_macs: vec![],
            hostname: "pc-01".into(),
            ip_address: Some([10, 0, 0, 5].into()),
            assigned_image_id: Some(Uuid::from_u128(2)),
            boot_mode: BootMode::Uefi,
            cpu_cores: 2,
            memory_mb: 1024,
            network_config: None,
            custom_boot_params: None,
            enabled: true,
            disk_mode: DiskMode::Ephemeral,
            ring: None,
            pinned_version_id: None,
            auto_registered: false,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
            last_boot_at: None,
            boot_count: 0,
        }
    }

    /// A kernel image with that many initrds.
    pub(crate) fn image(initrds: i32) -> Image {
        let file = |role, position, path: String| ImageFile {
            role,
            position,
            path,
            sha256: "0".repeat(64),
            size_bytes: 1,
        };
        let id = Uuid::from_u128(2);
        let mut files = vec![file(FileRole::Kernel, 0, format!("images/{id}/kernel"))];
        files.extend(
            (0..initrds).map(|n| file(FileRole::Initrd, n, format!("images/{id}/initrd{n}"))),
        );
        Image {
            id,
            name: "debian-12".into(),
            description: None,
            os_type: None,
            size_bytes: 1,
            format: ImageFormat::Raw,
            kind: ImageKind::Kernel,
            path: format!("images/{id}"),
            zfs_dataset: None,
            cmdline: " console=ttyS0 quiet ".into(),
            boot_method: BootMethod::San,
            sha256: None,
            source_format: None,
            phone_home: PhoneHome::Auto,
            tags: None,
            is_template: false,
            parent_image_id: None,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
            files,
        }
    }

    /// 10.0.0.0/24.
    pub(crate) fn range() -> NetworkRange {
        NetworkRange {
            id: Uuid::from_u128(3),
            name: "lan".into(),
            network: "10.0.0.0/24".parse().unwrap(),
            mode: RangeMode::Full,
            serve: Serve::All,
            unready: UnreadyAction::Local,
            always_chainload: false,
            pools: vec![],
            exclusions: vec![],
            gateway: Some([10, 0, 0, 1].into()),
            dns: vec![],
            domain: None,
            search: vec![],
            ntp: vec![],
            mtu: None,
            routes: vec![],
            lease_seconds: 3600,
            options: BTreeMap::new(),
        }
    }

    fn why(client: Option<&Client>, image: Option<&Image>) -> Unready {
        match plan(client, image, Some(&range()), DiskStanding::Ready) {
            Plan::Unready {
                why,
                action: UnreadyAction::Local,
            } => why,
            other => panic!("{other:?}"),
        }
    }

    fn cmdline_of(client: &Client, image: &Image) -> String {
        match plan(
            Some(client),
            Some(image),
            Some(&range()),
            DiskStanding::Ready,
        ) {
            Plan::Kernel { cmdline, .. } => cmdline,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_reason_has_its_case() {
        let (good, kernel) = (client(), image(1));
        assert_eq!(why(None, Some(&kernel)), Unready::Unknown);
        let disabled = Client {
            enabled: false,
            ..client()
        };
        assert_eq!(why(Some(&disabled), Some(&kernel)), Unready::Disabled);
        assert_eq!(why(Some(&good), None), Unready::NoImage);
        let empty = Image {
            files: vec![],
            ..image(0)
        };
        assert_eq!(why(Some(&good), Some(&empty)), Unready::NoKernel);
        for bad in ["a\nb", "x=${net0/mac}", "a || shell", "a && b", "a ; b"] {
            let unsafe_one = Client {
                custom_boot_params: Some(bad.into()),
                ..client()
            };
            assert_eq!(
                why(Some(&unsafe_one), Some(&kernel)),
                Unready::UnsafeParameters,
                "{bad}"
            );
        }
        let long = Image {
            cmdline: "x".repeat(5000),
            ..image(0)
        };
        assert_eq!(why(Some(&good), Some(&long)), Unready::UnsafeParameters);
        for reason in Unready::ALL {
            assert!(is_safe(reason.sentence()) && reason.sentence().len() < 75);
        }
    }

    #[test]
    fn a_machine_of_no_range_waits() {
        assert_eq!(
            plan(None, None, None, DiskStanding::NotStored),
            Plan::Unready {
                why: Unready::Unknown,
                action: UnreadyAction::Wait
            }
        );
    }

    #[test]
    fn the_command_line_is_image_network_client() {
        let mut who = client();
        assert_eq!(cmdline_of(&who, &image(0)), "console=ttyS0 quiet");
        who.custom_boot_params = Some("debug".into());
        who.network_config = Some(NetworkConfig {
            kernel_ip: Some(KernelIp::Static),
            ..NetworkConfig::default()
        });
        assert_eq!(
            cmdline_of(&who, &image(0)),
            "console=ttyS0 quiet ip=10.0.0.5::10.0.0.1:255.255.255.0:pc-01::off debug"
        );
        who.network_config = Some(NetworkConfig {
            kernel_ip: Some(KernelIp::Static),
            gateway: Some([10, 0, 0, 254].into()),
            ..NetworkConfig::default()
        });
        assert!(cmdline_of(&who, &image(0)).contains("ip=10.0.0.5::10.0.0.254:255"));
        // Nothing reserved here: DHCP gives the same settings.
        who.ip_address = Some([192, 168, 0, 5].into());
        assert_eq!(
            cmdline_of(&who, &image(0)),
            "console=ttyS0 quiet ip=dhcp debug"
        );
    }

    /// A disk image that is booted so, with a kernel and an initrd beside it or not.
    fn disk(boot_method: BootMethod, with_kernel: bool) -> Image {
        let files = if with_kernel { image(1).files } else { vec![] };
        Image {
            kind: ImageKind::Disk,
            boot_method,
            files,
            ..image(0)
        }
    }

    #[test]
    fn a_disk_is_booted_as_its_image_says() {
        use DiskStanding::{InUse, NotStored, Ready};
        let who = client();
        let of = |image: &Image, standing| plan(Some(&who), Some(image), Some(&range()), standing);
        let image_id = Uuid::from_u128(2);
        let kernel = |disk| Plan::Kernel {
            image_id,
            initrds: 1,
            cmdline: "console=ttyS0 quiet ip=dhcp".into(),
            disk: Some(disk),
        };
        let unready = |why, action| Plan::Unready { why, action };
        let (local, wait) = (UnreadyAction::Local, UnreadyAction::Wait);
        use BootMethod::{Iscsi, Nbd, San};
        for (method, with_kernel, standing, expected) in [
            (San, false, Ready, Plan::Disk { image_id }),
            (San, true, Ready, Plan::Disk { image_id }),
            (San, true, NotStored, unready(Unready::NoDiskStored, local)),
            // Wherever its range sends others: the disk in the machine is not meant.
            (San, true, InUse, unready(Unready::DiskInUse, wait)),
            (Iscsi, true, Ready, kernel(DiskProtocol::Iscsi)),
            (Nbd, true, Ready, kernel(DiskProtocol::Nbd)),
            (Iscsi, false, Ready, unready(Unready::NoKernel, local)),
            (Nbd, false, Ready, unready(Unready::NoKernel, local)),
            (Nbd, true, NotStored, unready(Unready::NoDiskStored, local)),
            (Nbd, false, InUse, unready(Unready::DiskInUse, wait)),
        ] {
            assert_eq!(
                of(&disk(method, with_kernel), standing),
                expected,
                "{method} {standing:?}"
            );
        }
        // A kernel image has no disk that could be missing.
        assert!(matches!(
            of(&image(0), NotStored),
            Plan::Kernel { disk: None, .. }
        ));
    }

    #[test]
    fn a_root_on_the_network_needs_an_address() {
        let mut who = client();
        let mut image = disk(BootMethod::Nbd, true);
        assert_eq!(cmdline_of(&who, &image), "console=ttyS0 quiet ip=dhcp");
        image.cmdline = String::new();
        assert_eq!(cmdline_of(&who, &image), "ip=dhcp");
        image.cmdline = "ip=:::::eth0:dhcp quiet".into();
        assert_eq!(cmdline_of(&who, &image), "ip=:::::eth0:dhcp quiet");
        image.cmdline = "quiet".into();
        who.network_config = Some(NetworkConfig {
            kernel_ip: Some(KernelIp::Static),
            ..NetworkConfig::default()
        });
        assert!(!cmdline_of(&who, &image).contains("ip=dhcp"));
    }

    #[test]
    fn initrds_are_counted_up_to_the_first_gap() {
        let ready = DiskStanding::Ready;
        let count = |image: &Image| match plan(Some(&client()), Some(image), None, ready) {
            Plan::Kernel { initrds, .. } => initrds,
            other => panic!("{other:?}"),
        };
        assert_eq!(count(&image(0)), 0);
        assert_eq!(count(&image(3)), 3);
        let mut gap = image(3);
        gap.files.remove(2);
        assert_eq!(count(&gap), 1);
    }
}
