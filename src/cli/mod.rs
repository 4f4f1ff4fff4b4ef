//! The command line, one file per noun; talks to the admin API.
