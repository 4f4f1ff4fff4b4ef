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
        let elapsed = Instant::now().saturating_duration_since(self.shared.started);
        let elapsed = i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX);
        let micros = self
            .shared
            .epoch_micros
            .load(Ordering::Acquire)
            .saturating_add(elapsed);
        Timestamp::from_timestamp_micros(micros).unwrap_or(Timestamp::MAX_UTC)
    }

    /// By how much the authority is ahead of us. `round_trip` is how long the question took.
    #[must_use]
    pub fn differs(&self, authority: Timestamp, round_trip: Duration) -> chrono::TimeDelta {
        let half = chrono::TimeDelta::from_std(round_trip / 2).unwrap_or_default();
        (authority + half) - self.now()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_moves_the_scale_once() {
        let clock = Clock::system();
        let ahead = clock.now() + chrono::TimeDelta::hours(1);
        let shift = clock.differs(ahead, Duration::ZERO);
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
