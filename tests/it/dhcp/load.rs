//! perfdhcp.
