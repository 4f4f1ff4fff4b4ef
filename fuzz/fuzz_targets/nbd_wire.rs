//! An NBD connection: its handshake, then requests.

#![no_main]

#[path = "../bodies.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bodies::nbd_wire(data));
