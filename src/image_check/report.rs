//! What a check has found so far, and what it comes to.

use crate::model::{
    BootMethod, CheckFinding, CheckVerdict, Found, ImageCheck, Severity, Timestamp,
};

/// Findings that are kept.
const MOST: usize = 100;
/// Characters of others in a finding.
const MOST_DETAIL: usize = 200;

/// Gathers findings.
#[derive(Debug)]
pub(super) struct Report {
    method: BootMethod,
    pub(super) bios: bool,
    pub(super) uefi: bool,
    pub(super) iscsi: Option<bool>,
    pub(super) nbd: Option<bool>,
    pub(super) os_type: Option<String>,
    findings: Vec<Found>,
}

impl Report {
    pub(super) fn new(method: BootMethod) -> Self {
        Self {
            method,
            bios: false,
            uefi: false,
            iscsi: None,
            nbd: None,
            os_type: None,
            findings: Vec::new(),
        }
    }

    pub(super) fn method(&self) -> BootMethod {
        self.method
    }

    pub(super) fn has(&self, finding: CheckFinding) -> bool {
        self.findings.iter().any(|found| found.finding == finding)
    }

    pub(super) fn say(&mut self, finding: CheckFinding) {
        self.add(finding, finding.severity(self.method), None);
    }

    /// With what it is about; text of the image is cut and cleaned.
    pub(super) fn say_of(&mut self, finding: CheckFinding, detail: impl AsRef<str>) {
        let severity = finding.severity(self.method);
        self.add(finding, severity, Some(detail.as_ref()));
    }

    /// As [`Report::say_of`], graver or less grave than usual.
    pub(super) fn say_as(&mut self, finding: CheckFinding, severity: Severity, detail: &str) {
        self.add(finding, severity, Some(detail));
    }

    fn add(&mut self, finding: CheckFinding, severity: Severity, detail: Option<&str>) {
        let mut sentence = finding.sentence().to_owned();
        if let Some(detail) = detail {
            let clean = |c: char| if c.is_control() { ' ' } else { c };
            let detail: String = detail.chars().take(MOST_DETAIL).map(clean).collect();
            sentence = format!("{sentence} ({})", detail.trim());
        }
        let found = Found {
            finding,
            severity,
            sentence,
            way_out: finding.way_out().map(str::to_owned),
        };
        if self.findings.len() < MOST && !self.findings.contains(&found) {
            self.findings.push(found);
        }
    }

    pub(super) fn finish(mut self, checked_at: Timestamp) -> ImageCheck {
        let stops = |found: &Found| found.severity == Severity::Stops;
        let verdict = if self.findings.iter().any(stops) {
            CheckVerdict::NotBootable
        } else if self.findings.iter().any(|found| found.finding.hides()) {
            CheckVerdict::Unsure
        } else {
            CheckVerdict::Bootable
        };
        self.findings.sort_by_key(|found| found.severity);
        ImageCheck {
            checked_at,
            boot_method: self.method,
            verdict,
            bios: self.bios,
            uefi: self.uefi,
            iscsi: self.iscsi,
            nbd: self.nbd,
            os_type: self.os_type,
            findings: self.findings,
        }
    }
}
