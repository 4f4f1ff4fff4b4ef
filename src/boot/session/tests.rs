//! The machine as a whole: a healthy boot, every silence, ends, restarts. [`disk`]: boots from disks. [`table`]: every
//! stage with every evidence, and properties over random lives.

mod disk;
mod table;

use std::collections::HashMap;
use std::net::Ipv4Addr;

use chrono::TimeDelta;
use uuid::Uuid;

use super::*;
use crate::model::{
    Arch, Attempt, AttemptOutcome, BootEvent, BootSession, FileRole, MacAddr, PhoneHome,
    SessionStatus, Stage, Timestamp,
};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 50);
const SERVER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + TimeDelta::days(20_000) + TimeDelta::seconds(seconds)
}

fn context(phone_home: PhoneHome) -> Context {
    Context {
        arch: Some(Arch::Bios),
        client: Some((Uuid::from_u128(1), "pc".to_owned())),
        image: Some((Uuid::from_u128(2), "debian".to_owned())),
        phone_home: Some(phone_home),
        server_ip: Some(SERVER_IP),
        ..Context::default()
    }
}

fn seen(seconds: i64, what: Evidence) -> Observation {
    Observation {
        mac: MAC,
        at: at(seconds),
        what,
        context: context(PhoneHome::Auto),
    }
}

fn kernel() -> BootFile {
    BootFile::Image(FileRole::Kernel, 0)
}

fn initrd() -> BootFile {
    BootFile::Image(FileRole::Initrd, 0)
}

fn loader() -> BootFile {
    BootFile::Loader("undionly.kpxe".to_owned())
}

fn started(file: BootFile) -> Evidence {
    Evidence::FileStarted {
        file,
        door: Door::Http,
        size: 5_000_000,
    }
}

fn sent(file: BootFile) -> Evidence {
    Evidence::FileSent {
        file,
        door: Door::Http,
        size: 5_000_000,
        seconds: 0.5,
    }
}

fn offered(speaker: Speaker, loader: bool) -> Evidence {
    Evidence::Offered {
        speaker,
        address: Some(CLIENT_IP),
        loader: loader.then(|| "undionly.kpxe".to_owned()),
    }
}

fn acknowledged(speaker: Speaker, loader: bool) -> Evidence {
    Evidence::Acknowledged {
        speaker,
        address: Some(CLIENT_IP),
        loader: loader.then(|| "undionly.kpxe".to_owned()),
    }
}

/// A healthy BIOS boot, one piece of evidence a second, and the stage that each reaches.
fn healthy() -> Vec<(Evidence, Stage)> {
    use Evidence as E;
    vec![
        (E::Discover(Speaker::Rom), Stage::Discover),
        (offered(Speaker::Rom, true), Stage::Offer),
        (acknowledged(Speaker::Rom, true), Stage::LoaderOffered),
        (started(loader()), Stage::LoaderRequested),
        (sent(loader()), Stage::LoaderSent),
        (E::Discover(Speaker::Ipxe), Stage::LoaderRunning),
        (acknowledged(Speaker::Ipxe, false), Stage::LoaderLease),
        (E::Script { unready: None }, Stage::Script),
        (started(kernel()), Stage::KernelRequested),
        (sent(kernel()), Stage::KernelSent),
        (started(initrd()), Stage::InitrdRequested),
        (sent(initrd()), Stage::InitrdSent),
        (acknowledged(Speaker::Os, false), Stage::OsNetwork),
        (E::Up, Stage::Up),
    ]
}

/// What the database would hold.
#[derive(Debug, Clone, Default)]
struct Rows {
    attempts: HashMap<Uuid, Attempt>,
    sessions: HashMap<Uuid, BootSession>,
    events: Vec<BootEvent>,
    booted: u32,
    image_reports: u32,
}

impl Rows {
    fn write(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Attempt(a) => {
                    self.attempts.insert(a.id, a);
                }
                Effect::Session(s) => {
                    assert!(self.attempts.contains_key(&s.id), "session before attempt");
                    if let Some(old) = self.sessions.insert(s.id, s.clone()) {
                        assert!(rank(old.status) <= rank(s.status), "{old:?} then {s:?}");
                        assert!(old.status.is_live() || old == s, "changed after its end");
                    }
                }
                Effect::Event(e) => {
                    assert!(self.attempts.contains_key(&e.session_id), "event first");
                    let last = self.events.iter().rfind(|o| o.session_id == e.session_id);
                    assert!(last.is_none_or(|o| o.at <= e.at), "back in time");
                    self.events.push(e);
                }
                Effect::ClientBooted { .. } => self.booted += 1,
                Effect::ImageReports { .. } => self.image_reports += 1,
            }
        }
    }

    fn last(&self) -> &BootEvent {
        self.events.last().unwrap()
    }
}

const fn rank(status: SessionStatus) -> u8 {
    match status {
        SessionStatus::Starting => 0,
        SessionStatus::Booting => 1,
        SessionStatus::Running => 2,
        SessionStatus::Shutdown | SessionStatus::Error => 3,
    }
}

/// Feeds the first `n` of the healthy boot; the last at second n - 1.
fn boot_to(n: usize, phone_home: PhoneHome) -> (Boot, Rows) {
    boot_of(healthy().into_iter().take(n).map(|(e, _)| e), phone_home)
}

fn boot_of(life: impl IntoIterator<Item = Evidence>, phone_home: PhoneHome) -> (Boot, Rows) {
    let mut life = life.into_iter().zip(0..).map(|(what, second)| Observation {
        context: context(phone_home),
        ..seen(second, what)
    });
    let mut rows = Rows::default();
    let first = life.next().unwrap();
    let (mut boot, effects) =
        Boot::start(Uuid::from_u128(9), Uuid::nil(), Rules::default(), &first);
    rows.write(effects);
    for observation in life {
        rows.write(boot.step(&observation));
    }
    (boot, rows)
}

fn session(boot: &Boot) -> &BootSession {
    boot.session().unwrap()
}

#[test]
fn a_healthy_boot_leaves_one_row_a_stage() {
    let (mut boot, mut rows) = boot_to(14, PhoneHome::Auto);
    let stages: Vec<Stage> = rows.events.iter().map(|e| e.stage).collect();
    let mut want: Vec<Stage> = healthy().into_iter().map(|(_, s)| s).collect();
    // The ACK that names a loader is two stages in one packet.
    want.insert(2, Stage::Lease);
    assert_eq!(stages, want);
    assert_eq!(session(&boot).status, SessionStatus::Running);
    assert_eq!(session(&boot).boot_time_seconds, Some(13));
    assert_eq!(session(&boot).client_ip, Some(CLIENT_IP));
    assert_eq!(session(&boot).boot_server_ip, Some(SERVER_IP));
    assert_eq!((rows.booted, rows.image_reports), (1, 1));

    for beat in 1..100 {
        let effects = boot.step(&seen(13 + beat * 30, Evidence::Beat));
        assert!(effects.is_empty(), "a beat is no row");
        assert!(boot.tick(at(13 + beat * 30 + 29)).is_empty());
    }
    rows.write(boot.step(&seen(5000, Evidence::Bye(Some("poweroff".to_owned())))));
    assert_eq!(session(&boot).status, SessionStatus::Shutdown);
    assert_eq!(boot.attempt().outcome, AttemptOutcome::Completed);
    assert_eq!(boot.attempt().reason.as_deref(), Some("poweroff"));
    assert_eq!(rows.last().stage, Stage::Ended);
    assert_eq!(session(&boot).ended_at, Some(at(5000)));
    assert_eq!(rows.booted, 1);
}

#[test]
fn the_session_rises_with_the_boot() {
    let status: Vec<SessionStatus> = (1..=14)
        .map(|n| session(&boot_to(n, PhoneHome::Auto).0).status)
        .collect();
    assert!(status[..7].iter().all(|s| *s == SessionStatus::Starting));
    assert!(status[7..13].iter().all(|s| *s == SessionStatus::Booting));
    assert_eq!(status[13], SessionStatus::Running);
}

#[test]
fn every_silence_names_its_stage_and_cause() {
    let causes = [
        "offered none",
        "did not take it",
        "UDP port 69",
        "transfer of undionly.kpxe began and never ended",
        "Secure Boot",
        "iPXE started",
        "http://10.0.0.1:8069 for its script: is that port blocked by a firewall?",
        "never asked for the kernel",
        "kernel transfer began",
        "the kernel was delivered but the system never reported up",
        "initrd transfer began",
        "kernel and initrd were delivered but the system never reported up (kernel panic",
        "asked for an address but the system never reported up",
        "contact lost",
    ];
    for (n, cause) in causes.into_iter().enumerate() {
        let (mut boot, mut rows) = boot_to(n + 1, PhoneHome::Expected);
        let stage = boot.attempt().last_stage;
        let mut end = None;
        for second in 0..2000 {
            let effects = boot.tick(at(second));
            if !effects.is_empty() {
                end.get_or_insert(second);
            }
            rows.write(effects);
        }
        let a = boot.attempt();
        let reason = a.reason.clone().unwrap_or_default();
        assert!(reason.contains(cause), "{stage}: {reason}");
        assert_eq!(a.outcome, AttemptOutcome::Failed, "{stage}");
        assert_eq!(session(&boot).status, SessionStatus::Error);
        assert_eq!(session(&boot).error_message.as_ref(), Some(&reason));
        let last = rows.last();
        assert_eq!(last.stage, Stage::Error);
        assert_eq!(last.detail["stage"], stage.as_str());
        // Transfers get what their size needs, systems 300 s, all else 60 s or 90 s.
        let waited = end.unwrap() - n as i64;
        let want = match stage {
            Stage::LoaderRequested | Stage::KernelRequested | Stage::InitrdRequested => 80,
            Stage::KernelSent | Stage::InitrdSent | Stage::OsNetwork => 300,
            Stage::Up => 90,
            _ => 60,
        };
        assert_eq!(waited, want, "{stage}");
    }
}

#[test]
fn a_missing_loader_is_an_error_by_its_own_words() {
    let sentence = "no loader for EFI x64 is installed: put snponly.efi or ipxe.efi into /l";
    let refused = Evidence::Refused {
        reason: "loader_missing",
        sentence: sentence.to_owned(),
        fatal: true,
    };
    let life = [
        Evidence::Discover(Speaker::Rom),
        refused.clone(),
        Evidence::Discover(Speaker::Rom),
        refused,
    ];
    let (mut boot, mut rows) = boot_of(life, PhoneHome::Auto);
    assert_eq!(rows.events.len(), 2, "the second round is only counted");
    rows.write(boot.tick(at(64)));
    let a = boot.attempt();
    assert_eq!(a.outcome, AttemptOutcome::Failed);
    assert_eq!(
        a.reason.as_deref(),
        Some(format!("at stage discover: {sentence}").as_str())
    );
    assert_eq!(rows.last().detail["repeats"]["discover"], 1);
    assert_eq!(session(&boot).status, SessionStatus::Error);
}

#[test]
fn a_missing_loader_stays_the_cause_when_the_machine_takes_its_address() {
    // An iPXE in a ROM, told to load ours first, which is not there.
    let life = [
        Evidence::Discover(Speaker::Ipxe),
        Evidence::Refused {
            reason: "loader_missing",
            sentence: "put undionly.kpxe into /l".to_owned(),
            fatal: true,
        },
        Evidence::Acknowledged {
            speaker: Speaker::Ipxe,
            address: Some(std::net::Ipv4Addr::new(10, 77, 0, 50)),
            loader: None,
        },
    ];
    let (mut boot, mut rows) = boot_of(life, PhoneHome::Auto);
    rows.write(boot.tick(at(64)));
    let reason = boot.attempt().reason.clone().unwrap_or_default();
    assert!(reason.ends_with("put undionly.kpxe into /l"), "{reason}");
}

#[test]
fn a_broken_kernel_transfer_may_be_tried_again() {
    let (mut boot, mut rows) = boot_to(9, PhoneHome::Auto);
    let broken = |second| {
        seen(
            second,
            Evidence::FileBroken {
                file: kernel(),
                door: Door::Http,
                sent: 1000,
                size: 5_000_000,
                cause: "connection reset".to_owned(),
            },
        )
    };
    rows.write(boot.step(&broken(10)));
    assert!(boot.tick(at(39)).is_empty());
    rows.write(boot.step(&seen(39, started(kernel()))));
    assert!(boot.tick(at(70)).is_empty());
    rows.write(boot.step(&broken(70)));
    rows.write(boot.tick(at(100)));
    assert_eq!(
        boot.attempt().reason.as_deref(),
        Some(
            "at stage kernel_requested: the kernel transfer broke off after 1000 of 5000000 bytes: connection reset (machine switched off, cable pulled?)"
        )
    );
    let breaks = rows.events.iter();
    assert_eq!(
        breaks.filter(|e| e.stage == Stage::TransferBroken).count(),
        2
    );
}

#[test]
fn images_without_the_hook_are_inferred() {
    // Absent: at the system's DHCP, at once.
    let (boot, rows) = boot_to(13, PhoneHome::Absent);
    assert_eq!(session(&boot).status, SessionStatus::Running);
    assert_eq!(session(&boot).boot_time_seconds, Some(12));
    assert_eq!(rows.last().detail["inferred"], true);
    // Absent, and not even that: after a grace, from the delivery on.
    let (mut boot, mut rows) = boot_to(12, PhoneHome::Absent);
    assert!(boot.tick(at(70)).is_empty());
    rows.write(boot.tick(at(71)));
    assert_eq!(session(&boot).status, SessionStatus::Running);
    assert_eq!(session(&boot).boot_time_seconds, Some(11));
    // Auto: a report may still come, so it is judged only in the end.
    let (mut boot, mut rows) = boot_to(13, PhoneHome::Auto);
    assert!(boot.tick(at(311)).is_empty());
    rows.write(boot.tick(at(312)));
    assert_eq!(session(&boot).status, SessionStatus::Running);
    assert_eq!(session(&boot).boot_time_seconds, Some(12));
    // A report corrects the inference; the image is known by then.
    rows.write(boot.step(&seen(400, Evidence::Up)));
    assert_eq!(session(&boot).boot_time_seconds, Some(400));
    assert_eq!(rows.image_reports, 1);
    // Auto without any evidence, and one that is known to report: errors.
    for (n, phone_home) in [(12, PhoneHome::Auto), (13, PhoneHome::Expected)] {
        let (mut boot, mut rows) = boot_to(n, phone_home);
        rows.write(boot.tick(at(400)));
        assert_eq!(boot.attempt().outcome, AttemptOutcome::Failed);
    }
}

#[test]
fn what_was_inferred_ends_inferred() {
    for released in [true, false] {
        let (mut boot, mut rows) = boot_to(12, PhoneHome::Absent);
        let mut ack = seen(20, acknowledged(Speaker::Os, false));
        ack.context.phone_home = Some(PhoneHome::Absent);
        ack.context.lease_until = Some(at(3620));
        rows.write(boot.step(&ack));
        if released {
            rows.write(boot.step(&seen(1000, Evidence::Released)));
        } else {
            assert!(boot.tick(at(3679)).is_empty());
            rows.write(boot.tick(at(3680)));
        }
        assert_eq!(session(&boot).status, SessionStatus::Shutdown);
        assert_eq!(rows.last().detail["inferred"], true);
    }
    // Reported, released, then silent: not an error.
    let (mut boot, mut rows) = boot_to(14, PhoneHome::Auto);
    rows.write(boot.step(&seen(20, Evidence::Released)));
    rows.write(boot.tick(at(200)));
    assert_eq!(session(&boot).status, SessionStatus::Shutdown);
}

#[test]
fn a_restart_closes_by_how_far_it_was() {
    let (mut boot, mut rows) = boot_to(9, PhoneHome::Auto);
    rows.write(boot.restart(at(10)));
    assert_eq!(boot.attempt().outcome, AttemptOutcome::Restarted);
    assert_eq!(
        session(&boot).error_message.as_deref(),
        Some("restarted at stage kernel_requested")
    );
    assert_eq!(session(&boot).status, SessionStatus::Error);
    assert_eq!(rows.last().stage, Stage::Restarted);

    let (mut boot, mut rows) = boot_to(7, PhoneHome::Auto);
    rows.write(boot.restart(at(50)));
    let reason = boot.attempt().reason.clone().unwrap();
    assert!(
        reason.starts_with("restarted at stage loader_lease: ") && reason.contains("firewall"),
        "{reason}"
    );

    let (mut boot, mut rows) = boot_to(14, PhoneHome::Auto);
    rows.write(boot.restart(at(50)));
    assert_eq!(boot.attempt().outcome, AttemptOutcome::Completed);
    assert_eq!(session(&boot).status, SessionStatus::Shutdown);
    assert_eq!(rows.last().detail["inferred"], true);
}

#[test]
fn a_waiting_machine_is_no_stall_while_it_looks_again() {
    let wait = Evidence::Script {
        unready: Some(("client_disabled", true)),
    };
    let mut life: Vec<Evidence> = healthy().into_iter().take(7).map(|(e, _)| e).collect();
    life.push(wait.clone());
    let (mut boot, mut rows) = boot_of(life, PhoneHome::Auto);
    let written = rows.events.len();
    for look in 1..1000 {
        rows.write(boot.step(&seen(7 + look * 5, wait.clone())));
        rows.write(boot.tick(at(9 + look * 5)));
    }
    assert_eq!(rows.events.len(), written);
    assert!(boot.is_open());
    let mut gone = boot.clone();
    let mut rows_gone = rows.clone();
    rows_gone.write(gone.tick(at(5100)));
    assert_eq!(gone.attempt().outcome, AttemptOutcome::Refused);
    assert!(
        gone.attempt()
            .reason
            .as_ref()
            .unwrap()
            .starts_with("client_disabled")
    );
    assert_eq!(rows_gone.last().detail["repeats"]["waiting"], 999);
    // Enabled meanwhile: it boots.
    rows.write(boot.step(&seen(5005, Evidence::Script { unready: None })));
    rows.write(boot.step(&seen(5006, started(kernel()))));
    assert_eq!(session(&boot).status, SessionStatus::Booting);
    assert_eq!(boot.attempt().reason, None);
}

#[test]
fn sent_to_its_local_disk_is_over() {
    let mut life: Vec<Evidence> = healthy().into_iter().take(7).map(|(e, _)| e).collect();
    life.push(Evidence::Script {
        unready: Some(("no_image", false)),
    });
    let (boot, rows) = boot_of(life, PhoneHome::Auto);
    assert_eq!(boot.attempt().outcome, AttemptOutcome::Refused);
    assert_eq!(boot.attempt().last_stage, Stage::LocalBoot);
    assert_eq!(rows.last().stage, Stage::Error);
    assert_eq!(boot.image_id(), None);
}

#[test]
fn the_script_names_the_image_whatever_was_planned() {
    let (mut boot, mut rows) = boot_to(7, PhoneHome::Auto);
    let mut script = seen(8, Evidence::Script { unready: None });
    script.context.image = Some((Uuid::from_u128(77), "new".to_owned()));
    rows.write(boot.step(&script));
    assert_eq!(session(&boot).image_id, Uuid::from_u128(77));
    // A later change in the catalog is for the next boot.
    rows.write(boot.step(&seen(9, started(kernel()))));
    assert_eq!(boot.image_id(), Some(Uuid::from_u128(77)));
    assert_eq!(boot.attempt().image_name.as_deref(), Some("new"));
}

#[test]
fn a_loader_with_a_script_of_its_own_boots_too() {
    let mut life: Vec<Evidence> = healthy().into_iter().map(|(e, _)| e).collect();
    life.remove(7);
    let (boot, rows) = boot_of(life, PhoneHome::Auto);
    assert_eq!(session(&boot).status, SessionStatus::Running);
    assert_eq!(boot.image_id(), Some(Uuid::from_u128(2)));
    assert_eq!(rows.booted, 1);
}

#[test]
fn a_machine_without_a_client_leaves_no_session() {
    let mut rows = Rows::default();
    let mut first = seen(0, Evidence::Discover(Speaker::Rom));
    first.context = Context::default();
    let (mut boot, effects) = Boot::start(Uuid::nil(), Uuid::nil(), Rules::default(), &first);
    rows.write(effects);
    rows.write(boot.tick(at(60)));
    assert!(rows.sessions.is_empty());
    assert_eq!(boot.attempt().outcome, AttemptOutcome::Failed);
}

#[test]
fn after_the_end_only_first_reports_are_noted() {
    let (mut boot, mut rows) = boot_to(14, PhoneHome::Auto);
    rows.write(boot.tick(at(200)));
    assert_eq!(boot.attempt().outcome, AttemptOutcome::Failed);
    let written = rows.events.len();
    assert_eq!(boot.late_beat(), None);
    for second in 200..300 {
        rows.write(boot.step(&seen(second, Evidence::Beat)));
        rows.write(boot.step(&seen(second, Evidence::Bye(None))));
        rows.write(boot.step(&seen(second, Evidence::Discover(Speaker::Rom))));
        rows.write(boot.tick(at(second)));
    }
    assert_eq!(rows.events.len(), written + 2);
    assert_eq!(rows.last().detail["late"], true);
    assert_eq!(boot.late_beat(), Some(at(299)));
    assert_eq!(session(&boot).status, SessionStatus::Error);
}

#[test]
fn a_uefi_machine_may_go_from_pxe_to_http() {
    let mut rows = Rows::default();
    let with = |second, what, arch| {
        let mut o = seen(second, what);
        o.context.arch = Some(arch);
        o
    };
    let first = with(0, Evidence::Discover(Speaker::Rom), Arch::EfiX64);
    let (mut boot, effects) = Boot::start(Uuid::nil(), Uuid::nil(), Rules::default(), &first);
    rows.write(effects);
    rows.write(boot.tick(at(140)));
    let http = with(140, Evidence::Discover(Speaker::Rom), Arch::HttpX64);
    assert_eq!(
        arrival(
            Some(&boot.standing(at(140))),
            arrival::Caller::of(&http).unwrap()
        ),
        Arrival::Join
    );
    rows.write(boot.step(&http));
    assert_eq!(boot.attempt().arch, Some(Arch::HttpX64));
    assert_eq!(rows.events.len(), 2);
}

#[test]
fn a_rom_in_a_loop_ends_some_time() {
    let (mut boot, mut rows) = boot_to(3, PhoneHome::Auto);
    for second in 3..1000 {
        rows.write(boot.step(&seen(second, Evidence::Discover(Speaker::Rom))));
        rows.write(boot.tick(at(second)));
    }
    assert!(!boot.is_open());
    assert!(rows.events.len() < 8);
    assert!(
        boot.attempt()
            .reason
            .as_ref()
            .unwrap()
            .contains("UDP port 69")
    );
}

#[test]
fn a_clock_that_jumps_ends_nothing() {
    let (mut boot, _) = boot_to(14, PhoneHome::Auto);
    boot.shift(TimeDelta::hours(3));
    assert!(boot.tick(at(13 + 3 * 3600 + 89)).is_empty());
    assert!(!boot.tick(at(13 + 3 * 3600 + 90)).is_empty());
}
