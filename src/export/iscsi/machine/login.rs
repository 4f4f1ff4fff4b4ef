//! The login phase (RFC 7143 section 6): a state machine of requests and answers.
//!
//! ```text
//! (first request) -> security (CSG 0) --CHAP proven, T--> operational (CSG 1) --T--> ready
//!                 \-> operational, only where a login without CHAP is let in
//! any state, any fault -> refused
//! ```
//! It is given random bytes and a way to secrets, and decides; it never says ready before the
//! initiator has proven its name, whatever stages and bits the initiator sends. Everything
//! that an initiator can make grow is bounded: text, pairs, unknown keys, requests.

use super::super::wire::text::{Text, binary, number, pairs, to_hex};
use super::super::wire::{Header, LONGEST_LOGIN, Request};
use super::chap::{Algorithm, LONGEST};
use super::keys::{Params, Understood};

/// Requests of one login.
const MOST_REQUESTS: u32 = 32;
/// Keys of one login that we don't know, each answered by `NotUnderstood`.
const MOST_UNKNOWN: u32 = 16;
/// Bytes of an iSCSI name (RFC 7143 section 4.2.7.2).
const LONGEST_NAME: usize = 223;

const TRANSIT: u8 = 0x80;
const CONTINUE: u8 = 0x40;

/// Random bytes for one request, from the system's generator.
#[derive(Clone, Copy)]
pub struct Fresh {
    /// CHAP identifier.
    pub id: u8,
    /// CHAP challenge.
    pub challenge: [u8; 32],
}

/// The secrets that go with a CHAP name.
#[derive(Clone)]
pub struct Secrets {
    /// What the initiator proves.
    pub machine: String,
    /// Our name in mutual CHAP.
    pub server_name: String,
    /// What we prove.
    pub server: String,
}

/// Who knows secrets.
pub trait Door {
    /// True if logins without CHAP are let in.
    fn open_to_all(&self) -> bool;
    /// The secrets of a CHAP name.
    fn secrets(&self, name: &str) -> Option<Secrets>;
}

/// What kind of session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKind {
    /// For SendTargets only.
    Discovery,
    /// For a disk.
    Normal,
}

/// Why a login was refused: the status that the initiator reads, and a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Against the rules of the login phase.
    Initiator,
    /// Proof missing or wrong.
    Authentication,
    /// A version of iSCSI that is not 0.
    Version,
    /// A session has one connection here.
    TooManyConnections,
    /// A name that must be there is not.
    MissingParameter,
    /// Neither `Normal` nor `Discovery`.
    SessionType,
    /// No session with that handle.
    NoSession,
    /// Something else than a login request.
    DuringLogin,
}

impl Refusal {
    /// Status class and detail (RFC 7143 section 11.13.5).
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Initiator => 0x0200,
            Self::Authentication => 0x0201,
            Self::Version => 0x0205,
            Self::TooManyConnections => 0x0206,
            Self::MissingParameter => 0x0207,
            Self::SessionType => 0x0209,
            Self::NoSession => 0x020a,
            Self::DuringLogin => 0x020b,
        }
    }

    /// Metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Initiator => "initiator_error",
            Self::Authentication => "authentication",
            Self::Version => "version",
            Self::TooManyConnections => "too_many_connections",
            Self::MissingParameter => "missing_parameter",
            Self::SessionType => "session_type",
            Self::NoSession => "no_session",
            Self::DuringLogin => "not_a_login",
        }
    }
}

/// An answer to a login request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Transit bit and stages.
    pub flags: u8,
    /// The text.
    pub text: Text,
}

/// What a request leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send it and wait for the next request.
    Reply(Reply),
    /// All is agreed. The reply is to be sent once the disk is there.
    Ready(Box<Ready>),
    /// Send the status and close.
    Refuse(Refusal),
}

/// A login that is done but for its last answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The last answer.
    pub reply: Reply,
    /// What kind of session.
    pub kind: SessionKind,
    /// Initiator session id.
    pub isid: [u8; 6],
    /// The connection's id, from the initiator.
    pub cid: u16,
    /// The initiator's name; proves nothing.
    pub initiator: String,
    /// The target asked for; empty in a discovery session.
    pub target: String,
    /// The CHAP name that was proven; `None` only where a login without is let in.
    pub proven: Option<String>,
    /// What was agreed.
    pub params: Params,
}

#[derive(Clone)]
enum Auth {
    /// No method was spoken of yet.
    Open,
    /// No proof is asked for.
    Waived,
    /// CHAP was chosen.
    Chosen,
    /// A challenge is out.
    Challenged(Algorithm, u8, Vec<u8>),
    /// By that name.
    Proven(String),
}

/// One login under way.
pub struct Login {
    stage: Option<u8>,
    requests: u32,
    unknown: u32,
    seen: u64,
    continued: Vec<u8>,
    isid: [u8; 6],
    cid: u16,
    initiator: Option<String>,
    target: Option<String>,
    kind: Option<SessionKind>,
    declared: bool,
    told_group: bool,
    auth: Auth,
    params: Params,
}

/// CHAP keys of one request.
#[derive(Default)]
struct ChapText<'a> {
    algorithms: Option<&'a str>,
    name: Option<&'a str>,
    response: Option<&'a str>,
    id: Option<&'a str>,
    challenge: Option<&'a str>,
}

impl Default for Login {
    fn default() -> Self {
        Self::new()
    }
}

impl Login {
    /// Before the first request.
    #[must_use]
    pub fn new() -> Self {
        Self {
            stage: None,
            requests: 0,
            unknown: 0,
            seen: 0,
            continued: Vec::new(),
            isid: [0; 6],
            cid: 0,
            initiator: None,
            target: None,
            kind: None,
            declared: false,
            told_group: false,
            auth: Auth::Open,
            params: Params::default(),
        }
    }

    /// Takes a request.
    #[must_use]
    pub fn step(&mut self, header: &Header, data: &[u8], fresh: &Fresh, door: &dyn Door) -> Step {
        match self.judge(header, data, fresh, door) {
            Ok(step) => step,
            Err(refusal) => Step::Refuse(refusal),
        }
    }

    fn judge(
        &mut self,
        header: &Header,
        data: &[u8],
        fresh: &Fresh,
        door: &dyn Door,
    ) -> Result<Step, Refusal> {
        let flags = self.form(header)?;
        let stage = flags >> 2 & 3;
        let room = LONGEST_LOGIN.checked_sub(self.continued.len());
        if room.is_none_or(|room| data.len() > room) {
            return Err(Refusal::Initiator);
        }
        if flags & CONTINUE != 0 {
            // Half a text: kept, and answered by nothing (RFC 7143 section 6.2).
            if flags & TRANSIT != 0 {
                return Err(Refusal::Initiator);
            }
            self.continued.extend_from_slice(data);
            return Ok(Step::Reply(Reply {
                flags: stage << 2,
                text: Text::default(),
            }));
        }
        let mut held = std::mem::take(&mut self.continued);
        let text = if held.is_empty() {
            data
        } else {
            held.extend_from_slice(data);
            &held
        };
        let pairs = pairs(text).map_err(|_| Refusal::Initiator)?;
        let mut out = Text::default();
        let mut chap = ChapText::default();
        for (key, value) in pairs {
            self.pair(stage, key, value, &mut chap, &mut out, door)?;
        }
        self.names()?;
        self.authenticate(&chap, fresh, door, &mut out)?;
        if !self.told_group && self.kind() == SessionKind::Normal {
            self.told_group = true;
            out.push("TargetPortalGroupTag", "1");
        }
        if stage == 1 && !self.declared {
            self.declared = true;
            Params::declare(&mut out);
        }
        self.go_on(flags, out, door)
    }

    /// What must hold of every request.
    fn form(&mut self, header: &Header) -> Result<u8, Refusal> {
        if header.request() != Some(Request::Login) || !header.immediate() {
            return Err(Refusal::DuringLogin);
        }
        self.requests += 1;
        if self.requests > MOST_REQUESTS {
            return Err(Refusal::Initiator);
        }
        // Versions that it can do: from byte 3 to byte 2; we do 0.
        if header.0[3] > 0 {
            return Err(Refusal::Version);
        }
        let flags = header.flags();
        let (stage, next) = (flags >> 2 & 3, flags & 3);
        let isid = header.0[8..14].first_chunk::<6>().copied();
        let isid = isid.unwrap_or_default();
        let cid = u16::from_be_bytes([header.0[20], header.0[21]]);
        match self.stage {
            None => {
                if header.0[14..16] != [0, 0] {
                    return Err(Refusal::NoSession);
                }
                (self.isid, self.cid) = (isid, cid);
                self.stage = Some(stage);
            }
            Some(current) if current != stage => return Err(Refusal::Initiator),
            Some(_) if (self.isid, self.cid) != (isid, cid) => return Err(Refusal::Initiator),
            Some(_) => {}
        }
        let leads_on = matches!((stage, next), (0, 1 | 3) | (1, 3));
        if stage > 1 || (flags & TRANSIT != 0 && !leads_on) {
            return Err(Refusal::Initiator);
        }
        Ok(flags)
    }

    fn kind(&self) -> SessionKind {
        self.kind.unwrap_or(SessionKind::Normal)
    }

    /// Notes that a key was there; twice is against RFC 7143 section 6.2.
    fn once(&mut self, number: u32) -> Result<(), Refusal> {
        let bit = 1_u64 << number;
        if self.seen & bit != 0 {
            return Err(Refusal::Initiator);
        }
        self.seen |= bit;
        Ok(())
    }

    fn pair<'a>(
        &mut self,
        stage: u8,
        key: &str,
        value: &'a str,
        chap: &mut ChapText<'a>,
        out: &mut Text,
        door: &dyn Door,
    ) -> Result<(), Refusal> {
        let security = stage == 0;
        match key {
            "InitiatorName" => {
                self.once(32)?;
                self.initiator = Some(name(value)?);
            }
            "TargetName" => {
                self.once(33)?;
                self.target = Some(name(value)?);
            }
            "SessionType" => {
                self.once(34)?;
                self.kind = Some(match value {
                    "Normal" => SessionKind::Normal,
                    "Discovery" => SessionKind::Discovery,
                    _ => return Err(Refusal::SessionType),
                });
            }
            "InitiatorAlias" => self.once(35)?,
            "AuthMethod" if security => {
                self.once(36)?;
                self.method(value, out, door)?;
            }
            "CHAP_A" if security => {
                self.once(37)?;
                chap.algorithms = Some(value);
            }
            "CHAP_N" if security => {
                self.once(38)?;
                chap.name = Some(value);
            }
            "CHAP_R" if security => {
                self.once(39)?;
                chap.response = Some(value);
            }
            "CHAP_I" if security => {
                self.once(40)?;
                chap.id = Some(value);
            }
            "CHAP_C" if security => {
                self.once(41)?;
                chap.challenge = Some(value);
            }
            // In the wrong stage, or a target's own (RFC 7143 section 13).
            "AuthMethod"
            | "CHAP_A"
            | "CHAP_N"
            | "CHAP_R"
            | "CHAP_I"
            | "CHAP_C"
            | "SendTargets"
            | "TargetAddress"
            | "TargetAlias"
            | "TargetPortalGroupTag" => {
                return Err(Refusal::Initiator);
            }
            // Nothing of a stranger's is weighed before it has shown who it is.
            _ if security => self.not_understood(key, out)?,
            _ => match self.params.take(key, value, out) {
                Understood::Key(number) => self.once(number)?,
                Understood::No => self.not_understood(key, out)?,
            },
        }
        Ok(())
    }

    fn not_understood(&mut self, key: &str, out: &mut Text) -> Result<(), Refusal> {
        self.unknown += 1;
        if self.unknown > MOST_UNKNOWN {
            return Err(Refusal::Initiator);
        }
        out.push(key, "NotUnderstood");
        Ok(())
    }

    fn method(&mut self, value: &str, out: &mut Text, door: &dyn Door) -> Result<(), Refusal> {
        let offered = |method: &str| value.split(',').any(|v| v.trim() == method);
        if door.open_to_all() && offered("None") {
            self.auth = Auth::Waived;
            out.push("AuthMethod", "None");
        } else if offered("CHAP") {
            self.auth = Auth::Chosen;
            out.push("AuthMethod", "CHAP");
        } else {
            return Err(Refusal::Authentication);
        }
        Ok(())
    }

    /// The names that the first whole text must have (RFC 7143 section 6.3).
    fn names(&self) -> Result<(), Refusal> {
        let target = self.kind() == SessionKind::Discovery || self.target.is_some();
        if self.initiator.is_none() || !target {
            return Err(Refusal::MissingParameter);
        }
        Ok(())
    }

    fn authenticate(
        &mut self,
        chap: &ChapText<'_>,
        fresh: &Fresh,
        door: &dyn Door,
        out: &mut Text,
    ) -> Result<(), Refusal> {
        if let Some(list) = chap.algorithms {
            if !matches!(self.auth, Auth::Chosen) {
                return Err(Refusal::Initiator);
            }
            let algorithm = Algorithm::choose(list).ok_or(Refusal::Authentication)?;
            let challenge = fresh.challenge[..algorithm.length()].to_vec();
            out.push("CHAP_A", algorithm.number());
            out.push("CHAP_I", &fresh.id.to_string());
            out.push("CHAP_C", &to_hex(&challenge));
            self.auth = Auth::Challenged(algorithm, fresh.id, challenge);
        }
        match (chap.name, chap.response) {
            (None, None) if chap.id.is_none() && chap.challenge.is_none() => Ok(()),
            (Some(name), Some(response)) if chap.algorithms.is_none() => {
                self.prove(name, response, chap, door, out)
            }
            _ => Err(Refusal::Initiator),
        }
    }

    fn prove(
        &mut self,
        name: &str,
        response: &str,
        chap: &ChapText<'_>,
        door: &dyn Door,
        out: &mut Text,
    ) -> Result<(), Refusal> {
        let Auth::Challenged(algorithm, id, challenge) = &self.auth else {
            return Err(Refusal::Initiator);
        };
        let (algorithm, id) = (*algorithm, *id);
        let response = binary(response, LONGEST).ok_or(Refusal::Initiator)?;
        let known = door.secrets(name);
        // A name that nobody has takes the same time as one with a wrong secret.
        let secret = known.as_ref().map_or("no such name", |s| &s.machine);
        let proven = algorithm.proves(id, secret, challenge, &response);
        let Some(secrets) = known.filter(|_| proven) else {
            return Err(Refusal::Authentication);
        };
        match (chap.id, chap.challenge) {
            (None, None) => {}
            (Some(their_id), Some(theirs)) => {
                let their_id = number(their_id).and_then(|n| u8::try_from(n).ok());
                let their_id = their_id.ok_or(Refusal::Initiator)?;
                let theirs = binary(theirs, LONGEST).ok_or(Refusal::Initiator)?;
                // Our own challenge sent back (RFC 7143 section 12.1.3), or secrets that are
                // the same both ways: the answer would prove what the asker should.
                if theirs == *challenge || secrets.machine == secrets.server {
                    return Err(Refusal::Authentication);
                }
                let answer = algorithm.response(their_id, &secrets.server, &theirs);
                out.push("CHAP_N", &secrets.server_name);
                out.push("CHAP_R", &to_hex(&answer));
            }
            _ => return Err(Refusal::Initiator),
        }
        self.auth = Auth::Proven(name.to_owned());
        Ok(())
    }

    fn go_on(&mut self, flags: u8, text: Text, door: &dyn Door) -> Result<Step, Refusal> {
        let (stage, next) = (flags >> 2 & 3, flags & 3);
        let waived = matches!(self.auth, Auth::Open | Auth::Waived) && door.open_to_all();
        let proven = matches!(self.auth, Auth::Proven(_));
        if !proven && !waived {
            // No way round the security stage, and none out of it without speaking of a method.
            let silent = matches!(self.auth, Auth::Open) && flags & TRANSIT != 0;
            if stage == 1 || silent {
                return Err(Refusal::Authentication);
            }
            // A T bit that comes too early is not a fault: iPXE sets it in mutual CHAP.
            return Ok(Step::Reply(Reply {
                flags: stage << 2,
                text,
            }));
        }
        if flags & TRANSIT == 0 {
            return Ok(Step::Reply(Reply {
                flags: stage << 2,
                text,
            }));
        }
        self.stage = Some(next);
        let reply = Reply {
            flags: TRANSIT | stage << 2 | next,
            text,
        };
        if next != 3 {
            return Ok(Step::Reply(reply));
        }
        self.params.settle();
        let proven = match &self.auth {
            Auth::Proven(name) => Some(name.clone()),
            _ => None,
        };
        Ok(Step::Ready(Box::new(Ready {
            reply,
            kind: self.kind(),
            isid: self.isid,
            cid: self.cid,
            initiator: self.initiator.clone().unwrap_or_default(),
            target: self.target.clone().unwrap_or_default(),
            proven,
            params: self.params,
        })))
    }
}

/// An iSCSI name: bounded, printable, lower case (RFC 7143 section 4.2.7.2).
fn name(value: &str) -> Result<String, Refusal> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-.:_".contains(&b) || b >= 0x80;
    if value.is_empty() || value.len() > LONGEST_NAME || !value.bytes().all(allowed) {
        return Err(Refusal::Initiator);
    }
    Ok(value.to_lowercase())
}

#[cfg(test)]
mod tests;
