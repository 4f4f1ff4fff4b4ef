//! `dls serve` killed at every named step of everything that is done in several, its disks on
//! ZFS: `tests/it/admin/steps.rs` does the same in files. Here each start after a kill is already
//! the one that is to die at the next step, so that forty steps take forty starts, not eighty.
//!
//! No step is left out. Those of kernels and initrds touch files only, but the same server has to
//! find its way there with disks on ZFS; `deed` names every step or does not compile, and each
//! deed is on the [`PLAN`] or the test is red.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use dls::steps::Step;
use dls::storage::{Storage, Volume};
use serde_json::json;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::deeds::{Deed, House, Subject, deed, perform, remove_found};
use super::process::Server;
use super::run;

/// What each server is killed at, one after another, and of which subjects: a zvol takes its time
/// to be made in an emulated machine, so that subjects are used up to their end.
const PLAN: [&[(Deed, &[u32])]; 3] = [
    &[
        (Deed::Import, &[1]),
        (Deed::Kernel, &[1]),
        (Deed::AddFiles, &[1]),
        (Deed::DropFiles, &[1]),
        (Deed::Copy, &[1]),
        (Deed::Discard, &[1]),
    ],
    &[
        (Deed::Publish, &[1]),
        (Deed::Retire, &[2, 3]),
        (Deed::Reset, &[2, 3]),
        (Deed::Delete, &[1, 2, 3]),
    ],
    // Nobody's disk is what others would have to clear away: a server for itself.
    LOST,
];
const LOST: &[(Deed, &[u32])] = &[(Deed::Adopt, &[1])];

/// A step to die at.
#[derive(Debug, Clone, Copy)]
struct Job {
    step: Step,
    deed: Deed,
    done: bool,
    /// Of what; subjects are made before the first start.
    subject: u32,
    /// Names new things.
    round: u32,
}

/// First the steps that are undone, in their order, on the first subject; then those after which
/// the deed is done, each on the next subject, in the other order: what a start finishes is not
/// what the next kill waits for.
fn jobs(deeds: &[(Deed, &[u32])]) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (of, subjects) in deeds {
        let all = Step::ALL
            .iter()
            .copied()
            .filter(|step| deed(*step).0 == *of);
        let (done, undone): (Vec<Step>, Vec<Step>) = all.partition(|step| deed(*step).1);
        let undone = undone.into_iter().map(|step| (step, false, 0));
        let done = done.into_iter().rev().enumerate();
        for (step, done, n) in undone.chain(done.map(|(n, step)| (step, true, n))) {
            jobs.push(Job {
                step,
                deed: *of,
                done,
                subject: subjects[n % subjects.len()],
                round: u32::try_from(jobs.len()).unwrap(),
            });
        }
    }
    jobs
}

/// A machine that is on, one that is pinned, and the versions and disks that are theirs.
struct Bystanders(Vec<String>);

impl Bystanders {
    async fn arrive(house: &House, store: &dyn Storage) -> Self {
        let of = house.stock(store, 90).await;
        let sql = format!(
            "SELECT id FROM image_snapshots WHERE name = 'v2' AND image_id = '{}'",
            of.image
        );
        let pinned: Uuid = house.db.text(&sql).await.unwrap().parse().unwrap();
        house
            .db
            .sql(&format!(
                "DELETE FROM maintenance WHERE client_id = '{client}';
                UPDATE clients SET pinned_version = '{pinned}', disk_mode = 'persistent' WHERE id = '{client}'",
                client = of.client,
            ))
            .await
            .unwrap();
        let Volume::Session(attempt) = house.machine_on(store, &of).await else {
            unreachable!("it is a boot's")
        };
        Self(vec![
            format!("image.{}", of.image.simple()),
            format!("image.{}", pinned.simple()),
            format!("session.{}", attempt.simple()),
            format!("personal.{}.{}", of.client.simple(), of.image.simple()),
        ])
    }

    fn are_there(&self, house: &House) {
        let all = house.disks();
        for name in &self.0 {
            assert!(all.contains(name), "{name} is gone: {all:?}");
        }
    }
}

/// Until it is ready and nothing is under way; false if it dies before.
async fn settles(server: &mut Server, house: &House) -> bool {
    for _ in 0..3600 {
        if server.child.try_wait().unwrap().is_some() {
            return false;
        }
        if server.answers().await {
            return house.rest(server).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the server does not come up: {}", server.log());
}

fn armed(job: Option<&Job>) -> Vec<&'static str> {
    job.map_or_else(Vec::new, |job| vec!["--die-at", job.step.as_str()])
}

async fn server(number: usize, deeds: &'static [(Deed, &'static [u32])]) -> usize {
    let stocked = Instant::now();
    let dataset = format!("labpool/steps{number}/dls");
    run(&format!("zfs create -p {dataset}"));
    let house = House::empty(Some(dataset)).await;
    let jobs = jobs(deeds);
    let lost = deeds == LOST;
    let mut subjects: Vec<Subject> = Vec::new();
    let (bystanders, store) = {
        let store = house.store();
        let last = jobs.iter().map(|job| job.subject).max().unwrap();
        for n in 1..=last {
            subjects.push(match lost {
                true => house.stock_lost(&*store, n).await,
                false => house.stock(&*store, n).await,
            });
        }
        let bystanders = match lost {
            true => Bystanders(vec![]),
            false => Bystanders::arrive(&house, &*store).await,
        };
        (bystanders, store)
    };
    drop(store);
    if !lost {
        let (fine, said) = house.audit();
        assert!(fine, "before: {said}");
    }
    println!(
        "STOCKED server {number} {:.0} s",
        stocked.elapsed().as_secs_f64()
    );
    let mut server = house.begin(&armed(jobs.first()));
    assert!(settles(&mut server, &house).await, "{}", server.log());
    for (n, job) in jobs.iter().enumerate() {
        let began = Instant::now();
        let Job {
            step,
            deed,
            done,
            round,
            ..
        } = *job;
        let subject = &subjects[job.subject as usize - 1];
        let before = server.log().len();
        let told = perform(&server, deed, subject, round).await;
        let ended = tokio::time::timeout(Duration::from_secs(240), server.child.wait()).await;
        let Ok(Ok(ended)) = ended else {
            panic!("{step} is never reached: {told:?} {}", server.log());
        };
        let died = began.elapsed().as_secs_f64();
        let said = server.log().split_off(before);
        assert_eq!(ended.signal(), Some(9), "{step}: {said}");
        assert!(
            said.contains("killed at a step") && said.contains(step.as_str()),
            "{step}: {said}"
        );
        server.again_with(&armed(jobs.get(n + 1)));
        // The mending itself may reach the next step: it died there, and is mended once more.
        let twice = !settles(&mut server, &house).await;
        if twice {
            server.again();
            assert!(settles(&mut server, &house).await, "{}", server.log());
        }
        let up = began.elapsed().as_secs_f64();
        let is = house.is_done(deed, subject, round).await;
        assert_eq!(is, done, "{step}: {}", server.log());
        if !lost {
            let (_, found) = server.get("/api/v1/doctor/storage").await;
            assert_eq!(found, json!({"findings": []}), "{step}");
            let (fine, said) = house.audit();
            assert!(fine, "{step}: {said}{}", server.log());
        }
        bystanders.are_there(&house);
        let also = if twice {
            ", killed in its mending too"
        } else {
            ""
        };
        println!(
            "STEP {step} killed after {died:.1} s, mended after {up:.1} s, seen to after {:.1} s{also}",
            began.elapsed().as_secs_f64()
        );
        if twice && n + 1 < jobs.len() {
            server.child.kill().await.unwrap();
            server.again_with(&armed(jobs.get(n + 1)));
            assert!(settles(&mut server, &house).await, "{}", server.log());
        }
    }
    if lost {
        remove_found(&server).await;
    }
    server.child.kill().await.unwrap();
    let (fine, said) = house.audit();
    assert!(fine, "{said}{}", server.log());
    bystanders.are_there(&house);
    println!("AUDIT {said}");
    jobs.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_step_on_zfs_it_loses_nothing_and_leaves_nothing() {
    if std::env::var_os("DLS_PROGRAM").is_none() {
        return;
    }
    let began = Instant::now();
    let mut all = JoinSet::new();
    for (number, deeds) in PLAN.into_iter().enumerate() {
        all.spawn(server(number, deeds));
    }
    let mut steps = 0;
    while let Some(ended) = all.join_next().await {
        steps += ended.unwrap();
    }
    assert_eq!(steps, Step::ALL.len(), "each step once");
    println!("STEPS {steps} in {} s", began.elapsed().as_secs());
}
