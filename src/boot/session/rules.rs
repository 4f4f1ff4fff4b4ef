//! How long each silence of a booting machine may last. Plain data; judges nothing.

use chrono::TimeDelta;

/// Times of a boot; every one is measured from the last sign of life that matters to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// ROM and loader stages: no packet and no request for so long is a stall.
    pub stall: TimeDelta,
    /// How long a machine that was told to wait may stay away before it is gone. It looks
    /// again every few seconds; a minute at least, however short a stall is.
    pub waiting: TimeDelta,
    /// The same for a UEFI ROM that has not fetched a loader: between its PXE and its HTTP
    /// boot options it may try IPv6 for a minute or two without a word to us.
    pub uefi_rom: TimeDelta,
    /// After a broken transfer: how long the machine has to try again. Also what a transfer
    /// may last beyond the time that its size needs at [`Timings::SLOWEST`].
    pub transfer: TimeDelta,
    /// From the last file's delivery (or the system's first DHCP) to `up`.
    pub os: TimeDelta,
    /// How long a system that ran from its disk may be without a connection to it before its
    /// boot counts as over: longer than a cable is pulled or this server takes to start again.
    pub disk: TimeDelta,
    /// Between two beats of a running system.
    pub beat: TimeDelta,
    /// So many beats missed: contact lost.
    pub missed_beats: u8,
}

impl Timings {
    /// Bytes per second below which a transfer counts as dead: a tenth of a megabyte.
    pub const SLOWEST: u64 = 100_000;

    /// The defaults, with other times for a stall and for the operating system's start (the
    /// two that the configuration has).
    #[must_use]
    pub fn with(stall_seconds: u32, os_seconds: u32) -> Self {
        let stall = TimeDelta::seconds(i64::from(stall_seconds.max(1)));
        Self {
            stall,
            waiting: stall.max(TimeDelta::seconds(60)),
            uefi_rom: stall * 5 / 2,
            transfer: stall / 2,
            os: TimeDelta::seconds(i64::from(os_seconds.max(1))),
            disk: stall.max(TimeDelta::seconds(60)) * 2,
            beat: TimeDelta::seconds(30),
            missed_beats: 3,
        }
    }

    /// How long a running system that reports may be silent.
    #[must_use]
    pub fn silence(&self) -> TimeDelta {
        self.beat * i32::from(self.missed_beats.max(1))
    }

    /// How long an attempt may go round in the same place, packets or not. A ROM that asks
    /// again and again for what it does not get must end as an error some time.
    #[must_use]
    pub fn no_progress(&self) -> TimeDelta {
        self.uefi_rom.max(self.stall) * 2
    }

    /// How long a transfer of `size` bytes may last.
    #[must_use]
    pub fn transfer_of(&self, size: u64) -> TimeDelta {
        let seconds = i64::try_from(size / Self::SLOWEST).unwrap_or(i64::MAX);
        self.transfer + TimeDelta::seconds(seconds.min(86_400))
    }
}

impl Default for Timings {
    /// Stall 60 s, transfer 30 s, operating system 300 s, three beats of 30 s.
    fn default() -> Self {
        Self::with(60, 300)
    }
}

/// What a [`super::Boot`] needs to know of its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Silences.
    pub timings: Timings,
    /// The boot listener's port, for the sentence that asks whether a firewall blocks it.
    pub http_port: u16,
    /// Rows of `boot_events` per attempt; what comes later is only counted (its end is
    /// always written).
    pub max_events: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            timings: Timings::default(),
            http_port: 8069,
            max_events: 500,
        }
    }
}
