//! `dls serve`: open, bind, drop privileges, spawn, drain, stop.
//!
//! Order matters and stands in [`run`]: privileges are given up before the first thread and
//! before anything from outside is read; ports are bound before the database is opened, so
//! that a taken port is told at once; the parts are stopped edges first, then the tracker
//! (so that the last events are written), then the database.

mod psql;
mod state;

pub use psql::psql;
