//! `dls serve`: open, bind, drop privileges, spawn, drain, stop.
