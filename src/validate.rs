//! Field rules: every violation at once.
