//! Disks that are made here, by the tools that make real ones: a small Debian that boots, and
//! what can be broken about it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use dls::clock::Clock;
use dls::image_check::{Bytes, Subject, check};
use dls::model::{BootMethod, CheckFinding, ImageCheck};

/// Sectors: GRUB's core, the ESP, the root, the end of the root, the disk.
pub(crate) const CORE: u64 = 2048;
pub(crate) const ESP: u64 = 4096;
pub(crate) const ROOT: u64 = 20480;
const END: u64 = 96256;
const DISK: u64 = 98304;
pub(crate) const VERSION: &str = "6.1.0-50-amd64";
const UUID: &str = "80a1c4e2-acf0-4bcf-a234-177febfe76ec";

/// A small Debian: what is in its initramfs, its root and its ESP.
#[derive(Clone)]
pub(crate) struct Debian {
    pub(crate) initramfs: BTreeMap<String, String>,
    /// `gzip`, `xz`, `zstd`, `lz4`, none.
    pub(crate) packed_by: &'static [&'static str],
    pub(crate) root: BTreeMap<String, Vec<u8>>,
    pub(crate) esp: Vec<String>,
}

impl Debian {
    pub(crate) fn good() -> Self {
        let module = |path: &str| format!("usr/lib/modules/{VERSION}/kernel/drivers/{path}.ko");
        let mut initramfs = BTreeMap::new();
        for path in [
            "scripts/local-top/iscsi",
            "scripts/local-top/nbd",
            "usr/sbin/iscsistart",
            "usr/sbin/nbd-client",
            &module("scsi/iscsi_tcp"),
            &module("firmware/iscsi_ibft"),
            &module("block/nbd"),
            &module("net/ethernet/intel/e1000e/e1000e"),
        ] {
            initramfs.insert(path.to_owned(), "x".repeat(5));
        }
        initramfs.insert("etc/iscsi.initramfs".into(), "ISCSI_AUTO=true\n".into());
        let grub = format!("linux /vmlinuz root=UUID={UUID} ro quiet\n");
        let fstab = format!(
            "# device\nUUID={UUID} / ext4 defaults 0 1\nUUID=1A2B-3C4D /boot/efi vfat umask=0077 0 1\n"
        );
        let release =
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n";
        let root = [
            ("etc/os-release", release.to_owned()),
            ("etc/fstab", fstab),
            ("boot/grub/grub.cfg", grub),
            (
                "etc/network/interfaces",
                "auto lo\niface lo inet loopback\niface eth0 inet dhcp\n".to_owned(),
            ),
            (&format!("boot/vmlinuz-{VERSION}"), "a kernel".to_owned()),
        ];
        Self {
            initramfs,
            packed_by: &["gzip"],
            root: root
                .map(|(path, text)| (path.to_owned(), text.into_bytes()))
                .into(),
            esp: vec![
                "EFI/BOOT/BOOTX64.EFI".to_owned(),
                "EFI/debian/shimx64.efi".to_owned(),
            ],
        }
    }

    /// The same with another file in its root.
    pub(crate) fn with(mut self, path: &str, text: &str) -> Self {
        self.root.insert(path.to_owned(), text.as_bytes().to_vec());
        self
    }

    /// The same without those files in its initramfs.
    pub(crate) fn lacking(mut self, parts: &[&str]) -> Self {
        self.initramfs
            .retain(|path, _| !parts.iter().any(|part| path.contains(part)));
        self
    }

    /// Microcode first, as it comes, then the compressed archive.
    pub(crate) fn packed(&self) -> Vec<u8> {
        let early = [(
            "kernel/x86/microcode/GenuineIntel.bin".to_owned(),
            "m".repeat(777),
        )];
        let mut whole = cpio(&early.into());
        whole.resize(whole.len().next_multiple_of(512), 0);
        let main = cpio(&self.initramfs);
        match self.packed_by {
            [] => whole.extend(main),
            command => whole.extend(pipe(command, &main)),
        }
        whole
    }

    pub(crate) fn disk(&self) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        let disk = file.to_str().unwrap();
        std::fs::write(&file, b"").unwrap();
        std::fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len(DISK * 512)
            .unwrap();
        let table = format!(
            "label: gpt\nstart={CORE}, size=2048, type=21686148-6449-6E6F-744E-656564454649\n\
             start={ESP}, size={}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n\
             start={ROOT}, size={}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n",
            ROOT - ESP,
            END - ROOT
        );
        sfdisk(&file, &table);
        let tree = dir.path().join("tree");
        let mut files = self.root.clone();
        files
            .entry(format!("boot/initrd.img-{VERSION}"))
            .or_insert_with(|| self.packed());
        for (path, bytes) in files.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            let path = tree.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let (offset, tree) = (
            format!("offset={},nodiscard", ROOT * 512),
            tree.to_str().unwrap(),
        );
        let blocks = ((END - ROOT) / 8).to_string();
        run(&[
            "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-U", UUID, "-E", &offset, "-d", tree,
            disk, &blocks,
        ]);
        let mut bytes = std::fs::read(&file).unwrap();
        put(&mut bytes, ESP * 512, &fat(&self.esp, ROOT - ESP));
        // As GRUB's boot.img and the first sector of its core are.
        put(&mut bytes, 0, &[0xeb, 0x63, 0x90]);
        put(&mut bytes, 0x5c, &CORE.to_le_bytes());
        put(&mut bytes, 0x180, b"GRUB \0Geom");
        put(&mut bytes, CORE * 512 + 500, &(CORE + 1).to_le_bytes());
        put(&mut bytes, CORE * 512 + 510, &[0x20, 0x08]);
        bytes
    }
}

/// A FAT file system with these files.
pub(crate) fn fat(files: &[String], sectors: u64) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let esp = dir.path().join("esp");
    std::fs::write(&esp, vec![0; (sectors * 512) as usize]).unwrap();
    let (esp_name, loader) = (esp.to_str().unwrap(), dir.path().join("loader"));
    std::fs::write(&loader, b"MZ a loader").unwrap();
    run(&["mkfs.vfat", "-n", "ESP", "-i", "1A2B3C4D", esp_name]);
    let mut made = std::collections::HashSet::new();
    for path in files {
        let folders = path
            .match_indices('/')
            .map(|(at, _)| format!("::/{}", &path[..at]));
        for folder in folders.filter(|folder| made.insert(folder.clone())) {
            run(&["mmd", "-i", esp_name, &folder]);
        }
        let place = format!("::/{path}");
        run(&["mcopy", "-i", esp_name, loader.to_str().unwrap(), &place]);
    }
    std::fs::read(&esp).unwrap()
}

/// The disk that all is well with, made once.
pub(crate) fn good_disk() -> Arc<Vec<u8>> {
    static DISK: OnceLock<Arc<Vec<u8>>> = OnceLock::new();
    DISK.get_or_init(|| Arc::new(Debian::good().disk())).clone()
}

/// Runs a partition table's description through sfdisk.
pub(crate) fn sfdisk(file: &Path, table: &str) {
    let mut child = Command::new("sfdisk")
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(file)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(table.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success(), "{table}");
}

/// A disk of zeroes with a table.
pub(crate) fn with_table(table: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    std::fs::write(&file, vec![0; 32 << 20]).unwrap();
    sfdisk(&file, table);
    std::fs::read(&file).unwrap()
}

pub(crate) fn put(bytes: &mut [u8], at: u64, what: &[u8]) {
    let at = at as usize;
    bytes[at..at + what.len()].copy_from_slice(what);
}

pub(crate) fn run(command: &[&str]) {
    let output = Command::new(command[0])
        .args(&command[1..])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
}

/// What a program makes of its input.
fn pipe(command: &[&str], input: &[u8]) -> Vec<u8> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input).unwrap();
    pipe_file(command, file)
}

fn pipe_file(command: &[&str], mut file: std::fs::File) -> Vec<u8> {
    std::io::Seek::rewind(&mut file).unwrap();
    let mut program = Command::new(command[0]);
    let output = program.args(&command[1..]).arg("-c").stdin(file).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{command:?}");
    output.stdout
}

/// A small file that is an archive of one large file of zeroes when it is unpacked.
pub(crate) fn bomb(size: u64) -> Vec<u8> {
    let mut file = tempfile::tempfile().unwrap();
    let mut archive = cpio(&[("zeroes".to_owned(), "x".to_owned())].into());
    let trailer = archive
        .windows(6)
        .rposition(|word| word == b"070701")
        .unwrap();
    archive.truncate(trailer);
    // The size of the file, the one before the trailer.
    let header = archive
        .windows(6)
        .rposition(|word| word == b"070701")
        .unwrap();
    put(
        &mut archive,
        header as u64 + 54,
        format!("{size:08x}").as_bytes(),
    );
    file.write_all(&archive).unwrap();
    file.set_len(size).unwrap();
    pipe_file(&["zstd", "-q"], file)
}

/// An archive in the form "newc".
pub(crate) fn cpio(files: &BTreeMap<String, String>) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut add = |name: &str, mode: u32, content: &str| {
        let (size, length) = (content.len(), name.len() + 1);
        archive.extend(
            format!(
                "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{length:08x}{:08x}",
                1, 0, 0, 1, 0, 0, 0, 0, 0, 0
            )
            .into_bytes(),
        );
        archive.extend(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content.as_bytes());
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    add(".", 0o040_755, "");
    for (name, content) in files {
        add(name, 0o100_644, content);
    }
    add("TRAILER!!!", 0, "");
    archive
}

/// A disk of which some bytes are others.
pub(crate) struct Changed {
    pub(crate) disk: Arc<Vec<u8>>,
    pub(crate) bytes: Vec<(u64, u8)>,
}

impl Bytes for Changed {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.disk.read_at(offset, buffer)?;
        for (at, byte) in &self.bytes {
            if let Some(place) = at.checked_sub(offset)
                && let Some(there) = buffer.get_mut(place as usize)
            {
                *there = *byte;
            }
        }
        Ok(())
    }
}

/// What is found in a disk that the firmware boots.
pub(crate) fn look(disk: Vec<u8>) -> ImageCheck {
    look_as(Arc::new(disk), BootMethod::San, None)
}

pub(crate) fn look_as(
    disk: Arc<dyn Bytes>,
    method: BootMethod,
    initrds: Option<Vec<Arc<dyn Bytes>>>,
) -> ImageCheck {
    let subject = Subject {
        disk,
        method,
        initrds,
    };
    check(&subject, Clock::system().now())
}

/// The sentence of a finding; ends the test if it was not made.
pub(crate) fn sentence(found: &ImageCheck, finding: CheckFinding) -> String {
    let one = found.findings.iter().find(|one| one.finding == finding);
    let one = one.unwrap_or_else(|| panic!("{finding} was not found: {found:#?}"));
    one.sentence.clone()
}

pub(crate) fn has(found: &ImageCheck, finding: CheckFinding) -> bool {
    found.findings.iter().any(|one| one.finding == finding)
}
