//! Objects to table: services and rules in one shape first, then one table for each kind of client.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use smol_str::SmolStr;

use super::{
    authorization::{Authorization, Shared},
    check::{check, conflicts, selectors},
    clusters::{HolderId, HolderOf, Workshop},
    enrol::{Enrolled, enrolled, mesh_config, settings},
    findings::Findings,
    gateway_api,
    gateways::{self, AtGateway, Gateways, Site},
    imports::{self, Everything, Imports, Narrowed},
    listeners::GatewayTable,
    locality,
    origination::{Holder, NO_LABELS, Places, places},
    origins::Origins,
    own_ports::{self, OwnPorts},
    peer_authentications::PeerAuthentications,
    peers::{self, Peers},
    registry::Registry,
    rules::{Client, RuleIndex, Rules, files},
    sidecars::Sidecars,
    table::{Mesh, Outbound, OutboundPolicy, PodAddresses, UpstreamTls, Workload},
    unimported::KnownServices,
    view::{Scope, Selection, Signature},
    virtual_services::{self, Plan, VirtualServices},
    volumes::Volumes,
};
use crate::api::{Object, Objects, core::Pod, sidecar::Sidecar};

/// Compiles every object in force into the table. Never fails: what is wrong is a diagnostic, and a rule that cannot
/// be honoured refuses its traffic.
#[must_use]
pub fn compile(objects: &Objects, addresses: &PodAddresses) -> Mesh {
    let mut findings = Findings::default();
    let (converted, report) = gateway_api::convert(objects, &mut findings);
    let origins = Origins::new(objects);
    let objects = &*converted;
    let config = mesh_config(objects, &mut findings);
    let settings = settings(config);
    let enrolled = enrolled(objects, &mut findings);
    let gateways = Gateways::new(objects, &enrolled, &mut findings);
    let sidecars = Sidecars::new(objects, &settings.root_namespace, &mut findings);
    let authentications = PeerAuthentications::new(objects, &settings.root_namespace, &mut findings);
    let peers = Peers::new(&enrolled, &gateways, &authentications, addresses, &settings.trust_domain);
    let registry = Registry::new(objects, &peers, &mut findings);
    let rules = Rules::new(objects);
    let services = VirtualServices::new(objects, &mut findings);
    check(&registry, &rules, &services, &mut findings);
    selectors(objects, &mut findings);
    if !objects.peer_authentications.is_empty() {
        conflicts(&registry, &rules, &mut findings);
    }
    imports::check(objects, &registry, &services, &settings.root_namespace, &mut findings);
    gateways::check(objects, &services, &mut findings);
    virtual_services::check(&services, objects, &registry, &rules, &mut findings);

    let authorization = Authorization::new(objects, &settings, &mut findings);
    let auto_mtls = settings.auto_mtls && peers.any_captured();
    let mut workshop = Workshop::new(objects, &rules, config, auto_mtls, &authorization, &mut findings);
    let scope = Scope {
        registry: &registry,
        services: &services,
        root: &settings.root_namespace,
        policy: settings.outbound_policy,
    };
    let host = objects.node.is_none();
    let mut tables = Tables::new(&rules, host);
    let mut own_ports = OwnPorts::new(objects, &mut workshop);
    let mut shared = Shared::default();
    let mut mesh = Mesh::default();
    for Enrolled { id, netns, pod } in enrolled {
        let Some(netns) = netns else { continue };
        let (volumes, unread) = Volumes::new(pod, host);
        for (annotation, error) in unread {
            let field = format!("metadata.annotations.{annotation}");
            workshop.findings.error(pod, &field, format!("{error}: the volumes it means are not known"));
        }
        let serves = gateways.of(&id);
        let sidecar = if serves.is_empty() { sidecars.of(pod) } else { None };
        let outbound = tables.outbound(&mut workshop, scope.under(sidecar), (pod, sidecar), &volumes);
        let policies = authorization.at_pod(pod, serves, &mut shared);
        let gateway = (!serves.is_empty()).then(|| {
            let destinations = AtGateway::new(&mut workshop, &outbound);
            let holder = Holder { objects, defaults: &workshop.defaults, namespace: &id.namespace, volumes: &volumes };
            let site = Site { objects, services: &services, pod, destinations: &destinations, holder };
            let table = gateways::table(site, serves, &mut workshop.server_settings, workshop.findings);
            Arc::new(GatewayTable { policies: policies.clone(), ..table })
        });
        let inbound = gateway.is_none().then(|| {
            let site = own_ports::Site {
                pod,
                volumes: &volumes,
                addresses: peers.addresses(&id, pod),
                modes: &peers.modes(&id),
                said_by: &authentications.of(pod).by,
                policy: authentications.selecting(pod).map(|policy| &**policy),
                sidecar: sidecar.map(|sidecar| &**sidecar),
                policies: &policies,
            };
            own_ports.table(&mut workshop, site)
        });
        let workload = Workload {
            id: id.clone(),
            service_account: peers::service_account(pod).to_owned(),
            labels: pod.meta.labels.clone(),
            netns: netns.to_string(),
            identity: peers::identity(&settings.trust_domain, &id.namespace, peers::service_account(pod)),
            locality: locality::of_pod(&pod.meta.labels),
            outbound,
            inbound,
            gateway,
        };
        mesh.workloads.insert(id, Arc::new(workload));
    }
    mesh.origins = origins;
    mesh.peers = Arc::new(peers.by_address);
    mesh.statuses = report.statuses;
    mesh.settings = settings;
    excuse(&mesh, &mut findings);
    mesh.diagnostics = findings.into_sorted();
    mesh
}

/// Rules for gateways that other pods cannot honour.
fn excuse(mesh: &Mesh, findings: &mut Findings) {
    let clusters: Vec<_> = mesh.gateways_originate(|_| true).collect();
    let for_gateways = clusters.iter().filter_map(|cluster| cluster.destination_rule.as_ref()).collect();
    let reasons = clusters.iter().filter_map(|cluster| match &cluster.tls {
        UpstreamTls::Refuse(reason) => Some(&**reason),
        UpstreamTls::Plain | UpstreamTls::Mesh(_) | UpstreamTls::Originate(_) => None,
    });
    findings.excuse(&for_gateways, &reasons.collect());
}

/// Tables made so far, by what makes them equal.
struct Tables {
    /// Every path that some rule names.
    paths: Vec<String>,
    /// Distinct answers of pods' volumes to `paths`.
    places: HashMap<Places, usize>,
    nobody: Volumes,
    namespaces: HashMap<Kin, Namespace>,
    /// What namespaces with Sidecars see without them.
    everything: HashMap<String, Arc<Everything>>,
    known: Option<Arc<KnownServices>>,
    shared: HashMap<Signature, Namespace>,
    own: HashMap<Own, Arc<Outbound>>,
}

/// The workloads of a namespace that are under one Sidecar (as namespace and name), or under none that narrows their view.
type Kin = (SmolStr, OutboundPolicy, Option<(SmolStr, SmolStr)>);

/// What makes a workload one of its own: credentials, rules that select it, and the `sourceLabels` that hold for it.
type Own = (HolderId, Vec<RuleIndex>, Vec<usize>);

/// What the workloads of a namespace have in common. Namespaces that see the same, and have nothing of their own, are one.
#[derive(Clone)]
struct Namespace {
    id: usize,
    selection: Arc<Selection>,
    base: Arc<Outbound>,
    plan: Arc<Plan>,
}

impl Tables {
    fn new(rules: &Rules, host: bool) -> Self {
        let paths: BTreeSet<String> = rules.all.iter().flat_map(|rule| files(&rule.object.spec)).collect();
        let paths: Vec<String> = paths.into_iter().collect();
        let nobody = Volumes::none(host);
        let places = HashMap::from([(places(&paths, &nobody), 0)]);
        Self {
            paths,
            places,
            nobody,
            namespaces: HashMap::new(),
            everything: HashMap::new(),
            known: None,
            shared: HashMap::new(),
            own: HashMap::new(),
        }
    }

    fn outbound(
        &mut self,
        workshop: &mut Workshop<'_>,
        scope: Scope<'_>,
        (pod, sidecar): (&Object<Pod>, Option<&Arc<Object<Sidecar>>>),
        volumes: &Volumes,
    ) -> Arc<Outbound> {
        let (namespace, labels) = (pod.meta.namespace.as_str(), &pod.meta.labels);
        let selected = workshop.rules.selected(namespace, labels);
        let holding = scope.services.holding(labels);
        let count = self.places.len();
        let answer = *self.places.entry(places(&self.paths, volumes)).or_insert(count);
        let sidecar = sidecar.filter(|sidecar| !sidecar.spec.egress.is_empty());
        let named = sidecar.map(|sidecar| (sidecar.meta.namespace.clone(), sidecar.meta.name.clone()));
        let key = (pod.meta.namespace.clone(), scope.policy, named);
        if !self.namespaces.contains_key(&key) {
            let imports = sidecar.and_then(|sidecar| Imports::new(sidecar, namespace));
            let made = self.namespace(workshop, scope, namespace, imports.as_ref());
            self.namespaces.insert(key.clone(), made);
        }
        let common = &self.namespaces[&key];
        if selected.is_empty() && holding.is_empty() && answer == 0 {
            return common.base.clone();
        }
        let id = HolderId { namespace: common.id, places: answer };
        let own = (id, selected, holding);
        if let Some(known) = self.own.get(&own) {
            return known.clone();
        }
        let client = Client { namespace, selected: &own.1 };
        let varying = common.selection.varying(workshop, scope, client);
        let holder = HolderOf { id, namespace, volumes };
        let layer = varying.layer(workshop, scope, (client, labels), holder, (&common.base, &common.plan));
        let outbound = layer.map_or_else(|| common.base.clone(), Arc::new);
        self.own.insert(own, outbound.clone());
        outbound
    }

    fn namespace(
        &mut self,
        workshop: &mut Workshop<'_>,
        scope: Scope<'_>,
        namespace: &str,
        imports: Option<&Imports<'_>>,
    ) -> Namespace {
        let client = Client { namespace, selected: &[] };
        let id = self.namespaces.len();
        let mut narrowed = imports.map(|imports| self.narrow(workshop, scope, client, imports));
        let selection = match &mut narrowed {
            Some(narrowed) => std::mem::take(&mut narrowed.selection),
            None => Selection::new(workshop, scope, client),
        };
        let signature = selection.signature(workshop, scope, client, imports.map(|imports| &imports.sidecar.id));
        if let Some(known) = self.shared.get(&signature) {
            return known.clone();
        }
        let holder = HolderOf { id: HolderId { namespace: id, places: 0 }, namespace, volumes: &self.nobody };
        let (base, plan) = selection.table(workshop, scope, (client, &NO_LABELS), holder, narrowed.as_ref());
        let (selection, base, plan) = (Arc::new(selection), Arc::new(base), Arc::new(plan));
        let made = Namespace { id, selection, base, plan };
        self.shared.insert(signature, made.clone());
        made
    }

    fn narrow(
        &mut self,
        workshop: &mut Workshop<'_>,
        scope: Scope<'_>,
        client: Client<'_>,
        imports: &Imports<'_>,
    ) -> Narrowed {
        let known = self.known.get_or_insert_with(|| Arc::new(KnownServices::new(scope.registry)));
        let everything = self.everything.entry(client.namespace.to_owned());
        let everything = everything.or_insert_with(|| Arc::new(Everything::new(workshop, scope, client)));
        imports.narrow(everything, scope, known)
    }
}
