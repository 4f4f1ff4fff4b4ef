//! The schema as people meet it in psql: what it lets in, what it refuses and by which rule,
//! its comments, and its way up, down and up again.

use crate::support::{TestDb, client, image, open};
use uuid::Uuid;

const IMAGE: &str = "INSERT INTO images (name, size_bytes, format, path) VALUES ('base', 1024, 'qcow2', '/images/base')";
const CLIENT: &str =
    "INSERT INTO clients (mac_address, hostname) VALUES ('52:54:00:00:00:01', 'pc1')";

#[tokio::test]
async fn the_seeds_inserts() {
    let db = TestDb::new().await;
    for allowed in [
        IMAGE,
        "INSERT INTO images (name, size_bytes, format, path, description, os_type, zfs_dataset, created_by, tags, is_template, parent_image_id)
         SELECT 'child', 1, 'vhdx', '/images/child', 'd', 'windows', 'tank/x', uuid_generate_v4(), '{\"a\": 1}', TRUE, id FROM images",
        CLIENT,
        "INSERT INTO clients (mac_address, hostname, ip_address, assigned_image_id, boot_mode, cpu_cores, memory_mb, network_config, custom_boot_params, enabled)
         SELECT '52:54:00:00:00:02', 'pc2', '192.168.1.20', id, 'legacy', 4, 4096, '{\"gateway\": \"192.168.1.1\"}', 'quiet', FALSE FROM images WHERE name = 'base'",
        "INSERT INTO boot_sessions (client_id, image_id) SELECT c.id, i.id FROM clients c, images i WHERE i.name = 'base'",
        "UPDATE boot_sessions SET status = 'running', boot_time_seconds = 0, client_ip = '192.168.1.20', boot_server_ip = '192.168.1.1'",
        "INSERT INTO image_snapshots (image_id, name) SELECT id, 'first' FROM images",
        "INSERT INTO network_ranges (network) VALUES ('192.168.1.0/24')",
    ] {
        db.sql(allowed).await.unwrap_or_else(|error| panic!("{allowed}: {error}"));
    }
    assert_eq!(db.text("SELECT boot_mode || cpu_cores || memory_mb || enabled || boot_count FROM clients WHERE hostname = 'pc1'").await.unwrap(), "pxe22048true0");
    assert_eq!(
        db.text("SELECT name FROM network_ranges").await.unwrap(),
        "192.168.1.0/24"
    );

    for (refused, by) in [
        (IMAGE, "images_name_key"),
        (
            "INSERT INTO images (name, size_bytes, format, path) VALUES ('x', 0, 'raw', '/x')",
            "images_size_bytes_check",
        ),
        (
            "INSERT INTO images (name, size_bytes, format, path) VALUES ('x', 1, 'vmdk', '/x')",
            "images_format_check",
        ),
        (
            "INSERT INTO images (name, size_bytes, format, path, parent_image_id) VALUES ('x', 1, 'raw', '/x', uuid_generate_v4())",
            "images_parent_image_id_fkey",
        ),
        (
            "INSERT INTO images (name, size_bytes, format) VALUES ('x', 1, 'raw')",
            "23502",
        ),
        (CLIENT, "clients_mac_address_key"),
        (
            "INSERT INTO clients (mac_address, hostname, boot_mode) VALUES ('52:54:00:00:00:03', 'x', 'bios')",
            "clients_boot_mode_check",
        ),
        (
            "INSERT INTO clients (mac_address, hostname, cpu_cores) VALUES ('52:54:00:00:00:03', 'x', 0)",
            "clients_cpu_cores_check",
        ),
        (
            "INSERT INTO clients (mac_address, hostname, memory_mb) VALUES ('52:54:00:00:00:03', 'x', -1)",
            "clients_memory_mb_check",
        ),
        (
            "INSERT INTO clients (mac_address, hostname, assigned_image_id) VALUES ('52:54:00:00:00:03', 'x', uuid_generate_v4())",
            "clients_assigned_image_id_fkey",
        ),
        (
            "INSERT INTO clients (mac_address, hostname, ip_address) VALUES ('52:54:00:00:00:03', 'x', '300.1.1.1')",
            "22P02",
        ),
        (
            "UPDATE boot_sessions SET status = 'broken'",
            "boot_sessions_status_check",
        ),
        (
            "UPDATE boot_sessions SET boot_time_seconds = -1",
            "boot_sessions_boot_time_seconds_check",
        ),
        (
            "INSERT INTO boot_sessions (client_id, image_id) SELECT id, uuid_generate_v4() FROM clients",
            "boot_sessions_image_id_fkey",
        ),
        (
            "INSERT INTO image_snapshots (image_id, name) SELECT id, 'first' FROM images",
            "image_snapshots_name_key",
        ),
    ] {
        assert_eq!(db.refused(refused).await, by, "{refused}");
    }

    // Deleting: a parent and an assignment become NULL, sessions and snapshots go.
    db.sql("DELETE FROM images WHERE name = 'base'")
        .await
        .unwrap();
    assert_eq!(
        db.text("SELECT count(*) FROM boot_sessions").await.unwrap(),
        "0"
    );
    assert_eq!(
        db.text("SELECT string_agg(name, ' ' ORDER BY name) FROM image_snapshots")
            .await
            .unwrap(),
        "base first"
    );
    assert_eq!(
        db.text("SELECT count(*) FROM clients WHERE assigned_image_id IS NOT NULL")
            .await
            .unwrap(),
        "0"
    );
    assert_eq!(db.text("SELECT parent_image_id FROM images").await, None);
}

#[tokio::test]
async fn updated_at_follows_admins_and_not_boots() {
    let db = TestDb::new().await;
    db.sql(CLIENT).await.unwrap();
    db.sql(IMAGE).await.unwrap();
    db.sql("INSERT INTO network_ranges (network) VALUES ('10.0.0.0/8')")
        .await
        .unwrap();
    for (table, change) in [
        ("clients", "hostname = 'other'"),
        ("images", "description = 'x'"),
        ("network_ranges", "mtu = 1400"),
    ] {
        let before = db.text(&format!("SELECT updated_at FROM {table}")).await;
        db.sql(&format!("UPDATE {table} SET {change}"))
            .await
            .unwrap();
        assert_ne!(
            db.text(&format!("SELECT updated_at FROM {table}")).await,
            before,
            "{table}"
        );
    }
    let before = db.text("SELECT updated_at FROM clients").await;
    db.sql("UPDATE clients SET last_boot_at = now(), boot_count = boot_count + 1")
        .await
        .unwrap();
    assert_eq!(db.text("SELECT updated_at FROM clients").await, before);
}

#[tokio::test]
async fn a_mac_means_one_client_in_any_spelling() {
    let db = TestDb::new().await;
    db.sql("INSERT INTO clients (mac_address, hostname) VALUES ('52-54-00-AA-BB-01', 'pc1'), ('525400AABB02', 'pc2')").await.unwrap();
    assert_eq!(
        db.text("SELECT string_agg(mac_address, ' ' ORDER BY hostname) FROM clients")
            .await
            .unwrap(),
        "52:54:00:aa:bb:01 52:54:00:aa:bb:02"
    );
    db.sql("INSERT INTO client_macs (mac, client_id) SELECT '5254.00aa.bb03', id FROM clients WHERE hostname = 'pc1'").await.unwrap();
    for (refused, by) in [
        (
            "INSERT INTO clients (mac_address, hostname) VALUES ('5254.00AA.BB01', 'x')",
            "clients_mac_address_key",
        ),
        (
            "INSERT INTO clients (mac_address, hostname) VALUES ('52-54-00-aa-bb-03', 'x')",
            "client_macs_pkey",
        ),
        (
            "INSERT INTO client_macs (mac, client_id) SELECT '52-54-00-aa-bb-01', id FROM clients WHERE hostname = 'pc2'",
            "client_macs_pkey",
        ),
        (
            "UPDATE clients SET mac_address = '52-54-00-aa-bb-03' WHERE hostname = 'pc2'",
            "client_macs_pkey",
        ),
        (
            "INSERT INTO clients (mac_address, hostname) VALUES ('52:54-00:aa:bb:05', 'x')",
            "mac_address_spelling",
        ),
        (
            "INSERT INTO clients (mac_address, hostname) VALUES ('hello', 'x')",
            "mac_address_spelling",
        ),
        (
            "INSERT INTO clients (mac_address, hostname) VALUES ('ff:ff:ff:ff:ff:ff', 'x')",
            "mac_address_station",
        ),
        (
            "INSERT INTO clients (mac_address, hostname) VALUES ('01:00:5e:00:00:01', 'x')",
            "mac_address_station",
        ),
        (
            "INSERT INTO clients (mac_address, hostname) VALUES ('00:00:00:00:00:00', 'x')",
            "mac_address_station",
        ),
        (
            "DELETE FROM client_macs WHERE mac = '52:54:00:aa:bb:01'",
            "client_macs_first",
        ),
        (
            "UPDATE client_macs SET mac = '52:54:00:aa:bb:09' WHERE mac = '52:54:00:aa:bb:01'",
            "client_macs_first",
        ),
    ] {
        assert_eq!(db.refused(refused).await, by, "{refused}");
    }
    // Its own further MAC may become its first.
    db.sql("UPDATE clients SET mac_address = '52-54-00-aa-bb-03' WHERE hostname = 'pc1'")
        .await
        .unwrap();
    assert_eq!(
        db.text("SELECT string_agg(mac, ' ' ORDER BY mac) FROM client_macs")
            .await
            .unwrap(),
        "52:54:00:aa:bb:02 52:54:00:aa:bb:03"
    );
    db.sql("DELETE FROM clients").await.unwrap();
    assert_eq!(
        db.text("SELECT count(*) FROM client_macs").await.unwrap(),
        "0"
    );
}

#[tokio::test]
async fn what_else_postgresql_refuses() {
    let db = TestDb::new().await;
    db.sql(IMAGE).await.unwrap();
    db.sql(CLIENT).await.unwrap();
    db.sql(
        "INSERT INTO network_ranges (id, name, network, gateway) VALUES ('00000000-0000-0000-0000-00000000000a', 'a', '10.1.0.0/24', '10.1.0.1'),
             ('00000000-0000-0000-0000-00000000000b', 'b', '10.2.0.0/24', NULL);
         INSERT INTO range_pools (range_id, first, last) VALUES ('00000000-0000-0000-0000-00000000000a', '10.1.0.100', '10.1.0.150'),
             ('00000000-0000-0000-0000-00000000000a', '10.1.0.160', '10.1.0.170');
         INSERT INTO range_exclusions (range_id, first, last) VALUES ('00000000-0000-0000-0000-00000000000a', '10.1.0.110', '10.1.0.120');
         INSERT INTO leases (address, range_id, mac, length_seconds) VALUES ('10.1.0.100', '00000000-0000-0000-0000-00000000000a', '52:54:00:00:00:01', 60);
         UPDATE clients SET ip_address = '10.1.0.5/24', network_config = '{\"dns\": [\"10.1.0.1\"], \"mtu\": 1400, \"kernel_ip\": \"static\", \"search\": [\"a.example\"], \"domain\": null}'",
    )
    .await
    .unwrap();
    assert_eq!(
        db.text("SELECT ip_address FROM clients").await.unwrap(),
        "10.1.0.5/32"
    );
    let a = "'00000000-0000-0000-0000-00000000000a'";
    for (refused, by) in [
        ("INSERT INTO network_ranges (network) VALUES ('10.1.0.128/25')".to_owned(), "network_ranges_overlap"),
        ("INSERT INTO network_ranges (network) VALUES ('10.0.0.0/8')".to_owned(), "network_ranges_overlap"),
        ("INSERT INTO network_ranges (name, network) VALUES ('a', '10.9.0.0/24')".to_owned(), "network_ranges_name_key"),
        ("INSERT INTO network_ranges (network) VALUES ('fd00::/64')".to_owned(), "network_ranges_network_check"),
        ("INSERT INTO network_ranges (network) VALUES ('224.0.0.0/24')".to_owned(), "network_ranges_network_check"),
        ("INSERT INTO network_ranges (network, gateway) VALUES ('10.9.0.0/24', '10.8.0.1')".to_owned(), "network_ranges_gateway_check"),
        ("INSERT INTO network_ranges (network, mode) VALUES ('10.9.0.0/24', 'on')".to_owned(), "network_ranges_mode_check"),
        ("INSERT INTO network_ranges (network, serve) VALUES ('10.9.0.0/24', 'some')".to_owned(), "network_ranges_serve_check"),
        ("INSERT INTO network_ranges (network, unready) VALUES ('10.9.0.0/24', 'stop')".to_owned(), "network_ranges_unready_check"),
        ("INSERT INTO network_ranges (network, dns) VALUES ('10.9.0.0/24', '{fd00::1}')".to_owned(), "network_ranges_dns_check"),
        ("INSERT INTO network_ranges (network, ntp) VALUES ('10.9.0.0/24', '{10.0.0.0/8}')".to_owned(), "network_ranges_ntp_check"),
        ("INSERT INTO network_ranges (network, domain) VALUES ('10.9.0.0/24', 'a..b')".to_owned(), "network_ranges_domain_check"),
        ("INSERT INTO network_ranges (network, search) VALUES ('10.9.0.0/24', '{a,-b}')".to_owned(), "network_ranges_search_check"),
        ("INSERT INTO network_ranges (network, mtu) VALUES ('10.9.0.0/24', 67)".to_owned(), "network_ranges_mtu_check"),
        ("INSERT INTO network_ranges (network, routes) VALUES ('10.9.0.0/24', '[{\"to\": \"10.0.0.0/33\", \"via\": \"10.9.0.1\"}]')".to_owned(), "network_ranges_routes_check"),
        ("INSERT INTO network_ranges (network, routes) VALUES ('10.9.0.0/24', '{}')".to_owned(), "network_ranges_routes_check"),
        ("INSERT INTO network_ranges (network, options) VALUES ('10.9.0.0/24', '{\"53\": \"01\"}')".to_owned(), "network_ranges_options_check"),
        ("INSERT INTO network_ranges (network, options) VALUES ('10.9.0.0/24', '{\"43\": \"0\"}')".to_owned(), "network_ranges_options_check"),
        ("INSERT INTO network_ranges (network, options) VALUES ('10.9.0.0/24', '{\"255\": \"00\"}')".to_owned(), "network_ranges_options_check"),
        ("INSERT INTO network_ranges (network, lease_seconds) VALUES ('10.9.0.0/24', 0)".to_owned(), "network_ranges_lease_seconds_check"),
        (format!("INSERT INTO range_pools (range_id, first, last) VALUES ({a}, '10.1.0.150', '10.1.0.155')"), "range_pools_overlap"),
        (format!("INSERT INTO range_pools (range_id, first, last) VALUES ({a}, '10.1.0.200', '10.1.1.5')"), "range_pools_inside_check"),
        (format!("INSERT INTO range_pools (range_id, first, last) VALUES ({a}, '10.1.0.20', '10.1.0.10')"), "range_pools_order_check"),
        (format!("INSERT INTO range_exclusions (range_id, first, last) VALUES ({a}, '10.1.0.120', '10.1.0.125')"), "range_exclusions_overlap"),
        (format!("INSERT INTO range_exclusions (range_id, first, last) VALUES ({a}, '10.2.0.1', '10.2.0.1')"), "range_exclusions_inside_check"),
        ("INSERT INTO range_pools (range_id, first, last) VALUES (uuid_generate_v4(), '10.1.0.20', '10.1.0.21')".to_owned(), "range_pools_range_fkey"),
        // A pool may not leave its network, nor the network its pool.
        (format!("UPDATE network_ranges SET network = '10.1.0.0/26' WHERE id = {a}"), "range_pools_inside_check"),
        (format!("UPDATE network_ranges SET network = '10.7.0.0/24', gateway = NULL WHERE id = {a}"), "range_pools_inside_check"),
        (format!("INSERT INTO leases (address, range_id, mac, length_seconds) VALUES ('10.2.0.1', {a}, '52:54:00:00:00:02', 60)"), "leases_inside_check"),
        (format!("INSERT INTO leases (address, range_id, mac, length_seconds) VALUES ('10.1.0.100', {a}, '52:54:00:00:00:02', 60)"), "leases_pkey"),
        (format!("INSERT INTO leases (address, range_id, mac, length_seconds) VALUES ('10.1.0.101', {a}, '52:54:00:00:00:01', 60)"), "leases_one_per_mac"),
        (format!("INSERT INTO leases (address, range_id, mac, length_seconds) VALUES ('10.1.0.101', {a}, '52-54-00-00-00-02', 60)"), "leases_mac_check"),
        (format!("INSERT INTO leases (address, range_id, mac, length_seconds, state) VALUES ('10.1.0.101', {a}, '52:54:00:00:00:02', 60, 'lost')"), "leases_state_check"),
        ("UPDATE leases SET range_id = '00000000-0000-0000-0000-00000000000b'".to_owned(), "leases_range_fkey"),
        ("UPDATE images SET parent_image_id = id".to_owned(), "images_parent_cycle"),
        ("UPDATE images SET kind = 'tape'".to_owned(), "images_kind_check"),
        ("UPDATE images SET kind = 'kernel'".to_owned(), "images_kernel_format_check"),
        ("UPDATE images SET phone_home = 'maybe'".to_owned(), "images_phone_home_check"),
        ("UPDATE images SET cmdline = 'a' || chr(10) || 'b'".to_owned(), "images_cmdline_check"),
        ("INSERT INTO image_files (image_id, role, path, sha256, size_bytes) SELECT id, 'kernel', 'a/../b', repeat('0', 64), 1 FROM images".to_owned(), "image_files_path_check"),
        ("INSERT INTO image_files (image_id, role, path, sha256, size_bytes) SELECT id, 'kernel', '/etc/passwd', repeat('0', 64), 1 FROM images".to_owned(), "image_files_path_check"),
        ("INSERT INTO image_files (image_id, role, path, sha256, size_bytes) SELECT id, 'kernel', 'a', repeat('A', 64), 1 FROM images".to_owned(), "image_files_sha256_check"),
        ("INSERT INTO image_files (image_id, role, position, path, sha256, size_bytes) SELECT id, 'kernel', 1, 'a', repeat('0', 64), 1 FROM images".to_owned(), "image_files_position_check"),
        ("UPDATE clients SET hostname = '${x}'".to_owned(), "clients_hostname_check"),
        ("UPDATE clients SET hostname = 'a;b'".to_owned(), "clients_hostname_check"),
        ("UPDATE clients SET custom_boot_params = 'quiet ${x}'".to_owned(), "clients_custom_boot_params_check"),
        ("UPDATE clients SET custom_boot_params = 'a && b'".to_owned(), "clients_custom_boot_params_check"),
        ("UPDATE clients SET network_config = '{\"gatway\": \"10.0.0.1\"}'".to_owned(), "clients_network_config_check"),
        ("UPDATE clients SET network_config = '{\"gateway\": \"10.0.0.256\"}'".to_owned(), "clients_network_config_check"),
        ("UPDATE clients SET network_config = '{\"dns\": \"10.0.0.1\"}'".to_owned(), "clients_network_config_check"),
        ("UPDATE clients SET network_config = '{\"mtu\": 10}'".to_owned(), "clients_network_config_check"),
        ("UPDATE clients SET network_config = '{\"mtu\": 1400.5}'".to_owned(), "clients_network_config_check"),
        ("UPDATE clients SET network_config = '[]'".to_owned(), "clients_network_config_check"),
        ("UPDATE clients SET ip_address = 'fd00::1'".to_owned(), "clients_ip_address_check"),
        ("UPDATE clients SET ip_address = '239.1.1.1'".to_owned(), "clients_ip_address_check"),
        ("INSERT INTO clients (mac_address, hostname, ip_address) VALUES ('52:54:00:00:00:0f', 'x', '10.1.0.5')".to_owned(), "clients_ip_address_key"),
        ("INSERT INTO boot_attempts (id, mac, server_id, outcome, ended_at) VALUES (uuid_generate_v4(), '52:54:00:00:00:01', uuid_generate_v4(), 'lost', now())".to_owned(), "boot_attempts_outcome_check"),
        ("INSERT INTO boot_attempts (id, mac, server_id, outcome) VALUES (uuid_generate_v4(), '52:54:00:00:00:01', uuid_generate_v4(), 'failed')".to_owned(), "boot_attempts_open_check"),
        ("INSERT INTO boot_events (session_id, stage) VALUES (uuid_generate_v4(), 'up')".to_owned(), "boot_events_session_fkey"),
        ("INSERT INTO site (site_key) VALUES ('x')".to_owned(), "site_key_length"),
        ("INSERT INTO site (site_key) SELECT sha256('x')".to_owned(), "site_pkey"),
        ("INSERT INTO site (one, site_key) SELECT FALSE, sha256('x')".to_owned(), "site_one_row"),
    ] {
        assert_eq!(db.refused(&refused).await, by, "{refused}");
    }
    // Every word of the program is one that the database knows, and the other way round.
    for stage in dls::model::Stage::ALL {
        let sql = format!(
            "INSERT INTO boot_attempts (id, mac, server_id, last_stage) VALUES (uuid_generate_v4(), '52:54:00:00:00:01', uuid_generate_v4(), '{stage}')"
        );
        db.sql(&sql).await.unwrap();
    }
    for arch in dls::model::Arch::ALL {
        db.sql(&format!("UPDATE boot_attempts SET arch = '{arch}'"))
            .await
            .unwrap();
    }
    assert!(
        db.refused("UPDATE boot_attempts SET arch = 'vax'")
            .await
            .contains("arch")
    );
}

#[tokio::test]
async fn an_image_is_never_its_own_ancestor_not_even_by_two_edits_at_once() {
    let db = TestDb::new().await;
    db.sql(
        "INSERT INTO images (name, size_bytes, format, path) SELECT n, 1, 'raw', n FROM unnest('{a,b,c}'::text[]) AS n;
         UPDATE images SET parent_image_id = (SELECT id FROM images WHERE name = 'a') WHERE name = 'b';
         UPDATE images SET parent_image_id = (SELECT id FROM images WHERE name = 'b') WHERE name = 'c'",
    )
    .await
    .unwrap();
    let circle = "UPDATE images SET parent_image_id = (SELECT id FROM images WHERE name = 'c') WHERE name = 'a'";
    assert_eq!(db.refused(circle).await, "images_parent_cycle");

    db.sql("UPDATE images SET parent_image_id = NULL")
        .await
        .unwrap();
    let one = "UPDATE images SET parent_image_id = (SELECT id FROM images WHERE name = 'b') WHERE name = 'a'";
    let other = "UPDATE images SET parent_image_id = (SELECT id FROM images WHERE name = 'a') WHERE name = 'b'";
    let (one, other) = tokio::join!(db.sql(one), db.sql(other));
    assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
}

#[tokio::test]
async fn everything_has_a_comment() {
    let db = TestDb::new().await;
    let missing = db
        .text(
            "SELECT string_agg(what, ', ') FROM (
                 SELECT c.relname || '.' || a.attname AS what FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
                 WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v', 'm')
                     AND c.relname <> '_sqlx_migrations' AND col_description(c.oid, a.attnum) IS NULL
                 UNION ALL
                 SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v', 'm')
                     AND c.relname <> '_sqlx_migrations' AND obj_description(c.oid, 'pg_class') IS NULL) m",
        )
        .await;
    assert_eq!(missing, None);
}

#[tokio::test]
async fn the_site_key_is_random_and_not_for_everybody() {
    let (one, two) = (TestDb::empty().await, TestDb::empty().await);
    for db in [&one, &two] {
        db.catalog().await.run_migrations().await.unwrap();
    }
    let key = "SELECT encode(site_key, 'hex') FROM site";
    assert_ne!(one.text(key).await, two.text(key).await);
    assert_eq!(one.text(key).await.unwrap().len(), 64);
    one.sql("CREATE ROLE reader; SET ROLE reader").await.ok();
    let read = one.sql("SET ROLE reader; SELECT site_key FROM site").await;
    assert!(read.unwrap_err().to_string().contains("permission denied"));
}

#[tokio::test]
async fn migrations_go_up_down_and_up_again_with_data_in_the_tables() {
    let db = TestDb::empty().await;
    let catalog = db.catalog().await;
    catalog.run_migrations().await.unwrap();
    catalog.run_migrations().await.unwrap();
    let image = image("debian");
    catalog.save_image_metadata(&image).await.unwrap();
    let mut machine = client(1);
    machine.assigned_image_id = Some(image.id);
    catalog.save_client_config(&machine).await.unwrap();

    // Back to the seed's tables alone: its rows stay.
    catalog.revert_migrations(1).await.unwrap();
    assert_eq!(
        db.text("SELECT count(*) FROM clients c JOIN images i ON i.id = c.assigned_image_id")
            .await
            .unwrap(),
        "1"
    );
    assert_eq!(db.text("SELECT to_regclass('leases')").await, None);
    db.sql("INSERT INTO clients (mac_address, hostname) VALUES ('52-54-00-FF-00-01', 'later')")
        .await
        .unwrap();
    catalog.run_migrations().await.unwrap();
    assert_eq!(
        catalog
            .get_client(machine.id)
            .await
            .unwrap()
            .unwrap()
            .hostname,
        machine.hostname
    );
    // A row that came in between was normalised.
    let later = catalog
        .get_client_by_mac("52:54:00:ff:00:01".parse().unwrap())
        .await
        .unwrap();
    assert_eq!(later.unwrap().hostname, "later");

    catalog.revert_migrations(0).await.unwrap();
    let left = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v') AND relname <> '_sqlx_migrations'";
    assert_eq!(db.text(left).await.unwrap(), "0");
    let functions =
        "SELECT string_agg(proname, ' ') FROM pg_proc p WHERE pronamespace = 'public'::regnamespace
        AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')";
    assert_eq!(db.text(functions).await, None);
    catalog.run_migrations().await.unwrap();
    catalog.load().await.unwrap();
}

#[tokio::test]
async fn four_servers_start_at_once_on_an_empty_database() {
    let db = TestDb::empty().await;
    let mut servers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let url = db.url.clone();
        servers.spawn(async move {
            let catalog = open(&url, Uuid::new_v4()).await;
            catalog.run_migrations().await.unwrap();
            catalog.load().await.unwrap().site_key
        });
    }
    let keys = servers.join_all().await;
    assert!(keys.iter().all(|key| key.len() == 32 && *key == keys[0]));
}

#[tokio::test]
async fn an_older_binary_lives_with_newer_migrations() {
    let db = TestDb::new().await;
    db.sql(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'from the future', TRUE, 'x', 1);
         ALTER TABLE clients ADD COLUMN colour TEXT",
    )
    .await
    .unwrap();
    let catalog = db.catalog().await;
    catalog.run_migrations().await.unwrap();
    catalog.save_client_config(&client(1)).await.unwrap();
    assert_eq!(catalog.load().await.unwrap().clients.len(), 1);
}
