//! iSCSI: login requests one after the other, then PDUs and SCSI commands.

#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::iscsi(data));
