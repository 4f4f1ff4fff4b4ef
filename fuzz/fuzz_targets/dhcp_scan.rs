//! A DHCP packet: read, answered, and the answer taken apart by an independent checker.

#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::dhcp_scan(data));
