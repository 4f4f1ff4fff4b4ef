//! What silence means: deadlines, inferred starts, ends and their causes. Pure.

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::causes::{self, Scene};
use super::evidence::Speaker;
use super::machine::{Boot, Life, Proof, TroubleKind};
use super::rows::{Effect, Row};
use crate::model::{Arch, AttemptOutcome, PhoneHome, SessionStatus, Stage, Timestamp};

/// How an attempt ends.
pub(super) struct End {
    pub(super) outcome: AttemptOutcome,
    pub(super) status: SessionStatus,
    pub(super) event: Stage,
    pub(super) cause: Option<String>,
    pub(super) inferred: bool,
}

/// What a deadline brings.
enum Verdict {
    End(Box<End>),
    Runs { since: Timestamp, by: &'static str },
}

impl Boot {
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
            Verdict::End(end) => {
                self.by_silence = true;
                self.end(now, *end, &mut out);
            }
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
            let why = if long || self.trouble.is_some() {
                format!(": {}", self.cause())
            } else {
                String::new()
            };
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
            &mut self.disk.attached,
            &mut self.disk.system,
            &mut self.disk.idle,
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
            // Whoever holds its disk is there.
            Life::Running(_) if self.disk.is_open() => None,
            Life::Running(Proof::Inferred) if self.disk.logins > 0 => {
                let quiet = self.rules.timings.disk;
                let end = End::shutdown(&causes::disk_quiet(quiet.num_seconds()), true);
                Some((self.disk.idle? + quiet, Verdict::end(end)))
            }
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
                let mut until = self.times.beat + silence;
                if let Some(idle) = self.disk.idle {
                    until = until.max(idle + self.rules.timings.disk);
                }
                Some((until, Verdict::end(end)))
            }
            Life::Loading => Some(self.loading_deadline()),
        }
    }

    fn loading_deadline(&self) -> (Timestamp, Verdict) {
        let (timings, times) = (&self.rules.timings, &self.times);
        if let (Stage::Waiting, Some(why)) = (self.attempt.last_stage, &self.waiting_for) {
            let gone = format!("{}; the machine waited and has gone", causes::unready(why));
            return (
                times.heard + timings.waiting,
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
        if let Some(due) = self.disk_deadline() {
            return due;
        }
        let patience = times.progress + timings.no_progress();
        let broken = matches!(&self.trouble, Some(t) if t.kind == TroubleKind::Broken);
        if let (Some(delivered), false) = (times.delivered, broken) {
            let until = times.network.unwrap_or(delivered).max(delivered) + timings.os;
            // Without its root no system runs, whatever else it does.
            let phone_home = match self.disk.method {
                Some(_) => PhoneHome::Expected,
                None => self.phone_home,
            };
            return match (phone_home, times.network) {
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

    /// The deadline of a boot that has logged in to its disk since its script.
    fn disk_deadline(&self) -> Option<(Timestamp, Verdict)> {
        let (timings, disk) = (&self.rules.timings, &self.disk);
        let attached = disk.attached?;
        if let (Some(_), Some(idle)) = (disk.system, disk.idle) {
            let cause = format!(
                "at stage {}: {}",
                self.attempt.last_stage,
                causes::disk_lost(timings.disk.num_seconds())
            );
            return Some((idle + timings.disk, Verdict::end(End::failed(cause))));
        }
        let until = attached + timings.os;
        let since = disk.system.or(self.times.network).unwrap_or(attached);
        let runs = Verdict::Runs { since, by: "disk" };
        Some(match self.phone_home {
            PhoneHome::Absent if disk.is_open() => (attached + timings.stall, runs),
            PhoneHome::Auto if disk.is_open() => (until, runs),
            PhoneHome::Absent | PhoneHome::Auto | PhoneHome::Expected => {
                (until, Verdict::end(self.failure()))
            }
        })
    }

    fn is_uefi_rom(&self) -> bool {
        self.attempt.last_stage <= Stage::LoaderOffered
            && self.first == Speaker::Rom
            && self.attempt.arch.is_some_and(Arch::is_efi)
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
            disk: self.disk.method,
            stall_seconds: self.rules.timings.stall.num_seconds(),
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

    pub(super) fn end(&mut self, at: Timestamp, end: End, out: &mut Vec<Effect>) {
        let mut detail = json!({"stage": self.attempt.last_stage});
        if let Some(cause) = &end.cause {
            detail["cause"] = json!(cause);
        }
        if end.inferred {
            detail["inferred"] = json!(true);
        }
        // Whoever holds its disk is on, whatever else it does not do.
        if end.outcome == AttemptOutcome::Failed && self.disk.is_open() {
            detail["disk"] = json!("open");
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
}

impl Verdict {
    fn end(end: End) -> Self {
        Self::End(Box::new(end))
    }
}

impl End {
    pub(super) fn failed(cause: String) -> Self {
        Self {
            outcome: AttemptOutcome::Failed,
            status: SessionStatus::Error,
            event: Stage::Error,
            cause: Some(cause),
            inferred: false,
        }
    }

    pub(super) fn refused(cause: String) -> Self {
        Self {
            outcome: AttemptOutcome::Refused,
            ..Self::failed(cause)
        }
    }

    pub(super) fn shutdown(cause: &str, inferred: bool) -> Self {
        Self {
            outcome: AttemptOutcome::Completed,
            status: SessionStatus::Shutdown,
            event: Stage::Ended,
            cause: (!cause.is_empty()).then(|| cause.to_owned()),
            inferred,
        }
    }
}
