//! TLS sessions that servers have given us, for resumption.
//!
//! A ticket of TLS 1.3 opens one connection and is never used again (RFC 8446 appendix C.4), so a context that dials many
//! connections side by side needs many. rustls's own store keeps 8 for each server, which are used up at once.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::Arc,
};

use parking_lot::Mutex;
use rustls::{
    NamedGroup,
    client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue},
};
use rustls_pki_types::ServerName;

use crate::limits::{TLS_SESSIONS, TLS_TICKETS, TLS_TICKETS_IN_ALL};

/// The sessions of one context, which belong to its identity and its trust and are never shared with another.
#[derive(Default)]
pub(super) struct Sessions {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    servers: HashMap<ServerName<'static>, Server>,
    /// The servers, the one that was met first at the front.
    order: VecDeque<ServerName<'static>>,
    tickets: usize,
}

#[derive(Default)]
struct Server {
    /// What the server chose, and is guessed to choose again.
    group: Option<NamedGroup>,
    session: Option<Tls12ClientSessionValue>,
    /// The newest at the back.
    tickets: VecDeque<Tls13ClientSessionValue>,
}

impl Sessions {
    /// A new store, as a configuration of rustls wants it.
    pub(super) fn resumption() -> Resumption {
        Resumption::store(Arc::new(Self::default()))
    }
}

impl fmt::Debug for Sessions {
    /// Sessions hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("servers", &self.kept.lock().servers.len()).finish()
    }
}

impl Kept {
    /// What is known of a server; room is made for a new one.
    fn server(&mut self, name: ServerName<'static>) -> &mut Server {
        if !self.servers.contains_key(&name) {
            while self.servers.len() >= TLS_SESSIONS {
                self.forget_first();
            }
            self.order.push_back(name.clone());
        }
        self.servers.entry(name).or_default()
    }

    fn forget_first(&mut self) {
        if let Some(server) = self.order.pop_front().and_then(|first| self.servers.remove(&first)) {
            self.tickets -= server.tickets.len();
        }
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.kept.lock().server(name).group = Some(group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.kept.lock().servers.get(name)?.group
    }

    fn set_tls12_session(&self, name: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.kept.lock().server(name).session = Some(session);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.kept.lock().servers.get(name)?.session.clone()
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        if let Some(server) = self.kept.lock().servers.get_mut(name) {
            server.session = None;
        }
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut kept = self.kept.lock();
        let tickets = &mut kept.server(name).tickets;
        tickets.push_back(ticket);
        if tickets.len() > TLS_TICKETS {
            tickets.pop_front();
        } else {
            kept.tickets += 1;
        }
        while kept.tickets > TLS_TICKETS_IN_ALL {
            kept.forget_first();
        }
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut kept = self.kept.lock();
        let ticket = kept.servers.get_mut(name)?.tickets.pop_back()?;
        kept.tickets -= 1;
        Some(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> ServerName<'static> {
        ServerName::try_from(format!("s{number}.example")).unwrap()
    }

    #[test]
    fn the_servers_met_first_are_forgotten_first() {
        let sessions = Sessions::default();
        for number in 0..=TLS_SESSIONS {
            sessions.set_kx_hint(name(number), NamedGroup::X25519);
        }
        assert_eq!(sessions.kx_hint(&name(0)), None);
        assert_eq!(sessions.kx_hint(&name(1)), Some(NamedGroup::X25519));
        assert_eq!(sessions.kx_hint(&name(TLS_SESSIONS)), Some(NamedGroup::X25519));
        let kept = sessions.kept.lock();
        assert_eq!((kept.servers.len(), kept.order.len()), (TLS_SESSIONS, TLS_SESSIONS));
    }
}
