//! VirtualServices of the mesh in the outbound table of a namespace, and in the layers over it for workloads whose labels
//! or rules differ.
//!
//! Per host and port the first VirtualService that has a route counts, without merging. One that has none there (all its
//! matches are for other ports, gateways or labels) leaves the service's default route in force, as in Istio
//! (`buildSidecarVirtualHostsForVirtualService` makes no virtual host of it).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    super::{
        clusters::Made,
        findings::Findings,
        guard::short_forms,
        host::covers,
        registry::{Entry, Registry},
        routing::{Action, ClusterRef, Route, TunnelMatch},
        table::{HostMap, Outbound, Protocol},
    },
    Caller, Heard, RouteContext, VirtualServices,
    bound::Bound,
    gateway::catch_alls_last,
    guards::guard,
    http_routes,
    spoken::{Said, Spoken},
    tunnels::{tcp_tunnels, tls_tunnels},
};

/// A host without a service on the port is served on this one only: a rule of Istio's that many documents count on.
const HTTP_PORT: u16 = 80;

/// A service port that has its place in a table.
#[derive(Debug)]
pub struct Placed {
    /// Index in the registry.
    pub entry: usize,
    /// Index in its ports.
    pub port: usize,
    pub made: Made,
}

/// What VirtualServices say in one namespace.
#[derive(Debug, Default)]
pub struct Plan {
    hosts: Vec<HostPlan>,
    ports: BTreeMap<u16, PortPlan>,
    made: Memo,
}

/// Virtual hosts of one service port, or of a host without service.
#[derive(Debug)]
struct HostPlan {
    port: u16,
    /// As `proxy-config` shows it.
    title: String,
    /// Patterns under which it is found.
    names: Vec<String>,
    /// The service's own cluster; None: no service.
    cluster: Option<String>,
    /// VirtualServices for it, in order.
    candidates: Vec<usize>,
}

/// Raw connections on one port.
#[derive(Debug, Default)]
struct PortPlan {
    /// VirtualServices for some TLS service of the port.
    tls: Vec<usize>,
    tcp: Vec<TcpPlan>,
}

/// Raw connections to one service.
#[derive(Debug)]
struct TcpPlan {
    /// Its addresses; none: what nobody else takes is its own, where the table of the client says so.
    addresses: Vec<IpNet>,
    cluster: String,
    candidates: Vec<usize>,
}

type Memo = HashMap<(usize, u16), Arc<Said>>;
/// What all tables have in common.
type Common<'a> = (&'a mut Spoken, &'a mut Findings);

/// For whom a table is made.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub services: &'a VirtualServices,
    pub registry: &'a Registry,
    pub caller: Caller<'a>,
}

impl Plan {
    /// Enters what VirtualServices say to a client without labels into the finished `table` of its namespace.
    pub fn new(
        (view, heard): (View<'_>, &Heard),
        placed: &[Placed],
        table: &mut Outbound,
        (spoken, findings): Common<'_>,
    ) -> Self {
        let mut plan = Self::default();
        if heard.all.is_empty() {
            return plan;
        }
        let bound = Bound::new(view, heard);
        for place in placed {
            let entry = &view.registry.entries[place.entry];
            plan.add(&bound, table, entry, place);
        }
        plan.add_hosts_without_service(&bound, placed);
        for port in plan.ports.values_mut() {
            port.tls.sort_by_key(|at| bound.ranks.get(at));
            port.tls.dedup();
        }
        let holding = &view.services.holding(view.caller.labels);
        let mut maker = Maker { view, holding, spoken, findings, memo: Memo::new(), beneath: None };
        for host in &plan.hosts {
            maker.enter(host, table);
        }
        for (number, port) in &plan.ports {
            maker.enter_tunnels(*number, port, table);
        }
        plan.made = maker.memo;
        plan
    }

    /// Enters into a layer over the table of the namespace what differs for this client. True where anything does.
    pub fn layer(
        &self,
        view: View<'_>,
        holding: &[usize],
        table: &mut Outbound,
        (spoken, findings): Common<'_>,
    ) -> bool {
        if self.made.is_empty() {
            return false;
        }
        let Some(base) = table.base.clone() else { return false };
        let other = |name: &String| match (table.clusters.get(name), base.clusters.get(name)) {
            (Some(own), Some(there)) => !Arc::ptr_eq(own, there),
            (own, _) => own.is_some() || table.hidden.contains(name),
        };
        let other_guards = !table.guards.selected.is_empty();
        let changed = self.made.iter().filter(|((at, _), said)| {
            let meant = view.services.all[*at].conditions.iter().any(|id| holding.binary_search(id).is_ok());
            meant || said.clusters.iter().any(other) || (other_guards && said.guarded)
        });
        let changed: HashSet<(usize, u16)> = changed.map(|(key, _)| *key).collect();
        let differs = |port: u16, candidates: &[usize]| candidates.iter().any(|at| changed.contains(&(*at, port)));
        let hosts: Vec<&HostPlan> = self
            .hosts
            .iter()
            .filter(|host| {
                let own = host.cluster.as_ref().is_some_and(|name| table.clusters.contains_key(name));
                own || differs(host.port, &host.candidates)
            })
            .collect();
        let ports = self.ports.iter().filter(|(number, port)| {
            let any = || base.tcp_any(**number).map(|any| &any.name) != table.tcp_any(**number).map(|any| &any.name);
            differs(**number, &port.tls) || port.tcp.iter().any(|tcp| differs(**number, &tcp.candidates)) || any()
        });
        let ports: Vec<_> = ports.collect();
        let beneath = Some((&self.made, &changed));
        let mut maker = Maker { view, holding, spoken, findings, memo: Memo::new(), beneath };
        hosts.iter().for_each(|host| maker.enter(host, table));
        ports.iter().for_each(|(number, port)| maker.enter_tunnels(**number, port, table));
        !hosts.is_empty() || !ports.is_empty()
    }

    fn add(&mut self, bound: &Bound<'_>, table: &Outbound, entry: &Entry, place: &Placed) {
        let port = &entry.body.ports[place.port];
        let candidates = bound.candidates(entry, port.number);
        if candidates.is_empty() {
            return;
        }
        if matches!(port.protocol, Protocol::Https | Protocol::Tls) {
            let tls = bound.all_candidates(entry, port.number, |service| !service.object.spec.tls.is_empty());
            self.ports.entry(port.number).or_default().tls.extend(tls);
        }
        let Some(there) = table.ports.get(&port.number) else { return };
        if matches!(port.protocol, Protocol::Tcp | Protocol::Auto) {
            let own = entry.raw_addresses(port);
            let tcp = bound.all_candidates(entry, port.number, |service| !service.object.spec.tcp.is_empty());
            if !tcp.is_empty() {
                let cluster = place.made.cluster.name.clone();
                let plan = TcpPlan { addresses: own, cluster, candidates: tcp };
                self.ports.entry(port.number).or_default().tcp.push(plan);
            }
        }
        if matches!(port.protocol, Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Auto) {
            let short =
                if entry.kubernetes { short_forms(&entry.host, bound.view.caller.namespace) } else { Vec::new() };
            let names = std::iter::once(entry.host.to_string()).chain(entry.address_names()).chain(short);
            let default = |name: &String| there.http.pattern(name).is_some_and(|h| Arc::ptr_eq(h, &place.made.host));
            self.hosts.push(HostPlan {
                port: port.number,
                title: place.made.host.name.clone(),
                names: names.filter(default).collect(),
                cluster: Some(place.made.cluster.name.clone()),
                candidates,
            });
        }
    }

    fn add_hosts_without_service(&mut self, bound: &Bound<'_>, placed: &[Placed]) {
        let all = &bound.view.services.all;
        let on_port = placed.iter().filter_map(|place| {
            let entry = &bound.view.registry.entries[place.entry];
            (entry.body.ports[place.port].number == HTTP_PORT).then_some(entry.host.as_str())
        });
        let on_port: HashSet<&str> = on_port.collect();
        let served = |host: &str| match host.contains('*') {
            true => on_port.iter().any(|name| covers(host, name)),
            false => on_port.contains(host),
        };
        let counting = bound.heard.all.iter().filter(|at| bound.heard.counts(**at, HTTP_PORT));
        let mut seen = HashSet::new();
        for service in counting.map(|at| &all[*at]).filter(|service| !service.is_gateway_api()) {
            for host in service.hosts.iter().filter(|host| !served(host)) {
                if !seen.insert(host.as_str()) {
                    continue;
                }
                let candidates = bound.by_host.pattern(host).cloned().unwrap_or_default().into_iter();
                self.hosts.push(HostPlan {
                    port: HTTP_PORT,
                    title: format!("{host}:{HTTP_PORT}"),
                    names: vec![host.clone()],
                    cluster: None,
                    candidates: candidates
                        .filter(|at| !all[*at].is_gateway_api() && bound.heard.counts(*at, HTTP_PORT))
                        .collect(),
                });
            }
        }
    }
}

struct Maker<'a, 'f> {
    view: View<'a>,
    /// The conditions that hold for the caller's labels, sorted.
    holding: &'a [usize],
    spoken: &'f mut Spoken,
    findings: &'f mut Findings,
    memo: Memo,
    /// Of a layer: what the shared table says, and what of it is other here.
    beneath: Option<(&'a Memo, &'a HashSet<(usize, u16)>)>,
}

impl Maker<'_, '_> {
    fn said(&mut self, at: usize, port: u16, table: &Outbound) -> Arc<Said> {
        let beneath = self.beneath.filter(|(_, changed)| !changed.contains(&(at, port)));
        if let Some(known) = beneath.and_then(|(memo, _)| memo.get(&(at, port))).or_else(|| self.memo.get(&(at, port)))
        {
            return known.clone();
        }
        let service = &self.view.services.all[at];
        let context = RouteContext { caller: self.view.caller, port, destinations: table };
        let holding = service.conditions.iter().copied().filter(|id| self.holding.binary_search(id).is_ok()).collect();
        let key = (at, port, holding);
        if let Some(known) = self.spoken.said(&key, service, &context) {
            self.memo.insert((at, port), known.clone());
            return known;
        }
        let mut said = Said {
            http: http_routes(service, &context, self.findings),
            tls: tls_tunnels(service, &context),
            tcp: tcp_tunnels(service, &context),
            ..Said::default()
        };
        for route in &mut said.http {
            said.guarded |= guard(route, table);
        }
        let tunnels = said.tls.iter().map(|(_, found)| found).chain(&said.tcp);
        let tunnels = tunnels.flat_map(|found| found.route.destinations.iter().map(|(to, _)| to));
        let all = said.http.iter().flat_map(|route| destinations(route)).chain(tunnels);
        said.clusters = all.map(|to| to.name().to_owned()).collect();
        let said = Arc::new(said);
        self.spoken.add(key, service, &context, &said);
        self.memo.insert((at, port), said.clone());
        said
    }

    /// The virtual host of the first VirtualService that says anything; routes of the Gateway API join.
    fn enter(&mut self, host: &HostPlan, table: &mut Outbound) {
        let mut routes: Vec<Arc<Route>> = Vec::new();
        let mut joining = false;
        for at in &host.candidates {
            let is_api = self.view.services.all[*at].is_gateway_api();
            let joins = joining && is_api;
            if !routes.is_empty() && !joins {
                continue;
            }
            routes.extend(self.said(*at, host.port, table).http.iter().cloned());
            joining = is_api;
        }
        if routes.is_empty() {
            return;
        }
        if joining {
            catch_alls_last(&mut routes);
        }
        let made = self.spoken.host(&host.title, routes);
        let map = &mut table.ports.entry(host.port).or_default().http;
        for name in &host.names {
            map.insert(name, made.clone());
        }
    }

    fn enter_tunnels(&mut self, number: u16, port: &PortPlan, table: &mut Outbound) {
        let mut tls: HostMap<Vec<TunnelMatch>> = HostMap::default();
        for at in &port.tls {
            for (sni, found) in &self.said(*at, number, table).tls {
                match tls.pattern_mut(sni) {
                    Some(known) => known.push(found.clone()),
                    None => drop(tls.insert(sni, vec![found.clone()])),
                }
            }
        }
        let mut tcp: Vec<TunnelMatch> = Vec::new();
        let any = table.tcp_any(number).map(|any| any.name.clone());
        let mine = |plan: &&TcpPlan| !plan.addresses.is_empty() || any.as_ref() == Some(&plan.cluster);
        for plan in port.tcp.iter().filter(mine) {
            for at in &plan.candidates {
                let said = self.said(*at, number, table);
                tcp.extend(said.tcp.iter().flat_map(|found| plan.narrowed(found)));
                // What takes every connection to the service leaves nothing to the next VirtualService.
                if said.tcp.last().is_some_and(|last| last.subnets.is_empty()) {
                    break;
                }
            }
        }
        // The longest prefix first, then those for any address.
        let length = |found: &TunnelMatch| found.subnets.iter().map(IpNet::prefix_len).max();
        tcp.sort_by_key(|found| std::cmp::Reverse(length(found)));
        let there = table.ports.entry(number).or_default();
        there.tls_routes = tls;
        there.tcp_routes = tcp;
        there.routes_are_all = true;
    }
}

impl TcpPlan {
    /// One for each subnet. Those of the route stand for the service's networks; of its single addresses they choose.
    fn narrowed(&self, found: &TunnelMatch) -> Vec<TunnelMatch> {
        let single =
            !self.addresses.is_empty() && self.addresses.iter().all(|net| net.prefix_len() == net.max_prefix_len());
        let subnets: Vec<IpNet> = match (found.subnets.is_empty(), single) {
            (true, _) => self.addresses.clone(),
            (false, true) => {
                let held = |own: &&IpNet| found.subnets.iter().any(|net| net.contains(*own));
                self.addresses.iter().filter(held).copied().collect()
            }
            (false, false) => found.subnets.clone(),
        };
        if subnets.is_empty() && found.subnets.is_empty() {
            return vec![found.clone()];
        }
        subnets.into_iter().map(|net| TunnelMatch { subnets: vec![net], route: found.route.clone() }).collect()
    }
}

fn destinations(route: &Route) -> impl Iterator<Item = &ClusterRef> {
    let forward = match &route.action {
        Action::Forward(forward) => Some(forward),
        _ => None,
    };
    forward.into_iter().flat_map(|forward| {
        let mirrors = forward.mirrors.iter().map(|mirror| &mirror.cluster);
        forward.destinations.iter().map(|to| &to.cluster).chain(mirrors)
    })
}
