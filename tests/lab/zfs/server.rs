//! `dls` with the feature `zfs` in a guest ([`super::guest`]): started as root, at work as its
//! user `dls`, with no more rights to ZFS than `docs/storage.md` has, and the devices by the udev
//! rule that is shipped. Its command line runs on this machine, from the server's namespace of the
//! lab, which is quicker than in the guest. Must not use the library.
//!
//! ```ignore
//! let lab = Lab::new("name");
//! let mut server = Server::new(&lab, &[8 << 30]);     // pool `labpool` on /dev/vdd, dls is ready
//! server.cli("range add --network 10.77.0.0/24 --pool 10.77.0.50-10.77.0.99 --mode full");
//! let rows = server.rows("select name from images");  // by `dls psql` in the guest
//! server.guest().run("zfs list -Hp -t all -r labpool/dls");
//! server.kill();                                       // kill -9 of dls alone
//! server.serve();                                      // starts it and waits until it is ready
//! server.cut_power(); server.power_on(); server.serve();   // the pool is imported by power_on
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::guest::{ADDRESS, Guest, Shelf};
use crate::net::{Lab, finish, output};
use crate::product::PROGRAM;
use crate::{secs, wait_for};

/// The dataset that all disks are below.
pub(crate) const DATASET: &str = "labpool/dls";

/// The server of a lab, in a guest.
pub(crate) struct Server<'a> {
    lab: &'a Lab,
    shelf: Shelf,
    guest: Option<Guest>,
    token: PathBuf,
}

/// Builds something by cargo with the feature, and gives the program's path.
pub(super) fn build(arguments: &[&str], kind: &str) -> PathBuf {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(arguments)
        .args(["--locked", "--features", "zfs", "--message-format", "json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit());
    // What cargo tells tests of their package: the build scripts of crates (ring) look at such
    // variables, and would have all that stands on them built again, here and in the next build.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    let said = finish(&mut cargo);
    let program = said.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let path = message["executable"].as_str()?;
        (message["target"]["kind"][0] == kind).then(|| PathBuf::from(path))
    });
    program.expect("cargo names the program")
}

/// A program without its symbols, which are most of the file.
pub(super) fn stripped(program: &Path, folder: &Path) -> PathBuf {
    let to = folder.join("stripped");
    finish(Command::new("strip").arg("-o").arg(&to).arg(program));
    to
}

/// The one line of `zfs allow` in the documentation, for a dataset.
pub(super) fn rights(dataset: &str) -> String {
    let text = include_str!("../../../docs/storage.md").replace('\n', " ");
    let from = text.find("zfs allow -u dls").expect("the line");
    let line = text[from..].split('`').next().unwrap_or_default();
    line.replace("tank/dls", dataset)
}

impl<'a> Server<'a> {
    /// Builds the program and the machine, switches it on, makes pool and dataset, gives user
    /// `dls` its rights, starts the server and waits until it is ready.
    pub(crate) fn new(lab: &'a Lab, pools: &[u64]) -> Self {
        let program = build(&["build", "--example", "dls-zfs"], "example");
        let program = stripped(&program, lab.path());
        let rule = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/udev/90-dls-zvol.rules");
        let config = lab.path().join("guest.toml");
        let text = format!(
            "state_dir = \"/var/lib/dls\"\n[admin]\nlisten = \"0.0.0.0:8080\"\n\
             [boot]\nwait_seconds = 1\n[log]\nfilter = \"info,dls=debug\"\n\
             [storage]\nbackend = \"zfs\"\ndataset = \"{DATASET}\"\n"
        );
        fs::write(&config, text).expect("guest.toml");
        let files: [(&str, &Path); 3] = [
            ("dls", &program),
            ("etc/udev/rules.d/90-dls-zvol.rules", &rule),
            ("etc/dls/dls.toml", &config),
        ];
        let shelf = Shelf::new(lab.path(), pools, &files);
        let mut server = Self {
            lab,
            shelf,
            guest: None,
            token: lab.path().join("admin.token"),
        };
        let guest = server.shelf.power_on(Some(lab));
        guest.run(&format!(
            "set -e; zpool create -O mountpoint=none labpool /dev/vdd; zfs create {DATASET}; {}",
            rights(DATASET)
        ));
        server.guest = Some(guest);
        server.serve();
        server
    }

    /// The machine; fails the test if it is off.
    pub(crate) fn guest(&self) -> &Guest {
        self.guest.as_ref().expect("the guest is on")
    }

    /// Starts `dls serve` and waits until it is ready.
    pub(crate) fn serve(&mut self) {
        self.begin();
        let url = format!("http://{ADDRESS}:8080/readyz");
        wait_for("dls is ready", secs(300), || {
            let curl = output(&mut self.lab.on_server("curl", ["-fsS", "-m", "5", &url]));
            let told = String::from_utf8_lossy(&curl.stdout);
            if curl.status.success() && told.contains("\"degraded\":false") {
                return Some(());
            }
            std::thread::sleep(secs(1));
            let gone = !self.is_running();
            assert!(!gone, "dls has ended; its log ends:\n{}", self.log_tail());
            None
        });
        let token = self.guest().run("cat /var/lib/dls/admin.token");
        fs::write(&self.token, token).expect("the token");
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&self.token, private).expect("chmod");
    }

    /// Starts `dls serve` and does not wait.
    pub(crate) fn begin(&self) {
        self.guest().run(
            "setsid /run/payload/dls --config /etc/dls/dls.toml serve \
             >> /var/lib/dls/dls.log 2>&1 < /dev/null &",
        );
    }

    /// True while `dls serve` is there.
    pub(crate) fn is_running(&self) -> bool {
        let answer = self.guest().try_run("pgrep -x dls", secs(60));
        answer.is_some_and(|answer| answer.code == 0)
    }

    /// kill -9 of the server alone.
    pub(crate) fn kill(&self) {
        self.guest()
            .run("pkill -9 -x dls; while pgrep -x dls; do sleep 0.05; done");
    }

    /// Asks the server to stop, and waits until it has.
    pub(crate) fn stop(&self) {
        self.guest()
            .run("pkill -TERM -x dls; while pgrep -x dls; do sleep 0.05; done");
    }

    /// Pulls the machine's plug.
    pub(crate) fn cut_power(&mut self) {
        if let Some(mut guest) = self.guest.take() {
            guest.cut_power();
        }
    }

    /// Switches the machine on again and imports its pool. The server is not started.
    pub(crate) fn power_on(&mut self) {
        let guest = self.shelf.power_on(Some(self.lab));
        guest.run("zpool import -a && udevadm settle");
        self.guest = Some(guest);
    }

    /// `dls` with words of a command; runs on this machine.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let server = format!("http://{ADDRESS}:8080");
        let mut command = self.lab.on_server(PROGRAM, ["--server", &server]);
        command.arg("--token-file").arg(&self.token).args(words);
        command
    }

    /// Runs `dls` with words split at blanks; returns its output, fails the test if it fails.
    pub(crate) fn cli(&self, line: &str) -> String {
        finish(&mut self.command(&line.split_whitespace().collect::<Vec<_>>()))
    }

    /// The rows of a query, as JSON objects, by `dls psql` in the guest.
    pub(crate) fn rows(&self, query: &str) -> Vec<Value> {
        let sql = format!(
            "select '@@' || coalesce(jsonb_agg(to_jsonb(q)), '[]')::text as rows from ({query}) q"
        );
        let script = format!(
            "/run/payload/dls --config /etc/dls/dls.toml psql -c \"$(cat <<'END-OF-QUERY'\n\
             {sql}\nEND-OF-QUERY\n)\""
        );
        let text = self.guest().run(&script);
        let json = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("@@"))
            .unwrap_or_else(|| panic!("no rows in:\n{text}"));
        serde_json::from_str(json).unwrap_or_else(|e| panic!("{e} in {json}"))
    }

    /// Waits until a machine's newest boot has reached a stage.
    pub(crate) fn expect_stage(&self, mac: &str, stage: &str, limit: Duration) {
        let what = format!("stage `{stage}` of {mac} in boot_timeline");
        let query = format!(
            "select stage from boot_timeline where stage = '{stage}' and attempt_id = (select id \
             from boot_attempts where mac = '{mac}' order by started_at desc limit 1)"
        );
        wait_for(&what, limit, || {
            (!self.rows(&query).is_empty()).then_some(())
        });
    }

    /// The last of its log.
    pub(crate) fn log_tail(&self) -> String {
        let tail = self.guest().start("tail -n 40 /var/lib/dls/dls.log");
        tail.poll(secs(30))
            .map(|answer| answer.out)
            .unwrap_or_default()
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && self.guest.as_mut().is_some_and(Guest::is_on) {
            eprintln!("the log of dls ends:\n{}", self.log_tail());
        }
    }
}
