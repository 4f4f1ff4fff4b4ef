//! Bad versions of a real Debian, each mended so on a machine of its own and released to one ring:
//! one panics, one hangs in its initrd, one comes up and says nothing. All of them go back by
//! themselves, and nobody else ever boots them.

use std::time::Duration;

use crate::machine::{Board, Firmware, Machine};
use crate::net::Lab;
use crate::product::{DebianDisk, DiskImport, Dls};
use crate::{secs, wait_for};

/// A boot to the login prompt, beside two others.
const BOOT: Duration = secs(420);
const PROMPT: &str = "debian login:";
/// From the disk's login to `up`: three at a time take long under emulation.
const PATIENCE: &str = "stall_seconds = 30\nos_seconds = 150";

/// MAC, name of client, version and ring, and what the machine does to its image.
const BAD: [(&str, &str, &str); 3] = [
    (
        "52:54:00:77:00:01",
        "panics",
        "printf '[Service]\\nType=oneshot\\nExecStart=/bin/sh -c \"echo c >/proc/sysrq-trigger\"\\n[Install]\\nWantedBy=multi-user.target\\n' \
         > /etc/systemd/system/bad.service; systemctl enable bad",
    ),
    (
        "52:54:00:77:00:02",
        "hangs",
        "sed -i 's/^linux .*/& break=bottom/' /boot/grub/grub.cfg",
    ),
    (
        "52:54:00:77:00:03",
        "is-silent",
        "systemctl disable dls-report; rm -f $(systemctl show -P FragmentPath dls-report)",
    ),
];

fn power_on(lab: &Lab, mac: &'static str) -> Machine {
    Board {
        persistent: true,
        ..Board::new(Firmware::Bios, mac)
    }
    .power_on(lab)
}

/// Stage of a version, and why it was taken back.
fn version(dls: &Dls<'_>, name: &str) -> (String, String) {
    let rows = dls.rows(&format!(
        "select stage, coalesce(reason, '') as reason from image_snapshots where name = '{name}'"
    ));
    let text = |key: &str| rows[0][key].as_str().unwrap_or_default().to_owned();
    (text("stage"), text("reason"))
}

/// What the reason of a return says. A machine that panics restarts, as one does whose button
/// somebody pressed: three times are no accident.
fn story(name: &str) -> String {
    match name {
        "panics" => "3 boots in a row did not come up; the last, client panics: ".to_owned(),
        _ => format!("client {name}: at stage disk_"),
    }
}

#[test]
fn bad_versions_reach_their_ring_only_and_go_back() {
    let lab = Lab::new("canaries");
    lab.ipv6_router();
    let disk = DebianDisk::build();
    let dls = Dls::start(&lab, PATIENCE);
    dls.cli("range add --network 10.77.0.0/24 --pool 10.77.0.50-10.77.0.99 --mode full");
    dls.import(&DiskImport {
        name: "debian",
        disk: &disk.file("disk.img"),
        boot_method: "san",
        kernel: None,
        cmdline: String::new(),
    });

    // Each machine makes its image worse.
    for (mac, name, _) in BAD {
        dls.cli(&format!(
            "client add --mac {mac} --hostname {name} --image debian --ring {name}"
        ));
        dls.cli(&format!("client maintain {name}"));
    }
    let mut machines = BAD.map(|(mac, _, _)| power_on(&lab, mac));
    for (machine, (mac, _, harm)) in machines.iter_mut().zip(BAD) {
        machine.expect(PROMPT, BOOT);
        dls.expect_stage(mac, "up", secs(90));
        machine.log_in();
        machine.enter(harm);
        machine.enter("sync; echo HARM''-DONE; poweroff");
        machine.expect("HARM-DONE", secs(60));
    }
    for (machine, (_, name, _)) in machines.iter_mut().zip(BAD) {
        machine.expect_off(secs(120));
        wait_for("the end of its boot", secs(60), || {
            let open = dls.rows(&format!(
                "select id from boot_attempts where client_name = '{name}' and ended_at is null"
            ));
            open.is_empty().then_some(())
        });
        dls.cli(&format!(
            "client publish {name} {name} --ring {name} --after 1"
        ));
        assert_eq!(version(&dls, name).0, "canary");
    }

    // Nobody stands beside them. What they were released to is told what went wrong.
    let mut machines = BAD.map(|(mac, _, _)| power_on(&lab, mac));
    for (_, name, why) in BAD.map(|(mac, name, _)| (mac, name, story(name))) {
        let reason = wait_for(&format!("`{name}` is taken back"), secs(600), || {
            let (stage, reason) = version(&dls, name);
            assert_ne!(stage, "production", "{name}");
            (stage == "retired").then_some(reason)
        });
        assert!(reason.contains(&why), "{reason}");
    }
    // One query tells the story.
    let story = dls.rows(
        "select version, client, verdict, why from version_boots where verdict in ('failed', 'unclear') order by version, started_at",
    );
    let mut told: Vec<String> = story
        .iter()
        .map(|row| format!("{} {} {}", row["version"], row["client"], row["verdict"]))
        .collect();
    // The packet that ends the third boot begins a fourth. This firmware asks for its version
    // 0.1 s after it, maybe before the return; if that boot is over by now, it is told, too.
    assert!(matches!(told.len(), 5 | 6), "{story:#?}");
    told.truncate(5);
    assert_eq!(
        told,
        [
            r#""hangs" "hangs" "failed""#,
            r#""is-silent" "is-silent" "failed""#,
            r#""panics" "panics" "unclear""#,
            r#""panics" "panics" "unclear""#,
            r#""panics" "panics" "unclear""#,
        ],
        "{story:#?}"
    );
    assert!(machines[0].console().contains("Kernel panic"));
    assert!(machines[1].console().contains("(initramfs)"));

    // The ring is back on what was good.
    for machine in &mut machines {
        machine.cut_power();
    }
    drop(machines);
    let production = dls.rows("select name from image_snapshots where stage = 'production'");
    assert_eq!(production[0]["name"], "base");
    let (mac, ..) = BAD[0];
    let mut machine = power_on(&lab, mac);
    machine.expect("DLS-MARKER: fresh", BOOT);
    machine.expect(PROMPT, BOOT);
}
