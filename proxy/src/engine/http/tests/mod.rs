//! Real loopback TCP: a client, the engine, an upstream. Clients and upstreams are written by hand where the bytes
//! matter; each test's comment tells what went wrong for somebody once.

mod framing;
mod guard;
mod h2;
mod hops;
mod lab;
mod mirrors;
mod policies;
mod retries;
mod routes;
mod streaming;
mod upgrades;
