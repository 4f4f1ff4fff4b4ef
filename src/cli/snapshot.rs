//! `dls snapshot`: versions of images.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::client::text_or_null;
use super::remote::{Remote, segment, typed};
use super::{Failure, difference, output};
use crate::model::{Version, VersionStage};

/// Images and versions are named by name or id. Machines that run keep what they have; what is
/// said here holds from each one's next boot on.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a version of what a client has on its persistent disk of the image; it must be off
    Create {
        /// The image
        image: String,
        /// Name of the version
        name: String,
        /// The client: host name, MAC or id
        #[arg(long, value_name = "CLIENT")]
        from_client: String,
        /// Why
        #[arg(long)]
        description: Option<String>,
        /// Who makes it [default: the user who calls this]
        #[arg(long)]
        author: Option<String>,
    },
    /// List an image's versions
    List {
        /// The image
        image: String,
    },
    /// Show what a version differs in from another
    Diff {
        /// The image
        image: String,
        /// The older version
        from: String,
        /// The newer one [default: the one in production]
        to: Option<String>,
    },
    /// Let all machines of the image boot a version, or only those of a ring
    Release {
        /// The image
        image: String,
        /// The version
        name: String,
        /// Only clients of this ring: a canary
        #[arg(long, value_name = "RING")]
        ring: Option<String>,
        /// Release it to all after so many good boots of the ring, send it back after a failed one
        #[arg(long, value_name = "BOOTS", requires = "ring")]
        after: Option<u32>,
    },
    /// Send machines back from a version to the one before, or from a canary to production
    Return {
        /// The image
        image: String,
        /// The version [default: the one in production]
        name: Option<String>,
        /// The version that they boot then [default: the one released before it]
        #[arg(long, value_name = "VERSION")]
        to: Option<String>,
        /// Why
        #[arg(long)]
        reason: Option<String>,
    },
    /// Remove versions that nobody boots
    #[command(visible_alias = "delete")]
    Rm {
        /// The image
        image: String,
        /// The versions
        #[arg(required = true)]
        names: Vec<String>,
    },
}

fn path(image: &str, rest: &[&str]) -> String {
    let mut path = format!("/api/v1/images/{}/snapshots", segment(image));
    for part in rest {
        path.push('/');
        path.push_str(&segment(part));
    }
    path
}

pub(super) async fn run(remote: Remote, command: Command) -> Result<(), Failure> {
    match command {
        Command::Create {
            image,
            name,
            from_client,
            description,
            author,
        } => {
            let mut body = Map::new();
            body.insert("name".into(), name.into());
            body.insert("from_client".into(), from_client.into());
            if let Some(text) = description {
                body.insert("description".into(), text_or_null(&text));
            }
            if let Some(who) = author.or_else(caller) {
                body.insert("author".into(), text_or_null(&who));
            }
            let body = Value::from(body);
            let path = path(&image, &[]);
            let made = remote.fetch(Method::POST, &path, Some(&body)).await?;
            show(&remote, made)
        }
        Command::List { image } => {
            let versions = remote.list(&path(&image, &[]), "snapshots").await?;
            list(&remote, versions)
        }
        Command::Diff { image, from, to } => {
            let to = to.map_or_else(String::new, |to| format!("?to={}", segment(&to)));
            let path = format!("{}{to}", path(&image, &[&from, "diff"]));
            let told = remote.fetch_slowly(Method::GET, &path, None).await?;
            if remote.wants_json() {
                return output::json(&told);
            }
            difference::show(&typed(told)?)
        }
        Command::Release {
            image,
            name,
            ring,
            after,
        } => {
            let body = match &ring {
                Some(ring) => json!({"stage": "canary", "ring": ring, "good_boots": after}),
                None => json!({"stage": "production"}),
            };
            let path = path(&image, &[&name, "release"]);
            let done = remote.fetch(Method::POST, &path, Some(&body)).await?;
            if remote.wants_json() {
                return output::json(&done);
            }
            let version: Version = typed(done)?;
            released(&output::printable(&image), &version)
        }
        Command::Return {
            image,
            name,
            to,
            reason,
        } => {
            let name = match name {
                Some(name) => name,
                None => in_production(&remote, &image).await?,
            };
            let body = json!({"to": to, "reason": reason});
            let path = path(&image, &[&name, "return"]);
            let done = remote.fetch(Method::POST, &path, Some(&body)).await?;
            if remote.wants_json() {
                return output::json(&done);
            }
            let part = |key: &str| typed::<Version>(done.get(key).cloned().unwrap_or_default());
            let (from, now) = (part("returned")?.name, part("now")?.name);
            let image = output::printable(&image);
            output::line(&format!(
                "machines go back from version {from} of {image} to {now} at their next boot"
            ))
        }
        Command::Rm { image, names } => {
            for name in names {
                let path = path(&image, &[&name]);
                remote.fetch(Method::DELETE, &path, None).await?;
                if !remote.wants_json() {
                    output::line(&format!("{} removed", output::printable(&name)))?;
                }
            }
            Ok(())
        }
    }
}

/// Says who boots a version from now on.
pub(super) fn released(image: &str, version: &Version) -> Result<(), Failure> {
    let name = &version.name;
    output::line(&match (version.stage, &version.ring, version.good_boots) {
        (_, Some(ring), None) => {
            format!("machines of ring {ring} boot version {name} of {image} from now on")
        }
        (_, Some(ring), Some(boots)) => format!(
            "machines of ring {ring} boot version {name} of {image} from now on, all others after {boots} good boots"
        ),
        (VersionStage::Production, None, _) => {
            format!("machines boot version {name} of {image} from now on")
        }
        (_, None, _) => format!("version {name} of {image} is a {}", version.stage),
    })
}

/// Who calls this, as the system says.
#[expect(
    clippy::disallowed_methods,
    reason = "the command line speaks for whoever calls it"
)]
pub(super) fn caller() -> Option<String> {
    let named = |variable| std::env::var(variable).ok().filter(|name| !name.is_empty());
    named("SUDO_USER").or_else(|| named("USER"))
}

async fn in_production(remote: &Remote, image: &str) -> Result<String, Failure> {
    let versions: Vec<Version> = typed(remote.list(&path(image, &[]), "snapshots").await?)?;
    let mut all = versions.into_iter();
    let found = all.find(|v| v.stage == VersionStage::Production);
    found.map(|v| v.name).ok_or_else(|| {
        Failure::Failed(format!(
            "{} has no version in production",
            output::printable(image)
        ))
    })
}

/// The stage, with the ring of a canary.
fn standing(version: &Version) -> String {
    match &version.ring {
        Some(ring) => match version.good_boots {
            Some(boots) => format!("{} ({ring}, {boots} good boots)", version.stage),
            None => format!("{} ({ring})", version.stage),
        },
        None => version.stage.to_string(),
    }
}

fn list(remote: &Remote, versions: Value) -> Result<(), Failure> {
    if remote.wants_json() {
        return output::json(&versions);
    }
    let values: Vec<Value> = typed(versions)?;
    let mut rows = Vec::with_capacity(values.len());
    for value in values {
        let running = value.get("running").and_then(Value::as_i64);
        let version: Version = typed(value)?;
        rows.push(vec![
            version.name.clone(),
            standing(&version),
            output::maybe(running),
            output::bytes(version.size_bytes),
            output::bytes(version.referenced_bytes),
            version.author.clone().unwrap_or_default(),
            version.from_client.clone().unwrap_or_default(),
            output::time(version.created_at),
            version
                .reason
                .clone()
                .or(version.description)
                .unwrap_or_default(),
        ]);
    }
    let head = [
        "NAME", "STAGE", "RUNNING", "USED", "REFERS", "BY", "FROM", "CREATED", "WHY",
    ];
    output::table(&head, rows)
}

fn show(remote: &Remote, value: Value) -> Result<(), Failure> {
    if remote.wants_json() {
        return output::json(&value);
    }
    let version: Version = typed(value)?;
    output::card(&[
        ("name", version.name.clone()),
        ("id", version.id.to_string()),
        ("stage", standing(&version)),
        ("used", output::bytes(version.size_bytes)),
        ("refers to", output::bytes(version.referenced_bytes)),
        ("from", version.from_client.unwrap_or_default()),
        ("by", version.author.unwrap_or_default()),
        ("why", version.description.unwrap_or_default()),
        ("created", output::time(version.created_at)),
    ])
}
