//! NBD's decisions, without any effect: [`negotiation`] (which option is answered how, and
//! when a disk is to be opened) and [`request`] (what a request may ask of a disk).

pub mod negotiation;
pub mod request;

pub use negotiation::{Contexts, Ending, Export, Negotiation, Offer, Opening, Refused, Turn, Way};
pub use request::{Act, Disk, Payload, Unlawful, judge};
