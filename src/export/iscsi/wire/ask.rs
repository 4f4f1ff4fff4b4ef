//! Headers that an initiator sends (RFC 7143 section 11), for who plays machines; the target
//! itself never speaks so. Lengths of data segments are written by who appends the data.

use super::{FINAL, HEADER, NO_TAG};

/// Bit of a request that is delivered outside of the command window.
const IMMEDIATE: u8 = 0x40;

/// Which way a command's data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moves {
    /// None.
    Nothing,
    /// To the initiator.
    In,
    /// From the initiator.
    Out,
}

/// A header that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask(pub [u8; HEADER]);

impl Ask {
    fn new(opcode: u8, flags: u8, tag: u32) -> Self {
        let mut header = [0; HEADER];
        header[0] = opcode;
        header[1] = flags;
        Self(header).with(16, tag)
    }

    fn with(mut self, at: usize, value: u32) -> Self {
        if let Some(place) = self.0.get_mut(at..at + 4) {
            place.copy_from_slice(&value.to_be_bytes());
        }
        self
    }

    fn lun(mut self, lun: u64) -> Self {
        self.0[8..16].copy_from_slice(&lun.to_be_bytes());
        self
    }

    /// Login request. `flags`: transit, continue and stages.
    #[must_use]
    pub fn login(flags: u8, isid: [u8; 6], tag: u32) -> Self {
        let mut ask = Self::new(0x03 | IMMEDIATE, flags, tag);
        ask.0[8..14].copy_from_slice(&isid);
        ask
    }

    /// SCSI command, all of whose immediate data comes with it. `expected`: bytes to be moved.
    #[must_use]
    pub fn command(tag: u32, lun: u64, moves: Moves, expected: u32, cdb: &[u8; 16]) -> Self {
        let moves = match moves {
            Moves::Nothing => 0,
            Moves::In => 0x40,
            Moves::Out => 0x20,
        };
        // Task attribute: simple.
        let mut ask = Self::new(0x01, FINAL | moves | 1, tag)
            .lun(lun)
            .with(20, expected);
        ask.0[32..].copy_from_slice(cdb);
        ask
    }

    /// SCSI Data-Out, the `number`th answer to an R2T. `last` of that R2T's.
    #[must_use]
    pub fn data_out(
        tag: u32,
        lun: u64,
        target_tag: u32,
        number: u32,
        offset: u32,
        last: bool,
    ) -> Self {
        Self::new(0x05, if last { FINAL } else { 0 }, tag)
            .lun(lun)
            .with(20, target_tag)
            .with(36, number)
            .with(40, offset)
    }

    /// NOP-Out that answers a ping of the target's.
    #[must_use]
    pub fn pong(lun: u64, target_tag: u32) -> Self {
        // The opcode of NOP-Out is 0.
        Self::new(IMMEDIATE, FINAL, NO_TAG)
            .lun(lun)
            .with(20, target_tag)
    }

    /// Logout: closes the session.
    #[must_use]
    pub fn logout(tag: u32) -> Self {
        Self::new(0x06 | IMMEDIATE, FINAL, tag)
    }

    /// Stamps CmdSN and ExpStatSN.
    pub fn stamp(&mut self, command: u32, expected: u32) {
        *self = self.with(24, command).with(28, expected);
    }

    /// Stamps ExpStatSN alone, for Data-Out, which has no CmdSN.
    pub fn stamp_expected(&mut self, expected: u32) {
        *self = self.with(28, expected);
    }

    /// Writes the length of the data segment.
    pub fn set_length(&mut self, length: usize) {
        let length = u32::try_from(length).unwrap_or(0);
        self.0[5..8].copy_from_slice(&length.to_be_bytes()[1..]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Header, Request};
    use super::*;

    #[test]
    fn the_target_reads_what_is_meant() {
        let mut ask = Ask::command(7, 3, Moves::In, 512, &[0x28; 16]);
        ask.stamp(5, 6);
        ask.set_length(9);
        let read = Header(ask.0);
        assert_eq!(read.request(), Some(Request::Command));
        assert_eq!((read.tag(), read.lun(), read.data_length()), (7, 3, 9));
        assert_eq!((read.word(20), read.word(24), read.word(28)), (512, 5, 6));
        assert_eq!((read.flags(), read.immediate()), (0xc1, false));
        let login = Header(Ask::login(0x87, [1, 2, 3, 4, 5, 6], 1).0);
        assert_eq!(
            (login.request(), login.immediate()),
            (Some(Request::Login), true)
        );
        assert_eq!(login.0[8..14], [1, 2, 3, 4, 5, 6]);
        let out = Header(Ask::data_out(7, 0, 9, 1, 512, true).0);
        assert_eq!(out.request(), Some(Request::DataOut));
        assert_eq!((out.word(20), out.word(36), out.word(40)), (9, 1, 512));
        let pong = Header(Ask::pong(0, 9).0);
        assert_eq!(
            (pong.request(), pong.tag()),
            (Some(Request::NopOut), NO_TAG)
        );
        assert_eq!(Header(Ask::logout(2).0).request(), Some(Request::Logout));
    }
}
