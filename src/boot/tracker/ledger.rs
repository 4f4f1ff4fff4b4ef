//! The tracker's rows on this server's own disk: what PostgreSQL does not have yet, and the
//! boots that are open, for a start without it.
//!
//! Every row is noted as it is made, and struck out when all up to it are written. It outlives a
//! crash of this process at once, and a power cut before the lease is acknowledged that follows it;
//! what no lease follows, within a second while the database is away.
//! Writing a row twice does no harm, so a crash between the two needs no care.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

use crate::catalog::{BootWrite, TrackedAttempt};
use crate::journal::{Journal, JournalError};
use crate::model::{Attempt, BootEvent, BootSession};

/// A record of the journal.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
enum Entry {
    /// PostgreSQL has it; it is of a boot that is open.
    Has(BootWrite),
    /// A row by its number.
    Row(u64, BootWrite),
    /// PostgreSQL has all rows up to that number.
    Written(u64),
}

/// A handle on the journal.
#[derive(Debug, Clone)]
pub struct Ledger {
    journal: Journal,
    numbers: Arc<Numbers>,
}

/// How far the rows are, by their numbers.
#[derive(Debug, Default)]
struct Numbers {
    /// Noted.
    noted: AtomicU64,
    /// Synced here, or in PostgreSQL.
    safe: AtomicU64,
}

/// What an earlier run of this server left.
#[derive(Debug, Default)]
pub struct Left {
    /// Boots that were open.
    pub open: Vec<TrackedAttempt>,
    /// Boots that have ended, by rows that the database may not have.
    pub ended: HashSet<Uuid>,
    /// Rows that the database may not have, in order.
    pub rows: Vec<BootWrite>,
    /// The number of the last row.
    pub last: u64,
}

impl Ledger {
    /// Opens it under that directory.
    ///
    /// # Errors
    /// As the journal.
    pub fn open(dir: &Path) -> Result<(Self, Left), JournalError> {
        let (journal, records) = Journal::open(dir, "boots", |records| fold(records))?;
        let ledger = Self {
            journal,
            numbers: Arc::default(),
        };
        Ok((ledger, read(&records).left()))
    }

    /// Notes a row.
    pub(super) fn row(&self, number: u64, row: &BootWrite) {
        self.journal
            .note(vec![encode(&Entry::Row(number, row.clone()))]);
        self.numbers.noted.fetch_max(number, Ordering::AcqRel);
    }

    /// PostgreSQL has all rows up to that number.
    pub(super) fn written(&self, number: u64) {
        self.journal.note(vec![encode(&Entry::Written(number))]);
        self.numbers.safe.fetch_max(number, Ordering::AcqRel);
    }

    /// All that was noted outlives a power cut, here or in PostgreSQL.
    pub(super) fn is_synced(&self) -> bool {
        let noted = self.numbers.noted.load(Ordering::Acquire);
        self.numbers.safe.load(Ordering::Acquire) >= noted
    }

    /// Returns when all that was noted outlives a power cut: at once, if PostgreSQL has it.
    pub(super) async fn sync(&self) {
        let noted = self.numbers.noted.load(Ordering::Acquire);
        if self.is_synced() {
            return;
        }
        // A failure is told by the journal itself.
        if self.journal.append(Vec::new()).await.is_ok() {
            self.numbers.safe.fetch_max(noted, Ordering::AcqRel);
        }
    }
}

fn encode(entry: &Entry) -> Vec<u8> {
    // By name: a detail is JSON, and a later version may have more fields.
    rmp_serde::to_vec_named(entry).unwrap_or_default()
}

/// What the records come to.
#[derive(Default)]
struct State {
    /// Those that are open, as far as they are known.
    attempts: HashMap<Uuid, Attempt>,
    /// The others.
    ended: HashSet<Uuid>,
    sessions: HashMap<Uuid, BootSession>,
    events: HashMap<Uuid, Vec<BootEvent>>,
    rows: Vec<(u64, BootWrite)>,
    last: u64,
}

impl State {
    fn take(&mut self, row: &BootWrite) {
        match row {
            // All of it: a day has thousands of them.
            BootWrite::Attempt(a) if a.ended_at.is_some() => {
                self.attempts.remove(&a.id);
                self.sessions.remove(&a.id);
                self.events.remove(&a.id);
                self.ended.insert(a.id);
            }
            BootWrite::Attempt(a) => {
                self.ended.remove(&a.id);
                self.attempts.insert(a.id, a.clone());
            }
            BootWrite::Session(s) if !self.ended.contains(&s.id) => {
                self.sessions.insert(s.id, s.clone());
            }
            BootWrite::Event(e) if !self.ended.contains(&e.session_id) => {
                self.events.entry(e.session_id).or_default().push(e.clone());
            }
            BootWrite::Session(_) | BootWrite::Event(_) => {}
            BootWrite::ClientBooted { .. } | BootWrite::ImageReports { .. } => {}
        }
    }

    /// In the order in which they began.
    fn open(&mut self) -> Vec<TrackedAttempt> {
        let mut open: Vec<Attempt> = std::mem::take(&mut self.attempts).into_values().collect();
        open.sort_by_key(|a| (a.started_at, a.id));
        open.into_iter()
            .map(|a| {
                let events = self.events.remove(&a.id).unwrap_or_default();
                let session = self.sessions.remove(&a.id);
                (a, events, session)
            })
            .collect()
    }

    fn left(mut self) -> Left {
        Left {
            open: self.open(),
            ended: self.ended,
            rows: self.rows.into_iter().map(|(_, row)| row).collect(),
            last: self.last,
        }
    }
}

fn read<R: AsRef<[u8]>>(records: &[R]) -> State {
    let mut state = State::default();
    for record in records {
        match rmp_serde::from_slice::<Entry>(record.as_ref()) {
            Ok(Entry::Has(row)) => state.take(&row),
            Ok(Entry::Row(number, row)) => {
                state.take(&row);
                state.last = state.last.max(number);
                state.rows.push((number, row));
            }
            Ok(Entry::Written(upto)) => {
                state.last = state.last.max(upto);
                state.rows.retain(|(number, _)| *number > upto);
            }
            Err(error) => {
                tracing::error!(%error, bytes = ?record.as_ref(), "a record of the journal of boots can't be read");
            }
        }
    }
    state
}

fn fold<R: AsRef<[u8]>>(records: &[R]) -> Vec<Vec<u8>> {
    let mut state = read(records);
    let rows = std::mem::take(&mut state.rows);
    let last = state.last;
    // What stands among the rows need not stand twice.
    let in_rows: HashSet<Vec<u8>> = rows
        .iter()
        .map(|(_, row)| encode(&Entry::Has(row.clone())))
        .collect();
    let mut folded = Vec::new();
    for (attempt, events, session) in state.open() {
        let all = std::iter::once(BootWrite::Attempt(attempt))
            .chain(session.map(BootWrite::Session))
            .chain(events.into_iter().map(BootWrite::Event));
        let has = all.map(|row| encode(&Entry::Has(row)));
        folded.extend(has.filter(|record| !in_rows.contains(record)));
    }
    let first = rows.first().map_or(last, |(number, _)| number - 1);
    folded.push(encode(&Entry::Written(first)));
    folded.extend(rows.into_iter().map(|(n, row)| encode(&Entry::Row(n, row))));
    folded
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;
    use crate::model::{AttemptOutcome, MacAddr, Stage, Timestamp};

    fn attempt(n: u128, over: bool) -> BootWrite {
        let at = Timestamp::UNIX_EPOCH;
        BootWrite::Attempt(Attempt {
            id: Uuid::from_u128(n),
            mac: MacAddr([0x52, 0, 0, 0, 0, 1]),
            smbios_uuid: None,
            client_id: None,
            client_name: None,
            image_name: None,
            server_id: Uuid::nil(),
            range_id: None,
            arch: None,
            client_ip: None,
            boot_server_ip: None,
            started_at: at,
            ended_at: over.then_some(at),
            last_stage: Stage::Discover,
            outcome: AttemptOutcome::Open,
            reason: None,
            disk_bytes_read: 0,
            disk_bytes_written: 0,
            version_id: None,
            version_name: None,
        })
    }

    fn event(n: u128, k: i64) -> BootWrite {
        BootWrite::Event(BootEvent {
            session_id: Uuid::from_u128(n),
            at: Timestamp::UNIX_EPOCH + TimeDelta::seconds(k),
            stage: Stage::Offer,
            detail: serde_json::json!({"n": k, "text": "x", "list": [1, null, 2.5]}),
        })
    }

    #[tokio::test]
    async fn what_the_database_has_is_not_synced_again() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path()).unwrap();
        let safe = || ledger.numbers.safe.load(Ordering::Acquire);
        ledger.sync().await;
        assert_eq!(safe(), 0, "nothing was noted");
        ledger.row(1, &attempt(1, false));
        ledger.row(2, &attempt(2, false));
        ledger.sync().await;
        assert_eq!(safe(), 2);
        ledger.row(3, &attempt(3, false));
        ledger.written(3);
        assert_eq!(safe(), 3);
    }

    #[tokio::test]
    async fn open_boots_and_unwritten_rows_are_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, left) = Ledger::open(dir.path()).unwrap();
        assert!(left.open.is_empty() && left.rows.is_empty() && left.last == 0);
        let rows = [
            attempt(1, false),
            event(1, 1),
            attempt(2, false),
            event(2, 2),
        ];
        for (n, row) in (1..).zip(&rows) {
            ledger.row(n, row);
        }
        ledger.written(3);
        ledger.row(5, &attempt(2, true));
        ledger.sync().await;
        for _ in 0..2 {
            let (_ledger, left) = Ledger::open(dir.path()).unwrap();
            let open: Vec<_> = left.open.iter().map(|(a, e, _)| (a.id, e.len())).collect();
            assert_eq!(open, [(Uuid::from_u128(1), 1)]);
            assert_eq!(left.rows, [event(2, 2), attempt(2, true)]);
            assert!(left.ended.contains(&Uuid::from_u128(2)));
            assert_eq!(left.last, 5);
        }
    }

    fn row() -> impl Strategy<Value = BootWrite> {
        prop_oneof![
            (1..4_u128, any::<bool>()).prop_map(|(n, over)| attempt(n, over)),
            (1..4_u128, 0..5_i64).prop_map(|(n, k)| event(n, k)),
        ]
    }

    proptest! {
        #[test]
        fn folding_loses_nothing(rows in prop::collection::vec(row(), 0..30), written in 0..30_u64) {
            let mut records: Vec<Vec<u8>> =
                (1..).zip(&rows).map(|(n, row)| encode(&Entry::Row(n, row.clone()))).collect();
            records.push(encode(&Entry::Written(written.min(rows.len() as u64))));
            let plain = read(&records).left();
            let folded = read(&fold(&records)).left();
            prop_assert_eq!(&plain.rows, &folded.rows);
            prop_assert_eq!(plain.last, folded.last);
            prop_assert_eq!(plain.open.len(), folded.open.len());
            for (a, b) in plain.open.iter().zip(&folded.open) {
                prop_assert_eq!(&a.0, &b.0);
                // Events of a boot are told apart by what they say: each is there.
                prop_assert!(a.1.iter().all(|e| b.1.contains(e)));
            }
        }
    }
}
