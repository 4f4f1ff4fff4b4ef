//! What is received, into the store: begun or gone on with, flushed and noted, compared, and
//! only then a version. Blocks; knows no connection and no catalog.
//!
//! A version is what has the snapshot `base`; that is made last, when the whole content, read
//! back from the store, has the hash that the sender read. Until then there is a volume without
//! it, which no machine gets, and a note that says how far it is. Order: note, volume, flush,
//! note, .., snapshot, note; the other way round when it goes. `stream`: the same by streams of
//! the store's own.

mod stream;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::content::{self, Beat};
use super::notes::{Note, Notes};
use super::wire::{Base, Refusal};
use crate::model::hex;
use crate::storage::{
    Access, BlockDevice, BlockError, Durability, SnapshotId, Storage, Volume, VolumeError,
};
use stream::{Coming, Stuck};

/// Why something is not received or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Of which kind.
    pub why: Refusal,
    /// In words.
    pub sentence: String,
}

impl Rejected {
    /// With a sentence.
    pub fn new(why: Refusal, sentence: impl Into<String>) -> Self {
        Self {
            why,
            sentence: sentence.into(),
        }
    }
}

impl From<VolumeError> for Rejected {
    fn from(error: VolumeError) -> Self {
        let why = match &error {
            VolumeError::NoSpace => Refusal::Full,
            VolumeError::Busy { .. } | VolumeError::Away(_) | VolumeError::Cancelled => {
                Refusal::Busy
            }
            _ => Refusal::Store,
        };
        Self::new(why, error.to_string())
    }
}

impl From<BlockError> for Rejected {
    fn from(error: BlockError) -> Self {
        VolumeError::from(error).into()
    }
}

impl From<std::io::Error> for Rejected {
    fn from(error: std::io::Error) -> Self {
        BlockError::from(error).into()
    }
}

/// Where versions arrive; shared by all connections.
#[derive(Debug)]
pub struct Inbox {
    store: Arc<dyn Storage>,
    notes: Notes,
    /// Versions that somebody works on now.
    busy: Mutex<HashSet<Uuid>>,
    /// Versions whose streams failed.
    stuck: Mutex<HashMap<Uuid, Stuck>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is offered.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The image.
    pub image: Uuid,
    /// The version.
    pub version: Uuid,
    /// Bytes of the disk.
    pub size: u64,
    /// Its point, if it can come as a stream; else 0.
    pub point: u64,
    /// What it may be sent as the difference to, best first.
    pub bases: Vec<Base>,
}

/// A version that somebody works on; let go of when dropped.
#[derive(Debug)]
struct Claim {
    inbox: Arc<Inbox>,
    version: Uuid,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.inbox.busy().remove(&self.version);
    }
}

/// A version on its way in.
#[derive(Debug)]
pub struct Incoming {
    /// Let go of before the claim.
    place: Place,
    claim: Claim,
    note: Note,
}

/// How a version comes.
#[derive(Debug)]
enum Place {
    /// It is whole already, and only compared.
    Compared,
    /// Block by block.
    Blocks(Arc<dyn BlockDevice>),
    /// As a stream of the store's own.
    Stream(Coming),
}

/// What a comparison found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is equal, and a version from now on.
    Verified,
    /// It has this hash instead, and is gone, unless machines had it already.
    Differs([u8; 32]),
}

impl Inbox {
    /// Over a store and its notes.
    #[must_use]
    pub fn new(store: Arc<dyn Storage>, notes: Notes) -> Arc<Self> {
        Arc::new(Self {
            store,
            notes,
            busy: Mutex::default(),
            stuck: Mutex::default(),
        })
    }

    fn busy(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        lock(&self.busy)
    }

    /// The notes.
    #[must_use]
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    fn claim(self: &Arc<Self>, version: Uuid) -> Result<Claim, Rejected> {
        if !self.busy().insert(version) {
            let sentence = "another connection works on this version";
            return Err(Rejected::new(Refusal::Busy, sentence));
        }
        Ok(Claim {
            inbox: self.clone(),
            version,
        })
    }

    /// Begins with a version, or goes on with it. Nothing else may make a volume of its name
    /// meanwhile: that it is not being imported here is for the caller to know.
    ///
    /// # Errors
    /// Why not.
    pub fn begin(self: &Arc<Self>, offer: &Offer) -> Result<Incoming, Rejected> {
        self.store.may_replicate()?;
        let claim = self.claim(offer.version)?;
        let (store, volume) = (&*self.store, Volume::Image(offer.version));
        let found = self.notes.read(offer.version)?;
        let fits = |note: &Note| (note.image, note.size) == (offer.image, offer.size);
        if content::is_whole(store, offer.version)? {
            let note = found.filter(fits).unwrap_or(Note {
                version: offer.version,
                image: offer.image,
                size: offer.size,
                base: None,
                through: offer.size,
                sha256: None,
            });
            return Ok(Incoming {
                claim,
                note: Note {
                    through: offer.size,
                    base: None,
                    ..note
                },
                place: Place::Compared,
            });
        }
        let found = found.filter(fits);
        if let Some((note, coming)) = self.stream_for(offer, found.as_ref())? {
            return Ok(Incoming {
                place: Place::Stream(coming),
                claim,
                note,
            });
        }
        if let Some(note) = found {
            let base_stays = match note.base {
                None => true,
                Some(base) => {
                    let offered = offer.bases.iter().any(|b| b.version == base && b.whole);
                    offered && self.fits(base, offer.size)?
                }
            };
            let there = store.info(volume)?.is_some_and(|i| i.size == offer.size);
            if base_stays && there {
                return Ok(Incoming {
                    place: Place::Blocks(store.open(volume, Access::Write)?),
                    claim,
                    note,
                });
            }
        }
        store.destroy(volume)?;
        let base = self.base_for_blocks(offer)?;
        let note = Note {
            version: offer.version,
            image: offer.image,
            size: offer.size,
            base,
            through: 0,
            sha256: None,
        };
        self.notes.write(&note)?;
        match base {
            Some(base) => store.clone_volume(&SnapshotId::base(base), volume)?,
            None => store.create(volume, offer.size)?,
        }
        Ok(Incoming {
            place: Place::Blocks(store.open(volume, Access::Write)?),
            claim,
            note,
        })
    }

    /// True if a version is whole here, and of that size.
    fn fits(&self, version: Uuid, size: u64) -> Result<bool, VolumeError> {
        let info = self.store.info(Volume::Image(version))?;
        Ok(info.is_some_and(|i| i.size == size) && content::is_whole(&*self.store, version)?)
    }

    /// What of an offer's bases both sides can compare with.
    fn base_for_blocks(&self, offer: &Offer) -> Result<Option<Uuid>, VolumeError> {
        for base in offer.bases.iter().filter(|b| b.whole) {
            if self.fits(base.version, offer.size)? {
                return Ok(Some(base.version));
            }
        }
        Ok(None)
    }

    /// Removes what is here of a version, whole or not, and its note.
    ///
    /// # Errors
    /// `Busy` while machines use it or somebody works on it.
    pub fn remove(self: &Arc<Self>, version: Uuid) -> Result<(), Rejected> {
        let _claim = self.claim(version)?;
        self.clear(version)
    }

    /// The same for a version that others keep: where the store can, it remembers it as what
    /// later ones may be sent from.
    ///
    /// # Errors
    /// As [`Inbox::remove`].
    pub fn leave_to_others(self: &Arc<Self>, version: Uuid) -> Result<(), Rejected> {
        let _claim = self.claim(version)?;
        if let Some(streams) = self.store.streams()
            && let Err(error) = streams.remember(version)
        {
            tracing::warn!(version.id = %version, %error, "later versions can't be sent from this one");
        }
        self.clear(version)
    }

    fn clear(&self, version: Uuid) -> Result<(), Rejected> {
        if let Some(streams) = self.store.streams() {
            streams.discard(version)?;
        }
        lock(&self.stuck).remove(&version);
        self.store.destroy(Volume::Image(version))?;
        Ok(self.notes.remove(version)?)
    }
}

impl Incoming {
    /// The version that it began from.
    #[must_use]
    pub fn base(&self) -> Option<Uuid> {
        self.note.base
    }

    /// All below this offset is there and flushed.
    #[must_use]
    pub fn through(&self) -> u64 {
        self.note.through
    }

    /// The version.
    #[must_use]
    pub fn version(&self) -> Uuid {
        self.note.version
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> Uuid {
        self.note.image
    }

    fn device(&self) -> Result<&dyn BlockDevice, Rejected> {
        match &self.place {
            Place::Blocks(device) => Ok(&**device),
            Place::Compared | Place::Stream(_) => {
                let sentence = "nothing more is wanted of this version";
                Err(Rejected::new(Refusal::Confused, sentence))
            }
        }
    }

    /// Writes content.
    ///
    /// # Errors
    /// As the store.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Rejected> {
        self.device()?
            .write_at(offset, bytes, Durability::Volatile)?;
        Ok(())
    }

    /// Writes zeroes.
    ///
    /// # Errors
    /// As the store.
    pub fn zero(&self, offset: u64, length: u64) -> Result<(), Rejected> {
        self.device()?
            .write_zeroes(offset, length, false, Durability::Volatile)?;
        Ok(())
    }

    /// Makes all that was written durable, and then the note that says so.
    ///
    /// # Errors
    /// As the store.
    pub fn sync(&mut self, through: u64) -> Result<(), Rejected> {
        // A stream is flushed by who takes it.
        let Place::Blocks(device) = &self.place else {
            return Ok(());
        };
        device.flush()?;
        self.note.through = through;
        Ok(self.claim.inbox.notes.write(&self.note)?)
    }

    /// Reads all of it back and compares it with the hash that its sender told.
    ///
    /// # Errors
    /// As the store; it can be gone on with then.
    pub fn finish(mut self, expected: [u8; 32], beat: Beat<'_>) -> Result<Verdict, Rejected> {
        let inbox = self.claim.inbox.clone();
        let version = self.note.version;
        let place = std::mem::replace(&mut self.place, Place::Compared);
        let found = match &place {
            Place::Blocks(device) => {
                device.flush()?;
                content::hash(&*inbox.store, version, beat)?
            }
            Place::Stream(coming) => Self::hash_stream(&inbox, coming, beat)?,
            Place::Compared => content::hash(&*inbox.store, version, beat)?,
        };
        if found != expected {
            if !matches!(place, Place::Compared) {
                drop(place);
                inbox.clear(version)?;
            }
            return Ok(Verdict::Differs(found));
        }
        match place {
            Place::Compared => {}
            Place::Blocks(device) => {
                drop(device);
                inbox.store.snapshot(&SnapshotId::base(version))?;
            }
            Place::Stream(coming) => inbox.keep_stream(&coming)?,
        }
        self.note.through = self.note.size;
        self.note.sha256 = Some(hex(&found));
        inbox.notes.write(&self.note)?;
        Ok(Verdict::Verified)
    }

    /// Gives up, and removes what was received.
    ///
    /// # Errors
    /// As the store.
    pub fn abandon(mut self) -> Result<(), Rejected> {
        match std::mem::replace(&mut self.place, Place::Compared) {
            Place::Compared => return Ok(()),
            other => drop(other),
        }
        self.claim.inbox.clear(self.note.version)
    }
}

#[cfg(test)]
mod tests;
