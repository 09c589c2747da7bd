//! discovery.k8s.io/v1 EndpointSlice.

use super::super::decode::{Field, Fields};
use crate::api::{
    ObjectMeta,
    discovery::{EndpointSlice, SliceEndpoint, SlicePort},
};

/// Where all of it stands: the kind has no `spec`.
pub const READ: &[&str] = &["addressType", "endpoints", "ports"];

/// Reads an EndpointSlice. Names in place of addresses (`addressType: FQDN`, which nothing in Kubernetes reads either) give
/// no endpoint.
pub fn endpoint_slice(root: &Fields<'_>, meta: &ObjectMeta) -> Option<EndpointSlice> {
    let address_type = root.require("addressType")?;
    let by_address = address_type.choice(&[("IPv4", true), ("IPv6", true), ("FQDN", false)])?;
    if !by_address {
        address_type.warn("FQDN is not honoured: these endpoints are ignored");
        return Some(EndpointSlice::default());
    }
    Some(EndpointSlice {
        ports: root.each("ports", port),
        endpoints: root.each("endpoints", |field| endpoint(field, &meta.namespace)),
    })
}

fn port(field: &Field<'_>) -> Option<SlicePort> {
    let fields = field.fields(&["name", "port", "protocol"], &["appProtocol"], &[])?;
    let protocols = [("TCP", true), ("UDP", false), ("SCTP", false)];
    let tcp = fields.get("protocol").and_then(|f| f.choice(&protocols)).unwrap_or(true);
    let port = fields.get("port").and_then(|f| f.port());
    tcp.then(|| SlicePort { name: fields.string("name").unwrap_or_default(), port })
}

fn endpoint(field: &Field<'_>, namespace: &str) -> Option<SliceEndpoint> {
    let ignored = ["deprecatedTopology", "hints", "hostname", "nodeName", "zone"];
    let fields = field.fields(&["addresses", "conditions", "targetRef"], &ignored, &[])?;
    let addresses = fields.require("addresses")?.items();
    let Some(first) = addresses.first() else {
        fields.field.error("`addresses` is empty");
        return None;
    };
    let mut made = SliceEndpoint { address: first.ip()?, ready: true, serving: true, terminating: false, pod: None };
    let known = &["ready", "serving", "terminating"];
    if let Some(conditions) = fields.get("conditions").and_then(|f| f.fields(known, &[], &[])) {
        let says = |name: &str| conditions.get(name).and_then(|f| f.boolean());
        made.ready = says("ready").unwrap_or(true);
        made.serving = says("serving").unwrap_or(made.ready);
        made.terminating = says("terminating").unwrap_or_default();
    }
    if let Some(target) = fields.get("targetRef") {
        let ignored = ["apiVersion", "fieldPath", "resourceVersion", "uid"];
        let target = target.fields(&["kind", "namespace", "name"], &ignored, &[])?;
        if target.string("kind").as_deref() == Some("Pod") {
            let namespace = target.string("namespace").unwrap_or_else(|| namespace.to_owned());
            made.pod = Some((namespace, target.require("name")?.string()?));
        }
    }
    Some(made)
}
