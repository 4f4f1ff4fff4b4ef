//! Hostile logins and PDUs; a live session beside them never notices.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use dls::export::iscsi::IscsiLimits;

use super::house::{DISK, House, NAME, limits};
use super::raw::{Raw, pdu, text};

/// Sends bytes, and reads until the other end closes; what was read.
fn throw(house: &House, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(house.address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    // It may have been closed before the last byte.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn names() -> Vec<u8> {
    text(&format!(
        "InitiatorName=iqn.2026-11.test:x|TargetName={}|SessionType=Normal|AuthMethod=CHAP",
        DISK.iqn()
    ))
}

#[test]
fn challenges_are_all_different() {
    let house = House::new(false);
    let mut seen = HashSet::new();
    for _ in 0..1000 {
        let mut raw = Raw::connect(house.address);
        raw.ask_login(0, &names());
        let answer = raw.ask_login(0, &text("CHAP_A=5"));
        let said = String::from_utf8(answer.data).unwrap();
        let challenge = said.split('\0').find_map(|p| p.strip_prefix("CHAP_C=0x"));
        let challenge = challenge.unwrap().to_owned();
        assert!(challenge.len() >= 32, "{challenge}");
        assert!(seen.insert(challenge));
    }
}

#[test]
fn hostile_logins_end_and_harm_nobody() {
    let house = House::new(true);
    let mut live = Raw::login(house.address, 9, "ImmediateData=Yes");
    let with_length = |length: u32, ahs: u8| {
        let mut bytes = pdu(0x43, 0x87, &[]);
        bytes[4] = ahs;
        bytes[5..8].copy_from_slice(&length.to_be_bytes()[1..]);
        bytes
    };
    let mut cases: Vec<Vec<u8>> = Vec::new();
    for length in [0, 1, 8191, 8192, 8193, 0xff_fffe, 0xff_ffff] {
        for ahs in [0, 1, 254, 255] {
            cases.push(with_length(length, ahs));
        }
    }
    for length in 8189..=8192_usize {
        cases.push(pdu(0x43, 0x87, &vec![b'x'; length]));
        cases.push(pdu(0x43, 0x44, &vec![b'x'; length]));
    }
    cases.push(pdu(0x43, 0x87, &b"a=b\0".repeat(2048)));
    cases.push(pdu(0x43, 0x44, &b"a=b\0".repeat(2048)).repeat(3));
    cases.push(pdu(0x43, 0x44, &[]).repeat(100));
    for opcode in 0..=63 {
        cases.push(pdu(0x40 | opcode, 0x87, &names()));
    }
    for case in &cases {
        throw(&house, case);
        assert_eq!(live.read(0, 1).status, 0);
    }
    // Gone after every byte of a good one.
    let mut good = pdu(0x43, 0x00, &names());
    good.extend(pdu(0x43, 0x81, &text("CHAP_A=5")));
    for length in 0..good.len() {
        throw(&house, &good[..length]);
    }
    assert_eq!(live.read(0, 1).status, 0);
}

#[test]
fn hostile_pdus_in_a_session() {
    let house = House::new(true);
    let mut live = Raw::login(house.address, 9, "ImmediateData=Yes");
    for opcode in 0..=0x3f_u8 {
        for flags in [0, 0x80, 0xff] {
            let mut raw = Raw::login(house.address, 1, "ImmediateData=Yes");
            let mut bytes = pdu(opcode, flags, &[0xff; 64]);
            bytes[24..28].copy_from_slice(&raw.number.to_be_bytes());
            bytes[8..16].fill(opcode);
            let _ = raw.stream.write_all(&bytes);
        }
    }
    let mut huge = Raw::login(house.address, 2, "ImmediateData=Yes");
    let mut bytes = pdu(0x01, 0xa0, &[]);
    bytes[5..8].fill(0xff);
    huge.stream.write_all(&bytes).unwrap();
    assert!(huge.receive().is_err(), "too long: closed");
    assert_eq!(live.read(0, 1).status, 0);
}

#[test]
fn half_open_logins_end_and_live_sessions_go_on() {
    let limits = IscsiLimits {
        login: Duration::from_secs(2),
        ..limits()
    };
    let house = House::with(true, limits);
    let mut live = Raw::login(house.address, 9, "ImmediateData=Yes");
    let half = pdu(0x43, 0x00, &names());
    let mut idle: Vec<TcpStream> = (0..300_usize)
        .map(|n| {
            let mut stream = TcpStream::connect(house.address).unwrap();
            stream.write_all(&half[..n % half.len()]).unwrap();
            stream
        })
        .collect();
    assert_eq!(live.read(0, 1).status, 0);
    let mut beside = Raw::login(house.address, 10, "ImmediateData=Yes");
    assert_eq!(beside.read(0, 1).status, 0, "and a new one gets in");
    for stream in &mut idle {
        stream
            .set_read_timeout(Some(Duration::from_secs(15)))
            .unwrap();
        let mut byte = [0];
        // Closed or reset: a time-out would be an error of another kind.
        match stream.read(&mut byte) {
            Ok(count) => assert_eq!(count, 0),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
    assert_eq!(live.read(0, 1).status, 0);
    assert_eq!(house.metrics.half_open.get(), 0);
}

#[test]
fn crowds_of_one_address_are_kept_out() {
    let limits = IscsiLimits {
        logins_per_address: 4,
        ..limits()
    };
    let house = House::with(true, limits);
    let mut live = Raw::login(house.address, 9, "ImmediateData=Yes");
    let half = |_| TcpStream::connect(house.address).unwrap();
    let waiting: Vec<TcpStream> = (0..4).map(half).collect();
    let mut fifth = Raw::connect(house.address);
    assert!(fifth.receive().is_err(), "it was closed");
    // They were let in before the fifth was looked at; each is counted by its own task.
    for _ in 0..1000 {
        if house.metrics.half_open.get() == 4 {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(house.metrics.half_open.get(), 4, "at once, and no other");
    assert_eq!(live.read(0, 1).status, 0);
    // A session is no half-open login, and who left makes room.
    drop(waiting);
    while house.metrics.half_open.get() > 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut later = Raw::login(house.address, 10, "ImmediateData=Yes");
    assert_eq!(later.read(0, 1).status, 0);
}

#[test]
fn who_proves_nothing_gets_no_disk() {
    let house = House::new(false);
    let names = String::from_utf8(names()).unwrap();
    let names = names.trim_end_matches('\0').replace('\0', "|");
    // Straight to the full-feature phase, by every way of bits.
    for flags in 0..=255_u8 {
        let mut raw = Raw::connect(house.address);
        let mut bytes = pdu(0x43, flags, &text(&names));
        bytes[13] = 1;
        raw.stream.write_all(&bytes).unwrap();
        let Ok(answer) = raw.receive() else { continue };
        let ready = answer.head[1] & 0x83 == 0x83 && answer.head[36] == 0;
        assert!(!ready, "flags {flags:02x}");
    }
    // A right name and a guess.
    let mut raw = Raw::connect(house.address);
    raw.ask_login(0, &text(&names));
    raw.ask_login(0, &text("CHAP_A=5"));
    let guess = format!("CHAP_N={NAME}|CHAP_R=0x{}", "00".repeat(16));
    let answer = raw.ask_login(0x81, &text(&guess));
    assert_eq!(answer.head[36..38], [2, 1]);
}
