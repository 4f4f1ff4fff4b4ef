//! What a boot script tells a machine to do. Pure text: a small reader of iPXE scripts that
//! follows the path on which every command succeeds, to `boot`, `sanboot`, `chain` or `exit`.
//!
//! It knows what servers' scripts are made of (`set`, `kernel`, `initrd`, `sanboot`, `chain`,
//! `sleep`, `goto`, `${settings}`); what it does not know it passes over, as long as nothing
//! that is loaded depends on it. Disks are found in the words by which Debian's and dracut's
//! initramfs find them.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use sha2::{Digest, Sha256};

use super::words::{Cause, Trouble};
use crate::model::{MacAddr, hex};

/// Longest script that is looked at, in bytes.
pub(super) const LONGEST: usize = 1 << 20;
/// Most lines that are followed.
const MOST_LINES: usize = 10_000;
const ISCSI_PORT: u16 = 3260;
const NBD_PORT: u16 = 10809;
/// Where DLS takes reports of systems that its script gave no URL.
const REPORT_PORT: &str = "8069";

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// By TFTP: server and name.
    Tftp(Ipv4Addr, String),
    /// By HTTP: the URL.
    Http(String),
}

impl Source {
    /// A boot file as DHCP names it: a URL, or a name at the next server.
    pub(super) fn of_boot_file(file: &str, next_server: Option<Ipv4Addr>) -> Result<Self, Trouble> {
        let bad = |what: &str| Trouble::new(Cause::NoBootFile, format!("`{file}`: {what}"));
        if file.starts_with("http://") {
            return Ok(Self::Http(file.to_owned()));
        }
        if let Some(rest) = file.strip_prefix("tftp://") {
            let (server, name) = rest.split_once('/').unwrap_or((rest, ""));
            let server = server.parse().map_err(|_| bad("no address of a server"))?;
            return Ok(Self::Tftp(server, name.to_owned()));
        }
        if file.contains("://") {
            return Err(bad("neither http nor tftp"));
        }
        let server = next_server.ok_or_else(|| bad("of no server"))?;
        Ok(Self::Tftp(server, file.to_owned()))
    }

    /// A name in a script that came from here.
    fn join(&self, name: &str) -> Result<Self, Trouble> {
        if name.contains("://") {
            return Self::of_boot_file(name, None)
                .map_err(|t| Trouble::new(Cause::Script, t.detail));
        }
        Ok(match self {
            Self::Tftp(server, base) => match name.strip_prefix('/') {
                Some(absolute) => Self::Tftp(*server, absolute.to_owned()),
                None => Self::Tftp(*server, format!("{}{name}", folder(base))),
            },
            Self::Http(base) => {
                let host = base.len() - base.trim_start_matches("http://").len();
                let root = base[host..].find('/').map_or(base.len(), |at| host + at);
                if name.starts_with('/') {
                    Self::Http(format!("{}{name}", &base[..root]))
                } else {
                    let path = folder(&base[root..]);
                    let slash = if path.is_empty() { "/" } else { "" };
                    Self::Http(format!("{}{path}{slash}{name}", &base[..root]))
                }
            }
        })
    }
}

/// All up to the last slash.
fn folder(path: &str) -> &str {
    path.rfind('/').map_or("", |at| &path[..=at])
}

/// Where a disk is and how it is opened.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Disk {
    /// iSCSI.
    Iscsi(Target),
    /// NBD: server and export.
    Nbd(SocketAddrV4, String),
}

/// A disk over iSCSI.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// Where.
    pub(super) server: SocketAddrV4,
    /// Its name.
    pub(super) name: String,
    /// Its logical unit.
    pub(super) lun: u16,
    /// How the initiator calls itself.
    pub(super) initiator: String,
    /// CHAP name and secret of the machine, where they are given.
    pub(super) chap: Option<(String, String)>,
    /// The secret by which the server proves itself, where it is given.
    pub(super) back: Option<String>,
}

impl std::fmt::Debug for Disk {
    /// Without what is secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Iscsi(target) => write!(f, "iscsi {} {}", target.server, target.name),
            Self::Nbd(server, _) => write!(f, "nbd {server}"),
        }
    }
}

/// What a script tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Orders {
    /// Boot this.
    Boot(Boot),
    /// Look again.
    Again(Again),
}

/// A script that leads to another one, or to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Again {
    /// Seconds to wait before.
    pub(super) seconds: u64,
    /// Where it leads.
    pub(super) to: Source,
    /// What is waited for, where the screen says it; else empty.
    pub(super) why: String,
}

/// What is to be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Boot {
    /// The image's name, where the script shows it; else empty.
    pub(super) image: String,
    /// The kernel, if the loader loads one.
    pub(super) kernel: Option<Source>,
    /// The initrds.
    pub(super) initrds: Vec<Source>,
    /// The disk.
    pub(super) disk: Option<Disk>,
    /// The system asks for an address of its own.
    pub(super) dhcp: bool,
    /// What `up`, `beat` and `bye` are appended to.
    pub(super) report: Option<String>,
}

/// What the machine knows when it reads its script.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    /// Where the script came from.
    pub(super) from: &'a Source,
    /// Its MAC.
    pub(super) mac: MacAddr,
    /// Its address.
    pub(super) ip: Option<Ipv4Addr>,
    /// The server that DHCP named.
    pub(super) next_server: Option<Ipv4Addr>,
}

impl Reader<'_> {
    /// Follows a script.
    pub(super) fn follow(&self, script: &[u8]) -> Result<Orders, Trouble> {
        let bad = |what: &str| Trouble::new(Cause::Script, what);
        let text = std::str::from_utf8(script).map_err(|_| bad("it is no text"))?;
        if !text.starts_with("#!ipxe") || script.len() > LONGEST {
            return Err(bad("it does not begin with #!ipxe, or is too long"));
        }
        let lines: Vec<&str> = text.lines().collect();
        let mut follower = Follower::new(self);
        let mut at = 0;
        for _ in 0..MOST_LINES {
            let Some(line) = lines.get(at) else {
                return follower.ends();
            };
            at += 1;
            match follower.command(line)? {
                Next::Line => {}
                Next::Label(label) => {
                    let label = format!(":{label}");
                    let found = lines.iter().position(|line| line.trim() == label);
                    at = found.ok_or_else(|| bad(&format!("no label `{label}`")))?;
                }
                Next::End(orders) => return Ok(*orders),
            }
        }
        Err(bad("it does not come to an end"))
    }
}

enum Next {
    Line,
    Label(String),
    End(Box<Orders>),
}

impl Next {
    fn end(orders: Orders) -> Self {
        Self::End(Box::new(orders))
    }
}

struct Follower<'a> {
    reader: &'a Reader<'a>,
    settings: HashMap<String, String>,
    image: String,
    reason: String,
    pause: u64,
    kernel: Option<(Source, Vec<String>)>,
    initrds: Vec<Source>,
}

impl<'a> Follower<'a> {
    fn new(reader: &'a Reader<'a>) -> Self {
        let mac = reader.mac.to_string();
        let ip = reader.ip.map(|ip| ip.to_string()).unwrap_or_default();
        let next = reader
            .next_server
            .map(|ip| ip.to_string())
            .unwrap_or_default();
        let known = [
            ("mac", mac.clone()),
            ("net0/mac", mac),
            ("mac:hexhyp", reader.mac.hyphenated()),
            ("net0/mac:hexhyp", reader.mac.hyphenated()),
            ("ip", ip.clone()),
            ("net0/ip", ip),
            ("next-server", next.clone()),
            ("net0/next-server", next),
        ];
        Self {
            reader,
            settings: known.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            image: String::new(),
            reason: String::new(),
            pause: 0,
            kernel: None,
            initrds: Vec::new(),
        }
    }

    fn command(&mut self, line: &str) -> Result<Next, Trouble> {
        // What follows `||` is for a failure; what follows `&&` would come next, and is not
        // needed of any server's script that we know.
        let line = line.split(" || ").next().unwrap_or_default();
        let line = line.trim().trim_end_matches("||").trim_end();
        let mut words = line.split_ascii_whitespace();
        let Some(command) = words.next() else {
            return Ok(Next::Line);
        };
        let rest: Vec<&str> = words.collect();
        match command {
            "echo" => self.shown(&rest),
            "set" => {
                if let Some((key, value)) = rest.split_first() {
                    let value = self.fill(&value.join(" "))?;
                    self.settings.insert((*key).to_owned(), value);
                }
            }
            "sleep" => {
                let seconds = rest.first().and_then(|word| word.parse::<u64>().ok());
                self.pause += seconds.unwrap_or(0);
            }
            "goto" => {
                if let Some(label) = rest.first() {
                    return Ok(Next::Label(self.fill(label)?));
                }
            }
            "kernel" | "imgselect" => {
                let words = self.plain(&rest)?;
                if let Some((file, arguments)) = words.split_first() {
                    self.kernel = Some((self.reader.from.join(file)?, arguments.to_vec()));
                }
            }
            "initrd" | "module" => {
                let words = self.plain(&rest)?;
                if let Some(file) = words.first() {
                    self.initrds.push(self.reader.from.join(file)?);
                }
            }
            "chain" => {
                let words = self.plain(&rest)?;
                if let Some(file) = words.first() {
                    return self.chain(file).map(Next::end);
                }
            }
            "sanboot" => return self.sanboot(&rest).map(Next::end),
            "boot" => return self.ends().map(Next::end),
            "exit" | "reboot" | "shell" | "poweroff" => {
                return Err(Trouble::new(
                    Cause::NothingToBoot,
                    format!("it says `{line}`"),
                ));
            }
            _ => {}
        }
        Ok(Next::Line)
    }

    /// The image's name and what it waits for, where our own scripts show them.
    fn shown(&mut self, words: &[&str]) {
        let text = words.join(" ");
        if let Some((_, rest)) = text
            .strip_prefix("DLS: ")
            .and_then(|t| t.split_once(" boots "))
        {
            self.image = rest.trim_end_matches(" from its disk").to_owned();
        }
        if let Some(reason) = text.strip_prefix("Reason: ") {
            self.reason = reason.to_owned();
        }
    }

    /// Words without options, settings filled in. Options with a value are those of `kernel`,
    /// `initrd` and `chain`.
    fn plain(&self, words: &[&str]) -> Result<Vec<String>, Trouble> {
        let mut rest = words;
        while let Some((first, after)) = rest.split_first() {
            if !first.starts_with('-') {
                break;
            }
            let takes = matches!(*first, "--name" | "-n" | "--timeout" | "-t" | "--arguments");
            rest = if takes {
                after.get(1..).unwrap_or_default()
            } else {
                after
            };
        }
        rest.iter().map(|word| self.fill(word)).collect()
    }

    /// Settings in a text.
    fn fill(&self, text: &str) -> Result<String, Trouble> {
        let mut filled = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            filled.push_str(&rest[..at]);
            let after = &rest[at + 2..];
            let end = after.find('}');
            let end =
                end.ok_or_else(|| Trouble::new(Cause::Script, format!("`{text}` has no end")))?;
            let key = &after[..end];
            let value = self.settings.get(key);
            let value = value.ok_or_else(|| {
                Trouble::new(
                    Cause::Script,
                    format!("the setting `{key}` is not known here"),
                )
            })?;
            filled.push_str(value);
            rest = &after[end + 1..];
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn chain(&self, file: &str) -> Result<Orders, Trouble> {
        Ok(Orders::Again(Again {
            seconds: self.pause,
            to: self.reader.from.join(file)?,
            why: self.reason.clone(),
        }))
    }

    fn sanboot(&self, words: &[&str]) -> Result<Orders, Trouble> {
        if words.contains(&"--drive") {
            return Err(Trouble::new(
                Cause::LocalBoot,
                format!("reason: {}", self.reason),
            ));
        }
        let words = self.plain(words)?;
        let url = words.first().map_or("", String::as_str);
        let get = |key: &str| self.settings.get(key).cloned();
        let bad = || {
            Trouble::new(
                Cause::Script,
                format!("`sanboot {url}` is not for us: only iscsi: is"),
            )
        };
        // RFC 4173: iscsi:SERVER:PROTOCOL:PORT:LUN:TARGET
        let parts: Vec<&str> = url
            .strip_prefix("iscsi:")
            .ok_or_else(bad)?
            .splitn(5, ':')
            .collect();
        let [server, _, port, lun, name] = parts[..] else {
            return Err(bad());
        };
        let server = server.parse::<Ipv4Addr>().map_err(|_| bad())?;
        let target = Target {
            server: SocketAddrV4::new(server, port.parse().unwrap_or(ISCSI_PORT)),
            name: name.to_owned(),
            lun: u16::from_str_radix(lun, 16).unwrap_or(0),
            initiator: get("initiator-iqn").unwrap_or_else(|| initiator(self.reader.mac)),
            chap: get("username").zip(get("password")),
            back: get("reverse-password"),
        };
        let report = table_report(&target);
        Ok(Orders::Boot(Boot {
            image: self.image.clone(),
            kernel: None,
            initrds: Vec::new(),
            disk: Some(Disk::Iscsi(target)),
            dhcp: false,
            report,
        }))
    }

    /// The end of the script, or `boot`.
    fn ends(&self) -> Result<Orders, Trouble> {
        let Some((kernel, arguments)) = &self.kernel else {
            return Err(Trouble::new(Cause::NothingToBoot, "no kernel, no disk"));
        };
        let get = |name: &str| {
            let words = arguments.iter();
            words
                .filter_map(|w| w.strip_prefix(name)?.strip_prefix('='))
                .next_back()
                .map(str::to_owned)
        };
        Ok(Orders::Boot(Boot {
            image: self.image.clone(),
            kernel: Some(kernel.clone()),
            initrds: self.initrds.clone(),
            disk: disk(&get, self.reader.mac),
            dhcp: get("ip").is_some_and(|ip| ip == "dhcp" || ip.ends_with(":dhcp")),
            report: get("dls.report"),
        }))
    }
}

/// The disk that a command line names.
fn disk(get: &dyn Fn(&str) -> Option<String>, mac: MacAddr) -> Option<Disk> {
    if let Some(name) = get("iscsi_target_name") {
        let server = get("iscsi_target_ip")?.parse().ok()?;
        let port = get("iscsi_target_port").and_then(|p| p.parse().ok());
        return Some(Disk::Iscsi(Target {
            server: SocketAddrV4::new(server, port.unwrap_or(ISCSI_PORT)),
            name,
            lun: 0,
            initiator: get("iscsi_initiator").unwrap_or_else(|| initiator(mac)),
            chap: get("iscsi_username").zip(get("iscsi_password")),
            back: get("iscsi_in_password"),
        }));
    }
    if let Some(root) = get("netroot")
        .as_deref()
        .and_then(|r| r.strip_prefix("iscsi:"))
    {
        // netroot=iscsi:[USER:SECRET[:USER:SECRET]@]SERVER:PROTOCOL:PORT:LUN:TARGET
        let (secrets, place) = match root.split_once('@') {
            Some((secrets, place)) => (secrets.split(':').collect(), place),
            None => (Vec::new(), root),
        };
        let parts: Vec<&str> = place.splitn(5, ':').collect();
        let [server, _, port, lun, name] = parts[..] else {
            return None;
        };
        let word = |n: usize| secrets.get(n).map(|s: &&str| (*s).to_owned());
        return Some(Disk::Iscsi(Target {
            server: SocketAddrV4::new(server.parse().ok()?, port.parse().unwrap_or(ISCSI_PORT)),
            name: name.to_owned(),
            lun: lun.parse().unwrap_or(0),
            initiator: get("rd.iscsi.initiator").unwrap_or_else(|| initiator(mac)),
            chap: word(0).zip(word(1)),
            back: word(3),
        }));
    }
    if let Some(root) = get("nbdroot") {
        // Debian: nbdroot=SERVER:PORT/EXPORT, as nbd-client's own hook and ours read it.
        let (place, export) = root.split_once('/')?;
        let (server, port) = place.split_once(':').unwrap_or((place, ""));
        let port = port.parse().unwrap_or(NBD_PORT);
        let server = SocketAddrV4::new(server.parse().ok()?, port);
        return Some(Disk::Nbd(server, export.to_owned()));
    }
    // dracut: root=nbd:SERVER:EXPORT[:..]; an export that is a number is a port.
    let root = get("root")?;
    let mut parts = root.strip_prefix("nbd:")?.split(':');
    let server = parts.next()?.parse().ok()?;
    let export = parts.next()?;
    Some(match export.parse::<u16>() {
        Ok(port) => Disk::Nbd(SocketAddrV4::new(server, port), String::new()),
        Err(_) => Disk::Nbd(SocketAddrV4::new(server, NBD_PORT), export.to_owned()),
    })
}

/// As iPXE names itself where nobody has named it.
fn initiator(mac: MacAddr) -> String {
    format!("iqn.2010-04.org.ipxe:{}", mac.hyphenated())
}

/// Where a system that the disk's own loader starts reports to: made of what the firmware keeps
/// of its disk (`docs/boot.md`, "What a token proves"). Of disks of DLS only.
fn table_report(target: &Target) -> Option<String> {
    let (name, secret) = target.chap.as_ref()?;
    if !target.name.starts_with("iqn.2026-11.internal.dls:") {
        return None;
    }
    let own = target
        .initiator
        .strip_prefix("iqn.2026-11.internal.dls.client:");
    let port = own
        .and_then(|rest| rest.split_once(':'))
        .map_or(REPORT_PORT, |(_, port)| port);
    let mut hash = Sha256::new();
    hash.update(secret);
    hash.update(b":report");
    let token = hex(&hash.finalize()[..16]);
    Some(format!(
        "http://{}:{port}/b/{name}.{token}/",
        target.server.ip()
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: &str = "http://10.0.0.1:8069/b/0192.00ff/";

    fn follow(script: &str) -> Result<Orders, Trouble> {
        let from = Source::Http(format!("{BASE}boot.ipxe"));
        let reader = Reader {
            from: &from,
            mac: MacAddr([2, 0, 0, 0, 0, 9]),
            ip: Some(Ipv4Addr::new(10, 0, 0, 9)),
            next_server: Some(Ipv4Addr::new(10, 0, 0, 1)),
        };
        reader.follow(format!("#!ipxe\n{script}").as_bytes())
    }

    fn boot(script: &str) -> Boot {
        match follow(script) {
            Ok(Orders::Boot(boot)) => boot,
            other => panic!("{other:?}"),
        }
    }

    fn http(url: &str) -> Source {
        Source::Http(url.into())
    }

    #[test]
    fn a_kernel_with_its_disk_and_report() {
        let boot = boot(&format!(
            "set hostname pc-1\necho DLS: pc-1 (52:54) boots debian-12\n\
             kernel --name kernel {BASE}kernel initrd=initrd0 quiet ip=dhcp nbdroot=10.0.0.1:10810/2.3 dls.report={BASE} || goto failed\n\
             initrd --name initrd0 {BASE}initrd0 || goto failed\n\
             initrd --name initrd1 {BASE}initrd1 || goto failed\n\
             boot || goto failed\n:failed\nsleep 10 ||\nchain --replace {BASE}boot.ipxe ||\nreboot\n"
        ));
        assert_eq!(boot.image, "debian-12");
        assert_eq!(boot.kernel, Some(http(&format!("{BASE}kernel"))));
        assert_eq!(boot.initrds.len(), 2);
        assert_eq!(boot.report.as_deref(), Some(BASE));
        assert!(boot.dhcp);
        let server = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 10810);
        assert_eq!(boot.disk, Some(Disk::Nbd(server, "2.3".into())));
    }

    #[test]
    fn a_disk_that_the_loader_starts() {
        let boot = boot(
            "echo DLS: pc-1 boots debian from its disk\n\
             set initiator-iqn iqn.2026-11.internal.dls.client:1:8070\nset username 02\nset password secret\n\
             set reverse-username dls\nset reverse-password back\n\
             sanboot iscsi:10.0.0.1::3261:0:iqn.2026-11.internal.dls:1 || goto failed\n",
        );
        assert_eq!(boot.image, "debian");
        let Some(Disk::Iscsi(target)) = &boot.disk else {
            panic!("{:?}", boot.disk);
        };
        assert_eq!(target.server.port(), 3261);
        assert_eq!(target.name, "iqn.2026-11.internal.dls:1");
        assert_eq!(target.chap, Some(("02".into(), "secret".into())));
        assert_eq!(target.back.as_deref(), Some("back"));
        // printf 'secret:report' | sha256sum
        let token = hex(&Sha256::digest(b"secret:report")[..16]);
        assert_eq!(
            boot.report,
            Some(format!("http://10.0.0.1:8070/b/02.{token}/"))
        );
    }

    #[test]
    fn disks_in_other_words() {
        let of = |words: &str| boot(&format!("kernel vmlinuz {words}\nboot\n")).disk;
        let Some(Disk::Iscsi(t)) = of(
            "iscsi_target_name=iqn.x:t iscsi_target_ip=10.0.0.2 iscsi_target_port=3300 iscsi_username=u iscsi_password=p iscsi_in_password=b",
        ) else {
            panic!();
        };
        assert_eq!(
            (t.server.port(), t.name.as_str(), t.chap),
            (3300, "iqn.x:t", Some(("u".into(), "p".into())))
        );
        assert!(t.initiator.contains("02-00-00-00-00-09"));
        let Some(Disk::Iscsi(t)) = of("netroot=iscsi:u:p@10.0.0.2::3300:1:iqn.x:t") else {
            panic!();
        };
        assert_eq!((t.name.as_str(), t.lun, t.back), ("iqn.x:t", 1, None));
        let at = |port| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), port);
        assert_eq!(
            of("root=nbd:10.0.0.2:disk:ext4"),
            Some(Disk::Nbd(at(10809), "disk".into()))
        );
        assert_eq!(
            of("root=nbd:10.0.0.2:2000"),
            Some(Disk::Nbd(at(2000), String::new()))
        );
        assert_eq!(of("root=/dev/sda1"), None);
    }

    #[test]
    fn names_are_joined_to_where_the_script_came_from() {
        let boot = boot("set base /files\nkernel ${base}/vmlinuz a\ninitrd sub/initrd\nboot\n");
        assert_eq!(
            boot.kernel,
            Some(http("http://10.0.0.1:8069/files/vmlinuz"))
        );
        assert_eq!(boot.initrds, [http(&format!("{BASE}sub/initrd"))]);
        let base = Source::Tftp(Ipv4Addr::LOCALHOST, "a/b.ipxe".into());
        assert_eq!(
            base.join("c").unwrap(),
            Source::Tftp(Ipv4Addr::LOCALHOST, "a/c".into())
        );
        let bare = Source::Http("http://10.0.0.1".into());
        assert_eq!(bare.join("x").unwrap(), http("http://10.0.0.1/x"));
        let next = Some(Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(
            Source::of_boot_file("a.efi", next).unwrap(),
            Source::Tftp(Ipv4Addr::new(10, 0, 0, 1), "a.efi".into())
        );
        assert!(Source::of_boot_file("a.efi", None).is_err());
        assert!(Source::of_boot_file("https://x/a", next).is_err());
    }

    #[test]
    fn screens_and_faults() {
        let again = |seconds, why: &str| {
            let (to, why) = (http(&format!("{BASE}boot.ipxe")), why.to_owned());
            Ok(Orders::Again(Again { seconds, to, why }))
        };
        assert_eq!(
            follow(
                "echo Reason: no_image\nsleep 5 ||\nchain --replace --autofree boot.ipxe ||\nreboot\n"
            ),
            again(5, "no_image")
        );
        assert_eq!(
            follow("goto there\nkernel x\n:there\nchain boot.ipxe\n"),
            again(0, "")
        );
        for (script, cause) in [
            (
                "echo Reason: no_image\nsleep 3 ||\niseq ${platform} efi && exit 1 ||\nsanboot --no-describe --drive 0x80 || exit 1\n",
                Cause::LocalBoot,
            ),
            ("echo\n", Cause::NothingToBoot),
            ("exit\n", Cause::NothingToBoot),
            ("kernel ${unknown}/x\nboot\n", Cause::Script),
            ("goto nowhere\n", Cause::Script),
            (":a\ngoto a\n", Cause::Script),
            ("sanboot http://10.0.0.1/disk.iso\n", Cause::Script),
        ] {
            assert_eq!(follow(script).map_err(|t| t.cause), Err(cause), "{script}");
        }
        let from = Source::Http("http://10.0.0.1/".into());
        let reader = Reader {
            from: &from,
            mac: MacAddr([2; 6]),
            ip: None,
            next_server: None,
        };
        assert!(reader.follow(b"<html>").is_err());
    }

    proptest! {
        #[test]
        fn noise_never_panics(script in "([ -~\n]|sanboot iscsi:|kernel |set |goto |:x\n|\\$\\{){0,40}") {
            let _ = follow(&script);
        }
    }
}
