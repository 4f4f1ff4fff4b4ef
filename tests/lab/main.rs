//! Ring 3, the lab: QEMU's real firmware boots Debian's kernel from the real `dls`, in
//! network namespaces that each test makes and takes away. Needs root, and the packages of
//! `tests/lab/packages.sh`; touches no interface of the machine.
//!
//! - [`net`]: the namespaces; [`product`]: `dls` as a process and its command line;
//!   [`machine`]: a diskless machine; [`capture`]: what went over the wire
//! - [`boots`]: every firmware path; [`failures`]: each induced failure by stage and cause;
//!   [`live`]: a change holds on the next packet; [`hostile`]: malformed packets at every
//!   port; [`crashes`]: kill -9 at any moment; [`powercut`]: an ACK outlives the power
//! - [`disks`]: Debian from its disk, by every path; [`exports`]: the disks' protocols under
//!   kill -9, restarts, a full store; [`crowds`]: what many of them cost; [`storms`]: `dls storm`
//! - [`histories`]: four servers on one database under every harm, judged by [`history`];
//!   [`fleet`]: these servers, their database and its clients
//! - [`outage`]: boots while the database hangs, and a start without it; [`outages`]: boots for as long
//!   as it is stopped, hung, full, or refuses; [`clocks`]: the clock is set
//! - [`zfs`]: the `zfs` backend on real OpenZFS
//!
//! A failed test leaves its logs, capture and console under `target/tmp/lab/NAME`.

#![expect(
    clippy::disallowed_methods,
    reason = "the lab waits for real machines, and compares with a capture's real time"
)]

mod boots;
mod canaries;
mod capture;
mod clocks;
mod crashes;
mod crowds;
mod disks;
mod exports;
mod failover;
mod failures;
mod fleet;
mod histories;
mod history;
mod hostile;
mod live;
mod machine;
mod net;
mod outage;
mod outages;
mod powercut;
mod product;
mod storms;
mod zfs;

use std::time::{Duration, Instant};

/// Asks `probe` every 100 ms until it has an answer; fails the test with what was missing
/// once `limit` is over.
fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(
            start.elapsed() < limit,
            "{what}: not within {} s",
            limit.as_secs()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
