//! The one place that reads the time.
//!
//! [`Clock::now`] is wall-clock time that was right once and has since advanced by the
//! monotonic clock: a wall clock that is set, forwards or back, moves no lease and ends no
//! session. PostgreSQL's clock is the authority between servers: [`Clock::shift`] takes its
//! time, and only ever moves the whole scale at once. Where that clock was set ([`JUMP`]) what
//! it would end has to be moved first, by those who hold it: [`Clock::hold_back`].

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::model::Timestamp;

/// A shift of the authority's clock that is more than drift: leases are moved with it.
pub const JUMP: chrono::TimeDelta = chrono::TimeDelta::seconds(60);

/// A cheap handle; clones share one scale.
#[derive(Debug, Clone)]
pub struct Clock {
    shared: Arc<Scale>,
}

#[derive(Debug)]
struct Scale {
    started: Instant,
    /// Microseconds since the Unix epoch that `started` stands for.
    epoch_micros: AtomicI64,
    /// A shift that is not taken yet.
    held_back_micros: AtomicI64,
}

impl Clock {
    /// A clock that starts from the machine's wall clock.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the time"
    )]
    pub fn system() -> Self {
        Self {
            shared: Arc::new(Scale {
                started: Instant::now(),
                epoch_micros: AtomicI64::new(chrono::Utc::now().timestamp_micros()),
                held_back_micros: AtomicI64::new(0),
            }),
        }
    }

    /// Now, in UTC, on the shared scale.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the time"
    )]
    pub fn now(&self) -> Timestamp {
        self.at(Instant::now())
    }

    /// What it was, or will be, at that instant.
    fn at(&self, instant: Instant) -> Timestamp {
        let elapsed = instant.saturating_duration_since(self.shared.started);
        let elapsed = i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX);
        let micros = self
            .shared
            .epoch_micros
            .load(Ordering::Acquire)
            .saturating_add(elapsed);
        Timestamp::from_timestamp_micros(micros).unwrap_or(Timestamp::MAX_UTC)
    }

    /// By how much the authority is ahead of us, as far as the way of its answer can't explain it.
    /// `asked`: when it was asked; it said its time at some moment since. An answer that was long on
    /// its way (this process stood still, a link was cut) tells little, and moves nothing by itself:
    /// taken for the middle, it would put the clock wrong by half of that.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the time"
    )]
    pub fn differs(&self, authority: Timestamp, asked: Instant) -> chrono::TimeDelta {
        // One reading for both: a stop between two would be a difference.
        let read = Instant::now();
        let way = read.saturating_duration_since(asked);
        unexplained(
            authority - self.at(read),
            chrono::TimeDelta::from_std(way).unwrap_or_default(),
        )
    }

    /// Moves the scale; nothing is held back any more.
    pub fn shift(&self, by: chrono::TimeDelta) {
        let micros = by.num_microseconds().unwrap_or(0);
        self.shared.epoch_micros.fetch_add(micros, Ordering::AcqRel);
        self.shared.held_back_micros.store(0, Ordering::Release);
    }

    /// The scale is to be moved by that much, by whoever has moved what it would end.
    pub fn hold_back(&self, shift: chrono::TimeDelta) {
        let micros = shift.num_microseconds().unwrap_or(0);
        self.shared
            .held_back_micros
            .store(micros, Ordering::Release);
    }

    /// What is held back.
    #[must_use]
    pub fn held_back(&self) -> Option<chrono::TimeDelta> {
        let micros = self.shared.held_back_micros.load(Ordering::Acquire);
        (micros != 0).then(|| chrono::TimeDelta::microseconds(micros))
    }

    /// How long ago a moment of the machine's wall clock was, as the kernel tells of packets.
    /// Zero where it lies ahead.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the time"
    )]
    pub fn since(&self, wall: SystemTime) -> Duration {
        SystemTime::now().duration_since(wall).unwrap_or_default()
    }

    /// A monotonic instant, for measuring how long something took.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the time"
    )]
    pub fn instant(&self) -> Instant {
        Instant::now()
    }
}

/// The least shift that agrees with an answer which was `ahead` of us when it was read and had been
/// given at most `way` before.
fn unexplained(ahead: chrono::TimeDelta, way: chrono::TimeDelta) -> chrono::TimeDelta {
    chrono::TimeDelta::zero().clamp(ahead, ahead + way)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Wherever on its way an answer was late: what is learned of it never puts the clock further
        /// from the authority's, and leaves no more than the way took.
        #[test]
        fn learning_makes_no_clock_worse(
            off in -200_000..200_000_i64,
            there in 0..60_000_i64,
            back in 0..60_000_i64,
        ) {
            // The authority's time less ours, in ms; ours is 0 when we ask.
            let said = there + off;
            let ahead = said - (there + back);
            let shift = unexplained(
                chrono::TimeDelta::milliseconds(ahead),
                chrono::TimeDelta::milliseconds(there + back),
            );
            let left = off - shift.num_milliseconds();
            prop_assert!(left.abs() <= off.abs(), "off by {off}, then by {left}");
            prop_assert!(left.abs() <= there + back, "off by {left}");
        }
    }

    #[test]
    fn a_process_that_stood_still_keeps_its_time() {
        let clock = Clock::system();
        // It asked half a minute ago, and was answered then; or only now.
        let asked = clock.instant().checked_sub(Duration::from_secs(30));
        let asked = asked.expect("this machine is on for longer");
        let zero = chrono::TimeDelta::zero();
        let ago = chrono::TimeDelta::seconds(29);
        assert_eq!(clock.differs(clock.now() - ago, asked), zero);
        assert_eq!(clock.differs(clock.now(), asked), zero);
        // Beyond that it is a difference.
        let far = clock.differs(clock.now() - ago * 3, asked);
        assert!(far < -chrono::TimeDelta::seconds(56) && far > -chrono::TimeDelta::seconds(58));
    }

    #[test]
    fn learning_moves_the_scale_once() {
        let clock = Clock::system();
        let ahead = clock.now() + chrono::TimeDelta::hours(1);
        let shift = clock.differs(ahead, clock.instant());
        clock.shift(shift);
        assert!(shift > chrono::TimeDelta::minutes(59));
        assert!(clock.clone().now() >= ahead);
    }

    #[test]
    fn what_is_held_back_moves_nothing_until_it_is_taken() {
        let clock = Clock::system();
        let hour = chrono::TimeDelta::hours(1);
        let before = clock.now();
        clock.hold_back(-hour);
        assert!(clock.now() >= before);
        assert_eq!(clock.held_back(), Some(-hour));
        clock.shift(-hour);
        assert_eq!(clock.held_back(), None);
        assert!(clock.now() < before - chrono::TimeDelta::minutes(59));
    }
}
