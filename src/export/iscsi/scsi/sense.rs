//! Sense data (SPC-4 4.5): what an initiator is told when a command did not end well.

/// Sense key, additional code and qualifier, and where it says something, what it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sense {
    /// Sense key.
    pub key: u8,
    /// Additional sense code (high byte) and qualifier (low byte).
    pub code: u16,
    /// The information field, such as the offset of a miscompare.
    pub information: Option<u32>,
}

macro_rules! senses {
    ($($(#[$doc:meta])* $name:ident = $key:literal, $code:literal;)*) => {
        impl Sense {
            $($(#[$doc])* pub const $name: Self = Self::new($key, $code);)*
        }
    };
}

senses! {
    /// Nothing to say.
    NONE = 0x0, 0x0000;
    /// The medium could not be read.
    READ_ERROR = 0x3, 0x1100;
    /// The medium could not be written.
    WRITE_ERROR = 0x3, 0x0c00;
    /// No such command.
    OPCODE = 0x5, 0x2000;
    /// Past the end of the disk.
    OUT_OF_RANGE = 0x5, 0x2100;
    /// A field of the command is wrong or asks for what is not there.
    FIELD = 0x5, 0x2400;
    /// No disk at that logical unit number.
    NO_LUN = 0x5, 0x2500;
    /// A field of the parameter list is wrong.
    PARAMETER = 0x5, 0x2600;
    /// A reservation is released that is none.
    RELEASE = 0x5, 0x2604;
    /// The parameter list has the wrong length.
    LIST_LENGTH = 0x5, 0x1a00;
    /// Values of mode pages are not saved.
    SAVING = 0x5, 0x3900;
    /// No room for more registrations.
    REGISTRATIONS = 0x5, 0x5504;
    /// A new nexus: power on, reset.
    POWER_ON = 0x6, 0x2900;
    /// A reset of the logical unit.
    RESET = 0x6, 0x2903;
    /// Reservations were preempted.
    PREEMPTED = 0x6, 0x2a03;
    /// Reservations were released.
    RELEASED = 0x6, 0x2a04;
    /// The registration of this nexus was preempted.
    REGISTRATION_PREEMPTED = 0x6, 0x2a05;
    /// Another initiator's task management cleared commands.
    CLEARED = 0x6, 0x2f00;
    /// The disk is for reading only.
    WRITE_PROTECTED = 0x7, 0x2700;
    /// No space is left for what was to be written.
    NO_SPACE = 0x7, 0x2707;
    /// The initiator sent less data than the command needs.
    TOO_LITTLE_DATA = 0xb, 0x0c0d;
    /// What was compared is not the same.
    MISCOMPARE = 0xe, 0x1d00;
}

impl Sense {
    /// A key and a code with its qualifier.
    #[must_use]
    pub const fn new(key: u8, code: u16) -> Self {
        Self {
            key,
            code,
            information: None,
        }
    }

    /// About that.
    #[must_use]
    pub const fn about(mut self, information: u32) -> Self {
        self.information = Some(information);
        self
    }

    /// Fixed format, current error: 18 bytes (SPC-4 4.5.3).
    #[must_use]
    pub fn fixed(&self) -> [u8; 18] {
        let mut sense = [0_u8; 18];
        sense[0] = 0x70;
        if let Some(information) = self.information {
            sense[0] |= 0x80;
            sense[3..7].copy_from_slice(&information.to_be_bytes());
        }
        sense[2] = self.key;
        sense[7] = 10;
        sense[12..14].copy_from_slice(&self.code.to_be_bytes());
        sense
    }

    /// Descriptor format without descriptors: 8 bytes (SPC-4 4.5.2).
    #[must_use]
    pub fn descriptor(&self) -> [u8; 8] {
        let [code, qualifier] = self.code.to_be_bytes();
        [0x72, self.key, code, qualifier, 0, 0, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats() {
        let sense = Sense::MISCOMPARE.about(0x0102_0304);
        let fixed = sense.fixed();
        assert_eq!(fixed[..8], [0xf0, 0, 0x0e, 1, 2, 3, 4, 10]);
        assert_eq!(fixed[12..14], [0x1d, 0]);
        assert_eq!(Sense::FIELD.fixed()[0], 0x70);
        assert_eq!(Sense::FIELD.descriptor()[..4], [0x72, 5, 0x24, 0]);
    }
}
