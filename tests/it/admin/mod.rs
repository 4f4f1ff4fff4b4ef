//! The admin API on a real catalog and a real socket, and the real `dls` binary against it.
//!
//! `world` starts a server for each test; `access` (who may what), `nouns` (every verb),
//! `hostile` (what others send), `upload` (all or nothing), `live` (streams, health), `cli`.

mod access;
mod cli;
mod hostile;
mod live;
mod nouns;
mod upload;
mod world;
