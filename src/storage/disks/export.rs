//! From a frozen layer with all below it to a file for somebody else.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::import::write_sparse;
use super::manifest::Form;
use super::shelf::OpenLayer;
use super::{io_error, qemu};
use crate::storage::directory::sync_folder;
use crate::storage::layer::{Content, Wait};
use crate::storage::{DiskFormat, ExtentKind, Progress, VolumeError};

/// Removes what is not finished.
struct Unfinished<'a>(&'a Path, bool);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.1 {
            let _ = fs::remove_file(self.0);
        }
    }
}

/// Writes `layer`, whose file is at `path`, to a new file at `to`.
pub(super) fn export(
    layer: &OpenLayer,
    path: &Path,
    form: Form,
    to: &Path,
    format: DiskFormat,
    progress: &mut dyn FnMut(Progress),
    cancel: &CancellationToken,
) -> Result<(), VolumeError> {
    let failed = |e| io_error(&format!("writing {}", to.display()), e);
    let to = &std::path::absolute(to).map_err(failed)?;
    let folder = to.parent().unwrap_or(Path::new("/"));
    // The name is taken first; the content comes under another until it is whole.
    let new = || {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o640);
        options
    };
    match new().open(to) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(VolumeError::Exists(to.display().to_string()));
        }
        Err(e) => return Err(failed(e)),
    }
    let mut taken = Unfinished(to, true);
    let part = folder.join(format!(".{}.part", Uuid::new_v4()));
    let mut unfinished = Unfinished(&part, true);
    match format {
        DiskFormat::Raw => {
            let file = new().open(&part).map_err(failed)?;
            raw(layer, &file, progress, cancel)?;
        }
        DiskFormat::Qcow2 | DiskFormat::Vhdx => {
            convert(path, form, &part, format, progress, cancel)?;
        }
        DiskFormat::Vmdk => {
            return Err(VolumeError::BadSource(
                "vmdk is taken, not given: export raw, qcow2 or vhdx".to_owned(),
            ));
        }
    }
    let synced = File::open(&part).and_then(|f| f.sync_all());
    synced.map_err(failed)?;
    fs::rename(&part, to).map_err(failed)?;
    unfinished.1 = false;
    sync_folder(folder).map_err(failed)?;
    taken.1 = false;
    Ok(())
}

fn raw(
    layer: &OpenLayer,
    file: &File,
    progress: &mut dyn FnMut(Progress),
    cancel: &CancellationToken,
) -> Result<(), VolumeError> {
    let failed = |e| io_error("exporting a disk", e);
    let size = layer.size();
    file.set_len(size).map_err(failed)?;
    let mut chunk = vec![0; 1024 * 1024];
    let mut at = 0;
    while at < size {
        if cancel.is_cancelled() {
            return Err(VolumeError::Cancelled);
        }
        let run = layer.run(at, size - at).map_err(failed)?;
        if run.kind == ExtentKind::Data {
            let length = run.length.min(chunk.len() as u64);
            let part = &mut chunk[..usize::try_from(length).unwrap_or(0)];
            layer.read(at, part, Wait::Yes).map_err(failed)?;
            write_sparse(file, at, part).map_err(failed)?;
            at += length;
        } else {
            at += run.length;
        }
        progress(Progress {
            step: "copying",
            done: at as f64 / size as f64,
        });
    }
    Ok(())
}

fn convert(
    path: &Path,
    form: Form,
    to: &Path,
    format: DiskFormat,
    progress: &mut dyn FnMut(Progress),
    cancel: &CancellationToken,
) -> Result<(), VolumeError> {
    let (Some(from), Some(target)) = (path.to_str(), to.to_str()) else {
        return Err(VolumeError::BadSource(format!(
            "the path {} is not in UTF-8",
            to.display()
        )));
    };
    // Paths of ours, absolute: the layer's file names those below it.
    let arguments = [
        "convert",
        "-p",
        "-f",
        form.as_str(),
        "-O",
        format.as_str(),
        from,
        target,
    ];
    let alive = || fs::metadata(to).map_or(0, |m| m.blocks());
    let mut tell = |done| {
        progress(Progress {
            step: "copying",
            done,
        });
    };
    let ended = qemu::run(&arguments, &mut tell, &alive, cancel)?;
    if ended.status.success() {
        return Ok(());
    }
    if ended.complaint.contains("No space left on device") {
        return Err(VolumeError::NoSpace);
    }
    Err(VolumeError::Io {
        what: "exporting a disk by qemu-img".to_owned(),
        source: std::io::Error::other(ended.complaint),
    })
}
