//! The pure compiler: objects in, one immutable table out. No I/O and no clock, so that `egret check` and
//! `egret explain` use it as it is and a fuzzer can.

pub mod table;

pub use table::*;
