//! What firmware needs of HTTP, point by point.

use dls::model::FileRole;

use super::site::{KERNEL_BYTES, Site};
use super::wire::Wire;

const HERE: std::net::Ipv4Addr = std::net::Ipv4Addr::LOCALHOST;

/// Point 1: HEAD is GET without the body; exact length, ranges announced, a strong tag that
/// is the file's hash, no chunks, no encoding.
#[tokio::test(flavor = "multi_thread")]
async fn head_tells_exactly_what_get_gives() {
    let site = Site::start().await;
    let boot = site.power_on(1, HERE);
    let sum = site.image.file(FileRole::Kernel, 0).unwrap().sha256.clone();
    let mut wire = Wire::connect(site.address).await;
    for (path, length) in [
        (site.path(boot.id, "kernel"), Some(KERNEL_BYTES)),
        ("/loader/snponly.efi".to_owned(), Some(50_000)),
        (site.path(boot.id, "boot.ipxe"), None),
    ] {
        let headers = ["Accept-Encoding: gzip, br, zstd"];
        let mut head = wire.ask("HEAD", &path, &headers).await;
        let mut get = wire.ask("GET", &path, &headers).await;
        for reply in [&mut head, &mut get] {
            assert_eq!(reply.status, 200);
            reply.headers.retain(|(name, _)| name != "date");
        }
        assert_eq!(head.headers, get.headers, "{path}");
        assert_eq!(get.header("content-encoding"), None);
        let said: usize = get.header("content-length").unwrap().parse().unwrap();
        assert_eq!(said, get.body.len());
        assert_eq!(length.unwrap_or(said), said);
        if length.is_some() {
            assert_eq!(get.header("accept-ranges"), Some("bytes"));
        }
    }
    let kernel = wire.ask("GET", &site.path(boot.id, "kernel"), &[]).await;
    assert_eq!(kernel.header("etag"), Some(format!("\"{sum}\"").as_str()));
    assert!(kernel.body == site.bytes_of(FileRole::Kernel, 0));
    let loader = wire.ask("HEAD", "/loader/snponly.efi", &[]).await;
    assert_eq!(loader.header("content-type"), Some("application/efi"));
    // A loader that is replaced has another tag.
    std::fs::write(site.loaders().join("snponly.efi"), b"newer").unwrap();
    let newer = wire.ask("HEAD", "/loader/snponly.efi", &[]).await;
    assert_ne!(loader.header("etag"), newer.header("etag"));
}

/// Point 2: the connection stays open after HEAD and after errors, no header is ever empty
/// (checked for each answer by [`Wire`]), and files may be larger than 4 GiB.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_head_and_errors_and_files_may_be_large() {
    let site = Site::start().await;
    let size: u64 = (5 << 30) + 3;
    let large = std::fs::File::create(site.loaders().join("large.img")).unwrap();
    large.set_len(size).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&large, b"end", size - 3).unwrap();
    let mut wire = Wire::connect(site.address).await;
    let head = wire.ask("HEAD", "/loader/large.img", &[]).await;
    assert_eq!(
        head.header("content-length"),
        Some(size.to_string().as_str())
    );
    assert_eq!(head.header("connection"), None);
    let range = format!("Range: bytes={}-", size - 3);
    let tail = wire.ask("GET", "/loader/large.img", &[&range]).await;
    assert_eq!((tail.status, tail.body.as_slice()), (206, &b"end"[..]));
    let want = format!("bytes {}-{}/{size}", size - 3, size - 1);
    assert_eq!(tail.header("content-range"), Some(want.as_str()));
    for (method, path, status) in [
        ("GET", "/loader/none.efi", 404),
        ("HEAD", "/loader/none.efi", 404),
        ("DELETE", "/loader/snponly.efi", 405),
        ("GET", "/", 404),
        ("OPTIONS", "*", 404),
        ("GET", "/loader/snponly.efi", 200),
    ] {
        let reply = wire.ask(method, path, &[]).await;
        assert_eq!(reply.status, status, "{method} {path}");
        assert!(!reply.headers.iter().any(|(name, _)| name == "location"));
    }
}

/// Point 3: ranges and validators.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_and_validators() {
    let site = Site::start().await;
    let boot = site.power_on(1, HERE);
    let path = site.path(boot.id, "initrd0");
    let all = site.bytes_of(FileRole::Initrd, 0);
    let size = all.len();
    let etag = format!(
        "\"{}\"",
        site.image.file(FileRole::Initrd, 0).unwrap().sha256
    );
    let mut wire = Wire::connect(site.address).await;
    let (first, open, suffix) = (
        "Range: bytes=0-511",
        "Range: bytes=60000-",
        "Range: bytes=-7",
    );
    for (range, want) in [
        (first, 0..512),
        (open, 60_000..size),
        (suffix, size - 7..size),
        ("Range: bytes=5-5", 5..6),
        ("Range: bytes=10-999999999", 10..size),
    ] {
        let reply = wire.ask("GET", &path, &[range]).await;
        assert_eq!(reply.status, 206, "{range}");
        let content_range = format!("bytes {}-{}/{size}", want.start, want.end - 1);
        assert_eq!(reply.header("content-range"), Some(content_range.as_str()));
        assert!(reply.body == all[want], "{range}");
    }
    for beyond in [
        format!("Range: bytes={size}-"),
        format!("Range: bytes={}-{}", size + 5, size + 9),
        "Range: bytes=-0".to_owned(),
    ] {
        let reply = wire.ask("GET", &path, &[&beyond]).await;
        assert_eq!(reply.status, 416, "{beyond}");
        let want = format!("bytes */{size}");
        assert_eq!(reply.header("content-range"), Some(want.as_str()));
    }
    let killer = format!("Range: bytes={}", "0-,".repeat(500));
    for whole in [
        "Range: bytes=9-1",
        "Range: lines=1-2",
        "Range: bytes=a-b",
        "Range: bytes=0-1,3-4",
        "Range: bytes=0-0,1-1,2-2,3-3,4-4,5-5,6-6,7-7,8-8,9-9",
        killer.as_str(),
    ] {
        let reply = wire.ask("GET", &path, &[whole]).await;
        assert!(reply.status == 200 && reply.body == all, "{whole}");
    }
    let fresh = format!("If-Range: {etag}");
    assert_eq!(wire.ask("GET", &path, &[first, &fresh]).await.status, 206);
    for stale in [
        "If-Range: \"old\"",
        "If-Range: Sat, 29 Oct 1994 19:43:31 GMT",
    ] {
        let reply = wire.ask("GET", &path, &[first, stale]).await;
        assert!(reply.status == 200 && reply.body == all, "{stale}");
    }
    let known = format!("If-None-Match: {etag}");
    for method in ["GET", "HEAD"] {
        let reply = wire.ask(method, &path, &[&known]).await;
        assert_eq!(reply.status, 304, "{method}");
        assert_eq!(reply.header("etag"), Some(etag.as_str()));
    }
    let reply = wire.ask("GET", &path, &["If-None-Match: \"other\""]).await;
    assert_eq!(reply.status, 200);
    // Range has no meaning for HEAD.
    assert_eq!(wire.ask("HEAD", &path, &[first]).await.status, 200);
}

/// Point 4: block reads on one connection; errors that a loader can tell apart, with a line
/// of text and a length.
#[tokio::test(flavor = "multi_thread")]
async fn block_reads_by_keep_alive_and_errors_by_code() {
    let site = Site::start().await;
    let (mine, other) = (
        site.power_on(1, HERE),
        site.power_on(2, [127, 0, 0, 2].into()),
    );
    let kernel = site.path(mine.id, "kernel");
    let all = site.bytes_of(FileRole::Kernel, 0);
    let mut wire = Wire::connect(site.address).await;
    let mut got = vec![];
    for start in (0..all.len()).step_by(100_000) {
        let range = format!("Range: bytes={start}-{}", start + 99_999);
        let reply = wire.ask("GET", &kernel, &[&range]).await;
        assert_eq!(reply.status, 206);
        got.extend(reply.body);
    }
    assert!(got == all);
    let foreign = format!("/b/{}.{}/kernel", mine.id.simple(), site.token(other.id));
    for (path, status, text) in [
        (foreign, 403, "not yours\n"),
        (
            site.path(uuid::Uuid::now_v7(), "kernel"),
            410,
            "this boot is over\n",
        ),
        (site.path(mine.id, "initrd7"), 404, "no such file\n"),
        (site.path(other.id, "kernel"), 404, "no such file\n"),
    ] {
        let reply = wire.ask("GET", &path, &[]).await;
        assert_eq!((reply.status, reply.text().as_str()), (status, text));
    }
}

/// Point 5: one decoding, no way out, the host header chooses nothing, another host's
/// absolute form is refused, and a head has its limit.
#[tokio::test(flavor = "multi_thread")]
async fn paths_are_decoded_once_and_lead_nowhere_else() {
    let site = Site::start().await;
    std::fs::write(site.dir.path().join("secret"), b"secret").unwrap();
    std::os::unix::fs::symlink("../secret", site.loaders().join("link.efi")).unwrap();
    let mut wire = Wire::connect(site.address).await;
    for good in [
        "/loader/snponly.efi",
        "//loader//snponly.efi",
        "/loader/snponly%2Eefi",
        "/loader/snponly.efi?x=../../secret",
    ] {
        assert_eq!(wire.ask("HEAD", good, &[]).await.status, 200, "{good}");
    }
    let absolute = site.url("/loader/snponly.efi");
    assert_eq!(wire.ask("HEAD", &absolute, &[]).await.status, 200);
    for (path, status) in [
        ("http://other.example/loader/snponly.efi", 421),
        ("/loader/../../secret", 404),
        ("/loader/..%2f..%2fsecret", 404),
        ("/loader/%2e%2e/%2e%2e/secret", 404),
        ("/loader/%252e%252e%252fsecret", 404),
        ("/loader/snponly.efi%00", 404),
        ("/loader/snponly%252eefi", 404),
        ("/loader/..\\secret", 404),
        ("/loader/%5c..%5csecret", 404),
        ("/loader/%c0%ae%c0%ae%c0%afsecret", 404),
        ("/loader/link.efi", 404),
        ("/loader/", 404),
        ("/loader/.", 404),
        ("/etc/passwd", 404),
        ("/loader//etc/passwd", 404),
    ] {
        let mut wire = Wire::connect(site.address).await;
        let reply = wire.ask("GET", path, &[]).await;
        // Some never get past hyper (400): as good.
        assert!(
            reply.status == status || reply.status == 400,
            "{path}: {}",
            reply.status
        );
        assert!(!reply.text().contains("secret"), "{path}");
    }
    let mut wire = Wire::connect(site.address).await;
    wire.send(b"GET /loader/snponly.efi HTTP/1.1\r\nHost: ../../etc\r\n\r\n")
        .await;
    assert_eq!(wire.reply(false).await.unwrap().body.len(), 50_000);
    let long = format!("X: {}", "x".repeat(9000));
    let reply = Wire::connect(site.address)
        .await
        .ask("GET", "/loader/snponly.efi", &[&long])
        .await;
    assert_eq!(reply.status, 431);
}

/// curl as a client of its own mind: whole, head, resume, bad paths as they are.
#[tokio::test(flavor = "multi_thread")]
async fn curl_downloads_resumes_and_is_refused() {
    let site = Site::start().await;
    let boot = site.power_on(1, HERE);
    let all = site.bytes_of(FileRole::Kernel, 0);
    let out = site.dir.path().join("kernel.out");
    let out = out.to_str().unwrap();
    let curl = |args: &[&str]| {
        let mut command = tokio::process::Command::new("curl");
        command.args(["-sS", "--max-time", "30"]).args(args);
        command.output()
    };
    let kernel = site.url(&site.path(boot.id, "kernel"));
    assert!(
        curl(&["-f", "-o", out, &kernel])
            .await
            .unwrap()
            .status
            .success()
    );
    assert!(std::fs::read(out).unwrap() == all);
    std::fs::write(out, &all[..1_234_567]).unwrap();
    let resumed = curl(&["-f", "-C", "-", "-o", out, &kernel]).await.unwrap();
    assert!(resumed.status.success(), "{resumed:?}");
    assert!(std::fs::read(out).unwrap() == all);
    let loader = site.url("/loader/snponly.efi");
    let head = curl(&["-I", &loader]).await.unwrap().stdout;
    assert!(
        String::from_utf8(head)
            .unwrap()
            .contains("content-length: 50000")
    );
    let old = curl(&["-0", "-f", "-o", out, &loader]).await.unwrap();
    assert!(old.status.success(), "HTTP/1.0 too: {old:?}");
    let bad = site.url("/loader/../../../../etc/passwd");
    let refused = curl(&["--path-as-is", "-w", "%{http_code}", &bad])
        .await
        .unwrap();
    assert_eq!(refused.stdout, b"no such file\n404");
}
