//! `dls server`: the servers that share the catalog.

use clap::Subcommand;
use reqwest::Method;

use super::remote::{Remote, segment, typed};
use super::{Failure, output};
use crate::model::Server;

/// Servers are named by name or id.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List them
    List,
    /// Forget servers that are gone for good: their addresses are given away by the others at once
    Rm {
        /// Name or id
        #[arg(required = true)]
        servers: Vec<String>,
    },
}

pub(super) async fn run(remote: Remote, command: Command) -> Result<(), Failure> {
    match command {
        Command::List => {
            let servers = remote.list("/api/v1/servers", "servers").await?;
            if remote.wants_json() {
                return output::json(&servers);
            }
            let servers: Vec<Server> = typed(servers)?;
            let rows = servers.into_iter().map(|server| {
                vec![
                    output::printable(&server.name),
                    if server.alive { "yes" } else { "no" }.to_owned(),
                    output::several(&server.contact.boot_addresses),
                    server.id.to_string(),
                ]
            });
            output::table(&["NAME", "ALIVE", "ADDRESSES", "ID"], rows.collect())
        }
        Command::Rm { servers } => {
            for server in servers {
                let path = format!("/api/v1/servers/{}", segment(&server));
                remote.fetch(Method::DELETE, &path, None).await?;
                if !remote.wants_json() {
                    output::line(&format!("{} forgotten", output::printable(&server)))?;
                }
            }
            Ok(())
        }
    }
}
