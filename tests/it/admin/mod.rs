//! The admin API on a real catalog and a real socket, and the real `dls` binary against it.
//!
//! `world` starts a server for each test; `access` (who may what), `nouns` (every verb),
//! `hostile` (what others send), `upload` (all or nothing), `disks`, `killed` (the server, in the
//! middle of an import), `live` (streams, health), `reset` (a client's disk: clean, kept or
//! thrown away), `cli`, `cli_disks`.

mod access;
mod cli;
mod cli_disks;
mod disks;
mod hostile;
mod killed;
mod live;
mod nouns;
mod reset;
mod upload;
mod world;
