//! `dls serve` as a process with a configuration of its own, that tests kill and start again.

#![allow(
    dead_code,
    clippy::disallowed_methods,
    clippy::allow_attributes,
    reason = "each test program takes what it needs, and in a machine of its own it is told where that lies"
)]

use std::hash::{BuildHasher, RandomState};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use dls::admin::auth::{read_token, token_path};
use dls::catalog::embedded::choose_user;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::support::TestDb;

/// A server process with a catalog and a store that outlive it.
pub(crate) struct Server {
    pub(crate) config: PathBuf,
    state: PathBuf,
    base: String,
    pub(crate) child: Child,
    http: reqwest::Client,
}

/// Starts the server with further arguments; it logs to a file beside its configuration.
pub(crate) fn start(config: &Path, more: &[&str]) -> Child {
    let mut log = std::fs::File::options();
    let log = log.create(true).append(true);
    let log = log.open(config.with_file_name("log")).unwrap();
    // Elsewhere than here it is another file.
    let program = std::env::var_os("DLS_PROGRAM");
    let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_dls").into());
    Command::new(program)
        .env_clear()
        .args(["serve", "--config"])
        .arg(config)
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// What a test has prepared, for the user that a server of root's becomes.
fn give_over(state: &Path) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let user = choose_user().unwrap();
    let given = std::process::Command::new("chown")
        .args(["-R", &format!("{}:", user.name)])
        .arg(state)
        .status();
    assert!(given.unwrap().success());
}

/// Ports that nobody has, below those that connections are given: no other test's connection takes
/// one before the server has it, or while it is down.
fn free_ports(count: usize) -> Vec<TcpListener> {
    let some = || {
        let chance = RandomState::new().hash_one(count) % 22_000;
        let port = 10_000 + u16::try_from(chance).unwrap();
        let udp = UdpSocket::bind(("127.0.0.1", port)).is_ok();
        TcpListener::bind(("127.0.0.1", port)).ok().filter(|_| udp)
    };
    std::iter::repeat_with(some).flatten().take(count).collect()
}

impl Server {
    pub(super) async fn new(db: &TestDb, dir: &Path) -> Self {
        let server = Self::begin(&db.url, dir, "", &[]);
        server.ready().await;
        server
    }

    /// One with further tables in its configuration that is started with further arguments, and
    /// not waited for.
    pub(crate) fn begin(url: &str, dir: &Path, tables: &str, more: &[&str]) -> Self {
        let taken = free_ports(6);
        let at = |n: usize| taken[n].local_addr().unwrap();
        let me = || nix::unistd::User::from_uid(nix::unistd::getuid());
        let user = choose_user().map_or_else(|| me().unwrap().unwrap().name, |user| user.name);
        // A server that is started by root makes it for the user that it runs as.
        let state = dir.join("state");
        if state.exists() {
            give_over(&state);
        }
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
        let text = format!(
            "state_dir = {state:?}\nuser = {:?}\n[database]\nurl = {:?}\n[tftp]\nlisten = \"{}\"\n[http]\nlisten = \"{}\"\n[admin]\nlisten = \"{}\"\n[iscsi]\nlisten = \"{}\"\n[nbd]\nlisten = \"{}\"\n[replication]\nlisten = \"{}\"\n{tables}",
            user,
            url,
            at(0),
            at(1),
            at(2),
            at(3),
            at(4),
            at(5)
        );
        let base = format!("http://{}", at(2));
        drop(taken);
        let config = dir.join("dls.toml");
        std::fs::write(&config, text).unwrap();
        Self {
            child: start(&config, more),
            config,
            state,
            base,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
        }
    }

    /// Starts it again after its end.
    pub(super) fn again(&mut self) {
        self.again_with(&[]);
    }

    /// The same with further arguments.
    pub(super) fn again_with(&mut self, more: &[&str]) {
        self.child = start(&self.config, more);
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.config.with_file_name("log")).unwrap_or_default()
    }

    /// True once it is ready, with its database.
    pub(crate) async fn answers(&self) -> bool {
        let asked = self.http.get(format!("{}/readyz", self.base)).send().await;
        match asked {
            Ok(told) if told.status().is_success() => {
                let told = told.text().await;
                told.is_ok_and(|told| told.contains("\"degraded\":false"))
            }
            _ => false,
        }
    }

    pub(crate) async fn ready(&self) {
        for _ in 0..300 {
            if self.answers().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the server does not come up: {}", self.log());
    }

    pub(super) async fn killed_and_started(&mut self) {
        self.child.kill().await.unwrap();
        self.again();
        self.ready().await;
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let token = read_token(&token_path(&self.state)).unwrap();
        self.http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(token.reveal())
    }

    pub(super) async fn get(&self, path: &str) -> (u16, Value) {
        answer(self.request(Method::GET, path).send().await.unwrap()).await
    }
}

pub(super) fn part(bytes: &[u8]) -> reqwest::multipart::Part {
    reqwest::multipart::Part::bytes(bytes.to_vec()).file_name("file")
}

pub(crate) async fn answer(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let bytes = response.bytes().await.unwrap();
    let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    (status, json)
}
