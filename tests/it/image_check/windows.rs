//! Windows: a disk that is well, each way in which one can be broken, and bytes that nobody
//! would write.

use std::sync::Arc;

use dls::model::CheckFinding as F;
use dls::model::{BootMethod, CheckVerdict};
use proptest::prelude::*;

use super::fixture::{Changed, Debian, good_disk, has, look, look_as, put, sentence};
use super::graves;
use super::windows_disk::{
    INTERFACE, SET, STATE, VOLUME, Windows, good_windows, number, text, texts,
};

const START: u64 = VOLUME * 512;

#[test]
fn a_windows_that_is_well_has_nothing_against_it() {
    let found = look_as(good_windows(), BootMethod::San, None);
    assert_eq!(graves(&found), [], "{found:#?}");
    assert_eq!(found.verdict, CheckVerdict::Bootable);
    assert!(found.bios && found.uefi && found.iscsi == Some(true));
    assert_eq!(found.os_type.as_deref(), Some("windows"));
    let name = sentence(&found, F::OsWindows);
    assert!(
        name.contains("Windows 10 Pro 22H2, build 19045.3803"),
        "{name}"
    );
    assert!(sentence(&found, F::CardsAtBoot).ends_with("(e1iexpress)"));
    assert!(has(&found, F::WindowsIscsi) && has(&found, F::Kernel));

    // What Windows starts at boot only if that is by the network is as good.
    let promoted = Windows::good().service("e1iexpress", 3, "System32\\drivers\\e1i65x64.sys");
    let key = format!("{SET}\\Services\\e1iexpress");
    let found = look(promoted.system(&key, "BootFlags", &number(1)).disk());
    assert_eq!(graves(&found), [], "{found:#?}");
    // The set that the next start takes counts, not the one of the last.
    let other = Windows::good().system("Select", "Current", &number(2));
    assert_eq!(graves(&look(other.disk())), []);
    let version = "Microsoft\\Windows NT\\CurrentVersion";
    let eleven = Windows::good().software(version, "CurrentBuild", &text("22631"));
    assert!(sentence(&look(eleven.disk()), F::OsWindows).contains("Windows 11 Pro"));
}

#[test]
fn each_fault_of_windows_is_found() {
    let good = Windows::good;
    let service = |name: &str| format!("{SET}\\Services\\{name}");
    let parameters = service("Tcpip\\Parameters");
    let manager = format!("{SET}\\Control\\Session Manager");
    let (memory, power) = (
        format!("{manager}\\Memory Management"),
        format!("{manager}\\Power"),
    );
    let drivers = "Windows/System32/drivers";
    let stops = CheckVerdict::NotBootable;
    let fine = CheckVerdict::Bootable;
    let e1i = "System32\\drivers\\e1i65x64.sys";
    let cases: Vec<(Windows, F, CheckVerdict, &str)> = vec![
        (
            good().service("NDIS", 1, "system32\\drivers\\ndis.sys"),
            F::NetworkStackNotAtBoot,
            stops,
            "NDIS has Start=1",
        ),
        (
            good().lacking(&service("Tcpip")),
            F::NetworkStackNotAtBoot,
            stops,
            "Tcpip is not installed",
        ),
        (
            good().service("iScsiPrt", 3, "System32\\drivers\\msiscsi.sys"),
            F::NoWindowsIscsi,
            stops,
            "iScsiPrt has Start=3",
        ),
        (
            good()
                .service("iScsiPrt", 4, "System32\\drivers\\msiscsi.sys")
                .system(&service("iScsiPrt"), "BootFlags", &number(1)),
            F::NoWindowsIscsi,
            stops,
            "iScsiPrt is disabled",
        ),
        (
            good().lacking(&service("iScsiPrt")),
            F::NoWindowsIscsi,
            stops,
            "no service iScsiPrt",
        ),
        (
            good().no_file(&format!("{drivers}/msiscsi.sys")),
            F::NoWindowsIscsi,
            stops,
            "\\Windows\\System32\\drivers\\msiscsi.sys is missing",
        ),
        (
            good().service("MSiSCSI", 4, "%SystemRoot%\\system32\\svchost.exe"),
            F::InitiatorDisabled,
            fine,
            "MSiSCSI",
        ),
        (
            good().service("e1iexpress", 3, e1i),
            F::NoCardAtBoot,
            stops,
            "e1iexpress has Start=3",
        ),
        (
            good().no_file(&format!("{drivers}/e1i65x64.sys")),
            F::NoCardAtBoot,
            stops,
            "e1i65x64.sys is missing",
        ),
        (
            good()
                .card("PCI\\VEN_10EC&DEV_8168\\1", "0003", "rt640x64", 6)
                .service("rt640x64", 3, e1i),
            F::CardNotAtBoot,
            fine,
            "(rt640x64 has Start=3)",
        ),
        (
            good().lacking(&format!("{SET}\\Enum\\PCI\\VEN_8086&DEV_1533")),
            F::NoCardKnown,
            stops,
            "never",
        ),
        (
            good().system(&memory, "PagingFiles", &texts(&["?:\\pagefile.sys"])),
            F::PageFile,
            fine,
            "(?:\\pagefile.sys)",
        ),
        (
            good().system(
                &memory,
                "PagingFiles",
                &texts(&["C:\\pagefile.sys 1024 4096"]),
            ),
            F::PageFile,
            fine,
            "(C:\\pagefile.sys)",
        ),
        (
            good().system(INTERFACE, "EnableDHCP", &number(0)),
            F::StaticAddress,
            fine,
            "(192.168.7.9, interface {6A1B7B5C",
        ),
        (
            good().system(&power, "HiberbootEnabled", &number(1)),
            F::FastStart,
            fine,
            "",
        ),
        (
            good().file("hiberfil.sys", b"HIBR and memory"),
            F::Hibernated,
            stops,
            "",
        ),
        (
            good().system(&parameters, "Domain", &text("school.example")),
            F::DomainMember,
            fine,
            "(school.example)",
        ),
        (
            good().software(
                STATE,
                "ImageState",
                &text("IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE"),
            ),
            F::WindowsInSetup,
            fine,
            "RESEAL_TO_OOBE",
        ),
        (
            good().system("Setup", "SystemSetupInProgress", &number(1)),
            F::WindowsInSetup,
            fine,
            "",
        ),
        (
            good().no_file("Windows/System32/winload.exe"),
            F::WindowsFileMissing,
            stops,
            "winload.exe, for BIOS machines",
        ),
        (
            good().no_file("Windows/System32/winload.efi"),
            F::WindowsFileMissing,
            stops,
            "winload.efi, for UEFI machines",
        ),
        (
            good().no_file("Windows/System32/ntoskrnl.exe"),
            F::WindowsFileMissing,
            stops,
            "ntoskrnl.exe",
        ),
        (
            good().no_file("bootmgr"),
            F::BootManagerMissing,
            stops,
            "partition 2",
        ),
        (
            good().no_file("Boot/BCD"),
            F::BcdMissing,
            stops,
            "partition 2",
        ),
    ];
    for (windows, finding, verdict, words) in cases {
        let found = look(windows.disk());
        assert_eq!(graves(&found), [finding], "{finding}: {found:#?}");
        assert!(sentence(&found, finding).contains(words), "{found:#?}");
        assert_eq!(found.verdict, verdict, "{finding}");
        assert_eq!(found.os_type.as_deref(), Some("windows"));
    }
    // These are harmless: hibernation off altogether, a hibernation file that was used up, a
    // member whose password does not change.
    let harmless = good()
        .system(&power, "HiberbootEnabled", &number(1))
        .system(
            &format!("{SET}\\Control\\Power"),
            "HibernateEnabled",
            &number(0),
        )
        .file("hiberfil.sys", b"RSTR")
        .system(&parameters, "Domain", &text("school.example"))
        .system(
            &service("Netlogon\\Parameters"),
            "DisablePasswordChange",
            &number(1),
        );
    let found = look(harmless.disk());
    assert_eq!(graves(&found), [], "{found:#?}");
    // With a kernel that is loaded, Windows does not start at all.
    let found = look_as(good_windows(), BootMethod::Iscsi, None);
    assert_eq!(graves(&found), [F::WindowsMethod, F::NoKernelFiles]);
}

#[test]
fn what_of_windows_can_not_be_read_is_said() {
    let good = Windows::good;
    let hive = good().system_hive();
    let config = "Windows/System32/config/SYSTEM";
    let broken = |hive: &[u8]| look(good().file(config, hive).disk());
    // An interrupted write of the hive, by its two sequence numbers or its sum.
    for at in [4, 8, 508] {
        let mut open = hive.clone();
        open[at] ^= 1;
        let found = broken(&open);
        assert_eq!(graves(&found), [F::RegistryOpen], "{found:#?}");
        assert_eq!(found.verdict, CheckVerdict::Unsure);
        assert!(
            has(&found, F::CardsAtBoot),
            "what is there is read all the same"
        );
    }
    let cases: [(&[u8], &str); 4] = [
        (b"", "it is not there"),
        (
            b"MZ no hive, but long enough to be one at a first glance",
            "SYSTEM",
        ),
        (&hive[..4096], "too early"),
        (&vec![7; 8192], "no hive"),
    ];
    for (bytes, words) in cases {
        let found = broken(bytes);
        assert_eq!(graves(&found), [F::RegistryUnreadable], "{found:#?}");
        assert!(
            sentence(&found, F::RegistryUnreadable).contains(words),
            "{found:#?}"
        );
        assert_eq!((found.verdict, found.iscsi), (CheckVerdict::Unsure, None));
    }
    let without = good().lacking(SET);
    assert!(sentence(&look(without.disk()), F::RegistryUnreadable).contains("control set"));

    // Flags of the volume: they are in the record of $Volume, after its version.
    let mut dirty = good_windows().to_vec();
    let record = dirty_flag(&dirty);
    dirty[record] |= 1;
    let found = look(dirty);
    assert_eq!(graves(&found), [F::NtfsDirty], "{found:#?}");

    // The table of files is elsewhere: nothing is known but that Windows starts here.
    let mut lost = good_windows().to_vec();
    put(&mut lost, START + 0x30, &[0xff, 0xff, 0, 0]);
    let found = look(lost);
    assert_eq!(
        graves(&found),
        [F::FileSystemBroken, F::WindowsUnread],
        "{found:#?}"
    );
    assert_eq!(found.verdict, CheckVerdict::Unsure);

    // BitLocker: its volume is all there is, or one for data beside a system.
    let mut locked = good_windows().to_vec();
    put(&mut locked, START + 3, b"-FVE-FS-");
    let found = look(locked);
    assert_eq!(found.verdict, CheckVerdict::NotBootable, "{found:#?}");
    assert!(sentence(&found, F::BitLocker).contains("partition 2"));
    let mut beside = good_disk().to_vec();
    put(&mut beside, super::ROOT * 512, &[0; 4096]);
    put(&mut beside, super::ROOT * 512 + 3, b"-FVE-FS-");
    assert!(has(&look(beside), F::BitLocker));
}

/// Where the flags of the volume are: its attribute has 12 bytes, and ends with the version and
/// them.
fn dirty_flag(disk: &[u8]) -> usize {
    let at = attribute(disk, 3, 0x70);
    at + usize::from(disk[at + 0x14]) + 10
}

/// Where an attribute is, by the number of its file and its kind.
fn attribute(disk: &[u8], file: usize, kind: u8) -> usize {
    let volume = &disk[START as usize..];
    let cluster = usize::from(volume[0x0d]) * 512;
    let table = u64::from_le_bytes(volume[0x30..0x38].try_into().unwrap()) as usize * cluster;
    let record = START as usize + table + file * 1024;
    let mut at = record + usize::from(disk[record + 0x14]);
    while disk[at] != kind {
        at += u32::from_le_bytes(disk[at + 4..at + 8].try_into().unwrap()) as usize;
    }
    at
}

#[test]
fn a_disk_with_both_systems_is_told_of_both() {
    let both = Debian {
        esp: vec![
            "EFI/BOOT/BOOTX64.EFI".to_owned(),
            "EFI/Microsoft/Boot/bootmgfw.efi".to_owned(),
            "EFI/Microsoft/Boot/BCD".to_owned(),
        ],
        ..Debian::good()
    };
    let found = look(both.disk());
    assert!(
        has(&found, F::OsLinux) && has(&found, F::WindowsUnread),
        "{found:#?}"
    );
    assert_eq!(found.os_type.as_deref(), Some("debian-12"));
}

#[test]
fn sizes_that_can_not_be_take_no_memory() {
    // Records of the table of files: 127 clusters of 2 MiB.
    let large = [(0x0d, 0xf4), (0x40, 0x7f)];
    let bytes = large.map(|(at, byte)| (START + at, byte));
    let disk = Changed {
        disk: good_windows(),
        bytes: bytes.to_vec(),
    };
    let found = look_as(Arc::new(disk), BootMethod::San, None);
    assert!(
        sentence(&found, F::FileSystemBroken).contains("too large"),
        "{found:#?}"
    );
    // Records of the root folder: 4 GiB less a byte each.
    let disk = good_windows();
    let at = attribute(&disk, 5, 0x90);
    let value = at + usize::from(disk[at + 0x14]);
    let bytes = (8..12).map(|byte| ((value + byte) as u64, 0xff)).collect();
    let found = look_as(Arc::new(Changed { disk, bytes }), BootMethod::San, None);
    assert!(
        sentence(&found, F::FileSystemBroken).contains("folder are too large"),
        "{found:#?}"
    );
}

/// Places of the good volume where something is read: its beginning, its table of files, and
/// wherever else bytes are not zero.
fn places() -> impl Strategy<Value = u64> {
    static USED: std::sync::OnceLock<Vec<u64>> = std::sync::OnceLock::new();
    let used = USED.get_or_init(|| {
        let disk = good_windows();
        let all = disk.iter().enumerate().skip(START as usize);
        all.filter(|(_, byte)| **byte != 0)
            .map(|(at, _)| at as u64)
            .collect()
    });
    prop_oneof![START..START + 512, prop::sample::select(used.as_slice()),]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_windows_makes_it_fall(bytes in prop::collection::vec((places(), any::<u8>()), 1..24)) {
        let disk = Changed { disk: good_windows(), bytes };
        let found = look_as(Arc::new(disk), BootMethod::San, None);
        prop_assert!(found.findings.len() <= 100);
    }

    #[test]
    fn no_hive_makes_it_fall(
        which in 0..2_usize,
        bytes in prop::collection::vec((0..16384_usize, any::<u8>()), 1..24),
        cut in 0..65536_usize,
    ) {
        // In the disk, where each hive lies in one piece.
        static HIVES: std::sync::OnceLock<Vec<usize>> = std::sync::OnceLock::new();
        let disk = good_windows();
        let hives = HIVES.get_or_init(|| {
            let sectors = disk.chunks_exact(512).enumerate();
            let hives = sectors.filter(|(_, sector)| sector.starts_with(b"regf"));
            hives.map(|(number, _)| number * 512).collect()
        });
        prop_assert_eq!(hives.len(), 2);
        let at = hives[which];
        let size: [u8; 4] = disk[at + 40..at + 44].try_into().unwrap();
        let size = 4096 + u32::from_le_bytes(size) as usize;
        let bytes = bytes.into_iter().map(|(place, byte)| ((at + place % size) as u64, byte));
        let mut bytes: Vec<(u64, u8)> = bytes.collect();
        if cut < size {
            bytes.extend((cut..size).map(|place| ((at + place) as u64, 0)));
        }
        let disk = Changed { disk, bytes };
        let found = look_as(Arc::new(disk), BootMethod::San, None);
        prop_assert!(has(&found, F::OsWindows), "{:#?}", found);
    }
}
