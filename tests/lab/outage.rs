//! The server without its database: it hangs, and the server is even started while it does.
//! Known machines boot on, strangers get addresses, disks are made and written, and nothing of
//! it is missing when the database is back.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::crashes::{Dice, rounds};
use crate::exports::{BOTH, By, Stand, Writer, site};
use crate::net::{Lab, finish, output};
use crate::outages::{lease_of, stranger};
use crate::product::Dls;
use crate::{secs, wait_for};

/// A counter or gauge of `/metrics`; 0 where it is not there.
pub(crate) fn metric(lab: &Lab, name: &str) -> u64 {
    let url = "http://127.0.0.1:8080/metrics";
    let said = output(&mut lab.on_server("curl", ["-fsS", "-m", "5", url]));
    let text = String::from_utf8_lossy(&said.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.trim().parse().ok())
        .unwrap_or_default()
}

/// A file by its name, somewhere below a folder.
fn find(folder: &Path, name: &str) -> PathBuf {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            if entry.file_name() == name {
                return entry.path();
            }
            if entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    panic!("no {name}");
}

/// What the admin API says, with its status.
pub(crate) fn api(lab: &Lab, arguments: &[&str]) -> String {
    let token = lab.path().join("state/admin.token");
    let token = fs::read_to_string(token).expect("a token");
    let bearer = format!("Authorization: Bearer {}", token.trim());
    let (path, more) = arguments.split_last().expect("a path");
    let url = format!("http://127.0.0.1:8080{path}");
    let mut curl = lab.on_server("curl", ["-sS", "-m", "10", "-i", "-H"]);
    finish(curl.arg(bearer).args(more).arg(url))
}

/// Boots of known machines, each with its disk written and read back, and a stranger between.
struct Boots<'a> {
    lab: &'a Lab,
    host: String,
    dice: Dice,
    /// How often each machine has booted.
    known: BTreeMap<String, usize>,
    strangers: Vec<String>,
}

impl<'a> Boots<'a> {
    fn new(lab: &'a Lab, dls: &Dls<'_>, machines: u32) -> Self {
        let mac = |n: u32| format!("52:54:00:7a:{:02x}:{:02x}", n / 256, n % 256);
        let known = (0..machines).map(mac).collect::<Vec<_>>();
        for (n, mac) in known.iter().enumerate() {
            dls.cli(&format!(
                "client add --mac {mac} --hostname pc-{n} --image small --disk-mode ephemeral"
            ));
        }
        Self {
            lab,
            host: lab.host("cli", None),
            dice: Dice::new(),
            known: known.into_iter().map(|mac| (mac, 0)).collect(),
            strangers: Vec::new(),
        }
    }

    /// Each known machine boots once, over each protocol in turn.
    fn all(&mut self, what: &str) -> Vec<(Stand<'a>, By, PathBuf)> {
        // A machine that boots anew has left its disk.
        self.lab.end_all("qemu-nbd");
        let mut on = Vec::new();
        for (n, (mac, boots)) in self.known.iter_mut().enumerate() {
            let by = BOTH[n % BOTH.len()];
            let stand = Stand::boot(self.lab, &self.host, mac);
            *boots += 1;
            let ledger = self.lab.path().join(format!("ledger-{what}-{n}"));
            let uri = stand.uri(by);
            let writer = Writer::start(&stand, &uri, &ledger, 60);
            wait_for("its disk is written", secs(30), || {
                (writer.acknowledged() > 20).then_some(())
            });
            drop(writer);
            finish(&mut stand.disk(&["verify", &uri, &ledger.display().to_string()]));
            on.push((stand, by, ledger));
        }
        self.stranger();
        on
    }

    /// One that nobody knows gets an address, and nothing to boot.
    fn stranger(&mut self) {
        let n = self.dice.below(1 << 24);
        let (mac, mut asks) = stranger(self.lab, &self.host, n);
        lease_of(&mut asks);
        self.strangers.push(mac);
    }

    /// Everything that was seen is in the database: sessions, their stages, leases.
    fn all_written(&self, dls: &Dls<'_>) {
        wait_for("the database has all leases", secs(30), || {
            (metric(self.lab, "dls_dhcp_leases_owing ") == 0
                && metric(self.lab, "dls_boot_rows_queued ") == 0
                && metric(self.lab, "dls_database_away ") == 0)
                .then_some(())
        });
        for (mac, boots) in &self.known {
            let rows = wait_for("the sessions are written", secs(30), || {
                let rows = dls.rows(&format!(
                    "select a.id, s.id is not null as session, \
                     (select count(*) from boot_events e where e.session_id = a.id and e.stage = 'script') as scripts, \
                     (select count(*) from boot_events e where e.session_id = a.id and e.stage = 'disk_attached') as disks \
                     from boot_attempts a left join boot_sessions s on s.id = a.id \
                     where a.mac = '{mac}' order by a.started_at"
                ));
                (rows.len() == *boots).then_some(rows)
            });
            for row in rows {
                assert_eq!(row["session"], true, "{mac}: {row}");
                assert_ne!(row["scripts"], 0, "{mac}: {row}");
                assert_ne!(row["disks"], 0, "{mac}: {row}");
            }
        }
        for mac in self.known.keys().chain(&self.strangers) {
            let leases = dls.rows(&format!("select address from leases where mac = '{mac}'"));
            assert_eq!(leases.len(), 1, "{mac}");
        }
        assert_eq!(metric(self.lab, "dls_dhcp_leases_set_aside_total "), 0);
        assert_eq!(metric(self.lab, "dls_dhcp_leases_not_owed_total "), 0);
    }
}

#[test]
fn machines_boot_while_the_database_hangs_and_nothing_of_it_is_missing() {
    let lab = Lab::new("outage");
    let mut dls = site(&lab, "");
    let mut boots = Boots::new(&lab, &dls, 2);
    boots.all("before");
    for round in 0..rounds(1, 20) {
        dls.freeze_database();
        let on = boots.all(&format!("hanging-{round}"));
        wait_for("it is known that the database hangs", secs(10), || {
            (metric(&lab, "dls_database_away ") == 1).then_some(())
        });
        let told = api(&lab, &["/api/v1/clients"]);
        assert!(told.contains(" 200 OK") && told.contains("pc-1"), "{told}");
        assert!(told.to_lowercase().contains("warning: 110"), "{told}");
        let told = api(&lab, &["-X", "DELETE", "/api/v1/clients/pc-1"]);
        assert!(told.contains(" 503 "), "{told}");
        assert!(told.to_lowercase().contains("retry-after"), "{told}");

        // Killed, and started while the database can't be.
        dls.kill();
        lab.end_all("qemu-nbd");
        lab.end_all("postgres");
        let control = find(&lab.path().join("state"), "pg_control");
        let aside = control.with_extension("aside");
        fs::rename(&control, &aside).expect("pg_control");
        dls.start_without_database();
        assert_eq!(metric(&lab, "dls_database_away "), 1);
        for (stand, by, ledger) in &on {
            let uri = stand.uri(*by);
            finish(&mut stand.disk(&["verify", &uri, &ledger.display().to_string()]));
        }
        lab.end_all("qemu-nbd");
        boots.all(&format!("started-{round}"));
        fs::rename(&aside, &control).expect("pg_control");
        boots.all_written(&dls);
        boots.all(&format!("after-{round}"));
        boots.all_written(&dls);
    }
}
