//! `dls session`: boots, running and past.

use clap::Subcommand;
use futures_util::StreamExt;
use reqwest::Method;
use serde_json::Value;
use uuid::Uuid;

use super::remote::{Remote, segment, typed};
use super::{Failure, output};
use crate::model::{Attempt, BootEvent, BootSession, SessionStatus, Timestamp};

/// Sessions are named by id; a client's name or MAC means its newest one.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List sessions, newest first
    List {
        /// Only those that are not over
        #[arg(long)]
        active: bool,
        /// Only those of this client (host name, MAC or id)
        #[arg(long)]
        client: Option<String>,
        /// Only those of this MAC address, registered or not
        #[arg(long)]
        mac: Option<String>,
        /// At most this many
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: u32,
    },
    /// Show one session with its timeline
    Show {
        /// Id, or a client for its newest one
        session: String,
    },
    /// Follow boots as they happen, until interrupted
    Watch,
}

pub(super) async fn run(remote: Remote, command: Command) -> Result<(), Failure> {
    match command {
        Command::List {
            active,
            client,
            mac,
            limit,
        } => {
            let mut query = format!("?limit={limit}");
            if active {
                query.push_str("&active=true");
            }
            for (name, given) in [("client", client), ("mac", mac)] {
                if let Some(value) = given {
                    query.push_str(&format!("&{name}={}", segment(&value)));
                }
            }
            list(&remote, listed(&remote, &query).await?)
        }
        Command::Show { session } => {
            let id = match session.parse::<Uuid>() {
                Ok(id) => id,
                Err(_) => newest_of(&remote, &session).await?,
            };
            let path = format!("/api/v1/sessions/{id}");
            show(&remote, remote.fetch(Method::GET, &path, None).await?)
        }
        Command::Watch => watch(&remote).await,
    }
}

async fn listed(remote: &Remote, query: &str) -> Result<Value, Failure> {
    let path = format!("/api/v1/sessions{query}");
    remote.list(&path, "sessions").await
}

async fn newest_of(remote: &Remote, client: &str) -> Result<Uuid, Failure> {
    let query = format!("?limit=1&client={}", segment(client));
    let found: Vec<Attempt> = typed(listed(remote, &query).await?)?;
    found
        .first()
        .map(|attempt| attempt.id)
        .ok_or_else(|| Failure::NotFound(format!("client `{client}` has not booted yet")))
}

/// The session's status, or how the attempt ended where there was no session.
fn status(attempt: &Attempt, session: Option<&BootSession>) -> String {
    match session {
        Some(session) => session.status.to_string(),
        None => attempt.outcome.to_string(),
    }
}

fn session_of(value: &Value) -> Result<Option<BootSession>, Failure> {
    match value.get("session") {
        None | Some(Value::Null) => Ok(None),
        Some(session) => typed(session.clone()).map(Some),
    }
}

fn list(remote: &Remote, sessions: Value) -> Result<(), Failure> {
    if remote.wants_json() {
        return output::json(&sessions);
    }
    let values: Vec<Value> = typed(sessions)?;
    let mut rows = Vec::with_capacity(values.len());
    for value in values {
        let session = session_of(&value)?;
        let attempt: Attempt = typed(value)?;
        let seconds = session.as_ref().and_then(|s| s.boot_time_seconds);
        rows.push(vec![
            output::time(attempt.started_at),
            attempt.client_name.clone().unwrap_or_default(),
            attempt.mac.to_string(),
            attempt.image_name.clone().unwrap_or_default(),
            status(&attempt, session.as_ref()),
            attempt.last_stage.to_string(),
            seconds.map_or_else(String::new, |s| format!("{s} s")),
            attempt.reason.clone().unwrap_or_default(),
            attempt.id.to_string(),
        ]);
    }
    let head = [
        "STARTED",
        "CLIENT",
        "MAC",
        "IMAGE",
        "STATUS",
        "STAGE",
        "BOOT TIME",
        "REASON",
        "ID",
    ];
    output::table(&head, rows)
}

fn show(remote: &Remote, value: Value) -> Result<(), Failure> {
    if remote.wants_json() {
        return output::json(&value);
    }
    let session = session_of(&value)?;
    let events: Vec<BootEvent> = typed(value.get("events").cloned().unwrap_or_default())?;
    let attempt: Attempt = typed(value)?;
    let seconds = session.as_ref().and_then(|s| s.boot_time_seconds);
    output::card(&[
        ("id", attempt.id.to_string()),
        ("client", attempt.client_name.clone().unwrap_or_default()),
        ("mac", attempt.mac.to_string()),
        ("image", attempt.image_name.clone().unwrap_or_default()),
        ("status", status(&attempt, session.as_ref())),
        ("outcome", attempt.outcome.to_string()),
        ("reason", attempt.reason.clone().unwrap_or_default()),
        ("architecture", output::maybe(attempt.arch)),
        ("address", output::maybe(attempt.client_ip)),
        ("server", output::maybe(attempt.boot_server_ip)),
        ("started", output::time(attempt.started_at)),
        (
            "ended",
            attempt.ended_at.map_or_else(String::new, output::time),
        ),
        ("disk", moved(&attempt)),
        ("version", attempt.version_name.clone().unwrap_or_default()),
        (
            "boot time",
            seconds.map_or_else(String::new, |s| format!("{s} s")),
        ),
    ])?;
    output::line("")?;
    let rows = events.iter().map(|event| {
        let after = event.at - attempt.started_at;
        vec![
            event.at.format("%H:%M:%S%.3f").to_string(),
            format!("+{:.3}", after.num_milliseconds() as f64 / 1000.0),
            event.stage.to_string(),
            facts(&event.detail),
        ]
    });
    output::table(&["AT", "SECONDS", "STAGE", "DETAIL"], rows.collect())
}

/// What went over the connections to its disk; empty if nothing did.
fn moved(attempt: &Attempt) -> String {
    match (attempt.disk_bytes_read, attempt.disk_bytes_written) {
        (0, 0) => String::new(),
        (read, written) => format!("{read} bytes read, {written} bytes written"),
    }
}

/// A detail as `key=value` words.
fn facts(detail: &Value) -> String {
    let word = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match detail {
        Value::Null => String::new(),
        Value::Object(map) => {
            let words: Vec<String> = map
                .iter()
                .map(|(k, v)| format!("{k}={}", word(v)))
                .collect();
            words.join(" ")
        }
        other => word(other),
    }
}

/// An event of the stream, or the number of those that were missed.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Told {
    Event {
        attempt: Box<Attempt>,
        status: Option<SessionStatus>,
        event: BootEvent,
    },
    Missed {
        missed: u64,
    },
}

async fn watch(remote: &Remote) -> Result<(), Failure> {
    let request = remote.request(Method::GET, "/api/v1/sessions/watch");
    let response = remote.send(request).await?;
    let mut chunks = response.bytes_stream();
    let mut waiting: Vec<u8> = Vec::new();
    while let Some(chunk) = chunks.next().await {
        waiting.extend_from_slice(&chunk.map_err(|e| remote.unreachable(&e))?);
        while let Some(end) = waiting.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = waiting.drain(..=end).collect();
            let line = line.trim_ascii();
            if !line.is_empty() {
                tell(remote, line)?;
            }
        }
    }
    Err(Failure::NoAccess("the server has ended the stream".into()))
}

fn tell(remote: &Remote, line: &[u8]) -> Result<(), Failure> {
    if remote.wants_json() {
        return output::line(&String::from_utf8_lossy(line));
    }
    let told = serde_json::from_slice(line)
        .map_err(|e| Failure::Failed(format!("the server's answer is of another version: {e}")))?;
    match told {
        Told::Missed { missed } => output::line(&format!("({missed} events were missed)")),
        Told::Event {
            attempt,
            status,
            event,
        } => {
            let who = attempt.client_name.clone();
            let who = who.unwrap_or_else(|| attempt.mac.to_string());
            let standing = status.map_or_else(|| attempt.outcome.to_string(), |s| s.to_string());
            output::line(&output::printable(&format!(
                "{}  {who}  {standing}  {}  {}",
                clock_time(event.at),
                event.stage,
                facts(&event.detail)
            )))
        }
    }
}

fn clock_time(at: Timestamp) -> String {
    at.format("%Y-%m-%d %H:%M:%S%.3fZ").to_string()
}
