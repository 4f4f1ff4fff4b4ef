//! DHCP's sockets and tasks: bind, follow interfaces, receive, keep a stock of probed
//! addresses, follow leases that other servers write.
//!
//! One receive task per interface and port (a second socket with `SO_REUSEPORT` would get
//! every broadcast as well). What a packet means is `flow`'s and `decide`'s business.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::answer::{Corked, Ticket};
use super::claims::{Claim, Claimer};
use super::commit::{Committer, Operation, Verdict};
use super::decide::Port;
use super::facts::{is_registered, keep_out};
pub use super::flow::LoaderLookup;
use super::flow::{Core, Gates};
use super::foreign::Strangers;
use super::frame;
pub use super::interfaces::Selection;
use super::interfaces::{self, Interface};
use super::ledger::Ledger;
use super::link::Link;
pub use super::link::{BindError, Ports};
pub use super::metrics::DhcpMetrics;
use super::pool::{Book, Stock};
use super::probe::Probed;
use super::registrar::Registrar;
pub use super::registrar::UnknownClients;
use super::socket::Intake;
use super::wire::{self, Packet};
use crate::boot::disks::Disks;
use crate::boot::session::{Context, Evidence, Observation};
use crate::boot::tracker::Tracker;
use crate::cache::Cache;
use crate::catalog::{Catalog, Change};
use crate::clock::Clock;
use crate::journal::JournalError;
use crate::model::{AttemptOutcome, Client, Lease, RangeMode, Stage};

/// Operations on leases that may wait for the database.
const QUEUE: usize = 16_384;

/// Packets that are taken in together: few enough that the first one's answer is not late.
const INTAKE: usize = 32;

/// How often interfaces are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// After an error on a socket.
const PAUSE: Duration = Duration::from_millis(200);

/// The handles that the server works with.
pub struct Handles {
    /// Clients, ranges, images, site key.
    pub cache: Cache,
    /// Leases, and rows for unknown machines.
    pub catalog: Catalog,
    /// What was seen of each boot.
    pub tracker: Tracker,
    /// Who has which disk.
    pub disks: Disks,
    /// The time.
    pub clock: Clock,
    /// Counters, registered by the application.
    pub metrics: DhcpMetrics,
    /// Which loader an architecture gets.
    pub loader_for: LoaderLookup,
}

/// How it is configured.
#[derive(Debug, Clone)]
pub struct DhcpOptions {
    /// Which interfaces.
    pub interfaces: Selection,
    /// Which ports.
    pub ports: Ports,
    /// The boot listener's port, for URLs.
    pub http_port: u16,
    /// What is done with boot requests of unknown machines.
    pub unknown_clients: UnknownClients,
    /// How much of a range's pools machines may hold that nobody has registered, percent.
    pub unknown_share_percent: u8,
    /// So much of a lease may be gone, percent, and an ACK still says what is left of it instead of
    /// writing it anew (a server that shares its database always writes).
    pub keep_percent: u8,
    /// Image of clients that have none assigned.
    pub default_image: Option<String>,
    /// This server, in the rows that it writes.
    pub server_id: Uuid,
    /// No other server shares the catalog: every address is this one's to give, also while the
    /// database is away.
    pub sole: bool,
    /// For how long addresses are claimed that this server gives away by itself, seconds.
    pub claim_seconds: u32,
    /// Where the journal of leases lies, and the file of claims.
    pub journal_dir: PathBuf,
}

/// The DHCP server: make it, [`DhcpServer::bind`] it while privileged, then
/// [`DhcpServer::run`] it.
pub struct DhcpServer {
    core: Arc<Core>,
    committer: Committer<Box<Ticket>>,
    operations: mpsc::Receiver<Operation<Box<Ticket>>>,
    newcomers: mpsc::Receiver<Client>,
    options: DhcpOptions,
    links: HashMap<String, Arc<Link>>,
    /// The leases as they were known when the server last ran.
    remembered: Vec<Lease>,
}

impl DhcpServer {
    /// Makes it; no port is opened yet.
    ///
    /// # Errors
    /// When the journal of leases can't be opened.
    pub fn new(handles: Handles, options: DhcpOptions) -> Result<Self, JournalError> {
        let (ledger, remembered) = Ledger::open(&options.journal_dir)?;
        handles.metrics.owing(ledger.len());
        let Handles {
            cache,
            catalog,
            tracker,
            disks,
            clock,
            metrics,
            loader_for,
        } = handles;
        let (operations, receiver) = mpsc::channel(QUEUE);
        let (registrar, newcomers) = Registrar::new(options.unknown_clients, clock.now());
        let known_by = cache.clone();
        let mut book = Book::new(
            options.unknown_share_percent,
            Arc::new(move |mac| {
                known_by
                    .get()
                    .client_by_mac(mac)
                    .is_some_and(|c| is_registered(c))
            }),
        );
        if !options.sole {
            book.share();
        }
        let book = Arc::new(Mutex::new(book));
        let core = Arc::new(Core {
            cache,
            tracker,
            claim: Claim::new(clock.clone(), options.sole),
            clock,
            metrics: metrics.clone(),
            disks,
            loader_for,
            registrar,
            book: book.clone(),
            operations,
            behind: AtomicBool::new(false),
            ours: ArcSwap::default(),
            http_port: options.http_port,
            default_image: options.default_image.clone(),
            keep_percent: options.keep_percent,
            catalog: catalog.clone(),
            tasks: TaskTracker::new(),
            gates: Mutex::new(Gates::default()),
            strangers: Mutex::new(Strangers::default()),
            share_told: Mutex::default(),
        });
        let report = {
            let core = core.clone();
            Arc::new(move |verdicts: Vec<(Box<Ticket>, Verdict)>| core.all_settled(verdicts))
        };
        let committer = Committer {
            catalog,
            clock: core.clock.clone(),
            server_id: options.server_id,
            book,
            metrics,
            report,
            known: Arc::default(),
            ledger: Arc::new(ledger),
            lagging: Arc::default(),
            boots: core.tracker.clone(),
            misled: Arc::default(),
        };
        Ok(Self {
            core,
            committer,
            operations: receiver,
            newcomers,
            options,
            links: HashMap::new(),
            remembered,
        })
    }

    /// Opens the ports on all interfaces that are served and there by now; others are
    /// opened when they come. Needs a tokio runtime, and the capabilities
    /// `CAP_NET_BIND_SERVICE` and `CAP_NET_RAW`.
    ///
    /// # Errors
    /// See [`BindError`]; its message names port, address and interface.
    pub fn bind(&mut self) -> Result<(), BindError> {
        let found = interfaces::list().map_err(BindError::Interfaces)?;
        self.learn_addresses(&found);
        let snapshot = self.core.cache.get();
        for interface in &found {
            if self.options.interfaces.takes(interface, &snapshot) {
                let link = Link::open(interface, self.options.ports, CancellationToken::new())?;
                tracing::info!(interface = link.name, addresses = ?link.addresses(), "DHCP bound");
                self.links.insert(link.name.clone(), Arc::new(link));
            }
        }
        if let Selection::Named(names) = &self.options.interfaces {
            for name in names {
                if !self.links.contains_key(name) {
                    tracing::warn!(
                        interface = name,
                        "no such interface is up with an IPv4 address; DHCP waits for it"
                    );
                }
            }
        } else if self.links.is_empty() {
            tracing::warn!(
                "no interface has an address in a served network range; DHCP waits for one"
            );
        }
        Ok(())
    }

    /// Names of the interfaces that are bound, sorted.
    #[must_use]
    pub fn interfaces(&self) -> Vec<String> {
        let mut names: Vec<String> = self.links.keys().cloned().collect();
        names.sort();
        names
    }

    /// Serves until cancelled; then leases that are under way are stored and acknowledged.
    pub async fn run(self, cancel: CancellationToken) {
        // Before leases are known, every address would look free. Without the database those are
        // known that this server knew last.
        let mut uncertain = false;
        let mut claimer = Claimer::new(
            self.core.clone(),
            self.committer.catalog.clone(),
            (self.options.server_id, self.options.claim_seconds),
            &self.options.journal_dir,
            self.committer.misled.clone(),
        );
        let shared = !self.options.sole;
        if !self.committer.read_all().await {
            tracing::warn!(
                leases = self.remembered.len(),
                "leases are taken from the local journal until the database answers"
            );
            self.committer.remember(self.remembered);
            if shared {
                claimer.remember();
            }
            uncertain = true;
        }
        let committing = CancellationToken::new();
        let committer = tokio::spawn(self.committer.clone().run(
            self.operations,
            uncertain,
            committing.clone(),
        ));
        let mut tasks = JoinSet::new();
        tasks.spawn(self.core.registrar.clone().run(
            self.newcomers,
            self.committer.catalog.clone(),
            self.core.cache.clone(),
            self.core.metrics.clone(),
            cancel.clone(),
        ));
        tasks.spawn(follow_leases(
            self.core.clone(),
            self.committer.catalog.clone(),
            cancel.clone(),
        ));
        let claiming = CancellationToken::new();
        let claimer = shared.then(|| tokio::spawn(claimer.run(claiming.clone())));
        let mut following = Following {
            core: self.core.clone(),
            options: self.options,
            links: HashMap::new(),
            complained: HashMap::new(),
        };
        for (name, link) in self.links {
            following.start(name, link);
        }
        // A range that is added or switched on is served at once, not at the next look.
        let mut changes = self.core.cache.watch();
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                _ = tick.tick() => {
                    following.look();
                    self.core.catch_up();
                }
                Ok(()) = changes.changed() => following.look(),
            }
        }
        // First no more packets, then what is under way, then the committer's last batch.
        following.stop().await;
        while tasks.join_next().await.is_some() {}
        self.core.tasks.close();
        self.core.tasks.wait().await;
        claiming.cancel();
        let claimer = match claimer {
            Some(claimer) => claimer.await.ok(),
            None => None,
        };
        committing.cancel();
        if let Err(error) = committer.await {
            tracing::error!(%error, "the lease committer failed");
        }
        if let Some(claimer) = claimer
            && !self.committer.ledger.owes()
            && !self.committer.catalog.is_away()
        {
            claimer.rest().await;
        }
    }

    fn learn_addresses(&self, found: &[Interface]) {
        learn_addresses(&self.core, found);
    }
}

/// Every address of ours, on any interface: to know our own option 54 again.
fn learn_addresses(core: &Core, found: &[Interface]) {
    let now: HashSet<Ipv4Addr> = found
        .iter()
        .flat_map(|interface| interface.addresses.iter().map(|address| address.ip()))
        .collect();
    if **core.ours.load() != now {
        core.ours.store(Arc::new(now));
    }
}

/// Interfaces that come and go, and the tasks of each.
struct Following {
    core: Arc<Core>,
    options: DhcpOptions,
    links: HashMap<String, (Arc<Link>, JoinSet<()>)>,
    /// What was said of an interface that can't be bound, to say it once.
    complained: HashMap<String, String>,
}

impl Following {
    fn start(&mut self, name: String, link: Arc<Link>) {
        let mut tasks = JoinSet::new();
        for port in [Port::Dhcp, Port::Pxe] {
            tasks.spawn(receive(self.core.clone(), link.clone(), port));
        }
        tasks.spawn(overhear(self.core.clone(), link.clone()));
        tasks.spawn(listen_for_arp(link.clone()));
        tasks.spawn(keep_stock(self.core.clone(), link.clone()));
        tasks.spawn(ask_the_given_up(self.core.clone(), link.clone()));
        self.links.insert(name, (link, tasks));
    }

    /// Compares what is served with what is there.
    fn look(&mut self) {
        let found = match interfaces::list() {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "the network interfaces can't be listed");
                return;
            }
        };
        learn_addresses(&self.core, &found);
        let snapshot = self.core.cache.get();
        let wanted: HashMap<&str, &Interface> = found
            .iter()
            .filter(|interface| self.options.interfaces.takes(interface, &snapshot))
            .map(|interface| (interface.name.as_str(), interface))
            .collect();
        self.links.retain(|name, (link, _)| {
            let stays = wanted
                .get(name.as_str())
                .is_some_and(|interface| link.is(interface));
            if !stays {
                tracing::info!(
                    interface = name,
                    "DHCP stopped: the interface is gone or no longer served"
                );
                link.cancel.cancel();
            }
            stays
        });
        for (name, interface) in wanted {
            if let Some((link, _)) = self.links.get(name) {
                link.set_addresses(&interface.addresses);
                continue;
            }
            match Link::open(interface, self.options.ports, CancellationToken::new()) {
                Ok(link) => {
                    tracing::info!(interface = name, addresses = ?link.addresses(), "DHCP bound");
                    self.complained.remove(name);
                    self.start(name.to_owned(), Arc::new(link));
                }
                Err(error) => {
                    let error = error.to_string();
                    if self.complained.get(name) != Some(&error) {
                        tracing::warn!(interface = name, %error, "DHCP not bound; tried again each second");
                        self.complained.insert(name.to_owned(), error);
                    }
                }
            }
        }
    }

    async fn stop(self) {
        for (_, (link, mut tasks)) in self.links {
            link.cancel.cancel();
            while tasks.join_next().await.is_some() {}
        }
    }
}

/// Receives on one port of one interface, and answers at once what needs no wait.
async fn receive(core: Arc<Core>, link: Arc<Link>, port: Port) {
    let mut intake = Intake::new(INTAKE);
    loop {
        let received = tokio::select! {
            () = link.cancel.cancelled() => return,
            received = link.receive(port, &mut intake) => received,
        };
        match received {
            Ok(()) => {
                let _together = Corked::new(&core, &link);
                for (received, bytes) in intake.datagrams() {
                    core.take(&link, port, received, bytes);
                }
            }
            Err(error) => {
                tracing::warn!(interface = link.name, %error, "DHCP receive");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Hears what other servers broadcast to clients.
async fn overhear(core: Arc<Core>, link: Arc<Link>) {
    loop {
        let heard = tokio::select! {
            () = link.cancel.cancelled() => return,
            heard = link.frames.receive() => heard,
        };
        match heard {
            Ok(packet) => {
                if let Some((from, _, payload)) = frame::udp_payload(&packet)
                    && let Ok(Packet::Reply(reply)) = wire::parse(payload)
                {
                    core.hear(&link, &reply, *from.ip());
                }
            }
            Err(error) => {
                tracing::debug!(interface = link.name, %error, "packet socket");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn listen_for_arp(link: Arc<Link>) {
    loop {
        tokio::select! {
            () = link.cancel.cancelled() => return,
            ended = link.prober.listen() => {
                if let Err(error) = ended {
                    tracing::debug!(interface = link.name, %error, "ARP socket");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Asks machines by ARP whose boot was given up: one that answers is on, and has failed; one that
/// does not may have been switched off.
async fn ask_the_given_up(core: Arc<Core>, link: Arc<Link>) {
    let mut events = core.tracker.subscribe();
    loop {
        let live = tokio::select! {
            () = link.cancel.cancelled() => return,
            live = events.recv() => live,
        };
        let live = match live {
            Ok(live) => live,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        let (attempt, stage) = (&live.attempt, live.event.stage);
        let here = |address: &Ipv4Addr| {
            let networks = link.addresses();
            networks.iter().any(|network| network.contains(*address))
        };
        if stage != Stage::Error || attempt.outcome != AttemptOutcome::Failed {
            continue;
        }
        let Some(address) = attempt.client_ip.filter(here) else {
            continue;
        };
        let (core, link) = (core.clone(), link.clone());
        let (id, mac) = (attempt.id, attempt.mac);
        core.tasks.clone().spawn(async move {
            if let Ok(Probed::InUse(station)) = link.prober.probe(address).await
                && station == mac
            {
                let seen = Observation {
                    mac,
                    at: core.clock.now(),
                    what: Evidence::Answers,
                    context: Context::default(),
                };
                let _ = core.tracker.report(id, seen);
            }
        });
    }
}

/// Probes free addresses ahead of need: few at a time while nobody comes, for every question is
/// a broadcast, and as many as are taken while many come.
async fn keep_stock(core: Arc<Core>, link: Arc<Link>) {
    let mut stocks: HashMap<Uuid, Stock> = HashMap::new();
    loop {
        let snapshot = core.cache.get();
        let ours = core.ours.load_full();
        let now = core.clock.now();
        let mut hurry = false;
        let mut probes = JoinSet::new();
        for address in link.addresses().iter() {
            let Some(range) = snapshot.range_of(address.ip()) else {
                continue;
            };
            if range.mode != RangeMode::Full {
                continue;
            }
            let stock = stocks.entry(range.id).or_default();
            let reserved = |address| keep_out(&snapshot, &ours, address);
            let next = {
                let mut book = core.book();
                let wanted = stock.wanted(book.stock(range));
                let next = book.to_probe(range, &reserved, wanted, now);
                stock.asked(wanted, next.len());
                next
            };
            hurry |= stock.is_sought();
            let (core, link, range) = (core.clone(), link.clone(), range.id);
            probes.spawn(async move { core.probe_ahead(&link, &next, range).await });
        }
        let done = async {
            while probes.join_next().await.is_some() {}
            tokio::time::sleep(LOOK / 10).await;
            if !hurry {
                let _ = tokio::time::timeout(LOOK, link.stock_is_low.notified()).await;
            }
        };
        tokio::select! {
            () = link.cancel.cancelled() => return,
            () = done => {}
        }
    }
}

/// Takes over what other servers, or people, write into `leases`.
async fn follow_leases(core: Arc<Core>, catalog: Catalog, cancel: CancellationToken) {
    let mut changes = catalog.changes();
    loop {
        let change = tokio::select! {
            () = cancel.cancelled() => return,
            change = changes.next() => change,
        };
        match change {
            Some(Change::Leases(addresses)) => core.enqueue(Operation::Reread(addresses, None)),
            Some(Change::Everything) => core.enqueue(Operation::RereadAll(None)),
            Some(Change::Configuration | Change::Clients(_)) => {}
            None => return,
        }
    }
}
