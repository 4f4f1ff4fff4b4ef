//! The whole server at work until its machine's power is cut: `stock` fills its catalog and its
//! pool, `work` asks its API for one thing after another, and says each in a ledger before it is
//! asked for and after it was answered. Who compares the ledger with rows and devices is
//! `tests/lab/zfs/acknowledged`, which is none of this.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::Duration;

use dls::catalog::embedded::Embedded;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::postgres::PgPoolOptions;

use super::deeds::House;
use super::rounds::{Dice, say, task};
use crate::support::TestDb;

/// Images with a client that mends them.
const SUBJECTS: u32 = 3;
const STATE: &str = "/var/lib/dls";
const API: &str = "http://127.0.0.1:8080/api/v1";

/// Does nothing where no task is set. The server is not running, its database is.
#[tokio::test(flavor = "multi_thread")]
async fn stock() {
    let Ok(dataset) = std::env::var("DLS_STOCK") else {
        return;
    };
    let (url, _) = Embedded::locate(Path::new(STATE)).unwrap();
    let pool = PgPoolOptions::new().connect(&url).await.unwrap();
    let house = House::on(TestDb { url, pool }, dataset);
    let store = house.store();
    for number in 1..=SUBJECTS {
        house.stock(&*store, number).await;
    }
}

/// Who asks.
struct Worker {
    http: reqwest::Client,
    token: String,
    ledger: File,
    number: u32,
    /// Imported, or made from others.
    made: Vec<String>,
    /// Image and name of versions that may go.
    versions: Vec<(u32, String)>,
}

impl Worker {
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let request = self.http.request(method, format!("{API}{path}"));
        let request = request.bearer_auth(&self.token);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        super::process::answer(request.send().await.unwrap()).await
    }

    /// One thing, from its line to the line that it is answered; true if it was done.
    async fn one(&mut self, words: &str, method: Method, path: &str, body: Option<Value>) -> bool {
        self.number += 1;
        let number = self.number;
        say(&mut self.ledger, &format!("L B {number} {words}"));
        let (status, told) = match words.starts_with("import ") {
            true => self.import(path).await,
            false => self.ask(method, path, body).await,
        };
        let end = match status {
            200..=299 => "A",
            409 => "R",
            _ => {
                say(
                    &mut self.ledger,
                    &format!("L FAILED {number} {status} {told}"),
                );
                panic!("{words}: {status} {told}");
            }
        };
        say(&mut self.ledger, &format!("L {end} {number}"));
        end == "A"
    }

    /// Done when the image is there, which is later than the answer.
    async fn import(&self, path: &str) -> (u16, Value) {
        let content = vec![7_u8; 200 * 1024];
        let request = self.http.put(format!("{API}{path}/content")).body(content);
        let sent = request.bearer_auth(&self.token).send().await.unwrap();
        let (status, told) = super::process::answer(sent).await;
        if status != 202 {
            return (status, told);
        }
        loop {
            let (status, told) = self.ask(Method::GET, path, None).await;
            if status != 404 {
                return (status, told);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn next(&mut self, dice: &mut Dice) {
        let fresh = self.number + 1;
        let of = u32::try_from(dice.below(SUBJECTS as usize)).unwrap() + 1;
        let image = format!("/images/debian-{of}");
        let client = format!("/clients/pc-{of:04}");
        let post = Method::POST;
        match dice.below(12) {
            0..=1 if self.made.len() < 6 => {
                let name = format!("imported-{fresh}");
                let (words, path) = (format!("import {name}"), format!("/images/{name}"));
                if self.one(&words, Method::PUT, &path, None).await {
                    self.made.push(name);
                }
            }
            2 if self.made.len() < 6 => {
                let name = format!("child-{fresh}");
                let (words, path) = (
                    format!("child debian-{of} {name}"),
                    format!("{image}/clone"),
                );
                let body = json!({"name": name});
                if self.one(&words, post, &path, Some(body)).await {
                    self.made.push(name);
                }
            }
            3..=4 if !self.made.is_empty() => {
                let name = self.made.swap_remove(dice.below(self.made.len()));
                let (words, path) = (format!("delete {name}"), format!("/images/{name}"));
                self.one(&words, Method::DELETE, &path, None).await;
            }
            5 if !self.versions.is_empty() => {
                let (of, name) = self.versions[dice.below(self.versions.len())].clone();
                let path = format!("/images/debian-{of}/snapshots/{name}");
                let words = format!("retire debian-{of} {name}");
                if self.one(&words, Method::DELETE, &path, None).await {
                    self.versions.retain(|v| *v != (of, name.clone()));
                }
            }
            6 if !self.versions.is_empty() => {
                let (of, name) = self.versions[dice.below(self.versions.len())].clone();
                let path = format!("/images/debian-{of}/snapshots/{name}/release");
                let words = format!("release debian-{of} {name}");
                self.one(&words, post, &path, Some(json!({}))).await;
            }
            7 => {
                let path = format!("{image}/snapshots");
                let (_, rows) = self.ask(Method::GET, &path, None).await;
                let all = rows["snapshots"].as_array().unwrap();
                let released = all.iter().find(|v| v["stage"] == "production").unwrap();
                let name = released["name"].as_str().unwrap();
                let path = format!("{image}/snapshots/{name}/return");
                let words = format!("return debian-{of} {name}");
                self.one(&words, post, &path, Some(json!({}))).await;
            }
            8 if dice.below(3) == 0 => {
                let name = format!("m{fresh}");
                let (words, path) = (
                    format!("publish debian-{of} {name}"),
                    format!("{client}/maintenance/publish"),
                );
                let body = json!({"name": name});
                if self.one(&words, post, &path, Some(body)).await {
                    self.versions.push((of, name));
                }
            }
            9 if dice.below(4) == 0 => {
                let path = format!("{client}/disk");
                self.one(&format!("reset debian-{of}"), Method::DELETE, &path, None)
                    .await;
            }
            _ => {
                let name = format!("s{fresh}");
                let (words, path) = (
                    format!("snapshot debian-{of} {name}"),
                    format!("{image}/snapshots"),
                );
                let body = json!({"name": name, "from_client": format!("pc-{of:04}")});
                if self.one(&words, post, &path, Some(body)).await {
                    self.versions.push((of, name));
                }
            }
        }
    }
}

/// Until its machine has no power. Does nothing where no task is set.
#[tokio::test(flavor = "multi_thread")]
async fn work() {
    if std::env::var_os("DLS_CUTS").is_none() {
        return;
    }
    let mut dice = Dice(task("DLS_SEED").parse().unwrap());
    let ledger = OpenOptions::new()
        .append(true)
        .create(true)
        .open(task("DLS_LEDGER"));
    let token = std::fs::read_to_string(format!("{STATE}/admin.token")).unwrap();
    let mut worker = Worker {
        http: reqwest::Client::builder().no_proxy().build().unwrap(),
        token: token.trim().to_owned(),
        ledger: ledger.unwrap(),
        number: 0,
        made: vec![],
        versions: vec![],
    };
    for of in 1..=SUBJECTS {
        let names = match of {
            1 => &["base", "v2", "v3"][..],
            _ => &["base", "v2"],
        };
        for name in names.iter().copied() {
            say(&mut worker.ledger, &format!("L S debian-{of} {name}"));
            if name != "base" {
                worker.versions.push((of, name.to_owned()));
            }
        }
    }
    loop {
        worker.next(&mut dice).await;
    }
}
