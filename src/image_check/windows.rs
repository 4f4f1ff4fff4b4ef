//! Windows: which, the files and the settings that its start over the network needs, and what
//! in it stands in the way of a disk that many machines boot.
//!
//! [`facts`] reads a volume, [`tell`] says what it means; `registry` is what the first uses.
//! Whether the card of the machine that will boot it is among those that were found is not
//! known here.

use super::bytes::Area;
use super::ntfs::{Volume, contained};
use super::registry::{Hive, Key};
use super::report::Report;
use crate::model::{BootMethod, CheckFinding};

/// Folder of the hives.
const CONFIG: &str = "Windows\\System32\\config";
/// The class of network cards.
const NET_CLASS: &str = "{4d36e972-e325-11ce-bfc1-08002be10318}";
/// Buses of cards that firmware boots from.
const BUSES: [&str; 3] = ["PCI", "VMBUS", "XENVIF"];
/// `*IfType` of Ethernet (IANA); 71 is Wi-Fi.
const ETHERNET: u32 = 6;
/// `BootFlags` of a service: it starts at boot when that is by the network.
const NETWORK_BOOT: u32 = 1;
/// Builds of Windows 11 are those from here on; its `ProductName` says 10.
const ELEVEN: u32 = 22_000;
/// Cards, interfaces and page files that are told.
const MOST_TOLD: usize = 8;

/// What a volume has.
pub(super) struct Facts {
    /// `\bootmgr`.
    pub(super) boot_manager: bool,
    /// `\Boot\BCD`.
    pub(super) bcd: bool,
    /// Windows itself, if it is there.
    pub(super) system: Option<System>,
    dirty: bool,
}

/// A Windows.
pub(super) struct System {
    kernel: bool,
    loader_bios: bool,
    loader_uefi: bool,
    hibernated: bool,
    about: Result<About, String>,
    settings: Result<Settings, String>,
}

/// What the hive SOFTWARE says.
#[derive(Default)]
struct About {
    whole: bool,
    name: String,
    state: String,
}

/// What the hive SYSTEM says.
#[derive(Default)]
struct Settings {
    whole: bool,
    stack: Vec<Service>,
    iscsi: Option<Service>,
    initiator: Option<u32>,
    cards: Vec<Service>,
    page_files: Vec<String>,
    addresses: Vec<String>,
    fast_start: bool,
    domain: Option<String>,
    in_setup: bool,
}

/// A driver.
struct Service {
    name: String,
    start: Option<u32>,
    at_boot: bool,
    image: String,
    has_file: bool,
}

/// Reads what matters of a volume.
pub(super) fn facts(area: &Area) -> Result<Facts, String> {
    contained(|| {
        let mut volume = Volume::open(area)?;
        let mut found = Facts {
            boot_manager: volume.has("bootmgr")?,
            bcd: volume.has("Boot\\BCD")?,
            system: None,
            dirty: volume.is_dirty()?,
        };
        if volume.has("Windows\\System32")? {
            found.system = Some(system(&mut volume)?);
        }
        Ok(found)
    })
}

fn system(volume: &mut Volume) -> Result<System, String> {
    let about = contained(|| of_hive(volume, "SOFTWARE", about));
    let mut settings = contained(|| of_hive(volume, "SYSTEM", settings));
    if let Ok(settings) = &mut settings {
        let services = settings.stack.iter_mut().chain(&mut settings.iscsi);
        for service in services.chain(&mut settings.cards) {
            service.has_file = volume.has(&service.image)?;
        }
    }
    let in_system = |name: &str| format!("Windows\\System32\\{name}");
    Ok(System {
        kernel: volume.has(&in_system("ntoskrnl.exe"))?,
        loader_bios: volume.has(&in_system("winload.exe"))?,
        loader_uefi: volume.has(&in_system("winload.efi"))?,
        hibernated: is_hibernated(volume)?,
        about,
        settings,
    })
}

/// The first bytes of the file say whether it holds a system that waits to go on.
fn is_hibernated(volume: &mut Volume) -> Result<bool, String> {
    let found = volume.with("hiberfil.sys", |content| {
        let mut first = [0; 4];
        if content.size() >= 4 {
            content.read_at(0, &mut first)?;
        }
        Ok(first.eq_ignore_ascii_case(b"hibr"))
    });
    // One that NTFS has packed is not that of a system that waits.
    Ok(found.unwrap_or_default().unwrap_or_default())
}

fn of_hive<T>(
    volume: &mut Volume,
    name: &str,
    read: impl FnOnce(&mut Hive<'_>) -> Result<T, String>,
) -> Result<T, String> {
    let path = format!("{CONFIG}\\{name}");
    let read = volume.with(&path, |content| read(&mut Hive::open(content)?));
    match read {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(format!("{name}: it is not there")),
        Err(why) => Err(format!("{name}: {why}")),
    }
}

fn about(hive: &mut Hive<'_>) -> Result<About, String> {
    let root = hive.root()?;
    let mut found = About {
        whole: hive.is_whole,
        ..About::default()
    };
    if let Some(version) = hive.find(&root, "Microsoft\\Windows NT\\CurrentVersion")? {
        let mut text = |name| hive.text(&version, name).map(Option::unwrap_or_default);
        let (mut product, edition) = (text("ProductName")?, text("EditionID")?);
        let (build, release) = (text("CurrentBuild")?, text("DisplayVersion")?);
        if build.parse().is_ok_and(|build: u32| build >= ELEVEN) {
            product = product.replacen("Windows 10", "Windows 11", 1);
        }
        if product.is_empty() {
            product = format!("Windows {edition}");
        }
        let words = [product, release].join(" ");
        found.name = format!("{}, build {build}", words.trim());
        if let Some(revision) = hive.number(&version, "UBR")? {
            found.name = format!("{}.{revision}", found.name);
        }
    }
    let path = "Microsoft\\Windows\\CurrentVersion\\Setup\\State";
    if let Some(state) = hive.find(&root, path)? {
        found.state = hive.text(&state, "ImageState")?.unwrap_or_default();
    }
    Ok(found)
}

fn settings(hive: &mut Hive<'_>) -> Result<Settings, String> {
    let root = hive.root()?;
    let select = hive.find(&root, "Select")?.ok_or("no key Select")?;
    // What the next start takes.
    let number = match hive.number(&select, "Default")? {
        Some(number) => Some(number),
        None => hive.number(&select, "Current")?,
    };
    let set = number.map(|number| format!("ControlSet{number:03}"));
    let set = match set {
        Some(set) => hive.find(&root, &set)?,
        None => None,
    };
    let set = set.ok_or("the control set that is selected is not there")?;
    let mut found = Settings {
        whole: hive.is_whole,
        ..Settings::default()
    };
    let services = hive.find(&set, "Services")?.ok_or("no key Services")?;
    let services = hive.children(&services)?;
    for name in ["NDIS", "Tcpip"] {
        found.stack.push(service(hive, &services, name)?);
    }
    let iscsi = service(hive, &services, "iScsiPrt")?;
    found.iscsi = iscsi.start.is_some().then_some(iscsi);
    found.initiator = service(hive, &services, "MSiSCSI")?.start;
    for name in cards(hive, &set)? {
        let card = service(hive, &services, &name)?;
        found.cards.push(card);
    }
    addresses(hive, &services, &mut found)?;

    let manager = "Control\\Session Manager";
    if let Some(memory) = hive.find(&set, &format!("{manager}\\Memory Management"))? {
        let files = hive.texts(&memory, "PagingFiles")?;
        let name = |file: String| file.split(' ').next().unwrap_or_default().to_owned();
        found.page_files = files.into_iter().map(name).take(MOST_TOLD).collect();
    }
    if let Some(power) = hive.find(&set, &format!("{manager}\\Power"))? {
        found.fast_start = hive.number(&power, "HiberbootEnabled")? == Some(1);
    }
    if let Some(power) = hive.find(&set, "Control\\Power")? {
        found.fast_start &= hive.number(&power, "HibernateEnabled")? != Some(0);
    }
    if let Some(setup) = hive.find(&root, "Setup")? {
        for name in ["SystemSetupInProgress", "OOBEInProgress"] {
            found.in_setup |= hive.number(&setup, name)? == Some(1);
        }
    }
    Ok(found)
}

/// A driver's settings; without a start if there is none of that name.
fn service(hive: &mut Hive<'_>, services: &[Key], name: &str) -> Result<Service, String> {
    let named = |key: &&Key| key.name().eq_ignore_ascii_case(name);
    let mut found = Service {
        name: name.to_owned(),
        start: None,
        at_boot: false,
        image: format!("Windows\\System32\\drivers\\{name}.sys"),
        has_file: true,
    };
    if let Some(key) = services.iter().find(named) {
        found.start = hive.number(key, "Start")?;
        let flags = hive.number(key, "BootFlags")?.unwrap_or(0);
        let promoted = flags & NETWORK_BOOT != 0 && found.start.is_some_and(|start| start < 4);
        found.at_boot = found.start == Some(0) || promoted;
        if let Some(image) = hive.text(key, "ImagePath")? {
            found.image = place_of(&image);
        }
    }
    Ok(found)
}

/// Where a driver's file is, from the forms in which a service names it.
fn place_of(image: &str) -> String {
    let image = image.trim_start_matches("\\??\\").replace('/', "\\");
    let lower = image.to_ascii_lowercase();
    let after = |start: &str| {
        lower
            .starts_with(start)
            .then(|| image.get(start.len()..))
            .flatten()
    };
    for start in [
        "\\systemroot\\",
        "%systemroot%\\",
        "c:\\windows\\",
        "\\windows\\",
    ] {
        if let Some(rest) = after(start) {
            return format!("Windows\\{rest}");
        }
    }
    format!("Windows\\{}", image.trim_start_matches('\\'))
}

/// The services of the wired cards that this Windows has met.
fn cards(hive: &mut Hive<'_>, set: &Key) -> Result<Vec<String>, String> {
    let mut found: Vec<String> = Vec::new();
    for bus in BUSES {
        let Some(bus) = hive.find(set, &format!("Enum\\{bus}"))? else {
            continue;
        };
        for device in hive.children(&bus)? {
            for instance in hive.children(&device)? {
                let class = hive.text(&instance, "ClassGUID")?;
                if !class.is_some_and(|class| class.eq_ignore_ascii_case(NET_CLASS)) {
                    continue;
                }
                let driver = hive.text(&instance, "Driver")?.unwrap_or_default();
                let about = hive.find(set, &format!("Control\\Class\\{driver}"))?;
                let kind = match about {
                    Some(about) => hive.number(&about, "*IfType")?,
                    None => None,
                };
                let Some(name) = hive.text(&instance, "Service")? else {
                    continue;
                };
                let known = found.iter().any(|other| other.eq_ignore_ascii_case(&name));
                if kind.is_none_or(|kind| kind == ETHERNET) && !known && found.len() < 64 {
                    found.push(name);
                }
            }
        }
    }
    Ok(found)
}

fn addresses(hive: &mut Hive<'_>, services: &[Key], found: &mut Settings) -> Result<(), String> {
    let named = |name: &str| {
        let mut keys = services.iter();
        keys.find(|key| key.name().eq_ignore_ascii_case(name))
    };
    let Some(tcpip) = named("Tcpip") else {
        return Ok(());
    };
    if let Some(parameters) = hive.find(tcpip, "Parameters")? {
        found.domain = hive.text(&parameters, "Domain")?;
    }
    if let Some(netlogon) = named("Netlogon")
        && let Some(parameters) = hive.find(netlogon, "Parameters")?
        && hive.number(&parameters, "DisablePasswordChange")? == Some(1)
    {
        found.domain = None;
    }
    let Some(interfaces) = hive.find(tcpip, "Parameters\\Interfaces")? else {
        return Ok(());
    };
    for interface in hive.children(&interfaces)? {
        let fixed = hive.number(&interface, "EnableDHCP")? == Some(0);
        let addresses = hive.texts(&interface, "IPAddress")?;
        let address = addresses.into_iter().find(|address| address != "0.0.0.0");
        if let Some(address) = address.filter(|_| fixed)
            && found.addresses.len() < MOST_TOLD
        {
            found
                .addresses
                .push(format!("{address}, interface {}", interface.name()));
        }
    }
    Ok(())
}

/// Says what a volume's facts mean. `of`: which volume.
pub(super) fn tell(facts: &Facts, of: &str, report: &mut Report) {
    if facts.dirty {
        report.say_of(CheckFinding::NtfsDirty, of);
    }
    let Some(system) = &facts.system else {
        return;
    };
    match &system.about {
        Ok(about) if !about.name.is_empty() => {
            report.say_of(CheckFinding::OsWindows, format!("{}, {of}", about.name));
        }
        _ => report.say_of(CheckFinding::OsWindows, of),
    }
    if report.method() != BootMethod::San {
        report.say(CheckFinding::WindowsMethod);
    }
    let bios = report.bios && !system.loader_bios;
    let uefi = report.uefi && !system.loader_uefi;
    for (missing, name) in [
        (!system.kernel, "ntoskrnl.exe"),
        (bios, "winload.exe, for BIOS machines"),
        (uefi, "winload.efi, for UEFI machines"),
    ] {
        if missing {
            let detail = format!("\\Windows\\System32\\{name}");
            report.say_of(CheckFinding::WindowsFileMissing, detail);
        }
    }
    if system.kernel {
        report.say_of(CheckFinding::Kernel, "\\Windows\\System32\\ntoskrnl.exe");
    }
    if system.hibernated {
        report.say(CheckFinding::Hibernated);
    }
    match &system.settings {
        Ok(settings) => tell_settings(settings, report),
        Err(why) => report.say_of(CheckFinding::RegistryUnreadable, why),
    }
    match &system.about {
        Ok(about) => {
            let settings = system.settings.as_ref().ok();
            let in_setup = settings.is_some_and(|settings| settings.in_setup);
            let state = about.state.as_str();
            if !matches!(state, "" | "IMAGE_STATE_COMPLETE") {
                report.say_of(CheckFinding::WindowsInSetup, state);
            } else if in_setup {
                report.say(CheckFinding::WindowsInSetup);
            }
            if !about.whole || settings.is_some_and(|settings| !settings.whole) {
                report.say(CheckFinding::RegistryOpen);
            }
        }
        Err(why) => report.say_of(CheckFinding::RegistryUnreadable, why),
    }
}

fn tell_settings(settings: &Settings, report: &mut Report) {
    for service in &settings.stack {
        if !service.starts() {
            report.say_of(CheckFinding::NetworkStackNotAtBoot, service.why());
        }
    }
    match &settings.iscsi {
        None => report.say_of(CheckFinding::NoWindowsIscsi, "there is no service iScsiPrt"),
        Some(service) if !service.starts() => {
            report.say_of(CheckFinding::NoWindowsIscsi, service.why());
        }
        Some(service) => report.say_of(CheckFinding::WindowsIscsi, &service.name),
    }
    let iscsi = settings.iscsi.as_ref().is_some_and(Service::starts);
    report.iscsi = Some(iscsi && settings.stack.iter().all(Service::starts));
    if settings.initiator == Some(4) {
        report.say(CheckFinding::InitiatorDisabled);
    }
    let (ready, not): (Vec<_>, Vec<_>) = settings.cards.iter().partition(|card| card.starts());
    let names = |cards: &[&Service]| {
        let names: Vec<String> = cards
            .iter()
            .take(MOST_TOLD)
            .map(|card| card.why())
            .collect();
        names.join("; ")
    };
    if ready.is_empty() && not.is_empty() {
        report.say(CheckFinding::NoCardKnown);
    } else if ready.is_empty() {
        report.say_of(CheckFinding::NoCardAtBoot, names(&not));
    } else {
        let ready: Vec<&str> = ready
            .iter()
            .map(|card| card.name.as_str())
            .take(MOST_TOLD)
            .collect();
        report.say_of(CheckFinding::CardsAtBoot, ready.join(", "));
        if !not.is_empty() {
            report.say_of(CheckFinding::CardNotAtBoot, names(&not));
        }
    }
    if !settings.page_files.is_empty() {
        report.say_of(CheckFinding::PageFile, settings.page_files.join(", "));
    }
    for address in &settings.addresses {
        report.say_of(CheckFinding::StaticAddress, address);
    }
    if settings.fast_start {
        report.say(CheckFinding::FastStart);
    }
    if let Some(domain) = &settings.domain {
        report.say_of(CheckFinding::DomainMember, domain);
    }
}

impl Service {
    fn starts(&self) -> bool {
        self.at_boot && self.has_file
    }

    /// Why it does not.
    fn why(&self) -> String {
        let name = &self.name;
        match self.start {
            None => format!("{name} is not installed"),
            Some(_) if !self.has_file => format!("{name}: \\{} is missing", self.image),
            Some(4) => format!("{name} is disabled"),
            Some(start) => format!("{name} has Start={start}"),
        }
    }
}
