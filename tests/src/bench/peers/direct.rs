//! The floors: what the same client gets from the same server with nothing in between.

use std::time::Duration;

use super::Running;

/// Without TLS: nobody can be faster.
pub fn plain() -> Running<'static> {
    Running { _redirect: None, process: None, tls: false, started: Duration::ZERO }
}

/// With the client's own TLS: what an application would pay that did it by itself.
pub fn tls() -> Running<'static> {
    Running { _redirect: None, process: None, tls: true, started: Duration::ZERO }
}
