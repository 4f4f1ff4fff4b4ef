//! Debian from its disk: SeaBIOS and OVMF over iSCSI to the login prompt, a root on iSCSI and
//! on NBD by kernel and initrd; what stays of a machine's writes and what does not; restarts,
//! pulled cables, a second machine with the same MAC, a stopped database.
//!
//! A boot takes about a minute under emulation, so each test shows much with few of them.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::crashes::rounds;
use crate::machine::{Board, Firmware, Machine};
use crate::net::{Lab, finish, output};
use crate::product::{DebianDisk, DiskImport, Dls};
use crate::{secs, wait_for};

const MAC: &str = "52:54:00:77:00:01";
const OTHER: &str = "52:54:00:77:00:02";
const POOL: &str = "--pool 10.77.0.50-10.77.0.99 --mode full";
/// A boot to the login prompt, beside another one.
const BOOT: Duration = secs(240);
const PROMPT: &str = "debian login:";

/// A server with the Debian disk as image `debian`, booted so.
fn site<'a>(lab: &'a Lab, boot_method: &'static str) -> (Dls<'a>, DebianDisk) {
    lab.ipv6_router();
    let disk = DebianDisk::build();
    let dls = Dls::start(lab, "");
    dls.cli(&format!("range add --network 10.77.0.0/24 {POOL}"));
    let by_kernel = boot_method != "san";
    dls.import(&DiskImport {
        name: "debian",
        disk: &disk.file("disk.img"),
        boot_method,
        kernel: by_kernel.then(|| (disk.file("kernel"), disk.file("initrd"))),
        cmdline: if by_kernel {
            let root = disk.root();
            format!("root=UUID={root} rw rootfstype=ext4 console=ttyS0 quiet mitigations=off net.ifnames=0 fsck.mode=skip")
        } else {
            String::new()
        },
    });
    (dls, disk)
}

fn add_client(dls: &Dls<'_>, mac: &str, name: &str, mode: &str) {
    dls.cli(&format!(
        "client add --mac {mac} --hostname {name} --image debian --disk-mode {mode}"
    ));
}

fn board(firmware: Firmware, mac: &'static str) -> Board {
    Board {
        persistent: true,
        ..Board::new(firmware, mac)
    }
}

/// Waits for the login prompt; the disk had been booted so often before.
fn expect_boot(machine: &mut Machine, marker: &str) {
    machine.expect("DLS-MARKER:", BOOT);
    machine.expect(PROMPT, BOOT);
    let marker = format!("DLS-MARKER: {marker}");
    let console = machine.console();
    assert!(console.contains(&marker), "`{marker}` in:\n{console}");
}

/// Starts `lab-io` in the machine; it goes on until it is told to stop.
fn start_io(machine: &mut Machine) {
    machine.log_in();
    machine.enter("lab-io 100000 2 &");
    machine.expect("LAB-IO 2\r", secs(90));
}

/// Rounds of `lab-io` that were right, so far on this page.
fn io_rounds(machine: &Machine) -> usize {
    let console = machine.console();
    assert!(!console.contains("LAB-IO-WRONG"), "{console}");
    assert!(!console.contains("I/O error"), "{console}");
    console.lines().filter(|l| l.starts_with("LAB-IO ")).count()
}

/// Waits until `lab-io` has done some more rounds, and all of them right.
fn expect_io(machine: &Machine, what: &str) {
    // Two may have been under way before.
    let before = io_rounds(machine);
    wait_for(what, secs(90), || {
        (io_rounds(machine) > before + 2).then_some(())
    });
}

/// Waits until the system has said itself that it is up: nothing was inferred. It had no
/// command line of ours, so it made where to report to of the boot firmware table.
fn expect_report(dls: &Dls<'_>, mac: &str) {
    let timeline = dls.expect_stage(mac, "up", secs(90));
    timeline.assert_order(&["script", "disk_attached", "up"]);
    let up = timeline.row("up").expect("the row");
    assert_eq!(up["detail"]["by"], "report", "{up}");
    assert_eq!(up["detail"]["inferred"], false, "{up}");
}

/// A number in a row's detail.
fn bytes(row: &Value, key: &str) -> u64 {
    let value = row.get("detail").and_then(|detail| detail.get(key));
    value.and_then(Value::as_u64).unwrap_or_default()
}

#[test]
fn two_machines_one_image_ephemeral_and_persistent() {
    let lab = Lab::new("disks");
    let (mut dls, disk) = site(&lab, "san");
    add_client(&dls, MAC, "pc-01", "ephemeral");
    add_client(&dls, OTHER, "pc-02", "persistent");
    let mut clean = board(Firmware::Bios, MAC).power_on(&lab);
    let mut kept = board(Firmware::Bios, OTHER).power_on(&lab);
    expect_boot(&mut clean, "fresh");
    expect_boot(&mut kept, "fresh");

    // What the operator reads of it.
    let timeline = dls.expect_stage(MAC, "disk_written", secs(10));
    timeline.assert_order(&["script", "disk_attached", "disk_read", "disk_written"]);
    for mac in [MAC, OTHER] {
        expect_report(&dls, mac);
    }

    // A warm reset of both, without a word to the disk.
    clean.reset();
    kept.reset();
    expect_boot(&mut clean, "fresh");
    expect_boot(&mut kept, "found 1");
    let ended = dls.rows(&format!(
        "select count(*)::int as n from boot_sessions s join clients c on c.id = s.client_id \
         where c.mac_address = '{MAC}' and s.ended_at is not null"
    ));
    assert_eq!(ended[0]["n"], 1, "the boot before the reset is over");

    // A cold one, and a restart of the server between.
    clean.cut_power();
    kept.cut_power();
    dls.stop();
    dls.start_again();
    let mut clean = board(Firmware::Bios, MAC).power_on(&lab);
    let mut kept = board(Firmware::Bios, OTHER).power_on(&lab);
    expect_boot(&mut clean, "fresh");
    expect_boot(&mut kept, "found 2");

    dls.assert_unchanged("debian", &disk.file("disk.img"));
    let image = dls.rows("select sha256 from images where name = 'debian'");
    assert_eq!(image[0]["sha256"], disk.sha256());

    // A clean end, as the system itself tells it.
    expect_report(&dls, MAC);
    clean.log_in();
    clean.enter("poweroff");
    let timeline = dls.expect_stage(MAC, "bye", secs(90));
    let bye = timeline.row("bye").expect("the row");
    assert!(bye["detail"].to_string().contains("poweroff"), "{bye}");
    let status = || {
        let rows = dls.rows(&format!(
            "select s.status from boot_sessions s join clients c on c.id = s.client_id \
             where c.mac_address = '{MAC}' order by s.started_at desc limit 1"
        ));
        (rows[0]["status"] == "shutdown").then_some(())
    };
    wait_for("its session is shut down", secs(30), status);

    // The end of a disk, by bytes: the loader's login ended long ago, the system's ends when
    // it is found to answer no more.
    kept.cut_power();
    wait_for("what the system read and wrote", secs(180), || {
        let timeline = dls.timeline(OTHER);
        let mut ends = timeline.rows("disk_detached");
        ends.any(|row| bytes(row, "bytes_read") > 10_000_000 && bytes(row, "bytes_written") > 4_096)
            .then_some(())
    });
}

#[test]
fn uefi_and_a_second_machine_with_its_mac() {
    let lab = Lab::new("disk_uefi");
    let (dls, _) = site(&lab, "san");
    add_client(&dls, MAC, "pc-01", "ephemeral");
    let mut machine = board(Firmware::UefiPxe, MAC).power_on(&lab);
    expect_boot(&mut machine, "fresh");
    start_io(&mut machine);

    let mut twin = Board {
        uuid: Some("11111111-2222-3333-4444-555555555555"),
        ..board(Firmware::Bios, MAC)
    }
    .power_on(&lab);
    // It gets its script, and in it why it waits; the first one does not notice.
    wait_for("an event about the second machine", secs(90), || {
        let rows = dls.rows(
            "select stage, detail from boot_events where detail::text like '%disk_in_use%' \
             or stage in ('disk_refused', 'refused')",
        );
        (!rows.is_empty()).then_some(())
    });
    expect_io(&machine, "the first machine's I/O goes on");
    assert!(!twin.console().contains("LAB-GRUB"), "{}", twin.console());
    twin.cut_power();

    // A machine that was reset always boots.
    machine.reset();
    expect_boot(&mut machine, "fresh");
}

/// This machine's fio with its libraries, given out by HTTP, and at work in the machine until
/// the machine ends: random writes by several at once past the page cache, then each block is
/// read and held against the checksum in it. Says `FIO-RIGHT N` after each pass.
fn start_fio(lab: &Lab, machine: &mut Machine) {
    let folder = lab.path().join("fio");
    fs::create_dir(&folder).expect("a folder");
    let pack = "set -e; for file in /usr/bin/fio $(ldd /usr/bin/fio | grep -o '/[^ ]*'); do cp -L $file .; done
        tar cf ../fio.tar *; mkdir ../served; mv ../fio.tar ../served";
    let script = "#!/bin/sh
n=0
while LD_LIBRARY_PATH=/mnt /mnt/fio --name=verify --filename=/var/tmp/fio --size=4m --bs=4k --rw=randwrite \\
    --ioengine=libaio --iodepth=8 --direct=1 --fsync=64 --verify=crc32c --verify_fatal=1 --verify_state_save=0 \\
    > /run/fio.log 2>&1; do
    n=$((n + 1))
    echo \"FIO-RIGHT $n\"
done
echo \"FIO-WRONG $(tail -n 5 /run/fio.log)\"
";
    fs::write(folder.join("verify"), script).expect("a script");
    finish(Command::new("sh").args(["-c", pack]).current_dir(&folder));
    let mut server = lab.on_server("python3", ["-m", "http.server", "8090", "--directory"]);
    server.arg(lab.path().join("served"));
    lab.keep(server.stdout(Stdio::null()).stderr(Stdio::null()));
    machine.enter(
        "mount -t tmpfs fio /mnt && wget -q -O- http://10.77.0.1:8090/fio.tar | tar x -C /mnt && sh /mnt/verify &",
    );
    machine.expect("FIO-RIGHT 1\r", secs(120));
}

/// Passes of fio that were right, so far on this page.
fn fio_passes(machine: &Machine) -> usize {
    let console = machine.console();
    assert!(!console.contains("FIO-WRONG"), "{console}");
    console.lines().filter(|l| l.contains("FIO-RIGHT ")).count()
}

/// How long it takes until a server that has started anew moves bytes of the machine's, either
/// way: what a slow machine does first is its own affair, and that its writes come back right is
/// seen by fio and lab-io.
fn expect_resumed(lab: &Lab, protocol: &str) -> f64 {
    let counters = ["read", "written"].map(|way| format!("dls_{protocol}_{way}_bytes_total "));
    let start = Instant::now();
    wait_for("reads or writes after a restart", secs(10), || {
        let metrics = ["-fsS", "-m", "2", "http://127.0.0.1:8080/metrics"];
        let metrics = output(&mut lab.on_server("curl", metrics));
        let metrics = String::from_utf8_lossy(&metrics.stdout).into_owned();
        let values = metrics.lines().filter_map(|line| {
            let value = counters.iter().find_map(|name| line.strip_prefix(name))?;
            value.trim().parse::<f64>().ok()
        });
        (values.sum::<f64>() > 0.0).then_some(())
    });
    start.elapsed().as_secs_f64()
}

/// A running machine and all that can happen to its server: it waits and goes on.
fn withstands(lab: &Lab, dls: &mut Dls<'_>, machine: &mut Machine, protocol: &str) {
    start_fio(lab, machine);
    let mut longest = 0_f64;
    for round in 1..=rounds(1, 25) {
        dls.stop();
        std::thread::sleep(secs(2));
        dls.start_again();
        longest = longest.max(expect_resumed(lab, protocol));
        expect_io(machine, "I/O goes on after a restart of the server");
        dls.kill();
        dls.start_again();
        longest = longest.max(expect_resumed(lab, protocol));
        expect_io(machine, "I/O goes on after kill -9 of the server");
        let passes = fio_passes(machine);
        eprintln!(
            "round {round}: a restart and a kill, {} of lab-io and {passes} of fio right, longest pause {longest:.1} s",
            io_rounds(machine)
        );
    }
    machine.pull_cable(lab);
    std::thread::sleep(secs(30));
    machine.plug_cable(lab);
    expect_io(machine, "I/O goes on after 30 s without a cable");
    // The passes that the restarts were in have ended, and all were right.
    let before = fio_passes(machine);
    wait_for("fio goes on", secs(120), || {
        (fio_passes(machine) > before + 1).then_some(())
    });
}

#[test]
fn root_on_iscsi_outlives_restarts_of_the_server() {
    let lab = Lab::new("disk_iscsi");
    let (mut dls, _) = site(&lab, "iscsi");
    add_client(&dls, MAC, "pc-01", "persistent");
    let mut machine = board(Firmware::Bios, MAC).power_on(&lab);
    expect_boot(&mut machine, "fresh");
    dls.expect_status("running", secs(60));
    start_io(&mut machine);
    withstands(&lab, &mut dls, &mut machine, "iscsi");

    // Without the database: I/O goes on, and a machine logs in again.
    dls.freeze_database();
    expect_io(&machine, "I/O goes on without the database");
    dls.break_connections(&lab, 3260);
    expect_io(&machine, "a new login without the database");
    dls.thaw_database();
    expect_io(&machine, "I/O goes on when the database is back");
    machine.enter("kill %1; sleep 3; poweroff");
    dls.expect_status("shutdown", secs(90));
}

#[test]
fn root_on_nbd_outlives_restarts_of_the_server() {
    let lab = Lab::new("disk_nbd");
    let (mut dls, _) = site(&lab, "nbd");
    add_client(&dls, MAC, "pc-01", "ephemeral");
    let mut machine = board(Firmware::Bios, MAC).power_on(&lab);
    expect_boot(&mut machine, "fresh");
    let timeline = dls.expect_stage(MAC, "up", secs(60));
    timeline.assert_order(&["script", "kernel_sent", "disk_attached", "disk_read", "up"]);
    start_io(&mut machine);
    withstands(&lab, &mut dls, &mut machine, "nbd");
    machine.reset();
    expect_boot(&mut machine, "fresh");
}

/// The disk that all these tests boot is found to boot by all their ways.
#[test]
fn the_check_finds_that_debian_boots() {
    use dls::image_check::{Bytes, Subject, check};
    use dls::model::{BootMethod, CheckVerdict, Severity};
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    struct OnDisk(fs::File);
    impl Bytes for OnDisk {
        fn size(&self) -> u64 {
            self.0.metadata().unwrap().len()
        }
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
            self.0.read_exact_at(buffer, offset)
        }
    }
    let disk = DebianDisk::build();
    let open =
        |name| -> Arc<dyn Bytes> { Arc::new(OnDisk(fs::File::open(disk.file(name)).unwrap())) };
    for method in BootMethod::ALL {
        let subject = Subject {
            disk: open("disk.img"),
            method: *method,
            initrds: (*method != BootMethod::San).then(|| vec![open("initrd")]),
        };
        let found = check(&subject, dls::clock::Clock::system().now());
        assert_eq!(found.verdict, CheckVerdict::Bootable, "{found:#?}");
        let good = |one: &dls::model::Found| one.severity == Severity::Good;
        assert!(found.findings.iter().all(good), "{found:#?}");
        assert!(found.bios && found.uefi, "{found:#?}");
        assert_eq!(
            (found.iscsi, found.nbd),
            (Some(true), Some(true)),
            "{found:#?}"
        );
        assert_eq!(found.os_type.as_deref(), Some("debian-12"));
    }
}
