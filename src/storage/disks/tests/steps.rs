//! A store that is stopped at every step of every call: another process makes the call, held at
//! each of its system calls that change files. What a kill would leave there, and what a power
//! cut might, is opened anew: each volume is what it was before the call or after it, every
//! file has its name and every name its files.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::crashes::variable;
use super::{files, torture};
use crate::storage::conformance::Dice;
use crate::storage::disks::manifest::LayerName;
use crate::storage::disks::shelf::Role;
use crate::storage::disks::{DiskStore, MOST_LAYERS};
use crate::storage::layer::cache::Cache;
use crate::storage::layer::cow::Surroundings;
use crate::storage::layer::journal::Boot;
use crate::storage::layer::{Content, Wait};
use crate::storage::{Access, DiskFormat, Durability, SnapshotId, Storage, Volume};

const SIZE: u64 = 300 * 1024;
const CACHE: usize = 1 << 20;
const ROOT: &str = "DLS_TEST_ACTOR_ROOT";
const DEED: &str = "DLS_TEST_ACTOR_DEED";
const FOLDERS: [&str; 3] = ["layers", "staging", "volumes"];

fn image() -> Volume {
    Volume::Image(Uuid::from_u128(1))
}

fn clone() -> Volume {
    Volume::Session(Uuid::from_u128(2))
}

fn new() -> Volume {
    Volume::Session(Uuid::from_u128(3))
}

fn at(volume: Volume, name: &str) -> SnapshotId {
    let name = name.parse().unwrap();
    SnapshotId { volume, name }
}

fn write(store: &DiskStore, volume: Volume, seed: u64) {
    let disk = store.open(volume, Access::Write).unwrap();
    let mut dice = Dice(seed);
    for _ in 0..12 {
        let length = dice.below(9000) + 1;
        let data = vec![seed as u8; length as usize];
        let place = dice.below(SIZE - length);
        disk.write_at(place, &data, Durability::Volatile).unwrap();
    }
    disk.flush().unwrap();
}

/// An image with data and a base, and a clone of it with data and two snapshots.
fn prepare(store: &DiskStore) {
    store.create(image(), SIZE).unwrap();
    write(store, image(), 5);
    store.snapshot(&at(image(), "base")).unwrap();
    store.clone_volume(&at(image(), "base"), clone()).unwrap();
    for (name, seed) in [("a", 6), ("b", 7)] {
        write(store, clone(), seed);
        store.snapshot(&at(clone(), name)).unwrap();
    }
    write(store, clone(), 8);
}

/// A call: what comes before it, and whether its return is a promise that outlives a power cut.
struct Deed {
    name: &'static str,
    before: fn(&DiskStore),
    call: fn(&DiskStore),
    durable: bool,
}

const DEEDS: &[Deed] = &[
    Deed {
        name: "create",
        before: |_| {},
        call: |store| store.create(new(), SIZE).unwrap(),
        durable: true,
    },
    Deed {
        name: "import",
        before: |_| {},
        call: |store| {
            let root = variable(ROOT).unwrap();
            let source = Path::new(&root).join("source");
            let (mut quiet, never) = (|_| {}, CancellationToken::new());
            store
                .import(new(), &source, DiskFormat::Raw, &mut quiet, &never)
                .unwrap();
        },
        durable: true,
    },
    Deed {
        name: "snapshot",
        before: |_| {},
        call: |store| store.snapshot(&at(clone(), "c")).unwrap(),
        durable: true,
    },
    Deed {
        name: "snapshot of an open disk",
        before: |_| {},
        call: |store| {
            let disk = store.open(clone(), Access::Write).unwrap();
            store.snapshot(&at(clone(), "c")).unwrap();
            drop(disk);
        },
        durable: true,
    },
    Deed {
        name: "clone",
        before: |_| {},
        call: |store| store.clone_volume(&at(clone(), "a"), new()).unwrap(),
        durable: false,
    },
    Deed {
        name: "first flush of a clone",
        before: |store| store.clone_volume(&at(clone(), "a"), new()).unwrap(),
        call: |store| store.open(new(), Access::Write).unwrap().flush().unwrap(),
        durable: true,
    },
    Deed {
        name: "rollback",
        before: |_| {},
        call: |store| store.rollback(&at(clone(), "a")).unwrap(),
        durable: true,
    },
    Deed {
        name: "promote",
        before: |_| {},
        call: |store| {
            let (mut quiet, never) = (|_| {}, CancellationToken::new());
            store.promote(clone(), &mut quiet, &never).unwrap();
        },
        durable: true,
    },
    Deed {
        name: "renew",
        before: |_| {},
        call: |store| store.renew(&at(image(), "base"), clone()).unwrap(),
        durable: true,
    },
    Deed {
        name: "destroy",
        before: |_| {},
        call: |store| store.destroy(clone()).unwrap(),
        durable: true,
    },
    Deed {
        name: "flatten",
        before: |store| {
            for n in 3..MOST_LAYERS {
                store.snapshot(&at(clone(), &n.to_string())).unwrap();
            }
        },
        call: |store| {
            store.snapshot(&at(clone(), "last")).unwrap();
            let threads = std::mem::take(&mut *store.inner.flattening.lock().unwrap());
            assert_eq!(threads.len(), 1, "a chain is flattened");
            for thread in threads {
                thread.join().unwrap();
            }
        },
        durable: true,
    },
    Deed {
        name: "removal of a snapshot",
        before: |_| {},
        call: |store| store.remove_snapshot(&at(clone(), "a")).unwrap(),
        durable: true,
    },
    Deed {
        name: "removal of a snapshot that nothing lies upon",
        before: |store| {
            for n in 3..=MOST_LAYERS {
                store.snapshot(&at(clone(), &n.to_string())).unwrap();
            }
            let threads = std::mem::take(&mut *store.inner.flattening.lock().unwrap());
            assert_eq!(threads.len(), 1, "a chain is flattened");
            for thread in threads {
                thread.join().unwrap();
            }
        },
        call: |store| {
            let layers = || files(Path::new(&variable(ROOT).unwrap()), "layers").len();
            let before = layers();
            let below = (MOST_LAYERS - 1).to_string();
            store.remove_snapshot(&at(clone(), &below)).unwrap();
            assert_eq!(layers(), before - 1, "its layer went");
        },
        durable: true,
    },
];

/// The child: makes a call, held at each system call. Does nothing as a test.
#[test]
fn actor() {
    let Some(root) = variable(ROOT) else { return };
    let name = variable(DEED).unwrap();
    let deed = DEEDS.iter().find(|d| d.name == name).unwrap();
    let store = DiskStore::open(Path::new(&root), CACHE).unwrap();
    (deed.before)(&store);
    ptrace::traceme().unwrap();
    raise(Signal::SIGSTOP).unwrap();
    (deed.call)(&store);
    raise(Signal::SIGSTOP).unwrap();
    drop(store);
}

/// A volume: its origin, and the sums of its snapshots and of itself.
type Entry = (Option<SnapshotId>, Vec<(String, u32)>, u32);

fn sum(layer: LayerName, role: Role, store: &DiskStore) -> u32 {
    let open = store.inner.shelf.open(layer, role, SIZE).unwrap();
    let mut all = vec![0; SIZE as usize];
    open.read(0, &mut all, Wait::Yes).unwrap();
    crc32c::crc32c(&all)
}

/// Opens a store and reads all of it; nothing in it is damaged, nameless or missing.
fn state(root: &Path, boot: Option<[u8; 16]>, what: &str) -> BTreeMap<Volume, Entry> {
    let store = match boot {
        None => DiskStore::open(root, CACHE),
        Some(boot) => {
            let cache = Arc::new(Cache::new(CACHE));
            let boot = Boot(boot);
            DiskStore::open_with(root, Surroundings { cache, boot })
        }
    };
    let store = store.unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut found = BTreeMap::new();
    let mut named = HashSet::new();
    {
        let state = store.state();
        assert!(state.damaged.is_empty(), "{what}: {:?}", state.damaged);
        for record in state.volumes.values() {
            named.extend(record.manifest.layers().map(|l| l.file()));
        }
    }
    for name in files(root, "layers") {
        let journal = name.ends_with(".journal");
        assert!(
            named.contains(&name) || journal,
            "{what}: {name} is nobody's"
        );
    }
    assert!(files(root, "staging").is_empty(), "{what}");
    for info in store.list().unwrap() {
        let manifest = store.state().get(info.volume).unwrap().manifest.clone();
        let top = sum(manifest.top, Role::Top, &store);
        let frozen = manifest.snapshots.iter();
        let frozen = frozen.map(|(n, l)| (n.as_str().to_owned(), sum(*l, Role::Ground, &store)));
        found.insert(info.volume, (info.origin, frozen.collect(), top));
    }
    found
}

/// The files of a store: by folder and name, with the number of each, and contents by number.
#[derive(Default, Clone)]
struct Disk {
    names: BTreeMap<(String, String), u64>,
    content: HashMap<u64, Vec<u8>>,
}

impl Disk {
    fn list(root: &Path, folder: &str) -> BTreeMap<(String, String), u64> {
        let number = |name: &String| {
            let path = root.join("disks").join(folder).join(name);
            fs::metadata(path).unwrap().ino()
        };
        let all = files(root, folder).into_iter();
        all.map(|name| ((folder.to_owned(), name.clone()), number(&name)))
            .collect()
    }

    fn of(root: &Path) -> Self {
        let mut disk = Self::default();
        for folder in FOLDERS {
            disk.names.extend(Self::list(root, folder));
        }
        for ((folder, name), number) in &disk.names {
            let path = root.join("disks").join(folder).join(name);
            disk.content.insert(*number, fs::read(path).unwrap());
        }
        disk
    }

    fn put(&self) -> tempfile::TempDir {
        let root = place();
        for folder in FOLDERS {
            fs::create_dir_all(root.path().join("disks").join(folder)).unwrap();
        }
        for ((folder, name), number) in &self.names {
            let content = self.content.get(number).map_or(&[][..], Vec::as_slice);
            fs::write(root.path().join("disks").join(folder).join(name), content).unwrap();
        }
        root
    }

    /// What a power cut may leave: each name and each content as last synced or as it is.
    fn mixed(synced: &Self, now: &Self, mut as_now: impl FnMut() -> bool) -> Self {
        let mut disk = Self::default();
        let names: HashSet<_> = synced.names.keys().chain(now.names.keys()).collect();
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort();
        for name in names {
            let from = if as_now() { now } else { synced };
            if let Some(number) = from.names.get(name) {
                disk.names.insert(name.clone(), *number);
            }
        }
        let mut numbers: Vec<u64> = disk.names.values().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            let from = if as_now() { now } else { synced };
            let other = || synced.content.get(&number);
            if let Some(content) = from.content.get(&number).or_else(other) {
                disk.content.insert(number, content.clone());
            }
        }
        disk
    }
}

/// Whether a system call changes files, by its number and arguments.
fn changes(call: i64, first: u64, third: u64) -> bool {
    match call {
        libc::SYS_openat => third & libc::O_CREAT as u64 != 0,
        libc::SYS_write => first > 2,
        libc::SYS_pwrite64
        | libc::SYS_ftruncate
        | libc::SYS_fallocate
        | libc::SYS_rename
        | libc::SYS_renameat
        | libc::SYS_renameat2
        | libc::SYS_unlink
        | libc::SYS_unlinkat
        | libc::SYS_copy_file_range
        | libc::SYS_sendfile
        | libc::SYS_fsync
        | libc::SYS_fdatasync => true,
        _ => false,
    }
}

/// A folder, in memory where there is such a place: what a sync does is played here.
fn place() -> tempfile::TempDir {
    let made = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    made.unwrap()
}

struct Trial<'a> {
    deed: &'a Deed,
    root: &'a Path,
    synced: Disk,
    /// Keeps numbers of removed files from being given again.
    kept: HashMap<u64, File>,
    dice: Dice,
    points: usize,
    returned: bool,
    /// States that a volume may be in before the call returns.
    allowed: Vec<BTreeMap<Volume, Entry>>,
    /// To be looked at when it is known what comes out: who, and in what state.
    seen: Vec<(String, bool, bool, BTreeMap<Volume, Entry>)>,
}

impl Trial<'_> {
    fn keep(&mut self, now: &Disk) {
        for ((folder, name), number) in &now.names {
            let path = self.root.join("disks").join(folder).join(name);
            self.kept
                .entry(*number)
                .or_insert_with(|| File::open(path).unwrap());
        }
    }

    /// A crash here.
    fn point(&mut self, call: i64) {
        self.points += 1;
        let now = Disk::of(self.root);
        self.keep(&now);
        let name = self.deed.name;
        let what = format!("{name}, step {}, system call {call}", self.points);
        let killed = now.put();
        let found = state(killed.path(), None, &what);
        self.seen
            .push((format!("{what}, killed"), false, self.returned, found));
        // Nothing that was not synced is there; then some of it.
        for power in 0..if torture() { 12 } else { 2 } {
            let dice = &mut self.dice;
            let disk = Disk::mixed(&self.synced, &now, || power > 0 && dice.below(2) == 0);
            let left = disk.put();
            let what = format!("{what}, power cut {power}");
            let found = state(left.path(), Some([0xee; 16]), &what);
            self.seen.push((what, true, self.returned, found));
        }
    }

    /// A file or folder was synced.
    fn sync(&mut self, process: Pid, file: u64) {
        let path = format!("/proc/{process}/fd/{file}");
        let place = fs::read_link(&path).unwrap();
        let folder = FOLDERS
            .iter()
            .find(|f| place == self.root.join("disks").join(f));
        match folder {
            Some(folder) => {
                self.synced.names.retain(|(f, _), _| f != folder);
                self.synced.names.extend(Disk::list(self.root, folder));
            }
            None => {
                let number = fs::metadata(&path).unwrap().ino();
                let content = fs::read(&path).unwrap();
                self.synced.content.insert(number, content);
            }
        }
    }
}

/// Makes a call in a child and looks at every step of it; the number of steps.
fn at_each_step(deed: &Deed) -> usize {
    let dir = place();
    let root = fs::canonicalize(dir.path()).unwrap();
    fs::write(root.join("source"), vec![0x77; SIZE as usize]).unwrap();
    prepare(&DiskStore::open(&root, CACHE).unwrap());
    let prior = Disk::of(&root);
    let prior_state = state(prior.put().path(), None, "at first");
    assert_eq!(prior_state.len(), 2);
    let name = "storage::disks::tests::steps::actor";
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(ROOT, &root)
        .env(DEED, deed.name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let child = Pid::from_raw(i32::try_from(process.id()).unwrap());
    let mut trial = Trial {
        deed,
        root: &root,
        synced: Disk::default(),
        kept: HashMap::new(),
        dice: Dice(0x57e9),
        points: 0,
        returned: false,
        allowed: vec![prior_state],
        seen: Vec::new(),
    };
    // By thread: the call it is in, with its first argument.
    let mut inside: HashMap<Pid, Option<(i64, u64)>> = HashMap::new();
    // Children of this thread only: other tests have theirs.
    let flags = WaitPidFlag::__WALL | WaitPidFlag::from_bits_retain(libc::__WNOTHREAD);
    loop {
        match waitpid(None, Some(flags)).unwrap() {
            WaitStatus::Exited(who, code) if who == child => {
                assert_eq!(code, 0, "{}", deed.name);
                break;
            }
            WaitStatus::Signaled(who, signal, _) if who == child => {
                panic!("{}: {signal}", deed.name)
            }
            WaitStatus::Stopped(who, Signal::SIGSTOP) => {
                if inside.is_empty() {
                    let options = Options::PTRACE_O_TRACESYSGOOD
                        | Options::PTRACE_O_TRACECLONE
                        | Options::PTRACE_O_EXITKILL;
                    ptrace::setoptions(who, options).unwrap();
                    // What was there before is on the disk, unless it never was flushed.
                    let now = Disk::of(&root);
                    trial.keep(&now);
                    trial.synced = prior.clone();
                    if deed.name != "first flush of a clone" {
                        trial.synced = now.clone();
                    }
                    let before = state(now.put().path(), None, "before");
                    trial.allowed.push(before);
                } else if inside.contains_key(&who) {
                    trial.returned = true;
                    trial.point(0);
                }
                inside.entry(who).or_insert(None);
                ptrace::syscall(who, None).unwrap();
            }
            WaitStatus::PtraceSyscall(who) => {
                let regs = ptrace::getregs(who).unwrap();
                let state = inside.entry(who).or_insert(None);
                let call = i64::try_from(regs.orig_rax).unwrap_or(-1);
                match state.take() {
                    None => {
                        *state = Some((call, regs.rdi));
                        if changes(call, regs.rdi, regs.rdx) {
                            trial.point(call);
                        }
                    }
                    Some((libc::SYS_fsync | libc::SYS_fdatasync, file)) => {
                        assert_eq!(regs.rax, 0);
                        trial.sync(who, file);
                    }
                    Some(_) => {}
                }
                ptrace::syscall(who, None).unwrap();
            }
            WaitStatus::Stopped(who, signal) => ptrace::syscall(who, signal).unwrap(),
            WaitStatus::PtraceEvent(who, ..) => ptrace::syscall(who, None).unwrap(),
            _ => {}
        }
    }
    // Its end was seen above already.
    let _ = process.wait();
    trial.point(0);
    let after = state(Disk::of(&root).put().path(), None, "after");
    let mut early = trial.allowed;
    early.push(after.clone());
    for (what, cut, returned, found) in &trial.seen {
        if *returned && (deed.durable || !cut) {
            assert_eq!(found, &after, "{what}: it had returned");
            continue;
        }
        let volumes: HashSet<_> = early.iter().flat_map(BTreeMap::keys).collect();
        for volume in volumes.into_iter().chain(found.keys()) {
            let one = found.get(volume);
            let known = early.iter().any(|s| s.get(volume) == one);
            assert!(known, "{what}: {volume} is {one:?} of {early:?}");
        }
        assert_eq!(found.get(&image()), early[0].get(&image()), "{what}");
    }
    trial.points
}

#[test]
fn a_store_that_is_stopped_at_any_step_has_each_volume_as_before_or_after() {
    for deed in DEEDS {
        let points = at_each_step(deed);
        println!("{}: {points} steps", deed.name);
        assert!(points > 3, "{}: {points}", deed.name);
    }
}
