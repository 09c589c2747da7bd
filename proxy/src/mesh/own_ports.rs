//! What a pod's own ports take and where they lead: PeerAuthentication, the services that select the pod, its Sidecar.

mod ingress;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use smol_str::SmolStr;

use self::services::Services;
use super::{
    authorization::Policies,
    cluster::{Cluster, Discovery, LoadBalancer, Pool, Protocol, UpstreamTls},
    clusters::Workshop,
    findings::Findings,
    inbound::{Application, InboundPort, InboundTable, MtlsModes, Takes},
    listeners::DownstreamTls,
    routing::VirtualHost,
    volumes::Volumes,
};
use crate::api::{
    Object, ObjectId, Objects,
    core::{Pod, ProbeRequest},
    security::PeerAuthentication,
    sidecar::Sidecar,
};

/// Ports that nothing declares.
const PASSTHROUGH: &str = "InboundPassthroughCluster";
/// `REDIRECT`, which hides the client's address, or `TPROXY`, which does not.
const INTERCEPTION: &str = "sidecar.istio.io/interceptionMode";
/// Ports to leave alone, with what means none.
const LEFT_ALONE: [(&str, &str); 2] =
    [("traffic.sidecar.istio.io/excludeInboundPorts", ""), ("traffic.sidecar.istio.io/includeInboundPorts", "*")];

/// Makes the inbound sides of pods, which share what is equal.
pub struct OwnPorts<'a> {
    services: Services<'a>,
    any: Arc<InboundPort>,
    /// By the object that declares them and the pod's own port.
    ports: HashMap<(ObjectId, u16), Vec<Arc<InboundPort>>>,
    tables: HashMap<TableKey, Arc<InboundTable>>,
}

/// What tells tables from each other; what is shared itself goes by where it lies.
#[derive(PartialEq, Eq, Hash)]
struct TableKey {
    modes: *const MtlsModes,
    said_by: Vec<ObjectId>,
    ports: Vec<(u16, *const InboundPort)>,
    policies: *const Policies,
    probes: BTreeMap<u16, BTreeSet<ProbeRequest>>,
    original_source: bool,
}

/// One pod that is no gateway.
#[derive(Clone, Copy)]
pub struct Site<'s> {
    pub pod: &'s Object<Pod>,
    pub volumes: &'s Volumes,
    /// Its own; empty where they are not known.
    pub addresses: &'s [IpAddr],
    pub modes: &'s Arc<MtlsModes>,
    /// The PeerAuthentications that say so.
    pub said_by: &'s [ObjectId],
    /// The PeerAuthentication that selects it.
    pub policy: Option<&'s Object<PeerAuthentication>>,
    pub sidecar: Option<&'s Object<Sidecar>>,
    pub policies: &'s Arc<Policies>,
}

/// A port as an object declares it.
struct Declared {
    by: ObjectId,
    /// The full name of the service.
    host: String,
    protocol: Protocol,
    application: Application,
    pool: Arc<Pool>,
    tls: Option<DownstreamTls>,
}

impl<'a> OwnPorts<'a> {
    pub fn new(objects: &'a Objects, workshop: &mut Workshop<'_>) -> Self {
        Self {
            services: Services::new(objects),
            any: Arc::new(undeclared(&workshop.pool(None))),
            ports: HashMap::new(),
            tables: HashMap::new(),
        }
    }

    pub fn table(&mut self, workshop: &mut Workshop<'_>, site: Site<'_>) -> Arc<InboundTable> {
        // Where a Sidecar declares ports, these are all, as in Istio.
        let declared = match site.sidecar.filter(|sidecar| !sidecar.spec.ingress.is_empty()) {
            Some(sidecar) => ingress::declared(workshop, site, sidecar),
            None => self.services.declared(site.pod, workshop),
        };
        let ports: BTreeMap<_, _> =
            declared.into_iter().map(|(port, declared)| (port, self.share(port, declared))).collect();
        if let Some(policy) = site.policy {
            self.mistaken(site.pod, policy, &ports, workshop.findings);
        }
        let original_source = original_source(site.pod, workshop.findings);
        let key = TableKey {
            modes: Arc::as_ptr(site.modes),
            said_by: site.said_by.to_vec(),
            ports: ports.iter().map(|(port, to)| (*port, Arc::as_ptr(to))).collect(),
            policies: Arc::as_ptr(site.policies),
            probes: probes(site.pod),
            original_source,
        };
        let made = self.tables.get(&key).cloned();
        let made = made.unwrap_or_else(|| {
            Arc::new(InboundTable {
                modes: site.modes.clone(),
                said_by: site.said_by.to_vec(),
                ports,
                any: self.any.clone(),
                policies: site.policies.clone(),
                probes: key.probes.clone(),
                original_source,
            })
        });
        unheard(site.pod, &made, workshop.findings);
        self.tables.insert(key, made.clone());
        made
    }

    /// `portLevelMtls` goes by the pod's own ports, not by those of services.
    fn mistaken(
        &self,
        pod: &Object<Pod>,
        policy: &Object<PeerAuthentication>,
        ports: &BTreeMap<u16, Arc<InboundPort>>,
        findings: &mut Findings,
    ) {
        for port in policy.spec.ports.keys().filter(|port| !ports.contains_key(port)) {
            if let Some((service, own)) = self.services.mistaken(pod, *port) {
                let message = format!(
                    "{port} is the port of {service}, which leads to port {own} of {}: this goes by the pod's own ports",
                    pod.id
                );
                findings.warn(policy, &format!("spec.portLevelMtls.{port}"), message);
            }
        }
    }

    /// The port, made once for all pods for which it is the same.
    fn share(&mut self, port: u16, declared: Declared) -> Arc<InboundPort> {
        let known = self.ports.entry((declared.by.clone(), port)).or_default();
        if let Some(same) = known.iter().find(|known| declared.is(known)) {
            return same.clone();
        }
        let made = Arc::new(declared.made(port));
        known.push(made.clone());
        made
    }
}

impl Declared {
    /// Of two declarations by the same object.
    fn is(&self, made: &InboundPort) -> bool {
        let same = made.protocol == self.protocol && made.tls == self.tls;
        same && made.cluster.pool == open(&self.pool, self.protocol)
            && made.cluster.discovery == Discovery::Application(self.application.clone())
    }

    fn made(self, port: u16) -> InboundPort {
        let name = format!("inbound|{port}||");
        let mut cluster = cluster(name, port, self.protocol, self.application, &self.pool);
        (cluster.host, cluster.service) = (self.host.into(), self.by);
        let cluster = Arc::new(cluster);
        let host = Arc::new(VirtualHost::of_cluster(format!("inbound|http|{port}"), cluster.clone()));
        let ingress = Some(cluster.service.clone()).filter(|by| by.kind == "Sidecar");
        InboundPort { protocol: self.protocol, cluster, host, tls: self.tls, ingress }
    }
}

fn probes(pod: &Object<Pod>) -> BTreeMap<u16, BTreeSet<ProbeRequest>> {
    let mut probes = BTreeMap::<_, BTreeSet<_>>::new();
    for probe in &pod.spec.probes {
        probes.entry(probe.port).or_default().insert(probe.request.clone());
    }
    probes
}

/// The application's own TLS cannot be looked into, so that nothing of it is let in where it is not the mesh's.
fn unheard(pod: &Object<Pod>, table: &InboundTable, findings: &mut Findings) {
    for probe in &pod.spec.probes {
        let https = matches!(probe.request, ProbeRequest::HttpGet { https: true, .. });
        if https && matches!(table.takes(probe.port), Takes::MeshMtls) {
            let port = probe.port;
            let message = format!(
                "port {port} takes mesh mTLS only, so that this probe fails: name a port that speaks HTTP, or one with \
                 `portLevelMtls` {port}: PERMISSIVE"
            );
            findings.warn(pod, &format!("{}.scheme", probe.field), message);
        }
    }
}

/// Whether the application is to see the client's address. Says which other wishes for capture are not honoured.
fn original_source(pod: &Object<Pod>, findings: &mut Findings) -> bool {
    let annotation = |name: &str| pod.meta.annotations.get(name).map(|text| text.trim());
    for (name, nothing) in LEFT_ALONE {
        if annotation(name).is_some_and(|text| text != nothing) {
            let message =
                "not honoured: every port is captured. PeerAuthentication `portLevelMtls` DISABLE leaves one as it is";
            findings.warn(pod, &format!("metadata.annotations.{name}"), message);
        }
    }
    match annotation(INTERCEPTION) {
        Some("TPROXY") => true,
        None | Some("REDIRECT") => false,
        Some(other) => {
            let message = format!("\"{}\" is not honoured: there are REDIRECT and TPROXY", other.escape_debug());
            findings.warn(pod, &format!("metadata.annotations.{INTERCEPTION}"), message);
            false
        }
    }
}

impl Default for InboundTable {
    /// Nothing declares a port, and nothing speaks of mesh mTLS.
    fn default() -> Self {
        static ANY: LazyLock<Arc<InboundPort>> = LazyLock::new(|| Arc::new(undeclared(&Arc::default())));
        Self {
            modes: Arc::default(),
            said_by: Vec::new(),
            ports: BTreeMap::new(),
            any: ANY.clone(),
            policies: Arc::default(),
            probes: BTreeMap::new(),
            original_source: false,
        }
    }
}

fn undeclared(pool: &Arc<Pool>) -> InboundPort {
    let cluster = Arc::new(cluster(PASSTHROUGH.to_owned(), 0, Protocol::Auto, Application::Dialled, pool));
    let host = VirtualHost::of_cluster("inbound|http|0".to_owned(), cluster.clone());
    InboundPort { protocol: Protocol::Auto, cluster, host: Arc::new(host), tls: None, ingress: None }
}

/// Where nothing is declared, the application speaks what its clients do.
fn open(pool: &Arc<Pool>, protocol: Protocol) -> Arc<Pool> {
    if pool.use_client_protocol || protocol != Protocol::Auto {
        return pool.clone();
    }
    Arc::new(Pool { use_client_protocol: true, ..(**pool).clone() })
}

fn cluster(name: String, port: u16, protocol: Protocol, application: Application, pool: &Arc<Pool>) -> Cluster {
    Cluster {
        name,
        host: SmolStr::default(),
        port,
        subset: String::new(),
        protocol,
        discovery: Discovery::Application(application),
        load_balancer: LoadBalancer::RoundRobin,
        hash: None,
        locality: None,
        warmup: None,
        outlier: None,
        pool: open(pool, protocol),
        tls: UpstreamTls::Plain,
        mesh_external: false,
        service: ObjectId::new("Pod", "", ""),
        destination_rule: None,
        policies: None,
    }
}
