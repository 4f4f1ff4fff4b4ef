//! The server that gives addresses: RFC 2131 section 4.3, branch by branch.
//!
//! It is not authoritative: where we have no record of what a client remembers, another
//! server may, and we are silent. It does judge networks: an address that does not belong
//! where the client is works with no server.

use std::net::Ipv4Addr;

use super::{
    AddressFacts, Candidate, Decision, Destination, Facts, LEAST_LEASE_SECONDS, MOST_DECLINES,
    NakReason, Reply, ReplyKind, Shape, Silence, Standing, boot_part,
};
use crate::dhcp::wire::{Request, RequestKind};
use crate::model::{Lease, LeaseState, NetworkRange, Timestamp};

pub(super) fn decide(
    request: &Request,
    facts: &Facts<'_>,
    range: &NetworkRange,
    now: Timestamp,
) -> Decision {
    match request.kind {
        RequestKind::Discover => discover(request, facts, range, now),
        RequestKind::Request => match request.server_id {
            Some(_) => selecting(request, facts, range, now),
            None => remembering(request, facts, range, now),
        },
        RequestKind::Inform => inform(request, facts, range),
        RequestKind::Release => release(request, facts),
        RequestKind::Decline => decline(request, facts, now),
    }
}

/// Section 4.3.1.
fn discover(
    request: &Request,
    facts: &Facts<'_>,
    range: &NetworkRange,
    now: Timestamp,
) -> Decision {
    match facts.address.candidate {
        // Before anything is asked by ARP for it.
        _ if facts.address.over_share => Decision::Silent(Silence::UnknownShare),
        Candidate::Ready(address) => lease(request, facts, range, ReplyKind::Offer, address, now),
        Candidate::Unprobed(address) => Decision::Probe(address),
        Candidate::None if facts.address.cut_off => Decision::Silent(Silence::CutOff),
        Candidate::None => Decision::Silent(Silence::PoolExhausted),
    }
}

/// Section 4.3.2, "generated during SELECTING state".
fn selecting(
    request: &Request,
    facts: &Facts<'_>,
    range: &NetworkRange,
    now: Timestamp,
) -> Decision {
    if !facts.arrival.is_ours {
        return Decision::Silent(Silence::OtherServer);
    }
    // ciaddr must be zero here; a client that fills it instead of option 50 still says which
    // address it means.
    let Some(address) = request.asked() else {
        return Decision::Silent(Silence::Senseless);
    };
    match facts.address.requested {
        Standing::NotAsked => Decision::Silent(Silence::Senseless),
        Standing::Its => lease(request, facts, range, ReplyKind::Ack, address, now),
        // We have forgotten our offer, by a restart or because it took long: it chose us, and
        // nobody else has the address.
        Standing::Free if claim(&facts.address).is_none() => {
            lease(request, facts, range, ReplyKind::Ack, address, now)
        }
        Standing::Free => nak(request, NakReason::WrongAddress),
        Standing::Taken => nak(request, NakReason::Taken),
        Standing::NotServed if claim(&facts.address).is_some() => {
            nak(request, NakReason::WrongAddress)
        }
        Standing::NotServed => nak(request, NakReason::NotServed),
        Standing::Elsewhere => nak(request, NakReason::WrongNetwork),
    }
}

/// Section 4.3.2, the other three: INIT-REBOOT (option 50, no ciaddr), RENEWING and REBINDING
/// (ciaddr, no option 50). They differ in how the answer travels, not in what it is.
fn remembering(
    request: &Request,
    facts: &Facts<'_>,
    range: &NetworkRange,
    now: Timestamp,
) -> Decision {
    // Table 5: one of the two, never both; where they agree no harm is done.
    let address = match (request.requested, request.ciaddr) {
        (Some(a), Some(b)) if a != b => return Decision::Silent(Silence::Senseless),
        (Some(a), _) | (None, Some(a)) => a,
        (None, None) => return Decision::Silent(Silence::Senseless),
    };
    let known = claim(&facts.address).is_some();
    match facts.address.requested {
        Standing::NotAsked => Decision::Silent(Silence::Senseless),
        Standing::Its => lease(request, facts, range, ReplyKind::Ack, address, now),
        Standing::Elsewhere => nak(request, NakReason::WrongNetwork),
        // "If the DHCP server has no record of this client, then it MUST remain silent."
        Standing::Free | Standing::Taken | Standing::NotServed if !known => {
            Decision::Silent(Silence::NoRecord)
        }
        // The same holds where another server may have a newer one.
        Standing::Free | Standing::Taken if facts.address.unsure => {
            Decision::Silent(Silence::NotOurs)
        }
        Standing::Free | Standing::NotServed => nak(request, NakReason::WrongAddress),
        Standing::Taken => nak(request, NakReason::Taken),
    }
}

/// Section 4.3.5: options, no address, nothing stored.
fn inform(request: &Request, facts: &Facts<'_>, range: &NetworkRange) -> Decision {
    // The answer goes to ciaddr: it must be an address of the network that we answer for.
    let Some(address) = request.ciaddr.filter(|a| range.is_host(*a)) else {
        return Decision::Silent(Silence::Senseless);
    };
    let (boot, refusal) = boot_part(request, facts);
    Decision::Reply(Box::new(Reply {
        kind: ReplyKind::Ack,
        shape: Shape::Inform,
        your_ip: None,
        lease_seconds: None,
        is_durable: false,
        boot,
        to: Destination::Unicast(address),
        refusal,
    }))
}

/// Section 4.3.4.
fn release(request: &Request, facts: &Facts<'_>) -> Decision {
    if request.server_id.is_some() && !facts.arrival.is_ours {
        return Decision::Silent(Silence::OtherServer);
    }
    let Some(address) = request.ciaddr else {
        return Decision::Silent(Silence::Senseless);
    };
    match &facts.address.lease {
        Some(l) if l.address == address && l.state == LeaseState::Active => {
            Decision::Release(address)
        }
        _ => Decision::Silent(Silence::NotItsLease),
    }
}

/// Section 4.3.3: believed only of a machine that was given or offered the address, by us.
fn decline(request: &Request, facts: &Facts<'_>, now: Timestamp) -> Decision {
    let Some(address) = request.requested.filter(|_| request.server_id.is_some()) else {
        return Decision::Silent(Silence::Senseless);
    };
    if !facts.arrival.is_ours {
        return Decision::Silent(Silence::OtherServer);
    }
    let leased = facts
        .address
        .lease
        .as_ref()
        .is_some_and(|l| l.address == address && l.state == LeaseState::Active && l.lasts(now));
    if !leased && facts.address.offered != Some(address) {
        return Decision::Silent(Silence::NotItsLease);
    }
    if facts.address.declines >= MOST_DECLINES {
        return Decision::Silent(Silence::DeclineFlood);
    }
    Decision::Decline(address)
}

/// An address that our records give to this machine, whichever.
fn claim(facts: &AddressFacts) -> Option<Ipv4Addr> {
    let leased = facts.lease.as_ref().map(|l| l.address);
    facts.reserved.or(leased).or(facts.offered)
}

/// An OFFER or an ACK of an address, where the machine may have one more.
fn lease(
    request: &Request,
    facts: &Facts<'_>,
    range: &NetworkRange,
    kind: ReplyKind,
    address: Ipv4Addr,
    now: Timestamp,
) -> Decision {
    if facts.address.over_share {
        return Decision::Silent(Silence::UnknownShare);
    }
    let (boot, refusal) = boot_part(request, facts);
    let seconds = lease_seconds(request, range);
    let left = left_of_its_own(request, facts, address, seconds, now);
    Decision::Reply(Box::new(Reply {
        kind,
        shape: Shape::Full,
        your_ip: Some(address),
        lease_seconds: Some(left.unwrap_or(seconds)),
        is_durable: left.is_some(),
        boot,
        to: destination(request, address),
        refusal,
    }))
}

/// Option 51 is a wish: at least a minute, at most the range's. Infinity (all ones) is more
/// than any other, so it is had only where the range gives it.
fn lease_seconds(request: &Request, range: &NetworkRange) -> u32 {
    request.wanted_seconds.map_or(range.lease_seconds, |wish| {
        wish.max(LEAST_LEASE_SECONDS).min(range.lease_seconds)
    })
}

/// Seconds that are left of the lease that the machine holds, where that is just what it would be
/// given: it was written a short while ago, and is promised as far as it was written. A machine
/// that boots asks several times within a minute (its ROM, the loader, the kernel, the system).
fn left_of_its_own(
    request: &Request,
    facts: &Facts<'_>,
    address: Ipv4Addr,
    seconds: u32,
    now: Timestamp,
) -> Option<u32> {
    let lease = facts.address.lease.as_ref()?;
    let is_the_same = lease.state == LeaseState::Active
        && (lease.address, lease.length_seconds) == (address, seconds)
        && lease.client_identifier == request.client_identifier
        && lease.hostname == request.hostname
        && lease.relay_information == request.relay_information;
    if facts.keep_percent == 0 || !is_the_same {
        return None;
    }
    if seconds == Lease::INFINITE {
        return Some(seconds);
    }
    // A part of a second that is gone counts whole: it must end here no sooner than there.
    let gone = (now - lease.starts_at).num_microseconds()?;
    let gone = u64::try_from(gone).ok()?.div_ceil(1_000_000);
    (gone * 100 <= u64::from(seconds) * u64::from(facts.keep_percent))
        .then(|| seconds.saturating_sub(u32::try_from(gone).unwrap_or(u32::MAX)))
}

/// Section 4.1: the relay; else the address that the client has and answers ARP for; else
/// broadcast where it asks for that; else its new address and its MAC.
fn destination(request: &Request, address: Ipv4Addr) -> Destination {
    let renews = request.kind == RequestKind::Request && request.server_id.is_none();
    if let Some(relay) = request.giaddr {
        Destination::Relay(relay)
    } else if renews && request.ciaddr == Some(address) {
        Destination::Unicast(address)
    } else if request.broadcast {
        Destination::Broadcast
    } else {
        Destination::Frame(address)
    }
}

/// Section 4.1: through the relay, else always broadcast, since the client may have no
/// address that works.
fn nak(request: &Request, reason: NakReason) -> Decision {
    Decision::Reply(Box::new(Reply {
        kind: ReplyKind::Nak(reason),
        shape: Shape::Nak,
        your_ip: None,
        lease_seconds: None,
        is_durable: false,
        boot: super::Boot::Nothing,
        to: request
            .giaddr
            .map_or(Destination::Broadcast, Destination::Relay),
        refusal: None,
    }))
}
