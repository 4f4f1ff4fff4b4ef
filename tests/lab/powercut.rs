//! An ACK means stored: the server is a machine of its own whose power is cut right after
//! it has acknowledged leases of machines that boot, or writes to disks. Started again it must know every
//! one, and of each boot.
//!
//! The server is a QEMU guest: Debian's kernel, a root disk that holds `dls`, this machine's
//! PostgreSQL and the libraries of both. kill -9 of QEMU loses all that the guest had not
//! written to its disk: its page cache is gone, as with real power.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::crashes::{Dice, crowd, rounds, told};
use crate::exports::{BOTH, Stand, Writer, noise, small};
use crate::machine::tail;
use crate::net::{Lab, finish, run};
use crate::product::{PROGRAM, TestSystem};
use crate::{secs, wait_for};

/// What the guest's first program does: the network, `dls`, and once it is ready the range
/// (first start only) and a marker; then it lists all leases on its console.
const INIT: &str = "#!/bin/sh
export PATH=/bin:/usr/bin LANG=C HOME=/root PAGER=cat
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/shm && mount -t tmpfs -o mode=1777 shm /dev/shm
chmod 1777 /tmp
while read -r module; do insmod /modules/$module 2>/dev/null; done < /modules/order
exec </dev/console >/dev/console 2>&1
ip link set lo up
ip addr add 10.77.0.1/16 dev eth0
ip link set eth0 up
echo GUEST-STARTS
dls --config /dls.toml serve >/var/log/dls.log 2>&1 &
n=0
# With its database, and with nothing that this does not have yet.
until wget -q -O - http://127.0.0.1:8080/readyz 2>/dev/null | grep -q '\"degraded\":false' &&
    wget -q -O - http://127.0.0.1:8080/metrics 2>/dev/null | grep -q '^dls_dhcp_leases_owing 0' &&
    wget -q -O - http://127.0.0.1:8080/metrics 2>/dev/null | grep -q '^dls_boot_rows_queued 0'; do
    n=$((n + 1)); [ $n -lt 600 ] || { echo GUEST-NEVER-READY; tail -n 40 /var/log/dls.log; poweroff -f; }
    sleep 0.2
done
# Each command of dls costs seconds here: what is asked once is not asked again.
if [ ! -e /first.done ]; then
    echo LEASES-BEGIN
    dls --config /dls.toml psql -c \"select 'LEASE ' || mac || ' ' || host(address) || ' END' as lease from leases\"
    dls --config /dls.toml psql -c \"select 'BOOT ' || mac || ' END' as boot from boot_attempts\"
    echo LEASES-END
    dls --config /dls.toml range list 2>/dev/null | grep -q 10.77.0.0 ||
        dls --config /dls.toml range add --network 10.77.0.0/16 --pool 10.77.1.0-10.77.250.250 --mode full
fi
if [ -e /first ] && [ ! -e /first.done ]; then
    sh -ex /first && touch /first.done && sync || echo GUEST-FIRST-FAILED
fi
echo GUEST-SERVES
while :; do sleep 1000; done
";

/// Puts a program and the libraries it needs into the tree.
fn add_program(tree: &Path, program: &Path, to: &str) {
    let target = tree.join(to);
    fs::create_dir_all(target.parent().expect("a folder")).expect("mkdir");
    fs::copy(program, &target).unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    add_libraries(tree, program);
}

fn add_libraries(tree: &Path, program: &Path) {
    let listed = Command::new("ldd").arg(program).output().expect("ldd");
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        if let Some(path) = path.map(Path::new) {
            // Where this machine has it: the loader of the same Debian looks there too.
            let target = tree.join(path.strip_prefix("/").expect("absolute"));
            fs::create_dir_all(target.parent().expect("a folder")).expect("mkdir");
            fs::copy(path, &target).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
    }
}

/// The root disk: an ext4 image of `dls`, PostgreSQL and busybox.
/// `first` runs at the first start, once the server is ready; `more` are files in `/`.
fn root_disk(lab: &Lab, first: &str, more: &[&Path]) -> PathBuf {
    let tree = lab.path().join("tree");
    for folder in [
        "bin",
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "root",
        "etc",
        "usr/bin",
        "usr/lib",
        "usr/share",
        "var/log",
        "var/lib/dls",
    ] {
        fs::create_dir_all(tree.join(folder)).expect("mkdir");
    }
    // busybox, its links and the drivers are in the test system's initrd already.
    let unpack = "zcat \"$0\" | cpio -idmu --quiet 'bin/*' 'modules/*' modules";
    let initrd = TestSystem::build().initrd().to_owned();
    finish(
        Command::new("sh")
            .args(["-c", unpack])
            .arg(&initrd)
            .current_dir(&tree),
    );
    add_program(&tree, Path::new(PROGRAM), "usr/bin/dls");
    // initdb picks its time zone from here, and some programs are run by a shell.
    for folder in [
        "/usr/lib/postgresql",
        "/usr/share/postgresql",
        "/usr/share/zoneinfo",
    ] {
        let to = tree.join(&folder[1..]);
        fs::create_dir_all(to.parent().expect("a folder")).expect("mkdir");
        finish(Command::new("cp").args(["-a", folder]).arg(&to));
    }
    // psql may be told to look elsewhere than beside the server's programs.
    let programs = run(
        "sh",
        [
            "-c",
            "find /usr/lib/postgresql/*/bin /usr/lib/postgresql/*/lib -maxdepth 1 -type f \\( -perm -u+x -o -name '*.so' \\)",
        ],
    );
    for program in programs.lines() {
        let name = Path::new(program)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let skipped = ["llvmjit.so"];
        if !skipped.contains(&name.as_ref()) {
            add_libraries(&tree, Path::new(program));
        }
    }
    let etc = |name: &str, text: &str| fs::write(tree.join("etc").join(name), text).expect("etc");
    etc(
        "passwd",
        "root:x:0:0::/root:/bin/sh\ndls:x:990:990::/var/lib/dls:/bin/sh\n",
    );
    etc("group", "root:x:0:\ndls:x:990:\n");
    etc(
        "nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files\n",
    );
    etc("hosts", "127.0.0.1 localhost\n");
    fs::write(tree.join("dls.toml"), "state_dir = \"/var/lib/dls\"\n").expect("dls.toml");
    fs::write(tree.join("init"), INIT).expect("init");
    if !first.is_empty() {
        fs::write(tree.join("first"), first).expect("first");
    }
    for file in more {
        let name = file.file_name().expect("a file's name");
        fs::copy(file, tree.join(name)).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
    finish(Command::new("chmod").arg("755").arg(tree.join("init")));
    let disk = lab.path().join("root.img");
    finish(
        Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-m", "0", "-d"])
            .arg(&tree)
            .arg(&disk)
            .arg("1500M"),
    );
    fs::remove_dir_all(&tree).expect("rm");
    disk
}

/// The server as a guest, on a tap of its own.
struct Guest {
    qemu: Child,
    console: PathBuf,
}

impl Guest {
    fn power_on(lab: &Lab, disk: &Path, tap: &str, boot: u32) -> Self {
        let system = TestSystem::build();
        let console = lab.path().join(format!("guest-{boot}.log"));
        let args = [
            "-accel".into(),
            "tcg,thread=multi".into(),
            "-cpu".into(),
            "max".into(),
            "-m".into(),
            "1024".into(),
            "-smp".into(),
            "2".into(),
            "-display".into(),
            "none".into(),
            "-vga".into(),
            "none".into(),
            "-monitor".into(),
            "none".into(),
            "-no-reboot".into(),
            "-serial".into(),
            format!("file:{}", console.display()),
            "-kernel".into(),
            system.kernel().display().to_string(),
            "-initrd".into(),
            system.initrd().display().to_string(),
            "-append".into(),
            "console=ttyS0 quiet lab.root=/dev/vda".into(),
            "-drive".into(),
            format!(
                "file={},format=raw,if=virtio,cache=writethrough",
                disk.display()
            ),
            "-netdev".into(),
            format!("tap,id=n,ifname={tap},script=no,downscript=no"),
            "-device".into(),
            "virtio-net-pci,netdev=n,mac=52:54:00:77:00:fe,romfile=".to_owned(),
        ];
        let lan = lab.namespace("lan");
        let qemu = lab
            .command_in(&lan, "qemu-system-x86_64", &args)
            .stdout(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64");
        Self { qemu, console }
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Powers on and waits for a text. QEMU's emulation of several processors fails now and
    /// then by an assertion of its own, which to the disk is one more power cut: then the guest
    /// is powered on again.
    fn boot(lab: &Lab, disk: &Path, tap: &str, boot: u32, text: &str) -> Self {
        for _ in 0..3 {
            let mut guest = Self::power_on(lab, disk, tap, boot);
            let what = format!("`{text}` on the guest's console");
            let there = wait_for(&what, secs(300), || {
                if guest.console().contains(text) {
                    return Some(true);
                }
                let ended = guest.qemu.try_wait().expect("QEMU's state")?;
                let aborted = ended.signal() == Some(nix::libc::SIGABRT);
                let console = guest.console();
                let console = tail(&console);
                assert!(aborted, "the guest is off; its console ends:\n{console}");
                Some(false)
            });
            if there {
                return guest;
            }
            eprintln!("QEMU failed in boot {boot}: one more power cut");
        }
        panic!("QEMU failed three times in one boot");
    }

    fn cut_power(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the guest's console ends:\n{}", tail(&self.console()));
        }
        self.cut_power();
    }
}

/// `LEASE MAC ADDRESS END` lines of the console.
fn listed(console: &str) -> BTreeSet<(String, String)> {
    console
        .lines()
        .filter_map(|line| line.split_once("LEASE ")?.1.split_once(" END"))
        .filter_map(|(lease, _)| lease.split_once(' '))
        .map(|(mac, address)| (mac.to_owned(), address.to_owned()))
        .collect()
}

/// The machines whose boots it listed as well.
fn booted(console: &str) -> BTreeSet<String> {
    let lines = console.lines();
    let macs = lines.filter_map(|line| line.split_once("BOOT ")?.1.split_once(" END"));
    macs.map(|(mac, _)| mac.to_owned()).collect()
}

#[test]
fn every_acknowledged_lease_outlives_a_power_cut() {
    let mut dice = Dice::new();
    let lab = Lab::new("powercut");
    // The guest is 10.77.0.1 here.
    lab.ip(&lab.namespace("srv"), "link set lan0 down");
    let disk = root_disk(&lab, "", &[]);
    let tap = lab.add_tap();
    let client = lab.host("cli", None);
    let mut guest = Guest::boot(&lab, &disk, &tap, 0, "GUEST-SERVES");
    crowd(&lab, &client);
    for round in 1..=rounds(2, 12) {
        let before = told(&lab).len();
        let more = 3 + usize::try_from(dice.below(8)).expect("a small number");
        wait_for("clients get leases", secs(120), || {
            (told(&lab).len() >= before + more).then_some(())
        });
        // Right after an ACK: this loop looks ten times a second, so waits for a fresh one.
        let seen = told(&lab).len();
        while told(&lab).len() == seen {
            std::thread::sleep(Duration::from_millis(1));
        }
        guest.cut_power();
        let acknowledged = told(&lab);
        guest = Guest::boot(&lab, &disk, &tap, round, "GUEST-SERVES");
        let there = listed(&guest.console());
        let boots = booted(&guest.console());
        for lease in &acknowledged {
            assert!(
                there.contains(lease),
                "round {round}: {lease:?} was acknowledged and is lost"
            );
            assert!(
                boots.contains(&lease.0),
                "round {round}: {lease:?} was acknowledged and its boot is lost"
            );
        }
        eprintln!(
            "round {round}: {} leases acknowledged, all there with their boots",
            acknowledged.len()
        );
    }
}

/// When the power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// While machines write.
    UnderWrites,
    /// Then, and again while the server comes back from it.
    UnderRecovery,
}

#[test]
fn every_flushed_write_outlives_a_power_cut() {
    every_flushed_write_is_there("powercut_disks", Cut::UnderWrites, rounds(1, 50));
}

#[test]
fn every_flushed_write_outlives_a_cut_under_recovery() {
    every_flushed_write_is_there("powercut_recovery", Cut::UnderRecovery, rounds(1, 25));
}

/// Cuts the power so many times, or twice as many, and looks for all that was acknowledged.
fn every_flushed_write_is_there(test: &'static str, cut: Cut, count: u32) {
    let mut dice = Dice::new();
    let lab = Lab::new(test);
    lab.ip(&lab.namespace("srv"), "link set lan0 down");
    let raw = lab.path().join("small.raw");
    noise(&raw, 16 << 20, 1);
    let image = small(&raw);
    let (kernel, initrd) = image.kernel.as_ref().expect("its kernel");
    let macs = ["52:54:00:78:00:00", "52:54:00:78:00:01"];
    let mut first = format!(
        "dls --config /dls.toml image import {} /small.raw --boot-method {} --kernel /kernel --initrd /initrd --cmdline '{}'\n",
        image.name, image.boot_method, image.cmdline
    );
    for (n, mac) in macs.iter().enumerate() {
        // Kept, so that the boots before and after the cut have the same disk.
        let _ = std::fmt::Write::write_fmt(
            &mut first,
            format_args!(
                "dls --config /dls.toml client add --mac {mac} --hostname pc-{n} --image small --disk-mode persistent\n"
            ),
        );
    }
    let disk = root_disk(&lab, &first, &[&raw, kernel, initrd]);
    let tap = lab.add_tap();
    let client = lab.host("cli", None);
    let mut guest = Guest::boot(&lab, &disk, &tap, 0, "GUEST-SERVES");
    assert!(
        !guest.console().contains("GUEST-FIRST-FAILED"),
        "{}",
        guest.console()
    );
    for round in 1..=count {
        let boot = || macs.map(|mac| Stand::boot(&lab, &client, mac));
        let stands = boot();
        let mut writers: Vec<Writer> = Vec::new();
        for (stand, by) in stands.iter().zip(BOTH) {
            let ledger = lab.path().join(format!("ledger-{by:?}"));
            writers.push(Writer::start(stand, &stand.uri(by), &ledger, 36_000));
        }
        wait_for("both writers write", secs(120), || {
            writers.iter().all(|w| w.acknowledged() > 20).then_some(())
        });
        std::thread::sleep(Duration::from_millis(dice.below(2000)));
        guest.cut_power();
        for writer in &mut writers {
            writer.kill();
        }
        lab.end_all("qemu-nbd");
        if cut == Cut::UnderRecovery {
            guest = Guest::boot(&lab, &disk, &tap, count + round, "GUEST-STARTS");
            std::thread::sleep(Duration::from_millis(dice.below(6000)));
            guest.cut_power();
        }
        // It starts by itself.
        guest = Guest::boot(&lab, &disk, &tap, round, "GUEST-SERVES");
        for ((stand, by), writer) in boot().iter().zip(BOTH).zip(&writers) {
            let uri = stand.uri(by);
            let said = finish(&mut stand.disk(&["verify", &uri, writer.ledger()]));
            eprintln!("round {round}, {by:?}: {}", said.trim());
        }
        lab.end_all("qemu-nbd");
    }
}
