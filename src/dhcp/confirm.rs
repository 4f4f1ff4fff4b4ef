//! A machine that comes with an address which it would be refused: where servers share a
//! database, another one may have leased it that address a moment ago, and word of it may not have
//! come yet, or the line by which it comes may be broken and nobody knows so far. A wrong NAK would
//! make the machine give up the address that it works with (RFC 2131 section 3.1), so the row is
//! read first.
//!
//! The one answer that waits for a query. It is rare, and where the database can't be asked the
//! machine hears nothing: the server that has its lease answers it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::commit::Operation;
use super::decide::{Decision, NakReason, ReplyKind};
use super::facts::Case;
use super::flow::Core;
use super::metrics::Dropped;
use super::wire::RequestKind;

/// After this a client has asked again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Machines whose rows are read at the same time; more come back by themselves.
const CONFIRMING: usize = 256;

impl Core {
    /// Is that a refusal which another server of ours may know better?
    pub(super) fn must_confirm(&self, case: &Case, decision: &Decision) -> bool {
        let Decision::Reply(reply) = decision else {
            return false;
        };
        let doubtful = matches!(
            reply.kind,
            ReplyKind::Nak(NakReason::WrongAddress | NakReason::Taken)
        );
        // One that takes our own offer does not work with the address yet.
        doubtful
            && self.claim.is_shared()
            && !case.confirmed
            && case.request.kind == RequestKind::Request
            && case.request.server_id.is_none()
    }

    /// Reads the rows of the address that it asks for and of the one that we know of, then
    /// considers the packet again.
    pub(super) fn confirm(self: &Arc<Self>, mut case: Case, known: Option<Ipv4Addr>) {
        let mac = case.request.mac;
        let (done, read) = oneshot::channel();
        let addresses = case.request.asked().into_iter().chain(known).collect();
        {
            let mut gates = self.gates();
            let operation = Operation::Reread(addresses, Some(done));
            if gates.confirming >= CONFIRMING || self.operations.try_send(operation).is_err() {
                drop(gates);
                self.drop_case(&case, Dropped::Overloaded);
                return;
            }
            gates.confirming += 1;
            // Retransmissions have the one answer.
            gates.in_flight.insert(mac);
        }
        let core = self.clone();
        self.tasks.spawn(async move {
            let read = tokio::time::timeout(PATIENCE, read).await;
            {
                let mut gates = core.gates();
                gates.confirming -= 1;
                gates.in_flight.remove(&mac);
            }
            if let Ok(Ok(())) = read {
                case.confirmed = true;
                let snapshot = core.cache.get();
                core.consider(case, &snapshot);
            } else {
                core.drop_case(&case, Dropped::Unconfirmed);
            }
        });
    }
}
