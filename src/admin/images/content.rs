//! Disks on their way in: `PUT /api/v1/images/{name}/content`, in as many pieces as it takes.
//!
//! Each piece goes to its place in the upload's file and is synced now and then; a piece that
//! begins elsewhere than the last one ended is refused and told where to begin. When all is
//! there the conversion starts, as an import. A piece is written by one connection at a time: the
//! right to write is lent to the writing thread and comes back with the result, so that a peer
//! who hangs up leaves no writer behind.

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::files::{DRAIN, IDLE};
use super::{blocking, fresh, vacant};
use crate::admin::error::ApiError;
use crate::admin::extract::{Asked, Called, shown};
use crate::admin::{Shared, imports};
use crate::model::ImageKind;
use crate::storage::{DiskFormat, Held, Hold, Standing, StorageError, Upload};
use crate::validate::{self, Reader, Write};

/// Bytes that are written at a time.
const CHUNK: usize = 1024 * 1024;
/// Where an upload goes on.
pub(super) const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
/// How long it will be.
pub(super) const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
/// What can be set of an image along with its content.
const FIELDS: [&str; 6] = [
    "boot_method",
    "cmdline",
    "description",
    "is_template",
    "os_type",
    "phone_home",
];

/// `GET /api/v1/uploads`: uploads that are not whole images yet.
pub(in crate::admin) async fn uploads(
    State(api): State<Shared>,
    asked: Asked,
) -> Result<Json<Value>, ApiError> {
    asked.finish()?;
    let all: Vec<Value> = api.uploads.list().iter().map(told).collect();
    Ok(Json(json!({"uploads": all})))
}

/// `GET /api/v1/uploads/{name}`
pub(in crate::admin) async fn upload(
    State(api): State<Shared>,
    Called(name): Called,
) -> Result<Response, ApiError> {
    let standing = api.uploads.get(&name).ok_or_else(|| no_upload(&name))?;
    Ok((progress(&standing), Json(told(&standing))).into_response())
}

/// `DELETE /api/v1/uploads/{name}`: what was received is given up.
pub(in crate::admin) async fn upload_delete(
    State(api): State<Shared>,
    Called(name): Called,
) -> Result<StatusCode, ApiError> {
    let uploads = api.uploads.clone();
    let claimed = {
        let name = name.clone();
        blocking(move || uploads.claim(&name, Hold::Receiving, || None)).await?
    };
    let held = claimed.map_err(|other| busy(&other))?;
    let held = held.ok_or_else(|| no_upload(&name))?;
    blocking(move || {
        held.discard();
        Ok::<_, StorageError>(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `PUT /api/v1/images/{name}/content`
pub(in crate::admin) async fn put(
    State(api): State<Shared>,
    Called(name): Called,
    asked: Asked,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let mut body = body.into_data_stream();
    match take(&api, &name, asked, &parts.headers, &mut body).await {
        Ok(response) => Ok(response),
        Err(refusal) => {
            // A peer that waits for leave to send has sent nothing to be read.
            if !parts.headers.contains_key(header::EXPECT) {
                let rest = async { while let Some(Ok(_)) = body.next().await {} };
                let _ = tokio::time::timeout(DRAIN, rest).await;
            }
            Err(refusal)
        }
    }
}

async fn take(
    api: &Shared,
    name: &str,
    asked: Asked,
    headers: &HeaderMap,
    body: &mut BodyDataStream,
) -> Result<Response, ApiError> {
    let wanted = wanted(api, name, asked)?;
    let piece = Piece::of(headers)?;
    vacant(api, name).await?;
    if let Some(total) = piece.total
        && total > api.limits.upload_bytes
    {
        return Err(ApiError::invalid(
            "body",
            format!(
                "is too large: {total} bytes, and at most {} are taken ([storage] upload_limit_gib)",
                api.limits.upload_bytes
            ),
        ));
    }
    let (uploads, new, key) = (api.uploads.clone(), wanted.clone(), name.to_owned());
    let claimed = blocking(move || uploads.claim(&key, Hold::Receiving, || Some(new))).await?;
    let held = claimed.map_err(|other| busy(&other))?;
    let held = held.ok_or_else(|| no_upload(name))?;
    if let Err(e) = fits(&held, piece) {
        // Nothing was received, so there is nothing to go on with.
        if held.offset() == 0 {
            let _ = tokio::task::spawn_blocking(move || held.discard()).await;
        }
        return Err(e);
    }
    let held = agree(held, wanted, piece).await?;
    let held = receive(api, held, piece, body).await?;
    if held.upload().total != Some(held.offset()) {
        let (offset, total) = (held.offset(), held.upload().total);
        let at = [(UPLOAD_OFFSET, HeaderValue::from(offset))];
        let told = json!({"name": name, "offset": offset, "total": total});
        return Ok((at, Json(told)).into_response());
    }
    let id = imports::start(api, held);
    Ok(imports::accepted(api, id))
}

/// What a request says of the image that is to be; every violation at once.
fn wanted(api: &Shared, name: &str, mut asked: Asked) -> Result<Upload, ApiError> {
    let mut body = Map::new();
    body.insert("name".into(), name.into());
    for field in FIELDS {
        if let Some(text) = asked.text(field) {
            let value = match (field, text.as_str()) {
                ("is_template", "true") => true.into(),
                ("is_template", "false") => false.into(),
                _ => text.into(),
            };
            body.insert(field.into(), value);
        }
    }
    let format = asked.text("format");
    let sha256 = asked.text("sha256");
    let require = asked.parsed::<bool>("require_bootable", "true or false");
    asked.finish()?;
    upload_of(api, body, format, sha256, require == Some(true))
}

/// What is to become of a file: an image with these fields.
pub(super) fn upload_of(
    api: &Shared,
    body: Map<String, Value>,
    format: Option<String>,
    sha256: Option<String>,
    require_bootable: bool,
) -> Result<Upload, ApiError> {
    let mut image = fresh(Uuid::new_v4());
    image.kind = ImageKind::Disk;
    validate::image(Reader::new(body, Write::Create, api.strictness), &mut image)?;
    let mut upload = Upload::new(image, api.clock.now());
    upload.format = format.map(|word| known_format(&word)).transpose()?;
    upload.sha256 = sha256.map(|sum| known_sum(&sum)).transpose()?;
    upload.require_bootable = require_bootable;
    Ok(upload)
}

/// A format that disks are imported from.
pub(in crate::admin) fn known_format(word: &str) -> Result<String, ApiError> {
    match DiskFormat::from_word(word) {
        Some(format) => Ok(format.as_str().to_owned()),
        None => Err(ApiError::invalid(
            "format",
            "must be raw, qcow2, vhdx or vmdk",
        )),
    }
}

/// A SHA-256 sum in its normal spelling.
pub(in crate::admin) fn known_sum(sum: &str) -> Result<String, ApiError> {
    if sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(sum.to_ascii_lowercase())
    } else {
        Err(ApiError::invalid("sha256", "must be 64 hex digits"))
    }
}

/// Which bytes of the whole a request brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    /// The first; `None`: it brings none, and only asks to finish.
    from: Option<u64>,
    /// After the last, if that is said.
    until: Option<u64>,
    /// Bytes of the whole, if that is said.
    total: Option<u64>,
    /// True without `Content-Range`: the whole anew.
    whole: bool,
}

impl Piece {
    /// From `Content-Range` (RFC 9110 section 14.4), or else `Content-Length`.
    fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let number = |text: &str| -> Option<u64> {
            let digits = text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse().ok()).flatten()
        };
        let text = |name: HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
        let length = text(header::CONTENT_LENGTH).and_then(number);
        let Some(range) = headers.get(header::CONTENT_RANGE) else {
            return Ok(Self {
                from: Some(0),
                until: length,
                total: length,
                whole: true,
            });
        };
        let wrong = || {
            ApiError::invalid(
                "Content-Range",
                "must be `bytes FIRST-LAST/TOTAL` or `bytes */TOTAL`",
            )
        };
        let range = range
            .to_str()
            .ok()
            .and_then(|v| v.trim().strip_prefix("bytes "));
        let (part, total) = range
            .and_then(|r| r.trim().split_once('/'))
            .ok_or_else(wrong)?;
        let total = number(total).ok_or_else(wrong)?;
        let mut piece = Self {
            from: None,
            until: None,
            total: Some(total),
            whole: false,
        };
        if part != "*" {
            let (first, last) = part.split_once('-').ok_or_else(wrong)?;
            let (first, last) = (
                number(first).ok_or_else(wrong)?,
                number(last).ok_or_else(wrong)?,
            );
            let until = last.checked_add(1).ok_or_else(wrong)?;
            let length_fits = length.is_none_or(|length| Some(length) == until.checked_sub(first));
            if last < first || until > total || !length_fits {
                return Err(wrong());
            }
            (piece.from, piece.until) = (Some(first), Some(until));
        }
        Ok(piece)
    }
}

/// Whether what is brought goes on where the last piece ended.
fn fits(held: &Held, piece: Piece) -> Result<(), ApiError> {
    let there = held.offset();
    let known = held.upload().total;
    if !piece.whole && there > 0 && known.is_some() && known != piece.total {
        return Err(ApiError::Conflict {
            field: "Content-Range",
            message: format!(
                "an upload of this name is of another file: {there} of {} bytes are there; go on with that one or remove it (DELETE /api/v1/uploads/{})",
                known.unwrap_or(there),
                shown(&held.upload().image.name),
            ),
        });
    }
    if !piece.whole && piece.from.unwrap_or(piece.total.unwrap_or(0)) != there {
        return Err(ApiError::WrongOffset { there });
    }
    Ok(())
}

/// Takes in what is said of the image anew.
async fn agree(held: Held, wanted: Upload, piece: Piece) -> Result<Held, ApiError> {
    blocking(move || {
        let mut held = held;
        if piece.whole && held.offset() > 0 {
            held.rewind()?;
        }
        held.change(|upload| {
            let (id, begun) = (upload.image.id, upload.begun);
            upload.image = wanted.image;
            // Id and place are the upload's own.
            upload.image.id = id;
            upload.image.path = format!("images/{id}");
            upload.begun = begun;
            upload.total = piece.total;
            upload.format = wanted.format.or(upload.format.take());
            upload.sha256 = wanted.sha256.or(upload.sha256.take());
            upload.require_bootable = wanted.require_bootable;
        })?;
        Ok::<_, StorageError>(held)
    })
    .await
}

/// Writes what comes. What has been written when something fails stays, for going on.
async fn receive(
    api: &Shared,
    mut held: Held,
    piece: Piece,
    body: &mut BodyDataStream,
) -> Result<Held, ApiError> {
    let until = piece.until.unwrap_or(api.limits.upload_bytes);
    let missing = until.saturating_sub(held.offset());
    if piece.until.is_some() && held.room().is_some_and(|room| room < missing) {
        return Err(ApiError::Full);
    }
    let mut gathered = Vec::with_capacity(CHUNK);
    let ended = loop {
        let next = tokio::select! {
            next = tokio::time::timeout(IDLE, body.next()) => next,
            () = api.cancel.cancelled() => break Err(ApiError::Unavailable),
        };
        match next {
            Ok(Some(Ok(bytes))) => {
                if held.offset() + (gathered.len() + bytes.len()) as u64 > until {
                    break Err(ApiError::invalid("body", "brings more bytes than it says"));
                }
                gathered.extend_from_slice(&bytes);
                if gathered.len() >= CHUNK {
                    held = write(held, std::mem::take(&mut gathered)).await?;
                    gathered.reserve(CHUNK);
                }
            }
            Ok(None) => break Ok(()),
            Ok(Some(Err(_))) => break Err(ApiError::invalid("body", "broke off")),
            Err(_) => {
                let sentence = format!("brought nothing for {} s", IDLE.as_secs());
                break Err(ApiError::invalid("body", sentence));
            }
        }
    };
    held = write(held, gathered).await?;
    held = blocking(move || {
        held.sync()?;
        // A body of unknown length that came to its end is whole.
        if piece.total.is_none() && ended.is_ok() {
            let offset = held.offset();
            held.change(|upload| upload.total = Some(offset))?;
        }
        Ok::<_, StorageError>(ended.map(|()| held))
    })
    .await??;
    let short = piece.until.is_some_and(|until| held.offset() < until);
    if short && piece.from.is_some() {
        return Err(ApiError::invalid("body", "brings fewer bytes than it says"));
    }
    if held.upload().total == Some(0) {
        return Err(ApiError::invalid("body", "is empty"));
    }
    Ok(held)
}

async fn write(mut held: Held, bytes: Vec<u8>) -> Result<Held, ApiError> {
    if bytes.is_empty() {
        return Ok(held);
    }
    blocking(move || {
        held.append(&bytes)?;
        Ok::<_, StorageError>(held)
    })
    .await
}

/// 409: somebody else is at it.
pub(super) fn busy(other: &Standing) -> ApiError {
    let total = other.upload.total.map_or("?".to_owned(), |t| t.to_string());
    ApiError::Conflict {
        field: "name",
        message: format!(
            "`{}` is being {} already: begun {}, {} of {total} bytes are there",
            shown(&other.upload.image.name),
            other.hold.map_or("received", Hold::as_str),
            other.upload.begun.format("%Y-%m-%d %H:%M:%SZ"),
            other.offset,
        ),
    }
}

fn no_upload(name: &str) -> ApiError {
    ApiError::NotFound(format!("there is no upload of `{}`", shown(name)))
}

/// Headers that say how far it is.
pub(super) fn progress(standing: &Standing) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(UPLOAD_OFFSET, HeaderValue::from(standing.offset));
    if let Some(total) = standing.upload.total {
        headers.insert(UPLOAD_LENGTH, HeaderValue::from(total));
    }
    headers
}

fn told(standing: &Standing) -> Value {
    json!({
        "id": standing.upload.image.id,
        "name": standing.upload.image.name,
        "offset": standing.offset,
        "total": standing.upload.total,
        "format": standing.upload.format,
        "begun": standing.upload.begun,
        "busy": standing.hold.map(Hold::as_str),
    })
}

/// An answer without a body.
pub(super) fn empty(headers: HeaderMap) -> Response {
    (headers, Body::empty()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(range: Option<&str>, length: Option<&str>) -> Option<(Option<u64>, Option<u64>)> {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (header::CONTENT_RANGE, range),
            (header::CONTENT_LENGTH, length),
        ] {
            if let Some(value) = value {
                headers.insert(name, value.parse().unwrap());
            }
        }
        let piece = Piece::of(&headers).ok()?;
        Some((piece.from, piece.total))
    }

    #[test]
    fn a_piece_says_where_it_belongs() {
        for (range, length, want) in [
            (None, Some("10"), Some((Some(0), Some(10)))),
            (None, None, Some((Some(0), None))),
            (Some("bytes 0-9/10"), Some("10"), Some((Some(0), Some(10)))),
            (Some("bytes 5-9/10"), None, Some((Some(5), Some(10)))),
            (Some("bytes */10"), Some("0"), Some((None, Some(10)))),
            (Some("bytes 5-9/10"), Some("4"), None),
            (Some("bytes 5-10/10"), None, None),
            (Some("bytes 9-5/10"), None, None),
            (Some("bytes 5-9/*"), None, None),
            (Some("bytes 5-/10"), None, None),
            (Some("bytes -5/10"), None, None),
            (Some("bytes +5-9/10"), None, None),
            (
                Some("bytes 0-18446744073709551615/18446744073709551615"),
                None,
                None,
            ),
            (
                Some("bytes 0-99999999999999999999/999999999999999999999"),
                None,
                None,
            ),
            (Some("items 0-9/10"), None, None),
            (Some(""), None, None),
        ] {
            assert_eq!(piece(range, length), want, "{range:?} {length:?}");
        }
    }
}
