//! A path -> bytes: the one room behind both doors.
//!
//! Knows the loaders in `loader_dir` and the files of images in storage; decides who may
//! have what; knows no socket.
//!
//! Loaders are anybody's. All else belongs to one boot: by HTTP to whoever shows its token,
//! by TFTP (which has no room for one) to the address that the tracker knows it by. The
//! files of a boot are those of the image that its script named, even if another one has
//! been assigned since.

mod elsewhere;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use super::disk_words::{DEFAULT_HTTP_PORT, DiskWords};
use super::disks::Disks;
use super::loaders::{DEFAULT_LOADER_DIR, Loaders};
use super::path::{BootPath, Item, Report};
use super::plan::{DiskStanding, Plan, Unready, plan};
use super::script::{Frame, elsewhere, render};
use super::session::{BootFile, Context, Door, Evidence, Observation};
use super::token::{BootToken, boot_url};
use super::tracker::{Known, OpenAttempt, Tracker};
use crate::cache::{Snapshot, View};
use crate::clock::Clock;
use crate::dhcp::decide::Loader;
use crate::model::{Arch, Client, FileRole, Image, Server, UnreadyAction};
use crate::storage::Directory;

/// Which of our addresses the client reached, and its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visitor {
    /// The client's address.
    pub client: Ipv4Addr,
    /// Ours.
    pub server: Ipv4Addr,
    /// By which door.
    pub door: Door,
}

/// What the configuration says about files.
#[derive(Debug, Clone)]
pub struct FilesOptions {
    /// Directories with loaders, best first.
    pub loader_dirs: Vec<PathBuf>,
    /// Name of the image for clients without one.
    pub default_image: Option<String>,
    /// Port of the boot listener, for URLs.
    pub http_port: u16,
    /// Seconds between looks of a waiting machine.
    pub wait_seconds: u32,
    /// Ports of iSCSI and NBD, for scripts and command lines.
    pub disk_ports: (u16, u16),
}

impl Default for FilesOptions {
    fn default() -> Self {
        Self {
            loader_dirs: vec![PathBuf::from(DEFAULT_LOADER_DIR)],
            default_image: None,
            http_port: DEFAULT_HTTP_PORT,
            wait_seconds: 5,
            disk_ports: (3260, 10809),
        }
    }
}

/// The room; clones share it.
#[derive(Debug, Clone)]
pub struct Files {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    view: View,
    tracker: Tracker,
    clock: Clock,
    storage: Directory,
    disks: Disks,
    loaders: Loaders,
    options: FilesOptions,
}

/// What is behind a path.
#[derive(Debug)]
pub enum Content {
    /// Text made for this request.
    Text {
        /// The bytes.
        body: bytes::Bytes,
        /// MIME type.
        mime: &'static str,
    },
    /// A file; open already, so that a change under it does not tear it.
    File {
        /// To read from.
        file: std::fs::File,
        /// Bytes.
        size: u64,
        /// Strong ETag without quotes.
        etag: String,
        /// How the timeline names it, and whose it is (`None`: a loader for a machine we
        /// have no attempt of).
        attempt: Option<(Uuid, crate::model::MacAddr)>,
        /// The file's name in the timeline.
        name: BootFile,
    },
    /// A report was taken.
    Noted,
}

/// Why there is nothing; a metric label, and `Display` is what the client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NoFile {
    /// Bad path.
    #[error("no such file")]
    BadPath,
    /// No such loader in `loader_dir`.
    #[error("no such file")]
    NoLoader,
    /// Wrong token.
    #[error("not yours")]
    BadToken,
    /// That boot is over.
    #[error("this boot is over")]
    Over,
    /// No machine with that address boots from us.
    #[error("not yours")]
    NotBooting,
    /// The image has no such file.
    #[error("no such file")]
    NoSuchItem,
    /// The file is in the catalog but can't be read on this server.
    #[error("the file can't be read on the server")]
    Unreadable,
}

impl NoFile {
    /// Every value, in declaration order.
    pub const ALL: &'static [Self] = &[
        Self::BadPath,
        Self::NoLoader,
        Self::BadToken,
        Self::Over,
        Self::NotBooting,
        Self::NoSuchItem,
        Self::Unreadable,
    ];

    /// Metric label and log word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadPath => "bad_path",
            Self::NoLoader => "no_loader",
            Self::BadToken => "bad_token",
            Self::Over => "boot_over",
            Self::NotBooting => "not_booting",
            Self::NoSuchItem => "no_such_item",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Whether a request leaves a trace in the timeline.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trace {
    Leave,
    None,
}

impl Files {
    /// The room over these.
    #[must_use]
    pub fn new(
        view: View,
        tracker: Tracker,
        clock: Clock,
        storage: Directory,
        disks: Disks,
        options: FilesOptions,
    ) -> Self {
        let loaders = Loaders::new(options.loader_dirs.clone());
        let shared = Arc::new(Shared {
            view,
            tracker,
            clock,
            storage,
            disks,
            loaders,
            options,
        });
        Self { shared }
    }

    /// What is behind a path for this visitor. `report` is the body of a phone-home call.
    /// A script that is given out and a report are noted in the timeline; of files, the door
    /// that sends them says how that went.
    ///
    /// # Errors
    /// See [`NoFile`].
    pub async fn open(
        &self,
        path: &BootPath,
        visitor: Visitor,
        report: Option<&str>,
    ) -> Result<Content, NoFile> {
        self.shared.open(path, visitor, report, Trace::Leave).await
    }

    /// Like [`Files::open`], but nothing is noted: for HTTP's HEAD. Reports have none.
    ///
    /// # Errors
    /// See [`NoFile`].
    pub async fn peek(&self, path: &BootPath, visitor: Visitor) -> Result<Content, NoFile> {
        if let BootPath::Mine {
            item: Item::Report(_),
            ..
        } = path
        {
            return Err(NoFile::NoSuchItem);
        }
        self.shared.open(path, visitor, None, Trace::None).await
    }

    /// The loader for an architecture: an answer from disk, at most a second old.
    #[must_use]
    pub fn loader_for(&self, arch: Arch) -> Loader {
        let now = self.shared.clock.instant();
        self.shared.loaders.for_arch(arch, now)
    }

    /// The tracker, for the door that reports how a file went.
    #[must_use]
    pub fn tracker(&self) -> &Tracker {
        &self.shared.tracker
    }

    /// The clock that observations are timed by.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }
}

/// The catalog's view of one boot.
struct Case {
    client: Option<Arc<Client>>,
    image: Option<Arc<Image>>,
    plan: Plan,
    /// The server that it goes on at.
    server: Option<Server>,
}

impl Shared {
    async fn open(
        self: &Arc<Self>,
        path: &BootPath,
        visitor: Visitor,
        report: Option<&str>,
        trace: Trace,
    ) -> Result<Content, NoFile> {
        let (proof, item) = match path {
            BootPath::Loader(name) => return self.loader(name, visitor).await,
            BootPath::Mine { proof, item } => (proof, *item),
        };
        let snapshot = self.view.get();
        if let (Some((id, token)), Item::Report(kind)) = (proof, item) {
            let key = snapshot.site_key();
            // Of its URL, or made of its disk's secret. Both are looked at in any case, so that
            // the time it takes says nothing.
            let of_url = BootToken::make(key, *id).matches(token);
            let of_disk = BootToken::report(key, *id).matches(token);
            if !(of_url | of_disk) {
                return Err(NoFile::BadToken);
            }
            return self.report(*id, kind, report, visitor);
        }
        let attempt = match proof {
            Some((id, token)) => {
                if !BootToken::make(snapshot.site_key(), *id).matches(token) {
                    return Err(NoFile::BadToken);
                }
                self.open_boot(*id, &item).await.ok_or(NoFile::Over)?
            }
            None => self
                .tracker
                .attempt_at(visitor.client)
                .ok_or(NoFile::NotBooting)?,
        };
        match item {
            Item::Script => Ok(self.script(&snapshot, &attempt, visitor, trace).await),
            Item::Kernel => {
                self.image_file(&snapshot, &attempt, visitor, FileRole::Kernel, 0)
                    .await
            }
            Item::Initrd(n) => {
                self.image_file(&snapshot, &attempt, visitor, FileRole::Initrd, n)
                    .await
            }
            // A report needs its token.
            Item::Report(_) => Err(NoFile::NotBooting),
        }
    }

    /// Notes a phone-home call. It concerns the boot whose token it shows, even if that is
    /// over for us or the machine has begun another since.
    fn report(
        &self,
        id: Uuid,
        kind: Report,
        body: Option<&str>,
        visitor: Visitor,
    ) -> Result<Content, NoFile> {
        let attempt = match self.tracker.known(id) {
            Known::Open(attempt) | Known::Over(attempt) => attempt,
            Known::Never => return Err(NoFile::Over),
        };
        let what = match kind {
            Report::Up => Evidence::Up,
            Report::Beat => Evidence::Beat,
            Report::Bye => Evidence::Bye(body.and_then(reason)),
        };
        // The system may report from another address than the one it booted by.
        let context = Context {
            range_id: attempt.range_id,
            server_ip: Some(visitor.server),
            ..Context::default()
        };
        let observation = Observation {
            mac: attempt.mac,
            at: self.clock.now(),
            what,
            context,
        };
        match self.tracker.report(id, observation) {
            Known::Open(_) | Known::Over(_) => Ok(Content::Noted),
            Known::Never => Err(NoFile::Over),
        }
    }

    async fn loader(self: &Arc<Self>, name: &str, visitor: Visitor) -> Result<Content, NoFile> {
        let shared = self.clone();
        let wanted = name.to_owned();
        let opened = tokio::task::spawn_blocking(move || shared.loaders.open(&wanted)).await;
        let opened = match opened {
            Ok(Ok(Some(opened))) => opened,
            Ok(Ok(None)) => return Err(NoFile::NoLoader),
            Ok(Err(error)) => {
                tracing::warn!(file = name, %error, "a loader can't be read");
                return Err(NoFile::Unreadable);
            }
            Err(error) => {
                tracing::warn!(file = name, %error, "a loader can't be read");
                return Err(NoFile::Unreadable);
            }
        };
        let attempt = self.tracker.attempt_at(visitor.client);
        Ok(Content::File {
            file: opened.file,
            size: opened.size,
            etag: opened.etag,
            attempt: attempt.map(|a| (a.id, a.mac)),
            name: BootFile::Loader(name.to_owned()),
        })
    }

    async fn case(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        attempt: &OpenAttempt,
        visitor: Visitor,
    ) -> Case {
        let client = snapshot.client_by_mac(attempt.mac).cloned();
        let image = match client.as_ref().and_then(|c| c.assigned_image_id) {
            Some(id) => snapshot.image(id),
            None => self
                .options
                .default_image
                .as_ref()
                .and_then(|name| snapshot.image_by_name(name)),
        };
        let range = attempt
            .range_id
            .and_then(|id| snapshot.range(id))
            .or_else(|| snapshot.range_of(visitor.client));
        let (standing, server) = match (&client, image) {
            (Some(client), Some(image)) if client.enabled => {
                self.disk_standing(attempt.id, client.id, image).await
            }
            _ => (DiskStanding::Ready, None),
        };
        let plan = plan(
            client.as_deref(),
            image.map(AsRef::as_ref),
            range.map(AsRef::as_ref),
            standing,
        );
        Case {
            image: image.cloned(),
            client,
            plan,
            server,
        }
    }

    async fn script(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        attempt: &OpenAttempt,
        visitor: Visitor,
        trace: Trace,
    ) -> Content {
        let case = self.case(snapshot, attempt, visitor).await;
        let words = case.client.as_ref().map(|client| {
            DiskWords::new(
                snapshot.site_key(),
                attempt.id,
                client.id,
                visitor.server,
                self.options.disk_ports,
            )
            .reporting_at(self.options.http_port)
        });
        let hostname = case.client.as_ref().map_or("", |c| c.hostname.as_str());
        let image = case.image.as_ref().map_or("", |i| i.name.as_str());
        let url = boot_url(
            visitor.server,
            self.options.http_port,
            snapshot.site_key(),
            attempt.id,
        );
        let frame = Frame {
            url: &url,
            mac: attempt.mac,
            hostname,
            image,
            wait_seconds: self.options.wait_seconds,
            disk: words.as_ref(),
        };
        let plan = super::script::checked(case.plan, &frame);
        let sent = match &plan {
            Plan::Unready {
                why: Unready::SentToServer,
                ..
            } => case.server.as_ref(),
            _ => None,
        };
        let there = sent.and_then(|server| self.url_at(snapshot, server, visitor, attempt.id));
        let text = match (sent, &there) {
            (Some(server), Some(url)) => elsewhere(
                &server.name,
                &Frame {
                    url,
                    ..frame.clone()
                },
            ),
            _ => render(&plan, &frame),
        };
        let to = sent.filter(|_| there.is_some()).map(|server| server.id);
        if trace == Trace::Leave {
            let unready = match plan {
                Plan::Kernel { .. } | Plan::Disk { .. } => None,
                Plan::Unready { why, action } => {
                    Some((why.as_str(), action == UnreadyAction::Wait))
                }
            };
            let context = Context {
                client: case.client.map(|c| (c.id, c.hostname.clone())),
                phone_home: case.image.as_ref().map(|i| i.phone_home),
                boot_method: case.image.as_ref().and_then(|i| i.disk_method()),
                image: case.image.map(|i| (i.id, i.name.clone())),
                client_ip: Some(visitor.client),
                ..Context::default()
            };
            self.observe(attempt, visitor, Evidence::Script { unready }, context);
            if let Some(server) = to {
                self.tracker.hand_over(attempt.id, server);
            }
        }
        Content::Text {
            body: text.into(),
            mime: "text/plain; charset=utf-8",
        }
    }

    async fn image_file(
        self: &Arc<Self>,
        snapshot: &Snapshot,
        attempt: &OpenAttempt,
        visitor: Visitor,
        role: FileRole,
        position: u8,
    ) -> Result<Content, NoFile> {
        let image_id = match attempt.image_id {
            Some(id) => id,
            // A loader with a script of its own (GRUB's, say) may never ask for ours.
            None => match self.case(snapshot, attempt, visitor).await.plan {
                Plan::Kernel { image_id, .. } => image_id,
                Plan::Disk { .. } | Plan::Unready { .. } => return Err(NoFile::NoSuchItem),
            },
        };
        let image = snapshot.image(image_id).ok_or(NoFile::NoSuchItem)?;
        let wanted = image
            .file(role, i32::from(position))
            .ok_or(NoFile::NoSuchItem)?;
        let (file, size) = self.storage.open_file(&wanted.path).await.map_err(|error| {
            tracing::warn!(image.name = %image.name, %error, "a file of an image can't be read");
            NoFile::Unreadable
        })?;
        if i64::try_from(size).ok() != Some(wanted.size_bytes) {
            tracing::warn!(
                image.name = %image.name,
                file = %wanted.path,
                size,
                expected = wanted.size_bytes,
                "a file of an image has another size than in the catalog"
            );
            return Err(NoFile::Unreadable);
        }
        Ok(Content::File {
            file,
            size,
            etag: wanted.sha256.clone(),
            attempt: Some((attempt.id, attempt.mac)),
            name: BootFile::Image(role, position),
        })
    }

    fn observe(
        &self,
        attempt: &OpenAttempt,
        visitor: Visitor,
        what: Evidence,
        mut context: Context,
    ) {
        context.range_id = attempt.range_id;
        context.server_ip = Some(visitor.server);
        self.tracker.observe(Observation {
            mac: attempt.mac,
            at: self.clock.now(),
            what,
            context,
        });
    }
}

/// The reason that came with a `bye`, as one short line; `None` if it is blank.
fn reason(body: &str) -> Option<String> {
    let line: String = body
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect();
    let line = line.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_short_line() {
        assert_eq!(reason("poweroff\n").as_deref(), Some("poweroff"));
        assert_eq!(reason(" \r\n"), None);
        assert_eq!(reason("a\nb\x1b[2J").as_deref(), Some("a b [2J"));
        assert_eq!(reason(&"x".repeat(1000)).map(|r| r.len()), Some(200));
    }
}
