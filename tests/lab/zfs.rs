//! The `zfs` backend on real OpenZFS, in a machine of its own: the store's own tests (the
//! conformance suite among them), built with the feature `zfs`, run on a pool that the machine
//! makes on a disk; and the whole of `dls` there, whose disks other machines boot. The machine is
//! built by `tests/lab/zfs/build` and cached; [`guest`] runs it, [`server`] has `dls` in it.
//! [`faults`]: broken pools; [`replicas`]: versions from pool to pool; [`storm`]: a crowd; [`rounds`]: kills at any moment; [`steps`]: at every
//! named step; [`cuts`]: the power of a server at work.

mod cuts;
mod faults;
pub(crate) mod guest;
mod replicas;
mod rounds;
pub(crate) mod server;
mod steps;
mod storm;

use std::process::Command;
use std::time::{Duration, Instant};

use guest::Shelf;
use server::{DATASET, Server, build, stripped};

use crate::machine::{Board, Firmware, tail};
use crate::net::{Lab, finish, output};
use crate::product::DebianDisk;
use crate::{secs, wait_for};

/// What the machine runs: a pool, a parent dataset for each test, the tests one after another.
const RUN: &str = "set -e
zpool create -O mountpoint=none labpool /dev/vdd
for name in conformance storm links promoted files begun claimed reserved devices; do zfs create labpool/$name; done
code=0
/run/payload/tests storage::zfs --test-threads 1 --nocapture 2>&1 || code=$?
echo DATASETS-LEFT
zfs list -H -o name -r -t all labpool | grep / | grep -E '[.@]' || true
echo DATASETS-END
zpool status -x
exit $code
";

#[test]
fn the_store_conforms_on_real_zfs() {
    let folder = tempfile::tempdir().expect("a folder");
    let tests = build(&["test", "--lib", "--no-run"], "lib");
    let tests = stripped(&tests, folder.path());
    let shelf = Shelf::new(folder.path(), &[4 << 30], &[("tests", &tests)]);
    let guest = shelf.power_on(None);
    let answer = guest.try_run(RUN, secs(1200)).expect("the machine is on");
    let said = answer.out;
    guest.power_off();
    assert_eq!(answer.code, 0, "{said}{}", answer.err);
    eprintln!("{}", shelf.versions());
    for test in [
        "the_store_on_zfs_conforms ... ok",
        "clones_that_open_at_once_get_their_own_disks ... ",
        "a_link_to_another_disk_is_not_believed ... ok",
        "a_new_disk_gets_one_device_and_keeps_it ... ok",
        "who_carries_a_snapshot_changes_nothing ... ok",
        "files_come_in_and_go_out ... ok",
        "what_was_begun_is_finished_at_the_next_opening ... ok",
        "space_is_set_aside_or_refused_when_a_disk_is_made ... ok",
    ] {
        assert!(
            said.contains(test),
            "`{test}` was not run:\n{}",
            tail(&said)
        );
    }
    assert_eq!(said.matches("no wrong disk").count(), 3, "{}", tail(&said));
    // By ZFS's own listing the tests have left nothing.
    let left = said.split("DATASETS-LEFT").nth(1).unwrap_or_default();
    let left = left.split("DATASETS-END").next().unwrap_or_default();
    assert_eq!(left.trim(), "", "datasets are left");
    assert!(said.contains("all pools are healthy"), "{}", tail(&said));
}

const MAC: &str = "52:54:00:77:00:01";
/// A boot to the login prompt, beside the server's own machine.
const BOOT: Duration = secs(300);

/// `zfs list` of the dataset's zvols: name and what each stands upon.
fn zvols(server: &Server<'_>) -> Vec<(String, String)> {
    let list = format!("zfs list -Hp -t volume -r -o name,origin {DATASET}");
    let line = |line: &str| {
        let (name, origin) = line.split_once('\t').expect("two columns");
        (name.to_owned(), origin.to_owned())
    };
    server.guest().run(&list).lines().map(line).collect()
}

/// Those of versions.
fn versions(server: &Server<'_>) -> Vec<(String, String)> {
    let mut all = zvols(server);
    all.retain(|(name, _)| name.contains("/image."));
    all
}

/// The newest disk of a kind, and the version that it is a clone of; ids are in order of time.
fn newest(server: &Server<'_>, kind: &str) -> (String, String) {
    let mut all = zvols(server);
    all.retain(|(name, _)| name.contains(kind));
    all.pop().unwrap_or_else(|| panic!("no disk {kind}"))
}

fn version(server: &Server<'_>, name: &str) -> (String, String) {
    let rows = server.rows(&format!(
        "select stage, replace(id::text, '-', '') as id from image_snapshots where name = '{name}'"
    ));
    let text = |key: &str| rows[0][key].as_str().unwrap_or_default().to_owned();
    (text("stage"), text("id"))
}

/// `dls doctor` finds each thing that is taken away, and the commands that it says mend it.
fn doctor_mends(server: &Server<'_>) {
    let doctor = || {
        let run = "/run/payload/dls --config /etc/dls/dls.toml doctor";
        let answer = server.guest().try_run(run, secs(120));
        answer.expect("the machine is on")
    };
    assert_eq!(doctor().code, 0, "{:?}", doctor());
    server.guest().run(&format!(
        "zfs unallow -u dls hold,rename {DATASET} && chmod 600 /dev/zfs && \
         rm /etc/udev/rules.d/90-dls-zvol.rules"
    ));
    let mut said = String::new();
    // Without /dev/zfs the rest is not looked at, so it takes two looks.
    for look in 0..3 {
        let answer = doctor();
        if look == 2 {
            assert_eq!(answer.code, 0, "{}{}", answer.out, answer.err);
            break;
        }
        assert_eq!(answer.code, 1, "{}{}", answer.out, answer.err);
        said.push_str(&answer.out);
        for line in answer.out.lines() {
            if let Some(command) = line.trim().strip_prefix("mend: ") {
                server.guest().run(command);
            }
        }
    }
    for mend in [
        "mend: chmod 666 /dev/zfs\n",
        &format!("mend: zfs allow -u dls hold,rename {DATASET}\n"),
        "> /etc/udev/rules.d/90-dls-zvol.rules",
    ] {
        assert!(said.contains(mend), "`{mend}` in:\n{said}");
    }
}

/// The whole way: the server as its unprivileged user in a machine of its own, its disks on ZFS;
/// a machine beside it boots Debian from there, mends it, boots what was mended, and goes back.
#[test]
fn a_machine_boots_its_disk_from_zfs() {
    let start = Instant::now();
    let told = |what: &str| eprintln!("{:5.1} s  {what}", start.elapsed().as_secs_f64());
    let lab = Lab::new("zfs");
    lab.ipv6_router();
    let disk = DebianDisk::build();
    let mut server = Server::new(&lab, &[8 << 30]);
    told("dls serves");

    // It is what it says: unprivileged.
    let who = server.guest().run("ps -o user= -C dls");
    assert_eq!(who.trim(), "dls");
    // The unit's drop-in names the devices so.
    server.guest().run("grep -w zvol /proc/devices");
    doctor_mends(&server);
    told("dls doctor has mended what was taken away");

    server.cli("range add --network 10.77.0.0/24 --pool 10.77.0.50-10.77.0.99 --mode full");
    let file = lab.path().join("debian.qcow2");
    finish(
        Command::new("qemu-img")
            .args(["convert", "-O", "qcow2"])
            .arg(disk.file("disk.img"))
            .arg(&file),
    );
    let method = ["--boot-method", "san"];
    finish(
        server
            .command(&["image", "import", "debian"])
            .arg(&file)
            .args(method),
    );
    told("the disk is imported");
    server.cli(&format!(
        "client add --mac {MAC} --hostname pc-01 --image debian"
    ));
    let (_, base) = version(&server, "base");

    let board = Board {
        persistent: true,
        ..Board::new(Firmware::Bios, MAC)
    };
    // It mends the image: its disk is a clone that it keeps, and what it wrote becomes the
    // version of all.
    server.cli("client maintain pc-01");
    let mut machine = board.power_on(&lab);
    machine.expect("DLS-MARKER: fresh", BOOT);
    machine.expect("debian login:", BOOT);
    told("the login prompt");
    server.expect_stage(MAC, "up", secs(90));
    told("up");
    let (_, origin) = newest(&server, "/personal.");
    assert_eq!(origin, format!("{DATASET}/image.{base}@image.{base}.base"));
    // A boot that just stops is not over for a while; one that says so is.
    machine.log_in();
    machine.enter("poweroff");
    server.expect_stage(MAC, "bye", secs(120));
    machine.cut_power();
    told("the image is mended");
    wait_for("the machine is found to be off", secs(180), || {
        let publish = ["client", "publish", "pc-01", "mended"];
        let publish = output(&mut server.command(&publish));
        let said = String::from_utf8_lossy(&publish.stderr).into_owned();
        assert!(
            publish.status.success() || publish.status.code() == Some(4),
            "{said}"
        );
        if publish.status.success() {
            return Some(());
        }
        eprint!("{said}");
        std::thread::sleep(secs(2));
        None
    });
    let (stage, mended) = version(&server, "mended");
    assert_eq!(stage, "production");
    told("it is published");

    // A power cut of the whole server between.
    server.cut_power();
    server.power_on();
    server.serve();
    told("the server's power was cut, and it serves again");
    let mut machine = board.power_on(&lab);
    machine.expect("DLS-MARKER: found 1", BOOT);
    told("the new version is booted");
    let (first, origin) = newest(&server, "/session.");
    let stands_on = format!("{DATASET}/image.{mended}@image.{mended}.base");
    assert_eq!(origin, stands_on, "its disk is a clone of the version");

    // It has marked its disk once more; after a reset that mark is gone, and so is that disk.
    machine.reset();
    machine.expect("DLS-MARKER: found 1", BOOT);
    let (second, origin) = newest(&server, "/session.");
    assert_ne!(first, second);
    assert_eq!(origin, stands_on);
    wait_for("the former boot's disk is removed", secs(90), || {
        let all = zvols(&server);
        all.iter().all(|(name, _)| *name != first).then_some(())
    });
    machine.cut_power();
    told("its disk is a fresh one after a reset");

    // Back and forth, by the catalog alone: no dataset is touched.
    let before = versions(&server);
    let lists = server.cli("snapshot list debian");
    assert!(
        lists.contains("mended") && lists.contains("base"),
        "{lists}"
    );
    server.cli("snapshot return debian --reason it-was-tried");
    assert_eq!(version(&server, "base").0, "production");
    assert_eq!(version(&server, "mended").0, "retired");
    server.cli("snapshot release debian mended");
    assert_eq!(version(&server, "mended").0, "production");
    server.cli("snapshot return debian");
    assert_eq!(versions(&server), before);
    told("released and returned");
    server.kill();
    server.serve();
    assert_eq!(versions(&server), before);
    told("kill -9 of the server, and it serves again");
    let health = server.guest().run("zpool status -x");
    assert!(health.contains("all pools are healthy"), "{health}");
    server.stop();
}
