//! Who may use a disk: persistent reservations (SPC-4 5.13) and the reservations of SPC-2.
//! State and rules only; who tells the others is `lun`'s business.

use std::sync::Arc;

use super::Sense;
use super::cdb::{Access, Op, ReserveIn};
use super::lists::Keys;

/// An initiator port: its name, `,i,0x` and its session id, as in a transport id.
pub type Nexus = Arc<str>;

/// Registrations of one disk.
const MOST_REGISTRANTS: usize = 64;

/// A type of reservation (SPC-4 table 59).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind(u8);

impl Kind {
    const fn new(code: u8) -> Option<Self> {
        match code {
            1 | 3 | 5 | 6 | 7 | 8 => Some(Self(code)),
            _ => None,
        }
    }

    const fn exclusive(self) -> bool {
        matches!(self.0, 3 | 6 | 8)
    }

    /// All who are registered may use it.
    const fn registrants(self) -> bool {
        matches!(self.0, 5..=8)
    }

    /// All who are registered hold it.
    const fn all_hold(self) -> bool {
        matches!(self.0, 7 | 8)
    }
}

#[derive(Debug, Clone)]
struct Registrant {
    nexus: Nexus,
    key: u64,
}

#[derive(Debug, Clone)]
struct Held {
    kind: Kind,
    /// Of the types that all registrants hold: nobody in particular.
    by: Nexus,
    key: u64,
}

/// What others must be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whom.
    pub nexus: Nexus,
    /// What.
    pub sense: Sense,
    /// Its commands under way are aborted too.
    pub abort: bool,
}

/// A command may not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Status RESERVATION CONFLICT.
    Conflict,
    /// Status CHECK CONDITION.
    Sense(Sense),
}

/// Reservations of one disk.
#[derive(Debug, Clone, Default)]
pub struct Reservations {
    generation: u32,
    registrants: Vec<Registrant>,
    held: Option<Held>,
    /// RESERVE of SPC-2.
    old: Option<Nexus>,
}

impl Reservations {
    /// True if nothing is reserved: nobody need be asked.
    #[must_use]
    pub const fn is_free(&self) -> bool {
        self.held.is_none() && self.old.is_none()
    }

    /// True if somebody is registered.
    #[must_use]
    pub const fn has_registrants(&self) -> bool {
        !self.registrants.is_empty()
    }

    fn key_of(&self, nexus: &Nexus) -> Option<u64> {
        let found = self.registrants.iter().find(|r| r.nexus == *nexus);
        found.map(|r| r.key)
    }

    fn holds(&self, nexus: &Nexus) -> bool {
        self.held.as_ref().is_some_and(|held| {
            if held.kind.all_hold() {
                self.key_of(nexus).is_some()
            } else {
                held.by == *nexus
            }
        })
    }

    /// Whether a command may be done (SPC-4 table 66).
    #[must_use]
    pub fn allows(&self, nexus: &Nexus, op: &Op) -> bool {
        let access = op.access();
        if let Some(old) = &self.old
            && old != nexus
        {
            // SPC-2 5.5.1: also reads and PERSISTENT RESERVE OUT conflict.
            return access == Access::Free && !matches!(op, Op::ReserveOut { .. });
        }
        let Some(held) = &self.held else {
            return true;
        };
        let inside = self.holds(nexus) || held.kind.registrants() && self.key_of(nexus).is_some();
        match access {
            Access::Free => true,
            _ if inside => true,
            Access::Reads => !held.kind.exclusive(),
            Access::Writes => false,
        }
    }

    /// RESERVE of SPC-2.
    ///
    /// # Errors
    /// Somebody else has it, or persistent reservations are in use.
    pub fn reserve(&mut self, nexus: &Nexus) -> Result<(), Refused> {
        if self.has_registrants() || self.old.as_ref().is_some_and(|old| old != nexus) {
            return Err(Refused::Conflict);
        }
        self.old = Some(nexus.clone());
        Ok(())
    }

    /// RELEASE of SPC-2; of what is not one's own it does nothing.
    pub fn release(&mut self, nexus: &Nexus) {
        self.old.take_if(|old| old == nexus);
    }

    /// A reset ends reservations of SPC-2, not persistent ones.
    pub fn reset(&mut self) {
        self.old = None;
    }

    /// PERSISTENT RESERVE OUT.
    ///
    /// # Errors
    /// Conflict, or what is wrong with the command.
    pub fn change(
        &mut self,
        nexus: &Nexus,
        action: u8,
        scope: u8,
        kind: u8,
        keys: &Keys,
    ) -> Result<Vec<Notice>, Refused> {
        let needs_kind = matches!(action, 1 | 2 | 4 | 5);
        if needs_kind && (scope != 0 || Kind::new(kind).is_none()) {
            return Err(Refused::Sense(Sense::FIELD));
        }
        let kind = Kind::new(kind).unwrap_or(Kind(1));
        let own = self.key_of(nexus);
        // All but the registrations need a registration and its key (SPC-4 5.13.9).
        if !matches!(action, 0 | 6) && own != Some(keys.key) {
            return Err(Refused::Conflict);
        }
        match action {
            0 => {
                if own.unwrap_or(0) != keys.key {
                    return Err(Refused::Conflict);
                }
                self.register(nexus, keys.action_key)
            }
            6 => self.register(nexus, keys.action_key),
            1 => self.take(nexus, kind, keys.key),
            2 => self.give_back(nexus, kind),
            3 => Ok(self.clear(nexus)),
            4 | 5 => self.preempt(nexus, kind, keys, action == 5),
            _ => Err(Refused::Sense(Sense::FIELD)),
        }
    }

    fn register(&mut self, nexus: &Nexus, key: u64) -> Result<Vec<Notice>, Refused> {
        let at = self.registrants.iter().position(|r| r.nexus == *nexus);
        let mut notices = Vec::new();
        match (at, key) {
            (None, 0) => {}
            (None, key) => {
                if self.registrants.len() >= MOST_REGISTRANTS {
                    return Err(Refused::Sense(Sense::REGISTRATIONS));
                }
                self.registrants.push(Registrant {
                    nexus: nexus.clone(),
                    key,
                });
            }
            (Some(at), 0) => {
                let held = self.holds(nexus);
                self.registrants.remove(at);
                let last = self.registrants.is_empty();
                if let Some(was) = self.held.clone()
                    && held
                    && (!was.kind.all_hold() || last)
                {
                    self.held = None;
                    if was.kind.registrants() {
                        notices = self.tell(nexus, Sense::RELEASED);
                    }
                }
            }
            (Some(at), key) => {
                self.registrants[at].key = key;
                if let Some(held) = &mut self.held
                    && held.by == *nexus
                {
                    held.key = key;
                }
            }
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(notices)
    }

    fn take(&mut self, nexus: &Nexus, kind: Kind, key: u64) -> Result<Vec<Notice>, Refused> {
        match &self.held {
            None => {
                self.held = Some(Held {
                    kind,
                    by: nexus.clone(),
                    key,
                });
                Ok(Vec::new())
            }
            // The same again changes nothing (SPC-4 5.13.9).
            Some(held) if self.holds(nexus) && held.kind == kind => Ok(Vec::new()),
            Some(_) => Err(Refused::Conflict),
        }
    }

    fn give_back(&mut self, nexus: &Nexus, kind: Kind) -> Result<Vec<Notice>, Refused> {
        let Some(held) = &self.held else {
            return Ok(Vec::new());
        };
        if !self.holds(nexus) {
            return Ok(Vec::new());
        }
        if held.kind != kind {
            return Err(Refused::Sense(Sense::RELEASE));
        }
        let tells = held.kind.registrants();
        self.held = None;
        Ok(if tells {
            self.tell(nexus, Sense::RELEASED)
        } else {
            Vec::new()
        })
    }

    fn clear(&mut self, nexus: &Nexus) -> Vec<Notice> {
        let notices = self.tell(nexus, Sense::PREEMPTED);
        self.held = None;
        self.registrants.clear();
        self.generation = self.generation.wrapping_add(1);
        notices
    }

    fn preempt(
        &mut self,
        nexus: &Nexus,
        kind: Kind,
        keys: &Keys,
        abort: bool,
    ) -> Result<Vec<Notice>, Refused> {
        let victim = keys.action_key;
        let all_hold = self.held.as_ref().is_some_and(|h| h.kind.all_hold());
        let of_holder = self.held.as_ref().is_some_and(|h| {
            if h.kind.all_hold() {
                victim == 0
            } else {
                h.key == victim && victim != 0
            }
        });
        if victim == 0 && !all_hold {
            return Err(Refused::Sense(Sense::PARAMETER));
        }
        if victim != 0 && !of_holder && !self.registrants.iter().any(|r| r.key == victim) {
            return Err(Refused::Conflict);
        }
        let dies = |r: &Registrant| r.nexus != *nexus && (victim == 0 || r.key == victim);
        let mut notices: Vec<Notice> = self
            .registrants
            .iter()
            .filter(|r| dies(r))
            .map(|r| Notice {
                nexus: r.nexus.clone(),
                sense: Sense::REGISTRATION_PREEMPTED,
                abort,
            })
            .collect();
        self.registrants.retain(|r| !dies(r));
        if of_holder {
            let was = self.held.as_ref().map(|h| h.kind);
            self.held = Some(Held {
                kind,
                by: nexus.clone(),
                key: keys.key,
            });
            if was.is_some_and(|was| was != kind && was.registrants()) {
                notices.extend(self.tell(nexus, Sense::RELEASED));
            }
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(notices)
    }

    fn tell(&self, but: &Nexus, sense: Sense) -> Vec<Notice> {
        let others = self.registrants.iter().filter(|r| r.nexus != *but);
        others
            .map(|r| Notice {
                nexus: r.nexus.clone(),
                sense,
                abort: false,
            })
            .collect()
    }

    /// PERSISTENT RESERVE IN.
    #[must_use]
    pub fn report(&self, what: ReserveIn) -> Vec<u8> {
        let mut body = Vec::new();
        match what {
            ReserveIn::Keys => {
                for one in &self.registrants {
                    body.extend(one.key.to_be_bytes());
                }
            }
            ReserveIn::Reservation => {
                if let Some(held) = &self.held {
                    let key = if held.kind.all_hold() { 0 } else { held.key };
                    body.extend(key.to_be_bytes());
                    body.extend([0, 0, 0, 0, 0, held.kind.0, 0, 0]);
                }
            }
            // Length 8; types are told of (TMV): all six; ALLOW COMMANDS 0.
            ReserveIn::Capabilities => return vec![0, 8, 0, 0x80, 0xea, 0x01, 0, 0],
            ReserveIn::FullStatus => {
                for one in &self.registrants {
                    self.full(one, &mut body);
                }
            }
        }
        let mut data = self.generation.to_be_bytes().to_vec();
        data.extend(u32::try_from(body.len()).unwrap_or(0).to_be_bytes());
        data.extend(body);
        data
    }

    /// Full status descriptor (SPC-4 6.15.5) with an iSCSI transport id (SPC-4 7.6.4.6).
    fn full(&self, one: &Registrant, body: &mut Vec<u8>) {
        body.extend(one.key.to_be_bytes());
        body.extend([0; 4]);
        match &self.held {
            Some(held) if self.holds(&one.nexus) => body.extend([0x01, held.kind.0]),
            _ => body.extend([0, 0]),
        }
        body.extend([0, 0, 0, 0, 0, 1]);
        let mut name = one.nexus.as_bytes().to_vec();
        name.push(0);
        name.resize(name.len().next_multiple_of(4).max(20), 0);
        let length = u16::try_from(name.len()).unwrap_or(0).to_be_bytes();
        body.extend(u32::try_from(name.len() + 4).unwrap_or(0).to_be_bytes());
        body.extend([0x45, 0, length[0], length[1]]);
        body.extend(name);
    }
}

#[cfg(test)]
mod tests;
