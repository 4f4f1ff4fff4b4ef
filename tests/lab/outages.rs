//! The database is of no use for as long as ten minutes, in each of the ways in which databases are,
//! and the server is even started then, while machines are switched on one after the other: they
//! boot from disks that are made for them, strangers get addresses, and afterwards every boot and
//! every lease is written.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::crashes::rounds;
use crate::exports::PYTHON;
use crate::fleet::Database;
use crate::net::{Lab, SmallDisk, finish};
use crate::outage::{api, metric};
use crate::product::Dls;
use crate::storms::{MIB, Site};
use crate::{secs, wait_for};

/// Between two strangers.
const STRANGERS: Duration = secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Nobody is at its port.
    Stopped,
    /// It takes connections and says nothing.
    Hung,
    /// It has no space left: it refuses to write, or ends by itself.
    Full,
    /// It puts everybody out and lets nobody in.
    Refusing,
}

/// The database and what is wrong with it.
struct Sick<'a> {
    database: Database<'a>,
    disk: SmallDisk,
    trouble: Trouble,
}

impl Sick<'_> {
    fn begin(&self) {
        match self.trouble {
            Trouble::Stopped => self.database.stop(),
            Trouble::Hung => self.database.signal(Signal::SIGSTOP),
            Trouble::Full => self.disk.fill(0),
            Trouble::Refusing => self.database.refuse(),
        }
    }

    fn end(&self) {
        match self.trouble {
            Trouble::Stopped => self.database.start(),
            Trouble::Hung => self.database.signal(Signal::SIGCONT),
            Trouble::Full => {
                self.disk.empty();
                self.database.start_if_it_ended();
            }
            Trouble::Refusing => self.database.admit(),
        }
    }
}

/// The n-th machine that nobody knows, and what it asks for an address with.
pub(crate) fn stranger(lab: &Lab, host: &str, n: u64) -> (String, Command) {
    let script = format!("{}/tests/lab/boot.py", env!("CARGO_MANIFEST_DIR"));
    let [.., a, b, c] = n.to_be_bytes();
    let mac = format!("52:54:01:{a:02x}:{b:02x}:{c:02x}");
    let asks = lab.command_in(host, PYTHON, [&script, &mac, "lease"]);
    (mac, asks)
}

/// The address that it is given.
pub(crate) fn lease_of(stranger: &mut Command) -> String {
    let said = finish(stranger);
    let address = said.trim().strip_prefix("ACK ").expect("an address");
    address.to_owned()
}

/// Machines that nobody knows: MAC, and the address that each was given.
/// `meanwhile` is called often, with the time since the beginning.
fn strangers(
    lab: &Lab,
    host: &str,
    (storm, limit): (&mut Child, Duration),
    mut meanwhile: impl FnMut(Duration),
) -> Vec<(String, String)> {
    let begin = Instant::now();
    let (mut given, mut next) = (Vec::new(), begin);
    wait_for("the storm has ended", limit, || {
        meanwhile(begin.elapsed());
        if next <= Instant::now() {
            let (mac, mut asks) = stranger(lab, host, given.len() as u64);
            given.push((mac, lease_of(&mut asks)));
            next = Instant::now() + STRANGERS;
        }
        storm.try_wait().ok().flatten()
    });
    given
}

fn machines_boot_on(trouble: Trouble, name: &'static str) {
    let (machines, ramp) = (rounds(8, 500), rounds(9, 600));
    let lab = Lab::new(name);
    let disk = SmallDisk::mount(&lab, "sql", 256);
    let sick = Sick {
        database: Database::new(&lab),
        disk,
        trouble,
    };
    sick.database.link(&lab.namespace("srv"), 0);
    let config = format!("[database]\nurl = \"{}\"\n", Database::url());
    let dls = Dls::start(&lab, &config);
    let mut site = Site::of(&lab, dls, machines, &["iscsi", "nbd"], (4 * MIB, 16 * MIB));
    let host = lab.host("cli", None);
    has_addresses(&lab);

    sick.begin();
    // It is killed, and started when it can't have its database.
    site.dls.kill();
    site.dls.start_without_database();
    let (booted, given) = all_boot(&lab, &site, &host, (machines, ramp), |_| {});
    // The state is plain to see, what is known is told, and what can't be done is said so.
    let ready = api(&lab, &["/readyz"]);
    assert!(ready.contains("\"degraded\":true"), "{ready}");
    let read = api(&lab, &["/api/v1/clients/storm-0"]);
    assert!(read.contains(" 200 OK"), "{read}");
    // A full database has room for some rows yet, where others have been.
    let most = if trouble == Trouble::Full { 400 } else { 1 };
    let refused = (0..most)
        .map(|n| new_client(&lab, n))
        .find(|said| !said.contains(" 201 "));
    let refused = refused.expect("a client that there was no room for");
    assert!(refused.contains(" 503 "), "{refused}");
    assert!(refused.to_lowercase().contains("retry-after"), "{refused}");

    let back = Instant::now();
    sick.end();
    let here = Instant::now();
    has_it_all(&lab);
    eprintln!(
        "{trouble:?}: {booted} of {machines} booted in {ramp} s, {} strangers; the database was back after {:.1} s, and had it all {:.1} s later",
        given.len(),
        (here - back).as_secs_f64(),
        here.elapsed().as_secs_f64()
    );
    all_is_written(&site, booted, &given);
}

/// Waits until it has addresses that it could give away on its own.
pub(crate) fn has_addresses(lab: &Lab) {
    wait_for("it has addresses of its own", secs(30), || {
        (metric(lab, "dls_dhcp_claimed_addresses ") > 0).then_some(())
    });
}

/// So many machines are switched on within so many seconds, strangers between them, and 99 % of
/// them boot: how many, and the strangers, as [`strangers`] has them.
pub(crate) fn all_boot(
    lab: &Lab,
    site: &Site<'_>,
    host: &str,
    (machines, ramp): (u32, u32),
    meanwhile: impl FnMut(Duration),
) -> (u64, Vec<(String, String)>) {
    let line = format!(
        "--machines {machines} --ramp {ramp} --timeout 60 --addresses --bye --disk-read 2M"
    );
    let mut storm = site.begin(&line);
    let until = (&mut storm.process, secs(u64::from(ramp) + 120));
    let given = strangers(lab, host, until, meanwhile);
    let told = storm.report();
    let booted = told["booted"].as_u64().expect("a number");
    assert!(
        booted * 100 >= u64::from(machines) * 99,
        "{booted} of {machines}: {:#}",
        told["failures"]
    );
    (booted, given)
}

/// Waits until the database has what was owed to it; nothing of that was lost or did not fit.
pub(crate) fn has_it_all(lab: &Lab) {
    wait_for("the database has it all", secs(60), || {
        (metric(lab, "dls_dhcp_leases_owing ") == 0
            && metric(lab, "dls_boot_rows_queued ") == 0
            && api(lab, &["/readyz"]).contains("\"degraded\":false"))
        .then_some(())
    });
    for lost in [
        "dls_dhcp_leases_set_aside_total ",
        "dls_dhcp_leases_not_owed_total ",
        "dls_boot_rows_dropped_total ",
        "dls_boot_rows_set_aside_total ",
    ] {
        assert_eq!(metric(lab, lost), 0, "{lost}");
    }
}

/// What the admin API says to one more client.
fn new_client(lab: &Lab, n: u32) -> String {
    let body = format!(
        "{{\"mac_address\":\"52:54:02:00:{:02x}:{:02x}\",\"hostname\":\"new-{n}\"}}",
        n / 256,
        n % 256
    );
    let json = "Content-Type: application/json";
    api(lab, &["-H", json, "-d", &body, "/api/v1/clients"])
}

/// Each boot has its session with all of its stages, each machine the address that it was given.
pub(crate) fn all_is_written(site: &Site<'_>, booted: u64, given: &[(String, String)]) {
    let rows = site.dls.rows(
        "select a.mac, count(*)::int as boots, \
         bool_and(s.status = 'shutdown') as whole, \
         bool_and((select count(distinct stage) from boot_events e where e.session_id = a.id and e.stage in \
             ('loader_sent', 'script', 'kernel_sent', 'initrd_sent', 'disk_attached', 'up', 'bye')) = 7) as stages \
         from boot_attempts a join boot_sessions s on s.id = a.id group by a.mac",
    );
    let whole = rows.iter().filter(|row| {
        row["boots"] == 1 && row["whole"] == Value::Bool(true) && row["stages"] == Value::Bool(true)
    });
    assert_eq!(whole.count() as u64, booted, "{rows:#?}");
    let rows = site
        .dls
        .rows("select mac, host(address) as address from leases where state = 'active'");
    for (mac, address) in given {
        let held: Vec<_> = rows.iter().filter(|row| row["mac"] == **mac).collect();
        assert_eq!(held.len(), 1, "{mac}: {held:?}");
        assert_eq!(held[0]["address"], **address, "{mac}");
    }
    let known = rows.len() - given.len();
    assert!(
        known as u64 >= booted,
        "{known} leases of {booted} machines"
    );
}

#[test]
fn machines_boot_while_the_database_is_stopped() {
    machines_boot_on(Trouble::Stopped, "outage_stopped");
}

#[test]
fn machines_boot_while_the_database_is_hung() {
    machines_boot_on(Trouble::Hung, "outage_hung");
}

#[test]
fn machines_boot_while_the_database_is_full() {
    machines_boot_on(Trouble::Full, "outage_full");
}

#[test]
fn machines_boot_while_the_database_refuses_everybody() {
    machines_boot_on(Trouble::Refusing, "outage_refusing");
}
