//! One boot as a state machine: what the machine does next, given what came of the last thing.
//! Pure: no socket, no clock. [`super::run`] does what it orders.
//!
//! ```text
//! rom: discover -> request -> loader -> ipxe: discover -> request -> script
//! script -> (wait -> script)* -> kernel -> initrds -> [system: discover -> request]
//!        -> disk -> report up -> (stay: beats) -> [bye] -> over
//! any state, any failure -> over
//! ```
//! A packet of DHCP that is not answered is sent again after 4, 8, 16 and 32 s (see
//! [`super::plan::wait`]); after the last the machine gives up, as a ROM does. A NAK begins the
//! exchange anew (RFC 2131 section 4.4.1). An offer without a boot file is kept and the others are
//! waited for, as PXE does, so that a proxy beside a DHCP server is heard.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::orders::{Boot, Disk, Orders, Reader, Source};
use super::plan::{Dice, Plan, wait};
use super::words::{Cause, Failure, Role, Stage, Trouble};
use crate::dhcp::wire::RequestKind;
use crate::dhcp::wire::client::{Answer, AnswerKind, Ask, Firmware, Speaker};
use crate::model::MacAddr;

/// A machine that is refused as often gives up.
const MOST_NAKS: u32 = 3;
/// Scripts that lead to another at once, one after the other.
const MOST_CHAINS: u32 = 16;
/// How often a running system reports.
const BEAT: Duration = Duration::from_secs(30);

/// What the machine does next.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Order {
    /// Sends this and listens for so long; `again`: it was sent before.
    Say {
        stage: Stage,
        ask: Ask,
        listen: Duration,
        again: bool,
    },
    /// Fetches a file, whole; a script is to be handed in.
    Fetch(Role, Source),
    /// Does nothing for so long.
    Pause(Duration),
    /// Logs in to the disk, works through the profile, and keeps it open.
    UseDisk(Disk),
    /// Tells the server.
    Report(String),
    /// It is over, well or not.
    Over(Result<(), Failure>),
}

/// What came of an order.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event<'a> {
    /// A server's answer came while listening.
    Answered(&'a Answer),
    /// None came in time.
    Silence,
    /// The file is there; the text of a script.
    Fetched(&'a [u8]),
    /// Anything else is done.
    Done,
}

#[derive(Debug, Clone)]
struct Asking {
    speaker: Speaker,
    kind: RequestKind,
    xid: u32,
    tries: u32,
    /// Seconds since it began to ask.
    secs: u64,
    address: Option<(Ipv4Addr, Option<Ipv4Addr>)>,
    file: Option<(String, Option<Ipv4Addr>)>,
}

#[derive(Debug, Clone)]
enum State {
    Asking(Asking),
    Loader,
    Script(Source),
    Waiting(Source, String),
    Kernel(Box<Boot>),
    Initrd(Box<Boot>, usize),
    Disk(Box<Boot>),
    Reporting(String, Duration),
    Staying(String, Duration),
    Leaving,
    Over,
}

/// One machine.
#[derive(Debug)]
pub(super) struct Machine {
    mac: MacAddr,
    machine_id: [u8; 16],
    platform: Firmware,
    patience: u32,
    stay: Duration,
    bye: bool,
    dice: Dice,
    naks: u32,
    chains: u32,
    address: Option<Ipv4Addr>,
    next_server: Option<Ipv4Addr>,
    image: String,
    boot: Option<Box<Boot>>,
    state: State,
}

impl Machine {
    /// The `n`th machine of a plan, and the first thing that it does.
    pub(super) fn new(plan: &Plan, n: u32) -> (Self, Order) {
        let mut machine = Self {
            mac: plan.mac(n),
            machine_id: plan.machine_id(n),
            platform: plan.platform,
            patience: plan.patience,
            stay: plan.stay,
            bye: plan.bye,
            dice: Dice::new(plan.seed ^ (u64::from(n) << 32)),
            naks: 0,
            chains: 0,
            address: None,
            next_server: None,
            image: String::new(),
            boot: None,
            state: State::Over,
        };
        let speaker = plan
            .rom
            .map_or(Speaker::Loader(plan.platform), Speaker::Rom);
        let order = machine.discover(speaker);
        (machine, order)
    }

    /// The address that it was leased last.
    pub(super) const fn address(&self) -> Option<Ipv4Addr> {
        self.address
    }

    /// The name of the image that it boots, once its script has told it.
    pub(super) fn image(&self) -> &str {
        &self.image
    }

    /// True once the server knows that it is up, or there is nobody to tell.
    pub(super) const fn is_up(&self) -> bool {
        matches!(
            self.state,
            State::Staying(..) | State::Leaving | State::Over
        )
    }

    /// How a machine failed whose time was over at this stage.
    pub(super) fn too_late(&self, stage: Stage) -> Failure {
        match &self.state {
            State::Waiting(_, why) => {
                Trouble::new(Cause::ToldToWait, format!("for: {why}")).at(Stage::Wait)
            }
            _ => Trouble::new(Cause::Deadline, "its time was over").at(stage),
        }
    }

    /// What comes next; `None`: it goes on listening.
    pub(super) fn on(&mut self, event: Event<'_>) -> Option<Order> {
        let state = std::mem::replace(&mut self.state, State::Over);
        let order = match (state, event) {
            (State::Asking(asking), Event::Answered(answer)) => self.answered(asking, answer),
            (State::Asking(asking), _) => Some(self.silence(asking)),
            (State::Loader, _) => Some(self.discover(Speaker::Loader(self.platform))),
            (State::Script(from), Event::Fetched(text)) => Some(self.script(&from, text)),
            (State::Script(from) | State::Waiting(from, _), _) => {
                self.state = State::Script(from.clone());
                Some(Order::Fetch(Role::Script, from))
            }
            (State::Kernel(boot), _) => Some(self.initrd(boot, 0)),
            (State::Initrd(boot, place), _) => Some(self.initrd(boot, place + 1)),
            (State::Disk(boot), _) => Some(self.up(&boot)),
            (State::Reporting(url, left), _) => Some(self.stays(url, left)),
            (State::Staying(url, left), _) => {
                let order = Order::Report(format!("{url}beat"));
                self.state = State::Reporting(url, left);
                Some(order)
            }
            (State::Leaving | State::Over, _) => Some(Order::Over(Ok(()))),
        };
        if let Some(Order::Over(_)) = order {
            self.state = State::Over;
        }
        order
    }

    fn discover(&mut self, speaker: Speaker) -> Order {
        let xid = self.xid();
        self.say(Asking {
            speaker,
            kind: RequestKind::Discover,
            xid,
            tries: 0,
            secs: 0,
            address: None,
            file: None,
        })
    }

    fn xid(&mut self) -> u32 {
        u32::try_from(self.dice.roll() >> 32).unwrap_or(1)
    }

    /// Sends what is asked, for the `tries`th time.
    fn say(&mut self, mut asking: Asking) -> Order {
        let stage = stage(asking.speaker, asking.kind);
        let Some(listen) = wait(asking.tries, self.patience, &mut self.dice) else {
            let (cause, detail) = match asking.kind {
                RequestKind::Discover => (Cause::NoOffer, "no offer"),
                _ => (Cause::NoAck, "no ACK"),
            };
            let detail = format!("{detail} after {} packets", asking.tries);
            return Order::Over(Err(Trouble::new(cause, detail).at(stage)));
        };
        let of_request = asking
            .address
            .filter(|_| asking.kind == RequestKind::Request);
        let ask = Ask {
            kind: asking.kind,
            xid: asking.xid,
            secs: u16::try_from(asking.secs).unwrap_or(u16::MAX),
            // ROMs take no unicast before they have an address; iPXE and Linux do.
            broadcast: matches!(asking.speaker, Speaker::Rom(_)),
            mac: self.mac,
            machine_id: self.machine_id,
            speaker: asking.speaker,
            requested: of_request.map(|(address, _)| address),
            server: of_request.and_then(|(_, server)| server),
        };
        let again = asking.tries > 0;
        asking.tries += 1;
        asking.secs += listen.as_secs();
        self.state = State::Asking(asking);
        Order::Say {
            stage,
            ask,
            listen,
            again,
        }
    }

    fn answered(&mut self, mut asking: Asking, answer: &Answer) -> Option<Order> {
        let ours = answer.xid == asking.xid && answer.mac == self.mac;
        match (asking.kind, answer.kind) {
            (RequestKind::Discover, AnswerKind::Offer) if ours => {
                if let (None, Some(address)) = (asking.address, answer.your_ip) {
                    asking.address = Some((address, answer.server));
                }
                if let (None, Some(file)) = (&asking.file, &answer.boot_file) {
                    asking.file = Some((file.clone(), answer.next_server));
                }
                let enough = asking.file.is_some() || asking.speaker == Speaker::System;
                if enough && asking.address.is_some() {
                    return Some(self.request(asking));
                }
            }
            (RequestKind::Request, AnswerKind::Ack) if ours => {
                return Some(self.leased(asking, answer));
            }
            (RequestKind::Request, AnswerKind::Nak) if ours => {
                self.naks += 1;
                if self.naks < MOST_NAKS {
                    return Some(self.discover(asking.speaker));
                }
                let why = answer.message.as_deref().unwrap_or("no reason given");
                let stage = stage(asking.speaker, asking.kind);
                return Some(Order::Over(Err(Trouble::new(Cause::Nak, why).at(stage))));
            }
            _ => {}
        }
        self.state = State::Asking(asking);
        None
    }

    fn silence(&mut self, asking: Asking) -> Order {
        // An address without a boot file: the ACK may have one.
        if asking.kind == RequestKind::Discover && asking.address.is_some() {
            return self.request(asking);
        }
        self.say(asking)
    }

    fn request(&mut self, asking: Asking) -> Order {
        self.say(Asking {
            kind: RequestKind::Request,
            tries: 0,
            ..asking
        })
    }

    fn leased(&mut self, asking: Asking, answer: &Answer) -> Order {
        let Asking { speaker, file, .. } = asking;
        self.naks = 0;
        self.address = answer
            .your_ip
            .or(asking.address.map(|(address, _)| address));
        if speaker == Speaker::System {
            return match self.boot.take() {
                Some(boot) => self.disk(boot),
                None => Order::Over(Ok(())),
            };
        }
        let own = answer
            .boot_file
            .clone()
            .map(|file| (file, answer.next_server));
        let stage = stage(speaker, RequestKind::Request);
        let Some((file, next_server)) = own.or(file) else {
            let detail = "an address, and no boot file in offer or ACK";
            return Order::Over(Err(Trouble::new(Cause::NoBootFile, detail).at(stage)));
        };
        self.next_server = next_server;
        let source = match Source::of_boot_file(&file, next_server) {
            Ok(source) => source,
            Err(trouble) => return Order::Over(Err(trouble.at(stage))),
        };
        if let Speaker::Rom(_) = speaker {
            self.state = State::Loader;
            return Order::Fetch(Role::Loader, source);
        }
        self.state = State::Script(source.clone());
        Order::Fetch(Role::Script, source)
    }

    fn script(&mut self, from: &Source, text: &[u8]) -> Order {
        let reader = Reader {
            from,
            mac: self.mac,
            ip: self.address,
            next_server: self.next_server,
        };
        match reader.follow(text) {
            Ok(Orders::Boot(boot)) => {
                self.image.clone_from(&boot.image);
                match &boot.kernel {
                    Some(kernel) => {
                        let order = Order::Fetch(Role::Kernel, kernel.clone());
                        self.state = State::Kernel(Box::new(boot));
                        order
                    }
                    None => self.disk(Box::new(boot)),
                }
            }
            Ok(Orders::Again(again)) => {
                self.chains = if again.seconds == 0 {
                    self.chains + 1
                } else {
                    0
                };
                if self.chains > MOST_CHAINS {
                    let trouble = Trouble::new(Cause::Loop, format!("{MOST_CHAINS} in a row"));
                    return Order::Over(Err(trouble.at(Stage::Script)));
                }
                self.state = State::Waiting(again.to, again.why);
                Order::Pause(Duration::from_secs(again.seconds))
            }
            Err(trouble) => Order::Over(Err(trouble.at(Stage::Script))),
        }
    }

    fn initrd(&mut self, boot: Box<Boot>, place: usize) -> Order {
        if let Some(source) = boot.initrds.get(place).cloned() {
            let role = Role::Initrd(u8::try_from(place).unwrap_or(u8::MAX));
            self.state = State::Initrd(boot, place);
            return Order::Fetch(role, source);
        }
        if boot.dhcp {
            self.boot = Some(boot);
            return self.discover(Speaker::System);
        }
        self.disk(boot)
    }

    fn disk(&mut self, boot: Box<Boot>) -> Order {
        let Some(disk) = boot.disk.clone() else {
            return self.up(&boot);
        };
        self.state = State::Disk(boot);
        Order::UseDisk(disk)
    }

    fn up(&mut self, boot: &Boot) -> Order {
        let Some(url) = boot.report.clone() else {
            // Nobody to tell: it stays on all the same.
            self.state = State::Leaving;
            return Order::Pause(self.stay);
        };
        let order = Order::Report(format!("{url}up"));
        self.state = State::Reporting(url, self.stay);
        order
    }

    fn stays(&mut self, url: String, left: Duration) -> Order {
        let pause = left.min(BEAT);
        if !pause.is_zero() {
            let left = left.saturating_sub(pause);
            self.state = if left.is_zero() && !self.bye {
                State::Leaving
            } else {
                State::Staying(url, left)
            };
            return Order::Pause(pause);
        }
        self.state = State::Leaving;
        if self.bye {
            return Order::Report(format!("{url}bye"));
        }
        Order::Over(Ok(()))
    }
}

const fn stage(speaker: Speaker, kind: RequestKind) -> Stage {
    match (speaker, kind) {
        (Speaker::Rom(_), RequestKind::Discover) => Stage::RomDiscover,
        (Speaker::Rom(_), _) => Stage::RomRequest,
        (Speaker::Loader(_), RequestKind::Discover) => Stage::IpxeDiscover,
        (Speaker::Loader(_), _) => Stage::IpxeRequest,
        (Speaker::System, RequestKind::Discover) => Stage::SystemDiscover,
        (Speaker::System, _) => Stage::SystemRequest,
    }
}
