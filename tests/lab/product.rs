//! The product under test: the real `dls` as a process in the server's namespace, with a
//! configuration of its own and the embedded database. Speaks to it as people do: by its
//! command line and by `dls psql`. Must not use the library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::net::{Lab, finish, output};
use crate::{secs, wait_for};

/// The program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_dls");

/// A running `dls serve`.
pub(crate) struct Dls<'a> {
    lab: &'a Lab,
    config: PathBuf,
    server: Child,
}

/// Kernel and initrd of the test system.
pub(crate) struct TestSystem {
    kernel: PathBuf,
    initrd: PathBuf,
}

impl TestSystem {
    /// Builds it, or finds it in the cache.
    pub(crate) fn build() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/testos/build");
        let dir = PathBuf::from(finish(&mut Command::new(script)).trim());
        Self {
            kernel: dir.join("kernel"),
            initrd: dir.join("initrd"),
        }
    }

    /// The kernel.
    pub(crate) fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// The initrd.
    pub(crate) fn initrd(&self) -> &Path {
        &self.initrd
    }
}

/// The Debian disk, and kernel and initrd of the same system.
pub(crate) struct DebianDisk {
    dir: PathBuf,
}

impl DebianDisk {
    /// Builds it, or finds it in the cache.
    pub(crate) fn build() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/disk/build");
        let dir = PathBuf::from(finish(&mut Command::new(script)).trim());
        Self { dir }
    }

    /// One of its files: `disk.img`, `kernel`, `initrd`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// SHA-256 of the disk, in hex.
    pub(crate) fn sha256(&self) -> String {
        self.text("sha256")
    }

    /// UUID of its root file system.
    pub(crate) fn root(&self) -> String {
        self.text("root-uuid")
    }

    fn text(&self, name: &str) -> String {
        let text = fs::read_to_string(self.dir.join(name)).expect("a file of the disk");
        text.trim().to_owned()
    }
}

/// A disk to be imported.
pub(crate) struct DiskImport<'a> {
    /// Name of the image.
    pub(crate) name: &'a str,
    /// The file.
    pub(crate) disk: &'a Path,
    /// `san`, `iscsi` or `nbd`.
    pub(crate) boot_method: &'a str,
    /// Kernel and initrd, where the loader starts them and not the disk.
    pub(crate) kernel: Option<(PathBuf, PathBuf)>,
    /// The kernel's command line.
    pub(crate) cmdline: String,
}

impl<'a> Dls<'a> {
    /// Writes a configuration (defaults, quick looks while waiting, and `[boot]` lines of
    /// the test), starts the server and waits until it is ready.
    pub(crate) fn start(lab: &'a Lab, boot: &str) -> Self {
        let config = lab.path().join("dls.toml");
        let state = lab.path().join("state");
        let text = format!(
            "state_dir = \"{}\"\n\n[boot]\nwait_seconds = 1\n{boot}\n[log]\nfilter = \"info,dls=debug\"\n",
            state.display()
        );
        fs::write(&config, text).expect("dls.toml");
        let server = serve(lab, &config);
        let mut dls = Self {
            lab,
            config,
            server,
        };
        dls.ready();
        dls
    }

    /// The usual site: ready, one range with a dynamic pool, the test system as image
    /// `testos`, and `pc-01` assigned to it.
    pub(crate) fn site(lab: &'a Lab, boot: &str, range: &str, cmdline: &str) -> Self {
        let dls = Self::start(lab, boot);
        dls.cli(&format!("range add --network 10.77.0.0/24 {range}"));
        dls.add_image("testos", cmdline);
        dls
    }

    /// Adds the test system as an image.
    pub(crate) fn add_image(&self, name: &str, cmdline: &str) {
        let system = TestSystem::build();
        let mut command = self.command(&["image", "add-kernel", name, "--kernel"]);
        command
            .arg(system.kernel())
            .arg("--initrd")
            .arg(system.initrd());
        let cmdline = format!("console=ttyS0 dls.beat=1 {cmdline}");
        command.args(["--cmdline", cmdline.trim_end()]);
        finish(&mut command);
    }

    /// `dls image import`.
    pub(crate) fn import(&self, image: &DiskImport<'_>) {
        let method = ["--boot-method", image.boot_method];
        let mut command = self.command(&["image", "import", image.name]);
        command.arg(image.disk).args(method);
        if let Some((kernel, initrd)) = &image.kernel {
            command.arg("--kernel").arg(kernel);
            command.arg("--initrd").arg(initrd);
        }
        if !image.cmdline.is_empty() {
            command.args(["--cmdline", &image.cmdline]);
        }
        finish(&mut command);
    }

    /// Fails the test unless an image's disk still is, byte for byte, the file that it was
    /// imported from.
    pub(crate) fn assert_unchanged(&self, image: &str, file: &Path) {
        let copy = self.lab.path().join("exported.raw");
        let mut export = self.command(&["image", "export", image]);
        finish(export.arg(&copy));
        let compare = output(Command::new("cmp").arg(&copy).arg(file));
        assert!(
            compare.status.success(),
            "the base has changed: {}",
            String::from_utf8_lossy(&compare.stdout)
        );
        fs::remove_file(copy).expect("rm");
    }

    /// Starts the server again while its database can't be, and waits until it serves.
    pub(crate) fn start_without_database(&mut self) {
        self.server = serve(self.lab, &self.config);
        self.answers("\"ready\":true");
    }

    /// Waits until it serves with its database.
    pub(crate) fn ready(&mut self) {
        self.answers("\"degraded\":false");
    }

    fn answers(&mut self, word: &str) {
        let url = "http://127.0.0.1:8080/readyz";
        wait_for("dls is ready", secs(60), || {
            if let Ok(Some(status)) = self.server.try_wait() {
                panic!(
                    "dls ended with {status}; its log ends:\n{}",
                    self.log_tail()
                );
            }
            let curl = output(&mut self.lab.on_server("curl", ["-fsS", "-m", "2", url]));
            let said = String::from_utf8_lossy(&curl.stdout);
            (curl.status.success() && said.contains(word)).then_some(())
        });
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.lab.on_server(PROGRAM, ["--config"]);
        command.arg(&self.config).args(args);
        command
    }

    /// Runs `dls` with words split at blanks; returns its output, fails the test if it fails.
    pub(crate) fn cli(&self, line: &str) -> String {
        finish(&mut self.command(&line.split_whitespace().collect::<Vec<_>>()))
    }

    /// `dls psql -c SQL` as people type it.
    pub(crate) fn psql(&self, sql: &str) -> String {
        finish(&mut self.command(&["psql", "-c", sql]))
    }

    /// Its database answers.
    pub(crate) fn has_database(&self) -> bool {
        output(&mut self.command(&["psql", "-c", "select 1"]))
            .status
            .success()
    }

    /// The rows of a query, as JSON objects.
    pub(crate) fn rows(&self, query: &str) -> Vec<Value> {
        let sql = format!(
            "select '@@' || coalesce(jsonb_agg(to_jsonb(q)), '[]')::text as rows from ({query}) q"
        );
        let text = self.psql(&sql);
        let json = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("@@"))
            .unwrap_or_else(|| panic!("no rows in:\n{text}"));
        serde_json::from_str(json).unwrap_or_else(|e| panic!("{e} in {json}"))
    }

    /// The timeline of a machine's newest boot.
    pub(crate) fn timeline(&self, mac: &str) -> Timeline {
        Timeline(self.rows(&format!(
            "select *, extract(epoch from at)::float8 as epoch from boot_timeline \
             where attempt_id = (select id from boot_attempts where mac = '{mac}' \
             order by started_at desc limit 1) order by at"
        )))
    }

    /// Waits until a machine's newest boot has reached a stage.
    pub(crate) fn expect_stage(&self, mac: &str, stage: &str, limit: Duration) -> Timeline {
        let what = format!("stage `{stage}` of {mac} in boot_timeline");
        wait_for(&what, limit, || {
            Some(self.timeline(mac)).filter(|t| t.at(stage).is_some())
        })
    }

    /// Waits until a machine's newest boot ended so; returns its session row, if it has one.
    pub(crate) fn expect_outcome(&self, mac: &str, outcome: &str, limit: Duration) -> Timeline {
        let what = format!("outcome `{outcome}` of {mac}");
        wait_for(&what, limit, || {
            let timeline = self.timeline(mac);
            (timeline.text("outcome") == outcome).then_some(timeline)
        })
    }

    /// Newest session of all: `(status, error_message)`.
    pub(crate) fn newest_session(&self) -> (String, String) {
        let rows = self.rows(
            "select status, coalesce(error_message, '') as error_message from boot_sessions \
             order by started_at desc limit 1",
        );
        let text = |key: &str| {
            let value = rows
                .first()
                .and_then(|r| r.get(key))
                .and_then(Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        (text("status"), text("error_message"))
    }

    /// Waits until the newest session has that status.
    pub(crate) fn expect_status(&self, status: &str, limit: Duration) -> String {
        let mut seen = String::new();
        wait_for(&format!("a session in `{status}`"), limit, || {
            let (now, message) = self.newest_session();
            seen = now;
            (seen == status).then_some(message)
        })
    }

    /// kill -9 of the server alone; its database goes on or not, as it happens.
    pub(crate) fn kill(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }

    /// True while the process that was started lives: nobody but a test starts another.
    pub(crate) fn is_running(&mut self) -> bool {
        self.server.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Asks the server to stop, and waits until it has.
    pub(crate) fn stop(&mut self) {
        let pid = i32::try_from(self.server.id()).expect("a process id");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("dls was running");
        wait_for("dls stops", secs(40), || {
            self.server.try_wait().ok().flatten()
        });
    }

    /// Starts the server again, with nothing done before, and waits until it is ready.
    pub(crate) fn start_again(&mut self) {
        self.server = serve(self.lab, &self.config);
        self.ready();
    }

    /// Process id of the embedded PostgreSQL's postmaster, while it has one.
    pub(crate) fn postmaster(&self) -> Option<i32> {
        let state = self.lab.path().join("state");
        let mut folders = vec![state];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).ok()?.flatten() {
                if entry.file_name() == "postmaster.pid" {
                    let text = fs::read_to_string(entry.path()).ok()?;
                    let pid = text.lines().next()?.trim().parse().ok()?;
                    return Path::new("/proc")
                        .join(format!("{pid}"))
                        .exists()
                        .then_some(pid);
                }
                // The cluster's own folders hold thousands of files and none of interest.
                if entry.path().is_dir() && entry.file_name() != "base" {
                    folders.push(entry.path());
                }
            }
        }
        None
    }

    /// kill -9 of the embedded database.
    pub(crate) fn kill_database(&self) {
        let pid = self.postmaster().expect("a running postmaster");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the postmaster was running");
    }

    /// Stops the database without ending it: whoever asks it waits.
    pub(crate) fn freeze_database(&self) {
        self.signal_database(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub(crate) fn thaw_database(&self) {
        self.signal_database(Signal::SIGCONT);
    }

    fn signal_database(&self, signal: Signal) {
        for pid in self.lab.all("postgres") {
            kill(pid, signal).expect("the database was running");
        }
    }

    /// Breaks all connections to a port of the server, as a router that was switched off does.
    pub(crate) fn break_connections(&self, lab: &Lab, port: u16) {
        let filter = format!("sport = :{port}");
        finish(&mut lab.on_server("ss", ["-K", "-t", &filter]));
    }

    /// True if its log holds the text.
    pub(crate) fn log_has(&self, text: &str) -> bool {
        fs::read_to_string(self.lab.path().join("dls.log")).is_ok_and(|log| log.contains(text))
    }

    /// The last of its log.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.lab.path().join("dls.log")).unwrap_or_default();
        crate::machine::tail(&log).to_owned()
    }
}

impl Drop for Dls<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the log of dls ends:\n{}", self.log_tail());
        }
        // The lab kills all that runs in its namespaces, the database too.
        self.kill();
    }
}

fn serve(lab: &Lab, config: &Path) -> Child {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(lab.path().join("dls.log"))
        .expect("dls.log");
    lab.on_server(PROGRAM, ["--config"])
        .arg(config)
        .arg("serve")
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("dls serve")
}

/// The rows of `boot_timeline` of one boot, in order of time.
#[derive(Debug, Clone)]
pub(crate) struct Timeline(Vec<Value>);

impl Timeline {
    /// When a stage was first reached, in seconds since 1970.
    pub(crate) fn at(&self, stage: &str) -> Option<f64> {
        self.row(stage)?.get("epoch")?.as_f64()
    }

    /// The first row of a stage.
    pub(crate) fn row(&self, stage: &str) -> Option<&Value> {
        self.rows(stage).next()
    }

    /// All rows of a stage.
    pub(crate) fn rows(&self, stage: &str) -> impl Iterator<Item = &Value> {
        let all = self.0.iter();
        all.filter(move |row| row.get("stage").and_then(Value::as_str) == Some(stage))
    }

    /// A column that is the same in every row, empty where null.
    pub(crate) fn text(&self, column: &str) -> String {
        let value = self.0.last().and_then(|row| row.get(column));
        value.and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// The stages, in order, repeats left out.
    pub(crate) fn stages(&self) -> Vec<&str> {
        let mut stages: Vec<&str> = Vec::new();
        for row in &self.0 {
            let stage = row.get("stage").and_then(Value::as_str).unwrap_or_default();
            if !stages.contains(&stage) {
                stages.push(stage);
            }
        }
        stages
    }

    /// Fails the test unless these stages are there, in this order.
    pub(crate) fn assert_order(&self, expected: &[&str]) {
        let stages = self.stages();
        let seen: Vec<&str> = stages
            .into_iter()
            .filter(|s| expected.contains(s))
            .collect();
        assert_eq!(seen, expected, "the whole timeline: {self:#?}");
    }
}
