//! How it is found.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::finding::{Finding, Kind, Target};
use super::{Disk, Name, Rows, Store};

/// The snapshot that machines' disks are made from.
const BASE: &str = "base";

/// What is not as it should be, by kind; clones before what they were made from.
#[must_use]
pub fn compare(rows: &Rows, store: &Store) -> Vec<Finding> {
    let known = Known::new(rows, store);
    let mut found = Vec::new();
    known.rows(&mut found);
    for disk in &store.disks {
        known.disk(disk, &mut found);
    }
    known.rest(&mut found);
    // Stable: within a kind the order is that of the lists, but for what stands upon what.
    let depth = |finding: &Finding| match &finding.target {
        Target::Disk(name) => std::cmp::Reverse(known.depth(*name)),
        _ => std::cmp::Reverse(0),
    };
    found.sort_by_key(|finding| (finding.kind, depth(finding)));
    found
}

struct Known<'a> {
    rows: &'a Rows,
    store: &'a Store,
    disks: HashMap<Name, &'a Disk>,
    images: HashSet<Uuid>,
    versions: HashSet<Uuid>,
    clients: HashSet<Uuid>,
    files: HashSet<Uuid>,
    busy: HashSet<Uuid>,
}

impl<'a> Known<'a> {
    fn new(rows: &'a Rows, store: &'a Store) -> Self {
        let unfinished = store.unfinished.iter().map(|u| u.id);
        Self {
            rows,
            store,
            disks: store.disks.iter().map(|d| (d.name, d)).collect(),
            images: rows.images.iter().map(|i| i.id).collect(),
            versions: rows.versions.iter().map(|v| v.id).collect(),
            clients: rows.clients.iter().copied().collect(),
            files: store.files.iter().copied().collect(),
            // What waits for a person is told once, as what it is.
            busy: store.busy.iter().copied().chain(unfinished).collect(),
        }
    }

    /// Rows that lack something.
    fn rows(&self, found: &mut Vec<Finding>) {
        for image in self
            .rows
            .images
            .iter()
            .filter(|i| !self.busy.contains(&i.id))
        {
            let mut say = |kind, target, sentence: String| {
                found.push(Finding {
                    kind,
                    target,
                    sentence,
                });
            };
            let uses = used_by(&image.used_by);
            let disk = self.disks.get(&Name::Image(image.id));
            let elsewhere = self.rows.elsewhere.contains(&image.id);
            match disk {
                None if elsewhere => {}
                None if image.disk => say(
                    Kind::ImageWithoutDisk,
                    Target::Image(image.id),
                    format!(
                        "the disk of the image `{}` is not in this server's store{uses}",
                        image.name
                    ),
                ),
                Some(disk) if image.disk && i64::try_from(disk.size) != Ok(image.size) => say(
                    Kind::SizeDiffers,
                    Target::Image(image.id),
                    format!(
                        "the image `{}` has {} bytes by its row, and its disk has {}",
                        image.name, image.size, disk.size
                    ),
                ),
                Some(_) | None => {}
            }
            if disk.is_some_and(|disk| image.disk && !has_base(disk)) {
                say(
                    Kind::DiskWithoutBase,
                    Target::Disk(Name::Image(image.id)),
                    format!(
                        "the disk of the image `{}` has no first version: no machine can boot it{uses}",
                        image.name
                    ),
                );
            }
            if image.files && !elsewhere && !self.files.contains(&image.id) {
                say(
                    Kind::ImageWithoutFiles,
                    Target::Image(image.id),
                    format!(
                        "kernel and initrds of the image `{}` are not in this server's store{uses}",
                        image.name
                    ),
                );
            }
        }
        for version in self
            .rows
            .versions
            .iter()
            .filter(|v| !self.busy.contains(&v.id))
        {
            let name = Name::Image(version.id);
            let uses = used_by(&version.used_by);
            let which = format!(
                "the version `{}` of the image `{}`",
                version.name, version.image
            );
            let finding = match self.disks.get(&name) {
                None if self.rows.elsewhere.contains(&version.id) => continue,
                None => Finding {
                    kind: Kind::VersionWithoutDisk,
                    target: Target::Version(version.id),
                    sentence: format!("{which} is not in this server's store{uses}"),
                },
                Some(disk) if !has_base(disk) => Finding {
                    kind: Kind::DiskWithoutBase,
                    target: Target::Disk(name),
                    sentence: format!(
                        "the disk of {which} is not whole: no machine can boot it{uses}"
                    ),
                },
                Some(_) => continue,
            };
            found.push(finding);
        }
    }

    fn disk(&self, disk: &Disk, found: &mut Vec<Finding>) {
        let name = disk.name;
        let mut say = |kind, target, sentence: String| {
            found.push(Finding {
                kind,
                target,
                sentence,
            });
        };
        let has = |image: Uuid| self.images.contains(&image) || self.busy.contains(&image);
        let nobodys = match name {
            Name::Image(id) if !has(id) && !self.versions.contains(&id) => Some((
                Kind::DiskWithoutRow,
                format!(
                    "the disk {name} is of no image and no version of the catalog; it takes {} bytes",
                    disk.used
                ),
            )),
            Name::Personal { client, .. } if !self.clients.contains(&client) => Some((
                Kind::DiskWithoutClient,
                format!(
                    "the persistent disk {name} is of a client that is not in the catalog; it takes {} bytes",
                    disk.used
                ),
            )),
            Name::Personal { image, .. } if !has(image) => Some((
                Kind::DiskWithoutImage,
                format!(
                    "the persistent disk {name} is of an image that is not in the catalog; it takes {} bytes",
                    disk.used
                ),
            )),
            Name::Image(_) | Name::Personal { .. } | Name::Session(_) => None,
        };
        if let Some((kind, sentence)) = nobodys {
            say(kind, Target::Disk(name), sentence);
        }
        if let Some((origin, snapshot)) = &disk.origin {
            let there = self.disks.get(origin);
            if there.is_none_or(|origin| !origin.snapshots.contains(snapshot)) {
                say(
                    Kind::OriginMissing,
                    Target::Disk(name),
                    format!(
                        "the disk {name} was made from {origin}@{snapshot}, which is not there"
                    ),
                );
            }
        }
        for (snapshot, version) in &disk.made_for {
            let needed = self.versions.contains(version)
                || has(*version)
                || self.disks.contains_key(&Name::Image(*version));
            if !needed {
                say(
                    Kind::SnapshotWithoutVersion,
                    Target::Snapshot(name, snapshot.clone()),
                    format!(
                        "the snapshot {name}@{snapshot} was made for a version that is in neither catalog nor store"
                    ),
                );
            }
        }
    }

    /// Files, holds and intentions.
    fn rest(&self, found: &mut Vec<Finding>) {
        for id in &self.store.files {
            if !self.images.contains(id) && !self.busy.contains(id) {
                found.push(Finding {
                    kind: Kind::FilesWithoutRow,
                    target: Target::Files(*id),
                    sentence: format!("the files in images/{id} are of no image of the catalog"),
                });
            }
        }
        for hold in &self.store.holds {
            let Some(clone) = hold.clone else { continue };
            let needed = self.disks.get(&clone).and_then(|disk| disk.origin.as_ref());
            if needed != Some(&hold.on) {
                let (name, snapshot) = &hold.on;
                found.push(Finding {
                    kind: Kind::HoldWithoutClone,
                    target: Target::Hold(hold.clone()),
                    sentence: format!(
                        "{name}@{snapshot} is held for {clone}, which does not stand upon it"
                    ),
                });
            }
        }
        for unfinished in &self.store.unfinished {
            found.push(Finding {
                kind: Kind::IntentionUnfinished,
                target: Target::Intention(unfinished.id),
                sentence: unfinished.what.clone(),
            });
        }
    }

    /// How many disks a disk stands upon.
    fn depth(&self, name: Name) -> usize {
        let (mut depth, mut at) = (0, name);
        while let Some((origin, _)) = self.disks.get(&at).and_then(|d| d.origin.as_ref()) {
            (depth, at) = (depth + 1, *origin);
            if depth > self.disks.len() {
                break;
            }
        }
        depth
    }
}

fn has_base(disk: &Disk) -> bool {
    disk.snapshots.iter().any(|snapshot| snapshot == BASE)
}

/// The end of a sentence that says who would miss it.
fn used_by(users: &[String]) -> String {
    match users {
        [] => String::new(),
        users if users.len() > 5 => {
            let first = users[..5].join(", ");
            format!(" (used by {first} and {} more)", users.len() - 5)
        }
        users => format!(" (used by {})", users.join(", ")),
    }
}
