//! Requests that came on a connection which was not made for them. A client may use one connection for every host that its
//! certificate names (RFC 9113 section 9.1.1), and names one host in its hello and another in a request as it likes; what one
//! server has asked of it says nothing about another.

use std::sync::Arc;

use crate::{
    mesh::{DownstreamTls, GatewayTable, ListenerId, TlsServer, authority_host},
    tls::ServerContext,
};

/// The server that took TLS off, as it was then.
#[derive(Debug)]
pub struct Terminated {
    pub server: Arc<TlsServer>,
    pub context: Arc<ServerContext>,
}

impl Terminated {
    /// A request for `authority` must not be answered here; `sni` is what the client's hello asked for.
    pub fn misdirects(&self, now: &GatewayTable, at: ListenerId, sni: Option<&str>, authority: &str) -> bool {
        let changed = now.server(at, Some(&self.server.name)).is_some_and(|server| {
            // What is refused by now has a reason to be told.
            !matches!(server.tls, DownstreamTls::Refuse(_)) && !self.server.asks_the_same(server)
        });
        changed || self.belongs_elsewhere(now, at, sni, authority_host(authority))
    }

    fn belongs_elsewhere(&self, now: &GatewayTable, at: ListenerId, sni: Option<&str>, host: &str) -> bool {
        // Mesh mTLS is that of the caller's proxy: its server name is the gateway's, not the host's.
        if self.context.is_mesh() || host.is_empty() {
            return false;
        }
        let other = now.named(at, host).filter(|server| server.name != self.server.name);
        let Some(sni) = sni else {
            // Who names nobody is served by the server of every name, but not what another asks more for.
            return other.is_some_and(|other| !self.server.asks_the_same(other));
        };
        let other = other.is_some();
        // Whether the name that it asked for itself is in the certificate, the client has judged.
        let elsewhere = other || !(same(sni, host) || self.context.covers(host));
        if elsewhere {
            log::debug!("a request for {host} on a connection for {sni}: answered 421");
        }
        elsewhere
    }
}

fn same(sni: &str, host: &str) -> bool {
    sni.eq_ignore_ascii_case(host.strip_suffix('.').unwrap_or(host))
}
