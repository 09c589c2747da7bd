//! Puts services into the places of a table where connections look for them.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    super::{
        clusters::{HolderOf, Made, Workshop},
        guard::short_forms,
        registry::Entry,
        routing::VirtualHost,
        table::{Cluster, Discovery, Outbound, OutboundPolicy, PortTable, Protocol},
        virtual_services::Placed,
    },
    Reach, Scope, Selected,
};

/// A table that is being made.
pub struct Builder<'a> {
    table: Outbound,
    namespace: &'a str,
    /// Other names of services, entered once all full names are.
    aliases: Vec<(String, u16, Arc<VirtualHost>)>,
    /// TCP services without addresses, by port: declared ones, then sniffed ones under a TLS rule.
    any: Vec<(u16, Arc<Cluster>)>,
    /// The shared table, where this one is a layer over it: a place that another service has there stays its own.
    base: Option<&'a Outbound>,
    /// What a full table has in it, for VirtualServices to go by.
    placed: Vec<Placed>,
}

impl<'a> Builder<'a> {
    pub fn new(policy: OutboundPolicy, namespace: &'a str, base: Option<&'a Outbound>) -> Self {
        let table = Outbound { policy, ..Outbound::default() };
        Self { table, namespace, aliases: Vec::new(), any: Vec::new(), base, placed: Vec::new() }
    }

    pub fn add(
        &mut self,
        workshop: &mut Workshop<'_>,
        scope: Scope<'_>,
        selected: &Selected,
        holder: HolderOf<'_>,
        mut free: impl FnMut(u16) -> bool,
    ) {
        let entry = &scope.registry.entries[selected.entry];
        let rule = selected.rule.as_ref();
        let (placed, ports) = match &selected.reach {
            Reach::All => (true, None),
            Reach::Ports { placed, ports } => (*placed, Some(ports)),
        };
        for index in (0..entry.body.ports.len()).filter(|index| ports.is_none_or(|ports| ports.contains(index))) {
            let number = entry.body.ports[index].number;
            if !free(number) {
                continue;
            }
            let made = workshop.made((selected.entry, entry), index, rule, None, holder);
            if placed {
                self.place(entry, index, &made);
            }
            if self.base.is_none() {
                self.table.services.get_or_default(&entry.host).push(number);
            }
            self.table.clusters.insert(made.cluster.name.clone(), made.cluster.clone());
            if self.base.is_none() && placed {
                self.placed.push(Placed { entry: selected.entry, port: index, made });
            }
            for subset in 0..rule.map_or(0, |rule| rule.rule.subsets().count()) {
                let cluster = workshop.made((selected.entry, entry), index, rule, Some(subset), holder).cluster;
                self.table.clusters.insert(cluster.name.clone(), cluster);
            }
        }
    }

    fn place(&mut self, entry: &Entry, index: usize, Made { cluster, host }: &Made) {
        let port = &entry.body.ports[index];
        let beneath = self.base.map(|base| base.ports.get(&port.number));
        let free = |there: fn(&PortTable, IpAddr) -> Option<&Arc<Cluster>>, address: &IpNet| {
            beneath.is_none_or(|table| {
                table.and_then(|table| there(table, address.addr())).is_some_and(|c| same(c, cluster))
            })
        };
        let table = self.table.ports.entry(port.number).or_default();
        let addresses = &entry.body.addresses;
        if matches!(port.protocol, Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Auto) {
            table.http.insert_new(&entry.host, host.clone());
            let names = entry.address_names();
            let short = if entry.kubernetes { short_forms(&entry.host, self.namespace) } else { Vec::new() };
            self.aliases.extend(names.chain(short).map(|name| (name, port.number, host.clone())));
        }
        if matches!(port.protocol, Protocol::Https | Protocol::Tls | Protocol::Auto) {
            table.tls.insert_new(&entry.host, cluster.clone());
        }
        if matches!(port.protocol, Protocol::Https | Protocol::Tls) {
            for address in addresses.iter().filter(|net| free(|table, ip| table.tls_addresses.get(ip), net)) {
                table.tls_addresses.insert_new(*address, cluster.clone());
            }
        }
        if matches!(port.protocol, Protocol::Tcp | Protocol::Auto) {
            for address in entry.raw_addresses(port).into_iter().filter(|net| free(|table, ip| table.tcp.get(ip), net))
            {
                table.tcp.insert_new(address, cluster.clone());
            }
            // Without addresses a raw connection could be for anybody: as in Istio it goes to the first such service.
            let there = beneath.flatten().and_then(|table| table.tcp_any.as_ref());
            let wanted = match there {
                Some(there) => same(there, cluster),
                None => port.protocol == Protocol::Tcp || cluster.tls.encrypts(),
            };
            if wanted && addresses.is_empty() && !entry.kubernetes {
                self.any.push((port.number, cluster.clone()));
            }
        }
    }

    pub fn finish(mut self, workshop: &mut Workshop<'_>) -> (Outbound, Vec<Placed>) {
        for (name, port, host) in self.aliases {
            if let Some(base) = self.base {
                let there = base.ports.get(&port).and_then(|table| table.http.pattern(&name));
                let leads_to =
                    |host: &VirtualHost, to: &VirtualHost| match (host.default_cluster(), to.default_cluster()) {
                        (Some(a), Some(b)) => same(a, b),
                        _ => false,
                    };
                if there.is_none_or(|there| !leads_to(there, &host)) {
                    continue;
                }
            }
            self.table.ports.entry(port).or_default().http.insert_new(&name, host);
        }
        self.any.sort_by_key(|(_, cluster)| cluster.protocol != Protocol::Tcp);
        for (port, cluster) in self.any {
            let slot = &mut self.table.ports.entry(port).or_default().tcp_any;
            match slot {
                None => *slot = Some(cluster),
                Some(first) => {
                    let object =
                        workshop.objects.service_entries.get(&cluster.service.namespace, &cluster.service.name);
                    let known_by_address = matches!(cluster.discovery, Discovery::Static(_));
                    if let Some(object) = object.filter(|_| cluster.protocol == Protocol::Tcp && !known_by_address) {
                        let message = format!(
                            "TCP connections bear no name: {} takes those on port {port} already; give addresses to tell the services apart",
                            first.service
                        );
                        workshop.findings.warn(object, "spec.addresses", message);
                    }
                }
            }
        }
        (self.table, self.placed)
    }
}

/// The same port of the same service, under whatever rule.
fn same(a: &Cluster, b: &Cluster) -> bool {
    a.service == b.service && a.host == b.host && a.port == b.port
}
