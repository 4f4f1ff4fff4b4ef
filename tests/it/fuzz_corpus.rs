//! The fuzz targets' corpus, replayed: what fuzzing once found, or starts from, is an
//! ordinary test. Each input has a time limit of its own nature: the bodies are bounded.

#[path = "../../fuzz/bodies.rs"]
pub(crate) mod bodies;

use std::fs;
use std::path::Path;

fn replay(target: &str, least: usize, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let input = fs::read(&path).unwrap();
        // A panic must name its file.
        let outcome = std::panic::catch_unwind(|| body(&input));
        assert!(outcome.is_ok(), "{}", path.display());
        files += 1;
    }
    assert!(files >= least, "{target}: {files} files");
}

#[test]
fn dhcp_scan() {
    replay("dhcp_scan", 20, bodies::dhcp_scan);
}

#[test]
fn dhcp_decide() {
    replay("dhcp_decide", 20, bodies::dhcp_decide);
}

#[test]
fn tftp_wire() {
    replay("tftp_wire", 12, bodies::tftp_wire);
}

#[test]
fn boot_path() {
    replay("boot_path", 20, bodies::boot_path);
}

#[test]
fn nbd_wire() {
    replay("nbd_wire", 16, bodies::nbd_wire);
}

#[test]
fn iscsi() {
    replay("iscsi", 12, bodies::iscsi);
}
