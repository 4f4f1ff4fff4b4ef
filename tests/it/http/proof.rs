//! Who gets what: tokens over HTTP, addresses over TFTP, and what neither opens.

use std::net::Ipv4Addr;

use dls::boot::files::{Content, NoFile, Visitor};
use dls::boot::path::BootPath;
use dls::boot::session::Door;
use dls::boot::token::BootToken;
use uuid::Uuid;

use super::site::Site;
use super::wire::Wire;

const ONE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const TWO: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_its_own_boot_while_that_lasts() {
    let site = Site::start().await;
    let boot = site.power_on(1, ONE);
    let other = site.power_on(2, TWO);
    let mut wire = Wire::connect(site.address).await;
    let script = wire.ask("GET", &site.path(boot.id, "boot.ipxe"), &[]).await;
    let text = script.text();
    assert_eq!(script.status, 200);
    assert_eq!(script.header("cache-control"), Some("no-store"));
    for part in [
        format!(
            "kernel --name kernel {}",
            site.url(&site.path(boot.id, "kernel"))
        ),
        "initrd=initrd0 console=ttyS0 quiet".to_owned(),
        format!("dls.report={}", site.url(&site.path(boot.id, ""))),
        "dls.hostname=pc-1".to_owned(),
    ] {
        assert!(text.contains(&part), "{part} in\n{text}");
    }
    let id = boot.id.simple();
    let good = site.token(boot.id);
    let flipped = if good.starts_with('0') { "1" } else { "0" };
    for bad in [
        site.token(other.id),
        "0".repeat(32),
        format!("{flipped}{}", &good[1..]),
    ] {
        for item in ["boot.ipxe", "kernel", "initrd0", "up", "bye"] {
            let reply = wire.ask("GET", &format!("/b/{id}.{bad}/{item}"), &[]).await;
            assert_eq!((reply.status, reply.text().as_str()), (403, "not yours\n"));
        }
    }
    for malformed in [good[1..].to_owned(), String::new(), format!("{good}0")] {
        let reply = wire
            .ask("GET", &format!("/b/{id}.{malformed}/kernel"), &[])
            .await;
        assert_eq!(reply.status, 404);
    }
    // The machine starts again: what its last boot was told is of no use any more.
    let next = site.power_on(1, ONE);
    assert_ne!(next.id, boot.id);
    for item in ["boot.ipxe", "kernel"] {
        let reply = wire.ask("GET", &site.path(boot.id, item), &[]).await;
        assert_eq!(
            (reply.status, reply.text().as_str()),
            (410, "this boot is over\n")
        );
        assert_eq!(
            wire.ask("GET", &site.path(next.id, item), &[]).await.status,
            200
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_keeps_the_image_that_its_script_named() {
    let site = Site::start().await;
    let boot = site.power_on(1, ONE);
    let mut wire = Wire::connect(site.address).await;
    wire.ask("GET", &site.path(boot.id, "boot.ipxe"), &[]).await;
    let mut client = site
        .cache
        .get()
        .client_by_mac(super::site::mac(1))
        .unwrap()
        .as_ref()
        .clone();
    client.assigned_image_id = None;
    site.catalog.save_client_config(&client).await.unwrap();
    site.cache.refresh().await.unwrap();
    let kernel = wire.ask("GET", &site.path(boot.id, "kernel"), &[]).await;
    assert_eq!(kernel.status, 200, "what it was told still holds");
    let script = wire.ask("GET", &site.path(boot.id, "boot.ipxe"), &[]).await;
    assert!(
        script.text().contains("Reason: no_image"),
        "{}",
        script.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_can_not_boot_are_told_why_and_look_again() {
    let site = Site::start().await;
    let mut wire = Wire::connect(site.address).await;
    for (n, reason) in [(2, "no_image"), (3, "unknown_client")] {
        let boot = site.power_on(n, [127, 0, 0, n].into());
        let text = wire
            .ask("GET", &site.path(boot.id, "boot.ipxe"), &[])
            .await
            .text();
        assert!(text.contains(&format!("Reason: {reason}\n")), "{text}");
        let again = format!(
            "chain --replace --autofree {}",
            site.url(&site.path(boot.id, "boot.ipxe"))
        );
        assert!(text.contains(&again), "{text}");
        assert_eq!(
            wire.ask("GET", &site.path(boot.id, "kernel"), &[])
                .await
                .status,
            404
        );
    }
    // As soon as it may boot, the same URL says so.
    let mut client = site
        .cache
        .get()
        .client_by_mac(super::site::mac(2))
        .unwrap()
        .as_ref()
        .clone();
    client.assigned_image_id = Some(site.image.id);
    site.catalog.save_client_config(&client).await.unwrap();
    site.cache.refresh().await.unwrap();
    let boot = site.tracker.open_attempt(super::site::mac(2)).unwrap();
    let text = wire
        .ask("GET", &site.path(boot.id, "boot.ipxe"), &[])
        .await
        .text();
    assert!(text.contains("boots test-os"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn by_tftp_the_address_is_the_proof() {
    let site = Site::start().await;
    let boot = site.power_on(1, ONE);
    let visitor = |client| Visitor {
        client,
        server: ONE,
        door: Door::Tftp,
    };
    let open = async |name: &str, client| {
        let path = BootPath::parse_tftp(name.as_bytes()).unwrap();
        site.files.open(&path, visitor(client), None).await
    };
    match open("/autoexec.ipxe", ONE).await.unwrap() {
        Content::Text { body, .. } => {
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert!(text.contains(&site.path(boot.id, "kernel")), "{text}");
        }
        other => panic!("{other:?}"),
    }
    for name in ["kernel", "initrd0", "snponly.efi"] {
        assert!(
            matches!(
                open(name, ONE).await,
                Ok(Content::File { attempt: Some((id, _)), .. }) if id == boot.id
            ),
            "{name}"
        );
    }
    for name in ["boot.ipxe", "kernel", "initrd0"] {
        assert!(
            matches!(open(name, TWO).await, Err(NoFile::NotBooting)),
            "{name}"
        );
    }
    assert!(matches!(
        open("initrd5", ONE).await,
        Err(NoFile::NoSuchItem)
    ));
    assert!(matches!(
        open("snponly.efi", TWO).await,
        Ok(Content::File { attempt: None, .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_what_the_catalog_says_is_not_served() {
    let site = Site::start().await;
    let boot = site.power_on(1, ONE);
    let mut wire = Wire::connect(site.address).await;
    let stored = site
        .dir
        .path()
        .join("storage")
        .join(format!("images/{}", site.image.id));
    std::fs::write(stored.join("kernel"), b"short").unwrap();
    std::fs::remove_file(stored.join("initrd0")).unwrap();
    for item in ["kernel", "initrd0"] {
        let reply = wire.ask("GET", &site.path(boot.id, item), &[]).await;
        assert_eq!(reply.status, 503, "{item}");
        assert_eq!(reply.text(), "the file can't be read on the server\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_need_their_token_and_method_and_are_short() {
    let site = Site::start().await;
    let boot = site.power_on(1, ONE);
    let mut wire = Wire::connect(site.address).await;
    for (method, item, body, status) in [
        ("POST", "up", "", 204),
        ("POST", "beat", "", 204),
        ("GET", "beat", "", 204),
        ("HEAD", "up", "", 405),
        ("PUT", "up", "", 405),
        ("POST", "kernel", "", 405),
        ("POST", "boot.ipxe", "", 405),
        ("POST", "bye", "poweroff", 204),
        ("POST", "bye", "again", 204),
    ] {
        let path = site.path(boot.id, item);
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        wire.send(text.as_bytes()).await;
        let reply = wire.reply(method == "HEAD").await.unwrap();
        assert_eq!(reply.status, status, "{method} {item}");
        if status == 405 {
            assert!(reply.header("allow").is_some_and(|a| a.starts_with("GET")));
        }
    }
    let long = format!(
        "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n{}",
        site.path(boot.id, "bye"),
        "x".repeat(2000)
    );
    let mut wire = Wire::connect(site.address).await;
    wire.send(long.as_bytes()).await;
    assert_eq!(wire.reply(false).await.unwrap().status, 413);
    let stranger = site.path(Uuid::now_v7(), "up");
    let reply = Wire::connect(site.address)
        .await
        .ask("POST", &stranger, &["Content-Length: 0"])
        .await;
    assert_eq!(reply.status, 410);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_of_a_disk_s_secret_is_for_reports_only() {
    let site = Site::start().await;
    let (boot, other) = (site.power_on(1, ONE), site.power_on(2, TWO));
    let token = |id| BootToken::report(site.cache.get().site_key(), id).reveal();
    let path = |token: String, item: &str| format!("/b/{}.{token}/{item}", boot.id.simple());
    let mut wire = Wire::connect(site.address).await;
    for item in ["boot.ipxe", "kernel", "initrd0"] {
        let reply = wire.ask("GET", &path(token(boot.id), item), &[]).await;
        assert_eq!((reply.status, reply.text().as_str()), (403, "not yours\n"));
    }
    for item in ["up", "beat", "bye"] {
        let reply = wire.ask("GET", &path(token(other.id), item), &[]).await;
        assert_eq!(reply.status, 403, "another boot's");
        let nbd = BootToken::nbd(site.cache.get().site_key(), boot.id).reveal();
        let reply = wire.ask("GET", &path(nbd, item), &[]).await;
        assert_eq!(reply.status, 403, "of another purpose");
        let reply = wire.ask("GET", &path(token(boot.id), item), &[]).await;
        assert_eq!(reply.status, 204, "{item}");
    }
    let timeline = site.timeline(boot.id, |rows| rows.contains("bye")).await;
    assert!(timeline.contains("\"by\": \"report\""), "{timeline}");
}
