//! Discovery: what SendTargets lists, and the sessions that may ask for nothing else.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::login::read_pdu;
use super::machine::Ready;
use super::wire::answer::{Answer, RejectReason};
use super::wire::text::{Text, pairs};
use super::wire::{Digests, HEADER, Header, LONGEST_LOGIN, NO_TAG, Request, padded};
use crate::boot::disks::DiskDoor;

/// PDUs of one discovery session; an honest one has three.
const MOST_PDUS: u32 = 64;

/// Writes what an initiator may see, and where.
pub fn list(out: &mut Text, iqn: Option<&str>, portal: &str) {
    if let Some(iqn) = iqn {
        out.push("TargetName", iqn);
        out.push("TargetAddress", &format!("{portal},1"));
    }
}

/// Serves a discovery session until it logs out. Its time is limited by who calls.
pub async fn discover(
    stream: &mut TcpStream,
    ready: &Ready,
    (mut stat, mut expected): (u32, u32),
    door: Arc<dyn DiskDoor>,
    portal: &str,
) -> std::io::Result<()> {
    let digests = Digests {
        header: ready.params.header_digest,
        data: ready.params.data_digest,
    };
    for _ in 0..MOST_PDUS {
        let Some((header, data)) = read_pdu(stream, digests, LONGEST_LOGIN).await? else {
            return Ok(());
        };
        if !header.immediate() {
            expected = header.word(24).wrapping_add(1);
        }
        let mut end = false;
        let tag = header.tag();
        let (mut answer, text) = match header.request() {
            Some(Request::Text) => {
                let name = ready.proven.clone();
                let door = door.clone();
                let look = move || name.and_then(|name| door.visible(&name)).map(|d| d.iqn());
                let seen = tokio::task::spawn_blocking(look).await.ok().flatten();
                (Answer::text(tag), targets(&header, &data, seen, portal))
            }
            Some(Request::NopOut) if tag == NO_TAG => continue,
            Some(Request::NopOut) => (Answer::nop_in(tag, NO_TAG, 0), Some(data)),
            Some(Request::Logout) => {
                end = true;
                (Answer::logout(tag, 0), Some(Vec::new()))
            }
            _ => (Answer::reject(RejectReason::Protocol), None),
        };
        let data = text.unwrap_or_else(|| {
            answer = Answer::reject(RejectReason::Protocol);
            header.0.to_vec()
        });
        answer.stamp(stat, expected, expected.wrapping_add(15));
        stat = stat.wrapping_add(1);
        stream.write_all(&bytes(answer, &data, digests)).await?;
        if end {
            return stream.shutdown().await;
        }
    }
    Ok(())
}

/// The answer to a text request; `None` if it is none that we take.
fn targets(header: &Header, data: &[u8], seen: Option<String>, portal: &str) -> Option<Vec<u8>> {
    if header.flags() & 0xc0 != 0x80 || header.word(20) != NO_TAG {
        return None;
    }
    let mut out = Text::default();
    for (key, value) in pairs(data).ok()?.into_iter().take(16) {
        match (key, &seen) {
            ("SendTargets", Some(iqn)) if value == "All" || value == iqn => {
                list(&mut out, Some(iqn), portal);
            }
            ("SendTargets", _) => {}
            _ => out.push(key, "NotUnderstood"),
        }
    }
    Some(out.as_bytes().to_vec())
}

/// A PDU as it goes out.
pub fn bytes(mut answer: Answer, data: &[u8], digests: Digests) -> Vec<u8> {
    answer.set_length(data.len());
    let mut out = Vec::with_capacity(HEADER + padded(data.len()) + 8);
    out.extend(answer.0);
    if digests.header {
        out.extend(crc32c::crc32c(&answer.0).to_le_bytes());
    }
    let at = out.len();
    out.extend(data);
    out.resize(at + padded(data.len()), 0);
    if digests.data && !data.is_empty() {
        let digest = crc32c::crc32c(&out[at..]).to_le_bytes();
        out.extend(digest);
    }
    out
}
