//! DLS: a boot server for diskless machines. The map of the crate.
//!
//! *Pure*: [`model`], [`validate`], [`dhcp`]`::{wire, decide, pool}`, [`tftp`]`::{wire, machine}`,
//! [`boot`]`::{path, plan, script, session, token}`. *Resources*: [`catalog`] (PostgreSQL),
//! [`storage`] (files). *Services*: [`boot`]`::{files, tracker}`, [`cache`]. *Edges*:
//! [`dhcp`]`::server`, [`tftp`]`::server`, [`http`], [`admin`]. *Root*: [`app`], [`cli`].
//! Nothing points up, and edges never point at each other: `tests/architecture.rs` holds it so.

pub mod admin;
pub mod app;
pub mod boot;
pub mod cache;
pub mod catalog;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crowd;
pub mod dhcp;
pub mod export;
pub mod http;
pub mod model;
pub mod privileges;
pub mod storage;
pub mod telemetry;
pub mod tftp;
pub mod validate;
