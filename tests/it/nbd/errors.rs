//! A disk that fails: its error reaches the request concerned, in the protocol's own words,
//! and nobody else; and a server that stops.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use dls::export::nbd::wire::transmission::Request;
use dls::storage::{Access, BlockDevice, BlockError, DeviceInfo, Durability, Extent};

use super::raw::Client;
use super::{aside, limits, memory, serve};

const SIZE: u64 = 8 << 20;
/// Where the disk fails: each in its own way, in one block of 4 KiB.
const BROKEN: u64 = 1 << 20;
const FULL: u64 = 2 << 20;
const FENCED: u64 = 3 << 20;
/// Reads of this block wait until they are let go.
const SLOW: u64 = 4 << 20;

/// Reads of this block are for a worker.
const COLD: u64 = 5 << 20;
/// Reads of this block keep the connection's own thread until they are let go.
const BUSY: u64 = 6 << 20;

/// Fails at some places, and waits at two.
#[derive(Debug)]
struct Failing {
    disk: Arc<dyn BlockDevice>,
    open: Mutex<bool>,
    opened: Condvar,
    flushes: AtomicU32,
}

impl Failing {
    fn check(&self, offset: u64, length: usize) -> Result<(), BlockError> {
        let touches = |at: u64| offset < at + 4096 && at < offset + length as u64;
        if touches(BROKEN) {
            return Err(BlockError::Io(std::io::Error::other("a bad block")));
        }
        if touches(FULL) {
            return Err(BlockError::NoSpace);
        }
        if touches(FENCED) {
            return Err(BlockError::Fenced);
        }
        Ok(())
    }

    fn let_go(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

impl BlockDevice for Failing {
    fn info(&self) -> DeviceInfo {
        self.disk.info()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BlockError> {
        self.check(offset, buffer.len())?;
        if offset == SLOW || offset == BUSY {
            let mut open = self.open.lock().unwrap();
            while !*open {
                open = self.opened.wait(open).unwrap();
            }
        }
        self.disk.read_at(offset, buffer)
    }

    fn try_read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, BlockError> {
        if offset == SLOW || offset == COLD {
            return Ok(false);
        }
        self.read_at(offset, buffer).map(|()| true)
    }

    fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), BlockError> {
        self.check(offset, data.len())?;
        self.disk.write_at(offset, data, durability)
    }

    fn flush(&self) -> Result<(), BlockError> {
        match self.flushes.fetch_add(1, Ordering::Relaxed) {
            0 => Err(BlockError::Io(std::io::Error::other("a bad cache"))),
            _ => Ok(()),
        }
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        self.check(offset, usize::try_from(length).unwrap())?;
        self.disk.discard(offset, length)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        keep_space: bool,
        durability: Durability,
    ) -> Result<(), BlockError> {
        self.check(offset, usize::try_from(length).unwrap())?;
        self.disk
            .write_zeroes(offset, length, keep_space, durability)
    }

    fn extents(&self, offset: u64, length: u64, most: usize) -> Result<Vec<Extent>, BlockError> {
        self.check(offset, usize::try_from(length).unwrap())?;
        self.disk.extents(offset, length, most)
    }
}

fn failing() -> Arc<Failing> {
    Arc::new(Failing {
        disk: memory(SIZE, Access::Write),
        open: Mutex::new(false),
        opened: Condvar::new(),
        flushes: AtomicU32::new(0),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_reaches_its_request_and_nothing_else() {
    let server = serve(failing(), limits()).await;
    let address = server.address;
    aside(move || {
        for structured in [true, false] {
            let mut client = Client::ready(address, structured);
            let mut other = Client::ready(address, structured);
            for (at, errno) in [(BROKEN, 5), (FULL, 28), (FENCED, 108)] {
                // In the middle of a read of every size that is answered in another way.
                for length in [4096_u64, 100_000, 300_000, 3 << 20] {
                    let offset = at.saturating_sub(length - 4096);
                    let length = u32::try_from(at + 4096 - offset).unwrap();
                    let expected = if offset <= BROKEN { 5 } else { errno };
                    let answer = client.exchange(0, 0, offset, length, &[]);
                    assert_eq!(answer.error, expected, "{offset} {length}");
                }
                for flags in [0, 1] {
                    let answer = client.exchange(1, flags, at - 4096, 8192, &[1; 8192]);
                    assert_eq!(answer.error, errno);
                }
                for command in [4, 6] {
                    let answer = client.exchange(command, 0, at, 4096, &[]);
                    assert_eq!(answer.error, errno);
                }
                if structured {
                    assert_eq!(client.exchange(7, 0, at, 4096, &[]).error, errno);
                }
                // Longer than the buffer: the rest of the payload is taken all the same.
                let long = vec![2; 1 << 20];
                let answer = client.exchange(1, 0, at - 4096, 1 << 20, &long);
                assert_eq!(answer.error, errno);
                // The line is in step, and the neighbour hears nothing of it.
                assert_eq!(client.exchange(0, 0, 0, 512, &[]).error, 0);
                let written = other.exchange(1, 0, 6 << 20, 4096, &[3; 4096]);
                assert_eq!(written.error, 0);
            }
        }
        let mut client = Client::ready(address, true);
        assert_eq!(client.exchange(3, 0, 0, 0, &[]).error, 5);
        assert_eq!(client.exchange(3, 0, 0, 0, &[]).error, 0);
    })
    .await;
    assert!(server.counted("nbd_errors_total{cause=\"no_space\"} 17"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_holds_nothing_else_up() {
    let disk = failing();
    let server = serve(disk.clone(), limits()).await;
    let address = server.address;
    let closed = aside(move || {
        let mut client = Client::ready(address, true);
        for cookie in 100..104 {
            client.request(0, 0, cookie, SLOW, 4096, &[]);
        }
        for offset in 0..100 {
            assert_eq!(client.exchange(0, 0, offset, 512, &[]).error, 0);
            assert_eq!(client.exchange(1, 0, offset, 2, &[1, 2]).error, 0);
        }
        // Its answers come before the connection ends.
        client.request(2, 0, 1, 0, 0, &[]);
        disk.let_go();
        let mut cookies: Vec<u64> = (0..4).map(|_| client.answer(|_| (0, 0)).cookie).collect();
        cookies.sort_unstable();
        assert_eq!(cookies, [100, 101, 102, 103]);
        client.is_closed()
    })
    .await;
    assert!(closed);
    server.counts("nbd_connections_ended_total{how=\"disconnected\"} 1");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_chunk_comes_last_whoever_reads_it() {
    let disk = failing();
    let server = serve(disk.clone(), limits()).await;
    let address = server.address;
    aside(move || {
        let mut client = Client::ready(address, true);
        let (offset, length) = (COLD - 0x20_000, 0x40_000);
        let request = |cookie, offset, length| Request {
            flags: 0,
            command: 0,
            cookie,
            offset,
            length,
        };
        // In one piece: the first half is at hand, the second is for a worker, and the next
        // request holds the connection's thread before it has sent what is at hand.
        let both = [request(1, offset, length), request(2, BUSY, 4096)];
        client.send(&both.map(|r| r.to_bytes()).concat());
        let answer = client.answer(|_| (0, 0));
        assert_eq!((answer.cookie, answer.error), (1, 0));
        assert_eq!(answer.whole(offset, length), vec![0; 0x40_000]);
        disk.let_go();
        assert_eq!(client.answer(|_| (0, 0)).cookie, 2);
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_answers_what_it_was_asked() {
    let disk = failing();
    let server = serve(disk.clone(), limits()).await;
    let address = server.address;
    let mut client = aside(move || {
        let mut client = Client::ready(address, true);
        client.request(0, 0, 5, SLOW, 4096, &[]);
        client.request(1, 0, 6, 0, 4, &[1, 2, 3, 4]);
        assert_eq!(client.answer(|_| (0, 0)).cookie, 6);
        client
    })
    .await;
    let stopping = tokio::spawn(server.stop());
    let closed = aside(move || {
        std::thread::sleep(Duration::from_millis(100));
        disk.let_go();
        let answer = client.answer(|_| (0, 0));
        assert_eq!((answer.cookie, answer.error), (5, 0));
        client.is_closed()
    })
    .await;
    assert!(closed);
    stopping.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_answers_while_the_client_lives_and_closes_it() {
    let server = serve(memory(SIZE, Access::Write), limits()).await;
    let address = server.address;
    let door = server.door.clone();
    aside(move || {
        let mut client = Client::ready(address, true);
        let gone = Client::ready(address, true);
        let lines = door.attached.lock().unwrap().clone();
        std::thread::sleep(Duration::from_millis(600));
        assert!(lines[0].answers(Duration::from_secs(5)));
        drop(gone);
        std::thread::sleep(Duration::from_millis(100));
        assert!(!lines[1].answers(Duration::from_secs(1)));
        lines[0].close();
        assert!(client.is_closed());
        assert!(!lines[0].answers(Duration::from_secs(1)));
    })
    .await;
    server.stop().await;
}
