//! Every service that the objects define, in one shape: hosts, ports, addresses and endpoints, whether a ServiceEntry
//! or a Kubernetes Service says so.

mod pods;
mod slices;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use smol_str::SmolStr;

use ipnet::IpNet;

use self::{pods::PodsByNamespace, slices::Slices};
use super::{
    findings::Findings,
    host::{canonical, shared_canonical},
    locality,
    names::{Visibility, object_order, selects, service_host},
    peers::Peers,
    protocol,
    table::{Discovery, DnsTarget, Endpoint, EndpointAddress, Peer, Protocol},
};
use crate::api::{
    Object, ObjectId, Objects,
    core::{Service, TargetPort},
    istio::{Location, Resolution, ServiceEntry},
};

/// One host of one service.
#[derive(Debug)]
pub struct Entry {
    /// As tables keep names; may be a wildcard.
    pub host: SmolStr,
    pub namespace: SmolStr,
    pub object: ObjectId,
    /// A Kubernetes Service, which has short names too.
    pub kubernetes: bool,
    pub body: Arc<Body>,
}

/// What the hosts of one object share.
#[derive(Debug)]
pub struct Body {
    pub visibility: Visibility,
    pub ports: Vec<EntryPort>,
    pub addresses: Vec<IpNet>,
    pub mesh_external: bool,
    pub subject_alt_names: Vec<String>,
    finding: Finding,
    backends: Vec<Backend>,
}

#[derive(Debug)]
pub struct EntryPort {
    pub number: u16,
    pub name: SmolStr,
    pub protocol: Protocol,
    target: Target,
}

#[derive(Clone, Debug)]
enum Target {
    /// The port's own number.
    Same,
    Number(u16),
    /// A named container port.
    Name(String),
}

/// How addresses are found, before subset and port are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    Static,
    Dns,
    DnsRoundRobin,
    Original,
    Dynamic,
}

#[derive(Debug)]
struct Backend {
    address: Address,
    ports: Ports,
    labels: Arc<BTreeMap<String, String>>,
    weight: u32,
    locality: Arc<str>,
    peer: Option<Arc<Peer>>,
    /// False: not ready. Clients that dial it themselves are under the same rules.
    used: bool,
}

/// Which port of a backend a service's port is.
#[derive(Debug)]
enum Ports {
    /// By service port name (WorkloadEntry `ports`): goes before `targetPort`.
    Overridden(BTreeMap<String, u16>),
    /// By container port name, for a named `targetPort`.
    Container(BTreeMap<String, u16>),
    /// By service port name, those that it has at all; None: the service's own number.
    Listed(Arc<PortNumbers>),
}

type PortNumbers = BTreeMap<String, Option<u16>>;

#[derive(Debug)]
enum Address {
    Ip(IpAddr),
    Name(String),
    Unix(PathBuf),
}

/// All hosts, in the order in which one of equal names wins.
#[derive(Debug, Default)]
pub struct Registry {
    pub entries: Vec<Entry>,
}

impl Registry {
    pub fn new(objects: &Objects, peers: &Peers<'_>, findings: &mut Findings) -> Self {
        let pods = PodsByNamespace::new(objects, peers);
        let mut entries = Vec::new();
        let slices = Slices::new(objects);
        let mut services: Vec<_> = objects.services.values().collect();
        services.sort_by(|a, b| object_order(&a.meta, &b.meta));
        for service in services {
            let body = Arc::new(service_body(service, &slices, &pods, findings));
            entries.push(Entry {
                host: service_host(&canonical(&service.meta.name), &service.meta.namespace).into(),
                namespace: service.meta.namespace.clone(),
                object: service.id.clone(),
                kubernetes: true,
                body,
            });
        }
        let mut declared: Vec<_> = objects.service_entries.values().collect();
        declared.sort_by(|a, b| object_order(&a.meta, &b.meta));
        let mut taken: HashMap<(&str, SmolStr, u16), &ObjectId> = HashMap::new();
        for object in declared {
            let body = Arc::new(entry_body(object, &pods, findings));
            for (index, host) in object.spec.hosts.iter().enumerate() {
                let host = shared_canonical(host);
                let field = format!("spec.hosts[{index}]");
                for port in &body.ports {
                    match taken.entry((&object.meta.namespace, host.clone(), port.number)) {
                        std::collections::hash_map::Entry::Vacant(free) => {
                            free.insert(&object.id);
                        }
                        std::collections::hash_map::Entry::Occupied(first) if first.get().name != object.id.name => {
                            let message = format!(
                                "{} already serves this host on port {}: that one is used",
                                first.get(),
                                port.number
                            );
                            findings.warn(object, &field, message);
                        }
                        std::collections::hash_map::Entry::Occupied(_) => {}
                    }
                }
                let needs_name = matches!(body.finding, Finding::Dns | Finding::DnsRoundRobin);
                if needs_name && body.backends.is_empty() && host.starts_with('*') {
                    let message = "a wildcard host cannot be resolved: give endpoints, or resolution NONE or DYNAMIC_DNS; requests get 503";
                    findings.error(object, &field, message);
                }
                entries.push(Entry {
                    host,
                    namespace: object.meta.namespace.clone(),
                    object: object.id.clone(),
                    kubernetes: false,
                    body: body.clone(),
                });
            }
        }
        Self { entries }
    }
}

impl Entry {
    /// Where connections to `port` go, for the endpoints with these labels. Endpoints bear no labels themselves.
    pub fn discovery(&self, port: &EntryPort, labels: &BTreeMap<String, String>) -> Discovery {
        let body = &self.body;
        match body.finding {
            // Of a headless service the client means the very pod and port that it dialled.
            Finding::Original => {
                Discovery::OriginalDestination { port: port.target.number().filter(|_| !self.kubernetes) }
            }
            Finding::Dynamic => Discovery::Dynamic { port: port.target.number().unwrap_or(port.number) },
            Finding::Static => Discovery::Static(self.listed(port, labels)),
            Finding::Dns | Finding::DnsRoundRobin => {
                let implied = body.backends.is_empty() && labels.is_empty() && !self.host.starts_with('*');
                let own = implied.then(|| DnsTarget {
                    name: self.host.to_string(),
                    port: port.target.number().unwrap_or(port.number),
                    weight: 1,
                });
                let mut targets: Vec<_> =
                    own.into_iter().chain(body.used(labels).filter_map(|backend| backend.target(port))).collect();
                targets.shrink_to_fit();
                Discovery::Dns { targets, one_at_a_time: body.finding == Finding::DnsRoundRobin }
            }
        }
    }

    /// The endpoints with these labels where there is no address dialled to go by, as for what comes through a gateway.
    pub fn listed(&self, port: &EntryPort, labels: &BTreeMap<String, String>) -> Vec<Endpoint> {
        // Tables of thousands of these stay: no room for more.
        self.body.used(labels).filter_map(|backend| backend.endpoint(port)).collect::<Box<[_]>>().into_vec()
    }

    /// The same with the labels of each endpoint, for rules that compare them.
    pub fn labelled_discovery(&self, port: &EntryPort, labels: &BTreeMap<String, String>) -> Discovery {
        let mut found = self.discovery(port, labels);
        if let Discovery::Static(endpoints) = &mut found {
            let backends = self.body.used(labels).filter(|backend| backend.endpoint(port).is_some());
            for (endpoint, backend) in endpoints.iter_mut().zip(backends) {
                endpoint.labels = locality::augmented(&backend.labels, &backend.locality);
            }
        }
        found
    }

    /// Addresses by which raw connections are known to be for this service.
    pub fn raw_addresses(&self, port: &EntryPort) -> Vec<IpNet> {
        let addresses = &self.body.addresses;
        if addresses.is_empty() { self.dialled_addresses(port).collect() } else { addresses.clone() }
    }

    /// Its single addresses as clients write them in place of a name.
    pub fn address_names(&self) -> impl Iterator<Item = String> {
        let single = self.body.addresses.iter().filter(|net| net.prefix_len() == net.max_prefix_len());
        single.map(|net| net.addr().to_string())
    }

    /// Static endpoint addresses where the port is not translated: a client may dial them itself.
    pub fn dialled_addresses<'a>(&'a self, port: &'a EntryPort) -> impl Iterator<Item = IpNet> + 'a {
        let backends = if self.body.finding == Finding::Static { self.body.backends.as_slice() } else { &[] };
        backends.iter().filter_map(|backend| match backend.endpoint(port)?.address {
            EndpointAddress::Ip(address) if address.port() == port.number => Some(IpNet::from(address.ip())),
            _ => None,
        })
    }
}

impl Body {
    /// The backends that connections may go to, of those with these labels.
    fn used<'a>(&'a self, labels: &'a BTreeMap<String, String>) -> impl Iterator<Item = &'a Backend> {
        self.backends.iter().filter(|backend| backend.used && selects(labels, &backend.labels))
    }
}

impl Target {
    fn number(&self) -> Option<u16> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Same | Self::Name(_) => None,
        }
    }
}

impl Backend {
    fn new(address: Address, weight: u32) -> Self {
        Self {
            address,
            ports: Ports::Overridden(BTreeMap::new()),
            labels: Endpoint::no_labels(),
            weight,
            locality: Endpoint::no_locality(),
            peer: None,
            used: true,
        }
    }

    /// None: a pod without this port.
    fn port(&self, port: &EntryPort) -> Option<u16> {
        let target = || port.target.number().unwrap_or(port.number);
        match (&self.ports, &port.target) {
            (Ports::Listed(ports), _) => ports.get(port.name.as_str()).map(|listed| listed.unwrap_or(port.number)),
            (Ports::Container(ports), Target::Name(name)) => ports.get(name).copied(),
            (Ports::Overridden(ports), _) => Some(ports.get(port.name.as_str()).copied().unwrap_or_else(target)),
            (Ports::Container(_), Target::Same | Target::Number(_)) => Some(target()),
        }
    }

    fn endpoint(&self, port: &EntryPort) -> Option<Endpoint> {
        let address = match &self.address {
            Address::Ip(ip) => EndpointAddress::Ip(SocketAddr::new(*ip, self.port(port)?)),
            Address::Unix(path) => EndpointAddress::Unix(path.clone()),
            Address::Name(_) => return None,
        };
        let (locality, peer) = (self.locality.clone(), self.peer.clone());
        Some(Endpoint { address, weight: self.weight, locality, labels: Endpoint::no_labels(), peer })
    }

    fn target(&self, port: &EntryPort) -> Option<DnsTarget> {
        let name = match &self.address {
            Address::Ip(ip) => ip.to_string(),
            Address::Name(name) => name.clone(),
            Address::Unix(_) => return None,
        };
        Some(DnsTarget { name, port: self.port(port)?, weight: self.weight })
    }
}

fn service_body(
    service: &Object<Service>,
    slices: &Slices<'_>,
    pods: &PodsByNamespace<'_>,
    findings: &mut Findings,
) -> Body {
    let spec = &service.spec;
    let mut ports = Vec::new();
    for (index, port) in spec.ports.iter().enumerate() {
        if port.protocol.as_deref().is_some_and(|protocol| !protocol.eq_ignore_ascii_case("tcp")) {
            continue;
        }
        let name = port.name.clone().unwrap_or_default();
        if let Some(written) = port.app_protocol.as_deref()
            && protocol::named(written).is_none()
        {
            let message = format!("{written} is no protocol that egret knows: the port is sniffed");
            findings.warn(service, &format!("spec.ports[{index}].appProtocol"), message);
        }
        let target = match &port.target_port {
            Some(TargetPort::Number(number)) => Target::Number(*number),
            Some(TargetPort::Name(name)) => Target::Name(name.clone()),
            None => Target::Same,
        };
        let protocol = protocol::of_service(port.app_protocol.as_deref(), &name, port.port);
        ports.push(EntryPort { number: port.port, name: name.into(), protocol, target });
    }
    let mut addresses: Vec<IpNet> = spec.cluster_ips.iter().copied().map(IpNet::from).collect();
    let like = spec.cluster_ips.first().copied();
    let (finding, backends) = if let Some(name) = &spec.external_name {
        let address = Address::Name(canonical(name).into_owned());
        (Finding::Dns, vec![Backend::new(address, 1)])
    } else {
        let finding = if spec.headless { Finding::Original } else { Finding::Static };
        match slices.backends(service, like, pods, findings) {
            Some(backends) => (finding, backends),
            // Somebody else keeps the endpoints: the address dialled is all there is to go by.
            None if spec.selector.is_empty() => (Finding::Original, Vec::new()),
            None => (finding, pods.backends(&service.meta.namespace, &spec.selector, like)),
        }
    };
    if finding == Finding::Original {
        // Headless: the client has resolved a pod's own address and means that pod, on the port it dialled.
        addresses.extend(backends.iter().filter_map(|backend| match backend.address {
            Address::Ip(ip) => Some(IpNet::from(ip)),
            Address::Name(_) | Address::Unix(_) => None,
        }));
    }
    let export_to = service.meta.annotations.get("networking.istio.io/exportTo").map_or("", String::as_str);
    Body {
        visibility: Visibility::new(export_to.split(','), &service.meta.namespace),
        ports,
        addresses,
        mesh_external: spec.external_name.is_some(),
        subject_alt_names: Vec::new(),
        finding,
        backends,
    }
}

fn entry_body(object: &Object<ServiceEntry>, pods: &PodsByNamespace<'_>, findings: &mut Findings) -> Body {
    let spec = &object.spec;
    let mut ports = Vec::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let field = format!("spec.ports[{index}].protocol");
        if port.protocol.eq_ignore_ascii_case("udp") {
            findings.warn(object, &field, "UDP is not captured: this port is left alone");
            continue;
        }
        if !port.protocol.is_empty() && protocol::named(&port.protocol).is_none() {
            let message = format!("{} is no protocol that egret knows: the port is sniffed", port.protocol);
            findings.warn(object, &field, message);
        }
        let protocol = protocol::of_entry(&port.protocol, &port.name, port.number);
        let target = port.target_port.map_or(Target::Same, Target::Number);
        ports.push(EntryPort { number: port.number, name: port.name.clone(), protocol, target });
    }
    let finding = match spec.resolution {
        Resolution::None => Finding::Original,
        Resolution::Static => Finding::Static,
        Resolution::Dns => Finding::Dns,
        Resolution::DnsRoundRobin => Finding::DnsRoundRobin,
        Resolution::DynamicDns => Finding::Dynamic,
    };
    let mut backends = Vec::new();
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        let field = format!("spec.endpoints[{index}].address");
        let address = match (endpoint.address.strip_prefix("unix://"), endpoint.address.parse::<IpAddr>()) {
            (Some(path), _) => Address::Unix(PathBuf::from(path)),
            (None, Ok(ip)) => Address::Ip(ip),
            (None, Err(_)) => Address::Name(canonical(&endpoint.address).into_owned()),
        };
        let usable = match (&address, finding) {
            (Address::Name(_), Finding::Static) => Err("resolution STATIC wants an IP address or unix:// path here"),
            (Address::Unix(_), Finding::Dns | Finding::DnsRoundRobin) => Err("a unix:// path wants resolution STATIC"),
            (_, Finding::Original | Finding::Dynamic) => Err("endpoints do not count with this resolution"),
            _ => Ok(()),
        };
        match usable {
            Ok(()) => backends.push(Backend {
                ports: Ports::Overridden(endpoint.ports.clone()),
                labels: Arc::new(endpoint.labels.clone()),
                locality: locality::of_entry(endpoint),
                peer: match (endpoint.service_account.as_str(), &address) {
                    // Its address may be that of an enrolled pod, which a service of the mesh may list by hand.
                    ("", Address::Ip(ip)) if spec.location == Location::MeshInternal => pods.peers.at(*ip).cloned(),
                    ("", _) => None,
                    (account, _) => Some(pods.peers.outside(&object.meta.namespace, account)),
                },
                ..Backend::new(address, endpoint.weight.max(1))
            }),
            Err(why) => findings.warn(object, &field, format!("{why}: this endpoint is ignored")),
        }
    }
    if let Some(selector) = &spec.workload_selector {
        backends.extend(pods.backends(&object.meta.namespace, selector, None));
    }
    if finding == Finding::Static && backends.is_empty() && spec.workload_selector.is_none() {
        findings.error(object, "spec.endpoints", "resolution STATIC without endpoints: requests get 503");
    }
    Body {
        visibility: Visibility::new(spec.export_to.iter().map(String::as_str), &object.meta.namespace),
        ports,
        addresses: spec.addresses.clone(),
        mesh_external: spec.location == Location::MeshExternal,
        subject_alt_names: spec.subject_alt_names.clone(),
        finding,
        backends,
    }
}
