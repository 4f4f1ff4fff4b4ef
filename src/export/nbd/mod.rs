//! NBD: the server.
