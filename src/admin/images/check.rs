//! The check of an image's disk: on demand, and for the imports. What was found is kept.
//!
//! Two at a time, off the async threads, and for [`PATIENCE`] at most: what could not be read
//! by then is said to be missing in the result.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;

use super::{blocking, find, not_found};
use crate::admin::Shared;
use crate::admin::error::ApiError;
use crate::admin::extract::{Asked, Called, shown};
use crate::clock::Clock;
use crate::image_check::{Bytes, Subject, check as look_into};
use crate::model::{BootMethod, FileRole, Image, ImageCheck, ImageKind};
use crate::storage::{Access, BlockDevice, Storage, Volume, VolumeError};

/// Checks at once.
pub(in crate::admin) const AT_ONCE: usize = 2;
/// Nothing more is read after so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// `GET /api/v1/images/{image}/check`: what was found last.
pub(in crate::admin) async fn last_check(
    State(api): State<Shared>,
    Called(name): Called,
    asked: Asked,
) -> Result<Json<ImageCheck>, ApiError> {
    asked.finish()?;
    let image = find(&api, &name).await?;
    let found = api.catalog.get_image_check(image.id).await?;
    found.map(Json).ok_or_else(|| {
        let name = shown(&image.name);
        ApiError::NotFound(format!("the image `{name}` was not checked yet"))
    })
}

/// `POST /api/v1/images/{image}/check`: looks now, and keeps what is found.
pub(in crate::admin) async fn check(
    State(api): State<Shared>,
    Called(name): Called,
    asked: Asked,
) -> Result<Json<ImageCheck>, ApiError> {
    asked.finish()?;
    let image = find(&api, &name).await?;
    if image.kind != ImageKind::Disk {
        return Err(ApiError::Conflict {
            field: "",
            message: format!("the image `{}` has no disk", shown(&image.name)),
        });
    }
    let found = renew(&api, &image).await?;
    found.map(Json).ok_or_else(|| not_found(&name))
}

/// Looks into an image's disk and keeps what is found; `None` if the image is gone meanwhile.
pub(super) async fn renew(api: &Shared, image: &Image) -> Result<Option<ImageCheck>, ApiError> {
    let initrds = initrds(api, image).await?;
    let turn = api.checks.acquire().await;
    let (disks, clock) = (api.disks.clone(), api.clock.clone());
    let (id, method) = (image.id, image.boot_method);
    let found = blocking(move || of_volume(&*disks, Volume::Image(id), method, initrds, &clock));
    let found = found.await?;
    drop(turn);
    let kept = keep(api, image, &found).await?;
    Ok(kept.then_some(found))
}

/// Keeps what was found; `false` if the image is gone.
pub(in crate::admin) async fn keep(
    api: &Shared,
    image: &Image,
    found: &ImageCheck,
) -> Result<bool, ApiError> {
    let kept = {
        // It may write the image's row, too.
        let _one = api.writes.lock().await;
        api.catalog.save_image_check(image.id, found).await?
    };
    api.settle().await;
    let stops = found.stops().count();
    tracing::info!(image.name, verdict = %found.verdict, stops, "disk checked");
    Ok(kept)
}

/// The initrds that are loaded beside the disk, if the image has a kernel of its own.
async fn initrds(api: &Shared, image: &Image) -> Result<Option<Vec<File>>, ApiError> {
    if image.files.is_empty() {
        return Ok(None);
    }
    let mut files = Vec::new();
    let of_initrds = |file: &&crate::model::ImageFile| file.role == FileRole::Initrd;
    for file in image.files.iter().filter(of_initrds) {
        files.push(api.storage.open_file(&file.path).await?.0);
    }
    Ok(Some(files))
}

/// Looks into a disk. Blocks.
pub(in crate::admin) fn of_volume(
    disks: &dyn Storage,
    volume: Volume,
    method: BootMethod,
    initrds: Option<Vec<File>>,
    clock: &Clock,
) -> Result<ImageCheck, VolumeError> {
    let until = clock.instant() + PATIENCE;
    let lend = |what| {
        let clock = clock.clone();
        let lent: Arc<dyn Bytes> = Arc::new(Lent { what, until, clock });
        lent
    };
    let disk = disks.open(volume, Access::Read)?;
    let files = initrds.map(|files| files.into_iter().map(|file| lend(What::File(file))));
    let subject = Subject {
        disk: lend(What::Disk(disk)),
        method,
        initrds: files.map(Iterator::collect),
    };
    Ok(look_into(&subject, clock.now()))
}

enum What {
    Disk(Arc<dyn BlockDevice>),
    File(File),
}

/// A disk or file, for a while.
struct Lent {
    what: What,
    until: Instant,
    clock: Clock,
}

impl Bytes for Lent {
    fn size(&self) -> u64 {
        match &self.what {
            What::Disk(disk) => disk.info().size,
            What::File(file) => file.metadata().map_or(0, |metadata| metadata.len()),
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.clock.instant() > self.until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match &self.what {
            What::Disk(disk) => disk.read_at(offset, buffer).map_err(io::Error::other),
            What::File(file) => file.read_exact_at(buffer, offset),
        }
    }
}
