//! Every stage recalled, every stage with every evidence, and properties over random lives.

use proptest::prelude::*;

use super::super::machine::{Life, Proof};
use super::*;

#[test]
fn recalled_from_its_rows_it_goes_on_as_before() {
    for n in 1..=13 {
        let (boot, rows) = boot_to(n, PhoneHome::Expected);
        let now = at(10_000);
        let session = rows.sessions.values().next().cloned();
        let again = Boot::recall(
            Rules::default(),
            boot.attempt().clone(),
            &rows.events,
            session,
            now,
        );
        let mut again = again.unwrap();
        assert!(again.tick(now).is_empty(), "nobody expires at once");
        assert_eq!(again.standing(now).stage, boot.standing(now).stage);
        assert_eq!(again.standing(now).first, boot.standing(now).first);
        assert_eq!(again.loader_delivered(), boot.loader_delivered());
        assert_eq!(again.image_id(), boot.image_id());
        let mut rows = rows;
        for (what, _) in healthy().into_iter().skip(n) {
            rows.write(again.step(&Observation {
                at: now,
                ..seen(0, what)
            }));
        }
        assert_eq!(again.session().unwrap().status, SessionStatus::Running);
        assert_eq!(rows.booted, 1, "counted once, restart or not ({n})");
        assert!(again.tick(now + TimeDelta::seconds(89)).is_empty());
        assert!(!again.tick(now + TimeDelta::seconds(90)).is_empty());
    }
}

/// Every stage of the healthy boot with every evidence: the stage and outcome after it.
#[test]
fn the_whole_transition_table() {
    use AttemptOutcome::{Completed, Open, Refused};
    let every: Vec<(&str, Evidence)> = evidence_kinds();
    for n in 1..=14 {
        for (name, what) in &every {
            let (mut boot, mut rows) = boot_to(n, PhoneHome::Expected);
            let stage = boot.attempt().last_stage;
            let delivered = stage >= Stage::KernelSent;
            rows.write(boot.step(&seen(100, what.clone())));
            // Where this evidence alone leads; a stage is never lost again.
            let (to, outcome) = match *name {
                // A system that runs is not ended by somebody who looks at its script.
                "wait" | "local" | "script" if stage == Stage::Up => (None, Open),
                "discover os" => (None, Open),
                "offer" => (Some(Stage::Offer), Open),
                "ack rom" => (Some(Stage::LoaderOffered), Open),
                "discover ipxe" => (Some(Stage::LoaderRunning), Open),
                "ack ipxe" => (Some(Stage::LoaderLease), Open),
                "ack os" => (delivered.then_some(Stage::OsNetwork), Open),
                "script" => (Some(Stage::Script), Open),
                "wait" => (Some(Stage::Waiting), Open),
                "local" => (Some(Stage::LocalBoot), Refused),
                "kernel started" => (Some(Stage::KernelRequested), Open),
                "kernel sent" => (Some(Stage::KernelSent), Open),
                "initrd started" => (Some(Stage::InitrdRequested), Open),
                "initrd sent" => (Some(Stage::InitrdSent), Open),
                "loader started" => (Some(Stage::LoaderRequested), Open),
                "loader sent" => (Some(Stage::LoaderSent), Open),
                "up" | "beat" => (Some(Stage::Up), Open),
                "bye" => (Some(Stage::Bye), Completed),
                "disk attached" => (Some(Stage::DiskAttached), Open),
                "disk read" => (Some(Stage::DiskRead), Open),
                "disk written" => (Some(Stage::DiskWritten), Open),
                "discover rom" | "broken" | "refused" | "fatal" | "foreign" | "released"
                | "located" | "disk used" | "disk detached" | "disk refused" => (None, Open),
                other => panic!("{other} is not in the table"),
            };
            let want = to.map_or(stage, |to| to.max(stage));
            assert_eq!(boot.attempt().last_stage, want, "{stage} + {name}");
            assert_eq!(boot.attempt().outcome, outcome, "{stage} + {name}");
            assert_eq!(boot.is_open(), outcome == Open);
        }
    }
}

fn evidence_kinds() -> Vec<(&'static str, Evidence)> {
    use Evidence as E;
    let refused = |fatal| E::Refused {
        reason: "pool_exhausted",
        sentence: "no address is free".to_owned(),
        fatal,
    };
    vec![
        ("discover rom", E::Discover(Speaker::Rom)),
        ("discover ipxe", E::Discover(Speaker::Ipxe)),
        ("discover os", E::Discover(Speaker::Os)),
        ("offer", offered(Speaker::Rom, true)),
        ("ack rom", acknowledged(Speaker::Rom, true)),
        ("ack ipxe", acknowledged(Speaker::Ipxe, false)),
        ("ack os", acknowledged(Speaker::Os, false)),
        ("refused", refused(false)),
        ("fatal", refused(true)),
        ("script", E::Script { unready: None }),
        (
            "wait",
            E::Script {
                unready: Some(("no_image", true)),
            },
        ),
        (
            "local",
            E::Script {
                unready: Some(("no_image", false)),
            },
        ),
        ("loader started", started(loader())),
        ("loader sent", sent(loader())),
        ("kernel started", started(kernel())),
        ("kernel sent", sent(kernel())),
        ("initrd started", started(initrd())),
        ("initrd sent", sent(initrd())),
        (
            "broken",
            E::FileBroken {
                file: kernel(),
                door: Door::Tftp,
                sent: 5,
                size: 10,
                cause: String::new(),
            },
        ),
        ("foreign", E::ForeignServer(SERVER_IP)),
        ("up", E::Up),
        ("beat", E::Beat),
        ("bye", E::Bye(None)),
        ("disk attached", disk::login(1)),
        ("disk read", E::DiskRead { connection: 1 }),
        ("disk written", E::DiskWritten { connection: 1 }),
        (
            "disk used",
            E::DiskUsed(DiskUse {
                connection: 1,
                read: 3,
                written: 4,
            }),
        ),
        ("disk detached", disk::detached(1, 9, 9)),
        (
            "disk refused",
            E::DiskRefused {
                reason: "store",
                sentence: String::new(),
            },
        ),
        ("released", E::Released),
        ("located", E::Located),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random lives: the row writer's assertions hold (order, times, status), rows are
    /// bounded, an end is an end, and silence ends everything but what may last for ever.
    #[test]
    fn random_lives(
        steps in prop::collection::vec((0_usize..31, -5_i64..90, any::<bool>()), 1..900),
        image in 0_usize..3,
        known in any::<bool>(),
    ) {
        let every = evidence_kinds();
        let phone_home = PhoneHome::ALL[image];
        let context = if known { context(phone_home) } else { Context::default() };
        let first = Observation { context: context.clone(), ..seen(0, Evidence::Discover(Speaker::Rom)) };
        let rules = Rules { max_events: 100, ..Rules::default() };
        let (mut boot, effects) = Boot::start(Uuid::nil(), Uuid::nil(), rules, &first);
        let mut rows = Rows::default();
        rows.write(effects);
        let mut second = 0;
        for (which, wait, tick) in steps {
            second += wait;
            let over = !boot.is_open();
            let ended = boot.attempt().clone();
            rows.write(boot.step(&Observation { context: context.clone(), ..seen(second, every[which].1.clone()) }));
            if tick {
                rows.write(boot.tick(at(second)));
            }
            if over {
                // Only the bytes of its disk may still grow, and a late first login tells of its version.
                let mut now = boot.attempt().clone();
                prop_assert!(now.disk_bytes_read >= ended.disk_bytes_read);
                now.disk_bytes_read = ended.disk_bytes_read;
                now.disk_bytes_written = ended.disk_bytes_written;
                if ended.version_id.is_none() {
                    now.version_id = None;
                    now.version_name = None;
                }
                prop_assert_eq!(&ended, &now);
            }
            prop_assert_eq!(boot.attempt().ended_at.is_none(), boot.is_open());
            prop_assert_eq!(boot.attempt().outcome == AttemptOutcome::Open, boot.is_open());
        }
        prop_assert!(rows.events.len() <= 100 + 8);
        prop_assert!(rows.booted <= 1);
        prop_assert!(rows.image_reports <= 1);
        prop_assert_eq!(known || rows.sessions.is_empty(), true);
        for _ in 0..1_000 {
            if boot.holds_disk() {
                rows.write(boot.step(&seen(second, every[27].1.clone())));
            }
        }
        prop_assert!(!boot.holds_disk());
        rows.write(boot.tick(at(second + 1_000_000)));
        rows.write(boot.tick(at(second + 2_000_000)));
        // A lease without an end, and nothing but it to go by.
        let lasting = matches!(boot.life, Life::Running(Proof::Inferred)) && boot.times.lease_until.is_none();
        prop_assert!(!boot.is_open() || lasting);
        if let (Some(row), Some(session)) = (rows.sessions.values().next(), boot.session()) {
            prop_assert_eq!(row, session);
        }
        prop_assert_eq!(rows.attempts.values().next(), Some(boot.attempt()));
    }
}
