//! The check of disk images: a disk that is well, each way in which one can be broken, and
//! bytes that nobody would write. `fixture` makes them.

pub(crate) mod fixture;
mod windows;
mod windows_disk;

use std::sync::Arc;

use dls::image_check::Bytes;
use dls::model::CheckFinding as F;
use dls::model::{BootMethod, CheckVerdict, ImageCheck, Severity};
use proptest::prelude::*;

use fixture::{
    CORE, Changed, Debian, ESP, ROOT, VERSION, bomb, good_disk, has, look, look_as, put, sentence,
    with_table,
};

const SECTOR: u64 = 512;

fn graves(found: &ImageCheck) -> Vec<F> {
    let grave = found
        .findings
        .iter()
        .filter(|one| one.severity != Severity::Good);
    grave.map(|one| one.finding).collect()
}

#[test]
fn a_disk_that_is_well_boots_every_way() {
    for method in BootMethod::ALL {
        let initrd: Arc<dyn Bytes> = Arc::new(Debian::good().packed());
        let initrds = (*method != BootMethod::San).then(|| vec![initrd]);
        let found = look_as(good_disk(), *method, initrds);
        assert_eq!(graves(&found), [], "{found:#?}");
        assert_eq!(found.verdict, CheckVerdict::Bootable);
        assert!(found.bios && found.uefi && found.iscsi == Some(true) && found.nbd == Some(true));
        assert_eq!(found.os_type.as_deref(), Some("debian-12"));
        assert!(sentence(&found, F::NetworkDrivers).contains("e1000e"));
        assert!(sentence(&found, F::Kernel).contains(VERSION));
    }
}

#[test]
fn an_initramfs_is_read_however_it_is_packed() {
    let ways: [&'static [&'static str]; 6] = [
        &[],
        &["gzip"],
        &["xz", "--check=crc32"],
        &["zstd", "-q"],
        &["lz4", "-l"],
        &["lz4", "-q"],
    ];
    for packed_by in ways {
        let initrd: Arc<dyn Bytes> = Arc::new(
            Debian {
                packed_by,
                ..Debian::good()
            }
            .packed(),
        );
        let found = look_as(good_disk(), BootMethod::Nbd, Some(vec![initrd]));
        assert_eq!(
            found.verdict,
            CheckVerdict::Bootable,
            "{packed_by:?}: {found:#?}"
        );
        assert_eq!(
            (found.iscsi, found.nbd),
            (Some(true), Some(true)),
            "{packed_by:?}"
        );
    }
    // Modules may be packed themselves, or be in the kernel.
    let mut built_in = Debian::good().lacking(&["iscsi_tcp", "e1000e"]);
    let list = "kernel/drivers/scsi/iscsi_tcp.ko\nkernel/drivers/net/virtio_net.ko\n";
    built_in.initramfs.insert(
        format!("lib/modules/{VERSION}/modules.builtin"),
        list.into(),
    );
    let module = format!("lib/modules/{VERSION}/kernel/drivers/net/ethernet/intel/igb/igb.ko.xz");
    built_in.initramfs.insert(module, "x".into());
    let found = look(built_in.disk());
    assert_eq!(graves(&found), [], "{found:#?}");
    let cards = sentence(&found, F::NetworkDrivers);
    assert!(
        cards.contains("igb") && cards.contains("virtio_net"),
        "{cards}"
    );
}

#[test]
fn each_fault_of_an_initramfs_is_found() {
    let cases: [(&[&str], F, &str); 7] = [
        (&["iscsistart"], F::NoIscsi, "lacks iscsistart"),
        (&["iscsi_tcp"], F::NoIscsi, "lacks the driver iscsi_tcp"),
        (&["local-top/iscsi"], F::NoIscsi, "lacks what starts it"),
        (
            &["iscsi", "nbd"],
            F::NoIscsi,
            "iscsistart, the driver iscsi_tcp, what",
        ),
        (&["iscsi_ibft"], F::NoIbft, VERSION),
        (&["etc/iscsi.initramfs"], F::IscsiNotAutomatic, VERSION),
        (&["net/ethernet"], F::NoNetworkDrivers, VERSION),
    ];
    for (parts, finding, words) in cases {
        let found = look(Debian::good().lacking(parts).disk());
        assert_eq!(graves(&found), [finding], "{found:#?}");
        assert!(sentence(&found, finding).contains(words), "{found:#?}");
        assert_eq!(found.verdict, CheckVerdict::NotBootable, "{finding}");
    }
    let dracut = Debian::good().lacking(&["etc/iscsi.initramfs"]);
    let dracut = dracut.with(
        "boot/grub/grub.cfg",
        "\tlinux /vmlinuz root=UUID=1 rd.iscsi.firmware=1\n",
    );
    assert_eq!(graves(&look(dracut.disk())), []);

    // By NBD, an initramfs without it is as grave, and iSCSI of no concern.
    let lacking = Debian::good().lacking(&["iscsi", "block/nbd"]).packed();
    let initrd: Arc<dyn Bytes> = Arc::new(lacking);
    let found = look_as(good_disk(), BootMethod::Nbd, Some(vec![initrd.clone()]));
    assert_eq!(graves(&found), [F::NoNbd], "{found:#?}");
    // What a second initrd brings counts.
    let more: Arc<dyn Bytes> = Arc::new(Debian::good().packed());
    let found = look_as(good_disk(), BootMethod::Nbd, Some(vec![initrd, more]));
    assert_eq!(found.verdict, CheckVerdict::Bootable, "{found:#?}");
    // Without a kernel of its own, the disk's own tells what would come.
    let found = look_as(good_disk(), BootMethod::Nbd, None);
    assert_eq!(
        (graves(&found), found.nbd),
        (vec![F::NoKernelFiles], Some(true))
    );
    assert_eq!(found.verdict, CheckVerdict::Unsure);
}

#[test]
fn each_fault_of_a_system_is_found() {
    let good = Debian::good;
    let kernel = format!("boot/vmlinuz-{VERSION}");
    let initrd = format!("boot/initrd.img-{VERSION}");
    let grub = "linux /vmlinuz root=/dev/vda1 ro\n";
    let netplan = "network:\n  ethernets:\n    eth0:\n      addresses:\n        - 10.0.0.5/24\n";
    let stops = CheckVerdict::NotBootable;
    let fine = CheckVerdict::Bootable;
    let cases: Vec<(Debian, F, CheckVerdict, &str)> = vec![
        (good().with(&kernel, ""), F::NoKernel, stops, "/boot"),
        (good().with(&initrd, ""), F::NoInitramfs, stops, ""),
        (
            good().with(&initrd, "no archive"),
            F::InitramfsUnreadable,
            CheckVerdict::Unsure,
            "no archive that is known",
        ),
        (
            good().with(&initrd, "BZh91AY&SY"),
            F::InitramfsUnreadable,
            CheckVerdict::Unsure,
            "bzip2",
        ),
        (
            good().with("etc/fstab", "/dev/nvme0n1p2 / ext4 defaults 0 1\n"),
            F::RootByDeviceName,
            stops,
            "/dev/nvme0n1p2 /",
        ),
        (
            good().with("etc/fstab", "/dev/sda1 / ext4 defaults 0 1\n"),
            F::RootByDeviceName,
            fine,
            "/dev/sda1",
        ),
        (
            good().with("etc/fstab", "/dev/sdb1 /data ext4 defaults 0 1\n"),
            F::MountByDeviceName,
            fine,
            "/data",
        ),
        (
            good().with(
                "etc/fstab",
                "UUID=0c1de1f0-77f3-4b0e-8f0a-2f5a3d1c2b11 /home ext4 defaults 0 2\n",
            ),
            F::MountMissing,
            fine,
            "(UUID=0c1de1f0-77f3-4b0e-8f0a-2f5a3d1c2b11 /home)",
        ),
        (
            good().with("etc/fstab", "/swapfile none swap sw 0 0\n"),
            F::SwapOnDisk,
            fine,
            "(/swapfile)",
        ),
        (
            good().with("boot/grub/grub.cfg", grub),
            F::KernelRootByDeviceName,
            stops,
            "root=/dev/vda1",
        ),
        (
            good().with(
                "etc/network/interfaces",
                "iface eth0 inet static\n  address 10.0.0.5\n",
            ),
            F::StaticAddress,
            fine,
            "interfaces",
        ),
        (
            good().with("etc/netplan/01.yaml", netplan),
            F::StaticAddress,
            fine,
            "01.yaml",
        ),
        (
            good().with(
                "etc/NetworkManager/system-connections/a.nmconnection",
                "[ipv4]\nmethod=manual\n",
            ),
            F::StaticAddress,
            fine,
            "a.nmconnection",
        ),
        (
            good().with("etc/os-release", ""),
            F::OsUnknown,
            CheckVerdict::Unsure,
            "",
        ),
    ];
    for (debian, finding, verdict, words) in cases {
        let found = look(debian.disk());
        assert_eq!(graves(&found), [finding], "{found:#?}");
        assert!(sentence(&found, finding).contains(words), "{found:#?}");
        assert_eq!(found.verdict, verdict, "{finding}");
    }
    let harmless = "/dev/sdb1 /data ext4 nofail 0 1\n/dev/mapper/vg-root / ext4 defaults 0 1\n\
         UUID=0c1de1f0-77f3-4b0e-8f0a-2f5a3d1c2b11 /home ext4 nofail 0 2\n\
         /dev/zram0 none swap defaults 0 0\n";
    let dns = "    nameservers:\n      addresses: [10.0.0.1]\n    routes:\n      - to: default\n";
    let found = look(
        good()
            .with("etc/fstab", harmless)
            .with("etc/netplan/a.yaml", dns)
            .disk(),
    );
    assert_eq!(graves(&found), [], "{found:#?}");
    // Of several kernels the newest counts.
    let older = good().with("boot/vmlinuz-6.1.0-9-amd64", "x");
    assert!(sentence(&look(older.disk()), F::Kernel).contains(VERSION));
}

#[test]
fn each_fault_of_a_loader_is_found() {
    let esp = |files: &[&str]| {
        let esp = files.iter().map(|file| (*file).to_owned()).collect();
        Debian {
            esp,
            ..Debian::good()
        }
    };
    let found = look(esp(&[]).disk());
    assert_eq!(graves(&found), [F::NoUefiLoader], "{found:#?}");
    let found = look(esp(&["EFI/debian/shimx64.efi"]).disk());
    assert!(sentence(&found, F::UefiVendorOnly).contains("\\EFI\\debian\\shimx64.efi"));
    assert!(!found.uefi && found.bios);
    let windows = esp(&["EFI/BOOT/bootx64.efi", "EFI/Microsoft/Boot/bootmgfw.efi"]);
    let found = look(windows.disk());
    assert!(
        has(&found, F::BcdMissing) && has(&found, F::OsWindows) && found.uefi,
        "{found:#?}"
    );
    let windows = esp(&["EFI/Microsoft/Boot/bootmgfw.efi", "EFI/Microsoft/Boot/BCD"]);
    let found = look(
        Debian {
            root: [].into(),
            ..windows
        }
        .disk(),
    );
    assert_eq!(found.os_type.as_deref(), Some("windows"));
    assert!(
        !has(&found, F::BcdMissing) && has(&found, F::WindowsUnread),
        "{found:#?}"
    );

    let changed = |at: u64, what: &[u8]| {
        let mut disk = good_disk().to_vec();
        put(&mut disk, at, what);
        look(disk)
    };
    let found = changed(CORE * SECTOR, &[0; 512]);
    assert_eq!(
        graves(&found),
        [F::GrubCoreMissing, F::NoBiosLoader],
        "{found:#?}"
    );
    let found = changed(0, &[0; 440]);
    assert_eq!(graves(&found), [F::NoBiosLoader], "{found:#?}");
    let found = changed(ESP * SECTOR, &[0; 512]);
    assert_eq!(
        graves(&found),
        [F::EspBroken, F::NoUefiLoader, F::MountMissing],
        "{found:#?}"
    );
    let mut disk = good_disk().to_vec();
    put(&mut disk, 0, &[0; 440]);
    put(&mut disk, ESP * SECTOR, &[0; 512]);
    let found = look(disk.clone());
    assert!(has(&found, F::NoBootLoader) && found.verdict == CheckVerdict::NotBootable);
    // With a kernel of its own nobody looks for a loader.
    let found = look_as(Arc::new(disk), BootMethod::Iscsi, None);
    assert!(
        !has(&found, F::NoBootLoader) && !found.bios && !found.uefi,
        "{found:#?}"
    );
}

#[test]
fn each_fault_of_a_gpt_is_found() {
    let good = good_disk();
    let last = good.len() as u64 - SECTOR;
    type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
    let cases: [(F, CheckVerdict, Change<'_>); 8] = [
        (F::GptHeaderBroken, CheckVerdict::Bootable, &|d| {
            d[512 + 40] ^= 1;
        }),
        (F::GptHeaderBroken, CheckVerdict::Bootable, &|d| {
            d[1024 + 56] ^= 1;
        }),
        (F::GptBackupBroken, CheckVerdict::Bootable, &|d| {
            put(d, last, &[0; 512]);
        }),
        (F::GptBackupBroken, CheckVerdict::Bootable, &|d| {
            d.resize(d.len() + (1 << 20), 0);
        }),
        (F::GptBroken, CheckVerdict::NotBootable, &|d| {
            d[512 + 40] ^= 1;
            put(d, last + 40, &[9]);
        }),
        (F::NoProtectiveMbr, CheckVerdict::Bootable, &|d| {
            put(d, 446, &[0; 16]);
        }),
        (F::HybridMbr, CheckVerdict::Bootable, &|d| {
            put(
                d,
                462,
                &[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0],
            );
        }),
        (F::PartitionOutside, CheckVerdict::NotBootable, &|d| {
            d.truncate(40 << 20);
        }),
    ];
    for (finding, verdict, change) in cases {
        let mut disk = good.to_vec();
        change(&mut disk);
        let found = look(disk);
        assert!(has(&found, finding), "{finding}: {found:#?}");
        assert_eq!(found.verdict, verdict, "{finding}: {found:#?}");
    }
    // For sectors of 4096 bytes the header lies at the second of those.
    let mut large = vec![0; 8 << 20];
    put(&mut large, 4096, b"EFI PART");
    assert!(has(&look(large), F::GptOfLargeSectors));
}

#[test]
fn each_fault_of_an_mbr_is_found() {
    let found = look(vec![0; 1 << 20]);
    assert!(has(&found, F::NoTable) && has(&found, F::NoBootLoader));
    assert!(look(Vec::new()).verdict == CheckVerdict::NotBootable);

    let table = "label: dos\nstart=2048,size=4096,type=83\nstart=8192,size=40960,type=5\n\
                 start=10240,size=4096,type=83\nstart=16384,size=4096,type=83\nstart=24576,size=4096,type=7\n";
    let mut disk = with_table(table);
    put(&mut disk, 0, &[0xfa; 16]);
    put(&mut disk, 24576 * SECTOR + 3, b"NTFS    ");
    let found = look(disk.clone());
    assert!(
        has(&found, F::Mbr) && has(&found, F::NoActivePartition),
        "{found:#?}"
    );
    assert!(
        !has(&found, F::EbrBroken) && !has(&found, F::PartitionsOverlap),
        "{found:#?}"
    );
    assert!(
        sentence(&found, F::FileSystemBroken).contains("NTFS in partition 7"),
        "{found:#?}"
    );
    // The first logical one's link leads back to itself, or nowhere.
    let next = 8192 * SECTOR + 462 + 8;
    for target in [[0; 4], [0xff; 4]] {
        let mut broken = disk.clone();
        put(&mut broken, next, &target);
        assert!(has(&look(broken), F::EbrBroken), "{target:?}");
    }
    let mut active = disk.clone();
    active[446] = 0x80;
    put(&mut active, 2048 * SECTOR + 510, &[0x55, 0xaa]);
    let found = look(active);
    assert!(found.bios && sentence(&found, F::BootsBios).contains("active partition 1"));
    put(&mut disk, 446 + 8, &9000_u32.to_le_bytes());
    assert!(sentence(&look(disk), F::PartitionsOverlap).contains("partitions 1 and 5"));
}

#[test]
fn what_can_not_be_looked_into_is_named() {
    let cases: [(u64, &[u8], F, &str); 7] = [
        (0, b"XFSB", F::Unreadable, "XFS in partition 3"),
        (0x10040, b"_BHRfS_M", F::Unreadable, "Btrfs"),
        (512, b"LABELONE", F::Unreadable, "LVM"),
        (3, b"NTFS    ", F::FileSystemBroken, "NTFS in partition 3"),
        (0, b"LUKS\xba\xbe", F::Encrypted, "partition 3"),
        (3, b"EXFAT   ", F::Unreadable, "exFAT"),
        (1024 + 0x18, &[0xff; 4], F::FileSystemBroken, "partition 3"),
    ];
    for (at, magic, finding, words) in cases {
        let mut disk = good_disk().to_vec();
        if at != 1024 + 0x18 {
            put(&mut disk, ROOT * SECTOR, &[0; 4096]);
        }
        put(&mut disk, ROOT * SECTOR + at, magic);
        let found = look(disk);
        assert!(sentence(&found, finding).contains(words), "{found:#?}");
        assert!(
            has(&found, F::OsUnknown) && found.verdict == CheckVerdict::Unsure,
            "{found:#?}"
        );
    }
}

#[test]
fn a_file_system_of_a_size_that_can_not_be_takes_no_memory() {
    let at = ROOT * SECTOR + 1024;
    let base = good_disk();
    // Without checksums, so that nothing else is wrong; once low, once high half.
    let features = base[at as usize + 0x65] & !0x04;
    for field in [4 + 3, 0x150] {
        let bytes = vec![(at + 0x65, features), (at + field, 0xff)];
        let disk = Changed {
            disk: base.clone(),
            bytes,
        };
        let found = look_as(Arc::new(disk), BootMethod::San, None);
        assert!(
            sentence(&found, F::FileSystemBroken).contains("larger than its partition"),
            "{found:#?}"
        );
    }
}

#[test]
fn a_check_has_an_end() {
    // Unpacked it would have 1.5 GiB.
    let bomb: Arc<dyn Bytes> = Arc::new(bomb(1536 << 20));
    assert!(bomb.size() < 1 << 20);
    let found = look_as(good_disk(), BootMethod::Nbd, Some(vec![bomb]));
    assert!(has(&found, F::InitramfsUnreadable), "{found:#?}");

    /// Whoever lends the bytes has had enough.
    struct Late;
    impl Bytes for Late {
        fn size(&self) -> u64 {
            1 << 40
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::TimedOut.into())
        }
    }
    let found = look_as(Arc::new(Late), BootMethod::San, None);
    assert!(has(&found, F::GaveUp), "{found:#?}");
}

/// Places of the good disk where something is read.
fn places() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..34 * SECTOR,
        (ESP * SECTOR)..(ESP * SECTOR + (96 << 10)),
        (ROOT * SECTOR + 1024)..(ROOT * SECTOR + 2048),
        (ROOT * SECTOR)..(ROOT * SECTOR + (512 << 10)),
        (ROOT * SECTOR)..(ROOT * SECTOR + (20 << 20)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_disk_makes_it_fall(bytes in prop::collection::vec((places(), any::<u8>()), 1..24), whole in any::<bool>()) {
        let mut bytes = bytes;
        if whole {
            // Sums that don't fit end most looks early; ext4 without them goes on.
            bytes.push((ROOT * SECTOR + 1024 + 0x64 + 1, 0));
        }
        let disk = Changed { disk: good_disk(), bytes };
        let found = look_as(Arc::new(disk), BootMethod::San, None);
        prop_assert!(found.findings.len() <= 100);
    }

    #[test]
    fn no_initramfs_makes_it_fall(
        way in 0..5_usize,
        bytes in prop::collection::vec((0..4096_usize, any::<u8>()), 1..8),
        cut in 0..4096_usize,
    ) {
        let ways: [&'static [&'static str]; 5] = [&[], &["gzip"], &["xz"], &["zstd", "-q"], &["lz4", "-l"]];
        static PACKED: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
        let packed = PACKED.get_or_init(|| {
            ways.iter().map(|way| Debian { packed_by: way, ..Debian::good() }.packed()).collect()
        });
        let mut initrd = packed[way].clone();
        for (at, byte) in bytes {
            let length = initrd.len();
            initrd[at % length] = byte;
        }
        if cut % 3 == 0 {
            initrd.truncate(cut);
        }
        let found = look_as(Arc::new(vec![0; 4096]), BootMethod::Nbd, Some(vec![Arc::new(initrd)]));
        prop_assert!(found.verdict != CheckVerdict::Bootable);
    }
}
