//! What an initramfs brings along. It is a row of cpio archives ("newc", Linux,
//! `Documentation/driver-api/early-userspace/buffer-format.rst`): mostly a plain one with
//! microcode, then a compressed one. Read as a stream, up to a limit, nothing unpacked.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read};

/// Unpacked bytes that are read at most: 1 GiB.
const MOST_BYTES: u64 = 1 << 30;
/// Memory that a decompressor may ask for.
const MOST_WINDOW: u32 = 128 << 20;
/// Files in it.
const MOST_FILES: u32 = 500_000;
/// Bytes of a name (`PATH_MAX`).
const MOST_NAME: u64 = 4096;
/// Bytes of a file whose content matters.
const MOST_TEXT: u64 = 1 << 20;

/// Drivers of network cards that lie outside `drivers/net/ethernet`.
const OTHER_CARDS: [&str; 6] = [
    "virtio_net",
    "vmxnet3",
    "xen-netfront",
    "hv_netvsc",
    "r8152",
    "ax88179_178a",
];

/// What was found in it that matters for a disk over the network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Initramfs {
    /// Regular files and links.
    pub(super) files: u32,
    /// The program that logs in to iSCSI.
    pub(super) iscsistart: bool,
    /// What starts it: of initramfs-tools, or of dracut.
    pub(super) iscsi_script: bool,
    pub(super) iscsi_tcp: bool,
    pub(super) iscsi_ibft: bool,
    /// Told to use what the firmware says.
    pub(super) iscsi_auto: bool,
    pub(super) nbd: bool,
    /// `nbd-client` or `dls-nbd`.
    pub(super) nbd_client: bool,
    pub(super) nbd_script: bool,
    /// Names of drivers of network cards.
    pub(super) cards: BTreeSet<String>,
}

impl Initramfs {
    /// Reads one.
    ///
    /// # Errors
    /// What can't be read, in words.
    pub(super) fn read(source: impl Read) -> Result<Self, String> {
        let mut found = Self::default();
        let mut source = BufReader::new(source.take(MOST_BYTES));
        match found.archives(&mut source, true) {
            Ok(()) if found.files == 0 => Err("it holds no files".to_owned()),
            Ok(()) => Ok(found),
            Err(e) => Err(e.to_string()),
        }
    }

    /// What one of several has, too: they are unpacked over each other.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.files = self.files.saturating_add(other.files);
        self.iscsistart |= other.iscsistart;
        self.iscsi_script |= other.iscsi_script;
        self.iscsi_tcp |= other.iscsi_tcp;
        self.iscsi_ibft |= other.iscsi_ibft;
        self.iscsi_auto |= other.iscsi_auto;
        self.nbd |= other.nbd;
        self.nbd_client |= other.nbd_client;
        self.nbd_script |= other.nbd_script;
        self.cards.extend(other.cards);
        self
    }

    fn archives(&mut self, source: &mut dyn BufRead, may_unpack: bool) -> io::Result<()> {
        loop {
            skip_zeroes(source)?;
            let mut magic = [0; 6];
            if fill(source, &mut magic)? < magic.len() {
                return Ok(());
            }
            if matches!(&magic, b"070701" | b"070702") {
                self.archive(source)?;
            } else if may_unpack {
                // What comes after a compressed archive is not looked at.
                let whole = BufReader::new(io::Read::chain(&magic[..], source));
                let mut unpacked = BufReader::new(unpack(&magic, whole)?.take(MOST_BYTES));
                self.archives(&mut unpacked, false)?;
                return match unpacked.get_ref().limit() {
                    0 => Err(io::Error::other("it is too large")),
                    _ => Ok(()),
                };
            } else {
                return Err(io::Error::other("there is no archive where one should be"));
            }
        }
    }

    /// One archive; its first magic has been read.
    fn archive(&mut self, source: &mut dyn BufRead) -> io::Result<()> {
        loop {
            let mut header = [0; 104];
            source.read_exact(&mut header)?;
            let number = |at: usize| -> io::Result<u64> {
                let digits = header.get(at..at + 8);
                let text = digits.and_then(|digits| std::str::from_utf8(digits).ok());
                let text = text.filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
                text.and_then(|text| u64::from_str_radix(text, 16).ok())
                    .ok_or_else(|| io::Error::other("the header of a file in it is damaged"))
            };
            // Places are those of the format less the magic's 6.
            let (mode, size, name_size) = (number(8)?, number(48)?, number(88)?);
            if name_size == 0 || name_size > MOST_NAME {
                return Err(io::Error::other("a name in it is too long"));
            }
            let mut name = Vec::new();
            source.take(name_size).read_to_end(&mut name)?;
            skip(
                source,
                (110 + name_size).next_multiple_of(4) - 110 - name_size,
            )?;
            name.retain(|byte| *byte != 0);
            let name = String::from_utf8_lossy(&name).into_owned();
            if name == "TRAILER!!!" {
                return Ok(());
            }
            let name = name.trim_start_matches("./").trim_start_matches('/');
            let mut left = size.next_multiple_of(4);
            if matches!(mode & 0o170_000, 0o100_000 | 0o120_000) {
                self.files += 1;
                if self.files > MOST_FILES {
                    return Err(io::Error::other("it has too many files"));
                }
                self.name(name);
                if size <= MOST_TEXT && is_told(name) {
                    let mut text = Vec::new();
                    source.take(size).read_to_end(&mut text)?;
                    self.text(name, &String::from_utf8_lossy(&text));
                    left -= size;
                }
            }
            skip(source, left)?;
            let mut magic = [0; 6];
            source.read_exact(&mut magic)?;
            if !matches!(&magic, b"070701" | b"070702") {
                return Err(io::Error::other("an archive in it is damaged"));
            }
        }
    }

    fn name(&mut self, path: &str) {
        let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
        match file {
            "iscsistart" | "iscsiadm" => self.iscsistart = true,
            "iscsiroot" => self.iscsi_script = true,
            "nbd-client" | "dls-nbd" => self.nbd_client = true,
            "nbdroot" => self.nbd_script = true,
            "iscsi" if folder == "scripts/local-top" => self.iscsi_script = true,
            "nbd" if folder == "scripts/local-top" => self.nbd_script = true,
            _ => {}
        }
        self.module(folder, file);
    }

    fn module(&mut self, folder: &str, file: &str) {
        let Some((stem, ending)) = file.split_once(".ko") else {
            return;
        };
        if !matches!(ending, "" | ".gz" | ".xz" | ".zst") {
            return;
        }
        match stem {
            "iscsi_tcp" => self.iscsi_tcp = true,
            "iscsi_ibft" => self.iscsi_ibft = true,
            "nbd" => self.nbd = true,
            _ => {}
        }
        let is_card = folder.contains("drivers/net/ethernet") || OTHER_CARDS.contains(&stem);
        if is_card && self.cards.len() < 1000 {
            self.cards.insert(stem.chars().take(64).collect());
        }
    }

    fn text(&mut self, path: &str, text: &str) {
        if path.ends_with("/modules.builtin") {
            for line in text.lines() {
                let (folder, file) = line.rsplit_once('/').unwrap_or(("", line));
                self.module(folder, file);
            }
        } else if path == "etc/iscsi.initramfs" {
            self.iscsi_auto |= text.lines().any(|line| {
                let value = line.trim().strip_prefix("ISCSI_AUTO=");
                value.is_some_and(|value| !value.trim_matches('"').is_empty())
            });
        } else {
            self.iscsi_auto |= text.split_whitespace().any(is_automatic);
        }
    }
}

/// A word of a kernel's command line that makes an initramfs use the firmware's iSCSI disk:
/// of initramfs-tools, or of dracut.
pub(super) fn is_automatic(word: &str) -> bool {
    matches!(
        word,
        "iscsi_auto"
            | "rd.iscsi.firmware"
            | "rd.iscsi.firmware=1"
            | "rd.iscsi.ibft"
            | "rd.iscsi.ibft=1"
            | "netroot=iscsi"
    )
}

/// A file whose content says something.
fn is_told(path: &str) -> bool {
    path.ends_with("/modules.builtin")
        || path == "etc/iscsi.initramfs"
        || path.starts_with("etc/cmdline.d/")
        || path == "etc/cmdline"
}

fn unpack<'a>(magic: &[u8; 6], source: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let other = |name| {
        let sentence = format!("it is compressed by {name}, which the check does not read");
        Err(io::Error::other(sentence))
    };
    match magic {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::bufread::GzDecoder::new(source))),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            let limit = MOST_WINDOW / 1024;
            let reader = lzma_rust2::XzReader::new_mem_limit(source, false, limit);
            Ok(Box::new(reader))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let limit = u64::from(MOST_WINDOW);
            let decoder =
                ruzstd::decoding::StreamingDecoder::new_with_max_window_size(source, limit);
            Ok(Box::new(decoder.map_err(io::Error::other)?))
        }
        [0x02, 0x21, 0x4c, 0x18, ..] | [0x04, 0x22, 0x4d, 0x18, ..] => {
            Ok(Box::new(lz4_flex::frame::FrameDecoder::new(source)))
        }
        [b'B', b'Z', b'h', ..] => other("bzip2"),
        [0x5d, 0, 0, ..] => other("lzma"),
        [0x89, b'L', b'Z', b'O', ..] => other("lzo"),
        _ => Err(io::Error::other("it is no archive that is known")),
    }
}

/// Reads until the buffer is full or nothing is left; how much it was.
fn fill(source: &mut dyn BufRead, buffer: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while let Some(rest) = buffer.get_mut(count..).filter(|rest| !rest.is_empty()) {
        match source.read(rest) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(count)
}

fn skip_zeroes(source: &mut dyn BufRead) -> io::Result<()> {
    loop {
        let ahead = source.fill_buf()?;
        if ahead.is_empty() {
            return Ok(());
        }
        let zeroes = ahead.iter().take_while(|byte| **byte == 0).count();
        let all = zeroes == ahead.len();
        source.consume(zeroes);
        if !all {
            return Ok(());
        }
    }
}

fn skip(source: &mut dyn BufRead, count: u64) -> io::Result<()> {
    let skipped = io::copy(&mut source.take(count), &mut io::sink())?;
    if skipped < count {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
