//! Health, metrics, streams, and the end of the server.

use std::sync::atomic::Ordering;
use std::time::Duration;

use dls::boot::session::{Context, Evidence, Observation, Speaker};
use dls::model::Arch;
use serde_json::Value;

use super::world::World;
use crate::support;

#[tokio::test(flavor = "multi_thread")]
async fn alive_ready_and_counted() {
    let world = World::new().await;
    let open = world.bare("GET", "/readyz").send().await.unwrap();
    assert_eq!(open.status(), 200);
    let (status, body) = world.get("/readyz").await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["parts"][0]["name"], "database");
    world.listeners_up.store(false, Ordering::Relaxed);
    let (status, body) = world.get("/readyz").await;
    assert_eq!((status, &body["ready"]), (503, &Value::Bool(false)));
    assert_eq!(body["parts"][1]["name"], "tftp");
    assert_eq!(world.get("/healthz").await.0, 200);

    world.bare("GET", "/api/v1/images").send().await.unwrap();
    let response = world.bare("GET", "/metrics").send().await.unwrap();
    let kind = response.headers()["content-type"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = response.text().await.unwrap();
    let line = r#"dls_admin_requests_total{method="GET",route="/api/v1/images",status="401"} 1"#;
    assert!(text.contains(line), "{text}");
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_database_it_says_so_and_goes_on() {
    let world = World::new().await;
    world.catalog.close().await;
    let body = serde_json::json!({"mac_address": "52:54:00:00:00:01", "hostname": "a"});
    for (method, path, body) in [
        ("GET", "/api/v1/images", None),
        ("GET", "/api/v1/clients", None),
        ("GET", "/api/v1/clients/x", None),
        ("POST", "/api/v1/clients", Some(body)),
        ("GET", "/api/v1/network-ranges", None),
        ("DELETE", "/api/v1/network-ranges/x", None),
        ("GET", "/api/v1/sessions", None),
    ] {
        let mut request = world.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 503, "{method} {path}");
        assert!(response.headers().contains_key("retry-after"));
    }
    assert_eq!(world.get("/readyz").await.0, 503);
    assert_eq!(world.get("/healthz").await.0, 200);
}

fn observation(world: &World, what: Evidence) -> Observation {
    Observation {
        mac: support::mac(1),
        at: world.clock.now(),
        what,
        context: Context {
            arch: Some(Arch::Bios),
            ..Context::default()
        },
    }
}

/// Reads a stream until `wanted` is in it.
async fn until(response: &mut reqwest::Response, wanted: &str) -> String {
    let mut seen = String::new();
    let read = async {
        while let Some(chunk) = response.chunk().await.unwrap() {
            seen.push_str(std::str::from_utf8(&chunk).unwrap());
            if seen.contains(wanted) {
                return;
            }
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), read).await;
    assert!(waited.is_ok() && seen.contains(wanted), "{wanted}: {seen}");
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn boots_are_watched_as_they_happen() {
    let world = World::new().await;
    let path = "/api/v1/sessions/watch";
    let mut lines = world.request("GET", path).send().await.unwrap();
    assert_eq!(lines.headers()["content-type"], "application/x-ndjson");
    let events = world
        .request("GET", path)
        .header("accept", "text/event-stream");
    let mut events = events.send().await.unwrap();
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    until(&mut lines, "\n").await;
    until(&mut events, ":\n\n").await;
    let seen = world
        .tracker
        .observe(observation(&world, Evidence::Discover(Speaker::Rom)));
    let id = seen.unwrap().to_string();
    let text = until(&mut lines, "}\n").await;
    let first: Value = serde_json::from_str(text.lines().find(|l| !l.is_empty()).unwrap()).unwrap();
    assert_eq!(first["attempt"]["id"], id);
    assert_eq!(first["event"]["stage"], "discover");
    let text = until(&mut events, "}\n\n").await;
    assert!(text.contains("data: {") && text.contains(&id), "{text}");

    // The end of the server is the end of the streams, and soon.
    world.cancel.cancel();
    let ended = async { while lines.chunk().await.is_ok_and(|c| c.is_some()) {} };
    tokio::time::timeout(Duration::from_secs(30), ended)
        .await
        .unwrap();
    tokio::time::timeout(Duration::from_secs(30), world.serving)
        .await
        .unwrap()
        .unwrap();
    assert!(tokio::net::TcpStream::connect(world.address).await.is_err());
}
