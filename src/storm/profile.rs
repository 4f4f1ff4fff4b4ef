//! What a machine reads and writes on its disk, and how long it thinks in between: a small
//! profile of ours, or a file. Pure.
//!
//! A file has one operation a line: `r OFFSET LENGTH [THINK_MS]`, `w OFFSET LENGTH [THINK_MS]`
//! or `f [THINK_MS]` (flush); numbers in bytes, or with K, M or G; `#` begins a comment. The pause
//! comes before the operation. Offsets and lengths are multiples of 512. An operation beyond the
//! end of a disk is moved into it, so that one profile fits disks of any size.

use std::time::Duration;

use super::plan::Dice;

/// Least unit of an operation.
pub const SECTOR: u64 = 512;
/// Longest operation, in bytes.
pub const LONGEST: u32 = 1 << 20;
/// Most operations of a profile.
pub const MOST_OPERATIONS: usize = 1_000_000;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Reads so many bytes at that place.
    Read(u64, u32),
    /// Writes them.
    Write(u64, u32),
    /// Flushes.
    Flush,
}

/// One operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// The pause before it.
    pub think: Duration,
    /// What it does.
    pub deed: Deed,
}

/// A line of a profile that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct BadLine {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

/// Operations in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile(Vec<Operation>);

impl Profile {
    /// Reads a file's text.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, BadLine> {
        let mut operations = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let bad = |what: String| BadLine { line: at + 1, what };
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.is_empty() {
                continue;
            }
            if operations.len() == MOST_OPERATIONS {
                return Err(bad(format!("more than {MOST_OPERATIONS} operations")));
            }
            operations.push(operation(&words).map_err(bad)?);
        }
        Ok(Self(operations))
    }

    /// The profile without a file: what a Linux system does between its kernel and its login
    /// prompt, in shape. It is made, not recorded: partition tables and superblocks, then files in
    /// runs of read-ahead (to 128 KiB) at scattered places, metadata of 4 KiB in between, and in
    /// the second half the journal's and the logs' small writes. `bytes` are read in all, from the
    /// first `span` bytes of the disk or all of it. Every machine does the same.
    #[must_use]
    pub fn linux(bytes: u64, span: u64) -> Self {
        const MIB: u64 = 1 << 20;
        let span = span.max(MIB);
        let mut dice = Dice::new(0x6c69_6e75_7820_626f);
        let mut operations = Vec::new();
        let mut left = bytes;
        let read = |left: &mut u64, at: u64, length: u64, think: u64, all: &mut Vec<Operation>| {
            let length = length.min(*left) / SECTOR * SECTOR;
            if length > 0 {
                *left -= length;
                all.push(Operation {
                    think: Duration::from_millis(think),
                    deed: Deed::Read(at, u32::try_from(length).unwrap_or(LONGEST)),
                });
            }
        };
        for (at, length) in [(0, 4096), (4096, 16384), (MIB, 4096), (MIB + 1024, 1024)] {
            read(&mut left, at, length, 1, &mut operations);
        }
        let mut runs = 0_u64;
        while left >= SECTOR {
            runs += 1;
            let mut at = dice.below(span / 4096) * 4096;
            // An inode or a directory, then the file.
            read(&mut left, at, 4096, dice.below(4), &mut operations);
            let pieces = 1 + dice.below(8);
            let mut length = 16 << 10;
            for _ in 0..pieces {
                at += length;
                read(&mut left, at, length, 0, &mut operations);
                length = (length * 2).min(128 << 10);
            }
            // A journal's commit after a while, once the root can be written to.
            if left < bytes / 2 && runs.is_multiple_of(4) {
                let at = span / 2 + dice.below(span / 8 / 4096) * 4096;
                for (at, length) in [(at, 12 << 10), (span / 3 / 4096 * 4096, 4096)] {
                    operations.push(Operation {
                        think: Duration::ZERO,
                        deed: Deed::Write(at, length),
                    });
                }
                operations.push(Operation {
                    think: Duration::ZERO,
                    deed: Deed::Flush,
                });
            }
        }
        Self(operations)
    }

    /// The operations on a disk of so many bytes: what lies beyond its end is moved into it.
    #[must_use]
    pub fn fitted(&self, size: u64) -> Vec<Operation> {
        let place = |at: u64, length: u32| {
            let length = u64::from(length).min(size / SECTOR * SECTOR);
            let last = size.saturating_sub(length) / SECTOR;
            let at = if at / SECTOR <= last {
                at
            } else {
                at / SECTOR % (last + 1) * SECTOR
            };
            (at, u32::try_from(length).unwrap_or(LONGEST))
        };
        let fit = |operation: &Operation| {
            let deed = match operation.deed {
                Deed::Read(at, length) => {
                    let (at, length) = place(at, length);
                    Deed::Read(at, length)
                }
                Deed::Write(at, length) => {
                    let (at, length) = place(at, length);
                    Deed::Write(at, length)
                }
                Deed::Flush => Deed::Flush,
            };
            Operation { deed, ..*operation }
        };
        let does = |operation: &Operation| match operation.deed {
            Deed::Read(_, length) | Deed::Write(_, length) => length > 0,
            Deed::Flush => true,
        };
        self.0.iter().map(fit).filter(does).collect()
    }

    /// Bytes that are read, and written.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        self.0
            .iter()
            .fold((0, 0), |(read, written), operation| match operation.deed {
                Deed::Read(_, length) => (read + u64::from(length), written),
                Deed::Write(_, length) => (read, written + u64::from(length)),
                Deed::Flush => (read, written),
            })
    }
}

fn operation(words: &[&str]) -> Result<Operation, String> {
    let think = |word: Option<&&str>| -> Result<Duration, String> {
        let Some(word) = word else {
            return Ok(Duration::ZERO);
        };
        let millis = word.parse::<u32>();
        let millis = millis.map_err(|_| format!("`{word}` is no number of milliseconds"))?;
        Ok(Duration::from_millis(u64::from(millis)))
    };
    let (think, deed) = match words {
        ["f", rest @ ..] if rest.len() <= 1 => (think(rest.first())?, Deed::Flush),
        [kind @ ("r" | "w"), at, length, rest @ ..] if rest.len() <= 1 => {
            let (at, length) = (bytes(at)?, bytes(length)?);
            if at % SECTOR != 0 || length % SECTOR != 0 {
                return Err(format!("offset and length are multiples of {SECTOR}"));
            }
            let length = u32::try_from(length).ok();
            let length = length.filter(|l| (1..=LONGEST).contains(l));
            let length = length.ok_or(format!("a length is from {SECTOR} to {LONGEST} bytes"))?;
            let deed = match *kind {
                "r" => Deed::Read(at, length),
                _ => Deed::Write(at, length),
            };
            (think(rest.first())?, deed)
        }
        _ => {
            return Err(
                "expected `r OFFSET LENGTH [THINK_MS]`, `w OFFSET LENGTH [THINK_MS]` or `f [THINK_MS]`"
                    .into(),
            );
        }
    };
    Ok(Operation { think, deed })
}

/// A number of bytes, as `16M`.
///
/// # Errors
/// A sentence.
pub fn bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is no number of bytes (as 4096, 64K, 16M, 1G)");
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 1 << 10),
        Some((at, 'm' | 'M')) => (&text[..at], 1 << 20),
        Some((at, 'g' | 'G')) => (&text[..at], 1 << 30),
        _ => (text, 1_u64),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(unit).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_is_read_and_its_faults_have_lines() {
        let text = "# a boot\n r 0 4K\nw 1M 512 20 # log\n\nf 5\n";
        let profile = Profile::parse(text).unwrap();
        let millis = Duration::from_millis;
        assert_eq!(
            profile.0,
            [
                Operation {
                    think: millis(0),
                    deed: Deed::Read(0, 4096)
                },
                Operation {
                    think: millis(20),
                    deed: Deed::Write(1 << 20, 512)
                },
                Operation {
                    think: millis(5),
                    deed: Deed::Flush
                },
            ]
        );
        assert_eq!(profile.bytes(), (4096, 512));
        for bad in [
            "x",
            "r 0",
            "r 1 512",
            "r 0 0",
            "r 0 2M",
            "w 0 512 x",
            "f 1 2",
            "r -1 512",
            "r 0 512 1 1",
        ] {
            let text = format!("r 0 512\n{bad}");
            assert_eq!(Profile::parse(&text).unwrap_err().line, 2, "{bad}");
        }
    }

    #[test]
    fn ours_reads_what_it_is_told_and_writes_a_little() {
        for bytes in [0, 512, 1 << 20, 16 << 20, 100 << 20] {
            let profile = Profile::linux(bytes, 512 << 20);
            let (read, written) = profile.bytes();
            assert_eq!(read, bytes);
            assert!(
                written <= bytes / 8 && (bytes < 8 << 20 || written > 0),
                "{written}"
            );
        }
        assert_eq!(
            Profile::linux(1 << 20, 1 << 30),
            Profile::linux(1 << 20, 1 << 30)
        );
    }

    proptest! {
        #[test]
        fn all_of_it_lies_on_the_disk(size in 0..64_u64, bytes in 0..64_u64) {
            let size = size * 100_000 / 512 * 512;
            for operation in Profile::linux(bytes << 16, 1 << 30).fitted(size) {
                if let Deed::Read(at, length) | Deed::Write(at, length) = operation.deed {
                    prop_assert!(at % SECTOR == 0 && length > 0);
                    prop_assert!(at + u64::from(length) <= size);
                }
            }
        }

        #[test]
        fn noise_never_panics(text in "[rwf0-9KMG #\n-]{0,60}") {
            let _ = Profile::parse(&text);
        }
    }
}
