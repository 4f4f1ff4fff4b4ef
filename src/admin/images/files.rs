//! Kernels and initrds: multipart uploads, streamed to storage.
//!
//! A new image is: parts received into staging, everything checked, the intention written
//! down, files put into their place under an id made first, then one catalog transaction.
//! Whatever fails takes back what was before it, so that neither a file nor a row is left over,
//! after a crash too. From placing on it runs in a task of its own, so that a peer who hangs
//! up can't stop it half way. A disk that is booted by a kernel of its own gets it in the same way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::multipart::{Field, MultipartError, MultipartRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio_util::io::StreamReader;
use uuid::Uuid;

use super::removal::begin;
use super::{Unsaved, find, finished, fresh, save_new, vacant};
use crate::admin::Shared;
use crate::admin::error::ApiError;
use crate::admin::extract::{BODY_MAX, Called, json_object, shown};
use crate::catalog::CatalogError;
use crate::model::{FileRole, Image, ImageFile, ImageKind};
use crate::steps::{self, Step};
use crate::storage::{Intent, Staged};
use crate::validate::{self, Reader, Violations, Write};

/// Most bytes of an upload.
const UPLOAD_MAX: usize = 64 * 1024 * 1024 * 1024;
/// Most initrds of an image.
const INITRDS_MAX: usize = 16;
/// An upload that brings nothing for so long has stopped.
pub(super) const IDLE: Duration = Duration::from_secs(60);
/// How long what is left of a refused upload is read, so that the peer, still sending, gets to
/// read why.
pub(super) const DRAIN: Duration = Duration::from_secs(10);

/// `POST /api/v1/images`, multipart: `image` (JSON), `kernel`, `initrd` (any number, in
/// loading order).
pub(in crate::admin) async fn create(
    State(api): State<Shared>,
    request: Request,
) -> Result<Response, ApiError> {
    let upload = Upload::new(fresh(Uuid::new_v4()), Described::Here);
    let upload = receive(&api, request, upload).await?;
    let (image, kernel, initrds) = upload.finish()?;
    let task = tokio::spawn(async move {
        let image = commit(&api, image, kernel, initrds).await?;
        tracing::info!(image.name, image.id = %image.id, image.size_bytes, "image added");
        Ok(image)
    });
    let image = finished(task).await?;
    let location = format!("/api/v1/images/{}", image.id);
    let headers = [(header::LOCATION, location)];
    Ok((StatusCode::CREATED, headers, Json(image)).into_response())
}

/// `POST /api/v1/images/{image}/files`, multipart: `kernel`, `initrd` (any number) for a disk
/// that is booted by a kernel of its own. Files that are there are never changed.
pub(in crate::admin) async fn add_files(
    State(api): State<Shared>,
    Called(name): Called,
    request: Request,
) -> Result<Response, ApiError> {
    let image = find(&api, &name).await?;
    takes_files(&image)?;
    let id = image.id;
    let upload = receive(&api, request, Upload::new(image, Described::InCatalog)).await?;
    let (_, kernel, initrds) = upload.finish()?;
    let task = tokio::spawn(async move {
        let one = api.writes.lock().await;
        let mut image = find(&api, &id.to_string()).await?;
        takes_files(&image)?;
        begin(&api, Intent::Image { image: id }).await?;
        steps::reach(Step::FilesBegun);
        // What an earlier attempt left is in nobody's row.
        api.storage.remove_image(id).await?;
        let size_bytes = image.size_bytes;
        if let Err(e) = place(&api, &mut image, kernel, initrds).await {
            take_back(&api, id).await;
            return Err(e);
        }
        steps::reach(Step::FilesPlaced);
        image.size_bytes = size_bytes;
        match api.catalog.save_image_metadata(&image).await {
            Ok(()) => {}
            // It may be stored or not.
            Err(e @ CatalogError::Unavailable(_)) => {
                api.works.leave(id);
                return Err(e.into());
            }
            Err(e) => {
                take_back(&api, id).await;
                return Err(e.into());
            }
        }
        steps::reach(Step::FilesStored);
        api.settled(id);
        api.settle().await;
        tracing::info!(image.name, image.id = %id, "kernel and initrds added to a disk");
        drop(one);
        // What was found without them holds no more.
        if let Err(e) = super::check::renew(&api, &image).await {
            tracing::warn!(image.name, why = e.sentence(), "a disk can't be checked");
        }
        Ok(image)
    });
    let image = finished(task).await?;
    Ok((StatusCode::CREATED, Json(image)).into_response())
}

/// `DELETE /api/v1/images/{image}/files`: a disk's kernel and initrds, so that others can be
/// given to it.
pub(in crate::admin) async fn drop_files(
    State(api): State<Shared>,
    Called(name): Called,
) -> Result<StatusCode, ApiError> {
    let task = tokio::spawn(async move {
        let _one = api.writes.lock().await;
        let mut image = find(&api, &name).await?;
        has_disk(&image)?;
        image.files.clear();
        begin(&api, Intent::Image { image: image.id }).await?;
        steps::reach(Step::DropBegun);
        if let Err(e) = api.catalog.save_image_metadata(&image).await {
            match e {
                CatalogError::Unavailable(_) => api.works.leave(image.id),
                _ => api.settled(image.id),
            }
            return Err(e.into());
        }
        steps::reach(Step::DropStored);
        api.settle().await;
        take_back(&api, image.id).await;
        tracing::info!(image.name, "kernel and initrds of a disk removed");
        Ok(StatusCode::NO_CONTENT)
    });
    finished(task).await
}

fn has_disk(image: &Image) -> Result<(), ApiError> {
    match image.kind {
        ImageKind::Disk => Ok(()),
        ImageKind::Kernel => Err(ApiError::Conflict {
            field: "",
            message: "the files of a kernel image are never changed: add a new image and assign it"
                .into(),
        }),
    }
}

fn takes_files(image: &Image) -> Result<(), ApiError> {
    has_disk(image)?;
    if image.files.is_empty() {
        return Ok(());
    }
    Err(ApiError::Conflict {
        field: "kernel",
        message: format!(
            "the image `{}` has a kernel already: remove its files first",
            shown(&image.name)
        ),
    })
}

/// Takes a multipart body apart into staged files, or says why it is refused.
async fn receive(
    api: &Shared,
    mut request: Request,
    mut upload: Upload,
) -> Result<Upload, ApiError> {
    DefaultBodyLimit::max(UPLOAD_MAX).apply(&mut request);
    let mut multipart = Multipart::from_request(request, &()).await.map_err(
        |_: MultipartRejection| {
            ApiError::invalid(
                "body",
                "must be multipart/form-data with the parts `image` (JSON), `kernel` and `initrd`",
            )
        },
    )?;
    upload.receive(api, &mut multipart, Files::Keep).await?;
    if upload.is_refused() {
        // Staged files are no longer needed, whatever else there is to say.
        upload.kernel = None;
        upload.initrds.clear();
        let rest = upload.receive(api, &mut multipart, Files::Skip);
        if !matches!(tokio::time::timeout(DRAIN, rest).await, Ok(Ok(()))) {
            return Err(upload.refusal());
        }
    }
    Ok(upload)
}

/// Where an image is described.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Described {
    /// In the part `image`.
    Here,
    /// It has its row already; no part may say anything else.
    InCatalog,
}

/// What to do with file parts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Files {
    /// Store them.
    Keep,
    /// Only look which there are.
    Skip,
}

/// An upload on its way in. Staged files vanish with it.
struct Upload {
    image: Image,
    described: bool,
    description: Described,
    kernel_seen: bool,
    kernel: Option<Staged>,
    initrds: Vec<Staged>,
    violations: Violations,
    /// A refusal other than by violations.
    failure: Option<ApiError>,
}

impl Upload {
    fn new(image: Image, description: Described) -> Self {
        Self {
            image,
            described: false,
            description,
            kernel_seen: false,
            kernel: None,
            initrds: Vec::new(),
            violations: Violations::new(),
            failure: None,
        }
    }

    fn is_refused(&self) -> bool {
        self.failure.is_some() || !self.violations.is_empty()
    }

    fn refusal(self) -> ApiError {
        self.failure.unwrap_or(ApiError::Invalid(self.violations))
    }

    /// Takes parts until there are no more, or, while files are kept, until it is clear that
    /// this upload is refused.
    async fn receive(
        &mut self,
        api: &Shared,
        multipart: &mut Multipart,
        files: Files,
    ) -> Result<(), ApiError> {
        loop {
            if files == Files::Keep && self.is_refused() {
                return Ok(());
            }
            let Some(field) = in_time(multipart.next_field()).await? else {
                return Ok(());
            };
            let name = field.name().unwrap_or_default().to_owned();
            match name.as_str() {
                "image" if self.description == Described::InCatalog => self
                    .violations
                    .add("image", "is changed by PATCH, not with its files"),
                "image" if self.described => self.violations.add("image", "is there twice"),
                "image" => self.describe(api, field).await?,
                "kernel" if self.kernel_seen => self.violations.add("kernel", "is there twice"),
                "kernel" => {
                    self.kernel_seen = true;
                    if files == Files::Keep {
                        self.kernel = self.stage(api, "kernel", field).await?;
                    }
                }
                "initrd" if self.initrds.len() >= INITRDS_MAX => self.violations.add(
                    "initrd",
                    format!("may be there at most {INITRDS_MAX} times"),
                ),
                "initrd" => {
                    if files == Files::Keep {
                        let field_name = format!("initrd[{}]", self.initrds.len());
                        let staged = self.stage(api, &field_name, field).await?;
                        self.initrds.extend(staged);
                    }
                }
                other => self.violations.add(shown(other), "is not a known part"),
            }
        }
    }

    /// Reads the `image` part.
    async fn describe(&mut self, api: &Shared, mut field: Field<'_>) -> Result<(), ApiError> {
        self.described = true;
        let mut json = Vec::new();
        while let Some(chunk) = in_time(field.chunk()).await? {
            if json.len() + chunk.len() > BODY_MAX {
                return Err(ApiError::TooLarge);
            }
            json.extend_from_slice(&chunk);
        }
        match json_object("image", &json) {
            Ok(map) => {
                let reader = Reader::new(map, Write::Create, api.strictness);
                if let Err(violations) = validate::image(reader, &mut self.image) {
                    self.violations.extend(violations);
                }
            }
            Err(ApiError::Invalid(violations)) => self.violations.extend(violations),
            Err(other) => return Err(other),
        }
        if !self.violations.concerns("name") {
            self.failure = vacant(api, &self.image.name).await.err();
        }
        Ok(())
    }

    /// Streams one file into staging; `None` if it is empty, which is a violation.
    async fn stage(
        &mut self,
        api: &Shared,
        name: &str,
        field: Field<'_>,
    ) -> Result<Option<Staged>, ApiError> {
        let broken = Arc::new(AtomicBool::new(false));
        let mark = broken.clone();
        let chunks = stream::try_unfold((field, mark), |(mut field, mark)| async move {
            match in_time(field.chunk()).await {
                Ok(Some(chunk)) => Ok(Some((chunk, (field, mark)))),
                Ok(None) => Ok(None),
                Err(_) => {
                    mark.store(true, Ordering::Relaxed);
                    Err(std::io::Error::other("the upload broke off"))
                }
            }
        });
        let staged = api.storage.stage(StreamReader::new(Box::pin(chunks))).await;
        match staged {
            Ok(staged) if staged.size_bytes > 0 => Ok(Some(staged)),
            Ok(_) => {
                self.violations.add(name, "is empty");
                Ok(None)
            }
            Err(_) if broken.load(Ordering::Relaxed) => {
                Err(ApiError::invalid(name, "broke off, or is too large"))
            }
            Err(e) => {
                self.failure = Some(e.into());
                Ok(None)
            }
        }
    }

    /// All is there: what to store.
    fn finish(mut self) -> Result<(Image, Staged, Vec<Staged>), ApiError> {
        if !self.described && self.description == Described::Here {
            self.violations.add("image", "is required");
        }
        if !self.kernel_seen {
            self.violations.add("kernel", "is required");
        }
        match self.kernel.take() {
            Some(kernel) if !self.is_refused() => Ok((self.image, kernel, self.initrds)),
            _ => Err(self.refusal()),
        }
    }
}

/// Waits for the next piece of an upload, not for ever.
async fn in_time<T>(piece: impl Future<Output = Result<T, MultipartError>>) -> Result<T, ApiError> {
    match tokio::time::timeout(IDLE, piece).await {
        Ok(Ok(piece)) => Ok(piece),
        Ok(Err(e)) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(ApiError::TooLarge),
        Ok(Err(e)) => Err(ApiError::invalid(
            "body",
            format!("broke off, or is no multipart/form-data: {}", e.body_text()),
        )),
        Err(_) => Err(ApiError::invalid(
            "body",
            format!("brought nothing for {} s", IDLE.as_secs()),
        )),
    }
}

/// Places the files and stores the row; on failure neither is left.
async fn commit(
    api: &Shared,
    mut image: Image,
    kernel: Staged,
    initrds: Vec<Staged>,
) -> Result<Image, ApiError> {
    let _one = api.writes.lock().await;
    vacant(api, &image.name).await?;
    let id = image.id;
    begin(api, Intent::Image { image: id }).await?;
    steps::reach(Step::KernelBegun);
    if let Err(e) = place(api, &mut image, kernel, initrds).await {
        take_back(api, image.id).await;
        return Err(e);
    }
    steps::reach(Step::KernelPlaced);
    match save_new(api, &image).await {
        Ok(()) => {
            steps::reach(Step::KernelStored);
            api.settled(id);
        }
        Err(Unsaved::Surely(e)) => {
            take_back(api, id).await;
            return Err(e);
        }
        // The intention stays: it is looked at again.
        Err(Unsaved::Perhaps(e)) => {
            api.works.leave(id);
            return Err(e);
        }
    }
    api.settle().await;
    // As the database has it, times too.
    Ok(api
        .catalog
        .get_image_metadata(image.id)
        .await?
        .unwrap_or(image))
}

pub(super) async fn place(
    api: &Shared,
    image: &mut Image,
    kernel: Staged,
    initrds: Vec<Staged>,
) -> Result<(), ApiError> {
    let kernel = (FileRole::Kernel, 0, kernel);
    let initrds = (0..)
        .zip(initrds)
        .map(|(position, staged)| (FileRole::Initrd, position, staged));
    for (role, position, staged) in std::iter::once(kernel).chain(initrds) {
        let (size_bytes, sha256) = (staged.size_bytes, staged.sha256.clone());
        let path = api.storage.place(staged, image.id, role, position).await?;
        image.size_bytes += size_bytes;
        image.files.push(ImageFile {
            role,
            position,
            path,
            sha256,
            size_bytes,
        });
    }
    Ok(())
}

async fn take_back(api: &Shared, id: Uuid) {
    match api.storage.remove_image(id).await {
        Ok(()) => api.settled(id),
        Err(e) => {
            tracing::warn!(image.id = %id, error = %e, "files that no row names stay for now");
            api.works.leave(id);
        }
    }
}
