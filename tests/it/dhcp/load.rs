//! Many machines at once: none is left without an answer, none shares an address.

use std::time::Duration;

use super::lan::Lan;
use super::postgres::Database;
use super::server::{Server, Settings, prepare, range};

/// perfdhcp's figures, by the words before the colon; the first of each.
fn figure(report: &str, section: &str, name: &str) -> f64 {
    let section = report
        .split(section)
        .nth(1)
        .unwrap_or_else(|| panic!("{report}"));
    let line = section
        .lines()
        .find_map(|line| line.trim().strip_prefix(name)?.trim().strip_prefix(':'));
    let line = line.unwrap_or_else(|| panic!("no {name} in\n{report}"));
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn perfdhcp_loses_nothing_and_sees_no_address_twice() {
    let lan = Lan::new();
    let srv = lan.host("srv", Some("10.77.0.1/16"));
    let cli = lan.host("cli", Some("10.77.0.2/16"));
    let database = Database::new();
    prepare(
        &database,
        &[range("10.77.0.0/16", &["10.77.1.0-10.77.200.255"])],
        &[],
    );
    let _server = Server::start(&srv, &database, &Settings::default());
    let clients = 2000;
    let arguments = format!("-4 -l lan0 -r 200 -R {clients} -n {clients} -u -p 60 -W 2000000");
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    let output = cli.run(Duration::from_secs(90), "perfdhcp", &arguments);
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    for section in ["DISCOVER-OFFER", "REQUEST-ACK"] {
        assert_eq!(figure(&report, section, "drops"), 0.0, "{report}");
    }
    assert_eq!(figure(&report, "REQUEST-ACK", "non unique addresses"), 0.0);
    assert_eq!(
        database.query("select count(*), count(distinct mac) from leases where state = 'active'"),
        format!("{clients}|{clients}")
    );
}
