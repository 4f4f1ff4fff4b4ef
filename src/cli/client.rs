//! `dls client`: the machines.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::remote::{Remote, segment, typed};
use super::snapshot::{caller, released};
use super::{Failure, difference, output};
use crate::model::difference::Rebase;
use crate::model::{Client, MacAddr};

/// Clients are named by host name, MAC (in any spelling) or id.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Register a machine
    Add {
        /// MAC address of its network card
        #[arg(long)]
        mac: String,
        /// Host name, which DHCP gives it too
        #[arg(long)]
        hostname: String,
        #[command(flatten)]
        settings: Settings,
        /// Register it disabled: it waits until it is enabled
        #[arg(long)]
        disabled: bool,
    },
    /// Change a machine; what is not given stays
    Set {
        /// Host name, MAC or id
        client: String,
        /// Another first MAC address
        #[arg(long)]
        mac: Option<String>,
        /// Another host name
        #[arg(long)]
        hostname: Option<String>,
        #[command(flatten)]
        settings: Settings,
        /// No longer this MAC address; may be repeated
        #[arg(long, value_name = "MAC")]
        rm_mac: Vec<String>,
    },
    /// List the machines
    List {
        /// Only those that are enabled
        #[arg(long)]
        enabled: bool,
    },
    /// Show one machine
    Show {
        /// Host name, MAC or id
        client: String,
    },
    /// Let machines boot
    Enable {
        /// Host name, MAC or id
        #[arg(required = true)]
        clients: Vec<String>,
    },
    /// Let machines wait
    Disable {
        /// Host name, MAC or id
        #[arg(required = true)]
        clients: Vec<String>,
    },
    /// Throw away what a machine has written to its persistent disk
    ResetDisk {
        /// Host name, MAC or id
        client: String,
    },
    /// Let a machine's persistent disk begin anew from a version; without --yes it is only said what
    /// would be lost
    Rebase {
        /// Host name, MAC or id
        client: String,
        /// The version [default: the one that it follows]
        #[arg(long, value_name = "VERSION")]
        to: Option<String>,
        /// Do it: what the machine has written is thrown away
        #[arg(long)]
        yes: bool,
    },
    /// Let a machine mend its image: from its next boot on it keeps what it writes
    Maintain {
        /// Host name, MAC or id
        client: String,
        /// Who mends it [default: the user who calls this]
        #[arg(long)]
        author: Option<String>,
    },
    /// Make a version of what a machine has mended, and let all machines boot it; it must be off
    Publish {
        /// Host name, MAC or id
        client: String,
        /// Name of the version
        name: String,
        /// Only clients of this ring boot it: a canary
        #[arg(long, value_name = "RING", conflicts_with = "draft")]
        ring: Option<String>,
        /// Release it to all after so many good boots of the ring, send it back after a failed one
        #[arg(long, value_name = "BOOTS", requires = "ring")]
        after: Option<u32>,
        /// Nobody boots it yet
        #[arg(long)]
        draft: bool,
        /// What was mended
        #[arg(long)]
        description: Option<String>,
        /// Who mended it [default: who began]
        #[arg(long)]
        author: Option<String>,
    },
    /// Throw away what a machine has mended; it must be off
    Discard {
        /// Host name, MAC or id
        client: String,
    },
    /// Forget machines
    Rm {
        /// Host name, MAC or id
        #[arg(required = true)]
        clients: Vec<String>,
    },
}

/// What both `add` and `set` take. An empty value ('') empties what may be empty.
#[derive(Debug, Args)]
pub(super) struct Settings {
    /// Image it boots, by name or id
    #[arg(long)]
    image: Option<String>,
    /// Address reserved for it
    #[arg(long)]
    ip: Option<String>,
    /// Boot mode
    #[arg(long, value_parser = ["pxe", "uefi", "legacy"])]
    boot_mode: Option<String>,
    /// What becomes of what it writes to its disk: ephemeral (clean at each boot) or
    /// persistent (kept)
    #[arg(long, value_parser = ["ephemeral", "persistent"])]
    disk_mode: Option<String>,
    /// Boots the canaries of this ring
    #[arg(long, value_name = "RING")]
    ring: Option<String>,
    /// Boots this version of its image, whatever is released
    #[arg(long, value_name = "VERSION")]
    pin: Option<String>,
    /// Added to the kernel's command line
    #[arg(long, value_name = "PARAMETERS", allow_hyphen_values = true)]
    boot_params: Option<String>,
    /// A further MAC address that means this machine; may be repeated
    #[arg(long, value_name = "MAC")]
    add_mac: Vec<String>,
    /// CPU cores
    #[arg(long, value_name = "N")]
    cpu_cores: Option<u32>,
    /// Memory in MiB
    #[arg(long, value_name = "MIB")]
    memory_mb: Option<u32>,
    /// Network setting of its own, which wins over its range's: gateway, dns, domain, search,
    /// ntp, mtu, or kernel_ip=static|dhcp; lists with commas; may be repeated, all are set anew
    #[arg(long, value_name = "KEY=VALUE")]
    net: Vec<String>,
}

pub(super) async fn run(remote: Remote, command: Command) -> Result<(), Failure> {
    match command {
        Command::Add {
            mac,
            hostname,
            settings,
            disabled,
        } => {
            let mut body = settings.fields()?;
            body.insert("mac_address".into(), normal_mac(&mac).into());
            body.insert("hostname".into(), hostname.into());
            body.insert("enabled".into(), (!disabled).into());
            let macs: Vec<Value> = normal_macs(&settings.add_mac);
            if !macs.is_empty() {
                body.insert("more_macs".into(), macs.into());
            }
            let body = Value::from(body);
            let made = remote
                .fetch(Method::POST, "/api/v1/clients", Some(&body))
                .await?;
            show(&remote, made)
        }
        Command::Set {
            client,
            mac,
            hostname,
            settings,
            rm_mac,
        } => {
            let mut body = settings.fields()?;
            if let Some(mac) = mac {
                body.insert("mac_address".into(), normal_mac(&mac).into());
            }
            if let Some(hostname) = hostname {
                body.insert("hostname".into(), hostname.into());
            }
            if !settings.add_mac.is_empty() || !rm_mac.is_empty() {
                let macs = changed_macs(&remote, &client, &settings.add_mac, &rm_mac).await?;
                body.insert("more_macs".into(), macs);
            }
            if body.is_empty() {
                return Err(Failure::Usage(
                    "nothing to set: see `dls client set --help`".into(),
                ));
            }
            let changed = patch(&remote, &client, body).await?;
            show(&remote, changed)
        }
        Command::List { enabled } => {
            let query = if enabled { "?enabled=true" } else { "" };
            let path = format!("/api/v1/clients{query}");
            list(&remote, remote.list(&path, "clients").await?)
        }
        Command::Show { client } => {
            let path = format!("/api/v1/clients/{}", segment(&client));
            show(&remote, remote.fetch(Method::GET, &path, None).await?)
        }
        Command::Enable { clients } => set_enabled(&remote, &clients, true).await,
        Command::Disable { clients } => set_enabled(&remote, &clients, false).await,
        Command::ResetDisk { client } => {
            let path = format!("/api/v1/clients/{}/disk", segment(&client));
            let done = remote.fetch(Method::DELETE, &path, None).await?;
            if remote.wants_json() {
                return output::json(&done);
            }
            let removed = done.get("removed").and_then(Value::as_u64).unwrap_or(0);
            let client = output::printable(&client);
            output::line(&match removed {
                0 => format!("{client} has no persistent disk"),
                _ => format!("{client} begins with a clean disk at its next boot"),
            })
        }
        Command::Rebase { client, to, yes } => {
            let path = format!("/api/v1/clients/{}/disk/rebase", segment(&client));
            let told = if yes {
                let body = json!({"to": to});
                remote
                    .fetch_slowly(Method::POST, &path, Some(&body))
                    .await?
            } else {
                let to = to.map_or_else(String::new, |to| format!("?to={}", segment(&to)));
                let path = format!("{path}{to}");
                remote.fetch_slowly(Method::GET, &path, None).await?
            };
            rebased(&remote, told)
        }
        Command::Maintain { client, author } => {
            let path = format!("/api/v1/clients/{}/maintenance", segment(&client));
            let author = author.or_else(caller);
            let body = json!({"author": author.as_deref().map(text_or_null)});
            let begun = remote.fetch(Method::POST, &path, Some(&body)).await?;
            if remote.wants_json() {
                return output::json(&begun);
            }
            let named = |key: &str| output::printable(begun[key].as_str().unwrap_or_default());
            output::line(&format!(
                "{} mends {} from its next boot on: publish or discard what it writes",
                named("client"),
                named("image")
            ))
        }
        Command::Publish {
            client,
            name,
            ring,
            after,
            draft,
            description,
            author,
        } => {
            let stage = match (draft, &ring) {
                (true, _) => "draft",
                (false, Some(_)) => "canary",
                (false, None) => "production",
            };
            let body = json!({
                "name": name, "stage": stage, "ring": ring, "good_boots": after,
                "description": description.as_deref().map(text_or_null),
                "author": author.as_deref().map(text_or_null),
            });
            let path = format!("/api/v1/clients/{}/maintenance/publish", segment(&client));
            let made = remote.fetch(Method::POST, &path, Some(&body)).await?;
            if remote.wants_json() {
                return output::json(&made);
            }
            released("its image", &typed(made)?)
        }
        Command::Discard { client } => {
            let path = format!("/api/v1/clients/{}/maintenance", segment(&client));
            remote.fetch(Method::DELETE, &path, None).await?;
            if remote.wants_json() {
                return Ok(());
            }
            let client = output::printable(&client);
            output::line(&format!("what {client} has mended is thrown away"))
        }
        Command::Rm { clients } => {
            for client in clients {
                let path = format!("/api/v1/clients/{}", segment(&client));
                remote.fetch(Method::DELETE, &path, None).await?;
                if !remote.wants_json() {
                    output::line(&format!("{} removed", output::printable(&client)))?;
                }
            }
            Ok(())
        }
    }
}

fn rebased(remote: &Remote, told: Value) -> Result<(), Failure> {
    if remote.wants_json() {
        return output::json(&told);
    }
    let told: Rebase = typed(told)?;
    let (client, to) = (output::printable(&told.client), output::printable(&told.to));
    let since = told.since.map_or_else(String::new, |at| {
        format!(", written since {}", output::time(at))
    });
    let from = match &told.from {
        Some(from) => format!("version {} of {}", from, told.image),
        None => format!("a version of {} that is not known", told.image),
    };
    output::line(&format!(
        "the disk of {client} was made from {}{since}",
        output::printable(&from)
    ))?;
    difference::show(&told.lost)?;
    output::line(&match told.done {
        true => format!("that is thrown away: {client} begins with version {to} at its next boot"),
        false => format!(
            "that would be lost if it began anew from version {to}: --yes does it, and nothing was done"
        ),
    })
}

impl Settings {
    /// The fields of the API. `''` becomes null.
    fn fields(&self) -> Result<Map<String, Value>, Failure> {
        let mut body = Map::new();
        let texts = [
            ("assigned_image", &self.image),
            ("ip_address", &self.ip),
            ("boot_mode", &self.boot_mode),
            ("disk_mode", &self.disk_mode),
            ("ring", &self.ring),
            ("pinned_version", &self.pin),
            ("custom_boot_params", &self.boot_params),
        ];
        for (field, given) in texts {
            if let Some(text) = given {
                body.insert(field.into(), text_or_null(text));
            }
        }
        let numbers = [("cpu_cores", self.cpu_cores), ("memory_mb", self.memory_mb)];
        for (field, given) in numbers {
            if let Some(number) = given {
                body.insert(field.into(), number.into());
            }
        }
        if !self.net.is_empty() {
            body.insert("network_config".into(), network_config(&self.net)?);
        }
        Ok(body)
    }
}

/// An empty text empties the field.
pub(super) fn text_or_null(text: &str) -> Value {
    if text.is_empty() {
        Value::Null
    } else {
        text.into()
    }
}

/// `KEY=VALUE`s become the object; a single empty one empties it.
fn network_config(settings: &[String]) -> Result<Value, Failure> {
    if settings.iter().all(String::is_empty) {
        return Ok(Value::Null);
    }
    let mut config = Map::new();
    for setting in settings {
        let Some((key, value)) = setting.split_once('=') else {
            return Err(Failure::Usage(format!(
                "--net {setting}: expected KEY=VALUE"
            )));
        };
        let value = match key {
            "dns" | "search" | "ntp" => value.split(',').map(str::trim).collect(),
            "mtu" => number_or_text(value),
            _ => value.into(),
        };
        config.insert(key.to_owned(), value);
    }
    Ok(config.into())
}

/// What should be a number, as one if it is: the server says what is wrong with it if not.
pub(super) fn number_or_text(text: &str) -> Value {
    text.parse::<u64>()
        .map_or_else(|_| text.into(), Value::from)
}

/// The server, when strict, wants one spelling; people type any.
fn normal_mac(text: &str) -> String {
    text.trim()
        .parse::<MacAddr>()
        .map_or_else(|_| text.to_owned(), |mac| mac.to_string())
}

fn normal_macs(texts: &[String]) -> Vec<Value> {
    texts.iter().map(|m| normal_mac(m).into()).collect()
}

async fn changed_macs(
    remote: &Remote,
    client: &str,
    add: &[String],
    remove: &[String],
) -> Result<Value, Failure> {
    let path = format!("/api/v1/clients/{}", segment(client));
    let current: Client = typed(remote.fetch(Method::GET, &path, None).await?)?;
    let removed = normal_macs(remove);
    let mut macs: Vec<Value> = current
        .more_macs
        .iter()
        .map(|m| Value::from(m.to_string()))
        .filter(|m| !removed.contains(m))
        .collect();
    for mac in normal_macs(add) {
        if !macs.contains(&mac) {
            macs.push(mac);
        }
    }
    Ok(macs.into())
}

async fn patch(remote: &Remote, client: &str, body: Map<String, Value>) -> Result<Value, Failure> {
    let path = format!("/api/v1/clients/{}", segment(client));
    remote
        .fetch(Method::PATCH, &path, Some(&Value::from(body)))
        .await
}

async fn set_enabled(remote: &Remote, clients: &[String], enabled: bool) -> Result<(), Failure> {
    let mut changed = Vec::new();
    for client in clients {
        let mut body = Map::new();
        body.insert("enabled".into(), enabled.into());
        let value = patch(remote, client, body).await?;
        if !remote.wants_json() {
            let word = if enabled { "enabled" } else { "disabled" };
            output::line(&format!("{} {word}", output::printable(client)))?;
        }
        changed.push(value);
    }
    if remote.wants_json() {
        output::json(&json!(changed))?;
    }
    Ok(())
}

fn image_of(value: &Value) -> String {
    let named = value.get("assigned_image").and_then(Value::as_str);
    named.unwrap_or_default().to_owned()
}

/// `new`: registered itself and waits for somebody to enable it.
fn standing(client: &Client) -> &'static str {
    match (client.enabled, client.auto_registered) {
        (true, _) => "yes",
        (false, true) => "new",
        (false, false) => "no",
    }
}

fn list(remote: &Remote, clients: Value) -> Result<(), Failure> {
    if remote.wants_json() {
        return output::json(&clients);
    }
    let values: Vec<Value> = typed(clients)?;
    let mut rows = Vec::with_capacity(values.len());
    for value in values {
        let image = image_of(&value);
        let client: Client = typed(value)?;
        rows.push(vec![
            client.hostname.clone(),
            client.mac_address.to_string(),
            output::maybe(client.ip_address),
            image,
            client.disk_mode.to_string(),
            standing(&client).to_owned(),
            client.boot_count.to_string(),
            client.last_boot_at.map_or_else(String::new, output::time),
        ]);
    }
    let head = [
        "HOSTNAME",
        "MAC",
        "ADDRESS",
        "IMAGE",
        "DISK",
        "ENABLED",
        "BOOTS",
        "LAST BOOT",
    ];
    output::table(&head, rows)
}

fn show(remote: &Remote, value: Value) -> Result<(), Failure> {
    if remote.wants_json() {
        return output::json(&value);
    }
    let image = image_of(&value);
    let pinned = value.get("pinned_version").and_then(Value::as_str);
    let pinned = pinned.unwrap_or_default().to_owned();
    let client: Client = typed(value)?;
    let network = client.network_config.as_ref();
    let network = network.and_then(|n| serde_json::to_string(n).ok());
    output::card(&[
        ("hostname", client.hostname.clone()),
        ("id", client.id.to_string()),
        ("mac", output::several(client.macs())),
        ("address", output::maybe(client.ip_address)),
        ("image", image),
        ("enabled", standing(&client).to_owned()),
        ("boot mode", client.boot_mode.to_string()),
        ("disk", client.disk_mode.to_string()),
        ("ring", client.ring.clone().unwrap_or_default()),
        ("pinned to", pinned),
        (
            "boot params",
            client.custom_boot_params.clone().unwrap_or_default(),
        ),
        ("network", network.unwrap_or_default()),
        ("cpu cores", client.cpu_cores.to_string()),
        ("memory", format!("{} MiB", client.memory_mb)),
        ("boots", client.boot_count.to_string()),
        (
            "last boot",
            client.last_boot_at.map_or_else(String::new, output::time),
        ),
        ("created", output::time(client.created_at)),
        ("changed", output::time(client.updated_at)),
    ])
}
