//! The store beside the catalog: what is stored for nobody, and what is not stored that should
//! be. It only tells; which side is right is for a person to say.

use std::cmp::Reverse;
use std::collections::HashSet;

use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::cache::Snapshot;
use crate::model::ImageKind;
use crate::storage::{Directory, Storage, Volume, VolumeInfo};

/// What is stored for nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// A disk.
    Disk(Volume),
    /// Kernel and initrds of an image.
    Files(Uuid),
}

impl Serialize for What {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Disk(volume) => serializer.collect_str(&format_args!("disk {volume}")),
            Self::Files(id) => serializer.collect_str(&format_args!("files {id}")),
        }
    }
}

/// One of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Orphan {
    pub(super) what: What,
    /// Below the storage root.
    pub(super) path: String,
    /// Bytes it takes, where known.
    pub(super) used_bytes: Option<u64>,
    /// Whose it was.
    reason: &'static str,
}

/// An image that misses something here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Missing {
    id: Uuid,
    name: String,
    /// `disk` or `files`.
    what: &'static str,
}

/// How store and catalog stand to each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Stock {
    pub(super) orphans: Vec<Orphan>,
    missing: Vec<Missing>,
}

/// Compares; images in `busy` are being made or removed and are left out.
pub(super) fn compare(
    catalog: &Snapshot,
    files: &[Uuid],
    volumes: &[VolumeInfo],
    busy: &[Uuid],
) -> Stock {
    let mut stock = Stock::default();
    let gone = |id: Uuid| !busy.contains(&id) && catalog.image(id).is_none();
    for id in files.iter().filter(|id| gone(**id)) {
        stock.orphans.push(Orphan {
            what: What::Files(*id),
            path: format!("images/{id}"),
            used_bytes: None,
            reason: "no image of the catalog has these files",
        });
    }
    let mut disks = HashSet::new();
    for info in volumes {
        let reason = match info.volume {
            Volume::Image(id) => {
                disks.insert(id);
                gone(id).then_some("no image of the catalog has this disk")
            }
            Volume::Personal { client, .. } if catalog.client(client).is_none() => {
                Some("its client is not in the catalog")
            }
            Volume::Personal { image, .. } => {
                gone(image).then_some("its image is not in the catalog")
            }
            // Those of boots come and go; whoever made them clears them away.
            Volume::Session(_) => None,
        };
        stock.orphans.extend(reason.map(|reason| Orphan {
            what: What::Disk(info.volume),
            path: info.path.clone(),
            used_bytes: Some(info.used),
            reason,
        }));
    }
    // Clones before what they were made from, so that they can be removed in this order.
    stock.orphans.sort_by_key(|orphan| match orphan.what {
        What::Disk(Volume::Image(id)) => (1, Reverse(depth(volumes, id))),
        _ => (0, Reverse(0)),
    });
    for image in catalog.images().filter(|image| !busy.contains(&image.id)) {
        let mut missing = |what| {
            stock.missing.push(Missing {
                id: image.id,
                name: image.name.clone(),
                what,
            });
        };
        if image.kind == ImageKind::Disk && !disks.contains(&image.id) {
            missing("disk");
        }
        if !image.files.is_empty() && !files.contains(&image.id) {
            missing("files");
        }
    }
    stock
}

/// How many images a disk stands upon.
fn depth(volumes: &[VolumeInfo], id: Uuid) -> usize {
    let mut depth = 0;
    let mut at = Volume::Image(id);
    while let Some(origin) = volumes
        .iter()
        .find(|info| info.volume == at)
        .and_then(|info| info.origin.as_ref())
    {
        depth += 1;
        at = origin.volume;
        if depth > volumes.len() {
            break;
        }
    }
    depth
}

/// Says at the start where store and catalog do not agree (a crash between the two, or a
/// database that was restored). Nothing is removed. `busy`: what is finished or undone anyway.
pub async fn tell(storage: &Directory, disks: &dyn Storage, catalog: &Snapshot, busy: &[Uuid]) {
    let stock = match (storage.images().await, disks.list()) {
        (Ok(files), Ok(volumes)) => compare(catalog, &files, &volumes, busy),
        (Err(e), _) => {
            tracing::warn!(error = %e, "stored images can't be listed");
            return;
        }
        (_, Err(e)) => {
            tracing::warn!(error = %e, "stored disks can't be listed");
            return;
        }
    };
    for orphan in stock.orphans {
        tracing::warn!(
            path = %storage.root().join(&orphan.path).display(),
            orphan.reason,
            "stored for nobody: `dls image orphans --remove` removes it, or restore its row"
        );
    }
    for missing in stock.missing {
        tracing::warn!(
            image.id = %missing.id, image.name = missing.name, missing.what,
            "an image of the catalog is not on this server: its machines will wait"
        );
    }
}
