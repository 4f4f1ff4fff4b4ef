//! What a look into a disk image found: the findings as a closed set, how grave each is, and
//! each in plain words with the way out.

mod sentences;

use super::image::BootMethod;
use super::{Timestamp, words};

words! {
    /// How grave a finding is.
    pub enum Severity {
        /// It does not boot diskless like this.
        Stops = "stops",
        /// It may not, or not everywhere, or something else will go wrong.
        Warns = "warns",
        /// As it should be.
        Good = "good",
    }
}
words! {
    /// What all findings come to.
    pub enum CheckVerdict {
        /// Nothing was found that would stop it, and all that matters was seen.
        Bootable = "bootable",
        /// Nothing was found that would stop it, but not all that matters could be seen.
        Unsure = "unsure",
        /// Something stops it.
        NotBootable = "not_bootable",
    }
}
words! {
    /// A finding. Its words for people are in [`CheckFinding::sentence`].
    pub enum CheckFinding {
        /// A partition table of the old kind.
        Mbr = "mbr",
        /// A GPT.
        Gpt = "gpt",
        /// No partition table.
        NoTable = "no_table",
        /// The first copy of the GPT is damaged, the one at the end is whole.
        GptHeaderBroken = "gpt_header_broken",
        /// The copy of the GPT at the end is not there or damaged.
        GptBackupBroken = "gpt_backup_broken",
        /// Neither copy of the GPT is whole.
        GptBroken = "gpt_broken",
        /// A GPT for sectors of 4096 bytes.
        GptOfLargeSectors = "gpt_of_large_sectors",
        /// A GPT whose first sector does not say so.
        NoProtectiveMbr = "no_protective_mbr",
        /// A GPT and other entries in the MBR.
        HybridMbr = "hybrid_mbr",
        /// The chain of logical partitions is broken.
        EbrBroken = "ebr_broken",
        /// A partition goes on after the end of the disk.
        PartitionOutside = "partition_outside",
        /// Two partitions share sectors.
        PartitionsOverlap = "partitions_overlap",
        /// BIOS machines find a loader.
        BootsBios = "boots_bios",
        /// UEFI machines find a loader.
        BootsUefi = "boots_uefi",
        /// Neither do.
        NoBootLoader = "no_boot_loader",
        /// BIOS machines do not, UEFI machines do.
        NoBiosLoader = "no_bios_loader",
        /// UEFI machines do not, BIOS machines do.
        NoUefiLoader = "no_uefi_loader",
        /// GRUB's first sector is there, but not what it loads.
        GrubCoreMissing = "grub_core_missing",
        /// No partition is active, and the first sector looks for one.
        NoActivePartition = "no_active_partition",
        /// UEFI loaders are there, but none where a machine without an entry looks.
        UefiVendorOnly = "uefi_vendor_only",
        /// Windows' boot manager without its settings.
        BcdMissing = "bcd_missing",
        /// The system partition's file system can't be read.
        EspBroken = "esp_broken",
        /// Linux.
        OsLinux = "os_linux",
        /// Windows.
        OsWindows = "os_windows",
        /// Nothing is known of Windows' inside.
        WindowsUnread = "windows_unread",
        /// No operating system was found.
        OsUnknown = "os_unknown",
        /// A file system, volume or partition that can't be looked into.
        Unreadable = "unreadable",
        /// A partition that asks for a passphrase.
        Encrypted = "encrypted",
        /// A file system that is damaged.
        FileSystemBroken = "file_system_broken",
        /// A kernel.
        Kernel = "kernel",
        /// No kernel.
        NoKernel = "no_kernel",
        /// A kernel without initramfs.
        NoInitramfs = "no_initramfs",
        /// An initramfs that can't be read.
        InitramfsUnreadable = "initramfs_unreadable",
        /// The image has no kernel files of its own, which its boot method loads.
        NoKernelFiles = "no_kernel_files",
        /// The initramfs can do iSCSI.
        Iscsi = "iscsi",
        /// It can't.
        NoIscsi = "no_iscsi",
        /// It can, but not find out which disk.
        NoIbft = "no_ibft",
        /// It can, but is not told to.
        IscsiNotAutomatic = "iscsi_not_automatic",
        /// The initramfs can do NBD.
        Nbd = "nbd",
        /// It can't.
        NoNbd = "no_nbd",
        /// It has drivers of network cards.
        NetworkDrivers = "network_drivers",
        /// It has none.
        NoNetworkDrivers = "no_network_drivers",
        /// fstab names the root by its device.
        RootByDeviceName = "root_by_device_name",
        /// fstab names something else so.
        MountByDeviceName = "mount_by_device_name",
        /// fstab waits for something that is not on the disk.
        MountMissing = "mount_missing",
        /// fstab has swap on the disk.
        SwapOnDisk = "swap_on_disk",
        /// The boot loader's command line names the root by its device.
        KernelRootByDeviceName = "kernel_root_by_device_name",
        /// An address of its own.
        StaticAddress = "static_address",
        /// Windows on a boot method that loads a kernel and initrds.
        WindowsMethod = "windows_method",
        /// Windows' loader or kernel is not there.
        WindowsFileMissing = "windows_file_missing",
        /// The active partition starts Windows' boot manager, which is not there.
        BootManagerMissing = "boot_manager_missing",
        /// A hive can't be read.
        RegistryUnreadable = "registry_unreadable",
        /// A hive's last changes lie in its logs.
        RegistryOpen = "registry_open",
        /// NDIS and TCP/IP do not start at boot.
        NetworkStackNotAtBoot = "network_stack_not_at_boot",
        /// Windows' iSCSI driver starts at boot.
        WindowsIscsi = "windows_iscsi",
        /// It does not.
        NoWindowsIscsi = "no_windows_iscsi",
        /// The service of Windows' initiator is disabled.
        InitiatorDisabled = "initiator_disabled",
        /// Drivers of network cards start at boot.
        CardsAtBoot = "cards_at_boot",
        /// None of those that Windows has met does.
        NoCardAtBoot = "no_card_at_boot",
        /// One of several does not.
        CardNotAtBoot = "card_not_at_boot",
        /// Windows has met no wired network card.
        NoCardKnown = "no_card_known",
        /// Windows pages to the disk.
        PageFile = "page_file",
        /// Windows keeps its kernel's memory over a shutdown.
        FastStart = "fast_start",
        /// Windows waits to go on where it was.
        Hibernated = "hibernated",
        /// The volume is to be checked.
        NtfsDirty = "ntfs_dirty",
        /// A volume is encrypted by Windows.
        BitLocker = "bit_locker",
        /// Windows is a member of a domain.
        DomainMember = "domain_member",
        /// Windows is not set up yet.
        WindowsInSetup = "windows_in_setup",
        /// The check came to its limits.
        GaveUp = "gave_up",
    }
}

impl CheckFinding {
    /// How grave it is for a disk that is booted so.
    #[must_use]
    pub const fn severity(self, method: BootMethod) -> Severity {
        use CheckFinding as F;
        // Firmware looks at table and loader only if it boots the disk itself.
        let san = matches!(method, BootMethod::San);
        match self {
            F::Mbr
            | F::Gpt
            | F::BootsBios
            | F::BootsUefi
            | F::OsLinux
            | F::OsWindows
            | F::Kernel
            | F::Iscsi
            | F::Nbd
            | F::NetworkDrivers
            | F::WindowsIscsi
            | F::CardsAtBoot => Severity::Good,
            F::GptBroken
            | F::GptOfLargeSectors
            | F::PartitionOutside
            | F::NoIscsi
            | F::NoNbd
            | F::NoNetworkDrivers
            | F::WindowsMethod
            | F::WindowsFileMissing
            | F::NetworkStackNotAtBoot
            | F::NoWindowsIscsi
            | F::NoCardAtBoot
            | F::NoCardKnown
            | F::Hibernated
            | F::BitLocker => Severity::Stops,
            F::NoTable
            | F::NoBootLoader
            | F::NoKernel
            | F::NoInitramfs
            | F::BcdMissing
            | F::BootManagerMissing
            | F::NoIbft
            | F::IscsiNotAutomatic
            | F::KernelRootByDeviceName
                if san =>
            {
                Severity::Stops
            }
            _ => Severity::Warns,
        }
    }

    /// True if it hides something that matters.
    #[must_use]
    pub const fn hides(self) -> bool {
        use CheckFinding as F;
        matches!(
            self,
            F::WindowsUnread
                | F::OsUnknown
                | F::Encrypted
                | F::FileSystemBroken
                | F::EspBroken
                | F::InitramfsUnreadable
                | F::NoKernelFiles
                | F::RegistryUnreadable
                | F::RegistryOpen
                | F::BitLocker
                | F::GaveUp
        )
    }
}

/// One finding with its words.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Found {
    /// Which.
    pub finding: CheckFinding,
    /// How grave it is for this image.
    pub severity: Severity,
    /// What was found, and where.
    pub sentence: String,
    /// What to do about it.
    pub way_out: Option<String>,
}

/// What a look into a disk image found. `None`: not known.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageCheck {
    /// When.
    pub checked_at: Timestamp,
    /// How the image was booted then: what is grave depends on it.
    pub boot_method: BootMethod,
    /// What it comes to.
    pub verdict: CheckVerdict,
    /// BIOS machines find a boot loader.
    pub bios: bool,
    /// UEFI machines find a boot loader.
    pub uefi: bool,
    /// The initramfs can do iSCSI.
    pub iscsi: Option<bool>,
    /// The initramfs can do NBD.
    pub nbd: Option<bool>,
    /// The operating system, such as `debian-12` or `windows`.
    pub os_type: Option<String>,
    /// The grave ones first.
    pub findings: Vec<Found>,
}

impl ImageCheck {
    /// What stops it, in sentences.
    pub fn stops(&self) -> impl Iterator<Item = &Found> {
        let stops = |found: &&Found| found.severity == Severity::Stops;
        self.findings.iter().filter(stops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_good_has_a_way_out_and_words_of_its_own() {
        let mut sentences = std::collections::HashSet::new();
        for finding in CheckFinding::ALL {
            for method in BootMethod::ALL {
                let good = finding.severity(*method) == Severity::Good;
                assert_eq!(good, finding.way_out().is_none(), "{finding}");
            }
            assert!(sentences.insert(finding.sentence()), "{finding}");
            assert!(!finding.sentence().ends_with('.'), "{finding}");
        }
    }
}
