//! The iSCSI target against real initiators and hostile ones: a door of the test's own over
//! the store in memory, on loopback.

mod clients;
mod conformance;
mod faults;
mod hostile;
mod house;
mod model;
mod raw;
