//! `dls image`: what machines boot.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::{Args, Subcommand};
use futures_util::StreamExt;
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::{Map, Value};
use tokio_util::io::ReaderStream;

use super::client::text_or_null;
use super::remote::{Remote, file_name, segment, typed};
use super::{Failure, output};
use crate::model::{FileRole, Image};

/// Images are named by name or id.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Add an image of a kernel and its initrds
    AddKernel {
        /// Its name
        name: String,
        /// Kernel file
        #[arg(long, value_name = "FILE")]
        kernel: PathBuf,
        /// Initrd file; may be repeated, they are loaded in this order
        #[arg(long, value_name = "FILE")]
        initrd: Vec<PathBuf>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Change what is known of an image; its files stay
    Set {
        /// Name or id
        image: String,
        /// Another name
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        settings: Settings,
    },
    /// List the images
    List,
    /// Show one image
    Show {
        /// Name or id
        image: String,
    },
    /// Remove images and their files
    Rm {
        /// Name or id
        #[arg(required = true)]
        images: Vec<String>,
        /// Even if clients are assigned to it: they wait then
        #[arg(long)]
        force: bool,
    },
}

/// What both `add-kernel` and `set` take.
#[derive(Debug, Args)]
pub(super) struct Settings {
    /// Kernel command line
    #[arg(long, allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Whether the system in it reports that it is up: `auto` finds out
    #[arg(long, value_parser = ["auto", "expected", "absent"])]
    phone_home: Option<String>,
    /// Free text
    #[arg(long)]
    description: Option<String>,
    /// Such as debian-12
    #[arg(long)]
    os_type: Option<String>,
}

impl Settings {
    fn fields(&self) -> Map<String, Value> {
        let mut body = Map::new();
        if let Some(cmdline) = &self.cmdline {
            body.insert("cmdline".into(), cmdline.as_str().into());
        }
        let texts = [
            ("phone_home", &self.phone_home),
            ("description", &self.description),
            ("os_type", &self.os_type),
        ];
        for (field, given) in texts {
            if let Some(text) = given {
                body.insert(field.into(), text_or_null(text));
            }
        }
        body
    }
}

pub(super) async fn run(remote: Remote, command: Command) -> Result<(), Failure> {
    match command {
        Command::AddKernel {
            name,
            kernel,
            initrd,
            settings,
        } => {
            let mut body = settings.fields();
            body.insert("name".into(), name.into());
            let made = upload(&remote, body.into(), &kernel, &initrd).await?;
            show(&remote, made)
        }
        Command::Set {
            image,
            name,
            settings,
        } => {
            let mut body = settings.fields();
            if let Some(name) = name {
                body.insert("name".into(), name.into());
            }
            if body.is_empty() {
                return Err(Failure::Usage(
                    "nothing to set: see `dls image set --help`".into(),
                ));
            }
            let path = format!("/api/v1/images/{}", segment(&image));
            let body = Value::from(body);
            let changed = remote.fetch(Method::PATCH, &path, Some(&body)).await?;
            show(&remote, changed)
        }
        Command::List => list(&remote, remote.list("/api/v1/images", "images").await?),
        Command::Show { image } => {
            let path = format!("/api/v1/images/{}", segment(&image));
            show(&remote, remote.fetch(Method::GET, &path, None).await?)
        }
        Command::Rm { images, force } => {
            let query = if force { "?force=true" } else { "" };
            for image in images {
                let path = format!("/api/v1/images/{}{query}", segment(&image));
                remote.fetch(Method::DELETE, &path, None).await?;
                if !remote.wants_json() {
                    output::line(&format!("{} removed", output::printable(&image)))?;
                }
            }
            Ok(())
        }
    }
}

async fn upload(
    remote: &Remote,
    image: Value,
    kernel: &Path,
    initrds: &[PathBuf],
) -> Result<Value, Failure> {
    let progress = Progress::default();
    let description = Part::text(image.to_string())
        .mime_str("application/json")
        .map_err(|e| Failure::Failed(e.to_string()))?;
    let mut form = Form::new()
        .part("image", description)
        .part("kernel", file(kernel, &progress).await?);
    for initrd in initrds {
        form = form.part("initrd", file(initrd, &progress).await?);
    }
    let request = remote
        .request(Method::POST, "/api/v1/images")
        .multipart(form);
    let sent = remote.send(request).await;
    progress.end();
    let response = sent?;
    response.json().await.map_err(|e| remote.unreachable(&e))
}

/// A file as a part of known length, read while it is sent.
async fn file(path: &Path, progress: &Progress) -> Result<Part, Failure> {
    let failed = |e: std::io::Error| Failure::Failed(format!("can't read {}: {e}", path.display()));
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let metadata = file.metadata().await.map_err(failed)?;
    if !metadata.is_file() {
        return Err(Failure::Failed(format!("{} is no file", path.display())));
    }
    progress.expect(metadata.len());
    let meter = progress.clone();
    let chunks = ReaderStream::with_capacity(file, 256 * 1024).inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            meter.sent(chunk.len() as u64);
        }
    });
    let body = reqwest::Body::wrap_stream(chunks);
    Ok(Part::stream_with_length(body, metadata.len()).file_name(file_name(path)))
}

/// A line on the terminal that says how far an upload is. Nothing where there is none.
#[derive(Clone, Default)]
struct Progress {
    all: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
    shown: Arc<AtomicU64>,
}

impl Progress {
    fn expect(&self, bytes: u64) {
        self.all.fetch_add(bytes, Ordering::Relaxed);
    }

    fn sent(&self, bytes: u64) {
        let sent = self.sent.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let all = self.all.load(Ordering::Relaxed).max(1);
        let percent = sent.saturating_mul(100) / all;
        if self.shown.swap(percent, Ordering::Relaxed) != percent {
            self.write(&format!("\rsending {percent} %"));
        }
    }

    fn end(&self) {
        self.write("\r\x1b[K");
    }

    fn write(&self, text: &str) {
        let mut err = std::io::stderr();
        if err.is_terminal() {
            // A terminal that went away stops no upload.
            let _ = err.write_all(text.as_bytes());
        }
    }
}

fn list(remote: &Remote, images: Value) -> Result<(), Failure> {
    if remote.wants_json() {
        return output::json(&images);
    }
    let images: Vec<Image> = typed(images)?;
    let rows = images.iter().map(|image| {
        vec![
            image.name.clone(),
            image.kind.to_string(),
            output::bytes(image.size_bytes),
            image.phone_home.to_string(),
            image.os_type.clone().unwrap_or_default(),
            output::time(image.created_at),
        ]
    });
    let head = ["NAME", "KIND", "SIZE", "PHONE HOME", "OS", "CREATED"];
    output::table(&head, rows.collect())
}

fn show(remote: &Remote, value: Value) -> Result<(), Failure> {
    if remote.wants_json() {
        return output::json(&value);
    }
    let image: Image = typed(value)?;
    output::card(&[
        ("name", image.name.clone()),
        ("id", image.id.to_string()),
        ("kind", image.kind.to_string()),
        ("size", output::bytes(image.size_bytes)),
        ("cmdline", image.cmdline.clone()),
        ("phone home", image.phone_home.to_string()),
        ("os", image.os_type.clone().unwrap_or_default()),
        ("description", image.description.clone().unwrap_or_default()),
        ("created", output::time(image.created_at)),
        ("changed", output::time(image.updated_at)),
    ])?;
    for file in &image.files {
        let name = match file.role {
            FileRole::Kernel => "kernel".to_owned(),
            FileRole::Initrd => format!("initrd{}", file.position),
        };
        let size = output::bytes(file.size_bytes);
        output::line(&format!("{name}  {size}  sha256:{}", file.sha256))?;
    }
    Ok(())
}
