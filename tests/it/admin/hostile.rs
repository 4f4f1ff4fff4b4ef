//! What others send: it is stored as text or refused, and is never a failure of ours.

use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::{World, answer};

fn hostile_texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "'; DROP TABLE clients; --",
        "\" OR 1=1 --",
        "<script>alert(1)</script>",
        "${net0/mac}",
        "a && reboot",
        "a || reboot",
        "a; reboot",
        "a\nchain http://evil/",
        "a\r\nb",
        "\u{0}",
        "a\u{0}b",
        "\u{1b}[2J",
        "../../etc/passwd",
        "%2e%2e%2f",
        "%s%n",
        "{}",
        "",
        " ",
        "\u{202e}gpj",
        "\u{feff}",
        "\u{1f980}",
        "null",
        "-1",
        "99999999999999999999999",
        "1e400",
        "NaN",
    ]
    .into_iter()
    .map(str::to_owned)
    .collect();
    texts.push("x".repeat(10_000));
    texts.push("\u{e4}".repeat(5_000));
    texts
}

/// A percent-encoded path segment.
fn segment(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_text_in_every_field() {
    let world = World::new().await;
    world.add_image("debian").await;
    let client = json!({"mac_address": "52:54:00:00:00:01", "hostname": "pc-01"});
    assert_eq!(
        world.ask("POST", "/api/v1/clients", Some(client)).await.0,
        201
    );
    let range = json!({"network": "10.0.0.0/24", "mode": "off", "name": "lab"});
    assert_eq!(
        world
            .ask("POST", "/api/v1/network-ranges", Some(range))
            .await
            .0,
        201
    );
    let places: [(&str, &[&str]); 3] = [
        (
            "/api/v1/clients/52:54:00:00:00:01",
            &[
                "mac_address",
                "more_macs",
                "hostname",
                "ip_address",
                "assigned_image",
                "assigned_image_id",
                "boot_mode",
                "cpu_cores",
                "memory_mb",
                "network_config",
                "custom_boot_params",
                "enabled",
                "id",
                "created_at",
                "boot_count",
            ],
        ),
        (
            "/api/v1/network-ranges/10.0.0.0%2F24",
            &[
                "network",
                "mode",
                "serve",
                "unready",
                "always_chainload",
                "pools",
                "exclusions",
                "gateway",
                "dns",
                "domain",
                "search",
                "ntp",
                "mtu",
                "routes",
                "lease_seconds",
                "options",
                "name",
            ],
        ),
        (
            "/api/v1/images/debian",
            &[
                "cmdline",
                "phone_home",
                "description",
                "os_type",
                "tags",
                "is_template",
                "parent_image_id",
                "size_bytes",
                "path",
                "files",
            ],
        ),
    ];
    for (path, fields) in places {
        for field in fields {
            for text in hostile_texts() {
                let mut values = vec![json!(text), json!([text])];
                if ["network_config", "options", "pools", "routes", "tags"].contains(field) {
                    values.push(json!({ (text.as_str()): text }));
                    values.push(json!({"dns": [text], "domain": text, "kernel_ip": text}));
                    values.push(json!([{"first": text, "last": text}, {"to": text, "via": text}]));
                }
                for value in values {
                    let body = json!({ (*field): value });
                    let (status, answer) = world.ask("PATCH", path, Some(body)).await;
                    assert!(
                        status == 200 || status == 400 || status == 409,
                        "{path} {field} {value}: {status} {answer}"
                    );
                    let taken = &answer[*field];
                    if status == 200
                        && value.is_string()
                        && taken.is_string()
                        && !["id", "created_at", "path"].contains(field)
                    {
                        let same = taken.as_str().unwrap().trim() == text.trim();
                        let another_name = *field == "assigned_image";
                        assert!(same || another_name, "{field} {text:?} became {taken}");
                    }
                }
            }
        }
    }
    for table in ["clients", "images", "network_ranges"] {
        let count = world
            .db
            .text(&format!("SELECT count(*) FROM {table}"))
            .await;
        assert_eq!(count.as_deref(), Some("1"), "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_text_in_paths_queries_and_names() {
    let world = World::new().await;
    for text in hostile_texts() {
        let name = segment(&text);
        for noun in ["images", "clients", "network-ranges", "sessions"] {
            for method in ["GET", "PUT", "PATCH", "DELETE"] {
                if noun == "sessions" && method != "GET" {
                    continue;
                }
                let path = format!("/api/v1/{noun}/{name}");
                let body = (method == "PUT" || method == "PATCH").then(|| json!({}));
                let (status, answer) = world.ask(method, &path, body).await;
                assert!(
                    (400..500).contains(&status),
                    "{method} {path}: {status} {answer}"
                );
            }
        }
        for query in [
            "limit", "offset", "enabled", "active", "client", "mac", "force", &name,
        ] {
            for noun in [
                "images",
                "clients",
                "network-ranges",
                "sessions",
                "sessions/watch",
            ] {
                let path = format!("/api/v1/{noun}?{query}={name}");
                let (status, answer) = world.get(&path).await;
                assert!((400..500).contains(&status), "{path}: {status} {answer}");
            }
        }
        let names = json!({"mac_address": text, "hostname": text, "name": text, "network": text});
        for noun in ["clients", "network-ranges"] {
            let path = format!("/api/v1/{noun}");
            let (status, answer) = world.ask("POST", &path, Some(names.clone())).await;
            assert_eq!(status, 400, "{noun} {text:?} {answer}");
        }
        let form = reqwest::multipart::Form::new()
            .text("image", json!({"name": text}).to_string())
            .part("kernel", super::world::part(b"k"))
            .text(text.clone(), text.clone());
        let request = world.request("POST", "/api/v1/images").multipart(form);
        let (status, body) = answer(request.send().await.unwrap()).await;
        assert_eq!(status, 400, "{text:?} {body}");
    }
    assert!(world.stored().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_no_objects() {
    let world = World::new().await;
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_object = format!("{}1{}", r#"{"a":"#.repeat(40_000), "}".repeat(40_000));
    let huge = format!(r#"{{"hostname":"{}"}}"#, "x".repeat(300 * 1024));
    for (body, want) in [
        (String::new(), 400),
        ("{".to_owned(), 400),
        ("[]".to_owned(), 400),
        ("null".to_owned(), 400),
        ("\"x\"".to_owned(), 400),
        ("{} {}".to_owned(), 400),
        (r#"{"a": 1e400}"#.to_owned(), 400),
        (r#"{"hostname": "\ud800"}"#.to_owned(), 400),
        ("\u{feff}{}".to_owned(), 400),
        (deep, 400),
        (deep_object, 400),
        (huge, 413),
    ] {
        for (method, path) in [
            ("POST", "/api/v1/clients"),
            ("POST", "/api/v1/network-ranges"),
        ] {
            let request = world.request(method, path).body(body.clone());
            let (status, answer) = answer(request.send().await.unwrap()).await;
            let start: String = body.chars().take(40).collect();
            assert_eq!(status, want, "{start}: {answer}");
            assert!(answer["error"].is_string());
        }
    }
    // Many keys: each is told, and the answer has an end.
    let many: Map<String, Value> = (0..5000).map(|n| (format!("k{n}"), json!(n))).collect();
    let (status, body) = world
        .ask("POST", "/api/v1/clients", Some(many.into()))
        .await;
    assert_eq!(status, 400);
    assert_eq!(body["details"].as_array().unwrap().len(), 5002);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_http() {
    let world = World::new().await;
    let long_header = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(1 << 20));
    let many_headers = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(5000));
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /api/v1/clients HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /api/v1/clients HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        long_header.as_bytes(),
        many_headers.as_bytes(),
    ] {
        let mut stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
        stream.write_all(bytes).await.ok();
        stream.shutdown().await.ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        let text = String::from_utf8_lossy(&answer);
        assert!(!text.contains(" 200 ") && !text.contains(" 500 "), "{text}");
    }
    assert_eq!(world.get("/healthz").await.0, 200);
}
