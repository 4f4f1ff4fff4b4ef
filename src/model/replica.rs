//! Servers that share a catalog, and which of them has which version of an image.

use std::net::Ipv4Addr;

use uuid::Uuid;

use super::{Timestamp, words};

words! {
    /// How a replica stands.
    pub enum ReplicaState {
        /// Under way, also across restarts.
        Copying = "copying",
        /// Complete: machines boot it there.
        Verified = "verified",
        /// It came to nothing.
        Failed = "failed",
    }
}

/// A row of `image_replicas`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Replica {
    /// The version.
    pub version_id: Uuid,
    /// The server that has it or gets it.
    pub server_id: Uuid,
    /// The image of the version.
    pub image_id: Uuid,
    /// How it stands.
    pub state: ReplicaState,
    /// The server that sends it; `None` where the version was made.
    pub from_server: Option<Uuid>,
    /// Bytes that the server has safely.
    pub bytes_done: i64,
    /// Bytes that are to be sent.
    pub bytes_total: i64,
    /// SHA-256 of the whole content, 64 hex digits.
    pub sha256: Option<String>,
    /// Why it failed, or what it waits for.
    pub reason: Option<String>,
    /// When it was first asked for, or first told of.
    pub begun_at: Timestamp,
    /// When its state last changed.
    pub changed_at: Timestamp,
}

/// How a server is reached, as it says itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Contact {
    /// Addresses by which other servers send it versions.
    pub replication_addresses: Vec<Ipv4Addr>,
    /// Port of that.
    pub replication_port: Option<u16>,
    /// SHA-256 of its certificate, 64 hex digits in lower case.
    pub certificate_sha256: Option<String>,
    /// Addresses by which machines load from it by HTTP.
    pub boot_addresses: Vec<Ipv4Addr>,
    /// Port of that.
    pub boot_port: Option<u16>,
}

/// A row of `servers`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Server {
    /// Its id.
    pub id: Uuid,
    /// Its name; two may have one.
    pub name: String,
    /// True if it gave a sign of life less than 35 seconds before this was read.
    pub alive: bool,
    /// How it is reached.
    pub contact: Contact,
}

/// The servers of a site, and whose own disks they keep, at one point in time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Site {
    /// All servers, by name.
    pub servers: Vec<Server>,
    /// Client, image, and the server that keeps the client's own disk of it.
    pub homes: Vec<(Uuid, Uuid, Uuid)>,
}

impl Site {
    /// A server by id.
    #[must_use]
    pub fn server(&self, id: Uuid) -> Option<&Server> {
        self.servers.iter().find(|s| s.id == id)
    }

    /// The servers that a name or an id means.
    #[must_use]
    pub fn called(&self, name: &str) -> Vec<&Server> {
        let id = name.parse::<Uuid>().ok();
        let all = self.servers.iter();
        all.filter(|s| s.name == name || Some(s.id) == id).collect()
    }

    /// The server that keeps a client's own disk of an image.
    #[must_use]
    pub fn home(&self, client: Uuid, image: Uuid) -> Option<Uuid> {
        let mut homes = self.homes.iter();
        let found = homes.find(|(c, i, _)| (*c, *i) == (client, image));
        found.map(|(_, _, server)| *server)
    }
}
