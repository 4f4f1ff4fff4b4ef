//! Field rules: every violation at once. Pure.
//!
//! [`Reader`] takes a JSON object apart field by field and collects what is wrong;
//! [`client()`], [`image()`], [`range()`], [`new_version()`], [`release()`], [`sending_back()`] and [`doctor()`] say which fields there are and what may be in them;
//! [`rules`] are the rules of single values. What only PostgreSQL can know (is the name
//! taken, do two ranges overlap) is PostgreSQL's to refuse.
//!
//! # Strict mode
//! In either mode an unknown field is refused: a misspelt one that is silently ignored
//! is a trap. What differs is what would otherwise be put right without a word. In strict mode
//! these are refused: a MAC address in another spelling than `52:54:00:12:34:56`, a network
//! with host bits (`10.0.0.5/24`), blanks around a text, hex with colons or capitals,
//! the same entry twice in a list, a newly reserved address in none of the network ranges.

mod client;
mod doctor;
mod image;
mod quota;
mod range;
mod reader;
pub mod rules;
#[cfg(test)]
mod tests;
mod version;

pub use client::client;
pub use doctor::{Treatment, doctor};
pub use image::image;
pub use quota::{client_quota, image_quota};
pub use range::range;
pub use reader::{Reader, Write};
pub use version::{
    NewVersion, Release, Return, may_release, mender, new_version, publication, rebase, release,
    sending_back,
};

/// One thing wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Violation {
    /// The field, as in `hostname`, `pools[1]` or `network_config.mtu`.
    pub field: String,
    /// What is wrong, for people.
    pub message: String,
}

/// All that is wrong with an input, in the order in which it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Violations(Vec<Violation>);

/// What to do with values that are understood but not in their normal form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strictness {
    /// Put them right.
    Lenient,
    /// Refuse them.
    Strict,
}

impl Strictness {
    /// From `[validation] enable_strict_mode`.
    #[must_use]
    pub const fn from_setting(enable_strict_mode: bool) -> Self {
        if enable_strict_mode {
            Self::Strict
        } else {
            Self::Lenient
        }
    }
}

impl Violations {
    /// None so far.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// A single one.
    #[must_use]
    pub fn of(field: impl Into<String>, message: impl Into<String>) -> Self {
        let mut all = Self::new();
        all.add(field, message);
        all
    }

    /// Adds one.
    pub fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Violation {
            field: field.into(),
            message: message.into(),
        });
    }

    /// Adds all of another collection.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// True if nothing is wrong.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if something is wrong with the field.
    #[must_use]
    pub fn concerns(&self, field: &str) -> bool {
        self.0.iter().any(|v| v.field == field)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Violation> {
        self.0.iter()
    }

    /// `Ok` if nothing is wrong.
    ///
    /// # Errors
    /// Itself, if something is.
    pub fn into_result(self) -> Result<(), Self> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl std::fmt::Display for Violations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, violation) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", violation.field, violation.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Violations {}
