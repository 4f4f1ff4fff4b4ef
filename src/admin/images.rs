//! `/api/v1/images`: what machines boot. Uploads are streamed to storage, never held.
//!
//! A new image is: parts received into staging, everything checked, files put into their
//! place under an id made first, then one catalog transaction. Whatever fails takes back what was
//! before it, so that neither a file nor a row is left over. From placing on it runs in a task
//! of its own, so that a peer who hangs up can't stop it half way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Json;
use axum::extract::multipart::{Field, MultipartError, MultipartRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Map, Value, json};
use tokio_util::io::StreamReader;
use uuid::Uuid;

use super::Shared;
use super::error::ApiError;
use super::extract::{Asked, BODY_MAX, Called, JsonObject, json_object, shown};
use crate::catalog::CatalogError;
use crate::model::{BootMethod, FileRole, Image, ImageFile, ImageFormat, ImageKind, PhoneHome};
use crate::storage::Staged;
use crate::validate::{self, Reader, Violations, Write};

/// Most bytes of an upload.
const UPLOAD_MAX: usize = 64 * 1024 * 1024 * 1024;
/// Most initrds of an image.
const INITRDS_MAX: usize = 16;
/// An upload that brings nothing for so long has stopped.
const IDLE: Duration = Duration::from_secs(60);
/// How long what is left of a refused upload is read, so that the peer, still sending, gets to
/// read why.
const DRAIN: Duration = Duration::from_secs(10);

/// `GET /api/v1/images`
pub(super) async fn list(
    State(api): State<Shared>,
    mut asked: Asked,
) -> Result<Json<Value>, ApiError> {
    let page = asked.page();
    asked.finish()?;
    let images = api.catalog.list_images(page).await?;
    Ok(Json(json!({"images": images})))
}

/// `GET /api/v1/images/{image}`, by name or id.
pub(super) async fn get(
    State(api): State<Shared>,
    Called(name): Called,
) -> Result<Json<Image>, ApiError> {
    find(&api, &name).await.map(Json)
}

/// `PUT /api/v1/images/{image}`: all fields anew; the files stay.
pub(super) async fn replace(
    State(api): State<Shared>,
    Called(name): Called,
    JsonObject(body): JsonObject,
) -> Result<Json<Image>, ApiError> {
    write(&api, &name, body, Write::Replace).await.map(Json)
}

/// `PATCH /api/v1/images/{image}`: only the given fields.
pub(super) async fn change(
    State(api): State<Shared>,
    Called(name): Called,
    JsonObject(body): JsonObject,
) -> Result<Json<Image>, ApiError> {
    write(&api, &name, body, Write::Change).await.map(Json)
}

/// `DELETE /api/v1/images/{image}[?force=true]`: row and files.
pub(super) async fn delete(
    State(api): State<Shared>,
    Called(name): Called,
    mut asked: Asked,
) -> Result<StatusCode, ApiError> {
    let force = asked.parsed::<bool>("force", "true or false") == Some(true);
    asked.finish()?;
    let task = tokio::spawn(async move {
        let _one = api.writes.lock().await;
        let image = find(&api, &name).await?;
        let deleted = api
            .catalog
            .delete_image_metadata(image.id, force)
            .await
            .map_err(ApiError::in_use)?;
        if !deleted {
            return Err(not_found(&name));
        }
        api.settle().await;
        // The row is gone, so nobody finds the files any more; they only take room.
        if let Err(e) = api.storage.remove_image(image.id).await {
            tracing::warn!(image.name, error = %e, "files of a deleted image are left over");
        }
        tracing::info!(image.name, image.id = %image.id, "image deleted");
        Ok(StatusCode::NO_CONTENT)
    });
    finished(task).await
}

async fn write(
    api: &Shared,
    name: &str,
    body: Map<String, Value>,
    write: Write,
) -> Result<Image, ApiError> {
    let _one = api.writes.lock().await;
    let current = find(api, name).await?;
    let mut image = match write {
        Write::Create | Write::Replace => Image {
            size_bytes: current.size_bytes,
            format: current.format,
            kind: current.kind,
            path: current.path,
            zfs_dataset: current.zfs_dataset,
            created_at: current.created_at,
            files: current.files,
            ..fresh(current.id)
        },
        Write::Change => current,
    };
    validate::image(Reader::new(body, write, api.strictness), &mut image)?;
    api.catalog.save_image_metadata(&image).await?;
    api.settle().await;
    tracing::info!(image.name, "image changed");
    Ok(api
        .catalog
        .get_image_metadata(image.id)
        .await?
        .unwrap_or(image))
}

/// `POST /api/v1/images`, multipart: `image` (JSON), `kernel`, `initrd` (any number, in
/// loading order).
pub(super) async fn create(
    State(api): State<Shared>,
    mut request: Request,
) -> Result<Response, ApiError> {
    DefaultBodyLimit::max(UPLOAD_MAX).apply(&mut request);
    let mut multipart = Multipart::from_request(request, &()).await.map_err(
        |_: MultipartRejection| {
            ApiError::invalid(
                "body",
                "must be multipart/form-data with the parts `image` (JSON), `kernel` and `initrd`",
            )
        },
    )?;
    let mut upload = Upload::new(fresh(Uuid::new_v4()));
    upload.receive(&api, &mut multipart, Files::Keep).await?;
    if upload.is_refused() {
        // Staged files are no longer needed, whatever else there is to say.
        upload.kernel = None;
        upload.initrds.clear();
        let rest = upload.receive(&api, &mut multipart, Files::Skip);
        if !matches!(tokio::time::timeout(DRAIN, rest).await, Ok(Ok(()))) {
            return Err(upload.refusal());
        }
    }
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
    kernel_seen: bool,
    kernel: Option<Staged>,
    initrds: Vec<Staged>,
    violations: Violations,
    /// A refusal other than by violations.
    failure: Option<ApiError>,
}

impl Upload {
    fn new(image: Image) -> Self {
        Self {
            image,
            described: false,
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
        if !self.described {
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

/// # Errors
/// 409 if an image has the name.
async fn vacant(api: &Shared, name: &str) -> Result<(), ApiError> {
    match api.catalog.get_image_by_name(name).await? {
        None => Ok(()),
        Some(_) => Err(ApiError::Conflict {
            field: "name",
            message: format!("there is an image `{}` already", shown(name)),
        }),
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
    if let Err(e) = place(api, &mut image, kernel, initrds).await {
        take_back(api, image.id).await;
        return Err(e);
    }
    match api.catalog.save_image_metadata(&image).await {
        Ok(()) => {}
        Err(e @ CatalogError::Unavailable(_)) => {
            // The connection may have broken before the commit or after it: ask.
            match api.catalog.get_image_metadata(image.id).await {
                Ok(Some(_)) => {}
                Ok(None) => {
                    take_back(api, image.id).await;
                    return Err(e.into());
                }
                Err(_) => {
                    tracing::warn!(
                        image.name,
                        image.id = %image.id,
                        "whether this image was stored is not known; its files stay"
                    );
                    return Err(e.into());
                }
            }
        }
        Err(e) => {
            take_back(api, image.id).await;
            return Err(e.into());
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

async fn place(
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
    if let Err(e) = api.storage.remove_image(id).await {
        tracing::warn!(image.id = %id, error = %e, "files of a refused image are left over");
    }
}

/// The result of a task that a peer can't stop by hanging up.
async fn finished<T>(task: tokio::task::JoinHandle<Result<T, ApiError>>) -> Result<T, ApiError> {
    match task.await {
        Ok(result) => result,
        Err(e) => Err(ApiError::Internal(format!(
            "a task of an upload failed: {e}"
        ))),
    }
}

async fn find(api: &Shared, name: &str) -> Result<Image, ApiError> {
    let found = match name.parse::<Uuid>() {
        Ok(id) => api.catalog.get_image_metadata(id).await?,
        Err(_) if name.contains('\0') => None,
        Err(_) => api.catalog.get_image_by_name(name).await?,
    };
    found.ok_or_else(|| not_found(name))
}

fn not_found(name: &str) -> ApiError {
    ApiError::NotFound(format!("there is no image `{}`", shown(name)))
}

/// Every default of a kernel image.
fn fresh(id: Uuid) -> Image {
    Image {
        id,
        name: String::new(),
        description: None,
        os_type: None,
        size_bytes: 0,
        format: ImageFormat::Raw,
        kind: ImageKind::Kernel,
        path: format!("images/{id}"),
        zfs_dataset: None,
        cmdline: String::new(),
        boot_method: BootMethod::San,
        sha256: None,
        source_format: None,
        phone_home: PhoneHome::Auto,
        tags: None,
        is_template: false,
        parent_image_id: None,
        created_at: chrono::DateTime::UNIX_EPOCH,
        updated_at: chrono::DateTime::UNIX_EPOCH,
        files: Vec::new(),
    }
}
