//! The record of one boot, as a pure state machine: `now` is a parameter, effects are
//! returned, nothing is read or written here.
//!
//! [`evidence`]: what is seen of a machine. [`mod@arrival`]: the table that says when an attempt
//! starts, is joined, or starts again. [`machine`]: the life of one attempt and its session,
//! with the diagram; `steps`: what each kind of evidence does to it; `disk`: what its disk tells
//! of it; `silence`: deadlines and ends; `rows`: what is written. [`rules`]: how long each silence may last. [`causes`]: the sentences that
//! name a failed boot's stage and likely cause. [`recall`]: an attempt made again from its rows.

pub mod arrival;
pub mod causes;
mod disk;
pub mod evidence;
pub mod machine;
pub mod recall;
mod rows;
pub mod rules;
mod silence;
mod steps;

#[cfg(test)]
mod tests;

pub use arrival::{Arrival, Standing, are_others, arrival};
pub use evidence::{
    BootFile, CloneOrigin, Context, DiskLogin, DiskUse, Door, Evidence, Observation, Speaker,
};
pub use machine::{Boot, TurnedAway};
pub use rows::Effect;
pub use rules::{Rules, Timings};
