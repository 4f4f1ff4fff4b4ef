//! Sixteen bytes of facts, then a DHCP packet: the decision over a filled address book.

#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::dhcp_decide(data));
