//! TLSRoutes to VirtualServices: `tls` routes where TLS is passed through and in the mesh, `tcp` routes where a listener
//! terminates it.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    super::{findings::Findings, table::ObjectStatus},
    attach::{Attaching, Outcome, Scope, attach},
    backends::Backends,
    gateways::Gateways,
    made,
    routes::status,
    status::{Fault, joined},
    written,
};

use crate::api::{
    Object, ObjectMeta, Objects, Written,
    gateway_api::{TlsRoute, TlsRule},
    virtual_service::{self, L4Match, TcpDestination, TcpRoute, TlsMatch, VirtualService},
};
use smol_str::format_smolstr;

type Route = Arc<Object<TlsRoute>>;
/// Where a route counts and what it says there; of equal ones the first counts.
type Merged = BTreeMap<(Scope, String), Vec<(Route, Place)>>;

/// What is said for one host at one place.
#[derive(Clone, Debug)]
struct Place {
    /// TLS is taken off before.
    terminated: bool,
    /// Of a service; None: every port.
    port: Option<u16>,
    /// Server names.
    names: Vec<String>,
    destinations: Vec<TcpDestination>,
    /// Fields below the route, and what they are made from.
    fields: Vec<(String, Written)>,
}

/// The VirtualServices, and the conditions of the TLSRoutes.
pub fn convert(
    objects: &Objects,
    gateways: &mut Gateways,
    findings: &mut Findings,
) -> (Vec<Arc<Object<VirtualService>>>, Vec<ObjectStatus>) {
    let backends = Backends::new(objects);
    let mut sorted: Vec<_> = objects.tls_routes.values().collect();
    sorted.sort_by_key(|route| (&route.meta.creation_timestamp, &route.meta.namespace, &route.meta.name));
    let mut merged = Merged::new();
    let mut statuses = Vec::new();
    for object in sorted {
        let mut told = false;
        for (index, parent) in object.spec.parents.iter().enumerate() {
            let field = format!("spec.parentRefs[{index}]");
            let route =
                Attaching { kind: "TLSRoute", namespace: &object.meta.namespace, hostnames: &object.spec.hostnames };
            let attached = match attach(route, parent, objects, gateways) {
                Outcome::Attached(attached) => attached,
                Outcome::Foreign(why) => {
                    findings.warn(&**object, &field, format!("{why}: left alone"));
                    continue;
                }
                Outcome::Refused(fault) => {
                    findings.error(&**object, &field, format!("{}: the route is not attached there", fault.message));
                    statuses.push(status(&object.id, parent, gateways, Some(&fault), None));
                    continue;
                }
            };
            let mut fault = None;
            for to in attached {
                let granted = matches!(to.scope, Scope::Gateway(_));
                let mut unsaid = Findings::default();
                // The same backends for every parent: what is wrong with them is said once.
                let said = if told { &mut unsaid } else { &mut *findings };
                let (destinations, fields, faults) = backends_of(object, &backends, granted, said);
                told = true;
                fault = joined(&faults);
                for host in &to.hosts {
                    // In the mesh hosts are services, and the route tells their connections apart by its own names.
                    let names = if granted || object.spec.hostnames.is_empty() {
                        vec![host.clone()]
                    } else {
                        object.spec.hostnames.clone()
                    };
                    let place = Place {
                        terminated: to.terminated,
                        port: to.port,
                        names,
                        destinations: destinations.clone(),
                        fields: fields.clone(),
                    };
                    merged.entry((to.scope.clone(), host.clone())).or_default().push((object.clone(), place));
                }
            }
            statuses.push(status(&object.id, parent, gateways, None, fault.as_ref()));
        }
    }
    (merged.into_iter().filter_map(virtual_service).collect(), statuses)
}

/// Where the connections of a route go: the backends of its first rule.
fn backends_of(
    object: &Route,
    backends: &Backends<'_>,
    granted: bool,
    findings: &mut Findings,
) -> (Vec<TcpDestination>, Vec<(String, Written)>, Vec<Fault>) {
    let empty = TlsRule::default();
    let rule = object.spec.rules.first().unwrap_or(&empty);
    let (mut destinations, mut fields, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    for (index, backend) in rule.backends.iter().enumerate() {
        let field = format!("spec.rules[0].backendRefs[{index}]");
        let from = (object.id.kind, object.meta.namespace.as_str());
        let (destination, invalid) = match backends.destination(&backend.backend, from, granted) {
            Ok(destination) => (destination, None),
            Err(fault) => {
                findings.error(&**object, &field, format!("{}: its share of the connections is reset", fault.message));
                let why = format!("{}: {field}: {}", object.id, fault.message);
                faults.push(fault);
                (Default::default(), Some(why))
            }
        };
        // What has no weight gets nothing, be it the only one: without destinations connections are reset.
        if backend.weight > 0 {
            let to = format!("route[{}]", destinations.len());
            fields.push((format!("{to}.destination.host"), written(&**object, format!("{field}.name"))));
            fields.push((to, written(&**object, &field)));
            destinations.push(TcpDestination { destination, weight: backend.weight, invalid });
        }
    }
    (destinations, fields, faults)
}

fn virtual_service(
    ((scope, host), routes): ((Scope, String), Vec<(Route, Place)>),
) -> Option<Arc<Object<VirtualService>>> {
    let (first, _) = routes.first()?;
    let first: &Object<TlsRoute> = first;
    let (gateway, export_to) = match &scope {
        Scope::Gateway(name) => (name.clone(), Vec::new()),
        Scope::Mesh { producer: true, .. } => ("mesh".to_owned(), Vec::new()),
        Scope::Mesh { producer: false, .. } => ("mesh".to_owned(), vec![".".to_owned()]),
    };
    // No name that an object can bear, and none of an HTTPRoute's.
    let meta = ObjectMeta { name: format_smolstr!("{}~{gateway}~{host}~tls", first.meta.name), ..first.meta.clone() };
    let mut fields = vec![
        ("spec.hosts".to_owned(), written(first, "spec.hostnames")),
        ("spec.gateways".to_owned(), written(first, "spec.parentRefs")),
    ];
    let mut spec = VirtualService {
        hosts: vec![host],
        gateways: vec![gateway],
        export_to,
        gateway_api: true,
        ..Default::default()
    };
    for (object, place) in &routes {
        let l4 = L4Match { port: place.port, ..L4Match::default() };
        let route = place.destinations.clone();
        let at = if place.terminated {
            spec.tcp.push(TcpRoute { matches: vec![l4], route });
            format!("spec.tcp[{}]", spec.tcp.len() - 1)
        } else {
            let matches = vec![TlsMatch { sni_hosts: place.names.clone(), l4 }];
            spec.tls.push(virtual_service::TlsRoute { matches, route });
            format!("spec.tls[{}]", spec.tls.len() - 1)
        };
        fields.extend(place.fields.iter().map(|(field, written)| (format!("{at}.{field}"), written.clone())));
        fields.push((format!("{at}.match"), written(&**object, "spec.hostnames")));
        fields.push((at, written(&**object, "spec.rules[0]")));
    }
    Some(made(first, meta, spec, fields))
}
