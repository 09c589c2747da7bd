//! What the data path asks of a table: which cluster a connection or request goes to, or why it goes nowhere.
//! The name that the client gave decides, not the address it dialled; where no service matches, a destination that a
//! TLS rule names is refused before the outbound policy is asked.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    host::authority_host,
    table::{Cluster, Decision, Discovery, FirstBytes, Guard, Outbound, OutboundPolicy, PortTable, UpstreamTls},
};

impl Outbound {
    /// What must be read of a connection to `dst` before it can be decided.
    #[must_use]
    pub fn first_bytes(&self, dst: SocketAddr) -> FirstBytes {
        let Some(table) = self.ports.get(&dst.port()) else { return FirstBytes::Sniff };
        let declared = match table.tcp_at(dst.ip()) {
            Some(cluster) => cluster.protocol == super::Protocol::Tcp,
            None => {
                let named = !table.http.is_empty() || !table.tls.is_empty() || table.sniff;
                table.tcp_any.is_some() && !named
            }
        };
        if declared { FirstBytes::None } else { FirstBytes::Sniff }
    }

    /// For a request with this authority (`host` or `host:port`; empty for HTTP/1.0 without Host) on a connection that
    /// arrived in plain text.
    #[must_use]
    pub fn http(&self, dst: SocketAddr, authority: &str) -> Decision {
        let host = authority_host(authority);
        let table = self.ports.get(&dst.port());
        if let Some(route) = table.and_then(|table| table.http.get(host)) {
            let cluster = &route.cluster;
            // A wildcard service is not what a rule for one of its hosts speaks of: that rule still forbids plain text.
            if cluster.host.starts_with('*')
                && cluster.tls == UpstreamTls::Plain
                && let Some(guard) = self.guard_host(host, dst.port())
            {
                return Decision::Refuse(guard.reason.clone());
            }
            return Decision::Cluster { route: route.name.clone(), cluster: cluster.clone() };
        }
        if let Some(guard) = self.guard_host(host, dst.port()) {
            return Decision::Refuse(guard.reason.clone());
        }
        if let Some(guard) = host.parse().ok().and_then(|ip| self.guard_address(ip, dst.port())) {
            return Decision::Refuse(guard.reason.clone());
        }
        match table.and_then(|table| table.tcp_any.as_ref()) {
            Some(cluster) => self.unnamed(dst, cluster),
            None => self.unmatched_plain(dst),
        }
    }

    /// For a connection that began with a ClientHello: encrypted already, so guards do not apply.
    #[must_use]
    pub fn tls(&self, dst: SocketAddr, sni: Option<&str>) -> Decision {
        let Some(table) = self.ports.get(&dst.port()) else { return self.by_policy() };
        let cluster = sni.and_then(|sni| table.tls.get(sni)).or_else(|| table.tcp_for(dst.ip()));
        match cluster {
            // A sniffed service with a rule wants plain text encrypted; what is encrypted already is left alone.
            Some(cluster) if cluster.protocol == super::Protocol::Auto && cluster.tls != UpstreamTls::Plain => {
                self.by_policy()
            }
            Some(cluster) => tunnel(cluster),
            None => self.by_policy(),
        }
    }

    /// For a connection that is neither HTTP nor TLS, or that is declared TCP.
    #[must_use]
    pub fn tcp(&self, dst: SocketAddr) -> Decision {
        match self.ports.get(&dst.port()).and_then(|table| table.tcp_for(dst.ip())) {
            Some(cluster) => self.unnamed(dst, cluster),
            None => self.unmatched_plain(dst),
        }
    }

    /// To a cluster chosen by address alone; one that leads back to the address dialled must not lead past a guard.
    fn unnamed(&self, dst: SocketAddr, cluster: &Arc<Cluster>) -> Decision {
        let leads_back = matches!(cluster.discovery, Discovery::OriginalDestination { .. });
        match self.guard_address(dst.ip(), dst.port()) {
            Some(guard) if leads_back && cluster.tls == UpstreamTls::Plain => Decision::Refuse(guard.reason.clone()),
            _ => tunnel(cluster),
        }
    }

    fn unmatched_plain(&self, dst: SocketAddr) -> Decision {
        match self.guard_address(dst.ip(), dst.port()) {
            Some(guard) => Decision::Refuse(guard.reason.clone()),
            None => self.by_policy(),
        }
    }

    fn by_policy(&self) -> Decision {
        match self.policy {
            OutboundPolicy::AllowAny => Decision::Passthrough,
            OutboundPolicy::RegistryOnly => Decision::Block,
        }
    }

    /// Why plain text for `host` on `port` is refused, where a rule says so. The client's own namespace decides where
    /// any of its rules matches; of the others, one that guards is enough.
    #[must_use]
    pub fn guard_host(&self, host: &str, port: u16) -> Option<&Guard> {
        self.guarded_hosts.iter().find_map(|tier| tier.get(host)).filter(|guard| guard.covers(port))
    }

    /// The same for an address, by the virtual addresses of guarded services.
    #[must_use]
    pub fn guard_address(&self, address: IpAddr, port: u16) -> Option<&Guard> {
        let address = address.to_canonical();
        self.guarded_addresses.iter().find(|(net, guard)| net.contains(&address) && guard.covers(port)).map(|(_, g)| g)
    }
}

fn tunnel(cluster: &Arc<Cluster>) -> Decision {
    Decision::Cluster { route: Arc::from(""), cluster: cluster.clone() }
}

impl PortTable {
    /// The TCP service whose addresses hold `address`, the longest prefix first.
    #[must_use]
    pub fn tcp_at(&self, address: IpAddr) -> Option<&Arc<Cluster>> {
        let address = address.to_canonical();
        self.tcp.iter().find(|(net, _)| net.contains(&address)).map(|(_, cluster)| cluster)
    }

    fn tcp_for(&self, address: IpAddr) -> Option<&Arc<Cluster>> {
        self.tcp_at(address).or(self.tcp_any.as_ref())
    }
}

impl Guard {
    #[must_use]
    pub fn covers(&self, port: u16) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }
}
