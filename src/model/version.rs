//! Versions of images: what a machine of an image boots, and how a version comes and goes.
//!
//! A version is a volume of the stores, by the id of its row, and the snapshot `base` of it; the
//! first one has the id of its image. Pure: who follows what is said here and nowhere else.

use uuid::Uuid;

use super::{Timestamp, words};

words! {
    /// Whom a version is for.
    pub enum VersionStage {
        /// Machines that are pinned to it.
        Draft = "draft",
        /// Those of one ring.
        Canary = "canary",
        /// All others; each image has exactly one.
        Production = "production",
        /// Nobody any more, but who is pinned to it; it can be released again.
        Retired = "retired",
    }
}

impl VersionStage {
    /// What may become what; PostgreSQL refuses the rest, too (`dls_version_rules`).
    ///
    /// | from | to |
    /// |---|---|
    /// | draft | canary, production, retired |
    /// | canary | production, retired |
    /// | production | retired, by releasing another |
    /// | retired | canary, production |
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Draft, Self::Canary | Self::Production | Self::Retired)
                | (Self::Canary, Self::Production | Self::Retired)
                | (Self::Production, Self::Retired)
                | (Self::Retired, Self::Canary | Self::Production)
        )
    }

    /// True if machines boot it that nobody has pinned.
    #[must_use]
    pub const fn is_released(self) -> bool {
        matches!(self, Self::Canary | Self::Production)
    }
}

/// A row of `image_snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Version {
    /// Primary key, and the id of its volume.
    pub id: Uuid,
    /// Of which image.
    pub image_id: Uuid,
    /// Unique within the image.
    pub name: String,
    /// Whom it is for.
    pub stage: VersionStage,
    /// Whose canary it is.
    pub ring: Option<String>,
    /// Why it was made.
    pub description: Option<String>,
    /// Bytes that only it holds.
    pub size_bytes: i64,
    /// Bytes that it refers to, those that it shares included.
    pub referenced_bytes: i64,
    /// Who made it, as they said.
    pub author: Option<String>,
    /// The client whose disk it was made from.
    pub from_client: Option<String>,
    /// Made at.
    pub created_at: Timestamp,
    /// When it last became production other than by going back to it.
    pub released_at: Option<Timestamp>,
    /// When machines were sent back from it.
    pub returned_at: Option<Timestamp>,
    /// Why they were.
    pub reason: Option<String>,
    /// When it last became the canary of a ring.
    #[serde(default)]
    pub canary_at: Option<Timestamp>,
    /// A canary that is judged by itself: how many good boots release it to all.
    #[serde(default)]
    pub good_boots: Option<u32>,
}

impl Version {
    /// True for the one that came with the image.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.id == self.image_id
    }
}

/// The version that a machine boots next: the one it is pinned to, else the canary of its
/// ring, else production. A pin to what is not there counts for nothing.
#[must_use]
pub fn followed<'a, V: AsRef<Version>>(
    versions: &'a [V],
    pinned: Option<Uuid>,
    ring: Option<&str>,
) -> Option<&'a V> {
    let pinned = pinned.and_then(|id| versions.iter().find(|v| v.as_ref().id == id));
    let canary = || {
        versions.iter().find(|v| {
            let v = v.as_ref();
            v.stage == VersionStage::Canary && v.ring.is_some() && v.ring.as_deref() == ring
        })
    };
    let production = || {
        versions
            .iter()
            .find(|v| v.as_ref().stage == VersionStage::Production)
    };
    pinned.or_else(canary).or_else(production)
}

/// The version that production goes back to: the one released last before the present one,
/// but none that machines were sent back from.
#[must_use]
pub fn former<V: AsRef<Version>>(versions: &[V]) -> Option<&V> {
    let now = versions
        .iter()
        .find(|v| v.as_ref().stage == VersionStage::Production)?;
    let now = now.as_ref().released_at?;
    versions
        .iter()
        .filter(|v| {
            let v = v.as_ref();
            v.stage == VersionStage::Retired
                && v.returned_at.is_none()
                && v.released_at.is_some_and(|at| at < now)
        })
        .max_by_key(|v| v.as_ref().released_at)
}

words! {
    /// What a boot says of the version that it was of (see the view `version_boots`).
    pub enum BootVerdict {
        /// Not over.
        Open = "open",
        /// It came up.
        Good = "good",
        /// It did not come up, and its machine was on when it was given up.
        Failed = "failed",
        /// It did not come up, but its machine may have been switched off or started again by hand.
        Unclear = "unclear",
    }
}

/// A boot of a canary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanaryBoot {
    /// The boot.
    pub session: Uuid,
    /// Its client's host name.
    pub client: String,
    /// What it says.
    pub verdict: BootVerdict,
    /// Stage and cause, if it ended badly.
    pub why: Option<String>,
}

/// A canary that is judged by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    /// The version.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Its image's name.
    pub image: String,
    /// Whose canary it is.
    pub ring: String,
    /// Since when.
    pub since: Timestamp,
    /// How many good boots release it to all.
    pub wanted: u32,
    /// Its boots since then, oldest first.
    pub boots: Vec<CanaryBoot>,
}

/// What becomes of a canary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// It is not known yet.
    Wait,
    /// All machines of its image get it.
    Release,
    /// Its machines go back, for this reason.
    Return(String),
}

/// So many boots in a row of which nobody can say why they did not come up are no accident: a
/// kernel that dies before it has a network answers nothing, as a machine that was switched off.
const MOST_UNCLEAR: usize = 3;

impl Canary {
    /// One failed boot sends its machines back; so do three unclear ones in a row. Else the
    /// wanted number of good ones releases it.
    #[must_use]
    pub fn judge(&self) -> Judgement {
        let of = |verdict| move |boot: &&CanaryBoot| boot.verdict == verdict;
        let told = |boot: &CanaryBoot| {
            let why = boot.why.as_deref().unwrap_or("it did not come up");
            format!("client {}: {why} (session {})", boot.client, boot.session)
        };
        if let Some(failed) = self.boots.iter().find(of(BootVerdict::Failed)) {
            return Judgement::Return(told(failed));
        }
        if self.boots.iter().filter(of(BootVerdict::Good)).count() >= self.wanted as usize {
            return Judgement::Release;
        }
        let over = || {
            self.boots
                .iter()
                .rev()
                .filter(|b| b.verdict != BootVerdict::Open)
        };
        let unclear = over().take_while(of(BootVerdict::Unclear)).count();
        match over().next() {
            Some(last) if unclear >= MOST_UNCLEAR => Judgement::Return(format!(
                "{unclear} boots in a row did not come up; the last, {}",
                told(last)
            )),
            _ => Judgement::Wait,
        }
    }
}

impl AsRef<Self> for Version {
    fn as_ref(&self) -> &Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use VersionStage::{Canary, Draft, Production, Retired};

    fn version(n: u128, stage: VersionStage) -> Version {
        Version {
            id: Uuid::from_u128(n),
            image_id: Uuid::from_u128(1),
            name: format!("v{n}"),
            stage,
            ring: None,
            description: None,
            size_bytes: 0,
            referenced_bytes: 0,
            author: None,
            from_client: None,
            created_at: Timestamp::UNIX_EPOCH,
            released_at: None,
            returned_at: None,
            reason: None,
            canary_at: None,
            good_boots: None,
        }
    }

    #[test]
    fn a_canary_is_judged_by_its_boots() {
        use BootVerdict::{Failed, Good, Open, Unclear};
        let judged = |wanted, verdicts: &[BootVerdict]| {
            let boot = |(n, verdict): (usize, &BootVerdict)| CanaryBoot {
                session: Uuid::from_u128(n as u128),
                client: format!("pc-{n}"),
                verdict: *verdict,
                why: (*verdict != Good).then(|| format!("at stage {n}")),
            };
            let canary = super::Canary {
                id: Uuid::nil(),
                name: "v2".into(),
                image: "debian".into(),
                ring: "lab".into(),
                since: Timestamp::UNIX_EPOCH,
                wanted,
                boots: verdicts.iter().enumerate().map(boot).collect(),
            };
            match canary.judge() {
                Judgement::Wait => "wait".to_owned(),
                Judgement::Release => "release".to_owned(),
                Judgement::Return(why) => why.split(" (").next().unwrap_or("").to_owned(),
            }
        };
        for (wanted, boots, expected) in [
            (1, &[][..], "wait"),
            (1, &[Open], "wait"),
            (1, &[Good], "release"),
            (3, &[Good, Good], "wait"),
            (3, &[Good, Unclear, Good, Open, Good], "release"),
            (1, &[Good, Failed], "client pc-1: at stage 1"),
            (2, &[Failed, Good, Good], "client pc-0: at stage 0"),
            (2, &[Unclear; 2], "wait"),
            (2, &[Unclear, Unclear, Good, Unclear, Unclear], "wait"),
            (
                2,
                &[Good, Unclear, Unclear, Open, Unclear],
                "3 boots in a row did not come up; the last, client pc-4: at stage 4",
            ),
        ] {
            assert_eq!(judged(wanted, boots), expected, "{wanted} {boots:?}");
        }
    }

    fn canary(n: u128, ring: &str) -> Version {
        Version {
            ring: Some(ring.to_owned()),
            ..version(n, Canary)
        }
    }

    fn released(n: u128, stage: VersionStage, at: i64) -> Version {
        Version {
            released_at: Timestamp::from_timestamp(at, 0),
            ..version(n, stage)
        }
    }

    #[test]
    fn stages_go_one_way_and_come_back_from_retirement_only() {
        let allowed: Vec<(VersionStage, VersionStage)> = VersionStage::ALL
            .iter()
            .flat_map(|a| VersionStage::ALL.iter().map(move |b| (*a, *b)))
            .filter(|(a, b)| a.may_become(*b))
            .collect();
        assert_eq!(
            allowed,
            [
                (Draft, Canary),
                (Draft, Production),
                (Draft, Retired),
                (Canary, Production),
                (Canary, Retired),
                (Production, Retired),
                (Retired, Canary),
                (Retired, Production),
            ]
        );
    }

    #[test]
    fn a_pin_wins_over_a_ring_and_a_ring_over_production() {
        let all = [
            version(1, Retired),
            canary(2, "lab"),
            canary(3, "desk"),
            version(4, Draft),
            version(5, Production),
        ];
        let of = |pin: Option<u128>, ring| {
            let id = followed(&all, pin.map(Uuid::from_u128), ring).map(|v| v.id);
            id.map(|id| id.as_u128())
        };
        for (pin, ring, expected) in [
            (None, None, 5),
            (None, Some("lab"), 2),
            (None, Some("desk"), 3),
            (None, Some("other"), 5),
            (Some(4), None, 4),
            (Some(4), Some("lab"), 4),
            (Some(1), Some("lab"), 1),
            (Some(9), Some("lab"), 2),
            (Some(9), None, 5),
        ] {
            assert_eq!(of(pin, ring), Some(expected), "{pin:?} {ring:?}");
        }
        assert!(followed::<Version>(&[], None, None).is_none());
    }

    #[test]
    fn going_back_passes_over_what_was_bad_and_what_was_never_released() {
        let back = |all: &[Version]| former(all).map(|v| v.id.as_u128());
        let (first, now) = (released(1, Retired, 10), released(4, Production, 40));
        let middle = released(3, Retired, 30);
        let draft = version(5, Draft);
        assert_eq!(
            back(&[first.clone(), middle.clone(), now.clone(), draft.clone()]),
            Some(3)
        );
        let bad = Version {
            returned_at: Timestamp::from_timestamp(35, 0),
            ..middle
        };
        assert_eq!(back(&[first.clone(), bad.clone(), now]), Some(1));
        // What was released after the one that is gone back to is not "before".
        let now = released(1, Production, 10);
        assert_eq!(back(&[now, released(2, Retired, 20), draft]), None);
        assert_eq!(back(&[first, bad]), None, "nothing is in production");
    }
}
