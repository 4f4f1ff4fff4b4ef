//! What the tracker counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::book::{Ignored, Step};
use crate::boot::session::Effect;
use crate::model::{AttemptOutcome, Stage};

/// Label of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StageLabel {
    stage: &'static str,
}

/// Labels of an end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndLabels {
    outcome: &'static str,
    stage: &'static str,
}

/// Label of a reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    reason: &'static str,
}

/// The numbers; clones share them.
#[derive(Debug, Clone)]
pub struct TrackerMetrics {
    open: Gauge,
    strangers: Gauge,
    ended: Family<EndLabels, Counter>,
    ignored: Family<ReasonLabel, Counter>,
    boot_seconds: Histogram,
    stage_seconds: Family<StageLabel, Histogram>,
    queued: Gauge,
    dropped: Counter,
    set_aside: Counter,
    write_failures: Counter,
}

impl Default for TrackerMetrics {
    fn default() -> Self {
        Self {
            open: Gauge::default(),
            strangers: Gauge::default(),
            ended: Family::default(),
            ignored: Family::default(),
            boot_seconds: Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            stage_seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 4.0, 11))
            }),
            queued: Gauge::default(),
            dropped: Counter::default(),
            set_aside: Counter::default(),
            write_failures: Counter::default(),
        }
    }
}

impl TrackerMetrics {
    /// Makes them known under `dls_boot_...`.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("boot");
        r.register(
            "attempts_open",
            "Boot attempts that are open",
            self.open.clone(),
        );
        r.register(
            "attempts_open_unregistered",
            "Open boot attempts of machines that no client knows",
            self.strangers.clone(),
        );
        r.register(
            "attempts_ended",
            "Boot attempts that ended, by outcome and by the stage they reached",
            self.ended.clone(),
        );
        r.register(
            "observations_ignored",
            "Observations that belong to no open attempt, by reason",
            self.ignored.clone(),
        );
        r.register(
            "seconds",
            "Seconds from the first packet to a reported start",
            self.boot_seconds.clone(),
        );
        r.register(
            "stage_seconds",
            "Seconds from the event before to the first arrival at a stage",
            self.stage_seconds.clone(),
        );
        r.register(
            "rows_queued",
            "Rows that wait for the database",
            self.queued.clone(),
        );
        r.register(
            "rows_dropped",
            "Rows dropped because the database was away for too long",
            self.dropped.clone(),
        );
        r.register(
            "rows_set_aside",
            "Rows that the database refused",
            self.set_aside.clone(),
        );
        r.register(
            "write_failures",
            "Batches that could not be written at once",
            self.write_failures.clone(),
        );
    }

    pub(super) fn sizes(&self, open: usize, strangers: usize) {
        self.open.set(i64::try_from(open).unwrap_or(i64::MAX));
        self.strangers
            .set(i64::try_from(strangers).unwrap_or(i64::MAX));
    }

    pub(super) fn queued(&self, rows: usize) {
        self.queued.set(i64::try_from(rows).unwrap_or(i64::MAX));
    }

    pub(super) fn ignored(&self, why: Ignored) {
        let reason = why.as_str();
        self.ignored.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(super) fn dropped(&self, rows: u64) {
        self.dropped.inc_by(rows);
    }

    pub(super) fn set_aside(&self) {
        self.set_aside.inc();
    }

    pub(super) fn write_failed(&self) {
        self.write_failures.inc();
    }

    /// Counts what a step brought.
    pub(super) fn step(&self, step: &Step) {
        let mut before = step.before;
        let mut over = false;
        for effect in &step.effects {
            match effect {
                Effect::Event(event) => {
                    let seconds = (event.at - before).num_milliseconds() as f64 / 1000.0;
                    before = event.at;
                    let stage = event.stage.as_str();
                    self.stage_seconds
                        .get_or_create(&StageLabel { stage })
                        .observe(seconds.max(0.0));
                    let flag = |key| event.detail.get(key).and_then(serde_json::Value::as_bool);
                    if event.stage == Stage::Up
                        && flag("inferred") == Some(false)
                        && let Some(took) = event.detail.get("boot_seconds")
                    {
                        self.boot_seconds.observe(took.as_f64().unwrap_or_default());
                    }
                }
                Effect::Attempt(a) => over = a.outcome != AttemptOutcome::Open,
                Effect::Session(_) | Effect::ClientBooted { .. } | Effect::ImageReports { .. } => {}
            }
        }
        if over {
            let labels = EndLabels {
                outcome: step.attempt.outcome.as_str(),
                stage: step.attempt.last_stage.as_str(),
            };
            self.ended.get_or_create(&labels).inc();
        }
    }
}
