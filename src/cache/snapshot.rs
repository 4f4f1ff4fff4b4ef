//! One consistent picture of the catalog, indexed for the packet path.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use uuid::Uuid;

use crate::catalog::Loaded;
use crate::model::quota;
use crate::model::version::followed;
use crate::model::{Client, DiskMode, Image, MacAddr, NetworkRange, ReplicaState, Version};

/// Immutable; shared by all readers until the next one replaces it.
#[derive(Debug, Default)]
pub struct Snapshot {
    clients: HashMap<Uuid, Arc<Client>>,
    by_mac: HashMap<MacAddr, Arc<Client>>,
    reserved: HashMap<Ipv4Addr, Uuid>,
    images: HashMap<Uuid, Arc<Image>>,
    /// By image, oldest first.
    versions: HashMap<Uuid, Vec<Arc<Version>>>,
    /// By the version's own id.
    version: HashMap<Uuid, Arc<Version>>,
    /// By version: the servers that have it whole.
    holders: HashMap<Uuid, Vec<Uuid>>,
    /// Version and the server that it is being copied to.
    arriving: HashSet<(Uuid, Uuid)>,
    /// Image by client.
    mended: HashMap<Uuid, Uuid>,
    /// MiB by image or client.
    quotas: HashMap<Uuid, i32>,
    /// Sorted by network; networks never overlap.
    ranges: Vec<Arc<NetworkRange>>,
    site_key: Vec<u8>,
}

impl Snapshot {
    /// Indexes what was loaded.
    #[must_use]
    pub fn new(loaded: Loaded) -> Self {
        let mut snapshot = Self {
            site_key: loaded.site_key,
            ..Self::default()
        };
        for client in loaded.clients {
            let client = Arc::new(client);
            for mac in client.macs() {
                snapshot.by_mac.insert(mac, client.clone());
            }
            if let Some(address) = client.ip_address {
                snapshot.reserved.insert(address, client.id);
            }
            snapshot.clients.insert(client.id, client);
        }
        snapshot.images = loaded
            .images
            .into_iter()
            .map(|i| (i.id, Arc::new(i)))
            .collect();
        for version in loaded.versions {
            let version = Arc::new(version);
            snapshot.version.insert(version.id, version.clone());
            let of_image = snapshot.versions.entry(version.image_id).or_default();
            of_image.push(version);
        }
        for replica in loaded.replicas {
            match replica.state {
                ReplicaState::Verified => {
                    let of_version = snapshot.holders.entry(replica.version_id).or_default();
                    of_version.push(replica.server_id);
                }
                ReplicaState::Copying => {
                    let arriving = (replica.version_id, replica.server_id);
                    snapshot.arriving.insert(arriving);
                }
                ReplicaState::Failed => {}
            }
        }
        let mended = loaded.maintenance.into_iter();
        snapshot.mended = mended.map(|m| (m.client_id, m.image_id)).collect();
        let quotas = loaded.quotas.into_iter();
        snapshot.quotas = quotas.map(|q| (q.owner_id, q.clone_quota_mb)).collect();
        snapshot.ranges = loaded.ranges.into_iter().map(Arc::new).collect();
        snapshot.ranges.sort_by_key(|r| r.network.network());
        snapshot
    }

    /// The client that owns a MAC.
    #[must_use]
    pub fn client_by_mac(&self, mac: MacAddr) -> Option<&Arc<Client>> {
        self.by_mac.get(&mac)
    }

    /// A client by id.
    #[must_use]
    pub fn client(&self, id: Uuid) -> Option<&Arc<Client>> {
        self.clients.get(&id)
    }

    /// All clients, in no order.
    pub fn clients(&self) -> impl Iterator<Item = &Arc<Client>> {
        self.clients.values()
    }

    /// Whether what a client writes to its disk of an image is kept; `None` without a client.
    /// Kept is also what it writes to mend that image.
    #[must_use]
    pub fn disk_mode(&self, client: Uuid, image: Uuid) -> Option<DiskMode> {
        if self.mended.get(&client) == Some(&image) {
            return Some(DiskMode::Persistent);
        }
        self.client(client).map(|c| c.disk_mode)
    }

    /// Bytes that a client may write to its copy of an image; `None`: no limit.
    #[must_use]
    pub fn clone_quota(&self, client: Uuid, image: Uuid) -> Option<u64> {
        let of = |id| self.quotas.get(&id).copied();
        quota::limit(of(client), of(image))
    }

    /// What is set at an image or a client, in MiB.
    #[must_use]
    pub fn quota_of(&self, owner: Uuid) -> Option<i32> {
        self.quotas.get(&owner).copied()
    }

    /// Who an address is reserved for.
    #[must_use]
    pub fn reserved_for(&self, address: Ipv4Addr) -> Option<Uuid> {
        self.reserved.get(&address).copied()
    }

    /// An image by id.
    #[must_use]
    pub fn image(&self, id: Uuid) -> Option<&Arc<Image>> {
        self.images.get(&id)
    }

    /// All images, in no order.
    pub fn images(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.images.values()
    }

    /// An image by name.
    #[must_use]
    pub fn image_by_name(&self, name: &str) -> Option<&Arc<Image>> {
        self.images.values().find(|i| i.name == name)
    }

    /// The versions of an image, oldest first.
    #[must_use]
    pub fn versions(&self, image: Uuid) -> &[Arc<Version>] {
        self.versions.get(&image).map_or(&[], Vec::as_slice)
    }

    /// A version by id.
    #[must_use]
    pub fn version(&self, id: Uuid) -> Option<&Arc<Version>> {
        self.version.get(&id)
    }

    /// The servers that have a version whole, that which had it first before others.
    #[must_use]
    pub fn holders(&self, version: Uuid) -> &[Uuid] {
        self.holders.get(&version).map_or(&[], Vec::as_slice)
    }

    /// The versions that are being copied to a server, in no order.
    pub fn arriving(&self, server: Uuid) -> impl Iterator<Item = Uuid> {
        let here = move |(_, to): &&(Uuid, Uuid)| *to == server;
        self.arriving
            .iter()
            .filter(here)
            .map(|(version, _)| *version)
    }

    /// The version of an image that a client boots next.
    #[must_use]
    pub fn version_for(&self, client: Uuid, image: Uuid) -> Option<&Arc<Version>> {
        let client = self.client(client);
        let pinned = client.and_then(|c| c.pinned_version_id);
        let ring = client.and_then(|c| c.ring.as_deref());
        followed(self.versions(image), pinned, ring)
    }

    /// All ranges, by network.
    #[must_use]
    pub fn ranges(&self) -> &[Arc<NetworkRange>] {
        &self.ranges
    }

    /// A range by id.
    #[must_use]
    pub fn range(&self, id: Uuid) -> Option<&Arc<NetworkRange>> {
        self.ranges.iter().find(|r| r.id == id)
    }

    /// The range whose network holds the address.
    #[must_use]
    pub fn range_of(&self, address: Ipv4Addr) -> Option<&Arc<NetworkRange>> {
        let after = self
            .ranges
            .partition_point(|r| r.network.network() <= address);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        range.network.contains(address).then_some(range)
    }

    /// The key that boots' tokens are made with.
    #[must_use]
    pub fn site_key(&self) -> &[u8] {
        &self.site_key
    }
}
