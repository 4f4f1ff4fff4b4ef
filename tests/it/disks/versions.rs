//! Which version of its image a boot gets, and that it keeps it.

use dls::model::{Client, Version};

use super::*;

impl World {
    /// A further version, a draft, whose disk begins with `mark`.
    pub(super) async fn add_version(&self, name: &str, mark: &[u8; 4]) -> Uuid {
        let id = Uuid::new_v4();
        let volume = Volume::Image(id);
        let base = SnapshotId::base(self.image.id);
        self.store.clone_volume(&base, volume).unwrap();
        let disk = self.store.open(volume, dls::storage::Access::Write);
        disk.unwrap().write_at(0, mark, Durability::Fua).unwrap();
        self.store.snapshot(&SnapshotId::base(id)).unwrap();
        let row = Version {
            created_at: self.clock.now(),
            ..crate::support::version(id, self.image.id, name)
        };
        self.catalog.add_version(&row).await.unwrap();
        self.cache.refresh().await.unwrap();
        id
    }

    pub(super) async fn release(&self, version: Uuid, ring: Option<&str>) {
        let released = self
            .catalog
            .release_version(version, ring, None)
            .await
            .unwrap();
        assert!(released.unwrap().stage.is_released());
        self.cache.refresh().await.unwrap();
    }

    /// Changes a client's row.
    pub(super) async fn set(&self, n: usize, change: impl FnOnce(&mut Client)) {
        let mut client = self.clients[n].clone();
        change(&mut client);
        self.catalog.save_client_config(&client).await.unwrap();
        self.cache.refresh().await.unwrap();
    }

    /// The version of a boot, as its row tells.
    pub(super) async fn version_of(&self, boot: Uuid) -> Option<String> {
        assert!(self.tracker.drain(Duration::from_secs(30)).await);
        let (attempt, ..) = self.catalog.get_attempt(boot).await.unwrap().unwrap();
        let id = attempt.version_id.map(|id| id.to_string());
        let name = attempt.version_name?;
        let row = format!("SELECT id FROM image_snapshots WHERE name = '{name}'");
        if let Some(db) = &self.db {
            assert_eq!(db.text(&row).await, id, "{name}");
        }
        Some(name)
    }

    /// Boots, and tells what the disk begins with; it is off afterwards.
    fn finds(&self, n: usize) -> (Uuid, String) {
        let (boot, line) = (self.boot(n), Wire::new(true));
        let disk = self.log_in(boot, &line).unwrap();
        let found = text(&disk);
        drop(disk);
        line.close();
        (boot, found)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_for_the_next_boot_and_so_is_a_return() {
    let mut world = World::new().await;
    let runs = world.boot(0);
    let line = Wire::new(true);
    let disk = world.log_in(runs, &line).unwrap();
    write(&disk, b"mine").unwrap();
    let waits = world.boot(1);
    let mended = world.add_version("mended", b"mend").await;
    assert_eq!(world.finds(1).1, "base", "a draft is for nobody");

    world.release(mended, None).await;
    // Switched on before, first login after: it has read nothing yet.
    assert!(matches!(
        world.log_in(waits, &Wire::new(true)),
        Err(NoDisk::BootOver)
    ));
    let (next, found) = world.finds(1);
    assert_eq!(found, "mend");
    assert_eq!(world.version_of(next).await.as_deref(), Some("mended"));

    // The one that runs keeps its disk: over further logins, and a restart of the server.
    let newer = Wire::new(true);
    let again = world.log_in(runs, &newer).unwrap();
    assert_eq!(text(&again), "mine");
    drop((again, disk));
    newer.close();
    world.restart().await;
    let newer = Wire::new(true);
    let again = world.log_in(runs, &newer).unwrap();
    assert_eq!(text(&again), "mine");
    drop(again);
    newer.close();
    assert_eq!(world.version_of(runs).await.as_deref(), Some("base"));
    let (next, found) = world.finds(0);
    assert_eq!(found, "mend");

    // Back: what runs on the bad one stays on it until it boots again.
    let image = world.image.id;
    let reason = Some("no sound");
    let back = world.catalog.return_version(mended, Some(image), reason);
    assert!(back.await.unwrap());
    world.cache.refresh().await.unwrap();
    let line = Wire::new(true);
    let kept = world.log_in(next, &line).unwrap();
    assert_eq!(text(&kept), "mend");
    drop(kept);
    line.close();
    let (after, found) = world.finds(0);
    assert_eq!(found, "base");
    assert_eq!(world.version_of(next).await.as_deref(), Some("mended"));
    assert_eq!(world.version_of(after).await.as_deref(), Some("base"));
    let db = world.db.as_ref().unwrap();
    let told = "SELECT string_agg(concat_ws(' ', version, stage, returned_at IS NOT NULL, reason), ',' ORDER BY created_at) FROM image_versions";
    assert_eq!(
        db.text(told).await.as_deref(),
        Some("base production f,mended retired t no sound")
    );
    // The clones say what they were made from. After a restart a first look learns whose they are.
    world.disks.tidy(&world.catalog).await;
    world.disks.tidy(&world.catalog).await;
    let clones = "SELECT string_agg(client || ' ' || image || ' ' || version, ',' ORDER BY client, session_id) FROM client_disks";
    assert_eq!(
        db.text(clones).await.as_deref(),
        Some("pc-0001 disk base,pc-0002 disk mended")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_and_rings_choose_and_a_persistent_disk_stays_with_what_it_was_made_from() {
    let world = World::new().await;
    let lab = world.add_version("lab", b"lab.").await;
    let draft = world.add_version("draft", b"drft").await;
    assert_eq!(world.finds(2).1, "base");
    world.release(lab, Some("lab")).await;
    assert_eq!(world.finds(0).1, "base", "it is in no ring");
    world.set(0, |c| c.ring = Some("lab".into())).await;
    world.set(1, |c| c.ring = Some("desk".into())).await;
    let (boot, found) = world.finds(0);
    assert_eq!(found, "lab.");
    assert_eq!(world.version_of(boot).await.as_deref(), Some("lab"));
    assert_eq!(world.finds(1).1, "base", "another ring's canary");
    world
        .set(0, |c| {
            c.ring = Some("lab".into());
            c.pinned_version_id = Some(draft);
        })
        .await;
    let (boot, found) = world.finds(0);
    assert_eq!(found, "drft");
    assert_eq!(world.version_of(boot).await.as_deref(), Some("draft"));

    world.release(lab, None).await;
    assert_eq!(world.finds(1).1, "lab.");
    assert_eq!(world.finds(0).1, "drft", "pinned is pinned");
    // Its own disk was made from the first one.
    let (boot, found) = world.finds(2);
    assert_eq!(found, "base");
    assert_eq!(world.version_of(boot).await.as_deref(), Some("base"));
    assert_eq!(world.disks.reset(world.clients[2].id, None).unwrap(), 1);
    let (boot, found) = world.finds(2);
    assert_eq!(found, "lab.");
    assert_eq!(world.version_of(boot).await.as_deref(), Some("lab"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_not_here_is_no_disk() {
    let world = World::new().await;
    let mended = world.add_version("mended", b"mend").await;
    let (client, image) = (world.clients[0].id, world.image.id);
    assert!(world.disks.has_disk(client, image));
    world.release(mended, None).await;
    assert!(world.disks.has_disk(client, image));
    world.store.destroy(Volume::Image(mended)).unwrap();
    assert!(!world.disks.has_disk(client, image));
    let boot = world.boot(0);
    let refused = world.log_in(boot, &Wire::new(true));
    assert_eq!(refused.unwrap_err(), NoDisk::NotStored);
    // Nothing is made of the first one in its place.
    assert_eq!(world.clones(), []);
}
