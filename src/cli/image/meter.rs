//! How far something long is: a bar on a terminal, a line per tenth elsewhere. On standard
//! error, so that the output stays what was asked for.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

use super::super::output;

/// Steps of a meter that counts no bytes.
const PARTS: u64 = 1000;

/// One step of something long; clones share it.
#[derive(Clone)]
pub(super) struct Meter {
    what: String,
    all: u64,
    done: Arc<AtomicU64>,
    told: Arc<AtomicU64>,
    bar: Option<ProgressBar>,
    /// Lines where there is no terminal.
    lines: bool,
}

impl Meter {
    /// Counts bytes.
    pub(super) fn of_bytes(what: &str, all: u64) -> Self {
        let form = "{msg:10} [{wide_bar}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        Self::new(what, all, form)
    }

    /// Counts from 0 to 1.
    pub(super) fn of_parts(what: &str) -> Self {
        Self::new(what, PARTS, "{msg:10} [{wide_bar}] {percent} %")
    }

    fn new(what: &str, all: u64, form: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(form);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(all)
                .with_style(style)
                .with_message(output::printable(what))
        });
        Self {
            what: what.to_owned(),
            all,
            done: Arc::default(),
            told: Arc::default(),
            bar,
            lines: true,
        }
    }

    /// Only on a terminal: for what is mostly short.
    pub(super) fn without_lines(self) -> Self {
        Self {
            lines: false,
            ..self
        }
    }

    /// So much more.
    pub(super) fn add(&self, more: u64) {
        let done = self
            .done
            .fetch_add(more, Ordering::Relaxed)
            .saturating_add(more);
        self.show(done);
    }

    /// So much in all.
    pub(super) fn at(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.show(done);
    }

    /// As [`Meter::at`], from 0 to 1.
    pub(super) fn at_part(&self, done: f64) {
        self.at((done.clamp(0.0, 1.0) * PARTS as f64) as u64);
    }

    fn show(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        if !self.lines {
            return;
        }
        // Never more than the whole: sizes of files that grow meanwhile are guesses.
        let tenths = done.saturating_mul(10).min(self.all.saturating_mul(10)) / self.all.max(1);
        if self.told.fetch_max(tenths, Ordering::Relaxed) < tenths {
            let line = format!("{}: {} %", output::printable(&self.what), tenths * 10);
            // Nobody to tell stops nothing.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    /// It is over, or was.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_takes_any_number() {
        let meter = Meter::of_bytes("sending", 0);
        meter.add(u64::MAX);
        meter.at(0);
        let parts = Meter::of_parts("copying");
        parts.at_part(f64::NAN);
        parts.at_part(7.0);
        assert_eq!(parts.told.load(Ordering::Relaxed), 10);
        parts.end();
    }
}
