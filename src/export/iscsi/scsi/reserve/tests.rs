//! Tables of the persistent reservations.
