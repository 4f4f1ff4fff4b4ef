//! iPXE scripts. iPXE has no quoting, so every value is checked again here before it is
//! written into a line: no line ends, no `${`, `&&`, `||`, `;`, no control characters.
//!
//! What its parser does, in all versions from 2012 on: a line ends at LF; a backslash at its
//! end joins the next line; the line is split at white space; a word that starts with `#`
//! ends it; the words `||`, `&&` and `;` end a command; `${..}` is replaced in each word.
//! A command that fails ends the script, unless `||` follows. The commands used here are those
//! that Debian's iPXE of 2019 has.

use std::fmt::Write as _;

use super::disk_words::DiskWords;
use super::plan::{Plan, Unready};
use crate::model::{DiskProtocol, UnreadyAction};

/// What Linux reads of a command line on x86 and arm64 (`COMMAND_LINE_SIZE` less its NUL);
/// the rest would be cut off silently.
pub const LONGEST_COMMAND_LINE: usize = 2047;

/// What a script needs besides the plan.
#[derive(Debug, Clone)]
pub struct Frame<'a> {
    /// `http://HOST:PORT/b/ID.TOKEN/`.
    pub url: &'a str,
    /// MAC, for the screen.
    pub mac: crate::model::MacAddr,
    /// Host name or empty.
    pub hostname: &'a str,
    /// Image's name or empty, for the screen.
    pub image: &'a str,
    /// Seconds between looks while waiting.
    pub wait_seconds: u32,
    /// How this boot reaches its disk, where it has one.
    pub disk: Option<&'a DiskWords>,
}

/// Renders the script; never fails, an unsafe value turns it into the waiting screen that says so.
#[must_use]
pub fn render(plan: &Plan, frame: &Frame<'_>) -> String {
    match plan {
        Plan::Kernel {
            initrds,
            cmdline,
            disk,
            ..
        } => match arguments(*initrds, cmdline, *disk, frame) {
            Some(arguments) => kernel(*initrds, &arguments, frame),
            None => waiting(Unready::UnsafeParameters, frame),
        },
        Plan::Disk { .. } => match frame.disk.filter(|words| words.are_safe()) {
            Some(words) => sanboot(words, frame),
            None => waiting(Unready::UnsafeParameters, frame),
        },
        Plan::Unready {
            why,
            action: UnreadyAction::Wait,
        } => waiting(*why, frame),
        Plan::Unready {
            why,
            action: UnreadyAction::Local,
        } => local(*why, frame),
    }
}

/// The plan as [`render`] will write it: a kernel whose line may not be written becomes
/// [`Unready::UnsafeParameters`].
#[must_use]
pub fn checked(plan: Plan, frame: &Frame<'_>) -> Plan {
    let can_be_written = match &plan {
        Plan::Kernel {
            initrds,
            cmdline,
            disk,
            ..
        } => arguments(*initrds, cmdline, *disk, frame).is_some(),
        Plan::Disk { .. } => frame.disk.is_some_and(DiskWords::are_safe),
        Plan::Unready { .. } => true,
    };
    if can_be_written {
        return plan;
    }
    Plan::Unready {
        why: Unready::UnsafeParameters,
        action: UnreadyAction::Wait,
    }
}

/// True if a value may stand in a script line or kernel command line: printable ASCII without
/// anything that iPXE's parser would act on (see the head of this file). Spaces may part
/// words; the empty value is safe.
#[must_use]
pub fn is_safe(value: &str) -> bool {
    value.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b';')
        && !["${", "&&", "||"].iter().any(|bad| value.contains(bad))
        // One that ends in `$` could meet a `{`.
        && !value.ends_with(['\\', '$'])
        && !value.split(' ').any(|word| word.starts_with('#'))
}

/// The kernel's whole command line; `None` if it may not be written or is too long.
fn arguments(
    initrds: u8,
    cmdline: &str,
    disk: Option<DiskProtocol>,
    frame: &Frame<'_>,
) -> Option<String> {
    let mut arguments = String::new();
    for n in 0..initrds {
        // A kernel started by UEFI finds its initrds by these names. BIOS loaders pass them
        // by address and the kernel ignores the words.
        let _ = write!(arguments, "initrd=initrd{n} ");
    }
    match disk {
        Some(protocol) => arguments.push_str(&frame.disk?.complete(cmdline, protocol)),
        None => arguments.push_str(cmdline),
    }
    let _ = write!(arguments, " dls.report={}", frame.url);
    if !frame.hostname.is_empty() {
        let _ = write!(arguments, " dls.hostname={}", frame.hostname);
    }
    let fits = is_safe(&arguments) && arguments.len() <= LONGEST_COMMAND_LINE;
    // A space in a host name would make a parameter of its second half.
    (fits && !frame.hostname.contains(' ') && !frame.url.contains(' ')).then_some(arguments)
}

fn kernel(initrds: u8, arguments: &str, frame: &Frame<'_>) -> String {
    let url = frame.url;
    let image = shown(frame.image);
    let mut text = String::from("#!ipxe\n");
    if !frame.hostname.is_empty() {
        let _ = writeln!(text, "set hostname {}", frame.hostname);
    }
    let _ = writeln!(text, "echo DLS: {} boots {image}", who(frame));
    let _ = writeln!(
        text,
        "kernel --name kernel {url}kernel {arguments} || goto failed"
    );
    for n in 0..initrds {
        let _ = writeln!(
            text,
            "initrd --name initrd{n} {url}initrd{n} || goto failed"
        );
    }
    let _ = write!(
        text,
        "boot || goto failed\n\
         :failed\n\
         echo\n\
         echo DLS: could not load or start {image}, error ${{errno}}\n\
         echo Trying again in 10 seconds.\n\
         imgfree ||\n\
         sleep 10 ||\n"
    );
    look_again(&mut text, frame);
    text
}

/// iPXE logs in, then the BIOS' interrupt 13h or UEFI's block I/O read the disk through it;
/// what it logged in with stands in the iBFT for the system. Without `--keep` it lets go of
/// the disk when nothing on it can be booted, so that the next try begins clean.
fn sanboot(words: &DiskWords, frame: &Frame<'_>) -> String {
    let image = shown(frame.image);
    let mut text = String::from("#!ipxe\n");
    if !frame.hostname.is_empty() && is_safe(frame.hostname) && !frame.hostname.contains(' ') {
        let _ = writeln!(text, "set hostname {}", frame.hostname);
    }
    let _ = write!(
        text,
        "echo DLS: {} boots {image} from its disk\n\
         set initiator-iqn {}\n\
         set username {}\n\
         set password {}\n\
         set reverse-username {}\n\
         set reverse-password {}\n\
         sanboot {} || goto failed\n\
         :failed\n\
         echo\n\
         echo DLS: could not boot the disk of {image}, error ${{errno}}\n\
         echo Trying again in 10 seconds.\n\
         sleep 10 ||\n",
        who(frame),
        words.initiator,
        words.username,
        words.password,
        words.server_username,
        words.server_password,
        words.san_url(),
    );
    look_again(&mut text, frame);
    text
}

/// The script of a machine that goes on at another server: `frame` has the URL there. It asks
/// that one from here on, also when it has to ask again.
#[must_use]
pub fn elsewhere(server: &str, frame: &Frame<'_>) -> String {
    let mut text = String::from("#!ipxe\n");
    let (who, server) = (who(frame), shown(server));
    let _ = writeln!(
        text,
        "echo DLS: {who} goes on at server {server}, which has its disk"
    );
    look_again(&mut text, frame);
    text
}

fn waiting(why: Unready, frame: &Frame<'_>) -> String {
    let seconds = frame.wait_seconds.max(1);
    let mut text = String::from("#!ipxe\n");
    screen(&mut text, why, frame);
    let _ = write!(
        text,
        "echo Looking again every {seconds} seconds, without a restart.\n\
         sleep {seconds} ||\n"
    );
    look_again(&mut text, frame);
    text
}

fn local(why: Unready, frame: &Frame<'_>) -> String {
    let mut text = String::from("#!ipxe\n");
    screen(&mut text, why, frame);
    // UEFI goes on to its next boot entry when a loader returns an error. A BIOS often can't
    // once PXE has run, so the first disk is started from here; without one, back to it.
    text.push_str(
        "echo Going on to the next boot device.\n\
         sleep 3 ||\n\
         iseq ${platform} efi && exit 1 ||\n\
         sanboot --no-describe --drive 0x80 || exit 1\n",
    );
    text
}

/// Who this is and why it does not boot.
fn screen(text: &mut String, why: Unready, frame: &Frame<'_>) {
    let _ = write!(
        text,
        "echo\n\
         echo DLS: {} can not boot from the network now:\n\
         echo {}.\n",
        who(frame),
        why.sentence(),
    );
    if !frame.image.is_empty() {
        let _ = writeln!(text, "echo Image: {}", shown(frame.image));
    }
    let _ = writeln!(text, "echo Reason: {}", why.as_str());
}

/// Asks for the script again and is replaced by it, so that waiting for days nests nothing.
/// A server that does not answer is asked once more; then a restart begins a new boot, which
/// is also what helps when this boot is over for the server.
fn look_again(text: &mut String, frame: &Frame<'_>) {
    // The URL is ours: an address, a port, hex digits. Should it ever not be, a restart is
    // all that can be written.
    if is_safe(frame.url) && !frame.url.contains(' ') {
        let url = frame.url;
        let _ = write!(
            text,
            "chain --replace --autofree {url}boot.ipxe ||\n\
             echo DLS: the server does not answer, trying once more in 30 seconds.\n\
             sleep 30 ||\n\
             chain --replace --autofree {url}boot.ipxe ||\n"
        );
    }
    text.push_str(
        "echo DLS: the server does not answer, restarting.\n\
         sleep 5 ||\n\
         reboot\n",
    );
}

/// Name and MAC, or the MAC alone.
fn who(frame: &Frame<'_>) -> String {
    if frame.hostname.is_empty() {
        frame.mac.to_string()
    } else {
        format!("{} ({})", shown(frame.hostname), frame.mac)
    }
}

/// A text for the screen: what could mean something to the parser is a question mark.
fn shown(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || " -_.,:()/+@=".contains(c);
    text.chars()
        .take(64)
        .map(|c| if plain(c) { c } else { '?' })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::super::disk_words::tests::words;
    use super::*;
    use crate::model::MacAddr;

    const URL: &str = "http://10.0.0.1:8069/b/0192.00ff/";

    fn frame() -> Frame<'static> {
        Frame {
            url: URL,
            mac: MacAddr([0x52, 0x54, 0, 0xaa, 0xbb, 1]),
            hostname: "pc-01",
            image: "debian-12",
            wait_seconds: 5,
            disk: None,
        }
    }

    fn kernel_plan(initrds: u8, cmdline: &str) -> Plan {
        Plan::Kernel {
            image_id: Uuid::nil(),
            initrds,
            cmdline: cmdline.into(),
            disk: None,
        }
    }

    fn disk_plan() -> Plan {
        Plan::Disk {
            image_id: Uuid::nil(),
        }
    }

    fn unready(action: UnreadyAction) -> Plan {
        Plan::Unready {
            why: Unready::NoImage,
            action,
        }
    }

    #[test]
    fn a_kernel_with_two_initrds() {
        assert_eq!(
            render(&kernel_plan(2, "console=ttyS0"), &frame()),
            "#!ipxe\n\
             set hostname pc-01\n\
             echo DLS: pc-01 (52:54:00:aa:bb:01) boots debian-12\n\
             kernel --name kernel http://10.0.0.1:8069/b/0192.00ff/kernel initrd=initrd0 initrd=initrd1 console=ttyS0 dls.report=http://10.0.0.1:8069/b/0192.00ff/ dls.hostname=pc-01 || goto failed\n\
             initrd --name initrd0 http://10.0.0.1:8069/b/0192.00ff/initrd0 || goto failed\n\
             initrd --name initrd1 http://10.0.0.1:8069/b/0192.00ff/initrd1 || goto failed\n\
             boot || goto failed\n\
             :failed\n\
             echo\n\
             echo DLS: could not load or start debian-12, error ${errno}\n\
             echo Trying again in 10 seconds.\n\
             imgfree ||\n\
             sleep 10 ||\n\
             chain --replace --autofree http://10.0.0.1:8069/b/0192.00ff/boot.ipxe ||\n\
             echo DLS: the server does not answer, trying once more in 30 seconds.\n\
             sleep 30 ||\n\
             chain --replace --autofree http://10.0.0.1:8069/b/0192.00ff/boot.ipxe ||\n\
             echo DLS: the server does not answer, restarting.\n\
             sleep 5 ||\n\
             reboot\n"
        );
    }

    #[test]
    fn a_disk_is_booted_with_its_secrets() {
        let words = words();
        let framed = Frame {
            disk: Some(&words),
            ..frame()
        };
        assert_eq!(
            render(&disk_plan(), &framed),
            "#!ipxe\n\
             set hostname pc-01\n\
             echo DLS: pc-01 (52:54:00:aa:bb:01) boots debian-12 from its disk\n\
             set initiator-iqn iqn.2026-11.internal.dls.client:00000000000000000000000000000001\n\
             set username 00000000000000000000000000000002\n\
             set password machine.secret_1\n\
             set reverse-username dls\n\
             set reverse-password server.secret_12\n\
             sanboot iscsi:10.0.0.1::3260:0:iqn.2026-11.internal.dls:00000000000000000000000000000001 || goto failed\n\
             :failed\n\
             echo\n\
             echo DLS: could not boot the disk of debian-12, error ${errno}\n\
             echo Trying again in 10 seconds.\n\
             sleep 10 ||\n\
             chain --replace --autofree http://10.0.0.1:8069/b/0192.00ff/boot.ipxe ||\n\
             echo DLS: the server does not answer, trying once more in 30 seconds.\n\
             sleep 30 ||\n\
             chain --replace --autofree http://10.0.0.1:8069/b/0192.00ff/boot.ipxe ||\n\
             echo DLS: the server does not answer, restarting.\n\
             sleep 5 ||\n\
             reboot\n"
        );
        // Without its words, or with bad ones, nothing is half written.
        let text = render(&disk_plan(), &frame());
        assert!(text.contains("unsafe_parameters") && !text.contains("sanboot"));
        let mut bad = words.clone();
        bad.password = "x y".to_owned();
        let framed = Frame {
            disk: Some(&bad),
            ..frame()
        };
        let text = render(&disk_plan(), &framed);
        assert!(text.contains("unsafe_parameters") && !text.contains("x y"));
        assert!(matches!(
            checked(disk_plan(), &framed),
            Plan::Unready { .. }
        ));
    }

    #[test]
    fn a_kernel_is_told_its_root() {
        let words = words();
        let framed = Frame {
            disk: Some(&words),
            ..frame()
        };
        let plan = Plan::Kernel {
            image_id: Uuid::nil(),
            initrds: 1,
            cmdline: "quiet ip=dhcp".into(),
            disk: Some(DiskProtocol::Nbd),
        };
        let text = render(&plan, &framed);
        assert!(
            text.contains(" initrd=initrd0 quiet ip=dhcp nbdroot=10.0.0.1:10809/2.3 nbddev=/dev/nbd0 root=/dev/nbd0 dls.report="),
            "{text}"
        );
        assert_eq!(checked(plan.clone(), &framed), plan);
        // No disk's words, no half a command line.
        assert!(render(&plan, &frame()).contains("unsafe_parameters"));
    }

    #[test]
    fn the_waiting_screen_says_what_for_and_looks_again() {
        let text = render(&unready(UnreadyAction::Wait), &frame());
        assert_eq!(
            text,
            "#!ipxe\n\
             echo\n\
             echo DLS: pc-01 (52:54:00:aa:bb:01) can not boot from the network now:\n\
             echo no image is assigned to this client, and there is no default image.\n\
             echo Image: debian-12\n\
             echo Reason: no_image\n\
             echo Looking again every 5 seconds, without a restart.\n\
             sleep 5 ||\n\
             chain --replace --autofree http://10.0.0.1:8069/b/0192.00ff/boot.ipxe ||\n\
             echo DLS: the server does not answer, trying once more in 30 seconds.\n\
             sleep 30 ||\n\
             chain --replace --autofree http://10.0.0.1:8069/b/0192.00ff/boot.ipxe ||\n\
             echo DLS: the server does not answer, restarting.\n\
             sleep 5 ||\n\
             reboot\n"
        );
        let nameless = Frame {
            hostname: "",
            image: "",
            ..frame()
        };
        let text = render(&unready(UnreadyAction::Wait), &nameless);
        assert!(text.contains("echo DLS: 52:54:00:aa:bb:01 can not boot"));
        assert!(!text.contains("Image:"));
    }

    #[test]
    fn local_goes_to_the_disk_and_names_no_url() {
        let text = render(&unready(UnreadyAction::Local), &frame());
        assert!(text.ends_with(
            "iseq ${platform} efi && exit 1 ||\nsanboot --no-describe --drive 0x80 || exit 1\n"
        ));
        assert!(!text.contains("http://10"));
    }

    #[test]
    fn what_is_safe_and_what_is_not() {
        for good in [
            "",
            "a=b",
            "root=/dev/nfs nfsroot=10.0.0.1:/srv,vers=4",
            "x=\"a b\"",
            "a|b",
            "a&b",
            "x=$y",
            "a#b",
            "dyndbg=\"file a.c +p\"",
            "memmap=1M!2M",
            "a\\b",
        ] {
            assert!(is_safe(good), "{good}");
        }
        for bad in [
            "a\nb",
            "a\rb",
            "a\0b",
            "a\tb",
            "\x1b[2J",
            "${ip}",
            "a${",
            "a && b",
            "a&&b",
            "a || b",
            "a||",
            ";",
            "a;b",
            "# x",
            "a #x",
            "a\\",
            "a$",
            "ä",
            "a\u{2028}b",
            "\u{7f}",
        ] {
            assert!(!is_safe(bad), "{bad:?}");
        }
    }

    #[test]
    fn unsafe_values_never_reach_a_line() {
        for bad in [
            "x\nshell",
            "x ${mac}",
            "x || shell",
            "x && shell",
            "x ; shell",
            "# ",
        ] {
            let text = render(&kernel_plan(1, bad), &frame());
            assert!(text.contains("unsafe_parameters"), "{bad:?}: {text}");
            let named = Frame {
                hostname: bad,
                ..frame()
            };
            let text = render(&kernel_plan(1, "quiet"), &named);
            assert!(text.contains("unsafe_parameters"), "{bad:?}: {text}");
            let titled = Frame {
                image: bad,
                ..frame()
            };
            for plan in [
                kernel_plan(1, "quiet"),
                unready(UnreadyAction::Wait),
                unready(UnreadyAction::Local),
            ] {
                assert_tame(&render(&plan, &titled));
            }
        }
        let long = "x".repeat(LONGEST_COMMAND_LINE);
        assert!(render(&kernel_plan(0, &long), &frame()).contains("unsafe_parameters"));
    }

    /// A model of the parser: each line is one of our own commands, and separators and
    /// settings stand only where this file wrote them.
    fn assert_tame(text: &str) {
        const COMMANDS: &[&str] = &[
            "#!ipxe", "echo", "set", "kernel", "initrd", "boot", ":failed", "imgfree", "sleep",
            "chain", "reboot", "iseq", "sanboot",
        ];
        assert!(text.starts_with("#!ipxe\n") && text.ends_with('\n'));
        for line in text.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            assert!(COMMANDS.contains(&words[0]), "{line}");
            assert!(!line.ends_with('\\') && line.is_ascii(), "{line}");
            assert!(!words[1..].iter().any(|w| w.starts_with('#')), "{line}");
            assert!(!words.contains(&";"), "{line}");
            let rest = line
                .replace("${errno}", "")
                .replace("iseq ${platform} efi && exit 1 ||", "");
            assert!(!rest.contains("${") && !rest.contains("&&"), "{line}");
            if let Some(at) = words.iter().position(|w| *w == "||") {
                let tail = &words[at + 1..];
                assert!(
                    matches!(tail, [] | ["goto", "failed"] | ["exit", "1"]),
                    "{line}"
                );
                assert_ne!(words[0], "echo", "{line}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_value_adds_a_command(
            cmdline in r"([ -~\n\r\t\\#;$]|\$\{|\|\||&&|é){0,40}",
            hostname in r"([ -~\n]|\$\{|\|\|){0,20}",
            image in r"([ -~\n\\#;]|\$\{|\|\|){0,20}",
            initrds in 0_u8..4,
        ) {
            let framed = Frame { hostname: &hostname, image: &image, ..frame() };
            assert_tame(&render(&kernel_plan(initrds, &cmdline), &framed));
            let words = words();
            let with_disk = Frame { disk: Some(&words), ..framed.clone() };
            assert_tame(&render(&disk_plan(), &with_disk));
            let root = Plan::Kernel {
                image_id: Uuid::nil(), initrds, cmdline, disk: Some(DiskProtocol::Iscsi),
            };
            assert_tame(&render(&root, &with_disk));
            assert_tame(&render(&unready(UnreadyAction::Wait), &framed));
            assert_tame(&render(&unready(UnreadyAction::Local), &framed));
        }
    }
}
