//! When does a boot attempt start, and when does it start again? One pure table.
//!
//! | speaker | no attempt | up to "loader offered" | later, before the script | script or later | running |
//! |---|---|---|---|---|---|
//! | ROM, as at its start | start | join | restart | restart | restart |
//! | ROM, by its other way (PXE or HTTP) | start | join | join | restart | restart |
//! | iPXE, started by a real ROM | start | join | join | join | restart |
//! | iPXE that is the ROM | start | join | join | restart (waiting: join) | restart |
//! | operating system | ignore | ignore | ignore | join (evidence) | join (evidence) |
//!
//! A boot that has written to its disk counts as running. Before this table is asked, DHCP
//! settles whether a connection that has the disk still answers (`dhcp::settle`).
//!
//! A machine that runs and reports, and another one that calls with the same MAC but a
//! different SMBIOS UUID: the newcomer is refused.

use uuid::Uuid;

use super::evidence::{Evidence, Observation, Speaker};
use crate::model::{Arch, Stage};

/// What the packet of a machine means for its open attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arrival {
    /// It belongs to the open attempt.
    Join,
    /// There is none: it opens one.
    Start,
    /// It closes the open one and opens another.
    Restart,
    /// It says nothing about a boot.
    Ignore,
    /// It is another machine with a running machine's MAC.
    Refuse,
}

/// How the open attempt of a machine stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The furthest stage.
    pub stage: Stage,
    /// The operating system is up, reported or inferred, or has written to its disk.
    pub running: bool,
    /// It reports, and is not overdue.
    pub beating: bool,
    /// Who spoke first in it.
    pub first: Speaker,
    /// Whether it began as UEFI HTTP Boot.
    pub first_http: bool,
    /// Its SMBIOS UUID.
    pub smbios_uuid: Option<Uuid>,
}

/// The speaker, and what its packet tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Who.
    pub speaker: Speaker,
    /// True for an HTTP Boot architecture (option 93).
    pub http: bool,
    /// Option 97.
    pub smbios_uuid: Option<Uuid>,
}

impl Caller {
    /// The caller of a DHCP observation; `None` for evidence that opens nothing.
    #[must_use]
    pub fn of(seen: &Observation) -> Option<Self> {
        let speaker = match &seen.what {
            Evidence::Discover(speaker) => *speaker,
            _ => return None,
        };
        Some(Self {
            speaker,
            http: seen.context.arch.is_some_and(Arch::is_http),
            smbios_uuid: seen.context.smbios_uuid,
        })
    }
}

/// The table; see the module's head.
#[must_use]
pub fn arrival(current: Option<&Standing>, caller: Caller) -> Arrival {
    let Some(now) = current else {
        return match caller.speaker {
            Speaker::Rom | Speaker::Ipxe => Arrival::Start,
            Speaker::Os => Arrival::Ignore,
        };
    };
    if caller.speaker != Speaker::Os && now.beating && other_machine(now, caller) {
        return Arrival::Refuse;
    }
    match caller.speaker {
        Speaker::Os if now.running || reached(now.stage, Stage::Script) => Arrival::Join,
        Speaker::Os => Arrival::Ignore,
        _ if now.running => Arrival::Restart,
        Speaker::Rom => rom(now, caller),
        Speaker::Ipxe => ipxe(now),
    }
}

fn rom(now: &Standing, caller: Caller) -> Arrival {
    if !reached(now.stage, Stage::LoaderRequested) {
        return Arrival::Join;
    }
    // Firmware that was refused or failed by one way goes on to its next boot option.
    let other_way = now.first == Speaker::Rom && now.first_http != caller.http;
    if other_way && !reached(now.stage, Stage::Script) {
        Arrival::Join
    } else {
        Arrival::Restart
    }
}

fn ipxe(now: &Standing) -> Arrival {
    match now.first {
        // A power cycle would begin with the ROM: this is iPXE trying again.
        Speaker::Rom => Arrival::Join,
        Speaker::Ipxe | Speaker::Os if now.stage == Stage::Waiting => Arrival::Join,
        Speaker::Ipxe | Speaker::Os if reached(now.stage, Stage::Script) => Arrival::Restart,
        Speaker::Ipxe | Speaker::Os => Arrival::Join,
    }
}

/// True if an attempt whose furthest stage is `stage` has passed or reached `mark`.
#[must_use]
pub fn reached(stage: Stage, mark: Stage) -> bool {
    stage >= mark
}

fn other_machine(now: &Standing, caller: Caller) -> bool {
    are_others(now.smbios_uuid, caller.smbios_uuid)
}

/// True if two SMBIOS UUIDs are known, and of two machines.
#[must_use]
pub fn are_others(known: Option<Uuid>, new: Option<Uuid>) -> bool {
    match (known, new) {
        (Some(known), Some(new)) => !same_uuid(known, new),
        _ => false,
    }
}

/// Firmware and loaders disagree about the byte order of the first three fields (SMBIOS 2.6,
/// section 7.2.1), so both orders of one UUID are one machine.
fn same_uuid(a: Uuid, b: Uuid) -> bool {
    a == b || Uuid::from_bytes_le(*a.as_bytes()) == b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(stage: Stage, first: Speaker) -> Standing {
        let running = matches!(stage, Stage::Up);
        Standing {
            stage,
            running,
            beating: running,
            first,
            first_http: false,
            smbios_uuid: None,
        }
    }

    fn caller(speaker: Speaker) -> Caller {
        Caller {
            speaker,
            http: false,
            smbios_uuid: None,
        }
    }

    #[test]
    fn nobody_is_known_at_first() {
        assert_eq!(arrival(None, caller(Speaker::Rom)), Arrival::Start);
        assert_eq!(arrival(None, caller(Speaker::Ipxe)), Arrival::Start);
        assert_eq!(arrival(None, caller(Speaker::Os)), Arrival::Ignore);
    }

    #[test]
    fn the_whole_table() {
        use Arrival::{Ignore, Join, Restart};
        // stage, ROM again, its other way, iPXE after a ROM, iPXE that is the ROM, OS
        let table = [
            (Stage::Discover, Join, Join, Join, Join, Ignore),
            (Stage::Offer, Join, Join, Join, Join, Ignore),
            (Stage::Lease, Join, Join, Join, Join, Ignore),
            (Stage::LoaderOffered, Join, Join, Join, Join, Ignore),
            (Stage::LoaderRequested, Restart, Join, Join, Join, Ignore),
            (Stage::LoaderSent, Restart, Join, Join, Join, Ignore),
            (Stage::LoaderRunning, Restart, Join, Join, Join, Ignore),
            (Stage::LoaderLease, Restart, Join, Join, Join, Ignore),
            (Stage::Script, Restart, Restart, Join, Restart, Join),
            (Stage::Waiting, Restart, Restart, Join, Join, Join),
            (Stage::LocalBoot, Restart, Restart, Join, Restart, Join),
            (
                Stage::KernelRequested,
                Restart,
                Restart,
                Join,
                Restart,
                Join,
            ),
            (Stage::KernelSent, Restart, Restart, Join, Restart, Join),
            (
                Stage::InitrdRequested,
                Restart,
                Restart,
                Join,
                Restart,
                Join,
            ),
            (Stage::InitrdSent, Restart, Restart, Join, Restart, Join),
            (Stage::OsNetwork, Restart, Restart, Join, Restart, Join),
            (Stage::Up, Restart, Restart, Restart, Restart, Join),
        ];
        for (stage, again, other, ipxe, ipxe_rom, os) in table {
            let rom = standing(stage, Speaker::Rom);
            assert_eq!(arrival(Some(&rom), caller(Speaker::Rom)), again, "{stage}");
            let http = Caller {
                http: true,
                ..caller(Speaker::Rom)
            };
            assert_eq!(arrival(Some(&rom), http), other, "{stage} other way");
            assert_eq!(arrival(Some(&rom), caller(Speaker::Ipxe)), ipxe, "{stage}");
            assert_eq!(arrival(Some(&rom), caller(Speaker::Os)), os, "{stage}");
            let own = standing(stage, Speaker::Ipxe);
            assert_eq!(
                arrival(Some(&own), caller(Speaker::Ipxe)),
                ipxe_rom,
                "{stage} iPXE ROM"
            );
        }
    }

    #[test]
    fn another_machine_with_a_running_ones_mac_is_refused() {
        let here = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
        let mut now = standing(Stage::Up, Speaker::Rom);
        now.smbios_uuid = Some(here);
        let mut new = caller(Speaker::Rom);
        new.smbios_uuid = Some(Uuid::from_bytes_le(*here.as_bytes()));
        assert_eq!(arrival(Some(&now), new), Arrival::Restart);
        new.smbios_uuid = Some(Uuid::from_u128(7));
        assert_eq!(arrival(Some(&now), new), Arrival::Refuse);
        now.beating = false;
        assert_eq!(arrival(Some(&now), new), Arrival::Restart);
    }
}
