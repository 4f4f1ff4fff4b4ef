//! Disks on their way out: `GET /api/v1/images/{name}/content`.
//!
//! Raw content is read from the disk while it is sent, in parts where parts are asked for; its
//! SHA-256 is the entity tag. Other formats are written to a file of the staging folder first,
//! which is gone when the answer is.

use std::io::Read;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::content::{empty, progress};
use super::versions::called;
use super::{blocking, find};
use crate::admin::Shared;
use crate::admin::error::ApiError;
use crate::admin::extract::{Asked, Called, shown};
use crate::model::part::{Part, if_range_holds, none_match_hits, part};
use crate::model::version::followed;
use crate::model::{Image, ImageKind};
use crate::storage::{Access, BlockDevice, DiskFormat, SnapshotId, Volume};

/// Bytes that are read at a time.
const CHUNK: u64 = 512 * 1024;
/// Chunks on their way at once.
const AHEAD: usize = 4;

/// `GET /api/v1/images/{image}/content[?format=raw|qcow2|vhdx][&version=NAME]`: the version that
/// is in production unless another is named. `HEAD` of an image that is
/// still being uploaded tells how much of it is there.
pub(in crate::admin) async fn content(
    State(api): State<Shared>,
    Called(name): Called,
    method: Method,
    headers: HeaderMap,
    mut asked: Asked,
) -> Result<Response, ApiError> {
    let format = match asked.text("format").as_deref() {
        None | Some("raw") => DiskFormat::Raw,
        Some("qcow2") => DiskFormat::Qcow2,
        Some("vhdx") => DiskFormat::Vhdx,
        Some(_) => return Err(ApiError::invalid("format", "must be raw, qcow2 or vhdx")),
    };
    let version = asked.text("version");
    asked.finish()?;
    let image = match find(&api, &name).await {
        Err(ApiError::NotFound(sentence)) => {
            return match api.uploads.get(&name) {
                Some(standing) if method == Method::HEAD => Ok(empty(progress(&standing))),
                _ => Err(ApiError::NotFound(sentence)),
            };
        }
        found => found?,
    };
    if image.kind != ImageKind::Disk {
        return Err(ApiError::Conflict {
            field: "",
            message: format!("the image `{}` has no disk", shown(&image.name)),
        });
    }
    let versions = api.catalog.list_versions(image.id).await?;
    let version = match version {
        Some(name) => Some(called(&versions, &image, &name)?),
        None => followed(&versions, None, None),
    };
    let id = version.map_or(image.id, |v| v.id);
    match (format, method) {
        (DiskFormat::Raw, method) => raw(&api, &image, id, &method, &headers).await,
        (_, Method::HEAD) => Ok(empty(HeaderMap::new())),
        (format, _) => converted(&api, id, format).await,
    }
}

async fn raw(
    api: &Shared,
    image: &Image,
    id: Uuid,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let disks = api.disks.clone();
    let disk = blocking(move || disks.open(Volume::Image(id), Access::Read)).await?;
    let size = disk.info().size;
    let given = |name| {
        headers
            .get(name)
            .and_then(|v: &HeaderValue| v.to_str().ok())
    };
    let mut answer = HeaderMap::new();
    let octets = HeaderValue::from_static("application/octet-stream");
    answer.insert(header::CONTENT_TYPE, octets);
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let mut asked = part(given(header::RANGE), size);
    // That sum is of the first version.
    if let Some(sum) = image.sha256.as_ref().filter(|_| id == image.id) {
        let tag = format!("\"{sum}\"");
        answer.extend(HeaderValue::from_str(&tag).map(|tag| (header::ETAG, tag)));
        if none_match_hits(given(header::IF_NONE_MATCH), sum) {
            return Ok((StatusCode::NOT_MODIFIED, answer).into_response());
        }
        if !if_range_holds(given(header::IF_RANGE), sum) {
            asked = Part::Whole;
        }
    }
    let (status, range) = match asked {
        Part::Whole => (StatusCode::OK, 0..size),
        Part::Some(range) => (StatusCode::PARTIAL_CONTENT, range),
        Part::Beyond => (StatusCode::RANGE_NOT_SATISFIABLE, 0..0),
    };
    let said = match status {
        StatusCode::PARTIAL_CONTENT => {
            let last = range.end.saturating_sub(1);
            Some(format!("bytes {}-{last}/{size}", range.start))
        }
        StatusCode::RANGE_NOT_SATISFIABLE => Some(format!("bytes */{size}")),
        _ => None,
    };
    if let Some(Ok(said)) = said.map(|said| HeaderValue::from_str(&said)) {
        answer.insert(header::CONTENT_RANGE, said);
    }
    let length = range.end.saturating_sub(range.start);
    answer.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    if method == Method::HEAD || length == 0 {
        return Ok((status, answer, Body::empty()).into_response());
    }
    let body = pumped(move |send| read_disk(disk.as_ref(), range, send));
    Ok((status, answer, body).into_response())
}

fn read_disk(
    disk: &dyn BlockDevice,
    range: std::ops::Range<u64>,
    send: &dyn Fn(std::io::Result<Bytes>) -> bool,
) {
    let mut at = range.start;
    while at < range.end {
        let length = (range.end - at).min(CHUNK);
        let mut chunk = vec![0; usize::try_from(length).unwrap_or(0)];
        let read = disk.read_at(at, &mut chunk);
        at += length;
        let read = read.map(|()| Bytes::from(chunk));
        let failed = read.is_err();
        if !send(read.map_err(std::io::Error::other)) || failed {
            return;
        }
    }
}

async fn converted(api: &Shared, id: Uuid, format: DiskFormat) -> Result<Response, ApiError> {
    let cancel = api.cancel.child_token();
    // A peer who hangs up drops this, and the conversion ends.
    let _guard = cancel.clone().drop_guard();
    let disks = api.disks.clone();
    let scratch = api.storage.scratch();
    let (scratch, size, file) = blocking(move || {
        let path = scratch.path().to_owned();
        export(&*disks, id, &path, format, &cancel)?;
        let file = std::fs::File::open(&path);
        let file = file.map_err(|e| ApiError::Internal(format!("opening an export: {e}")))?;
        let size = file.metadata().map_or(0, |m| m.len());
        Ok::<_, ApiError>((scratch, size, file))
    })
    .await?;
    let octets = HeaderValue::from_static("application/octet-stream");
    let headers = [
        (header::CONTENT_TYPE, octets),
        (header::CONTENT_LENGTH, HeaderValue::from(size)),
    ];
    let body = pumped(move |send| {
        let _scratch = scratch;
        let mut file = file;
        loop {
            let mut chunk = Vec::new();
            let read = (&mut file).take(CHUNK).read_to_end(&mut chunk);
            match read {
                Ok(0) => return,
                Ok(_) if !send(Ok(chunk.into())) => return,
                Ok(_) => {}
                Err(e) => {
                    send(Err(e));
                    return;
                }
            }
        }
    });
    Ok((headers, body).into_response())
}

fn export(
    disks: &dyn crate::storage::Storage,
    id: Uuid,
    to: &std::path::Path,
    format: DiskFormat,
    cancel: &CancellationToken,
) -> Result<(), ApiError> {
    disks
        .export(&SnapshotId::base(id), to, format, &mut |_| {}, cancel)
        .map_err(Into::into)
}

/// A body that a thread of its own fills, never far ahead of the peer. `send` answers false
/// when nobody takes any more.
fn pumped(fill: impl FnOnce(&dyn Fn(std::io::Result<Bytes>) -> bool) + Send + 'static) -> Body {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let sender = Arc::new(sender);
    tokio::task::spawn_blocking(move || {
        fill(&|chunk| sender.blocking_send(chunk).is_ok());
    });
    let chunks = stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    });
    Body::from_stream(chunks)
}
