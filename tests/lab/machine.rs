//! A diskless machine: QEMU with real firmware on a tap of the lab's bridge. Its console is
//! a file that tests watch. Must not know what serves it.

use std::fs;
use std::path::PathBuf;
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
            "-accel tcg,thread=multi -cpu max -m 512 -display none -vga none -monitor none"
                .split(' ')
                .map(str::to_owned)
                .collect();
        let mut add = |text: String| args.extend(text.split(' ').map(str::to_owned));
        add(format!("-serial file:{}", console.display()));
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
            tap,
            namespace: lan,
        }
    }
}

impl Machine {
    /// All that the console has shown.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
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
