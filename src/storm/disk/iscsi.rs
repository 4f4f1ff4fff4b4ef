//! An initiator of iSCSI (RFC 7143): one connection, no digests, CHAP with MD5 one way or mutual,
//! one command at a time.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::orders::Target;
use super::super::words::{Cause, Trouble};
use crate::export::iscsi::machine::chap::Algorithm;
use crate::export::iscsi::wire::ask::{Ask, Moves};
use crate::export::iscsi::wire::text::{Text, binary, number, pairs, to_hex};
use crate::export::iscsi::wire::{FINAL, HEADER, Header, NO_TAG, padded};

/// Longest data segment that we take.
const LONGEST: usize = 256 << 10;
/// Requests of one login.
const MOST_LOGINS: u32 = 12;
/// Tries of a command that only meets a unit attention.
const MOST_ATTENTIONS: u32 = 4;
/// T, from security to operational negotiation.
const TO_OPERATIONAL: u8 = 0x81;
/// T, from operational negotiation to the full-feature phase.
const TO_FULL: u8 = 0x87;
const CHECK_CONDITION: u8 = 2;
/// Longest CHAP challenge that is looked at.
const LONGEST_CHAP: usize = 1024;

/// A session with a disk.
pub(crate) struct Iscsi {
    stream: TcpStream,
    lun: u64,
    command: u32,
    expected: u32,
    tag: u32,
    block: u64,
    blocks: u64,
    agreed: Agreed,
}

/// What the target takes.
#[derive(Debug, Clone, Copy)]
struct Agreed {
    longest: usize,
    immediate: bool,
    first_burst: usize,
}

/// A PDU that came.
struct Pdu {
    header: Header,
    data: Vec<u8>,
}

fn closed(error: std::io::Error) -> Trouble {
    Trouble::new(Cause::DiskClosed, format!("iscsi: {error}"))
}

fn nonsense(what: impl std::fmt::Display) -> Trouble {
    Trouble::new(Cause::DiskProtocol, format!("iscsi: {what}"))
}

fn refused(what: impl std::fmt::Display) -> Trouble {
    Trouble::new(Cause::DiskRefused, format!("iscsi: {what}"))
}

fn value<'a>(text: &'a [(String, String)], key: &str) -> Option<&'a str> {
    let found = text.iter().find(|(k, _)| k == key);
    found.map(|(_, value)| value.as_str())
}

impl Iscsi {
    /// Logs in and learns the size of the disk.
    pub(super) async fn login(
        stream: TcpStream,
        target: &Target,
        fresh: [u64; 3],
    ) -> Result<Self, Trouble> {
        let mut session = Self {
            stream,
            // SAM-5 section 4.7: one level, peripheral or flat.
            lun: u64::from(target.lun) << 48,
            command: 1,
            expected: 0,
            tag: 0,
            block: 512,
            blocks: 0,
            agreed: Agreed {
                longest: 8192,
                immediate: true,
                first_burst: 65_536,
            },
        };
        // RFC 7143 section 11.12.5: a random ISID.
        let [a, b, c, d, ..] = fresh[0].to_be_bytes();
        let isid = [0x80, a, b, c, d, 0];
        session.names(target, isid).await?;
        if let Some((name, secret)) = &target.chap {
            session.prove(target, isid, name, secret, fresh).await?;
        }
        session.agree(isid).await?;
        session.ready().await?;
        session.capacity().await?;
        Ok(session)
    }

    async fn names(&mut self, target: &Target, isid: [u8; 6]) -> Result<(), Trouble> {
        let mut text = Text::default();
        text.push("InitiatorName", &target.initiator);
        text.push("TargetName", &target.name);
        text.push("SessionType", "Normal");
        let chap = target.chap.is_some();
        text.push("AuthMethod", if chap { "CHAP" } else { "None" });
        let flags = if chap { 0 } else { TO_OPERATIONAL };
        let (_, said) = self.ask_login(flags, isid, &text).await?;
        match value(&said, "AuthMethod") {
            Some("CHAP") if chap => Ok(()),
            Some("None") | None if !chap => Ok(()),
            other => Err(refused(format!(
                "it wants AuthMethod={}",
                other.unwrap_or("nothing")
            ))),
        }
    }

    async fn prove(
        &mut self,
        target: &Target,
        isid: [u8; 6],
        name: &str,
        secret: &str,
        fresh: [u64; 3],
    ) -> Result<(), Trouble> {
        let mut text = Text::default();
        text.push("CHAP_A", Algorithm::Md5.number());
        let (_, said) = self.ask_login(0, isid, &text).await?;
        let id = value(&said, "CHAP_I").and_then(number);
        let id = id.and_then(|id| u8::try_from(id).ok());
        let challenge = value(&said, "CHAP_C").and_then(|c| binary(c, LONGEST_CHAP));
        let (Some(id), Some(challenge)) = (id, challenge) else {
            return Err(nonsense("no challenge"));
        };
        let response = Algorithm::Md5.response(id, secret, &challenge);
        let mut text = Text::default();
        text.push("CHAP_N", name);
        text.push("CHAP_R", &to_hex(&response));
        let mine = [fresh[1].to_be_bytes(), fresh[2].to_be_bytes()].concat();
        let my_id = fresh[0].to_be_bytes()[7];
        if target.back.is_some() {
            text.push("CHAP_I", &my_id.to_string());
            text.push("CHAP_C", &to_hex(&mine));
        }
        let (_, said) = self.ask_login(TO_OPERATIONAL, isid, &text).await?;
        if let Some(secret) = &target.back {
            let proof = value(&said, "CHAP_R").and_then(|r| binary(r, LONGEST_CHAP));
            let proven = proof.is_some_and(|r| Algorithm::Md5.proves(my_id, secret, &mine, &r));
            if !proven {
                let detail = "iscsi: a wrong answer to our challenge, or none";
                return Err(Trouble::new(Cause::ServerUnproven, detail));
            }
        }
        Ok(())
    }

    async fn agree(&mut self, isid: [u8; 6]) -> Result<(), Trouble> {
        let mut text = Text::default();
        for (key, value) in [
            ("HeaderDigest", "None"),
            ("DataDigest", "None"),
            ("MaxRecvDataSegmentLength", "262144"),
            ("InitialR2T", "Yes"),
            ("ImmediateData", "Yes"),
            ("MaxBurstLength", "1048576"),
            ("FirstBurstLength", "65536"),
            ("MaxOutstandingR2T", "1"),
            ("MaxConnections", "1"),
            ("ErrorRecoveryLevel", "0"),
            ("DataPDUInOrder", "Yes"),
            ("DataSequenceInOrder", "Yes"),
            ("DefaultTime2Wait", "2"),
            ("DefaultTime2Retain", "0"),
        ] {
            text.push(key, value);
        }
        for _ in 0..MOST_LOGINS {
            let (flags, said) = self.ask_login(TO_FULL, isid, &text).await?;
            let size = |key| {
                value(&said, key)
                    .and_then(number)
                    .and_then(|n| usize::try_from(n).ok())
            };
            if let Some(longest) = size("MaxRecvDataSegmentLength") {
                self.agreed.longest = longest.clamp(512, LONGEST);
            }
            if let Some(first) = size("FirstBurstLength") {
                self.agreed.first_burst = first.min(65_536);
            }
            if value(&said, "ImmediateData") == Some("No") {
                self.agreed.immediate = false;
            }
            if flags & FINAL != 0 && flags & 3 == 3 {
                return Ok(());
            }
            text = Text::default();
        }
        Err(nonsense("a login without end"))
    }

    /// One login request and its answer: flags and pairs.
    async fn ask_login(
        &mut self,
        flags: u8,
        isid: [u8; 6],
        text: &Text,
    ) -> Result<(u8, Vec<(String, String)>), Trouble> {
        let mut ask = Ask::login(flags, isid, 0);
        ask.stamp(self.command, self.expected);
        self.send(ask, text.as_bytes()).await?;
        let pdu = self.receive().await?;
        if pdu.header.opcode() != 0x23 {
            return Err(nonsense("no answer to a login"));
        }
        self.expected = pdu.header.word(24).wrapping_add(1);
        let (class, detail) = (pdu.header.0[36], pdu.header.0[37]);
        if class != 0 {
            return Err(refused(format!("login status {class:02x}{detail:02x}")));
        }
        let said = pairs(&pdu.data).map_err(|_| nonsense("an answer that is no text"))?;
        let said = said.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
        Ok((pdu.header.flags(), said.collect()))
    }

    async fn send(&mut self, mut ask: Ask, data: &[u8]) -> Result<(), Trouble> {
        ask.set_length(data.len());
        if data.is_empty() {
            return self.stream.write_all(&ask.0).await.map_err(closed);
        }
        let mut whole = Vec::with_capacity(HEADER + padded(data.len()));
        whole.extend_from_slice(&ask.0);
        whole.extend_from_slice(data);
        whole.resize(HEADER + padded(data.len()), 0);
        self.stream.write_all(&whole).await.map_err(closed)
    }

    async fn header(&mut self) -> Result<(Header, usize), Trouble> {
        let mut head = [0; HEADER];
        self.stream.read_exact(&mut head).await.map_err(closed)?;
        let header = Header(head);
        let length = header.data_length();
        if length > LONGEST || header.ahs_length() != 0 {
            return Err(nonsense("a segment that is too long"));
        }
        Ok((header, length))
    }

    async fn receive(&mut self) -> Result<Pdu, Trouble> {
        let (header, length) = self.header().await?;
        let data = self.segment(length).await?;
        Ok(Pdu { header, data })
    }

    async fn segment(&mut self, length: usize) -> Result<Vec<u8>, Trouble> {
        let mut data = vec![0; padded(length)];
        self.stream.read_exact(&mut data).await.map_err(closed)?;
        data.truncate(length);
        Ok(data)
    }

    /// Runs a command to its end. What it reads goes where it belongs, what it writes is sent
    /// with it and as the target asks for it. The SCSI status and the sense data.
    async fn run(
        &mut self,
        cdb: [u8; 16],
        into: &mut [u8],
        from: &[u8],
    ) -> Result<(u8, Vec<u8>), Trouble> {
        self.tag = self.tag.wrapping_add(1) & 0x7fff_ffff;
        let (moves, expected) = match (into.len(), from.len()) {
            (0, 0) => (Moves::Nothing, 0),
            (n, 0) => (Moves::In, n),
            (_, n) => (Moves::Out, n),
        };
        let expected = u32::try_from(expected).unwrap_or(0);
        let mut ask = Ask::command(self.tag, self.lun, moves, expected, &cdb);
        ask.stamp(self.command, self.expected);
        self.command = self.command.wrapping_add(1);
        let most = self.agreed.first_burst.min(self.agreed.longest);
        let with_it = if self.agreed.immediate {
            most.min(from.len())
        } else {
            0
        };
        self.send(ask, &from[..with_it]).await?;
        loop {
            let (header, length) = self.header().await?;
            match header.opcode() {
                0x25 if header.tag() == self.tag => {
                    let at = usize::try_from(header.word(40)).unwrap_or(usize::MAX);
                    let place = at.checked_add(length).and_then(|end| into.get_mut(at..end));
                    let place = place.ok_or_else(|| nonsense("data beyond what was asked for"))?;
                    self.stream.read_exact(place).await.map_err(closed)?;
                    let padding = padded(length) - length;
                    self.stream
                        .read_exact(&mut [0; 4][..padding])
                        .await
                        .map_err(closed)?;
                    if header.flags() & 1 != 0 {
                        self.expected = header.word(24).wrapping_add(1);
                        return Ok((header.0[3], Vec::new()));
                    }
                }
                0x21 if header.tag() == self.tag => {
                    let data = self.segment(length).await?;
                    self.expected = header.word(24).wrapping_add(1);
                    if header.0[2] != 0 {
                        return Err(nonsense(format!("response {:02x}", header.0[2])));
                    }
                    return Ok((header.0[3], data));
                }
                0x31 if header.tag() == self.tag => self.transfer(&header, from).await?,
                _ => {
                    let data = self.segment(length).await?;
                    self.other(&Pdu { header, data }).await?;
                }
            }
        }
    }

    /// What a target says unasked.
    async fn other(&mut self, pdu: &Pdu) -> Result<(), Trouble> {
        match pdu.header.opcode() {
            0x20 => {
                let ping = pdu.header.word(20);
                if ping == NO_TAG {
                    self.expected = pdu.header.word(24).wrapping_add(1);
                    return Ok(());
                }
                let mut pong = Ask::pong(pdu.header.lun(), ping);
                pong.stamp(self.command, self.expected);
                self.send(pong, &[]).await
            }
            0x32 => Err(Trouble::new(
                Cause::DiskClosed,
                "iscsi: the target asks us to leave",
            )),
            0x3f => Err(nonsense(format!(
                "rejected, reason {:02x}",
                pdu.header.0[2]
            ))),
            other => Err(nonsense(format!("opcode {other:02x}"))),
        }
    }

    /// The data that an R2T asks for.
    async fn transfer(&mut self, r2t: &Header, from: &[u8]) -> Result<(), Trouble> {
        let place = |at| usize::try_from(r2t.word(at)).unwrap_or(usize::MAX);
        let (mut at, length) = (place(40), place(44));
        let end = at.checked_add(length).filter(|end| *end <= from.len());
        let end = end.ok_or_else(|| nonsense("it asks for more than there is"))?;
        let mut count = 0;
        while at < end {
            let next = end.min(at + self.agreed.longest);
            let offset = u32::try_from(at).unwrap_or(0);
            let mut ask =
                Ask::data_out(self.tag, self.lun, r2t.word(20), count, offset, next == end);
            ask.stamp_expected(self.expected);
            self.send(ask, &from[at..next]).await?;
            (at, count) = (next, count + 1);
        }
        Ok(())
    }

    /// A command that must end well.
    async fn must(
        &mut self,
        what: &str,
        cdb: [u8; 16],
        into: &mut [u8],
        from: &[u8],
    ) -> Result<(), Trouble> {
        for _ in 0..MOST_ATTENTIONS {
            let (status, sense) = self.run(cdb, into, from).await?;
            // After two bytes of length: the key, and what it is about (SPC-5 section 4.4).
            let (key, code) = match sense.get(2..) {
                Some(sense) if sense.first().is_some_and(|b| b & 0x7e == 0x70) => (
                    sense.get(2).map_or(0, |b| b & 0x0f),
                    sense.get(12).copied().unwrap_or(0),
                ),
                Some(sense) => (
                    sense.get(1).map_or(0, |b| b & 0x0f),
                    sense.get(2).copied().unwrap_or(0),
                ),
                None => (0, 0),
            };
            match status {
                0 => return Ok(()),
                // A new nexus and the like: told once.
                CHECK_CONDITION if key == 6 => {}
                _ => {
                    let detail =
                        format!("iscsi: {what}: status {status:02x}, sense {key:x}/{code:02x}");
                    return Err(Trouble::new(Cause::DiskError, detail));
                }
            }
        }
        Err(Trouble::new(
            Cause::DiskError,
            format!("iscsi: {what}: one unit attention after the other"),
        ))
    }

    async fn ready(&mut self) -> Result<(), Trouble> {
        self.must("TEST UNIT READY", [0; 16], &mut [], &[]).await
    }

    async fn capacity(&mut self) -> Result<(), Trouble> {
        // READ CAPACITY(16)
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[13]) = (0x9e, 0x10, 32);
        let mut told = [0; 32];
        self.must("READ CAPACITY", cdb, &mut told, &[]).await?;
        let last = told.first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
        let block = u32::from_be_bytes([told[8], told[9], told[10], told[11]]);
        if !(block == 512 || block == 4096) {
            return Err(nonsense(format!("blocks of {block} bytes")));
        }
        self.block = u64::from(block);
        self.blocks = last.saturating_add(1);
        Ok(())
    }

    pub(super) const fn size(&self) -> u64 {
        self.blocks.saturating_mul(self.block)
    }

    /// READ(16), WRITE(16): an opcode, eight bytes of place, four of length.
    fn cdb(&self, opcode: u8, at: u64, length: usize) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        cdb[2..10].copy_from_slice(&(at / self.block).to_be_bytes());
        let blocks = length as u64 / self.block;
        cdb[10..14].copy_from_slice(&u32::try_from(blocks).unwrap_or(0).to_be_bytes());
        cdb
    }

    pub(super) async fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Trouble> {
        let cdb = self.cdb(0x88, at, into.len());
        self.must("READ", cdb, into, &[]).await
    }

    pub(super) async fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), Trouble> {
        let cdb = self.cdb(0x8a, at, bytes.len());
        self.must("WRITE", cdb, &mut [], bytes).await
    }

    pub(super) async fn flush(&mut self) -> Result<(), Trouble> {
        // SYNCHRONIZE CACHE(10), all of it.
        let mut cdb = [0; 16];
        cdb[0] = 0x35;
        self.must("SYNCHRONIZE CACHE", cdb, &mut [], &[]).await
    }

    /// Answers pings.
    pub(super) async fn rest(&mut self, pause: Duration) -> Result<(), Trouble> {
        let end = tokio::time::sleep(pause);
        tokio::pin!(end);
        let mut one = [0; 1];
        loop {
            // Looking at what came takes nothing from the stream, should the pause end just then.
            let seen = tokio::select! {
                () = &mut end => return Ok(()),
                seen = self.stream.peek(&mut one) => seen.map_err(closed)?,
            };
            if seen == 0 {
                let detail = "iscsi: closed by the server";
                return Err(Trouble::new(Cause::DiskClosed, detail));
            }
            let pdu = self.receive().await?;
            self.other(&pdu).await?;
        }
    }

    pub(super) async fn close(mut self) {
        let mut ask = Ask::logout(self.tag.wrapping_add(1));
        ask.stamp(self.command, self.expected);
        if self.send(ask, &[]).await.is_ok() {
            // Its answer, or the end; nobody waits for a server that gives neither.
            let _ = tokio::time::timeout(Duration::from_secs(2), self.receive()).await;
        }
    }
}
