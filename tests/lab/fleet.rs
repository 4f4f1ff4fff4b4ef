//! Servers that share one PostgreSQL, each in a namespace of its own, and the crowd of their clients.
//!
//! Each server has a link to the LAN and one to the database's network, which can be cut on the
//! database's side: whoever sends hears nothing, as behind a dead switch. The database answers over
//! TCP only; a test asks it by its unix socket.

use std::fs;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clocks;
use crate::exports::PYTHON;
use crate::history::{History, Row};
use crate::net::{Lab, finish, output};
use crate::product::PROGRAM;
use crate::{secs, wait_for};

/// Where the database is reached, and its standby.
const DATABASE: &str = "10.78.0.1";
const STANDBY: &str = "10.78.0.2";
/// The standby's name, and who may follow a primary.
const FOLLOWER: (&str, &str) = ("standby", "host replication all 10.78.0.0/24 trust");
/// Who may come in from there; and what takes its place while nobody may.
const DOOR: (&str, &str) = (
    "host all all 10.78.0.0/24 trust",
    "host all all 10.78.0.0/24 reject",
);
/// The crowd's own address: the clients' are routed to it, and nobody answers ARP for them.
const CROWD: &str = "10.77.0.9";
/// The clients' addresses.
const POOLS: &str = "10.77.64.0/18";

/// An ordinary PostgreSQL in a namespace of its own, on a network that the servers are linked to.
pub(crate) struct Database<'a> {
    lab: &'a Lab,
    programs: PathBuf,
    address: &'static str,
    namespace: String,
    home: PathBuf,
}

impl<'a> Database<'a> {
    pub(crate) fn new(lab: &'a Lab) -> Self {
        let namespace = lab.add_namespace("db");
        for line in [
            "link add br0 type bridge",
            "link set br0 type bridge stp_state 0 forward_delay 0",
            "link set br0 up",
            &format!("addr add {DATABASE}/24 dev br0"),
        ] {
            lab.ip(&namespace, line);
        }
        let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL's programs");
        let programs = versions.flatten().map(|v| v.path().join("bin"));
        let made = Self {
            lab,
            programs: programs.max().expect("a version of PostgreSQL"),
            address: DATABASE,
            namespace,
            home: lab.path().join("sql"),
        };
        made.make_home();
        made.program("initdb", "-A trust -U dls -N");
        let door = made.home.join("data/pg_hba.conf");
        let mut door = fs::File::options().append(true).open(door).expect("a file");
        writeln!(door, "{}\n{}", DOOR.0, FOLLOWER.1).expect("two lines");
        made.start();
        made.ask("postgres", "create database dls");
        made
    }

    /// A second one, whose word every commit of this one waits for from now on.
    pub(crate) fn standby(&self) -> Self {
        let namespace = self.lab.add_namespace(FOLLOWER.0);
        self.join_network(&namespace, FOLLOWER.0, STANDBY);
        let made = Self {
            lab: self.lab,
            programs: self.programs.clone(),
            address: STANDBY,
            namespace,
            home: self.lab.path().join("sql-standby"),
        };
        made.make_home();
        made.follow(self);
        made
    }

    /// Begins anew as the standby of another.
    pub(crate) fn follow(&self, primary: &Self) {
        let data = self.home.join("data");
        if data.exists() {
            fs::remove_dir_all(&data).expect("its old data");
            // Of a process that was killed; its number may not be free yet.
            fs::remove_file(self.home.join(".s.PGSQL.5432.lock")).expect("its old lock");
        }
        let (address, name) = (primary.address, FOLLOWER.0);
        let copy = format!("-R -c fast -d postgres://dls@{address}/?application_name={name}");
        self.program("pg_basebackup", &copy);
        self.start();
        let waits = format!("alter system set synchronous_standby_names = '{name}'");
        primary.ask("postgres", &waits);
        primary.program("pg_ctl", "reload");
        wait_for("the standby has all of it", secs(60), || {
            let state = primary.ask("postgres", "select sync_state from pg_stat_replication");
            (state.trim() == "sync").then_some(())
        });
    }

    /// The standby takes the primary's place; nobody follows it.
    pub(crate) fn promote(&self) {
        self.program("pg_ctl", "-w -t 60 promote");
    }

    fn make_home(&self) {
        fs::create_dir_all(&self.home).expect("a folder");
        finish(Command::new("chown").arg("postgres").arg(&self.home));
    }

    /// What a server's configuration says of it.
    pub(crate) fn url() -> String {
        format!("postgres://dls@{DATABASE}/dls")
    }

    /// What it says where there is a standby.
    pub(crate) fn urls() -> String {
        format!("postgres://dls@{DATABASE},{STANDBY}/dls")
    }

    /// Links a server to its network; the number is its own there.
    pub(crate) fn link(&self, server: &str, number: usize) {
        let address = format!("10.78.0.{}", 10 + number);
        self.join_network(server, &number.to_string(), &address);
    }

    /// Links a namespace to the network.
    fn join_network(&self, namespace: &str, name: &str, address: &str) {
        for line in [
            format!("link add p-{name} type veth peer name db0 netns {namespace}"),
            format!("link set p-{name} master br0 up"),
        ] {
            self.lab.ip(&self.namespace, &line);
        }
        for line in [
            format!("addr add {address}/24 dev db0"),
            "link set db0 up".to_owned(),
        ] {
            self.lab.ip(namespace, &line);
        }
    }

    /// Puts everybody out and lets nobody in who comes by the network.
    pub(crate) fn refuse(&self) {
        self.turn_door(DOOR.0, DOOR.1);
        let others =
            "select pg_terminate_backend(pid) from pg_stat_activity where client_addr is not null";
        self.ask("postgres", others);
    }

    /// Lets them in again.
    pub(crate) fn admit(&self) {
        self.turn_door(DOOR.1, DOOR.0);
    }

    fn turn_door(&self, from: &str, to: &str) {
        let door = self.home.join("data/pg_hba.conf");
        let text = fs::read_to_string(&door).expect("a file");
        assert!(text.contains(from), "{text}");
        fs::write(&door, text.replace(from, to)).expect("a file");
        self.program("pg_ctl", "reload");
    }

    /// Stops it where it is, or lets it go on.
    pub(crate) fn signal(&self, signal: Signal) {
        for pid in Lab::named("postgres", &self.namespace) {
            kill(pid, signal).expect("the database was running");
        }
    }

    /// kill -9 of all of it.
    pub(crate) fn kill(&self) {
        wait_for("the database is gone", secs(10), || {
            let left = Lab::named("postgres", &self.namespace);
            for pid in &left {
                // It may end with another of them.
                kill(*pid, Signal::SIGKILL).ok();
            }
            left.is_empty().then_some(())
        });
    }

    /// A database that could not write may have given up by itself.
    pub(crate) fn start_if_it_ended(&self) {
        if !self.run("pg_ctl", "status").status.success() {
            self.start();
        }
    }

    /// One of its programs, as its own user, on its cluster.
    fn run(&self, name: &str, words: &str) -> Output {
        let home = &self.home;
        let user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"];
        let mut command = self.lab.command_in(&self.namespace, "setpriv", user);
        command
            .args(clocks::words(self.lab))
            .arg(self.programs.join(name))
            .arg("-D")
            .arg(home.join("data"))
            .args(words.split_whitespace());
        if words.ends_with("start") {
            let options = format!(
                "-c listen_addresses={} -c max_connections=300 -k {}",
                self.address,
                home.display()
            );
            command.arg("-o").arg(options);
            command.arg("-l").arg(home.join("log"));
        }
        output(&mut command)
    }

    fn program(&self, name: &str, words: &str) {
        let ended = self.run(name, words);
        let log = || {
            let log = fs::read_to_string(self.home.join("log")).unwrap_or_default();
            crate::machine::tail(&log).to_owned()
        };
        assert!(
            ended.status.success(),
            "{name} {words}: {ended:?}, {}",
            log()
        );
    }

    pub(crate) fn start(&self) {
        self.program("pg_ctl", "-w -t 120 start");
    }

    pub(crate) fn stop(&self) {
        self.program("pg_ctl", "-w -t 60 -m immediate stop");
    }

    /// Asks by its unix socket, whatever became of the network. One column and row a line.
    pub(crate) fn ask(&self, database: &str, query: &str) -> String {
        finish(
            Command::new(self.programs.join("psql"))
                .args(["-U", "dls", "-d", database, "-Atqc", query, "-h"])
                .arg(&self.home),
        )
    }

    pub(crate) fn leases(&self) -> Vec<Row> {
        let rows = self.ask(
            "dls",
            "select host(address), mac, state, \
             floor(extract(epoch from dls_lease_end(starts_at, length_seconds)) * 1000)::bigint from leases",
        );
        let row = |line: &str| {
            let mut words = line.split('|');
            Some(Row {
                address: words.next()?.parse().ok()?,
                mac: words.next()?.to_owned(),
                state: words.next()?.to_owned(),
                end: words.next()?.parse().ok()?,
            })
        };
        let row = |line| row(line).unwrap_or_else(|| panic!("{line} is no lease"));
        rows.lines().map(row).collect()
    }
}

/// The binary of an older version that a run begins with, if any (`DLS_OLDER`).
fn older() -> Option<PathBuf> {
    std::env::var_os("DLS_OLDER")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// One `dls serve`.
pub(crate) struct Server<'a> {
    lab: &'a Lab,
    pub(crate) number: usize,
    namespace: String,
    pub(crate) address: Ipv4Addr,
    program: PathBuf,
    process: Option<Child>,
}

impl<'a> Server<'a> {
    pub(crate) fn new(lab: &'a Lab, database: &Database<'_>, number: usize) -> Self {
        let address = Ipv4Addr::new(10, 77, 0, 10 + u8::try_from(number).expect("few"));
        let namespace = lab.host(&format!("s{number}"), Some(&format!("{address}/16")));
        database.link(&namespace, number);
        // A server sees each machine with its address, and finds none of them in use before.
        lab.ip(&namespace, &format!("route add {POOLS} via {CROWD}"));
        let state = lab.path().join(format!("state-{number}"));
        let text = format!(
            "state_dir = \"{}\"\nserver_name = \"server-{number}\"\n\n\
             [database]\nurl = \"{}\"\n\n\
             [dhcp]\nunknown_share_percent = 100\nclaim_seconds = 60\n\n[log]\nfilter = \"info\"\n",
            state.display(),
            Database::url()
        );
        let made = Self {
            lab,
            number,
            namespace,
            address,
            program: older().unwrap_or_else(|| PROGRAM.into()),
            process: None,
        };
        fs::write(made.config(), text).expect("a configuration");
        made
    }

    fn config(&self) -> PathBuf {
        self.lab.path().join(format!("dls-{}.toml", self.number))
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.lab.path().join(format!("dls-{}.log", self.number))
    }

    pub(crate) fn command(&self, words: &str) -> Command {
        let program = self.program.as_os_str();
        let config = ["--config".into(), self.config()];
        let mut command = self.lab.command_in(&self.namespace, program, config);
        command.args(words.split_whitespace());
        command
    }

    /// From its next start on it is of this version.
    pub(crate) fn upgrade(&mut self) {
        self.program = PROGRAM.into();
    }

    pub(crate) fn start(&mut self) {
        let mut log = fs::File::options();
        let log = log.create(true).append(true).open(self.log());
        let mut command = self.command("serve");
        command.stdout(Stdio::null()).stderr(log.expect("a log"));
        self.process = Some(command.spawn().expect("dls serve"));
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("it ran");
            process.wait().expect("it has ended");
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            let pid = i32::try_from(process.id()).expect("a process id");
            kill(Pid::from_raw(pid), signal).expect("it runs");
        }
    }

    /// A server ends when a test kills it, and not before.
    pub(crate) fn must_run(&mut self) {
        if let Some(process) = &mut self.process
            && let Some(status) = process.try_wait().expect("a process")
        {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            let tail = crate::machine::tail(&log);
            panic!("server-{} ended with {status}: {tail}", self.number);
        }
    }

    fn get(&self, path: &str) -> String {
        let url = format!("http://127.0.0.1:8080{path}");
        let mut curl = self
            .lab
            .command_in(&self.namespace, "curl", ["-fsS", "-m", "2", &url]);
        String::from_utf8_lossy(&output(&mut curl).stdout).into_owned()
    }

    pub(crate) fn is_well(&self) -> bool {
        self.get("/readyz").contains("\"degraded\":false")
    }

    pub(crate) fn metric(&self, name: &str) -> Option<u64> {
        let metrics = self.get("/metrics");
        let values = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        metrics.lines().find_map(values)
    }

    /// It has its database, and the database has all that it has acknowledged.
    pub(crate) fn owes_nothing(&self) -> bool {
        self.metric("dls_dhcp_leases_owing") == Some(0)
            && self.metric("dls_database_away") == Some(0)
            && self.is_well()
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `dhcp_crowd.py` at work; it ends with the test if not before.
pub(crate) struct Crowd {
    process: Child,
    history: PathBuf,
}

impl Crowd {
    /// So many clients, who come on within so many seconds.
    pub(crate) fn start(lab: &Lab, (clients, ramp): (u32, u32), seed: u64, more: &[&str]) -> Self {
        let host = lab.host("crowd", Some(&format!("{CROWD}/16")));
        // It answers ARP for its own address alone, and passes nothing on.
        for quiet in ["arp_ignore=1", "forwarding=0"] {
            for which in ["all", "lan0"] {
                let setting = format!("net.ipv4.conf.{which}.{quiet}");
                finish(&mut lab.command_in(&host, "sysctl", ["-qw", &setting]));
            }
        }
        let script = format!("{}/tests/lab/dhcp_crowd.py", env!("CARGO_MANIFEST_DIR"));
        let history = lab.path().join("history.log");
        let words = [clients.to_string(), ramp.to_string()];
        let process = lab
            .command_in(&host, PYTHON, [script])
            .args(words)
            .arg(seed.to_string())
            .arg(&history)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        Self {
            process: process.expect("dhcp_crowd.py"),
            history,
        }
    }

    /// Lets it end; what it was told, and its own count.
    pub(crate) fn end(mut self) -> (History, String) {
        drop(self.process.stdin.take());
        let status = wait_for("the crowd has ended", secs(60), || {
            self.process.try_wait().expect("a process")
        });
        assert!(status.success(), "the crowd: {status}");
        let mut said = String::new();
        let mut line = self.process.stdout.take().expect("its output");
        line.read_to_string(&mut said).expect("its output");
        let text = fs::read_to_string(&self.history).expect("a history");
        let history = History::parse(&text).unwrap_or_else(|e| panic!("{e}"));
        (history, said.trim().to_owned())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
