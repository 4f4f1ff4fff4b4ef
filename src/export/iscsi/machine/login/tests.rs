//! Tables of the login phase.
