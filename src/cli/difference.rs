//! What two disks differ in, printed.

use super::{Failure, output};
use crate::model::difference::{Difference, FileChange};

/// Ranges and files that are printed; JSON has more.
const SHOWN: usize = 20;

fn bytes(count: u64) -> String {
    output::bytes(i64::try_from(count).unwrap_or(i64::MAX))
}

/// Prints it: the sums, a line for each partition, the files or the ranges.
pub(super) fn show(told: &Difference) -> Result<(), Failure> {
    output::line(&format!(
        "{} of {} differ, in {} ranges ({} were compared)",
        bytes(told.changed_bytes),
        bytes(told.size_bytes),
        told.range_count,
        bytes(told.compared_bytes)
    ))?;
    if told.changed_bytes == 0 {
        return Ok(());
    }
    let mut rows = Vec::new();
    for part in &told.partitions {
        let files = part.files.as_ref().map(|f| {
            let more = if f.complete {
                ""
            } else {
                ", not all looked at"
            };
            format!(
                "{} added, {} removed, {} changed{more}",
                f.added, f.removed, f.changed
            )
        });
        rows.push(vec![
            match part.number {
                0 => "disk".to_owned(),
                number => number.to_string(),
            },
            part.holds.clone(),
            bytes(part.size_bytes),
            bytes(part.changed_bytes),
            files.unwrap_or_default(),
        ]);
    }
    if told.outside_bytes > 0 {
        rows.push(vec![
            "outside".to_owned(),
            String::new(),
            String::new(),
            bytes(told.outside_bytes),
            String::new(),
        ]);
    }
    output::table(&["PART", "HOLDS", "SIZE", "CHANGED", "FILES"], rows)?;
    let mut looked_into = false;
    for part in &told.partitions {
        let Some(files) = &part.files else { continue };
        looked_into = true;
        for file in files.list.iter().take(SHOWN) {
            let sign = match file.change {
                FileChange::Added => '+',
                FileChange::Removed => '-',
                FileChange::Changed => '~',
            };
            output::line(&format!("{sign} {}", output::printable(&file.path)))?;
        }
        let all = files.added + files.removed + files.changed;
        let more = all.saturating_sub(SHOWN as u64);
        if more > 0 {
            output::line(&format!("  and {more} more: --json has them"))?;
        }
    }
    if looked_into {
        return Ok(());
    }
    output::line("which files these are is told of ext4 only; the ranges:")?;
    for range in told.ranges.iter().take(SHOWN) {
        output::line(&format!("{} at {}", bytes(range.length), range.offset))?;
    }
    let more = told.range_count.saturating_sub(SHOWN as u64);
    if more > 0 {
        output::line(&format!("and {more} more: --json has them"))?;
    }
    Ok(())
}
