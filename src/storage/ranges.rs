//! Ranges of bytes that are gathered and told in order: sorted, apart from one another, within
//! a disk. Pure; it knows no disks.

use std::ops::Range;

/// Sorts, cuts off what lies at or behind `end`, and joins what touches.
pub(crate) fn tidy(mut ranges: Vec<Range<u64>>, end: u64) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|r| r.start);
    let mut tidy: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        push(&mut tidy, range.start..range.end.min(end));
    }
    tidy
}

/// Adds a range that begins at or behind the start of the last one.
pub(crate) fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    if range.is_empty() {
        return;
    }
    match ranges.last_mut() {
        Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
        _ => ranges.push(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_sorted_joined_and_cut() {
        let given = vec![9..12, 0..2, 2..4, 5..6, 5..8, 20..30, 7..7, 10..11, 40..50];
        assert_eq!(tidy(given, 25), [0..4, 5..8, 9..12, 20..25]);
        assert_eq!(tidy(vec![], 25), []);
    }
}
