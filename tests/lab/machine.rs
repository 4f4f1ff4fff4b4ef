//! A diskless machine: QEMU with real firmware on a tap of the lab's bridge. Its console is
//! a file that tests watch, and a line that they type on. Must not know what serves it.

use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::net::Lab;
use crate::wait_for;

/// What the machine's board brings along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Firmware {
    /// SeaBIOS; the network card's ROM is an iPXE of 2019.
    Bios,
    /// OVMF with its own PXE stack.
    UefiPxe,
    /// OVMF with PXE switched off: HTTP Boot at once.
    UefiHttp,
}

/// A machine that is switched on.
pub(crate) struct Machine {
    qemu: Child,
    console: PathBuf,
    /// Where the console's page begins that is looked at.
    page: Cell<usize>,
    tap: String,
    namespace: String,
}

/// A switched-off machine: what is it made of?
#[derive(Debug, Clone)]
pub(crate) struct Board {
    /// Its firmware.
    pub(crate) firmware: Firmware,
    /// The MAC of its only network card.
    pub(crate) mac: &'static str,
    /// Its SMBIOS UUID.
    pub(crate) uuid: Option<&'static str>,
    /// Starts again when nothing can be booted, and after a reset.
    pub(crate) persistent: bool,
}

impl Board {
    /// A machine of that firmware and MAC.
    pub(crate) const fn new(firmware: Firmware, mac: &'static str) -> Self {
        Self {
            firmware,
            mac,
            uuid: None,
            persistent: false,
        }
    }

    /// Switches it on.
    pub(crate) fn power_on(&self, lab: &Lab) -> Machine {
        let tap = lab.add_tap();
        let console = lab.path().join(format!("console-{tap}.log"));
        let lan = lab.namespace("lan");
        let mut args: Vec<String> =
            "-accel tcg,thread=multi -cpu max -m 512 -display none -vga none"
                .split(' ')
                .map(str::to_owned)
                .collect();
        let mut add = |text: String| args.extend(text.split(' ').map(str::to_owned));
        // With nobody at the other end what it says goes to the file all the same.
        let line = socket(&console, "line");
        add(format!(
            "-chardev socket,id=line,path={},server=on,wait=off,logfile={} -serial chardev:line",
            line.display(),
            console.display()
        ));
        let monitor = socket(&console, "monitor");
        add(format!(
            "-monitor unix:{},server=on,wait=off",
            monitor.display()
        ));
        add(format!(
            "-netdev tap,id=n,ifname={tap},script=no,downscript=no"
        ));
        let card = format!("virtio-net-pci,netdev=n,mac={},bootindex=1", self.mac);
        if let Some(uuid) = self.uuid {
            add(format!("-uuid {uuid}"));
        }
        if self.persistent {
            add("-boot reboot-timeout=1000".into());
        } else {
            add("-no-reboot".into());
        }
        match self.firmware {
            Firmware::Bios => add(format!("-device {card}")),
            Firmware::UefiPxe | Firmware::UefiHttp => {
                let variables = lab.path().join(format!("vars-{tap}.fd"));
                fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &variables)
                    .expect("OVMF_VARS_4M.fd (package ovmf)");
                add("-machine q35".into());
                add("-drive if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd".into());
                add(format!(
                    "-drive if=pflash,unit=1,format=raw,file={}",
                    variables.display()
                ));
                // Without QEMU's own iPXE ROM, so that OVMF's stack is what boots.
                add(format!("-device {card},romfile="));
                if self.firmware == Firmware::UefiHttp {
                    add("-fw_cfg name=opt/org.tianocore/IPv4PXESupport,string=n".into());
                    add("-fw_cfg name=opt/org.tianocore/IPv6PXESupport,string=n".into());
                }
            }
        }
        let errors = fs::File::create(lab.path().join(format!("qemu-{tap}.log"))).expect("a log");
        let qemu = lab
            .command_in(&lan, "qemu-system-x86_64", &args)
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .expect("qemu-system-x86_64");
        Machine {
            qemu,
            console,
            page: Cell::new(0),
            tap,
            namespace: lan,
        }
    }
}

/// A socket of the machine, beside its console's file.
fn socket(console: &Path, name: &str) -> PathBuf {
    console.with_extension(name)
}

impl Machine {
    /// What the console has shown since the page was turned.
    pub(crate) fn console(&self) -> String {
        let all = fs::read(&self.console).unwrap_or_default();
        let page = all.get(self.page.get()..).unwrap_or_default();
        String::from_utf8_lossy(page).into_owned()
    }

    /// What the console has shown so far is looked at no more.
    pub(crate) fn turn_page(&self) {
        let length = fs::metadata(&self.console).map_or(0, |m| m.len());
        self.page
            .set(usize::try_from(length).expect("a console's length"));
    }

    /// Types a line on its console.
    pub(crate) fn enter(&self, line: &str) {
        let mut keys = self.connect("line");
        keys.write_all(format!("{line}\n").as_bytes())
            .expect("a key");
        // QEMU drops what it has not read yet when the other end hangs up.
        std::thread::sleep(Duration::from_millis(300));
    }

    /// Logs in as root at the prompt that is there, and makes the shell quiet: from now on
    /// the console shows what commands say and nothing of what was typed.
    pub(crate) fn log_in(&mut self) {
        self.enter("root");
        self.expect("root@", Duration::from_secs(60));
        self.enter("stty -echo; PS1=; PS2=; echo LAB''-SHELL");
        self.expect("LAB-SHELL", Duration::from_secs(30));
        self.turn_page();
    }

    /// The reset button.
    pub(crate) fn reset(&self) {
        self.turn_page();
        let mut monitor = self.connect("monitor");
        monitor.write_all(b"system_reset\n").expect("the monitor");
        std::thread::sleep(Duration::from_millis(300));
    }

    fn connect(&self, name: &str) -> UnixStream {
        let path = socket(&self.console, name);
        wait_for("the machine's socket", Duration::from_secs(10), || {
            UnixStream::connect(&path).ok()
        })
    }

    /// Waits until the console has shown the text.
    pub(crate) fn expect(&mut self, text: &str, limit: Duration) {
        wait_for(&format!("`{text}` on the machine's console"), limit, || {
            if self.console().contains(text) {
                return Some(());
            }
            assert!(
                self.is_on(),
                "the machine is off and never showed `{text}`; its console ends:\n{}",
                tail(&self.console())
            );
            None
        });
    }

    /// Waits until it has switched itself off.
    pub(crate) fn expect_off(&mut self, limit: Duration) {
        wait_for("the machine switches itself off", limit, || {
            (!self.is_on()).then_some(())
        });
    }

    /// True while it runs.
    pub(crate) fn is_on(&mut self) -> bool {
        self.qemu.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Pulls the network cable.
    pub(crate) fn pull_cable(&self, lab: &Lab) {
        lab.ip(&self.namespace, &format!("link set {} down", self.tap));
    }

    /// Puts it back.
    pub(crate) fn plug_cable(&self, lab: &Lab) {
        lab.ip(&self.namespace, &format!("link set {} up", self.tap));
    }

    /// Pulls the plug.
    pub(crate) fn cut_power(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cut_power();
    }
}

/// The last 1,500 characters or so.
pub(crate) fn tail(text: &str) -> &str {
    let start = text.len().saturating_sub(1500);
    let start = (start..text.len()).find(|i| text.is_char_boundary(*i));
    &text[start.unwrap_or(text.len())..]
}
