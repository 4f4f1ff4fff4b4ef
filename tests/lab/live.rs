//! A change holds on the next packet: by the API, and by `update` in psql. No restart, no
//! file rewritten, and nothing to wait for longer than 100 ms.

use std::process::Stdio;

use crate::net::Lab;
use crate::product::Dls;
use crate::{secs, wait_for};

const MAC: &str = "52:54:00:77:0d:01";

/// What the machine was offered: when it asked (seconds since 1970), address, boot file.
fn offers(text: &str) -> Vec<(f64, &str, &str)> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?.parse().ok()?, words.next()?, words.next()?))
        })
        .collect()
}

#[test]
fn a_change_holds_on_the_next_packet() {
    let lab = Lab::new("live");
    let dls = Dls::start(&lab, "");
    dls.cli("range add --network 10.77.0.0/24 --pool 10.77.0.50-10.77.0.59 --mode full");
    dls.cli(&format!("client add --mac {MAC} --hostname pc-01"));
    let host = lab.host("cli", None);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/discover.py");
    let log = lab.path().join("offers");
    let mut asking = lab.command_in(&host, "python3", [script, MAC, "25"]);
    asking.stdout(std::fs::File::create(&log).unwrap());
    lab.keep(asking.stderr(Stdio::inherit()));
    let seen = || std::fs::read_to_string(&log).unwrap_or_default();
    wait_for("a first offer", secs(10), || {
        offers(&seen()).last().map(|_| ())
    });

    // By psql: the time of the commit is the database's own, on the same clock.
    let changed = dls.psql(&format!(
        "update clients set ip_address = '10.77.0.201' where mac_address = '{MAC}' \
         returning '@@' || extract(epoch from clock_timestamp()) || '@@'"
    ));
    let by_psql: f64 = changed.split("@@").nth(1).unwrap().parse().unwrap();
    wait_for("the address set in psql", secs(10), || {
        offers(&seen())
            .iter()
            .any(|o| o.1 == "10.77.0.201")
            .then_some(())
    });

    // By the command line, that is by the API: it answers after the change holds.
    dls.cli("client set pc-01 --ip 10.77.0.202");
    let by_api = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    wait_for("the address set by the API", secs(10), || {
        offers(&seen())
            .iter()
            .any(|o| o.1 == "10.77.0.202" && o.0 > by_api)
            .then_some(())
    });

    let text = seen();
    let late = |after: f64, address: &str, until: f64| {
        offers(&text)
            .into_iter()
            .filter(|o| o.0 > after && o.0 < until && o.1 != address)
            .map(|o| o.0 - after)
            .fold(0.0_f64, f64::max)
    };
    // Between the first new answer and the API's change nothing else may have been said.
    let first_api = offers(&text)
        .into_iter()
        .find(|o| o.1 == "10.77.0.202")
        .unwrap()
        .0;
    let psql_took = late(by_psql, "10.77.0.201", first_api);
    let api_took = late(by_api, "10.77.0.202", f64::INFINITY);
    println!("psql: the old answer for {psql_took:.3} s more; API: for {api_took:.3} s more");
    assert!(
        psql_took < 0.1,
        "an old answer {psql_took:.3} s after the commit"
    );
    assert!(
        api_took < 0.1,
        "an old answer {api_took:.3} s after the API said done"
    );
}

#[test]
fn a_range_switched_off_in_psql_is_silent_and_comes_back() {
    let lab = Lab::new("live_off");
    let dls = Dls::start(&lab, "");
    dls.cli("range add --network 10.77.0.0/24 --pool 10.77.0.50-10.77.0.59 --mode full");
    let host = lab.host("cli", None);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/discover.py");
    let ask = || {
        let mut command = lab.command_in(&host, "python3", [script, MAC, "1.5"]);
        crate::net::finish(&mut command)
    };
    assert!(!offers(&ask()).is_empty());
    dls.psql("update network_ranges set mode = 'off'");
    assert_eq!(ask(), "", "a range that is off is not answered");
    dls.psql("update network_ranges set mode = 'full'");
    wait_for("it is served again", secs(10), || {
        (!offers(&ask()).is_empty()).then_some(())
    });
}
