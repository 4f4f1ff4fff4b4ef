//! What iSCSI asks of a target, decided without sockets: [`login`] is the login phase with
//! [`chap`] and the operational [`keys`], [`window`] is the order of commands.

pub mod chap;
pub mod keys;
pub mod login;
pub mod window;

pub use keys::Params;
pub use login::{Door, Fresh, Login, Ready, Refusal, Reply, Secrets, SessionKind, Step};
