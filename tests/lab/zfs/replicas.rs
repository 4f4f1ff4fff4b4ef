//! Two `dls` servers in one machine, each with a pool of its own, on one PostgreSQL: versions go from
//! one pool to the other as streams of ZFS. What arrived is compared by `sha256sum` of both zvols.
//! Before that, the store alone (`tests/guest/replicas.rs`): bits flipped in a stream.

use std::time::{Duration, Instant};

use super::faults::{expect, program as guest_program, tests};
use super::guest::{Guest, Shelf};
use super::server::{build, rights, stripped};
use crate::crashes::Dice;
use crate::secs;

const PSQL: &str = "psql -h 127.0.0.1 -p 5433 -U dls -Atq dls";
/// Bytes of the disk.
const SIZE: u64 = 32 << 20;

/// `one` and `two`, with their numbers.
struct Pair<'a> {
    guest: &'a Guest,
    start: Instant,
}

/// What a server is told; `n` is 1 or 2.
fn config(n: u32) -> String {
    let (name, port) = (NAMES[n as usize], 18_000 + n * 100);
    format!(
        "state_dir = \"/var/lib/dls/{name}\"\nuser = \"dls\"\nserver_name = \"{name}\"\n\
         [database]\nurl = \"postgres://dls@127.0.0.1:5433/dls\"\n\
         [tftp]\nlisten = \"127.0.0.{n}:69\"\n[http]\nlisten = \"127.0.0.{n}:{}\"\n\
         [admin]\nlisten = \"127.0.0.{n}:8080\"\n[iscsi]\nlisten = \"127.0.0.{n}:3260\"\n\
         [nbd]\nlisten = \"127.0.0.{n}:10809\"\n[replication]\nlisten = \"127.0.0.{n}:8070\"\n\
         [log]\nfilter = \"info,dls=debug\"\n\
         [storage]\nbackend = \"zfs\"\ndataset = \"{name}pool/dls\"\n",
        port + 1
    )
}

const NAMES: [&str; 3] = ["", "one", "two"];

impl Pair<'_> {
    fn told(&self, what: &str) {
        eprintln!("{:5.1} s  {what}", self.start.elapsed().as_secs_f64());
    }

    /// Starts a server; does not wait.
    fn begin(&self, n: usize) {
        let name = NAMES[n];
        self.guest.run(&format!(
            "setsid /run/payload/dls --config /etc/dls/{name}.toml serve \
             >> /run/{name}.log 2>&1 < /dev/null & echo $! > /run/{name}.pid"
        ));
    }

    fn ready(&self, n: usize) {
        let name = NAMES[n];
        let script = format!(
            "for n in $(seq 900); do
                /run/payload/dls --server http://127.0.0.{n}:8080 --token-file /var/lib/dls/{name}/admin.token image list > /dev/null 2>&1 && exit 0
                kill -0 $(cat /run/{name}.pid) || break; sleep 0.2
            done; tail -n 40 /run/{name}.log; exit 1"
        );
        self.guest.run_within(&script, secs(240));
    }

    fn kill(&self, n: usize, signal: &str) {
        let pid = format!("$(cat /run/{}.pid)", NAMES[n]);
        self.guest.run(&format!(
            "kill -{signal} {pid}; while kill -0 {pid} 2> /dev/null; do sleep 0.05; done"
        ));
    }

    fn try_cli(&self, n: usize, line: &str) -> (i32, String) {
        let name = NAMES[n];
        let script = format!(
            "/run/payload/dls --server http://127.0.0.{n}:8080 --token-file /var/lib/dls/{name}/admin.token {line}"
        );
        let answer = self.guest.try_run(&script, secs(180)).expect("it is on");
        (answer.code, answer.out + &answer.err)
    }

    fn cli(&self, n: usize, line: &str) -> String {
        let (code, said) = self.try_cli(n, line);
        assert_eq!(code, 0, "{line}: {said}\n{}", self.logs());
        said
    }

    fn sql(&self, query: &str) -> String {
        let script = format!("{PSQL} -c \"{query}\"");
        self.guest.run(&script).trim().to_owned()
    }

    fn until(&self, query: &str, expected: &str, limit: Duration) {
        let start = Instant::now();
        loop {
            let said = self.sql(query);
            if said == expected {
                return;
            }
            let waited = start.elapsed();
            assert!(waited < limit, "{query}: {said}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    fn logs(&self) -> String {
        let tail =
            "for n in one two; do echo \"== $n\"; tail -n 30 /run/$n.log; done; zfs list -t all";
        let answer = self.guest.try_run(tail, secs(60));
        answer.map(|a| a.out).unwrap_or_default()
    }

    fn id(&self, version: &str) -> String {
        let query = "select replace(id::text, '-', '') from image_snapshots where name = ";
        self.sql(&format!("{query}'{version}'"))
    }

    fn state(&self, version: &str, server: &str) -> String {
        format!(
            "select r.state from image_replicas r join servers s on s.id = r.server_id \
             join image_snapshots v on v.id = r.version_id \
             where v.name = '{version}' and s.name = '{server}'"
        )
    }

    /// Bytes that a version took on its way.
    fn sent(&self, version: &str) -> u64 {
        let query = format!(
            "select bytes_done from image_replicas r join image_snapshots v on v.id = r.version_id \
             where v.name = '{version}' and r.from_server is not null"
        );
        self.sql(&query).parse().expect("a number")
    }

    /// How often something stands in a server's log.
    fn logged(&self, n: usize, words: &str) -> usize {
        let count = format!("grep -c '{words}' /run/{}.log || true", NAMES[n]);
        self.guest.run(&count).trim().parse().unwrap_or(0)
    }

    /// Both zvols of a version, read outside of the servers, hold the same; and the same snapshot.
    fn equal(&self, version: &str) {
        let id = self.id(version);
        self.guest.run(&format!(
            "udevadm settle; for pool in onepool twopool; do
                sha256sum < /dev/zvol/$pool/dls/image.{id} > /run/$pool.sum || exit 1
                zfs get -Hpo value guid $pool/dls/image.{id}@image.{id}.base > /run/$pool.guid || exit 1
                zfs get -Hpo value dls:size $pool/dls/image.{id} | grep -qx {SIZE} || exit 1
            done
            cmp /run/onepool.sum /run/twopool.sum && cmp /run/onepool.guid /run/twopool.guid"
        ));
    }

    /// Has a machine's disk written to as root of the machine would, and makes a version of it.
    fn publish(&self, version: &str, script: &str) {
        let client = self.sql("select replace(id::text, '-', '') from clients");
        let image = self.sql("select replace(id::text, '-', '') from images");
        let disk = format!("onepool/dls/personal.{client}.{image}");
        self.kill(1, "TERM");
        self.guest.run(&format!(
            "set -e; from=$(zfs list -Hp -o name -s createtxg -t snapshot -r onepool/dls | grep '[.]base$' | tail -n 1)
            zfs list {disk} > /dev/null 2>&1 || zfs clone -o dls:size={SIZE} -o dls:origin=${{from#*@}} $from {disk}
            for n in $(seq 100); do [ -b /dev/zvol/{disk} ] && break; sleep 0.1; done
            disk=/dev/zvol/{disk}; {script}"
        ));
        self.begin(1);
        self.ready(1);
        self.cli(
            1,
            &format!("snapshot create debian {version} --from-client pc-01"),
        );
        self.until(&self.state(version, "one"), "verified", secs(60));
    }
}

fn begin(guest: &Guest) {
    let script = format!(
        "set -e
        for name in one two; do {} ; {} ; done
        user() {{ setpriv --reuid dls --regid dls --clear-groups \"$@\"; }}
        export PATH=$PATH:$(echo /usr/lib/postgresql/*/bin); mkdir /run/sql; chown dls /run/sql
        user initdb -D /run/sql/data -U dls -A trust -N > /dev/null
        user pg_ctl -D /run/sql/data -w -t 120 -l /run/sql/log -o '-p 5433 -k /run/sql -F' start > /dev/null
        createdb -h 127.0.0.1 -p 5433 -U dls dls",
        rights("onepool/dls"),
        rights("twopool/dls"),
    );
    guest.run_within(&script, secs(240));
}

#[test]
fn a_stream_is_the_same_version_or_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = guest_program(folder.path());
    let shelf = Shelf::new(folder.path(), &[1 << 30, 1 << 30], &[("guest", &program)]);
    let guest = shelf.power_on(None);
    guest.run(
        "set -e; zpool create -O mountpoint=none onepool /dev/vdd; zpool create -O mountpoint=none twopool /dev/vde
        for pool in onepool twopool; do zfs create $pool/unit; done",
    );
    let said = tests(&guest, "a_stream_is_the_same_version", "", secs(300));
    expect(&said, &["STREAMS", "BOOKMARK"]);
}

#[test]
fn versions_go_from_pool_to_pool_as_streams() {
    let folder = tempfile::tempdir().expect("a folder");
    let stripped_into = |name: &str, program: &std::path::Path| {
        let place = folder.path().join(name);
        std::fs::create_dir(&place).expect("a folder");
        stripped(program, &place)
    };
    let dls = stripped_into("dls", &build(&["build", "--example", "dls-zfs"], "example"));
    let rule =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/udev/90-dls-zvol.rules");
    let configs = [1, 2].map(|n| {
        let path = folder.path().join(format!("{n}.toml"));
        std::fs::write(&path, config(n)).expect("a file");
        path
    });
    let files = [
        ("dls", dls.as_path()),
        ("etc/udev/rules.d/90-dls-zvol.rules", rule.as_path()),
        ("etc/dls/one.toml", configs[0].as_path()),
        ("etc/dls/two.toml", configs[1].as_path()),
    ];
    let shelf = Shelf::new(folder.path(), &[2 << 30, 2 << 30], &files);
    let guest = shelf.power_on(None);
    let pair = Pair {
        guest: &guest,
        start: Instant::now(),
    };
    guest.run(
        "set -e; zpool create -O mountpoint=none onepool /dev/vdd; zpool create -O mountpoint=none twopool /dev/vde
        for pool in onepool twopool; do zfs create $pool/dls; done",
    );
    begin(&guest);
    pair.told("PostgreSQL");
    // One after the other: the first makes the tables.
    for n in [1, 2] {
        pair.begin(n);
        pair.ready(n);
    }
    pair.until(
        "select count(*) from servers where certificate_sha256 is not null",
        "2",
        secs(60),
    );
    pair.told("both serve");
    whole_then_increment(&pair);
    killed_ten_times(&pair);
    flipped_before_it_is_compared(&pair);
    from_a_bookmark(&pair);
    let errors =
        "grep -h ' ERROR ' /run/one.log /run/two.log | grep -v 'not what was sent' || true";
    eprint!("{}", guest.run(errors));
    for n in [1, 2] {
        pair.kill(n, "TERM");
    }
    let health = guest.run("zpool status -x");
    assert!(health.contains("all pools are healthy"), "{health}");
}

fn whole_then_increment(pair: &Pair<'_>) {
    pair.guest.run(&format!(
        "truncate -s {SIZE} /run/disk && head -c 4M /dev/urandom | dd of=/run/disk conv=notrunc iflag=fullblock bs=1M status=none"
    ));
    pair.cli(1, "image import debian /run/disk --boot-method san");
    pair.cli(
        1,
        "client add --mac 52:54:00:00:00:01 --hostname pc-01 --image debian --disk-mode persistent",
    );
    let said = pair.cli(1, "image replicate debian --to two");
    assert!(said.contains("two has version base of debian"), "{said}");
    pair.equal("base");
    assert_eq!(pair.logged(2, "way.*stream"), 1, "{}", pair.logs());
    pair.told("the whole of it is at the other server");
    pair.publish(
        "mended",
        "dd if=/dev/urandom of=$disk bs=64k count=1 seek=100 conv=notrunc,fsync status=none",
    );
    pair.cli(1, "image replicate debian --version mended --to two");
    pair.equal("mended");
    assert_eq!(pair.logged(2, "way.*stream"), 2, "{}", pair.logs());
    let sent = pair.sent("mended");
    assert!(
        (64 << 10..256 << 10).contains(&sent),
        "{sent} bytes for 64 KiB"
    );
    // It stands upon the first one there, by ZFS and by what the store has written down.
    let (base, mended) = (pair.id("base"), pair.id("mended"));
    let origins = pair.guest.run(&format!(
        "zfs get -Hpo value origin,dls:origin twopool/dls/image.{mended}"
    ));
    let expected = format!("twopool/dls/image.{base}@image.{base}.base\nimage.{base}.base");
    assert_eq!(origins.trim(), expected);
    pair.told(&format!("an increment of 64 KiB: {sent} bytes"));
}

fn killed_ten_times(pair: &Pair<'_>) {
    let mut dice = Dice::new();
    pair.publish(
        "large",
        "dd if=/dev/urandom of=$disk bs=1M count=16 seek=8 conv=notrunc,fsync status=none",
    );
    pair.told("a version with 16 MiB of its own");
    // A line of 1 MB/s, so that a kill meets a part of it on a fast machine and on a slow one.
    pair.guest
        .run("modprobe sch_tbf && tc qdisc add dev lo root tbf rate 8mbit burst 256kb latency 20s");
    pair.cli(
        1,
        "image replicate debian --version large --to two --no-wait",
    );
    let (id, mut resumed) = (pair.id("large"), 0);
    for round in 0..10 {
        let before = pair.logged(2, "way.*stream");
        // It has begun or gone on since the last kill, or is there.
        let begun = || {
            pair.logged(2, "way.*stream") > before
                || pair.sql(&pair.state("large", "two")) == "verified"
        };
        if round > 0 {
            let start = Instant::now();
            while !begun() {
                let waited = start.elapsed();
                assert!(waited < secs(180), "it does not go on: {}", pair.logs());
            }
        }
        std::thread::sleep(Duration::from_millis(300 + dice.below(2000)));
        let n = 1 + usize::try_from(dice.below(2)).expect("a small number");
        pair.kill(n, "9");
        let partly = format!(
            "zfs get -Hpo value receive_resume_token twopool/dls/incoming.{id} 2> /dev/null || true"
        );
        resumed += u32::from(pair.guest.run(&partly).starts_with("1-"));
        pair.begin(n);
    }
    pair.guest.run("tc qdisc del dev lo root");
    pair.until(&pair.state("large", "two"), "verified", secs(120));
    pair.equal("large");
    let on = pair.logged(2, "stream-goes-on");
    pair.told(&format!(
        "killed ten times, {resumed} times with a part there, {on} times it went on from there"
    ));
    assert!(on >= 2, "{}", pair.logs());
    for n in [1, 2] {
        pair.ready(n);
    }
}

/// A bit that changes in the receiver's pool between the stream and the comparison.
fn flipped_before_it_is_compared(pair: &Pair<'_>) {
    pair.publish(
        "flipped",
        "dd if=/dev/urandom of=$disk bs=64k count=1 seek=300 conv=notrunc,fsync status=none",
    );
    let id = pair.id("flipped");
    pair.cli(
        1,
        "image replicate debian --version flipped --to two --no-wait",
    );
    let place = format!("twopool/dls/incoming.{id}");
    pair.guest.run(&format!(
        "for n in $(seq 1000); do zfs list {place}@image.{id}.base > /dev/null 2>&1 && break; done
        pid=$(cat /run/two.pid); kill -9 $pid; while kill -0 $pid 2> /dev/null; do sleep 0.05; done
        for n in $(seq 100); do [ -b /dev/zvol/{place} ] && break; sleep 0.1; done
        printf '\\x5a' | dd of=/dev/zvol/{place} bs=1 seek=19661000 conv=notrunc,fsync status=none"
    ));
    pair.begin(2);
    pair.until(&pair.state("flipped", "two"), "failed", secs(120));
    let left = pair.guest.run("zfs list -H -o name -t all -r twopool/dls");
    assert!(!left.contains(&id), "{left}");
    let why = pair.sql("select reason from image_replicas where state = 'failed'");
    assert!(why.contains("not what was sent"), "{why}");
    pair.ready(2);
    // Asked for again it comes anew, and is right.
    pair.cli(1, "image replicate debian --version flipped --to two");
    pair.equal("flipped");
    pair.told("what changed before the comparison was found");
}

/// The sender removes what an increment starts from; a bookmark of it is enough.
fn from_a_bookmark(pair: &Pair<'_>) {
    let bookmarks = "zfs list -H -o name -t bookmark -r onepool/dls";
    let before = pair.logged(2, "way.*stream");
    // The machine's disk is what the versions stand upon.
    pair.cli(1, "client reset-disk pc-01");
    let said = pair.try_cli(1, "image rm-replica debian --version base --from one");
    assert_eq!(said.0, 0, "{said:?}\n{}", pair.logs());
    let (base, left) = (pair.id("base"), pair.guest.run(bookmarks));
    assert!(left.contains(&format!("#image.{base}.base")), "{left}");
    let gone = format!("onepool/dls/image.{base}");
    assert_ne!(
        pair.guest
            .try_run(&format!("zfs list {gone}"), secs(30))
            .expect("on")
            .code,
        0
    );
    // The other server has only the first one from now on.
    for version in ["flipped", "large", "mended"] {
        pair.cli(
            2,
            &format!("image rm-replica debian --version {version} --from two"),
        );
    }
    pair.cli(1, "image replicate debian --version mended --to two");
    pair.equal("mended");
    assert_eq!(pair.logged(2, "way.*stream"), before + 1, "{}", pair.logs());
    let sent = pair.sent("mended");
    assert!(sent < 256 << 10, "{sent} bytes for 64 KiB");
    pair.told(&format!("an increment from a bookmark: {sent} bytes"));
    // Nobody needs it when nobody else has the version.
    pair.cli(2, "image rm-replica debian --version mended --from two");
    let (code, said) = pair.try_cli(2, "image rm-replica debian --version base --from two");
    assert_ne!(code, 0, "the last copy: {said}");
}
