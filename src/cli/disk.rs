//! `dls disk`: what machines write to, and how much they may.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::remote::{Remote, segment, typed};
use super::{Failure, output};
use crate::model::ClientDisk;
use crate::model::quota::QUOTA_UNIT;

/// Clients are named by host name, MAC or id, images by name or id.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List machines' disks: what each takes, what it shares, what its machine may write
    List {
        /// Only those of this client
        client: Option<String>,
    },
    /// Show or set how much machines may write to their copies of an image
    Quota {
        /// The image whose copies are meant
        #[arg(long, conflicts_with = "client", required_unless_present = "client")]
        image: Option<String>,
        /// The client, whose own limit wins over its image's
        #[arg(long)]
        client: Option<String>,
        /// Such as 20GiB or 512MiB; `none`: no limit; for a client also `image`: as its image says
        limit: Option<String>,
    },
}

pub(super) async fn run(remote: Remote, command: Command) -> Result<(), Failure> {
    match command {
        Command::List { client } => {
            let query = client.map_or_else(String::new, |c| format!("?client={}", segment(&c)));
            list(
                &remote,
                remote
                    .list(&format!("/api/v1/clones{query}"), "clones")
                    .await?,
            )
        }
        Command::Quota {
            image,
            client,
            limit,
        } => {
            let (path, of_client) = match (&image, &client) {
                (_, Some(client)) => (format!("clients/{}", segment(client)), true),
                (Some(image), None) => (format!("images/{}", segment(image)), false),
                (None, None) => return Err(Failure::Usage("--image or --client".into())),
            };
            let path = format!("/api/v1/{path}/clone-quota");
            let told = match limit {
                None => remote.fetch(Method::GET, &path, None).await?,
                Some(limit) => {
                    let body = json!({"clone_quota_mb": mib(&limit, of_client)?});
                    remote.fetch(Method::PUT, &path, Some(&body)).await?
                }
            };
            show(&remote, &told)
        }
    }
}

/// MiB of what was given.
fn mib(text: &str, of_client: bool) -> Result<Value, Failure> {
    match (text, of_client) {
        ("none", false) | ("image", true) => return Ok(Value::Null),
        ("none", true) => return Ok(json!(0)),
        _ => {}
    }
    let wrong = || {
        Failure::Usage(format!(
            "`{text}` is no size: expected such as 20GiB or 512MiB, or `none`"
        ))
    };
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let unit = match &text[digits.len()..] {
        "" | "M" | "MiB" => 1,
        "G" | "GiB" => 1 << 10,
        "T" | "TiB" => 1 << 20,
        _ => return Err(wrong()),
    };
    Ok(json!(number.checked_mul(unit).ok_or_else(wrong)?))
}

fn show(remote: &Remote, told: &Value) -> Result<(), Failure> {
    if remote.wants_json() {
        return output::json(told);
    }
    let size = |mib: i64| output::bytes(mib.saturating_mul(QUOTA_UNIT as i64));
    let set = told["clone_quota_mb"].as_i64();
    let text = match (told["image"].as_str(), told["client"].as_str()) {
        (Some(image), _) => {
            let image = output::printable(image);
            match set {
                Some(mib) => format!("machines may write {} to a copy of {image}", size(mib)),
                None => format!("machines may write any amount to a copy of {image}"),
            }
        }
        (None, client) => {
            let client = output::printable(client.unwrap_or_default());
            match (set, told["quota_bytes"].as_i64()) {
                (Some(0), _) => format!("{client} may write any amount, whatever its image says"),
                (Some(mib), _) => format!("{client} may write {}", size(mib)),
                (None, Some(holds)) => {
                    format!(
                        "{client} may write {}, as its image says",
                        output::bytes(holds)
                    )
                }
                (None, None) => format!("{client} may write any amount"),
            }
        }
    };
    output::line(&text)
}

fn list(remote: &Remote, disks: Value) -> Result<(), Failure> {
    if remote.wants_json() {
        return output::json(&disks);
    }
    let disks: Vec<ClientDisk> = typed(disks)?;
    let bytes = |n: Option<i64>| n.map_or_else(String::new, output::bytes);
    let rows = disks.into_iter().map(|disk| {
        vec![
            disk.client.unwrap_or_default(),
            disk.mode.to_string(),
            disk.image.unwrap_or_default(),
            disk.version.unwrap_or_default(),
            output::bytes(disk.size_bytes),
            output::bytes(disk.used_bytes),
            output::bytes(disk.referenced_bytes),
            bytes(disk.own_bytes),
            bytes(disk.quota_bytes),
            disk.peer.unwrap_or_default(),
            disk.server.unwrap_or_default(),
        ]
    });
    let head = [
        "CLIENT", "DISK", "IMAGE", "VERSION", "SIZE", "USED", "REFERS", "WRITTEN", "QUOTA",
        "ATTACHED", "SERVER",
    ];
    output::table(&head, rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        for (text, of_client, expected) in [
            ("20GiB", false, json!(20 << 10)),
            ("512", true, json!(512)),
            ("1T", false, json!(1 << 20)),
            ("none", false, Value::Null),
            ("none", true, json!(0)),
            ("image", true, Value::Null),
        ] {
            assert_eq!(mib(text, of_client).unwrap(), expected, "{text}");
        }
        for bad in [
            "",
            "GiB",
            "1.5GiB",
            "image",
            "-1",
            "7 KiB",
            "99999999999999999999",
        ] {
            assert!(mib(bad, false).is_err(), "{bad}");
        }
    }
}
