//! Looks into a disk image and says what would stop it from booting diskless. Reads bytes
//! that it is lent, believes none of them, and knows neither stores nor the catalog.
//!
//! `bytes` (what is read, and how much at most), `table` (partitions), `inside` (what a
//! partition holds), `fat`, `loader`, `linux`, `initramfs`, `names`; `ntfs`, `registry`, `windows`;
//! `report` (what was found), `compare` (of two disks). The findings and their words are in
//! [`crate::model::CheckFinding`].

mod bytes;
mod compare;
mod fat;
mod initramfs;
mod inside;
mod linux;
mod loader;
mod names;
mod ntfs;
mod registry;
mod report;
mod table;
mod windows;

use std::sync::Arc;

use bytes::Area;
pub use bytes::{Bytes, READ_LIMIT};
pub use compare::{Part, files, parts};
use initramfs::Initramfs;
use inside::Inside;
use names::Names;
use report::Report;

use crate::model::{BootMethod, CheckFinding, ImageCheck, Severity, Timestamp};

/// What is to be looked at.
pub struct Subject {
    /// The disk.
    pub disk: Arc<dyn Bytes>,
    /// How it is booted.
    pub method: BootMethod,
    /// The initrds that the image has besides its disk, in loading order; `None` if it has no
    /// kernel of its own. Of no concern with [`BootMethod::San`].
    pub initrds: Option<Vec<Arc<dyn Bytes>>>,
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject")
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

/// Looks at a disk. Reads [`READ_LIMIT`] bytes at most; an error of reading, from then on, is
/// part of what is found.
#[must_use]
pub fn check(subject: &Subject, now: Timestamp) -> ImageCheck {
    let mut report = Report::new(subject.method);
    let disk = Area::whole(subject.disk.clone(), READ_LIMIT);
    let table = table::read(&disk, &mut report);
    let mut names = Names::default();
    let opened = table.partitions.iter().take(128).map(|partition| {
        let area = disk.part(partition.start, partition.size);
        let inside = inside::look(&area);
        names.add(&area, &inside);
        (*partition, inside)
    });
    let parts: Vec<_> = opened.collect();
    if report.method() == BootMethod::San {
        loader::look(&disk, &table, &parts, &mut report);
    } else {
        // Firmware never sees the disk: what is missing there is no fault.
        let mut unheard = Report::new(BootMethod::San);
        loader::look(&disk, &table, &parts, &mut unheard);
        (report.bios, report.uefi) = (unheard.bios, unheard.uefi);
    }
    let loaded = match (report.method(), &subject.initrds) {
        (BootMethod::San, _) => None,
        (BootMethod::Iscsi | BootMethod::Nbd, None) => {
            report.say(CheckFinding::NoKernelFiles);
            None
        }
        (BootMethod::Iscsi | BootMethod::Nbd, Some(files)) => Some(all_of(files)),
    };
    let mut windows = Windows::default();
    let mut systems = Vec::new();
    for (partition, inside) in parts {
        let which = |what: &str| match partition.number {
            0 => what.to_owned(),
            number => format!("{what} in partition {number}"),
        };
        match inside {
            Inside::Ext(ext) => systems.push(ext),
            Inside::ExtBroken(why) => {
                report.say_of(
                    CheckFinding::FileSystemBroken,
                    which(&format!("ext4: {why}")),
                );
            }
            Inside::Fat(fat) => windows.is_started |= loader::has_windows(&fat),
            Inside::Ntfs(area, starts) => {
                let is_started = starts && partition.active;
                windows.look(&area, is_started, &which("NTFS"), &mut report);
            }
            Inside::BitLocker => windows.locked.push(which("BitLocker")),
            Inside::Other(name) => report.say_of(CheckFinding::Unreadable, which(name)),
            Inside::Encrypted => report.say_of(CheckFinding::Encrypted, which("LUKS")),
            Inside::Nothing => {}
        }
    }
    linux::look(&systems, &names, loaded, &mut report);
    let has_windows = windows.finish(&mut report);
    if !has_windows && !report.has(CheckFinding::OsLinux) {
        report.say(CheckFinding::OsUnknown);
    }
    if disk.is_spent() {
        report.say(CheckFinding::GaveUp);
    }
    report.finish(now)
}

/// What was seen of Windows so far.
#[derive(Default)]
struct Windows {
    /// Its boot manager would be started.
    is_started: bool,
    /// A Windows was looked into.
    is_read: bool,
    /// Volumes that BitLocker has encrypted.
    locked: Vec<String>,
}

impl Windows {
    /// Looks at an NTFS volume; `is_started`: BIOS machines start it.
    fn look(&mut self, area: &Area, is_started: bool, of: &str, report: &mut Report) {
        self.is_started |= is_started;
        let facts = match windows::facts(area) {
            Ok(facts) => facts,
            Err(why) => {
                report.say_of(CheckFinding::FileSystemBroken, format!("{of}: {why}"));
                return;
            }
        };
        if is_started && report.method() == BootMethod::San {
            if !facts.boot_manager {
                report.say_of(CheckFinding::BootManagerMissing, of);
            }
            if !facts.bcd {
                report.say_of(CheckFinding::BcdMissing, of);
            }
        }
        self.is_read |= facts.system.is_some();
        windows::tell(&facts, of, report);
    }

    /// Says what is left to say; true if there is a Windows.
    fn finish(self, report: &mut Report) -> bool {
        for volume in &self.locked {
            // Beside a Windows that was read it is a volume for data.
            let severity = if self.is_read {
                Severity::Warns
            } else {
                CheckFinding::BitLocker.severity(report.method())
            };
            report.say_as(CheckFinding::BitLocker, severity, volume);
        }
        let found = self.is_started || self.is_read;
        if found && !self.is_read {
            report.say(CheckFinding::OsWindows);
            report.say(CheckFinding::WindowsUnread);
        }
        if found {
            report.os_type.get_or_insert_with(|| "windows".to_owned());
        }
        found
    }
}

/// What initrds have together.
fn all_of(files: &[Arc<dyn Bytes>]) -> Result<Initramfs, String> {
    let mut all = Initramfs::default();
    for file in files {
        let area = Area::whole(file.clone(), READ_LIMIT);
        all = all.and(Initramfs::read(area.reader())?);
    }
    Ok(all)
}
