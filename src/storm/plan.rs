//! Which machines there are and when each is switched on. Pure numbers.

use std::time::Duration;

use crate::dhcp::wire::client::Firmware;
use crate::model::MacAddr;

/// Most machines of one storm: so many numbers has the tail of a MAC.
pub const MOST_MACHINES: u32 = 1 << 24;

/// How the machines are and behave.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many.
    pub machines: u32,
    /// They are switched on evenly over this time.
    pub ramp: Duration,
    /// How long each may take from its switch to its last stage, its stay not counted.
    pub timeout: Duration,
    /// MAC of the first; the others follow it.
    pub first_mac: MacAddr,
    /// What their firmware is; `None`: iPXE itself, in the ROM.
    pub rom: Option<Firmware>,
    /// What the loader runs on.
    pub platform: Firmware,
    /// Percent of the usual times between retransmissions.
    pub patience: u32,
    /// Percent of the profile's pauses.
    pub think: u32,
    /// How long each stays on after `up`, with a beat every 30 s.
    pub stay: Duration,
    /// Whether it says `bye` at the end.
    pub bye: bool,
    /// Seed of transaction numbers, jitter and written bytes.
    pub seed: u64,
}

impl Plan {
    /// MAC of the `n`th machine: the first one's last three bytes counted on.
    #[must_use]
    pub fn mac(&self, n: u32) -> MacAddr {
        let [a, b, c, d, e, f] = self.first_mac.octets();
        let tail = u32::from_be_bytes([0, d, e, f]).wrapping_add(n);
        let [_, d, e, f] = tail.to_be_bytes();
        MacAddr([a, b, c, d, e, f])
    }

    /// The number of the machine with this MAC.
    #[must_use]
    pub fn number(&self, mac: MacAddr) -> Option<u32> {
        let ([a, b, c, d, e, f], first) = (mac.octets(), self.first_mac.octets());
        if [a, b, c] != first[..3] {
            return None;
        }
        let tail = |d, e, f| u32::from_be_bytes([0, d, e, f]);
        let n = tail(d, e, f).wrapping_sub(tail(first[3], first[4], first[5])) % MOST_MACHINES;
        (n < self.machines).then_some(n)
    }

    /// When the `n`th is switched on, from the beginning.
    #[must_use]
    pub fn start(&self, n: u32) -> Duration {
        self.ramp
            .mul_f64(f64::from(n) / f64::from(self.machines.max(1)))
    }

    /// SMBIOS UUID of the `n`th, as it lies in memory: made of its MAC, a version 4 in form.
    #[must_use]
    pub fn machine_id(&self, n: u32) -> [u8; 16] {
        let mut id = *b"dls storm\0\0\0\0\0\0\0";
        id[7] = 0x40;
        id[8] = 0x80;
        id[10..].copy_from_slice(&self.mac(n).octets());
        id
    }

    /// The longest that the whole storm may take.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.ramp + self.timeout + self.stay
    }
}

/// A small generator (SplitMix64): the same seed, the same numbers.
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub(super) const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub(super) const fn below(&mut self, bound: u64) -> u64 {
        let roll = self.roll();
        if bound == 0 { 0 } else { roll % bound }
    }
}

/// How long the `tries`th packet (from 0) waits for its answer: 4, 8, 16 and 32 s (PXE 2.1
/// section 2.4.2, RFC 2131 section 4.1), less or more by up to a second as the RFC has it;
/// `None` after the last. `patience` in percent.
pub(super) fn wait(tries: u32, patience: u32, dice: &mut Dice) -> Option<Duration> {
    let seconds = match tries {
        0..=3 => 4_u64 << tries,
        _ => return None,
    };
    let millis = seconds * 1000 - 1000 + dice.below(2001);
    Some(Duration::from_millis(millis * u64::from(patience) / 100))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::storm) fn plan(machines: u32) -> Plan {
        Plan {
            machines,
            ramp: Duration::from_secs(10),
            timeout: Duration::from_secs(60),
            first_mac: MacAddr([2, 0xd1, 0x50, 0, 0, 0]),
            rom: Some(Firmware::Bios),
            platform: Firmware::Bios,
            patience: 100,
            think: 100,
            stay: Duration::ZERO,
            bye: false,
            seed: 1,
        }
    }

    #[test]
    fn waits_double_and_end() {
        let mut dice = Dice::new(3);
        for (tries, seconds) in [(0, 4), (1, 8), (2, 16), (3, 32)] {
            for _ in 0..100 {
                let wait = wait(tries, 100, &mut dice).unwrap().as_millis();
                assert!((seconds * 1000 - 1000..=seconds * 1000 + 1000).contains(&wait));
            }
        }
        assert_eq!(wait(4, 100, &mut dice), None);
        assert!(wait(0, 10, &mut dice).unwrap() <= Duration::from_millis(500));
    }

    #[test]
    fn starts_are_spread_over_the_ramp() {
        let plan = plan(20);
        assert_eq!(plan.start(0), Duration::ZERO);
        assert_eq!(plan.start(10), Duration::from_secs(5));
        assert!(plan.start(19) < plan.ramp);
    }

    proptest! {
        #[test]
        fn a_mac_is_one_machines(first: [u8; 6], machines in 1..5000_u32, n in 0..6000_u32) {
            let plan = Plan { first_mac: MacAddr(first), ..plan(machines) };
            let found = plan.number(plan.mac(n));
            prop_assert_eq!(found, (n < machines).then_some(n));
        }
    }
}
