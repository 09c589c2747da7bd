//! Ports of a pod that services lead to.

use std::collections::{BTreeMap, HashMap};

use super::{
    super::{
        clusters::Workshop,
        findings::Findings,
        host::canonical,
        inbound::Application,
        names::{object_order, selects, service_host},
        protocol,
        table::Protocol,
    },
    Declared,
};
use crate::api::{
    Object, ObjectId, ObjectMeta, Objects,
    core::{Pod, Service, TargetPort},
    istio::ServiceEntry,
};

/// Every service that selects pods, in object order, and where to look for those of one pod.
pub struct Services<'a> {
    all: Vec<Selecting<'a>>,
    /// Indices in `all`, by namespace and one label of the selector: a namespace may have thousands of services.
    labelled: HashMap<(&'a str, &'a str, &'a str), Vec<usize>>,
    /// Those of a namespace with an empty selector.
    everybody: HashMap<&'a str, Vec<usize>>,
}

#[derive(Clone, Copy)]
enum Selecting<'a> {
    Service(&'a Object<Service>),
    Entry(&'a Object<ServiceEntry>),
}

/// A port of a service, as pods see it.
struct Port<'a> {
    /// In the service's list.
    index: usize,
    number: u16,
    target: Option<&'a TargetPort>,
    /// Where `target` says nothing.
    own: u16,
    protocol: Protocol,
}

impl<'a> Services<'a> {
    pub fn new(objects: &'a Objects) -> Self {
        let selecting =
            |service: &&Object<Service>| !service.spec.selector.is_empty() && service.spec.external_name.is_none();
        let services = objects.services.values().map(|object| &**object).filter(selecting).map(Selecting::Service);
        let entries = objects.service_entries.values().map(|object| &**object);
        let entries = entries.filter(|entry| entry.spec.workload_selector.is_some()).map(Selecting::Entry);
        let mut made =
            Self { all: services.chain(entries).collect(), labelled: HashMap::new(), everybody: HashMap::new() };
        made.all.sort_by(|a, b| object_order(a.meta(), b.meta()));
        for (index, service) in made.all.iter().enumerate() {
            let namespace = service.meta().namespace.as_str();
            let place = match service.selector().and_then(BTreeMap::first_key_value) {
                Some((key, value)) => made.labelled.entry((namespace, key, value)).or_default(),
                None => made.everybody.entry(namespace).or_default(),
            };
            place.push(index);
        }
        made
    }

    /// The ports that services lead to; of several services, the oldest declares what is spoken.
    pub fn declared(&self, pod: &Object<Pod>, workshop: &mut Workshop<'_>) -> BTreeMap<u16, Declared> {
        let pool = workshop.pool(None);
        let mut declared: BTreeMap<u16, Declared> = BTreeMap::new();
        for service in self.of(pod) {
            for port in service.ports() {
                let Some(number) = target(pod, &port) else { continue };
                match declared.get(&number) {
                    None => {
                        let made = Declared {
                            by: service.id().clone(),
                            host: service.host(),
                            protocol: port.protocol,
                            application: Application::Dialled,
                            pool: pool.clone(),
                            tls: None,
                        };
                        declared.insert(number, made);
                    }
                    Some(first) => service.conflict(&port, number, first, workshop.findings),
                }
            }
        }
        declared
    }

    /// The service that has this port and leads to another one of the pod: what an author may have meant who names it where the
    /// pod's own is wanted.
    pub fn mistaken(&self, pod: &Object<Pod>, number: u16) -> Option<(&ObjectId, u16)> {
        self.of(pod).find_map(|service| {
            let ports = service.ports().into_iter().filter(|port| port.number == number);
            let own = ports.filter_map(|port| target(pod, &port)).find(|own| *own != number)?;
            Some((service.id(), own))
        })
    }

    fn of(&self, pod: &Object<Pod>) -> impl Iterator<Item = Selecting<'a>> {
        let (namespace, labels) = (pod.meta.namespace.as_str(), &pod.meta.labels);
        let labelled =
            labels.iter().filter_map(|(key, value)| self.labelled.get(&(namespace, key.as_str(), value.as_str())));
        let mut found: Vec<usize> = labelled.chain(self.everybody.get(namespace)).flatten().copied().collect();
        found.sort_unstable();
        let services = found.into_iter().filter_map(|index| self.all.get(index).copied());
        services.filter(move |service| service.selector().is_some_and(|selector| selects(selector, labels)))
    }
}

/// The pod's own port; None: it has none of this name.
fn target(pod: &Object<Pod>, port: &Port<'_>) -> Option<u16> {
    match port.target {
        None => Some(port.own),
        Some(TargetPort::Number(number)) => Some(*number),
        Some(TargetPort::Name(name)) => {
            pod.spec.ports.iter().find(|own| own.name.as_ref() == Some(name)).map(|own| own.port)
        }
    }
}

impl<'a> Selecting<'a> {
    fn meta(self) -> &'a ObjectMeta {
        match self {
            Self::Service(object) => &object.meta,
            Self::Entry(object) => &object.meta,
        }
    }

    fn id(self) -> &'a ObjectId {
        match self {
            Self::Service(object) => &object.id,
            Self::Entry(object) => &object.id,
        }
    }

    fn selector(self) -> Option<&'a BTreeMap<String, String>> {
        match self {
            Self::Service(object) => Some(&object.spec.selector),
            Self::Entry(object) => object.spec.workload_selector.as_ref(),
        }
    }

    fn host(self) -> String {
        match self {
            Self::Service(object) => service_host(&canonical(&object.meta.name), &object.meta.namespace),
            Self::Entry(object) => {
                object.spec.hosts.first().map(|host| canonical(host).into_owned()).unwrap_or_default()
            }
        }
    }

    /// But for UDP.
    fn ports(self) -> Vec<Port<'a>> {
        match self {
            Self::Service(object) => {
                let ports = object.spec.ports.iter().enumerate();
                let tcp =
                    ports.filter(|(_, port)| port.protocol.as_deref().is_none_or(|p| p.eq_ignore_ascii_case("tcp")));
                let port = tcp.map(|(index, port)| Port {
                    index,
                    number: port.port,
                    target: port.target_port.as_ref(),
                    own: port.port,
                    protocol: protocol::of_service(
                        port.app_protocol.as_deref(),
                        port.name.as_deref().unwrap_or_default(),
                        port.port,
                    ),
                });
                port.collect()
            }
            Self::Entry(object) => {
                let ports = object.spec.ports.iter().enumerate();
                let tcp = ports.filter(|(_, port)| !port.protocol.eq_ignore_ascii_case("udp"));
                let port = tcp.map(|(index, port)| Port {
                    index,
                    number: port.number,
                    target: None,
                    own: port.target_port.unwrap_or(port.number),
                    protocol: protocol::of_entry(&port.protocol, &port.name, port.number),
                });
                port.collect()
            }
        }
    }

    /// Two services that say different things of one port. One that leaves it open says nothing.
    fn conflict(self, port: &Port<'_>, number: u16, first: &Declared, findings: &mut Findings) {
        if port.protocol == first.protocol || port.protocol == Protocol::Auto {
            return;
        }
        let (other, first_protocol) = (&first.by, first.protocol);
        let message =
            format!("{other} leads to port {number} of the same pods, as {first_protocol:?}: that counts there");
        let field = format!("spec.ports[{}]", port.index);
        match self {
            Self::Service(object) => findings.warn(object, &field, message),
            Self::Entry(object) => findings.warn(object, &field, message),
        }
    }
}
