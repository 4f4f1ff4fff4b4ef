//! A set of small numbers that finds the next member from any point without walking the gaps.

/// Two levels of 64-bit words: one bit a number, and one bit a word that is not empty.
#[derive(Debug, Default)]
pub(super) struct Bits {
    words: Vec<u64>,
    summary: Vec<u64>,
    count: usize,
}

impl Bits {
    /// The set of all numbers below `size`, which is also its room.
    pub(super) fn full(size: usize) -> Self {
        let words = ones(size);
        Self {
            summary: ones(words.len()),
            words,
            count: size,
        }
    }

    /// The empty set, with room for the numbers below `size`.
    pub(super) fn empty(size: usize) -> Self {
        let words = vec![0; size.div_ceil(64)];
        Self {
            summary: vec![0; words.len().div_ceil(64)],
            words,
            count: 0,
        }
    }

    /// How many numbers are in.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Puts a number in; numbers beyond the size are left out.
    pub(super) fn insert(&mut self, number: usize) {
        let at = number / 64;
        let Some(word) = self.words.get_mut(at) else {
            return;
        };
        let bit = 1 << (number % 64);
        if *word & bit == 0 {
            *word |= bit;
            self.count += 1;
            if let Some(summary) = self.summary.get_mut(at / 64) {
                *summary |= 1 << (at % 64);
            }
        }
    }

    /// Takes a number out.
    pub(super) fn remove(&mut self, number: usize) {
        let at = number / 64;
        let Some(word) = self.words.get_mut(at) else {
            return;
        };
        let bit = 1 << (number % 64);
        if *word & bit != 0 {
            *word &= !bit;
            self.count -= 1;
            if *word == 0
                && let Some(summary) = self.summary.get_mut(at / 64)
            {
                *summary &= !(1 << (at % 64));
            }
        }
    }

    /// The first member at or after `number`; beyond the last one it goes on from zero.
    pub(super) fn next(&self, number: usize) -> Option<usize> {
        self.at_or_after(number).or_else(|| self.at_or_after(0))
    }

    /// The members as runs, first and last of each, in order.
    pub(super) fn runs(&self) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (at, word) in self.words.iter().enumerate() {
            let mut bits = *word;
            while bits != 0 {
                let start = bits.trailing_zeros() as usize;
                let length = (bits >> start).trailing_ones() as usize;
                let (first, last) = (at * 64 + start, at * 64 + start + length - 1);
                match runs.last_mut() {
                    Some(run) if run.1 + 1 == first => run.1 = last,
                    _ => runs.push((first, last)),
                }
                if start + length >= 64 {
                    break;
                }
                bits &= u64::MAX << (start + length);
            }
        }
        runs
    }

    fn at_or_after(&self, number: usize) -> Option<usize> {
        let at = number / 64;
        let here = self.words.get(at)? & (u64::MAX << (number % 64));
        if here != 0 {
            return Some(at * 64 + here.trailing_zeros() as usize);
        }
        let word = next_bit(&self.summary, at + 1)?;
        let bits = self.words.get(word)?;
        (*bits != 0).then(|| word * 64 + bits.trailing_zeros() as usize)
    }
}

/// Words whose first `count` bits are set.
fn ones(count: usize) -> Vec<u64> {
    let mut words = vec![u64::MAX; count / 64];
    if !count.is_multiple_of(64) {
        words.push((1 << (count % 64)) - 1);
    }
    words
}

fn next_bit(words: &[u64], number: usize) -> Option<usize> {
    let first = number / 64;
    let mut mask = u64::MAX << (number % 64);
    for (i, word) in words.iter().enumerate().skip(first) {
        let here = word & mask;
        if here != 0 {
            return Some(i * 64 + here.trailing_zeros() as usize);
        }
        mask = u64::MAX;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(
            size in 1_usize..9_000,
            thin in 1_usize..9_000,
            steps in proptest::collection::vec((any::<bool>(), 0_usize..10_000), 0..300),
            from in proptest::collection::vec(0_usize..9_000, 1..20),
        ) {
            let (mut bits, mut model) = (Bits::full(size), (0..size).collect::<BTreeSet<_>>());
            // Thin it out first, or no search ever crosses a gap.
            for number in (0..size).filter(|n| n % thin != 0) {
                bits.remove(number);
                model.remove(&number);
            }
            for (put, number) in steps {
                let number = number % size;
                if put {
                    bits.insert(number);
                    model.insert(number);
                } else {
                    bits.remove(number);
                    model.remove(&number);
                }
            }
            prop_assert_eq!(bits.len(), model.len());
            for number in from.into_iter().map(|n| n % size) {
                let want = model.range(number..).next().or_else(|| model.first());
                prop_assert_eq!(bits.next(number), want.copied());
            }
        }
    }

    #[test]
    fn an_empty_set_has_no_next() {
        assert_eq!(Bits::full(0).next(0), None);
        let mut one = Bits::full(1);
        one.remove(0);
        assert_eq!((one.next(0), one.len()), (None, 0));
    }
}
