//! Linux: which, its kernel and initramfs, and settings that stand in the way of a disk over
//! the network.

use super::initramfs::{Initramfs, is_automatic};
use super::inside::Ext;
use super::names::Names;
use super::report::Report;
use crate::model::{BootMethod, CheckFinding, Severity};

/// A kernel, and the initramfs that belongs to it.
struct Boot<'a> {
    system: &'a Ext,
    kernel: String,
    initramfs: Option<String>,
}

/// What the boot loader's settings say.
#[derive(Default)]
struct Settings {
    /// `root=`
    root: Option<String>,
    /// The initramfs is to use the firmware's iSCSI disk.
    automatic: bool,
}

/// Looks at the file systems of a disk; `loaded`: initrds that are loaded instead of the
/// disk's own, if the image has such; `names`: those of what lies on the disk.
pub(super) fn look(
    systems: &[Ext],
    names: &Names,
    loaded: Option<Result<Initramfs, String>>,
    report: &mut Report,
) {
    let root = systems
        .iter()
        .find_map(|system| Some((system, release(system)?)));
    if let Some((_, release)) = &root {
        report.say_of(CheckFinding::OsLinux, &release.pretty);
        report.os_type = release.os_type();
    }
    let root = root.map(|(system, _)| system);
    let boot = boot_of(root, systems);
    let mut settings = Settings::default();
    match &boot {
        Some(boot) => {
            report.say_of(CheckFinding::Kernel, &boot.kernel);
            settings = settings_of(boot.system);
        }
        None if root.is_some() => report.say(CheckFinding::NoKernel),
        None => {}
    }
    match loaded {
        Some(loaded) => initramfs(loaded, "the image's own", &settings, report),
        None => {
            if let Some(boot) = &boot {
                own_initramfs(boot, &settings, report);
            }
        }
    }
    if report.method() == BootMethod::San
        && let Some(device) = settings.root.filter(|root| is_device_name(root))
    {
        let severity = gravity(&device, report.method());
        let detail = format!("root={device}");
        report.say_as(CheckFinding::KernelRootByDeviceName, severity, &detail);
    }
    if let Some(root) = root {
        fstab(root, names, report);
        addresses(root, report);
    }
}

/// `/etc/os-release` (freedesktop.org).
struct Release {
    id: String,
    version: String,
    pretty: String,
}

impl Release {
    /// Such as `debian-12`.
    fn os_type(&self) -> Option<String> {
        let harmless = |text: &str| -> String {
            let allowed = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
            text.chars().filter(allowed).take(40).collect()
        };
        let (id, version) = (harmless(&self.id), harmless(&self.version));
        match (id.is_empty(), version.is_empty()) {
            (true, _) => None,
            (false, true) => Some(id),
            (false, false) => Some(format!("{id}-{version}")),
        }
    }
}

fn release(system: &Ext) -> Option<Release> {
    let text = system
        .text("/etc/os-release")
        .or_else(|| system.text("/usr/lib/os-release"))?;
    let value = |key: &str| {
        let mut values = text.lines().filter_map(|line| {
            let value = line.trim().strip_prefix(key)?.strip_prefix('=')?;
            Some(value.trim_matches(['"', '\'']).to_owned())
        });
        values.next().unwrap_or_default()
    };
    let id = value("ID");
    let pretty = value("PRETTY_NAME");
    Some(Release {
        pretty: if pretty.is_empty() {
            id.clone()
        } else {
            pretty
        },
        id,
        version: value("VERSION_ID"),
    })
}

/// The newest kernel: of the root's `/boot`, or of a partition that is mounted there.
fn boot_of<'a>(root: Option<&'a Ext>, systems: &'a [Ext]) -> Option<Boot<'a>> {
    let own = root.and_then(|system| newest(system, "/boot"));
    own.or_else(|| systems.iter().find_map(|system| newest(system, "/")))
}

fn newest<'a>(system: &'a Ext, folder: &str) -> Option<Boot<'a>> {
    let names = system.names(folder);
    let place = |name: &str| format!("{}/{name}", folder.trim_end_matches('/'));
    let version = |name: &String| -> Option<String> {
        let version = name.strip_prefix("vmlinuz-")?;
        (!version.contains("rescue")).then(|| version.to_owned())
    };
    let mut versions: Vec<String> = names.iter().filter_map(version).collect();
    versions.sort_by_key(|version| parts_of(version));
    let version = versions.pop()?;
    let forms = [
        format!("initrd.img-{version}"),
        format!("initramfs-{version}.img"),
        format!("initrd-{version}"),
        format!("initrd-{version}.img"),
        format!("initramfs-{version}"),
    ];
    let initramfs = forms.iter().find(|form| names.contains(form));
    Some(Boot {
        system,
        kernel: place(&format!("vmlinuz-{version}")),
        initramfs: initramfs.map(|name| place(name)),
    })
}

/// The numbers in a version: `6.10` is newer than `6.9`.
fn parts_of(version: &str) -> Vec<u64> {
    let parts = version.split(|c: char| !c.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

fn settings_of(system: &Ext) -> Settings {
    let mut settings = Settings::default();
    let files = [
        "/boot/grub/grub.cfg",
        "/boot/grub2/grub.cfg",
        "/grub/grub.cfg",
        "/grub2/grub.cfg",
    ];
    let mut texts: Vec<String> = files.iter().filter_map(|path| system.text(path)).collect();
    for folder in ["/boot/loader/entries", "/loader/entries"] {
        let entries = system.names(folder).into_iter().take(64);
        texts.extend(entries.filter_map(|name| system.text(&format!("{folder}/{name}"))));
    }
    let commands = ["linux", "linuxefi", "linux16", "options"];
    for line in texts.iter().flat_map(|text| text.lines()) {
        let mut words = line.split_whitespace();
        if !words.next().is_some_and(|word| commands.contains(&word)) {
            continue;
        }
        for word in words {
            settings.automatic |= is_automatic(word);
            if settings.root.is_none() {
                settings.root = word.strip_prefix("root=").map(str::to_owned);
            }
        }
    }
    settings
}

fn own_initramfs(boot: &Boot<'_>, settings: &Settings, report: &mut Report) {
    let Some(path) = &boot.initramfs else {
        report.say(CheckFinding::NoInitramfs);
        return;
    };
    let read = match boot.system.file(path) {
        Some(file) => Initramfs::read(file),
        None => Err("it can't be opened".to_owned()),
    };
    initramfs(read, path, settings, report);
}

fn initramfs(
    read: Result<Initramfs, String>,
    name: &str,
    settings: &Settings,
    report: &mut Report,
) {
    let found = match read {
        Ok(found) => found,
        Err(why) => {
            report.say_of(CheckFinding::InitramfsUnreadable, format!("{name}: {why}"));
            return;
        }
    };
    let method = report.method();
    let iscsi = found.iscsistart && found.iscsi_script && found.iscsi_tcp;
    let nbd = found.nbd && found.nbd_client && found.nbd_script;
    (report.iscsi, report.nbd) = (Some(iscsi), Some(nbd));
    // Its own initramfs is not what such an image boots with until it is given to it.
    let mut lacks = |finding: CheckFinding, parts: [(bool, &str); 3]| {
        let missing = parts.iter().filter(|(there, _)| !there);
        let missing: Vec<&str> = missing.map(|(_, part)| *part).collect();
        let detail = format!("{name} lacks {}", missing.join(", "));
        if report.has(CheckFinding::NoKernelFiles) {
            report.say_as(finding, Severity::Warns, &detail);
        } else {
            report.say_of(finding, detail);
        }
    };
    if !iscsi && method != BootMethod::Nbd {
        let parts = [
            (found.iscsistart, "iscsistart"),
            (found.iscsi_tcp, "the driver iscsi_tcp"),
            (found.iscsi_script, "what starts it"),
        ];
        lacks(CheckFinding::NoIscsi, parts);
    }
    if !nbd && method == BootMethod::Nbd {
        let parts = [
            (found.nbd, "the driver nbd"),
            (found.nbd_client, "nbd-client or dls-nbd"),
            (found.nbd_script, "what starts it"),
        ];
        lacks(CheckFinding::NoNbd, parts);
    }
    if iscsi {
        report.say_of(CheckFinding::Iscsi, name);
        if method == BootMethod::San {
            if !found.iscsi_ibft {
                report.say_of(CheckFinding::NoIbft, name);
            }
            if !found.iscsi_auto && !settings.automatic {
                report.say_of(CheckFinding::IscsiNotAutomatic, name);
            }
        }
    }
    if nbd {
        report.say_of(CheckFinding::Nbd, name);
    }
    if found.cards.is_empty() {
        report.say_of(CheckFinding::NoNetworkDrivers, name);
    } else {
        let shown: Vec<&str> = found.cards.iter().map(String::as_str).take(8).collect();
        let more = found.cards.len().saturating_sub(shown.len());
        let more = if more == 0 {
            String::new()
        } else {
            format!(" and {more} more")
        };
        report.say_of(
            CheckFinding::NetworkDrivers,
            format!("{}{more}", shown.join(", ")),
        );
    }
}

/// A device whose name comes from what it hangs on, or from the order of finding.
fn is_device_name(device: &str) -> bool {
    let Some(name) = device.strip_prefix("/dev/") else {
        return false;
    };
    let kinds = [
        "sd",
        "hd",
        "vd",
        "xvd",
        "nvme",
        "mmcblk",
        "nbd",
        "disk/by-path/",
        "disk/by-id/",
    ];
    kinds.iter().any(|kind| name.starts_with(kind))
}

/// An iSCSI disk is the first `sd` where no other is.
fn gravity(device: &str, method: BootMethod) -> Severity {
    if device.starts_with("/dev/sd") && method != BootMethod::Nbd {
        Severity::Warns
    } else {
        Severity::Stops
    }
}

fn fstab(root: &Ext, names: &Names, report: &mut Report) {
    let text = root.text("/etc/fstab").unwrap_or_default();
    for line in text.lines().take(1000) {
        let mut words = line.split_whitespace();
        let (Some(device), Some(place)) = (words.next(), words.next()) else {
            continue;
        };
        if device.starts_with('#') {
            continue;
        }
        let (kind, options) = (words.next().unwrap_or_default(), words.next());
        let mut options = options.unwrap_or_default().split(',');
        let is_waited_for = !options.any(|word| matches!(word, "nofail" | "noauto"));
        let detail = format!("{device} {place}");
        let uuid = device
            .strip_prefix("UUID=")
            .or_else(|| device.strip_prefix("/dev/disk/by-uuid/"));
        let is_elsewhere = uuid.is_some_and(|uuid| names.lack(uuid.trim_matches('"')));
        if is_device_name(device) && uuid.is_none() {
            if place == "/" {
                let severity = gravity(device, report.method());
                report.say_as(CheckFinding::RootByDeviceName, severity, &detail);
            } else if is_waited_for {
                report.say_of(CheckFinding::MountByDeviceName, detail);
            }
        } else if is_elsewhere && is_waited_for {
            report.say_of(CheckFinding::MountMissing, detail);
        } else if kind == "swap" && !is_elsewhere && !device.contains("zram") {
            report.say_of(CheckFinding::SwapOnDisk, device);
        }
    }
}

/// True if a text has an IPv4 address with the length of its prefix, as `10.0.0.5/24`.
fn has_prefix(text: &str) -> bool {
    let words = text.split(|c: char| !c.is_ascii_digit() && c != '.' && c != '/');
    words.into_iter().any(|word| {
        let parts = word.split_once('/');
        parts.is_some_and(|(address, _)| address.split('.').count() == 4)
    })
}

fn addresses(root: &Ext, report: &mut Report) {
    /// Folder, how its files end, and the line that gives an address.
    type Place = (&'static str, &'static str, fn(&str) -> bool);
    let ifupdown = |line: &str| {
        line.starts_with("iface ") && !line.starts_with("iface lo ") && line.ends_with(" static")
    };
    let places: [Place; 6] = [
        ("/etc/network", "interfaces", ifupdown),
        ("/etc/network/interfaces.d", "", ifupdown),
        ("/etc/netplan", ".yaml", |line| {
            (line.starts_with("addresses:") || line.starts_with("- ")) && has_prefix(line)
        }),
        ("/etc/systemd/network", ".network", |line| {
            line.starts_with("Address=")
        }),
        ("/etc/NetworkManager/system-connections", "", |line| {
            line == "method=manual"
        }),
        ("/etc/sysconfig/network-scripts", "", |line| {
            line.starts_with("IPADDR")
        }),
    ];
    for (folder, ending, gives) in places {
        let names = root
            .names(folder)
            .into_iter()
            .filter(|name| name.ends_with(ending));
        for name in names.filter(|name| name != "ifcfg-lo").take(64) {
            let path = format!("{folder}/{name}");
            let text = root.text(&path).unwrap_or_default();
            if text.lines().any(|line| gives(line.trim())) {
                report.say_of(CheckFinding::StaticAddress, path);
            }
        }
    }
}
