//! Disk files to the server and back: `dls image import` and `export`.
//!
//! A file goes out in two pieces. The last one is small and brings the SHA-256 of the whole,
//! which is made while the first one is sent, so that whatever happens on the way is noticed
//! before anything is converted. What the server has already is not sent again. Ctrl-C leaves
//! what was sent for the next try; a server that has all of it finishes by itself.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Method, StatusCode, header};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::super::remote::{Remote, segment};
use super::super::{Failure, output};
use super::meter::Meter;
use crate::storage::DiskFormat;
use crate::storage::magic::MAGIC_BYTES;

/// Bytes read and sent at a time.
const CHUNK: usize = 1024 * 1024;
/// Bytes that the last piece brings.
const LAST: u64 = 64 * 1024;
/// Between two questions how far an import is.
const ASK: Duration = Duration::from_millis(200);

/// What to import, and as what.
pub(super) struct Import<'a> {
    pub(super) name: &'a str,
    pub(super) file: &'a Path,
    /// `None`: as the file begins.
    pub(super) format: Option<String>,
    /// What the file's SHA-256 must be.
    pub(super) sha256: Option<String>,
    /// Fields of the image, as query parameters.
    pub(super) fields: Vec<(&'static str, String)>,
    /// Forget what an earlier try has sent.
    pub(super) restart: bool,
}

/// Sends a disk file and waits until the image is there.
pub(super) async fn import(remote: &Remote, wanted: Import<'_>) -> Result<Value, Failure> {
    let all_sent = AtomicBool::new(false);
    tokio::select! {
        made = send_and_wait(remote, &wanted, &all_sent) => made,
        _ = tokio::signal::ctrl_c() => {
            let name = output::printable(wanted.name);
            Err(Failure::Failed(if all_sent.load(Ordering::Relaxed) {
                format!(
                    "interrupted: the server has all of `{name}` and finishes the import by itself; `dls image show {name}` tells when it is there"
                )
            } else {
                format!(
                    "interrupted: what was sent of `{name}` stays on the server for 24 hours; the same command goes on with it"
                )
            }))
        }
    }
}

/// Has the server import a file that lies there, and waits until the image is there.
pub(super) async fn import_on_server(
    remote: &Remote,
    wanted: Import<'_>,
    path: &str,
) -> Result<Value, Failure> {
    let mut body = Map::new();
    body.insert("name".to_owned(), wanted.name.into());
    body.insert("path".to_owned(), path.into());
    let texts = [("format", wanted.format), ("sha256", wanted.sha256)];
    for (field, text) in texts {
        if let Some(text) = text {
            body.insert(field.to_owned(), text.into());
        }
    }
    for (field, text) in wanted.fields {
        let value = match (field, text.as_str()) {
            ("is_template" | "require_bootable", "true") => true.into(),
            ("is_template" | "require_bootable", "false") => false.into(),
            _ => Value::from(text),
        };
        body.insert(field.to_owned(), value);
    }
    let body = Value::from(body);
    let begun = remote
        .fetch(Method::POST, "/api/v1/imports", Some(&body))
        .await?;
    let id = begun.get("id").and_then(Value::as_str).unwrap_or_default();
    watch(remote, id).await?;
    let image = format!("/api/v1/images/{}", segment(wanted.name));
    remote.fetch(Method::GET, &image, None).await
}

async fn send_and_wait(
    remote: &Remote,
    wanted: &Import<'_>,
    all_sent: &AtomicBool,
) -> Result<Value, Failure> {
    let path = wanted.file;
    let failed = |e: std::io::Error| Failure::Failed(format!("can't read {}: {e}", path.display()));
    let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
    let metadata = file.metadata().await.map_err(failed)?;
    if !metadata.is_file() {
        return Err(Failure::Failed(format!("{} is no file", path.display())));
    }
    let total = metadata.len();
    if total == 0 {
        return Err(Failure::Failed(format!("{} is empty", path.display())));
    }
    let mut head = Vec::new();
    let mut beginning = (&mut file).take(MAGIC_BYTES as u64);
    beginning.read_to_end(&mut head).await.map_err(failed)?;
    let format = match &wanted.format {
        Some(format) => format.clone(),
        None => {
            let format = DiskFormat::guess(&head).as_str();
            say(&format!(
                "{} begins like {format}: importing it as that",
                path.display()
            ));
            format.to_owned()
        }
    };
    let uploads = format!("/api/v1/uploads/{}", segment(wanted.name));
    let mut there = standing(remote, &uploads).await?;
    if wanted.restart && there.is_some() {
        remote.fetch(Method::DELETE, &uploads, None).await?;
        there = None;
    }
    let from = there.map_or(0, |offset| offset.min(total));
    let mut query = vec![("format", format)];
    query.extend(wanted.fields.iter().cloned());
    let content = format!("/api/v1/images/{}/content", segment(wanted.name));

    if from > 0 {
        let (had, all) = (bytes(from), bytes(total));
        say(&format!(
            "going on with an earlier upload: {had} of {all} are there"
        ));
    }
    let meter = Meter::of_bytes("sending", total);
    let hash = Arc::new(Mutex::new(Sha256::new()));
    let border = total.saturating_sub(LAST);
    // What the server has is part of the sum too.
    let hashed = from.min(border);
    hash_start(path, hashed, &hash).map_err(failed)?;
    meter.at(hashed);
    if from < border {
        let piece = Piece {
            from,
            until: border,
            total,
        };
        put(remote, &content, &query, path, piece, &hash, &meter).await?;
    }
    let begin = from.max(border).min(total);
    let sum = whole_sum(path, border, &hash).map_err(failed)?;
    if let Some(said) = &wanted.sha256
        && !said.eq_ignore_ascii_case(&sum)
    {
        meter.end();
        let text = format!("{} has the SHA-256 {sum}, not {said}", path.display());
        return Err(Failure::Refused(text, Default::default()));
    }
    query.push(("sha256", sum));
    let none = Arc::new(Mutex::new(Sha256::new()));
    let piece = Piece {
        from: begin,
        until: total,
        total,
    };
    let answer = put(remote, &content, &query, path, piece, &none, &meter).await?;
    meter.end();
    all_sent.store(true, Ordering::Relaxed);
    let id = answer.get("id").and_then(Value::as_str).unwrap_or_default();
    watch(remote, id).await?;
    let image = format!("/api/v1/images/{}", segment(wanted.name));
    remote.fetch(Method::GET, &image, None).await
}

/// How much the server has of an upload; `None` if it knows of none. An earlier connection
/// that has just broken gets a moment to be noticed.
async fn standing(remote: &Remote, path: &str) -> Result<Option<u64>, Failure> {
    let mut patience = 25;
    loop {
        match remote.fetch(Method::GET, path, None).await {
            Ok(told) => {
                let busy = told.get("busy").and_then(Value::as_str) == Some("received");
                if !busy || patience == 0 {
                    return Ok(told.get("offset").and_then(Value::as_u64));
                }
            }
            Err(Failure::NotFound(_)) => return Ok(None),
            Err(other) => return Err(other),
        }
        patience -= 1;
        tokio::time::sleep(ASK).await;
    }
}

/// A part of the file.
#[derive(Clone, Copy)]
struct Piece {
    from: u64,
    until: u64,
    total: u64,
}

async fn put(
    remote: &Remote,
    path: &str,
    query: &[(&str, String)],
    file: &Path,
    piece: Piece,
    hash: &Arc<Mutex<Sha256>>,
    meter: &Meter,
) -> Result<Value, Failure> {
    let failed = |e: std::io::Error| Failure::Failed(format!("can't read {}: {e}", file.display()));
    let Piece { from, until, total } = piece;
    let mut source = tokio::fs::File::open(file).await.map_err(failed)?;
    source
        .seek(std::io::SeekFrom::Start(from))
        .await
        .map_err(failed)?;
    let (hash, sent) = (hash.clone(), meter.clone());
    let chunks = ReaderStream::with_capacity(source.take(until - from), CHUNK);
    let chunks = chunks.inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            let mut hash = hash.lock().unwrap_or_else(PoisonError::into_inner);
            hash.update(chunk);
            sent.add(chunk.len() as u64);
        }
    });
    let range = match until.checked_sub(1).filter(|last| *last >= from) {
        Some(last) => format!("bytes {from}-{last}/{total}"),
        None => format!("bytes */{total}"),
    };
    let query: Vec<String> = query
        .iter()
        .map(|(name, value)| format!("{name}={}", segment(value)))
        .collect();
    let request = remote
        .request_slowly(Method::PUT, &format!("{path}?{}", query.join("&")))
        .header(header::CONTENT_RANGE, range)
        .header(header::CONTENT_LENGTH, until - from)
        .body(reqwest::Body::wrap_stream(chunks));
    let response = remote.send(request).await;
    if response.is_err() {
        meter.end();
    }
    response?.json().await.map_err(|e| remote.unreachable(&e))
}

/// Hashes the beginning of a file, which is not sent.
fn hash_start(path: &Path, until: u64, hash: &Mutex<Sha256>) -> std::io::Result<()> {
    let mut hash = hash.lock().unwrap_or_else(PoisonError::into_inner);
    std::io::copy(
        &mut std::fs::File::open(path)?.take(until),
        &mut Sum(&mut hash),
    )
    .map(|_| ())
}

/// The sum of the whole, when all up to `border` is in it.
fn whole_sum(path: &Path, border: u64, hash: &Mutex<Sha256>) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(border))?;
    let mut hash = hash.lock().unwrap_or_else(PoisonError::into_inner);
    std::io::copy(&mut file, &mut Sum(&mut hash))?;
    Ok(crate::model::hex(&std::mem::take(&mut *hash).finalize()))
}

/// A sum as something to write to.
struct Sum<'a>(&'a mut Sha256);

impl Write for Sum<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Waits for an import, showing its steps.
async fn watch(remote: &Remote, id: &str) -> Result<(), Failure> {
    let path = format!("/api/v1/imports/{}", segment(id));
    let mut shown: Option<(String, Meter)> = None;
    loop {
        let told = remote.fetch(Method::GET, &path, None).await?;
        let text = |key| told.get(key).and_then(Value::as_str).unwrap_or_default();
        let (state, step) = (text("state"), text("step"));
        if matches!(state, "done" | "failed" | "cancelled") {
            if let Some((_, meter)) = shown {
                meter.end();
            }
            if state == "done" {
                return Ok(());
            }
            let kept = told.get("upload_kept").and_then(Value::as_bool) == Some(true);
            let hint = if kept {
                "; what was sent stays on the server for 24 hours, the same command tries again"
            } else {
                ""
            };
            let why = format!("the import came to nothing: {}{hint}", text("error"));
            return Err(Failure::Refused(why, Default::default()));
        }
        if shown.as_ref().is_none_or(|(name, _)| name != step) {
            if let Some((_, meter)) = shown.take() {
                meter.end();
            }
            shown = Some((step.to_owned(), Meter::of_parts(step)));
        }
        if let Some((_, meter)) = &shown {
            let done = told.get("progress").and_then(Value::as_f64).unwrap_or(0.0);
            meter.at_part(done);
        }
        tokio::time::sleep(ASK).await;
    }
}

/// Writes an image's disk to a file that must not be there yet.
pub(super) async fn export(
    remote: &Remote,
    image: &str,
    file: &Path,
    format: &str,
    version: Option<&str>,
) -> Result<(), Failure> {
    let mut query = format!("?format={format}");
    if let Some(version) = version {
        query.push_str(&format!("&version={}", segment(version)));
    }
    tokio::select! {
        done = fetch_to(remote, image, file, &query) => done,
        _ = tokio::signal::ctrl_c() => {
            let _ = std::fs::remove_file(draft_of(file));
            Err(Failure::Failed("interrupted: nothing was written".into()))
        }
    }
}

/// Where a file grows until it is whole.
fn draft_of(file: &Path) -> std::path::PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    file.with_file_name(name)
}

async fn fetch_to(remote: &Remote, image: &str, file: &Path, query: &str) -> Result<(), Failure> {
    let failed =
        |e: std::io::Error| Failure::Failed(format!("can't write {}: {e}", file.display()));
    if file.symlink_metadata().is_ok() {
        return Err(Failure::Failed(format!(
            "{} is there already",
            file.display()
        )));
    }
    let path = format!("/api/v1/images/{}/content{query}", segment(image));
    let response = remote
        .send(remote.request_slowly(Method::GET, &path))
        .await?;
    let tag = response
        .headers()
        .get(header::ETAG)
        .and_then(|v| v.to_str().ok());
    let expected = tag.map(|tag| tag.trim_matches('"').to_owned());
    let total = response.content_length();
    if response.status() != StatusCode::OK {
        return Err(Failure::Failed(format!(
            "the server answered {}",
            response.status()
        )));
    }
    let meter = Meter::of_bytes("receiving", total.unwrap_or(0));
    let draft = draft_of(file);
    let written = receive(remote, response, &draft, &meter).await;
    meter.end();
    let sum = match written {
        Ok((sum, length)) if total.is_none_or(|total| total == length) => sum,
        Ok(_) => {
            let _ = std::fs::remove_file(&draft);
            return Err(Failure::Failed(
                "the connection ended before the file did".into(),
            ));
        }
        Err(e) => {
            let _ = std::fs::remove_file(&draft);
            return Err(e);
        }
    };
    if expected.is_some_and(|expected| expected != sum) {
        let _ = std::fs::remove_file(&draft);
        return Err(Failure::Failed(
            "what came is not what the catalog says: its SHA-256 differs".into(),
        ));
    }
    std::fs::rename(&draft, file).map_err(failed)
}

/// Writes a body to a new file, zeroes as holes; its SHA-256 and length.
async fn receive(
    remote: &Remote,
    response: reqwest::Response,
    draft: &Path,
    meter: &Meter,
) -> Result<(String, u64), Failure> {
    let failed =
        |e: std::io::Error| Failure::Failed(format!("can't write {}: {e}", draft.display()));
    let mut out = std::fs::File::create(draft).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut length = 0_u64;
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| remote.unreachable(&e))?;
        hash.update(&chunk);
        length += chunk.len() as u64;
        if chunk.iter().all(|b| *b == 0) {
            let step = i64::try_from(chunk.len()).unwrap_or(0);
            std::io::Seek::seek_relative(&mut out, step).map_err(failed)?;
        } else {
            out.write_all(&chunk).map_err(failed)?;
        }
        meter.add(chunk.len() as u64);
    }
    out.set_len(length).map_err(failed)?;
    out.sync_all().map_err(failed)?;
    Ok((crate::model::hex(&hash.finalize()), length))
}

/// A line for people, beside the output.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", output::printable(text));
}

fn bytes(count: u64) -> String {
    output::bytes(i64::try_from(count).unwrap_or(i64::MAX))
}
