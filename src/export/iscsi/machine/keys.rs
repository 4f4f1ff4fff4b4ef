//! The operational keys of a login (RFC 7143 section 13): what an initiator proposes, what
//! comes of it, what it is told.

use super::super::wire::LONGEST_DATA;
use super::super::wire::text::{Text, number};

/// The longest burst of data for one R2T that we ask for.
const MAX_BURST: u32 = 1024 * 1024;
/// The most data without an R2T that we take.
const FIRST_BURST: u32 = 256 * 1024;

/// What was agreed. The defaults are RFC 7143's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    /// CRC32C after headers.
    pub header_digest: bool,
    /// CRC32C after data.
    pub data_digest: bool,
    /// No data without an R2T but immediate data.
    pub initial_r2t: bool,
    /// Data may come with the command.
    pub immediate_data: bool,
    /// The longest data segment that the initiator takes.
    pub initiator_takes: u32,
    /// The most data of one R2T, and of one sequence of Data-In.
    pub max_burst: u32,
    /// The most data without an R2T.
    pub first_burst: u32,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            initial_r2t: true,
            immediate_data: true,
            initiator_takes: 8192,
            max_burst: 262_144,
            first_burst: 65_536,
        }
    }
}

/// What a key was to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Understood {
    /// Answered, or declared and noted. The number tells keys apart, for duplicates.
    Key(u32),
    /// Not an operational key.
    No,
}

impl Params {
    /// Takes one pair and writes the answer to it.
    pub fn take(&mut self, key: &str, value: &str, out: &mut Text) -> Understood {
        let number = match key {
            "HeaderDigest" => {
                self.header_digest = digest(key, value, out);
                0
            }
            "DataDigest" => {
                self.data_digest = digest(key, value, out);
                1
            }
            "MaxRecvDataSegmentLength" => {
                // Declared, not negotiated: ours is declared by `declare`.
                match ranged(value, 512) {
                    Some(length) => self.initiator_takes = length,
                    None => out.push(key, "Reject"),
                }
                2
            }
            "InitialR2T" => {
                // Yes if either side wants it; we don't.
                if let Some(yes) = boolean(key, value, out, |theirs| theirs) {
                    self.initial_r2t = yes;
                }
                3
            }
            "ImmediateData" => {
                if let Some(yes) = boolean(key, value, out, |theirs| theirs) {
                    self.immediate_data = yes;
                }
                4
            }
            "MaxBurstLength" => {
                if let Some(length) = least(key, value, 512, MAX_BURST, out) {
                    self.max_burst = length;
                }
                5
            }
            "FirstBurstLength" => {
                if let Some(length) = least(key, value, 512, FIRST_BURST, out) {
                    self.first_burst = length;
                }
                6
            }
            "MaxConnections" => {
                least(key, value, 1, 1, out);
                7
            }
            "MaxOutstandingR2T" => {
                least(key, value, 1, 1, out);
                8
            }
            "ErrorRecoveryLevel" => {
                small(key, value, 2, 0, out);
                9
            }
            "DefaultTime2Wait" => {
                // The greater of both; ours is 0: log in again at once.
                small(key, value, 3600, 3600, out);
                10
            }
            "DefaultTime2Retain" => {
                // The lesser of both: at level 0 there is nothing to retain.
                small(key, value, 3600, 0, out);
                11
            }
            "DataPDUInOrder" => {
                boolean(key, value, out, |_| true);
                12
            }
            "DataSequenceInOrder" => {
                boolean(key, value, out, |_| true);
                13
            }
            // Obsolete (RFC 7143 section 13.24); initiators of RFC 3720 still propose them.
            "IFMarker" => {
                boolean(key, value, out, |_| false);
                14
            }
            "OFMarker" => {
                boolean(key, value, out, |_| false);
                15
            }
            "IFMarkInt" => {
                out.push(key, "Irrelevant");
                16
            }
            "OFMarkInt" => {
                out.push(key, "Irrelevant");
                17
            }
            "iSCSIProtocolLevel" => {
                // RFC 7144: 1 is RFC 7143; we go no further.
                small(key, value, 31, 1, out);
                18
            }
            "TaskReporting" => {
                let known = value.split(',').any(|v| v == "RFC3720");
                out.push(key, if known { "RFC3720" } else { "Reject" });
                19
            }
            _ => return Understood::No,
        };
        Understood::Key(number)
    }

    /// Declares what we take; said once, in the operational stage.
    pub fn declare(out: &mut Text) {
        out.push("MaxRecvDataSegmentLength", &LONGEST_DATA.to_string());
    }

    /// What must hold between the values (RFC 7143 section 13.14).
    pub fn settle(&mut self) {
        self.first_burst = self.first_burst.min(self.max_burst);
    }
}

/// The first of a list that we know.
fn digest(key: &str, value: &str, out: &mut Text) -> bool {
    let known = |v: &&str| matches!(*v, "None" | "CRC32C");
    let chosen = value.split(',').find(known);
    out.push(key, chosen.unwrap_or("Reject"));
    chosen == Some("CRC32C")
}

fn boolean(key: &str, value: &str, out: &mut Text, result: fn(bool) -> bool) -> Option<bool> {
    let theirs = match value {
        "Yes" => true,
        "No" => false,
        _ => {
            out.push(key, "Reject");
            return None;
        }
    };
    let result = result(theirs);
    out.push(key, if result { "Yes" } else { "No" });
    Some(result)
}

/// Lengths and counts: up to 2^24 - 1.
fn ranged(value: &str, from: u32) -> Option<u32> {
    let n = u32::try_from(number(value)?).ok()?;
    (from..=0x00ff_ffff).contains(&n).then_some(n)
}

fn least(key: &str, value: &str, from: u32, ours: u32, out: &mut Text) -> Option<u32> {
    let Some(theirs) = ranged(value, from) else {
        out.push(key, "Reject");
        return None;
    };
    let result = theirs.min(ours);
    out.push(key, &result.to_string());
    Some(result)
}

/// A small number whose result is the lesser of theirs and `ours`.
fn small(key: &str, value: &str, to: u64, ours: u64, out: &mut Text) {
    match number(value).filter(|n| *n <= to) {
        Some(theirs) => out.push(key, &theirs.min(ours).to_string()),
        None => out.push(key, "Reject"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(pairs: &[(&str, &str)]) -> (Params, String) {
        let (mut params, mut out) = (Params::default(), Text::default());
        for (key, value) in pairs {
            assert_ne!(params.take(key, value, &mut out), Understood::No, "{key}");
        }
        params.settle();
        let text = String::from_utf8(out.as_bytes().to_vec()).unwrap();
        (params, text.replace('\0', " "))
    }

    #[test]
    fn ipxe() {
        let (params, text) = answers(&[
            ("HeaderDigest", "None"),
            ("DataDigest", "None"),
            ("MaxConnections", "1"),
            ("InitialR2T", "Yes"),
            ("ImmediateData", "No"),
            ("MaxRecvDataSegmentLength", "8192"),
            ("MaxBurstLength", "262144"),
            ("FirstBurstLength", "65536"),
            ("DefaultTime2Wait", "0"),
            ("DefaultTime2Retain", "0"),
            ("MaxOutstandingR2T", "1"),
            ("DataPDUInOrder", "Yes"),
            ("DataSequenceInOrder", "Yes"),
            ("ErrorRecoveryLevel", "0"),
        ]);
        assert!(params.initial_r2t && !params.immediate_data);
        assert_eq!(
            text,
            "HeaderDigest=None DataDigest=None MaxConnections=1 InitialR2T=Yes \
             ImmediateData=No MaxBurstLength=262144 FirstBurstLength=65536 DefaultTime2Wait=0 \
             DefaultTime2Retain=0 MaxOutstandingR2T=1 DataPDUInOrder=Yes \
             DataSequenceInOrder=Yes ErrorRecoveryLevel=0 "
        );
    }

    #[test]
    fn each_key_has_its_result() {
        for (key, value, answer) in [
            ("HeaderDigest", "CRC32C,None", "CRC32C"),
            ("DataDigest", "SHA1,None,CRC32C", "None"),
            ("DataDigest", "SHA1", "Reject"),
            ("InitialR2T", "No", "No"),
            ("InitialR2T", "maybe", "Reject"),
            ("MaxBurstLength", "16776192", "1048576"),
            ("MaxBurstLength", "511", "Reject"),
            ("MaxBurstLength", "16777216", "Reject"),
            ("MaxBurstLength", "-1", "Reject"),
            ("FirstBurstLength", "0x200", "512"),
            ("MaxConnections", "65535", "1"),
            ("ErrorRecoveryLevel", "2", "0"),
            ("ErrorRecoveryLevel", "3", "Reject"),
            ("DefaultTime2Wait", "2", "2"),
            ("DefaultTime2Retain", "20", "0"),
            ("DataPDUInOrder", "No", "Yes"),
            ("IFMarker", "Yes", "No"),
            ("OFMarkInt", "2048~65535", "Irrelevant"),
            ("TaskReporting", "RFC3720,FastAbort", "RFC3720"),
            ("iSCSIProtocolLevel", "2", "1"),
        ] {
            assert_eq!(answers(&[(key, value)]).1, format!("{key}={answer} "));
        }
        let (params, _) = answers(&[("FirstBurstLength", "65536"), ("MaxBurstLength", "4096")]);
        assert_eq!(params.first_burst, 4096);
    }
}
