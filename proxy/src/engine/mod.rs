//! The data path: accept, sniff, route, connect, copy.

pub mod ports;
