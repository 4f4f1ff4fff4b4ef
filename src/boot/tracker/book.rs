//! The attempts in memory: by machine, by id, by address; the caps on strangers; the ones
//! that ended a little while ago.
//!
//! Synchronous and without a lock of its own: the tracker holds one around it. Reads no
//! clock, writes no row: it hands back what is to be written.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::Ipv4Addr;

use chrono::TimeDelta;
use uuid::Uuid;

use super::{Caps, OpenAttempt};
use crate::boot::session::arrival::Caller;
use crate::boot::session::{
    Arrival, Boot, Effect, Evidence, Observation, Rules, Speaker, TurnedAway, are_others, arrival,
};
use crate::model::{Attempt, BootEvent, BootSession, MacAddr, Timestamp};

/// All attempts that matter now.
#[derive(Debug)]
pub(super) struct Book {
    server_id: Uuid,
    rules: Rules,
    caps: Caps,
    /// Boxed, here and below: a table of thousands that grows moves words, not kilobytes.
    open: HashMap<MacAddr, Box<Boot>>,
    by_id: HashMap<Uuid, MacAddr>,
    by_address: HashMap<Ipv4Addr, MacAddr>,
    /// Open attempts of machines without a client.
    strangers: HashSet<MacAddr>,
    /// Start of the second in which `strangers_new` were opened.
    second: Timestamp,
    strangers_new: u32,
    /// Ended attempts by id, forgotten after [`REMEMBER`].
    ended: HashMap<Uuid, Box<Boot>>,
    /// Ended in an earlier run, though the database may not say so yet.
    ended_before: HashSet<Uuid>,
    /// The latest ended one of a machine.
    ended_of: HashMap<MacAddr, Uuid>,
    /// Ids of `ended` with the time at which to look at them again, in that order.
    forget: VecDeque<(Timestamp, Uuid)>,
    ticked: Option<Timestamp>,
}

/// How long an ended attempt is remembered, so that what comes late starts nothing.
const REMEMBER: TimeDelta = TimeDelta::minutes(10);
/// At most so many ended attempts are remembered.
const REMEMBER_AT_MOST: usize = 20_000;
/// Between two ticks; more than that, or less than nothing, is a clock that jumped.
const JUMP: TimeDelta = TimeDelta::seconds(15);

/// What one observation led to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The attempt it belongs to.
    pub(super) id: Option<Uuid>,
    /// To be written, per attempt, in order.
    pub(super) steps: Vec<Step>,
    /// Why it was not followed.
    pub(super) ignored: Option<Ignored>,
}

/// The effects on one attempt.
#[derive(Debug)]
pub(super) struct Step {
    /// The attempt as it is now.
    pub(super) attempt: Attempt,
    /// Its session.
    pub(super) session: Option<BootSession>,
    /// When its last event before this step was.
    pub(super) before: Timestamp,
    /// In order.
    pub(super) effects: Vec<Effect>,
}

crate::model::words! {
    /// Why an observation belongs to no attempt.
    pub enum Ignored {
        /// Nothing that opens an attempt, and none is open.
        NoAttempt = "no_attempt",
        /// Too many attempts of machines without a client are open.
        StrangersOpen = "strangers_open",
        /// Too many of them began in this second.
        StrangersRate = "strangers_rate",
        /// Another machine runs with this MAC.
        OtherMachine = "other_machine",
        /// Another machine has the disk of this MAC's client.
        DiskInUse = "disk_in_use",
        /// A report for a boot that is over.
        Late = "late",
    }
}

impl Book {
    pub(super) fn new(server_id: Uuid, rules: Rules, caps: Caps) -> Self {
        Self {
            server_id,
            rules,
            caps,
            open: HashMap::new(),
            by_id: HashMap::new(),
            by_address: HashMap::new(),
            strangers: HashSet::new(),
            second: Timestamp::UNIX_EPOCH,
            strangers_new: 0,
            ended: HashMap::new(),
            ended_before: HashSet::new(),
            ended_of: HashMap::new(),
            forget: VecDeque::new(),
            ticked: None,
        }
    }

    /// Takes note. `new_id` is asked for an id if an attempt starts.
    pub(super) fn observe(&mut self, seen: &Observation, new_id: impl FnOnce() -> Uuid) -> Outcome {
        let mut outcome = Outcome::default();
        let current = self.open.get(&seen.mac).map(|b| b.standing(seen.at));
        let verdict = Caller::of(seen).map_or_else(
            || match (&current, opens_if_none(&seen.what)) {
                (None, true) => Arrival::Start,
                (None, false) => Arrival::Ignore,
                (Some(_), _) => Arrival::Join,
            },
            |caller| arrival(current.as_ref(), caller),
        );
        match verdict {
            Arrival::Join => {
                outcome.id = self.step(seen.mac, &mut outcome.steps, |b| b.step(seen));
            }
            Arrival::Ignore => self.nowhere(seen, &mut outcome),
            Arrival::Refuse => {
                let why = TurnedAway::OtherMachine;
                self.step(seen.mac, &mut outcome.steps, |b| b.turn_away(seen, why));
                outcome.ignored = Some(Ignored::OtherMachine);
            }
            Arrival::Start | Arrival::Restart => {
                if verdict == Arrival::Restart {
                    self.step(seen.mac, &mut outcome.steps, |b| b.restart(seen.at));
                }
                if seen.context.client.is_none()
                    && let Some(cap) = self.stranger(seen.at)
                {
                    outcome.ignored = Some(cap);
                    return outcome;
                }
                let id = new_id();
                let (boot, effects) = Boot::start(id, self.server_id, self.rules, seen);
                outcome.id = Some(id);
                outcome.steps.push(step_of(&boot, seen.at, effects));
                self.insert(boot);
            }
        }
        outcome
    }

    /// A report by the boot's own token: it concerns that attempt, whatever the machine has
    /// begun since.
    pub(super) fn report(&mut self, id: Uuid, seen: &Observation) -> Outcome {
        let mut outcome = Outcome::default();
        if let Some(mac) = self.by_id.get(&id).copied() {
            outcome.id = self.step(mac, &mut outcome.steps, |b| b.step(seen));
        } else if let Some(boot) = self.ended.get_mut(&id) {
            let before = boot.last_event_at();
            let effects = boot.step(seen);
            outcome.steps.push(step_of(boot, before, effects));
            outcome.ignored = Some(Ignored::Late);
        } else {
            outcome.ignored = Some(Ignored::NoAttempt);
        }
        outcome
    }

    /// A machine was refused because the one of that attempt has the disk.
    pub(super) fn turn_away(&mut self, id: Uuid, seen: &Observation) -> Outcome {
        let mut outcome = Outcome::default();
        let why = TurnedAway::DiskInUse;
        if let Some(mac) = self.by_id.get(&id).copied() {
            outcome.id = self.step(mac, &mut outcome.steps, |b| b.turn_away(seen, why));
        } else if let Some(boot) = self.ended.get_mut(&id) {
            let before = boot.last_event_at();
            let effects = boot.turn_away(seen, why);
            outcome.steps.push(step_of(boot, before, effects));
        }
        outcome.ignored = Some(Ignored::DiskInUse);
        outcome
    }

    /// No attempt is open: a late report is written to the one that ended last.
    fn nowhere(&mut self, seen: &Observation, outcome: &mut Outcome) {
        let report = matches!(seen.what, Evidence::Up | Evidence::Beat | Evidence::Bye(_));
        match self.ended_of.get(&seen.mac).copied() {
            Some(id) if report => {
                *outcome = self.report(id, seen);
                outcome.id = None;
            }
            _ => outcome.ignored = Some(Ignored::NoAttempt),
        }
    }

    /// Time passes: judges silences, forgets what ended long ago.
    pub(super) fn tick(&mut self, now: Timestamp) -> Vec<Step> {
        if let Some(last) = self.ticked.replace(now) {
            let gone = now - last;
            if gone > JUMP || gone < TimeDelta::zero() {
                // The clock was set, or the server stood still: nobody could be heard.
                self.open.values_mut().for_each(|b| b.shift(gone));
            }
        }
        let macs: Vec<MacAddr> = self.open.keys().copied().collect();
        let mut steps = Vec::new();
        for mac in macs {
            self.step(mac, &mut steps, |b| b.tick(now));
        }
        self.forget(now);
        steps
    }

    /// Goes on with an attempt of an earlier run of this server.
    pub(super) fn recall(
        &mut self,
        attempt: Attempt,
        events: &[BootEvent],
        session: Option<BootSession>,
        now: Timestamp,
    ) -> Vec<Step> {
        let mac = attempt.mac;
        if self.by_id.contains_key(&attempt.id) {
            return Vec::new();
        }
        let Some(mut boot) = Boot::recall(self.rules, attempt, events, session, now) else {
            return Vec::new();
        };
        match self.open.get(&mac) {
            // The machine has started again while we read: that one stays.
            Some(newer) if newer.attempt().started_at >= boot.attempt().started_at => {
                let before = boot.last_event_at();
                let effects = boot.restart(newer.attempt().started_at.max(before));
                let step = step_of(&boot, before, effects);
                self.bury(Box::new(boot), now);
                vec![step]
            }
            Some(_) => {
                let mut steps = Vec::new();
                self.step(mac, &mut steps, |b| b.restart(now));
                self.insert(boot);
                steps
            }
            None => {
                self.insert(boot);
                Vec::new()
            }
        }
    }

    /// These ended in an earlier run of this server.
    pub(super) fn know_ended(&mut self, ids: HashSet<Uuid>) {
        self.ended_before = ids;
    }

    /// Whether an attempt that the database calls open has ended.
    pub(super) fn has_ended(&self, id: Uuid) -> bool {
        self.ended.contains_key(&id) || self.ended_before.contains(&id)
    }

    /// Forgets an open attempt that another server goes on with; the row says which.
    pub(super) fn hand_over(&mut self, id: Uuid, server: Uuid) -> Vec<Step> {
        let Some(mac) = self.by_id.remove(&id) else {
            return Vec::new();
        };
        let Some(mut boot) = self.open.remove(&mac) else {
            return Vec::new();
        };
        self.strangers.remove(&mac);
        if let Some(address) = boot.attempt().client_ip
            && self.by_address.get(&address) == Some(&mac)
        {
            self.by_address.remove(&address);
        }
        let before = boot.last_event_at();
        let effects = boot.hand_over(server);
        vec![step_of(&boot, before, effects)]
    }

    pub(super) fn by_mac(&self, mac: MacAddr) -> Option<OpenAttempt> {
        self.open.get(&mac).map(|boot| view(boot))
    }

    pub(super) fn by_id(&self, id: Uuid) -> Option<OpenAttempt> {
        self.by_mac(*self.by_id.get(&id)?)
    }

    pub(super) fn at(&self, address: Ipv4Addr) -> Option<OpenAttempt> {
        let boot = self.open.get(self.by_address.get(&address)?)?;
        (boot.attempt().client_ip == Some(address)).then(|| view(boot))
    }

    pub(super) fn over(&self, id: Uuid) -> Option<OpenAttempt> {
        let boot = self.ended.get(&id)?;
        let mut over = view(boot);
        // A newer boot of the same machine has taken its place.
        over.may_attach &=
            self.ended_of.get(&over.mac) == Some(&id) && !self.open.contains_key(&over.mac);
        Some(over)
    }

    /// An open attempt that a machine with another SMBIOS UUID began, or with none: what had no
    /// UUID for its ROM and its loader has none now.
    pub(super) fn is_of_another(&self, mac: MacAddr, smbios_uuid: Option<Uuid>) -> bool {
        self.open.get(&mac).is_some_and(|boot| {
            let known = boot.attempt().smbios_uuid;
            known.is_none() && smbios_uuid.is_some() || are_others(known, smbios_uuid)
        })
    }

    /// A machine that is booting or runs, or that ended by silence and has spoken since.
    pub(super) fn is_live(&self, mac: MacAddr, now: Timestamp) -> bool {
        if self.open.contains_key(&mac) {
            return true;
        }
        let last = self.ended_of.get(&mac).and_then(|id| self.ended.get(id));
        last.is_some_and(|boot| {
            boot.holds_disk()
                || boot
                    .late_beat()
                    .is_some_and(|at| now < at + self.rules.timings.silence())
        })
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn strangers(&self) -> usize {
        self.strangers.len()
    }

    /// Steps one open attempt and keeps the indexes true.
    fn step(
        &mut self,
        mac: MacAddr,
        steps: &mut Vec<Step>,
        act: impl FnOnce(&mut Boot) -> Vec<Effect>,
    ) -> Option<Uuid> {
        let boot = self.open.get_mut(&mac)?;
        let (before, id) = (boot.last_event_at(), boot.attempt().id);
        let effects = act(boot);
        if effects.is_empty() {
            return Some(id);
        }
        steps.push(step_of(boot, before, effects));
        if let Some(address) = boot.attempt().client_ip {
            self.by_address.insert(address, mac);
        }
        if boot.attempt().client_id.is_some() {
            self.strangers.remove(&mac);
        }
        if !boot.is_open()
            && let Some(boot) = self.open.remove(&mac)
        {
            let ended = boot.attempt().ended_at.unwrap_or(before);
            self.bury(boot, ended);
        }
        Some(id)
    }

    fn insert(&mut self, boot: Boot) {
        let (attempt, mac) = (boot.attempt(), boot.attempt().mac);
        self.by_id.insert(attempt.id, mac);
        if let Some(address) = attempt.client_ip {
            self.by_address.insert(address, mac);
        }
        if attempt.client_id.is_none() {
            self.strangers.insert(mac);
        }
        self.open.insert(mac, Box::new(boot));
    }

    fn bury(&mut self, boot: Box<Boot>, at: Timestamp) {
        let (id, mac) = (boot.attempt().id, boot.attempt().mac);
        self.by_id.remove(&id);
        if !self.open.contains_key(&mac) {
            self.strangers.remove(&mac);
        }
        if let Some(address) = boot.attempt().client_ip
            && self.by_address.get(&address) == Some(&mac)
        {
            self.by_address.remove(&address);
        }
        self.ended_of.insert(mac, id);
        self.ended.insert(id, boot);
        self.forget.push_back((at + REMEMBER, id));
        if self.ended.len() > REMEMBER_AT_MOST
            && let Some((_, oldest)) = self.forget.pop_front()
        {
            self.drop_ended(oldest);
        }
    }

    fn forget(&mut self, now: Timestamp) {
        while let Some(&(due, id)) = self.forget.front() {
            if due > now {
                break;
            }
            self.forget.pop_front();
            let boot = self.ended.get(&id);
            let until = match boot.and_then(|b| b.late_beat()) {
                // It still talks, or works on its disk: keep its address safe.
                Some(at) if at + REMEMBER > now => Some(at + REMEMBER),
                _ => boot.filter(|b| b.holds_disk()).map(|_| now + REMEMBER),
            };
            match until {
                Some(until) => self.forget.push_back((until, id)),
                None => self.drop_ended(id),
            }
        }
    }

    fn drop_ended(&mut self, id: Uuid) {
        if let Some(boot) = self.ended.remove(&id) {
            let mac = boot.attempt().mac;
            if self.ended_of.get(&mac) == Some(&id) {
                self.ended_of.remove(&mac);
            }
        }
    }

    /// May one more machine without a client be followed?
    fn stranger(&mut self, at: Timestamp) -> Option<Ignored> {
        if self.strangers.len() >= self.caps.strangers_open {
            return Some(Ignored::StrangersOpen);
        }
        if (at - self.second).abs() >= TimeDelta::seconds(1) {
            self.second = at;
            self.strangers_new = 0;
        }
        if self.strangers_new >= self.caps.strangers_per_second {
            return Some(Ignored::StrangersRate);
        }
        self.strangers_new += 1;
        None
    }
}

#[cfg(test)]
mod tests;

/// A server that was started in the middle of an exchange has missed its DISCOVER.
const fn opens_if_none(what: &Evidence) -> bool {
    matches!(
        what,
        Evidence::Acknowledged {
            speaker: Speaker::Rom | Speaker::Ipxe,
            ..
        }
    )
}

fn view(boot: &Boot) -> OpenAttempt {
    let a = boot.attempt();
    OpenAttempt {
        id: a.id,
        mac: a.mac,
        client_id: a.client_id,
        image_id: boot.image_id(),
        range_id: a.range_id,
        loader_delivered: boot.loader_delivered(),
        disk_mode: boot.disk_mode(),
        may_attach: boot.may_attach(),
        ended_at: a.ended_at,
    }
}

fn step_of(boot: &Boot, before: Timestamp, effects: Vec<Effect>) -> Step {
    Step {
        attempt: boot.attempt().clone(),
        session: boot.session().cloned(),
        before,
        effects,
    }
}
