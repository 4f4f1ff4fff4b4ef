//! Where the block device of a zvol may be: what the devices of this machine have said of
//! themselves, kept for all who search. It claims nothing and decides nothing: whoever takes a
//! device asks it once more ([`super::device`]).
//!
//! In a crowd of new disks each device is asked once, and not once by everybody, and few at a
//! time: the first opening of a zvol takes a lock of the whole module, and of a hundred at a
//! time most fail for want of it. A device that was asked stays open until who searches for it
//! has opened it, too, which is no first opening then. Devices are asked on threads of their own: when one does not answer
//! (its pool hangs), another thread goes on with the rest. What was said may be of yesterday (a
//! dataset was renamed), so who finds nothing for a while has all of them asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use nix::unistd::{AccessFlags, access};

use super::{VolumeError, io_error, ioctl, lock};

/// How long a searcher waits between two looks, at first and later on.
const TICK: Duration = Duration::from_millis(20);
const SLOW_TICK: Duration = Duration::from_millis(100);
/// Looks before it waits longer: half a second.
const QUICK_LOOKS: u32 = 25;
/// Looks without any device's answer: 30 s; and in all: 5 minutes.
const LOOKS: u32 = 320;
const MOST_LOOKS: u32 = 3000;
/// After so many looks that found nothing all devices are asked again: 1 s, 3 s, 8 s, 18 s.
const DOUBTS: [u32; 4] = [30, 50, 100, 200];
/// A device that has not answered for so many listings does not keep the others waiting.
const HANGS: u64 = 50;
/// Threads that ask, and searchers that open a device which is known themselves: more have it
/// opened in turn.
const ASKERS: usize = 4;
const AT_ONCE: usize = 2;

static KNOWN: Mutex<Known> = Mutex::new(Known::new());

/// What is known of the devices.
#[derive(Debug)]
struct Known {
    devices: BTreeMap<u32, Device>,
    /// Whose device says so.
    names: BTreeMap<String, u32>,
    /// How many search for these.
    wanted: BTreeMap<String, usize>,
    /// Devices of those, open.
    found: BTreeMap<String, File>,
    /// Those who open a device themselves.
    opening: usize,
    /// Somebody lists the devices just now, for all.
    led: bool,
    /// Listings, ever.
    rounds: u64,
    /// How often all was asked again.
    doubts: u64,
    /// Devices that have answered, ever.
    answers: u64,
    /// The threads that ask, by number, and when each began with the device that it asks.
    askers: BTreeMap<u64, u64>,
    /// The next one to be asked is the oldest, not the newest.
    oldest: bool,
}

#[derive(Debug)]
struct Device {
    /// The system's number of its entry in /sys/block, higher for a newer one: another one when
    /// the device's number is used again.
    entry: u64,
    said: Said,
}

#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// To be asked when it may be opened.
    Nothing,
    /// It is being asked.
    Asking,
    Name(String),
}

impl Known {
    const fn new() -> Self {
        Self {
            devices: BTreeMap::new(),
            names: BTreeMap::new(),
            wanted: BTreeMap::new(),
            found: BTreeMap::new(),
            opening: 0,
            led: false,
            rounds: 0,
            doubts: 0,
            answers: 0,
            askers: BTreeMap::new(),
            oldest: false,
        }
    }

    /// Takes note of which devices are `there` (number and entry). New askers if there is work
    /// for them.
    fn round(&mut self, there: &[(u32, u64)]) -> Vec<u64> {
        self.rounds += 1;
        let mut devices = BTreeMap::new();
        for (number, entry) in there {
            let known = self.devices.remove(number);
            let known = known.filter(|d| d.entry == *entry);
            let said = known.map_or(Said::Nothing, |d| d.said);
            let entry = *entry;
            devices.insert(*number, Device { entry, said });
        }
        self.devices = devices;
        let named = |name: &String, number: &u32| {
            let device = self.devices.get(number);
            device.is_some_and(|d| matches!(&d.said, Said::Name(said) if said == name))
        };
        self.names.retain(|name, number| named(name, number));
        let now = self.rounds;
        self.askers
            .retain(|_, since| now.saturating_sub(*since) < HANGS);
        let work = self.devices.values();
        let work = work.filter(|d| d.said == Said::Nothing).count();
        let most = ASKERS.saturating_sub(self.askers.len()).min(work);
        let new = (0..).map(|n| now * ASKERS as u64 + n).take(most);
        let new: Vec<u64> = new.collect();
        self.askers.extend(new.iter().map(|asker| (*asker, now)));
        new
    }

    /// What an asker asks next: the newest and the oldest in turn, but none twice; nothing when it
    /// is done, or another took its place.
    fn next(&mut self, asker: u64, tried: &BTreeSet<u64>) -> Option<(u32, u64)> {
        *self.askers.get_mut(&asker)? = self.rounds;
        let open = self.devices.iter();
        let open = open.filter(|(_, d)| d.said == Said::Nothing && !tried.contains(&d.entry));
        let open = open.map(|(number, d)| (*number, d.entry));
        self.oldest = !self.oldest;
        let next = match self.oldest {
            true => open.max_by_key(|(_, entry)| *entry),
            false => open.min_by_key(|(_, entry)| *entry),
        };
        if next.is_none() {
            self.askers.remove(&asker);
        }
        next
    }

    /// False if a device has been asked, or removed, meanwhile.
    fn begin(&mut self, number: u32, entry: u64) -> bool {
        match self.devices.get_mut(&number) {
            Some(d) if d.entry == entry && d.said == Said::Nothing => {
                d.said = Said::Asking;
                true
            }
            _ => false,
        }
    }

    /// A device has answered, or could not; it is given back if nobody searches for it.
    fn heard(&mut self, number: u32, entry: u64, said: Option<(String, File)>) -> Option<File> {
        let device = self.devices.get_mut(&number);
        // Otherwise the number was used again meanwhile.
        let device = device.filter(|d| d.entry == entry && d.said == Said::Asking);
        let (Some(device), Some((name, file))) = (device, said) else {
            if let Some(device) = self.devices.get_mut(&number)
                && device.entry == entry
            {
                device.said = Said::Nothing;
            }
            return None;
        };
        self.answers += 1;
        device.said = Said::Name(name.clone());
        self.names.insert(name.clone(), number);
        match self.wanted.contains_key(&name) {
            true => self.found.insert(name, file),
            false => Some(file),
        }
    }

    /// A device turned out not to be what it had said, or is to be asked once more.
    fn forget(&mut self, number: u32) {
        if let Some(device) = self.devices.get_mut(&number)
            && let Said::Name(name) = &device.said
        {
            self.names.remove(name);
            device.said = Said::Nothing;
        }
    }

    /// Has all asked again, unless somebody did so since `seen`.
    fn doubt(&mut self, seen: &mut u64) {
        if self.doubts == *seen {
            self.doubts += 1;
            self.names.clear();
            for device in self.devices.values_mut() {
                if matches!(device.said, Said::Name(_)) {
                    device.said = Said::Nothing;
                }
            }
        }
        *seen = self.doubts;
    }

    /// False if a device is known to be another's, or is being asked.
    fn may_be(&self, number: u32, dataset: &str) -> bool {
        match self.devices.get(&number).map(|d| &d.said) {
            Some(Said::Asking) => false,
            Some(Said::Name(name)) => name == dataset,
            Some(Said::Nothing) | None => true,
        }
    }
}

/// One search.
#[derive(Debug)]
pub(super) struct Search<'a> {
    dataset: &'a str,
    looks: u32,
    /// Those during which no device has answered.
    quiet: u32,
    answers: u64,
    doubts: u64,
}

/// A device that may be the one.
#[derive(Debug)]
pub(super) struct Candidate {
    /// `/dev/zdN` has this N.
    number: u32,
    /// It is open already; otherwise this is one of few who open one.
    held: Option<File>,
}

impl Candidate {
    /// Its path.
    pub(super) fn path(&self) -> PathBuf {
        place(self.number)
    }

    /// It was another's.
    pub(super) fn not_it(&self) {
        lock(&KNOWN).forget(self.number);
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if self.held.is_none() {
            lock(&KNOWN).opening -= 1;
        }
    }
}

impl<'a> Search<'a> {
    /// For the device of a dataset.
    pub(super) fn new(dataset: &'a str) -> Self {
        let mut known = lock(&KNOWN);
        *known.wanted.entry(dataset.to_owned()).or_default() += 1;
        Self {
            dataset,
            looks: 0,
            quiet: 0,
            answers: known.answers,
            doubts: known.doubts,
        }
    }

    /// False when it has looked for long enough: in a crowd that gets on each waits for longer.
    pub(super) fn goes_on(&self) -> bool {
        self.quiet < LOOKS && self.looks < MOST_LOOKS
    }

    /// A device that may be it: one that has said so, or that udev's link points to, if nothing
    /// speaks against it.
    pub(super) fn candidate(&self) -> Option<Candidate> {
        let link = fs::read_link(Path::new("/dev/zvol").join(self.dataset));
        let link = link.ok().and_then(|to| number(to.file_name()?.to_str()?));
        let mut known = lock(&KNOWN);
        let said = known.names.get(self.dataset).copied();
        let number = said.or_else(|| link.filter(|n| known.may_be(*n, self.dataset)))?;
        let held = known.found.remove(self.dataset);
        if held.is_none() {
            if known.opening >= AT_ONCE {
                known.forget(number);
                return None;
            }
            known.opening += 1;
        }
        Some(Candidate { number, held })
    }

    /// Waits until there may be something new; one of all who wait looks for it.
    pub(super) fn wait(&mut self) -> Result<(), VolumeError> {
        self.looks += 1;
        let leads = {
            let mut known = lock(&KNOWN);
            self.quiet += u32::from(self.answers == known.answers);
            self.answers = known.answers;
            if DOUBTS.contains(&self.looks) {
                known.doubt(&mut self.doubts);
            }
            !std::mem::replace(&mut known.led, true)
        };
        let looked = if leads { look_around() } else { Ok(()) };
        thread::sleep(match self.looks {
            ..=QUICK_LOOKS => TICK,
            _ => SLOW_TICK,
        });
        if leads {
            lock(&KNOWN).led = false;
        }
        looked
    }

    /// A device that this process may not open, if there is one.
    pub(super) fn refused(&self) -> Option<PathBuf> {
        let known = lock(&KNOWN);
        let mut silent = known.devices.iter().rev();
        let refused = silent.find(|(n, d)| d.said == Said::Nothing && !may_open(**n));
        refused.map(|(number, _)| place(*number))
    }
}

impl Drop for Search<'_> {
    fn drop(&mut self) {
        let mut known = lock(&KNOWN);
        let left = match known.wanted.get_mut(self.dataset) {
            Some(count) if *count > 1 => {
                *count -= 1;
                None
            }
            _ => {
                known.wanted.remove(self.dataset);
                known.found.remove(self.dataset)
            }
        };
        drop(known);
        // Closing may take its time.
        drop(left);
    }
}

/// A device's path.
fn place(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/zd{number}"))
}

fn number(name: &str) -> Option<u32> {
    name.strip_prefix("zd")?.parse().ok()
}

/// Asks nobody but the file system.
fn may_open(number: u32) -> bool {
    access(&place(number), AccessFlags::R_OK).is_ok()
}

/// Lists the devices, and has those asked of which nothing is known.
fn look_around() -> Result<(), VolumeError> {
    let there = fs::read_dir("/sys/block").map_err(|e| io_error("listing block devices", e))?;
    let there: Vec<(u32, u64)> = there
        .flatten()
        .filter_map(|e| Some((number(e.file_name().to_str()?)?, e.ino())))
        .collect();
    let askers = lock(&KNOWN).round(&there);
    for asker in askers {
        let thread = thread::Builder::new().name("zfs-ask".to_owned());
        if thread.spawn(move || ask(asker)).is_err() {
            lock(&KNOWN).askers.remove(&asker);
        }
    }
    Ok(())
}

fn ask(asker: u64) {
    let mut tried = BTreeSet::new();
    loop {
        let next = lock(&KNOWN).next(asker, &tried);
        let Some((number, entry)) = next else {
            return;
        };
        tried.insert(entry);
        if !may_open(number) || !lock(&KNOWN).begin(number, entry) {
            continue;
        }
        let said = File::open(place(number)).and_then(|device| {
            let name = ioctl::dataset(&device)?;
            Ok((name, device))
        });
        let not_wanted = lock(&KNOWN).heard(number, entry, said.ok());
        // Closing may take its time.
        drop(not_wanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Option<(String, File)> {
        Some((name.to_owned(), File::open("/dev/null").unwrap()))
    }

    /// What an asker asks; nothing answers.
    fn asked(known: &mut Known, askers: &[u64]) -> Vec<u32> {
        let mut tried = BTreeSet::new();
        let mut all = Vec::new();
        while let Some((number, entry)) = known.next(askers[0], &tried) {
            tried.insert(entry);
            assert!(known.begin(number, entry));
            all.push(number);
        }
        for other in &askers[1..] {
            assert_eq!(known.next(*other, &tried), None);
        }
        all
    }

    #[test]
    fn each_device_is_asked_once_and_a_number_used_again_is_another_one() {
        let mut known = Known::new();
        let asker = known.round(&[(0, 7), (16, 9), (32, 8)]);
        assert_eq!(asker.len(), 3);
        assert_eq!(asked(&mut known, &asker), [16, 0, 32]);
        // Nobody asks what is being asked.
        assert!(known.round(&[(0, 7), (16, 9)]).is_empty());
        known.wanted.insert("tank/a".into(), 1);
        assert!(known.heard(0, 7, named("tank/a")).is_none());
        assert!(known.found.contains_key("tank/a"), "it stays open");
        assert!(known.heard(16, 9, None).is_none());
        assert_eq!(known.names.get("tank/a"), Some(&0));
        assert!(known.may_be(0, "tank/a") && !known.may_be(0, "tank/b"));
        // Who could not answer is asked again; who did is not.
        let asker = known.round(&[(0, 7), (16, 9)]);
        assert_eq!(asked(&mut known, &asker), [16]);
        // Removed, and the number used again: what the former said counts no more.
        let asker = known.round(&[(0, 10), (16, 9)]);
        assert_eq!(known.names.get("tank/a"), None);
        assert_eq!(asked(&mut known, &asker), [0]);
        assert!(known.heard(0, 7, named("tank/a")).is_none());
        assert_eq!(known.names.get("tank/a"), None);
        assert!(known.heard(0, 10, named("tank/c")).is_some(), "is closed");
        assert_eq!(known.names.get("tank/c"), Some(&0));
        // Gone.
        assert!(known.round(&[]).is_empty());
        assert!(known.names.is_empty() && known.devices.is_empty());
    }

    #[test]
    fn what_hangs_keeps_nobody_from_asking() {
        let mut known = Known::new();
        let all: Vec<(u32, u64)> = (0..4).map(|n| (n, u64::from(n))).collect();
        let first = known.round(&all);
        assert_eq!(first.len(), ASKERS);
        let (number, entry) = known.next(first[0], &BTreeSet::new()).unwrap();
        assert!(known.begin(number, entry));
        assert!(known.round(&all).is_empty());
        // It does not come back, and neither do the others: after a while new ones ask the rest.
        let second = (0..HANGS)
            .map(|_| known.round(&all))
            .find(|a| !a.is_empty());
        let second = second.unwrap();
        assert!(second.iter().all(|asker| !first.contains(asker)));
        assert_eq!(asked(&mut known, &second), [0, 2, 1]);
        // When the first one comes back, it is heard, and asks no more.
        assert!(known.heard(number, entry, named("tank/a")).is_some());
        assert_eq!(known.names.get("tank/a"), Some(&number));
        known.forget(number);
        assert_eq!(known.next(first[0], &BTreeSet::new()), None);
        assert_eq!(known.round(&all).len(), 1);
    }

    #[test]
    fn what_was_renamed_is_found_by_who_doubts_and_once_for_all() {
        let mut known = Known::new();
        let (mut one, mut two) = (0, 0);
        let hear = |known: &mut Known, name: &str| {
            let asker = known.round(&[(0, 1)]);
            assert_eq!(asked(known, &asker), [0]);
            known.heard(0, 1, named(name));
        };
        hear(&mut known, "tank/old");
        known.doubt(&mut one);
        hear(&mut known, "tank/new");
        assert_eq!(known.names.get("tank/new"), Some(&0));
        assert_eq!(known.names.get("tank/old"), None);
        known.doubt(&mut two);
        assert_eq!(known.names.get("tank/new"), Some(&0));
        known.doubt(&mut two);
        assert_eq!(known.names.get("tank/new"), None);
        // One that said another's name is asked again.
        hear(&mut known, "tank/new");
        known.forget(0);
        assert!(known.names.is_empty());
        assert_eq!(known.round(&[(0, 1)]).len(), 1);
    }
}
