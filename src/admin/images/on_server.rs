//! `POST /api/v1/imports`: a disk of a file that lies on this server already, below the
//! folder that the configuration names (`[storage] import_dir`).
//!
//! The path is walked name by name from that folder, and no symbolic link is followed, not
//! even the last. What was opened is what is imported, however its name is changed meanwhile:
//! the conversion is told of the open file, not of the path. The file itself is never changed.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use axum::extract::State;
use axum::response::Response;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use serde_json::{Map, Value};

use super::content::{busy, upload_of};
use super::{blocking, vacant};
use crate::admin::error::ApiError;
use crate::admin::extract::{JsonObject, shown};
use crate::admin::{Shared, imports};
use crate::storage::{Held, Hold, StorageError};

/// `POST /api/v1/imports`: `name` and `path`, and what else an upload has as parameters.
pub(in crate::admin) async fn import(
    State(api): State<Shared>,
    JsonObject(mut body): JsonObject,
) -> Result<Response, ApiError> {
    let path = text(&mut body, "path")?;
    let path = path.ok_or_else(|| ApiError::invalid("path", "is needed"))?;
    let (format, sha256) = (text(&mut body, "format")?, text(&mut body, "sha256")?);
    let require = match body.remove("require_bootable") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(require)) => require,
        Some(_) => {
            return Err(ApiError::invalid(
                "require_bootable",
                "must be true or false",
            ));
        }
    };
    let mut upload = upload_of(&api, body, format, sha256, require)?;
    let name = upload.image.name.clone();
    let Some(folder) = api.limits.import_dir.clone() else {
        return Err(ApiError::invalid(
            "path",
            "no file of this server may be imported: [storage] import_dir is not set",
        ));
    };
    let (file, place) = {
        let (folder, path) = (folder.clone(), path.clone());
        let opened = move || Ok::<_, StorageError>(below(&folder, Path::new(&path)));
        blocking(opened)
            .await?
            .map_err(|why| ApiError::invalid("path", why))?
    };
    drop(file);
    vacant(&api, &name).await?;
    upload.source = Some(place);
    let (uploads, new) = (api.uploads.clone(), upload.clone());
    let claimed = {
        let name = name.clone();
        blocking(move || uploads.claim(&name, Hold::Importing, || Some(new))).await?
    };
    let held = claimed.map_err(|other| busy(&other))?;
    let held = held.ok_or_else(|| ApiError::Internal("an upload vanished".to_owned()))?;
    if held.upload().image.id != upload.image.id {
        // Dropped, it stays as it is.
        return Err(ApiError::Conflict {
            field: "name",
            message: format!(
                "an upload of this name is there: go on with that one, or remove it (DELETE /api/v1/uploads/{})",
                shown(&name)
            ),
        });
    }
    tracing::info!(image.name = name, path, "importing a file of this server");
    let id = imports::start(&api, held);
    Ok(imports::accepted(&api, id))
}

fn text(body: &mut Map<String, Value>, field: &'static str) -> Result<Option<String>, ApiError> {
    match body.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(ApiError::invalid(field, "must be a text")),
    }
}

/// The file that an import reads.
pub(in crate::admin) struct Source {
    /// Where to open it.
    pub(in crate::admin) path: PathBuf,
    /// Keeps `path` valid.
    _file: Option<File>,
}

impl Source {
    /// Opens what an upload stands for: what was received, or a file of this server.
    ///
    /// # Errors
    /// It may not be imported any more; says why.
    pub(in crate::admin) async fn of(api: &Shared, held: &Held) -> Result<Self, ApiError> {
        let Some(place) = held.upload().source.clone() else {
            return Ok(Self {
                path: held.source(),
                _file: None,
            });
        };
        let folder = api.limits.import_dir.clone();
        let opened = move || {
            let folder = folder.ok_or("[storage] import_dir is not set any more");
            Ok::<_, StorageError>(
                folder
                    .map_err(str::to_owned)
                    .and_then(|f| below(&f, &place)),
            )
        };
        let (file, _) = blocking(opened)
            .await?
            .map_err(|why| ApiError::invalid("path", why))?;
        Ok(Self {
            path: PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
            _file: Some(file),
        })
    }
}

/// Opens a file below a folder, by its path from there or its whole path; tells the latter.
fn below(folder: &Path, path: &Path) -> Result<(File, PathBuf), String> {
    let outside = || format!("must be a file in {} or below it", folder.display());
    let relative = if path.is_absolute() {
        path.strip_prefix(folder).map_err(|_| outside())?
    } else {
        path
    };
    let mut names = Vec::new();
    for part in relative.components() {
        match part {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(outside());
            }
        }
    }
    let last = names.pop().ok_or_else(outside)?;
    // The admin's own setting may be a link.
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let failed = |e: Errno| match e {
        Errno::ELOOP | Errno::ENOTDIR => {
            "has a symbolic link in it, or goes through a file: links are not followed".to_owned()
        }
        Errno::ENOENT => "is not there".to_owned(),
        other => format!("can't be opened: {}", other.desc()),
    };
    let mut at: OwnedFd = open(folder, flags, Mode::empty())
        .map_err(|e| format!("[storage] import_dir can't be opened: {}", e.desc()))?;
    for name in names {
        at = openat(&at, name, flags | OFlag::O_NOFOLLOW, Mode::empty()).map_err(failed)?;
    }
    // Not closed on exec: qemu-img opens it by its number. A FIFO must not hold us.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::from(openat(&at, last, flags, Mode::empty()).map_err(failed)?);
    let metadata = file
        .metadata()
        .map_err(|e| format!("can't be opened: {e}"))?;
    if !metadata.is_file() {
        return Err("is no file".to_owned());
    }
    if metadata.len() == 0 {
        return Err("is empty".to_owned());
    }
    Ok((file, folder.join(relative)))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_files_below_the_folder_are_opened_and_no_link_is_followed() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("disks");
        std::fs::create_dir_all(folder.join("a/b")).unwrap();
        std::fs::write(home.path().join("secret"), "secret").unwrap();
        std::fs::write(folder.join("a/b/disk"), "a disk").unwrap();
        std::fs::write(folder.join("empty"), "").unwrap();
        symlink("../secret", folder.join("link")).unwrap();
        symlink("a", folder.join("through")).unwrap();
        symlink(home.path(), folder.join("out")).unwrap();
        nix::unistd::mkfifo(&folder.join("pipe"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();

        let whole = folder.join("a/b/disk");
        for good in ["a/b/disk", "./a/./b/disk", whole.to_str().unwrap()] {
            let (mut file, place) = below(&folder, Path::new(good)).unwrap();
            let mut content = String::new();
            file.read_to_string(&mut content).unwrap();
            assert_eq!((content.as_str(), &place), ("a disk", &whole), "{good}");
            // As the conversion opens it.
            let again = format!("/proc/self/fd/{}", file.as_raw_fd());
            assert_eq!(std::fs::read(again).unwrap(), b"a disk");
        }
        let secret = home.path().join("secret");
        let roundabout = folder.join("../secret");
        for (bad, why) in [
            ("../secret", "below it"),
            ("a/../../secret", "below it"),
            (secret.to_str().unwrap(), "below it"),
            (roundabout.to_str().unwrap(), "below it"),
            ("", "below it"),
            (".", "below it"),
            ("link", "symbolic link"),
            ("through/b/disk", "symbolic link"),
            ("out/secret", "symbolic link"),
            ("a/b/disk/x", "goes through a file"),
            ("a/b", "is no file"),
            ("pipe", "is no file"),
            ("empty", "is empty"),
            ("none", "is not there"),
        ] {
            let refused = below(&folder, Path::new(bad)).unwrap_err();
            assert!(refused.contains(why), "{bad}: {refused}");
        }
    }
}
