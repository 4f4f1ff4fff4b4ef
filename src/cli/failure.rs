//! Why a command fails, in a sentence, and the exit code it ends with.

use std::io::Write;
use std::process::ExitCode;

use crate::validate::Violations;

use super::output::printable;

/// The ways to fail, one exit code each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// 1: anything else.
    Failed(String),
    /// 2: arguments that make no sense together (clap ends with 2 as well).
    Usage(String),
    /// 3: what was named is not there.
    NotFound(String),
    /// 4: a rule refuses it.
    Refused(String, Violations),
    /// 5: the server can't be reached, or does not let us in.
    NoAccess(String),
    /// 0: whoever read our output has stopped reading (`dls .. | head`).
    OutputClosed,
}

impl Failure {
    /// From an error with its chain of causes.
    pub fn failed(error: &anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }

    /// Writes the sentence to standard error, violations one a line, and gives the code.
    #[must_use]
    pub fn tell(&self) -> ExitCode {
        let (code, sentence) = match self {
            Self::OutputClosed => return ExitCode::SUCCESS,
            Self::Failed(sentence) => (1, sentence),
            Self::Usage(sentence) => (2, sentence),
            Self::NotFound(sentence) => (3, sentence),
            Self::Refused(sentence, _) => (4, sentence),
            Self::NoAccess(sentence) => (5, sentence),
        };
        let mut text = String::new();
        for (i, line) in sentence.lines().enumerate() {
            let before = if i == 0 { "dls: " } else { "     " };
            text.push_str(&format!("{before}{}\n", printable(line)));
        }
        if let Self::Refused(_, violations) = self {
            for v in violations.iter().filter(|v| v.message != *sentence) {
                let (field, message) = (printable(&v.field), printable(&v.message));
                text.push_str(&format!("  {field}: {message}\n"));
            }
        }
        // Nobody to tell is no further failure.
        let _ = std::io::stderr().write_all(text.as_bytes());
        ExitCode::from(code)
    }
}
