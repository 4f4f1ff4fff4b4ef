//! REPORT SUPPORTED OPERATION CODES (SPC-4 6.35): one table of what [`cdb`](super::cdb) reads.

use super::Sense;
use super::cdb::Codes;

/// A command: opcode, service action, and which bits of its descriptor mean something.
struct Command {
    code: u8,
    action: Option<u16>,
    usage: &'static [u8],
}

const fn plain(usage: &'static [u8]) -> Command {
    Command {
        code: usage[0],
        action: None,
        usage,
    }
}

const fn with(action: u16, usage: &'static [u8]) -> Command {
    Command {
        code: usage[0],
        action: Some(action),
        usage,
    }
}

const F: u8 = 0xff;

/// A descriptor of 10 bytes whose second byte, address and length mean something.
macro_rules! ten {
    ($code:literal, $flags:literal) => {
        plain(&[$code, $flags, F, F, F, F, 0, F, F, 4])
    };
}
macro_rules! twelve {
    ($code:literal, $flags:literal) => {
        plain(&[$code, $flags, F, F, F, F, F, F, F, F, 0, 4])
    };
}
macro_rules! sixteen {
    ($code:literal, $flags:literal) => {
        plain(&[$code, $flags, F, F, F, F, F, F, F, F, F, F, F, F, 0, 4])
    };
}
macro_rules! reserve_in {
    ($action:literal) => {
        with($action, &[0x5e, 0x1f, 0, 0, 0, 0, 0, F, F, 4])
    };
}
macro_rules! reserve_out {
    ($action:literal) => {
        with($action, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 4])
    };
}

const COMMANDS: &[Command] = &[
    plain(&[0x00, 0, 0, 0, 0, 4]),
    plain(&[0x03, 1, 0, 0, F, 4]),
    plain(&[0x08, 0x1f, F, F, F, 4]),
    plain(&[0x0a, 0x1f, F, F, F, 4]),
    plain(&[0x12, 1, F, F, F, 4]),
    plain(&[0x15, 0x10, 0, 0, F, 4]),
    plain(&[0x16, 0, 0, 0, 0, 4]),
    plain(&[0x17, 0, 0, 0, 0, 4]),
    plain(&[0x1a, 0x08, F, F, F, 4]),
    plain(&[0x1b, 1, 0, 0x0f, 0xf7, 4]),
    plain(&[0x1e, 0, 0, 0, 1, 4]),
    plain(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 4]),
    ten!(0x28, 0x18),
    ten!(0x2a, 0x18),
    ten!(0x2e, 0x12),
    ten!(0x2f, 0x16),
    ten!(0x34, 0x02),
    ten!(0x35, 0x02),
    ten!(0x41, 0x08),
    plain(&[0x42, 0, 0, 0, 0, 0, 0, F, F, 4]),
    plain(&[0x55, 0x10, 0, 0, 0, 0, 0, F, F, 4]),
    plain(&[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 4]),
    plain(&[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 4]),
    plain(&[0x5a, 0x08, F, F, 0, 0, 0, F, F, 4]),
    reserve_in!(0),
    reserve_in!(1),
    reserve_in!(2),
    reserve_in!(3),
    reserve_out!(0),
    reserve_out!(1),
    reserve_out!(2),
    reserve_out!(3),
    reserve_out!(4),
    reserve_out!(5),
    reserve_out!(6),
    sixteen!(0x88, 0x18),
    plain(&[0x89, 0x18, F, F, F, F, F, F, F, F, 0, 0, 0, F, 0, 4]),
    sixteen!(0x8a, 0x18),
    sixteen!(0x8b, 0x18),
    sixteen!(0x8e, 0x12),
    sixteen!(0x8f, 0x16),
    sixteen!(0x90, 0x02),
    sixteen!(0x91, 0x02),
    sixteen!(0x93, 0x09),
    with(
        0x10,
        &[0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 4],
    ),
    with(
        0x12,
        &[0x9e, 0x1f, F, F, F, F, F, F, F, F, F, F, F, F, 0, 4],
    ),
    plain(&[0xa0, 0, F, 0, 0, 0, F, F, F, F, 0, 4]),
    with(0x0c, &[0xa3, 0x1f, 0x87, F, F, F, F, F, F, F, 0, 4]),
    twelve!(0xa8, 0x18),
    twelve!(0xaa, 0x18),
    twelve!(0xae, 0x12),
    twelve!(0xaf, 0x16),
];

/// Command timeouts descriptor (SPC-4 6.35.4): nothing is promised.
const TIMEOUTS: [u8; 12] = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The answer.
///
/// # Errors
/// A service action asked for where there is none, or the other way round.
pub fn report(codes: Codes, timeouts: bool) -> Result<Vec<u8>, Sense> {
    let (code, action) = match codes {
        Codes::All => return Ok(all(timeouts)),
        Codes::One(code) => {
            if known(code).any(|c| c.action.is_some()) {
                return Err(Sense::FIELD);
            }
            (code, None)
        }
        Codes::Action(code, action) => {
            if known(code).any(|c| c.action.is_none()) {
                return Err(Sense::FIELD);
            }
            (code, Some(action))
        }
        Codes::Either(code, action) => {
            let has = known(code).any(|c| c.action.is_some());
            (code, has.then_some(action))
        }
    };
    let Some(found) = known(code).find(|c| c.action == action) else {
        // Support 1: there is none.
        return Ok(vec![0, 1, 0, 0]);
    };
    let mut data = vec![0, 3, 0, u8::try_from(found.usage.len()).unwrap_or(0)];
    data.extend_from_slice(found.usage);
    if timeouts {
        data[1] |= 0x80;
        data.extend(TIMEOUTS);
    }
    Ok(data)
}

fn known(code: u8) -> impl Iterator<Item = &'static Command> {
    COMMANDS.iter().filter(move |c| c.code == code)
}

fn all(timeouts: bool) -> Vec<u8> {
    let mut data = vec![0; 4];
    for command in COMMANDS {
        let action = command.action.unwrap_or(0).to_be_bytes();
        let flags = u8::from(command.action.is_some()) | if timeouts { 2 } else { 0 };
        let length = u8::try_from(command.usage.len()).unwrap_or(0);
        data.extend([command.code, 0, action[0], action[1], 0, flags, 0, length]);
        if timeouts {
            data.extend(TIMEOUTS);
        }
    }
    let length = u32::try_from(data.len() - 4).unwrap_or(0);
    data[..4].copy_from_slice(&length.to_be_bytes());
    data
}

#[cfg(test)]
mod tests {
    use super::super::cdb::decode;
    use super::*;

    #[test]
    fn the_table_is_what_is_decoded() {
        for code in 0..=255_u8 {
            let mut cdb = [0; 16];
            cdb[0] = code;
            let decoded = decode(&cdb) != Err(Sense::OPCODE);
            assert_eq!(decoded, known(code).next().is_some(), "{code:02x}");
        }
    }

    #[test]
    fn one_is_told_with_its_usage() {
        let data = report(Codes::One(0x28), true).unwrap();
        assert_eq!(data[..6], [0, 0x83, 0, 10, 0x28, 0x18]);
        assert_eq!(data.len(), 4 + 10 + 12);
        assert_eq!(report(Codes::One(0x9e), false), Err(Sense::FIELD));
        assert_eq!(report(Codes::Action(0x28, 0), false), Err(Sense::FIELD));
        assert_eq!(report(Codes::One(0x83), false), Ok(vec![0, 1, 0, 0]));
    }
}
