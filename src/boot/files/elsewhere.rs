//! Where a boot goes on: on this server, which has the machine's disk or is given the boot by
//! another one, or at one that has the disk. It asks the catalog only for a boot that another
//! server has sent here.

use std::net::Ipv4Addr;

use uuid::Uuid;

use super::{Shared, Visitor};
use crate::boot::choice::{Place, choose};
use crate::boot::disks::{Verdict, version_volume};
use crate::boot::path::Item;
use crate::boot::plan::DiskStanding;
use crate::boot::token::boot_url;
use crate::boot::tracker::{Known, OpenAttempt};
use crate::cache::Snapshot;
use crate::model::{DiskMode, Image, ImageKind, Server};

impl Shared {
    /// An open boot, also one that another server has sent here: it asks for its script first.
    pub(super) async fn open_boot(&self, id: Uuid, item: &Item) -> Option<OpenAttempt> {
        let known = self.tracker.attempt(id);
        let own = self.tracker.server_id();
        if known.is_some()
            || *item != Item::Script
            || self.tracker.known(id) != Known::Never
            || self.view.site().servers.iter().all(|s| s.id == own)
        {
            return known;
        }
        self.tracker.adopt(id).await
    }

    /// The boot's URL at another server: by an address in the machine's own network, if that
    /// has one there.
    pub(super) fn url_at(
        &self,
        snapshot: &Snapshot,
        server: &Server,
        visitor: Visitor,
        attempt: Uuid,
    ) -> Option<String> {
        let contact = &server.contact;
        let range = snapshot.range_of(visitor.client);
        let near = |a: &&Ipv4Addr| range.is_some_and(|range| range.network.contains(**a));
        let addresses = &contact.boot_addresses;
        let address = addresses.iter().find(near).or(addresses.first())?;
        let port = contact.boot_port?;
        Some(boot_url(*address, port, snapshot.site_key(), attempt))
    }

    /// How the disk stands that a machine would get. A connection of an earlier boot that no
    /// longer answers is broken off here, which takes a second.
    pub(super) async fn disk_standing(
        &self,
        attempt: Uuid,
        client: Uuid,
        image: &Image,
    ) -> (DiskStanding, Option<Server>) {
        if image.kind != ImageKind::Disk {
            return (DiskStanding::Ready, None);
        }
        let (disks, image) = (self.disks.clone(), image.id);
        let (snapshot, site) = (self.view.get(), self.view.site());
        let own = self.tracker.server_id();
        let look = move || {
            let kept = snapshot.disk_mode(client, image) == Some(DiskMode::Persistent);
            let home = match kept && !disks.has_own_disk(client, image) {
                true => site.home(client, image),
                false => None,
            };
            let version = version_volume(&snapshot, client, image);
            let here = disks.has_disk(client, image);
            let place = choose(own, client, here, home, snapshot.holders(version), &site);
            let standing = match place {
                Place::There(server) => return (DiskStanding::Elsewhere, Some(server.clone())),
                Place::Away => DiskStanding::Away,
                Place::Nowhere => DiskStanding::NotStored,
                Place::Here
                    if matches!(disks.settle(client, Some(attempt)), Verdict::Taken { .. }) =>
                {
                    DiskStanding::InUse
                }
                Place::Here => DiskStanding::Ready,
            };
            (standing, None)
        };
        tokio::task::spawn_blocking(look)
            .await
            .unwrap_or_else(|error| {
                tracing::error!(%error, "looking at a disk");
                (DiskStanding::NotStored, None)
            })
    }
}
