//! Versions that come as streams of the store's own. What is there of one is the store's to
//! know, also after a crash; the note says what it was begun from. A stream that fails again and again
//! at the same place is given up, and the version comes block by block.

use uuid::Uuid;

use super::{Inbox, Incoming, Note, Offer, Place, Rejected};
use crate::replicate::content::{self, Beat};
use crate::replicate::wire::Refusal;
use crate::storage::{Arrived, Ingoing, Streams, Volume, VolumeError, Wanted};

/// Failures at one place until it is given up.
const TRIES: u32 = 3;

/// A stream on its way in.
#[derive(Debug)]
pub(super) struct Coming {
    pub(super) wanted: Wanted,
    /// What its sender is to go on with; empty for the beginning, nothing when all is there.
    pub(super) words: Option<String>,
    pipe: Option<Box<dyn Ingoing>>,
}

/// Where a stream failed last, and how often.
pub(super) type Stuck = (String, u32);

/// A failure that may pass: the sender tries again.
fn passing(error: &VolumeError) -> Rejected {
    let why = match error {
        VolumeError::NoSpace => Refusal::Full,
        _ => Refusal::Busy,
    };
    Rejected::new(why, error.to_string())
}

impl Inbox {
    fn streams(&self) -> Result<&dyn Streams, Rejected> {
        let none = || Rejected::new(Refusal::Confused, "this store takes no streams");
        self.store.streams().ok_or_else(none)
    }

    /// A stream failed that was begun, or gone on with, by these words.
    fn failed(&self, version: Uuid, words: &str) {
        let mut stuck = super::lock(&self.stuck);
        let (at, times) = stuck.entry(version).or_default();
        *times = if at == words { *times + 1 } else { 1 };
        words.clone_into(at);
    }

    fn is_stuck(&self, version: Uuid, arrived: &Arrived) -> bool {
        let words = match arrived {
            Arrived::Part(words) => words,
            Arrived::Nothing | Arrived::Whole(_) => "",
        };
        let stuck = super::lock(&self.stuck);
        let found = stuck.get(&version);
        found.is_some_and(|(at, times)| at == words && *times >= TRIES)
    }

    /// Makes a version of a stream that is all there.
    pub(super) fn keep_stream(&self, coming: &Coming) -> Result<(), Rejected> {
        Ok(self.streams()?.keep(&coming.wanted)?)
    }

    /// How a version is to come as a stream, with its note; nothing if it comes block by block.
    pub(super) fn stream_for(
        &self,
        offer: &Offer,
        note: Option<&Note>,
    ) -> Result<Option<(Note, Coming)>, Rejected> {
        let Some(streams) = self.store.streams() else {
            return Ok(None);
        };
        let arrived = streams.arrived(offer.version)?;
        let stuck = self.is_stuck(offer.version, &arrived);
        if stuck {
            tracing::warn!(version.id = %offer.version, "a stream fails again and again: the version comes block by block");
        }
        let usable = offer.point != 0 && !stuck;
        let fresh = |base: Option<(Uuid, u64)>| Wanted {
            version: offer.version,
            point: offer.point,
            size: offer.size,
            base,
        };
        if arrived != Arrived::Nothing {
            let begun = match note {
                Some(note) if usable => self.begun_from(streams, offer, note)?,
                _ => None,
            };
            let words = match &arrived {
                Arrived::Part(words) if words.len() > 1 => Some(Some(words.clone())),
                Arrived::Whole(point) if *point == offer.point => Some(None),
                _ => None,
            };
            if let (Some(base), Some(words), Some(note)) = (begun, words, note) {
                let through = if words.is_none() { offer.size } else { 0 };
                let coming = Coming {
                    wanted: fresh(base),
                    words,
                    pipe: None,
                };
                let note = Note {
                    through,
                    ..note.clone()
                };
                return Ok(Some((note, coming)));
            }
            streams.discard(offer.version)?;
        }
        // What came block by block goes on so.
        let begun = self.store.info(Volume::Image(offer.version))?.is_some();
        if !usable || begun {
            return Ok(None);
        }
        let mut base = None;
        for offered in offer.bases.iter().filter(|b| b.point != 0) {
            if streams.point(offered.version)? == Some(offered.point) {
                base = Some((offered.version, offered.point));
                break;
            }
        }
        if base.is_none() && self.base_for_blocks(offer)?.is_some() {
            // A difference is less than the whole.
            return Ok(None);
        }
        let note = Note {
            version: offer.version,
            image: offer.image,
            size: offer.size,
            base: base.map(|(version, _)| version),
            through: 0,
            sha256: None,
        };
        self.notes.write(&note)?;
        let coming = Coming {
            wanted: fresh(base),
            words: Some(String::new()),
            pipe: None,
        };
        Ok(Some((note, coming)))
    }

    /// What a stream was begun from, if that is still here and still offered.
    fn begun_from(
        &self,
        streams: &dyn Streams,
        offer: &Offer,
        note: &Note,
    ) -> Result<Option<Option<(Uuid, u64)>>, Rejected> {
        let Some(base) = note.base else {
            return Ok(Some(None));
        };
        let offered = offer.bases.iter().find(|b| b.version == base);
        let point = offered.map(|b| b.point).filter(|point| *point != 0);
        let same = match point {
            Some(point) => streams.point(base)?.filter(|here| *here == point),
            None => None,
        };
        Ok(same.map(|point| Some((base, point))))
    }
}

impl Incoming {
    /// The words that a stream is gone on with: empty for its beginning; nothing if no (more
    /// of a) stream is wanted.
    #[must_use]
    pub fn words(&self) -> Option<&str> {
        match &self.place {
            Place::Stream(coming) => coming.words.as_deref(),
            Place::Compared | Place::Blocks(_) => None,
        }
    }

    fn coming(&mut self) -> Result<(&Inbox, &mut Coming), Rejected> {
        match &mut self.place {
            Place::Stream(coming) => Ok((&self.claim.inbox, coming)),
            Place::Compared | Place::Blocks(_) => {
                let sentence = "no stream is wanted of this version";
                Err(Rejected::new(Refusal::Confused, sentence))
            }
        }
    }

    /// Takes more of a stream.
    ///
    /// # Errors
    /// As the store; it can be gone on with then.
    pub fn stream(&mut self, bytes: &[u8], beat: Beat<'_>) -> Result<(), Rejected> {
        let (inbox, coming) = self.coming()?;
        let pipe = match &mut coming.pipe {
            Some(pipe) => pipe,
            none => none.insert(inbox.streams()?.receive(&coming.wanted)?),
        };
        let written = pipe.write(bytes, beat);
        written.map_err(|error| {
            let words = coming.words.clone().unwrap_or_default();
            coming.pipe = None;
            inbox.failed(coming.wanted.version, &words);
            passing(&error)
        })
    }

    /// That was all of it; what is here now can be compared.
    ///
    /// # Errors
    /// As the store; it can be gone on with then.
    pub fn stream_ended(&mut self, beat: Beat<'_>) -> Result<(), Rejected> {
        let (inbox, coming) = self.coming()?;
        let finished = match coming.pipe.take() {
            Some(pipe) => pipe.finish(beat),
            None => Err(VolumeError::Damaged {
                what: "the stream".to_owned(),
                why: "there was nothing in it".to_owned(),
            }),
        };
        let version = coming.wanted.version;
        let arrived = match finished {
            Ok(()) => inbox.streams()?.arrived(version)?,
            Err(error) => {
                inbox.failed(version, &coming.words.clone().unwrap_or_default());
                return Err(passing(&error));
            }
        };
        if arrived != Arrived::Whole(coming.wanted.point) {
            let sentence = "the stream has ended, and the version is not there";
            return Err(Rejected::new(Refusal::Busy, sentence));
        }
        coming.words = None;
        super::lock(&inbox.stuck).remove(&version);
        Ok(())
    }

    /// Removes what there is of a stream: its sender can't go on with it.
    ///
    /// # Errors
    /// As the store.
    pub fn restart(&mut self) -> Result<(), Rejected> {
        let (inbox, coming) = self.coming()?;
        coming.pipe = None;
        inbox.streams()?.discard(coming.wanted.version)?;
        coming.words = Some(String::new());
        Ok(())
    }

    /// The hash of a stream that is all there.
    pub(super) fn hash_stream(
        inbox: &Inbox,
        coming: &Coming,
        beat: Beat<'_>,
    ) -> Result<[u8; 32], Rejected> {
        if coming.words.is_some() {
            let sentence = "the end came before the end of the stream";
            return Err(Rejected::new(Refusal::Confused, sentence));
        }
        let device = inbox.streams()?.read_arrived(&coming.wanted)?;
        Ok(content::hash_of(&*device, beat)?)
    }
}
