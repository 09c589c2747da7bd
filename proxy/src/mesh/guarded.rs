//! Lookups of what must not get plain text, and what those who are refused for it are told.

use std::net::{IpAddr, SocketAddr};

use super::table::{AddressMap, Decision, Guard, GuardedAddress, Guards, Outbound};

impl Outbound {
    /// Why plain text for `host` on `port` is refused, where a rule says so. The client's own namespace decides where
    /// any of its rules matches; of the others, one that guards is enough.
    #[must_use]
    pub fn guard_host(&self, host: &str, port: u16) -> Option<&Guard> {
        let own = [&self.guards.selected, &*self.guards.own];
        let own = own.into_iter().filter_map(|rules| rules.matches(host).next());
        if let Some((_, guard)) = own.reduce(|upper, lower| if lower.0 > upper.0 { lower } else { upper }) {
            return guard.covers(port).then_some(guard);
        }
        let others = self.guards.others.iter().map(|of| &of.hosts).chain(std::iter::once(&*self.guards.names));
        others.filter_map(|rules| rules.get(host)).find(|guard| guard.covers(port))
    }

    /// True where some guard that goes by name covers the port.
    pub fn guards_port(&self, port: u16) -> bool {
        let guards = &self.guards;
        let replaced = |pattern: &str| guards.selected.pattern(pattern).is_some();
        let own = guards.own.iter().filter(|(pattern, _)| guards.selected.is_empty() || !replaced(pattern));
        let own = guards.selected.values().chain(own.map(|(_, guard)| guard));
        let others = guards.others.iter().flat_map(|of| of.hosts.values()).chain(guards.names.values());
        own.chain(others).any(|guard| guard.covers(port))
    }

    pub(super) fn refused_host(&self, host: &str, port: u16) -> Option<Decision> {
        self.guard_host(host, port).map(|guard| refuse(guard, self.unimported(host, port)))
    }

    /// The same for an address, by the virtual addresses of guarded services.
    pub(super) fn refused_address(&self, address: IpAddr, port: u16) -> Option<Decision> {
        let guarded = self.guarded(address, |guards| &guards.addresses);
        let (_, found) = guarded.into_iter().find(|(_, found)| found.guard.covers(port))?;
        Some(refuse(&found.guard, self.unimported_service(found.service, port)))
    }

    /// The same for raw bytes that a service which a Sidecar hides would have encrypted; not where the service that takes
    /// them has a prefix as long as that one's (`taken`).
    pub(super) fn refused_raw(&self, dst: SocketAddr, taken: Option<u8>) -> Option<Decision> {
        let guarded = self.guarded(dst.ip(), |guards| &guards.raw);
        let mut longer = guarded.into_iter().filter(|(length, _)| taken.is_none_or(|taken| *length > taken));
        let (_, found) = longer.find(|(_, found)| found.guard.covers(dst.port()))?;
        Some(refuse(&found.guard, self.unimported_service(found.service, dst.port())))
    }

    /// Why nobody takes `host` on `port`, where it is for a Sidecar alone.
    #[must_use]
    pub fn unimported(&self, host: &str, port: u16) -> Option<String> {
        self.unimported.as_ref()?.host(host, port, |name| self.cluster(name))
    }

    fn unimported_service(&self, at: usize, port: u16) -> Option<String> {
        self.unimported.as_ref()?.service(at, port, |name| self.cluster(name))
    }

    /// What a layer says of a service goes before what lies beneath says of it.
    fn guarded(
        &self,
        address: IpAddr,
        map: fn(&Guards) -> &AddressMap<Vec<GuardedAddress>>,
    ) -> Vec<(u8, &GuardedAddress)> {
        let own = matches(map(&self.guards), address);
        let beneath = self.base.iter().flat_map(|base| matches(map(&base.guards), address));
        let beneath: Vec<_> =
            beneath.filter(|(_, found)| own.iter().all(|(_, o)| o.service != found.service)).collect();
        own.into_iter().chain(beneath).collect()
    }
}

fn matches(map: &AddressMap<Vec<GuardedAddress>>, address: IpAddr) -> Vec<(u8, &GuardedAddress)> {
    map.matches(address).flat_map(|(length, all)| all.iter().map(move |found| (length, found))).collect()
}

fn refuse(guard: &Guard, hidden: Option<String>) -> Decision {
    Decision::Refuse(match hidden {
        Some(hidden) => format!("{}; {hidden}", guard.reason).into(),
        None => guard.reason.to_string().into(),
    })
}

impl Guard {
    #[must_use]
    pub fn covers(&self, port: u16) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.contains(&port)) && !self.except.contains(&port)
    }
}
