//! DLS: a boot server for diskless machines. The map of the crate.
//!
//! *Pure*: [`model`], [`validate`], [`image_check`], [`truth`], [`dhcp`]`::{wire, decide, pool}`, [`tftp`]`::{wire, machine}`,
//! [`boot`]`::{path, plan, script, session, token}`, `replicate::{wire, machine}`. *Resources*: [`catalog`] (PostgreSQL),
//! [`storage`] (files), [`journal`] (what must not be lost while PostgreSQL is away). *Services*: [`boot`]`::{files, tracker}`, [`cache`]; upon them [`replicate`]. *Edges*:
//! [`dhcp`]`::server`, [`tftp`]`::server`, [`http`], [`admin`]. *Clients' side*, to try them: [`storm`]. *Root*: [`app`], [`cli`].
//! From the side: [`steps`] (where tests kill the server), [`attention`] (before a thread sleeps), [`heap`].
//! Nothing points up, and edges never point at each other: `tests/architecture.rs` holds it so.

pub mod admin;
pub mod app;
pub mod attention;
pub mod boot;
pub mod cache;
pub mod catalog;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crowd;
pub mod dhcp;
pub mod export;
pub mod heap;
pub mod http;
pub mod image_check;
pub mod journal;
pub mod model;
pub mod privileges;
pub mod replicate;
pub mod steps;
pub mod storage;
pub mod storm;
pub mod telemetry;
pub mod tftp;
pub mod truth;
pub mod validate;
