//! HTTP/1.1 of our own, for ordinary messages; hyper has the rest (upgrades, `100-continue`, HTTP/1.0, h2).
//!
//! hyper runs each connection in a task of its own and hands messages over in channels. Here whoever serves a request
//! reads and writes the connection itself: no task is woken on the way.

pub mod client;
mod head;
mod scratch;
pub mod server;
