//! `/api/v1/images`: what machines boot.
//!
//! `rows`: what is known of images, and what uses them. `files`: kernels and initrds by
//! multipart upload. `content`: disks, in pieces and out again. `copy`: child images.
//! `versions`: what an image was and
//! shall be. `maintenance`: machines that mend one. `compare`: what versions differ in. `removal`: deletion, and what is stored for nobody. `imports` (beside this folder) makes disks
//! of what was received. Nothing of any size is ever held in memory.

mod check;
pub(super) mod compare;
mod content;
mod copy;
mod export;
mod files;
pub(super) mod maintenance;
mod on_server;
mod removal;
mod rows;
mod versions;

use uuid::Uuid;

use super::Shared;
use super::error::ApiError;
use super::extract::shown;
use crate::catalog::CatalogError;
use crate::model::{BootMethod, Image, ImageFormat, ImageKind, PhoneHome};

pub(super) use check::{AT_ONCE as CHECKS_AT_ONCE, check, keep, last_check, of_volume};
pub(super) use content::{put, upload, upload_delete, uploads};
pub(super) use copy::clone;
pub(super) use export::content;
pub(super) use files::{add_files, create, drop_files};
pub(super) use on_server::{Source, import};
pub(super) use removal::{begin, delete, erase, settle_pending};
pub(super) use rows::{change, get, list, replace, usage};
pub(super) use versions::{
    create as create_version, delete as delete_version, list as versions, measure,
    release as release_version, send_back as return_version,
};

/// # Errors
/// 409 if an image has the name.
pub(super) async fn vacant(api: &Shared, name: &str) -> Result<(), ApiError> {
    match api.catalog.get_image_by_name(name).await? {
        None => Ok(()),
        Some(_) => Err(ApiError::Conflict {
            field: "name",
            message: format!("there is an image `{}` already", shown(name)),
        }),
    }
}

/// The result of a task that a peer can't stop by hanging up.
pub(super) async fn finished<T>(
    task: tokio::task::JoinHandle<Result<T, ApiError>>,
) -> Result<T, ApiError> {
    match task.await {
        Ok(result) => result,
        Err(e) => Err(ApiError::Internal(format!(
            "a task of an upload failed: {e}"
        ))),
    }
}

pub(super) async fn find(api: &Shared, name: &str) -> Result<Image, ApiError> {
    if api.catalog.is_away() {
        // Whoever wants to change it will be told by the change.
        let snapshot = api.cache.get();
        let by_id = name.parse().ok().and_then(|id| snapshot.image(id));
        let found = by_id.or_else(|| snapshot.image_by_name(name));
        return found.map(|i| (**i).clone()).ok_or_else(|| not_found(name));
    }
    let found = match name.parse::<Uuid>() {
        Ok(id) => api.catalog.get_image_metadata(id).await?,
        Err(_) if name.contains('\0') => None,
        Err(_) => api.catalog.get_image_by_name(name).await?,
    };
    found.ok_or_else(|| not_found(name))
}

pub(super) fn not_found(name: &str) -> ApiError {
    ApiError::NotFound(format!("there is no image `{}`", shown(name)))
}

/// Every default of a kernel image; a disk differs in `kind` alone.
pub(super) fn fresh(id: Uuid) -> Image {
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

/// Runs work on files and disks off the async threads.
pub(super) async fn blocking<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ApiError>
where
    T: Send + 'static,
    E: Into<ApiError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Into::into),
        Err(e) => Err(ApiError::Internal(format!("work on files failed: {e}"))),
    }
}

/// Stores a new image's row. Whether a broken connection broke before or after the commit is
/// found out, so that `Ok` and `Err` are sure but for [`Unsaved::Perhaps`].
pub(super) async fn save_new(api: &Shared, image: &Image) -> Result<(), Unsaved> {
    match api.catalog.save_image_metadata(image).await {
        Ok(()) => Ok(()),
        Err(e @ CatalogError::Unavailable(_)) => {
            match api.catalog.get_image_metadata(image.id).await {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err(Unsaved::Surely(e.into())),
                Err(_) => Err(Unsaved::Perhaps(e.into())),
            }
        }
        Err(e) => Err(Unsaved::Surely(e.into())),
    }
}

/// A row was not stored.
pub(super) enum Unsaved {
    /// It is not there.
    Surely(ApiError),
    /// The database went away; it may be there.
    Perhaps(ApiError),
}
