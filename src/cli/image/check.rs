//! `dls image check`: what would stop a disk from booting diskless, and the way out.

use reqwest::Method;
use serde_json::Value;

use super::super::remote::{Remote, segment, typed};
use super::super::{Failure, output};
use crate::model::{CheckVerdict, ImageCheck};

/// Looks into an image's disk, or tells what was found last. Fails if something stops it.
pub(super) async fn run(remote: &Remote, image: &str, last: bool) -> Result<(), Failure> {
    let path = format!("/api/v1/images/{}/check", segment(image));
    let value: Value = if last {
        remote.fetch(Method::GET, &path, None).await?
    } else {
        let response = remote.send(remote.request_slowly(Method::POST, &path));
        let read = response.await?.json().await;
        read.map_err(|e| remote.unreachable(&e))?
    };
    let found: ImageCheck = typed(value.clone())?;
    if remote.wants_json() {
        output::json(&value)?;
    } else {
        tell(image, &found)?;
    }
    match found.verdict {
        CheckVerdict::Bootable | CheckVerdict::Unsure => Ok(()),
        CheckVerdict::NotBootable => Err(Failure::Failed(format!(
            "{} would not boot",
            output::printable(image)
        ))),
    }
}

fn tell(image: &str, found: &ImageCheck) -> Result<(), Failure> {
    let known = |fact: Option<bool>| match fact {
        Some(true) => "yes",
        Some(false) => "no",
        None => "not known",
    };
    output::card(&[
        ("image", image.to_owned()),
        ("verdict", in_words(found.verdict).to_owned()),
        ("boot method", found.boot_method.to_string()),
        ("operating system", output::maybe(found.os_type.as_ref())),
        ("BIOS loader", known(Some(found.bios)).to_owned()),
        ("UEFI loader", known(Some(found.uefi)).to_owned()),
        ("iSCSI", known(found.iscsi).to_owned()),
        ("NBD", known(found.nbd).to_owned()),
        ("checked", output::time(found.checked_at)),
    ])?;
    output::line("")?;
    for one in &found.findings {
        let (severity, sentence) = (one.severity, output::printable(&one.sentence));
        output::line(&format!("{severity:5}  {sentence}"))?;
        if let Some(way_out) = &one.way_out {
            output::line(&format!("       -> {}", output::printable(way_out)))?;
        }
    }
    Ok(())
}

/// A verdict for people.
pub(super) fn in_words(verdict: CheckVerdict) -> &'static str {
    match verdict {
        CheckVerdict::Bootable => "it boots, as far as can be seen",
        CheckVerdict::Unsure => "nothing was found that stops it, but not all could be seen",
        CheckVerdict::NotBootable => "it would not boot",
    }
}

/// What was found last, in a few words; empty if nobody has looked.
pub(super) async fn last(remote: &Remote, id: &str) -> Result<String, Failure> {
    let path = format!("/api/v1/images/{id}/check");
    match remote.fetch(Method::GET, &path, None).await {
        Ok(value) => Ok(in_words(typed::<ImageCheck>(value)?.verdict).to_owned()),
        Err(Failure::NotFound(_)) => Ok(String::new()),
        Err(e) => Err(e),
    }
}
