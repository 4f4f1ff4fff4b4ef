//! `qemu-img` as a child: by arguments and never a shell, always told the format, within
//! bounds, killed when it makes no progress or is not wanted any more.
//!
//! A file from outside must not make it open another one: see [`image`] and
//! [`super::import`], which looks at headers before.

use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::storage::nowait::{Bounds, confine};
use crate::storage::{DiskFormat, VolumeError};

/// How often a child is looked after.
const TICK: Duration = Duration::from_millis(50);
/// Ticks without progress after which a child is killed: five minutes.
const PATIENCE: u32 = 6000;
const BOUNDS: Bounds = Bounds {
    memory: 8 << 30,
    seconds: 24 * 3600,
};

/// A file as an argument: driver and file are said outright, so that nothing in the name or
/// the content chooses another driver, and what the file says about files below it is not
/// followed.
pub(super) fn image(path: &Path, format: DiskFormat) -> Result<String, VolumeError> {
    let Some(path) = path.to_str() else {
        return Err(VolumeError::BadSource(format!(
            "the path {} is not in UTF-8",
            path.display()
        )));
    };
    let file = serde_json::json!({ "driver": "file", "filename": path });
    let mut image = serde_json::json!({
        "driver": match format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Vhdx => "vhdx",
            DiskFormat::Vmdk => "vmdk",
        },
        "file": file,
    });
    if matches!(format, DiskFormat::Qcow2 | DiskFormat::Vmdk) {
        image["backing"] = serde_json::Value::Null;
    }
    Ok(format!("json:{image}"))
}

/// A child that ends with its handle.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How a child ended.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// What it wrote to its standard output, at most a MiB.
    pub(super) output: Vec<u8>,
    /// What it complained of last.
    pub(super) complaint: String,
}

/// What a child says while it works.
enum Said {
    /// Per cent.
    Done(f64),
    Over,
}

/// Runs `qemu-img` with these arguments. `progress` hears of its `-p` output, from 0 to 1;
/// `alive` gives a number that changes while it works.
pub(super) fn run(
    arguments: &[&str],
    progress: &mut dyn FnMut(f64),
    alive: &dyn Fn() -> u64,
    cancel: &CancellationToken,
) -> Result<Ended, VolumeError> {
    let mut command = Command::new("qemu-img");
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_clear()
        .env("LC_ALL", "C")
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
    confine(&mut command, BOUNDS);
    let child = command.spawn().map_err(|e| match e.kind() {
        ErrorKind::NotFound => VolumeError::BadSource(
            "the program qemu-img is not installed on the server (package qemu-utils); only raw \
             files can be taken without it"
                .to_owned(),
        ),
        _ => super::io_error("starting qemu-img", e),
    })?;
    let mut child = Running(child);
    let (stdout, stderr) = (child.0.stdout.take(), child.0.stderr.take());
    let (tell, told) = channel();
    let output = thread::spawn(move || {
        let mut output = Vec::new();
        if let Some(stdout) = stdout {
            let mut reader = BufReader::new(stdout);
            let mut part = Vec::new();
            // Progress comes as `    (12.34/100%)` and a carriage return.
            while let Ok(1..) = (&mut reader).take(65536).read_until(b'\r', &mut part) {
                let text = String::from_utf8_lossy(&part);
                let number = text.split('(').nth(1).and_then(|t| t.split('/').next());
                if let Some(done) = number.and_then(|n| n.parse::<f64>().ok()) {
                    let _ = tell.send(Said::Done(done / 100.0));
                }
                if output.len() < 1 << 20 {
                    output.extend(&part);
                }
                part.clear();
            }
        }
        let _ = tell.send(Said::Over);
        output
    });
    let complaints = thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(stderr) = stderr {
            let _ = stderr.take(65536).read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let watched = watch(&told, progress, alive, cancel);
    if watched.is_err() {
        let _ = child.0.kill();
    }
    let status = child.0.wait();
    let output = output.join().unwrap_or_default();
    let complaint = complaints.join().unwrap_or_default();
    watched?;
    Ok(Ended {
        status: status.map_err(|e| super::io_error("waiting for qemu-img", e))?,
        output,
        complaint: last_reason(&complaint),
    })
}

fn watch(
    told: &Receiver<Said>,
    progress: &mut dyn FnMut(f64),
    alive: &dyn Fn() -> u64,
    cancel: &CancellationToken,
) -> Result<(), VolumeError> {
    let (mut idle, mut before) = (0, 0);
    loop {
        match told.recv_timeout(TICK) {
            Ok(Said::Done(done)) => {
                idle = 0;
                progress(done.clamp(0.0, 1.0));
            }
            Ok(Said::Over) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                let now = alive();
                idle = if now == before { idle + 1 } else { 0 };
                before = now;
            }
        }
        if cancel.is_cancelled() {
            return Err(VolumeError::Cancelled);
        }
        if idle > PATIENCE {
            return Err(VolumeError::BadSource(
                "qemu-img made no progress for five minutes and was stopped".to_owned(),
            ));
        }
    }
}

/// The reason in a complaint, without the path and its escapes.
fn last_reason(complaint: &str) -> String {
    let mut lines = complaint.lines().filter(|l| !l.trim().is_empty());
    let line = lines.next_back().unwrap_or("no reason was given");
    let line = line.strip_prefix("qemu-img: ").unwrap_or(line);
    // `Could not open 'json:{..}': Reason`
    let reason = line.rsplit_once("': ").map_or(line, |(_, reason)| reason);
    reason.trim().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose_no_driver() {
        let odd = image(
            Path::new("/a/nbd:x,file.driver=nbd\"}.qcow2"),
            DiskFormat::Qcow2,
        )
        .unwrap();
        let json: serde_json::Value =
            serde_json::from_str(odd.strip_prefix("json:").unwrap()).unwrap();
        assert_eq!(json["file"]["driver"], "file");
        assert_eq!(
            json["file"]["filename"],
            "/a/nbd:x,file.driver=nbd\"}.qcow2"
        );
        assert!(json["backing"].is_null());
    }

    #[test]
    fn complaints_are_cut_to_their_reason() {
        let said = "qemu-img: Could not open 'json:{\"a\": 1}': Image is not in qcow2 format\n";
        assert_eq!(last_reason(said), "Image is not in qcow2 format");
        assert_eq!(last_reason(""), "no reason was given");
    }
}
