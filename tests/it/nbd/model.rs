//! Random operations over the wire, many at a time, held against bytes in memory: what the
//! server says and does is what a plain array would. `DLS_NBD_OPERATIONS` sets how many,
//! `DLS_SEED` which.

use std::collections::HashMap;
use std::sync::Arc;

use dls::storage::{Access, BlockDevice, DiskStore, Durability, SnapshotId, Storage, Volume};
use uuid::Uuid;

use super::raw::{Answer, Client};
use super::{aside, limits, memory, serve};

const SIZE: u64 = 8 << 20;
/// Operations that are under way together; they never touch the same bytes.
const DEPTH: usize = 24;

/// A small generator: xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn number(name: &str, default: u64) -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test is told by its environment"
    )]
    let value = std::env::var(name);
    value.ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[derive(Debug, Clone)]
struct Asked {
    command: u16,
    flags: u16,
    offset: u64,
    length: u32,
    payload: Vec<u8>,
}

/// A random operation on a range that nobody else has.
fn operation(random: &mut Random, structured: bool) -> Asked {
    let longest = [16, 512, 4096, 70_000, 300_000][random.below(5) as usize];
    let mut length = random.below(longest + 1);
    let mut offset = random.below(SIZE + 1);
    if random.below(3) == 0 {
        offset &= !0xfff;
        length = (length + 0xfff) & !0xfff;
    }
    let length = u32::try_from(length).unwrap();
    let command = [0, 0, 0, 0, 1, 1, 1, 3, 4, 5, 6, 7][random.below(12) as usize];
    let flags = match (command, random.below(4)) {
        (0, 0) if structured => 4,
        (1 | 4, 0) => 1,
        (6, n) => [0, 1, 2, 16][n as usize],
        (7, 0 | 1) => 8,
        _ => 0,
    };
    let (offset, length) = match command {
        3 => (0, 0),
        _ => (offset, length),
    };
    let seed = random.next();
    let byte = |n: u64| (seed.wrapping_mul(n | 1) >> 32) as u8;
    let payload = match command {
        1 => (0..u64::from(length)).map(byte).collect(),
        _ => Vec::new(),
    };
    Asked {
        command,
        flags,
        offset,
        length,
        payload,
    }
}

fn overlaps(a: &Asked, b: &Asked) -> bool {
    a.offset < b.offset + u64::from(b.length) && b.offset < a.offset + u64::from(a.length)
}

/// Holds an answer against the model, then does the operation on it.
fn hold(model: &mut [u8], asked: &Asked, answer: Answer, structured: bool) {
    let beyond = asked.offset + u64::from(asked.length) > SIZE;
    let writes = matches!(asked.command, 1 | 4 | 6);
    let expected = match asked.command {
        7 if !structured => 22,
        _ if beyond && writes => 28,
        _ if beyond => 22,
        7 if asked.length == 0 => 22,
        _ => 0,
    };
    assert_eq!(answer.error, expected, "{asked:?}");
    if expected != 0 {
        return;
    }
    let start = usize::try_from(asked.offset).unwrap();
    let range = start..start + asked.length as usize;
    match asked.command {
        0 => {
            if asked.flags & 4 != 0 {
                assert_eq!(answer.chunks, 1, "DF: {asked:?}");
            }
            let bytes = answer.whole(asked.offset, asked.length);
            assert!(bytes == model[range], "{asked:?}");
        }
        1 => model[range].copy_from_slice(&asked.payload),
        4 | 6 => model[range].fill(0),
        7 => {
            let mut at = start;
            let told: u64 = answer.status.iter().map(|run| u64::from(run.0)).sum();
            assert!(told > 0 && told <= u64::from(asked.length), "{asked:?}");
            if asked.flags & 8 != 0 {
                assert_eq!(answer.status.len(), 1);
            }
            for (length, flags) in answer.status {
                let next = at + length as usize;
                if flags & 2 != 0 {
                    assert!(model[at..next].iter().all(|b| *b == 0), "told as zeroes");
                }
                at = next;
            }
        }
        _ => {}
    }
}

/// Gives back what the disk has in the end.
fn torment(
    address: std::net::SocketAddr,
    structured: bool,
    operations: u64,
    seed: u64,
    mut model: Vec<u8>,
) -> Vec<u8> {
    let mut client = Client::ready(address, structured);
    let mut random = Random(seed | 1);
    let mut under_way: HashMap<u64, Asked> = HashMap::new();
    let mut started = 0;
    while started < operations || !under_way.is_empty() {
        if started < operations && under_way.len() < DEPTH {
            let asked = operation(&mut random, structured);
            if !under_way.values().any(|other| overlaps(&asked, other)) {
                let cookie = random.next();
                client.request(
                    asked.command,
                    asked.flags,
                    cookie,
                    asked.offset,
                    asked.length,
                    &asked.payload,
                );
                under_way.insert(cookie, asked);
                started += 1;
                continue;
            }
        }
        let answer = client.answer(|cookie| match under_way.get(&cookie) {
            Some(asked) if asked.command == 0 => (asked.offset, asked.length as usize),
            _ => (0, 0),
        });
        let asked = under_way.remove(&answer.cookie).expect("asked for");
        hold(&mut model, &asked, answer, structured);
    }
    let all = client.exchange(0, 0, 0, u32::try_from(SIZE).unwrap(), &[]);
    assert!(all.whole(0, u32::try_from(SIZE).unwrap()) == model);
    client.request(2, 0, 1, 0, 0, &[]);
    assert!(client.is_closed());
    model
}

/// Once with chunks and once without, upon the same disk.
async fn torment_twice(disk: Arc<dyn BlockDevice>, mut model: Vec<u8>, seed: u64) {
    let torture = number("DLS_TORTURE", 0) != 0;
    let operations = number(
        "DLS_NBD_OPERATIONS",
        if torture { 1_000_000 } else { 100_000 },
    );
    println!("seed {seed}, {operations} operations");
    let server = serve(disk, limits()).await;
    let address = server.address;
    for structured in [true, false] {
        model = aside(move || torment(address, structured, operations / 2, seed, model)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn torture_random_operations_equal_a_model() {
    let empty = vec![0; usize::try_from(SIZE).unwrap()];
    let seed = number("DLS_SEED", 20_261_122);
    torment_twice(memory(SIZE, Access::Write), empty, seed).await;
}

/// Upon a clone in files, whose long reads go out as pages of these.
#[tokio::test(flavor = "multi_thread")]
async fn torture_random_operations_on_a_clone_equal_a_model() {
    let seed = number("DLS_SEED", 20_261_123);
    let mut random = Random(seed | 1);
    let content: Vec<u8> = (0..SIZE).map(|_| random.next() as u8).collect();
    let folder = tempfile::tempdir().unwrap();
    let store = DiskStore::open(folder.path(), 1 << 20).unwrap();
    let (image, clone) = (Uuid::from_u128(1), Volume::Session(Uuid::from_u128(2)));
    store.create(Volume::Image(image), SIZE).unwrap();
    let disk = store.open(Volume::Image(image), Access::Write).unwrap();
    disk.write_at(0, &content, Durability::Fua).unwrap();
    drop(disk);
    let base = SnapshotId::base(image);
    store.snapshot(&base).unwrap();
    store.clone_volume(&base, clone).unwrap();
    let disk = store.open(clone, Access::Write).unwrap();
    torment_twice(disk, content.clone(), seed).await;
    // And the image is what it was.
    let disk = store.open(Volume::Image(image), Access::Read).unwrap();
    let mut now = vec![0; content.len()];
    disk.read_at(0, &mut now).unwrap();
    assert!(now == content, "seed {seed}");
}
