//! A root disk on NBD that waits for its server: connects, gives the connection to the
//! kernel, and whenever the kernel loses it makes a new one. The kernel holds all reads and
//! writes back meanwhile; nothing above it sees an error.
//!
//! Takes the words that the initramfs script of Debian's `nbd-client` calls its client with:
//!
//! ```text
//! dls-nbd HOST -N NAME [PORT] /dev/nbdN [-swap -persist -systemd-mark ...]
//! ```
//!
//! The other flags ask for what it does anyway. One file, no crates:
//! `rustc --edition 2024 -O -C panic=abort -C strip=symbols dls-nbd.rs`.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};
use std::thread::sleep;
use std::time::Duration;

/// Seconds that the kernel waits for a new connection before reads and writes fail: a week.
const WAIT: u64 = 7 * 24 * 3600;

/// The few calls of the C library that the standard library does not give, made safe.
#[expect(
    unsafe_code,
    reason = "netlink sockets and fork have no safe interface without a crate"
)]
mod sys {
    use std::ffi::{c_int, c_void};
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

    unsafe extern "C" {
        safe fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
        fn setsockopt(
            fd: c_int,
            level: c_int,
            name: c_int,
            value: *const c_void,
            length: u32,
        ) -> c_int;
        fn bind(fd: c_int, address: *const c_void, length: u32) -> c_int;
        fn send(fd: c_int, data: *const c_void, length: usize, flags: c_int) -> isize;
        fn recv(fd: c_int, data: *mut c_void, length: usize, flags: c_int) -> isize;
        fn fork() -> c_int;
        pub(super) safe fn setsid() -> c_int;
        pub(super) safe fn mlockall(flags: c_int) -> c_int;
    }

    fn check(result: c_int) -> io::Result<c_int> {
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(result)
        }
    }

    fn length(result: isize) -> io::Result<usize> {
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// A generic netlink socket with a name of its own, by the kernel's choice: nothing is
    /// told to the nameless.
    pub(super) fn netlink() -> io::Result<OwnedFd> {
        // AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC
        let fd = check(socket(16, 3 | 0o2_000_000, 16))?;
        // SAFETY: a descriptor that was just made and is nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let address: [u8; 12] = [16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: the address lives on this stack frame and its length is its own.
        let bound = unsafe { bind(fd.as_raw_fd(), address.as_ptr().cast(), 12) };
        check(bound).map(|_| fd)
    }

    /// Sets an option of a socket to a number.
    pub(super) fn option(
        fd: BorrowedFd<'_>,
        level: c_int,
        name: c_int,
        value: c_int,
    ) -> io::Result<()> {
        // SAFETY: the value lives on this stack frame and its length is its own.
        let done = unsafe { setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), 4) };
        check(done).map(drop)
    }

    /// Sends a datagram.
    pub(super) fn put(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
        // SAFETY: the slice is that long.
        length(unsafe { send(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), 0) })
    }

    /// Receives a datagram; its length.
    pub(super) fn get(fd: BorrowedFd<'_>, data: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the slice is that long.
        length(unsafe { recv(fd.as_raw_fd(), data.as_mut_ptr().cast(), data.len(), 0) })
    }

    /// Goes on in a child; true in the parent.
    pub(super) fn split() -> io::Result<bool> {
        // SAFETY: this program has one thread, so no lock can be held in the child.
        check(unsafe { fork() }).map(|child| child != 0)
    }
}

fn other(text: String) -> io::Error {
    io::Error::other(text)
}

// ---- generic netlink ------------------------------------------------------------------------

/// A generic netlink socket.
struct Netlink(OwnedFd);

/// One message: command and attributes.
struct Message {
    command: u8,
    attributes: Vec<(u16, Vec<u8>)>,
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut all = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    all.extend_from_slice(value);
    all.resize(all.len().next_multiple_of(4), 0);
    all
}

fn attributes(mut data: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut all = Vec::new();
    while let [a, b, c, d, ..] = *data {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let Some(value) = data.get(4..length) else {
            break;
        };
        all.push((u16::from_ne_bytes([c, d]) & 0x3fff, value.to_vec()));
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

fn value(attributes: &[(u16, Vec<u8>)], kind: u16) -> Option<&[u8]> {
    attributes
        .iter()
        .find(|a| a.0 == kind)
        .map(|a| a.1.as_slice())
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

impl Netlink {
    fn open() -> io::Result<Self> {
        sys::netlink().map(Self)
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut data = vec![0_u8; 16 << 10];
        let length = sys::get(self.0.as_fd(), &mut data)?;
        data.truncate(length);
        Ok(data)
    }

    /// The next message that is no acknowledgement.
    fn message(&self) -> io::Result<Message> {
        loop {
            let data = self.receive()?;
            let kind = data.get(4..6).map(|k| u16::from_ne_bytes([k[0], k[1]]));
            if kind.is_some_and(|kind| kind >= 16) && data.len() >= 20 {
                let command = data[16];
                return Ok(Message {
                    command,
                    attributes: attributes(&data[20..]),
                });
            }
        }
    }

    /// Sends a command and waits until the kernel has done it; its answer, if it gave one.
    fn ask(&self, family: u16, command: u8, payload: &[u8]) -> io::Result<Option<Message>> {
        let length = u32::try_from(20 + payload.len()).unwrap_or(u32::MAX);
        let mut data = length.to_ne_bytes().to_vec();
        data.extend(family.to_ne_bytes());
        data.extend(5_u16.to_ne_bytes()); // NLM_F_REQUEST | NLM_F_ACK
        data.extend([0; 8]);
        data.extend([command, 1, 0, 0]);
        data.extend(payload);
        sys::put(self.0.as_fd(), &data)?;
        let mut answer = None;
        loop {
            let data = self.receive()?;
            let kind = data.get(4..6).map(|k| u16::from_ne_bytes([k[0], k[1]]));
            if kind != Some(2) {
                let command = data.get(16).copied().unwrap_or(0);
                let attributes = attributes(data.get(20..).unwrap_or_default());
                answer = Some(Message {
                    command,
                    attributes,
                });
                continue;
            }
            let code = data
                .get(16..20)
                .and_then(number)
                .map_or(0, u32::cast_signed);
            return match code {
                0 => Ok(answer),
                code => Err(io::Error::from_raw_os_error(-code)),
            };
        }
    }
}

/// The kernel's NBD driver.
struct Driver {
    orders: Netlink,
    news: Netlink,
    family: u16,
    index: u32,
}

impl Driver {
    fn open(index: u32) -> io::Result<Self> {
        let (orders, news) = (Netlink::open()?, Netlink::open()?);
        let name = attribute(2, b"nbd\0");
        let missing = || other("this kernel has no nbd driver that speaks netlink".to_owned());
        let answer = orders.ask(16, 3, &name)?.ok_or_else(missing)?;
        let family = value(&answer.attributes, 1).ok_or_else(missing)?;
        let family = u16::from_ne_bytes(family.try_into().map_err(|_| missing())?);
        for (_, group) in attributes(value(&answer.attributes, 7).unwrap_or_default()) {
            if let Some(id) = value(&attributes(&group), 2).and_then(number) {
                sys::option(news.0.as_fd(), 270, 1, id.cast_signed())?; // NETLINK_ADD_MEMBERSHIP
            }
        }
        Ok(Self {
            orders,
            news,
            family,
            index,
        })
    }

    fn give(&self, command: u8, connection: &TcpStream, more: &[u8]) -> io::Result<()> {
        let fd = attribute(1, &connection.as_raw_fd().to_ne_bytes());
        let sockets = attribute(0x8007, &attribute(0x8001, &fd));
        let payload = [
            attribute(1, &self.index.to_ne_bytes()),
            sockets,
            more.to_vec(),
        ]
        .concat();
        self.orders.ask(self.family, command, &payload).map(drop)
    }

    fn connect(&self, connection: &TcpStream, export: Export) -> io::Result<()> {
        let long = |kind, value: u64| attribute(kind, &value.to_ne_bytes());
        let more = [
            long(2, export.size),
            long(3, u64::from(export.block)),
            long(5, u64::from(export.flags)),
            long(8, WAIT),
        ];
        self.give(1, connection, &more.concat())
    }

    fn reconnect(&self, connection: &TcpStream) -> io::Result<()> {
        self.give(3, connection, &[])
    }

    /// Waits until the kernel says that our device has lost its connection.
    fn lost(&self) -> io::Result<()> {
        loop {
            let message = self.news.message()?;
            let index = value(&message.attributes, 1).and_then(number);
            if message.command == 4 && index == Some(self.index) {
                return Ok(());
            }
        }
    }
}

// ---- NBD, the client's half of the handshake ---------------------------------------------------

#[derive(Clone, Copy, PartialEq)]
struct Export {
    size: u64,
    flags: u16,
    block: u32,
}

struct Server {
    host: String,
    port: u16,
    name: String,
}

fn take<const N: usize>(connection: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    connection.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Server {
    fn connect(&self) -> io::Result<(TcpStream, Export)> {
        let limit = Duration::from_secs(10);
        let mut last = other(format!("{} has no address", self.host));
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, limit) {
                Ok(connection) => return self.negotiate(connection, limit),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    fn negotiate(
        &self,
        mut connection: TcpStream,
        limit: Duration,
    ) -> io::Result<(TcpStream, Export)> {
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(limit))?;
        connection.set_write_timeout(Some(limit))?;
        // A server that vanished is noticed in a minute: keep-alive, and TCP_USER_TIMEOUT.
        sys::option(connection.as_fd(), 1, 9, 1)?;
        for (name, value) in [(4, 10), (5, 5), (6, 10), (18, 60_000)] {
            sys::option(connection.as_fd(), 6, name, value)?;
        }
        let hello: [u8; 18] = take(&mut connection)?;
        if hello[..16] != *b"NBDMAGICIHAVEOPT" || hello[17] & 1 == 0 {
            return Err(other(
                "this is no NBD server of the fixed newstyle".to_owned(),
            ));
        }
        // Without the zeroes, if it can; NBD_OPT_GO, asking for the block size.
        let flags = u32::from(hello[17] & 3);
        let mut go = flags.to_be_bytes().to_vec();
        go.extend(b"IHAVEOPT\0\0\0\x07");
        let name = self.name.as_bytes();
        let length = u32::try_from(name.len()).map_err(io::Error::other)?;
        go.extend((length + 8).to_be_bytes());
        go.extend(length.to_be_bytes());
        go.extend(name);
        go.extend([0, 1, 0, 3]);
        connection.write_all(&go)?;
        let mut export = Export {
            size: 0,
            flags: 0,
            block: 512,
        };
        loop {
            let head: [u8; 20] = take(&mut connection)?;
            let word = |at: usize| {
                u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
            };
            let (kind, length) = (word(12), word(16));
            if word(0) != 0x0003_e889 || length > 1 << 16 {
                return Err(other("the server answers no NBD option".to_owned()));
            }
            let mut data = vec![0; length as usize];
            connection.read_exact(&mut data)?;
            match (kind, data.as_slice()) {
                (1, _) => break,
                (3, [0, 0, a, b, c, d, e, f, g, h, i, j]) => {
                    export.size = u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
                    export.flags = u16::from_be_bytes([*i, *j]);
                }
                (3, [0, 3, a, b, c, d, ..]) => {
                    export.block = u32::from_be_bytes([*a, *b, *c, *d]).clamp(512, 4096);
                }
                (3, _) => {}
                (kind, text) => {
                    let text = String::from_utf8_lossy(text);
                    return Err(other(format!("refused ({kind:#x}): {text}")));
                }
            }
        }
        // From here on the kernel waits as long as it takes.
        connection.set_read_timeout(None)?;
        connection.set_write_timeout(None)?;
        Ok((connection, export))
    }
}

// ---- the program ------------------------------------------------------------------------------

fn say(text: &str) {
    let kernel_log = std::fs::OpenOptions::new().write(true).open("/dev/kmsg");
    if kernel_log
        .and_then(|mut log| writeln!(log, "dls-nbd: {text}"))
        .is_err()
    {
        eprintln!("dls-nbd: {text}");
    }
}

fn words() -> Option<(Server, String)> {
    let (mut free, mut name, mut port) = (Vec::new(), String::new(), 10809);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-N" | "-name" => name = words.next()?,
            word if word.starts_with('-') => {}
            _ => free.push(word),
        }
    }
    if free.len() == 3 {
        port = free.remove(1).parse().ok()?;
    }
    let [host, device] = free.try_into().ok()?;
    Some((Server { host, port, name }, device))
}

fn run(server: &Server, device: &str) -> io::Result<()> {
    let index = device.strip_prefix("/dev/nbd").and_then(|n| n.parse().ok());
    let driver = Driver::open(index.ok_or_else(|| other(format!("{device} is no NBD device")))?)?;
    let mut tries = 0;
    let (connection, export) = loop {
        match server.connect() {
            Ok(done) => break done,
            Err(e) if tries == 30 => return Err(e),
            Err(_) => tries += 1,
        }
        sleep(Duration::from_secs(1));
    };
    driver.connect(&connection, export)?;
    drop(connection);
    // The caller goes on; what stays behind needs no file and no page of the disk.
    if sys::split()? {
        exit(0);
    }
    sys::setsid();
    sys::mlockall(3);
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    loop {
        driver.lost()?;
        say(&format!("{device}: connection lost"));
        let mut told = String::new();
        loop {
            let done = server.connect().and_then(|(connection, now)| {
                if now.size == export.size {
                    driver.reconnect(&connection)
                } else {
                    Err(other(format!(
                        "another disk is there, of {} bytes",
                        now.size
                    )))
                }
            });
            match done {
                Ok(()) => break say(&format!("{device}: connected again")),
                Err(e) if e.to_string() != told => {
                    told = e.to_string();
                    say(&format!("{device}: {told}; trying on"));
                }
                Err(_) => {}
            }
            sleep(Duration::from_millis(500));
        }
    }
}

fn main() {
    // systemd spares what begins with @ when it stops all else (its "Storage Daemons").
    let named = std::env::args()
        .next()
        .is_some_and(|name| name.starts_with('@'));
    if !named {
        let error = Command::new("/proc/self/exe")
            .arg0("@dls-nbd")
            .args(std::env::args().skip(1))
            .exec();
        say(&format!("cannot rename itself: {error}"));
    }
    let Some((server, device)) = words() else {
        eprintln!("usage: dls-nbd HOST -N NAME [PORT] /dev/nbdN");
        exit(2);
    };
    if let Err(e) = run(&server, &device) {
        eprintln!("dls-nbd: {e}");
        exit(1);
    }
}
