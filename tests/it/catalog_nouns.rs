//! Images, clients and ranges through the catalog: what is saved comes back, and refusals name
//! the field and who is in the way.

use std::net::Ipv4Addr;

use dls::catalog::{BootWrite, CatalogError, Page};
use dls::model::client::KernelIp;
use dls::model::{Client, NetworkConfig, Pool, Route};
use futures_util::{StreamExt, TryStreamExt};
use uuid::Uuid;

use crate::support::{TestDb, attempt, client, image, lease, mac, range, session};

fn refusal(error: CatalogError) -> (&'static str, String) {
    match error {
        CatalogError::Refused { field, message } | CatalogError::Conflict { field, message } => {
            (field, message)
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn images_come_back_as_they_were_saved() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let mut base = image("base");
    catalog.save_image_metadata(&base).await.unwrap();
    let mut child = image("child");
    child.parent_image_id = Some(base.id);
    child.files.truncate(1);
    catalog.save_image_metadata(&child).await.unwrap();

    let got = catalog.get_image_by_name("base").await.unwrap().unwrap();
    base.created_at = got.created_at;
    base.updated_at = got.updated_at;
    assert_eq!(got, base);
    assert_eq!(
        catalog.get_image_metadata(base.id).await.unwrap(),
        Some(got)
    );
    assert_eq!(
        catalog.get_image_metadata(Uuid::new_v4()).await.unwrap(),
        None
    );

    base.files.swap(1, 2);
    base.files[1].position = 0;
    base.files[2].position = 1;
    base.name = "base2".to_owned();
    catalog.save_image_metadata(&base).await.unwrap();
    let page = Page {
        limit: Some(1),
        offset: Some(0),
    };
    let listed = catalog.list_images(page).await.unwrap();
    assert_eq!(listed[0].files, base.files);
    assert_eq!(catalog.list_images(Page::default()).await.unwrap().len(), 2);

    let mut twin = image("child");
    let (field, message) = refusal(catalog.save_image_metadata(&twin).await.unwrap_err());
    assert_eq!(
        (field, message.as_str()),
        ("name", "an image named `child` is there already")
    );
    twin.name = "twin".to_owned();
    twin.files[0].sha256 = "X".repeat(64);
    assert_eq!(
        refusal(catalog.save_image_metadata(&twin).await.unwrap_err()).0,
        "files"
    );
    // Nothing of a refused image is left.
    assert_eq!(catalog.get_image_by_name("twin").await.unwrap(), None);
    base.parent_image_id = Some(child.id);
    assert_eq!(
        refusal(catalog.save_image_metadata(&base).await.unwrap_err()).0,
        "parent_image_id"
    );
}

#[tokio::test]
async fn an_image_in_use_names_its_users() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let image = image("used");
    catalog.save_image_metadata(&image).await.unwrap();
    let mut user = client(1);
    user.assigned_image_id = Some(image.id);
    catalog.save_client_config(&user).await.unwrap();
    let mut booting = client(2);
    catalog.save_client_config(&booting).await.unwrap();
    let boot = attempt(&booting, Uuid::nil());
    catalog
        .create_boot_session(&session(&boot, image.id))
        .await
        .unwrap();

    let (_, message) = refusal(
        catalog
            .delete_image_metadata(image.id, false)
            .await
            .unwrap_err(),
    );
    assert!(
        message.contains("pc-0001 is assigned")
            && message.contains("pc-0002 has booted it (starting)"),
        "{message}"
    );
    assert!(catalog.delete_image_metadata(image.id, true).await.unwrap());
    assert!(!catalog.delete_image_metadata(image.id, true).await.unwrap());
    booting.assigned_image_id = Some(image.id);
    assert_eq!(
        refusal(catalog.save_client_config(&booting).await.unwrap_err()).0,
        "assigned_image_id"
    );
}

#[tokio::test]
async fn clients_come_back_as_they_were_saved() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let mut saved = Client {
        more_macs: vec![mac(11), mac(12)],
        ip_address: Some(Ipv4Addr::new(10, 1, 0, 7)),
        network_config: Some(NetworkConfig {
            gateway: Some(Ipv4Addr::new(10, 1, 0, 1)),
            dns: Some(vec![Ipv4Addr::new(9, 9, 9, 9)]),
            domain: Some("x.example".to_owned()),
            search: Some(vec!["x.example".to_owned()]),
            ntp: Some(vec![]),
            mtu: Some(9000),
            kernel_ip: Some(KernelIp::Static),
        }),
        custom_boot_params: Some("quiet splash".to_owned()),
        ..client(1)
    };
    catalog.save_client_config(&saved).await.unwrap();
    for mac in [mac(1), mac(11), mac(12)] {
        let got = catalog.get_client_by_mac(mac).await.unwrap().unwrap();
        saved.created_at = got.created_at;
        saved.updated_at = got.updated_at;
        assert_eq!(got, saved);
    }
    // The first MAC and a further one change places.
    saved.mac_address = mac(12);
    saved.more_macs = vec![mac(1)];
    catalog.save_client_config(&saved).await.unwrap();
    let got = catalog.get_client(saved.id).await.unwrap().unwrap();
    assert_eq!((got.mac_address, got.more_macs), (mac(12), vec![mac(1)]));
    assert_eq!(catalog.get_client_by_mac(mac(11)).await.unwrap(), None);

    for mut other in [
        client(12),
        Client {
            more_macs: vec![mac(1)],
            ..client(13)
        },
    ] {
        let (field, message) = refusal(catalog.save_client_config(&other).await.unwrap_err());
        assert_eq!(field, "mac_address");
        assert!(message.contains("belongs to client `pc-0001`"), "{message}");
        other.mac_address = mac(14);
        other.more_macs.clear();
        other.ip_address = saved.ip_address;
        let (field, message) = refusal(catalog.save_client_config(&other).await.unwrap_err());
        assert_eq!(field, "ip_address");
        assert_eq!(
            message,
            "the address 10.1.0.7 is reserved for client `pc-0001`"
        );
    }
    assert!(catalog.delete_client(saved.id).await.unwrap());
    assert!(!catalog.delete_client(saved.id).await.unwrap());
}

#[tokio::test]
async fn saving_a_client_leaves_its_boot_counters_and_a_touch_makes_it_known() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let machine = Client {
        auto_registered: true,
        enabled: false,
        ..client(1)
    };
    let (made, new) = catalog.register_client(&machine).await.unwrap();
    assert!(new && made.auto_registered && !made.enabled);
    let twin = Client {
        id: Uuid::new_v4(),
        hostname: "twin".to_owned(),
        ..machine.clone()
    };
    let (known, new) = catalog.register_client(&twin).await.unwrap();
    assert!(!new);
    assert_eq!(known.id, machine.id);

    let boot = attempt(&machine, Uuid::nil());
    let booted = [BootWrite::ClientBooted {
        client_id: machine.id,
        at: boot.started_at,
    }];
    catalog.write_boots(&booted).await.unwrap();
    catalog.write_boots(&booted).await.unwrap();
    catalog.save_client_config(&machine).await.unwrap();
    let got = catalog.get_client(machine.id).await.unwrap().unwrap();
    assert_eq!(
        (got.boot_count, got.last_boot_at),
        (1, Some(boot.started_at))
    );
    assert!(got.auto_registered);
    db.sql("UPDATE clients SET enabled = TRUE").await.unwrap();
    assert!(
        !catalog
            .get_client(machine.id)
            .await
            .unwrap()
            .unwrap()
            .auto_registered
    );
}

#[tokio::test]
async fn a_long_list_is_streamed_whole_in_order() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    db.sql(
        "INSERT INTO clients (mac_address, hostname, enabled) SELECT '52:54:00:00:' || lpad(to_hex(n / 256), 2, '0') || ':' || lpad(to_hex(n % 256), 2, '0'),
             'pc-' || lpad((n / 2)::text, 5, '0'), n % 10 > 0 FROM generate_series(0, 1999) AS n",
    )
    .await
    .unwrap();
    let all: Vec<Client> = catalog
        .list_clients(false, Page::default())
        .try_collect()
        .await
        .unwrap();
    assert_eq!(all.len(), 2000);
    assert!(
        all.windows(2)
            .all(|w| (&w[0].hostname, w[0].id) < (&w[1].hostname, w[1].id))
    );
    let enabled = catalog.list_clients(true, Page::default()).count().await;
    assert_eq!(enabled, 1800);
    let page = Page {
        limit: Some(700),
        offset: Some(300),
    };
    let some: Vec<Client> = catalog
        .list_clients(false, page)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(some, all[300..1000]);
}

#[tokio::test]
async fn ranges_come_back_as_they_were_saved() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let mut saved = range(1);
    let pool = |a: u8, b: u8| Pool {
        first: Ipv4Addr::new(10, 1, 0, a),
        last: Ipv4Addr::new(10, 1, 0, b),
    };
    saved.pools.push(pool(20, 29));
    saved.pools.sort_by_key(|p| p.first);
    saved.exclusions = vec![pool(110, 119), pool(130, 130)];
    saved.routes = vec![Route {
        to: "10.99.0.0/16".parse().unwrap(),
        via: Ipv4Addr::new(10, 1, 0, 2),
    }];
    catalog.save_network_range(&saved).await.unwrap();
    catalog.save_network_range(&saved).await.unwrap();
    assert_eq!(
        catalog.list_network_ranges().await.unwrap(),
        [saved.clone()]
    );
    assert_eq!(catalog.load().await.unwrap().ranges, [saved.clone()]);

    let mut other = range(2);
    other.network = "10.1.0.0/16".parse().unwrap();
    other.gateway = None;
    other.pools.clear();
    let (field, message) = refusal(catalog.save_network_range(&other).await.unwrap_err());
    assert_eq!(field, "network");
    assert_eq!(
        message,
        "the network 10.1.0.0/16 overlaps 10.1.0.0/24, which range `lab1` has"
    );
    saved.pools.push(pool(25, 35));
    assert_eq!(
        refusal(catalog.save_network_range(&saved).await.unwrap_err()).0,
        "pools"
    );
    saved.pools.pop();
    saved.pools.push(Pool {
        first: Ipv4Addr::new(10, 2, 0, 1),
        last: Ipv4Addr::new(10, 2, 0, 2),
    });
    assert_eq!(
        refusal(catalog.save_network_range(&saved).await.unwrap_err()),
        ("pools", "a pool must lie inside the network".to_owned())
    );
}

#[tokio::test]
async fn a_range_that_machines_run_in_stays() {
    let db = TestDb::new().await;
    let catalog = db.catalog().await;
    let mut lab = range(1);
    catalog.save_network_range(&lab).await.unwrap();
    let machine = client(1);
    catalog.save_client_config(&machine).await.unwrap();
    let mut boot = attempt(&machine, Uuid::nil());
    boot.range_id = Some(lab.id);
    catalog
        .write_boots(&[BootWrite::Attempt(boot.clone())])
        .await
        .unwrap();
    let leases = [
        lease(&lab, 150, machine.mac_address),
        lease(&lab, 151, mac(2)),
    ];
    assert_eq!(
        catalog.commit_leases(&leases, Uuid::nil()).await.unwrap(),
        [true, true]
    );

    let (_, message) = refusal(catalog.delete_network_range(lab.id).await.unwrap_err());
    assert!(message.contains("pc-0001"), "{message}");
    lab.network = "10.1.0.0/25".parse().unwrap();
    lab.pools = vec![Pool {
        first: Ipv4Addr::new(10, 1, 0, 10),
        last: Ipv4Addr::new(10, 1, 0, 99),
    }];
    let (field, message) = refusal(catalog.save_network_range(&lab).await.unwrap_err());
    assert_eq!(field, "network");
    assert!(message.contains("pc-0001 (10.1.0.150)"), "{message}");

    boot.ended_at = Some(boot.started_at);
    boot.outcome = dls::model::AttemptOutcome::Completed;
    catalog
        .write_boots(&[BootWrite::Attempt(boot)])
        .await
        .unwrap();
    catalog.save_network_range(&lab).await.unwrap();
    assert!(catalog.list_leases(None).await.unwrap().is_empty());
    assert!(catalog.delete_network_range(lab.id).await.unwrap());
    assert!(!catalog.delete_network_range(lab.id).await.unwrap());
}
