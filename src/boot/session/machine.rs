//! The life of one boot attempt and of its session. Pure: evidence and the time go in,
//! effects come out; it knows no database, no queue and no other machine.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use chrono::TimeDelta;
use serde_json::{Value, json};
use uuid::Uuid;

use super::arrival::{Caller, Standing};
use super::causes::{self, Scene};
use super::evidence::{BootFile, Context, Door, Evidence, Observation, Speaker};
use super::rules::Rules;
use crate::model::{
    Arch, Attempt, AttemptOutcome, BootEvent, BootSession, FileRole, PhoneHome, SessionStatus,
    Stage, Timestamp,
};

/// What is to be written down, in this order. Says nothing about where.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// The attempt is new, or something in it changed.
    Attempt(Attempt),
    /// The session is new, or something in it changed.
    Session(BootSession),
    /// Something happened.
    Event(BootEvent),
    /// The client booted an image, once per session.
    ClientBooted {
        /// Who.
        client_id: Uuid,
        /// When its boot began.
        at: Timestamp,
    },
    /// An image that was `auto` has reported itself.
    ImageReports {
        /// Which.
        image_id: Uuid,
    },
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
///  kernel, initrd delivered --no `up`--> failed     |--> error
///     |                                  (error)    |
///     | `up`, or inferred                           v
///     v                                        .---------.
///  running --three beats missed--> failed      | running |--> error
///     |                                        '---------'
///     | `bye`, or inferred (next boot, lease gone)  |
///     v                                             v
///  completed                                     shutdown
///
///  A ROM's DISCOVER before `up`, where the arrival table says so: restarted (error).
/// ```
///
/// **Inferred.** An image that is `absent` runs at its system's first DHCP, or `stall`
/// seconds after its last file. One that is `auto` and silent runs if its system spoke DHCP,
/// which is judged only after the whole `os` time, so that a report may still come.
///
/// **Late evidence.** After the end only the first `up`, `beat` and `bye` are written, each
/// as an event with `late: true`; no status changes. All other evidence is dropped.
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
    pub(super) first: Speaker,
    pub(super) first_http: bool,
    pub(super) life: Life,
    pub(super) loader: Option<String>,
    pub(super) loader_delivered: bool,
    pub(super) waiting_for: Option<String>,
    pub(super) transfers: Vec<Transfer>,
    pub(super) trouble: Option<Trouble>,
    pub(super) foreign: Option<Ipv4Addr>,
    pub(super) times: Times,
    pub(super) booted: bool,
    pub(super) image_reported: bool,
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

/// How an attempt ends.
struct End {
    outcome: AttemptOutcome,
    status: SessionStatus,
    event: Stage,
    cause: Option<String>,
    inferred: bool,
}

/// What is counted as the same again, and what is always a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Row {
    Always,
    OncePerDetail,
    /// Written even when the attempt has had its share of rows.
    Last,
}

/// Transfers of one machine that are followed at the same time.
const TRANSFERS: usize = 32;
/// Different details that are told apart for counting repeats.
const DISTINCT: usize = 128;

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
            first: Speaker::Rom,
            first_http: false,
            life: Life::Loading,
            loader: None,
            loader_delivered: false,
            waiting_for: None,
            transfers: Vec::new(),
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
            image_reported: false,
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
        self.session
            .as_ref()
            .filter(|_| self.booted)
            .map(|s| s.image_id)
            .or_else(|| {
                self.image
                    .as_ref()
                    .filter(|_| self.booted)
                    .map(|(id, _)| *id)
            })
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
        let running = matches!(self.life, Life::Running(_));
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
        self.times.heard = self.times.heard.max(seen.at);
        self.learn(&seen.context);
        self.judge(seen, &mut out);
        self.finish(before, out)
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: Timestamp) -> Vec<Effect> {
        let Some((due, verdict)) = self.deadline() else {
            return Vec::new();
        };
        if now < due {
            return Vec::new();
        }
        let before = (self.attempt.clone(), self.session.clone());
        let mut out = Vec::new();
        match verdict {
            Verdict::End(end) => self.end(now, *end, &mut out),
            Verdict::Runs { since, by } => self.run(now, since, Proof::Inferred, by, &mut out),
        }
        self.finish(before, out)
    }

    /// The machine starts again: closes this attempt.
    pub fn restart(&mut self, at: Timestamp) -> Vec<Effect> {
        if !self.is_open() {
            return Vec::new();
        }
        let before = (self.attempt.clone(), self.session.clone());
        let mut out = Vec::new();
        let stage = self.attempt.last_stage;
        let end = if matches!(self.life, Life::Running(_)) {
            End::shutdown("started again without saying bye", true)
        } else if let (Stage::Waiting, Some(why)) = (stage, &self.waiting_for) {
            End::refused(format!("{}; started again", causes::unready(why)))
        } else {
            // The cause only where there is one: a user may press the button at any time.
            let long = at - self.times.progress >= self.rules.timings.transfer;
            let why = (long || self.trouble.is_some())
                .then(|| format!(": {}", self.cause()))
                .unwrap_or_default();
            End {
                outcome: AttemptOutcome::Restarted,
                status: SessionStatus::Error,
                event: Stage::Restarted,
                cause: Some(format!("restarted at stage {stage}{why}")),
                inferred: false,
            }
        };
        self.end(at, end, &mut out);
        self.finish(before, out)
    }

    /// Another machine with this one's MAC and another SMBIOS UUID was turned away.
    pub fn turn_away(&mut self, newcomer: &Observation) -> Vec<Effect> {
        let before = (self.attempt.clone(), self.session.clone());
        let mut out = Vec::new();
        let detail = json!({
            "reason": "other_machine",
            "sentence": "another machine with this MAC but a different SMBIOS UUID asked to boot while this one runs; it was refused",
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

    /// The clock's scale moved by `by`: so do all deadlines. Nothing ends by it.
    pub fn shift(&mut self, by: TimeDelta) {
        let t = &mut self.times;
        for time in [&mut t.heard, &mut t.progress, &mut t.beat] {
            *time += by;
        }
        let options = [
            &mut t.delivered,
            &mut t.network,
            &mut t.released,
            &mut t.lease_until,
        ];
        for time in options.into_iter().flatten() {
            *time += by;
        }
        for transfer in &mut self.transfers {
            transfer.since += by;
        }
    }

    /// When silence will be judged, and how.
    fn deadline(&self) -> Option<(Timestamp, Verdict)> {
        match self.life {
            Life::Over => None,
            Life::Running(Proof::Inferred) => {
                let until = self.times.lease_until? + self.rules.timings.stall;
                let end = End::shutdown("its lease ran out and was not renewed", true);
                Some((until, Verdict::end(end)))
            }
            Life::Running(Proof::Reported) => {
                let silence = self.rules.timings.silence();
                let released = self.times.released.is_some_and(|r| r >= self.times.beat);
                let end = if released {
                    End::shutdown("it released its lease and fell silent", true)
                } else {
                    let cause = causes::contact_lost(silence.num_seconds());
                    End::failed(cause)
                };
                Some((self.times.beat + silence, Verdict::end(end)))
            }
            Life::Loading => Some(self.loading_deadline()),
        }
    }

    fn loading_deadline(&self) -> (Timestamp, Verdict) {
        let (timings, times) = (&self.rules.timings, &self.times);
        if let (Stage::Waiting, Some(why)) = (self.attempt.last_stage, &self.waiting_for) {
            let gone = format!("{}; the machine waited and has gone", causes::unready(why));
            return (
                times.heard + timings.stall,
                Verdict::end(End::refused(gone)),
            );
        }
        let open = self
            .transfers
            .iter()
            .map(|t| t.since + timings.transfer_of(t.size));
        let failed = || Verdict::end(self.failure());
        if let Some(until) = open.max() {
            return (until, failed());
        }
        let patience = times.progress + timings.no_progress();
        let broken = matches!(&self.trouble, Some(t) if t.kind == TroubleKind::Broken);
        if let (Some(delivered), false) = (times.delivered, broken) {
            let until = times.network.unwrap_or(delivered).max(delivered) + timings.os;
            return match (self.phone_home, times.network) {
                (PhoneHome::Absent, network) => {
                    let (since, by) = match network {
                        Some(since) => (since, "os_network"),
                        None => (delivered, "delivery"),
                    };
                    (since + timings.stall, Verdict::Runs { since, by })
                }
                (PhoneHome::Auto, Some(since)) => {
                    let by = "os_network";
                    (until, Verdict::Runs { since, by })
                }
                (PhoneHome::Auto, None) | (PhoneHome::Expected, _) => (until, failed()),
            };
        }
        let quiet = if broken {
            timings.transfer
        } else if self.is_uefi_rom() {
            timings.uefi_rom
        } else {
            timings.stall
        };
        ((times.heard + quiet).min(patience), failed())
    }

    fn is_uefi_rom(&self) -> bool {
        self.attempt.last_stage <= Stage::LoaderOffered
            && self.first == Speaker::Rom
            && self.attempt.arch.is_some_and(Arch::is_efi)
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

    fn choose_image(&mut self, context: &Context) {
        if let Some((id, name)) = &context.image {
            self.image = Some((*id, name.clone()));
            self.attempt.image_name = Some(name.clone());
        }
        if let Some(phone_home) = context.phone_home {
            self.phone_home = phone_home;
        }
    }

    fn judge(&mut self, seen: &Observation, out: &mut Vec<Effect>) {
        let at = seen.at;
        match &seen.what {
            Evidence::Discover(speaker) => self.discover(at, *speaker, &seen.context, out),
            Evidence::Offered {
                speaker,
                address,
                loader,
            } => self.offered(at, *speaker, *address, loader.as_deref(), out),
            Evidence::Acknowledged {
                speaker,
                address,
                loader,
            } => self.acknowledged(at, *speaker, *address, loader.as_deref(), out),
            Evidence::Refused {
                reason,
                sentence,
                fatal,
            } => {
                let kind = if *fatal {
                    TroubleKind::Fatal
                } else {
                    TroubleKind::Refused
                };
                self.trouble = Some(Trouble {
                    kind,
                    sentence: sentence.clone(),
                });
                let detail = json!({"reason": reason, "sentence": sentence, "fatal": fatal});
                self.note(at, Stage::Refused, detail, Row::OncePerDetail, out);
            }
            Evidence::Script { unready } => self.script(at, *unready, &seen.context, out),
            Evidence::FileStarted { file, door, size } => {
                let stage = stage_of(file, false);
                self.trouble = None;
                self.transfers
                    .retain(|t| !(t.file == *file && t.door == *door));
                if self.transfers.len() < TRANSFERS {
                    self.transfers.push(Transfer {
                        file: file.clone(),
                        door: *door,
                        size: *size,
                        since: at,
                    });
                }
                if let BootFile::Loader(name) = file {
                    self.loader = Some(name.clone());
                }
                let detail = json!({"file": file.label(), "door": door.as_str(), "bytes": size});
                self.reach(at, stage, detail, Row::Always, out);
            }
            Evidence::FileSent {
                file,
                door,
                size,
                seconds,
            } => {
                self.transfers
                    .retain(|t| !(t.file == *file && t.door == *door));
                self.trouble = None;
                match file {
                    BootFile::Loader(name) => {
                        self.loader = Some(name.clone());
                        self.loader_delivered = true;
                    }
                    BootFile::Image(..) => self.times.delivered = Some(at),
                }
                let seconds = seconds.is_finite().then_some(*seconds);
                let detail = json!({
                    "file": file.label(), "door": door.as_str(), "bytes": size, "seconds": seconds,
                });
                self.reach(at, stage_of(file, true), detail, Row::Always, out);
            }
            Evidence::FileBroken {
                file,
                door,
                sent,
                size,
                cause,
            } => {
                self.transfers
                    .retain(|t| !(t.file == *file && t.door == *door));
                let label = file.label();
                self.trouble = Some(Trouble {
                    kind: TroubleKind::Broken,
                    sentence: causes::broken(&label, *sent, *size, cause),
                });
                let detail = json!({
                    "file": label, "door": door.as_str(), "bytes": sent, "of": size, "cause": cause,
                });
                self.note(at, Stage::TransferBroken, detail, Row::Always, out);
            }
            Evidence::ForeignServer(ip) => {
                self.foreign = Some(*ip);
                let detail = json!({"server": ip});
                self.note(at, Stage::ForeignServer, detail, Row::OncePerDetail, out);
            }
            Evidence::Up => {
                self.times.beat = at;
                self.run(at, at, Proof::Reported, "report", out);
            }
            Evidence::Beat => {
                self.times.beat = at;
                self.times.released = None;
                // A beat proves as much as the `up` that must have been lost.
                self.run(at, at, Proof::Reported, "beat", out);
            }
            Evidence::Bye(reason) => {
                let detail = json!({"reason": reason});
                self.reach(at, Stage::Bye, detail, Row::Last, out);
                let mut end = End::shutdown("", false);
                end.cause = reason.as_ref().filter(|r| !r.is_empty()).cloned();
                self.end(at, end, out);
            }
            Evidence::Released => self.released(at, out),
        }
    }

    fn discover(
        &mut self,
        at: Timestamp,
        speaker: Speaker,
        context: &Context,
        out: &mut Vec<Effect>,
    ) {
        let detail = json!({"speaker": speaker.as_str(), "arch": context.arch});
        let stage = match speaker {
            Speaker::Rom => {
                // The way it boots by now: a UEFI machine may go from PXE to HTTP.
                self.attempt.arch = context.arch.or(self.attempt.arch);
                Stage::Discover
            }
            Speaker::Ipxe if self.is_loader() => Stage::LoaderRunning,
            Speaker::Ipxe => Stage::Discover,
            Speaker::Os => return self.os_network(at, None, out),
        };
        self.reach(at, stage, detail, Row::OncePerDetail, out);
    }

    /// True if an iPXE that speaks now is a loader, not the ROM itself.
    fn is_loader(&self) -> bool {
        self.first == Speaker::Rom || self.loader_delivered
    }

    fn offered(
        &mut self,
        at: Timestamp,
        speaker: Speaker,
        address: Option<Ipv4Addr>,
        loader: Option<&str>,
        out: &mut Vec<Effect>,
    ) {
        if speaker == Speaker::Os {
            return;
        }
        let detail = json!({"speaker": speaker.as_str(), "address": address, "loader": loader});
        self.reach(at, Stage::Offer, detail, Row::OncePerDetail, out);
        if address.is_none() {
            // A proxy's offer is all that many ROMs wait for.
            self.loader_offered(at, loader, out);
        }
    }

    fn acknowledged(
        &mut self,
        at: Timestamp,
        speaker: Speaker,
        address: Option<Ipv4Addr>,
        loader: Option<&str>,
        out: &mut Vec<Effect>,
    ) {
        if address.is_some() {
            self.attempt.client_ip = address;
            self.times.released = None;
        }
        if speaker == Speaker::Os {
            return self.os_network(at, address, out);
        }
        let stage = if speaker == Speaker::Ipxe && (self.is_loader() || loader.is_none()) {
            Stage::LoaderLease
        } else {
            Stage::Lease
        };
        if address.is_some() || stage == Stage::LoaderLease {
            let detail = json!({
                "speaker": speaker.as_str(), "address": address, "until": self.times.lease_until,
            });
            self.reach(at, stage, detail, Row::OncePerDetail, out);
        }
        self.loader_offered(at, loader, out);
    }

    fn loader_offered(&mut self, at: Timestamp, loader: Option<&str>, out: &mut Vec<Effect>) {
        if let Some(name) = loader {
            self.loader = Some(name.to_owned());
            self.reach(
                at,
                Stage::LoaderOffered,
                json!({"loader": name}),
                Row::OncePerDetail,
                out,
            );
        }
    }

    /// The operating system speaks DHCP: evidence only once a kernel was delivered.
    fn os_network(&mut self, at: Timestamp, address: Option<Ipv4Addr>, out: &mut Vec<Effect>) {
        if self.times.delivered.is_none() || address.is_none() {
            return;
        }
        self.times.network.get_or_insert(at);
        let detail = json!({"address": address, "until": self.times.lease_until});
        self.reach(at, Stage::OsNetwork, detail, Row::OncePerDetail, out);
        if self.life == Life::Loading && self.phone_home == PhoneHome::Absent {
            self.run(at, at, Proof::Inferred, "os_network", out);
        }
    }

    fn script(
        &mut self,
        at: Timestamp,
        unready: Option<(&'static str, bool)>,
        context: &Context,
        out: &mut Vec<Effect>,
    ) {
        let Some((why, waits)) = unready else {
            self.waiting_for = None;
            self.attempt.reason = None;
            // The image is the one that this script names, whatever was planned before.
            self.choose_image(context);
            self.booted = true;
            let detail = json!({
                "image": self.attempt.image_name, "image_id": self.image.as_ref().map(|i| i.0),
                "phone_home": self.phone_home,
            });
            self.reach(at, Stage::Script, detail, Row::OncePerDetail, out);
            return;
        };
        let cause = causes::unready(why);
        self.attempt.reason = Some(cause.clone());
        let detail = json!({"reason": why, "sentence": cause});
        if waits {
            self.waiting_for = Some(why.to_owned());
            self.reach(at, Stage::Waiting, detail, Row::OncePerDetail, out);
        } else {
            self.reach(at, Stage::LocalBoot, detail, Row::Always, out);
            self.end(
                at,
                End::refused(format!("{cause}; sent to its local disk")),
                out,
            );
        }
    }

    fn released(&mut self, at: Timestamp, out: &mut Vec<Effect>) {
        match self.life {
            Life::Running(Proof::Inferred) => {
                self.end(at, End::shutdown("it released its lease", true), out);
            }
            // It should say bye, or fall silent.
            Life::Running(Proof::Reported) => self.times.released = Some(at),
            Life::Loading | Life::Over => {}
        }
    }

    /// The system runs, by report or by inference; a report corrects an inference.
    fn run(
        &mut self,
        at: Timestamp,
        since: Timestamp,
        proof: Proof,
        by: &str,
        out: &mut Vec<Effect>,
    ) {
        if proof == Proof::Reported {
            self.image_reports();
        }
        match (self.life, proof) {
            (Life::Over | Life::Running(Proof::Reported), _)
            | (Life::Running(Proof::Inferred), Proof::Inferred) => return,
            (Life::Loading, _) | (Life::Running(Proof::Inferred), Proof::Reported) => {}
        }
        self.life = Life::Running(proof);
        self.transfers.clear();
        self.waiting_for = None;
        self.attempt.reason = None;
        let took = (since - self.attempt.started_at).max(TimeDelta::zero());
        let inferred = proof == Proof::Inferred;
        let seconds = took.num_milliseconds() as f64 / 1000.0;
        let detail = json!({"by": by, "inferred": inferred, "boot_seconds": seconds});
        self.reach(at, Stage::Up, detail, Row::Last, out);
        self.open_session();
        if let Some(session) = &mut self.session {
            session.status = SessionStatus::Running;
            session.boot_time_seconds = i32::try_from(took.num_seconds()).ok();
        }
    }

    fn image_reports(&mut self) {
        self.image_reported |= self.phone_home == PhoneHome::Auto;
        self.phone_home = PhoneHome::Expected;
    }

    /// What is known of why it stops here.
    fn cause(&self) -> String {
        if let Some(trouble) = &self.trouble {
            return trouble.sentence.clone();
        }
        causes::silence(&Scene {
            stage: self.attempt.last_stage,
            arch: self.attempt.arch,
            server: self.attempt.boot_server_ip,
            http_port: self.rules.http_port,
            loader: self.loader.as_deref(),
            foreign: self.foreign,
            os_spoke: self.times.network.is_some(),
            reports: self.phone_home == PhoneHome::Expected,
        })
    }

    fn failure(&self) -> End {
        let cause = format!("at stage {}: {}", self.attempt.last_stage, self.cause());
        match &self.trouble {
            Some(t)
                if t.kind == TroubleKind::Refused
                    && self.attempt.last_stage < Stage::LoaderOffered =>
            {
                End::refused(cause)
            }
            _ => End::failed(cause),
        }
    }

    fn end(&mut self, at: Timestamp, end: End, out: &mut Vec<Effect>) {
        let mut detail = json!({"stage": self.attempt.last_stage});
        if let Some(cause) = &end.cause {
            detail["cause"] = json!(cause);
        }
        if end.inferred {
            detail["inferred"] = json!(true);
        }
        let repeats = self.repeats();
        if !repeats.is_empty() {
            detail["repeats"] = Value::Object(repeats);
        }
        self.note(at, end.event, detail, Row::Last, out);
        self.open_session();
        self.life = Life::Over;
        self.transfers.clear();
        let at = self.times.event;
        self.attempt.ended_at = Some(at);
        self.attempt.outcome = end.outcome;
        self.attempt.reason.clone_from(&end.cause);
        if let Some(session) = &mut self.session {
            session.ended_at = Some(at);
            session.status = end.status;
            if end.status == SessionStatus::Error {
                session.error_message = end.cause;
            }
        }
    }

    fn repeats(&self) -> serde_json::Map<String, Value> {
        let mut by_stage = serde_json::Map::new();
        for stage in Stage::ALL {
            let n: u32 = self
                .seen
                .iter()
                .filter(|((s, _), _)| s == stage)
                .map(|(_, n)| *n)
                .sum();
            if n > 0 {
                by_stage.insert(stage.as_str().to_owned(), json!(n));
            }
        }
        by_stage
    }

    /// The seed's row needs a client and an image; it appears as soon as both are known.
    fn open_session(&mut self) {
        let a = &self.attempt;
        let (Some(client_id), Some((image_id, _))) = (a.client_id, &self.image) else {
            return;
        };
        let session = self.session.get_or_insert_with(|| BootSession {
            id: a.id,
            client_id,
            image_id: *image_id,
            started_at: a.started_at,
            ended_at: None,
            status: SessionStatus::Starting,
            boot_time_seconds: None,
            error_message: None,
            client_ip: None,
            boot_server_ip: None,
        });
        session.client_id = client_id;
        session.image_id = *image_id;
        session.client_ip = a.client_ip;
        session.boot_server_ip = a.boot_server_ip;
        if self.booted && session.status == SessionStatus::Starting {
            session.status = SessionStatus::Booting;
        }
    }

    /// An event of the ladder: writes it, and moves up if it is further on.
    fn reach(
        &mut self,
        at: Timestamp,
        stage: Stage,
        detail: Value,
        row: Row,
        out: &mut Vec<Effect>,
    ) {
        let last = self.attempt.last_stage;
        let leaves_waiting =
            stage == Stage::Script && matches!(last, Stage::Waiting | Stage::LocalBoot);
        if stage > last || leaves_waiting {
            self.attempt.last_stage = stage;
            self.times.progress = self.times.progress.max(at);
            self.trouble = None;
        }
        self.note(at, stage, detail, row, out);
    }

    /// Writes an event, or counts it.
    fn note(
        &mut self,
        at: Timestamp,
        stage: Stage,
        detail: Value,
        row: Row,
        out: &mut Vec<Effect>,
    ) {
        let full = self.events >= self.rules.max_events;
        if row == Row::OncePerDetail {
            let key = (stage, signature(&detail));
            if let Some(count) = self.seen.get_mut(&key) {
                *count = count.saturating_add(1);
                return;
            }
            if self.seen.len() >= DISTINCT || full {
                let rest = self.seen.entry((stage, String::new())).or_default();
                *rest = rest.saturating_add(1);
                return;
            }
            self.seen.insert(key, 0);
        } else if full && row == Row::Always {
            let rest = self.seen.entry((stage, String::new())).or_default();
            *rest = rest.saturating_add(1);
            return;
        }
        self.events = self.events.saturating_add(1);
        self.times.event = self.times.event.max(at);
        out.push(Effect::Event(BootEvent {
            session_id: self.attempt.id,
            at: self.times.event,
            stage,
            detail,
        }));
    }

    fn after_the_end(&mut self, seen: &Observation) -> Vec<Effect> {
        let (slot, stage) = match &seen.what {
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

    /// Puts the effects of one step in order: rows first, then events, then the counters.
    fn finish(
        &mut self,
        before: (Attempt, Option<BootSession>),
        events: Vec<Effect>,
    ) -> Vec<Effect> {
        if self.is_open() {
            self.open_session();
        }
        let mut effects = Vec::with_capacity(events.len() + 3);
        if self.attempt != before.0 {
            effects.push(Effect::Attempt(self.attempt.clone()));
        }
        let had_booted = before
            .1
            .as_ref()
            .is_some_and(|s| s.status != SessionStatus::Starting);
        if self.session != before.1
            && let Some(session) = &self.session
        {
            effects.push(Effect::Session(session.clone()));
            if self.booted && !had_booted {
                effects.push(Effect::ClientBooted {
                    client_id: session.client_id,
                    at: session.started_at,
                });
            }
        }
        effects.extend(events);
        if std::mem::take(&mut self.image_reported)
            && let Some((image_id, _)) = &self.image
        {
            effects.push(Effect::ImageReports {
                image_id: *image_id,
            });
        }
        effects
    }
}

/// What a deadline brings.
enum Verdict {
    End(Box<End>),
    Runs { since: Timestamp, by: &'static str },
}

impl Verdict {
    fn end(end: End) -> Self {
        Self::End(Box::new(end))
    }
}

impl End {
    fn failed(cause: String) -> Self {
        Self {
            outcome: AttemptOutcome::Failed,
            status: SessionStatus::Error,
            event: Stage::Error,
            cause: Some(cause),
            inferred: false,
        }
    }

    fn refused(cause: String) -> Self {
        Self {
            outcome: AttemptOutcome::Refused,
            ..Self::failed(cause)
        }
    }

    fn shutdown(cause: &str, inferred: bool) -> Self {
        Self {
            outcome: AttemptOutcome::Completed,
            status: SessionStatus::Shutdown,
            event: Stage::Ended,
            cause: (!cause.is_empty()).then(|| cause.to_owned()),
            inferred,
        }
    }
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

const fn stage_of(file: &BootFile, sent: bool) -> Stage {
    match (file, sent) {
        (BootFile::Loader(_), false) => Stage::LoaderRequested,
        (BootFile::Loader(_), true) => Stage::LoaderSent,
        (BootFile::Image(FileRole::Kernel, _), false) => Stage::KernelRequested,
        (BootFile::Image(FileRole::Kernel, _), true) => Stage::KernelSent,
        (BootFile::Image(FileRole::Initrd, _), false) => Stage::InitrdRequested,
        (BootFile::Image(FileRole::Initrd, _), true) => Stage::InitrdSent,
    }
}

/// What makes two events of a stage the same: all their detail but the times in it.
pub(super) fn signature(detail: &Value) -> String {
    match detail {
        Value::Object(map) => {
            let same = map.iter().filter(|(k, _)| k.as_str() != "until");
            same.map(|(k, v)| format!("{k}={v};")).collect()
        }
        other => other.to_string(),
    }
}
