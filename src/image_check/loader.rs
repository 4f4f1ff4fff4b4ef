//! Boot loaders: what BIOS and UEFI machines would start.

use super::bytes::{Area, u16_at, u64_at};
use super::fat::Fat;
use super::inside::Inside;
use super::report::Report;
use super::table::{Kind, Partition, SECTOR, Table};
use crate::model::CheckFinding;

/// The segment that GRUB's first sector of its core loads the rest to; its last word.
const CORE_SEGMENT: u16 = 0x0820;

/// Looks for both kinds. `parts`: the partitions with what lies in them.
pub(super) fn look(disk: &Area, table: &Table, parts: &[(Partition, Inside)], report: &mut Report) {
    bios(disk, table, parts, report);
    for (partition, inside) in parts {
        match inside {
            Inside::Fat(fat) => uefi(partition, fat, report),
            _ if partition.kind.is_esp() => {
                let number = partition.number;
                report.say_of(CheckFinding::EspBroken, format!("partition {number}"));
            }
            _ => {}
        }
    }
    let mut vendors = parts.iter().filter_map(|(_, inside)| match inside {
        Inside::Fat(fat) => vendor_loader(fat),
        _ => None,
    });
    if !report.uefi
        && let Some(vendor) = vendors.next()
    {
        report.say_of(CheckFinding::UefiVendorOnly, vendor);
    }
    match (report.bios, report.uefi) {
        (true, true) => {}
        (true, false) => report.say(CheckFinding::NoUefiLoader),
        (false, true) => report.say(CheckFinding::NoBiosLoader),
        (false, false) => report.say(CheckFinding::NoBootLoader),
    }
}

fn bios(disk: &Area, table: &Table, parts: &[(Partition, Inside)], report: &mut Report) {
    let Some(sector) = table.boot_sector else {
        return;
    };
    let code = sector.get(..440).unwrap_or_default();
    if code.iter().all(|byte| *byte == 0) {
        return;
    }
    if code.windows(4).any(|word| word == b"GRUB") {
        let at = u64_at(&sector, 0x5c);
        let core = at.checked_mul(SECTOR).and_then(|at| disk.array::<512>(at));
        // The core's first sector ends with the list of where the rest lies.
        let whole = core.is_some_and(|core| {
            let rest = u64_at(&core, 500).checked_mul(SECTOR);
            u16_at(&core, 510) == CORE_SEGMENT && rest.is_some_and(|rest| rest < disk.size())
        });
        if whole {
            report.bios = true;
            report.say_of(CheckFinding::BootsBios, "GRUB");
        } else {
            report.say_of(CheckFinding::GrubCoreMissing, format!("sector {at}"));
        }
        return;
    }
    // Windows writes such code on GPT disks, too, where it starts nothing.
    if table.is_gpt || parts.iter().any(|(part, _)| part.kind == Kind::Whole) {
        return;
    }
    let Some((active, _)) = parts.iter().find(|(part, _)| part.active) else {
        report.say(CheckFinding::NoActivePartition);
        return;
    };
    let first = disk.array::<512>(active.start);
    if first.is_some_and(|first| u16_at(&first, 510) == 0xaa55) {
        report.bios = true;
        let detail = format!("the active partition {}", active.number);
        report.say_of(CheckFinding::BootsBios, detail);
    }
}

fn uefi(partition: &Partition, fat: &Fat, report: &mut Report) {
    for name in ["BOOTX64.EFI", "BOOTAA64.EFI", "BOOTIA32.EFI"] {
        if let Some(path) = fat.file(&format!("EFI/BOOT/{name}")) {
            report.uefi = true;
            let path = path.replace('/', "\\");
            let detail = format!("\\{path} in partition {}", partition.number);
            report.say_of(CheckFinding::BootsUefi, detail);
        }
    }
    if has_windows(fat) && fat.file("EFI/Microsoft/Boot/BCD").is_none() {
        let detail = format!("partition {}", partition.number);
        report.say_of(CheckFinding::BcdMissing, detail);
    }
}

/// True if Windows' boot manager is there.
pub(super) fn has_windows(fat: &Fat) -> bool {
    fat.file("EFI/Microsoft/Boot/bootmgfw.efi").is_some()
}

/// A loader in a folder of its maker.
fn vendor_loader(fat: &Fat) -> Option<String> {
    if has_windows(fat) {
        return Some("\\EFI\\Microsoft\\Boot\\bootmgfw.efi".to_owned());
    }
    let makers = fat.list("EFI").into_iter().filter(|maker| maker.is_folder);
    let mut loaders = makers.take(32).filter_map(|maker| {
        let files = fat.list(&format!("EFI/{}", maker.name));
        let is_loader = |name: &str| name.to_ascii_lowercase().ends_with(".efi");
        let file = files
            .into_iter()
            .find(|file| !file.is_folder && is_loader(&file.name))?;
        Some(format!("\\EFI\\{}\\{}", maker.name, file.name))
    });
    loaders.next()
}
