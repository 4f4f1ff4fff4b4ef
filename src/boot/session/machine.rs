//! The life of one boot attempt and of its session. Pure: evidence and the time go in,
//! effects come out; it knows no database, no queue and no other machine.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use serde_json::json;
use uuid::Uuid;

use super::arrival::Standing;
use super::disk::Disk;
use super::evidence::{BootFile, Context, Door, Evidence, Observation, Speaker};
use super::rows::{Effect, Row};
use super::rules::Rules;
use crate::model::{
    Arch, Attempt, AttemptOutcome, BootMethod, BootSession, PhoneHome, Stage, Timestamp,
};

crate::model::words! {
    /// Why a machine with a running one's MAC got no boot.
    pub enum TurnedAway {
        /// It has another SMBIOS UUID, and the one that runs reports itself.
        OtherMachine = "other_machine",
        /// The one that runs holds the disk, and its connection answers.
        DiskInUse = "disk_in_use",
    }
}

impl TurnedAway {
    /// For people.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::OtherMachine => {
                "another machine with this MAC but a different SMBIOS UUID asked to boot while this one runs; it was refused"
            }
            Self::DiskInUse => {
                "a machine with this MAC asked to boot while this one has its disk, and its connection answers; it was refused"
            }
        }
    }
}

/// One attempt of one machine, from its first packet to its end.
///
/// ```text
///        Discover (ROM, or an iPXE that is the ROM)
///            |
///            v                                 session row (client and image known)
///  .-------------------.  no word for `stall`  .---------.
///  | loading           |--------------------.  | starting|
///  |  discover .. lease|  fatal refusal     |  '---------'
///  |  loader .. script |--------------------|       |
///  '-------------------'                    |       | script of an image
///     |        |    ^                       |       v
///     |        |    | script, ready         |  .---------.
///     |        v    |                       |  | booting |
///     |   .---------------.  gone           |  '---------'
///     |   | waiting       |-------> refused |       |
///     |   '---------------'                 |       |
///     |   sent to its local disk -> refused |       |
///     v                                     v       |
///  kernel, initrd delivered,  --no `up`--> failed   |--> error
///  disk attached, read, written   disk   (error)    |
///     |                           lost              |
///     | `up`, or inferred                           v
///     v                                        .---------.
///  running --three beats missed, no--> failed  | running |--> error
///     |      disk open                         '---------'
///     | `bye`, or inferred (next boot, lease gone,  |
///     v  disk detached and not attached again)      v
///  completed                                     shutdown
///
///  A ROM's DISCOVER before `up`, where the arrival table says so: restarted (error).
/// ```
///
/// **Inferred.** An image that is `absent` runs at its system's first DHCP, or `stall`
/// seconds after its last file; where its root is a disk, at the login of its system to it, or
/// `stall` seconds after its loader's. One that is `auto` and silent runs if its system spoke
/// DHCP or holds its disk, which is judged only after the whole `os` time, so that a report
/// may still come.
///
/// **Late evidence.** After the end only the first `up`, `beat` and `bye` are written, each
/// as an event with `late: true`, what its disk tells, with the bytes that went over it, and
/// that it answered ARP when it had been given up; no status changes. All other evidence is dropped.
///
/// **Repeats.** The same packet again (a ROM in a loop) is no new row: it is counted, and the
/// counts stand in the detail of the last event (`repeats`).
#[derive(Debug, Clone)]
pub struct Boot {
    pub(super) rules: Rules,
    pub(super) attempt: Attempt,
    pub(super) session: Option<BootSession>,
    pub(super) image: Option<(Uuid, String)>,
    pub(super) phone_home: PhoneHome,
    /// How the disk of `image` is booted.
    pub(super) boot_method: Option<BootMethod>,
    pub(super) first: Speaker,
    pub(super) first_http: bool,
    pub(super) life: Life,
    pub(super) loader: Option<String>,
    pub(super) loader_delivered: bool,
    pub(super) waiting_for: Option<String>,
    pub(super) transfers: Vec<Transfer>,
    pub(super) disk: Disk,
    /// It ended by a deadline of ours, not by a word of the machine.
    pub(super) by_silence: bool,
    pub(super) trouble: Option<Trouble>,
    pub(super) foreign: Option<Ipv4Addr>,
    pub(super) times: Times,
    pub(super) booted: bool,
    pub(super) image_report: ImageReport,
    pub(super) events: u32,
    pub(super) seen: HashMap<(Stage, String), u32>,
    pub(super) late: [bool; 3],
}

/// How far it is, as far as time-outs are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Loading,
    Running(Proof),
    Over,
}

/// How we know that a system runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    Reported,
    Inferred,
}

/// Whether the catalog is to learn that this image reports itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImageReport {
    NotYet,
    Due,
    Told,
}

/// When what was heard, on the scale that [`Boot::shift`] moves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) heard: Timestamp,
    pub(super) progress: Timestamp,
    pub(super) delivered: Option<Timestamp>,
    pub(super) network: Option<Timestamp>,
    pub(super) beat: Timestamp,
    pub(super) released: Option<Timestamp>,
    pub(super) lease_until: Option<Timestamp>,
    /// Of the last event written: events of an attempt never go back in time.
    pub(super) event: Timestamp,
}

#[derive(Debug, Clone)]
pub(super) struct Transfer {
    pub(super) file: BootFile,
    pub(super) door: Door,
    pub(super) size: u64,
    pub(super) since: Timestamp,
}

/// The latest thing that went wrong and has not been made good by progress.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub(super) kind: TroubleKind,
    pub(super) sentence: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TroubleKind {
    /// The boot can't go on.
    Fatal,
    /// It was refused something by policy.
    Refused,
    /// A transfer broke.
    Broken,
}

impl Boot {
    /// Opens an attempt with the observation that starts it.
    #[must_use]
    pub fn start(
        id: Uuid,
        server_id: Uuid,
        rules: Rules,
        first: &Observation,
    ) -> (Self, Vec<Effect>) {
        let speaker = match &first.what {
            Evidence::Discover(s)
            | Evidence::Offered { speaker: s, .. }
            | Evidence::Acknowledged { speaker: s, .. } => *s,
            _ => Speaker::Rom,
        };
        let at = first.at;
        let attempt = Attempt {
            id,
            mac: first.mac,
            smbios_uuid: None,
            client_id: None,
            client_name: None,
            image_name: None,
            server_id,
            range_id: None,
            arch: None,
            client_ip: None,
            boot_server_ip: None,
            started_at: at,
            ended_at: None,
            last_stage: Stage::Discover,
            outcome: AttemptOutcome::Open,
            reason: None,
            disk_bytes_read: 0,
            disk_bytes_written: 0,
            version_id: None,
            version_name: None,
        };
        let mut boot = Self::blank(rules, attempt, at);
        boot.first = speaker;
        boot.first_http = first.context.arch.is_some_and(Arch::is_http);
        let mut effects = boot.step(first);
        // The row must exist before its events, whether or not anything was learnt.
        if !matches!(effects.first(), Some(Effect::Attempt(_))) {
            effects.insert(0, Effect::Attempt(boot.attempt.clone()));
        }
        (boot, effects)
    }

    pub(super) fn blank(rules: Rules, attempt: Attempt, at: Timestamp) -> Self {
        Self {
            rules,
            session: None,
            image: None,
            phone_home: PhoneHome::Auto,
            boot_method: None,
            first: Speaker::Rom,
            first_http: false,
            life: Life::Loading,
            loader: None,
            loader_delivered: false,
            waiting_for: None,
            transfers: Vec::new(),
            disk: Disk::default(),
            by_silence: false,
            trouble: None,
            foreign: None,
            times: Times {
                heard: at,
                progress: at,
                delivered: None,
                network: None,
                beat: at,
                released: None,
                lease_until: None,
                event: attempt.started_at,
            },
            booted: false,
            image_report: ImageReport::NotYet,
            events: 0,
            seen: HashMap::new(),
            late: [false; 3],
            attempt,
        }
    }

    /// The attempt's row.
    #[must_use]
    pub const fn attempt(&self) -> &Attempt {
        &self.attempt
    }

    /// The session's row, once client and image are known.
    #[must_use]
    pub const fn session(&self) -> Option<&BootSession> {
        self.session.as_ref()
    }

    /// True until it has ended.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.life != Life::Over
    }

    /// A loader of ours was delivered whole.
    #[must_use]
    pub const fn loader_delivered(&self) -> bool {
        self.loader_delivered
    }

    /// The image that its script named.
    #[must_use]
    pub fn image_id(&self) -> Option<Uuid> {
        let image = self.image.as_ref().filter(|_| self.booted);
        image.map(|(id, _)| *id)
    }

    /// When the last event was written.
    #[must_use]
    pub const fn last_event_at(&self) -> Timestamp {
        self.times.event
    }

    /// When it last spoke after its end, if it did: its address is still in use.
    #[must_use]
    pub fn late_beat(&self) -> Option<Timestamp> {
        (!self.is_open() && self.late.iter().take(2).any(|l| *l)).then_some(self.times.beat)
    }

    /// How it stands, for the arrival table.
    #[must_use]
    pub fn standing(&self, now: Timestamp) -> Standing {
        // No loader writes: a boot that has written to its disk is in its system's hands, and a
        // loader that calls then comes from a reset.
        let running = matches!(self.life, Life::Running(_)) || self.disk.written;
        Standing {
            stage: self.attempt.last_stage,
            running,
            beating: self.life == Life::Running(Proof::Reported)
                && now < self.times.beat + self.rules.timings.silence(),
            first: self.first,
            first_http: self.first_http,
            smbios_uuid: self.attempt.smbios_uuid,
        }
    }

    /// Takes evidence.
    pub fn step(&mut self, seen: &Observation) -> Vec<Effect> {
        if !self.is_open() {
            return self.after_the_end(seen);
        }
        let before = (self.attempt.clone(), self.session.clone());
        let mut out = Vec::new();
        // How much a connection has moved is our own look at it, no word of the machine's.
        if !matches!(seen.what, Evidence::DiskUsed(_)) {
            self.times.heard = self.times.heard.max(seen.at);
        }
        self.learn(&seen.context);
        self.judge(seen, &mut out);
        self.finish(before, out)
    }

    /// Another server goes on with it: the row is all that is left to write.
    pub fn hand_over(&mut self, server: Uuid) -> Vec<Effect> {
        self.attempt.server_id = server;
        vec![Effect::Attempt(self.attempt.clone())]
    }

    /// Another machine with this one's MAC was turned away.
    pub fn turn_away(&mut self, newcomer: &Observation, why: TurnedAway) -> Vec<Effect> {
        let before = (self.attempt.clone(), self.session.clone());
        let mut out = Vec::new();
        let detail = json!({
            "reason": why.as_str(),
            "sentence": why.sentence(),
            "smbios_uuid": newcomer.context.smbios_uuid,
        });
        self.note(
            newcomer.at,
            Stage::Refused,
            detail,
            Row::OncePerDetail,
            &mut out,
        );
        self.finish(before, out)
    }

    /// Keeps what came along.
    fn learn(&mut self, context: &Context) {
        let a = &mut self.attempt;
        a.smbios_uuid = a.smbios_uuid.or(context.smbios_uuid);
        a.range_id = context.range_id.or(a.range_id);
        a.client_ip = context.client_ip.or(a.client_ip);
        a.boot_server_ip = context.server_ip.or(a.boot_server_ip);
        a.arch = a.arch.or(context.arch);
        if let Some((id, name)) = &context.client
            && !self.booted
        {
            a.client_id = Some(*id);
            a.client_name = Some(name.clone());
        }
        if !self.booted {
            self.choose_image(context);
        }
        if context.lease_until.is_some() {
            self.times.lease_until = context.lease_until;
        }
    }

    pub(super) fn choose_image(&mut self, context: &Context) {
        if let Some((id, name)) = &context.image {
            self.image = Some((*id, name.clone()));
            self.attempt.image_name = Some(name.clone());
        }
        if context.image.is_some() {
            self.boot_method = context.boot_method;
        }
        // What it has proved by reporting, no cache knows better.
        if let Some(phone_home) = context.phone_home
            && self.image_report == ImageReport::NotYet
        {
            self.phone_home = phone_home;
        }
    }

    fn after_the_end(&mut self, seen: &Observation) -> Vec<Effect> {
        let (slot, stage) = match &seen.what {
            Evidence::DiskAttached(_)
            | Evidence::DiskRead { .. }
            | Evidence::DiskWritten { .. }
            | Evidence::DiskQuota { .. }
            | Evidence::DiskUsed(_)
            | Evidence::DiskDetached { .. }
            | Evidence::DiskRefused { .. } => {
                let before = (self.attempt.clone(), self.session.clone());
                let mut out = Vec::new();
                self.judge_disk(seen, &mut out);
                return self.finish(before, out);
            }
            Evidence::Answers => {
                let mut out = Vec::new();
                let detail = json!({"late": true, "by": "arp"});
                self.note(
                    seen.at,
                    Stage::Answers,
                    detail,
                    Row::OncePerDetail,
                    &mut out,
                );
                return out;
            }
            Evidence::Up => (0, Stage::Up),
            Evidence::Beat => (1, Stage::Up),
            Evidence::Bye(_) => (2, Stage::Bye),
            _ => return Vec::new(),
        };
        if slot < 2 {
            self.times.beat = self.times.beat.max(seen.at);
        }
        let mut out = Vec::new();
        if let Some(done @ false) = self.late.get_mut(slot) {
            *done = true;
            let by = if slot == 1 { "beat" } else { "report" };
            let detail = json!({"late": true, "by": by});
            self.note(seen.at, stage, detail, Row::Last, &mut out);
        }
        out
    }
}
