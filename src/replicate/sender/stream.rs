//! A version as a stream of the store's own, on its way out: from its beginning or from where the
//! receiver's store left off, with one unanswered request at most.

use std::sync::atomic::Ordering;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Odometer, Pulse, SYNC_EVERY, Stop, Way, answer, unexpected};
use crate::replicate::Shared;
use crate::replicate::wire::{MOST_DATA, Message};
use crate::storage::{Start, Streams};

/// What the receiver has asked for.
pub(super) struct Asked {
    pub(super) version: Uuid,
    pub(super) base: Option<Uuid>,
    pub(super) words: String,
}

/// Sends it all; what comes next is the hash.
pub(super) fn send(
    shared: &Shared,
    (streams, starts): (&dyn Streams, &[Start]),
    asked: Asked,
    line: &mut Way,
    (meter, cancel): (&Odometer, &CancellationToken),
) -> Result<(), Stop> {
    let from = match asked.base {
        None => None,
        Some(base) => {
            let start = starts.iter().find(|s| s.version == base);
            let what = "the other server accepted what was not offered";
            Some(start.ok_or_else(|| Stop::Passing(what.to_owned()))?.point)
        }
    };
    let words = Some(asked.words.as_str()).filter(|words| !words.is_empty());
    let mut begun = streams.send(asked.version, from, words)?;
    if begun.is_none() && words.is_some() {
        tracing::warn!(version.id = %asked.version, "a stream begins anew: where it left off is not known here any more");
        line.send(&Message::Restart)?;
        match answer(line, cancel)? {
            Message::AcceptStream { base, words } if base == asked.base && words.is_empty() => {}
            other => return Err(unexpected(&other)),
        }
        begun = streams.send(asked.version, from, None)?;
    }
    let none = || Stop::Passing("the store has no stream of it".to_owned());
    let mut stream = begun.ok_or_else(none)?;
    meter.total.store(stream.length(), Ordering::Relaxed);
    meter.done.store(0, Ordering::Relaxed);
    let mut at = 0_u64;
    let mut waiting = None;
    let mut since = 0;
    loop {
        let piece = {
            let mut pulse = Pulse::new(line, &shared.clock, cancel);
            stream.next(&mut || pulse.beat())?
        };
        let Some(piece) = piece else { break };
        for bytes in piece.chunks(MOST_DATA) {
            let bytes = bytes.to_vec();
            let long = bytes.len() as u64;
            line.send(&Message::Stream { bytes })?;
            meter.sent.fetch_add(long, Ordering::Relaxed);
            at += long;
            since += long;
        }
        if since >= SYNC_EVERY {
            since = 0;
            settle(line, meter, cancel, waiting.replace(at))?;
            line.send(&Message::Sync { through: at })?;
        }
    }
    settle(line, meter, cancel, waiting)?;
    line.send(&Message::Stream { bytes: Vec::new() })?;
    settle(line, meter, cancel, Some(at))?;
    meter.total.store(at, Ordering::Relaxed);
    Ok(())
}

/// Waits until the receiver has taken all before an offset that it was asked about.
fn settle(
    line: &mut Way,
    meter: &Odometer,
    cancel: &CancellationToken,
    asked: Option<u64>,
) -> Result<(), Stop> {
    let Some(expected) = asked else {
        return Ok(());
    };
    match answer(line, cancel)? {
        Message::Synced { through } if through == expected => {
            meter.done.store(through, Ordering::Relaxed);
            Ok(())
        }
        other => Err(unexpected(&other)),
    }
}
