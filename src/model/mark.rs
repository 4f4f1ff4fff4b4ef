//! Which state of which catalog something was begun in.

use uuid::Uuid;

/// What a server writes down beside each intention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    /// The catalog's own id.
    pub catalog: Uuid,
    /// How often this server had begun something by then.
    pub number: i64,
}

impl Mark {
    /// True if a catalog with mark `now` knows all that this one knew: it is the same, and was not
    /// put back to an older state.
    #[must_use]
    pub fn is_within(self, now: Self) -> bool {
        self.catalog == now.catalog && self.number <= now.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_state_and_another_catalog_are_told() {
        let mark = |catalog, number| Mark {
            catalog: Uuid::from_u128(catalog),
            number,
        };
        assert!(mark(1, 5).is_within(mark(1, 5)));
        assert!(mark(1, 5).is_within(mark(1, 9)));
        assert!(!mark(1, 5).is_within(mark(1, 4)), "put back");
        assert!(!mark(1, 5).is_within(mark(2, 9)), "another one");
    }
}
