//! `dls image replicate`, `replicas`, `rm-replica`: versions on several servers.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::super::remote::{Remote, segment, typed};
use super::super::{Failure, output};
use super::meter::Meter;
use crate::model::{Replica, ReplicaState};

/// Between two looks at what is under way.
const LOOK: Duration = Duration::from_millis(300);

fn path(image: &str) -> String {
    format!("/api/v1/images/{}/replicas", segment(image))
}

/// Sends a version to a server, and waits until it is there unless told not to.
pub(super) async fn replicate(
    remote: &Remote,
    image: &str,
    to: &str,
    version: Option<&str>,
    wait: bool,
) -> Result<(), Failure> {
    let body = json!({"to": to, "version": version});
    let mut told = remote
        .fetch(Method::POST, &path(image), Some(&body))
        .await?;
    let begun: Replica = typed(told.clone())?;
    let meter = Meter::of_parts("copying");
    let mut row = begun.clone();
    while wait && row.state == ReplicaState::Copying {
        meter.at_part(row.bytes_done as f64 / row.bytes_total.max(1) as f64);
        tokio::time::sleep(LOOK).await;
        let rows = remote.list(&path(image), "replicas").await?;
        let rows: Vec<Value> = typed(rows)?;
        let mut found = None;
        for other in rows {
            let replica: Replica = typed(other.clone())?;
            if (replica.version_id, replica.server_id) == (begun.version_id, begun.server_id) {
                found = Some((replica, other));
            }
        }
        let Some((replica, other)) = found else {
            return Err(Failure::Failed("somebody gave it up".into()));
        };
        (row, told) = (replica, other);
    }
    meter.end();
    if row.state == ReplicaState::Failed {
        let why = row.reason.unwrap_or_default();
        return Err(Failure::Failed(format!("it was not replicated: {why}")));
    }
    if remote.wants_json() {
        return output::json(&told);
    }
    let name = |key: &str| output::printable(told[key].as_str().unwrap_or_default());
    let (image, version, server) = (name("image"), name("version"), name("server"));
    output::line(&match row.state {
        ReplicaState::Verified => format!("{server} has version {version} of {image}"),
        ReplicaState::Copying | ReplicaState::Failed => {
            format!("version {version} of {image} is being copied to {server}")
        }
    })
}

/// Which server has what.
pub(super) async fn list(remote: &Remote, image: Option<&str>) -> Result<(), Failure> {
    let path = image.map_or_else(|| "/api/v1/replicas".to_owned(), path);
    let rows = remote.list(&path, "replicas").await?;
    if remote.wants_json() {
        return output::json(&rows);
    }
    let rows: Vec<Value> = typed(rows)?;
    let mut table = Vec::new();
    for row in rows {
        let replica: Replica = typed(row.clone())?;
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let alive = row["server_alive"].as_bool() == Some(true);
        let state = match replica.state {
            ReplicaState::Copying if replica.bytes_total > 0 => {
                let done = 100.0 * replica.bytes_done as f64 / replica.bytes_total as f64;
                format!("copying, {done:.0} %")
            }
            state => state.to_string(),
        };
        table.push(vec![
            text("image"),
            text("version"),
            text("server"),
            if alive { "yes" } else { "no" }.to_owned(),
            state,
            text("from"),
            output::bytes(replica.bytes_total),
            replica.reason.unwrap_or_default(),
        ]);
    }
    let head = [
        "IMAGE", "VERSION", "SERVER", "ALIVE", "STATE", "FROM", "SENT", "WHY",
    ];
    output::table(&head, table)
}

/// Removes a replica, or ends its copying.
pub(super) async fn remove(
    remote: &Remote,
    image: &str,
    server: &str,
    version: Option<&str>,
) -> Result<(), Failure> {
    let mut path = format!("{}/{}", path(image), segment(server));
    if let Some(version) = version {
        path.push_str(&format!("?version={}", segment(version)));
    }
    remote.fetch(Method::DELETE, &path, None).await?;
    Ok(())
}
