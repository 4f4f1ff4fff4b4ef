//! The clock is set while the book is full of ends.

use chrono::TimeDelta;

use super::*;

#[test]
fn a_clock_that_is_set_changes_nothing() {
    let range = small("10.0.0.100", "10.0.0.109");
    let world = || {
        let mut world = World {
            book: Book::new(90, std::sync::Arc::new(|_| false)),
            ..World::default()
        };
        for n in 0..6 {
            world.take(&range, mac(n), 0, 100 + 100 * n);
        }
        let offered = world.pick(&range, mac(6), 5).unwrap();
        assert!(world.book.hold(range.id, mac(6), offered, at(250)));
        let used = world.pick(&range, mac(7), 5).unwrap();
        world.book.probed_used(used, at(350));
        let free = world.pick(&range, mac(7), 5).unwrap();
        world.book.probed_free(free, at(5));
        world
    };
    for by in [3_600, -3_600, 315_360_000, -315_360_000] {
        // Just before and after each end.
        for now in (0..=7).flat_map(|n| [99 + 50 * n, 100 + 50 * n]) {
            let (mut as_it_was, mut moved) = (world(), world());
            moved.book.shift(TimeDelta::seconds(by));
            for n in 0..10 {
                let mut a = as_it_was.look(&range, mac(n), None, now);
                let b = moved.look(&range, mac(n), None, now + by);
                if let Some(lease) = &mut a.lease {
                    lease.starts_at += TimeDelta::seconds(by);
                }
                assert_eq!(a, b, "machine {n} at {now}, moved by {by}");
            }
            assert_eq!(
                as_it_was.book.usage(&range, at(now)),
                moved.book.usage(&range, at(now + by))
            );
        }
    }
}
