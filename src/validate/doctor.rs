//! The fields of what a doctor is asked to do.

use super::{Reader, Violations, rules};

/// Most findings in one request.
const MOST: usize = 10_000;

/// What is to be done about findings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Treatment {
    /// Names of findings to repair: nothing is lost by that.
    pub repair: Vec<String>,
    /// Repair all where there is nothing to decide.
    pub all: bool,
    /// Names of findings whose subject is to be destroyed.
    pub remove: Vec<String>,
    /// The name of the image that a disk is adopted as.
    pub name: Option<String>,
}

/// Reads what is asked for.
///
/// # Errors
/// Every violation.
pub fn doctor(mut reader: Reader) -> Result<Treatment, Violations> {
    let mut wanted = Treatment::default();
    reader.list("repair", &mut wanted.repair, MOST, rules::finding);
    reader.value("all", &mut wanted.all, rules::flag);
    reader.list("remove", &mut wanted.remove, MOST, rules::finding);
    reader.optional("name", &mut wanted.name, rules::image_name);
    if wanted.name.is_some() && wanted.repair.len() != 1 {
        reader.refuse("name", "is for one finding in `repair` only");
    }
    reader.finish()?;
    Ok(wanted)
}
