//! The boot listener on loopback: the real files, tracker and PostgreSQL behind it, before it
//! curl and clients made of bytes.
//!
//! [`site`] puts the server together, [`wire`] is a client that hides nothing. The tests:
//! [`protocol`] (what firmware needs of HTTP), [`proof`] (who gets what), [`timeline`] (what
//! the catalog then says), [`hostile`] (slow, greedy and malformed clients), [`slow`] (slow ones
//! by the thousand).

mod hostile;
mod proof;
mod protocol;
mod site;
mod slow;
mod timeline;
mod wire;
