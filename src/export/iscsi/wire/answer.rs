//! Headers that a target sends (RFC 7143 section 11), without the three sequence numbers:
//! those are stamped when the PDU's place in the stream is certain. Lengths of data segments
//! are written by who appends the data.

use super::{FINAL, HEADER, NO_TAG};

/// A header that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer(pub [u8; HEADER]);

/// Why a PDU was rejected (RFC 7143 section 11.17.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// SNACK: level 0 recovers nothing.
    Snack,
    /// The protocol does not allow it here.
    Protocol,
    /// No such command.
    NotSupported,
    /// Too many immediate commands.
    TooManyImmediate,
    /// A task with that tag is under way.
    TaskInProgress,
    /// A field is wrong.
    InvalidField,
}

impl RejectReason {
    /// Metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Snack => "snack",
            Self::Protocol => "protocol",
            Self::NotSupported => "not_supported",
            Self::TooManyImmediate => "too_many_immediate",
            Self::TaskInProgress => "task_in_progress",
            Self::InvalidField => "invalid_field",
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::Snack => 0x03,
            Self::Protocol => 0x04,
            Self::NotSupported => 0x05,
            Self::TooManyImmediate => 0x06,
            Self::TaskInProgress => 0x07,
            Self::InvalidField => 0x09,
        }
    }
}

/// How much less or more was moved than the initiator expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// Exactly what it expected.
    None,
    /// So many bytes fewer.
    Under(u32),
    /// So many bytes more would have been there.
    Over(u32),
}

impl Residual {
    /// Of a transfer: what there is to move, and what the initiator expects to.
    #[must_use]
    pub fn of(available: u64, expected: u32) -> Self {
        let expected = u64::from(expected);
        let word = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        match available.cmp(&expected) {
            std::cmp::Ordering::Equal => Self::None,
            std::cmp::Ordering::Less => Self::Under(word(expected - available)),
            std::cmp::Ordering::Greater => Self::Over(word(available - expected)),
        }
    }

    const fn flag(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Under(_) => 0x02,
            Self::Over(_) => 0x04,
        }
    }

    const fn count(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Under(n) | Self::Over(n) => n,
        }
    }
}

impl Answer {
    /// A header with an opcode, the final bit, and a tag.
    #[must_use]
    pub fn new(opcode: u8, tag: u32) -> Self {
        let mut header = [0_u8; HEADER];
        header[0] = opcode;
        header[1] = FINAL;
        Self(header).with(16, tag)
    }

    /// A number of 4 bytes at a place within the header.
    #[must_use]
    pub fn with(mut self, at: usize, value: u32) -> Self {
        if let Some(place) = self.0.get_mut(at..at + 4) {
            place.copy_from_slice(&value.to_be_bytes());
        }
        self
    }

    /// SCSI response: done at the target, with a SCSI status.
    #[must_use]
    pub fn scsi(tag: u32, status: u8, residual: Residual) -> Self {
        let mut answer = Self::new(0x21, tag).with(44, residual.count());
        answer.0[1] |= residual.flag();
        answer.0[3] = status;
        answer
    }

    /// SCSI Data-In. `last` in the sequence; `status` with it when it ends the task well.
    #[must_use]
    pub fn data_in(tag: u32, number: u32, offset: u32, last: bool, end: Option<Residual>) -> Self {
        let mut answer = Self::new(0x25, tag)
            .with(20, NO_TAG)
            .with(36, number)
            .with(40, offset);
        answer.0[1] = if last { FINAL } else { 0 };
        if let Some(residual) = end {
            answer.0[1] = FINAL | 0x01 | residual.flag();
            return answer.with(44, residual.count());
        }
        answer
    }

    /// Ready to transfer.
    #[must_use]
    pub fn r2t(tag: u32, lun: u64, target_tag: u32, number: u32, offset: u32, length: u32) -> Self {
        let mut answer = Self::new(0x31, tag)
            .with(20, target_tag)
            .with(36, number)
            .with(40, offset)
            .with(44, length);
        answer.0[8..16].copy_from_slice(&lun.to_be_bytes());
        answer
    }

    /// NOP-In: the answer to a ping (`tag`), or a ping of ours (`target_tag`).
    #[must_use]
    pub fn nop_in(tag: u32, target_tag: u32, lun: u64) -> Self {
        let mut answer = Self::new(0x20, tag).with(20, target_tag);
        answer.0[8..16].copy_from_slice(&lun.to_be_bytes());
        answer
    }

    /// Task management response.
    #[must_use]
    pub fn task_management(tag: u32, response: u8) -> Self {
        let mut answer = Self::new(0x22, tag);
        answer.0[2] = response;
        answer
    }

    /// Text response, complete.
    #[must_use]
    pub fn text(tag: u32) -> Self {
        Self::new(0x24, tag).with(20, NO_TAG)
    }

    /// Logout response: 0 closed, 2 recovery is not supported. No time to wait or retain.
    #[must_use]
    pub fn logout(tag: u32, response: u8) -> Self {
        let mut answer = Self::new(0x26, tag);
        answer.0[2] = response;
        answer
    }

    /// Reject; the rejected header follows as data.
    #[must_use]
    pub fn reject(reason: RejectReason) -> Self {
        let mut answer = Self::new(0x3f, NO_TAG);
        answer.0[2] = reason.code();
        answer
    }

    /// Asynchronous message: the target asks for a logout within so many seconds.
    #[must_use]
    pub fn asks_for_logout(seconds: u16) -> Self {
        let mut answer = Self::new(0x32, NO_TAG);
        answer.0[36] = 1;
        answer.0[42..44].copy_from_slice(&seconds.to_be_bytes());
        answer
    }

    /// Login response. `flags`: transit, continue and stages; `status`: class and detail.
    #[must_use]
    pub fn login(request: &super::Header, flags: u8, tsih: u16, status: u16) -> Self {
        let mut answer = Self::new(0x23, request.tag());
        answer.0[1] = flags;
        answer.0[8..14].copy_from_slice(&request.0[8..14]);
        answer.0[14..16].copy_from_slice(&tsih.to_be_bytes());
        answer.0[36..38].copy_from_slice(&status.to_be_bytes());
        answer
    }

    /// Stamps StatSN, ExpCmdSN and MaxCmdSN.
    pub fn stamp(&mut self, stat: u32, expected: u32, most: u32) {
        *self = self.with(24, stat).with(28, expected).with(32, most);
    }

    /// Writes the length of the data segment.
    pub fn set_length(&mut self, length: usize) {
        let length = u32::try_from(length).unwrap_or(0);
        self.0[5..8].copy_from_slice(&length.to_be_bytes()[1..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn residuals_say_which_way() {
        assert_eq!(Residual::of(512, 512), Residual::None);
        assert_eq!(Residual::of(512, 1024), Residual::Under(512));
        assert_eq!(Residual::of(1024, 0), Residual::Over(1024));
        let answer = Answer::scsi(7, 0, Residual::Over(9));
        assert_eq!((answer.0[1], answer.0[47]), (0x84, 9));
        let data = Answer::data_in(7, 1, 512, true, Some(Residual::Under(3)));
        assert_eq!((data.0[1], data.0[47]), (0x83, 3));
    }

    #[test]
    fn numbers_are_where_the_rfc_has_them() {
        let mut answer = Answer::new(0x21, 0x0102_0304);
        answer.stamp(1, 2, 3);
        answer.set_length(0x0001_0203);
        assert_eq!(answer.0[5..8], [1, 2, 3]);
        assert_eq!(answer.0[16..20], [1, 2, 3, 4]);
        assert_eq!(answer.0[24..36], [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]);
    }
}
