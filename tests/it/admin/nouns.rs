//! Every verb of every noun, against the catalog and the cache.

use serde_json::{Value, json};

use super::world::{World, answer, blamed};
use crate::support;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_from_its_making_to_its_end() {
    let world = World::new().await;
    let image = world.add_image("debian").await;
    let request = world.request("POST", "/api/v1/clients").json(&json!({
        "mac_address": "52:54:00:12:34:56", "hostname": "pc-01", "assigned_image": "debian",
        "ip_address": "10.0.0.20", "more_macs": ["52:54:00:12:34:57"],
        "network_config": {"mtu": 9000}, "custom_boot_params": "quiet", "boot_mode": "uefi",
    }));
    let response = request.send().await.unwrap();
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let (status, made) = answer(response).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["assigned_image"], "debian");
    assert_eq!(made["assigned_image_id"], image["id"]);
    assert_eq!(made["cpu_cores"], 2);
    // It holds for the next packet when the answer is there.
    let mac = "52:54:00:12:34:57".parse().unwrap();
    let cached = world.cache.get().client_by_mac(mac).cloned().unwrap();
    assert_eq!(cached.hostname, "pc-01");
    assert_eq!(cached.network_config.as_ref().unwrap().mtu, Some(9000));

    let id = made["id"].as_str().unwrap();
    assert_eq!(location, format!("/api/v1/clients/{id}"));
    for name in [
        id,
        "pc-01",
        "PC-01",
        "52:54:00:12:34:56",
        "52-54-00-12-34-57",
        "525400123457",
    ] {
        let (status, found) = world.get(&format!("/api/v1/clients/{name}")).await;
        assert_eq!((status, &found["id"]), (200, &made["id"]), "{name}");
    }
    let (status, changed) = world
        .ask(
            "PATCH",
            "/api/v1/clients/pc-01",
            Some(json!({"enabled": false, "ip_address": null, "assigned_image_id": null})),
        )
        .await;
    assert_eq!(status, 200, "{changed}");
    assert_eq!(changed["enabled"], false);
    assert_eq!(changed["ip_address"], Value::Null);
    assert_eq!(changed["assigned_image"], Value::Null);
    assert_eq!(changed["custom_boot_params"], "quiet");
    assert!(!world.cache.get().client_by_mac(mac).unwrap().enabled);

    // What was read is put back, edited.
    let mut edited = changed.clone();
    edited["hostname"] = json!("pc-02");
    let (status, put) = world
        .ask("PUT", "/api/v1/clients/pc-01", Some(edited))
        .await;
    assert_eq!(status, 200, "{put}");
    assert_eq!(put["hostname"], "pc-02");
    assert_eq!(put["created_at"], made["created_at"]);
    let body = json!({"mac_address": "52:54:00:12:34:56", "hostname": "pc-03"});
    let (status, put) = world.ask("PUT", "/api/v1/clients/pc-02", Some(body)).await;
    assert_eq!(
        (status, &put["custom_boot_params"]),
        (200, &Value::Null),
        "{put}"
    );
    assert_eq!(put["more_macs"], json!([]));
    assert_eq!(put["enabled"], true, "PUT sets all fields anew");

    let (status, _) = world.ask("DELETE", "/api/v1/clients/pc-03", None).await;
    assert_eq!(status, 204);
    assert!(world.cache.get().clients().next().is_none());
    for method in ["GET", "DELETE", "PATCH"] {
        let (status, body) = world
            .ask(method, "/api/v1/clients/pc-03", Some(json!({})))
            .await;
        assert_eq!(status, 404);
        assert_eq!(body["error"], "there is no client `pc-03`");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_client_has_is_a_conflict_that_names_it() {
    let world = World::new().await;
    let add = |mac: &str, name: &str, ip: Option<&str>| json!({"mac_address": mac, "hostname": name, "ip_address": ip});
    let first = add("52:54:00:00:00:01", "pc-01", Some("10.0.0.5"));
    assert_eq!(
        world.ask("POST", "/api/v1/clients", Some(first)).await.0,
        201
    );
    let same_mac = add("52:54:00:00:00:01", "pc-02", None);
    let (status, body) = world.ask("POST", "/api/v1/clients", Some(same_mac)).await;
    assert_eq!(status, 409);
    assert!(body["error"].as_str().unwrap().contains("pc-01"), "{body}");
    let same_ip = add("52:54:00:00:00:02", "pc-02", Some("10.0.0.5"));
    let (status, body) = world.ask("POST", "/api/v1/clients", Some(same_ip)).await;
    assert_eq!(
        (status, blamed(&body)),
        (409, vec!["ip_address".to_owned()]),
        "{body}"
    );
    // Two of one name can be there; the name alone then means neither.
    let same_name = add("52:54:00:00:00:02", "pc-01", None);
    assert_eq!(
        world
            .ask("POST", "/api/v1/clients", Some(same_name))
            .await
            .0,
        201
    );
    let (status, body) = world.ask("DELETE", "/api/v1/clients/pc-01", None).await;
    assert_eq!(status, 409, "{body}");
    assert_eq!(
        world
            .ask("DELETE", "/api/v1/clients/52:54:00:00:00:02", None)
            .await
            .0,
        204
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_violation_comes_at_once() {
    let world = World::new().await;
    let (status, body) = world
        .ask(
            "POST",
            "/api/v1/clients",
            Some(json!({"mac_address": "x", "hostname": "a b", "cpu_cores": 0, "memory_mb": "much", "ip_address": "10.0.0.256", "colour": 1})),
        )
        .await;
    assert_eq!(status, 400);
    assert_eq!(body["error"], "Validation failed");
    assert_eq!(
        blamed(&body),
        [
            "mac_address",
            "hostname",
            "ip_address",
            "cpu_cores",
            "memory_mb",
            "colour"
        ]
    );
    let (status, body) = world
        .ask(
            "POST",
            "/api/v1/network-ranges",
            Some(json!({"network": "10.0.0.0/24", "mode": "x", "pools": ["10.0.1.1-10.0.1.2"], "gateway": "10.0.1.1", "mtu": 1, "options": {"53": "zz"}})),
        )
        .await;
    assert_eq!(status, 400);
    assert_eq!(
        blamed(&body),
        [
            "mode",
            "mtu",
            "options.53",
            "options.53",
            "pools[0]",
            "gateway"
        ]
    );
    let (status, body) = world
        .get("/api/v1/clients?limit=0&offset=x&enabled=maybe&colour=1")
        .await;
    assert_eq!(status, 400);
    assert_eq!(blamed(&body), ["limit", "offset", "enabled", "colour"]);
    assert_eq!(
        world.db.text("SELECT count(*) FROM clients").await.unwrap(),
        "0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_from_its_making_to_its_end() {
    let world = World::new().await;
    let (status, made) = world
        .ask(
            "POST",
            "/api/v1/network-ranges",
            Some(json!({
                "network": "10.0.0.0/24", "mode": "full", "pools": ["10.0.0.100-10.0.0.199"],
                "exclusions": ["10.0.0.150-10.0.0.151"], "gateway": "10.0.0.1", "dns": ["10.0.0.1"],
                "routes": ["10.9.0.0/16=10.0.0.2"], "options": {"43": "0104"}, "search": ["lab.example"],
            })),
        )
        .await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(made["name"], "10.0.0.0/24");
    assert_eq!(world.cache.get().ranges().len(), 1);
    for name in ["10.0.0.0%2F24", made["id"].as_str().unwrap()] {
        let (status, found) = world.get(&format!("/api/v1/network-ranges/{name}")).await;
        assert_eq!((status, &found), (200, &made), "{name}");
    }
    let overlapping = json!({"network": "10.0.0.128/25", "mode": "full"});
    let (status, body) = world
        .ask("POST", "/api/v1/network-ranges", Some(overlapping))
        .await;
    assert_eq!(status, 409, "{body}");
    assert_eq!(blamed(&body), ["network"]);
    let (status, changed) = world
        .ask(
            "PATCH",
            "/api/v1/network-ranges/10.0.0.0%2F24",
            Some(json!({"name": "lab", "mode": "proxy", "pools": []})),
        )
        .await;
    assert_eq!(status, 200, "{changed}");
    assert_eq!(
        (&changed["mode"], &changed["pools"]),
        (&json!("proxy"), &json!([]))
    );
    assert_eq!(changed["gateway"], "10.0.0.1");
    let (status, put) = world
        .ask("PUT", "/api/v1/network-ranges/lab", Some(changed))
        .await;
    assert_eq!(status, 200, "{put}");
    let (status, list) = world.get("/api/v1/network-ranges?limit=1").await;
    assert_eq!(
        (status, list["network_ranges"].as_array().unwrap().len()),
        (200, 1)
    );
    assert_eq!(
        world
            .ask("DELETE", "/api/v1/network-ranges/lab", None)
            .await
            .0,
        204
    );
    assert_eq!(
        world
            .ask("DELETE", "/api/v1/network-ranges/lab", None)
            .await
            .0,
        404
    );
    assert!(world.cache.get().ranges().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_from_its_making_to_its_end() {
    let world = World::new().await;
    let made = world.add_image("debian").await;
    assert_eq!(made["size_bytes"], 20);
    assert_eq!(made["files"][1]["role"], "initrd");
    assert_eq!(
        made["files"][0]["sha256"],
        "7c2f712a5b31004cd31b6fe611e12219b02a73755049a698be58fdfa32a856cf"
    );
    let path = world
        .storage()
        .join(made["files"][0]["path"].as_str().unwrap());
    assert_eq!(std::fs::read(path).unwrap(), b"the kernel");
    assert!(world.cache.get().image_by_name("debian").is_some());

    let (status, changed) = world
        .ask(
            "PATCH",
            "/api/v1/images/debian",
            Some(json!({"cmdline": "quiet", "phone_home": "expected", "tags": {"a": 1}})),
        )
        .await;
    assert_eq!(status, 200, "{changed}");
    assert_eq!(changed["files"], made["files"]);
    assert_eq!(
        world.cache.get().image_by_name("debian").unwrap().cmdline,
        "quiet"
    );
    let (status, put) = world
        .ask(
            "PUT",
            "/api/v1/images/debian",
            Some(json!({"name": "debian-12"})),
        )
        .await;
    assert_eq!(status, 200, "{put}");
    assert_eq!(
        (&put["cmdline"], &put["files"]),
        (&json!(""), &made["files"])
    );
    world.add_image("other").await;
    let (status, body) = world
        .ask(
            "PATCH",
            "/api/v1/images/other",
            Some(json!({"name": "debian-12"})),
        )
        .await;
    assert_eq!((status, blamed(&body)), (409, vec!["name".to_owned()]));

    let client = json!({"mac_address": "52:54:00:00:00:01", "hostname": "pc-01", "assigned_image": "debian-12"});
    assert_eq!(
        world.ask("POST", "/api/v1/clients", Some(client)).await.0,
        201
    );
    let (status, body) = world.ask("DELETE", "/api/v1/images/debian-12", None).await;
    assert_eq!(status, 409);
    assert!(body["error"].as_str().unwrap().contains("pc-01"), "{body}");
    assert_eq!(world.stored().len(), 4, "nothing is removed by a refusal");
    assert_eq!(
        world
            .ask("DELETE", "/api/v1/images/debian-12?force=true", None)
            .await
            .0,
        204
    );
    assert_eq!(world.stored().len(), 2);
    assert!(world.cache.get().image_by_name("debian-12").is_none());
    let (_, client) = world.get("/api/v1/clients/pc-01").await;
    assert_eq!(client["assigned_image_id"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_is_whole_and_in_pages() {
    let world = World::new().await;
    world
        .db
        .sql("INSERT INTO clients (mac_address, hostname) SELECT '52:54:00:00:' || lpad(to_hex(n / 256), 2, '0') || ':' || lpad(to_hex(n % 256), 2, '0'), 'pc-' || lpad(n::text, 5, '0') FROM generate_series(0, 2999) n")
        .await
        .unwrap();
    let (status, body) = world.get("/api/v1/clients").await;
    let all = body["clients"].as_array().unwrap();
    assert_eq!((status, all.len()), (200, 3000));
    let (_, body) = world.get("/api/v1/clients?limit=7&offset=1234").await;
    let page = body["clients"].as_array().unwrap();
    assert_eq!(page.as_slice(), &all[1234..1241]);
    let (_, body) = world.get("/api/v1/clients?offset=3000").await;
    assert_eq!(body, json!({"clients": []}));
    // A machine that psql made a moment ago is found, whatever the cache has.
    let (status, _) = world.get("/api/v1/clients/pc-02999").await;
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_with_their_events() {
    let world = World::new().await;
    let client = support::client(1);
    world.catalog.save_client_config(&client).await.unwrap();
    let image = support::image("debian");
    world.catalog.save_image_metadata(&image).await.unwrap();
    let server = uuid::Uuid::new_v4();
    world
        .catalog
        .save_server(server, "one", &[], "0")
        .await
        .unwrap();
    let attempt = support::attempt(&client, server);
    let session = support::session(&attempt, image.id);
    let event = dls::model::BootEvent {
        session_id: attempt.id,
        at: attempt.started_at,
        stage: dls::model::Stage::Discover,
        detail: json!({"speaker": "rom"}),
    };
    use dls::catalog::BootWrite;
    world
        .catalog
        .write_boots(&[
            BootWrite::Attempt(attempt.clone()),
            BootWrite::Session(session),
            BootWrite::Event(event),
        ])
        .await
        .unwrap();
    world.cache.refresh().await.unwrap();
    for query in [
        "",
        "?active=true",
        "?client=pc-0001",
        "?mac=52-54-00-00-00-01&limit=5",
    ] {
        let (status, body) = world.get(&format!("/api/v1/sessions{query}")).await;
        assert_eq!(status, 200, "{query} {body}");
        assert_eq!(body["sessions"][0]["id"], json!(attempt.id), "{query}");
        assert_eq!(body["sessions"][0]["session"]["status"], "starting");
    }
    let (_, body) = world.get("/api/v1/sessions?mac=52:54:00:00:00:02").await;
    assert_eq!(body, json!({"sessions": []}));
    assert_eq!(world.get("/api/v1/sessions?client=nobody").await.0, 404);
    assert_eq!(world.get("/api/v1/sessions?mac=x").await.0, 400);
    let (status, body) = world.get(&format!("/api/v1/sessions/{}", attempt.id)).await;
    assert_eq!(status, 200);
    assert_eq!(body["events"][0]["stage"], "discover");
    assert_eq!(world.get("/api/v1/sessions/x").await.0, 404);
    // A live session holds its image.
    let (status, body) = world.ask("DELETE", "/api/v1/images/debian", None).await;
    assert_eq!(status, 409, "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_at_the_same_time_lose_nothing() {
    let world = World::new().await;
    let body = json!({"mac_address": "52:54:00:00:00:01", "hostname": "pc-01"});
    assert_eq!(
        world.ask("POST", "/api/v1/clients", Some(body)).await.0,
        201
    );
    let path = "/api/v1/clients/52:54:00:00:00:01";
    let changes = [
        json!({"cpu_cores": 8}),
        json!({"memory_mb": 4096}),
        json!({"custom_boot_params": "quiet"}),
        json!({"boot_mode": "uefi"}),
        json!({"ip_address": "10.0.0.9"}),
        json!({"enabled": false}),
    ];
    let all = changes
        .iter()
        .map(|change| world.ask("PATCH", path, Some(change.clone())));
    for (status, body) in futures_util::future::join_all(all).await {
        assert_eq!(status, 200, "{body}");
    }
    let (_, client) = world.get(path).await;
    for change in changes {
        for (field, value) in change.as_object().unwrap() {
            assert_eq!(&client[field], value, "{field}");
        }
    }
}
