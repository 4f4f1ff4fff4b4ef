//! What is kept of a volume beside its layers: a small file that names them. It is replaced
//! as a whole or not at all.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::storage::directory::sync_folder;
use crate::storage::{SnapshotId, SnapshotName, Volume};

/// The name of a layer's file; nothing from outside ever is part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LayerName {
    id: Uuid,
    pub(super) form: Form,
}

/// What a layer's file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Form {
    /// Bytes as they are.
    Raw,
    /// Copy on write.
    Qcow2,
}

impl Form {
    /// Ending of the file's name, and QEMU's word.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl LayerName {
    /// A name that no other layer has.
    pub(super) fn fresh(form: Form) -> Self {
        let id = Uuid::new_v4();
        Self { id, form }
    }

    /// Of a file.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (id, form) = name.split_once('.')?;
        let form = match form {
            "raw" => Form::Raw,
            "qcow2" => Form::Qcow2,
            _ => return None,
        };
        let id = Uuid::try_parse(id).ok()?;
        let parsed = Self { id, form };
        (parsed.file() == name).then_some(parsed)
    }

    /// The file's name.
    pub(super) fn file(&self) -> String {
        format!("{}.{}", self.id, self.form.as_str())
    }

    /// Its journal's name.
    pub(super) fn journal(&self) -> String {
        format!("{}.journal", self.id)
    }
}

/// A volume's layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) volume: Volume,
    /// Bytes.
    pub(super) size: u64,
    /// The layer that is written.
    pub(super) top: LayerName,
    /// Oldest first; each with the layer that it froze. One that was removed has no name, and
    /// goes when nothing lies upon its layer any more.
    pub(super) snapshots: Vec<(SnapshotName, LayerName)>,
    /// What its lowest layer lies upon.
    pub(super) origin: Option<SnapshotId>,
    /// It has reached the disk with its layers. What has not, and is found broken in another
    /// boot of the kernel, never was.
    pub(super) settled: bool,
    /// The boot of the kernel in which it was made.
    pub(super) boot: [u8; 16],
}

/// As it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    volume: String,
    size: u64,
    top: String,
    snapshots: Vec<(String, String)>,
    origin: Option<(String, String)>,
    settled: bool,
    boot: Uuid,
}

/// Why a manifest can't be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// Empty, or nothing but zeroes: a power cut came before its first flush.
    NeverWritten,
    /// Anything else.
    Damaged,
}

/// Reads what `Volume` displays as.
pub(super) fn parse_volume(text: &str) -> Option<Volume> {
    let mut parts = text.split('/');
    let kind = parts.next()?;
    let mut id = || parts.next().and_then(|id| Uuid::try_parse(id).ok());
    let volume = match kind {
        "image" => Volume::Image(id()?),
        "session" => Volume::Session(id()?),
        "personal" => Volume::Personal {
            client: id()?,
            image: id()?,
        },
        _ => return None,
    };
    (volume.to_string() == text).then_some(volume)
}

/// The name of a volume's manifest.
pub(super) fn file_name(volume: Volume) -> String {
    format!("{}.json", volume.to_string().replace('/', "."))
}

/// The volume of a manifest's name.
pub(super) fn volume_of(file_name: &str) -> Option<Volume> {
    parse_volume(&file_name.strip_suffix(".json")?.replace('.', "/"))
}

impl Manifest {
    /// Its own layers, lowest first.
    pub(super) fn layers(&self) -> impl Iterator<Item = LayerName> {
        let frozen = self.snapshots.iter().map(|(_, layer)| *layer);
        frozen.chain([self.top])
    }

    /// The names of its snapshots, oldest first.
    pub(super) fn names(&self) -> impl Iterator<Item = &SnapshotName> {
        let names = self.snapshots.iter().map(|(name, _)| name);
        names.filter(|name| **name != SnapshotName::nameless())
    }

    /// The layer that a snapshot froze.
    pub(super) fn frozen(&self, name: &SnapshotName) -> Option<LayerName> {
        let found = self.snapshots.iter().find(|(n, _)| n == name);
        found.map(|(_, layer)| *layer)
    }

    fn encode(&self) -> Vec<u8> {
        let written = Written {
            version: 1,
            volume: self.volume.to_string(),
            size: self.size,
            top: self.top.file(),
            snapshots: self
                .snapshots
                .iter()
                .map(|(name, layer)| (name.as_str().to_owned(), layer.file()))
                .collect(),
            origin: self
                .origin
                .as_ref()
                .map(|o| (o.volume.to_string(), o.name.as_str().to_owned())),
            settled: self.settled,
            boot: Uuid::from_bytes(self.boot),
        };
        let mut bytes = serde_json::to_vec(&written).unwrap_or_default();
        let sum = crc32c::crc32c(&bytes);
        bytes.extend(format!("\n{sum:08x}\n").bytes());
        bytes
    }

    /// Reads what was written.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        if bytes.iter().all(|b| *b == 0) {
            return Err(Unreadable::NeverWritten);
        }
        Self::read(bytes).ok_or(Unreadable::Damaged)
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (json, sum) = text.split_once('\n')?;
        if sum != format!("{:08x}\n", crc32c::crc32c(json.as_bytes())) {
            return None;
        }
        let written: Written = serde_json::from_str(json).ok()?;
        if written.version != 1 {
            return None;
        }
        let snapshots = written.snapshots.iter().map(|(name, layer)| {
            let name = match name.as_str() {
                "" => SnapshotName::nameless(),
                name => name.parse().ok()?,
            };
            Some((name, LayerName::parse(layer)?))
        });
        let origin = match written.origin {
            None => None,
            Some((volume, name)) => Some(SnapshotId {
                volume: parse_volume(&volume)?,
                name: name.parse().ok()?,
            }),
        };
        Some(Self {
            volume: parse_volume(&written.volume)?,
            size: written.size,
            top: LayerName::parse(&written.top)?,
            snapshots: snapshots.collect::<Option<_>>()?,
            origin,
            settled: written.settled,
            boot: *written.boot.as_bytes(),
        })
    }

    /// Puts it in its place in the folder `volumes`, by way of the folder `staging`; with
    /// `settled` it is on the disk then.
    pub(super) fn store(&self, staging: &Path, volumes: &Path) -> io::Result<()> {
        let from = staging.join(Uuid::new_v4().to_string());
        let done = self.store_by(&from, volumes);
        if done.is_err() {
            let _ = fs::remove_file(&from);
        }
        done
    }

    fn store_by(&self, from: &Path, volumes: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o640)
            .open(from)?;
        file.write_all(&self.encode())?;
        if self.settled {
            file.sync_all()?;
        }
        fs::rename(from, volumes.join(file_name(self.volume)))?;
        if self.settled {
            sync_folder(volumes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_come_back_and_damage_is_told_from_a_power_cut() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let volume = Volume::Personal {
            client: a,
            image: b,
        };
        let manifest = Manifest {
            volume,
            size: 4096,
            top: LayerName::fresh(Form::Qcow2),
            snapshots: vec![(SnapshotName::base(), LayerName::fresh(Form::Raw))],
            origin: Some(SnapshotId::base(b)),
            settled: true,
            boot: [7; 16],
        };
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes), Ok(manifest));
        assert_eq!(volume_of(&file_name(volume)), Some(volume));
        assert_eq!(Manifest::decode(b""), Err(Unreadable::NeverWritten));
        assert_eq!(Manifest::decode(&[0; 99]), Err(Unreadable::NeverWritten));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(Manifest::decode(&changed), Err(Unreadable::Damaged), "{at}");
            assert!(Manifest::decode(&bytes[..at]).is_err());
        }
        for bad in ["../x.raw", "a.raw", ".raw", "x", "/etc/passwd"] {
            assert_eq!(LayerName::parse(bad), None);
        }
    }
}
