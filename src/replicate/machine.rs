//! What a receiver may be told when: one version after another, its content in rising order,
//! within the disk. Pure; it keeps no content and judges no version.

use uuid::Uuid;

use super::wire::{Base, Message, PROTOCOL, Refusal};

/// The largest disk, bytes: 64 TiB.
const LARGEST: u64 = 64 << 40;

/// Where a conversation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Nobody has said who they are.
    Unknown,
    /// Anything may be asked for.
    Idle,
    /// An offer waits for its answer.
    Offered { size: u64 },
    /// Content comes.
    Receiving { size: u64, at: u64 },
    /// A stream comes; so many bytes of it did.
    Streaming { size: u64, at: u64 },
    /// All of a stream came.
    Streamed,
    /// A file comes, or waits for its answer.
    File,
}

/// The receiver's side of a connection.
#[derive(Debug)]
pub struct Machine {
    standing: Standing,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Compare the server with its certificate, and say who we are.
    Greet(Uuid),
    /// Decide, then [`Machine::accepted`] or [`Machine::refused`].
    Offer {
        /// The image.
        image: Uuid,
        /// The version.
        version: Uuid,
        /// Bytes of the disk.
        size: u64,
        /// Its point, or 0.
        point: u64,
        /// What it may be a difference to.
        bases: Vec<Base>,
    },
    /// Write.
    Write {
        /// Where.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Write zeroes.
    Zero {
        /// Where.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Make all of it durable and note that.
    Sync(u64),
    /// Take more of a stream.
    Stream(Vec<u8>),
    /// It is all there; so many bytes came.
    StreamEnd(u64),
    /// Begin a stream anew, then [`Machine::streaming`] or [`Machine::refused`].
    Restart,
    /// Compare.
    Finish([u8; 32]),
    /// Remove a replica.
    Drop(Uuid),
    /// Say whether the file is wanted.
    File {
        /// The image.
        image: Uuid,
        /// Which of its files.
        number: u16,
    },
    /// More of it; none is its end.
    Piece(Vec<u8>),
    /// Nothing.
    Nothing,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            standing: Standing::Unknown,
        }
    }
}

impl Machine {
    /// Takes a frame.
    ///
    /// # Errors
    /// What is wrong with it; the connection is of no use any more.
    pub fn take(&mut self, message: Message) -> Result<Step, (Refusal, &'static str)> {
        let confused = |what| Err((Refusal::Confused, what));
        match (self.standing, message) {
            (Standing::Unknown, Message::Hello { protocol, server }) => {
                if protocol != PROTOCOL {
                    return Err((
                        Refusal::Protocol,
                        "the servers are of versions that don't understand each other",
                    ));
                }
                self.standing = Standing::Idle;
                Ok(Step::Greet(server))
            }
            (Standing::Unknown, _) => confused("the first frame must say who sends it"),
            (_, Message::Working) => Ok(Step::Nothing),
            (
                Standing::Idle,
                Message::Offer {
                    image,
                    version,
                    size,
                    point,
                    bases,
                },
            ) => {
                if size == 0 || size % 512 != 0 || size > LARGEST {
                    return confused("a disk can't have that size");
                }
                self.standing = Standing::Offered { size };
                Ok(Step::Offer {
                    image,
                    version,
                    size,
                    point,
                    bases,
                })
            }
            (Standing::Streaming { size, at }, Message::Stream { bytes }) => {
                if bytes.is_empty() {
                    self.standing = Standing::Streamed;
                    return Ok(Step::StreamEnd(at));
                }
                let at = at.saturating_add(bytes.len() as u64);
                self.standing = Standing::Streaming { size, at };
                Ok(Step::Stream(bytes))
            }
            (Standing::Streaming { at, .. }, Message::Sync { through }) => match through == at {
                true => Ok(Step::Sync(through)),
                false => confused("that much was not sent"),
            },
            (Standing::Streaming { size, at: 0 }, Message::Restart) => {
                self.standing = Standing::Offered { size };
                Ok(Step::Restart)
            }
            (Standing::Streamed, Message::End { sha256 }) => {
                self.standing = Standing::Idle;
                Ok(Step::Finish(sha256))
            }
            (Standing::Idle, Message::Drop { version }) => Ok(Step::Drop(version)),
            (Standing::Idle, Message::File { image, number }) => {
                self.standing = Standing::File;
                Ok(Step::File { image, number })
            }
            (Standing::File, Message::Piece { bytes }) => {
                if bytes.is_empty() {
                    self.standing = Standing::Idle;
                }
                Ok(Step::Piece(bytes))
            }
            (Standing::Receiving { size, at }, Message::Data { offset, bytes }) => {
                self.advance(size, at, offset, bytes.len() as u64)?;
                Ok(Step::Write { offset, bytes })
            }
            (Standing::Receiving { size, at }, Message::Zero { offset, length }) => {
                self.advance(size, at, offset, length)?;
                Ok(Step::Zero { offset, length })
            }
            (Standing::Receiving { size, at }, Message::Sync { through }) => {
                if through < at || through > size {
                    return confused("that much was not sent");
                }
                self.standing = Standing::Receiving { size, at: through };
                Ok(Step::Sync(through))
            }
            (Standing::Receiving { size, at }, Message::End { sha256 }) => {
                if at != size {
                    return confused("the end came before all was made durable");
                }
                self.standing = Standing::Idle;
                Ok(Step::Finish(sha256))
            }
            _ => confused("that is not what comes now"),
        }
    }

    fn advance(
        &mut self,
        size: u64,
        at: u64,
        offset: u64,
        length: u64,
    ) -> Result<(), (Refusal, &'static str)> {
        let end = offset.checked_add(length).filter(|end| *end <= size);
        let end = end.ok_or((Refusal::Confused, "content beyond the end of the disk"))?;
        if offset < at {
            return Err((Refusal::Confused, "content that does not go forward"));
        }
        self.standing = Standing::Receiving { size, at: end };
        Ok(())
    }

    /// The offer was taken; content goes on at that offset.
    pub fn accepted(&mut self, through: u64) {
        if let Standing::Offered { size } = self.standing {
            self.standing = Standing::Receiving { size, at: through };
        }
    }

    /// The offer was taken, and a stream comes.
    pub fn streaming(&mut self) {
        if let Standing::Offered { size } = self.standing {
            self.standing = Standing::Streaming { size, at: 0 };
        }
    }

    /// The offer or file was not taken; something else may be asked for.
    pub fn refused(&mut self) {
        self.standing = Standing::Idle;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Message {
        Message::Hello {
            protocol: PROTOCOL,
            server: Uuid::from_u128(1),
        }
    }

    fn offer(size: u64) -> Message {
        Message::Offer {
            image: Uuid::from_u128(2),
            version: Uuid::from_u128(3),
            size,
            point: 0,
            bases: vec![],
        }
    }

    fn data(offset: u64, length: usize) -> Message {
        Message::Data {
            offset,
            bytes: vec![1; length],
        }
    }

    fn receiving(size: u64, through: u64) -> Machine {
        let mut machine = Machine::default();
        machine.take(hello()).unwrap();
        machine.take(offer(size)).unwrap();
        machine.accepted(through);
        machine
    }

    #[test]
    fn a_whole_conversation() {
        let mut machine = receiving(4096, 512);
        machine.take(data(512, 512)).unwrap();
        machine.take(Message::Working).unwrap();
        let zero = Message::Zero {
            offset: 2048,
            length: 2048,
        };
        machine.take(zero).unwrap();
        let sync = Message::Sync { through: 4096 };
        assert_eq!(machine.take(sync), Ok(Step::Sync(4096)));
        let end = Message::End { sha256: [7; 32] };
        assert_eq!(machine.take(end), Ok(Step::Finish([7; 32])));
        machine.take(offer(512)).unwrap();
        machine.refused();
        machine.take(offer(512)).unwrap();
    }

    #[test]
    fn what_does_not_come_now_is_refused() {
        let mut machine = Machine::default();
        assert!(machine.take(offer(512)).is_err(), "nobody is known yet");
        let other = Message::Hello {
            protocol: 1,
            server: Uuid::nil(),
        };
        assert_eq!(machine.take(other).unwrap_err().0, Refusal::Protocol);
        machine.take(hello()).unwrap();
        assert!(machine.take(hello()).is_err());
        assert!(machine.take(data(0, 1)).is_err(), "nothing was offered");
        for size in [0, 511, LARGEST + 512] {
            assert!(machine.take(offer(size)).is_err(), "{size}");
        }
        machine.take(offer(512)).unwrap();
        assert!(machine.take(data(0, 1)).is_err(), "it was not accepted yet");
        assert!(machine.take(Message::Piece { bytes: vec![1] }).is_err());
    }

    #[test]
    fn a_stream_ends_once_and_begins_anew_only_at_its_beginning() {
        let streaming = || {
            let mut machine = Machine::default();
            machine.take(hello()).unwrap();
            machine.take(offer(4096)).unwrap();
            machine.streaming();
            machine
        };
        let part = |length| Message::Stream {
            bytes: vec![1; length],
        };
        let end = Message::End { sha256: [7; 32] };
        let mut machine = streaming();
        assert_eq!(machine.take(Message::Restart), Ok(Step::Restart));
        assert!(machine.take(part(1)).is_err(), "it was not accepted again");
        let mut machine = streaming();
        assert_eq!(machine.take(part(9000)), Ok(Step::Stream(vec![1; 9000])));
        let sync = Message::Sync { through: 9000 };
        assert_eq!(machine.take(sync), Ok(Step::Sync(9000)));
        assert_eq!(machine.take(part(0)), Ok(Step::StreamEnd(9000)));
        assert_eq!(machine.take(end.clone()), Ok(Step::Finish([7; 32])));
        for bad in [
            Message::Restart,
            end,
            data(0, 512),
            Message::Sync { through: 8 },
        ] {
            let mut machine = streaming();
            machine.take(part(9)).unwrap();
            assert_eq!(machine.take(bad).unwrap_err().0, Refusal::Confused);
        }
        let mut machine = streaming();
        machine.take(part(0)).unwrap();
        assert!(machine.take(part(1)).is_err(), "it has ended");
        assert!(receiving(4096, 0).take(part(1)).is_err(), "blocks come");
    }

    #[test]
    fn content_goes_forward_and_stays_within_the_disk() {
        for bad in [
            data(0, 512),
            data(3584, 513),
            data(4096, 1),
            data(u64::MAX, 1),
            Message::Zero {
                offset: 1024,
                length: 3073,
            },
            Message::Sync { through: 1023 },
            Message::Sync { through: 4097 },
            Message::End { sha256: [0; 32] },
            Message::Drop {
                version: Uuid::nil(),
            },
        ] {
            let mut machine = receiving(4096, 1024);
            assert_eq!(
                machine.take(bad.clone()).unwrap_err().0,
                Refusal::Confused,
                "{bad:?}"
            );
        }
    }
}
