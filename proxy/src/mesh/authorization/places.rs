//! Who has which policies.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    super::{
        findings::Findings,
        gateway_api::GATEWAY_NAME,
        names::{object_order, selects},
        table::Settings,
    },
    InForce, Policies,
    findings::tell,
    rules::{Action, Policy, TrustDomains},
};
use crate::api::{
    Object, ObjectId, Objects,
    core::{Pod, Service, TargetPort},
    gateway::Gateway,
    gateway_api,
    security::{AuthorizationPolicy, PolicyTarget},
};

/// Every policy that decides something.
pub struct Authorization<'a> {
    objects: &'a Objects,
    root: &'a str,
    /// By namespace, in object order.
    written: HashMap<&'a str, Vec<Written<'a>>>,
    /// Those about a service, by it.
    services: HashMap<ObjectId, Arc<Policies>>,
}

struct Written<'a> {
    object: &'a Object<AuthorizationPolicy>,
    policy: Arc<Policy>,
}

/// Policies of pods, made once for all that have the same.
#[derive(Default)]
pub struct Shared(HashMap<Vec<(*const Policy, Option<ServicePorts>)>, Arc<Policies>>);

/// A Service's ports by those of a pod.
type ServicePorts = BTreeMap<u16, Vec<u16>>;

impl<'a> Authorization<'a> {
    pub fn new(objects: &'a Objects, settings: &'a Settings, findings: &mut Findings) -> Self {
        let domains = TrustDomains { own: &settings.trust_domain, aliases: &settings.trust_domain_aliases };
        let mut sorted: Vec<_> = objects.authorization_policies.values().collect();
        sorted.sort_by(|a, b| object_order(&a.meta, &b.meta));
        let mut written: HashMap<&str, Vec<Written<'_>>> = HashMap::new();
        let mut services: HashMap<ObjectId, Policies> = HashMap::new();
        for object in sorted {
            tell(object, objects, settings, findings);
            let Some(policy) = Policy::new(object, &domains).map(Arc::new) else { continue };
            for id in object.spec.targets.iter().filter_map(|target| service(target, &object.meta.namespace)) {
                let in_force = InForce { policy: policy.clone(), service_ports: None };
                services.entry(id).or_default().add(in_force, object.spec.dry_run);
            }
            written.entry(&object.meta.namespace).or_default().push(Written { object, policy });
        }
        let services = services.into_iter().map(|(id, policies)| (id, Arc::new(policies))).collect();
        Self { objects, root: &settings.root_namespace, written, services }
    }

    /// What counts where a call leaves for a service.
    pub fn of_service(&self, service: &ObjectId) -> Option<Arc<Policies>> {
        self.services.get(service).cloned()
    }

    /// What counts where a connection comes to a pod, which serves these Gateways.
    pub fn at_pod(&self, pod: &Object<Pod>, serves: &[&Arc<Object<Gateway>>], shared: &mut Shared) -> Arc<Policies> {
        let namespace = pod.meta.namespace.as_str();
        let of = |namespace: &str| self.written.get(namespace).map(Vec::as_slice).unwrap_or_default();
        let own = if namespace == self.root { &[] } else { of(namespace) };
        let mut found: Vec<(&Written<'_>, Option<ServicePorts>)> = Vec::new();
        for written in of(self.root).iter().chain(own) {
            let spec = &written.object.spec;
            if spec.targets.is_empty() && selects(&spec.selector, &pod.meta.labels) {
                found.push((written, None));
            }
            for target in &spec.targets {
                match self.reaches(target, written, pod, serves) {
                    Reach::Nothing => {}
                    Reach::All => found.push((written, None)),
                    Reach::Ports(ports) => found.push((written, Some(ports))),
                }
            }
        }
        let key = found.iter().map(|(written, ports)| (Arc::as_ptr(&written.policy), ports.clone())).collect();
        let made = shared.0.entry(key).or_insert_with(|| {
            let mut policies = Policies::default();
            for (Written { object, policy }, ports) in found {
                let in_force = InForce { policy: policy.clone(), service_ports: ports.map(Arc::new) };
                policies.add(in_force, object.spec.dry_run);
            }
            Arc::new(policies)
        });
        made.clone()
    }

    fn reaches(
        &self,
        target: &PolicyTarget,
        by: &Written<'_>,
        pod: &Object<Pod>,
        serves: &[&Arc<Object<Gateway>>],
    ) -> Reach {
        let near = by.object.meta.namespace.as_str();
        let here = pod.meta.namespace == near;
        let all = |reached: bool| if reached { Reach::All } else { Reach::Nothing };
        match target.kind.as_str() {
            "Gateway" => all(here && gateways_of(pod, serves).any(|name| name == target.name)),
            "GatewayClass" => all(near == self.root
                && gateways_of(pod, serves).any(|name| {
                    let gateway = self.objects.kube_gateways.get(&pod.meta.namespace, name);
                    gateway.is_some_and(|gateway| gateway.spec.class == target.name)
                })),
            "Service" if here => {
                let service = self.objects.services.get(near, &target.name);
                let service = service.filter(|service| {
                    !service.spec.selector.is_empty() && selects(&service.spec.selector, &pod.meta.labels)
                });
                service.map_or(Reach::Nothing, |service| Reach::Ports(ports(&service.spec, pod)))
            }
            _ => Reach::Nothing,
        }
    }
}

/// How much of what comes to a pod a policy is about.
enum Reach {
    Nothing,
    All,
    Ports(ServicePorts),
}

impl Policies {
    fn add(&mut self, in_force: InForce, dry_run: bool) {
        self.asks_paths |= in_force.policy.asks_paths() && !dry_run;
        let list = match in_force.policy.action {
            _ if dry_run => &mut self.dry_run,
            Action::Allow => &mut self.allow,
            Action::Deny => &mut self.deny,
            // Istio asks authorizers first.
            Action::Custom => {
                let at = self.deny.iter().take_while(|other| other.policy.action == Action::Custom).count();
                return self.deny.insert(at, in_force);
            }
        };
        list.push(in_force);
    }
}

/// The service that a target is.
fn service(target: &PolicyTarget, namespace: &str) -> Option<ObjectId> {
    let kind = match target.kind.as_str() {
        "Service" => "Service",
        "ServiceEntry" => "ServiceEntry",
        _ => return None,
    };
    Some(ObjectId::new(kind, namespace, target.name.as_str()))
}

/// The Gateways of the Gateway API, by name, that a pod is there for.
fn gateways_of<'a>(
    pod: &'a Object<Pod>,
    serves: &'a [&Arc<Object<Gateway>>],
) -> impl Iterator<Item = &'a str> + use<'a> {
    let made_from = serves.iter().flat_map(|gateway| gateway.origin.made_from.values());
    let made_from = made_from.map(|written| &written.object).filter(|id| id.kind == gateway_api::GATEWAY);
    pod.meta.labels.get(GATEWAY_NAME).map(String::as_str).into_iter().chain(made_from.map(|id| id.name.as_str()))
}

/// Which of a pod's ports the Service's lead to.
fn ports(service: &Service, pod: &Object<Pod>) -> ServicePorts {
    let mut ports = ServicePorts::new();
    for port in &service.ports {
        let named = |name: &String| pod.spec.ports.iter().find(|port| port.name.as_ref() == Some(name));
        let own = match &port.target_port {
            None => Some(port.port),
            Some(TargetPort::Number(number)) => Some(*number),
            Some(TargetPort::Name(name)) => named(name).map(|port| port.port),
        };
        // Of a headless Service the client dials the pod itself, on the Service's port.
        let dialled = service.headless.then_some(port.port).filter(|port| own != Some(*port));
        for own in own.into_iter().chain(dialled) {
            ports.entry(own).or_default().push(port.port);
        }
    }
    ports
}
