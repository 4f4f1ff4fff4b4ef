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
#[derive(Debug, Default, Clone)]
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
    /// What it was made of, without the clients: to be saved.
    rest: Arc<Loaded>,
}

impl Snapshot {
    /// Indexes what was loaded.
    #[must_use]
    pub fn new(mut loaded: Loaded) -> Self {
        let clients = std::mem::take(&mut loaded.clients);
        let mut snapshot = Self {
            site_key: loaded.site_key.clone(),
            rest: Arc::new(loaded.clone()),
            ..Self::default()
        };
        snapshot.clients.reserve(clients.len());
        snapshot.by_mac.reserve(clients.len());
        for client in clients {
            snapshot.insert(client);
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

    fn insert(&mut self, client: Client) {
        let client = Arc::new(client);
        for mac in client.macs() {
            self.by_mac.insert(mac, client.clone());
        }
        if let Some(address) = client.ip_address {
            self.reserved.insert(address, client.id);
        }
        self.clients.insert(client.id, client);
    }

    /// The same with these clients as they are now: those of the ids that are not among the rows
    /// are gone.
    #[must_use]
    pub fn with_clients(&self, ids: &[Uuid], rows: Vec<Client>) -> Self {
        let mut next = self.clone();
        for id in ids {
            let Some(old) = next.clients.remove(id) else {
                continue;
            };
            for mac in old.macs() {
                // It may be another's by now.
                if next.by_mac.get(&mac).is_some_and(|owner| owner.id == *id) {
                    next.by_mac.remove(&mac);
                }
            }
            if let Some(address) = old.ip_address
                && next.reserved.get(&address) == Some(id)
            {
                next.reserved.remove(&address);
            }
        }
        for client in rows {
            next.insert(client);
        }
        next
    }

    /// What it was made of.
    #[must_use]
    pub fn loaded(&self) -> Loaded {
        let mut clients: Vec<Client> = self.clients.values().map(|c| (**c).clone()).collect();
        clients.sort_by_key(|client| client.id);
        Loaded {
            clients,
            ..(*self.rest).clone()
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{BootMode, Timestamp};

    fn client(id: u8, mac: u8, address: Option<u8>) -> Client {
        Client {
            id: Uuid::from_u128(u128::from(id)),
            mac_address: MacAddr([2, 0, 0, 0, 0, mac]),
            more_macs: vec![MacAddr([2, 0, 0, 0, 1, mac])],
            hostname: format!("pc-{id}"),
            ip_address: address.map(|a| Ipv4Addr::new(10, 0, 0, a)),
            assigned_image_id: None,
            boot_mode: BootMode::Pxe,
            cpu_cores: 1,
            memory_mb: 1,
            network_config: None,
            custom_boot_params: None,
            disk_mode: DiskMode::Ephemeral,
            ring: None,
            pinned_version_id: None,
            enabled: true,
            auto_registered: false,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
            last_boot_at: None,
            boot_count: 0,
        }
    }

    /// A catalog: MACs and addresses are one client's each, as the database has it.
    fn catalog() -> impl Strategy<Value = Vec<Client>> {
        prop::collection::btree_map(0..8_u8, (0..8_u8, prop::option::of(0..8_u8)), 0..8).prop_map(
            |rows| {
                let (mut macs, mut addresses) = (HashSet::new(), HashSet::new());
                rows.into_iter()
                    .filter(|(_, (mac, address))| {
                        macs.insert(*mac) && address.is_none_or(|a| addresses.insert(a))
                    })
                    .map(|(id, (mac, address))| client(id, mac, address))
                    .collect()
            },
        )
    }

    proptest! {
        #[test]
        fn a_part_read_again_is_the_whole_read_again(before in catalog(), after in catalog()) {
            let of = |clients: &[Client]| Snapshot::new(Loaded {
                clients: clients.to_vec(),
                site_key: vec![1],
                ..Loaded::default()
            });
            let changed: Vec<Uuid> = before.iter().chain(&after).map(|c| c.id).filter(|id| {
                let find = |all: &[Client]| all.iter().find(|c| c.id == *id).cloned();
                find(&before) != find(&after)
            }).collect();
            let rows = after.iter().filter(|c| changed.contains(&c.id)).cloned().collect();
            let (part, whole) = (of(&before).with_clients(&changed, rows), of(&after));
            prop_assert_eq!(&part.by_mac, &whole.by_mac);
            prop_assert_eq!(&part.reserved, &whole.reserved);
            prop_assert_eq!(&part.clients, &whole.clients);
            let mut sorted = after;
            sorted.sort_by_key(|c| c.id);
            prop_assert_eq!(part.loaded().clients, sorted);
            prop_assert_eq!(part.loaded().site_key, vec![1]);
        }
    }
}
