//! The clients that people have: libnbd's tools and Python module, QEMU's, fio.

use std::fs;

use dls::storage::Access;

use super::{aside, limits, memory, run, serve, succeed};

const SIZE: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn nbdinfo_tells_what_there_is() {
    let server = serve(memory(SIZE, Access::Write), limits()).await;
    let uri = server.uri();
    aside(move || {
        let said = succeed("nbdinfo", &[&uri]);
        for line in [
            "protocol: newstyle-fixed without TLS, using structured packets",
            "export-size: 67108864 (64M)",
            "base:allocation",
            "is_read_only: false",
            "can_cache: true",
            "can_df: true",
            "can_fast_zero: true",
            "can_flush: true",
            "can_fua: true",
            "can_multi_conn: true",
            "can_trim: true",
            "can_zero: true",
            "block_size_minimum: 1",
            "block_size_preferred: 4096",
            "block_size_maximum: 33554432",
        ] {
            assert!(said.contains(line), "{line}: {said}");
        }
        let map = succeed("nbdinfo", &["--map", &uri]);
        assert!(map.contains("67108864    3  hole,zero"), "{map}");
        // Names are secrets.
        let root = uri.rsplit_once('/').unwrap().0;
        let list = succeed("nbdinfo", &["--list", root]);
        assert!(!list.contains("export="), "{list}");
        let wrong = run("nbdinfo", &[&format!("{root}/../../etc/passwd")]);
        assert!(!wrong.status.success());
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_disk_says_so() {
    let server = serve(memory(SIZE, Access::Read), limits()).await;
    let uri = server.uri();
    aside(move || {
        let said = succeed("nbdinfo", &[&uri]);
        assert!(said.contains("is_read_only: true"), "{said}");
        assert!(said.contains("can_trim: false"), "{said}");
        let wrote = run("qemu-io", &["-f", "raw", "-c", "write 0 4k", &uri]);
        assert!(!wrote.status.success());
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_copied_in_and_out_again() {
    let server = serve(memory(SIZE, Access::Write), limits()).await;
    let uri = server.uri();
    aside(move || {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        // Data, holes and zeroes, with borders at odd places.
        let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
        for (n, byte) in bytes.iter_mut().enumerate() {
            if n % 3_000_000 < 1_234_567 {
                *byte = (n.wrapping_mul(2_654_435_761) >> 16) as u8;
            }
        }
        fs::write(at("in"), &bytes).unwrap();
        succeed("nbdcopy", &[&at("in"), &uri]);
        let (input, output) = (at("in"), at("out"));
        let compare = ["compare", "-f", "raw", "-F", "raw", &input, &uri];
        succeed("qemu-img", &compare);
        succeed("nbdcopy", &[&uri, &output]);
        assert!(fs::read(&output).unwrap() == bytes);
        // QEMU's client, which asks in its own way.
        let convert = ["convert", "-f", "raw", "-O", "raw", &uri, &output];
        succeed("qemu-img", &convert);
        assert!(fs::read(&output).unwrap() == bytes);
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_and_flag_by_libnbd() {
    let server = serve(memory(SIZE, Access::Write), limits()).await;
    let uri = server.uri();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/nbd/cases.py");
    // The system's Python: libnbd's module is a package of the system.
    let said = aside(move || succeed("/usr/bin/python3", &[script, &uri])).await;
    assert!(said.contains("all cases passed"), "{said}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_io_writes_and_reads_back() {
    let server = serve(memory(SIZE, Access::Write), limits()).await;
    let uri = server.uri();
    aside(move || {
        let steps = [
            "write -P 7 4096 1M",
            "read -P 7 4096 1M",
            "write -z 64k 64k",
            "read -P 0 64k 64k",
            "write -z -u 256k 64k",
            "read -P 0 256k 64k",
            "discard 512k 64k",
            "read -P 0 512k 64k",
            "write -f -P 9 1 511",
            "read -P 9 1 511",
            "flush",
            "aio_write -P 3 8M 4M",
            "aio_read 0 8M",
            "aio_flush",
            "read -P 3 8M 4M",
            "read 0 32M",
        ];
        let mut arguments = vec!["-f", "raw"];
        for step in steps {
            arguments.extend(["-c", step]);
        }
        arguments.push(&uri);
        let said = succeed("qemu-io", &arguments);
        assert!(!said.contains("failed"), "{said}");
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fio_finds_what_it_wrote() {
    let server = serve(memory(SIZE, Access::Write), limits()).await;
    let uri = format!("--uri={}", server.uri());
    aside(move || {
        let folder = tempfile::tempdir().unwrap();
        let output = std::process::Command::new("timeout")
            .args(["--kill-after=5", "100", "fio"])
            .args(["--name=verify", "--ioengine=nbd", &uri, "--rw=randwrite"])
            .args(["--bsrange=512-256k", "--iodepth=32", "--size=48m"])
            .args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"])
            .args(["--randseed=7", "--fsync=64"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("err= 0"), "{said}");
    })
    .await;
    server.stop().await;
}
