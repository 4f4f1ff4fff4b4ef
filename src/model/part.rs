//! The `Range` header and entity tags (RFC 9110 sections 13 and 14). Pure.

use std::ops::Range;

/// What part of a file a request gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of it (200).
    Whole,
    /// These bytes (206).
    Some(Range<u64>),
    /// It asked for what the file does not have (416).
    Beyond,
}

/// Reads a `Range` value. What can't be understood is ignored, as section 14.2 has it; so is
/// a list of ranges, which may be answered whole and is how servers were brought down.
pub fn part(value: Option<&str>, size: u64) -> Part {
    let Some(spec) = value.and_then(|v| v.trim().strip_prefix("bytes=")) else {
        return Part::Whole;
    };
    let Some((first, last)) = spec.trim().split_once('-') else {
        return Part::Whole;
    };
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        return match number(last) {
            None => Part::Whole,
            Some(0) => Part::Beyond,
            Some(_) if size == 0 => Part::Beyond,
            Some(count) => Part::Some(size.saturating_sub(count)..size),
        };
    }
    let Some(first) = number(first) else {
        return Part::Whole;
    };
    let last = if last.is_empty() {
        u64::MAX
    } else {
        match number(last) {
            Some(last) if last >= first => last,
            _ => return Part::Whole,
        }
    };
    if first >= size {
        return Part::Beyond;
    }
    Part::Some(first..last.saturating_add(1).min(size))
}

/// Digits only; more than fit is more than any file has.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// True if `If-Range` allows a part: only a strong tag that is ours does (section 13.1.5);
/// a date never, since we send none.
pub fn if_range_holds(value: Option<&str>, etag: &str) -> bool {
    value.is_none_or(|v| unquoted(v.trim()) == Some(etag))
}

/// True if `If-None-Match` names our tag (weak comparison, section 13.1.2).
pub fn none_match_hits(value: Option<&str>, etag: &str) -> bool {
    let Some(value) = value else { return false };
    value.trim() == "*"
        || value
            .split(',')
            .map(str::trim)
            .any(|tag| unquoted(tag.strip_prefix("W/").unwrap_or(tag)) == Some(etag))
}

fn unquoted(tag: &str) -> Option<&str> {
    tag.strip_prefix('"')?.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn first_last_open_and_suffix() {
        for (value, want) in [
            ("bytes=0-0", Part::Some(0..1)),
            ("bytes=0-9", Part::Some(0..10)),
            ("bytes=0-99", Part::Some(0..10)),
            ("bytes=3-", Part::Some(3..10)),
            ("bytes=-3", Part::Some(7..10)),
            ("bytes=-30", Part::Some(0..10)),
            ("bytes=9-18446744073709551615", Part::Some(9..10)),
            ("bytes=9-99999999999999999999999", Part::Some(9..10)),
            (" bytes= 2-3 ", Part::Some(2..4)),
            ("bytes=10-", Part::Beyond),
            ("bytes=10-20", Part::Beyond),
            ("bytes=99999999999999999999999-", Part::Beyond),
            ("bytes=-0", Part::Beyond),
        ] {
            assert_eq!(part(Some(value), 10), want, "{value}");
        }
        assert_eq!(part(None, 10), Part::Whole);
        assert_eq!(part(Some("bytes=0-"), 0), Part::Beyond);
        assert_eq!(part(Some("bytes=-5"), 0), Part::Beyond);
        let four_gib = 1 << 32;
        assert_eq!(
            part(Some("bytes=4294967295-4294967296"), four_gib + 1),
            Part::Some(four_gib - 1..four_gib + 1)
        );
    }

    #[test]
    fn what_makes_no_sense_and_lists_are_ignored() {
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-2",
            "bytes=+1-2",
            "bytes=1--2",
            "bytes=1",
            "octets=0-1",
            "bytes=0-1,3-4",
            "bytes=0-0,-1",
            "bytes=0x0-1",
            "bytes=1-2-3",
        ] {
            assert_eq!(part(Some(value), 10), Part::Whole, "{value}");
        }
        let killer = format!("bytes={}", "0-,".repeat(1000));
        assert_eq!(part(Some(&killer), 10), Part::Whole);
    }

    #[test]
    fn tags() {
        assert!(if_range_holds(None, "abc"));
        assert!(if_range_holds(Some("\"abc\""), "abc"));
        for stale in [
            "\"abd\"",
            "W/\"abc\"",
            "abc",
            "Sat, 29 Oct 1994 19:43:31 GMT",
            "",
        ] {
            assert!(!if_range_holds(Some(stale), "abc"), "{stale}");
        }
        for hit in ["*", "\"abc\"", "W/\"abc\"", "\"x\", \"abc\""] {
            assert!(none_match_hits(Some(hit), "abc"), "{hit}");
        }
        for miss in ["", "\"x\"", "abc", "\"abc"] {
            assert!(!none_match_hits(Some(miss), "abc"), "{miss}");
        }
        assert!(!none_match_hits(None, "abc"));
    }

    proptest! {
        #[test]
        fn a_part_lies_inside_the_file(value in "(bytes=)?[0-9a-f,=\\- ]{0,30}", size in 0_u64..1000) {
            if let Part::Some(range) = part(Some(&value), size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
