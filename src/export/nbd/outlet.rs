//! The socket of a connection in its transmission phase, plain or TLS: one thread reads,
//! several write whole replies. It knows nothing of what the bytes mean.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::ServerConnection;

use super::conduit::Conduit;
use crate::attention::Attention;

/// Bytes of ciphertext read at once.
const CIPHER: usize = 64 * 1024;

/// The sending half, shared by the connection's thread and its workers.
#[derive(Debug)]
pub(super) struct Outlet {
    socket: TcpStream,
    /// Held while a reply is written: replies never mix.
    state: Mutex<Layer>,
}

#[derive(Debug)]
enum Layer {
    Plain,
    Tls(Box<ServerConnection>),
}

/// The receiving half.
#[derive(Debug)]
pub(super) struct Inlet {
    cipher: Option<Cipher>,
    attention: Attention,
}

/// Ciphertext that TLS has not taken yet.
#[derive(Debug)]
struct Cipher {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

/// Both halves of a blocking socket; `tls` is what the handshake left.
pub(super) fn halves(socket: TcpStream, tls: Option<Box<ServerConnection>>) -> (Inlet, Outlet) {
    let cipher = tls.is_some().then(|| Cipher {
        bytes: vec![0; CIPHER],
        start: 0,
        end: 0,
    });
    let state = Mutex::new(tls.map_or(Layer::Plain, Layer::Tls));
    let inlet = Inlet {
        cipher,
        attention: Attention::default(),
    };
    (inlet, Outlet { socket, state })
}

impl Outlet {
    fn lock(&self) -> MutexGuard<'_, Layer> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends all of it; blocks while the other end does not take it.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.turn().send(bytes)
    }

    /// Nobody else's bytes come between those that are sent by this.
    pub(super) fn turn(&self) -> Sending<'_> {
        Sending {
            socket: &self.socket,
            layer: self.lock(),
        }
    }

    /// True if a file's bytes can go out without being copied: what is encrypted is copied.
    pub(super) fn takes_files(&self) -> bool {
        matches!(&*self.lock(), Layer::Plain)
    }

    /// Says that nothing more is coming.
    pub(super) fn close(&self) {
        if let Layer::Tls(tls) = &mut *self.lock() {
            tls.send_close_notify();
            let _ = drain(tls, &self.socket);
        }
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }
}

/// A turn at sending.
#[derive(Debug)]
pub(super) struct Sending<'a> {
    socket: &'a TcpStream,
    layer: MutexGuard<'a, Layer>,
}

impl Sending<'_> {
    /// Sends what a conduit has; only where the outlet [takes files](Outlet::takes_files).
    pub(super) fn send_pages(&mut self, conduit: &mut Conduit, more: bool) -> io::Result<()> {
        match &*self.layer {
            Layer::Plain => conduit.send(self.socket, more),
            Layer::Tls(_) => Err(ErrorKind::Unsupported.into()),
        }
    }

    /// Sends all of it; blocks while the other end does not take it.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut *self.layer {
            Layer::Plain => self.socket.write_all(bytes),
            Layer::Tls(tls) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    // TLS takes what its buffer allows.
                    let taken = tls.writer().write(rest)?;
                    rest = &rest[taken..];
                    drain(tls, self.socket)?;
                }
                Ok(())
            }
        }
    }
}

fn drain(tls: &mut ServerConnection, mut socket: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        if tls.write_tls(&mut socket)? == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

impl Inlet {
    /// Waits for bytes and puts them to the front of `buffer`, which is not empty; 0: the end.
    pub(super) fn receive(&mut self, outlet: &Outlet, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(cipher) = &mut self.cipher else {
            return self.attention.receive(&outlet.socket, buffer);
        };
        loop {
            {
                let mut state = outlet.lock();
                let Layer::Tls(tls) = &mut *state else {
                    return Err(ErrorKind::InvalidData.into());
                };
                // Text that is there goes first: TLS takes no more until it is fetched.
                match tls.reader().read(buffer) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    other => return other,
                }
                if cipher.start < cipher.end {
                    let mut rest = &cipher.bytes[cipher.start..cipher.end];
                    let taken = tls.read_tls(&mut rest)?;
                    cipher.start += taken;
                    let outcome = tls.process_new_packets();
                    // An alert, or a new session's tickets.
                    drain(tls, &outlet.socket)?;
                    outcome.map_err(|e| io::Error::new(ErrorKind::InvalidData, e))?;
                    if taken > 0 {
                        continue;
                    }
                    return Err(ErrorKind::InvalidData.into());
                }
            }
            // Without the lock: replies go out while nothing comes in.
            let read = self.attention.receive(&outlet.socket, &mut cipher.bytes)?;
            if read == 0 {
                // Without a close_notify; the protocol has its own end.
                return Ok(0);
            }
            (cipher.start, cipher.end) = (0, read);
        }
    }
}
