//! `dls doctor storage`: where catalog and store do not agree, and what to do about it. Asks the
//! server that runs.

use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

use crate::cli::remote::Remote;
use crate::cli::{Failure, output};

/// Without options it only tells. What is found has a name, such as
/// `disk-without-row:image/5f0c..`; a part of it that means just one will do.
#[derive(Debug, Args)]
pub(in crate::cli) struct Storage {
    /// Repair a finding; nothing is lost by that
    #[arg(long, value_name = "FINDING")]
    repair: Vec<String>,
    /// Repair everything where there is nothing to lose and nothing to decide
    #[arg(long, conflicts_with = "repair")]
    all: bool,
    /// Destroy what a finding is about (a disk, files, a snapshot), for good
    #[arg(long, value_name = "FINDING")]
    remove: Vec<String>,
    /// The name of the image that a disk without a row is adopted as
    #[arg(long = "as", value_name = "NAME", requires = "repair")]
    name: Option<String>,
}

pub(in crate::cli) async fn run(remote: Remote, wanted: Storage) -> Result<(), Failure> {
    let looked = remote
        .fetch(Method::GET, "/api/v1/doctor/storage", None)
        .await?;
    if wanted.repair.is_empty() && wanted.remove.is_empty() && !wanted.all {
        if remote.wants_json() {
            return output::json(&looked);
        }
        return tell(findings(&looked));
    }
    let known: Vec<&str> = findings(&looked)
        .iter()
        .filter_map(|f| f["id"].as_str())
        .collect();
    let named = |names: &[String]| -> Result<Vec<String>, Failure> {
        names.iter().map(|name| meant(&known, name)).collect()
    };
    let body = json!({
        "repair": named(&wanted.repair)?,
        "remove": named(&wanted.remove)?,
        "all": wanted.all,
        "name": wanted.name,
    });
    let path = "/api/v1/doctor/storage/repair";
    let request = remote.request_slowly(Method::POST, path).json(&body);
    let answer = remote.send(request).await?.json::<Value>().await;
    let done = answer.map_err(|e| Failure::Failed(format!("the answer broke off: {e}")))?;
    let failed = done["failed"].as_array().map_or(&[][..], Vec::as_slice);
    if remote.wants_json() {
        output::json(&done)?;
    } else {
        for id in done["done"].as_array().into_iter().flatten() {
            output::line(&format!(
                "done: {}",
                output::printable(id.as_str().unwrap_or_default())
            ))?;
        }
        tell(findings(&done))?;
    }
    if failed.is_empty() {
        return Ok(());
    }
    let text = |value: &Value| output::printable(value.as_str().unwrap_or_default());
    let why: Vec<String> = failed
        .iter()
        .map(|f| format!("{}: {}", text(&f["id"]), text(&f["error"])))
        .collect();
    Err(Failure::Failed(why.join("; ")))
}

fn findings(answer: &Value) -> &[Value] {
    answer["findings"].as_array().map_or(&[], Vec::as_slice)
}

/// The one finding that a name, or a part of one, means.
fn meant(known: &[&str], name: &str) -> Result<String, Failure> {
    if known.contains(&name) {
        return Ok(name.to_owned());
    }
    let found: Vec<&&str> = known.iter().filter(|id| id.contains(name)).collect();
    match found.as_slice() {
        [one] => Ok((**one).to_owned()),
        [] => Err(Failure::NotFound(format!(
            "there is no finding `{}`",
            output::printable(name)
        ))),
        several => Err(Failure::Usage(format!(
            "`{}` means {} findings: name each one that you mean",
            output::printable(name),
            several.len()
        ))),
    }
}

fn tell(findings: &[Value]) -> Result<(), Failure> {
    if findings.is_empty() {
        return output::line("catalog and store agree");
    }
    for finding in findings {
        let text = |key: &str| output::printable(finding[key].as_str().unwrap_or_default());
        output::line(&text("id"))?;
        output::line(&format!("    {}", text("sentence")))?;
        for (option, key) in [("--repair", "repair"), ("--remove", "remove")] {
            if finding[key].is_string() {
                output::line(&format!("    {option} {}", text(key)))?;
            }
        }
        if finding["by_hand"].is_string() {
            output::line(&format!("    or {}", text("by_hand")))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_name_will_do_if_it_means_one() {
        let known = ["disk-without-row:image/1", "disk-without-row:image/2"];
        assert_eq!(meant(&known, "image/2").unwrap(), known[1]);
        assert_eq!(meant(&known, known[0]).unwrap(), known[0]);
        assert!(matches!(meant(&known, "image"), Err(Failure::Usage(_))));
        assert!(matches!(meant(&known, "x"), Err(Failure::NotFound(_))));
    }
}
