//! The findings of a look into a disk in plain words, each with the way out. What they are
//! and how grave is said one level up.

use super::CheckFinding;

impl CheckFinding {
    /// In words, without its subject.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        use CheckFinding as F;
        match self {
            F::Mbr => "the disk has an MBR partition table",
            F::Gpt => "the disk has a GPT partition table",
            F::NoTable => "the disk has no partition table",
            F::GptHeaderBroken => {
                "the GPT at the beginning of the disk is damaged; its copy at the end is whole"
            }
            F::GptBackupBroken => {
                "the copy of the GPT at the end of the disk is missing or damaged: the disk was probably cut short or grown"
            }
            F::GptBroken => "the GPT is damaged, and so is its copy",
            F::GptOfLargeSectors => {
                "the GPT is that of a disk with sectors of 4096 bytes; here they have 512"
            }
            F::NoProtectiveMbr => "the disk has a GPT, but its first sector does not say so",
            F::HybridMbr => {
                "the disk has a GPT and other partitions in its MBR (a hybrid MBR): systems differ in which they believe"
            }
            F::EbrBroken => "the chain of logical partitions is broken or too long",
            F::PartitionOutside => {
                "a partition ends after the end of the disk: the disk was cut short"
            }
            F::PartitionsOverlap => "partitions overlap",
            F::BootsBios => "BIOS machines find a boot loader",
            F::BootsUefi => "UEFI machines find a boot loader",
            F::NoBootLoader => "no boot loader was found, neither for BIOS nor for UEFI",
            F::NoBiosLoader => "BIOS machines find no boot loader; UEFI machines do",
            F::NoUefiLoader => "UEFI machines find no boot loader; BIOS machines do",
            F::GrubCoreMissing => {
                "GRUB's first sector is there, but its core is not where it points"
            }
            F::NoActivePartition => {
                "the first sector starts the active partition, and no partition is active"
            }
            F::UefiVendorOnly => {
                "there are UEFI boot loaders, but none at \\EFI\\BOOT\\BOOTX64.EFI, where a machine without a boot entry for this disk looks"
            }
            F::BcdMissing => "Windows' boot manager is there, but not its settings (BCD)",
            F::EspBroken => "the file system of the EFI system partition can't be read",
            F::OsLinux => "the operating system is Linux",
            F::OsWindows => "the operating system is Windows",
            F::WindowsUnread => {
                "the inside of Windows was not looked at: whether its network and iSCSI drivers start at boot, page file and static addresses are not known"
            }
            F::OsUnknown => "no operating system was found where the check can look",
            F::Unreadable => "the check can't look inside",
            F::Encrypted => {
                "a partition is encrypted: somebody must type its passphrase at each boot"
            }
            F::FileSystemBroken => "a file system is damaged or has features that can't be read",
            F::Kernel => "there is a kernel",
            F::NoKernel => "there is no kernel in /boot",
            F::NoInitramfs => "there is no initramfs for the kernel",
            F::InitramfsUnreadable => "the initramfs can't be read",
            F::NoKernelFiles => {
                "the image has no kernel and initrd of its own, which its boot method loads"
            }
            F::Iscsi => "the initramfs can do iSCSI",
            F::NoIscsi => "the initramfs has no iSCSI",
            F::NoIbft => {
                "the initramfs has iSCSI, but not the driver (iscsi_ibft) that tells it which disk it was booted from"
            }
            F::IscsiNotAutomatic => {
                "the initramfs has iSCSI, but is not told to use what the firmware says"
            }
            F::Nbd => "the initramfs can do NBD",
            F::NoNbd => "the initramfs has no NBD",
            F::NetworkDrivers => "the initramfs has drivers of network cards",
            F::NoNetworkDrivers => "the initramfs has no driver of a network card",
            F::RootByDeviceName => {
                "/etc/fstab names the root by a device that has another name when it comes over the network"
            }
            F::MountByDeviceName => {
                "/etc/fstab waits for a device that has another name, or is not there, when the disk comes over the network"
            }
            F::MountMissing => {
                "/etc/fstab waits for something that is not on this disk: it was probably on another disk of the machine"
            }
            F::SwapOnDisk => {
                "swap lies on the disk: all machines page over the network, into their copies"
            }
            F::KernelRootByDeviceName => {
                "the boot loader's command line names the root by a device that has another name when it comes over the network"
            }
            F::StaticAddress => {
                "the system gives itself a fixed address: all machines that boot it would have the same, and lose their disk"
            }
            F::WindowsMethod => {
                "Windows boots over the network from an iSCSI disk that the firmware starts; it has no kernel and initrd that could be loaded"
            }
            F::WindowsFileMissing => "a file that starts Windows is missing",
            F::BootManagerMissing => {
                "the active partition starts Windows' boot manager, and \\bootmgr is missing"
            }
            F::RegistryUnreadable => {
                "a hive of Windows' registry can't be read: what it says about drivers, page file and addresses is not known"
            }
            F::RegistryOpen => {
                "Windows was not shut down entirely: the last changes of its registry lie in logs that were not looked at"
            }
            F::NetworkStackNotAtBoot => {
                "Windows' network does not start at boot, before its disk is there"
            }
            F::WindowsIscsi => "Windows' iSCSI driver starts at boot",
            F::NoWindowsIscsi => "Windows' iSCSI driver does not start at boot",
            F::InitiatorDisabled => "the service of Windows' iSCSI initiator (MSiSCSI) is disabled",
            F::CardsAtBoot => "drivers of network cards start at boot",
            F::NoCardAtBoot => "no driver of a network card that Windows knows starts at boot",
            F::CardNotAtBoot => {
                "the driver of one of the network cards that Windows knows does not start at boot: machines with that card lose their disk"
            }
            F::NoCardKnown => "Windows has never had a wired network card: it has no driver set up",
            F::PageFile => {
                "Windows pages to its disk: all machines do so over the network, into their copies"
            }
            F::FastStart => {
                "fast startup is on: a shutdown saves the kernel's memory to the disk, which another machine would go on with"
            }
            F::Hibernated => {
                "Windows hibernates: it would go on with the memory of another machine, and with a disk that has changed since"
            }
            F::NtfsDirty => {
                "the NTFS volume was not unmounted: each machine would check it at each boot"
            }
            F::BitLocker => {
                "a volume is encrypted by BitLocker: its key is bound to the machine that it comes from"
            }
            F::DomainMember => {
                "Windows is a member of a domain: all machines would be the same member, and the first that changes its password shuts the others out"
            }
            F::WindowsInSetup => {
                "Windows' setup is not finished: each machine would go through it at each boot, and it sets up the network anew in between"
            }
            F::GaveUp => "the check came to its limits of bytes or time: there may be more to find",
        }
    }

    /// What to do about it; `None` where nothing is to be done.
    #[must_use]
    pub const fn way_out(self) -> Option<&'static str> {
        use CheckFinding as F;
        Some(match self {
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
            | F::CardsAtBoot => return None,
            F::NoTable => {
                "import the whole disk, not one of its partitions; or give it a kernel of its own (dls image add-files) and set --boot-method iscsi or nbd"
            }
            F::GptHeaderBroken | F::GptBackupBroken => {
                "run `sgdisk -e DISK` or `sfdisk` on it, which write both copies anew"
            }
            F::GptBroken => {
                "mend it with `gdisk` (recovery menu) or take the disk from its machine again"
            }
            F::GptOfLargeSectors => {
                "write the table anew for sectors of 512 bytes, with the same places in bytes, or install on a disk of 512-byte sectors"
            }
            F::NoProtectiveMbr => {
                "run `sgdisk DISK` and write the table, which makes a protective MBR"
            }
            F::HybridMbr => {
                "if nothing needs the MBR's partitions, run `gdisk` and write a protective MBR (menu x, n)"
            }
            F::EbrBroken => {
                "write the table anew with `sfdisk`, or take the disk from its machine again"
            }
            F::PartitionOutside => {
                "take the whole disk from its machine again: a copy that is complete has the size of the disk"
            }
            F::PartitionsOverlap => {
                "look at it with `sfdisk --verify` and mend the table before data is lost"
            }
            F::NoBootLoader => {
                "install one: `grub-install --target=i386-pc DISK`, and for UEFI `grub-install --target=x86_64-efi --removable`; or give it a kernel of its own (dls image add-files) and set --boot-method iscsi or nbd"
            }
            F::NoBiosLoader => {
                "only if BIOS machines are to boot it: `grub-install --target=i386-pc DISK` (with a GPT it needs a BIOS boot partition of 1 MiB)"
            }
            F::NoUefiLoader => {
                "only if UEFI machines are to boot it: make an EFI system partition and run `grub-install --target=x86_64-efi --removable`"
            }
            F::GrubCoreMissing => "run `grub-install --target=i386-pc DISK` again",
            F::NoActivePartition => {
                "mark the partition that boots as active: `sfdisk --activate DISK NUMBER`"
            }
            F::UefiVendorOnly => {
                "run `grub-install --target=x86_64-efi --removable` (Debian: set `grub2/force_efi_extra_removable` to true), or copy the loader to \\EFI\\BOOT\\BOOTX64.EFI; for Windows `bcdboot C:\\Windows /f UEFI`"
            }
            F::BcdMissing => "write them anew in Windows' recovery: `bcdboot C:\\Windows /f ALL`",
            F::EspBroken => "format it as FAT32 and install the boot loader again",
            F::WindowsUnread => {
                "see to it in Windows: the network card's driver and msiscsi start at boot, the page file may lie on C:, the card has its address by DHCP"
            }
            F::OsUnknown => "if there is one, this is no fault; set --os-type by hand",
            F::Unreadable => "this is no fault; what lies in it was not checked",
            F::Encrypted => {
                "take an image without encryption: access to it is protected by the boot's secrets"
            }
            F::FileSystemBroken => {
                "run `e2fsck -f` (Windows: `chkdsk /f`) on it where it comes from, and shut the machine down before its disk is copied"
            }
            F::NoKernel => "install a kernel package, such as linux-image-amd64 or kernel-core",
            F::NoInitramfs => {
                "run `update-initramfs -c -k all` or `dracut --regenerate-all --force`"
            }
            F::InitramfsUnreadable => "make it anew: `update-initramfs -u` or `dracut --force`",
            F::NoKernelFiles => {
                "give it those of its /boot: `dls image add-files IMAGE --kernel F --initrd F`"
            }
            F::NoIscsi => {
                "Debian, Ubuntu: install open-iscsi, put ISCSI_AUTO=true into /etc/iscsi/iscsi.initramfs and run `update-initramfs -u`; Fedora, RHEL: install iscsi-initiator-utils and run `dracut --force --add iscsi`"
            }
            F::NoIbft => {
                "add iscsi_ibft to /etc/initramfs-tools/modules and run `update-initramfs -u`, or run `dracut --force --add-drivers iscsi_ibft`"
            }
            F::IscsiNotAutomatic => {
                "Debian, Ubuntu: put ISCSI_AUTO=true into /etc/iscsi/iscsi.initramfs and run `update-initramfs -u`; Fedora, RHEL: add rd.iscsi.firmware=1 to the kernel's command line (`grubby --update-kernel=ALL --args=rd.iscsi.firmware=1`)"
            }
            F::NoNbd => {
                "Debian, Ubuntu: install nbd-client (and dls-nbd, which connects again after a restart of the server) and run `update-initramfs -u`; Fedora, RHEL: install nbd and run `dracut --force --add nbd`"
            }
            F::NoNetworkDrivers => {
                "Debian, Ubuntu: set MODULES=most in /etc/initramfs-tools/initramfs.conf and run `update-initramfs -u`; Fedora, RHEL: run `dracut --force --no-hostonly --add network`"
            }
            F::RootByDeviceName => "put UUID=.. in its place; `blkid` says which",
            F::MountByDeviceName => "put UUID=.. in its place, or add `nofail` to its options",
            F::MountMissing => "take the line out of /etc/fstab, or add `nofail` to its options",
            F::SwapOnDisk => {
                "take the line out of /etc/fstab; if the machines have little memory, install zram-tools or zram-generator"
            }
            F::KernelRootByDeviceName => {
                "put root=UUID=.. in its place: unset GRUB_DISABLE_LINUX_UUID in /etc/default/grub and run `update-grub`"
            }
            F::StaticAddress => {
                "set it to DHCP, and reserve addresses on the server (dls client set --ip)"
            }
            F::WindowsMethod => "set --boot-method san",
            F::WindowsFileMissing => {
                "mend it in Windows' recovery: `sfc /scannow /offbootdir=C:\\ /offwindir=C:\\Windows`; for the loader `bcdboot C:\\Windows /f ALL`"
            }
            F::BootManagerMissing => {
                "write it anew in Windows' recovery: `bcdboot C:\\Windows /s S: /f BIOS`, S: being the active partition"
            }
            F::RegistryUnreadable => {
                "boot it once where it comes from, or take its copy from \\Windows\\System32\\config\\RegBack, and shut it down entirely: `shutdown /s /t 0`"
            }
            F::RegistryOpen => {
                "turn fast startup off (`powercfg /h off`), shut Windows down entirely (`shutdown /s /t 0`) and take the disk again"
            }
            F::NetworkStackNotAtBoot => {
                "in Windows, as an administrator: `sc config NAME start= boot`, for NDIS and Tcpip"
            }
            F::NoWindowsIscsi => {
                "in Windows, as an administrator: `sc config iScsiPrt start= boot`, and `sc config MSiSCSI start= auto`"
            }
            F::InitiatorDisabled => {
                "in Windows, as an administrator: `sc config MSiSCSI start= auto`"
            }
            F::NoCardAtBoot | F::CardNotAtBoot => {
                "in Windows, as an administrator, for each card's service: `sc config NAME start= boot`; an update of the driver may undo it"
            }
            F::NoCardKnown => {
                "boot it once on a machine with the card of the clients, let Windows install its driver, then `sc config NAME start= boot`"
            }
            F::PageFile => {
                "if the machines have memory enough, turn it off: System, Advanced, Performance, Virtual memory; else keep it small, and count it in the copies' quota"
            }
            F::FastStart => "in Windows, as an administrator: `powercfg /h off`",
            F::Hibernated => {
                "start it where it comes from, run `powercfg /h off`, shut it down and take the disk again"
            }
            F::NtfsDirty => {
                "run `chkdsk /f` in Windows (or `ntfsfix -d` on the partition, at your own risk), shut it down and take the disk again"
            }
            F::BitLocker => {
                "in Windows, as an administrator: `manage-bde -off C:`, wait until all is decrypted, and take the disk again"
            }
            F::DomainMember => {
                "set HKLM\\SYSTEM\\CurrentControlSet\\Services\\Netlogon\\Parameters DisablePasswordChange to 1, and give each machine its own disk or join it at each boot"
            }
            F::WindowsInSetup => {
                "boot it once by `dls client maintain`, finish the setup, see that the drivers start at boot, and publish it"
            }
            F::GaveUp => "look at the rest by hand",
        })
    }
}
