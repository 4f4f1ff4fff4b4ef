//! The rows that a boot leaves: which are new, which are only counted, in which order they
//! go out. Pure; says nothing about where they go.

use serde_json::{Value, json};
use uuid::Uuid;

use super::machine::{Boot, ImageReport, TroubleKind};
use crate::model::{Attempt, BootEvent, BootSession, SessionStatus, Stage, Timestamp};

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

/// What is counted as the same again, and what is always a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Row {
    Always,
    OncePerDetail,
    /// Written even when the attempt has had its share of rows.
    Last,
}

/// Different details that are told apart for counting repeats.
const DISTINCT: usize = 128;

impl Boot {
    /// The seed's row needs a client and an image; it appears as soon as both are known.
    pub(super) fn open_session(&mut self) {
        let a = &self.attempt;
        let (Some(client_id), Some((image_id, _))) = (a.client_id, &self.image) else {
            return;
        };
        let session = self.session.get_or_insert(BootSession {
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
    pub(super) fn reach(
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
            // An address alone does not bring the loader that was refused.
            let is_address = matches!(stage, Stage::Offer | Stage::Lease | Stage::LoaderLease);
            self.trouble
                .take_if(|t| !(is_address && t.kind == TroubleKind::Fatal));
        }
        self.note(at, stage, detail, row, out);
    }

    /// Writes an event, or counts it.
    pub(super) fn note(
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

    pub(super) fn repeats(&self) -> serde_json::Map<String, Value> {
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

    /// Puts the effects of one step in order: rows first, then events, then the counters.
    pub(super) fn finish(
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
        if self.image_report == ImageReport::Due
            && let Some((image_id, _)) = &self.image
        {
            effects.push(Effect::ImageReports {
                image_id: *image_id,
            });
            self.image_report = ImageReport::Told;
        }
        effects
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
