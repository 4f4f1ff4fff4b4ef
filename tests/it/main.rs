//! Ring 2: the whole product or large parts of it, against the real PostgreSQL, real
//! clients and real sockets.

mod config;
mod dhcp;
mod http;
mod storage;
mod tftp;
