//! What the tests of the pure half share: a range, a client, a request. Tests only.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use uuid::Uuid;

use super::packet::Packet as Bytes;
use super::wire::{Packet, Request, parse};
use crate::model::{
    BootMode, Client, DiskMode, Lease, LeaseState, MacAddr, NetworkRange, RangeMode, Serve,
    Timestamp, UnreadyAction,
};

/// Our address in the tests.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_timestamp(1_700_000_000 + second, 0).unwrap()
}

/// 10.0.0.0/24 with a pool of 100 addresses from .100, gateway .254, a lease of an hour.
pub(crate) fn range() -> NetworkRange {
    NetworkRange {
        id: Uuid::from_u128(7),
        name: "lab".into(),
        network: "10.0.0.0/24".parse().unwrap(),
        mode: RangeMode::Full,
        serve: Serve::All,
        unready: UnreadyAction::Wait,
        always_chainload: false,
        pools: vec!["10.0.0.100-10.0.0.199".parse().unwrap()],
        exclusions: Vec::new(),
        gateway: Some(Ipv4Addr::new(10, 0, 0, 254)),
        dns: vec![Ipv4Addr::new(10, 0, 0, 53), Ipv4Addr::new(10, 0, 0, 54)],
        domain: Some("lab.example".into()),
        search: vec!["lab.example".into(), "example".into()],
        ntp: vec![Ipv4Addr::new(10, 0, 0, 123)],
        mtu: Some(1400),
        routes: Vec::new(),
        lease_seconds: 3600,
        options: BTreeMap::new(),
    }
}

pub(crate) fn client(mac: MacAddr) -> Client {
    Client {
        id: Uuid::from_u128(42),
        mac_address: mac,
        more_macs: Vec::new(),
        hostname: "pc-01".into(),
        ip_address: None,
        assigned_image_id: None,
        boot_mode: BootMode::Pxe,
        cpu_cores: 1,
        memory_mb: 1024,
        network_config: None,
        custom_boot_params: None,
        enabled: true,
        disk_mode: DiskMode::Ephemeral,
        ring: None,
        pinned_version_id: None,
        auto_registered: false,
        created_at: at(0),
        updated_at: at(0),
        last_boot_at: None,
        boot_count: 0,
    }
}

pub(crate) fn lease(address: Ipv4Addr, mac: MacAddr, seconds: u32) -> Lease {
    Lease {
        address,
        range_id: range().id,
        mac,
        client_identifier: None,
        hostname: None,
        state: LeaseState::Active,
        starts_at: at(0),
        length_seconds: seconds,
        relay_information: None,
    }
}

/// A packet that must be a request in good form.
pub(crate) fn request(packet: &Bytes) -> Request {
    match parse(&packet.bytes()) {
        Ok(Packet::Request(request)) => *request,
        other => panic!("not a request: {other:?}"),
    }
}

/// The n-th machine.
pub(crate) fn mac(n: u32) -> MacAddr {
    let [a, b, c, d] = n.to_be_bytes();
    MacAddr([0x52, 0x54, a, b, c, d])
}
