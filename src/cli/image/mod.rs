//! `dls image`: what machines boot. `transfer`: disk files to the server and back. `check`: would
//! it boot? `replicas`: versions on several servers. `meter`: how far something long is.

mod check;
mod meter;
mod replicas;
mod transfer;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use futures_util::StreamExt;
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::{Map, Value};
use tokio_util::io::ReaderStream;

use meter::Meter;

use super::client::text_or_null;
use super::remote::{Remote, file_name, segment, typed};
use super::{Failure, output};
use crate::model::{FileRole, Image, ImageKind};

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
    /// Add an image of a disk: raw, qcow2, vhdx or vmdk
    Import {
        /// Its name
        name: String,
        /// The disk file; an upload that was interrupted goes on by itself
        #[arg(required_unless_present = "on_server")]
        file: Option<PathBuf>,
        /// Instead of FILE: a file that lies on the server, below its `[storage] import_dir`
        #[arg(long, value_name = "PATH", conflicts_with_all = ["file", "restart"])]
        on_server: Option<String>,
        /// raw, qcow2, vhdx or vmdk [default: as the file begins]
        #[arg(long, value_parser = ["raw", "qcow2", "vhdx", "vmdk"])]
        format: Option<String>,
        /// What the file's SHA-256 must be
        #[arg(long, value_name = "HEX")]
        sha256: Option<String>,
        /// Forget what an earlier try has sent
        #[arg(long)]
        restart: bool,
        /// A base for others
        #[arg(long)]
        template: bool,
        /// Refuse a disk that would not boot: see `dls image check`
        #[arg(long)]
        require_bootable: bool,
        /// Kernel file, for the boot methods iscsi and nbd
        #[arg(long, value_name = "FILE")]
        kernel: Option<PathBuf>,
        /// Initrd file; may be repeated, they are loaded in this order
        #[arg(long, value_name = "FILE", requires = "kernel")]
        initrd: Vec<PathBuf>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Say what would stop an image's disk from booting diskless, and the way out
    Check {
        /// Name or id
        image: String,
        /// What was found last, without looking again
        #[arg(long)]
        last: bool,
    },
    /// Write an image's disk to a file
    Export {
        /// Name or id
        image: String,
        /// The file, which must not be there yet
        file: PathBuf,
        /// Its format
        #[arg(long, value_parser = ["raw", "qcow2", "vhdx"], default_value = "raw")]
        format: String,
        /// The version [default: the one in production]
        #[arg(long = "version", value_name = "NAME")]
        of_version: Option<String>,
    },
    /// Make an image from another one; takes no time and shares its space
    Clone {
        /// Name or id
        image: String,
        /// Name of the new one
        new: String,
        /// The new one is a template too
        #[arg(long)]
        template: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Give a disk image the kernel that it is booted by
    AddFiles {
        /// Name or id
        image: String,
        /// Kernel file
        #[arg(long, value_name = "FILE")]
        kernel: PathBuf,
        /// Initrd file; may be repeated, they are loaded in this order
        #[arg(long, value_name = "FILE")]
        initrd: Vec<PathBuf>,
        /// In place of those it has
        #[arg(long)]
        replace: bool,
    },
    /// Change what is known of an image; its files stay
    Set {
        /// Name or id
        image: String,
        /// Another name
        #[arg(long)]
        name: Option<String>,
        /// Whether it is a base for others
        #[arg(long)]
        template: Option<bool>,
        #[command(flatten)]
        settings: Settings,
    },
    /// List the images
    List {
        /// Only templates
        #[arg(long)]
        templates: bool,
    },
    /// Say what is stored for nobody, and which images lack what they need
    Orphans {
        /// Remove what is stored for nobody
        #[arg(long)]
        remove: bool,
    },
    /// Send a version of an image to another server of the same catalog
    Replicate {
        /// Name or id
        image: String,
        /// The server: name or id
        #[arg(long, value_name = "SERVER")]
        to: String,
        /// The version [default: the one in production]
        #[arg(long = "version", value_name = "NAME")]
        of_version: Option<String>,
        /// Return at once: it goes on by itself
        #[arg(long)]
        no_wait: bool,
    },
    /// Say which server has which version
    Replicas {
        /// Name or id [default: all images]
        image: Option<String>,
    },
    /// Remove a version from a server that others have too, or end its copying
    RmReplica {
        /// Name or id
        image: String,
        /// The server: name or id
        #[arg(long = "from", value_name = "SERVER")]
        from: String,
        /// The version [default: the one in production]
        #[arg(long = "version", value_name = "NAME")]
        of_version: Option<String>,
    },
    /// Show one image
    Show {
        /// Name or id
        image: String,
    },
    /// Remove images with their disks and files
    #[command(visible_alias = "delete")]
    Rm {
        /// Name or id
        #[arg(required = true)]
        images: Vec<String>,
        /// Even if clients are assigned to it: they wait then
        #[arg(long)]
        force: bool,
        /// Even if clients have written to disks of their own of it: that is lost
        #[arg(long)]
        discard_disks: bool,
    },
}

/// What is set of an image.
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
    /// How a disk is booted: san (the loader does it), or a kernel of its own with its root
    /// on iscsi or nbd
    #[arg(long, value_parser = ["san", "iscsi", "nbd"])]
    boot_method: Option<String>,
}

impl Settings {
    fn fields(&self) -> Map<String, Value> {
        let mut body = Map::new();
        if let Some(cmdline) = &self.cmdline {
            body.insert("cmdline".into(), cmdline.as_str().into());
        }
        let texts = [
            ("boot_method", &self.boot_method),
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

impl Settings {
    /// As query parameters; a new row has no fields to empty.
    fn parameters(&self, template: bool) -> Vec<(&'static str, String)> {
        let template = template.then(|| "true".to_owned());
        [
            ("boot_method", &self.boot_method),
            ("cmdline", &self.cmdline),
            ("description", &self.description),
            ("is_template", &template),
            ("os_type", &self.os_type),
            ("phone_home", &self.phone_home),
        ]
        .into_iter()
        .filter_map(|(name, given)| Some((name, given.clone()?)))
        .filter(|(_, text)| !text.is_empty())
        .collect()
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
            let path = "/api/v1/images";
            let made = upload(&remote, path, Some(body.into()), &kernel, &initrd).await?;
            show(&remote, made).await
        }
        Command::Import {
            name,
            file,
            on_server,
            format,
            sha256,
            restart,
            template,
            require_bootable,
            kernel,
            initrd,
            settings,
        } => {
            let mut fields = settings.parameters(template);
            if require_bootable {
                fields.push(("require_bootable", "true".to_owned()));
            }
            let file = file.unwrap_or_default();
            let wanted = transfer::Import {
                name: &name,
                file: &file,
                format,
                sha256,
                fields,
                restart,
            };
            let mut made = match on_server {
                Some(path) => transfer::import_on_server(&remote, wanted, &path).await?,
                None => transfer::import(&remote, wanted).await?,
            };
            if let Some(kernel) = kernel {
                let path = format!("/api/v1/images/{}/files", segment(&name));
                made = upload(&remote, &path, None, &kernel, &initrd).await?;
            }
            show(&remote, made).await
        }
        Command::Replicate {
            image,
            to,
            of_version,
            no_wait,
        } => replicas::replicate(&remote, &image, &to, of_version.as_deref(), !no_wait).await,
        Command::Replicas { image } => replicas::list(&remote, image.as_deref()).await,
        Command::RmReplica {
            image,
            from,
            of_version,
        } => replicas::remove(&remote, &image, &from, of_version.as_deref()).await,
        Command::Check { image, last } => check::run(&remote, &image, last).await,
        Command::Export {
            image,
            file,
            format,
            of_version,
        } => {
            let version = of_version.as_deref();
            transfer::export(&remote, &image, &file, &format, version).await?;
            if remote.wants_json() {
                return Ok(());
            }
            let (image, file) = (output::printable(&image), file.display());
            output::line(&format!("{image} written to {file}"))
        }
        Command::Clone {
            image,
            new,
            template,
            settings,
        } => {
            let mut body = settings.fields();
            body.insert("name".into(), new.into());
            body.insert("is_template".into(), template.into());
            let path = format!("/api/v1/images/{}/clone", segment(&image));
            let body = Value::from(body);
            let made = remote.fetch(Method::POST, &path, Some(&body)).await?;
            show(&remote, made).await
        }
        Command::AddFiles {
            image,
            kernel,
            initrd,
            replace,
        } => {
            let path = format!("/api/v1/images/{}/files", segment(&image));
            if replace {
                remote.fetch(Method::DELETE, &path, None).await?;
            }
            let made = upload(&remote, &path, None, &kernel, &initrd).await?;
            show(&remote, made).await
        }
        Command::Set {
            image,
            name,
            template,
            settings,
        } => {
            let mut body = settings.fields();
            if let Some(template) = template {
                body.insert("is_template".into(), template.into());
            }
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
            show(&remote, changed).await
        }
        Command::List { templates } => {
            let query = if templates { "?templates=true" } else { "" };
            let path = format!("/api/v1/images{query}");
            list(&remote, remote.list(&path, "images").await?)
        }
        Command::Orphans { remove } => {
            let method = if remove { Method::DELETE } else { Method::GET };
            orphans(
                &remote,
                remote.fetch(method, "/api/v1/orphans", None).await?,
            )
        }
        Command::Show { image } => {
            let path = format!("/api/v1/images/{}", segment(&image));
            show(&remote, remote.fetch(Method::GET, &path, None).await?).await
        }
        Command::Rm {
            images,
            force,
            discard_disks,
        } => {
            let query = format!("?force={force}&discard_disks={discard_disks}");
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
    path: &str,
    image: Option<Value>,
    kernel: &Path,
    initrds: &[PathBuf],
) -> Result<Value, Failure> {
    let mut all = 0;
    for file in std::iter::once(kernel).chain(initrds.iter().map(PathBuf::as_path)) {
        all += std::fs::metadata(file).map_or(0, |metadata| metadata.len());
    }
    let meter = Meter::of_bytes("sending", all).without_lines();
    let mut form = Form::new();
    if let Some(image) = image {
        let description = Part::text(image.to_string())
            .mime_str("application/json")
            .map_err(|e| Failure::Failed(e.to_string()))?;
        form = form.part("image", description);
    }
    form = form.part("kernel", file(kernel, &meter).await?);
    for initrd in initrds {
        form = form.part("initrd", file(initrd, &meter).await?);
    }
    let request = remote.request(Method::POST, path).multipart(form);
    let sent = remote.send(request).await;
    meter.end();
    let response = sent?;
    response.json().await.map_err(|e| remote.unreachable(&e))
}

/// A file as a part of known length, read while it is sent.
async fn file(path: &Path, meter: &Meter) -> Result<Part, Failure> {
    let failed = |e: std::io::Error| Failure::Failed(format!("can't read {}: {e}", path.display()));
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let metadata = file.metadata().await.map_err(failed)?;
    if !metadata.is_file() {
        return Err(Failure::Failed(format!("{} is no file", path.display())));
    }
    let meter = meter.clone();
    let chunks = ReaderStream::with_capacity(file, 256 * 1024).inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            meter.add(chunk.len() as u64);
        }
    });
    let body = reqwest::Body::wrap_stream(chunks);
    Ok(Part::stream_with_length(body, metadata.len()).file_name(file_name(path)))
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

/// What there is beside the catalog.
fn orphans(remote: &Remote, stock: Value) -> Result<(), Failure> {
    if remote.wants_json() {
        return output::json(&stock);
    }
    let list = |key: &str| stock.get(key).and_then(Value::as_array).cloned();
    let text = |row: &Value, key: &str| -> String {
        row.get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let stored = list("orphans").unwrap_or_default();
    let rows = stored.iter().map(|row| {
        let used = row.get("used_bytes").and_then(Value::as_i64);
        vec![
            text(row, "path"),
            output::maybe(used.map(output::bytes)),
            text(row, "reason"),
        ]
    });
    output::table(&["STORED", "USED", "WHY NOBODY'S"], rows.collect())?;
    let missing = list("missing").unwrap_or_default();
    if missing.is_empty() {
        return Ok(());
    }
    let rows = missing
        .iter()
        .map(|row| vec![text(row, "name"), text(row, "what")]);
    output::table(&["IMAGE", "MISSES HERE"], rows.collect())
}

async fn show(remote: &Remote, value: Value) -> Result<(), Failure> {
    if remote.wants_json() {
        return output::json(&value);
    }
    let image: Image = typed(value)?;
    let path = format!("/api/v1/images/{}/usage", image.id);
    let usage = remote.fetch(Method::GET, &path, None).await?;
    let names = |key: &str| {
        let names = usage.get(key).and_then(Value::as_array);
        let names = names.into_iter().flatten().filter_map(Value::as_str);
        output::several(names)
    };
    let used = usage.get("used_bytes").and_then(Value::as_i64);
    let is_disk = image.kind == ImageKind::Disk;
    let of_disk = |text: String| if is_disk { text } else { String::new() };
    let checked = match is_disk {
        true => check::last(remote, &image.id.to_string()).await?,
        false => String::new(),
    };
    output::card(&[
        ("name", image.name.clone()),
        ("id", image.id.to_string()),
        ("kind", image.kind.to_string()),
        ("size", output::bytes(image.size_bytes)),
        ("used", of_disk(output::maybe(used.map(output::bytes)))),
        ("sha256", image.sha256.clone().unwrap_or_default()),
        ("source", image.source_format.clone().unwrap_or_default()),
        ("boot method", of_disk(image.boot_method.to_string())),
        ("check", checked),
        (
            "template",
            if image.is_template { "yes" } else { "" }.to_owned(),
        ),
        ("parent", output::maybe(image.parent_image_id)),
        ("children", names("children")),
        ("clients", names("clients")),
        ("sessions", names("sessions")),
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
