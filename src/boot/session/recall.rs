//! An attempt made again from its rows, after a restart of the server. Pure.
//!
//! Deadlines begin anew at `now`: a server that was away expires nobody at once.

use super::evidence::Speaker;
use super::machine::{Boot, ImageReport, Life, Proof};
use super::rows::signature;
use super::rules::Rules;
use crate::model::{Attempt, BootEvent, BootSession, PhoneHome, SessionStatus, Stage, Timestamp};

impl Boot {
    /// Goes on with an open attempt. `events` in the order in which they were written;
    /// `None` if the attempt has ended.
    #[must_use]
    pub fn recall(
        rules: Rules,
        attempt: Attempt,
        events: &[BootEvent],
        session: Option<BootSession>,
        now: Timestamp,
    ) -> Option<Self> {
        if attempt.ended_at.is_some() {
            return None;
        }
        let mut boot = Self::blank(rules, attempt, now);
        for event in events {
            boot.remember(event);
        }
        if let Some(session) = session {
            let name = boot.attempt.image_name.clone().unwrap_or_default();
            boot.image = Some((session.image_id, name));
            boot.booted |= session.status != SessionStatus::Starting;
            if session.status == SessionStatus::Running && boot.life == Life::Loading {
                boot.life = Life::Running(Proof::Inferred);
            }
            boot.session = Some(session);
        }
        boot.disk.before = (
            boot.attempt.disk_bytes_read,
            boot.attempt.disk_bytes_written,
        );
        boot.disk.attached = boot.disk.attached.map(|_| now);
        boot.disk.system = boot.disk.system.map(|_| now);
        boot.disk.idle = (boot.disk.logins > 0).then_some(now);
        let times = &mut boot.times;
        times.delivered = times.delivered.map(|_| now);
        times.network = times.network.map(|_| now);
        times.lease_until = times.lease_until.map(|t| t.max(now));
        Some(boot)
    }

    fn remember(&mut self, event: &BootEvent) {
        let text = |key: &str| event.detail.get(key).and_then(|v| v.as_str());
        self.events = self.events.saturating_add(1);
        self.times.event = self.times.event.max(event.at);
        self.seen
            .entry((event.stage, signature(&event.detail)))
            .or_default();
        if let Some(until) = text("until").and_then(|t| t.parse().ok()) {
            self.times.lease_until = Some(until);
        }
        match event.stage {
            Stage::Discover if self.events == 1 => {
                self.first = match text("speaker") {
                    Some("ipxe") => Speaker::Ipxe,
                    _ => Speaker::Rom,
                };
                self.first_http = text("arch").is_some_and(|a| a.starts_with("http-"));
            }
            Stage::LoaderOffered => self.loader = text("loader").map(str::to_owned),
            Stage::LoaderRequested => self.loader = text("file").map(str::to_owned),
            Stage::LoaderSent => self.loader_delivered = true,
            Stage::Script => {
                self.booted = true;
                self.waiting_for = None;
                if let Some(word) = text("phone_home").and_then(|w| w.parse().ok()) {
                    self.phone_home = word;
                }
                let method = text("disk").and_then(|w| w.parse().ok());
                self.boot_method = method;
                self.disk.planned(method);
                if let Some(id) = text("image_id").and_then(|i| i.parse().ok()) {
                    self.image = Some((id, text("image").unwrap_or_default().to_owned()));
                }
            }
            Stage::Waiting => self.waiting_for = text("reason").map(str::to_owned),
            Stage::KernelSent | Stage::InitrdSent => self.times.delivered = Some(event.at),
            Stage::OsNetwork => self.times.network = Some(event.at),
            Stage::DiskAttached => {
                self.disk.logged_in(event.at);
                if let Some(mode) = text("mode").and_then(|w| w.parse().ok()) {
                    self.disk.mode.get_or_insert(mode);
                }
            }
            Stage::DiskWritten => self.disk.written = true,
            Stage::Up => {
                let inferred = event
                    .detail
                    .get("inferred")
                    .and_then(serde_json::Value::as_bool);
                if inferred == Some(true) {
                    self.life = Life::Running(Proof::Inferred);
                } else {
                    self.life = Life::Running(Proof::Reported);
                    self.phone_home = PhoneHome::Expected;
                    self.image_report = ImageReport::Told;
                }
            }
            _ => {}
        }
    }
}
