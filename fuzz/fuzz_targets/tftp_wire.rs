//! A TFTP datagram: read, and its options acknowledged.

#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::tftp_wire(data));
