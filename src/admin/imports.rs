//! `/api/v1/imports`: disks being made of what was received, or of a file of this server.
//!
//! A job is: the intention written down, the file's hash compared where one was given, its
//! format told by its beginning, then the store's import (convert, hash, read back), a snapshot
//! for clones, and the row last. What is cancelled or refused leaves nothing. A server that
//! stops leaves the upload and the intention: at its next start ([`resume`]) the conversion begins anew.
//! Jobs are told of from memory; the newest [`KEPT`] that have ended stay to be asked about.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;
use super::error::ApiError;
use super::extract::{Asked, Called, shown};
use super::images::{
    Source, Unsaved, begin, blocking, erase, keep, measure, of_volume, save_new, settle_pending,
    vacant,
};
use crate::clock::Clock;
use crate::model::{CheckVerdict, Image, ImageCheck, ImageFormat, ImageKind, Timestamp};
use crate::steps::{self, Step};
use crate::storage::magic::MAGIC_BYTES;
use crate::storage::{
    DiskFormat, Held, Hold, Imported, Intent, Noted, SnapshotId, Storage, StorageError, Upload,
    Volume, VolumeError,
};

/// Conversions at once; the others wait.
const AT_ONCE: usize = 2;
/// Ended jobs that are remembered.
const KEPT: usize = 100;
/// The largest disk, bytes: 64 TiB.
const LARGEST: u64 = 64 << 40;
/// Before the catalog is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Between two looks for what is too old or could not be removed.
const ROUND: Duration = Duration::from_secs(300);
/// Uploads that nobody has gone on with for so long are removed.
const EXPIRY: chrono::TimeDelta = chrono::TimeDelta::hours(24);

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Phase {
    /// Others are before it.
    Queued,
    /// Under way.
    Running,
    /// The image is there.
    Done,
    /// It came to nothing; `error` says why.
    Failed,
    /// Somebody gave it up.
    Cancelled,
}

/// What is told of a job.
#[derive(Debug, Clone, serde::Serialize)]
struct Told {
    id: Uuid,
    name: String,
    state: Phase,
    /// What it does now.
    step: &'static str,
    /// From 0 to 1, within that step.
    progress: f64,
    error: Option<String>,
    /// True if what was received is kept, so that it can be tried again.
    upload_kept: bool,
    begun: Timestamp,
    ended: Option<Timestamp>,
}

/// One conversion.
struct Job {
    id: Uuid,
    told: Mutex<Told>,
    cancel: CancellationToken,
}

/// All of them, and images whose remains are to be looked at again.
pub(super) struct Works {
    jobs: Mutex<Vec<Arc<Job>>>,
    room: Arc<Semaphore>,
    left: Mutex<Vec<Uuid>>,
}

impl Default for Works {
    fn default() -> Self {
        Self {
            jobs: Mutex::default(),
            room: Arc::new(Semaphore::new(AT_ONCE)),
            left: Mutex::default(),
        }
    }
}

impl Works {
    fn jobs(&self) -> MutexGuard<'_, Vec<Arc<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An image whose remains could not be removed yet.
    pub(super) fn leave(&self, id: Uuid) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if !left.contains(&id) {
            left.push(id);
        }
    }

    fn take_left(&self) -> Vec<Uuid> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *left)
    }

    /// Waits until jobs that were told to stop have put away what they had.
    pub(super) async fn rest(&self, limit: Duration) {
        let ended = async {
            while !self.jobs().iter().all(|job| job.has_ended()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(limit, ended).await;
    }

    fn find(&self, id: &str) -> Option<Arc<Job>> {
        let id = id.parse::<Uuid>().ok()?;
        self.jobs().iter().rev().find(|job| job.id == id).cloned()
    }

    /// Adds a job and forgets the oldest of those that have ended.
    fn add(&self, job: Arc<Job>) {
        let mut jobs = self.jobs();
        jobs.retain(|other| other.id != job.id);
        let ended = jobs.iter().filter(|job| job.has_ended()).count();
        if ended >= KEPT
            && let Some(oldest) = jobs.iter().position(|job| job.has_ended())
        {
            jobs.remove(oldest);
        }
        jobs.push(job);
    }
}

impl Job {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_ended(&self) -> bool {
        self.told().ended.is_some()
    }

    fn step(&self, step: &'static str, progress: f64) {
        let mut told = self.told();
        told.state = Phase::Running;
        (told.step, told.progress) = (step, progress.clamp(0.0, 1.0));
    }
}

/// `GET /api/v1/imports`, newest first.
pub(super) async fn list(State(api): State<Shared>, asked: Asked) -> Result<Json<Value>, ApiError> {
    asked.finish()?;
    let jobs = api.works.jobs();
    let told: Vec<Told> = jobs.iter().rev().map(|job| job.told().clone()).collect();
    Ok(Json(json!({"imports": told})))
}

/// `GET /api/v1/imports/{import}`
pub(super) async fn get(
    State(api): State<Shared>,
    Called(id): Called,
) -> Result<Json<Value>, ApiError> {
    let job = api.works.find(&id).ok_or_else(|| no_import(&id))?;
    let told = job.told().clone();
    Ok(Json(json!(told)))
}

/// `DELETE /api/v1/imports/{import}`: gives it up, with what was received. One that has
/// ended is forgotten.
pub(super) async fn cancel(
    State(api): State<Shared>,
    Called(id): Called,
) -> Result<StatusCode, ApiError> {
    let job = api.works.find(&id).ok_or_else(|| no_import(&id))?;
    if job.has_ended() {
        api.works.jobs().retain(|other| other.id != job.id);
    } else {
        job.cancel.cancel();
    }
    Ok(StatusCode::NO_CONTENT)
}

fn no_import(id: &str) -> ApiError {
    ApiError::NotFound(format!("there is no import `{}`", shown(id)))
}

/// 202: it is under way.
pub(super) fn accepted(api: &Shared, id: Uuid) -> Response {
    let location = [(header::LOCATION, format!("/api/v1/imports/{id}"))];
    let told = api
        .works
        .find(&id.to_string())
        .map(|job| job.told().clone());
    (StatusCode::ACCEPTED, location, Json(json!(told))).into_response()
}

/// Starts the conversion of a complete upload; returns the import's id, which will be the image's.
pub(super) fn start(api: &Shared, held: Held) -> Uuid {
    held.hold_for(Hold::Importing);
    let image = &held.upload().image;
    let job = Arc::new(Job {
        id: image.id,
        told: Mutex::new(Told {
            id: image.id,
            name: image.name.clone(),
            state: Phase::Queued,
            step: "waiting",
            progress: 0.0,
            error: None,
            upload_kept: false,
            begun: api.clock.now(),
            ended: None,
        }),
        cancel: api.cancel.child_token(),
    });
    api.works.add(job.clone());
    let id = job.id;
    tokio::spawn(run(api.clone(), held, job));
    id
}

/// Why there is no image.
enum Stop {
    /// The file can't become one: it is of no use any more.
    Refused(String),
    /// Something else stands in the way: it can be tried again.
    Hindered(String),
    /// It was given up, or the server stops.
    Cancelled,
    /// The same, while it is not known whether the row was stored.
    InDoubt,
}

impl From<VolumeError> for Stop {
    fn from(error: VolumeError) -> Self {
        match error {
            VolumeError::BadSource(why) => Self::Refused(why),
            VolumeError::Cancelled => Self::Cancelled,
            VolumeError::Io { .. } | VolumeError::Damaged { .. } => {
                tracing::error!(%error, "an import failed");
                Self::Hindered("the server failed; its log says why".into())
            }
            other => Self::Hindered(other.to_string()),
        }
    }
}

impl From<ApiError> for Stop {
    fn from(error: ApiError) -> Self {
        Self::Hindered(error.sentence())
    }
}

async fn run(api: Shared, held: Held, job: Arc<Job>) {
    let upload = held.upload().clone();
    let made = match Source::of(&api, &held).await {
        Ok(source) => make(&api, &job, &upload, source.path.clone()).await,
        Err(e) => Err(e.into()),
    };
    let stopped = matches!(made, Err(Stop::Cancelled)) && api.cancel.is_cancelled();
    let keep = stopped || matches!(made, Err(Stop::Hindered(_) | Stop::InDoubt));
    let put_away =
        tokio::task::spawn_blocking(move || if keep { drop(held) } else { held.discard() });
    if let Err(e) = put_away.await {
        tracing::warn!(error = %e, "an upload can't be put away");
    }
    let mut told = job.told();
    told.ended = Some(api.clock.now());
    told.upload_kept = keep;
    let name = &upload.image.name;
    match made {
        Ok(image) => {
            tracing::info!(image.name, image.id = %image.id, image.size_bytes, "disk imported");
            (told.state, told.step, told.progress) = (Phase::Done, "done", 1.0);
        }
        Err(Stop::Cancelled | Stop::InDoubt) => {
            tracing::info!(image.name = name, stopped, "import cancelled");
            told.state = Phase::Cancelled;
            told.error = Some("it was cancelled".into());
        }
        Err(Stop::Refused(why) | Stop::Hindered(why)) => {
            tracing::warn!(image.name = name, why, "import failed");
            told.state = Phase::Failed;
            told.error = Some(why);
        }
    }
}

/// From the file to the row.
async fn make(
    api: &Shared,
    job: &Arc<Job>,
    upload: &Upload,
    source: PathBuf,
) -> Result<Image, Stop> {
    let cancelled = job.cancel.cancelled();
    let turn = tokio::select! {
        turn = api.works.room.clone().acquire_owned() => turn,
        () = cancelled => return Err(Stop::Cancelled),
    };
    let _turn = turn.map_err(|_| Stop::Cancelled)?;
    if let Some(image) = already(api, job).await? {
        return Ok(image);
    }
    vacant(api, &upload.image.name).await?;
    let id = job.id;
    begin(api, Intent::Image { image: id }).await?;
    steps::reach(Step::ImportBegun);
    let made = make_begun(api, job, upload, source).await;
    match &made {
        Ok(_) => {}
        Err(Stop::InDoubt) => api.works.leave(id),
        Err(_) => erase(api, id).await,
    }
    made
}

/// The image, if all was done but for clearing up: then a crash came before that.
async fn already(api: &Shared, job: &Job) -> Result<Option<Image>, Stop> {
    loop {
        match api.catalog.get_image_metadata(job.id).await {
            Ok(found) => {
                if found.is_some() {
                    api.settled(job.id);
                }
                return Ok(found);
            }
            Err(e) => tracing::warn!(error = %e, "an import waits for the catalog"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = job.cancel.cancelled() => return Err(Stop::Cancelled),
        }
    }
}

/// What leaves something behind until it is done or undone.
async fn make_begun(
    api: &Shared,
    job: &Arc<Job>,
    upload: &Upload,
    source: PathBuf,
) -> Result<Image, Stop> {
    let disk = {
        let (disks, upload, job) = (api.disks.clone(), upload.clone(), job.clone());
        let clock = api.clock.clone();
        let converted = move || convert(&*disks, &upload, &source, &job, &clock);
        let done = tokio::task::spawn_blocking(converted).await;
        done.map_err(|e| Stop::Hindered(format!("the conversion broke: {e}")))??
    };
    job.step("storing", 0.0);
    let image = Image {
        size_bytes: i64::try_from(disk.made.size).unwrap_or(i64::MAX),
        format: ImageFormat::Raw,
        kind: ImageKind::Disk,
        sha256: Some(disk.made.sha256),
        source_format: Some(disk.format.as_str().to_owned()),
        path: disk.path,
        ..upload.image.clone()
    };
    store(api, job, &image).await?;
    measure(api, image.id).await;
    api.settle().await;
    // The image is there; that nothing is known of it takes nothing from it.
    if let Some(found) = &disk.check
        && let Err(e) = keep(api, &image, found).await
    {
        tracing::warn!(image.name, why = e.sentence(), "what a check found is lost");
    }
    Ok(image)
}

/// What a conversion made.
struct Converted {
    made: Imported,
    format: DiskFormat,
    path: String,
    /// What was found in it; `None` if it could not be looked into.
    check: Option<ImageCheck>,
}

fn convert(
    disks: &dyn Storage,
    upload: &Upload,
    source: &Path,
    job: &Job,
    clock: &Clock,
) -> Result<Converted, Stop> {
    let volume = Volume::Image(job.id);
    // What a crash has left of an earlier attempt.
    disks.destroy(volume)?;
    let format = look_at(upload, source)?;
    if let Some(said) = &upload.sha256 {
        let sum = sum_of(source, job)?;
        if sum != *said {
            return Err(Stop::Refused(format!(
                "the file's SHA-256 is {sum}, not {said} as was said: it was damaged on its way, or is another file"
            )));
        }
    }
    let mut progress = |now: crate::storage::Progress| job.step(now.step, now.done);
    let made = disks.import(volume, source, format, &mut progress, &job.cancel)?;
    steps::reach(Step::ImportConverted);
    if made.size > LARGEST {
        return Err(Stop::Refused(format!(
            "the disk has {} bytes; the largest that is taken has 64 TiB",
            made.size
        )));
    }
    let check = look_into(disks, upload, job, clock)?;
    disks.snapshot(&SnapshotId::base(job.id))?;
    steps::reach(Step::ImportSnapshotted);
    let info = disks.info(volume)?;
    let path = info.map_or_else(|| upload.image.path.clone(), |info| info.path);
    Ok(Converted {
        made,
        format,
        path,
        check,
    })
}

/// What would stop the disk from booting. That refuses it only if it was asked for.
fn look_into(
    disks: &dyn Storage,
    upload: &Upload,
    job: &Job,
    clock: &Clock,
) -> Result<Option<ImageCheck>, Stop> {
    job.step("looking", 0.0);
    let method = upload.image.boot_method;
    let found = match of_volume(disks, Volume::Image(job.id), method, None, clock) {
        Ok(found) => found,
        Err(e) if upload.require_bootable => return Err(e.into()),
        Err(e) => {
            tracing::warn!(image.name = upload.image.name, error = %e, "a disk can't be checked");
            return Ok(None);
        }
    };
    if upload.require_bootable && found.verdict == CheckVerdict::NotBootable {
        let stops: Vec<&str> = found.stops().map(|stop| stop.sentence.as_str()).collect();
        return Err(Stop::Refused(format!(
            "the disk would not boot, as was required: {}",
            stops.join("; ")
        )));
    }
    Ok(Some(found))
}

/// The format, told by the beginning; what was said must agree.
fn look_at(upload: &Upload, source: &Path) -> Result<DiskFormat, Stop> {
    let unreadable = |e: std::io::Error| Stop::Hindered(format!("the file can't be read: {e}"));
    let file = std::fs::File::open(source).map_err(unreadable)?;
    let mut head = Vec::new();
    file.take(MAGIC_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(unreadable)?;
    let found = DiskFormat::guess(&head);
    match &upload.format {
        Some(said) if said != found.as_str() => Err(Stop::Refused(format!(
            "the file is said to be {said}, but begins like {}",
            found.as_str()
        ))),
        _ => Ok(found),
    }
}

/// SHA-256 of a file.
fn sum_of(source: &Path, job: &Job) -> Result<String, Stop> {
    let unreadable = |e: std::io::Error| Stop::Hindered(format!("the file can't be read: {e}"));
    let mut file = std::fs::File::open(source).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len().max(1);
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; 1024 * 1024];
    let mut done = 0_u64;
    loop {
        if job.cancel.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        let read = file.read(&mut chunk).map_err(unreadable)?;
        let Some(bytes) = chunk.get(..read).filter(|b| !b.is_empty()) else {
            break;
        };
        hasher.update(bytes);
        done += read as u64;
        job.step("checking", done as f64 / size as f64);
    }
    Ok(crate::model::hex(&hasher.finalize()))
}

/// Stores the row; waits for a catalog that is away.
async fn store(api: &Shared, job: &Job, image: &Image) -> Result<(), Stop> {
    loop {
        let saved = {
            let _one = api.writes.lock().await;
            save_new(api, image).await
        };
        let in_doubt = match saved {
            Ok(()) => {
                steps::reach(Step::ImportStored);
                api.settled(image.id);
                steps::reach(Step::ImportSettled);
                return Ok(());
            }
            Err(Unsaved::Surely(ApiError::Unavailable)) => false,
            Err(Unsaved::Perhaps(_)) => true,
            Err(Unsaved::Surely(e)) => return Err(e.into()),
        };
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = job.cancel.cancelled() => {
                return Err(if in_doubt { Stop::InDoubt } else { Stop::Cancelled });
            }
        }
    }
}

/// Goes on after a start: undoes and finishes what was begun, converts what is there whole;
/// then, now and then, removes what is too old. `left`: intentions from before the start.
pub(super) async fn resume(api: Shared, noted: Vec<Noted>) {
    let mut left: Vec<Uuid> = noted.iter().map(|noted| noted.intent.id()).collect();
    for standing in api.uploads.list().into_iter().filter(|s| s.is_complete()) {
        go_on(&api, &standing.upload).await;
    }
    loop {
        left = settle_pending(&api, left).await;
        expire(&api).await;
        let pause = if left.is_empty() { ROUND } else { RETRY };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = api.cancel.cancelled() => return,
        }
        left.extend(api.works.take_left());
    }
}

async fn go_on(api: &Shared, upload: &Upload) {
    let (uploads, name) = (api.uploads.clone(), upload.image.name.clone());
    let claimed = blocking(move || uploads.claim(&name, Hold::Importing, || None)).await;
    let Ok(Ok(Some(held))) = claimed else { return };
    tracing::info!(image.name = upload.image.name, "going on with an import");
    start(api, held);
}

/// Removes uploads that nobody has touched for long.
async fn expire(api: &Shared) {
    let now = api.clock.now();
    for standing in api.uploads.list() {
        let touched = api.uploads.touched(&standing);
        if standing.hold.is_some() || touched.is_some_and(|at| now - at < EXPIRY) {
            continue;
        }
        let (uploads, name) = (api.uploads.clone(), standing.upload.image.name.clone());
        let removed = blocking(move || {
            if let Ok(Some(held)) = uploads.claim(&name, Hold::Receiving, || None)? {
                held.discard();
            }
            Ok::<_, StorageError>(())
        });
        match removed.await {
            Ok(()) => {
                tracing::info!(
                    image.name = standing.upload.image.name,
                    standing.offset,
                    "an upload that nobody went on with is removed"
                );
            }
            Err(e) => tracing::warn!(why = e.sentence(), "an old upload can't be removed"),
        }
    }
}
