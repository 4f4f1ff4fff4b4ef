//! Malformed packets at every port: no panic, no restart, and an honest machine beside them
//! is served. `DLS_TORTURE=1` sends two hundred times as many; `DLS_SEED` repeats a run.

use crate::net::{Lab, finish};
use crate::product::Dls;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn malformed_packets_are_a_counted_silence() {
    let seed = setting("DLS_SEED").unwrap_or(1);
    let count = if std::env::var_os("DLS_TORTURE").is_some() {
        200_000
    } else {
        1_000
    };
    let lab = Lab::new("hostile");
    // At debug: what is logged of a hostile packet must not hurt either.
    let mut dls = Dls::start(&lab, "");
    dls.cli("range add --network 10.77.0.0/24 --pool 10.77.0.50-10.77.0.99 --mode full");
    dls.cli("client add --mac 52:54:00:77:0e:01 --hostname pc-01 --ip 10.77.0.210");
    // A new range is bound at once, but after the command line has its answer.
    crate::wait_for("DHCP listens", crate::secs(10), || {
        dls.log_has("DHCP bound").then_some(())
    });
    let host = lab.host("bad", Some("10.77.0.9/24"));
    let script = |name: &str| format!("{}/tests/lab/{name}", env!("CARGO_MANIFEST_DIR"));
    let hostile = script("hostile.py");
    let (count, seed_text) = (count.to_string(), seed.to_string());
    finish(&mut lab.command_in(
        &host,
        "python3",
        [hostile.as_str(), "10.77.0.1", &count, &seed_text],
    ));

    let good = lab.host("good", None);
    let discover = script("discover.py");
    let offers = finish(&mut lab.command_in(
        &good,
        "python3",
        [discover.as_str(), "52:54:00:77:0e:01", "2"],
    ));
    assert!(offers.contains(" 10.77.0.210 "), "seed {seed}: {offers}");
    let curl = |url: &str| {
        finish(&mut lab.command_in(&host, "curl", ["-fsS", "-m", "10", "-o", "got", url]))
    };
    curl("http://10.77.0.1:8069/loader/undionly.kpxe");
    curl("tftp://10.77.0.1/undionly.kpxe");
    assert!(dls.is_running(), "seed {seed}: {}", dls.log_tail());
    let log = std::fs::read_to_string(lab.path().join("dls.log")).unwrap();
    assert!(!log.contains("panicked"), "seed {seed}: {}", dls.log_tail());
    let metrics = finish(&mut lab.on_server("curl", ["-fsS", "http://127.0.0.1:8080/metrics"]));
    let counted = |needle: &str| {
        metrics
            .lines()
            .any(|l| l.contains(needle) && !l.ends_with(" 0"))
    };
    for name in [
        "dls_dhcp_silences_total{reason=\"malformed_",
        "dls_tftp_",
        "dls_http_",
    ] {
        assert!(
            counted(name),
            "seed {seed}: nothing counted as {name} in:\n{metrics}"
        );
    }
}
