//! `status.addresses` of a Gateway: those of its Services (Istio `reportGatewayStatus`).

use serde_json::{Value, json};

use super::{
    Implied,
    live::{Live, text},
};
use crate::mesh::CLUSTER_DOMAIN;

/// What a Gateway is reached at.
#[derive(Debug, Default)]
pub struct Addresses {
    pub assigned: Vec<Value>,
    /// Why there are not all.
    pub missing: Option<String>,
}

pub fn of(gateway: &Implied, live: &Live) -> Addresses {
    let namespace = &gateway.gateway.namespace;
    let mut addresses = Addresses::default();
    for name in &gateway.addressed_by {
        let Some(service) = live.get("Service", namespace, name) else {
            addresses.missing = Some(format!("there is no Service {namespace}/{name} yet"));
            continue;
        };
        let own = of_service(service);
        if own.is_empty() {
            addresses.missing = Some(format!(
                "Service {namespace}/{name} of type LoadBalancer has no address yet (annotation \
                 networking.istio.io/service-type: ClusterIP on the Gateway wants none)"
            ));
        }
        addresses.assigned.extend(own.into_iter().filter(|own| !addresses.assigned.contains(own)).collect::<Vec<_>>());
    }
    addresses
}

/// From outside a load balancer's, or those that were given by hand; else the name within the cluster.
fn of_service(service: &Value) -> Vec<Value> {
    let address = |kind: &str, value: &str| json!({"type": kind, "value": value});
    let by_hand = service["spec"]["externalIPs"].as_array().into_iter().flatten().map(text);
    let mut found: Vec<Value> = by_hand.map(|ip| address("IPAddress", ip)).collect();
    for ingress in service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten() {
        match (ingress["ip"].as_str(), ingress["hostname"].as_str()) {
            (Some(ip), _) if !ip.is_empty() => found.push(address("IPAddress", ip)),
            (_, Some(host)) if !host.is_empty() => found.push(address("Hostname", host)),
            _ => {}
        }
    }
    if found.is_empty() && service["spec"]["type"] != "LoadBalancer" {
        let metadata = &service["metadata"];
        let host = format!("{}.{}.svc.{CLUSTER_DOMAIN}", text(&metadata["name"]), text(&metadata["namespace"]));
        found.push(address("Hostname", &host));
    }
    found
}
