//! The pure compiler: objects in, one immutable table out. No I/O and no clock, so that `egret check` and
//! `egret explain` use it as it is and a fuzzer can.

mod compile;
mod host;
mod lookup;
pub mod table;

pub use compile::compile;
pub use host::{authority_host, canonical, covers};
pub use table::*;
