//! Real loopback TCP: a client, the engine, an upstream. Clients and upstreams are written by hand where the bytes
//! matter; each test's comment tells what went wrong for somebody once.

mod both_ways;
mod ends;
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

const HYPER_ONLY: bool = false;

/// The same tests once more, with hyper at both ends of HTTP/1.1: the two ways must not differ.
#[path = "."]
#[expect(clippy::duplicate_mod, reason = "the same tests on another way through the engine")]
mod on_hyper {
    mod ends;
    mod framing;
    mod h2;
    mod hops;
    mod lab;
    mod mirrors;
    mod policies;
    mod retries;
    mod routes;
    mod streaming;
    mod upgrades;

    const HYPER_ONLY: bool = true;
}
