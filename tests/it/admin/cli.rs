//! The real `dls` binary against the real API.

use std::process::{Output, Stdio};
use std::time::Duration;

use dls::boot::session::{Context, Evidence, Observation, Speaker};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::world::World;
use crate::support;

pub(super) fn dls(world: &World) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dls"));
    command
        .env_clear()
        .env("DLS_SERVER", world.url(""))
        .env("DLS_TOKEN_FILE", world.token_path())
        // Not for us: the server is on the LAN.
        .env("http_proxy", "http://127.0.0.1:9/")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

pub(super) async fn run(world: &World, args: &[&str]) -> Output {
    dls(world).args(args).output().await.unwrap()
}

/// What a command that must succeed prints.
pub(super) async fn said(world: &World, args: &[&str]) -> String {
    let output = run(world, args).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {error}");
    assert_eq!(error, "", "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub(super) async fn json(world: &World, args: &[&str]) -> Value {
    let mut all = vec!["--json"];
    all.extend_from_slice(args);
    serde_json::from_str(&said(world, &all).await).unwrap()
}

/// Exit code and sentence of a command that must fail.
pub(super) async fn failed(world: &World, args: &[&str]) -> (i32, String) {
    let output = run(world, args).await;
    assert_eq!(output.stdout, b"", "{args:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), error)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_by_command_line() {
    let world = World::new().await;
    let kernel = world.file("vmlinuz", b"kernel");
    let initrd = world.file("initrd.img", b"initrd");
    let (kernel, initrd) = (kernel.to_str().unwrap(), initrd.to_str().unwrap());

    let text = said(
        &world,
        &[
            "range",
            "add",
            "--network",
            "10.0.0.0/24",
            "--pool",
            "10.0.0.100-10.0.0.199",
            "--mode",
            "full",
            "--gateway",
            "10.0.0.1",
            "--dns",
            "10.0.0.1",
            "--route",
            "10.9.0.0/16=10.0.0.2",
            "--option",
            "43=0104",
            "--always-chainload",
            "true",
            "--lease-seconds",
            "600",
            "--exclude",
            "10.0.0.150-10.0.0.160",
            "--domain",
            "lab.example",
            "--search",
            "lab.example",
            "--ntp",
            "10.0.0.3",
            "--mtu",
            "1500",
            "--serve",
            "known",
            "--unready",
            "local",
        ],
    )
    .await;
    assert!(text.contains("10.0.0.100-10.0.0.199"), "{text}");
    let text = said(
        &world,
        &[
            "image",
            "add-kernel",
            "debian",
            "--kernel",
            kernel,
            "--initrd",
            initrd,
            "--initrd",
            initrd,
            "--cmdline",
            "-- root=/dev/nfs quiet",
            "--phone-home",
            "expected",
        ],
    )
    .await;
    assert!(text.contains("initrd1  6 B  sha256:"), "{text}");
    let made = json(
        &world,
        &[
            "client",
            "add",
            "--mac",
            "52-54-00-12-34-56",
            "--hostname",
            "pc-01",
            "--image",
            "debian",
            "--ip",
            "10.0.0.20",
            "--boot-mode",
            "uefi",
            "--boot-params",
            "quiet",
            "--add-mac",
            "525400123457",
            "--net",
            "mtu=9000",
            "--net",
            "dns=10.0.0.1,10.0.0.2",
        ],
    )
    .await;
    assert_eq!(made["assigned_image"], "debian");
    assert_eq!(made["more_macs"], serde_json::json!(["52:54:00:12:34:57"]));
    assert_eq!(made["network_config"]["dns"][1], "10.0.0.2");

    for (args, wanted) in [
        (vec!["range", "list"], "10.0.0.0/24"),
        (vec!["range", "show", "10.0.0.0/24"], "lab.example"),
        (vec!["image", "list"], "debian"),
        (vec!["image", "show", "debian"], "-- root=/dev/nfs quiet"),
        (vec!["client", "list"], "52:54:00:12:34:56"),
        (vec!["client", "list", "--enabled"], "pc-01"),
        (vec!["client", "show", "52:54:00:12:34:57"], "pc-01"),
        (vec!["session", "list"], "STARTED"),
    ] {
        let text = said(&world, &args).await;
        assert!(text.contains(wanted), "{args:?}: {text}");
        assert!(
            !text.contains('\u{1b}') && !text.contains('│'),
            "plain: {text}"
        );
    }
    assert_eq!(
        json(&world, &["client", "list"]).await[0]["hostname"],
        "pc-01"
    );
    assert_eq!(json(&world, &["range", "list"]).await[0]["mode"], "full");
    assert_eq!(json(&world, &["image", "list"]).await[0]["name"], "debian");
    assert_eq!(
        json(&world, &["session", "list"]).await,
        serde_json::json!([])
    );

    let set = json(
        &world,
        &[
            "client",
            "set",
            "pc-01",
            "--ip",
            "",
            "--image",
            "",
            "--net",
            "",
            "--rm-mac",
            "52:54:00:12:34:57",
            "--add-mac",
            "52:54:00:12:34:58",
        ],
    )
    .await;
    assert_eq!(set["ip_address"], Value::Null);
    assert_eq!(set["assigned_image"], Value::Null);
    assert_eq!(set["network_config"], Value::Null);
    assert_eq!(set["more_macs"], serde_json::json!(["52:54:00:12:34:58"]));
    assert_eq!(
        said(&world, &["client", "disable", "pc-01"]).await,
        "pc-01 disabled\n"
    );
    assert!(said(&world, &["client", "list"]).await.contains(" no "));
    assert_eq!(
        said(&world, &["client", "enable", "pc-01"]).await,
        "pc-01 enabled\n"
    );
    let set = json(
        &world,
        &[
            "range",
            "set",
            "10.0.0.0/24",
            "--mode",
            "proxy",
            "--name",
            "lab",
            "--pool",
            "",
            "--exclude",
            "",
            "--mtu",
            "",
        ],
    )
    .await;
    assert_eq!(
        (&set["mode"], &set["pools"], &set["mtu"]),
        (
            &Value::from("proxy"),
            &Value::from(Vec::<Value>::new()),
            &Value::Null
        )
    );
    let set = json(
        &world,
        &[
            "image",
            "set",
            "debian",
            "--cmdline",
            "quiet",
            "--name",
            "debian-12",
        ],
    )
    .await;
    assert_eq!(set["cmdline"], "quiet");

    said(&world, &["client", "rm", "pc-01"]).await;
    said(&world, &["image", "rm", "debian-12"]).await;
    said(&world, &["range", "rm", "lab"]).await;
    assert!(world.stored().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_sentences_and_codes() {
    let world = World::new().await;
    let kernel = world.file("k", b"kernel");
    let kernel = kernel.to_str().unwrap();
    let (code, text) = failed(&world, &["client", "show", "nobody"]).await;
    assert_eq!(
        (code, text.as_str()),
        (3, "dls: there is no client `nobody`\n")
    );
    let (code, text) = failed(
        &world,
        &[
            "client",
            "add",
            "--mac",
            "x",
            "--hostname",
            "a b",
            "--cpu-cores",
            "0",
        ],
    )
    .await;
    assert_eq!(code, 4);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "dls: Validation failed");
    assert!(
        lines[1].starts_with("  mac_address: ")
            && lines[2].starts_with("  hostname: ")
            && lines[3].starts_with("  cpu_cores: "),
        "{text}"
    );
    let add = ["image", "add-kernel", "a", "--kernel", kernel];
    said(&world, &add).await;
    let (code, text) = failed(&world, &add).await;
    assert_eq!(
        (code, text.as_str()),
        (4, "dls: there is an image `a` already\n")
    );
    let (code, text) = failed(
        &world,
        &["image", "add-kernel", "b", "--kernel", "/nowhere/k"],
    )
    .await;
    assert!(
        code == 1 && text.contains("/nowhere/k") && text.contains("No such file"),
        "{text}"
    );
    for args in [
        vec!["client"],
        vec!["client", "add", "--mac", "52:54:00:00:00:01"],
        vec!["range", "add", "--network", "10.0.0.0/24"],
        vec!["range", "add", "--network", "10.0.0.0/24", "--mode", "half"],
        vec!["client", "set", "x"],
        vec!["client", "set", "x", "--net", "mtu"],
        vec!["range", "set", "x", "--option", "43"],
        vec!["--server", "https://x", "client", "list"],
        vec!["fly"],
    ] {
        assert_eq!(failed(&world, &args).await.0, 2, "{args:?}");
    }
    let (code, text) = failed(
        &world,
        &["--server", "http://127.0.0.1:1", "client", "list"],
    )
    .await;
    assert!(
        code == 5 && text.contains("is `dls serve` running?"),
        "{text}"
    );
    let missing = world.storage().join("none");
    let (code, text) = failed(
        &world,
        &["client", "list", "--token-file", missing.to_str().unwrap()],
    )
    .await;
    assert!(
        code == 5 && text.contains("there is no admin token"),
        "{text}"
    );
    let other = world.file("other.token", "f".repeat(64).as_bytes());
    let (code, text) = failed(
        &world,
        &["client", "list", "--token-file", other.to_str().unwrap()],
    )
    .await;
    assert!(code == 5 && text.contains("0600"), "{text}");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (code, text) = failed(
        &world,
        &["client", "list", "--token-file", other.to_str().unwrap()],
    )
    .await;
    assert_eq!(
        (code, text.as_str()),
        (5, "dls: this is not the admin token\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_says_where_the_server_is() {
    let world = World::new().await;
    let state_dir = world.token_path().parent().unwrap().to_owned();
    let text = format!(
        "state_dir = {state_dir:?}\n[admin]\nlisten = \"{}\"\n",
        world.address
    );
    let config = world.file("dls.toml", text.as_bytes());
    let config = config.to_str().unwrap();
    for args in [
        ["--config", config, "client", "list"],
        ["client", "list", "--config", config],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_dls"))
            .env_clear()
            .args(args)
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert!(
        said(&world, &["check-config", config])
            .await
            .contains("is right")
    );
    let bad = world.file(
        "bad.toml",
        b"state_dir = \"/x\"\n[dhcp]\ninterface = \"eth1\"\n",
    );
    let (code, text) = failed(&world, &["check-config", bad.to_str().unwrap()]).await;
    assert!(
        code == 1 && text.contains("line 3") && text.contains("interface"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn text_of_others_does_not_steer_the_terminal() {
    let world = World::new().await;
    world
        .db
        .sql("INSERT INTO images (name, description, size_bytes, format, path, kind) VALUES (E'evil\\x1b[2J', E'a\\x1b]0;x\\x07b', 1, 'raw', 'x', 'disk')")
        .await
        .unwrap();
    let text = said(&world, &["image", "list"]).await;
    assert!(
        text.contains("evil\\u{1b}[2J") && !text.contains('\u{1b}'),
        "{text}"
    );
    let text = said(&world, &["image", "show", "evil\u{1b}[2J"]).await;
    assert!(
        !text.contains('\u{1b}') && !text.contains('\u{7}'),
        "{text}"
    );
    said(&world, &["image", "rm", "evil\u{1b}[2J"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_listed_shown_and_watched() {
    let world = World::new().await;
    let client = support::client(1);
    world.catalog.save_client_config(&client).await.unwrap();
    world.cache.refresh().await.unwrap();
    let mut watching = dls(&world)
        .args(["session", "watch"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let observe = |n: u32| {
        world.tracker.observe(Observation {
            mac: support::mac(n),
            at: world.clock.now(),
            what: Evidence::Discover(Speaker::Rom),
            context: Context {
                client: (n == 1).then(|| (client.id, client.hostname.clone())),
                ..Context::default()
            },
        })
    };
    // Whoever watches misses what was before; so there is something new until it is seen.
    let seen = async {
        for n in 100.. {
            observe(n);
            let next = lines.next_line();
            match tokio::time::timeout(Duration::from_millis(200), next).await {
                Ok(line) => return line.unwrap().unwrap(),
                Err(_) => continue,
            }
        }
        unreachable!()
    };
    let line = tokio::time::timeout(Duration::from_secs(60), seen)
        .await
        .unwrap();
    assert!(
        line.contains("discover") && line.contains("52:54:00"),
        "{line}"
    );
    drop(lines);

    world
        .catalog
        .save_server(uuid::Uuid::nil(), "one", &[], "0")
        .await
        .unwrap();
    let attempt = support::attempt(&client, uuid::Uuid::nil());
    let event = dls::model::BootEvent {
        session_id: attempt.id,
        at: attempt.started_at + chrono::TimeDelta::milliseconds(1500),
        stage: dls::model::Stage::Offer,
        detail: serde_json::json!({"address": "10.0.0.9"}),
    };
    use dls::catalog::BootWrite::{Attempt, Event};
    world
        .catalog
        .write_boots(&[Attempt(attempt.clone()), Event(event)])
        .await
        .unwrap();
    let text = said(
        &world,
        &["session", "list", "--active", "--client", "pc-0001"],
    )
    .await;
    assert!(text.contains(&attempt.id.to_string()), "{text}");
    for name in [
        attempt.id.to_string().as_str(),
        "pc-0001",
        "52-54-00-00-00-01",
    ] {
        let text = said(&world, &["session", "show", name]).await;
        assert!(
            text.contains("+1.500") && text.contains("address=10.0.0.9"),
            "{text}"
        );
    }
    assert_eq!(failed(&world, &["session", "show", "pc-0002"]).await.0, 3);
}

/// A server that is gone for good is forgotten, with its blocks; one that lives is not.
#[tokio::test(flavor = "multi_thread")]
async fn servers_are_listed_and_forgotten() {
    let world = World::new().await;
    said(
        &world,
        &[
            "range",
            "add",
            "--network",
            "10.0.0.0/24",
            "--pool",
            "10.0.0.50-10.0.0.99",
            "--mode",
            "full",
        ],
    )
    .await;
    for (n, name, age) in [(1, "alive", 5), (2, "gone", 60)] {
        let statements = [
            format!(
                "INSERT INTO servers (id, name, version, heartbeat_at, claims_until, boot_addresses) VALUES \
                 ('00000000-0000-4000-8000-00000000000{n}', '{name}', '0', now() - interval '{age} seconds', \
                  now() + interval '1 day', ARRAY['10.0.0.{n}'::inet])"
            ),
            format!(
                "INSERT INTO lease_blocks (range_id, first_address, last_address, server_id) \
                 SELECT id, '10.0.0.{n}0', '10.0.0.{n}9', '00000000-0000-4000-8000-00000000000{n}' FROM network_ranges"
            ),
        ];
        for statement in statements {
            world.db.sql(&statement).await.unwrap();
        }
    }
    let list = said(&world, &["server", "list"]).await;
    let line = |name: &str| {
        let line = list
            .lines()
            .find(|line| line.trim_start().starts_with(name));
        line.unwrap_or_else(|| panic!("no {name} in {list}"))
            .to_owned()
    };
    assert!(
        line("alive").contains(" yes ") && line("alive").contains("10.0.0.1"),
        "{list}"
    );
    assert!(line("gone").contains(" no "), "{list}");

    let (code, sentence) = failed(&world, &["server", "rm", "alive"]).await;
    assert!(sentence.contains("is alive"), "{sentence}");
    assert_ne!(code, 0);
    let (code, sentence) = failed(&world, &["server", "rm", "nobody"]).await;
    assert!(sentence.contains("nobody"), "{sentence}");
    assert_ne!(code, 0);
    assert_eq!(
        said(&world, &["server", "rm", "gone"]).await,
        "gone forgotten\n"
    );

    let left = json(&world, &["server", "list"]).await;
    let names: Vec<&str> = left
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["name"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"alive") && !names.contains(&"gone"),
        "{names:?}"
    );
    let blocks = world
        .db
        .text("SELECT count(*)::text FROM lease_blocks")
        .await;
    assert_eq!(blocks.as_deref(), Some("1"));
}
