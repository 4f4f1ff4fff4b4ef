//! Leases on this server's own disk: what PostgreSQL does not have yet, and what a server must
//! know that starts without it.
//!
//! What is owed stands in the journal, synced, before anything is acknowledged; it is paid in
//! order, and only then struck out. Paying twice does no harm (a lease is one row), so a crash
//! between the two needs no care. It asks PostgreSQL nothing: the committer does.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::pool::Book;
use crate::journal::{Journal, JournalError};
use crate::model::{Hostname, Lease, LeaseState, MacAddr, Timestamp};

/// More is not owed: some hours of a large site without its database.
const MOST: usize = 1_000_000;

/// The end of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Ending {
    pub(super) address: Ipv4Addr,
    pub(super) mac: MacAddr,
    pub(super) state: LeaseState,
    pub(super) at: Timestamp,
    /// For a declined address: how long it is kept out.
    pub(super) length_seconds: u32,
}

/// What PostgreSQL is to be told.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Owed {
    /// A lease, or an address that is kept out.
    Put(Lease),
    /// A lease was given back, or its address found in use.
    End(Ending),
}

/// A record of the journal. Known by their names, so that more of them can be added.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
enum Entry {
    /// PostgreSQL has it, as it was written up to November 2026.
    Has(Lease),
    /// It has no row of that address.
    Gone(Ipv4Addr),
    /// It does not have this yet.
    Owes(Owed),
    /// It has all that was owed before.
    Paid,
    /// PostgreSQL has it.
    H(Packed),
}

/// A lease in numbers: there is one for each ACK, so that neither writing nor reading them is to
/// cost much.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Packed {
    address: u32,
    range_id: u128,
    mac: u64,
    client_identifier: Option<Vec<u8>>,
    hostname: Option<Hostname>,
    state: LeaseState,
    /// Since 1970: seconds, and nanoseconds beyond them.
    starts_at: (i64, u32),
    length_seconds: u32,
    relay_information: Option<Vec<u8>>,
}

impl From<&Lease> for Packed {
    fn from(lease: &Lease) -> Self {
        let [a, b, c, d, e, f] = lease.mac.0;
        Self {
            address: lease.address.to_bits(),
            range_id: lease.range_id.as_u128(),
            mac: u64::from_be_bytes([0, 0, a, b, c, d, e, f]),
            client_identifier: lease.client_identifier.clone(),
            hostname: lease.hostname.clone(),
            state: lease.state,
            starts_at: (
                lease.starts_at.timestamp(),
                lease.starts_at.timestamp_subsec_nanos(),
            ),
            length_seconds: lease.length_seconds,
            relay_information: lease.relay_information.clone(),
        }
    }
}

impl Packed {
    /// `None` for a time that there is not.
    fn lease(self) -> Option<Lease> {
        let [_, _, mac @ ..] = self.mac.to_be_bytes();
        let (seconds, nanoseconds) = self.starts_at;
        Some(Lease {
            address: Ipv4Addr::from_bits(self.address),
            range_id: Uuid::from_u128(self.range_id),
            mac: MacAddr(mac),
            client_identifier: self.client_identifier,
            hostname: self.hostname,
            state: self.state,
            starts_at: Timestamp::from_timestamp(seconds, nanoseconds)?,
            length_seconds: self.length_seconds,
            relay_information: self.relay_information,
        })
    }
}

/// See the file.
#[derive(Debug)]
pub(super) struct Ledger {
    journal: Journal,
    owed: Mutex<VecDeque<Owed>>,
    /// Their number, to be looked at without the lock.
    count: AtomicUsize,
}

/// Why something can't be owed.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotOwed {
    /// The disk.
    #[error("{0}")]
    Journal(#[from] Arc<JournalError>),
    /// See [`MOST`].
    #[error("{MOST} leases wait for the database already")]
    TooMuch,
}

impl Ledger {
    /// Opens it under that directory; gives back the leases as they were known last.
    pub(super) fn open(dir: &Path) -> Result<(Self, Vec<Lease>), JournalError> {
        let (journal, records) = Journal::open(dir, "leases", |records| fold(records))?;
        let (mut book, owed) = read(&records);
        owed.iter().for_each(|one| apply(&mut book, one));
        let ledger = Self {
            journal,
            count: AtomicUsize::new(owed.len()),
            owed: Mutex::new(owed.into()),
        };
        Ok((ledger, book.leases().cloned().collect()))
    }

    /// How much is owed.
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// True while something is owed. New business must be owed as well then, or it would be
    /// overtaken by older.
    pub(super) fn owes(&self) -> bool {
        self.len() > 0
    }

    /// Returns when these outlive a power cut.
    pub(super) async fn owe(&self, more: Vec<Owed>) -> Result<(), NotOwed> {
        if self.len() + more.len() > MOST {
            return Err(NotOwed::TooMuch);
        }
        let records = more.iter().map(|o| encode(&Entry::Owes(o.clone())));
        let records = records.collect();
        let handed_over = {
            // Counted first: what comes next is not to go to PostgreSQL before it. Counted and
            // in its place at once: see `paid`.
            let _owed = self.lock();
            self.count.fetch_add(more.len(), Ordering::AcqRel);
            self.journal.append_later(records)
        };
        let written = match handed_over {
            Ok(pending) => pending.written().await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            self.count.fetch_sub(more.len(), Ordering::AcqRel);
            return Err(error.into());
        }
        self.lock().extend(more);
        Ok(())
    }

    /// The oldest of what is owed.
    pub(super) fn oldest(&self, most: usize) -> Vec<Owed> {
        self.lock().iter().take(most).cloned().collect()
    }

    /// PostgreSQL has the oldest so many.
    pub(super) fn paid(&self, count: usize) {
        let mut owed = self.lock();
        let count = count.min(owed.len());
        owed.drain(..count);
        // Not while another one is being written: its record may stand before this one.
        if self.count.fetch_sub(count, Ordering::AcqRel) == count {
            self.journal.note(vec![encode(&Entry::Paid)]);
        }
    }

    /// PostgreSQL has these, which are to be acknowledged now: a server that is killed and starts
    /// again without PostgreSQL must know them, or it gives their addresses away.
    pub(super) async fn stored(&self, leases: &[&Lease]) {
        let entries = (leases.iter()).map(|l| encode(&Entry::H((*l).into())));
        // A journal that can't be written has said so, and PostgreSQL has them.
        self.journal.put(entries.collect()).await.ok();
    }

    /// PostgreSQL has these.
    pub(super) fn has<'a>(&self, leases: impl IntoIterator<Item = &'a Lease>) {
        let entries = leases.into_iter().map(|l| encode(&Entry::H(l.into())));
        self.journal.note(entries.collect());
    }

    /// PostgreSQL has no row of these.
    pub(super) fn gone(&self, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        let entries = addresses.into_iter().map(|a| encode(&Entry::Gone(a)));
        self.journal.note(entries.collect());
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Owed>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is owed, put into the book.
fn apply(book: &mut Book, owed: &Owed) {
    match owed {
        Owed::Put(lease) => book.put(lease.clone()),
        Owed::End(ending) => {
            let lease = book
                .lease_at(ending.address)
                .filter(|l| l.mac == ending.mac);
            let Some(mut lease) = lease.cloned() else {
                return;
            };
            lease.state = ending.state;
            if ending.state == LeaseState::Declined {
                lease.starts_at = ending.at;
                lease.length_seconds = ending.length_seconds;
            }
            book.put(lease);
        }
    }
}

fn encode(entry: &Entry) -> Vec<u8> {
    // To memory, of plain data: it can't fail; an empty record would be none.
    rmp_serde::to_vec(entry).unwrap_or_default()
}

/// What PostgreSQL has by the records, and what is owed beyond that.
fn read<R: AsRef<[u8]>>(records: &[R]) -> (Book, Vec<Owed>) {
    let mut book = Book::default();
    let mut owed: Vec<Owed> = Vec::new();
    for record in records {
        match rmp_serde::from_slice::<Entry>(record.as_ref()) {
            Ok(Entry::H(packed)) => packed.lease().into_iter().for_each(|l| book.put(l)),
            Ok(Entry::Has(lease)) => book.put(lease),
            Ok(Entry::Gone(address)) => book.remove(address),
            Ok(Entry::Owes(one)) => owed.push(one),
            Ok(Entry::Paid) => owed.drain(..).for_each(|one| apply(&mut book, &one)),
            Err(error) => {
                tracing::error!(%error, bytes = ?record.as_ref(), "a record of the lease journal can't be read");
            }
        }
    }
    (book, owed)
}

fn fold<R: AsRef<[u8]>>(records: &[R]) -> Vec<Vec<u8>> {
    let (book, owed) = read(records);
    let mut leases: Vec<&Lease> = book.leases().collect();
    leases.sort_unstable_by_key(|lease| lease.address);
    let has = leases.into_iter().map(|l| encode(&Entry::H(l.into())));
    has.chain(owed.into_iter().map(|o| encode(&Entry::Owes(o))))
        .collect()
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn lease(mac: u8, address: u8, at: i64) -> Lease {
        Lease {
            address: Ipv4Addr::new(10, 0, 0, address),
            range_id: Uuid::nil(),
            mac: MacAddr([2, 0, 0, 0, 0, mac]),
            client_identifier: Some(vec![1, 2, 3]),
            hostname: "pc-1".parse().ok(),
            state: LeaseState::Active,
            starts_at: Timestamp::UNIX_EPOCH + TimeDelta::nanoseconds(at * 1_000_000_007 - 5),
            length_seconds: 60,
            relay_information: None,
        }
    }

    #[test]
    fn a_lease_is_packed_without_loss() {
        let mut one = lease(0xfe, 255, -3);
        one.range_id = Uuid::from_u128(u128::MAX - 7);
        one.relay_information = Some(vec![0, 255]);
        one.length_seconds = Lease::INFINITE;
        let record = encode(&Entry::H((&one).into()));
        let was = encode(&Entry::Has(one.clone()));
        assert!(record.len() < was.len(), "{} {}", record.len(), was.len());
        for record in [record, was] {
            let (book, _) = read(&[record]);
            assert_eq!(book.leases().collect::<Vec<_>>(), [&one]);
        }
    }

    fn released(mac: u8, address: u8) -> Ending {
        Ending {
            address: Ipv4Addr::new(10, 0, 0, address),
            mac: MacAddr([2, 0, 0, 0, 0, mac]),
            state: LeaseState::Released,
            at: Timestamp::UNIX_EPOCH,
            length_seconds: 60,
        }
    }

    fn sorted(mut leases: Vec<Lease>) -> Vec<Lease> {
        leases.sort_by_key(|l| l.address);
        leases
    }

    /// Paying ends what was owed before, not what is being written at that moment.
    #[tokio::test]
    async fn what_is_being_written_is_not_paid_with_what_was() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path()).unwrap();
        let (one, two) = (Owed::Put(lease(1, 1, 0)), Owed::Put(lease(2, 2, 0)));
        ledger.owe(vec![one]).await.unwrap();
        let mut second = Box::pin(ledger.owe(vec![two.clone()]));
        // Handed over; whether it is written by now is not asked again until after the payment.
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        ledger.paid(1);
        second.await.unwrap();
        assert_eq!(ledger.len(), 1);
        // All that was noted is in the file.
        ledger.owe(Vec::new()).await.unwrap();
        drop(ledger);
        let (ledger, _) = Ledger::open(dir.path()).unwrap();
        assert!(ledger.oldest(9).contains(&two), "{:?}", ledger.oldest(9));
    }

    #[tokio::test]
    async fn what_is_owed_outlives_us_until_it_is_paid() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, leases) = Ledger::open(dir.path()).unwrap();
        assert!(leases.is_empty() && !ledger.owes());
        ledger.has(&[lease(1, 1, 0)]);
        let owed = vec![Owed::Put(lease(2, 2, 1)), Owed::End(released(1, 1))];
        ledger.owe(owed.clone()).await.unwrap();
        let (again, leases) = Ledger::open(dir.path()).unwrap();
        assert_eq!(again.oldest(9), owed);
        let mut first = lease(1, 1, 0);
        first.state = LeaseState::Released;
        assert_eq!(sorted(leases), [first, lease(2, 2, 1)]);
        again.paid(1);
        assert_eq!(again.oldest(9), owed[1..]);
        again.paid(1);
        again.gone([Ipv4Addr::new(10, 0, 0, 1)]);
        again.owe(Vec::new()).await.unwrap();
        let (last, leases) = Ledger::open(dir.path()).unwrap();
        assert!(!last.owes());
        assert_eq!(leases, [lease(2, 2, 1)]);
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let any_lease = || (0..6_u8, 0..6_u8, 0..100_i64).prop_map(|(m, a, t)| lease(m, a, t));
        prop_oneof![
            any_lease().prop_map(Entry::Has),
            any_lease().prop_map(|l| Entry::H((&l).into())),
            (0..6_u8).prop_map(|a| Entry::Gone(Ipv4Addr::new(10, 0, 0, a))),
            any_lease().prop_map(|l| Entry::Owes(Owed::Put(l))),
            (0..6_u8, 0..6_u8).prop_map(|(m, a)| Entry::Owes(Owed::End(released(m, a)))),
            Just(Entry::Paid),
        ]
    }

    proptest! {
        #[test]
        fn folding_changes_nothing(entries in prop::collection::vec(entry(), 0..40)) {
            let records: Vec<Vec<u8>> = entries.iter().map(encode).collect();
            let (book, owed) = read(&records);
            let (folded, folded_owed) = read(&fold(&records));
            prop_assert_eq!(
                sorted(book.leases().cloned().collect()),
                sorted(folded.leases().cloned().collect())
            );
            prop_assert_eq!(owed, folded_owed);
            prop_assert_eq!(fold(&fold(&records)), fold(&records));
        }
    }
}
