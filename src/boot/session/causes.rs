//! The sentences that name why a boot stopped. Text only; decides nothing.
//!
//! Each one is written for the person who stands before the machine: what was seen, then
//! what it most likely means.

use std::net::Ipv4Addr;

use crate::model::{Arch, BootMethod, Stage};

/// What the sentences are made of.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The stage it stopped at.
    pub stage: Stage,
    /// What the ROM is.
    pub arch: Option<Arch>,
    /// Our address.
    pub server: Option<Ipv4Addr>,
    /// The boot listener's port.
    pub http_port: u16,
    /// The loader named last.
    pub loader: Option<&'a str>,
    /// Another DHCP server that answered it.
    pub foreign: Option<Ipv4Addr>,
    /// The system spoke DHCP.
    pub os_spoke: bool,
    /// The image is known to report itself.
    pub reports: bool,
    /// How its disk is booted, if it has one.
    pub disk: Option<BootMethod>,
    /// How long a silence counts as the end.
    pub stall_seconds: i64,
}

/// Why nothing came after this stage.
#[must_use]
pub fn silence(scene: &Scene<'_>) -> String {
    let server = scene
        .server
        .map_or_else(|| "this server".to_owned(), |ip| ip.to_string());
    let loader = scene.loader.unwrap_or("the loader");
    let foreign = scene
        .foreign
        .map(|ip| format!("; another DHCP server, {ip}, answered it too"))
        .unwrap_or_default();
    let http = scene.arch.is_some_and(Arch::is_http);
    match scene.stage {
        Stage::Discover => format!(
            "the machine asked for an address and was offered none (see the DHCP metrics for the reason){foreign}"
        ),
        Stage::Offer => format!(
            "the machine was offered an address but did not take it: our answers do not reach it, or it took another server's{foreign}"
        ),
        Stage::Lease => format!("the machine has an address but was given no loader{foreign}"),
        Stage::LoaderOffered if http => format!(
            "the machine was told to load {loader} but never asked http://{server}:{} for it: is that port blocked by a firewall?{foreign}",
            scene.http_port
        ),
        Stage::LoaderOffered => format!(
            "the machine was told to load {loader} but never asked {server} for it by TFTP: is UDP port 69 blocked by a firewall?{foreign}"
        ),
        Stage::LoaderRequested => format!(
            "the transfer of {loader} began and never ended (machine switched off, cable pulled, or a firewall that lets only port 69 through?)"
        ),
        Stage::LoaderSent => format!(
            "{loader} was delivered but never spoke: refused by Secure Boot, made for another architecture, or without a driver for this network card"
        ),
        Stage::LoaderRunning => {
            format!("iPXE started and asked for an address but got none{foreign}")
        }
        Stage::LoaderLease => format!(
            "iPXE has an address but never asked http://{server}:{} for its script: is that port blocked by a firewall?",
            scene.http_port
        ),
        Stage::Script if scene.disk == Some(BootMethod::San) => format!(
            "the script was delivered, but no login to the disk followed within {} s: is the iSCSI port of {server} blocked by a firewall, or can the machine's iPXE not do iSCSI?",
            scene.stall_seconds
        ),
        Stage::Script => {
            "the machine has its boot script but never asked for the kernel (switched off, or its iPXE can't run the script?)".to_owned()
        }
        Stage::KernelRequested => {
            "the kernel transfer began and never ended (machine switched off, cable pulled?)".to_owned()
        }
        Stage::InitrdRequested => {
            "the initrd transfer began and never ended (machine switched off, cable pulled?)".to_owned()
        }
        Stage::KernelSent | Stage::InitrdSent | Stage::OsNetwork if scene.disk.is_some() => format!(
            "kernel and initrd were delivered, but no login to the disk followed: does the initramfs have the network card's driver and an {} client, and can it reach {server}?",
            if scene.disk == Some(BootMethod::Nbd) { "NBD" } else { "iSCSI" }
        ),
        Stage::KernelSent | Stage::InitrdSent | Stage::OsNetwork => {
            let what = match (scene.stage, scene.os_spoke) {
                (Stage::KernelSent, false) => "the kernel was delivered",
                (_, false) => "kernel and initrd were delivered",
                (_, true) => "the system was loaded and asked for an address",
            };
            let why = if scene.reports {
                "kernel panic, missing driver, root file system not found?"
            } else {
                "kernel panic, missing driver, or an image without the phone-home hook?"
            };
            format!("{what} but the system never reported up ({why})")
        }
        Stage::DiskAttached => {
            "the machine logged in to its disk and read nothing from it (no boot loader on it, or switched off?)".to_owned()
        }
        Stage::DiskRead | Stage::DiskWritten => {
            let why = if scene.reports {
                "kernel panic, missing driver, root file system not found?"
            } else {
                "kernel panic, missing driver, root file system not found, or an image without the phone-home hook?"
            };
            format!("the system was read from its disk but never reported up ({why})")
        }
        Stage::Waiting => "the machine was told to wait and has gone".to_owned(),
        Stage::LocalBoot => "the machine was sent to its local disk".to_owned(),
        Stage::Up
        | Stage::Bye
        | Stage::Refused
        | Stage::TransferBroken
        | Stage::ForeignServer
        | Stage::DiskDetached
        | Stage::DiskQuota
        | Stage::Answers
        | Stage::Restarted
        | Stage::Error
        | Stage::Ended => "nothing more was heard of the machine".to_owned(),
    }
}

/// A transfer that broke off and was not tried again.
#[must_use]
pub fn broken(file: &str, sent: u64, size: u64, cause: &str) -> String {
    let cause = if cause.is_empty() {
        String::new()
    } else {
        format!(": {cause}")
    };
    format!(
        "the {file} transfer broke off after {sent} of {size} bytes{cause} (machine switched off, cable pulled?)"
    )
}

/// Beats missed.
#[must_use]
pub fn contact_lost(seconds: i64) -> String {
    format!(
        "contact lost: the system has not reported for {seconds} s (switched off without shutting down, crashed, or cut off from the network?)"
    )
}

/// The disk of a system that runs was let go of.
#[must_use]
pub fn disk_quiet(seconds: i64) -> String {
    format!("its disk was detached and not attached again within {seconds} s")
}

/// The disk of a system that boots was let go of.
#[must_use]
pub fn disk_lost(seconds: i64) -> String {
    format!(
        "the connection to its disk was lost while it booted and did not come back within {seconds} s (switched off, kernel panic, cable pulled?)"
    )
}

/// Why a machine was not let through, in words, for the reasons that the boot plan names.
#[must_use]
pub fn unready(reason: &str) -> String {
    let words = match reason {
        "unknown_client" => "no client has this MAC",
        "client_disabled" => "its client is disabled",
        "no_image" => "it has no image and there is no default image",
        "no_disk_stored" => "the disk of its image is not stored on this server",
        "disk_in_use" => "a running machine has the disk of its client, and answers",
        "no_kernel" => "its image has no kernel file",
        "unsafe_parameters" => "its boot parameters would not be safe in a script",
        other => return other.to_owned(),
    };
    format!("{reason}: {words}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_has_a_sentence_without_holes() {
        for &stage in Stage::ALL {
            for arch in [None, Some(Arch::Bios), Some(Arch::HttpX64)] {
                let text = silence(&Scene {
                    stage,
                    arch,
                    server: None,
                    http_port: 8069,
                    loader: None,
                    foreign: None,
                    os_spoke: false,
                    reports: false,
                    disk: Some(BootMethod::San),
                    stall_seconds: 60,
                });
                assert!(text.len() > 20 && !text.contains("None"), "{stage}: {text}");
            }
        }
    }
}
