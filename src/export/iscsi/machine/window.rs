//! The order of commands on the one connection of a session (RFC 7143 section 4.2.2.1).

use std::num::Wrapping;

/// Commands that an initiator may have under way at once.
pub const DEPTH: u32 = 128;

/// What becomes of a command that is not for immediate delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is the next.
    Next,
    /// Outside of the window, or seen already: ignored without an answer.
    Ignored,
    /// Within the window, but one before it is missing. On one connection commands come in
    /// order, and at error recovery level 0 none is sent again: it will never come.
    Gap,
}

/// ExpCmdSN and MaxCmdSN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    expected: Wrapping<u32>,
    most: Wrapping<u32>,
}

impl Window {
    /// The window of a session whose first command has that number.
    #[must_use]
    pub const fn new(first: u32) -> Self {
        Self {
            expected: Wrapping(first),
            most: Wrapping(first.wrapping_add(DEPTH - 1)),
        }
    }

    /// Judges a command's number, and moves on if it is the next.
    pub fn take(&mut self, number: u32) -> Turn {
        let ahead = (Wrapping(number) - self.expected).0;
        // Serial number arithmetic (RFC 1982): an empty window has MaxCmdSN = ExpCmdSN - 1.
        let room = (self.most - self.expected).0.wrapping_add(1);
        if ahead >= room {
            return Turn::Ignored;
        }
        if ahead > 0 {
            return Turn::Gap;
        }
        self.expected += 1;
        Turn::Next
    }

    /// A command that was taken has ended: there is room for one more.
    pub fn ended(&mut self) {
        self.most += 1;
    }

    /// ExpCmdSN and MaxCmdSN, as they go into an answer.
    #[must_use]
    pub const fn numbers(&self) -> (u32, u32) {
        (self.expected.0, self.most.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_window_has_two_ends() {
        let mut window = Window::new(u32::MAX);
        assert_eq!(window.take(u32::MAX - 1), Turn::Ignored);
        assert_eq!(window.take(u32::MAX), Turn::Next);
        assert_eq!(window.take(1), Turn::Gap);
        assert_eq!(window.take(0), Turn::Next);
        assert_eq!(window.take(0), Turn::Ignored);
        for _ in 2..DEPTH {
            let (next, _) = window.numbers();
            assert_eq!(window.take(next), Turn::Next);
        }
        let (next, most) = window.numbers();
        assert_eq!(most, next.wrapping_sub(1), "full");
        assert_eq!(window.take(next), Turn::Ignored);
        window.ended();
        assert_eq!(window.take(next), Turn::Next);
    }

    proptest! {
        #[test]
        fn never_more_than_its_depth(first: u32, steps: Vec<(bool, u32)>) {
            let mut window = Window::new(first);
            let mut open = 0_u32;
            for (end, number) in steps {
                if end && open > 0 {
                    window.ended();
                    open -= 1;
                } else {
                    let next = window.numbers().0.wrapping_add(number % 3);
                    if window.take(next) == Turn::Next {
                        open += 1;
                    }
                }
                prop_assert!(open <= DEPTH);
            }
        }
    }
}
