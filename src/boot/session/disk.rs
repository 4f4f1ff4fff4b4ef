//! What a boot's disk tells of it: logins, first uses, bytes, and connections that end. Pure.
//!
//! | what is seen | still loading | running | over |
//! |---|---|---|---|
//! | script of a disk image | waits `stall` for a login (`san`), or for kernel and initrd | somebody looks | - |
//! | login by the loader (`san`, the first after a script) | disk attached; waits `os` for more | disk attached | late |
//! | login by the system (any other) | the same; `absent` images run by it | disk attached | late |
//! | a connection ends, another is open | bytes | bytes | bytes |
//! | the last one ends | loader's: waits on; system's: after `disk` "lost while booting" | after `disk` it has ended | bytes |
//!
//! **A disk that is open keeps a boot alive** as a beat does not: while there is a connection,
//! no missed beat and no lease that runs out ends a running system (the exports ask silent
//! peers for a sign of life and let go of dead ones, and that is when the clock starts). It
//! keeps the machine's address too, even after the boot has ended for us.
//!
//! **Coming back.** A boot that ended by a deadline of ours may log in again until the next
//! one of the same machine begins, for the machine may have been cut off and know nothing of
//! it. One that said bye, or was closed by a restart, may not.

use serde_json::json;

use super::evidence::{DiskLogin, DiskUse, Evidence, Observation};
use super::machine::{Boot, Life, Proof, Trouble, TroubleKind};
use super::rows::{Effect, Row};
use crate::model::{BootMethod, DiskMode, PhoneHome, Stage, Timestamp};

/// The disk of a boot.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    /// How the image that the script named is booted.
    pub(super) method: Option<BootMethod>,
    /// Whether what it writes is kept: as at its first login, for the whole boot.
    pub(super) mode: Option<DiskMode>,
    /// Connections.
    pub(super) open: Vec<DiskUse>,
    /// Logins in all.
    pub(super) logins: u32,
    /// Logins since the last script.
    pub(super) since_script: u32,
    /// When it last logged in.
    pub(super) attached: Option<Timestamp>,
    /// When its system first logged in itself.
    pub(super) system: Option<Timestamp>,
    /// Since when no connection is open; `None` while one is, or before the first.
    pub(super) idle: Option<Timestamp>,
    /// Something was written to it in this boot.
    pub(super) written: bool,
    /// Bytes read and written over connections that are gone.
    pub(super) before: (i64, i64),
}

/// Connections of one boot that are followed at the same time.
const CONNECTIONS: usize = 64;

impl Disk {
    /// True while a connection is open.
    pub(super) const fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// A login. The first after a `san` script is the loader's, all others are the system's.
    pub(super) fn logged_in(&mut self, at: Timestamp) {
        self.logins = self.logins.saturating_add(1);
        self.since_script = self.since_script.saturating_add(1);
        self.attached = Some(at);
        self.idle = None;
        if self.method != Some(BootMethod::San) || self.since_script > 1 {
            self.system.get_or_insert(at);
        }
    }

    /// A script of this kind was given out: what was logged in to before is no sign of what
    /// follows.
    pub(super) fn planned(&mut self, method: Option<BootMethod>) {
        self.method = method;
        self.since_script = 0;
        self.attached = None;
        self.system = None;
    }

    fn totals(&self) -> (i64, i64) {
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.open.iter().fold(self.before, |(read, written), c| {
            (
                read.saturating_add(count(c.read)),
                written.saturating_add(count(c.written)),
            )
        })
    }

    fn moved(&mut self, now: DiskUse) {
        let known = self
            .open
            .iter_mut()
            .find(|c| c.connection == now.connection);
        if let Some(known) = known {
            *known = now;
        }
    }

    fn gone(&mut self, last: DiskUse, at: Timestamp) {
        self.moved(last);
        let totals = self.totals();
        let left = self.open.len();
        self.open.retain(|c| c.connection != last.connection);
        if self.open.len() == left {
            return;
        }
        let rest = Self {
            before: (0, 0),
            open: self.open.clone(),
            ..Self::default()
        }
        .totals();
        self.before = (totals.0 - rest.0, totals.1 - rest.1);
        if self.open.is_empty() {
            self.idle = Some(at);
        }
    }
}

impl Boot {
    /// True while a connection to its disk is open, whether or not the boot is over.
    #[must_use]
    pub const fn holds_disk(&self) -> bool {
        self.disk.is_open()
    }

    /// Whether what it writes is kept, once it has logged in to its disk.
    #[must_use]
    pub const fn disk_mode(&self) -> Option<DiskMode> {
        self.disk.mode
    }

    /// True if it may log in to its disk (again); see the head of `session/disk.rs`.
    #[must_use]
    pub fn may_attach(&self) -> bool {
        self.booted && (self.is_open() || self.by_silence)
    }

    /// Evidence of the disk, of an attempt that is open or over.
    pub(super) fn judge_disk(&mut self, seen: &Observation, out: &mut Vec<Effect>) {
        let at = seen.at;
        match &seen.what {
            Evidence::DiskAttached(login) => self.disk_attached(at, login, out),
            Evidence::DiskRead { connection } => {
                self.disk_used_first(at, Stage::DiskRead, *connection, out);
            }
            Evidence::DiskWritten { connection } => {
                self.disk.written = true;
                self.disk_used_first(at, Stage::DiskWritten, *connection, out);
            }
            Evidence::DiskQuota { limit } => {
                let sentence = "it has written as much to its disk as its quota lets it";
                let mut detail = json!({"limit_bytes": limit, "sentence": sentence});
                self.mark_late(&mut detail);
                self.note(at, Stage::DiskQuota, detail, Row::OncePerDetail, out);
            }
            Evidence::DiskUsed(moved) => self.disk.moved(*moved),
            Evidence::DiskDetached { moved, cause } => {
                self.disk.gone(*moved, at);
                let mut detail = json!({
                    "bytes_read": moved.read, "bytes_written": moved.written, "cause": cause,
                });
                self.mark_late(&mut detail);
                self.note(at, Stage::DiskDetached, detail, Row::Always, out);
            }
            Evidence::DiskRefused { reason, sentence } => {
                let sentence = format!("its disk was refused: {sentence}");
                let mut detail = json!({"reason": format!("disk_{reason}"), "sentence": sentence});
                self.mark_late(&mut detail);
                self.note(at, Stage::Refused, detail, Row::OncePerDetail, out);
                self.trouble = Some(Trouble {
                    kind: TroubleKind::Fatal,
                    sentence,
                });
            }
            _ => {}
        }
        let (read, written) = self.disk.totals();
        self.attempt.disk_bytes_read = read;
        self.attempt.disk_bytes_written = written;
    }

    fn disk_attached(&mut self, at: Timestamp, login: &DiskLogin, out: &mut Vec<Effect>) {
        let disk = &mut self.disk;
        if disk.open.len() < CONNECTIONS {
            disk.open.push(DiskUse {
                connection: login.connection,
                read: 0,
                written: 0,
            });
        }
        disk.mode.get_or_insert(login.mode);
        disk.logged_in(at);
        if let Some((id, name)) = &login.version {
            self.attempt.version_id = Some(*id);
            self.attempt.version_name = Some(name.clone());
        }
        let mut detail = json!({
            "protocol": login.protocol, "peer": login.peer.to_string(), "clone": login.clone.as_str(),
            "mode": login.mode, "login": disk.logins,
        });
        if let Some((_, name)) = &login.version {
            detail["version"] = json!(name);
        }
        self.mark_late(&mut detail);
        if !self.is_open() {
            return self.note(at, Stage::DiskAttached, detail, Row::Always, out);
        }
        self.trouble = None;
        self.reach(at, Stage::DiskAttached, detail, Row::Always, out);
        let by_system = self.disk.system.is_some();
        if by_system && self.life == Life::Loading && self.phone_home == PhoneHome::Absent {
            self.run(at, at, Proof::Inferred, "disk", out);
        }
    }

    fn disk_used_first(
        &mut self,
        at: Timestamp,
        stage: Stage,
        connection: u64,
        out: &mut Vec<Effect>,
    ) {
        let mut detail = json!({"login": self.disk.logins, "connection": connection});
        self.mark_late(&mut detail);
        if self.is_open() {
            self.reach(at, stage, detail, Row::Always, out);
        } else {
            self.note(at, stage, detail, Row::Always, out);
        }
    }

    fn mark_late(&self, detail: &mut serde_json::Value) {
        if !self.is_open() {
            detail["late"] = json!(true);
        }
    }
}
