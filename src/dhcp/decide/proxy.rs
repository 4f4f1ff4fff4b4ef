//! The boot part alone: proxyDHCP on port 67, and the PXE boot server on port 4011.

use super::{Boot, Decision, Destination, Facts, Reply, ReplyKind, Shape, Silence, boot_part};
use crate::dhcp::wire::{Request, RequestKind};

/// Port 67 beside another server: an OFFER without an address to who boots, and nothing to
/// anybody else (PXE 2.1 section 2.2.3).
pub(super) fn offer(request: &Request, facts: &Facts<'_>) -> Decision {
    if !request.is_boot() {
        return Decision::Silent(Silence::NotABoot);
    }
    match request.kind {
        RequestKind::Discover => {
            // There is no address of the client's to send to yet.
            let to = match request.giaddr {
                Some(relay) => Destination::Relay(relay),
                None => Destination::Broadcast,
            };
            answer(request, facts, ReplyKind::Offer, to)
        }
        // It speaks to the server that gave it its address.
        RequestKind::Request => Decision::Silent(Silence::OtherServer),
        RequestKind::Decline | RequestKind::Release | RequestKind::Inform => {
            Decision::Silent(Silence::NotABoot)
        }
    }
}

/// Port 4011: the machine has an address already and asks for its boot file alone (PXE 2.1
/// section 2.4). Answered to where it came from.
pub(super) fn boot_server(request: &Request, facts: &Facts<'_>) -> Decision {
    if !request.is_boot() {
        return Decision::Silent(Silence::NotABoot);
    }
    match request.kind {
        RequestKind::Request | RequestKind::Inform => {
            answer(request, facts, ReplyKind::Ack, Destination::Sender)
        }
        RequestKind::Discover | RequestKind::Decline | RequestKind::Release => {
            Decision::Silent(Silence::WrongPort)
        }
    }
}

fn answer(request: &Request, facts: &Facts<'_>, kind: ReplyKind, to: Destination) -> Decision {
    match boot_part(request, facts) {
        (Boot::Nothing, _) => Decision::Silent(Silence::NothingToBoot),
        (boot, refusal) => Decision::Reply(Box::new(Reply {
            kind,
            shape: Shape::Proxy,
            your_ip: None,
            lease_seconds: None,
            is_durable: false,
            boot,
            to,
            refusal,
        })),
    }
}
