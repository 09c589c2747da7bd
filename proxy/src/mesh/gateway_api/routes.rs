//! HTTPRoutes to VirtualServices: one for each listener or namespace and each host, its routes in the order that the
//! Gateway API gives them across all HTTPRoutes (Istio `mergeHTTPRoutes`).

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use super::{
    super::{
        findings::Findings,
        table::{About, ObjectStatus},
    },
    attach::{Attaching, Outcome, Scope, attach},
    backends::Backends,
    gateways::Gateways,
    made,
    rules::{Made, Maker},
    status::{Fault, condition, joined},
    written,
};

use crate::api::{
    Object, ObjectId, ObjectMeta, Objects,
    gateway_api::{HttpRoute, ParentRef},
    virtual_service::{HttpMatch, VirtualService},
};
use smol_str::format_smolstr;

type Route = Arc<Object<HttpRoute>>;
/// Routes by where they count and for which host, in the order of their HTTPRoutes.
type Merged<'a> = BTreeMap<(Scope, String), Vec<(&'a Route, Made)>>;

/// The VirtualServices, and the conditions of the HTTPRoutes.
pub fn convert(
    objects: &Objects,
    gateways: &mut Gateways,
    findings: &mut Findings,
) -> (Vec<Arc<Object<VirtualService>>>, Vec<ObjectStatus>) {
    let backends = Backends::new(objects);
    let mut sorted: Vec<_> = objects.http_routes.values().collect();
    sorted.sort_by_key(|route| (&route.meta.creation_timestamp, &route.meta.namespace, &route.meta.name));
    let mut merged = Merged::new();
    let mut statuses = Vec::new();
    for object in sorted {
        let mut at_gateways = Rules::default();
        let mut in_mesh = Rules::default();
        for (index, parent) in object.spec.parents.iter().enumerate() {
            let field = format!("spec.parentRefs[{index}]");
            let attaching =
                Attaching { kind: "HTTPRoute", namespace: &object.meta.namespace, hostnames: &object.spec.hostnames };
            let attached = match attach(attaching, parent, objects, gateways) {
                Outcome::Attached(attached) => attached,
                Outcome::Foreign(why) => {
                    findings.warn(object, &field, format!("{why}: left alone"));
                    continue;
                }
                Outcome::Refused(fault) => {
                    findings.error(object, &field, format!("{}: the route is not attached there", fault.message));
                    statuses.push(status(&object.id, parent, gateways, Some(&fault), None));
                    continue;
                }
            };
            let mut fault = None;
            for to in attached {
                let granted = matches!(to.scope, Scope::Gateway(_));
                let rules = if granted { &mut at_gateways } else { &mut in_mesh };
                let (routes, wrong) = rules.of(&Maker { object, backends: &backends, granted }, findings);
                fault = wrong.cloned();
                for host in &to.hosts {
                    let here = merged.entry((to.scope.clone(), host.clone())).or_default();
                    // The same route by two parents that mean the same.
                    here.retain(|(other, made)| other.id != object.id || is_for_another_port(made, to.port));
                    here.extend(routes.iter().map(|made| (object, on_port(made, to.port))));
                }
            }
            statuses.push(status(&object.id, parent, gateways, None, fault.as_ref()));
        }
        let at_none = object.spec.parents.iter().all(|parent| parent.object.kind != "Gateway");
        if !object.spec.hostnames.is_empty() && at_none {
            findings.warn(object, "spec.hostnames", "a service has its own name: these count at Gateways only");
        }
    }
    (merged.into_iter().filter_map(virtual_service).collect(), statuses)
}

/// The rules of one HTTPRoute, made once.
#[derive(Default)]
struct Rules(Option<(Vec<Made>, Option<Fault>)>);

impl Rules {
    fn of(&mut self, maker: &Maker<'_>, findings: &mut Findings) -> (&[Made], Option<&Fault>) {
        let (routes, fault) = self.0.get_or_insert_with(|| {
            let mut faults = Vec::new();
            let routes = maker.routes(&mut faults, findings);
            (routes, joined(&faults))
        });
        (routes, fault.as_ref())
    }
}

fn on_port(made: &Made, port: Option<u16>) -> Made {
    let mut made = made.clone();
    for given in &mut made.route.matches {
        *given = HttpMatch { port, ..given.clone() };
    }
    made
}

fn is_for_another_port(made: &Made, port: Option<u16>) -> bool {
    made.route.matches.iter().any(|given| given.port != port)
}

fn virtual_service(
    ((scope, host), mut routes): ((Scope, String), Vec<(&Route, Made)>),
) -> Option<Arc<Object<VirtualService>>> {
    let (first, _) = routes.first()?;
    let first: &Object<HttpRoute> = first;
    // Stable: between equals the order of HTTPRoutes and rules stays.
    routes.sort_by_key(|(_, made)| Reverse(made.rank));
    let (gateway, export_to, place) = match scope {
        Scope::Gateway(name) => (name.clone(), Vec::new(), name),
        Scope::Mesh { producer: true, .. } => ("mesh".to_owned(), Vec::new(), "mesh".to_owned()),
        Scope::Mesh { producer: false, .. } => ("mesh".to_owned(), vec![".".to_owned()], "mesh".to_owned()),
    };
    let mut fields = vec![
        ("spec.hosts".to_owned(), written(first, "spec.hostnames")),
        ("spec.gateways".to_owned(), written(first, "spec.parentRefs")),
        ("spec.http".to_owned(), written(first, "spec.rules")),
    ];
    let mut http = Vec::new();
    for (at, (_, made)) in routes.into_iter().enumerate() {
        fields.extend(made.fields.into_iter().map(|(field, written)| (format!("spec.http[{at}]{field}"), written)));
        http.push(made.route);
    }
    // No name that an object can bear, so that none is in the way of another.
    let meta = ObjectMeta { name: format_smolstr!("{}~{place}~{host}", first.meta.name), ..first.meta.clone() };
    let hosts = vec![host];
    let spec =
        VirtualService { hosts, gateways: vec![gateway], http, export_to, gateway_api: true, ..Default::default() };
    Some(made(first, meta, spec, fields))
}

/// What a controller would say about one parent of a route.
pub fn status(
    id: &ObjectId,
    parent: &ParentRef,
    gateways: &Gateways,
    refused: Option<&Fault>,
    references: Option<&Fault>,
) -> ObjectStatus {
    let namespace = parent.object.namespace.as_ref().unwrap_or(&id.namespace).clone();
    let conditions = vec![
        condition("Accepted", "attached", refused),
        condition("ResolvedRefs", "all references resolved", references),
    ];
    let controller = gateways.controller(parent, &id.namespace);
    ObjectStatus {
        object: id.clone(),
        controller,
        about: About::Parent { parent: parent.clone(), namespace },
        conditions,
    }
}
