//! Frames over a stream: one after another, bounded, with what went wrong in words. It knows
//! neither TLS nor what frames mean. Blocks.

use std::io::{self, Read, Write};

use super::wire::{self, Malformed, Message};

/// Why a conversation is over.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The connection failed or was silent for too long.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// What came is no frame.
    #[error("{0}")]
    Malformed(#[from] Malformed),
}

/// Frames over a stream.
#[derive(Debug)]
pub struct Line<S> {
    stream: S,
}

impl<S: Read + Write> Line<S> {
    /// Over a stream with time limits of its own.
    pub const fn new(stream: S) -> Self {
        Self { stream }
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn send(&mut self, message: &Message) -> io::Result<()> {
        self.stream.write_all(&wire::encode(message))?;
        self.stream.flush()
    }

    /// Waits for a frame.
    ///
    /// # Errors
    /// When the connection fails, ends or is silent, and for what is no frame.
    pub fn receive(&mut self) -> Result<Message, Broken> {
        let mut head = [0; 4];
        self.stream.read_exact(&mut head)?;
        let mut frame = vec![0; wire::length(head)? + 4];
        self.stream.read_exact(&mut frame)?;
        Ok(wire::decode(&frame)?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn frames_come_back_and_a_torn_one_is_an_end() {
        let data = Message::Data {
            offset: 4096,
            bytes: vec![7; 1000],
        };
        let mut line = Line::new(Cursor::new(Vec::new()));
        for message in [&Message::Working, &data] {
            line.send(message).unwrap();
        }
        let whole = line.stream.into_inner();
        let mut line = Line::new(Cursor::new(whole.clone()));
        assert_eq!(line.receive().unwrap(), Message::Working);
        assert_eq!(line.receive().unwrap(), data);
        for end in 1..whole.len() {
            let mut line = Line::new(Cursor::new(whole[..end].to_vec()));
            let mut last = line.receive();
            if last.is_ok() {
                last = line.receive();
            }
            assert!(matches!(last, Err(Broken::Io(_))), "{end}");
        }
    }

    #[test]
    fn a_bit_flipped_on_the_way_is_found_before_anything_is_written() {
        let data = Message::Data {
            offset: 4096,
            bytes: vec![7; 1000],
        };
        let frame = wire::encode(&data);
        // Of the content: with the length untouched it is the sum that tells.
        let bad = (4..frame.len()).map(|at| {
            let mut bad = frame.clone();
            bad[at] ^= 0x20;
            bad
        });
        for bad in bad {
            let told = Line::new(Cursor::new(bad)).receive();
            assert!(
                matches!(told, Err(Broken::Malformed(Malformed::Damaged))),
                "{told:?}"
            );
        }
    }
}
