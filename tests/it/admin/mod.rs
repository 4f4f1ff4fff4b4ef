//! The admin API on a real catalog and a real socket, and the real `dls` binary against it.
//!
//! `world` starts a server for each test, `process` one as a process of its own; `deeds` (what it does in several
//! steps); `access` (who may what), `nouns` (every verb),
//! `hostile` (what others send), `upload` (all or nothing), `disks`, `killed` (the server, in the
//! middle of an import), `steps` (at every step of everything), `truth` (catalog and store, compared), `live`
//! (streams, health), `reset` (a client's disk: clean, kept or thrown away), `versions` (of an image:
//! released, returned), `check` (would an image boot?), `clones` (quotas, differences, rebasing),
//! `on_server` (files that lie there), `cli`, `cli_disks`.

mod access;
mod check;
mod cli;
mod cli_disks;
mod clones;
mod deeds;
mod disks;
mod hostile;
mod killed;
mod live;
mod maintenance;
mod nouns;
mod on_server;
pub(crate) mod process;
mod reset;
mod steps;
mod truth;
mod upload;
mod versions;
mod world;
