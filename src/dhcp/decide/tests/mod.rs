//! Every branch of the decision, with the section that says so; every variant of the closed
//! sets is reached.

mod policies;
mod properties;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::*;
use crate::dhcp::packet::{DECLINE, DISCOVER, INFORM, Packet, RELEASE, REQUEST, ip, packet};
use crate::dhcp::testing::{SERVER, at, client, lease, range, request};
use crate::dhcp::wire::RequestKind;
use crate::model::{LeaseState, MacAddr};

const IT: &str = "10.0.0.150";

/// Facts in the making.
#[derive(Debug, Clone)]
struct Case {
    packet: Packet,
    port: Port,
    is_ours: bool,
    range: Option<NetworkRange>,
    client: Option<Client>,
    address: AddressFacts,
    keep_percent: u8,
    boot: BootFacts,
}

fn case(packet: Packet) -> Case {
    Case {
        packet,
        port: Port::Dhcp,
        is_ours: false,
        range: Some(range()),
        client: None,
        address: AddressFacts::default(),
        keep_percent: 0,
        boot: BootFacts {
            loader: Loader::Found("undionly.kpxe".into()),
            unknown: Unknown::Register,
            loader_delivered: false,
        },
    }
}

impl Case {
    fn standing(mut self, standing: Standing) -> Self {
        self.address.requested = standing;
        self
    }

    fn candidate(mut self, candidate: Candidate) -> Self {
        self.address.candidate = candidate;
        self
    }

    fn offered(mut self, address: &str) -> Self {
        self.address.offered = Some(ip(address));
        self
    }

    fn leased(mut self, address: &str) -> Self {
        self.address.lease = Some(lease(ip(address), MacAddr(crate::dhcp::packet::MAC), 3600));
        self
    }

    fn reserved(mut self, address: &str) -> Self {
        self.address.reserved = Some(ip(address));
        self
    }

    fn ours(mut self) -> Self {
        self.is_ours = true;
        self
    }

    fn port(mut self, port: Port) -> Self {
        self.port = port;
        self
    }

    fn range(mut self, change: impl FnOnce(&mut NetworkRange)) -> Self {
        if let Some(range) = self.range.as_mut() {
            change(range);
        }
        self
    }

    fn proxy(self) -> Self {
        self.range(|r| r.mode = RangeMode::Proxy)
    }

    fn boot(mut self, change: impl FnOnce(&mut BootFacts)) -> Self {
        change(&mut self.boot);
        self
    }

    fn known(mut self) -> Self {
        self.client = Some(client(MacAddr(crate::dhcp::packet::MAC)));
        self
    }

    fn decide(&self) -> Decision {
        let facts = Facts {
            arrival: Arrival {
                port: self.port,
                server_ip: SERVER,
                is_ours: self.is_ours,
                unicast: false,
            },
            range: self.range.as_ref(),
            client: self.client.as_ref(),
            address: self.address.clone(),
            keep_percent: self.keep_percent,
            boot: self.boot.clone(),
        };
        decide(&request(&self.packet), &facts, at(10))
    }

    fn reply(&self) -> Reply {
        match self.decide() {
            Decision::Reply(reply) => *reply,
            other => panic!("no reply: {other:?}"),
        }
    }

    fn silence(&self) -> Silence {
        match self.decide() {
            Decision::Silent(silence) => silence,
            other => panic!("not silent: {other:?}"),
        }
    }

    fn nak(&self) -> NakReason {
        let reply = self.reply();
        assert_eq!((reply.shape, reply.your_ip), (Shape::Nak, None));
        assert_eq!((reply.lease_seconds, reply.boot), (None, Boot::Nothing));
        match reply.kind {
            ReplyKind::Nak(reason) => reason,
            other => panic!("not a NAK: {other:?}"),
        }
    }
}

fn selecting(address: &str) -> Case {
    case(packet(REQUEST).address(54, "10.0.0.1").address(50, address)).ours()
}

fn init_reboot(address: &str) -> Case {
    case(packet(REQUEST).address(50, address))
}

fn renewing(address: &str) -> Case {
    case(packet(REQUEST).ciaddr(address))
}

fn ready(address: &str) -> Candidate {
    Candidate::Ready(ip(address))
}

fn missing() -> Loader {
    Loader::Missing {
        wanted: &["snponly.efi", "ipxe.efi"],
        directory: "/srv/loaders".into(),
    }
}

// ---- DISCOVER (RFC 2131 section 4.3.1) ----

#[test]
fn p06_discover_is_offered_what_the_book_proposes() {
    let discover = case(packet(DISCOVER));
    let offer = discover.clone().candidate(ready(IT)).reply();
    assert_eq!(offer.kind, ReplyKind::Offer);
    assert_eq!(offer.your_ip, Some(ip(IT)));
    assert_eq!(offer.lease_seconds, Some(3600));
    assert_eq!(offer.boot, Boot::Nothing, "no boot request");
    assert_eq!(
        discover
            .clone()
            .candidate(Candidate::Unprobed(ip(IT)))
            .decide(),
        Decision::Probe(ip(IT))
    );
    assert_eq!(discover.silence(), Silence::PoolExhausted);
    let mut alone = discover;
    alone.address.cut_off = true;
    assert_eq!(alone.silence(), Silence::CutOff);
}

#[test]
fn strangers_that_have_used_up_their_share_get_no_more() {
    let over = |mut case: Case| {
        case.address.over_share = true;
        case.silence()
    };
    let discover = case(packet(DISCOVER));
    for candidate in [ready(IT), Candidate::Unprobed(ip(IT)), Candidate::None] {
        let case = discover.clone().candidate(candidate);
        assert_eq!(over(case), Silence::UnknownShare);
    }
    // Nor by a REQUEST without an OFFER, nor for a lease that has run out.
    let forgotten = selecting(IT).standing(Standing::Free);
    assert_eq!(over(forgotten), Silence::UnknownShare);
    let returned = selecting(IT).standing(Standing::Its);
    assert_eq!(over(returned), Silence::UnknownShare);
}

// ---- REQUEST (section 4.3.2) ----

#[test]
fn p07_selecting() {
    let ack = selecting(IT).standing(Standing::Its).reply();
    assert_eq!((ack.kind, ack.your_ip), (ReplyKind::Ack, Some(ip(IT))));
    assert_eq!(ack.lease_seconds, Some(3600));
    let theirs = case(packet(REQUEST).address(54, "10.0.0.66").address(50, IT));
    for standing in [
        Standing::Its,
        Standing::Free,
        Standing::Taken,
        Standing::Elsewhere,
    ] {
        let theirs = theirs.clone().standing(standing).offered(IT).leased(IT);
        assert_eq!(theirs.silence(), Silence::OtherServer);
    }
    let other = selecting("10.0.0.151").standing(Standing::Free).offered(IT);
    assert_eq!(other.nak(), NakReason::WrongAddress);
    let other = selecting("10.0.0.9")
        .standing(Standing::NotServed)
        .offered(IT);
    assert_eq!(other.nak(), NakReason::WrongAddress);
    assert_eq!(
        selecting(IT).standing(Standing::Taken).nak(),
        NakReason::Taken
    );
    assert_eq!(
        selecting(IT).standing(Standing::NotServed).nak(),
        NakReason::NotServed
    );
    assert_eq!(
        selecting("192.168.0.1").standing(Standing::Elsewhere).nak(),
        NakReason::WrongNetwork
    );
}

#[test]
fn p07_an_offer_that_we_forgot_is_kept() {
    let ack = selecting(IT).standing(Standing::Free).reply();
    assert_eq!((ack.kind, ack.your_ip), (ReplyKind::Ack, Some(ip(IT))));
}

#[test]
fn p07_a_request_without_an_address_is_senseless() {
    let bare = case(packet(REQUEST).address(54, "10.0.0.1")).ours();
    assert_eq!(bare.silence(), Silence::Senseless);
    assert_eq!(case(packet(REQUEST)).silence(), Silence::Senseless);
    let both = case(packet(REQUEST).address(50, IT).ciaddr("10.0.0.151"));
    assert_eq!(both.standing(Standing::Its).silence(), Silence::Senseless);
    let agreeing = case(packet(REQUEST).address(50, IT).ciaddr(IT)).standing(Standing::Its);
    assert_eq!(agreeing.reply().kind, ReplyKind::Ack);
}

#[test]
fn p08_init_reboot() {
    let ack = init_reboot(IT).standing(Standing::Its).leased(IT).reply();
    assert_eq!((ack.kind, ack.your_ip), (ReplyKind::Ack, Some(ip(IT))));
    assert_eq!(
        init_reboot("192.168.0.1")
            .standing(Standing::Elsewhere)
            .nak(),
        NakReason::WrongNetwork
    );
    for standing in [Standing::Free, Standing::Taken, Standing::NotServed] {
        let unknown = init_reboot(IT).standing(standing);
        assert_eq!(unknown.silence(), Silence::NoRecord, "{standing:?}");
    }
    let moved = init_reboot(IT).leased("10.0.0.151");
    assert_eq!(
        moved.clone().standing(Standing::Free).nak(),
        NakReason::WrongAddress
    );
    assert_eq!(
        moved.clone().standing(Standing::NotServed).nak(),
        NakReason::WrongAddress
    );
    assert_eq!(
        moved.clone().standing(Standing::Taken).nak(),
        NakReason::Taken
    );
    // Another server may know better; not of what is in no pool.
    let mut unsure = moved;
    unsure.address.unsure = true;
    for standing in [Standing::Free, Standing::Taken] {
        assert_eq!(
            unsure.clone().standing(standing).silence(),
            Silence::NotOurs
        );
    }
    assert_eq!(
        unsure.standing(Standing::NotServed).nak(),
        NakReason::WrongAddress
    );
    let reserved = init_reboot(IT)
        .reserved("10.0.0.9")
        .standing(Standing::Free);
    assert_eq!(reserved.nak(), NakReason::WrongAddress);
}

#[test]
fn p09_renewing_and_rebinding() {
    let ack = renewing(IT).standing(Standing::Its).leased(IT).reply();
    assert_eq!(ack.kind, ReplyKind::Ack);
    assert_eq!(ack.to, Destination::Unicast(ip(IT)));
    assert_eq!(ack.your_ip, Some(ip(IT)));
    // Option 82 is missing when the relay was passed by, and nothing needs it.
    assert_eq!(request(&renewing(IT).packet).relay_information, None);
    assert_eq!(
        renewing(IT).standing(Standing::Free).silence(),
        Silence::NoRecord
    );
}

// ---- destinations (section 4.1) ----

#[test]
fn p05_destinations() {
    let discover = |packet: Packet| case(packet).candidate(ready(IT)).reply().to;
    assert_eq!(discover(packet(DISCOVER)), Destination::Frame(ip(IT)));
    assert_eq!(
        discover(packet(DISCOVER).broadcast()),
        Destination::Broadcast
    );
    assert_eq!(
        discover(packet(DISCOVER).broadcast().giaddr("10.0.0.254")),
        Destination::Relay(ip("10.0.0.254"))
    );
    // Nobody can have us send an OFFER to whom he likes.
    assert_eq!(
        discover(packet(DISCOVER).ciaddr("192.0.2.1")),
        Destination::Frame(ip(IT))
    );
    let relayed = case(packet(REQUEST).ciaddr(IT).giaddr("10.0.0.254")).standing(Standing::Its);
    assert_eq!(relayed.reply().to, Destination::Relay(ip("10.0.0.254")));
    let nak = init_reboot("192.168.0.1").standing(Standing::Elsewhere);
    assert_eq!(nak.reply().to, Destination::Broadcast);
    let nak = case(packet(REQUEST).ciaddr("192.168.0.1")).standing(Standing::Elsewhere);
    assert_eq!(nak.reply().to, Destination::Broadcast, "never to ciaddr");
    let nak = case(
        packet(REQUEST)
            .address(50, "192.168.0.1")
            .giaddr("10.0.0.254"),
    );
    assert_eq!(
        nak.standing(Standing::Elsewhere).reply().to,
        Destination::Relay(ip("10.0.0.254"))
    );
}

// ---- lease times ----

#[test]
fn p15_the_wish_is_bounded() {
    let seconds = |wish: u32, most: u32| {
        case(packet(DISCOVER).option(51, &wish.to_be_bytes()))
            .candidate(ready(IT))
            .range(|r| r.lease_seconds = most)
            .reply()
            .lease_seconds
    };
    assert_eq!(seconds(600, 3600), Some(600));
    assert_eq!(seconds(0, 3600), Some(60));
    assert_eq!(seconds(59, 3600), Some(60));
    assert_eq!(seconds(7200, 3600), Some(3600));
    assert_eq!(
        seconds(u32::MAX, 3600),
        Some(3600),
        "infinity is not the client's to take"
    );
    assert_eq!(seconds(u32::MAX, u32::MAX), Some(u32::MAX));
    assert_eq!(seconds(600, u32::MAX), Some(600));
    assert_eq!(seconds(10, 30), Some(30), "the range has the last word");
}

// ---- RELEASE, DECLINE, INFORM (sections 4.3.3 to 4.3.5) ----

#[test]
fn p11_release() {
    let release = case(packet(RELEASE).ciaddr(IT).address(54, "10.0.0.1")).ours();
    assert_eq!(
        release.clone().leased(IT).decide(),
        Decision::Release(ip(IT))
    );
    assert_eq!(release.silence(), Silence::NotItsLease);
    assert_eq!(
        release.clone().leased("10.0.0.151").silence(),
        Silence::NotItsLease
    );
    let mut twice = release.clone().leased(IT);
    if let Some(lease) = twice.address.lease.as_mut() {
        lease.state = LeaseState::Released;
    }
    assert_eq!(twice.silence(), Silence::NotItsLease);
    let theirs = case(packet(RELEASE).ciaddr(IT).address(54, "10.0.0.66")).leased(IT);
    assert_eq!(theirs.silence(), Silence::OtherServer);
    let bare = case(packet(RELEASE).address(54, "10.0.0.1"))
        .ours()
        .leased(IT);
    assert_eq!(bare.silence(), Silence::Senseless);
}

#[test]
fn p11_decline() {
    let decline = case(packet(DECLINE).address(50, IT).address(54, "10.0.0.1")).ours();
    assert_eq!(
        decline.clone().leased(IT).decide(),
        Decision::Decline(ip(IT))
    );
    assert_eq!(
        decline.clone().offered(IT).decide(),
        Decision::Decline(ip(IT))
    );
    assert_eq!(decline.silence(), Silence::NotItsLease);
    assert_eq!(
        decline
            .clone()
            .standing(Standing::Its)
            .reserved(IT)
            .silence(),
        Silence::NotItsLease,
        "it was never given it"
    );
    let mut run_out = decline.clone().leased(IT);
    if let Some(lease) = run_out.address.lease.as_mut() {
        lease.length_seconds = 5;
    }
    assert_eq!(run_out.silence(), Silence::NotItsLease);
    let mut flood = decline.offered(IT);
    flood.address.declines = MOST_DECLINES;
    assert_eq!(flood.silence(), Silence::DeclineFlood);
    let theirs = case(packet(DECLINE).address(50, IT).address(54, "10.0.0.66"));
    assert_eq!(theirs.offered(IT).silence(), Silence::OtherServer);
    let bare = case(packet(DECLINE).address(50, IT)).offered(IT);
    assert_eq!(bare.silence(), Silence::Senseless);
}

#[test]
fn p11_inform() {
    let ack = case(packet(INFORM).ciaddr("10.0.0.9")).reply();
    assert_eq!((ack.kind, ack.shape), (ReplyKind::Ack, Shape::Inform));
    assert_eq!((ack.your_ip, ack.lease_seconds), (None, None));
    assert_eq!(ack.to, Destination::Unicast(ip("10.0.0.9")));
    for elsewhere in ["192.0.2.1", "10.0.0.255", "10.0.0.0"] {
        let inform = case(packet(INFORM).ciaddr(elsewhere));
        assert_eq!(inform.silence(), Silence::Senseless, "no reflector");
    }
    assert_eq!(case(packet(INFORM)).silence(), Silence::Senseless);
}

// ---- 21: other servers' clients ----

#[test]
fn p21_another_servers_client_is_never_naked() {
    for standing in [Standing::Free, Standing::Taken, Standing::NotServed] {
        for case in [init_reboot(IT), renewing(IT)] {
            assert_eq!(case.standing(standing).silence(), Silence::NoRecord);
        }
    }
}
