//! A small Windows, made of what a start over the network needs: an NTFS volume by mkntfs and
//! wimlib, hives by hivex, a table and a system partition around them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use super::fixture::{fat, put, run, sfdisk};

/// Sectors: the system partition, the NTFS volume, the disk.
const ESP: u64 = 2048;
pub(crate) const VOLUME: u64 = 10240;
const DISK: u64 = 51200;

/// Keys of a hive with their values, as in a `.reg` file.
type Keys = BTreeMap<String, BTreeMap<String, String>>;

/// What is in it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Windows {
    /// Of the NTFS volume, with `/`.
    files: BTreeMap<String, Vec<u8>>,
    system: Keys,
    software: Keys,
}

/// A number as a `.reg` file has it.
pub(crate) fn number(value: u32) -> String {
    format!("dword:{value:08x}")
}

/// A text.
pub(crate) fn text(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\"))
}

/// A list of texts.
pub(crate) fn texts(values: &[&str]) -> String {
    let all: String = values.iter().map(|value| format!("{value}\0")).collect();
    let units = format!("{all}\0");
    let bytes = units.encode_utf16().flat_map(u16::to_le_bytes);
    let bytes: Vec<String> = bytes.map(|byte| format!("{byte:02x}")).collect();
    format!("hex(7):{}", bytes.join(","))
}

/// The class of network cards.
const NET: &str = "{4d36e972-e325-11ce-bfc1-08002be10318}";
pub(crate) const SET: &str = "ControlSet001";
pub(crate) const INTERFACE: &str = "ControlSet001\\Services\\Tcpip\\Parameters\\Interfaces\\{6A1B7B5C-0000-4000-8000-0242AC110002}";
pub(crate) const STATE: &str = "Microsoft\\Windows\\CurrentVersion\\Setup\\State";

impl Windows {
    pub(crate) fn good() -> Self {
        let files = [
            "bootmgr",
            "Boot/BCD",
            "Windows/System32/ntoskrnl.exe",
            "Windows/System32/winload.exe",
            "Windows/System32/winload.efi",
            "Windows/System32/drivers/ndis.sys",
            "Windows/System32/drivers/tcpip.sys",
            "Windows/System32/drivers/msiscsi.sys",
            "Windows/System32/drivers/e1i65x64.sys",
            "Windows/System32/drivers/netwtw10.sys",
        ];
        let one = |path: &&str| ((*path).to_owned(), b"a file".to_vec());
        let windows = Self {
            files: files.iter().map(one).collect(),
            system: Keys::new(),
            software: Keys::new(),
        };
        let windows = windows
            .system("Select", "Current", &number(1))
            .system("Select", "Default", &number(1))
            .system("Setup", "SystemSetupInProgress", &number(0))
            .service("NDIS", 0, "system32\\drivers\\ndis.sys")
            .service("Tcpip", 0, "\\SystemRoot\\System32\\drivers\\tcpip.sys")
            .service(
                "iScsiPrt",
                0,
                "\\SystemRoot\\System32\\drivers\\msiscsi.sys",
            )
            .service("MSiSCSI", 2, "%SystemRoot%\\system32\\svchost.exe")
            .card(
                "PCI\\VEN_8086&DEV_1533\\3&11583659&0&C8",
                "0001",
                "e1iexpress",
                6,
            )
            .service("e1iexpress", 0, "System32\\drivers\\e1i65x64.sys")
            // A Wi-Fi card does not matter.
            .card("PCI\\VEN_8086&DEV_2723\\4&1", "0002", "netwtw10", 71)
            .service("netwtw10", 3, "System32\\drivers\\netwtw10.sys")
            .system(INTERFACE, "EnableDHCP", &number(1))
            .system(INTERFACE, "IPAddress", &texts(&["192.168.7.9"]));
        let memory = format!("{SET}\\Control\\Session Manager\\Memory Management");
        let power = format!("{SET}\\Control\\Session Manager\\Power");
        let version = "Microsoft\\Windows NT\\CurrentVersion";
        windows
            .system(&memory, "PagingFiles", &texts(&[]))
            .system(&power, "HiberbootEnabled", &number(0))
            .software(version, "ProductName", &text("Windows 10 Pro"))
            .software(version, "DisplayVersion", &text("22H2"))
            .software(version, "CurrentBuild", &text("19045"))
            .software(version, "UBR", &number(3803))
            .software(STATE, "ImageState", &text("IMAGE_STATE_COMPLETE"))
    }

    /// The same with another value in the hive SYSTEM.
    pub(crate) fn system(mut self, key: &str, name: &str, value: &str) -> Self {
        let values = self.system.entry(key.to_owned()).or_default();
        values.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The same with another value in the hive SOFTWARE.
    pub(crate) fn software(mut self, key: &str, name: &str, value: &str) -> Self {
        let values = self.software.entry(key.to_owned()).or_default();
        values.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The same without a key of SYSTEM and all below it.
    pub(crate) fn lacking(mut self, key: &str) -> Self {
        let below = format!("{key}\\");
        self.system
            .retain(|path, _| path != key && !path.starts_with(&below));
        self
    }

    /// The same with a driver.
    pub(crate) fn service(self, name: &str, start: u32, image: &str) -> Self {
        let key = format!("{SET}\\Services\\{name}");
        self.system(&key, "Start", &number(start))
            .system(&key, "ImagePath", &text(image))
    }

    /// The same with a network card.
    pub(crate) fn card(self, device: &str, instance: &str, service: &str, kind: u32) -> Self {
        let key = format!("{SET}\\Enum\\{device}");
        let class = format!("{SET}\\Control\\Class\\{NET}\\{instance}");
        self.system(&key, "ClassGUID", &text(NET))
            .system(&key, "Service", &text(service))
            .system(&key, "Driver", &text(&format!("{NET}\\{instance}")))
            .system(&class, "*IfType", &number(kind))
    }

    /// The same with another file.
    pub(crate) fn file(mut self, path: &str, bytes: &[u8]) -> Self {
        self.files.insert(path.to_owned(), bytes.to_vec());
        self
    }

    /// The same without a file.
    pub(crate) fn no_file(mut self, path: &str) -> Self {
        assert!(self.files.remove(path).is_some(), "{path}");
        self
    }

    pub(crate) fn system_hive(&self) -> Vec<u8> {
        hive(&self.system)
    }

    pub(crate) fn disk(&self) -> Vec<u8> {
        let mut files = self.files.clone();
        for (name, keys) in [("SYSTEM", &self.system), ("SOFTWARE", &self.software)] {
            let path = format!("Windows/System32/config/{name}");
            files.entry(path).or_insert_with(|| hive(keys));
        }
        // A file of no bytes stands for none.
        files.retain(|_, bytes| !bytes.is_empty());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        std::fs::write(&file, vec![0; (DISK * 512) as usize]).unwrap();
        let table = format!(
            "label: dos\nstart={ESP},size={},type=ef\nstart={VOLUME},size={},type=7,bootable\n",
            VOLUME - ESP,
            DISK - VOLUME
        );
        sfdisk(&file, &table);
        let mut disk = std::fs::read(&file).unwrap();
        put(&mut disk, 0, &[0xfa; 16]);
        // All have the same system partition.
        static SYSTEM_PARTITION: OnceLock<Vec<u8>> = OnceLock::new();
        let esp = [
            "BOOT/BOOTX64.EFI",
            "Microsoft/Boot/bootmgfw.efi",
            "Microsoft/Boot/BCD",
        ];
        let esp = esp.map(|path| format!("EFI/{path}"));
        let esp = SYSTEM_PARTITION.get_or_init(|| fat(&esp, VOLUME - ESP));
        put(&mut disk, ESP * 512, esp);
        put(&mut disk, VOLUME * 512, &volume(dir.path(), &files));
        // As in the code of Windows' boot sector.
        put(&mut disk, VOLUME * 512 + 0x18c, b"BOOTMGR");
        disk
    }
}

/// The disk that all is well with, made once.
pub(crate) fn good_windows() -> Arc<Vec<u8>> {
    static DISK: OnceLock<Arc<Vec<u8>>> = OnceLock::new();
    DISK.get_or_init(|| Arc::new(Windows::good().disk()))
        .clone()
}

/// An NTFS volume with these files.
fn volume(dir: &Path, files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let place = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (tree, archive, volume) = (place("tree"), place("files.wim"), place("volume"));
    for (path, bytes) in files {
        let path = Path::new(&tree).join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    std::fs::write(&volume, vec![0; ((DISK - VOLUME) * 512) as usize]).unwrap();
    let start = VOLUME.to_string();
    run(&[
        "mkntfs", "-q", "-F", "-Q", "-s", "512", "-p", &start, &volume,
    ]);
    // Else it leaves out hiberfil.sys and its like.
    std::fs::write(place("all"), "[ExclusionList]\n").unwrap();
    let all = format!("--config={}", place("all"));
    run(&[
        "wimcapture",
        &tree,
        &archive,
        "--compress=none",
        "--quiet",
        &all,
    ]);
    run(&["wimapply", &archive, "1", &volume, "--quiet"]);
    std::fs::read(&volume).unwrap()
}

/// A hive with these keys, made once: most disks differ from the good one in one of two.
fn hive(keys: &Keys) -> Vec<u8> {
    static MADE: Mutex<BTreeMap<Keys, Vec<u8>>> = Mutex::new(BTreeMap::new());
    if let Some(made) = MADE.lock().unwrap().get(keys) {
        return made.clone();
    }
    let made = new_hive(keys);
    MADE.lock().unwrap().insert(keys.clone(), made.clone());
    made
}

/// An empty one is made here, hivex puts the keys in.
fn new_hive(keys: &Keys) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (hive, list) = (place("hive"), place("list.reg"));
    std::fs::write(&hive, empty_hive()).unwrap();
    let mut lines = "Windows Registry Editor Version 5.00\n".to_owned();
    // Each key after the one that it is below of.
    let mut all = keys.clone();
    for key in keys.keys() {
        for (at, _) in key.match_indices('\\') {
            all.entry(key[..at].to_owned()).or_default();
        }
    }
    for (key, values) in &all {
        lines.push_str(&format!("\n[\\{key}]\n"));
        for (name, value) in values {
            lines.push_str(&format!("\"{name}\"={value}\n"));
        }
    }
    std::fs::write(&list, lines).unwrap();
    run(&["hivexregedit", "--merge", &hive, &list]);
    std::fs::read(&hive).unwrap()
}

/// A hive of one key, without anything below it.
fn empty_hive() -> Vec<u8> {
    let mut hive = vec![0; 8192];
    let words = |hive: &mut Vec<u8>, at: u64, all: &[u32]| {
        for (index, word) in all.iter().enumerate() {
            put(hive, at + index as u64 * 4, &word.to_le_bytes());
        }
    };
    let none = u32::MAX;
    put(&mut hive, 0, b"regf");
    // Sequences, time, version, kind, root, size of the bins, cluster.
    words(&mut hive, 4, &[1, 1, 0, 0, 1, 5, 0, 1, 0x20, 0x1000, 1]);
    put(&mut hive, 0x1000, b"hbin");
    words(&mut hive, 0x1004, &[0, 0x1000]);
    // The root: an allocated cell of 88 bytes.
    words(&mut hive, 0x1020, &[(-88_i32) as u32]);
    put(&mut hive, 0x1024, b"nk\x2c\0");
    words(
        &mut hive,
        0x1034,
        &[none, 0, 0, none, none, 0, none, 0x78, none],
    );
    put(&mut hive, 0x106c, &[4, 0, 0, 0]);
    put(&mut hive, 0x1070, b"ROOT");
    // Its rights: a cell of 48 bytes, linked to itself, with an empty descriptor.
    words(&mut hive, 0x1078, &[(-48_i32) as u32]);
    put(&mut hive, 0x107c, b"sk\0\0");
    words(&mut hive, 0x1080, &[0x78, 0x78, 1, 20]);
    put(&mut hive, 0x1090, &[1, 0, 0, 0x80]);
    // The rest is free.
    words(&mut hive, 0x10a8, &[0x1000 - 0xa8]);
    let sum = (0..127).fold(0, |sum, at| {
        let word: [u8; 4] = hive[at * 4..at * 4 + 4].try_into().unwrap();
        sum ^ u32::from_le_bytes(word)
    });
    words(&mut hive, 508, &[sum]);
    hive
}
