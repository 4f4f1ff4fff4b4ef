//! How many free addresses are probed ahead, so that first offers are instant: a rule of
//! numbers, one for each range on a link.

/// Addresses in one go while nobody is in need.
const AT_EASE: usize = 32;
/// The usual stock: a large pool is not asked for whole.
const USUAL: usize = 512;
/// The largest, and the most questions in one go.
const MOST: usize = 4_096;

/// The stock of a range.
#[derive(Debug)]
pub struct Stock {
    size: usize,
    /// It has been full: what is missing since was taken by machines.
    has_been_full: bool,
}

impl Default for Stock {
    fn default() -> Self {
        Self {
            size: USUAL,
            has_been_full: false,
        }
    }
}

impl Stock {
    /// How many addresses to ask for now, when so many are left. Doubles while the stock is
    /// taken faster than it is filled, and goes back when it is not.
    pub fn wanted(&mut self, left: usize) -> usize {
        let missing = self.size.saturating_sub(left);
        if self.has_been_full && missing > self.size / 2 {
            self.size = (self.size * 2).min(MOST);
            return self.size.saturating_sub(left);
        }
        if missing == 0 {
            self.has_been_full = true;
        }
        if missing < self.size / 8 {
            self.size = (self.size - self.size / 8).max(USUAL);
        }
        if self.is_sought() {
            missing
        } else {
            missing.min(AT_EASE)
        }
    }

    /// What came of it: where fewer are found than wanted, the pool has no more.
    pub fn asked(&mut self, wanted: usize, found: usize) {
        if found < wanted {
            self.has_been_full = true;
            self.size = USUAL;
        }
    }

    /// Machines take more than the usual stock.
    #[must_use]
    pub fn is_sought(&self) -> bool {
        self.size > USUAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_filled_slowly_and_grows_with_need() {
        let mut stock = Stock::default();
        let mut left = 0;
        let mut rounds = 0;
        while left < USUAL {
            let wanted = stock.wanted(left);
            assert_eq!(wanted, AT_EASE);
            left += wanted;
            rounds += 1;
        }
        assert_eq!((rounds, stock.wanted(left)), (USUAL / AT_EASE, 0));
        // A few are taken: a few are asked for.
        assert_eq!(stock.wanted(USUAL - 10), 10);
        assert!(!stock.is_sought());
        // A room is switched on.
        assert_eq!(stock.wanted(100), 2 * USUAL - 100);
        assert_eq!(stock.wanted(0), 4 * USUAL);
        for _ in 0..5 {
            assert!(stock.wanted(0) <= MOST);
        }
        assert!(stock.is_sought());
        // And it is quiet again.
        for _ in 0..100 {
            stock.wanted(MOST);
        }
        assert!(!stock.is_sought());
    }

    #[test]
    fn a_small_pool_is_never_sought() {
        let mut stock = Stock::default();
        for _ in 0..10 {
            let wanted = stock.wanted(3);
            stock.asked(wanted, 0);
            assert!(!stock.is_sought());
        }
    }
}
