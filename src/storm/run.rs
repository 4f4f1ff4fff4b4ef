//! The storm's tasks: one for each machine that is on, which does what its state machine orders
//! and counts what comes of it. It stops by itself: every machine has its time.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::disk::Session;
use super::disk::written::Written;
use super::fetch::{self, TftpHabits};
use super::link::{Heard, Link};
pub use super::link::{Way, default_interfaces, interface_of};
use super::machine::{Event, Machine, Order};
use super::orders::{Disk, LONGEST, Source};
use super::plan::Plan;
use super::profile::{Deed, Operation, Profile};
use super::reference::{KnownDisk, References};
use super::report::{FileRow, Report, Tally};
use super::words::{Cause, Failure, Role, Stage, Trouble};
use crate::clock::Clock;
use crate::dhcp::wire::client::{AnswerKind, Ask, Firmware};

/// How often it is said how far the storm is.
const NEWS: Duration = Duration::from_secs(5);
/// How long a disk may take to be closed.
const CLOSING: Duration = Duration::from_secs(5);

/// What each machine does on its disk.
#[derive(Debug, Clone)]
pub enum Pattern {
    /// What a file says.
    Recorded(Profile),
    /// Our own profile, so many bytes of reads.
    Linux(u64),
}

impl Pattern {
    fn operations(&self, size: u64) -> Vec<Operation> {
        match self {
            Self::Recorded(profile) => profile.fitted(size),
            Self::Linux(bytes) => Profile::linux(*bytes, size).fitted(size),
        }
    }
}

/// A storm.
#[derive(Debug)]
pub struct Storm {
    /// The machines.
    pub plan: Plan,
    /// How their DHCP goes.
    pub way: Way,
    /// What they do on their disks.
    pub pattern: Pattern,
    /// Each speaks TFTP, HTTP and to its disk from its leased address, which must be this host's.
    pub addresses: bool,
    /// What they must get; what is not here is compared among them.
    pub expected: Vec<(Role, File)>,
}

/// The storm can't begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unready {
    /// No way to speak DHCP.
    #[error("can't speak DHCP by {way}: {source} (raw frames need CAP_NET_RAW, a relay port 67)")]
    Link {
        /// The interface or address.
        way: String,
        /// Why.
        source: io::Error,
    },
    /// A given file can't be read.
    #[error("can't read an expected file: {0}")]
    Expected(io::Error),
}

/// What all machines share.
struct Shared {
    plan: Plan,
    link: Link,
    pattern: Pattern,
    addresses: bool,
    references: References,
    tally: Mutex<Tally>,
    clock: Clock,
    began: Instant,
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moved(&self, stage: Stage, bytes: usize) {
        let second = self.since(self.began).as_secs();
        self.tally().moved(stage, bytes as u64, second);
    }

    fn since(&self, then: Instant) -> Duration {
        self.clock.instant().saturating_duration_since(then)
    }
}

/// Lets it storm. `news` is given a line every few seconds. Ends after all machines have, or when
/// `cancel` says so.
///
/// # Errors
/// See [`Unready`]; whatever happens to a machine is in the report.
pub async fn run(
    storm: Storm,
    clock: Clock,
    cancel: CancellationToken,
    news: impl Fn(&str),
) -> Result<Report, Unready> {
    // Sockets by the thousand; less is met by named failures.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let unready = |source| Unready::Link {
        way: match &storm.way {
            Way::Raw(interface) => interface.clone(),
            Way::Relay { own, .. } => own.to_string(),
        },
        source,
    };
    let link = Link::open(&storm.way).map_err(unready)?;
    let references = References::new(storm.expected).map_err(Unready::Expected)?;
    let (hearing, ears) = link.listen(&storm.plan, clock.clone()).map_err(unready)?;
    let shared = Arc::new(Shared {
        began: clock.instant(),
        plan: storm.plan,
        link,
        pattern: storm.pattern,
        addresses: storm.addresses,
        references,
        tally: Mutex::default(),
        clock,
    });
    let mut machines = JoinSet::new();
    let all = switch_on(&shared, ears, &mut machines, &cancel);
    tokio::pin!(all);
    let mut told = tokio::time::interval(NEWS);
    told.tick().await;
    loop {
        tokio::select! {
            () = &mut all => break,
            _ = told.tick() => news(&shared.tally().progress()),
        }
    }
    let took = shared.since(shared.began);
    drop(hearing);
    let mut report = shared.tally().report(shared.plan.machines, took);
    report.files = shared
        .references
        .sums()
        .into_iter()
        .map(FileRow::new)
        .collect();
    let strangers = shared.link.strangers();
    if strangers > 0 {
        news(&format!(
            "{strangers} answers of DHCP were for others: machines boot here that are none of this storm"
        ));
    }
    Ok(report)
}

/// Switches the machines on, each at its time, and waits for all ends.
async fn switch_on(
    shared: &Arc<Shared>,
    ears: Vec<mpsc::Receiver<Heard>>,
    machines: &mut JoinSet<()>,
    cancel: &CancellationToken,
) {
    for (n, ears) in (0_u32..).zip(ears) {
        let left = shared
            .plan
            .start(n)
            .saturating_sub(shared.since(shared.began));
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(left) => {}
        }
        machines.spawn(live(shared.clone(), n, ears, cancel.clone()));
        // Those that have ended take no memory.
        while machines.try_join_next().is_some() {}
    }
    while machines.join_next().await.is_some() {}
}

/// One machine from its switch to its end.
async fn live(shared: Arc<Shared>, n: u32, ears: mpsc::Receiver<Heard>, cancel: CancellationToken) {
    shared.tally().begin();
    let (machine, order) = Machine::new(&shared.plan, n);
    let mut boot = Boot {
        began: shared.clock.instant(),
        stage: Stage::RomDiscover,
        asked: shared.clock.instant(),
        shared: shared.clone(),
        machine,
        next: Some(order),
        ears,
        http: None,
        disk: None,
    };
    let end = tokio::select! {
        end = boot.whole() => end,
        () = cancel.cancelled() => {
            Err(Trouble::new(Cause::Interrupted, "stopped by hand").at(boot.stage))
        }
    };
    if let Some(session) = boot.disk.take() {
        let _ = tokio::time::timeout(CLOSING, session.close()).await;
    }
    shared.tally().end(shared.plan.mac(n), end);
}

/// A machine and what it has open.
struct Boot {
    shared: Arc<Shared>,
    machine: Machine,
    began: Instant,
    stage: Stage,
    /// When the packet that waits for its answer was first sent.
    asked: Instant,
    next: Option<Order>,
    ears: mpsc::Receiver<Heard>,
    http: Option<(Option<Ipv4Addr>, reqwest::Client)>,
    disk: Option<Session>,
}

impl Boot {
    /// To `up` within its time, then to its end; how long it took to be up.
    async fn whole(&mut self) -> Result<Duration, Failure> {
        let limit = self.shared.plan.timeout;
        match tokio::time::timeout(limit, self.go(true)).await {
            Ok(end) => end?,
            Err(_) => return Err(self.machine.too_late(self.stage)),
        }
        let took = self.shared.since(self.began);
        self.go(false).await?;
        Ok(took)
    }

    async fn go(&mut self, until_up: bool) -> Result<(), Failure> {
        loop {
            if until_up && self.machine.is_up() {
                return Ok(());
            }
            let Some(order) = self.next.take() else {
                return Ok(());
            };
            self.next = match order {
                Order::Over(end) => return end,
                order => self.follow(order).await?,
            };
            if let Some(Order::Over(Err(_))) = &self.next {
                let Some(Order::Over(end)) = self.next.take() else {
                    return Ok(());
                };
                return end;
            }
        }
    }

    async fn follow(&mut self, order: Order) -> Result<Option<Order>, Failure> {
        match order {
            Order::Say {
                stage,
                ask,
                listen,
                again,
            } => self.say(stage, &ask, listen, again).await,
            Order::Fetch(role, source) => {
                self.stage = role.stage();
                let text = self.fetch(role, &source).await;
                let text = text.map_err(|t| t.at(self.stage))?;
                Ok(self.machine.on(Event::Fetched(&text)))
            }
            Order::Pause(pause) => {
                let waits = !self.machine.is_up();
                self.http = None;
                self.stage = if waits { Stage::Wait } else { Stage::Stay };
                self.pause(pause).await.map_err(|t| t.at(self.stage))?;
                if waits && !pause.is_zero() {
                    self.shared.tally().done(self.stage, pause);
                }
                Ok(self.machine.on(Event::Done))
            }
            Order::UseDisk(disk) => {
                self.stage = Stage::Login;
                self.use_disk(&disk).await.map_err(|t| t.at(self.stage))?;
                Ok(self.machine.on(Event::Done))
            }
            Order::Report(url) => {
                self.stage = Stage::Report;
                // The system's, not the loader's connection, which has long been idle.
                self.http = None;
                let start = self.shared.clock.instant();
                let told = match self.client() {
                    Ok(client) => fetch::tell(&client, &url).await,
                    Err(trouble) => Err(trouble),
                };
                told.map_err(|t| t.at(self.stage))?;
                self.done(start);
                Ok(self.machine.on(Event::Done))
            }
            Order::Over(end) => end.map(|()| None),
        }
    }

    fn done(&self, start: Instant) {
        let took = self.shared.since(start);
        self.shared.tally().done(self.stage, took);
    }

    async fn say(
        &mut self,
        stage: Stage,
        ask: &Ask,
        listen: Duration,
        again: bool,
    ) -> Result<Option<Order>, Failure> {
        self.stage = stage;
        if again {
            self.shared.tally().again(stage);
        } else {
            self.asked = self.shared.clock.instant();
        }
        let sent = self.shared.link.say(ask);
        sent.map_err(|e| Trouble::new(Cause::Send, e.to_string()).at(stage))?;
        let silence = tokio::time::sleep(listen);
        tokio::pin!(silence);
        loop {
            let heard = tokio::select! {
                heard = self.ears.recv() => heard,
                () = &mut silence => None,
            };
            let Some((answer, at)) = heard else {
                return Ok(self.machine.on(Event::Silence));
            };
            let next = self.machine.on(Event::Answered(&answer));
            if next.is_some() {
                if answer.kind != AnswerKind::Nak {
                    let took = at.saturating_duration_since(self.asked);
                    self.shared.tally().done(stage, took);
                }
                return Ok(next);
            }
        }
    }

    /// The address that it speaks from, where it has one of its own.
    fn own(&self) -> Option<Ipv4Addr> {
        self.machine.address().filter(|_| self.shared.addresses)
    }

    /// Its HTTP, made anew when its address is another.
    fn client(&mut self) -> Result<reqwest::Client, Trouble> {
        let own = self.own();
        if let Some((of, client)) = &self.http
            && *of == own
        {
            return Ok(client.clone());
        }
        let client = fetch::http_client(own)?;
        self.http = Some((own, client.clone()));
        Ok(client)
    }

    /// Fetches a file; the text of a script.
    async fn fetch(&mut self, role: Role, source: &Source) -> Result<Vec<u8>, Trouble> {
        let start = self.shared.clock.instant();
        let mut text = Vec::new();
        let known =
            (role != Role::Script).then(|| self.shared.references.file(self.machine.image(), role));
        let (shared, stage) = (self.shared.clone(), self.stage);
        let mut taker = |at: usize, piece: &[u8]| {
            shared.moved(stage, piece.len());
            match &known {
                Some(known) => known.check(at, piece).map_err(|trouble| {
                    Trouble::new(trouble.cause, format!("{role}: {}", trouble.detail))
                }),
                None if text.len() + piece.len() > LONGEST => {
                    Err(Trouble::new(Cause::Script, "it is too long"))
                }
                None => {
                    text.extend_from_slice(piece);
                    Ok(())
                }
            }
        };
        let got = match source {
            Source::Tftp(server, name) => {
                let plan = &shared.plan;
                let uefi = plan.platform != Firmware::Bios;
                let habits = TftpHabits {
                    blksize: if uefi { 1468 } else { 1456 },
                    window: if uefi { 4 } else { 1 },
                    patience: plan.patience,
                };
                let own = self.own();
                fetch::tftp(own, *server, name, habits, &mut taker).await?
            }
            Source::Http(url) => {
                let client = self.client()?;
                fetch::http(&client, url, &mut taker).await?
            }
        };
        for _ in 0..got.again {
            self.shared.tally().again(self.stage);
        }
        if let Some(known) = known {
            known.end(got.bytes)?;
        }
        self.done(start);
        Ok(text)
    }

    async fn pause(&mut self, pause: Duration) -> Result<(), Trouble> {
        match &mut self.disk {
            Some(session) if !pause.is_zero() => session.rest(pause).await,
            _ => {
                tokio::time::sleep(pause).await;
                Ok(())
            }
        }
    }

    /// Logs in, works through the profile, reads back what it wrote; the disk stays open.
    async fn use_disk(&mut self, disk: &Disk) -> Result<(), Trouble> {
        let start = self.shared.clock.instant();
        let random = || getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()));
        let fresh = [random(), random(), random()];
        let mut session = Session::open(self.own(), disk, fresh).await?;
        self.done(start);
        let shared = self.shared.clone();
        let image = shared.references.disk(self.machine.image());
        let operations = shared.pattern.operations(session.size());
        let mut written = Written::new(fresh[0]);
        for operation in &operations {
            let think = operation.think * shared.plan.think / 100;
            if !think.is_zero() {
                session.rest(think).await?;
            }
            match operation.deed {
                Deed::Read(at, length) => {
                    let place = (at, length);
                    self.read(Stage::Read, &mut session, place, &written, &image)
                        .await?;
                }
                Deed::Write(at, length) => {
                    self.stage = Stage::Write;
                    let bytes = written.write(at, length);
                    let start = shared.clock.instant();
                    session.write(at, &bytes).await?;
                    self.done(start);
                    shared.moved(self.stage, bytes.len());
                }
                Deed::Flush => self.flush(&mut session).await?,
            }
        }
        let places = written.places();
        if !places.is_empty() {
            self.flush(&mut session).await?;
        }
        for place in places {
            self.read(Stage::Verify, &mut session, place, &written, &image)
                .await?;
        }
        self.disk = Some(session);
        Ok(())
    }

    async fn flush(&mut self, session: &mut Session) -> Result<(), Trouble> {
        self.stage = Stage::Flush;
        let start = self.shared.clock.instant();
        session.flush().await?;
        self.done(start);
        Ok(())
    }

    async fn read(
        &mut self,
        stage: Stage,
        session: &mut Session,
        (at, length): (u64, u32),
        written: &Written,
        image: &KnownDisk,
    ) -> Result<(), Trouble> {
        self.stage = stage;
        let mut buffer = vec![0; usize::try_from(length).unwrap_or(0)];
        let start = self.shared.clock.instant();
        session.read(at, &mut buffer).await?;
        self.done(start);
        self.shared.moved(stage, buffer.len());
        written.check(image, at, &buffer)
    }
}
