//! The table of one kind of client: every service it sees, in the places where connections look for it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    clusters::{HolderOf, Made, MergedRule, Workshop},
    guard::{self, guards, short_forms},
    imports::Narrowed,
    registry::{Entry, Registry},
    routing::VirtualHost,
    rules::Client,
    table::{AddressMap, Cluster, Guard, Outbound, OutboundPolicy, PortTable, Protocol},
    virtual_services::{Caller, Heard, MESH, Placed, Plan, View, VirtualServices},
};
use crate::api::{Object, ObjectId, sidecar::Sidecar};
use ipnet::IpNet;

/// Mesh-wide facts that every view needs.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    pub registry: &'a Registry,
    pub services: &'a VirtualServices,
    pub root: &'a str,
    pub policy: OutboundPolicy,
}

/// What a client sees: each service with the rule that applies, in the order in which one of equal names wins.
#[derive(Debug, Default)]
pub struct Selection {
    pub entries: Vec<Selected>,
    pub heard: Heard,
}

#[derive(Clone, Debug)]
pub struct Selected {
    /// Index in the registry.
    pub entry: usize,
    pub rule: Option<MergedRule>,
    /// Another workload of the same namespace may have another rule or other credentials.
    pub varies: bool,
    pub reach: Reach,
}

/// How much of a service a client sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reach {
    #[default]
    All,
    /// A Sidecar lets in these ports (by index): to be called by name, or only as destinations of routes. Those it lets in
    /// neither way have none.
    Ports { placed: bool, ports: Vec<usize> },
}

/// What two selections must have in common to share a table.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Signature {
    policy: OutboundPolicy,
    entries: Vec<(usize, Option<usize>)>,
    heard: Heard,
    /// The Sidecar that narrows the view, and how much of each entry it leaves.
    sidecar: Option<(ObjectId, Vec<Reach>)>,
    /// Set where the table depends on the client's namespace in other ways.
    namespace: Option<String>,
}

impl Selection {
    pub fn new(workshop: &mut Workshop<'_>, scope: Scope<'_>, client: Client<'_>) -> Self {
        let all = scope.registry.entries.iter().enumerate();
        let visible = all.filter(|(_, entry)| entry.body.visibility.holds(client.namespace));
        let (own, others): (Vec<_>, Vec<_>) = visible.partition(|(_, entry)| entry.namespace == client.namespace);
        let chain = own.into_iter().chain(others);
        Self {
            entries: chain.map(|found| select(workshop, scope, client, found)).collect(),
            heard: Heard::everything(scope.services.bound(MESH, client.namespace)),
        }
    }

    /// Only what may differ from the selection of the client's namespace at large.
    pub fn varying(&self, workshop: &mut Workshop<'_>, scope: Scope<'_>, client: Client<'_>) -> Self {
        let varying = self.entries.iter().filter(|selected| selected.varies);
        let entries = varying.map(|selected| {
            let found = (selected.entry, &scope.registry.entries[selected.entry]);
            Selected { reach: selected.reach.clone(), ..select(workshop, scope, client, found) }
        });
        Self { entries: entries.collect(), heard: Heard::default() }
    }

    pub fn signature(
        &self,
        workshop: &Workshop<'_>,
        scope: Scope<'_>,
        client: Client<'_>,
        sidecar: Option<&ObjectId>,
    ) -> Signature {
        let own_services = self.entries.iter().any(|selected| {
            let entry = &scope.registry.entries[selected.entry];
            entry.kubernetes && entry.namespace == client.namespace
        });
        let personal = self.entries.iter().any(|selected| selected.rule.as_ref().is_some_and(|rule| rule.personal));
        // Rules guard by namespace, whether or not a service is left that they apply to.
        let asked = self.heard.all.iter().map(|at| &scope.services.all[*at]).any(|service| {
            service.asks_namespace || (service.is_gateway_api() && service.object.meta.namespace == client.namespace)
        });
        let bound = own_services || personal || asked || workshop.rules.treat_specially(client.namespace);
        Signature {
            policy: scope.policy,
            entries: self.entries.iter().map(|s| (s.entry, s.rule.as_ref().map(|rule| rule.id))).collect(),
            heard: self.heard.clone(),
            sidecar: sidecar.map(|id| (id.clone(), self.entries.iter().map(|s| s.reach.clone()).collect())),
            namespace: bound.then(|| client.namespace.to_owned()),
        }
    }

    /// The full table for a client with these labels, and what VirtualServices had to do with it. `narrowed`: this is what
    /// a Sidecar leaves.
    pub fn table(
        &self,
        workshop: &mut Workshop<'_>,
        scope: Scope<'_>,
        (client, labels): (Client<'_>, &BTreeMap<String, String>),
        holder: HolderOf<'_>,
        narrowed: Option<&Narrowed>,
    ) -> (Outbound, Plan) {
        let mut serving: HashMap<&str, &str> = HashMap::new();
        let mut taken = HashSet::new();
        let mut builder = Builder::new(scope.policy, client.namespace, None);
        for selected in &self.entries {
            let entry = &scope.registry.entries[selected.entry];
            if !selected.is_hidden() {
                serving.entry(&entry.host).or_insert(&entry.namespace);
            }
            builder.add(workshop, scope, selected, holder, |port| taken.insert((&entry.host, port)));
        }
        let (mut table, placed) = builder.finish(workshop);
        let everything = narrowed.map(|narrowed| &*narrowed.everything);
        let others = guard::others(workshop, client, scope.root, |host, namespace| {
            let beyond = everything.and_then(|everything| everything.home(scope, host));
            let mut homes = serving.get(host).copied().into_iter().chain(beyond).peekable();
            homes.peek().is_none() || homes.any(|home| home == namespace)
        });
        table.guards.others = workshop.shared_guards(others);
        match everything {
            None => {
                table.guards.own = Arc::new(guard::own(workshop, client));
                table.guards.addresses = Arc::new(guard::addresses(scope.registry, &self.entries));
            }
            Some(everything) => {
                table.guards.own = everything.own_guards.clone();
                table.guards.names = everything.names.clone();
                table.guards.addresses = everything.addresses.clone();
                table.guards.raw = everything.raw.clone();
            }
        }
        table.unimported = narrowed.map(|narrowed| narrowed.unimported.clone());
        let said = (&mut workshop.spoken, &mut *workshop.findings);
        let plan = Plan::new((scope.view(client, labels), &self.heard), &placed, &mut table, said);
        (table, plan)
    }

    /// A table of what differs for a workload with these labels, over that of its namespace. None where nothing does.
    pub fn layer(
        &self,
        workshop: &mut Workshop<'_>,
        scope: Scope<'_>,
        (client, labels): (Client<'_>, &BTreeMap<String, String>),
        holder: HolderOf<'_>,
        (base, plan): (&Arc<Outbound>, &Plan),
    ) -> Option<Outbound> {
        let mut builder = Builder::new(scope.policy, client.namespace, Some(base));
        let (mut addresses, mut raw) = (AddressMap::default(), AddressMap::default());
        for selected in &self.entries {
            let entry = &scope.registry.entries[selected.entry];
            // Where another service took the name in the shared table, it takes it here.
            builder.add(workshop, scope, selected, holder, |port| {
                let there = base.clusters.get(&format!("outbound|{port}||{}", entry.host));
                there.is_some_and(|cluster| cluster.service == entry.object)
            });
            // A layer says of every service of its own what holds, be it nothing: else what lies beneath would count.
            let rule = selected.rule.as_ref();
            let guard = rule.map(|rule| rule.guard.clone()).filter(guards).unwrap_or_else(Guard::nothing);
            guard::guard_addresses(&mut addresses, (selected.entry, entry), &guard);
            if base.unimported.is_some() {
                guard::guard_raw(&mut raw, (selected.entry, entry), rule, true);
            }
        }
        let (mut table, _) = builder.finish(workshop);
        table.guards.addresses = Arc::new(addresses);
        table.guards.raw = Arc::new(raw);
        table.unimported = base.unimported.clone();
        table.guards.own = base.guards.own.clone();
        table.guards.selected = guard::selected(workshop, client, &base.guards.own);
        table.guards.others = base.guards.others.clone();
        table.guards.names = base.guards.names.clone();
        // Most layers replace few services or none: the shared table is not looked through for those.
        let whole = table.clusters.values().filter(|cluster| cluster.subset.is_empty());
        let whole: HashSet<(u16, &str)> = whole.map(|cluster| (cluster.port, cluster.host.as_str())).collect();
        if !whole.is_empty() {
            let subsets = base.clusters.values().filter(|cluster| !cluster.subset.is_empty());
            let hidden = subsets.filter(|cluster| {
                whole.contains(&(cluster.port, cluster.host.as_str())) && !table.clusters.contains_key(&cluster.name)
            });
            table.hidden = hidden.map(|cluster| cluster.name.clone()).collect();
        }
        table.base = Some(base.clone());
        let said = (&mut workshop.spoken, &mut *workshop.findings);
        let routes = plan.layer(scope.view(client, labels), &scope.services.holding(labels), &mut table, said);
        let same = table
            .clusters
            .iter()
            .all(|(name, cluster)| base.clusters.get(name).is_some_and(|there| Arc::ptr_eq(there, cluster)));
        let hidden = self.entries.iter().any(Selected::is_hidden);
        if same && !routes && !hidden && table.guards.selected.is_empty() {
            return None;
        }
        Some(table)
    }
}

impl<'a> Scope<'a> {
    /// The same for a workload to which this Sidecar applies.
    pub fn under(self, sidecar: Option<&Arc<Object<Sidecar>>>) -> Self {
        let policy = match sidecar.and_then(|sidecar| sidecar.spec.registry_only) {
            Some(true) => OutboundPolicy::RegistryOnly,
            Some(false) => OutboundPolicy::AllowAny,
            None => self.policy,
        };
        Self { policy, ..self }
    }

    fn view(self, client: Client<'a>, labels: &'a BTreeMap<String, String>) -> View<'a> {
        let caller = Caller { namespace: client.namespace, labels, gateway: MESH };
        View { services: self.services, registry: self.registry, caller }
    }
}

fn select(workshop: &mut Workshop<'_>, scope: Scope<'_>, client: Client<'_>, (at, entry): (usize, &Entry)) -> Selected {
    let (chosen, varies) = workshop.rules.choose(client, &entry.host, &entry.namespace, scope.root);
    let rule = chosen.and_then(|chosen| workshop.merged(&chosen));
    let varies = varies || rule.as_ref().is_some_and(|rule| rule.personal);
    Selected { entry: at, rule, varies, reach: Reach::All }
}

impl Selected {
    /// What a Sidecar leaves of it.
    pub fn narrowed(&self, placed: bool, ports: Vec<usize>) -> Self {
        Self { reach: Reach::Ports { placed, ports }, ..self.clone() }
    }

    /// Not imported at all; only its guards count.
    fn is_hidden(&self) -> bool {
        matches!(&self.reach, Reach::Ports { ports, .. } if ports.is_empty())
    }
}

/// Puts services into the places where connections look for them.
struct Builder<'a> {
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
    fn new(policy: OutboundPolicy, namespace: &'a str, base: Option<&'a Outbound>) -> Self {
        let table = Outbound { policy, ..Outbound::default() };
        Self { table, namespace, aliases: Vec::new(), any: Vec::new(), base, placed: Vec::new() }
    }

    fn add(
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
                self.table.services.entry(entry.host.clone()).or_default().push(number);
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

    fn finish(mut self, workshop: &mut Workshop<'_>) -> (Outbound, Vec<Placed>) {
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
                    let object = workshop.objects.service_entries.get(&cluster.service_key());
                    let known_by_address = matches!(cluster.discovery, super::table::Discovery::Static(_));
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

impl Cluster {
    fn service_key(&self) -> (String, String) {
        (self.service.namespace.clone(), self.service.name.clone())
    }
}
