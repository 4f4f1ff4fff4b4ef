//! One read transfer, from the answer to its request to its end.
//!
//! A pure machine: packets and the time go in, [`Step`]s come out. It decides which blocks go
//! out and when, and never sees their bytes; the server reads and sends them. Times are
//! [`Duration`]s since the transfer began.
//!
//! Retransmission is adaptive (RFC 6298): the wait follows the measured round trips and grows
//! with every send that meets silence. A client that has said nothing yet may be a forged
//! address, and gets [`SENDS`] packets at most. One that has said something is given up when
//! nothing has moved for a while, [`SILENCE`], however often was sent meanwhile: on a path that
//! loses packets a count would end transfers that still move.
//!
//! Races we accept: a client that ends without its last ACK (or whose last ACK is lost) is
//! [`Outcome::Unconfirmed`], because no packet can tell the two apart. Clients that follow
//! block 65535 with block 1 are not served: RFC 1350 has no rollover at all, and 0 is what
//! the clients in the field expect.

use std::time::Duration;

use super::wire::{DEFAULT_BLKSIZE, ErrorCode, Opt, Options};

/// Packets to a client that has not answered yet, the first one included.
pub const SENDS: u32 = 6;
/// A client that has answered is given up after that long without progress...
pub const SILENCE: Duration = Duration::from_secs(30);
/// ... and after that long if all is sent: most likely it has everything.
pub const LAST_SILENCE: Duration = Duration::from_secs(10);
/// Sends of one window that repeated ACKs may ask for.
const ASKED: u32 = 12;
/// Wait before the first retransmission while no round trip has been measured.
pub const FIRST_WAIT: Duration = Duration::from_millis(150);
/// Shortest wait: below it, a client that pauses a moment would be sent everything twice.
pub const MIN_WAIT: Duration = Duration::from_millis(50);
/// Longest first wait, whatever round trips were measured.
pub const MAX_FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait after back-off.
pub const MAX_WAIT: Duration = Duration::from_secs(8);
/// Longest transfer of an empty file; see [`SLOWEST`].
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes a second that a transfer must reach over its whole length.
const SLOWEST: u64 = 10_000;
/// Recoveries after which a path counts as lossy.
const LOSSY: u32 = 3;
/// Longer than the time-out of the usual clients (5 s).
const QUIET: Duration = Duration::from_millis(5_500);
/// Chance below which silence is not put down to loss.
const UNLIKELY: f64 = 0.002;
/// Duplicated ACKs after which they are no longer taken for gaps in a window.
const ECHOES: u32 = 3;

/// What the server can grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest block that fits the path unfragmented, in bytes.
    pub max_blksize: u16,
    /// Largest window, in blocks.
    pub max_window: u16,
    /// Largest window, in bytes (a window always has one block at least).
    pub window_bytes: u32,
}

/// What was agreed for a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Bytes of a block.
    pub blksize: u16,
    /// Blocks sent between two ACKs.
    pub windowsize: u16,
    /// Longest wait before a retransmission, if the client asked for one.
    pub timeout: Option<Duration>,
    /// Size of the file in bytes.
    pub size: u64,
    /// Options for the OACK; empty: no OACK is sent.
    pub granted: Options,
}

/// Grants what was asked for, within the limits.
#[must_use]
pub fn negotiate(asked: &Options, size: u64, limits: Limits) -> Terms {
    let mut terms = Terms {
        blksize: DEFAULT_BLKSIZE,
        windowsize: 1,
        timeout: None,
        size,
        granted: Options::default(),
    };
    // The window's share of bytes depends on the block size, wherever that stands in the list.
    if let Some(asked) = asked.get(Opt::Blksize) {
        // RFC 2348: the server may answer with a smaller value.
        terms.blksize = u16::try_from(asked)
            .unwrap_or(u16::MAX)
            .min(limits.max_blksize);
    }
    for entry in asked.iter() {
        let value = match entry.opt {
            Opt::Blksize => u64::from(terms.blksize),
            // RFC 2349: "the size of the file, in octets, is returned".
            Opt::Tsize => size,
            Opt::Timeout => {
                // RFC 2349: the value must be echoed as it is.
                terms.timeout = Some(Duration::from_secs(entry.value));
                entry.value
            }
            Opt::Windowsize => {
                // RFC 7440 section 3: the server may answer with a smaller value.
                let bytes = (limits.window_bytes / u32::from(terms.blksize.max(1))).max(1);
                let most = u64::from(limits.max_window).min(u64::from(bytes));
                let granted = entry.value.clamp(1, most.max(1));
                terms.windowsize = u16::try_from(granted).unwrap_or(1);
                granted
            }
        };
        terms.granted.push(entry.with(value));
    }
    terms
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing until the next packet or [`Machine::deadline`].
    Wait,
    /// Send the OACK.
    SendOptionAck,
    /// Send these blocks, numbered from 1 without rollover.
    SendBlocks {
        /// The first one.
        first: u64,
        /// How many.
        count: u16,
    },
    /// The transfer is over.
    End(Outcome),
}

/// How a transfer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The last block was acknowledged.
    Complete,
    /// The client asked for options, and ended by ERROR before it took a block: it wanted the
    /// size, or comes back without options (RFC 2347 section 4). Not a failure.
    Probe,
    /// The client ended it.
    ClientError {
        /// Its code.
        code: ErrorCode,
        /// Its words, printable ASCII.
        message: String,
    },
    /// The client fell silent.
    TimedOut {
        /// The first block that was not acknowledged, from 1; 0 for the OACK.
        block: u64,
    },
    /// All was sent, but the end of it never acknowledged: its last ACK was lost, or the
    /// client died at the very end.
    Unconfirmed,
    /// It went on, but too slowly to hold its place.
    TooSlow {
        /// The first block that was not acknowledged.
        block: u64,
    },
}

/// How many packets a transfer took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// DATA packets that the machine asked for, all in all.
    pub sent: u64,
    /// Those of them that had been sent before.
    pub resent: u64,
    /// ACKs that changed nothing: duplicated, old, or from the future.
    pub idle_acks: u64,
}

/// One transfer.
#[derive(Debug, Clone)]
pub struct Machine {
    terms: Terms,
    /// Number of the final block: it is shorter than the others, maybe empty.
    last: u64,
    /// The OACK is out and not acknowledged.
    offering: bool,
    /// Anything at all has come from the client since the request.
    heard: bool,
    /// Blocks acknowledged in a row.
    acked: u64,
    /// Last block of the flight; the flight is `acked + 1 ..= sent`.
    sent: u64,
    /// The highest block ever sent.
    highest: u64,
    /// Sends of this flight without progress.
    sends: u32,
    /// When the flight went out first, and last.
    first_sent_at: Duration,
    last_sent_at: Duration,
    /// Progress after a retransmission, how often.
    recoveries: u32,
    /// Sends that were answered in the end, and those before them that were not.
    rounds: u32,
    lost_rounds: u32,
    /// ACKs that came again too soon to tell of a gap.
    echoes: u32,
    trip: Trip,
    counts: Counts,
}

/// The round trip time, estimated as in RFC 6298 section 2.
#[derive(Debug, Clone, Copy)]
struct Trip {
    smoothed: Option<Duration>,
    variation: Duration,
    shortest: Duration,
    wait: Duration,
}

impl Trip {
    const fn unknown() -> Self {
        Self {
            smoothed: None,
            variation: Duration::ZERO,
            shortest: Duration::MAX,
            wait: FIRST_WAIT,
        }
    }

    fn measured(&mut self, trip: Duration) {
        self.shortest = self.shortest.min(trip);
        let smoothed = match self.smoothed {
            // RFC 6298 (2.2).
            None => {
                self.variation = trip / 2;
                trip
            }
            // RFC 6298 (2.3): variation first, alpha 1/8, beta 1/4.
            Some(smoothed) => {
                self.variation = self.variation * 3 / 4 + smoothed.abs_diff(trip) / 4;
                smoothed * 7 / 8 + trip / 8
            }
        };
        self.smoothed = Some(smoothed);
        self.wait = (smoothed + self.variation * 4).clamp(MIN_WAIT, MAX_FIRST_WAIT);
    }

    /// An ACK that may belong to either of several sends tells no round trip (Karn), but a
    /// path that got slower must not be sent everything twice for ever.
    fn ambiguous(&mut self) {
        self.wait = (self.wait * 5 / 4).min(MAX_FIRST_WAIT);
    }
}

impl Machine {
    /// A transfer under these terms; nothing has been sent yet, see [`Machine::start`].
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self {
            // RFC 1350 section 2: a block shorter than the others ends the transfer, so a
            // size that is a multiple needs an empty one.
            last: terms.size / u64::from(terms.blksize.max(1)) + 1,
            terms,
            offering: false,
            heard: false,
            acked: 0,
            sent: 0,
            highest: 0,
            sends: 0,
            first_sent_at: Duration::ZERO,
            last_sent_at: Duration::ZERO,
            recoveries: 0,
            rounds: 0,
            lost_rounds: 0,
            echoes: 0,
            trip: Trip::unknown(),
            counts: Counts::default(),
        }
    }

    /// The terms.
    #[must_use]
    pub const fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Packets so far.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Bytes that the client has acknowledged.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        (self.acked * u64::from(self.terms.blksize)).min(self.terms.size)
    }

    /// True once the client has shown that it wants the file: it has acknowledged the OACK
    /// or a block.
    #[must_use]
    pub const fn confirmed(&self) -> bool {
        self.heard && !self.offering
    }

    /// True if all is sent and its last ACK is overdue twice: the client most likely has the
    /// file, and its last ACK was lost or, as with some ROMs, never sent.
    #[must_use]
    pub fn lingers(&self) -> bool {
        self.all_sent() && self.sends > 2
    }

    /// When [`Machine::on_timer`] is due.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        // RFC 2349: the time-out that the client chose bounds every wait. It is no lower
        // bound: an early retransmission does no harm, a late one costs a boot its seconds.
        let longest = self.terms.timeout.unwrap_or(MAX_WAIT).min(MAX_WAIT);
        let wait = self.wait().min(longest);
        let given_up = self.first_sent_at.saturating_add(self.silence());
        (self.last_sent_at + wait)
            .min(given_up)
            .min(self.end_of_patience())
    }

    /// How long nothing may move.
    fn silence(&self) -> Duration {
        if !self.heard {
            // Counted, not timed.
            Duration::MAX
        } else if self.all_sent() {
            LAST_SILENCE
        } else {
            SILENCE
        }
    }

    /// The wait after the last send.
    fn wait(&self) -> Duration {
        let trip = self.trip.wait;
        let resent = self.sends.saturating_sub(1);
        if !self.heard {
            // Six sends have to last for a while, so the waits grow fast.
            trip.saturating_mul(3_u32.saturating_pow(resent))
        } else if self.recoveries < LOSSY {
            trip.saturating_mul(2_u32.saturating_pow(resent))
        } else if resent < self.burst() {
            trip.saturating_mul(2_u32.saturating_pow(resent.saturating_sub(1)))
        } else {
            QUIET
        }
    }

    /// How often a block is sent again on a lossy path until loss alone hardly explains the
    /// silence. Some clients (atftp) answer a repeated block once and then only when their
    /// own timer fires, which every further copy puts off: those need quiet.
    fn burst(&self) -> u32 {
        let lost = f64::from(self.lost_rounds + 1) / f64::from(self.rounds + 10);
        (2..8)
            .find(|&resent| lost.powi(resent) < UNLIKELY)
            .and_then(|resent| u32::try_from(resent).ok())
            .unwrap_or(8)
    }

    /// The first packet.
    pub fn start(&mut self, now: Duration) -> Step {
        if self.terms.granted.is_empty() {
            // RFC 2347 section 3: no option granted, no OACK.
            return self.fly(now);
        }
        self.offering = true;
        self.mark_sent(now);
        Step::SendOptionAck
    }

    /// What the last step asked for has been handed to the network.
    pub fn on_sent(&mut self, now: Duration) {
        self.last_sent_at = now;
        if self.sends == 1 {
            self.first_sent_at = now;
        }
    }

    /// An ACK came.
    pub fn on_ack(&mut self, block: u16, now: Duration) -> Step {
        if self.offering {
            if block != 0 {
                return self.idle();
            }
            self.progress(now);
            self.offering = false;
            // One small packet's round trip says nothing of a window's.
            self.trip.shortest = Duration::MAX;
            return self.fly(now);
        }
        // Block numbers go from 65535 to 0, so only their distance counts; a window is far
        // smaller than the ring.
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the ring of block numbers is what the low 16 bits are"
        )]
        let ahead = u64::from(block.wrapping_sub(self.acked as u16));
        if ahead == 0 {
            return self.on_repeated_ack(now);
        }
        if ahead > self.sent - self.acked {
            return self.idle();
        }
        self.progress(now);
        self.acked += ahead;
        if self.acked == self.last {
            return Step::End(Outcome::Complete);
        }
        // RFC 7440 section 4: an ACK inside the window means that what follows it was lost,
        // and that the next window begins right behind it.
        self.fly(now)
    }

    /// An ERROR came.
    pub fn on_error(&mut self, code: ErrorCode, message: &[u8]) -> Step {
        let unwanted = !self.terms.granted.is_empty() && self.acked == 0;
        Step::End(if unwanted {
            Outcome::Probe
        } else {
            let message = message
                .iter()
                .map(|&b| char::from(b))
                .filter(|c| c.is_ascii_graphic() || *c == ' ')
                .collect();
            Outcome::ClientError { code, message }
        })
    }

    /// The deadline has passed (or has not: then nothing happens).
    pub fn on_timer(&mut self, now: Duration) -> Step {
        if now >= self.end_of_patience() {
            return Step::End(Outcome::TooSlow {
                block: self.waiting_for(),
            });
        }
        if now < self.deadline() {
            return Step::Wait;
        }
        let counted = !self.heard && self.sends >= SENDS;
        if counted || now.saturating_sub(self.first_sent_at) >= self.silence() {
            return Step::End(if self.all_sent() {
                Outcome::Unconfirmed
            } else {
                Outcome::TimedOut {
                    block: self.waiting_for(),
                }
            });
        }
        if self.offering {
            self.mark_sent(now);
            return Step::SendOptionAck;
        }
        self.fly(now)
    }

    fn end_of_patience(&self) -> Duration {
        PATIENCE + Duration::from_secs(self.terms.size / SLOWEST)
    }

    fn all_sent(&self) -> bool {
        self.heard && !self.offering && self.sent == self.last
    }

    const fn waiting_for(&self) -> u64 {
        if self.offering { 0 } else { self.acked + 1 }
    }

    fn idle(&mut self) -> Step {
        self.counts.idle_acks += 1;
        Step::Wait
    }

    /// The ACK that we have already came again.
    ///
    /// In lock-step it must never cause a DATA packet: that is the Sorcerer's Apprentice
    /// (RFC 1123 section 4.2.3.1). In a window it is how a client says that the window's
    /// first block was lost (RFC 7440 section 4), if it comes late enough to be an answer
    /// to that window.
    fn on_repeated_ack(&mut self, now: Duration) -> Step {
        if self.terms.windowsize == 1 || !self.heard || self.sent == self.acked {
            return self.idle();
        }
        let since = now.saturating_sub(self.last_sent_at);
        if since < self.trip.shortest / 4 {
            self.echoes = self.echoes.saturating_add(1);
            return self.idle();
        }
        if self.echoes >= ECHOES || self.sends >= ASKED {
            return self.idle();
        }
        self.fly(now)
    }

    /// The client has moved on.
    fn progress(&mut self, now: Duration) {
        let since = now.saturating_sub(self.last_sent_at);
        if self.sends == 1 {
            // RFC 6298 section 3 (Karn): only what was sent once tells a round trip.
            self.trip.measured(since);
        } else {
            if since < self.trip.shortest / 2 {
                // Too soon to be the answer to the last send: that one was needless.
                self.trip.measured(now.saturating_sub(self.first_sent_at));
                self.echoes = self.echoes.saturating_add(1);
            } else {
                self.trip.ambiguous();
            }
            self.recoveries = self.recoveries.saturating_add(1);
        }
        // Long silences tell of the client rather than of the path.
        self.lost_rounds = self.lost_rounds.saturating_add(self.sends.clamp(1, 3) - 1);
        self.rounds = self.rounds.saturating_add(1);
        self.heard = true;
        self.sends = 0;
    }

    /// Sends a window behind the last block that was acknowledged.
    fn fly(&mut self, now: Duration) -> Step {
        let first = self.acked + 1;
        let count = u64::from(self.terms.windowsize).min(self.last - self.acked);
        self.sent = self.acked + count;
        self.counts.sent += count;
        self.counts.resent += (self.highest + 1).saturating_sub(first).min(count);
        self.highest = self.highest.max(self.sent);
        self.mark_sent(now);
        Step::SendBlocks {
            first,
            // At most the window size, which is a u16.
            count: u16::try_from(count).unwrap_or(u16::MAX),
        }
    }

    fn mark_sent(&mut self, now: Duration) {
        if self.sends == 0 {
            self.first_sent_at = now;
        }
        self.sends += 1;
        self.last_sent_at = now;
    }
}

#[cfg(test)]
mod tests;
