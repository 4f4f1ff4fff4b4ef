//! One consistent picture of the catalog, indexed for the packet path.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use uuid::Uuid;

use crate::catalog::Loaded;
use crate::model::{Client, Image, MacAddr, NetworkRange};

/// Immutable; shared by all readers until the next one replaces it.
#[derive(Debug, Default)]
pub struct Snapshot {
    clients: HashMap<Uuid, Arc<Client>>,
    by_mac: HashMap<MacAddr, Arc<Client>>,
    reserved: HashMap<Ipv4Addr, Uuid>,
    images: HashMap<Uuid, Arc<Image>>,
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
