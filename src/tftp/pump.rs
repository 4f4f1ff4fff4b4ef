//! The threads that transfers live on.
//!
//! A transfer in lock-step is a chain of wake-ups, so what counts is how little lies between an
//! ACK and the next block: each thread waits for all its sockets at once (epoll), takes one
//! datagram of each that has one, and answers before it looks at the next. No task is woken
//! and no other thread has a part in it; before it sleeps it looks for a moment. What would wait for a disk is read elsewhere, and the
//! bytes come back by the thread's inbox.
//!
//! It knows no protocol: that is [`super::transfer`]'s. Timers are moved only to be earlier:
//! moving one with every packet costs more than to let it fire early now and then.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::runtime::Handle;

use super::transfer::{Next, Scratch, Transfer};
use crate::attention::Attention;
use crate::clock::Clock;

/// Threads at most; one sends some gigabytes a second.
const MOST_THREADS: usize = 4;
/// Sockets that one look at the kernel tells of.
const EVENTS: usize = 128;
/// The inbox among the sockets.
const INBOX: u64 = u64::MAX;
/// Pause after an error of epoll itself, so that it can't become a busy loop.
const PAUSE: Duration = Duration::from_millis(100);

/// What a thread is asked to do.
enum Order {
    Begin(Box<Transfer>),
    /// What the transfer of that number waited for.
    Read(u64, io::Result<Vec<u8>>),
    /// Transfers end, and so does the thread.
    End,
}

/// A thread's inbox.
struct Inbox {
    orders: Mutex<Vec<Order>>,
    bell: EventFd,
    transfers: AtomicUsize,
}

impl Inbox {
    fn put(&self, order: Order) {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.push(order);
        drop(orders);
        // A full counter rings as well.
        let _ = self.bell.write(1);
    }

    fn take(&self) -> Vec<Order> {
        let _ = self.bell.read();
        std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// All threads; dropped, they end, and their transfers with them.
pub(super) struct Pumps {
    inboxes: Vec<Arc<Inbox>>,
}

impl Pumps {
    /// Starts the threads. Must be called within the runtime that reads files for them.
    ///
    /// # Errors
    /// When the system has no thread or descriptor left.
    pub(super) fn start(clock: &Clock) -> io::Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let mut pumps = Self {
            inboxes: Vec::new(),
        };
        for number in 0..count.min(MOST_THREADS) {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            let inbox = Arc::new(Inbox {
                orders: Mutex::default(),
                bell: EventFd::from_value_and_flags(0, flags)?,
                transfers: AtomicUsize::new(0),
            });
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            epoll.add(&inbox.bell, EpollEvent::new(EpollFlags::EPOLLIN, INBOX))?;
            let pump = Pump {
                epoll,
                inbox: Arc::clone(&inbox),
                clock: clock.clone(),
                runtime: Handle::current(),
                transfers: HashMap::new(),
                timers: BinaryHeap::new(),
                numbers: 0,
                scratch: Scratch::default(),
                ending: false,
            };
            std::thread::Builder::new()
                .name(format!("tftp-{number}"))
                .spawn(move || pump.run())?;
            pumps.inboxes.push(inbox);
        }
        Ok(pumps)
    }

    /// Runs a transfer on the thread that has the fewest.
    pub(super) fn run(&self, transfer: Transfer) {
        let load = |inbox: &&Arc<Inbox>| inbox.transfers.load(Ordering::Relaxed);
        if let Some(inbox) = self.inboxes.iter().min_by_key(load) {
            inbox.transfers.fetch_add(1, Ordering::Relaxed);
            inbox.put(Order::Begin(Box::new(transfer)));
        }
    }

    /// Ends all transfers; each tells its client.
    pub(super) fn end(&self) {
        for inbox in &self.inboxes {
            inbox.put(Order::End);
        }
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        self.end();
    }
}

/// A transfer on its thread.
struct Entry {
    transfer: Box<Transfer>,
    /// When its timer fires that is set already.
    armed: Option<Instant>,
}

struct Pump {
    epoll: Epoll,
    inbox: Arc<Inbox>,
    clock: Clock,
    runtime: Handle,
    transfers: HashMap<u64, Entry>,
    /// Earliest first.
    timers: BinaryHeap<Reverse<(Instant, u64)>>,
    numbers: u64,
    scratch: Scratch,
    ending: bool,
}

impl Pump {
    fn run(mut self) {
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut attention = Attention::default();
        while !self.ending {
            // A client in lock-step asks again before a sleeping thread would be awake.
            let looked = attention.look(|| {
                let count = self.epoll.wait(&mut events, EpollTimeout::ZERO)?;
                Ok((count > 0).then_some(count))
            });
            let waited = match looked {
                Ok(None) => self.epoll.wait(&mut events, self.patience()),
                Ok(Some(count)) => Ok(count),
                Err(error) => Err(error),
            };
            let count = match waited {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "TFTP transfers can't be waited for");
                    std::thread::sleep(PAUSE);
                    continue;
                }
            };
            for event in events.iter().take(count) {
                match event.data() {
                    INBOX => self.obey(),
                    number => self.with(number, |transfer, scratch| transfer.readable(scratch)),
                }
            }
            self.fire();
        }
    }

    /// How long nothing is due.
    fn patience(&self) -> EpollTimeout {
        let Some(Reverse((due, _))) = self.timers.peek() else {
            return EpollTimeout::NONE;
        };
        let wait = due.saturating_duration_since(self.clock.instant());
        // Rounded up: a timer that fires early fires twice.
        let wait = u16::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        EpollTimeout::from(wait)
    }

    fn obey(&mut self) {
        for order in self.inbox.take() {
            match order {
                Order::Begin(transfer) => self.begin(transfer),
                Order::Read(number, row) => {
                    if let Some(entry) = self.transfers.get(&number) {
                        self.listen(number, entry, EpollFlags::EPOLLIN);
                    }
                    self.with(number, |transfer, scratch| transfer.has_read(row, scratch));
                }
                Order::End => self.ending = true,
            }
        }
        if self.ending {
            for (_, mut entry) in self.transfers.drain() {
                entry.transfer.cut_off();
                self.inbox.transfers.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn begin(&mut self, mut transfer: Box<Transfer>) {
        self.numbers += 1;
        let number = self.numbers;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
        if let Err(error) = self.epoll.add(transfer.socket().as_fd(), event) {
            transfer.broken(&error.into());
            self.inbox.transfers.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let entry = Entry {
            transfer,
            armed: None,
        };
        self.transfers.insert(number, entry);
        self.with(number, Transfer::begin);
    }

    fn listen(&self, number: u64, entry: &Entry, to: EpollFlags) {
        let mut event = EpollEvent::new(to, number);
        let socket = entry.transfer.socket().as_fd();
        if let Err(error) = self.epoll.modify(socket, &mut event) {
            tracing::error!(%error, "a TFTP transfer can't be waited for");
        }
    }

    /// Lets a transfer act, and sees to what it needs next.
    fn with(&mut self, number: u64, act: impl FnOnce(&mut Transfer, &mut Scratch) -> Next) {
        let Some(entry) = self.transfers.get_mut(&number) else {
            return;
        };
        match act(&mut entry.transfer, &mut self.scratch) {
            Next::Due(due) => {
                if entry.armed.is_none_or(|armed| due < armed) {
                    entry.armed = Some(due);
                    self.timers.push(Reverse((due, number)));
                }
            }
            Next::Read(errand) => {
                let inbox = Arc::clone(&self.inbox);
                self.runtime
                    .spawn_blocking(move || inbox.put(Order::Read(number, errand.run())));
                // What comes meanwhile waits in the socket.
                if let Some(entry) = self.transfers.get(&number) {
                    self.listen(number, entry, EpollFlags::empty());
                }
            }
            Next::Over => {
                self.transfers.remove(&number);
                self.inbox.transfers.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Fires all timers that are due.
    fn fire(&mut self) {
        let now = self.clock.instant();
        while let Some(Reverse((due, number))) = self.timers.peek().copied() {
            if due > now {
                return;
            }
            self.timers.pop();
            if let Some(entry) = self.transfers.get_mut(&number)
                && entry.armed == Some(due)
            {
                entry.armed = None;
                self.with(number, Transfer::timer);
            }
        }
    }
}
